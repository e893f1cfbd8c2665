#pragma once

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <ios>
#include <iterator>
#include <locale>
#include <sstream>
#include <string>
#include <string_view>

// Text as Python writes it, whatever the locale: settings stored in a file and error messages are the same in both.
namespace ezaudio::detail {

inline constexpr char32_t replacement_character = 0xFFFD;

struct CodePoint {
    char32_t value;
    std::size_t bytes;
    bool is_valid;
};

/// The code point at `start` (below text.size()); U+FFFD of one byte where the text is ill-formed (Unicode table 3-7).
inline CodePoint code_point_at(std::string_view text, std::size_t start) {
    const auto byte = [&](std::size_t index) { return static_cast<unsigned char>(text[start + index]); };
    const unsigned first = byte(0);
    if (first < 0x80) return {first, 1, true};
    const std::size_t bytes = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
    const CodePoint ill_formed{replacement_character, 1, false};
    if (first < 0xC2 || first > 0xF4 || text.size() - start < bytes) return ill_formed;
    char32_t value = first & (0xFFU >> (bytes + 1));
    for (std::size_t index = 1; index < bytes; ++index) {
        if ((byte(index) & 0xC0) != 0x80) return ill_formed;
        value = value << 6 | (byte(index) & 0x3FU);
    }
    const bool is_overlong = value < (bytes == 4 ? 0x10000U : bytes == 3 ? 0x800U : 0x80U);
    const bool is_surrogate = value >= 0xD800 && value <= 0xDFFF;
    return is_overlong || is_surrogate || value > 0x10FFFF ? ill_formed : CodePoint{value, bytes, true};
}

inline bool is_valid_utf8(std::string_view text) {
    for (std::size_t index = 0; index < text.size();) {
        const CodePoint next = code_point_at(text, index);
        if (!next.is_valid) return false;
        index += next.bytes;
    }
    return true;
}

/// Code points of UTF-8 text; every ill-formed byte becomes U+FFFD.
inline std::u32string decode_utf8(std::string_view text) {
    std::u32string code_points;
    code_points.reserve(text.size());
    for (std::size_t index = 0; index < text.size();) {
        const CodePoint next = code_point_at(text, index);
        code_points.push_back(next.value);
        index += next.bytes;
    }
    return code_points;
}

/// Appends a code point (no surrogate, at most 0x10FFFF) as UTF-8.
inline void append_utf8(std::string& text, char32_t code_point) {
    const auto put = [&](char32_t byte) { text.push_back(static_cast<char>(static_cast<unsigned char>(byte))); };
    const auto put_tail = [&](unsigned shift) { put(0x80U | (code_point >> shift & 0x3FU)); };
    if (code_point < 0x80) {
        put(code_point);
    } else if (code_point < 0x800) {
        put(0xC0U | code_point >> 6);
        put_tail(0);
    } else if (code_point < 0x10000) {
        put(0xE0U | code_point >> 12);
        put_tail(6);
        put_tail(0);
    } else {
        put(0xF0U | code_point >> 18);
        put_tail(12);
        put_tail(6);
        put_tail(0);
    }
}

/// Blanks, controls, and marks that are never drawn.
inline bool is_invisible(char32_t code_point) {
    constexpr char32_t ranges[][2] = {
        {0x00, 0x20},     {0x7F, 0xA0},     {0xAD, 0xAD},     {0x61C, 0x61C},   {0x1680, 0x1680},
        {0x180E, 0x180E}, {0x2000, 0x200F}, {0x2028, 0x202F}, {0x205F, 0x206F}, {0x3000, 0x3000},
        {0xFEFF, 0xFEFF}, {0xFFF9, 0xFFFB}, {0xE0000, 0xE007F},
    };
    return std::any_of(std::begin(ranges), std::end(ranges),
                       [&](const auto& range) { return code_point >= range[0] && code_point <= range[1]; });
}

/// `value` in `digits` lower-case hexadecimal digits.
inline std::string hex_digits(std::uint64_t value, unsigned digits) {
    std::string text;
    for (unsigned left = digits; left > 0; --left) text.push_back("0123456789abcdef"[value >> (4 * left - 4) & 0xF]);
    return text;
}

/// Python's f"{value:,}".
inline std::string with_commas(std::uint64_t value) {
    std::string text = std::to_string(value);
    for (std::size_t end = text.size(); end > 3; end -= 3) text.insert(end - 3, 1, ',');
    return text;
}

/// Python's json.dumps(text): ASCII in quotes. `utf8` has to be valid; an ill-formed byte becomes U+FFFD.
inline std::string json_string(std::string_view utf8) {
    std::string text = "\"";
    for (std::size_t index = 0; index < utf8.size();) {
        const CodePoint next = code_point_at(utf8, index);
        index += next.bytes;
        const std::string_view named = "\"\\\n\r\t\f\b", letters = "\"\\nrtfb";
        const std::size_t which = next.value < 0x80 ? named.find(static_cast<char>(next.value)) : named.npos;
        if (which != named.npos) {
            text += {'\\', letters[which]};
        } else if (next.value >= 0x20 && next.value < 0x7F) {
            text.push_back(static_cast<char>(next.value));
        } else if (next.value < 0x10000) {
            text += "\\u" + hex_digits(next.value, 4);
        } else {
            text += "\\u" + hex_digits(0xD800 + ((next.value - 0x10000) >> 10), 4);
            text += "\\u" + hex_digits(0xDC00 + (next.value & 0x3FF), 4);
        }
    }
    return text + '"';
}

/// Python's repr of a str: one printable line. An ill-formed byte shows as \xNN.
inline std::string python_repr(std::string_view utf8) {
    const char quote = utf8.find('\'') != utf8.npos && utf8.find('"') == utf8.npos ? '"' : '\'';
    std::string text(1, quote);
    for (std::size_t index = 0; index < utf8.size();) {
        const CodePoint next = code_point_at(utf8, index);
        const char32_t value = next.is_valid ? next.value : static_cast<unsigned char>(utf8[index]);
        const std::string_view named = "\n\r\t\\", letters = "nrt\\";
        const std::size_t which = value < 0x80 ? named.find(static_cast<char>(value)) : named.npos;
        if (which != named.npos) {
            text += {'\\', letters[which]};
        } else if (value == static_cast<unsigned char>(quote)) {
            text += {'\\', quote};
        } else if (!next.is_valid || (value != ' ' && is_invisible(value))) {
            const unsigned digits = value > 0xFFFF ? 8 : value > 0xFF ? 4 : 2;
            text += {'\\', digits == 8 ? 'U' : digits == 4 ? 'u' : 'x'};
            text += hex_digits(value, digits);
        } else {
            text += utf8.substr(index, next.bytes);
        }
        index += next.bytes;
    }
    return text + quote;
}

/// Holds under -ffast-math too, where compilers take std::isfinite for true.
inline bool is_finite(double value) {
    std::uint64_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return (bits >> 52 & 0x7FF) != 0x7FF;
}

inline bool is_finite(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return (bits >> 23 & 0xFF) != 0xFF;
}

/// Reads all of `text`, a decimal number, into `value`. False when it is none or beyond the range of double.
inline bool read_double(const std::string& text, double& value) {
    std::istringstream stream(text);
    stream.imbue(std::locale::classic());
    stream >> value;
    const bool is_subnormal = std::fabs(value) > 0 && std::fabs(value) < DBL_MIN;  // some libraries call that a failure
    return (!stream.fail() || is_subnormal) && stream.peek() == std::istringstream::traits_type::eof();
}

/// "inf", "-inf" or "nan".
inline std::string nonfinite_name(double value) {
    std::uint64_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    if ((bits & 0xFFFFFFFFFFFFFU) != 0) return "nan";
    return bits >> 63 != 0 ? "-inf" : "inf";
}

/// Python's repr of a float: the fewest digits that give `value` back.
inline std::string python_float(double value) {
    if (!is_finite(value)) return nonfinite_name(value);
    const auto gives_back = [&](const std::string& text) {
        double back = 0;
        return read_double(text, back) && std::memcmp(&back, &value, sizeof value) == 0;
    };
    std::string text;
    for (int digits = 0; digits < 17; ++digits) {
        std::ostringstream stream;
        stream.imbue(std::locale::classic());
        stream.precision(digits);
        stream << std::scientific << value;
        text = stream.str();
        if (gives_back(text)) break;
        // Doubles lie closer below a power of two than above it: the next decimal up may do when the nearest does not.
        const std::size_t last = text.find('e') - 1;
        if (text[last] == '9') continue;
        ++text[last];
        if (gives_back(text)) break;
    }
    const std::size_t exponent_at = text.find('e');
    const int exponent = std::stoi(text.substr(exponent_at + 1));
    const std::string sign = text[0] == '-' ? "-" : "";
    std::string digits;
    for (const char c : text.substr(0, exponent_at)) {
        if (c >= '0' && c <= '9') digits.push_back(c);
    }
    if (exponent < -4 || exponent >= 16) return text;  // both write at least two digits of exponent
    if (exponent < 0) return sign + "0." + std::string(static_cast<std::size_t>(-exponent - 1), '0') + digits;
    const std::size_t whole = static_cast<std::size_t>(exponent) + 1;
    if (digits.size() <= whole) return sign + digits + std::string(whole - digits.size(), '0') + ".0";
    return sign + digits.substr(0, whole) + "." + digits.substr(whole);
}

/// Python's f"{value:g}".
inline std::string format_g(double value) {
    if (!is_finite(value)) return nonfinite_name(value);
    std::ostringstream stream;
    stream.imbue(std::locale::classic());
    stream << value;
    return stream.str();
}

}  // namespace ezaudio::detail
