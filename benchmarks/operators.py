"""The operators that have a kernel, against what else computes them: their cases, the check, and how both are timed.

A case is checked against float64 first. Each contender is captured as a CUDA graph, so that hosts do not count, and
timed in turn with a cold second-level cache.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from gpu_goals import KERNEL_BATCH, Sizes, kernel_floor, sizes_of
from gpu_rig import Rig, captured, cold_cache, milliseconds, settle
from timing import spread
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ezaudio import sampling
from ezaudio.kernels import reference as ops

Operator = Callable[..., Tensor | tuple[Tensor, ...]]
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def sized(rig: Rig, model: str, batch: int = KERNEL_BATCH) -> Sizes:
    """Of a model, or what rehearses it."""
    real = model in rig.models
    return sizes_of(model if real else rig.models[0], batch if real else 2, rig.frames, rig.tokens)


@dataclass(frozen=True, slots=True)
class Case:
    """One operator at one width.

    Attributes:
        shapes: of the inputs, float32 where the name starts with "m_", else bf16.
        moved: bytes that forward, and forward with backward, cannot avoid.
        flops: of the products alone, likewise.
        rivals: name → operator, beside eager and torch.compile of `plain`.
        cached: the second-level cache holds what came before, as within a loop, instead of something else.
    """

    name: str
    plain: Operator
    fused: Operator
    shapes: Mapping[str, tuple[int, ...]]
    moved: tuple[int, int]
    flops: tuple[int, int]
    rivals: dict[str, Operator]
    dtype: torch.dtype = torch.bfloat16
    trained: bool = True
    cached: bool = False

    def inputs(self, device: str) -> dict[str, Tensor]:
        generator = torch.Generator(device).manual_seed(0)
        made = {}
        for name, shape in self.shapes.items():
            dtype = torch.float32 if name.startswith("m_") else self.dtype
            made[name] = torch.randn(shape, generator=generator, device=device).to(self.dtype).to(dtype)
        return made


def norm_cases(sizes: Sizes) -> list[Case]:
    def gated(x: Tensor, update: Tensor, weight: Tensor, bias: Tensor, **m: Tensor) -> tuple[Tensor, Tensor]:
        total = ops.gated_residual(x, update, m["m_gate"].to(x.dtype))
        shift, scale = m["m_shift"].to(x.dtype), m["m_scale"].to(x.dtype)
        return total, ops.modulated_norm(total, weight, bias, shift, scale)

    def fused_gated(x: Tensor, update: Tensor, weight: Tensor, bias: Tensor, **m: Tensor) -> tuple[Tensor, ...]:
        from ezaudio.kernels.adaln import residual_norm

        return residual_norm(x, weight, bias, update, m["m_gate"], m["m_shift"], m["m_scale"])

    def skip(x: Tensor, skip: Tensor, update: Tensor, weight: Tensor, bias: Tensor, m_gate: Tensor) -> Tensor:
        return ops.skip_norm(ops.gated_residual(x, update, m_gate.to(x.dtype)), skip, weight, bias)

    def fused_skip(x: Tensor, skip: Tensor, update: Tensor, weight: Tensor, bias: Tensor, m_gate: Tensor) -> Tensor:
        from ezaudio.kernels.skip_norm import skip_norm

        return skip_norm(x, skip, weight, bias, update, m_gate)

    def fused_geglu(x: Tensor) -> Tensor:
        from ezaudio.kernels.geglu import geglu

        return geglu(x)

    batch, frames, width = sizes.batch, sizes.frames, sizes.width
    tokens, row = (batch, frames, width), (width,)
    vectors = dict.fromkeys(("m_gate", "m_shift", "m_scale"), (batch, width))
    adaln = {"x": tokens, "update": tokens, "weight": row, "bias": row, **vectors}
    skipping = {"x": tokens, "skip": tokens, "update": tokens, "weight": (2 * width,), "bias": (2 * width,)}
    skipping["m_gate"] = (batch, width)
    return [
        Case("adaln-sola", gated, fused_gated, adaln, *kernel_floor("adaln-sola", sizes), {}),
        Case("skip norm", skip, fused_skip, skipping, *kernel_floor("skip norm", sizes), {}),
        Case("geglu", ops.geglu, fused_geglu, {"x": (batch, frames, 8 * width)}, *kernel_floor("geglu", sizes), {}),
    ]


def attention_cases(sizes: Sizes, rig: Rig) -> list[Case]:
    batch, frames, width, device, compiler = sizes.batch, sizes.frames, sizes.width, rig.device, rig.compiler
    head = width // sizes.heads
    rope = tuple(table.to(device) for table in ops.rope_tables(frames, head))
    mask = (torch.arange(sizes.tokens)[None] < torch.linspace(1, sizes.tokens, batch)[:, None]).to(device)

    def call(operator: Operator, self_attention: bool, **x: Tensor) -> Tensor:
        q, k, v = (ops.split_heads(x[name], sizes.heads) for name in "qkv")
        norms = (x["q_weight"], x["q_bias"]), (x["k_weight"], x["k_bias"])
        valid = None if self_attention else mask[: q.shape[0]]
        return operator(q, k, v, *norms, rope if self_attention else None, valid)  # type: ignore[return-value]

    def fused(*args: Any) -> Tensor:
        from ezaudio.kernels.attention import qk_norm_attention

        return qk_norm_attention(*args)

    def with_backend(backend: SDPBackend, *args: Any) -> Tensor:
        with sdpa_kernel(backend):
            return ops.qk_norm_attention(*args)

    def flex(q: Tensor, k: Tensor, v: Tensor, norm_q: Any, norm_k: Any, rope: Any, key_mask: Tensor | None) -> Tensor:
        from torch.nn.attention.flex_attention import flex_attention

        q, k = (F.layer_norm(x, (head,), norm[0], norm[1], ops.NORM_EPS) for x, norm in ((q, norm_q), (k, norm_k)))
        if rope is not None:
            q, k = ops.apply_rope(q, *rope), ops.apply_rope(k, *rope)
        keep = None
        if key_mask is not None:

            def keep(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
                return torch.where(key_mask[b, j], score, -float("inf"))

        return flex_attention(q, k, v, score_mod=keep).transpose(1, 2).flatten(2)

    cases = []
    for name, keys in (("self-attention", frames), ("cross-attention", sizes.tokens)):
        own = name == "self-attention"
        shapes: dict[str, tuple[int, ...]] = {"q": (batch, frames, width)}
        shapes |= dict.fromkeys("kv", (batch, keys, width))
        shapes |= {f"{side}_{part}": (head,) for side in "qk" for part in ("weight", "bias")}
        rivals: dict[str, Operator] = {
            f"compiled + SDPA {label}": torch.compile(partial(call, partial(with_backend, backend), own), **compiler)
            for label, backend in BACKENDS.items()
        }
        rivals["FlexAttention"] = torch.compile(partial(call, flex, own), **compiler)
        plain, ours = partial(call, ops.qk_norm_attention, own), partial(call, fused, own)
        cases.append(Case(name, plain, ours, shapes, *kernel_floor(name, sizes), rivals))
    return cases


def sampler_case(sizes: Sizes, device: str) -> Case:
    coefficients = torch.tensor([0.9, -0.1, 0.05, 0.2, 0.7, -0.6], device=device)
    weights = torch.tensor([5.0, 0.75], device=device)

    def plain(latents: Tensor, c: Tensor, u: Tensor, p: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        scale, rescale = weights[:, None].expand(2, len(latents)).unbind(0)
        return sampling.solver_step(coefficients, latents, sampling.guide(c, u, scale, rescale), p, noise)

    def fused(latents: Tensor, c: Tensor, u: Tensor, p: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        from ezaudio.kernels.sampler_step import sampler_step

        scale, rescale = weights[:, None].repeat(1, len(latents)).unbind(0)
        return sampler_step(latents, c, coefficients, u, p, scale, rescale, noise)

    shape = (max(1, sizes.batch // 2), sizes.channels, sizes.frames)  # guided: rows are two for each clip
    shapes = dict.fromkeys(("latents", "c", "u", "p", "noise"), shape)
    floors = kernel_floor("sampler step", sizes)
    return Case("sampler step", plain, fused, shapes, *floors, {}, torch.float32, trained=False)


def run(operator: Operator, inputs: dict[str, Tensor], train: bool, upstream: list[Tensor]) -> list[Tensor]:
    """Outputs, and with `train` the gradients of all inputs."""
    outputs = operator(**inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    if not train:
        return list(outputs)
    return [*outputs, *torch.autograd.grad(outputs, list(inputs.values()), upstream)]


def run_once(case: Case, inputs: dict[str, Tensor], backward: bool) -> None:
    """The fused operator's forward pass, and with `backward` both, on inputs that require gradients."""
    upstream = [torch.ones_like(out) for out in run(case.fused, inputs, False, [])]
    if backward:
        run(case.fused, inputs, True, upstream)


def wrong(case: Case, device: str) -> list[str]:
    """Outputs and gradients over 2 × eager's error + 2 ulp, against float64, in the shapes that are timed."""
    given = case.inputs(device)
    torch.manual_seed(0)
    found = []
    upstream: list[Tensor] = []
    for operator, dtype in ((case.plain, torch.float64), (case.plain, case.dtype), (case.fused, None)):
        inputs = {name: x.to(dtype or x.dtype).detach().requires_grad_(case.trained) for name, x in given.items()}
        if not upstream:
            outputs = run(operator, inputs, False, [])
            upstream = [torch.randn(out.shape, device=device).to(case.dtype) for out in outputs]
        matching = [g.to(torch.float64 if dtype == torch.float64 else case.dtype) for g in upstream]
        found.append(run(operator, inputs, case.trained, matching))
    names = [*(f"output {i}" for i in range(len(upstream))), *(f"gradient of {name}" for name in given)]
    bad = []
    # A bias on every key changes no score difference without RoPE: its gradient is rounding alone.
    ignored = "gradient of k_bias" if case.name == "cross-attention" else ""
    for name, exact, eager, got in zip(names, *found, strict=False):
        error, allowed = ((side.double() - exact.double()).abs().max().item() for side in (got, eager))
        bound = 2 * allowed + 2 * torch.finfo(case.dtype).eps * exact.abs().max().item()
        if name != ignored and not error <= bound:
            bad.append(f"{name}: error {error:.2g}, bound {bound:.2g}")
    return bad


FAULT = "after a fault of "
Contenders = dict[str, Callable[[], Any]]


@contextmanager
def unusable(name: str, reason: str) -> Iterator[None]:
    """Where a rival's fault has left the process without its GPU, an error that says whose and why."""
    try:
        yield
    except Exception as error:
        raise RuntimeError(f"{FAULT}{name}: {reason}") from error


def recorded(
    case: Case, train: bool, rig: Rig, rivals: Collection[str] | None = None
) -> tuple[Contenders, dict[str, str]]:
    """Fused and every rival, or those named, as graphs; and why a rival is not among them."""
    inputs = {name: x.requires_grad_(train) for name, x in case.inputs(rig.device).items()}
    torch.compiler.reset()  # else what was compiled before counts towards the limit after which nothing is
    others = {"eager": case.plain, "torch.compile": torch.compile(case.plain, **rig.compiler), **case.rivals}
    named = others if rivals is None else {name: call for name, call in others.items() if name in rivals}
    contenders: dict[str, Operator] = {"fused": case.fused, **named}
    calls, refused = {}, {}
    for name, operator in contenders.items():
        try:
            with torch.set_grad_enabled(train):
                upstream = [torch.randn_like(out) for out in run(operator, inputs, False, [])]
            calls[name] = captured(partial(run, operator, inputs, train, upstream), rig.device, train)
            calls[name]()
            settle(rig.device)
        except Exception as error:
            if name == "fused":
                raise
            refused[name] = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
            with unusable(name, refused[name]):
                settle(rig.device)
    return calls, refused


def timed(calls: Contenders, case: Case, rig: Rig) -> dict[str, Any]:
    """Milliseconds of each over the rounds, and ratios of rival to fused."""
    cache = torch.zeros(1, device=rig.device) if case.cached else cold_cache(rig.device)
    rounds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rig.rounds):
        for name, call in calls.items():
            rounds[name].append(milliseconds(call, cache))
    return {
        "ms": {name: spread(times)["median"] for name, times in rounds.items()},
        "rounds_ms": rounds,
        "ratio": {
            name: spread([a / b for a, b in zip(times, rounds["fused"], strict=True)]) for name, times in rounds.items()
        },
    }


def measure(case: Case, train: bool, rig: Rig, rivals: Collection[str] | None = None) -> dict[str, Any]:
    """`timed` of what is `recorded`, and what refused."""
    calls, refused = recorded(case, train, rig, rivals)
    return timed(calls, case, rig) | {"refused": refused}


def all_cases(rig: Rig, model: str, batch: int = KERNEL_BATCH) -> list[Case]:
    """Every operator of a model; the sampler step, which is the same in all, with L."""
    sizes = sized(rig, model, batch)
    found = [*norm_cases(sizes), *attention_cases(sizes, rig)]
    return [*found, sampler_case(sizes, rig.device)] if model == "l" else found
