#pragma once

#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <ios>
#include <random>
#include <string>
#include <system_error>

#include <ezaudio/detail/errors.hpp>
#include <ezaudio/detail/text_format.hpp>

namespace ezaudio::detail {

/// A path as UTF-8, for messages. (Where char8_t exists, u8string gives another type than std::string.)
inline std::string path_text(const std::filesystem::path& path) {
    const auto text = path.u8string();
    return std::string(text.begin(), text.end());
}

/// Inverse of `path_text`. By UTF-32: std::filesystem::u8path is deprecated in C++20, what replaces it is new there.
inline std::filesystem::path path_of(const std::string& utf8) { return std::filesystem::path(decode_utf8(utf8)); }

/// All bytes of a file, but no more than `most`, in `bytes`. False when it cannot be read.
inline bool read_file(const std::filesystem::path& path, std::size_t most, std::string& bytes) {
    constexpr std::size_t piece = std::size_t{1} << 20;
    std::ifstream file(path, std::ios::binary);
    std::size_t held = 0;
    while (file && held < most) {
        bytes.resize(held + (most - held < piece ? most - held : piece));
        file.read(&bytes[held], static_cast<std::streamsize>(bytes.size() - held));
        held += static_cast<std::size_t>(file.gcount());
    }
    bytes.resize(held);
    return file.is_open() && (file || file.eof());
}

/// Writes `path` whole or not at all; an existing file is replaced. Raises InputError when it cannot be written.
inline void replace_file(const std::filesystem::path& path, const std::string& bytes) {
    std::random_device device;
    // Some libraries give the same random numbers to every process: the clock keeps their files apart.
    const auto clock = static_cast<std::uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
    const std::uint64_t suffix = (std::uint64_t{device()} << 32 | device()) ^ clock;
    const std::filesystem::path temporary = path.parent_path() / (".ezaudio-" + hex_digits(suffix, 16) + ".tmp");

    std::error_code error;
    errno = 0;
    std::ofstream file(temporary, std::ios::binary | std::ios::trunc);
    file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    file.close();
    if (!file) {
        error = errno != 0 ? std::error_code(errno, std::generic_category()) : make_error_code(std::errc::io_error);
    } else {
        std::filesystem::rename(temporary, path, error);
    }
    if (error) {
        std::error_code ignored;
        std::filesystem::remove(temporary, ignored);
        const std::string what = "'" + path_text(path) + "' cannot be written (" + error.message() + ")";
        throw InputError(what + ": free it or name another place");
    }
}

}  // namespace ezaudio::detail
