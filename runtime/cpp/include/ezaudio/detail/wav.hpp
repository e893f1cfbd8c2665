#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

#include <ezaudio/detail/errors.hpp>
#include <ezaudio/detail/text_format.hpp>

// WAV files as runtime/audio_file.py writes them, byte for byte.
namespace ezaudio::detail {

inline constexpr std::size_t max_metadata_bytes = 256 * 1024;
inline constexpr std::size_t max_title_chars = 200;

/// Appends `value` as `bytes` little-endian bytes, whatever the machine's order.
inline void append_little_endian(std::string& data, std::uint32_t value, unsigned bytes) {
    for (unsigned index = 0; index < bytes; ++index) {
        data.push_back(static_cast<char>(static_cast<unsigned char>(value >> (8 * index) & 0xFF)));
    }
}

inline void append_chunk(std::string& data, std::string_view name, std::string_view body) {
    data += name;
    append_little_endian(data, static_cast<std::uint32_t>(body.size()), 4);
    data += body;
    if (body.size() % 2 != 0) data.push_back('\0');
}

/// round_half_even(sample · (2^(bits-1) - 1)) of a sample within ±1, the product exact in double.
inline std::int32_t quantize(float sample, int bits) {
    const double product = static_cast<double>(sample) * ((1 << (bits - 1)) - 1);
    const double below = std::floor(product), rest = product - below;
    const auto whole = static_cast<std::int32_t>(below);
    // Not std::nearbyint: the host program may have changed the rounding mode.
    return whole + (rest > 0.5 || (rest == 0.5 && whole % 2 != 0) ? 1 : 0);
}

/// The prompt on one line, without what no tag can hold: invisible runs become a space; at most 200 code points.
inline std::string title_of(std::string_view prompt) {
    std::u32string line;
    for (const char32_t code_point : decode_utf8(prompt)) {
        if (!is_invisible(code_point)) {
            line.push_back(code_point);
        } else if (!line.empty() && line.back() != U' ') {
            line.push_back(U' ');
        }
    }
    if (line.size() > max_title_chars) line.resize(max_title_chars);
    if (!line.empty() && line.back() == U' ') line.pop_back();
    std::string title;
    for (const char32_t code_point : line) append_utf8(title, code_point);
    return title;
}

/// The bytes of a mono WAV file.
///
/// `samples`: `count` of them, full scale ±1, finite; in integers a louder clip is turned down to full scale.
/// `sample_rate`: Hz. `bit_depth`: 16, 24, or 32 (float). `title`, `software`, `comment`: UTF-8 of the tags INAM, ISFT,
/// ICMT. Raises InputError.
inline std::string encode_wav(const float* samples, std::size_t count, int sample_rate, int bit_depth,
                              const std::string& title, const std::string& software, const std::string& comment) {
    if (bit_depth != 16 && bit_depth != 24 && bit_depth != 32) {
        const std::string depth = std::to_string(bit_depth);
        throw InputError("wav has no bit depth " + depth + ": expected 16 or 24 or 32; wav has 16, 24 and 32");
    }
    if (count == 0) throw InputError("samples have shape (0,), expected one mono clip: (T,) or (1, T)");
    if (sample_rate < 1 || sample_rate > 1'000'000'000) {
        throw InputError("sample_rate must be from 1 to 1,000,000,000 Hz, got " + std::to_string(sample_rate));
    }
    if (comment.size() > max_metadata_bytes) {
        throw InputError("the settings take " + std::to_string(comment.size()) + " bytes, at most " +
                         std::to_string(max_metadata_bytes) + " fit: shorten the prompt");
    }
    const bool is_float = bit_depth == 32;
    const unsigned width = static_cast<unsigned>(bit_depth) / 8;
    const std::size_t tags = title.size() + software.size() + comment.size() + 256;  // with the headers of all chunks
    constexpr std::uint64_t largest = 0xFFFFFFFF;  // sizes in a WAV file have 32 bits
    if (tags > largest || count > (largest - tags) / width) {
        throw InputError("a wav file holds less than 4 GiB, " + with_commas(count) +
                         " samples take more: make a shorter clip");
    }

    float peak = 1;
    for (std::size_t index = 0; index < count; ++index) {
        if (!is_finite(samples[index])) {
            throw InputError(
                "samples contain NaN or infinity: nothing was written; try other settings or another seed");
        }
        peak = std::max(peak, std::abs(samples[index]));
    }

    std::string layout;
    append_little_endian(layout, is_float ? 3 : 1, 2);  // IEEE float or PCM
    append_little_endian(layout, 1, 2);                 // channels
    append_little_endian(layout, static_cast<std::uint32_t>(sample_rate), 4);
    append_little_endian(layout, static_cast<std::uint32_t>(sample_rate) * width, 4);
    append_little_endian(layout, width, 2);
    append_little_endian(layout, static_cast<std::uint32_t>(bit_depth), 2);
    if (is_float) append_little_endian(layout, 0, 2);  // size of an extension that it does not have
    std::string frames;
    append_little_endian(frames, static_cast<std::uint32_t>(count), 4);
    std::string info = "INFO";
    append_chunk(info, "INAM", title + '\0');
    append_chunk(info, "ISFT", software + '\0');
    append_chunk(info, "ICMT", comment + '\0');

    std::string chunks = "WAVE";
    chunks.reserve(count * width + tags);
    append_chunk(chunks, "fmt ", layout);
    if (is_float) append_chunk(chunks, "fact", frames);
    chunks += "data";
    append_little_endian(chunks, static_cast<std::uint32_t>(count * width), 4);
    for (std::size_t index = 0; index < count; ++index) {
        std::uint32_t bits = 0;
        if (is_float) {
            std::memcpy(&bits, &samples[index], sizeof bits);
        } else {
            bits = static_cast<std::uint32_t>(quantize(samples[index] / peak, bit_depth));
        }
        append_little_endian(chunks, bits, width);
    }
    if (count * width % 2 != 0) chunks.push_back('\0');
    append_chunk(chunks, "LIST", info);  // last: readers that expect samples at byte 44 find them
    std::string file;
    append_chunk(file, "RIFF", chunks);
    return file;
}

}  // namespace ezaudio::detail
