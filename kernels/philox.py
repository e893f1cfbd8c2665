"""Philox normals inside a kernel: the words and, to rounding, the values of `PhiloxNoise` in `runtime/noise.py`.

Values 4i…4i+3 of a draw come from Philox4x32-10 with counter (i, step, item, 0) and the seed as key. Radius and angle
are computed in float64 by the same polynomials, since float32 logarithms near 1 would miss by 1e-4.
"""

from __future__ import annotations

import triton
import triton.language as tl

HALF_PI = tl.constexpr(1.5707963267948966)


@triton.jit
def philox_words(group: tl.tensor, step: tl.tensor, item: tl.tensor, seed: tl.tensor) -> tl.tensor:
    """Four uint32 words of each group (N,); step and item uint32 scalars, seed an int64 scalar."""
    zero = group * 0
    return tl.philox(seed, group, zero + step, zero + item, zero)


@triton.jit
def box_muller(radius: tl.tensor, angle: tl.tensor) -> tl.tensor:
    """√(−2·ln u)·cos 2πv and ·sin 2πv in float32, from the high 24 bits of two words: u in (0, 1], v in [0, 1)."""
    u = ((radius >> 8) + 1).to(tl.float64) * 5.9604644775390625e-08  # 2⁻²⁴
    length = tl.sqrt(-2.0 * tl.log(u))
    turns = (angle >> 8).to(tl.int32)
    # Nearest quarter turn and the rest, exactly: 2²² is a quarter.
    quarter = (turns + 2097152) >> 22
    part = (turns - (quarter << 22)).to(tl.float64) * 2.384185791015625e-07 * HALF_PI  # 2⁻²²
    square = part * part
    cosine = square * 0.0 + 1.0
    sine = square * 0.0 + 1.0
    for n in tl.static_range(8):  # Taylor's series inside out: the angle is below π/4
        cosine = 1.0 - cosine * square * (1.0 / ((16 - 2 * n) * (15 - 2 * n)))
    for n in tl.static_range(7):
        sine = 1.0 - sine * square * (1.0 / ((15 - 2 * n) * (14 - 2 * n)))
    sine *= part
    quadrant = quarter & 3
    swapped = (quadrant & 1) == 1
    first = tl.where(swapped, sine, cosine)
    second = tl.where(swapped, cosine, sine)
    first = tl.where((quadrant == 1) | (quadrant == 2), -first, first)
    second = tl.where(quadrant >= 2, -second, second)
    return (length * first).to(tl.float32), (length * second).to(tl.float32)


@triton.jit
def normals(group: tl.tensor, step: tl.tensor, item: tl.tensor, seed: tl.tensor, GROUPS: tl.constexpr) -> tl.tensor:
    """Values 4·group … 4·group + 3 of a draw, in order: (4·GROUPS,) float32."""
    w0, w1, w2, w3 = philox_words(group, step, item, seed)
    n0, n1 = box_muller(w0, w1)
    n2, n3 = box_muller(w2, w3)
    return tl.reshape(tl.join(tl.join(n0, n2), tl.join(n1, n3)), (4 * GROUPS,))
