#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

// The model settings in a manifest, as ezaudio/config.py has them. Every number is 0 to 1e9.
namespace ezaudio::detail {

/// Diffusion transformer.
struct DitConfig {
    int latent_channels = 0, width = 0, depth = 0, num_heads = 0, context_width = 0, adaln_rank = 0;
    double adaln_alpha = 0;
    double mlp_ratio = 4.0;
};

/// Waveform autoencoder.
struct VaeConfig {
    int latent_channels = 0, channels = 0;
    std::vector<int> channel_multiples, strides;
    int sample_rate = 24000;  // Hz
    double companding = 1.0;  // exponent of the encoder's mean, at most 1

    /// Audio samples per latent frame, at most 1e9.
    std::int64_t hop() const {
        std::int64_t product = 1;
        for (const int stride : strides) product *= stride;
        return product;
    }
};

/// FLAN-T5 encoder.
struct TextConfig {
    int width = 0;
    std::optional<std::string> hub_name;
    int num_layers = 0, num_heads = 0, head_width = 64, ff_width = 0, vocab_size = 32128;
    int max_tokens = 100;
};

struct ControlNetConfig {
    int condition_channels = 1;
    std::vector<int> hidden_channels = {64, 128};
};

/// Scaled-linear betas; 2 to 100,000 training steps and 0 < beta_start < beta_end < 1.
struct DiffusionConfig {
    int num_train_steps = 1000;
    double beta_start = 0.00085, beta_end = 0.012;
};

/// What a generation does when a setting is not given. Not checked further: it is at use, as if the caller had said it.
struct GenerationDefaults {
    double duration_s = 10.0;
    int num_steps = 100;
    double guidance_scale = 5.0, guidance_rescale = 0.75, eta = 1.0;
    std::string solver = "ddim";
};

/// A whole system. The longest clip has at most 1e12 samples and 1e12 latent values.
struct Config {
    std::string name;
    DitConfig dit;
    VaeConfig vae;
    TextConfig text;
    ControlNetConfig controlnet;
    DiffusionConfig diffusion;
    GenerationDefaults defaults;
    double max_duration_s = 30.0;
};

}  // namespace ezaudio::detail
