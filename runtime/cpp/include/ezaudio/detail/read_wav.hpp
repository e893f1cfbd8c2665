#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include <ezaudio/detail/errors.hpp>
#include <ezaudio/detail/files.hpp>
#include <ezaudio/detail/text_format.hpp>

namespace ezaudio {

/// One mono clip.
struct WavClip {
    std::vector<float> samples;  // (T,), full scale ±1
    int sample_rate = 0;         // Hz
};

namespace detail {

inline constexpr std::size_t max_wav_bytes = std::size_t{1} << 30;

inline std::uint32_t little_endian_at(std::string_view bytes, std::size_t start, unsigned count) {
    std::uint32_t value = 0;
    for (unsigned index = count; index > 0; --index) {
        value = value << 8 | static_cast<unsigned char>(bytes[start + index - 1]);
    }
    return value;
}

struct WavLayout {
    bool is_float = false;
    std::uint32_t channels = 0, sample_rate = 0, bit_depth = 0;
};

/// Reads WAV files; `path` names the file in messages.
class WavParser {
public:
    WavParser(std::string_view bytes, const std::string& path) : bytes_(bytes), path_(path) {}

    WavClip parse() const {
        if (bytes_.substr(0, 4) != "RIFF" || bytes_.size() < 12 || bytes_.substr(8, 4) != "WAVE") {
            fail("it does not begin as one");
        }
        std::optional<WavLayout> layout;
        for (std::size_t start = 12; start < bytes_.size();) {
            if (bytes_.size() - start < 8) fail("it is cut short");
            const std::string_view name = bytes_.substr(start, 4);
            const std::size_t size = little_endian_at(bytes_, start + 4, 4);
            start += 8;
            if (bytes_.size() - start < size) fail("it is cut short");
            const std::string_view body = bytes_.substr(start, size);
            if (name == "fmt ") layout = parse_layout(body);
            if (name == "data") {
                if (!layout) fail("its samples come before their format");
                return {mix(body, *layout), static_cast<int>(layout->sample_rate)};
            }
            start += size + size % 2;
        }
        fail("it has no samples");
    }

private:
    [[noreturn]] void fail(const std::string& detail) const {
        throw InputError("'" + path_ + "' is no WAV file that can be read (" + detail +
                         "): expected PCM of 16, 24 or 32 bits, or 32-bit float");
    }

    WavLayout parse_layout(std::string_view body) const {
        constexpr std::uint32_t pcm = 1, ieee_float = 3, extensible = 0xFFFE;
        // What follows the code in the GUID of a format that also has a code.
        constexpr std::string_view guid_tail("\0\0\0\0\x10\0\x80\0\0\xAA\0\x38\x9B\x71", 14);
        if (body.size() < 16) fail("its format is cut short");
        std::uint32_t code = little_endian_at(body, 0, 2);
        WavLayout layout;
        layout.channels = little_endian_at(body, 2, 2);
        layout.sample_rate = little_endian_at(body, 4, 4);
        layout.bit_depth = little_endian_at(body, 14, 2);
        if (code == extensible) {
            if (body.size() < 40 || body.substr(26, 14) != guid_tail) fail("its extended format is unknown");
            code = little_endian_at(body, 24, 2);
        }
        layout.is_float = code == ieee_float;
        const std::uint32_t bits = layout.bit_depth;
        if (code != pcm && code != ieee_float) fail("its format has the code " + std::to_string(code));
        if (layout.is_float ? bits != 32 : bits != 16 && bits != 24 && bits != 32) {
            fail("it has " + std::to_string(bits) + " bits a sample" + (layout.is_float ? " in floating point" : ""));
        }
        if (layout.channels == 0 || little_endian_at(body, 12, 2) != layout.channels * bits / 8) {
            fail("its format contradicts itself");
        }
        if (layout.sample_rate == 0 || layout.sample_rate > 1'000'000'000) {
            fail("it has " + std::to_string(layout.sample_rate) + " samples a second");
        }
        return layout;
    }

    /// The mean of all channels (T,).
    std::vector<float> mix(std::string_view body, const WavLayout& layout) const {
        const unsigned width = layout.bit_depth / 8;
        const std::size_t frame_bytes = std::size_t{width} * layout.channels;
        if (body.empty()) fail("it has no samples");
        if (body.size() % frame_bytes != 0) fail("its last sample is cut short");
        std::vector<float> samples(body.size() / frame_bytes);
        for (std::size_t frame = 0; frame < samples.size(); ++frame) {
            double sum = 0;
            for (std::size_t channel = 0; channel < layout.channels; ++channel) {
                const std::uint32_t bits = little_endian_at(body, frame * frame_bytes + channel * width, width);
                sum += layout.is_float ? from_float(bits) : from_integer(bits, layout.bit_depth);
            }
            samples[frame] = static_cast<float>(sum / layout.channels);
        }
        return samples;
    }

    double from_float(std::uint32_t bits) const {
        float sample;
        std::memcpy(&sample, &bits, sizeof sample);
        if (!is_finite(sample)) fail("it contains NaN or infinity");
        return static_cast<double>(sample);
    }

    /// Two's complement over 2^(bits-1), as libsndfile does it.
    static double from_integer(std::uint32_t bits, std::uint32_t bit_depth) {
        const double span = static_cast<double>(std::uint64_t{1} << bit_depth);
        const bool is_negative = (bits >> (bit_depth - 1)) != 0;
        return (bits - (is_negative ? span : 0)) / (span / 2);
    }

    std::string_view bytes_;
    const std::string& path_;
};

}  // namespace detail

/// A WAV file of 16, 24 or 32-bit PCM or 32-bit float, up to 1 GiB; several channels become their mean.
///
/// Integers are divided by 2^(bits-1). Raises InputError for any other file.
inline WavClip read_wav(const std::filesystem::path& path) {
    const std::string name = detail::path_text(path);
    std::string bytes;
    std::error_code error;
    if (!std::filesystem::is_regular_file(path, error)) {
        throw InputError("'" + name + "' cannot be read (no such file): name a WAV file");
    }
    if (!detail::read_file(path, detail::max_wav_bytes + 1, bytes)) {
        throw InputError("'" + name + "' cannot be read: check its permissions, or name another WAV file");
    }
    if (bytes.size() > detail::max_wav_bytes) {
        throw InputError("'" + name + "' is larger than " + detail::with_commas(detail::max_wav_bytes) +
                         " bytes: cut out the part to work on");
    }
    return detail::WavParser(bytes, name).parse();
}

}  // namespace ezaudio
