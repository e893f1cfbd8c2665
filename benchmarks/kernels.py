"""The Triton kernels on a GPU: correctness first, then time against eager, torch.compile, SDPA and FlexAttention.

    python benchmarks/kernels.py          # from a checkout; needs PyTorch ≥ 2.11 and Triton ≥ 3.6, nothing else
    python benchmarks/kernels.py --models xl --only self-attention,cross-attention

Every contender is captured as a CUDA graph, so that hosts do not count, and timed in turn with a cold second-level
cache; a ratio is the median over the rounds, with its 20th and 80th percentile. Compilers run first, for all operators
side by side. Rows are appended to benchmarks/results/kernels.jsonl. Without a GPU it prints what each operator has to
move and compute, and measures nothing.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from checkout import ROOT, use_checkout
from gpu_rig import GPU, PREPARATION, Rig, captured, cold_cache, copy_bandwidth, hardware, milliseconds, settle
from timing import spread
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

use_checkout("kernels", "runtime")

from ezaudio import sampling  # noqa: E402
from ezaudio.kernels import reference as ops  # noqa: E402

Operator = Callable[..., Tensor | tuple[Tensor, ...]]
WIDTHS = {"l": 1024, "xl": 1152}
HEADS, FRAMES, TOKENS, CHANNELS = 16, 500, 100, 128
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


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
    shapes: dict[str, tuple[int, ...]]
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


def norm_cases(batch: int, width: int) -> list[Case]:
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

    tokens, row = (batch, FRAMES, width), (width,)
    size = 2 * batch * FRAMES * width  # bytes of one tensor of tokens
    vectors = dict.fromkeys(("m_gate", "m_shift", "m_scale"), (batch, width))
    adaln = {"x": tokens, "update": tokens, "weight": row, "bias": row, **vectors}
    skipping = {"x": tokens, "skip": tokens, "update": tokens, "weight": (2 * width,), "bias": (2 * width,)}
    skipping["m_gate"] = (batch, width)
    return [
        Case("adaln-sola", gated, fused_gated, adaln, (4 * size, 10 * size), (0, 0), {}),
        Case("skip norm", skip, fused_skip, skipping, (5 * size, 13 * size), (0, 0), {}),
        Case("geglu", ops.geglu, fused_geglu, {"x": (batch, FRAMES, 8 * width)}, (12 * size, 32 * size), (0, 0), {}),
    ]


def attention_cases(batch: int, width: int, rig: Rig) -> list[Case]:
    head, device, compiler = width // HEADS, rig.device, rig.compiler
    rope = tuple(table.to(device) for table in ops.rope_tables(FRAMES, head))
    mask = (torch.arange(TOKENS)[None] < torch.linspace(1, TOKENS, batch)[:, None]).to(device)

    def call(operator: Operator, self_attention: bool, **x: Tensor) -> Tensor:
        q, k, v = (ops.split_heads(x[name], HEADS) for name in "qkv")
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

        q, k = (F.layer_norm(x, (head,), *norm, ops.NORM_EPS) for x, norm in ((q, norm_q), (k, norm_k)))
        if rope is not None:
            q, k = ops.apply_rope(q, *rope), ops.apply_rope(k, *rope)
        keep = None
        if key_mask is not None:

            def keep(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
                return torch.where(key_mask[b, j], score, -float("inf"))

        return flex_attention(q, k, v, score_mod=keep).transpose(1, 2).flatten(2)  # type: ignore[union-attr, return-value]

    cases = []
    for name, keys in (("self-attention", FRAMES), ("cross-attention", TOKENS)):
        own = name == "self-attention"
        shapes = {"q": (batch, FRAMES, width), "k": (batch, keys, width), "v": (batch, keys, width)}
        shapes |= {f"{side}_{part}": (head,) for side in "qk" for part in ("weight", "bias")}
        queries, keyed = 2 * batch * FRAMES * width, 2 * batch * keys * width
        product = 2 * batch * FRAMES * keys * width
        rivals: dict[str, Operator] = {
            f"compiled + SDPA {label}": torch.compile(partial(call, partial(with_backend, backend), own), **compiler)
            for label, backend in BACKENDS.items()
        }
        rivals["FlexAttention"] = torch.compile(partial(call, flex, own), **compiler)
        moved = 2 * queries + 2 * keyed, 6 * queries + 6 * keyed
        plain, ours = partial(call, ops.qk_norm_attention, own), partial(call, fused, own)
        cases.append(Case(name, plain, ours, shapes, moved, (2 * product, 7 * product), rivals))
    return cases


def sampler_case(batch: int, device: str) -> Case:
    coefficients = torch.tensor([0.9, -0.1, 0.05, 0.2, 0.7, -0.6], device=device)
    weights = torch.tensor([5.0, 0.75], device=device)

    def plain(latents: Tensor, c: Tensor, u: Tensor, p: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        scale, rescale = weights[:, None].expand(2, len(latents)).unbind(0)
        return sampling.solver_step(coefficients, latents, sampling.guide(c, u, scale, rescale), p, noise)

    def fused(latents: Tensor, c: Tensor, u: Tensor, p: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        from ezaudio.kernels.sampler_step import sampler_step

        scale, rescale = weights[:, None].repeat(1, len(latents)).unbind(0)
        return sampler_step(latents, c, coefficients, u, p, scale, rescale, noise)

    shapes = dict.fromkeys(("latents", "c", "u", "p", "noise"), (batch, CHANNELS, FRAMES))
    moved = 7 * 4 * batch * CHANNELS * FRAMES
    return Case("sampler step", plain, fused, shapes, (moved, moved), (0, 0), {}, torch.float32, trained=False)


def run(operator: Operator, inputs: dict[str, Tensor], train: bool, upstream: list[Tensor]) -> list[Tensor]:
    """Outputs, and with `train` the gradients of all inputs."""
    outputs = operator(**inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    if not train:
        return list(outputs)
    return [*outputs, *torch.autograd.grad(outputs, list(inputs.values()), upstream)]


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


@contextmanager
def unusable(name: str, reason: str) -> Iterator[None]:
    """Where a rival's fault has left the process without its GPU, an error that says whose and why."""
    try:
        yield
    except Exception as error:
        raise RuntimeError(f"{FAULT}{name}: {reason}") from error


def measure(case: Case, train: bool, rig: Rig, rivals: Collection[str] | None = None) -> dict[str, Any]:
    """Milliseconds of fused and of every rival, or of those named, over the rounds; ratios of rival to fused."""
    inputs = {name: x.requires_grad_(train) for name, x in case.inputs(rig.device).items()}
    torch.compiler.reset()  # else what was compiled before counts towards the limit after which nothing is
    others = {"eager": case.plain, "torch.compile": torch.compile(case.plain, **rig.compiler), **case.rivals}
    named = others if rivals is None else {name: call for name, call in others.items() if name in rivals}
    contenders: dict[str, Operator] = {"fused": case.fused, **named}
    cache = torch.zeros(1, device=rig.device) if case.cached else cold_cache(rig.device)
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
        "refused": refused,
    }


def table_row(row: dict[str, Any], bandwidth: float | None) -> str:
    floor = f"{row['moved_bytes'] / 1e6:8.1f} MB {row['flops'] / 1e9:8.1f} GFLOP"
    head = f"{row['model']:3} {row['operator']:16} {row['pass']:9} {floor}"
    if bandwidth is None:
        return f"{head}   not measured"
    time = row["ms"]["fused"]
    speed = row["moved_bytes"] / time / 1e6
    products = f"{row['flops'] / time / 1e9:6.0f} TFLOP/s" if row["flops"] else " " * 14
    rivals = "  ".join(
        f"{name} {q['median']:.2f}× ({q['p20']:.2f}–{q['p80']:.2f})"
        for name, q in row["ratio"].items()
        if name != "fused"
    )
    rivals += "".join(f"  {name} refused" for name in row["refused"])
    return f"{head} {time * 1e3:8.1f} µs {speed:6.0f} GB/s {speed / bandwidth:4.0%} {products}  {rivals}"


def cases(model: str, batch: int, device: str) -> list[Case]:
    width = WIDTHS[model]
    found = [*norm_cases(batch, width), *attention_cases(batch, width, replace(GPU, device=device))]
    return [*found, sampler_case(batch // 2 or 1, device)] if model == "l" else found


def passes(case: Case) -> tuple[str, ...]:
    return ("forward", "both") if case.trained else ("forward",)


Found = tuple[list[str], list[dict[str, Any]]]
"""What is not correct, or by pass what `measure` found."""


def measured_case(model: str, index: int, batch: int, rig: Rig, faulty: dict[str, str]) -> Found:
    case = cases(model, batch, rig.device)[index]
    bad = [] if rig.prepares else wrong(case, rig.device)
    rivals = [name for name in ("eager", "torch.compile", *case.rivals) if name not in faulty]
    found = [] if bad else [measure(case, name == "both", rig, rivals) for name in passes(case)]
    return bad, [each | {"refused": each["refused"] | faulty} for each in found]


def alone(model: str, index: int, batch: int, rig: Rig = GPU) -> Found:
    """`measured_case` in a process of its own: after a fault a process can use its GPU no more.

    After one of a rival, another process measures without it.
    """
    faulty: dict[str, str] = {}
    while True:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            try:
                return pool.submit(measured_case, model, index, batch, rig, faulty).result()
            except Exception as error:  # noqa: BLE001  whatever it was, the others are measured
                message = (str(error).splitlines() or [""])[0][:200]
                if not message.startswith(FAULT):
                    return [f"failed: {type(error).__name__}: {message}"], []
        name, _, reason = message.removeprefix(FAULT).partition(": ")
        faulty[name] = reason


def prepare(jobs: list[tuple[str, int]], batch: int) -> None:
    """Run all side by side, for what they leave in the caches of compilers. Failures are told when measured."""
    print(f"compiling for {len(jobs)} operators side by side …", file=sys.stderr)
    with ThreadPoolExecutor(len(jobs)) as pool:
        for ended in [pool.submit(alone, model, index, batch, PREPARATION) for model, index in jobs]:
            ended.result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16, help="rows: 16 is eight guided clips [%(default)s]")
    parser.add_argument("--models", default=",".join(WIDTHS), help="with a comma between them [%(default)s]")
    parser.add_argument("--only", metavar="OPERATORS", help="with commas between them [all]")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "kernels.jsonl")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    models = named(parser, "--models", args.models, tuple(WIDTHS))
    by_model = {model: cases(model, args.batch, device) for model in models}
    known = tuple(dict.fromkeys(case.name for found in by_model.values() for case in found))
    only = named(parser, "--only", args.only or ",".join(known), known)
    jobs = [(model, i) for model, found in by_model.items() for i, case in enumerate(found) if case.name in only]
    print("Bytes that must be moved, FLOPs of the products; ratio = time of the rival ÷ time of the fused operator.")
    if device == "cpu":
        for model, index in jobs:
            for row in rows_of(model, by_model[model][index], args.batch, ([], [])):
                print(table_row(row, None))
        sys.exit("A CUDA GPU is needed to measure: the table above is only what each operator has to move and compute.")
    prepare(jobs, args.batch)
    bandwidth, facts, failed = copy_bandwidth(GPU), hardware(), []
    print(", ".join(f"{name} {value}" for name, value in facts.items()) + f", copy {bandwidth:.0f} GB/s")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    for model, index in jobs:
        case = by_model[model][index]
        found = alone(model, index, args.batch)
        failed += [f"{model} {case.name}: {problem}" for problem in found[0]]
        rows = rows_of(model, case, args.batch, found)
        with args.output.open("a", encoding="utf-8") as file:  # at once: a run that is stopped keeps what it measured
            file.writelines(json.dumps(row | {"copy_gb_per_s": bandwidth} | facts) + "\n" for row in rows)
        for row in rows:
            print(table_row(row, bandwidth if "ms" in row else None), flush=True)
    if failed:
        sys.exit("not correct or not measured, no ratio printed for these:\n" + "\n".join(failed))


def named(parser: argparse.ArgumentParser, option: str, given: str, known: tuple[str, ...]) -> list[str]:
    """The values of an option that takes several, with commas between them."""
    names = given.split(",")
    if unknown := sorted(set(names) - set(known)):
        parser.error(f"{option}: unknown {', '.join(unknown)}; expected some of {', '.join(known)}")
    return names


def rows_of(model: str, case: Case, batch: int, found: Found) -> list[dict[str, Any]]:
    """By pass: the floor, whether results are right, and what was measured, if it was."""
    bad, measured = found
    rows = []
    for index, name in enumerate(passes(case)):
        row = {"benchmark": "kernels", "model": model, "operator": case.name, "pass": name, "batch": batch}
        row |= {"moved_bytes": case.moved[index], "flops": case.flops[index], "failed": bad}
        rows.append(row | (measured[index] if measured else {}))
    return rows


if __name__ == "__main__":
    main()
