#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include <ezaudio/detail/errors.hpp>
#include <ezaudio/detail/files.hpp>
#include <ezaudio/detail/text_format.hpp>

namespace ezaudio::detail {

/// SHA-256 (FIPS 180-4) of what `update` is given, piece by piece.
class Sha256 {
public:
    void update(const void* data, std::size_t size) {
        if (size == 0) return;  // memcpy may not be given a null pointer
        const auto* bytes = static_cast<const unsigned char*>(data);
        total_ += size;
        if (held_ > 0) {
            const std::size_t taken = size < block_.size() - held_ ? size : block_.size() - held_;
            std::memcpy(block_.data() + held_, bytes, taken);
            held_ += taken;
            bytes += taken;
            size -= taken;
            if (held_ < block_.size()) return;
            mix(block_.data());
            held_ = 0;
        }
        for (; size >= block_.size(); bytes += block_.size(), size -= block_.size()) mix(bytes);
        if (size > 0) std::memcpy(block_.data(), bytes, size);
        held_ = size;
    }

    /// 64 hex digits. Ends the message: call it once.
    std::string hex() {
        const std::uint64_t bits = total_ * 8;
        std::array<unsigned char, 72> padding{0x80};
        const std::size_t zeros_end = (held_ < 56 ? 56 : 120) - held_;
        for (unsigned index = 0; index < 8; ++index) {
            padding[zeros_end + index] = static_cast<unsigned char>(bits >> (56 - 8 * index));
        }
        update(padding.data(), zeros_end + 8);
        std::string text;
        for (const Word word : state_) text += hex_digits(word, 8);
        return text;
    }

private:
    using Word = std::uint32_t;

    static Word rotate(Word word, unsigned count) { return word >> count | word << (32 - count); }

    static void round(Word a, Word b, Word c, Word& d, Word e, Word f, Word g, Word& h, Word sum) {
        const Word choice = (e & f) ^ (~e & g), majority = (a & b) ^ (a & c) ^ (b & c);
        h += (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) + choice + sum;
        d += h;
        h += (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) + majority;
    }

    void mix(const unsigned char* block) {
        // Section 4.2.2: the first 32 bits of the fractional parts of the cube roots of the first 64 primes.
        static constexpr Word constants[64] = {
            0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
            0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
            0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
            0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
            0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
            0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
            0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
            0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
        };
        Word words[64];
        for (std::size_t index = 0; index < 16; ++index) {
            const unsigned char* bytes = block + 4 * index;
            words[index] = Word{bytes[0]} << 24 | Word{bytes[1]} << 16 | Word{bytes[2]} << 8 | Word{bytes[3]};
        }
        for (std::size_t index = 16; index < 64; ++index) {
            const Word early = words[index - 15], late = words[index - 2];
            words[index] = words[index - 16] + (rotate(early, 7) ^ rotate(early, 18) ^ early >> 3) + words[index - 7] +
                           (rotate(late, 17) ^ rotate(late, 19) ^ late >> 10);
        }
        auto [a, b, c, d, e, f, g, h] = state_;
        for (std::size_t index = 0; index < 64; index += 8) {  // names rotate instead of values: twice as fast at -O2
            const auto sum = [&](std::size_t offset) { return constants[index + offset] + words[index + offset]; };
            round(a, b, c, d, e, f, g, h, sum(0));
            round(h, a, b, c, d, e, f, g, sum(1));
            round(g, h, a, b, c, d, e, f, sum(2));
            round(f, g, h, a, b, c, d, e, sum(3));
            round(e, f, g, h, a, b, c, d, sum(4));
            round(d, e, f, g, h, a, b, c, sum(5));
            round(c, d, e, f, g, h, a, b, sum(6));
            round(b, c, d, e, f, g, h, a, sum(7));
        }
        const std::array<Word, 8> mixed{a, b, c, d, e, f, g, h};
        for (std::size_t index = 0; index < 8; ++index) state_[index] += mixed[index];
    }

    // Section 5.3.3: the first 32 bits of the fractional parts of the square roots of the first 8 primes.
    std::array<Word, 8> state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                        0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    std::array<unsigned char, 64> block_{};
    std::size_t held_ = 0;
    std::uint64_t total_ = 0;
};

inline std::string sha256_hex(std::string_view bytes) {
    Sha256 digest;
    digest.update(bytes.data(), bytes.size());
    return digest.hex();
}

/// Hex digest; `on_bytes`, when there is one, is told the size of every piece read. Raises BundleError.
inline std::string file_sha256(const std::filesystem::path& path, const std::function<void(std::size_t)>& on_bytes) {
    std::ifstream file(path, std::ios::binary);
    std::vector<char> piece(std::size_t{1} << 20);
    Sha256 digest;
    while (file) {
        file.read(piece.data(), static_cast<std::streamsize>(piece.size()));
        const auto count = static_cast<std::size_t>(file.gcount());
        digest.update(piece.data(), count);
        if (count > 0 && on_bytes) on_bytes(count);
    }
    if (!file.eof()) {
        throw BundleError("'" + path_text(path) + "' cannot be read: check its permissions, or copy the bundle again");
    }
    return digest.hex();
}

}  // namespace ezaudio::detail
