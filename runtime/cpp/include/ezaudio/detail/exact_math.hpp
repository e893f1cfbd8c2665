#pragma once

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

// Logarithm, exponential, sine and cosine with the bits that Python's runtime/exact_math.py gives: sums and products of
// double in a fixed order. Compile with -ffp-contract=off (the CMake target does): a fused multiply-add rounds otherwise.
namespace ezaudio::detail {

inline constexpr double ln2_high = 0.6931471803691238, ln2_low = 1.9082149292705877e-10;  // their sum is ln 2
inline constexpr double log2_e = 1.4426950408889634;
inline constexpr double sqrt_half = 0.7071067811865476;
inline constexpr double half_pi = 1.5707963267948966;

constexpr double factorial(int n) {  // exact up to 18
    double product = 1;
    for (int factor = 2; factor <= n; ++factor) product *= factor;
    return product;
}

constexpr std::array<double, 11> log_coefficients() {  // ln((1 + s)/(1 − s)) = Σ 2·s^(2n+1)/(2n + 1), |s| < 0.172
    std::array<double, 11> values{};
    for (std::size_t n = 0; n < values.size(); ++n) values[n] = 2.0 / static_cast<double>(2 * n + 1);
    return values;
}

constexpr std::array<double, 14> exp_coefficients() {
    std::array<double, 14> values{};
    for (int n = 0; n < 14; ++n) values[static_cast<std::size_t>(n)] = 1.0 / factorial(n);
    return values;
}

template <std::size_t count>
constexpr std::array<double, count> alternating_coefficients(int first) {  // (−1)ⁿ/(2n + first)!
    std::array<double, count> values{};
    for (std::size_t n = 0; n < count; ++n) {
        values[n] = (n % 2 == 0 ? 1.0 : -1.0) / factorial(static_cast<int>(2 * n) + first);
    }
    return values;
}

/// Σ cₙ·xⁿ by Horner's rule.
template <std::size_t count>
inline double polynomial(const std::array<double, count>& coefficients, double x) {
    double result = coefficients[count - 1];
    for (std::size_t n = count - 1; n-- > 0;) {
        result = result * x;
        result = result + coefficients[n];
    }
    return result;
}

/// Natural logarithm of a normal positive number.
inline double exact_log(double x) {
    static constexpr auto coefficients = log_coefficients();
    std::uint64_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    int exponent = static_cast<int>(bits >> 52) - 1022;
    bits = (bits & 0x000FFFFFFFFFFFFFU) | 0x3FE0000000000000U;  // mantissa in [0.5, 1)
    double mantissa;
    std::memcpy(&mantissa, &bits, sizeof mantissa);
    if (mantissa < sqrt_half) {
        mantissa = mantissa + mantissa;
        exponent -= 1;
    }
    const double scale = exponent;
    const double s = (mantissa - 1.0) / (mantissa + 1.0);
    return scale * ln2_high + (scale * ln2_low + s * polynomial(coefficients, s * s));
}

/// Exponential of a number from −700 to 700.
inline double exact_exp(double x) {
    static constexpr auto coefficients = exp_coefficients();
    const double scale = std::nearbyint(x * log2_e);
    const double rest = (x - scale * ln2_high) - scale * ln2_low;
    return std::ldexp(polynomial(coefficients, rest), static_cast<int>(scale));
}

/// baseᵉˣᵖᵒⁿᵉⁿᵗ for base 0 or normal positive and exponent ≥ 0; 0⁰ is 1.
inline double exact_power(double base, double exponent) {
    if (exponent <= 0) return 1.0;
    return base > 0 ? exact_exp(exponent * exact_log(base)) : 0.0;
}

struct CosSin {
    double cosine, sine;
};

/// cos 2πu and sin 2πu for u from 0 to 1.
inline CosSin cos_sin_turns(double turns) {
    static constexpr auto cos_coefficients = alternating_coefficients<9>(0);
    static constexpr auto sin_coefficients = alternating_coefficients<8>(1);
    const double quarter = std::nearbyint(turns * 4.0);
    const double angle = (turns * 4.0 - quarter) * half_pi;
    const double square = angle * angle;
    const double cosine = polynomial(cos_coefficients, square), sine = angle * polynomial(sin_coefficients, square);
    switch (static_cast<int>(quarter) & 3) {
        case 0: return {cosine, sine};
        case 1: return {-sine, cosine};
        case 2: return {-cosine, -sine};
        default: return {sine, -cosine};
    }
}

}  // namespace ezaudio::detail
