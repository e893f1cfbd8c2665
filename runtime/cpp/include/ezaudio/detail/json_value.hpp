#pragma once

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <variant>
#include <vector>

#include <ezaudio/detail/text_format.hpp>

namespace ezaudio::detail {

/// Text that is not JSON, or a value that is not what its reader expects.
class JsonError : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

/// One JSON value. A number keeps its digits, so that none is lost between reading and writing.
struct Json {
    struct Number {
        std::string token;
    };
    using Array = std::vector<Json>;
    struct Object {
        std::vector<std::string> keys;  // in the order of the text, each once
        std::vector<Json> values;
    };

    std::variant<std::nullptr_t, bool, Number, std::string, Array, Object> data = nullptr;

    template <typename T>
    const T* get_if() const {
        return std::get_if<T>(&data);
    }

    bool is_null() const { return get_if<std::nullptr_t>() != nullptr; }
    bool is_integer() const {
        const Number* found = get_if<Number>();
        return found != nullptr && found->token.find_first_of(".eE") == std::string::npos;
    }

    // Each raises JsonError, with what was got, when the value is of another type or does not fit.
    bool boolean() const { return need<bool>("true or false"); }
    const std::string& string() const { return need<std::string>("a string"); }
    const Array& array() const { return need<Array>("an array"); }
    const Object& object() const { return need<Object>("an object"); }
    std::int64_t integer() const;
    double number() const;

    /// The member `key` of an object; null when it has none. Takes time in proportion to the number of members.
    const Json* find(std::string_view key) const {
        const Object& members = object();
        const auto found = std::find(members.keys.begin(), members.keys.end(), key);
        return found == members.keys.end() ? nullptr : &members.values[index_of(found - members.keys.begin())];
    }

    const Json& at(std::string_view key) const {
        if (const Json* found = find(key)) return *found;
        throw JsonError("it lacks " + python_repr(key));
    }

    [[noreturn]] void mismatch(const std::string& expected) const;

private:
    static std::size_t index_of(std::ptrdiff_t distance) { return static_cast<std::size_t>(distance); }

    template <typename T>
    const T& need(const char* expected) const {
        if (const T* found = get_if<T>()) return *found;
        mismatch(expected);
    }
};

inline constexpr std::size_t max_repr_bytes = 200;  // it goes into messages of one line

/// `text`, or its beginning and "…" when it is long.
inline std::string shortened(std::string text) {
    if (text.size() <= max_repr_bytes) return text;
    std::size_t end = max_repr_bytes;
    while ((static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;  // not inside a character
    return text.erase(end) + "\xE2\x80\xA6";
}

/// About what Python's repr gives for the value that its json module reads. Shortened.
inline std::string python_repr(const Json& value) {
    std::string text;
    const auto list = [&](char open, std::size_t count, char close, const auto& item) {
        text += open;
        for (std::size_t index = 0; index < count && text.size() <= max_repr_bytes; ++index) {
            if (index > 0) text += ", ";
            item(index);
        }
        text += close;
    };
    if (value.is_null()) text = "None";
    if (const auto* truth = value.get_if<bool>()) text = *truth ? "True" : "False";
    if (const auto* number = value.get_if<Json::Number>()) text = number->token;
    if (const auto* string = value.get_if<std::string>()) text = python_repr(std::string_view(*string));
    if (const auto* array = value.get_if<Json::Array>()) {
        list('[', array->size(), ']', [&](std::size_t index) { text += python_repr((*array)[index]); });
    }
    if (const auto* object = value.get_if<Json::Object>()) {
        list('{', object->keys.size(), '}', [&](std::size_t index) {
            text += python_repr(std::string_view(object->keys[index])) + ": " + python_repr(object->values[index]);
        });
    }
    return shortened(std::move(text));
}

inline void Json::mismatch(const std::string& expected) const {
    throw JsonError("expected " + expected + ", got " + python_repr(*this));
}

inline std::int64_t Json::integer() const {
    if (!is_integer()) mismatch("a whole number");
    const std::string& token = need<Number>("a whole number").token;
    std::int64_t value = 0;
    if (std::from_chars(token.data(), token.data() + token.size(), value).ec != std::errc()) {
        mismatch("a whole number of at most 64 bits");
    }
    return value;
}

inline double Json::number() const {
    double value = 0;
    if (!read_double(need<Number>("a number").token, value)) mismatch("a number in the range of double");
    return value;
}

inline std::int64_t read_whole(const Json& value, std::int64_t least, std::int64_t most) {
    const std::int64_t number = value.integer();
    if (number >= least && number <= most) return number;
    value.mismatch("a whole number from " + std::to_string(least) + " to " + std::to_string(most));
}

/// What Python's json.dumps(value, sort_keys=True, separators=(",", ":")) gives for the same value read there.
inline std::string canonical(const Json& value) {
    if (value.is_null()) return "null";
    if (const auto* truth = value.get_if<bool>()) return *truth ? "true" : "false";
    if (const auto* number = value.get_if<Json::Number>()) {
        if (value.is_integer()) return number->token == "-0" ? "0" : number->token;
        return python_float(value.number());
    }
    if (const auto* string = value.get_if<std::string>()) return json_string(*string);
    std::string text;
    if (const auto* array = value.get_if<Json::Array>()) {
        for (const Json& item : *array) text += (text.empty() ? "" : ",") + canonical(item);
        return "[" + text + "]";
    }
    const Json::Object& object = value.object();
    std::vector<std::size_t> order(object.keys.size());
    for (std::size_t index = 0; index < order.size(); ++index) order[index] = index;
    // The order of UTF-8 bytes is that of code points, in which Python sorts.
    std::sort(order.begin(), order.end(), [&](auto a, auto b) { return object.keys[a] < object.keys[b]; });
    for (const std::size_t index : order) {
        text += text.empty() ? "" : ",";
        text += json_string(object.keys[index]) + ":" + canonical(object.values[index]);
    }
    return "{" + text + "}";
}

}  // namespace ezaudio::detail
