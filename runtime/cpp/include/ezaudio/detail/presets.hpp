#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <ezaudio/detail/errors.hpp>
#include <ezaudio/detail/json_value.hpp>
#include <ezaudio/detail/text_format.hpp>

namespace ezaudio {

/// How far clips of a preset are from the same clips at many steps, as `ezaudio-calibrate` measured it.
struct Fidelity {
    int reference_steps = 0;       // deterministic, each of them guided and with every block
    int num_clips = 0;             // prompts × seeds, other ones than the preset was chosen on
    double latent_error = 0;       // median ‖latents − reference‖ / ‖reference‖
    double level_distance_db = 0;  // median of the mean |difference| of the mel levels
    double evaluations = 0;        // of the network a clip; a guided step counts two, a shallow one its share
};

/// A sampling plan of a bundle, by name.
struct Preset {
    std::string name, solver;
    int num_steps = 0;
    double eta = 0;
    double spacing = 1.0;  // of the timesteps: 1 is even, above denser at high noise
    std::pair<double, double> guidance_interval{0.0, 1.0};  // lowest and highest noise level that is guided
    std::vector<int> reuse;            // steps, from 0, that take what the inner blocks made last
    std::optional<Fidelity> fidelity;  // none: not measured
};

}  // namespace ezaudio

namespace ezaudio::detail {

inline int read_count(const Json& value) { return static_cast<int>(read_whole(value, 0, 1'000'000'000)); }

inline Fidelity read_fidelity(const Json& json) {
    if (json.object().keys.size() != 5) throw JsonError("a fidelity has unknown fields: " + python_repr(json));
    return {read_count(json.at("reference_steps")), read_count(json.at("num_clips")),
            json.at("latent_error").number(), json.at("level_distance_db").number(),
            json.at("evaluations").number()};
}

/// Inverse of Preset.to_dict in Python. Values are checked at use, as if the caller had given them. Raises JsonError.
inline Preset read_preset(const std::string& name, const Json& json) {
    Preset preset;
    preset.name = name;
    preset.solver = json.at("solver").string();
    preset.num_steps = read_count(json.at("num_steps"));
    preset.eta = json.at("eta").number();
    preset.spacing = json.at("spacing").number();
    const Json& interval = json.at("guidance_interval");
    if (interval.array().size() != 2) interval.mismatch("two noise levels");
    preset.guidance_interval = {interval.array()[0].number(), interval.array()[1].number()};
    for (const Json& step : json.at("reuse").array()) preset.reuse.push_back(read_count(step));
    const Json* fidelity = json.find("fidelity");
    if (fidelity != nullptr && !fidelity->is_null()) preset.fidelity = read_fidelity(*fidelity);
    return preset;
}

/// Raises InputError when none has the name.
inline const Preset& find_preset(const std::vector<Preset>& presets, const std::string& name) {
    std::string names;
    for (const Preset& preset : presets) {
        if (preset.name == name) return preset;
        names += (names.empty() ? "" : ", ") + preset.name;
    }
    throw InputError("unknown preset " + python_repr(name) + ": expected one of " + names);
}

}  // namespace ezaudio::detail
