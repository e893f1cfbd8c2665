"""The goals on one GPU, G1 to G11, and what each figure is at least made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ezaudio.config import EzAudioConfig, preset

Row = dict[str, Any]
"""A line of results/gpu.jsonl: see `row`."""

FRAMES, TOKENS, STEPS = 500, 100, 50
KERNEL_BATCH = 16  # rows that kernels are timed with: eight guided clips


@dataclass(frozen=True, slots=True)
class Goal:
    """What is measured, and the two figures that it is held against; `better` is the side that they bound."""

    what: str
    goal: str
    stretch: str = ""


GOALS = {
    "G1": Goal("DiT loop, one guided clip: FLOPs of the plain math ÷ time ÷ P", "45 %", "60 %"),
    "G2": Goal("the same, 8 clips", "60 %", "70 %"),
    "G3": Goal("prompt to samples, 50 steps, 10 s", "240 ms", "180 ms"),
    "G4": Goal("official fp32 eager ÷ ours; fp16 autocast ÷ ours; max-autotune ÷ ours", "8; 2.5; 1.15", "12; 3.5; 1.4"),
    "G5": Goal("CUDA graph off ÷ on, one clip", "1.5"),
    "G6": Goal("preset fast, 10 s", "XL 75 ms, L 50 ms"),
    "G7": Goal("fused AdaLN-SOLA, share of BW", "80 %", "90 %"),
    "G8": Goal("separate ops with the best SDPA ÷ fused attention", "1.0 (E = 64), 0.95 (E = 72)", "1.3"),
    "G9": Goal("training step, eager autocast ÷ fused: time; peak memory", "1.2; −30 %"),
    "G10": Goal("XL resident in fp16, graphs included", "5.5 GB", "4.5 GB"),
    "G11": Goal("worst step's velocity cosine, fp16; bf16; int8", "0.9999; 0.999; 0.995"),
}

# Every row that a whole run has: goal, model, what tells it from others of the goal.
PLAN: list[tuple[str, str, str]] = [
    *((goal, model, "loop") for goal in ("G1", "G2") for model in ("xl", "l")),
    ("G3", "xl", "prompt to samples"),
    *(("G4", "xl", rival) for rival in ("fp32 eager", "fp16 autocast", "max-autotune")),
    ("G5", "l", "loop"),
    *(("G6", model, "prompt to samples") for model in ("xl", "l")),
    *(
        ("G7", model, f"{operator}, {direction}")
        for model in ("xl", "l")
        for operator in ("adaln-sola", "skip norm")
        for direction in ("forward", "both")
    ),
    *(
        ("G8", model, f"{kind}-attention, {direction}")
        for model in ("xl", "l")
        for kind in ("self", "cross")
        for direction in ("forward", "both")
    ),
    *(("G9", "l", f"{what}{how}") for how in ("", ", recorded") for what in ("time", "peak memory")),
    ("G10", "xl", "resident"),
    *(("G11", "xl", precision) for precision in ("fp16", "bf16", "int8")),
]


def step_flops(config: EzAudioConfig, rows: int = 2, frames: int = FRAMES, tokens: int = TOKENS) -> int:
    """FLOPs of the products of one evaluation of the plain DiT: guidance is two rows a clip."""
    dit = config.dit
    width, rank, channels = dit.width, dit.adaln_rank, dit.latent_channels
    attention = 2 * 4 * frames * width**2 + 2 * 2 * frames**2 * width  # q, k, v, out; scores and their sums
    cross = 2 * (2 * frames + 2 * tokens) * width**2 + 2 * 2 * frames * tokens * width
    mlp = 2 * frames * 3 * width * int(width * dit.mlp_ratio)
    modulation = 2 * (6 * rank * width + 6 * rank * 6 * width)
    skips = 2 * frames * 2 * width**2 * dit.num_in_blocks
    ends = 2 * frames * (dit.input_channels * width + width * channels + 3 * channels**2)
    time = 2 * (256 * width + width**2 + 8 * width**2)
    context = 2 * tokens * (dit.context_width * width + width**2)
    block = attention + cross + mlp + modulation
    return rows * (dit.num_blocks * block + skips + ends + time + context)


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of what operators are given: rows, their frames, the tokens of a prompt, and a model's width and heads."""

    batch: int
    frames: int
    tokens: int
    width: int
    heads: int
    channels: int


def sizes_of(model: str, batch: int = KERNEL_BATCH, frames: int = FRAMES, tokens: int = TOKENS) -> Sizes:
    dit = preset(model).dit
    return Sizes(batch, frames, tokens, dit.width, dit.num_heads, dit.latent_channels)


PASSES = ("forward", "both")
TENSORS = {"adaln-sola": (4, 10), "skip norm": (5, 13), "geglu": (12, 32)}  # of tokens, read and written by each pass
# Every operator that has a kernel, and the models that it is timed in.
KERNELS = [
    *((model, operator) for model in ("l", "xl") for operator in (*TENSORS, "self-attention", "cross-attention")),
    ("l", "sampler step"),
]


def kernel_floor(operator: str, sizes: Sizes) -> tuple[tuple[int, int], tuple[int, int]]:
    """Bytes that forward, and forward with backward, cannot avoid, and FLOPs of their products, in 16 bits."""
    batch, frames, width = sizes.batch, sizes.frames, sizes.width
    tensor = 2 * batch * frames * width
    if operator in TENSORS:
        forward, both = TENSORS[operator]
        return (forward * tensor, both * tensor), (0, 0)
    if operator == "sampler step":  # in float32; guided: rows are two for each clip
        moved = 7 * 4 * max(1, batch // 2) * sizes.channels * frames
        return (moved, moved), (0, 0)
    keys = frames if operator == "self-attention" else sizes.tokens
    keyed, product = 2 * batch * keys * width, 2 * batch * frames * keys * width
    return (2 * tensor + 2 * keyed, 6 * tensor + 6 * keyed), (2 * product, 7 * product)


def floor(goal: str, model: str, what: str) -> str:
    """What the figure cannot do without, by count."""
    config = preset(model)
    step = step_flops(config) / 1e12
    if goal in ("G1", "G4", "G5"):
        return f"{step:.3f} TFLOP a step"
    if goal == "G2":
        return f"{8 * step:.2f} TFLOP a step"
    if goal in ("G3", "G6"):  # preset fast: 5 steps, of which some are not guided and one runs the outer blocks alone
        return f"{STEPS * step:.0f} TFLOP of steps" if goal == "G3" else f"at most {5 * step:.1f} TFLOP of steps"
    if goal in ("G7", "G8"):
        operator, direction = what.split(", ")
        moved, flops = (each[PASSES.index(direction)] for each in kernel_floor(operator, sizes_of(model)))
        return f"{moved / 1e6:.0f} MB" if goal == "G7" else f"{flops / 1e9:.0f} GFLOP"
    if goal == "G9":
        return f"{3 * step_flops(config, rows=1) / 1e12:.3f} TFLOP a clip"
    return ""


def row(goal: str, model: str, what: str, **fields: Any) -> Row:
    """A row: value (a spread) in `unit` with a `note`, or a `reason` why there is none, and whether it `failed`."""
    return {"benchmark": "gpu", "goal": goal, "model": model, "what": what, "floor": floor(goal, model, what), **fields}


def told(row: Row) -> str:
    """The figure of a row in words."""
    value = row.get("value")
    if value is None:
        return f"{'failed' if row.get('failed') else 'not measured'}: {row.get('reason') or 'no row'}"
    form = {
        "share": "{:.1%}",
        "ms": "{:.1f} ms",
        "GB": "{:.2f} GB",
        "cosine": "{:.6f}",
        "ratio": "{:.2f}",
        "change": "{:+.0%}",
    }[row["unit"]]
    low, middle, high = (form.format(value[key]) for key in ("p20", "median", "p80"))
    return middle if low == high else f"{middle} ({low} to {high})"
