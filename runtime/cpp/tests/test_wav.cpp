#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <limits>
#include <string>
#include <vector>

#include <ezaudio/detail/files.hpp>
#include <ezaudio/detail/read_wav.hpp>
#include <ezaudio/detail/sha256.hpp>
#include <ezaudio/detail/wav.hpp>

#include "helpers.hpp"

using ezaudio::InputError;
using ezaudio::read_wav;
using ezaudio::WavClip;
using namespace ezaudio::detail;
using namespace ezaudio_tests;

namespace {

/// Values of both signs, some beyond ±1.
std::vector<float> sample_clip(std::size_t count) {
    std::vector<float> samples(count);
    for (std::size_t index = 0; index < count; ++index) {
        samples[index] = (static_cast<float>(index * 37 % 101) - 50) / 48;
    }
    return samples;
}

std::string encode(const std::vector<float>& samples, int bit_depth) {
    return encode_wav(samples.data(), samples.size(), 24000, bit_depth, "rain on a röof", "ezaudio 0.1.0",
                      R"({"prompt": "rain on a r\u00f6of"})");
}

std::string number(std::uint32_t value, unsigned bytes) {
    std::string text;
    append_little_endian(text, value, bytes);
    return text;
}

std::string layout_of(std::uint32_t code, std::uint32_t channels, std::uint32_t bits) {
    const std::uint32_t frame = channels * bits / 8;
    return number(code, 2) + number(channels, 2) + number(48000, 4) + number(48000 * frame, 4) + number(frame, 2) +
           number(bits, 2);
}

std::string chunk(const std::string& name, const std::string& body) {
    std::string text;
    append_chunk(text, name, body);
    return text;
}

std::string riff(const std::string& chunks) { return chunk("RIFF", "WAVE" + chunks); }

const std::string guid_tail("\0\0\0\0\x10\0\x80\0\0\xAA\0\x38\x9B\x71", 14);

/// WAVE_FORMAT_EXTENSIBLE.
std::string extended(std::uint32_t code, std::uint32_t channels, std::uint32_t bits, const std::string& tail) {
    return layout_of(0xFFFE, channels, bits) + number(22, 2) + number(bits, 2) + number(0, 4) + number(code, 2) + tail;
}

}  // namespace

TEST_CASE("WAV files are those of Python, byte for byte (valgrind)") {
    struct Known {
        std::size_t count;
        int bit_depth;
        std::size_t size;
        std::string digest;
    };
    const std::vector<Known> all_known{
        {1001, 16, 2146, "5a828fb37f257018aa47e9232930eca788f2fcfa56dc03c47a4789d4203ba58c"},
        {1001, 24, 3148, "903554afd0ab77383eb662df4a4885262aac7cdaef608e3cd2bc073600d6f7cf"},
        {1001, 32, 4162, "7b35aa76e83e67c5442bdd3bdeb73e03870ad0c8e7515cb72740a562cdebf7e4"},
        {1000, 16, 2144, "c766a15977fdcab233567d9f7379c631d7478989e4ea9713502f7647e08921f4"},
        {1000, 24, 3144, "5c903b37339afab7dbf7c60c7a42d26ceb6e97f9116ef913e113e6cd1e9e07db"},
        {1000, 32, 4158, "0000bbe156a345836e5957fe67a4b72cda0ff142666ed8bb58b8383ea71cd121"},
    };
    for (const Known& known : all_known) {
        CAPTURE(known.count);
        CAPTURE(known.bit_depth);
        const std::string bytes = encode(sample_clip(known.count), known.bit_depth);
        CHECK(bytes.size() == known.size);
        CHECK(sha256_hex(bytes) == known.digest);
    }
}

TEST_CASE("samples are rounded half to even (valgrind)") {
    CHECK(quantize(0.5F, 16) == 16384);                // 16383.5
    CHECK(quantize(-0.5F, 16) == -16384);
    CHECK(quantize(1.5F / 32768, 16) == 1);            // 1.49995
    CHECK(quantize(0.25F, 24) == 2097152);             // 2097151.75
    CHECK(quantize(-0.0F, 16) == 0);
    CHECK(quantize(1, 16) == 32767);
    CHECK(quantize(-1, 24) == -8388607);
}

TEST_CASE("samples that make no WAV file") {
    const auto message = [](const std::vector<float>& samples, int sample_rate, int bit_depth, std::size_t size = 0) {
        return message_of<InputError>([&] {
            encode_wav(samples.data(), samples.size(), sample_rate, bit_depth, "", "", std::string(size, 'x'));
        });
    };
    for (const float bad : {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
                            std::numeric_limits<float>::quiet_NaN()}) {
        for (const int bit_depth : {16, 24, 32}) {
            CHECK(message({0, bad}, 24000, bit_depth) ==
                  "samples contain NaN or infinity: nothing was written; try other settings or another seed");
        }
    }
    CHECK(message({}, 24000, 16) == "samples have shape (0,), expected one mono clip: (T,) or (1, T)");
    CHECK(message({0}, 24000, 8) == "wav has no bit depth 8: expected 16 or 24 or 32; wav has 16, 24 and 32");
    CHECK(message({0}, 0, 16) == "sample_rate must be from 1 to 1,000,000,000 Hz, got 0");
    CHECK(message({0}, 24000, 16, 262145) ==
          "the settings take 262145 bytes, at most 262144 fit: shorten the prompt");
    const float one = 0;  // refused before any further sample is looked at
    CHECK(message_of<InputError>([&] { encode_wav(&one, 1'100'000'000, 24000, 32, "", "", ""); }) ==
          "a wav file holds less than 4 GiB, 1,100,000,000 samples take more: make a shorter clip");
}

TEST_CASE("a title is one line of at most 200 characters (valgrind)") {
    CHECK(title_of("  rain \x1b[31mon\ta\n\nroof\u200b ") == "rain [31mon a roof");
    CHECK(title_of(std::string(199, 'a') + " b") == std::string(199, 'a'));
    CHECK(title_of(std::string(199, 'a') + "éb") == std::string(199, 'a') + "é");
    CHECK(title_of("\u3000\ufeff") == "");
    CHECK(title_of("x\u2060\U000e0020y😀") == "x y😀");
    CHECK(title_of("") == "");
    CHECK(title_of("a\xFF") == "a\uFFFD");
    for (const char* invisible : {"\x7f", "\u00a0", "\u00ad", "\u061c", "\u1680", "\u180e", "\u2000", "\u200f",
                                  "\u2028", "\u202f", "\u205f", "\u206f", "\ufff9", "\ufffb", "\U000e0000",
                                  "\U000e007f"}) {
        CHECK(title_of("a" + std::string(invisible) + "b") == "a b");
    }
    for (const char* visible : {"!", "~", "¡", "\u2010", "\u2027", "\u2030", "\u205e", "\u2070", "\ufffc"}) {
        CHECK(title_of("a" + std::string(visible) + "b") == "a" + std::string(visible) + "b");
    }
}

TEST_CASE("a file is replaced whole or not at all (valgrind)") {
    TemporaryFolder folder;
    replace_file(folder / "a.wav", "first");
    replace_file(folder / "a.wav", std::string("se\0cond", 7));
    CHECK(read_bytes(folder / "a.wav") == std::string("se\0cond", 7));
    replace_file(folder.path() / path_of("röof 😀.wav"), "");
    CHECK(read_bytes(folder.path() / path_of("röof 😀.wav")).empty());
    CHECK(path_text(path_of("röof 😀.wav")) == "röof 😀.wav");
    std::filesystem::create_directory(folder / "b.wav");
    write_file(folder / "b.wav/kept", "");
    for (const char* name : {"b.wav", "none/c.wav"}) {
        const std::string message = message_of<InputError>([&] { replace_file(folder / name, "x"); });
        check_contains(message, "'" + path_text(folder / name) + "' cannot be written (");
        check_contains(message, "): free it or name another place");
    }
    const std::filesystem::directory_iterator entries(folder.path());
    CHECK(std::distance(begin(entries), end(entries)) == 3);  // no temporary is left
}

TEST_CASE("what is written is read again (valgrind)") {
    TemporaryFolder folder;
    const std::vector<float> samples = sample_clip(1001);
    const float peak = 50.0F / 48;
    for (const int bit_depth : {16, 24, 32}) {
        CAPTURE(bit_depth);
        replace_file(folder / "a.wav", encode(samples, bit_depth));
        const WavClip clip = read_wav(folder / "a.wav");
        CHECK(clip.sample_rate == 24000);
        REQUIRE(clip.samples.size() == samples.size());
        const double step = bit_depth == 32 ? 0 : std::ldexp(1.0, 1 - bit_depth);
        double worst = 0;
        for (std::size_t index = 0; index < samples.size(); ++index) {
            const float expected = bit_depth == 32 ? samples[index] : samples[index] / peak;
            worst = std::max(worst, std::fabs(static_cast<double>(clip.samples[index] - expected)));
        }
        CHECK(worst <= 1.5 * step + 1e-7 * step);  // half of one from rounding, one from the two scales
    }
}

TEST_CASE("WAV files of others are read (valgrind)") {
    TemporaryFolder folder;
    const auto read = [&](const std::string& chunks) {
        write_file(folder / "a.wav", riff(chunks));
        return read_wav(folder / "a.wav");
    };
    const std::string frames = number(0x4000, 2) + number(0xC000, 2) + number(0x8000, 2) + number(0, 2);
    const WavClip stereo = read(chunk("LIST", "odd") + chunk("fmt ", layout_of(1, 2, 16)) + chunk("data", frames));
    CHECK(stereo.samples == std::vector<float>{0, -0.5F});
    CHECK(stereo.sample_rate == 48000);
    CHECK(read(chunk("fmt ", layout_of(1, 1, 24)) + chunk("data", number(0x800000, 3) + number(0x400000, 3))).samples ==
          std::vector<float>{-1, 0.5F});
    CHECK(read(chunk("fmt ", layout_of(1, 1, 32)) + chunk("data", number(0x80000000, 4) + number(0x20000000, 4)))
              .samples == std::vector<float>{-1, 0.25F});
    CHECK(read(chunk("fmt ", extended(1, 1, 16, guid_tail)) + chunk("data", number(0x2000, 2))).samples ==
          std::vector<float>{0.25F});
    CHECK(read(chunk("fmt ", extended(3, 2, 32, guid_tail)) +
               chunk("data", number(0x3F800000, 4) + number(0x40400000, 4))).samples == std::vector<float>{2});
}

TEST_CASE("files that are no WAV file (valgrind)") {
    TemporaryFolder folder;
    const std::string name = path_text(folder / "a.wav");
    CHECK(message_of<InputError>([&] { read_wav(folder / "a.wav"); }) ==
          "'" + name + "' cannot be read (no such file): name a WAV file");
    CHECK(message_of<InputError>([&] { read_wav(folder.path()); }) != "");
    const auto check = [&](const std::string& bytes, const std::string& detail) {
        write_file(folder / "a.wav", bytes);
        CHECK(message_of<InputError>([&] { read_wav(folder / "a.wav"); }) ==
              "'" + name + "' is no WAV file that can be read (" + detail +
                  "): expected PCM of 16, 24 or 32 bits, or 32-bit float");
    };
    const std::string mono = chunk("fmt ", layout_of(1, 1, 16)), samples = chunk("data", number(0, 4));
    const auto check_layout = [&](const std::string& layout, const std::string& detail) {
        check(riff(chunk("fmt ", layout) + samples), detail);
    };
    check("", "it does not begin as one");
    check("RIFF", "it does not begin as one");
    check("RIFX" + riff(mono + samples).substr(4), "it does not begin as one");
    check(riff(mono), "it has no samples");
    check(riff(mono + chunk("data", "")), "it has no samples");
    check(riff(samples + mono), "its samples come before their format");
    check(riff(mono + samples).substr(0, 47), "it is cut short");
    check(riff(mono + "data"), "it is cut short");
    check(riff(mono + chunk("data", number(0, 3))), "its last sample is cut short");
    check_layout("short", "its format is cut short");
    check_layout(layout_of(2, 1, 16), "its format has the code 2");
    check_layout(layout_of(0xFFFE, 1, 16), "its extended format is unknown");
    check_layout(extended(1, 1, 16, std::string(14, 'x')), "its extended format is unknown");
    check_layout(extended(6, 1, 16, guid_tail), "its format has the code 6");
    check_layout(layout_of(1, 1, 8), "it has 8 bits a sample");
    check_layout(layout_of(3, 1, 64), "it has 64 bits a sample in floating point");
    check_layout(layout_of(1, 0, 16), "its format contradicts itself");
    check_layout(layout_of(1, 1, 16).replace(12, 1, "\4"), "its format contradicts itself");
    check_layout(layout_of(1, 1, 16).replace(4, 4, number(0, 4)), "it has 0 samples a second");
    const std::string infinity = chunk("data", number(0x7F800000, 4));
    check(riff(chunk("fmt ", layout_of(3, 1, 32)) + infinity), "it contains NaN or infinity");
}

TEST_CASE("any bytes are a WAV file or refused") {
    TemporaryFolder folder;
    const std::vector<float> clip = sample_clip(20);
    const std::vector<std::string> samples{
        encode(clip, 16), encode(clip, 24), encode(clip, 32),
        riff(chunk("fmt ", extended(3, 2, 32, guid_tail)) + chunk("data", std::string(80, '\x3F')))};
    const std::vector<std::string> tokens{"RIFF", "WAVE", "fmt ", "data", "LIST", number(0xFFFFFFFF, 4), number(0, 4),
                                          number(1, 2), number(3, 2), number(0xFFFE, 2), number(0x7FC00000, 4)};
    Random random(5);
    int read = 0, refused = 0;
    for (int count = 0; count < 6000; ++count) {
        write_file(folder / "a.wav", mutated(samples[random.below(samples.size())], random, tokens));
        try {
            const WavClip found = read_wav(folder / "a.wav");
            CHECK(found.sample_rate > 0);
            CHECK_FALSE(found.samples.empty());
            CHECK(std::all_of(found.samples.begin(), found.samples.end(), [](float x) { return is_finite(x); }));
            ++read;
        } catch (const InputError&) {
            ++refused;
        }
    }
    CHECK(read > 500);
    CHECK(refused > 500);
}
