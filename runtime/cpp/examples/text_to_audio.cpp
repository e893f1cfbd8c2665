// text_to_audio BUNDLE PROMPT FILE.wav [--preset NAME] [--seed N] [--duration S] [--steps N]
//               [--edit CLIP.wav START_S END_S]
//
// Makes a sound from a prompt, or a part of a clip anew, and writes a WAV file.
#include <cstdint>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

#include <ezaudio/ezaudio.hpp>

namespace {

constexpr const char* usage =
    "usage: text_to_audio BUNDLE PROMPT FILE.wav [--preset NAME] [--seed N] [--duration S] [--steps N]\n"
    "                     [--edit CLIP.wav START_S END_S]\n"
    "example: text_to_audio nano \"dog barking\" dog.wav --preset fast --seed 7\n";

struct Arguments {
    std::vector<std::string> names;  // bundle, prompt, file
    ezaudio::GenerateOptions options;
    std::string clip;
    ezaudio::Region region;
};

Arguments parse(const std::vector<std::string>& words) {
    Arguments arguments;
    std::size_t index = 0;
    const auto next = [&]() -> const std::string& {
        if (++index >= words.size()) throw ezaudio::InputError(words[index - 1] + " needs a value");
        return words[index];
    };
    const auto read = [&](auto value) {
        std::istringstream stream(next());
        if (!(stream >> value) || !stream.eof()) throw ezaudio::InputError("'" + words[index] + "' is no such number");
        return value;
    };
    for (; index < words.size(); ++index) {
        const std::string word = words[index];
        if (word == "--preset") arguments.options.preset = next();
        else if (word == "--seed") arguments.options.seed = read(std::uint64_t{});
        else if (word == "--duration") arguments.options.duration_s = read(double{});
        else if (word == "--steps") arguments.options.num_steps = read(int{});
        else if (word == "--edit") {
            arguments.clip = next();
            arguments.region.start_s = read(double{});
            arguments.region.end_s = read(double{});
        } else if (word.rfind("--", 0) == 0) throw ezaudio::InputError("unknown option " + word);
        else arguments.names.push_back(word);
    }
    return arguments;
}

}  // namespace

int main(int argc, char** argv) try {
    Arguments arguments = parse({argv + 1, argv + argc});
    if (arguments.names.size() != 3) {
        std::cerr << usage;
        return 2;
    }
    ezaudio::Pipeline pipeline(arguments.names[0]);
    arguments.options.on_step = [](const ezaudio::Step& step) {
        const bool is_last = step.index + 1 == step.num_steps;
        std::cerr << "\rstep " << step.index + 1 << " of " << step.num_steps << (is_last ? "\n" : "") << std::flush;
        return true;
    };
    ezaudio::Audio audio;
    if (arguments.clip.empty()) {
        audio = pipeline.generate(arguments.names[1], arguments.options);
    } else {
        const auto clip = ezaudio::read_wav(arguments.clip);
        if (clip.sample_rate != pipeline.sample_rate()) throw ezaudio::InputError("the clip has another sample rate");
        audio = pipeline.edit(clip.samples, arguments.names[1], arguments.region, arguments.options);
    }
    ezaudio::write_wav(arguments.names[2], audio);
    for (const std::string& warning : audio.warnings) std::cerr << "Warning: " << warning << '\n';
    std::cout << arguments.names[2] << ": " << static_cast<double>(audio.samples.size()) / audio.sample_rate
              << " s, seed " << audio.settings.seed << '\n';
} catch (const ezaudio::Error& error) {
    std::cerr << "Error: " << error.what() << '\n';
    return 2;
}
