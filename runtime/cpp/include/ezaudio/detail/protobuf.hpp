#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <string_view>

namespace ezaudio::detail {

/// A message is cut short, or says of itself what cannot be.
class ProtobufError : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

/// Reads the fields of a protobuf message one after the other (the wire format of proto2 and proto3).
class ProtobufReader {
public:
    explicit ProtobufReader(std::string_view message) : message_(message) {}

    /// Goes to the next field; false at the end.
    bool next() {
        if (at_ == message_.size()) return false;
        const std::uint64_t key = varint();
        field_ = key >> 3;
        switch (key & 7) {
            case 0: number_ = varint(); break;
            case 1: bytes_ = take(8); break;
            case 2: bytes_ = take(varint()); break;
            case 5: bytes_ = take(4); break;
            default: throw ProtobufError("a field of unknown type");
        }
        wire_ = key & 7;
        return true;
    }

    std::uint64_t field() const { return field_; }

    std::uint64_t number() const { return expect(0), number_; }
    std::string_view bytes() const { return expect(2), bytes_; }
    float number32() const { return expect(5), float_of(bytes_); }

    /// Little-endian.
    static std::uint32_t word_of(std::string_view bytes) {
        std::uint32_t word = 0;
        for (std::size_t i = 4; i-- > 0;) word = word << 8 | static_cast<unsigned char>(bytes[i]);
        return word;
    }

private:
    static float float_of(std::string_view bytes) {
        const std::uint32_t word = word_of(bytes);
        float value;
        std::memcpy(&value, &word, sizeof value);
        return value;
    }

    void expect(std::uint64_t wire) const {
        if (wire_ != wire) throw ProtobufError("field " + std::to_string(field_) + " is of another type");
    }

    std::uint64_t varint() {
        std::uint64_t value = 0;
        for (unsigned shift = 0; shift < 64; shift += 7) {
            const auto byte = static_cast<unsigned char>(take(1)[0]);
            value |= std::uint64_t{byte & 0x7FU} << shift;
            if (byte < 0x80) return value;
        }
        throw ProtobufError("a number that does not end");
    }

    std::string_view take(std::uint64_t count) {
        if (count > message_.size() - at_) throw ProtobufError("it is cut short");
        const std::string_view part = message_.substr(at_, static_cast<std::size_t>(count));
        at_ += part.size();
        return part;
    }

    std::string_view message_, bytes_;
    std::size_t at_ = 0;
    std::uint64_t field_ = 0, wire_ = 0, number_ = 0;
};

}  // namespace ezaudio::detail
