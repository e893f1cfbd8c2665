#pragma once

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include <ezaudio/detail/json.hpp>
#include <ezaudio/detail/manifest.hpp>
#include <ezaudio/detail/sha256.hpp>

#include "helpers.hpp"

namespace ezaudio_tests {

using ezaudio::detail::Json;

/// A manifest like the exporter's, of files that `write_sample_files` makes. Not sealed.
inline Json sample_manifest() {
    std::string text = R"({
 "format": "ezaudio-bundle", "format_version": 2, "model": "debug", "precision": "fp32", "origin": "é",
 "licence": "MIT",
 "config": {
  "name": "debug",
  "dit": {"latent_channels": 8, "width": 32, "depth": 2, "num_heads": 2, "context_width": 16, "adaln_rank": 2,
   "adaln_alpha": 3, "mlp_ratio": 4.0},
  "vae": {"latent_channels": 8, "channels": 4, "channel_multiples": [1, 2, 2, 4], "strides": [2, 4, 6, 10],
   "sample_rate": 24000, "companding": 1.0},
  "text": {"width": 16, "hub_name": null, "num_layers": 1, "num_heads": 2, "head_width": 8, "ff_width": 32,
   "vocab_size": 1024, "max_tokens": 100},
  "controlnet": {"condition_channels": 1, "hidden_channels": [8, 16]},
  "diffusion": {"num_train_steps": 1000, "beta_start": 0.00085, "beta_end": 0.012},
  "defaults": {"duration_s": 10.0, "num_steps": 4, "guidance_scale": 3.0, "guidance_rescale": 0.5, "eta": 0.0,
   "solver": "ddim"},
  "max_duration_s": 30.0},
 "graphs": {"decoder": {"file": "decoder.onnx",
  "inputs": [{"name": "latents", "dtype": "float32",
   "shape": [1, 8, {"axis": "frames", "times": 1, "min": 0, "opt": 250, "max": 750}]}],
  "outputs": [{"name": "audio", "dtype": "float32",
   "shape": [1, {"axis": "frames", "times": 480, "min": 1, "opt": 250, "max": 750}]}]}},
 "checks": [{"graph": "decoder", "output": "audio", "relative_error": 7.1e-07, "tolerance": 0.005}],
 "presets": {"fast": {"solver": "dpmpp_2m", "num_steps": 10, "eta": 0.0, "spacing": 2.0,
   "guidance_interval": [0.3, 1.0], "reuse": [4, 6, 8], "fidelity": {"reference_steps": 200, "num_clips": 16, "latent_error": 0.25,
    "level_distance_db": 1.5, "evaluations": 15.5}},
  "best": {"solver": "ddim", "num_steps": 30, "eta": 1, "spacing": 1, "guidance_interval": [0, 1], "reuse": []}},
 "files": {)";
    for (const std::string name : {"decoder.onnx", "spiece.model", "vae.weights"}) {
        const std::string digest = ezaudio::detail::sha256_hex("bytes of " + name);
        const std::string size = std::to_string(("bytes of " + name).size());
        text += "\"" + name + R"(": {"size": )" + size + R"(, "sha256": ")" + digest + "\"},";
    }
    text.back() = '}';
    return ezaudio::detail::parse_json(text + R"(, "packages": {"numpy": "2.4.6"}})", text.size() + 100);
}

inline void write_sample_files(const std::filesystem::path& folder) {
    for (const std::string name : {"decoder.onnx", "spiece.model", "vae.weights"}) {
        write_file(folder / name, "bytes of " + name);
    }
}

/// The member of nested objects, to be changed.
inline Json& member(Json& json, const std::vector<std::string>& keys) {
    Json* found = &json;
    for (const std::string& key : keys) {
        auto& object = std::get<Json::Object>(found->data);
        std::size_t index = 0;
        while (index < object.keys.size() && object.keys[index] != key) ++index;
        REQUIRE_MESSAGE(index < object.keys.size(), key);
        found = &object.values[index];
    }
    return *found;
}

inline void put(Json& object, const std::string& key, Json value) {
    std::get<Json::Object>(object.data).keys.push_back(key);
    std::get<Json::Object>(object.data).values.push_back(std::move(value));
}

inline void drop(Json& object, std::size_t index) {
    auto& members = std::get<Json::Object>(object.data);
    members.keys.erase(members.keys.begin() + static_cast<std::ptrdiff_t>(index));
    members.values.erase(members.values.begin() + static_cast<std::ptrdiff_t>(index));
}

/// The text of a manifest with the sha256 that it should name.
inline std::string sealed(Json manifest) {
    const std::string digest = ezaudio::detail::sealing_sha256(manifest);
    auto& members = std::get<Json::Object>(manifest.data);
    for (std::size_t index = members.keys.size(); index > 0; --index) {
        if (members.keys[index - 1] == "sha256") drop(manifest, index - 1);
    }
    put(manifest, "sha256", Json{digest});
    return canonical(manifest);
}

}  // namespace ezaudio_tests
