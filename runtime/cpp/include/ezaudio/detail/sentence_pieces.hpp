#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include <ezaudio/detail/errors.hpp>
#include <ezaudio/detail/files.hpp>
#include <ezaudio/detail/protobuf.hpp>
#include <ezaudio/detail/text_format.hpp>
#include <ezaudio/detail/text_normalizer.hpp>
#include <ezaudio/detail/tokenizer.hpp>

namespace ezaudio::detail {

inline std::string read_tokenizer_file(const std::filesystem::path& path) {
    constexpr std::size_t most = std::size_t{64} << 20;
    std::string model;
    if (!read_file(path, most + 1, model) || model.size() > most) {
        throw BundleError("'" + path_text(path) + "' cannot be read: copy or export the bundle again");
    }
    return model;
}

/// A unigram model of sentencepiece (Kudo 2018): the cut into pieces whose scores add up to the most.
///
/// Ids are those of sentencepiece 0.2.3, ties included: sums are float and a later path wins only when it is better.
class SentencePieces final : public Tokenizer {
public:
    /// model: the bytes of a spiece.model; path: for messages. Raises BundleError.
    SentencePieces(std::string_view model, const std::string& path) {
        try {
            read(model);
        } catch (const ProtobufError& error) {
            throw BundleError("'" + path + "' is no tokenizer (" + error.what() + "): copy or export the bundle again");
        }
    }

    std::vector<std::int64_t> encode(const std::string& text) const override {
        const std::string normalized = normalizer_.normalize(text);
        std::vector<std::int64_t> ids;
        bool after_unknown = false;
        for (const Piece& piece : best_cut(normalized)) {
            const bool is_unknown = piece.id == unknown_;
            if (is_unknown && falls_back_to_bytes_) {
                for (const char byte : std::string_view(normalized).substr(piece.begin, piece.length)) {
                    ids.push_back(byte_ids_[static_cast<unsigned char>(byte)]);
                }
            } else if (!is_unknown || !after_unknown) {
                ids.push_back(piece.id);
            }
            after_unknown = is_unknown;
        }
        return ids;
    }

    std::string decode(const std::vector<std::int64_t>& ids) const override {
        std::string text;
        for (const std::int64_t id : ids) {
            if (id < 0 || id >= static_cast<std::int64_t>(pieces_.size())) continue;
            const auto byte = std::find(byte_ids_.begin(), byte_ids_.end(), id);
            if (id == unknown_) text += " \xE2\x81\x87 ";
            else if (byte != byte_ids_.end()) text += static_cast<char>(byte - byte_ids_.begin());
            else text += with_spaces(pieces_[static_cast<std::size_t>(id)]);
        }
        if (!text.empty() && text.front() == ' ') text.erase(0, 1);
        std::string valid;  // a piece of bytes may begin or end inside of a character
        for (const char32_t c : decode_utf8(text)) append_utf8(valid, c);
        return valid;
    }

private:
    enum Type : std::uint64_t { normal_piece = 1, unknown_piece = 2, control_piece = 3, unused_piece = 5, byte_piece = 6 };

    struct Piece {
        std::size_t begin, length;
        std::int64_t id;
    };

    void read(std::string_view model) {
        ProtobufReader fields(model);
        byte_ids_.fill(-1);
        while (fields.next()) {
            if (fields.field() == 1) read_piece(fields.bytes());
            if (fields.field() == 2) read_trainer(fields.bytes());
            if (fields.field() == 3) normalizer_ = TextNormalizer(fields.bytes());
        }
        if (unknown_ < 0) throw ProtobufError("it has no unknown piece");
        if (by_text_.empty()) throw ProtobufError("it has no pieces");
        const bool lacks_bytes = std::find(byte_ids_.begin(), byte_ids_.end(), -1) != byte_ids_.end();
        if (falls_back_to_bytes_ && lacks_bytes) throw ProtobufError("it lacks pieces for bytes");
    }

    void read_piece(std::string_view message) {
        std::string text;
        float score = 0;
        std::uint64_t type = normal_piece;
        ProtobufReader fields(message);
        while (fields.next()) {
            if (fields.field() == 1) text = std::string(fields.bytes());
            if (fields.field() == 2) score = fields.number32();
            if (fields.field() == 3) type = fields.number();
        }
        const auto id = static_cast<std::int64_t>(pieces_.size());
        if (text.empty() || text.size() > most_bytes || !is_valid_utf8(text)) throw ProtobufError("a piece is no text");
        if (!is_finite(score)) throw ProtobufError("a score is not finite");
        if (type == unknown_piece) {
            if (unknown_ >= 0) throw ProtobufError("it has two unknown pieces");
            unknown_ = id;
        } else if (type == byte_piece) {
            byte_ids_[byte_of(text)] = id;
        } else if (type == normal_piece) {
            if (!by_text_.emplace(text, Scored{id, score}).second) throw ProtobufError("a piece is there twice");
            longest_ = std::max(longest_, text.size());
            least_score_ = std::min(least_score_, score);
        } else if (type != control_piece && type != unused_piece) {
            throw ProtobufError("it has pieces of type " + std::to_string(type));
        }
        pieces_.push_back(std::move(text));
    }

    void read_trainer(std::string_view message) {
        constexpr std::uint64_t unigram = 1;
        ProtobufReader fields(message);
        while (fields.next()) {
            if (fields.field() == 3 && fields.number() != unigram) throw ProtobufError("it is no unigram model");
            if (fields.field() == 24 && fields.number() != 0) throw ProtobufError("its spaces come last");
            if (fields.field() == 35) falls_back_to_bytes_ = fields.number() != 0;
        }
    }

    /// "<0x41>" → 0x41.
    static std::size_t byte_of(const std::string& text) {
        constexpr std::string_view digits = "0123456789ABCDEF";
        const std::size_t high = text.size() == 6 ? digits.find(text[3]) : digits.npos;
        const std::size_t low = text.size() == 6 ? digits.find(text[4]) : digits.npos;
        if (high == digits.npos || low == digits.npos || text.compare(0, 3, "<0x") != 0 || text[5] != '>') {
            throw ProtobufError("a piece stands for no byte");
        }
        return high * 16 + low;
    }

    static std::string with_spaces(std::string text) {
        for (std::size_t at = 0; (at = text.find(space_symbol, at)) != text.npos; ++at) {
            text.replace(at, space_symbol.size(), " ");
        }
        return text;
    }

    /// Viterbi over the ends of characters.
    std::vector<Piece> best_cut(std::string_view text) const {
        struct Best {
            float score = 0;
            std::int64_t id = -1;
            std::size_t begin = none;
        };
        std::vector<Best> best(text.size() + 1);
        const float unknown_score = least_score_ - unknown_penalty;
        std::size_t reached = 0;
        for (std::size_t begin = 0; begin < text.size();) {
            if (std::fabs(best[begin].score) > most_score) {  // float would lose the differences in long texts
                const float offset = best[begin].score;
                for (std::size_t end = begin; end <= reached; ++end) {
                    if (end == begin || best[end].begin != none) best[end].score -= offset;
                }
            }
            const float here = best[begin].score;
            const auto offer = [&](std::size_t end, std::int64_t id, float score) {
                const float sum = score + here;
                reached = std::max(reached, end);
                if (best[end].begin == none || sum > best[end].score) best[end] = {sum, id, begin};
            };
            const std::size_t character = code_point_at(text, begin).bytes;
            bool has_single = false;
            const std::size_t most = std::min(longest_, text.size() - begin);
            for (std::size_t length = character; length <= most;) {
                const auto found = by_text_.find(std::string(text.substr(begin, length)));
                if (found != by_text_.end()) {
                    offer(begin + length, found->second.id, found->second.score);
                    has_single = has_single || length == character;
                }
                if (begin + length == text.size()) break;
                length += code_point_at(text, begin + length).bytes;
            }
            if (!has_single) offer(begin + character, unknown_, unknown_score);
            begin += character;
        }
        std::vector<Piece> pieces;
        for (std::size_t end = text.size(); end > 0; end = best[end].begin) {
            pieces.push_back({best[end].begin, end - best[end].begin, best[end].id});
        }
        std::reverse(pieces.begin(), pieces.end());
        return pieces;
    }

    struct Scored {
        std::int64_t id;
        float score;
    };

    static constexpr std::size_t none = std::numeric_limits<std::size_t>::max(), most_bytes = 1000;
    static constexpr float unknown_penalty = 10.0F, most_score = 100000.0F;

    TextNormalizer normalizer_;
    std::vector<std::string> pieces_;
    std::unordered_map<std::string, Scored> by_text_;
    std::array<std::int64_t, 256> byte_ids_{};
    std::size_t longest_ = 0;
    float least_score_ = std::numeric_limits<float>::max();
    std::int64_t unknown_ = -1;
    bool falls_back_to_bytes_ = false;
};

}  // namespace ezaudio::detail
