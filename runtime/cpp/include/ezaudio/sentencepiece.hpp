// The sentencepiece library as a Tokenizer, for programs that link it anyway (CMake: EZAUDIO_SENTENCEPIECE).
//
//     ezaudio::PipelineOptions options;
//     options.tokenizer = std::make_shared<ezaudio::SentencePieceTokenizer>(folder / "spiece.model");
//
// The built-in tokenizer needs no library and gives the ids of sentencepiece 0.2.3, which Python uses. Versions of the
// library before 0.2.2 compare sums of scores in another precision: in long unusual prompts they may split ties otherwise.
#pragma once

#include <sentencepiece_processor.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include <ezaudio/detail/errors.hpp>
#include <ezaudio/detail/files.hpp>
#include <ezaudio/detail/sentence_pieces.hpp>
#include <ezaudio/detail/tokenizer.hpp>

namespace ezaudio {

class SentencePieceTokenizer final : public Tokenizer {
public:
    /// path: of a spiece.model. Raises BundleError.
    explicit SentencePieceTokenizer(const std::filesystem::path& path) {
        const auto status = pieces_.LoadFromSerializedProto(detail::read_tokenizer_file(path));
        if (!status.ok()) {
            throw BundleError("'" + detail::path_text(path) + "' is no tokenizer (" + status.ToString() +
                              "): copy or export the bundle again");
        }
    }

    std::vector<std::int64_t> encode(const std::string& text) const override {
        std::vector<int> ids;
        pieces_.Encode(text, &ids).IgnoreError();
        return {ids.begin(), ids.end()};
    }

    std::string decode(const std::vector<std::int64_t>& ids) const override {
        std::string text;
        pieces_.Decode(std::vector<int>(ids.begin(), ids.end()), &text).IgnoreError();
        return text;
    }

private:
    sentencepiece::SentencePieceProcessor pieces_;
};

}  // namespace ezaudio
