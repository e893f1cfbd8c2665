#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <ezaudio/detail/protobuf.hpp>
#include <ezaudio/detail/text_format.hpp>

namespace ezaudio::detail {

inline constexpr std::string_view space_symbol = "\xE2\x96\x81";  // U+2581, what a space is inside a piece

/// The text normalisation of a sentencepiece model: its table of replacements, then one space for many.
///
/// The table is a double-array trie from source text to a place among zero-terminated replacements. A unit of the trie
/// has its label in the low 8 bits, "a value is here" in bit 8 and the offset to its children above; a value has bit 31.
class TextNormalizer {
public:
    TextNormalizer() = default;

    /// spec: the NormalizerSpec message. Raises ProtobufError.
    explicit TextNormalizer(std::string_view spec) {
        ProtobufReader fields(spec);
        while (fields.next()) {
            if (fields.field() == 2) read_table(fields.bytes());
            if (fields.field() == 3) adds_prefix_ = fields.number() != 0;
            if (fields.field() == 4) joins_spaces_ = fields.number() != 0;
            if (fields.field() == 5 && fields.number() == 0) throw ProtobufError("it keeps spaces as they are");
        }
    }

    std::string normalize(std::string_view text) const {
        while (joins_spaces_ && !text.empty()) {
            const auto [replacement, length] = replace_prefix(text);
            if (replacement != " ") break;
            text.remove_prefix(length);
        }
        std::string normalized;
        if (text.empty()) return normalized;
        if (adds_prefix_) normalized += space_symbol;
        bool after_space = joins_spaces_;
        while (!text.empty()) {
            auto [replacement, length] = replace_prefix(text);
            text.remove_prefix(length);
            while (after_space && !replacement.empty() && replacement.front() == ' ') replacement.remove_prefix(1);
            if (replacement.empty()) continue;
            for (const char c : replacement) {
                if (c == ' ') normalized += space_symbol;
                else normalized += c;
            }
            after_space = joins_spaces_ && replacement.back() == ' ';
        }
        while (joins_spaces_ && ends_with_space(normalized)) normalized.resize(normalized.size() - space_symbol.size());
        return normalized;
    }

private:
    static constexpr std::size_t most_matches = 32;  // sentencepiece looks at no more

    static bool ends_with_space(std::string_view text) {
        return text.size() >= space_symbol.size() && text.substr(text.size() - space_symbol.size()) == space_symbol;
    }

    void read_table(std::string_view table) {
        if (table.size() <= 4) throw ProtobufError("its table of replacements is cut short");
        const std::uint32_t size = ProtobufReader::word_of(table);
        if (size >= table.size() - 4 || size % 4 != 0) throw ProtobufError("its table of replacements is cut short");
        units_.clear();
        for (std::size_t at = 4; at < 4 + std::size_t{size}; at += 4) {
            units_.push_back(ProtobufReader::word_of(table.substr(at)));
        }
        replacements_ = std::string(table.substr(4 + std::size_t{size}));
    }

    static std::size_t offset(std::uint32_t unit) { return std::size_t{unit >> 10} << ((unit & (1U << 9)) >> 6); }

    /// The longest entry that `text` begins with: its replacement's place and its length; length 0 for none.
    std::pair<std::size_t, std::size_t> find_longest(std::string_view text) const {
        std::pair<std::size_t, std::size_t> longest{0, 0};
        if (units_.empty()) return longest;
        std::size_t node = offset(units_[0]), matches = 0;
        for (std::size_t i = 0; i < text.size() && matches < most_matches; ++i) {
            const auto byte = static_cast<unsigned char>(text[i]);
            node ^= byte;
            if (node >= units_.size() || (units_[node] & 0x800000FFU) != byte) break;
            const std::uint32_t unit = units_[node];
            node ^= offset(unit);
            if ((unit >> 8 & 1) == 0) continue;
            if (node >= units_.size()) break;
            longest = {units_[node] & 0x7FFFFFFFU, i + 1};
            ++matches;
        }
        return longest;
    }

    /// What the beginning of `text` becomes, and how much of `text` that is.
    std::pair<std::string_view, std::size_t> replace_prefix(std::string_view text) const {
        const auto [place, length] = find_longest(text);
        if (length > 0 && place < replacements_.size()) {
            const std::string_view rest = std::string_view(replacements_).substr(place);
            return {rest.substr(0, rest.find('\0')), length};
        }
        const CodePoint next = code_point_at(text, 0);
        if (next.is_valid) return {text.substr(0, next.bytes), next.bytes};
        return {"\xEF\xBF\xBD", 1};
    }

    std::vector<std::uint32_t> units_;
    std::string replacements_;
    bool adds_prefix_ = true, joins_spaces_ = true;
};

}  // namespace ezaudio::detail
