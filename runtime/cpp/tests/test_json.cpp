#include <doctest/doctest.h>

#include <cmath>
#include <cstddef>
#include <cstring>
#include <limits>
#include <locale>
#include <string>
#include <vector>

#include <ezaudio/detail/json.hpp>
#include <ezaudio/detail/text_format.hpp>

#include "helpers.hpp"

using namespace ezaudio::detail;
using namespace ezaudio_tests;

namespace {

constexpr std::size_t most = std::size_t{1} << 20;

Json parse(const std::string& text) { return parse_json(text, most); }

std::string refusal(const std::string& text) {
    return message_of<JsonError>([&] { parse(text); });
}

}  // namespace

TEST_CASE("canonical JSON is that of Python's json module (valgrind)") {
    const Json value = parse(
        R"({"b": [1, -0, 2.50, 1E5, 1e-7, 123456789012345678901234567890, 1e16], "a": {"é": "ü\u2028\ud83d\ude00",)"
        R"( "Z": null, "😀": true, "�": false}, "b2": "\u007f\"\\\/\b\f\n\r\t"})");
    const std::string expected =
        R"({"a":{"Z":null,"\u00e9":"\u00fc\u2028\ud83d\ude00","\ufffd":false,"\ud83d\ude00":true},)"
        R"("b":[1,0,2.5,100000.0,1e-07,123456789012345678901234567890,1e+16],"b2":"\u007f\"\\/\b\f\n\r\t"})";
    CHECK(canonical(value) == expected);
    CHECK(canonical(parse(expected)) == expected);
    CHECK(canonical(parse("\xEF\xBB\xBF [ ] ")) == "[]");
}

TEST_CASE("values are read as their type or refused") {
    const Json value = parse(R"({"a": 1, "b": [true, null], "a": -2, "c": 2.5, "d": "x"})");
    CHECK(value.object().keys == std::vector<std::string>{"a", "b", "c", "d"});
    CHECK(value.at("a").integer() == -2);  // the last of equal keys
    CHECK(value.at("a").number() == -2);
    CHECK(value.at("b").array()[0].boolean());
    CHECK(value.at("b").array()[1].is_null());
    CHECK(value.at("c").number() == 2.5);
    CHECK(value.at("d").string() == "x");
    CHECK(value.find("e") == nullptr);
    CHECK(parse("9223372036854775807").integer() == std::numeric_limits<std::int64_t>::max());
    const auto message = [](const auto& run) { return message_of<JsonError>(run); };
    CHECK(message([&] { value.at("e"); }) == "it lacks 'e'");
    CHECK(message([&] { value.at("c").integer(); }) == "expected a whole number, got 2.5");
    CHECK(message([&] { value.at("d").number(); }) == "expected a number, got 'x'");
    CHECK(message([&] { value.at("b").string(); }) == "expected a string, got [True, None]");
    CHECK(message([&] { value.at("a").array(); }) == "expected an array, got -2");
    CHECK(message([&] { value.at("a").boolean(); }) == "expected true or false, got -2");
    CHECK(message([&] { parse("[{}]").find("a"); }) == "expected an object, got [{}]");
    CHECK(message([&] { parse("9223372036854775808").integer(); }) ==
          "expected a whole number of at most 64 bits, got 9223372036854775808");
    CHECK(message([&] { parse("1e999").number(); }) == "expected a number in the range of double, got 1e999");
    CHECK(message([&] { parse_json("[1]", 2); }) == "JSON of more than 2 bytes");
    const Json long_text = parse('"' + std::string(199, 'x') + "é" + std::string(most / 2, 'y') + '"');
    CHECK(python_repr(long_text) == "'" + std::string(199, 'x') + "…");
}

TEST_CASE("text that is not JSON is refused (valgrind)") {
    CHECK(refusal("") == "not JSON: expected a value at byte 0, where the text ends");
    CHECK(refusal("[1,]") == "not JSON: expected a value at byte 3");
    CHECK(refusal("{\"a\" 1}") == "not JSON: expected ':' at byte 5");
    CHECK(refusal("{1: 1}") == "not JSON: expected a key in quotes at byte 1");
    CHECK(refusal("{\"a\": 1") == "not JSON: expected ',' or '}' at byte 7, where the text ends");
    CHECK(refusal("[1 2]") == "not JSON: expected ',' or ']' at byte 3");
    CHECK(refusal("1 2") == "not JSON: expected the end at byte 2");
    CHECK(refusal("\"a") == "not JSON: expected '\"' at byte 2, where the text ends");
    CHECK(refusal("\"\n\"") == "not JSON: expected an escaped control character at byte 1");
    CHECK(refusal("\"\\x\"") == "not JSON: expected an escape sequence at byte 2");
    CHECK(refusal("\"\\u12\"") == "not JSON: expected 4 hexadecimal digits at byte 3");
    CHECK(refusal("\"\\u-123\"") == "not JSON: expected 4 hexadecimal digits at byte 3");
    CHECK(refusal(R"("\ud83d!")") == "not JSON: expected the second half of a surrogate pair at byte 7");
    CHECK(refusal(R"("\ud83d\u0041")") == "not JSON: expected the second half of a surrogate pair at byte 13");
    CHECK(refusal(R"("\ude00")") == "not JSON: expected the first half of a surrogate pair at byte 7");
    CHECK(refusal(std::string(101, '[') + std::string(101, ']')) != "");
    CHECK(refusal(std::string(100'000, '[')) == "JSON nested deeper than 100 levels");
    CHECK(canonical(parse(std::string(100, '[') + "1" + std::string(100, ']'))).size() == 201);
    for (const char* bad : {"NaN", "Infinity", "-Infinity", "-", "01", "+1", "1.", ".5", "1e", "1e+", "0x1", "nul",
                            "tru", "'a'", "[1}", "{,}", "/**/1", "\"\xC3\"", "\"\xC0\x80\"", "\"\xED\xA0\x80\"",
                            "\"\xF4\x90\x80\x80\"", "\"\xFF\""}) {
        CAPTURE(bad);
        CHECK(refusal(bad) != "");
    }
    CHECK(refusal(std::string("1\0", 2)) == "not JSON: expected the end at byte 1");
}

TEST_CASE("floats are written as Python does") {
    const auto power = [](int exponent) { return std::ldexp(1.0, exponent); };
    CHECK(python_float(0.0) == "0.0");
    CHECK(python_float(-0.0) == "-0.0");
    CHECK(python_float(10.0) == "10.0");
    CHECK(python_float(0.1) == "0.1");
    CHECK(python_float(-2.5) == "-2.5");
    CHECK(python_float(1e-4) == "0.0001");
    CHECK(python_float(1e-5) == "1e-05");
    CHECK(python_float(1.25e-7) == "1.25e-07");
    CHECK(python_float(1e15) == "1000000000000000.0");
    CHECK(python_float(1e16) == "1e+16");
    CHECK(python_float(123456789012345680.0) == "1.2345678901234568e+17");
    CHECK(python_float(9007199254740993.0) == "9007199254740992.0");
    CHECK(python_float(1.0 / 3) == "0.3333333333333333");
    CHECK(python_float(5e-324) == "5e-324");
    CHECK(python_float(1.7976931348623157e308) == "1.7976931348623157e+308");
    CHECK(python_float(power(-1017)) == "7.120236347223045e-307");  // the nearest 16 digits give its neighbour
    CHECK(python_float(static_cast<double>(0.1F)) == "0.10000000149011612");
    CHECK(python_float(std::numeric_limits<double>::infinity()) == "inf");
    CHECK(python_float(-std::numeric_limits<double>::infinity()) == "-inf");
    CHECK(python_float(-std::numeric_limits<double>::quiet_NaN()) == "nan");
    CHECK(format_g(10.0) == "10");
    CHECK(format_g(0.00001) == "1e-05");
    CHECK(format_g(1234567.0) == "1.23457e+06");
    CHECK(format_g(2.5) == "2.5");
    CHECK(format_g(std::numeric_limits<double>::infinity()) == "inf");
    CHECK(with_commas(0) == "0");
    CHECK(with_commas(999) == "999");
    CHECK(with_commas(4194304) == "4,194,304");
}

TEST_CASE("numbers do not depend on the locale") {
    struct German : std::numpunct<char> {
        char do_decimal_point() const override { return ','; }
        char do_thousands_sep() const override { return '.'; }
        std::string do_grouping() const override { return "\3"; }
    };
    const std::locale before = std::locale::global(std::locale(std::locale::classic(), new German));
    const std::string text = python_float(12345.5) + " " + format_g(2.5) + " " + canonical(parse("[1000000, 0.5]"));
    std::locale::global(before);
    CHECK(text == "12345.5 2.5 [1000000,0.5]");
}

TEST_CASE("random doubles come back from what is written") {
    Random random(1);
    for (int count = 0; count < 2000; ++count) {
        const std::uint64_t high = random.bits(), bits = high << 32 | random.bits();
        double value = 0, back = 0;
        std::memcpy(&value, &bits, sizeof value);
        if (!is_finite(value)) continue;
        CHECK(read_double(python_float(value), back));
        CHECK(std::memcmp(&value, &back, sizeof value) == 0);
    }
}

TEST_CASE("text is written as Python does") {
    CHECK(json_string("rain \"on\" a röof 😀\n\x7f/") == R"("rain \"on\" a r\u00f6of \ud83d\ude00\n\u007f/")");
    CHECK(json_string("\xFF") == R"("\ufffd")");
    CHECK(python_repr("it's") == "\"it's\"");
    CHECK(python_repr("say \"it's\"") == R"('say "it\'s"')");
    CHECK(python_repr("\"") == "'\"'");
    CHECK(python_repr("a\tb\x01\x7f\u00a0é\u200b\U000e0001\\\n\r") == R"('a\tb\x01\x7f\xa0é\u200b\U000e0001\\\n\r')");
    CHECK(python_repr("\xFF ") == R"('\xff ')");
    CHECK(python_repr(parse(R"({"a": [null, true, false, 1.50], "b": {}})")) ==
          "{'a': [None, True, False, 1.50], 'b': {}}");
}

TEST_CASE("UTF-8 is checked, read and written (valgrind)") {
    for (const char32_t code_point :
         {0x0U, 0x7FU, 0x80U, 0x7FFU, 0x800U, 0xD7FFU, 0xE000U, 0xFFFFU, 0x10000U, 0x10FFFFU}) {
        CAPTURE(static_cast<unsigned>(code_point));
        std::string text;
        append_utf8(text, code_point);
        CHECK(is_valid_utf8(text));
        CHECK(decode_utf8(text) == std::u32string(1, code_point));
        for (std::size_t size = 1; size < text.size(); ++size) CHECK_FALSE(is_valid_utf8(text.substr(0, size)));
    }
    for (const char* bad : {"\x80", "\xC0\x80", "\xC1\xBF", "\xE0\x9F\xBF", "\xED\xA0\x80", "\xF0\x8F\xBF\xBF",
                            "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\xC3(", "\xE2\x82("}) {
        CAPTURE(python_repr(bad));
        CHECK_FALSE(is_valid_utf8(bad));
    }
    CHECK(decode_utf8("a\xE2\x82(") == U"a\uFFFD\uFFFD(");
}

TEST_CASE("any text is parsed or refused") {
    const std::string sample = R"({"a": [1, -2.5e+3, "\u00e9\ud83d\ude00é😀", true, null], "b": {"c": {}, "d": [[]]}})";
    const std::vector<std::string> tokens{
        "{", "}", "[", "]", ",",    ":",     "\"",   "\\",   "\\u",      "\\ud83d",
        "e", "-", "0", ".", "null", "1e999", "[[[[", "\xC3", "\xF0\x9F", std::string(1, '\0')};
    Random random(2);
    int parsed = 0, refused = 0;
    for (int count = 0; count < 20'000; ++count) {
        const std::string text = mutated(sample, random, tokens);
        try {
            const Json value = parse(text);
            ++parsed;
            std::string again = canonical(value);
            CHECK(canonical(parse(again)) == again);
            CHECK(python_repr(value) != "");
        } catch (const JsonError& error) {
            ++refused;
            CHECK(std::string(error.what()).size() < 300);
        }
    }
    CHECK(parsed > 1000);
    CHECK(refused > 1000);
}
