#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace ezaudio {

/// Text → token ids. The bundle's own is built in; any other can take its place.
class Tokenizer {
public:
    Tokenizer() = default;
    Tokenizer(const Tokenizer&) = delete;
    Tokenizer& operator=(const Tokenizer&) = delete;
    virtual ~Tokenizer() = default;

    /// Ids of valid UTF-8 text, without an end token; those of sentencepiece with the bundle's spiece.model.
    virtual std::vector<std::int64_t> encode(const std::string& text) const = 0;

    /// The text of ids, for the warning that a prompt's end was dropped.
    virtual std::string decode(const std::vector<std::int64_t>& ids) const = 0;
};

}  // namespace ezaudio
