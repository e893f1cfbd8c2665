#include <doctest/doctest.h>

#include <cstddef>
#include <string>
#include <variant>
#include <vector>

#include <ezaudio/detail/manifest.hpp>
#include <ezaudio/detail/presets.hpp>

#include "helpers.hpp"
#include "sample_bundle.hpp"

using ezaudio::BundleError;
using namespace ezaudio::detail;
using namespace ezaudio_tests;

namespace {

void check_invariants(const Manifest& manifest) {
    const Config& config = manifest.config;
    CHECK(config.vae.hop() >= 2);
    CHECK(config.vae.hop() <= 1'000'000'000);
    CHECK(config.vae.sample_rate >= 1);
    CHECK(config.dit.latent_channels == config.vae.latent_channels);
    CHECK(config.dit.width % config.dit.num_heads == 0);
    CHECK(config.text.max_tokens >= 1);
    CHECK(config.diffusion.num_train_steps >= 2);
    CHECK(config.max_duration_s * config.vae.sample_rate <= 1e12);
    CHECK(manifest.bundle_id.size() == 16);
    for (const ezaudio::Preset& preset : manifest.presets) {
        CHECK(preset.num_steps >= 0);
        for (const int step : preset.reuse) CHECK(step >= 0);
    }
    for (const auto& [name, graph] : manifest.graphs) CHECK(manifest.files.count(graph.file) == 1);
}

void collect(Json& json, std::vector<Json*>& nodes) {
    nodes.push_back(&json);
    if (auto* array = std::get_if<Json::Array>(&json.data)) {
        for (Json& item : *array) collect(item, nodes);
    } else if (auto* object = std::get_if<Json::Object>(&json.data)) {
        for (Json& value : object->values) collect(value, nodes);
    }
}

/// Puts another value, or none, in the place of a random one.
void change(Json& manifest, Random& random) {
    static const std::vector<std::string> values{
        "null", "true", "-1", "0", "1", "2", "7", "1000000000", "1000000001", "9223372036854775807",
        "-99999999999999999999999", "0.5", "-0.0", "1e9", "1e-300", "1e308", "\"\"", "\"ddim\"", "\"spiece.model\"",
        "[]", "{}", "[2]", "[2, 2, 2, 1000000000]", "[[1]]", "{\"axis\": \"a\"}"};
    std::vector<Json*> nodes;
    collect(manifest, nodes);
    Json& node = *nodes[1 + random.below(nodes.size() - 1)];
    auto* object = std::get_if<Json::Object>(&node.data);
    auto* array = std::get_if<Json::Array>(&node.data);
    const std::size_t way = random.below(6);
    if (way == 0 && object != nullptr && !object->keys.empty()) {
        drop(node, random.below(object->keys.size()));
    } else if (way == 1 && object != nullptr && !object->keys.empty()) {
        object->keys[random.below(object->keys.size())] += "x";
    } else if (way == 2 && array != nullptr && !array->empty()) {
        array->push_back(Json((*array)[random.below(array->size())]));
    } else if (way == 3) {
        const Json copy = *nodes[1 + random.below(nodes.size() - 1)];
        node = copy;
    } else {
        node = parse_json(values[random.below(values.size())], 100);
    }
}

}  // namespace

TEST_CASE("any bytes are a manifest or refused") {
    const std::string text = sealed(sample_manifest());
    const std::vector<std::string> tokens{"{",  "}",    "[",  "]", ",",   ":",    "\"",
                                          "\\", "null", "-1", "0", "1e9", "\"\"", "9"};
    Random random(3);
    for (int count = 0; count < 4000; ++count) {
        const std::string bytes = mutated(text, random, tokens);
        try {
            check_invariants(parse_manifest(bytes, "m"));
        } catch (const BundleError&) {
        }
    }
}

TEST_CASE("any sealed manifest is read or refused") {
    TemporaryFolder folder;
    write_sample_files(folder.path());
    Random random(4);
    int accepted = 0, refused = 0;
    for (int count = 0; count < 4000; ++count) {
        Json manifest = sample_manifest();
        for (std::size_t left = 1 + random.below(2); left > 0; --left) change(manifest, random);
        try {
            write_file(folder / "manifest.json", sealed(manifest));
            check_invariants(read_manifest(folder.path(), count % 2 == 0, nullptr));
            ++accepted;
        } catch (const BundleError& error) {
            check_contains(error.what(), ": ");
            ++refused;
        } catch (const JsonError&) {  // it cannot be sealed: a number is out of the range of double
        }
    }
    CHECK(accepted > 200);
    CHECK(refused > 1000);
}
