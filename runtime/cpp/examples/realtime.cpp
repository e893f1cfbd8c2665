// realtime BUNDLE PROMPT [PROMPT ...] [--null]
//
// Plays prompts one after the other. A worker thread generates; as soon as the first quarter of a second of a clip is
// decoded it goes into a ring buffer, from which the audio callback plays while the rest is decoded and the next prompt
// is sampled. --null plays into a device that is not there (for machines without sound).
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <exception>
#include <iostream>
#include <string>
#include <thread>
#include <vector>

#include <ezaudio/ezaudio.hpp>

#define MINIAUDIO_IMPLEMENTATION
#define MA_NO_DECODING
#define MA_NO_ENCODING
#define MA_NO_GENERATION
#define MA_NO_ENGINE
#include <miniaudio.h>

namespace {

/// Samples from one writing to one reading thread, without locks: the callback of an audio device must not wait.
class RingBuffer {
public:
    explicit RingBuffer(std::size_t capacity) : samples_(capacity) {}

    /// Writes what fits, and says how many samples that was.
    std::size_t write(const float* samples, std::size_t count) {
        const std::size_t head = head_.load(std::memory_order_relaxed), tail = tail_.load(std::memory_order_acquire);
        count = std::min(count, samples_.size() - (head - tail));
        for (std::size_t i = 0; i < count; ++i) samples_[(head + i) % samples_.size()] = samples[i];
        head_.store(head + count, std::memory_order_release);
        return count;
    }

    /// Reads what is there, and says how many samples that was.
    std::size_t read(float* samples, std::size_t count) {
        const std::size_t tail = tail_.load(std::memory_order_relaxed), head = head_.load(std::memory_order_acquire);
        count = std::min(count, head - tail);
        for (std::size_t i = 0; i < count; ++i) samples[i] = samples_[(tail + i) % samples_.size()];
        tail_.store(tail + count, std::memory_order_release);
        return count;
    }

    bool is_empty() const { return head_.load(std::memory_order_acquire) == tail_.load(std::memory_order_acquire); }

private:
    std::vector<float> samples_;
    std::atomic<std::size_t> head_{0}, tail_{0};
};

struct Player {
    explicit Player(std::size_t capacity) : buffer(capacity) {}

    RingBuffer buffer;
    std::atomic<std::size_t> num_played{0}, num_missed{0};  // samples; missed: silence inside a clip
    std::atomic<bool> is_in_clip{false}, is_done{false}, is_stopped{false};
    std::string error;  // of the worker, read once it is done
};

void play(ma_device* device, void* output, const void*, ma_uint32 count) {
    auto& player = *static_cast<Player*>(device->pUserData);
    auto* samples = static_cast<float*>(output);
    const std::size_t read = player.buffer.read(samples, count);
    for (std::size_t i = 0; i < read; ++i) samples[i] = std::clamp(samples[i], -1.0F, 1.0F);
    std::fill(samples + read, samples + count, 0.0F);
    player.num_played += read;
    if (player.is_in_clip) player.num_missed += count - read;
}

void generate(ezaudio::Pipeline& pipeline, const std::vector<std::string>& prompts, Player& player) try {
    for (const std::string& prompt : prompts) {
        ezaudio::GenerateOptions options;
        const auto start = std::chrono::steady_clock::now();
        const auto elapsed_s = [&] {
            return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        };
        bool is_first = true;
        options.on_step = [&](const ezaudio::Step&) { return !player.is_stopped; };
        options.on_audio = [&](std::size_t, const float* samples, std::size_t count) {
            if (is_first) std::cout << prompt << ": sound after " << elapsed_s() << " s" << std::endl;
            is_first = false;
            while (count > 0 && !player.is_stopped) {
                const std::size_t written = player.buffer.write(samples, count);
                player.is_in_clip = true;
                samples += written;
                count -= written;
                if (count > 0) std::this_thread::sleep_for(std::chrono::milliseconds(10));
            }
            return !player.is_stopped;
        };
        pipeline.generate(prompt, options);
        player.is_in_clip = false;
        std::cout << prompt << ": decoded after " << elapsed_s() << " s" << std::endl;
    }
    player.is_done = true;
} catch (const std::exception& error) {
    player.error = error.what();
    player.is_done = true;
}

}  // namespace

int main(int argc, char** argv) try {
    std::vector<std::string> words(argv + 1, argv + argc);
    const auto null_flag = std::find(words.begin(), words.end(), "--null");
    const bool is_null = null_flag != words.end();
    if (is_null) words.erase(null_flag);
    if (words.size() < 2) {
        std::cerr << "usage: realtime BUNDLE PROMPT [PROMPT ...] [--null]\n";
        return 2;
    }
    ezaudio::Pipeline pipeline(words[0]);
    Player player(static_cast<std::size_t>(30 * pipeline.sample_rate()));

    const ma_backend null_backend = ma_backend_null;
    ma_context context;
    if (ma_context_init(is_null ? &null_backend : nullptr, is_null ? 1 : 0, nullptr, &context) != MA_SUCCESS) {
        throw ezaudio::InputError("no audio system was found: try --null");
    }
    ma_device_config config = ma_device_config_init(ma_device_type_playback);
    config.playback.format = ma_format_f32;
    config.playback.channels = 1;
    config.sampleRate = static_cast<ma_uint32>(pipeline.sample_rate());
    config.dataCallback = play;
    config.pUserData = &player;
    ma_device device;
    if (ma_device_init(&context, &config, &device) != MA_SUCCESS || ma_device_start(&device) != MA_SUCCESS) {
        ma_context_uninit(&context);
        throw ezaudio::InputError("no audio device could be opened: try --null");
    }
    std::thread worker([&] { generate(pipeline, {words.begin() + 1, words.end()}, player); });
    while (!player.is_done || !player.buffer.is_empty()) std::this_thread::sleep_for(std::chrono::milliseconds(20));
    worker.join();
    // What the device has taken is not heard yet, and stopping it may cut that off.
    const auto& playback = device.playback;
    const double taken = static_cast<double>(playback.internalPeriodSizeInFrames) * playback.internalPeriods;
    std::this_thread::sleep_for(std::chrono::duration<double>(taken / playback.internalSampleRate));
    ma_device_uninit(&device);
    ma_context_uninit(&context);
    if (!player.error.empty()) throw ezaudio::InputError(player.error);
    const double rate = pipeline.sample_rate();
    std::cout << "played " << static_cast<double>(player.num_played) / rate << " s, waited "
              << static_cast<double>(player.num_missed) / rate << " s inside clips" << std::endl;
} catch (const ezaudio::Error& error) {
    std::cerr << "Error: " << error.what() << '\n';
    return 2;
}
