#pragma once

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>
#include <random>
#include <sstream>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include <ezaudio/detail/text_format.hpp>

namespace ezaudio_tests {

/// The folder of the bundle that the tests run.
inline std::filesystem::path test_bundle() {
    const char* named = std::getenv("EZAUDIO_TEST_BUNDLE");
    REQUIRE_MESSAGE(named != nullptr, "EZAUDIO_TEST_BUNDLE has to name a bundle, such as runtime/nano");
    return named;
}

/// A folder of its own, removed with what is in it.
class TemporaryFolder {
public:
    TemporaryFolder() {
        std::random_device device;
        const std::string name = "ezaudio-test-" + std::to_string(device()) + "-" + std::to_string(device());
        path_ = std::filesystem::temp_directory_path() / name;
        std::filesystem::create_directories(path_);
    }
    ~TemporaryFolder() {
        std::error_code ignored;
        std::filesystem::remove_all(path_, ignored);
    }
    TemporaryFolder(const TemporaryFolder&) = delete;
    TemporaryFolder& operator=(const TemporaryFolder&) = delete;

    const std::filesystem::path& path() const { return path_; }
    std::filesystem::path operator/(const std::string& name) const { return path_ / name; }

private:
    std::filesystem::path path_;
};

inline void write_file(const std::filesystem::path& path, std::string_view bytes) {
    std::error_code ignored;
    std::filesystem::remove(path, ignored);  // ext4 writes out a file that is made empty first: slow, thousands of times
    std::ofstream file(path, std::ios::binary);
    file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    REQUIRE(file.good());
}

inline std::string read_bytes(const std::filesystem::path& path) {
    std::ifstream file(path, std::ios::binary);
    REQUIRE(file.good());
    std::ostringstream bytes;
    bytes << file.rdbuf();
    return bytes.str();
}

/// The message of the `Expected` that `run` throws; a failure when it throws nothing or anything else.
template <typename Expected, typename Run>
std::string message_of(const Run& run) {
    try {
        run();
    } catch (const Expected& error) {
        const std::string message = error.what();
        CHECK_MESSAGE(message.find('\n') == std::string::npos, message);
        CHECK_MESSAGE(ezaudio::detail::is_valid_utf8(message), message);
        return message;
    } catch (const std::exception& error) {
        FAIL("another error: " << error.what());
    }
    FAIL("no error");
    return "";
}

inline void check_contains(const std::string& text, const std::string& part) {
    CHECK_MESSAGE(text.find(part) != std::string::npos, "expected \"" << part << "\" in \"" << text << '"');
}

/// Random numbers that are the same everywhere, which std::uniform_int_distribution does not promise.
class Random {
public:
    explicit Random(std::uint32_t seed) : engine_(seed) {}

    std::uint32_t bits() { return static_cast<std::uint32_t>(engine_()); }
    /// From 0 to `count` − 1.
    std::size_t below(std::size_t count) { return bits() % count; }

private:
    std::mt19937 engine_;
};

/// `bytes` with one to four random changes: bits, `tokens` put in or over, pieces cut, doubled, or cut off.
inline std::string mutated(std::string bytes, Random& random, const std::vector<std::string>& tokens) {
    for (std::size_t left = 1 + random.below(4); left > 0; --left) {
        const std::size_t at = random.below(bytes.size() + 1);
        const std::size_t size = random.below(1 + random.below(64));
        const std::string& token = tokens[random.below(tokens.size())];
        switch (random.below(7)) {
            case 0:
                if (at < bytes.size()) bytes[at] = static_cast<char>(bytes[at] ^ 1 << random.below(8));
                break;
            case 1: bytes.insert(at, token); break;
            case 2: bytes.replace(at, token.size(), token); break;
            case 3: bytes.erase(at, size); break;
            case 4: bytes.insert(at, bytes.substr(random.below(bytes.size() + 1), size)); break;
            case 5: bytes.insert(at, 1, static_cast<char>(random.below(256))); break;
            default:
                if (random.below(8) == 0) bytes.resize(at);
        }
    }
    return bytes;
}

}  // namespace ezaudio_tests
