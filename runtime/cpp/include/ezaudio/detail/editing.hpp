#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <ezaudio/detail/config.hpp>
#include <ezaudio/detail/errors.hpp>
#include <ezaudio/detail/settings.hpp>
#include <ezaudio/detail/text_format.hpp>

// Making a part of a sound anew: the arithmetic of Python's runtime/editing.py, which says why.
namespace ezaudio::detail {

inline constexpr double fade_s = 0.03, max_clip_s = 3600.0;
inline constexpr float silence = 1e-4F;

/// The samples of a clip that the model sees (begin to end), those it makes (start to stop), and the frames of these.
struct Window {
    std::int64_t begin, end, start, stop;
    std::int64_t num_samples;  // of the edited clip
    std::int64_t num_frames, first, last;

    bool makes(std::int64_t frame) const { return frame >= first && frame < last; }
};

/// Raises InputError when the region is empty, outside the clip's limits, or longer than the model makes.
inline Window plan_window(std::size_t num_samples, const Region& region, const Config& config) {
    const std::int64_t rate = config.vae.sample_rate, hop = config.vae.hop();
    check_number("start_s", region.start_s, 0, max_clip_s);
    check_number("end_s", region.end_s, 0, max_clip_s);
    check_number("context_s", region.context_s, 0, config.max_duration_s);
    const auto samples_of = [&](double seconds) { return round_half_even(seconds * static_cast<double>(rate)); };
    Window window{};
    window.start = samples_of(region.start_s);
    window.stop = samples_of(region.end_s);
    if (window.start >= window.stop) {
        throw InputError("the region must end after it starts, got " + format_g(region.start_s) + " to " +
                         format_g(region.end_s) + " s");
    }
    window.num_samples = std::max(static_cast<std::int64_t>(num_samples), window.stop);
    const std::int64_t half = (window.stop - window.start) / 2;
    const std::int64_t context = std::min(samples_of(region.context_s), half) / hop * hop;
    window.begin = std::max<std::int64_t>(window.start - context, 0);
    window.end = std::min(window.stop + context, window.num_samples);
    const std::int64_t length = window.end - window.begin;
    if (static_cast<double>(length) > config.max_duration_s * static_cast<double>(rate)) {
        throw InputError("the region and its context take " +
                         format_g(static_cast<double>(length) / static_cast<double>(rate)) +
                         " s, the model makes at most " + format_g(config.max_duration_s) + " s: edit less at once");
    }
    window.num_frames = (length + hop - 1) / hop;
    window.first = (window.start - window.begin) / hop;
    window.last = (window.stop - window.begin + hop - 1) / hop;
    return window;
}

/// Raises InputError for no samples, or values that are no sound.
inline void check_audio(const char* name, const std::vector<float>& audio) {
    if (audio.empty()) throw InputError(std::string(name) + " has no samples");
    if (!std::all_of(audio.begin(), audio.end(), [](float sample) { return is_finite(sample); })) {
        throw InputError(std::string(name) + " contains NaN or infinity");
    }
}

struct ModelInput {
    std::vector<float> samples;  // (num_frames · hop,), silence after the clip's end
    float peak;                  // to multiply by afterwards
};

/// The window scaled to a peak of 1, for the encoder.
inline ModelInput model_input(const std::vector<float>& clip, const Window& window, std::int64_t hop) {
    const auto size = static_cast<std::int64_t>(clip.size());
    const std::int64_t begin = std::min(window.begin, size), end = std::min(window.end, size);
    ModelInput input{std::vector<float>(static_cast<std::size_t>(window.num_frames * hop)), 0};
    for (std::int64_t i = begin; i < end; ++i) {
        input.peak = std::max(input.peak, std::fabs(clip[static_cast<std::size_t>(i)]));
    }
    if (input.peak < silence) input.peak = 1;
    for (std::int64_t i = begin; i < end; ++i) {
        input.samples[static_cast<std::size_t>(i - begin)] = clip[static_cast<std::size_t>(i)] / input.peak;
    }
    return input;
}

/// The clip with the region replaced by samples of the window `made`, faded on both sides.
inline std::vector<float> splice(const std::vector<float>& clip, const std::vector<float>& made, const Window& window,
                                 int sample_rate) {
    std::vector<float> edited(clip);
    edited.resize(static_cast<std::size_t>(window.num_samples));
    const auto new_at = [&](std::int64_t i) { return made[static_cast<std::size_t>(i - window.begin)]; };
    for (std::int64_t i = window.start; i < window.stop; ++i) edited[static_cast<std::size_t>(i)] = new_at(i);
    const std::int64_t fade = round_half_even(fade_s * sample_rate);
    const std::int64_t before = std::min(fade, window.start - window.begin);
    const std::int64_t after = std::min(fade, window.end - window.stop);
    const auto blend = [&](std::int64_t i, std::int64_t rank, std::int64_t count) {
        const float weight = (static_cast<float>(rank) + 0.5F) / static_cast<float>(count);
        float& sample = edited[static_cast<std::size_t>(i)];
        sample = sample + (new_at(i) - sample) * weight;
    };
    for (std::int64_t rank = 0; rank < before; ++rank) blend(window.start - before + rank, rank, before);
    for (std::int64_t rank = 0; rank < after; ++rank) blend(window.stop + rank, after - 1 - rank, after);
    return edited;
}

}  // namespace ezaudio::detail
