#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <ezaudio/detail/config.hpp>
#include <ezaudio/detail/errors.hpp>
#include <ezaudio/detail/solvers.hpp>
#include <ezaudio/detail/text_format.hpp>

namespace ezaudio {

/// Which part of a given clip is made anew, and how much of the clip the model sees on each side at most.
struct Region {
    double start_s = 0, end_s = 0;
    double context_s = 2.0;
};

/// Everything that decides one sound, given a bundle (and, to edit or control, the given sound).
struct Settings {
    std::string prompt, negative_prompt;
    double duration_s = 0;        // of an edit: what the model saw
    int num_steps = 0;
    double guidance_scale = 0;    // 1 is no guidance
    double guidance_rescale = 0;  // 0 to 1
    double eta = 0;               // 0 (deterministic) to 1
    std::uint64_t seed = 0;
    std::string solver, noise;
    std::optional<Region> edit;
    std::optional<double> control_scale;
    double spacing = 1.0;  // of the timesteps: 1 is even, to 4 denser at high noise
    std::pair<double, double> guidance_interval{0.0, 1.0};  // lowest and highest noise level that is guided
    std::vector<int> reuse;  // steps, from 0, that take what the inner blocks made last in place of running them

    bool reuses(int step) const { return std::binary_search(reuse.begin(), reuse.end(), step); }
};

}  // namespace ezaudio

namespace ezaudio::detail {

inline constexpr double max_guidance = 100.0, max_control_scale = 100.0, max_spacing = 4.0;
inline constexpr std::size_t max_prompt_chars = 10'000;

inline void check_number(const char* name, double value, double low, double high) {
    if (!(value >= low && value <= high)) {
        throw InputError(std::string(name) + " must be from " + format_g(low) + " to " + format_g(high) + ", got " +
                         python_float(value));
    }
}

inline std::int64_t round_half_even(double value) { return static_cast<std::int64_t>(std::nearbyint(value)); }

/// Whether nothing but white space is there, as Python's str.isspace has it.
inline bool is_blank(const std::string& text) {
    for (const char32_t c : decode_utf8(text)) {
        const bool is_space = (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 ||
                              c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 ||
                              c == 0x202F || c == 0x205F || c == 0x3000;
        if (!is_space) return false;
    }
    return true;
}

inline void check_text(const char* name, const std::string& text) {
    if (!is_valid_utf8(text)) {
        throw InputError(std::string(name) + " is not valid UTF-8: check where the text comes from");
    }
    const std::size_t count = decode_utf8(text).size();
    if (count > max_prompt_chars) {
        throw InputError(std::string(name) + " has " + with_commas(count) + " characters, at most " +
                         with_commas(max_prompt_chars) + " fit: shorten it");
    }
}

inline void check_interval(const std::pair<double, double>& interval) {
    for (const double bound : {interval.first, interval.second}) {
        check_number("a bound of guidance_interval", bound, 0, 1);
    }
    if (interval.first > interval.second) {
        throw InputError("guidance_interval must be the lowest and the highest noise level to guide, 0 to 1, got (" +
                         python_float(interval.first) + ", " + python_float(interval.second) + ")");
    }
}

/// The solver's table.
inline SolverPlan plan_of(const Settings& settings, const Config& config) {
    return solver_plan(settings.solver, settings.num_steps, settings.eta, config.diffusion, settings.spacing);
}

/// Each step must exist and come after one with as many guidance branches that ran every block.
inline void check_reuse(const Settings& settings, const std::vector<bool>& guided) {
    const std::vector<int>& reuse = settings.reuse;
    if (reuse.empty()) return;
    if (settings.control_scale) {
        throw InputError("reuse does not go with control_audio, which steers every block: leave one out");
    }
    const bool is_rising = std::adjacent_find(reuse.begin(), reuse.end(), std::greater_equal<>()) == reuse.end();
    if (!is_rising || reuse.front() < 1 || reuse.back() >= settings.num_steps) {
        std::string got;
        for (const int step : reuse) got += (got.empty() ? "" : ", ") + std::to_string(step);
        throw InputError("reuse must be rising numbers of steps from 1 to " + std::to_string(settings.num_steps - 1) +
                         " (the first step has nothing to reuse), got [" + got + "]");
    }
    std::size_t whole = 0;
    for (std::size_t step = 0; step < guided.size(); ++step) {
        if (!settings.reuses(static_cast<int>(step))) {
            whole = step;
        } else if (guided[step] && !guided[whole]) {
            const std::string number = std::to_string(step);
            throw InputError("step " + number + " is guided and reuses step " + std::to_string(whole) +
                             ", which is not: take " + number + " out of reuse or widen guidance_interval");
        }
    }
}

/// Raises InputError with what was got, what is expected and what to do.
inline void check_settings(const Settings& settings, const Config& config) {
    check_interval(settings.guidance_interval);
    check_text("prompt", settings.prompt);
    check_text("negative_prompt", settings.negative_prompt);
    if (is_blank(settings.prompt)) {
        throw InputError("the prompt is blank (" + python_repr(settings.prompt) +
                         "): describe a sound, such as \"a dog barking\"");
    }
    if (!(settings.duration_s > 0 && settings.duration_s <= config.max_duration_s)) {
        throw InputError("duration_s must be more than 0 and at most " + format_g(config.max_duration_s) +
                         " seconds, got " + python_float(settings.duration_s));
    }
    if (round_half_even(settings.duration_s * config.vae.sample_rate) < 1) {
        throw InputError("duration_s " + python_float(settings.duration_s) +
                         " is shorter than one sample: ask for more");
    }
    const int most = config.diffusion.num_train_steps;
    if (settings.num_steps < 1 || settings.num_steps > most) {
        throw InputError("num_steps must be a whole number from 1 to " + std::to_string(most) + ", got " +
                         std::to_string(settings.num_steps));
    }
    check_number("guidance_scale", settings.guidance_scale, 0, max_guidance);
    check_number("guidance_rescale", settings.guidance_rescale, 0, 1);
    check_number("eta", settings.eta, 0, 1);
    check_number("spacing", settings.spacing, 1, max_spacing);
    if (settings.control_scale) check_number("control_scale", *settings.control_scale, 0, max_control_scale);
    if (settings.noise != "torch" && settings.noise != "philox") {
        throw InputError("unknown noise " + python_repr(settings.noise) + ": expected one of torch, philox");
    }
    check_reuse(settings, guided_steps(plan_of(settings, config), settings.guidance_interval));
}

inline std::uint64_t random_seed() { return std::random_device{}() & 0xFFFFFFFFU; }

/// The settings as the JSON that Python stores in a file, without the braces: `"prompt": "…", "negative_prompt": …`.
inline std::string settings_json(const Settings& settings) {
    std::string text = "\"prompt\": " + json_string(settings.prompt);
    text += ", \"negative_prompt\": " + json_string(settings.negative_prompt);
    text += ", \"duration_s\": " + python_float(settings.duration_s);
    text += ", \"num_steps\": " + std::to_string(settings.num_steps);
    text += ", \"guidance_scale\": " + python_float(settings.guidance_scale);
    text += ", \"guidance_rescale\": " + python_float(settings.guidance_rescale);
    text += ", \"eta\": " + python_float(settings.eta);
    text += ", \"seed\": " + std::to_string(settings.seed);
    text += ", \"solver\": " + json_string(settings.solver);
    text += ", \"noise\": " + json_string(settings.noise);
    if (settings.edit) {
        text += ", \"edit\": {\"start_s\": " + python_float(settings.edit->start_s);
        text += ", \"end_s\": " + python_float(settings.edit->end_s);
        text += ", \"context_s\": " + python_float(settings.edit->context_s) + "}";
    }
    if (settings.control_scale) text += ", \"control_scale\": " + python_float(*settings.control_scale);
    text += ", \"spacing\": " + python_float(settings.spacing);
    text += ", \"guidance_interval\": [" + python_float(settings.guidance_interval.first) + ", ";
    text += python_float(settings.guidance_interval.second) + "], \"reuse\": [";
    for (std::size_t i = 0; i < settings.reuse.size(); ++i) {
        text += (i > 0 ? ", " : "") + std::to_string(settings.reuse[i]);
    }
    return text + "]";
}

}  // namespace ezaudio::detail
