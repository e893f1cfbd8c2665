// EzAudio in C++: text to sound from an exported bundle, with the samples that Python gives.
//
//     #include <ezaudio/ezaudio.hpp>
//
//     int main() try {
//         ezaudio::Pipeline pipeline("path/to/bundle");
//         ezaudio::GenerateOptions options;
//         options.duration_s = 5.0;
//         options.seed = 7;
//         options.on_step = [](const ezaudio::Step& step) { return step.index < 1000; };  // false cancels
//         const ezaudio::Audio audio = pipeline.generate("a dog barks in the distance", options);
//         ezaudio::write_wav("dog.wav", audio);  // or play audio.samples, float at audio.sample_rate
//     } catch (const ezaudio::Error& error) {
//         std::cerr << error.what() << '\n';  // one line that says what to do
//     }
//
// Threads: a Pipeline is used by one thread at a time; different Pipelines are independent.
//
// Needs C++17 and ONNX Runtime 1.21 or newer, and nothing else. Nothing here prints or exits. For bytes that equal Python's, compile with -ffp-contract=off and without -ffast-math;
// the CMake target does.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <ezaudio/detail/conditioning.hpp>
#include <ezaudio/detail/decoding.hpp>
#include <ezaudio/detail/editing.hpp>
#include <ezaudio/detail/energy.hpp>
#include <ezaudio/detail/errors.hpp>
#include <ezaudio/detail/files.hpp>
#include <ezaudio/detail/manifest.hpp>
#include <ezaudio/detail/noise.hpp>
#include <ezaudio/detail/presets.hpp>
#include <ezaudio/detail/read_wav.hpp>
#include <ezaudio/detail/sessions.hpp>
#include <ezaudio/detail/settings.hpp>
#include <ezaudio/detail/solvers.hpp>
#include <ezaudio/detail/step_graph.hpp>
#include <ezaudio/detail/tokenizer.hpp>
#include <ezaudio/detail/version.hpp>
#include <ezaudio/detail/wav.hpp>

namespace ezaudio {

/// Progress: step `index` (from 0) of `num_steps` of item `item` (from 0) of `num_items` is done.
struct Step {
    std::size_t item, num_items;
    int index, num_steps;
};

/// How a bundle is opened.
struct PipelineOptions {
    int threads = 0;             // of ONNX Runtime; 0 takes all cores
    std::string device = "cpu";  // or "cuda", "tensorrt", where the linked ONNX Runtime has them
    bool verify = false;         // compare every file with its sha256 first: a second for every gigabyte or so
    std::function<void(std::uint64_t count, std::uint64_t total)> on_verify;  // bytes compared since the last call
    std::shared_ptr<const Tokenizer> tokenizer;  // null: the bundle's own

    /// Close the graphs of a stage (text, steps, decoding) before the next one opens, so that the largest alone sets
    /// the memory; each clip opens them again.
    bool low_memory = false;
};

/// What a sound is made with; what is not set is the preset's, or else the bundle's default.
struct GenerateOptions {
    std::string preset;  // a sampling plan of the bundle: "fast", "balanced", "best", "official", see Pipeline::presets
    std::optional<double> duration_s, guidance_scale, guidance_rescale, eta;
    std::optional<int> num_steps;
    std::optional<std::uint64_t> seed;  // none: a random one. Python's negative seeds are these modulo 2⁶⁴
    std::optional<double> spacing;  // of the timesteps: 1 is even, to 4 denser at high noise
    std::optional<std::pair<double, double>> guidance_interval;  // lowest and highest noise level that is guided
    std::optional<std::vector<int>> reuse;  // steps, from 0, that take what the inner blocks made last
    std::string negative_prompt;
    std::string solver;  // "ddim", "dpmpp_2m", "dpmpp_2m_sde"; empty: the preset's, or else the bundle's
    std::string noise = "torch";  // or "philox"

    /// Mono samples at the bundle's rate whose loudness contour the sound follows; needs a bundle with a ControlNet.
    std::vector<float> control_audio;
    double control_scale = 1.0;

    /// Called after every step. Returning false cancels with CancelledError.
    std::function<bool(const Step&)> on_step;

    /// Called with an item's next samples as they are decoded, in chunks from a quarter of a second to four seconds, so
    /// that sound can start before the clip is decoded. Returning false cancels. The samples equal those of a call
    /// without it to rounding.
    std::function<bool(std::size_t item, const float* samples, std::size_t count)> on_audio;
};

/// One sound: mono samples, full scale ±1 and not clipped, with what made them.
struct Audio {
    std::vector<float> samples;
    int sample_rate = 0;  // Hz
    Settings settings;
    std::vector<std::string> warnings;
    std::string model, precision, bundle_id;
};

/// A bundle that makes and edits sound.
class Pipeline {
public:
    /// Opens the bundle in `folder`; graphs are loaded when first used. Raises BundleError, InputError.
    explicit Pipeline(const std::filesystem::path& folder, const PipelineOptions& options = {})
        : state_(std::make_unique<State>(folder, options)) {}

    int sample_rate() const { return config().vae.sample_rate; }  // Hz
    double max_duration_s() const { return config().max_duration_s; }
    const std::string& model() const { return state_->manifest.model; }
    const std::string& precision() const { return state_->manifest.precision; }
    const std::string& bundle_id() const { return state_->manifest.bundle_id; }
    const std::vector<Preset>& presets() const { return state_->manifest.presets; }
    bool has_controlnet() const { return state_->sessions.has("controlnet"); }
    const Tokenizer& tokenizer() const { return *state_->tokenizer; }

    /// The complete settings that `generate` would use. Raises InputError.
    ///
    /// A number of steps or a solver that differs from the preset's leaves its `reuse` aside, which is made for those.
    Settings settings(const std::string& prompt, const GenerateOptions& options = {}) const {
        const detail::GenerationDefaults& defaults = config().defaults;
        Preset plan{"", defaults.solver, defaults.num_steps, defaults.eta, 1.0, {0.0, 1.0}, {}, std::nullopt};
        if (!options.preset.empty()) plan = detail::find_preset(presets(), options.preset);
        Settings settings;
        settings.prompt = prompt;
        settings.negative_prompt = options.negative_prompt;
        settings.duration_s = options.duration_s.value_or(defaults.duration_s);
        settings.num_steps = options.num_steps.value_or(plan.num_steps);
        settings.guidance_scale = options.guidance_scale.value_or(defaults.guidance_scale);
        settings.guidance_rescale = options.guidance_rescale.value_or(defaults.guidance_rescale);
        settings.solver = options.solver.empty() ? plan.solver : options.solver;
        const double usual_eta = detail::find_solver(settings.solver).is_stochastic ? 1.0 : 0.0;
        settings.eta = options.eta.value_or(settings.solver == plan.solver ? plan.eta : usual_eta);
        settings.seed = options.seed ? *options.seed : detail::random_seed();
        settings.noise = options.noise;
        if (!options.control_audio.empty()) settings.control_scale = options.control_scale;
        settings.spacing = options.spacing.value_or(plan.spacing);
        settings.guidance_interval = options.guidance_interval.value_or(plan.guidance_interval);
        const bool is_unchanged = settings.solver == plan.solver && settings.num_steps == plan.num_steps;
        if (!is_unchanged || settings.control_scale) plan.reuse.clear();
        settings.reuse = options.reuse.value_or(plan.reuse);
        detail::check_settings(settings, config());
        return settings;
    }

    /// One sound of round(duration_s · sample_rate) samples. Raises InputError, CancelledError, BundleError.
    Audio generate(const std::string& prompt, const GenerateOptions& options = {}) {
        return std::move(generate(std::vector<std::string>{prompt}, options).front());
    }

    /// One sound for every prompt, in turn: an item's samples do not depend on its batch.
    ///
    /// seeds: one for each prompt; none: `options.seed` for all, or a random one each.
    std::vector<Audio> generate(const std::vector<std::string>& prompts, const GenerateOptions& options = {},
                                const std::vector<std::uint64_t>& seeds = {}) {
        if (prompts.empty()) throw InputError("no prompt given: pass at least one description of a sound");
        if (!seeds.empty() && seeds.size() != prompts.size()) {
            throw InputError(std::to_string(prompts.size()) + " prompts need as many seeds, got " +
                             std::to_string(seeds.size()));
        }
        if (!options.control_audio.empty()) {
            detail::check_audio("control_audio", options.control_audio);
            if (!has_controlnet()) {
                throw InputError("this bundle has no ControlNet for control_audio: export one with --controlnet energy");
            }
        }
        std::vector<Settings> items;
        for (std::size_t index = 0; index < prompts.size(); ++index) {
            GenerateOptions own = options;
            if (!seeds.empty()) own.seed = seeds[index];
            items.push_back(settings(prompts[index], own));
        }
        const Given given = nothing_given(num_samples(items.front()), options);
        std::vector<Audio> results;
        for (std::size_t index = 0; index < items.size(); ++index) {
            const auto report = [&](int step) {
                if (options.on_step && !options.on_step({index, items.size(), step, items[index].num_steps})) {
                    cancel_after_step(step, items[index]);
                }
            };
            const detail::Tensor latents = denoise(items[index], given, report);
            results.push_back(finish(decode(latents, items[index], index, options), items[index]));
        }
        return results;
    }

    /// Makes a part of `audio` (mono, at the bundle's rate) anew, to fit the prompt and what is around it.
    ///
    /// Outside of the region the samples stay as they are, but for 30 ms on each side that are faded; a region past the
    /// end continues the sound. `options`: without duration_s, control_audio and on_audio.
    Audio edit(const std::vector<float>& audio, const std::string& prompt, const Region& region,
               const GenerateOptions& options = {}) {
        if (options.duration_s || !options.control_audio.empty() || options.on_audio) {
            throw InputError("edit takes no duration_s, control_audio or on_audio: the region says how long");
        }
        detail::check_audio("audio", audio);
        const detail::Window window = detail::plan_window(audio.size(), region, config());
        GenerateOptions own = options;
        own.duration_s = static_cast<double>(window.end - window.begin) / config().vae.sample_rate;
        Settings chosen = settings(prompt, own);
        chosen.edit = region;
        const detail::ModelInput input = detail::model_input(audio, window, config().vae.hop());
        const Given given = kept_frames(input, window);
        const detail::Tensor latents = denoise(chosen, given, [&](int step) {
            if (options.on_step && !options.on_step({0, 1, step, chosen.num_steps})) cancel_after_step(step, chosen);
        });
        std::vector<float> made = decode(latents, chosen, 0, options);
        for (float& sample : made) sample = sample * input.peak;
        return finish(detail::splice(audio, made, window, config().vae.sample_rate), chosen);
    }

private:
    /// What a clip starts from besides its text: latents to keep where `mask` is 0, energy for the ControlNet or none.
    struct Given {
        detail::Tensor latents;             // (1, C, L)
        std::unique_ptr<bool[]> mask;       // (1, L)
        std::optional<detail::Tensor> energy;  // (1, 1, 2L)

        std::int64_t num_frames() const { return latents.shape[2]; }
    };

    struct State {
        State(const std::filesystem::path& folder, const PipelineOptions& options)
            : manifest(open_manifest(folder, options)),
              sessions(folder, manifest, options.threads, options.device, options.low_memory),
              low_memory(options.low_memory),
              tokenizer(options.tokenizer ? options.tokenizer : detail::open_tokenizer(folder)),
              conditioning(sessions, manifest.config, *tokenizer) {}

        static detail::Manifest open_manifest(const std::filesystem::path& folder, const PipelineOptions& options) {
            if (OrtGetApiBase()->GetApi(ORT_API_VERSION) == nullptr) {
                throw BundleError(std::string("this program was compiled for a newer ONNX Runtime than version ") +
                                  OrtGetApiBase()->GetVersionString() + ", which it runs with: upgrade that");
            }
            if (options.threads < 0 || options.threads > 1024) {
                throw InputError("threads must be from 1 to 1024, or 0 for all cores, got " +
                                 std::to_string(options.threads));
            }
            return detail::read_manifest(folder, options.verify, options.on_verify);
        }

        detail::Manifest manifest;
        detail::Sessions sessions;
        bool low_memory;
        std::shared_ptr<const Tokenizer> tokenizer;
        detail::Conditioning conditioning;
    };

    const detail::Config& config() const { return state_->manifest.config; }

    std::int64_t num_samples(const Settings& settings) const {
        return detail::round_half_even(settings.duration_s * config().vae.sample_rate);
    }

    [[noreturn]] static void cancel_after_step(int step, const Settings& settings) {
        throw CancelledError("cancelled after step " + std::to_string(step + 1) + " of " +
                             std::to_string(settings.num_steps));
    }

    Given nothing_given(std::int64_t samples, const GenerateOptions& options) const {
        const std::int64_t hop = config().vae.hop(), frames = (samples + hop - 1) / hop;
        Given given{detail::zeros({1, config().vae.latent_channels, frames}),
                    std::make_unique<bool[]>(static_cast<std::size_t>(frames)), std::nullopt};
        std::fill_n(given.mask.get(), frames, true);
        if (options.control_audio.empty()) return given;
        if (frames < 2) {
            throw InputError("control_audio needs a sound of at least " +
                             detail::format_g(2.0 * static_cast<double>(hop) / config().vae.sample_rate) +
                             " s: ask for more");
        }
        std::vector<float> heard = options.control_audio;
        heard.resize(static_cast<std::size_t>(frames * hop));
        given.energy = detail::Tensor{{1, 1, 2 * frames},
                                      detail::energy_contour(heard, static_cast<std::size_t>(hop / 2))};
        return given;
    }

    Given kept_frames(const detail::ModelInput& input, const detail::Window& window) {
        const auto count = static_cast<std::int64_t>(input.samples.size());
        const Ort::Value audio = detail::view(input.samples.data(), input.samples.size(), {1, count});
        auto outputs = state_->sessions.run("encoder", {{"audio", &audio}});
        Given given{detail::zeros({1, config().vae.latent_channels, window.num_frames}),
                    std::make_unique<bool[]>(static_cast<std::size_t>(window.num_frames)), std::nullopt};
        const Ort::Value mean = state_->sessions.take("encoder", outputs, "mean", given.latents.shape);
        std::copy_n(mean.GetTensorData<float>(), given.latents.data.size(), given.latents.data.begin());
        for (std::int64_t frame = 0; frame < window.num_frames; ++frame) {
            given.mask[static_cast<std::size_t>(frame)] = window.makes(frame);
        }
        return given;
    }

    /// Between two stages.
    void close() {
        if (state_->low_memory) state_->sessions.release();
    }

    /// Latents (1, C, L) of one clip; `report` is called with the number of each step that is done.
    template <typename Report>
    detail::Tensor denoise(const Settings& settings, const Given& given, const Report& report) {
        const auto plan = detail::plan_of(settings, config());
        const std::int64_t width = config().dit.width;
        detail::StepGraph denoiser(state_->sessions, state_->conditioning, settings, plan, "",
                                   given.energy ? "denoiser_controlled" : "denoiser");
        denoiser.add_frame_bias(given.latents, given.mask.get(), nullptr, width);
        denoiser.add("guidance_scale", static_cast<float>(settings.guidance_scale), {1});
        denoiser.add("guidance_rescale", static_cast<float>(settings.guidance_rescale), {1});
        std::optional<detail::StepGraph> control;
        if (given.energy) {
            control.emplace(state_->sessions, state_->conditioning, settings, plan, "controlnet_", "controlnet");
            control->add_frame_bias(given.latents, given.mask.get(), &*given.energy, width);
            control->add("conditioning_scale", static_cast<float>(*settings.control_scale), {});
        }
        close();
        detail::Tensor result = run_steps(settings, plan, denoiser, control, given, report);
        close();
        return result;
    }

    template <typename Report>
    detail::Tensor run_steps(const Settings& settings, const detail::SolverPlan& plan, detail::StepGraph& denoiser,
                             std::optional<detail::StepGraph>& control, const Given& given, const Report& report) {
        const auto noise = detail::make_noise(settings.noise, settings.seed);
        const detail::Shape& shape = given.latents.shape;
        const std::size_t count = given.latents.data.size();
        const std::int64_t width = config().dit.width, frames = given.num_frames(), in_blocks = config().dit.depth / 2;
        detail::Tensor drawn = detail::zeros(shape);
        const detail::Tensor start{shape, noise->draw(0, count)}, nothing = detail::zeros(shape);
        Ort::Value latents = detail::view(start), clean = detail::view(nothing);
        const Ort::Value noise_input = detail::view(drawn);
        std::optional<Ort::Value> inner;  // what the inner blocks made last, where the next step reuses it
        for (int index = 0; index < settings.num_steps; ++index) {
            const auto row = static_cast<std::size_t>(index);
            const std::int64_t branches = denoiser.num_branches(row);
            if (plan.draws_noise) {
                const std::vector<float> values = noise->draw(static_cast<std::uint32_t>(index) + 1, count);
                std::copy(values.begin(), values.end(), drawn.data.begin());
            }
            const Ort::Value coefficients = detail::view(plan.rows[row].data(), 6, {6});
            detail::Inputs inputs{{"latents", &latents},
                                  {"previous_clean", &clean},
                                  {"noise", &noise_input},
                                  {"coefficients", &coefficients}};
            std::optional<Ort::Value> residuals;
            if (control) {
                auto outputs = control->run(row, {{"latents", &latents}});
                residuals = control->take(row, outputs, "residuals", {in_blocks, branches, frames, width});
                inputs["residuals"] = &*residuals;
            }
            if (settings.reuses(index)) inputs["inner"] = &*inner;
            const bool is_kept = !settings.reuses(index) && settings.reuses(index + 1);
            auto outputs = denoiser.run(row, std::move(inputs), is_kept ? "" : "inner");
            latents = denoiser.take(row, outputs, "next_latents", shape);
            clean = denoiser.take(row, outputs, "clean", shape);
            if (is_kept) inner = denoiser.take(row, outputs, "inner", {branches, frames, width});
            report(index);
        }
        detail::Tensor result = given.latents;
        const float* made = latents.GetTensorData<float>();
        for (std::size_t i = 0; i < count; ++i) {
            if (given.mask[i % static_cast<std::size_t>(frames)]) result.data[i] = made[i];
        }
        return result;
    }

    /// Samples of latents (1, C, L), in chunks where somebody listens.
    std::vector<float> decode(const detail::Tensor& latents, const Settings& settings, std::size_t item,
                              const GenerateOptions& options) {
        const std::int64_t total = num_samples(settings), frames = latents.shape[2], hop = config().vae.hop();
        const bool is_heard = static_cast<bool>(options.on_audio);
        const std::int64_t rate = config().vae.sample_rate;
        std::vector<float> samples;
        for (const detail::Span chunk : is_heard ? detail::chunk_bounds(total, rate) : detail::part_bounds(total, rate)) {
            detail::Span span = detail::latent_span(chunk, config().vae);
            span = {std::max<std::int64_t>(span.begin, 0), std::min(span.end, frames)};
            const std::int64_t offset = span.begin * hop;
            const auto part = decode_span(latents, span, {chunk.begin - offset, chunk.end - offset}, settings);
            samples.insert(samples.end(), part.begin(), part.end());
            if (is_heard && !options.on_audio(item, part.data(), part.size())) {
                throw CancelledError("cancelled after sample " + std::to_string(samples.size()) + " of " +
                                     std::to_string(total));
            }
        }
        close();
        return samples;
    }

    /// Samples `kept` of what the decoder makes of the frames `span`.
    std::vector<float> decode_span(const detail::Tensor& latents, detail::Span span, detail::Span kept,
                                   const Settings& settings) {
        const std::int64_t channels = latents.shape[1], frames = latents.shape[2], length = span.end - span.begin;
        detail::Tensor part = detail::zeros({1, channels, length});
        for (std::int64_t channel = 0; channel < channels; ++channel) {
            std::copy_n(latents.data.begin() + (channel * frames + span.begin), length,
                        part.data.begin() + channel * length);
        }
        const Ort::Value input = detail::view(part);
        auto outputs = state_->sessions.run("decoder", {{"latents", &input}});
        const detail::Shape shape{1, length * config().vae.hop()};
        const Ort::Value audio = state_->sessions.take("decoder", outputs, "audio", shape);
        const float* first = audio.GetTensorData<float>();
        if (!std::all_of(first, first + shape[1], [](float sample) { return detail::is_finite(sample); })) {
            throw BundleError("the model gave samples that are not finite (seed " + std::to_string(settings.seed) +
                              "): export the bundle again");
        }
        return {first + kept.begin, first + kept.end};
    }

    Audio finish(std::vector<float> samples, const Settings& settings) {
        Audio audio{std::move(samples), sample_rate(), settings, {}, model(), precision(), bundle_id()};
        for (const std::string& text : {settings.prompt, settings.negative_prompt}) {
            const std::string warning = state_->conditioning.warning(text);
            const bool is_told = !audio.warnings.empty() && audio.warnings.front() == warning;
            if (!warning.empty() && !is_told) audio.warnings.push_back(warning);
        }
        return audio;
    }

    std::unique_ptr<State> state_;
};

/// A WAV file that remembers how it was made, byte for byte what ezaudio-run writes. bit_depth: 16, 24 or 32 (float).
///
/// Raises InputError for another depth, or samples that are not finite. In integers a clip beyond ±1 is turned down to it.
inline std::string encode_wav(const Audio& audio, int bit_depth = 16) {
    std::string comment = "{\"ezaudio\": " + detail::json_string(EZAUDIO_VERSION);
    comment += ", \"model\": " + detail::json_string(audio.model);
    comment += ", \"precision\": " + detail::json_string(audio.precision);
    comment += ", \"bundle_id\": " + detail::json_string(audio.bundle_id) + ", ";
    comment += detail::settings_json(audio.settings) + ", \"bit_depth\": " + std::to_string(bit_depth) + "}";
    return detail::encode_wav(audio.samples.data(), audio.samples.size(), audio.sample_rate, bit_depth,
                              detail::title_of(audio.settings.prompt), std::string("ezaudio ") + EZAUDIO_VERSION,
                              comment);
}

/// `encode_wav` into a file, whole or not at all; replaces an existing one. Raises InputError.
inline void write_wav(const std::filesystem::path& path, const Audio& audio, int bit_depth = 16) {
    detail::replace_file(path, encode_wav(audio, bit_depth));
}

}  // namespace ezaudio
