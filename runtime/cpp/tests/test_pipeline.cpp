// The whole pipeline on a real bundle, one with a ControlNet: EZAUDIO_TEST_BUNDLE.
#include "helpers.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <ezaudio/ezaudio.hpp>

using namespace ezaudio_tests;
using ezaudio::GenerateOptions;
using ezaudio::Pipeline;

namespace {

ezaudio::PipelineOptions opening(int threads, const char* device = "cpu") {
    ezaudio::PipelineOptions options;
    options.threads = threads;
    options.device = device;
    return options;
}

GenerateOptions short_options() {
    GenerateOptions options;
    options.duration_s = 0.3;
    options.num_steps = 2;
    options.seed = 5;
    return options;
}

std::vector<float> tone(std::size_t count) {
    std::vector<float> samples(count);
    for (std::size_t i = 0; i < count; ++i) samples[i] = 0.3F * std::sin(0.1F * static_cast<float>(i));
    return samples;
}

}  // namespace

TEST_CASE("one seed gives the same samples every time (valgrind)") {
    Pipeline pipeline(test_bundle(), opening(1));
    const auto first = pipeline.generate("rain", short_options());
    CHECK(first.samples.size() == static_cast<std::size_t>(0.3 * pipeline.sample_rate()));
    CHECK(pipeline.generate("rain", short_options()).samples == first.samples);
    CHECK(first.settings.seed == 5);
    CHECK(first.warnings.empty());
    GenerateOptions other = short_options();
    other.seed = 6;
    CHECK(pipeline.generate("rain", other).samples != first.samples);
}

TEST_CASE("an item does not depend on its batch, and a moved pipeline works") {
    Pipeline original(test_bundle());
    Pipeline pipeline = std::move(original);
    const auto together = pipeline.generate({"rain", "a dog", "a much longer prompt"}, short_options(), {1, 2, 2});
    CHECK(together.size() == 3);
    for (const auto& item : together) {
        GenerateOptions options = short_options();
        options.seed = item.settings.seed;
        CHECK(pipeline.generate(item.settings.prompt, options).samples == item.samples);
    }
}

TEST_CASE("every way of guiding, every solver and both noises run") {
    Pipeline pipeline(test_bundle());
    for (const char* solver : {"ddim", "dpmpp_2m", "dpmpp_2m_sde"}) {
        for (const char* noise : {"torch", "philox"}) {
            for (const double guidance : {1.0, 3.0}) {
                GenerateOptions options = short_options();
                options.solver = solver;
                options.noise = noise;
                options.guidance_scale = guidance;
                options.negative_prompt = guidance > 1 && noise[0] == 't' ? "music and a very loud engine" : "";
                CHECK(pipeline.generate("rain", options).samples.size() > 0);
            }
        }
    }
}

TEST_CASE("a preset is a plan that single settings change, and reuse belongs to its plan") {
    const Pipeline pipeline(test_bundle());
    GenerateOptions options;
    options.preset = "fast";
    REQUIRE(pipeline.presets().size() == 4);
    const ezaudio::Preset& fast = pipeline.presets()[0];
    REQUIRE(!fast.reuse.empty());
    const auto usual = pipeline.settings("rain", options);
    CHECK(usual.solver == fast.solver);
    CHECK(usual.num_steps == fast.num_steps);
    CHECK(usual.eta == fast.eta);
    CHECK(usual.guidance_interval == fast.guidance_interval);
    CHECK(usual.reuse == fast.reuse);
    const auto reuse_after = [&](auto change) {
        GenerateOptions changed = options;
        change(changed);
        return pipeline.settings("rain", changed).reuse;
    };
    CHECK(reuse_after([](auto& o) { o.num_steps = 12; }).empty());
    CHECK(reuse_after([](auto& o) { o.solver = "ddim"; }).empty());
    CHECK(reuse_after([](auto& o) { o.control_audio = {0.5F}; }).empty());
    CHECK(reuse_after([](auto& o) { o.reuse = std::vector<int>{}; }).empty());
    CHECK(reuse_after([](auto& o) { o.reuse = {3}; }) == std::vector<int>{3});
    CHECK(reuse_after([&](auto& o) { o.num_steps = fast.num_steps; }) == fast.reuse);
    options.solver = "ddim";
    CHECK(pipeline.settings("rain", options).eta == 1.0);
    CHECK(pipeline.settings("rain", options).guidance_interval == fast.guidance_interval);
}

TEST_CASE("steps without guidance and steps that reuse the inner blocks run, in every order (valgrind)") {
    Pipeline pipeline(test_bundle(), opening(1));
    const auto made = [&](std::pair<double, double> interval, std::vector<int> reuse, const std::string& negative) {
        GenerateOptions options = short_options();
        options.num_steps = 5;
        options.guidance_scale = 3.0;
        options.guidance_interval = interval;
        options.reuse = std::move(reuse);
        options.negative_prompt = negative;
        return pipeline.generate("rain", options).samples;
    };
    for (const std::string negative : {"", "music and a very loud engine"}) {
        const auto guided = made({0.0, 1.0}, {}, negative);
        CHECK(made({0.5, 1.0}, {}, negative) != guided);
        CHECK(made({0.5, 1.0}, {1, 3, 4}, negative) != guided);
        CHECK(made({0.0, 1.0}, {2}, negative) != guided);
        CHECK(made({0.0, 0.5}, {1, 4}, negative) != guided);
        CHECK(made({0.0, 1.0}, {}, negative) == guided);
    }
}

TEST_CASE("an output that nobody reads is not asked for") {
    const auto manifest = ezaudio::detail::read_manifest(test_bundle(), false, nullptr);
    ezaudio::detail::Sessions sessions(test_bundle(), manifest, 1, "cpu");
    const std::vector<std::int64_t> timesteps{999, 499};
    const Ort::Value input = ezaudio::detail::view(timesteps.data(), timesteps.size(), {2});
    const auto both = sessions.run("modulation", {{"timesteps", &input}});
    const auto one = sessions.run("modulation", {{"timesteps", &input}}, "block_modulation");
    REQUIRE(one.size() == 2);
    CHECK(one[0] == nullptr);
    const std::size_t count = both[1].GetTensorTypeAndShapeInfo().GetElementCount();
    CHECK(std::equal(one[1].GetTensorData<float>(), one[1].GetTensorData<float>() + count,
                     both[1].GetTensorData<float>()));
}

TEST_CASE("closing the graphs between stages changes no sample") {
    ezaudio::PipelineOptions saving = opening(1);
    saving.low_memory = true;
    Pipeline pipeline(test_bundle(), opening(1)), small(test_bundle(), saving);
    GenerateOptions options = short_options();
    options.num_steps = 4;
    options.reuse = {2};
    CHECK(small.generate("rain", options).samples == pipeline.generate("rain", options).samples);
    options.reuse.reset();
    options.control_audio = tone(3000);
    CHECK(small.generate("rain", options).samples == pipeline.generate("rain", options).samples);
    GenerateOptions editing = short_options();
    editing.duration_s.reset();
    const std::vector<float> clip = tone(6000);
    const ezaudio::Region region{0.1, 0.2};
    CHECK(small.edit(clip, "rain", region, editing).samples == pipeline.edit(clip, "rain", region, editing).samples);
}

TEST_CASE("chunks are heard in order and equal the whole decode to rounding") {
    Pipeline pipeline(test_bundle());
    GenerateOptions options = short_options();
    options.duration_s = 1.7;
    const auto whole = pipeline.generate("rain", options);
    std::vector<float> heard;
    std::size_t chunks = 0;
    options.on_audio = [&](std::size_t item, const float* samples, std::size_t count) {
        CHECK(item == 0);
        heard.insert(heard.end(), samples, samples + count);
        return ++chunks > 0;
    };
    const auto streamed = pipeline.generate("rain", options);
    CHECK(heard == streamed.samples);
    CHECK(chunks == 4);
    float peak = 0, difference = 0;
    for (std::size_t i = 0; i < heard.size(); ++i) {
        peak = std::max(peak, std::fabs(whole.samples[i]));
        difference = std::max(difference, std::fabs(whole.samples[i] - heard[i]));
    }
    CHECK(difference < 1e-5F * peak);
}

TEST_CASE("callbacks can cancel, and the pipeline lives on") {
    Pipeline pipeline(test_bundle());
    GenerateOptions options = short_options();
    options.num_steps = 9;
    options.on_step = [](const ezaudio::Step& step) { return step.index < 1; };
    CHECK(message_of<ezaudio::CancelledError>([&] { pipeline.generate("rain", options); }) ==
          "cancelled after step 2 of 9");
    GenerateOptions listening = short_options();
    listening.on_audio = [](std::size_t, const float*, std::size_t) { return false; };
    check_contains(message_of<ezaudio::CancelledError>([&] { pipeline.generate("rain", listening); }),
                   "cancelled after sample 6000 of ");
    CHECK(!pipeline.generate("rain", short_options()).samples.empty());
}

TEST_CASE("an edit replaces its region (valgrind)") {
    Pipeline pipeline(test_bundle(), opening(1));
    GenerateOptions options = short_options();
    options.duration_s.reset();
    const auto rate = static_cast<std::size_t>(pipeline.sample_rate());
    const std::vector<float> clip = tone(rate);
    const auto edited = pipeline.edit(clip, "a dog", {0.4, 0.6}, options);
    CHECK(edited.samples.size() == clip.size());
    CHECK(std::equal(clip.begin(), clip.begin() + static_cast<std::ptrdiff_t>(rate * 3 / 10), edited.samples.begin()));
    CHECK(edited.samples[rate / 2] != clip[rate / 2]);
    CHECK(pipeline.edit(clip, "a dog", {0.9, 1.5}, options).samples.size() == rate * 3 / 2);
}

TEST_CASE("a ControlNet steers") {
    Pipeline pipeline(test_bundle());
    REQUIRE(pipeline.has_controlnet());
    GenerateOptions options = short_options();
    options.control_audio = tone(3000);
    const auto steered = pipeline.generate("rain", options);
    CHECK(steered.settings.control_scale == 1.0);
    options.control_scale = 0.2;
    CHECK(pipeline.generate("rain", options).samples != steered.samples);
}

TEST_CASE("bad settings are one line in Python's words") {
    Pipeline pipeline(test_bundle());
    const auto refusal = [&](auto change, const std::string& prompt = "rain") {
        GenerateOptions options = short_options();
        change(options);
        return message_of<ezaudio::InputError>([&] { pipeline.generate(prompt, options); });
    };
    const auto nothing = [](GenerateOptions&) {};
    const double nan = std::numeric_limits<double>::quiet_NaN(), inf = std::numeric_limits<double>::infinity();
    CHECK(refusal(nothing, " \t") ==
          "the prompt is blank (' \\t'): describe a sound, such as \"a dog barking\"");
    CHECK(refusal(nothing, "\xff") == "prompt is not valid UTF-8: check where the text comes from");
    CHECK(refusal(nothing, std::string(10'001, 'a')) ==
          "prompt has 10,001 characters, at most 10,000 fit: shorten it");
    CHECK(refusal([](auto& o) { o.duration_s = 0; }) == "duration_s must be more than 0 and at most 30 seconds, got 0.0");
    CHECK(refusal([&](auto& o) { o.duration_s = nan; }) ==
          "duration_s must be more than 0 and at most 30 seconds, got nan");
    CHECK(refusal([](auto& o) { o.duration_s = 1e-9; }) == "duration_s 1e-09 is shorter than one sample: ask for more");
    CHECK(refusal([](auto& o) { o.num_steps = 0; }) == "num_steps must be a whole number from 1 to 1000, got 0");
    CHECK(refusal([&](auto& o) { o.guidance_scale = inf; }) == "guidance_scale must be from 0 to 100, got inf");
    CHECK(refusal([](auto& o) { o.guidance_rescale = 1.1; }) == "guidance_rescale must be from 0 to 1, got 1.1");
    CHECK(refusal([](auto& o) { o.eta = -0.1; }) == "eta must be from 0 to 1, got -0.1");
    CHECK(refusal([](auto& o) { o.solver = "euler"; }) ==
          "unknown solver 'euler': expected one of ddim, dpmpp_2m, dpmpp_2m_sde");
    CHECK(refusal([](auto& o) { o.preset = "quick"; }) ==
          "unknown preset 'quick': expected one of fast, balanced, best, official");
    CHECK(refusal([](auto& o) { o.guidance_interval = {-0.5, 1.0}; }) ==
          "a bound of guidance_interval must be from 0 to 1, got -0.5");
    CHECK(refusal([&](auto& o) { o.guidance_interval = {0.0, nan}; }) ==
          "a bound of guidance_interval must be from 0 to 1, got nan");
    CHECK(refusal([](auto& o) { o.guidance_interval = {0.75, 0.5}; }) ==
          "guidance_interval must be the lowest and the highest noise level to guide, 0 to 1, got (0.75, 0.5)");
    for (const auto& [reuse, got] : std::vector<std::pair<std::vector<int>, std::string>>{
             {{0}, "[0]"}, {{-1}, "[-1]"}, {{2}, "[2]"}, {{1, 1}, "[1, 1]"}, {{1, 0}, "[1, 0]"}}) {
        CHECK(refusal([&, &reuse = reuse](auto& o) { o.reuse = reuse; }) ==
              "reuse must be rising numbers of steps from 1 to 1 (the first step has nothing to reuse), got " + got);
    }
    CHECK(refusal([](auto& o) { o.reuse = {1}; o.guidance_interval = {0.0, 0.6}; }) ==
          "step 1 is guided and reuses step 0, which is not: take 1 out of reuse or widen guidance_interval");
    CHECK(refusal([](auto& o) { o.reuse = {1}; o.control_audio = {1.0F}; }) ==
          "reuse does not go with control_audio, which steers every block: leave one out");
    CHECK(refusal([](auto& o) { o.noise = "white"; }) == "unknown noise 'white': expected one of torch, philox");
    CHECK(refusal([](auto& o) { o.control_audio = {std::nanf("")}; }) == "control_audio contains NaN or infinity");
    CHECK(refusal([](auto& o) { o.control_audio = {1.0F}; o.control_scale = -1; }) ==
          "control_scale must be from 0 to 100, got -1.0");
    CHECK(message_of<ezaudio::InputError>([&] { pipeline.generate(std::vector<std::string>{}); }) ==
          "no prompt given: pass at least one description of a sound");
    CHECK(message_of<ezaudio::InputError>([&] { pipeline.generate({"a", "b"}, {}, {1, 2, 3}); }) ==
          "2 prompts need as many seeds, got 3");
    CHECK(message_of<ezaudio::InputError>([&] { pipeline.edit({0.1F}, "a", {2.0, 1.0}); }) ==
          "the region must end after it starts, got 2 to 1 s");
    CHECK(message_of<ezaudio::InputError>([&] { pipeline.edit({}, "a", {0.0, 1.0}); }) == "audio has no samples");
    CHECK(message_of<ezaudio::InputError>([] { Pipeline(test_bundle(), opening(2000)); }) ==
          "threads must be from 1 to 1024, or 0 for all cores, got 2000");
    CHECK(message_of<ezaudio::InputError>([] { Pipeline(test_bundle(), opening(1, "tpu")); }) ==
          "unknown device 'tpu': expected cpu, cuda, tensorrt");
    check_contains(message_of<ezaudio::InputError>([] { Pipeline(test_bundle(), opening(1, "cuda")); }),
                   "device 'cuda' is not in this ONNX Runtime");
}

TEST_CASE("random settings give a sound or one of our errors") {
    Pipeline pipeline(test_bundle());
    Random random(1);
    const std::vector<double> doubles{0.0,  -0.0, 1.0, 0.5, -1.0, 3.0,  100.0, 1e-300, 1e300, 0.02,
                                      0.01, 31.0, std::numeric_limits<double>::quiet_NaN(),
                                      std::numeric_limits<double>::infinity()};
    const std::vector<std::string> texts{"", "ddim", "dpmpp_2m", "torch", "philox", "rain", "\xff\xfe", std::string(1, '\0')};
    const auto number = [&] { return doubles[random.below(doubles.size())]; };
    const auto text = [&] { return texts[random.below(texts.size())]; };
    std::size_t made = 0, refused = 0;
    for (int round = 0; round < 400; ++round) {
        GenerateOptions options = short_options();
        for (int change = 0; change < 2; ++change) {
            switch (random.below(13)) {
                case 0: options.duration_s = std::min(number(), 0.5); break;
                case 1: options.guidance_scale = number(); break;
                case 2: options.guidance_rescale = number(); break;
                case 3: options.eta = number(); break;
                case 4: options.num_steps = static_cast<int>(random.below(5)) - 1; break;
                case 5: options.solver = text(); break;
                case 6: options.noise = text(); break;
                case 7: options.negative_prompt = text(); break;
                case 8: options.guidance_interval = {number(), number()}; break;
                case 9: options.reuse = std::vector<int>(random.below(3), static_cast<int>(random.below(4)) - 1); break;
                case 10: options.preset = std::vector<std::string>{"", "fast", "best", "x"}[random.below(4)]; break;
                case 11: options.control_audio.assign(random.below(9), static_cast<float>(number())); break;
                default: options.control_scale = number();
            }
        }
        try {
            if (random.below(4) == 0) {
                options.duration_s.reset();
                pipeline.edit(tone(2000), text(), {number(), std::min(number(), 1.0), number()}, options);
            } else {
                pipeline.generate(text(), options);
            }
            ++made;
        } catch (const ezaudio::Error&) {
            ++refused;
        }
    }
    CHECK(made > 20);
    CHECK(refused > 100);
}

TEST_CASE("a damaged tokenizer or graph is refused") {
    TemporaryFolder folder;
    std::filesystem::copy(test_bundle(), folder.path(), std::filesystem::copy_options::recursive);
    const std::string model = read_bytes(folder / "spiece.model"), graph = read_bytes(folder / "decoder.onnx");
    Random random(2);
    for (int round = 0; round < 500; ++round) {
        std::string damaged = model;
        for (std::size_t left = 1 + random.below(8); left > 0; --left) {
            damaged[random.below(damaged.size())] ^= static_cast<char>(1 + random.below(255));
        }
        if (damaged == model) continue;
        write_file(folder / "spiece.model", damaged);
        check_contains(message_of<ezaudio::BundleError>([&] { Pipeline pipeline(folder.path()); }), "has changed since");
    }
    write_file(folder / "spiece.model", model);
    write_file(folder / "decoder.onnx", std::string(graph.size(), '\x7f'));
    Pipeline pipeline(folder.path());
    check_contains(message_of<ezaudio::BundleError>([&] { pipeline.generate("rain", short_options()); }),
                   "ONNX Runtime cannot open ");
    ezaudio::PipelineOptions verifying;
    verifying.verify = true;
    check_contains(message_of<ezaudio::BundleError>([&] { Pipeline verified(folder.path(), verifying); }),
                   "has changed since");
}

TEST_CASE("a tokenizer of one's own takes the place of the bundle's") {
    class Numbers final : public ezaudio::Tokenizer {
    public:
        explicit Numbers(std::int64_t id) : id_(id) {}
        std::vector<std::int64_t> encode(const std::string& text) const override {
            return std::vector<std::int64_t>(text.size(), id_);
        }
        std::string decode(const std::vector<std::int64_t>& ids) const override {
            return std::to_string(ids.size()) + " ids";
        }

    private:
        std::int64_t id_;
    };
    ezaudio::PipelineOptions options;
    options.tokenizer = std::make_shared<Numbers>(7);
    Pipeline pipeline(test_bundle(), options);
    CHECK(pipeline.generate("rain", short_options()).warnings.empty());
    const auto warnings = pipeline.generate(std::string(150, 'x'), short_options()).warnings;
    REQUIRE(warnings.size() == 1);
    CHECK(warnings[0] == "the prompt is longer than 100 tokens; its end was dropped: '51 ids'");
    options.tokenizer = std::make_shared<Numbers>(1'000'000);
    Pipeline wrong(test_bundle(), options);
    check_contains(message_of<ezaudio::BundleError>([&] { wrong.generate("rain", short_options()); }),
                   "the tokenizer gives the id 1000000");
}

TEST_CASE("pipelines in different threads are independent") {
    const auto expected = Pipeline(test_bundle(), opening(1)).generate("rain", short_options()).samples;
    std::vector<std::thread> threads;
    std::atomic<int> equal{0};
    for (int index = 0; index < 3; ++index) {
        threads.emplace_back([&] {
            Pipeline pipeline(test_bundle(), opening(1));
            for (int round = 0; round < 3; ++round) {
                if (pipeline.generate("rain", short_options()).samples == expected) ++equal;
            }
        });
    }
    for (std::thread& thread : threads) thread.join();
    CHECK(equal == 9);
}
