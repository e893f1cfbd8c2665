#pragma once

#include <charconv>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>

#include <ezaudio/detail/json_value.hpp>
#include <ezaudio/detail/text_format.hpp>

namespace ezaudio::detail {

/// Strict JSON (RFC 8259) in UTF-8: no NaN, no lone surrogates. Of equal keys the last one counts, as in Python.
class JsonParser {
public:
    explicit JsonParser(std::string_view text) : text_(text) {}

    Json parse() {
        if (text_.substr(0, 3) == "\xEF\xBB\xBF") position_ = 3;  // the byte order mark that some editors add
        Json value = parse_value(0);
        skip_blanks();
        if (position_ < text_.size()) fail("the end");
        return value;
    }

private:
    static constexpr int deepest = 100;

    [[noreturn]] void fail(const std::string& expected) const {
        const std::string got = position_ < text_.size() ? "" : ", where the text ends";
        throw JsonError("not JSON: expected " + expected + " at byte " + std::to_string(position_) + got);
    }

    char peek() const { return position_ < text_.size() ? text_[position_] : '\0'; }

    bool take(char expected) {
        if (peek() != expected) return false;
        ++position_;
        return true;
    }

    void skip_blanks() {
        const auto is_blank = [](char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; };
        while (is_blank(peek())) ++position_;
    }

    Json parse_value(int depth) {
        skip_blanks();
        if (depth == deepest && (peek() == '{' || peek() == '[')) {
            throw JsonError("JSON nested deeper than " + std::to_string(deepest) + " levels");
        }
        switch (peek()) {
            case '{': return Json{parse_object(depth)};
            case '[': return Json{parse_array(depth)};
            case '"': return Json{parse_string()};
            case 't': return parse_word("true", Json{true});
            case 'f': return parse_word("false", Json{false});
            case 'n': return parse_word("null", Json{nullptr});
            default: return Json{parse_number()};
        }
    }

    Json parse_word(std::string_view word, Json value) {
        if (text_.substr(position_, word.size()) != word) fail("a value");
        position_ += word.size();
        return value;
    }

    Json::Object parse_object(int depth) {
        Json::Object object;
        std::map<std::string, std::size_t> index_of;  // a search of `keys` would take hours on a hostile file
        ++position_;
        skip_blanks();
        if (take('}')) return object;
        do {
            skip_blanks();
            if (peek() != '"') fail("a key in quotes");
            std::string key = parse_string();
            skip_blanks();
            if (!take(':')) fail("':'");
            Json value = parse_value(depth + 1);
            const auto [entry, is_new] = index_of.emplace(key, object.keys.size());
            if (is_new) {
                object.keys.push_back(std::move(key));
                object.values.push_back(std::move(value));
            } else {
                object.values[entry->second] = std::move(value);
            }
            skip_blanks();
        } while (take(','));
        if (!take('}')) fail("',' or '}'");
        return object;
    }

    Json::Array parse_array(int depth) {
        Json::Array array;
        ++position_;
        skip_blanks();
        if (take(']')) return array;
        do {
            array.push_back(parse_value(depth + 1));
            skip_blanks();
        } while (take(','));
        if (!take(']')) fail("',' or ']'");
        return array;
    }

    std::string parse_string() {
        std::string string;
        ++position_;
        while (!take('"')) {
            if (position_ == text_.size()) fail("'\"'");
            if (take('\\')) {
                append_escaped(string);
                continue;
            }
            const CodePoint next = code_point_at(text_, position_);
            if (!next.is_valid) fail("UTF-8");
            if (next.value < 0x20) fail("an escaped control character");
            string += text_.substr(position_, next.bytes);
            position_ += next.bytes;
        }
        return string;
    }

    void append_escaped(std::string& string) {
        const std::string_view letters = "\"\\/bfnrt", meanings = "\"\\/\b\f\n\r\t";
        const std::size_t which = position_ < text_.size() ? letters.find(text_[position_]) : letters.npos;
        if (which != letters.npos) {
            ++position_;
            string += meanings[which];
            return;
        }
        if (!take('u')) fail("an escape sequence");
        char32_t code_point = parse_hex();
        if (code_point >= 0xD800 && code_point <= 0xDBFF) {
            if (!take('\\') || !take('u')) fail("the second half of a surrogate pair");
            const char32_t low = parse_hex();
            if (low < 0xDC00 || low > 0xDFFF) fail("the second half of a surrogate pair");
            code_point = 0x10000 + ((code_point - 0xD800) << 10) + (low - 0xDC00);
        } else if (code_point >= 0xDC00 && code_point <= 0xDFFF) {
            fail("the first half of a surrogate pair");
        }
        append_utf8(string, code_point);
    }

    char32_t parse_hex() {
        std::uint32_t value = 0;
        const std::string_view digits = text_.substr(position_, 4);
        const auto result = std::from_chars(digits.data(), digits.data() + digits.size(), value, 16);
        if (digits.size() < 4 || result.ptr != digits.data() + 4) fail("4 hexadecimal digits");
        position_ += 4;
        return value;
    }

    Json::Number parse_number() {
        const std::size_t start = position_;
        take('-');
        if (!take('0')) skip_digits(start == position_ ? "a value" : "a digit");
        if (take('.')) skip_digits("a digit");
        if (take('e') || take('E')) {
            if (!take('+')) take('-');
            skip_digits("a digit");
        }
        return {std::string(text_.substr(start, position_ - start))};
    }

    void skip_digits(const std::string& expected) {
        const auto is_digit = [&] { return peek() >= '0' && peek() <= '9'; };
        if (!is_digit()) fail(expected);
        while (is_digit()) ++position_;
    }

    std::string_view text_;
    std::size_t position_ = 0;
};

/// The value of a JSON text of at most `max_bytes`. Raises JsonError.
inline Json parse_json(std::string_view text, std::size_t max_bytes) {
    if (text.size() > max_bytes) throw JsonError("JSON of more than " + with_commas(max_bytes) + " bytes");
    return JsonParser(text).parse();
}

}  // namespace ezaudio::detail
