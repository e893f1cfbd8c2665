// The built-in tokenizer: ids of the packaged model, damage, and any bytes. test_number_parity.py compares it with Python.
#include "helpers.hpp"

#include <cstdint>
#include <string>
#include <vector>

#include <ezaudio/detail/sentence_pieces.hpp>

using ezaudio::BundleError;
using ezaudio::detail::SentencePieces;
using namespace ezaudio_tests;

namespace {

using Ids = std::vector<std::int64_t>;

std::string bundled_model() { return read_bytes(test_bundle() / "spiece.model"); }

std::string refusal(const std::string& model) {
    return message_of<BundleError>([&] { SentencePieces(model, "spiece.model"); });
}

}  // namespace

TEST_CASE("ids of the packaged model (valgrind)") {
    const SentencePieces pieces(bundled_model(), "spiece.model");
    CHECK(pieces.encode("a dog barks") == Ids{260, 607, 819, 1017, 265});
    CHECK(pieces.encode("  a \t dog\n barks  ") == Ids{260, 607, 819, 1017, 265});
    CHECK(pieces.encode("").empty());
    CHECK(pieces.encode(" \xE3\x80\x80 ").empty());
    CHECK(pieces.encode("\xEF\xAC\x81 e\xCC\x81") == pieces.encode("fi \xC3\xA9"));
    CHECK(pieces.decode({260, 607, 819, 1017, 265}) == "a dog barks");
    CHECK(pieces.decode(pieces.encode("x\xF0\x9F\x90\xB6y")) == "x\xF0\x9F\x90\xB6y");
    CHECK(pieces.decode({-1, 1'000'000}).empty());
}

TEST_CASE("what is no tokenizer is said in one line") {
    const std::string model = bundled_model();
    CHECK(refusal("") == "'spiece.model' is no tokenizer (it has no unknown piece): copy or export the bundle again");
    check_contains(refusal(model.substr(0, model.size() / 2)), "it is cut short");
    check_contains(refusal(model + model), "it has two unknown pieces");
    check_contains(refusal("\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"), "a number that does not end");
    check_contains(refusal("<html>"), "spiece.model");
    check_contains(message_of<BundleError>([] { ezaudio::detail::read_tokenizer_file("no/spiece.model"); }),
                   "'no/spiece.model' cannot be read");
}

TEST_CASE("any bytes are a tokenizer or refused") {
    const std::string model = bundled_model();
    const std::vector<std::string> tokens{"\xff\xff\xff\x7f", std::string(4, '\0'), "\x0a", "\x12\x04"};
    const std::vector<std::string> prompts{"a dog barks", "\xEF\xAC\x81 \xC2\xBD \xE6\x97\xA5\xE6\x9C\xAC \xF0\x9F\x98\x80",
                                           " ", "\xCC\x80\xE0\xA5\x98x"};
    Random random(5);
    std::size_t read = 0, refused = 0;
    for (int round = 0; round < 600; ++round) {
        std::string damaged = model;
        if (round % 3 == 0) {
            damaged = mutated(damaged, random, tokens);
        } else {  // most bytes are the table of replacements at the end, the pieces at the start
            for (std::size_t left = 1 + random.below(40); left > 0; --left) {
                const std::size_t at = random.below(round % 3 == 1 ? damaged.size() : 12'000);
                damaged[at] = static_cast<char>(random.bits());
            }
        }
        try {
            const SentencePieces pieces(damaged, "spiece.model");
            for (const std::string& prompt : prompts) pieces.decode(pieces.encode(prompt));
            ++read;
        } catch (const BundleError&) {
            ++refused;
        }
    }
    CHECK(read > 50);
    CHECK(refused > 50);
}
