// The C library, compiled into the tests: statuses, messages, and handles that are missing.
#include "helpers.hpp"

#include <cmath>
#include <cstddef>
#include <cstring>
#include <string>
#include <vector>

#include <ezaudio/ezaudio.h>
#include <ezaudio/ezaudio.hpp>

using namespace ezaudio_tests;

namespace {

ezaudio::Pipeline pipeline_of_one_thread() {
    ezaudio::PipelineOptions options;
    options.threads = 1;
    return ezaudio::Pipeline(test_bundle(), options);
}

/// A pipeline with the test bundle open, destroyed at the end.
class Opened {
public:
    Opened() { REQUIRE(ezaudio_open(handle_, test_bundle().string().c_str(), 1, "cpu", 0) == EZAUDIO_OK); }
    ~Opened() { ezaudio_destroy(handle_); }
    Opened(const Opened&) = delete;
    Opened& operator=(const Opened&) = delete;
    ezaudio_pipeline* get() const { return handle_; }

private:
    ezaudio_pipeline* handle_ = ezaudio_create();
};

ezaudio_options short_options() {
    ezaudio_options options;
    ezaudio_options_init(&options);
    options.duration_s = 0.2;
    options.num_steps = 2;
    options.has_seed = 1;
    options.seed = 5;
    return options;
}

}  // namespace

TEST_CASE("the C library makes the samples of the C++ library (valgrind)") {
    const Opened pipeline;
    CHECK(std::string(ezaudio_version()) == EZAUDIO_VERSION);
    CHECK(ezaudio_sample_rate(pipeline.get()) == 24000);
    const ezaudio_options options = short_options();
    ezaudio_audio* audio = nullptr;
    REQUIRE(ezaudio_generate(pipeline.get(), "rain", &options, &audio) == EZAUDIO_OK);
    std::size_t count = 0;
    const float* samples = ezaudio_samples(audio, &count);
    ezaudio::GenerateOptions cpp;
    cpp.duration_s = 0.2;
    cpp.num_steps = 2;
    cpp.seed = 5;
    CHECK(std::vector<float>(samples, samples + count) ==
          pipeline_of_one_thread().generate("rain", cpp).samples);
    CHECK(ezaudio_seed(audio) == 5);
    CHECK(std::string(ezaudio_warnings(audio)).empty());
    TemporaryFolder folder;
    const std::string path = (folder / "rain.wav").string();
    CHECK(ezaudio_write_wav(pipeline.get(), audio, path.c_str(), 16) == EZAUDIO_OK);
    CHECK(read_bytes(path).substr(0, 4) == "RIFF");
    CHECK(ezaudio_write_wav(pipeline.get(), audio, path.c_str(), 17) == EZAUDIO_INPUT_ERROR);
    CHECK(ezaudio_write_wav(pipeline.get(), audio, (folder / "no/rain.wav").string().c_str(), 16) ==
          EZAUDIO_INPUT_ERROR);
    ezaudio_free(audio);
}

TEST_CASE("the C library takes presets, guidance intervals and reuse, and closes graphs") {
    ezaudio_pipeline* pipeline = ezaudio_create();
    const std::string folder = test_bundle().string();
    CHECK(ezaudio_open(pipeline, folder.c_str(), 1, "cpu", 4) == EZAUDIO_INPUT_ERROR);
    CHECK(std::string(ezaudio_error(pipeline)) ==
          "flags are 4: expected 0 or a sum of EZAUDIO_VERIFY, EZAUDIO_LOW_MEMORY");
    REQUIRE(ezaudio_open(pipeline, folder.c_str(), 1, "cpu", EZAUDIO_VERIFY | EZAUDIO_LOW_MEMORY) == EZAUDIO_OK);
    ezaudio_options options = short_options();
    options.preset = "fast";
    options.num_steps = 0;
    options.guidance_low = 0.5;
    options.guidance_high = 0.9;
    const std::vector<std::int32_t> reuse{3, 4};
    options.reuse = reuse.data();
    options.reuse_count = reuse.size();
    ezaudio_audio* audio = nullptr;
    REQUIRE(ezaudio_generate(pipeline, "rain", &options, &audio) == EZAUDIO_OK);
    std::size_t count = 0;
    const float* samples = ezaudio_samples(audio, &count);
    ezaudio::GenerateOptions cpp;
    cpp.preset = "fast";
    cpp.duration_s = 0.2;
    cpp.seed = 5;
    cpp.guidance_interval = {0.5, 0.9};
    cpp.reuse = reuse;
    CHECK(std::vector<float>(samples, samples + count) == pipeline_of_one_thread().generate("rain", cpp).samples);
    ezaudio_free(audio);
    options.guidance_high = std::nan("");
    CHECK(ezaudio_generate(pipeline, "rain", &options, &audio) == EZAUDIO_INPUT_ERROR);
    CHECK(std::string(ezaudio_error(pipeline)) == "a bound of guidance_interval must be from 0 to 1, got nan");
    options.guidance_low = options.guidance_high;
    options.reuse_count = 0;  // none, although the preset has some
    CHECK(ezaudio_generate(pipeline, "rain", &options, &audio) == EZAUDIO_OK);
    ezaudio_free(audio);
    options.preset = "quick";
    CHECK(ezaudio_generate(pipeline, "rain", &options, &audio) == EZAUDIO_INPUT_ERROR);
    ezaudio_destroy(pipeline);
}

TEST_CASE("callbacks of the C library are called and can cancel") {
    const Opened pipeline;
    ezaudio_options options = short_options();
    std::vector<std::size_t> seen;
    options.user = &seen;
    options.on_step = [](void* user, std::size_t index, std::size_t num_steps) -> std::int32_t {
        static_cast<std::vector<std::size_t>*>(user)->push_back(10 * num_steps + index);
        return 1;
    };
    options.on_audio = [](void* user, const float* samples, std::size_t count) -> std::int32_t {
        static_cast<std::vector<std::size_t>*>(user)->push_back(count);
        return samples != nullptr ? 0 : 1;
    };
    ezaudio_audio* audio = nullptr;
    CHECK(ezaudio_generate(pipeline.get(), "rain", &options, &audio) == EZAUDIO_CANCELLED);
    CHECK(audio == nullptr);
    CHECK(seen == std::vector<std::size_t>{20, 21, 4800});
    CHECK(std::string(ezaudio_error(pipeline.get())) == "cancelled after sample 4800 of 4800");
}

TEST_CASE("the C library edits and controls") {
    const Opened pipeline;
    ezaudio_options options = short_options();
    const std::vector<float> clip(12000, 0.1F);
    ezaudio_audio* audio = nullptr;
    options.control_audio = clip.data();
    options.control_count = clip.size();
    CHECK(ezaudio_generate(pipeline.get(), "rain", &options, &audio) == EZAUDIO_OK);
    ezaudio_free(audio);
    options = short_options();
    options.duration_s = std::nan("");
    options.edit_audio = clip.data();
    options.edit_count = clip.size();
    options.start_s = 0.1;
    options.end_s = 0.3;
    REQUIRE(ezaudio_generate(pipeline.get(), "rain", &options, &audio) == EZAUDIO_OK);
    std::size_t count = 0;
    CHECK(ezaudio_samples(audio, &count)[0] == 0.1F);
    CHECK(count == clip.size());
    ezaudio_free(audio);
}

TEST_CASE("what is missing is said and nothing crashes") {
    ezaudio_audio* audio = nullptr;
    CHECK(ezaudio_generate(nullptr, "rain", nullptr, &audio) == EZAUDIO_INPUT_ERROR);
    CHECK(std::string(ezaudio_error(nullptr)) == "the pipeline is NULL");
    CHECK(ezaudio_samples(nullptr, nullptr) == nullptr);
    CHECK(ezaudio_seed(nullptr) == 0);
    ezaudio_free(nullptr);
    ezaudio_destroy(nullptr);
    ezaudio_options_init(nullptr);
    ezaudio_pipeline* pipeline = ezaudio_create();
    const auto error = [&] { return std::string(ezaudio_error(pipeline)); };
    CHECK(ezaudio_sample_rate(pipeline) == 0);
    CHECK(ezaudio_generate(pipeline, "rain", nullptr, &audio) == EZAUDIO_INPUT_ERROR);
    CHECK(error() == "no bundle is open: call ezaudio_open first");
    CHECK(ezaudio_open(pipeline, nullptr, 0, "cpu", 0) == EZAUDIO_INPUT_ERROR);
    CHECK(ezaudio_open(pipeline, "/no/such/folder", 0, "cpu", 0) == EZAUDIO_BUNDLE_ERROR);
    check_contains(error(), "no bundle at '/no/such/folder': there is no such folder");
    REQUIRE(ezaudio_open(pipeline, test_bundle().string().c_str(), 1, "cpu", 1) == EZAUDIO_OK);
    CHECK(error().empty());
    CHECK(ezaudio_generate(pipeline, nullptr, nullptr, &audio) == EZAUDIO_INPUT_ERROR);
    CHECK(ezaudio_generate(pipeline, "rain", nullptr, nullptr) == EZAUDIO_INPUT_ERROR);
    CHECK(ezaudio_write_wav(pipeline, nullptr, "x.wav", 16) == EZAUDIO_INPUT_ERROR);
    ezaudio_destroy(pipeline);
}

TEST_CASE("an options struct of an older version is completed, of another size refused") {
    const Opened pipeline;
    ezaudio_audio* audio = nullptr;
    ezaudio_options options = short_options();
    options.size = offsetof(ezaudio_options, control_audio);
    CHECK(ezaudio_generate(pipeline.get(), "rain", &options, &audio) == EZAUDIO_OK);
    ezaudio_free(audio);
    for (const std::size_t size : {std::size_t{0}, sizeof(ezaudio_options) + 1, ~std::size_t{0}}) {
        options.size = size;
        CHECK(ezaudio_generate(pipeline.get(), "rain", &options, &audio) == EZAUDIO_INPUT_ERROR);
        check_contains(ezaudio_error(pipeline.get()), "call ezaudio_options_init first");
    }
}

TEST_CASE("a struct of random bytes gives a sound or a status (valgrind)") {
    const Opened pipeline;
    Random random(3);
    for (int round = 0; round < 200; ++round) {
        ezaudio_options options = short_options();
        // Up to the first pointer: a random pointer is the caller's crash.
        auto* bytes = reinterpret_cast<unsigned char*>(&options);
        for (std::size_t left = 1 + random.below(12); left > 0; --left) {
            bytes[random.below(offsetof(ezaudio_options, negative_prompt))] = static_cast<unsigned char>(random.bits());
        }
        if (options.num_steps > 2) options.num_steps = 2;
        if (options.duration_s > 0.5) options.duration_s = 0.5;
        ezaudio_audio* audio = nullptr;
        const auto status = ezaudio_generate(pipeline.get(), "rain", &options, &audio);
        CHECK((status == EZAUDIO_OK) == (audio != nullptr));
        CHECK((status == EZAUDIO_OK) == std::string(ezaudio_error(pipeline.get())).empty());
        ezaudio_free(audio);
    }
}
