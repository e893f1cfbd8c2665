#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <variant>
#include <vector>

#include <ezaudio/detail/config.hpp>
#include <ezaudio/detail/errors.hpp>
#include <ezaudio/detail/files.hpp>
#include <ezaudio/detail/json.hpp>
#include <ezaudio/detail/presets.hpp>
#include <ezaudio/detail/read_config.hpp>
#include <ezaudio/detail/sha256.hpp>
#include <ezaudio/detail/text_format.hpp>

namespace ezaudio::detail {

/// A dimension known only at run time: `times` × the size called `name`. 0 <= min <= opt <= max, opt and times at least 1;
/// all at most 1e9.
struct Axis {
    std::string name;
    std::int64_t min = 1, opt = 1, max = 1, times = 1;
};

/// Name, dtype (as NumPy has it) and shape of a tensor; a dimension is a number from 0 to 1e9 or an `Axis`.
struct TensorSpec {
    std::string name, dtype;
    std::vector<std::variant<std::int64_t, Axis>> shape;
};

/// One ONNX graph: its file, and its inputs and outputs in order.
struct GraphEntry {
    std::string file;
    std::vector<TensorSpec> inputs, outputs;
};

struct FileEntry {
    std::uint64_t size = 0;  // bytes
    std::string sha256;
};

/// What a bundle is made of. `bundle_id`: the first 16 hex digits of the manifest's sha256, hence of all it lists.
struct Manifest {
    Config config;
    std::string model, precision, origin, licence;
    std::map<std::string, GraphEntry> graphs;
    std::map<std::string, FileEntry> files;
    std::vector<Preset> presets;  // in the order of the text
    std::string bundle_id;
};

/// Told the bytes compared since the last call, and the bytes there are in all.
using OnBytes = std::function<void(std::uint64_t count, std::uint64_t total)>;

inline constexpr const char* manifest_name = "manifest.json";
inline constexpr std::size_t max_manifest_bytes = std::size_t{4} << 20;

// Read by code that is not ours: no byte of it reaches that code unseen, even when large files go unread.
inline constexpr const char* always_verified = "spiece.model";

inline TensorSpec read_tensor_spec(const Json& json) {
    constexpr std::int64_t largest = 1'000'000'000;
    constexpr std::array<std::string_view, 6> dtypes{"float32", "float16", "bfloat16", "int64", "int8", "bool"};
    try {
        TensorSpec spec{json.at("name").string(), json.at("dtype").string(), {}};
        if (std::find(dtypes.begin(), dtypes.end(), spec.dtype) == dtypes.end()) {
            throw JsonError("dtype of " + python_repr(json.at("name")) +
                            " must be one of float32, float16, bfloat16, int64, int8, bool, got " +
                            python_repr(json.at("dtype")));
        }
        for (const Json& dim : json.at("shape").array()) {
            if (dim.get_if<Json::Object>() == nullptr) {
                spec.shape.emplace_back(read_whole(dim, 0, largest));
                continue;
            }
            Axis axis{dim.at("axis").string()};
            axis.min = read_whole(dim.at("min"), 0, largest);
            axis.opt = read_whole(dim.at("opt"), std::max<std::int64_t>(axis.min, 1), largest);
            axis.max = read_whole(dim.at("max"), axis.opt, largest);
            axis.times = read_whole(dim.at("times"), 1, largest);
            spec.shape.emplace_back(std::move(axis));
        }
        return spec;
    } catch (const JsonError& error) {
        throw JsonError("not the description of a tensor: " + python_repr(json) + " (" + error.what() + ")");
    }
}

inline GraphEntry read_graph_entry(const Json& json, const std::map<std::string, FileEntry>& files) {
    GraphEntry graph;
    graph.file = json.at("file").string();
    if (files.count(graph.file) == 0) throw JsonError("graph file " + python_repr(json.at("file")) + " is not listed");
    for (const Json& spec : json.at("inputs").array()) graph.inputs.push_back(read_tensor_spec(spec));
    for (const Json& spec : json.at("outputs").array()) graph.outputs.push_back(read_tensor_spec(spec));
    return graph;
}

/// Whether `name` cannot leave the bundle's folder, on any system.
inline bool is_plain_name(const std::string& name) {
    const auto is_special = [](unsigned char c) { return c < 0x20 || c == '/' || c == '\\' || c == ':'; };
    return !name.empty() && name != "." && name != ".." && std::none_of(name.begin(), name.end(), is_special);
}

inline std::map<std::string, FileEntry> read_file_entries(const Json& json) {
    constexpr std::int64_t largest = std::int64_t{1} << 53;
    std::map<std::string, FileEntry> files;
    const Json::Object& members = json.object();
    for (std::size_t index = 0; index < members.keys.size(); ++index) {
        const std::string& name = members.keys[index];
        if (!is_plain_name(name)) throw JsonError(shortened(python_repr(name)) + " is no plain file name");
        const Json& entry = members.values[index];
        const auto size = static_cast<std::uint64_t>(read_whole(entry.at("size"), 0, largest));
        files[name] = {size, entry.at("sha256").string()};
    }
    return files;
}

/// `checks` and `packages` tell people how the bundle was made; a runtime only sees that they are whole.
inline void check_records(const Json& json) {
    for (const Json& check : json.at("checks").array()) {
        check.at("graph").string();
        check.at("output").string();
        check.at("relative_error").number();
        check.at("tolerance").number();
        if (check.object().keys.size() != 4) throw JsonError("a check has unknown fields: " + python_repr(check));
    }
    for (const Json& version : json.at("packages").object().values) version.string();
}

/// The sha256 that a manifest should name: of its other fields as JSON with sorted keys and no blanks.
inline std::string sealing_sha256(const Json& json) {
    Json::Object others = json.object();
    const auto found = std::find(others.keys.begin(), others.keys.end(), "sha256");
    if (found != others.keys.end()) {
        others.values.erase(others.values.begin() + (found - others.keys.begin()));
        others.keys.erase(found);
    }
    return sha256_hex(canonical(Json{std::move(others)}));
}

[[noreturn]] inline void refuse_changed(const std::string& path) {
    throw BundleError("'" + path + "' has changed since the bundle was made (its sha256 differs): "
                      "copy or export the bundle again");
}

inline void check_version(const Json& version, const std::string& path) {
    constexpr const char* format_version = "2";
    const auto* number = version.is_integer() ? version.get_if<Json::Number>() : nullptr;
    if (number != nullptr && number->token == format_version) return;
    const bool is_newer = number != nullptr && (number->token.size() > 1 ? number->token[0] != '-' : number->token > format_version);
    const std::string what = "the " + std::string(is_newer ? "newer" : "unknown") + " format " + python_repr(version);
    throw BundleError("'" + path + "' has " + what + ", this version reads " + format_version +
                      ": upgrade ezaudio, or export the bundle again");
}

/// The manifest in `bytes`; `path` names it in messages. Raises BundleError.
inline Manifest parse_manifest(std::string_view bytes, const std::string& path) {
    try {
        const Json json = parse_json(bytes, max_manifest_bytes);
        const Json* format = json.get_if<Json::Object>() != nullptr ? json.find("format") : nullptr;
        const auto* name = format != nullptr ? format->get_if<std::string>() : nullptr;
        if (name == nullptr || *name != "ezaudio-bundle") {
            throw BundleError("'" + path + "' is no manifest of an EzAudio bundle: make one with ezaudio-export");
        }
        check_version(json.at("format_version"), path);
        const std::string digest = sealing_sha256(json);
        if (const auto* named = json.at("sha256").get_if<std::string>(); named == nullptr || *named != digest) {
            refuse_changed(path);
        }
        Manifest manifest;
        manifest.files = read_file_entries(json.at("files"));
        const Json::Object& graphs = json.at("graphs").object();
        for (std::size_t index = 0; index < graphs.keys.size(); ++index) {
            manifest.graphs[graphs.keys[index]] = read_graph_entry(graphs.values[index], manifest.files);
        }
        manifest.config = read_config(json.at("config"));
        manifest.model = manifest.config.name;
        manifest.precision = json.at("precision").string();
        manifest.origin = json.at("origin").string();
        manifest.licence = json.at("licence").string();
        const Json::Object& presets = json.at("presets").object();
        for (std::size_t index = 0; index < presets.keys.size(); ++index) {
            manifest.presets.push_back(read_preset(presets.keys[index], presets.values[index]));
        }
        check_records(json);
        manifest.bundle_id = digest.substr(0, 16);
        return manifest;
    } catch (const JsonError& error) {
        throw BundleError("'" + path + "' is damaged (" + error.what() + "): copy or export the bundle again");
    }
}

inline void check_size(const std::filesystem::path& path, const FileEntry& entry) {
    constexpr const char* fix = ": copy or export the bundle again";
    std::error_code error;
    const bool is_there = std::filesystem::is_regular_file(path, error);
    const std::uint64_t size = is_there ? std::filesystem::file_size(path, error) : 0;
    if (!is_there || error) throw BundleError("the bundle lacks '" + path_text(path) + "'" + fix);
    if (size != entry.size) {
        throw BundleError("'" + path_text(path) + "' has " + with_commas(size) + " bytes, the manifest says " +
                          with_commas(entry.size) + fix);
    }
}

/// Read a bundle's manifest, check that its files are there, and when `verify_files` compare each with its sha256.
///
/// Raises BundleError when the folder is no bundle, is of a newer format, or a file is missing or changed. What
/// `on_bytes` throws passes through; it may be empty.
inline Manifest read_manifest(const std::filesystem::path& folder, bool verify_files, const OnBytes& on_bytes) {
    const std::filesystem::path path = folder / manifest_name;
    const std::string folder_name = path_text(folder), file_name = path_text(path);
    std::error_code error;
    if (!std::filesystem::is_directory(folder, error)) {
        throw BundleError("no bundle at '" + folder_name + "': there is no such folder; make one with ezaudio-export");
    }
    if (!std::filesystem::is_regular_file(path, error)) {
        throw BundleError("'" + folder_name + "' is no bundle: it has no " + manifest_name +
                          "; make one with ezaudio-export");
    }
    std::string bytes;
    if (!read_file(path, max_manifest_bytes + 1, bytes)) {
        throw BundleError("'" + file_name + "' cannot be read: check its permissions, or copy the bundle again");
    }
    if (bytes.size() > max_manifest_bytes) {
        throw BundleError("'" + file_name + "' is larger than " + with_commas(max_manifest_bytes) +
                          " bytes: it is no manifest of a bundle");
    }
    Manifest manifest = parse_manifest(bytes, file_name);
    std::uint64_t total = 0;
    for (const auto& [name, entry] : manifest.files) {
        check_size(folder / path_of(name), entry);
        total += entry.size;
    }
    const auto report = [&](std::size_t count) {
        if (verify_files && on_bytes) on_bytes(count, total);
    };
    for (const auto& [name, entry] : manifest.files) {
        if (!verify_files && name != always_verified) continue;
        const std::filesystem::path file = folder / path_of(name);
        if (file_sha256(file, report) != entry.sha256) refuse_changed(path_text(file));
    }
    return manifest;
}

}  // namespace ezaudio::detail
