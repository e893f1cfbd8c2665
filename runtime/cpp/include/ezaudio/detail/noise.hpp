#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include <ezaudio/detail/exact_math.hpp>

// Gaussian noise as a function of the seed, bit for bit that of Python's runtime/noise.py, which defines it.
namespace ezaudio::detail {

/// Where a sampler gets its noise: `draw(0, …)` is the start noise, `draw(i + 1, …)` that of solver row i.
class NoiseSource {
public:
    NoiseSource() = default;
    NoiseSource(const NoiseSource&) = delete;
    NoiseSource& operator=(const NoiseSource&) = delete;
    virtual ~NoiseSource() = default;

    /// `count` standard normals.
    virtual std::vector<float> draw(std::uint32_t step, std::size_t count) = 0;
};

/// √(−2·ln u)·cos 2πv and √(−2·ln u)·sin 2πv with u = radius/2ᵇⁱᵗˢ in (0, 1] and v = angle/2ᵇⁱᵗˢ in [0, 1).
inline std::array<float, 2> box_muller(std::uint64_t radius, std::uint64_t angle, int bits) {
    const double unit = 1.0 / static_cast<double>(std::uint64_t{1} << bits);
    const double length = std::sqrt(-2.0 * exact_log(static_cast<double>(radius) * unit));
    const CosSin turn = cos_sin_turns(static_cast<double>(angle) * unit);
    return {static_cast<float>(length * turn.cosine), static_cast<float>(length * turn.sine)};
}

/// The stream of `torch.Generator("cpu").manual_seed(seed)`: steps come in order, each draw continues the last.
class TorchNoise final : public NoiseSource {
public:
    explicit TorchNoise(std::uint64_t seed) : words_(static_cast<std::uint32_t>(seed)) {}

    std::vector<float> draw(std::uint32_t, std::size_t count) override { return normal(count); }

    /// What `torch.randn(count, generator=generator)` gives next.
    std::vector<float> normal(std::size_t count) {
        std::vector<float> values(count);
        if (count < 16) {
            for (float& value : values) value = one();
            return values;
        }
        std::vector<std::uint32_t> words(count);
        for (std::uint32_t& word : words) word = next_word();
        const std::size_t whole = count - count % 16;
        for (std::size_t start = 0; start < whole; start += 16) sixteen(&words[start], &values[start]);
        if (whole != count) {
            std::array<std::uint32_t, 16> last{};
            for (std::uint32_t& word : last) word = next_word();
            sixteen(last.data(), &values[count - 16]);
        }
        return values;
    }

private:
    std::uint32_t next_word() { return static_cast<std::uint32_t>(words_()); }

    /// The first eight words are the radii (as 1 − u), the last eight the angles.
    static void sixteen(const std::uint32_t* words, float* values) {
        constexpr std::uint32_t bits_24 = (1U << 24) - 1;
        for (std::size_t i = 0; i < 8; ++i) {
            const auto pair = box_muller((1U << 24) - (words[i] & bits_24), words[i + 8] & bits_24, 24);
            values[i] = pair[0];
            values[i + 8] = pair[1];
        }
    }

    float one() {
        if (waiting_) {
            const float value = *waiting_;
            waiting_.reset();
            return value;
        }
        constexpr std::uint64_t bits_53 = (std::uint64_t{1} << 53) - 1;
        std::array<std::uint64_t, 4> words{};
        for (std::uint64_t& word : words) word = next_word();
        const std::uint64_t u = (words[0] << 32 | words[1]) & bits_53, v = (words[2] << 32 | words[3]) & bits_53;
        const auto pair = box_muller((std::uint64_t{1} << 53) - v, u, 53);
        waiting_ = pair[1];
        return pair[0];
    }

    std::mt19937 words_;
    std::optional<float> waiting_;
};

/// Philox4x32-10 (Salmon et al. 2011, section 3.3): four words of random bits for a counter.
inline std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> counter, std::uint64_t key) {
    auto key0 = static_cast<std::uint32_t>(key), key1 = static_cast<std::uint32_t>(key >> 32);
    for (int round = 0; round < 10; ++round) {
        const std::uint64_t product0 = std::uint64_t{0xD2511F53} * counter[0];
        const std::uint64_t product1 = std::uint64_t{0xCD9E8D57} * counter[2];
        counter = {static_cast<std::uint32_t>(product1 >> 32) ^ counter[1] ^ key0, static_cast<std::uint32_t>(product1),
                   static_cast<std::uint32_t>(product0 >> 32) ^ counter[3] ^ key1, static_cast<std::uint32_t>(product0)};
        key0 += 0x9E3779B9U;
        key1 += 0xBB67AE85U;
    }
    return counter;
}

/// Counter-based normals: a draw depends on (seed, item, step) and the place in the latent, and on nothing else.
class PhiloxNoise final : public NoiseSource {
public:
    explicit PhiloxNoise(std::uint64_t seed, std::uint32_t item = 0) : key_(seed), item_(item) {}

    std::vector<float> draw(std::uint32_t step, std::size_t count) override {
        std::vector<float> values((count + 3) / 4 * 4);
        for (std::size_t start = 0; start < values.size(); start += 4) {
            const auto words = philox4x32({static_cast<std::uint32_t>(start / 4), step, item_, 0}, key_);
            const auto first = box_muller((words[0] >> 8) + 1, words[1] >> 8, 24);
            const auto second = box_muller((words[2] >> 8) + 1, words[3] >> 8, 24);
            std::copy(first.begin(), first.end(), values.begin() + static_cast<std::ptrdiff_t>(start));
            std::copy(second.begin(), second.end(), values.begin() + static_cast<std::ptrdiff_t>(start) + 2);
        }
        values.resize(count);
        return values;
    }

private:
    std::uint64_t key_;
    std::uint32_t item_;
};

/// `name`: "torch" or "philox", as checked before.
inline std::unique_ptr<NoiseSource> make_noise(const std::string& name, std::uint64_t seed) {
    if (name == "philox") return std::make_unique<PhiloxNoise>(seed);
    return std::make_unique<TorchNoise>(seed);
}

}  // namespace ezaudio::detail
