"""Logarithm, exponential, sine and cosine that give the same bits on every machine and in every language.

NumPy, the C library and a compiler's vector code each round these their own way. Here they are sums and products of
float64 in a fixed order, without fused multiply-adds: IEEE 754 leaves nothing to choose, so the C++ runtime, which has
the same lines, draws the same noise and walks the same solver tables. Errors are below 4e-16 relative (log, exp) or
absolute (cosine, sine).
"""

from __future__ import annotations

from math import factorial
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Float64: TypeAlias = NDArray[np.float64]

LN2_HIGH, LN2_LOW = 0.6931471803691238, 1.9082149292705877e-10  # their sum is ln 2; high · k is exact for |k| < 2²⁰
LOG2_E = 1.4426950408889634
SQRT_HALF = 0.7071067811865476
HALF_PI = 1.5707963267948966

# Rounded to the nearest float64; the division is the definition.
_LOG = [2.0 / (2 * n + 1) for n in range(11)]  # ln((1 + s)/(1 − s)) = Σ 2·s^(2n+1)/(2n + 1), |s| < 0.172
_EXP = [1.0 / factorial(n) for n in range(14)]  # |r| < 0.347
_COS = [(-1.0) ** n / factorial(2 * n) for n in range(9)]  # |angle| < π/4
_SIN = [(-1.0) ** n / factorial(2 * n + 1) for n in range(8)]


def _polynomial(coefficients: list[float], x: Float64) -> Float64:
    """Σ cₙ·xⁿ by Horner's rule."""
    result = np.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        result *= x
        result += coefficient
    return result


def log(x: Float64) -> Float64:
    """Natural logarithm of normal positive numbers."""
    mantissa, exponent = np.frexp(x)
    small = mantissa < SQRT_HALF
    mantissa = np.where(small, mantissa + mantissa, mantissa)
    scale = np.where(small, exponent - 1, exponent).astype(np.float64)
    s = (mantissa - 1.0) / (mantissa + 1.0)
    return scale * LN2_HIGH + (scale * LN2_LOW + s * _polynomial(_LOG, s * s))


def exp(x: Float64) -> Float64:
    """Exponential of numbers from −700 to 700."""
    scale = np.rint(x * LOG2_E)
    rest = (x - scale * LN2_HIGH) - scale * LN2_LOW
    return np.ldexp(_polynomial(_EXP, rest), scale.astype(np.int32))


def power(base: Float64, exponent: float) -> Float64:
    """baseᵉˣᵖᵒⁿᵉⁿᵗ for base 0 or normal positive and exponent ≥ 0; 0⁰ is 1."""
    if exponent == 0:
        return np.ones_like(base)
    positive = base > 0
    return np.where(positive, exp(exponent * log(np.where(positive, base, 1.0))), 0.0)


def cos_sin_turns(turns: Float64) -> tuple[Float64, Float64]:
    """cos 2πu and sin 2πu for u from 0 to 1: whole turns, so that the reduction to an eighth is exact."""
    quarter = np.rint(turns * 4.0)
    angle = (turns * 4.0 - quarter) * HALF_PI
    square = angle * angle
    cosine, sine = _polynomial(_COS, square), angle * _polynomial(_SIN, square)
    quadrant = quarter.astype(np.int64) & 3
    swapped = (quadrant & 1) == 1
    first, second = np.where(swapped, sine, cosine), np.where(swapped, cosine, sine)
    return np.where((quadrant == 1) | (quadrant == 2), -first, first), np.where(quadrant >= 2, -second, second)
