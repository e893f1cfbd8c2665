#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <ezaudio/detail/config.hpp>
#include <ezaudio/detail/json_value.hpp>
#include <ezaudio/detail/text_format.hpp>

namespace ezaudio::detail {

/// The members of a JSON object, each asked for once; `finish` complains about those nobody asked for.
class ConfigFields {
public:
    ConfigFields(const Json& value, std::string owner) : value_(value), owner_(std::move(owner)) {
        if (value.get_if<Json::Object>() == nullptr) misfit("is " + python_repr(value) + ", expected an object");
    }

    /// Null when there is none.
    const Json* find(const char* name) {
        known_.insert(name);
        return value_.find(name);
    }

    const Json& at(const char* name) {
        const Json* found = find(name);
        if (found == nullptr) misfit("lacks " + python_repr(name));
        return *found;
    }

    int required_integer(const char* name) { return integer(name, at(name)); }
    double required_number(const char* name) { return number(name, at(name)); }
    std::string required_text(const char* name) { return text(name, at(name), "str"); }
    std::vector<int> required_integers(const char* name) { return integers(name, at(name), "tuple[int, ...]"); }

    // These leave `value` as it is when there is no such field.
    void read(const char* name, int& value) {
        if (const Json* found = find(name)) value = integer(name, *found);
    }
    void read(const char* name, double& value) {
        if (const Json* found = find(name)) value = number(name, *found);
    }
    void read(const char* name, std::string& value) {
        if (const Json* found = find(name)) value = text(name, *found, "str");
    }
    void read(const char* name, std::vector<int>& value) {
        if (const Json* found = find(name)) value = integers(name, *found, "tuple[int, int]");
    }
    void read(const char* name, std::optional<std::string>& value) {
        const Json* found = find(name);
        if (found == nullptr) return;
        value = found->is_null() ? std::nullopt : std::optional(text(name, *found, "str | None"));
    }

    void finish() const {
        for (const std::string& key : value_.object().keys) {
            if (known_.count(key) == 0) misfit("has the unknown field " + shortened(python_repr(key)));
        }
    }

private:
    [[noreturn]] void misfit(const std::string& what) const {
        throw JsonError("model settings do not fit this version: " + owner_ + " " + what);
    }

    [[noreturn]] static void refuse(const std::string& name, const std::string& expected, const Json& got) {
        throw JsonError(name + " must be " + expected + " within reason, got " + python_repr(got));
    }

    /// Whether `value` is a whole number, or any number, from 0 to 1e9; it is then in `number`.
    static bool fits(const Json& value, bool is_whole, double& number) {
        const auto* found = value.get_if<Json::Number>();
        if (found == nullptr || (is_whole && !value.is_integer())) return false;
        return read_double(found->token, number) && number >= 0 && number <= 1e9;
    }

    static int integer(const char* name, const Json& value) {
        double number = 0;  // exact in this range, and a token of any length can be read into it
        if (!fits(value, true, number)) refuse(name, "int", value);
        return static_cast<int>(number);
    }

    static double number(const char* name, const Json& value) {
        double number = 0;
        if (!fits(value, false, number)) refuse(name, "float", value);
        return number;
    }

    static std::string text(const char* name, const Json& value, const char* expected) {
        const auto* found = value.get_if<std::string>();
        if (found == nullptr) refuse(name, expected, value);
        return *found;
    }

    static std::vector<int> integers(const char* name, const Json& value, const char* expected) {
        const auto* items = value.get_if<Json::Array>();
        if (items == nullptr || items->empty()) refuse(name, expected, value);
        std::vector<int> numbers;
        for (const Json& item : *items) {
            double number = 0;
            if (!fits(item, true, number) || number == 0) refuse(name, expected, value);
            numbers.push_back(static_cast<int>(number));
        }
        return numbers;
    }

    const Json& value_;
    std::string owner_;
    std::set<std::string> known_;
};

inline void check_positive(const char* name, double value) {
    if (!(value > 0)) throw JsonError(std::string(name) + " must be more than 0, got " + format_g(value));
}

inline DitConfig read_dit_config(const Json& json) {
    ConfigFields fields(json, "dit");
    DitConfig dit;
    dit.latent_channels = fields.required_integer("latent_channels");
    dit.width = fields.required_integer("width");
    dit.depth = fields.required_integer("depth");
    dit.num_heads = fields.required_integer("num_heads");
    dit.context_width = fields.required_integer("context_width");
    dit.adaln_rank = fields.required_integer("adaln_rank");
    dit.adaln_alpha = fields.required_number("adaln_alpha");
    fields.read("mlp_ratio", dit.mlp_ratio);
    fields.finish();
    check_positive("latent_channels", dit.latent_channels);
    check_positive("width", dit.width);
    check_positive("num_heads", dit.num_heads);
    check_positive("context_width", dit.context_width);
    check_positive("adaln_rank", dit.adaln_rank);
    if (dit.width % dit.num_heads != 0 || dit.width / dit.num_heads % 2 != 0) {
        throw JsonError("width " + std::to_string(dit.width) + " must be a multiple of num_heads " +
                        std::to_string(dit.num_heads) + " with an even head width (RoPE)");
    }
    if (dit.depth < 2 || dit.depth % 2 != 0) {
        throw JsonError("depth must be even and at least 2, got " + std::to_string(dit.depth));
    }
    return dit;
}

inline VaeConfig read_vae_config(const Json& json) {
    ConfigFields fields(json, "vae");
    VaeConfig vae;
    vae.latent_channels = fields.required_integer("latent_channels");
    vae.channels = fields.required_integer("channels");
    vae.channel_multiples = fields.required_integers("channel_multiples");
    vae.strides = fields.required_integers("strides");
    fields.read("sample_rate", vae.sample_rate);
    fields.read("companding", vae.companding);
    fields.finish();
    const std::string strides = python_repr(json.at("strides"));
    if (vae.channel_multiples.size() != vae.strides.size()) {
        const std::string multiples = python_repr(json.at("channel_multiples"));
        throw JsonError("one channel multiple a stride, got " + multiples + " and " + strides);
    }
    check_positive("latent_channels", vae.latent_channels);
    check_positive("channels", vae.channels);
    check_positive("sample_rate", vae.sample_rate);
    if (!(vae.companding > 0 && vae.companding <= 1)) {
        throw JsonError("companding must be more than 0 and at most 1, got " + python_repr(json.at("companding")));
    }
    std::int64_t hop = 1;
    for (const int stride : vae.strides) {
        if (stride % 2 != 0) throw JsonError("strides must be even for exact lengths, got " + strides);
        hop *= stride;
        if (hop > 1'000'000'000) throw JsonError("strides must multiply to at most 1,000,000,000, got " + strides);
    }
    return vae;
}

inline TextConfig read_text_config(const Json& json) {
    ConfigFields fields(json, "text");
    TextConfig text;
    text.width = fields.required_integer("width");
    fields.read("hub_name", text.hub_name);
    fields.read("num_layers", text.num_layers);
    fields.read("num_heads", text.num_heads);
    fields.read("head_width", text.head_width);
    fields.read("ff_width", text.ff_width);
    fields.read("vocab_size", text.vocab_size);
    fields.read("max_tokens", text.max_tokens);
    fields.finish();
    check_positive("width", text.width);
    check_positive("max_tokens", text.max_tokens);
    return text;
}

inline ControlNetConfig read_controlnet_config(const Json& json) {
    ConfigFields fields(json, "controlnet");
    ControlNetConfig controlnet;
    fields.read("condition_channels", controlnet.condition_channels);
    fields.read("hidden_channels", controlnet.hidden_channels);
    fields.finish();
    return controlnet;
}

inline DiffusionConfig read_diffusion_config(const Json& json) {
    ConfigFields fields(json, "diffusion");
    DiffusionConfig diffusion;
    fields.read("num_train_steps", diffusion.num_train_steps);
    fields.read("beta_start", diffusion.beta_start);
    fields.read("beta_end", diffusion.beta_end);
    fields.finish();
    const double start = diffusion.beta_start, end = diffusion.beta_end;
    const int steps = diffusion.num_train_steps;
    if (steps < 2 || steps > 100'000 || !(0 < start && start < end && end < 1)) {
        const std::string got = "DiffusionConfig(num_train_steps=" + std::to_string(steps) +
                                ", beta_start=" + python_float(start) + ", beta_end=" + python_float(end) + ")";
        throw JsonError("need 2 to 100,000 training steps and 0 < beta_start < beta_end < 1, got " + got);
    }
    return diffusion;
}

inline GenerationDefaults read_generation_defaults(const Json& json) {
    ConfigFields fields(json, "defaults");
    GenerationDefaults defaults;
    fields.read("duration_s", defaults.duration_s);
    fields.read("num_steps", defaults.num_steps);
    fields.read("guidance_scale", defaults.guidance_scale);
    fields.read("guidance_rescale", defaults.guidance_rescale);
    fields.read("eta", defaults.eta);
    fields.read("solver", defaults.solver);
    fields.finish();
    return defaults;
}

/// Inverse of EzAudioConfig.to_dict in Python. Raises JsonError.
inline Config read_config(const Json& json) {
    ConfigFields fields(json, "config");
    Config config;
    config.name = fields.required_text("name");
    config.dit = read_dit_config(fields.at("dit"));
    config.vae = read_vae_config(fields.at("vae"));
    config.text = read_text_config(fields.at("text"));
    if (const Json* part = fields.find("controlnet")) config.controlnet = read_controlnet_config(*part);
    if (const Json* part = fields.find("diffusion")) config.diffusion = read_diffusion_config(*part);
    if (const Json* part = fields.find("defaults")) config.defaults = read_generation_defaults(*part);
    fields.read("max_duration_s", config.max_duration_s);
    fields.finish();
    if (config.dit.latent_channels != config.vae.latent_channels) {
        throw JsonError("DiT expects " + std::to_string(config.dit.latent_channels) +
                        " latent channels, the VAE makes " + std::to_string(config.vae.latent_channels));
    }
    if (config.dit.context_width != config.text.width) {
        throw JsonError("DiT expects text states " + std::to_string(config.dit.context_width) +
                        " wide, the encoder makes " + std::to_string(config.text.width));
    }
    check_positive("max_duration_s", config.max_duration_s);
    const double samples = config.max_duration_s * config.vae.sample_rate;
    const double frames = samples / static_cast<double>(config.vae.hop()) + 1;
    if (samples > 1e12 || frames * config.vae.latent_channels > 1e12) {
        throw JsonError("max_duration_s " + format_g(config.max_duration_s) + " makes more than 1e12 values a clip");
    }
    return config;
}

}  // namespace ezaudio::detail
