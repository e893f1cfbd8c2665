#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include <ezaudio/detail/exact_math.hpp>

namespace ezaudio::detail {

/// Loudness contour of (T,) samples, T a multiple of `hop` and at least 4 hops: (T / hop,) in 0…1.
///
/// Mean square over windows of 8 hops, in dB above −60 and scaled by the clip's maximum; as Python's runtime/energy.py.
inline std::vector<float> energy_contour(const std::vector<float>& audio, std::size_t hop) {
    constexpr std::size_t window_hops = 8;
    constexpr double floor_power = 1e-6, db_per_neper = 10.0 / 2.302585092994046;
    const std::size_t pad = (window_hops - 1) * hop / 2, count = audio.size() / hop;
    const auto reflected = [&](std::size_t index) {
        if (index < pad) return audio[pad - index];
        const std::size_t inside = index - pad;
        return audio[inside < audio.size() ? inside : 2 * (audio.size() - 1) - inside];
    };
    std::vector<double> hops(count + window_hops - 1);
    for (std::size_t block = 0; block < hops.size(); ++block) {
        for (std::size_t i = 0; i < hop; ++i) {
            const double sample = reflected(block * hop + i);
            hops[block] = hops[block] + sample * sample;
        }
    }
    std::vector<double> above(count);
    for (std::size_t i = 0; i < count; ++i) {
        double sum = 0;
        for (std::size_t first = 0; first < window_hops; ++first) sum = sum + hops[i + first];
        const double power = sum / static_cast<double>(window_hops * hop);
        above[i] = db_per_neper * exact_log(std::max(power / floor_power, 1.0));
    }
    const double top = above.empty() ? 0.0 : *std::max_element(above.begin(), above.end());
    std::vector<float> contour(count);
    for (std::size_t i = 0; i < count; ++i) contour[i] = static_cast<float>(above[i] / (top + 1e-8));
    return contour;
}

}  // namespace ezaudio::detail
