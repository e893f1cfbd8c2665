#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include <ezaudio/detail/manifest.hpp>

#include "helpers.hpp"
#include "sample_bundle.hpp"

using ezaudio::BundleError;
using namespace ezaudio::detail;
using namespace ezaudio_tests;

namespace {

Manifest read(const std::filesystem::path& folder, bool verify_files = true) {
    return read_manifest(folder, verify_files, nullptr);
}

std::string refusal(const std::filesystem::path& folder, bool verify_files = true) {
    return message_of<BundleError>([&] { read(folder, verify_files); });
}

/// What is said of the sample manifest after `change`, between "is damaged (" and ")".
std::string damage(const std::function<void(Json&)>& change) {
    Json manifest = sample_manifest();
    change(manifest);
    const std::string message = message_of<BundleError>([&] { parse_manifest(sealed(std::move(manifest)), "m"); });
    const std::string start = "'m' is damaged (", end = "): copy or export the bundle again";
    CHECK_MESSAGE(message.substr(0, start.size()) == start, message);
    REQUIRE(message.size() > start.size() + end.size());
    CHECK_MESSAGE(message.substr(message.size() - end.size()) == end, message);
    return message.substr(start.size(), message.size() - start.size() - end.size());
}

/// The same with one value replaced by that of a JSON text.
std::string damage(const std::vector<std::string>& keys, const std::string& value) {
    return damage([&](Json& manifest) { member(manifest, keys) = parse_json(value, value.size()); });
}

}  // namespace

TEST_CASE("SHA-256 gives the known digests (valgrind)") {
    CHECK(sha256_hex("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    CHECK(sha256_hex("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    CHECK(sha256_hex("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq") ==
          "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    CHECK(sha256_hex(std::string(1'000'000, 'a')) ==
          "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    for (std::size_t size = 0; size < 200; ++size) {  // in pieces of any size
        const std::string bytes(size, 'x');
        Sha256 digest;
        for (std::size_t start = 0, piece = 1; start < size; start += piece, ++piece) {
            const std::string part = bytes.substr(start, piece);
            digest.update(part.data(), part.size());
        }
        CHECK(digest.hex() == sha256_hex(bytes));
    }
}

TEST_CASE("manifest of a real bundle") {
    std::uint64_t told = 0, total = 0;
    const Manifest manifest = read_manifest(test_bundle(), true, [&](std::uint64_t count, std::uint64_t all) {
        told += count;
        total = all;
    });
    const Json json = parse_json(read_bytes(test_bundle() / "manifest.json"), max_manifest_bytes);
    std::uint64_t size = 0;
    for (const auto& [name, entry] : manifest.files) size += entry.size;
    CHECK(told == size);
    CHECK(total == size);
    CHECK(manifest.bundle_id == json.at("sha256").string().substr(0, 16));
    CHECK(manifest.model == json.at("model").string());
    CHECK(manifest.graphs.count("denoiser") == 1);
    CHECK(manifest.presets.size() == json.at("presets").object().keys.size());
}

TEST_CASE("manifest of a real bundle, files unread (valgrind)") {
    const Manifest manifest = read(test_bundle(), false);
    CHECK(manifest.bundle_id.size() == 16);
    CHECK(manifest.graphs.at("text_encoder").inputs.at(0).name == "input_ids");
}

TEST_CASE("everything in a manifest is read (valgrind)") {
    TemporaryFolder folder;
    write_sample_files(folder.path());
    write_file(folder / "manifest.json", sealed(sample_manifest()));
    const Manifest manifest = read(folder.path());
    CHECK(manifest.model == "debug");
    CHECK(manifest.precision == "fp32");
    CHECK(manifest.origin == "é");
    CHECK(manifest.licence == "MIT");
    const Config& config = manifest.config;
    CHECK(config.dit.num_heads == 2);
    CHECK(config.dit.adaln_alpha == 3);
    CHECK(config.vae.hop() == 480);
    CHECK(config.vae.channel_multiples == std::vector<int>{1, 2, 2, 4});
    CHECK(config.text.max_tokens == 100);
    CHECK_FALSE(config.text.hub_name.has_value());
    CHECK(config.controlnet.hidden_channels == std::vector<int>{8, 16});
    CHECK(config.diffusion.beta_end == 0.012);
    CHECK(config.defaults.num_steps == 4);
    CHECK(config.defaults.solver == "ddim");
    CHECK(config.max_duration_s == 30);
    const TensorSpec& audio = manifest.graphs.at("decoder").outputs.at(0);
    CHECK(audio.name == "audio");
    CHECK(audio.dtype == "float32");
    CHECK(std::get<std::int64_t>(audio.shape.at(0)) == 1);
    const Axis& frames = std::get<Axis>(audio.shape.at(1));
    CHECK(frames.name == "frames");
    CHECK(frames.times == 480);
    CHECK(frames.max == 750);
    CHECK(manifest.files.at("vae.weights").size == 20);
    CHECK(std::get<Axis>(manifest.graphs.at("decoder").inputs.at(0).shape.at(2)).min == 0);
    REQUIRE(manifest.presets.size() == 2);
    const ezaudio::Preset &best = manifest.presets[0], &fast = manifest.presets[1];  // `sealed` sorts them
    CHECK(fast.name == "fast");
    CHECK(fast.solver == "dpmpp_2m");
    CHECK(fast.num_steps == 10);
    CHECK(fast.spacing == 2.0);
    CHECK(fast.guidance_interval == std::pair(0.3, 1.0));
    CHECK(fast.reuse == std::vector<int>{4, 6, 8});
    REQUIRE(fast.fidelity.has_value());
    CHECK(fast.fidelity->reference_steps == 200);
    CHECK(fast.fidelity->evaluations == 15.5);
    CHECK(best.name == "best");
    CHECK(best.eta == 1);
    CHECK(best.reuse.empty());
    CHECK_FALSE(best.fidelity.has_value());

    Json short_one = sample_manifest();  // what has a default may be absent, what is unknown is ignored outside config
    for (const int index : {7, 6, 5, 4}) drop(member(short_one, {"config"}), static_cast<std::size_t>(index));
    put(short_one, "later", Json{nullptr});
    put(member(short_one, {"graphs", "decoder"}), "later", Json{true});
    const Config defaults = parse_manifest(sealed(short_one), "m").config;
    CHECK(defaults.max_duration_s == 30);
    CHECK(defaults.diffusion.num_train_steps == 1000);
    CHECK(defaults.defaults.guidance_rescale == 0.75);
}

TEST_CASE("folders that are no bundle (valgrind)") {
    TemporaryFolder folder;
    const std::string name = path_text(folder.path()), fix = "make one with ezaudio-export";
    const std::string none = path_text(folder / "none");
    CHECK(refusal(folder / "none") == "no bundle at '" + none + "': there is no such folder; " + fix);
    CHECK(refusal(folder.path()) == "'" + name + "' is no bundle: it has no manifest.json; " + fix);
    const std::string path = path_text(folder / "manifest.json");
    write_file(folder / "manifest.json", std::string(max_manifest_bytes + 1, ' '));
    CHECK(refusal(folder.path()) == "'" + path + "' is larger than 4,194,304 bytes: it is no manifest of a bundle");
    for (const char* other : {"null", "[]", "{}", R"({"format": "other"})", R"({"format": ["ezaudio-bundle"]})"}) {
        write_file(folder / "manifest.json", other);
        CHECK(refusal(folder.path()) == "'" + path + "' is no manifest of an EzAudio bundle: " + fix);
    }
}

TEST_CASE("files that are missing or changed") {
    TemporaryFolder folder;
    write_sample_files(folder.path());
    write_file(folder / "manifest.json", sealed(sample_manifest()));
    const std::string fix = "copy or export the bundle again";
    for (const std::string name : {"decoder.onnx", "spiece.model", "vae.weights"}) {
        const std::string path = path_text(folder / name), whole = "bytes of " + name;
        std::filesystem::remove(folder / name);
        CHECK(refusal(folder.path()) == "the bundle lacks '" + path + "': " + fix);
        std::filesystem::create_directory(folder / name);
        CHECK(refusal(folder.path(), false) == "the bundle lacks '" + path + "': " + fix);
        std::filesystem::remove(folder / name);
        write_file(folder / name, whole.substr(1));
        const std::string sizes = std::to_string(whole.size() - 1) + " bytes, the manifest says ";
        CHECK(refusal(folder.path()) == "'" + path + "' has " + sizes + std::to_string(whole.size()) + ": " + fix);
        write_file(folder / name, "B" + whole.substr(1));
        const std::string changed = "'" + path + "' has changed since the bundle was made (its sha256 differs): " + fix;
        CHECK(refusal(folder.path()) == changed);
        if (name == "spiece.model") {
            CHECK(refusal(folder.path(), false) == changed);
        } else {
            CHECK_NOTHROW(read(folder.path(), false));
        }
        write_file(folder / name, whole);
    }
    struct Stop {};
    CHECK_THROWS_AS(read_manifest(folder.path(), true, [](std::uint64_t, std::uint64_t) { throw Stop(); }), Stop);
}

TEST_CASE("a manifest of another format or with other content (valgrind)") {
    const auto message = [](const std::string& text) {
        return message_of<BundleError>([&] { parse_manifest(text, "m"); });
    };
    const std::string upgrade = ", this version reads 2: upgrade ezaudio, or export the bundle again";
    for (const auto& [version, what] : std::vector<std::pair<std::string, std::string>>{
             {"3", "newer format 3"}, {"10", "newer format 10"}, {"1", "unknown format 1"},
             {"123456789012345678901234567890", "newer format 123456789012345678901234567890"},
             {"0", "unknown format 0"}, {"-1", "unknown format -1"}, {"\"2\"", "unknown format '2'"},
             {"2.0", "unknown format 2.0"}, {"true", "unknown format True"}, {"null", "unknown format None"}}) {
        Json manifest = sample_manifest();
        member(manifest, {"format_version"}) = parse_json(version, 100);
        CHECK(message(sealed(manifest)) == "'m' has the " + what + upgrade);
    }
    const std::string changed = "'m' has changed since the bundle was made (its sha256 differs): "
                                "copy or export the bundle again";
    Json manifest = sample_manifest();
    put(manifest, "sha256", Json{std::string()});
    CHECK(message(canonical(manifest)) == changed);
    member(manifest, {"sha256"}) = Json{nullptr};
    CHECK(message(canonical(manifest)) == changed);
    std::string text = sealed(sample_manifest());
    text.replace(text.find("\"MIT\""), 5, "\"Any\"");
    CHECK(message(text) == changed);
    const std::string fix = "): copy or export the bundle again";
    CHECK(message(canonical(sample_manifest())) == "'m' is damaged (it lacks 'sha256'" + fix);
    CHECK(message(R"({"format": "ezaudio-bundle"})") == "'m' is damaged (it lacks 'format_version'" + fix);
    CHECK(message("{") == "'m' is damaged (not JSON: expected a key in quotes at byte 1, where the text ends" + fix);
    CHECK(message(std::string(100'000, '[')) == "'m' is damaged (JSON nested deeper than 100 levels" + fix);
}

TEST_CASE("damage in a manifest is named") {
    const std::string misfit = "model settings do not fit this version: ";
    CHECK(damage({"files"}, "[]") == "expected an object, got []");
    CHECK(damage({"files", "vae.weights"}, "null") == "expected an object, got None");
    CHECK(damage({"files", "vae.weights", "size"}, "\"big\"") == "expected a whole number, got 'big'");
    CHECK(damage({"files", "vae.weights", "size"}, "-1") ==
          "expected a whole number from 0 to 9007199254740992, got -1");
    CHECK(damage({"files", "vae.weights", "sha256"}, "1") == "expected a string, got 1");
    CHECK(damage({"graphs", "decoder", "file"}, "\"../vae.weights\"") == "graph file '../vae.weights' is not listed");
    CHECK(damage({"graphs", "decoder", "inputs"}, "5") == "expected an array, got 5");
    CHECK(damage({"graphs", "decoder", "inputs"}, R"([{"name": "x"}])") ==
          "not the description of a tensor: {'name': 'x'} (it lacks 'dtype')");
    const auto tensor = [](const std::string& shape, const std::string& dtype) {
        return damage({"graphs", "decoder", "inputs"},
                      R"([{"name": "x", "dtype": ")" + dtype + R"(", "shape": )" + shape + "}]");
    };
    check_contains(tensor("[]", "float64"),
                   "(dtype of 'x' must be one of float32, float16, bfloat16, int64, int8, bool, got 'float64')");
    check_contains(tensor("5", "bool"), "(expected an array, got 5)");
    check_contains(tensor("[-1]", "bool"), "(expected a whole number from 0 to 1000000000, got -1)");
    check_contains(tensor(R"([{"axis": "a", "min": 2, "opt": 1, "max": 3, "times": 1}])", "bool"),
                   "(expected a whole number from 2 to 1000000000, got 1)");
    check_contains(tensor(R"([{"axis": "a", "min": 1, "opt": 1, "max": 3, "times": 0}])", "bool"),
                   "(expected a whole number from 1 to 1000000000, got 0)");
    check_contains(tensor(R"([{"axis": "a", "min": 0, "opt": 0, "max": 3, "times": 1}])", "bool"),
                   "(expected a whole number from 1 to 1000000000, got 0)");
    check_contains(tensor(R"([{"axis": "a", "min": -1, "opt": 1, "max": 3, "times": 1}])", "bool"),
                   "(expected a whole number from 0 to 1000000000, got -1)");
    const auto preset = [](const std::string& name, const std::string& value) {
        return damage({"presets", "fast", name}, value);
    };
    CHECK(damage({"presets"}, "[]") == "expected an object, got []");
    CHECK(damage({"presets", "fast"}, "5") == "expected an object, got 5");
    CHECK(damage({"presets", "fast"}, "{}") == "it lacks 'solver'");
    CHECK(preset("solver", "5") == "expected a string, got 5");
    CHECK(preset("num_steps", "10.5") == "expected a whole number, got 10.5");
    CHECK(preset("num_steps", "-1") == "expected a whole number from 0 to 1000000000, got -1");
    CHECK(preset("eta", "null") == "expected a number, got None");
    CHECK(preset("guidance_interval", "[0.5]") == "expected two noise levels, got [0.5]");
    CHECK(preset("guidance_interval", "[0.5, null]") == "expected a number, got None");
    CHECK(preset("reuse", "5") == "expected an array, got 5");
    CHECK(preset("reuse", "[true]") == "expected a whole number, got True");
    CHECK(preset("fidelity", "{}") == "a fidelity has unknown fields: {}");
    CHECK(damage({"presets", "fast", "fidelity", "num_clips"}, "1.5") == "expected a whole number, got 1.5");
    CHECK(damage([](Json& manifest) { put(member(manifest, {"presets", "fast", "fidelity"}), "more", Json{nullptr}); })
              .substr(0, 30) == "a fidelity has unknown fields:");
    CHECK(damage({"licence"}, "5") == "expected a string, got 5");
    CHECK(damage({"packages", "numpy"}, "5") == "expected a string, got 5");
    CHECK(damage({"checks"}, "[1]") == "expected an object, got 1");
    CHECK(damage([](Json& manifest) {
        put(std::get<Json::Array>(member(manifest, {"checks"}).data)[0], "more", Json{nullptr});
    }).substr(0, 27) == "a check has unknown fields:");

    CHECK(damage({"config"}, "null") == misfit + "config is None, expected an object");
    CHECK(damage({"config", "dit"}, "{}") == misfit + "dit lacks 'latent_channels'");
    CHECK(damage([](Json& manifest) { put(member(manifest, {"config", "dit"}), "colour", Json{nullptr}); }) ==
          misfit + "dit has the unknown field 'colour'");
    CHECK(damage([](Json& manifest) { put(member(manifest, {"config"}), "colour", Json{nullptr}); }) ==
          misfit + "config has the unknown field 'colour'");
    CHECK(damage({"config", "max_duration_s"}, "\"long\"") == "max_duration_s must be float within reason, got 'long'");
    CHECK(damage({"config", "max_duration_s"}, "1e17") == "max_duration_s must be float within reason, got 1e+17");
    CHECK(damage({"config", "max_duration_s"}, "0") == "max_duration_s must be more than 0, got 0");
    CHECK(damage({"config", "max_duration_s"}, "1e9") == "max_duration_s 1e+09 makes more than 1e12 values a clip");
    CHECK(damage({"config", "vae", "companding"}, "2") == "companding must be more than 0 and at most 1, got 2");
    CHECK(damage({"config", "vae", "companding"}, "0") == "companding must be more than 0 and at most 1, got 0");
    CHECK(damage({"config", "vae", "sample_rate"}, "null") == "sample_rate must be int within reason, got None");
    CHECK(damage({"config", "vae", "sample_rate"}, "24000.0") == "sample_rate must be int within reason, got 24000.0");
    CHECK(damage({"config", "vae", "sample_rate"}, "true") == "sample_rate must be int within reason, got True");
    CHECK(damage({"config", "vae", "strides"}, "[]") == "strides must be tuple[int, ...] within reason, got []");
    CHECK(damage({"config", "vae", "strides"}, "[0, 2, 2, 2]") ==
          "strides must be tuple[int, ...] within reason, got [0, 2, 2, 2]");
    CHECK(damage({"config", "vae", "strides"}, "[3, 2, 2, 2]") ==
          "strides must be even for exact lengths, got [3, 2, 2, 2]");
    CHECK(damage({"config", "vae", "strides"}, "[2, 2]") ==
          "one channel multiple a stride, got [1, 2, 2, 4] and [2, 2]");
    CHECK(damage({"config", "vae", "strides"}, "[1000, 1000, 1000, 2]") ==
          "strides must multiply to at most 1,000,000,000, got [1000, 1000, 1000, 2]");
    CHECK(damage({"config", "vae", "latent_channels"}, "7") == "DiT expects 8 latent channels, the VAE makes 7");
    CHECK(damage({"config", "text", "width"}, "7") == "DiT expects text states 16 wide, the encoder makes 7");
    CHECK(damage({"config", "text", "max_tokens"}, "0") == "max_tokens must be more than 0, got 0");
    CHECK(damage({"config", "text", "hub_name"}, "0") == "hub_name must be str | None within reason, got 0");
    CHECK(damage({"config", "dit", "num_heads"}, "7") ==
          "width 32 must be a multiple of num_heads 7 with an even head width (RoPE)");
    CHECK(damage({"config", "dit", "depth"}, "3") == "depth must be even and at least 2, got 3");
    CHECK(damage({"config", "dit", "width"}, "-32") == "width must be int within reason, got -32");
    CHECK(damage({"config", "dit", "num_heads"}, "0") == "num_heads must be more than 0, got 0");
    CHECK(damage({"config", "controlnet", "hidden_channels"}, "[0]") ==
          "hidden_channels must be tuple[int, int] within reason, got [0]");
    CHECK(damage({"config", "defaults", "solver"}, "1") == "solver must be str within reason, got 1");
    const std::string need = "need 2 to 100,000 training steps and 0 < beta_start < beta_end < 1, got DiffusionConfig(";
    CHECK(damage({"config", "diffusion", "num_train_steps"}, "1") ==
          need + "num_train_steps=1, beta_start=0.00085, beta_end=0.012)");
    CHECK(damage({"config", "diffusion", "beta_end"}, "1") ==
          need + "num_train_steps=1000, beta_start=0.00085, beta_end=1.0)");
}

TEST_CASE("names that are not plain are refused") {
    for (const char* name : {"..", "../x", "/etc/passwd", ".", "", "a/b", "a\\b", "c:x", "a\nb"}) {
        Json manifest = sample_manifest();
        std::get<Json::Object>(member(manifest, {"files"}).data).keys[2] = name;
        const std::string message = message_of<BundleError>([&] { parse_manifest(sealed(manifest), "m"); });
        check_contains(message, "(" + python_repr(name) + " is no plain file name)");
    }
}
