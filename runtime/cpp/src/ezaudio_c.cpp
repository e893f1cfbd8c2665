// The C library: every function turns exceptions into a status and one line of text.
#define EZAUDIO_BUILDING_C
#include <ezaudio/ezaudio.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <vector>

#include <ezaudio/ezaudio.hpp>

struct ezaudio_pipeline {
    std::optional<ezaudio::Pipeline> pipeline;
    std::string error;
};

struct ezaudio_audio {
    ezaudio::Audio audio;
    std::string warnings;
};

namespace {

ezaudio_status failed(ezaudio_pipeline* handle, ezaudio_status status, const char* message) noexcept {
    try {
        handle->error = message;
    } catch (...) {
        handle->error.clear();  // no memory for the message
    }
    return status;
}

/// Runs `work` and turns what it throws into a status.
template <typename Work>
ezaudio_status guarded(ezaudio_pipeline* handle, const Work& work) noexcept {
    if (handle == nullptr) return EZAUDIO_INPUT_ERROR;
    try {
        handle->error.clear();
        work();
        return EZAUDIO_OK;
    } catch (const ezaudio::InputError& error) {
        return failed(handle, EZAUDIO_INPUT_ERROR, error.what());
    } catch (const ezaudio::BundleError& error) {
        return failed(handle, EZAUDIO_BUNDLE_ERROR, error.what());
    } catch (const ezaudio::CancelledError& error) {
        return failed(handle, EZAUDIO_CANCELLED, error.what());
    } catch (const std::exception& error) {
        return failed(handle, EZAUDIO_FAILURE, error.what());
    } catch (...) {
        return failed(handle, EZAUDIO_FAILURE, "unknown failure");
    }
}

const char* required(const char* text, const char* name) {
    if (text == nullptr) throw ezaudio::InputError(std::string(name) + " is NULL: give text");
    return text;
}

ezaudio::Pipeline& opened(ezaudio_pipeline* handle) {
    if (!handle->pipeline) throw ezaudio::InputError("no bundle is open: call ezaudio_open first");
    return *handle->pipeline;
}

std::vector<float> samples_of(const float* samples, std::size_t count, const char* name) {
    constexpr std::size_t most = std::size_t{1} << 31;  // a day at 24 kHz
    if (samples == nullptr) return {};
    if (count == 0 || count > most) throw ezaudio::InputError(std::string(name) + " has no samples, or too many");
    return {samples, samples + count};
}

std::optional<double> given(double value) { return std::isnan(value) ? std::nullopt : std::optional<double>(value); }

/// The caller's options in this version's struct: an older caller's ends earlier.
ezaudio_options complete(const ezaudio_options* options) {
    ezaudio_options all;
    ezaudio_options_init(&all);
    if (options == nullptr) return all;
    if (options->size < sizeof options->size || options->size > sizeof all) {
        throw ezaudio::InputError("options.size is " + std::to_string(options->size) + ", expected at most " +
                                  std::to_string(sizeof all) + ": call ezaudio_options_init first");
    }
    std::memcpy(static_cast<void*>(&all), options, options->size);
    return all;
}

ezaudio::GenerateOptions to_cpp(const ezaudio_options& options) {
    ezaudio::GenerateOptions cpp;
    cpp.duration_s = given(options.duration_s);
    cpp.guidance_scale = given(options.guidance_scale);
    cpp.guidance_rescale = given(options.guidance_rescale);
    cpp.eta = given(options.eta);
    cpp.spacing = given(options.spacing);
    if (!std::isnan(options.guidance_low) || !std::isnan(options.guidance_high)) {
        cpp.guidance_interval = {options.guidance_low, options.guidance_high};
    }
    if (options.reuse != nullptr) cpp.reuse = std::vector<int>(options.reuse, options.reuse + options.reuse_count);
    if (options.preset != nullptr) cpp.preset = options.preset;
    if (options.num_steps != 0) cpp.num_steps = options.num_steps;
    if (options.has_seed != 0) cpp.seed = options.seed;
    if (options.negative_prompt != nullptr) cpp.negative_prompt = options.negative_prompt;
    if (options.solver != nullptr) cpp.solver = options.solver;
    if (options.noise != nullptr) cpp.noise = options.noise;
    cpp.control_audio = samples_of(options.control_audio, options.control_count, "control_audio");
    cpp.control_scale = options.control_scale;
    if (options.on_step != nullptr) {
        cpp.on_step = [call = options.on_step, user = options.user](const ezaudio::Step& step) {
            return call(user, static_cast<std::size_t>(step.index), static_cast<std::size_t>(step.num_steps)) != 0;
        };
    }
    if (options.on_audio != nullptr) {
        cpp.on_audio = [call = options.on_audio, user = options.user](std::size_t, const float* samples,
                                                                      std::size_t count) {
            return call(user, samples, count) != 0;
        };
    }
    return cpp;
}

}  // namespace

const char* ezaudio_version(void) { return EZAUDIO_VERSION; }

ezaudio_pipeline* ezaudio_create(void) { return new (std::nothrow) ezaudio_pipeline; }

void ezaudio_destroy(ezaudio_pipeline* pipeline) { delete pipeline; }

const char* ezaudio_error(const ezaudio_pipeline* pipeline) {
    return pipeline != nullptr ? pipeline->error.c_str() : "the pipeline is NULL";
}

ezaudio_status ezaudio_open(ezaudio_pipeline* pipeline, const char* folder, int32_t threads, const char* device,
                            int32_t flags) {
    return guarded(pipeline, [&] {
        if ((flags & ~(EZAUDIO_VERIFY | EZAUDIO_LOW_MEMORY)) != 0) {
            throw ezaudio::InputError("flags are " + std::to_string(flags) +
                                      ": expected 0 or a sum of EZAUDIO_VERIFY, EZAUDIO_LOW_MEMORY");
        }
        ezaudio::PipelineOptions options;
        options.threads = threads;
        options.device = required(device, "device");
        options.verify = (flags & EZAUDIO_VERIFY) != 0;
        options.low_memory = (flags & EZAUDIO_LOW_MEMORY) != 0;
        pipeline->pipeline.reset();
        pipeline->pipeline.emplace(ezaudio::detail::path_of(required(folder, "folder")), options);
    });
}

int32_t ezaudio_sample_rate(const ezaudio_pipeline* pipeline) {
    return pipeline != nullptr && pipeline->pipeline ? pipeline->pipeline->sample_rate() : 0;
}

void ezaudio_options_init(ezaudio_options* options) {
    if (options == nullptr) return;
    const double unset = std::nan("");
    *options = ezaudio_options{};
    options->size = sizeof *options;
    options->duration_s = options->guidance_scale = options->guidance_rescale = options->eta = unset;
    options->guidance_low = options->guidance_high = options->spacing = unset;
    options->control_scale = 1.0;
    options->context_s = ezaudio::Region{}.context_s;
}

ezaudio_status ezaudio_generate(ezaudio_pipeline* pipeline, const char* prompt, const ezaudio_options* options,
                                ezaudio_audio** audio) {
    if (audio == nullptr) {
        return guarded(pipeline, [] { throw ezaudio::InputError("audio is NULL: say where the result goes"); });
    }
    *audio = nullptr;
    return guarded(pipeline, [&] {
        ezaudio::Pipeline& model = opened(pipeline);
        const ezaudio_options all = complete(options);
        const std::string text = required(prompt, "prompt");
        const ezaudio::GenerateOptions cpp = to_cpp(all);
        const std::vector<float> clip = samples_of(all.edit_audio, all.edit_count, "edit_audio");
        auto result = std::make_unique<ezaudio_audio>();
        result->audio = clip.empty() ? model.generate(text, cpp)
                                     : model.edit(clip, text, {all.start_s, all.end_s, all.context_s}, cpp);
        for (const std::string& warning : result->audio.warnings) {
            result->warnings += (result->warnings.empty() ? "" : "\n") + warning;
        }
        *audio = result.release();
    });
}

const float* ezaudio_samples(const ezaudio_audio* audio, size_t* count) {
    if (count != nullptr) *count = audio != nullptr ? audio->audio.samples.size() : 0;
    return audio != nullptr ? audio->audio.samples.data() : nullptr;
}

uint64_t ezaudio_seed(const ezaudio_audio* audio) { return audio != nullptr ? audio->audio.settings.seed : 0; }

const char* ezaudio_warnings(const ezaudio_audio* audio) { return audio != nullptr ? audio->warnings.c_str() : ""; }

ezaudio_status ezaudio_write_wav(ezaudio_pipeline* pipeline, const ezaudio_audio* audio, const char* path,
                                 int32_t bit_depth) {
    return guarded(pipeline, [&] {
        if (audio == nullptr) throw ezaudio::InputError("audio is NULL: generate it first");
        ezaudio::write_wav(ezaudio::detail::path_of(required(path, "path")), audio->audio, bit_depth);
    });
}

void ezaudio_free(ezaudio_audio* audio) { delete audio; }
