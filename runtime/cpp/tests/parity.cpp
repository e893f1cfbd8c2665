// What Python is compared with, as raw numbers on standard output:
//   parity ids SPIECE.MODEL           prompts on standard input (length, newline, bytes): count and ids of each, int32
//   parity rows SOLVER ETA            rows of every number of steps from 1 to 1000, float32
//   parity timesteps                  timesteps of every number of steps from 1 to 1000, int32
//   parity noise NAME SEED COUNT...   one draw of each count, float32
//   parity time BUNDLE STEPS DURATION CLIPS    as text: seconds of each clip, its decode, its first chunk; sha256 of its samples
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <iomanip>
#include <iostream>
#include <iterator>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include <ezaudio/ezaudio.hpp>

namespace {

template <typename Value>
Value parsed(const std::string& text) {
    std::istringstream stream(text);
    Value value{};
    if (!(stream >> value)) throw ezaudio::InputError("'" + text + "' is no number");
    return value;
}

template <typename Value>
void put(const Value* values, std::size_t count) {
    std::cout.write(reinterpret_cast<const char*>(values), static_cast<std::streamsize>(count * sizeof(Value)));
}

void put_ids(const std::string& path) {
    const ezaudio::detail::SentencePieces tokenizer(ezaudio::detail::read_tokenizer_file(path), path);
    std::string line;
    while (std::getline(std::cin, line)) {
        std::string prompt(parsed<std::size_t>(line), '\0');
        std::cin.read(prompt.data(), static_cast<std::streamsize>(prompt.size()));
        const std::vector<std::int64_t> ids = tokenizer.encode(prompt);
        std::vector<std::int32_t> numbers{static_cast<std::int32_t>(ids.size())};
        for (const std::int64_t id : ids) numbers.push_back(static_cast<std::int32_t>(id));
        put(numbers.data(), numbers.size());
    }
}

/// Times clips for benchmarks/cpp.py: whole, then the decode alone as `generate` does it and as a listener hears it.
void put_times(const std::vector<std::string>& words) {
    using Clock = std::chrono::steady_clock;
    const auto seconds = [](Clock::time_point from, Clock::time_point to) {
        return std::chrono::duration<double>(to - from).count();
    };
    ezaudio::Pipeline pipeline(words.at(1));
    ezaudio::GenerateOptions options;
    options.num_steps = parsed<int>(words.at(2));
    options.duration_s = parsed<double>(words.at(3));
    options.seed = 1;
    Clock::time_point last_step;
    options.on_step = [&](const ezaudio::Step&) {
        last_step = Clock::now();
        return true;
    };
    for (int clip = parsed<int>(words.at(4)); clip > 0; --clip) {
        options.on_audio = nullptr;
        const Clock::time_point start = Clock::now();
        const auto audio = pipeline.generate("dog barking", options);
        const Clock::time_point end = Clock::now();
        const double decode_s = seconds(last_step, end);
        double first_s = 0;
        options.on_audio = [&](std::size_t, const float*, std::size_t) {
            if (!(first_s > 0)) first_s = seconds(last_step, Clock::now());
            return true;
        };
        pipeline.generate("dog barking", options);
        const std::string_view bytes(reinterpret_cast<const char*>(audio.samples.data()),
                                     audio.samples.size() * sizeof(float));
        std::cout << std::setprecision(17) << seconds(start, end) << ' ' << decode_s << ' ' << first_s << ' '
                  << ezaudio::detail::sha256_hex(bytes)
                  << std::endl;
    }
}

void run(const std::vector<std::string>& words) {
    const std::string& what = words.at(0);
    const ezaudio::detail::DiffusionConfig diffusion;
    if (what == "time") return put_times(words);
    if (what == "ids") return put_ids(words.at(1));
    if (what == "noise") {
        const auto noise = ezaudio::detail::make_noise(words.at(1), parsed<std::uint64_t>(words.at(2)));
        for (std::size_t index = 3; index < words.size(); ++index) {
            const auto values = noise->draw(static_cast<std::uint32_t>(index - 3), parsed<std::size_t>(words[index]));
            put(values.data(), values.size());
        }
        return;
    }
    for (int num_steps = 1; num_steps <= diffusion.num_train_steps; ++num_steps) {
        if (what == "timesteps") {
            for (const std::int64_t timestep : ezaudio::detail::spaced_timesteps(num_steps, parsed<double>(words.at(1)), 1000)) {
                const auto value = static_cast<std::int32_t>(timestep);
                put(&value, 1);
            }
            continue;
        }
        const double eta = parsed<double>(words.at(2)), spacing = parsed<double>(words.at(3));
        const auto plan = ezaudio::detail::solver_plan(words.at(1), num_steps, eta, diffusion, spacing);
        for (const auto& row : plan.rows) put(row.data(), row.size());
    }
}

}  // namespace

int main(int argc, char** argv) try {
    run({argv + 1, argv + argc});
} catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 2;
}
