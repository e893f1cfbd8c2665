#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include <ezaudio/detail/config.hpp>

// Which latent frames a chunk of samples needs: the arithmetic of Python's runtime/decoding.py.
namespace ezaudio::detail {

struct Span {
    std::int64_t begin, end;  // one past the last
};

constexpr std::int64_t floor_divide(std::int64_t value, std::int64_t by) {
    return value >= 0 ? value / by : -((-value + by - 1) / by);
}

/// Frames that the samples depend on, not cut to the clip.
inline Span latent_span(Span samples, const VaeConfig& vae) {
    constexpr std::int64_t edge_reach = 3, residual_reach = 3 * (1 + 3 + 9);
    std::int64_t first = samples.begin - edge_reach, last = samples.end - 1 + edge_reach;
    for (const std::int64_t stride : vae.strides) {
        first = floor_divide(first - residual_reach + stride / 2, stride) - 1;
        last = floor_divide(last + residual_reach + stride / 2, stride);
    }
    return {first - edge_reach, last + edge_reach + 1};
}

/// Chunks of a clip: the first a quarter of a second, each later one half as long again, at most 4 s.
inline std::vector<Span> chunk_bounds(std::int64_t num_samples, std::int64_t sample_rate) {
    std::vector<Span> chunks;
    std::int64_t begin = 0, size = std::max<std::int64_t>(1, sample_rate / 4);
    while (begin < num_samples) {
        const std::int64_t end = std::min(begin + size, num_samples);
        chunks.push_back({begin, end});
        begin = end;
        size = std::min(size * 3 / 2, 4 * sample_rate);
    }
    return chunks;
}

/// Equal parts of a clip, as few as keep each to 4 s: what bounds the memory of decoding.
inline std::vector<Span> part_bounds(std::int64_t num_samples, std::int64_t sample_rate) {
    const std::int64_t longest = 4 * sample_rate, count = (num_samples + longest - 1) / longest;
    std::vector<Span> parts;
    for (std::int64_t part = 0; part < count; ++part) {
        parts.push_back({num_samples * part / count, num_samples * (part + 1) / count});
    }
    return parts;
}

}  // namespace ezaudio::detail
