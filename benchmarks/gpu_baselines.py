"""The sections of `gpu.py` that put ours beside something else: kernels, the official code, training."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from gpu_backend import (
    RESCALE,
    SCALE,
    Emit,
    agreement,
    guarded,
    open_sessions,
    random_dit,
    request,
    step_velocity,
)
from gpu_goals import PASSES, Row, row
from gpu_rig import Rig, captured, copy_bandwidth, copy_milliseconds, seconds, settle
from operators import BACKENDS, Case, attention_cases, measure, norm_cases, sized, wrong
from timing import interleave, spread
from torch import Tensor, nn

from ezaudio.config import EzAudioConfig, preset
from ezaudio.dit import MaskDiT
from ezaudio.runtime.solvers import solver_plan
from ezaudio.runtime.torch_backend.modules import graphs_of
from ezaudio.runtime.torch_backend.request import Shape
from ezaudio.sampling import guide
from ezaudio.training.recorded import Recorded

RIVALS = ("eager", *(f"compiled + SDPA {backend}" for backend in BACKENDS))  # FlexAttention: see kernels.py
OFFICIAL_STEPS = 10
TIMESTEP = 701
MIN_STEP_COSINE = 0.999  # of ours in fp16 to the baseline in fp32
LEARNING_RATE = 1e-4
MAX_LOSS_DIFFERENCE, MIN_GRADIENT_COSINE = 0.02, 0.98  # fused against eager, both under bf16 autocast


def operators(rig: Rig, model: str, emit: Emit, parts: Sequence[str]) -> None:
    """G7 is of the part "norms", G8 of those that an attention is named by."""
    sizes, bandwidth = sized(rig, model), copy_bandwidth(rig)
    for case in norm_cases(sizes):
        if "norms" in parts and case.name != "geglu":
            compare(rig, model, emit, "G7", case, (), partial(share_of_bandwidth, rig, bandwidth))
    for case in attention_cases(sizes, rig):
        if case.name in parts:
            compare(rig, model, emit, "G8", case, RIVALS, best_rival)


def compare(
    rig: Rig,
    model: str,
    emit: Emit,
    goal: str,
    case: Case,
    rivals: Sequence[str],
    tell: Callable[[Case, int, dict[str, Any]], dict[str, Any]],
) -> None:
    """A kernel against PyTorch in float64 first, in two types: what is not correct has no figure."""
    with guarded(emit, goal, model, *(f"{case.name}, {direction}" for direction in PASSES)):
        bad = wrong_in_types(rig, case)
        if bad:
            raise RuntimeError(f"not correct: {'; '.join(bad)[:160]}")
        for index, direction in enumerate(PASSES):
            what = f"{case.name}, {direction}"
            with guarded(emit, goal, model, what):
                found = measure(case, direction == "both", rig, rivals)
                emit(row(goal, model, what, **tell(case, index, found)))


def wrong_in_types(rig: Rig, case: Case) -> list[str]:
    """What is not within 2 × PyTorch's error + 2 ulp, in the types of the model."""
    types = (torch.bfloat16, torch.float16) if rig.measures else (torch.bfloat16,)
    return [f"{dtype}: {bad}" for dtype in types for bad in wrong(replace(case, dtype=dtype), rig.device)]


def share_of_bandwidth(rig: Rig, bandwidth: float, case: Case, index: int, found: dict[str, Any]) -> dict[str, Any]:
    """BW is that of a large copy; a copy of as many bytes as the operator moves starts and ends, too."""
    times, moved = found["rounds_ms"]["fused"], case.moved[index]
    shares = spread([moved / ms / 1e6 / bandwidth for ms in times])
    took, copied = 1e3 * spread(times)["median"], 1e3 * copy_milliseconds(rig, moved)
    note = f"{took:.1f} µs for {moved / 1e6:.0f} MB, a copy of as many {copied:.1f} µs, bf16; BW {bandwidth:.0f} GB/s"
    return {"value": shares, "unit": "share", "note": note, "rounds": times}


def best_rival(case: Case, index: int, found: dict[str, Any]) -> dict[str, Any]:
    """Ratio to the fastest of the others."""
    ratios = {name: ratio for name, ratio in found["ratio"].items() if name != "fused"}
    best = min(ratios, key=lambda name: ratios[name]["median"])
    ms = found["ms"]["fused"]
    others = ", ".join(f"{name} {ratio['median']:.2f}" for name, ratio in sorted(ratios.items()) if name != best)
    note = f"{1e3 * ms:.0f} µs, {case.flops[index] / ms / 1e9:.0f} TFLOP/s, bf16; best rival: {best}; {others}"
    refused = "".join(f"; {name} refused" for name in found["refused"])
    return {"value": ratios[best], "unit": "ratio", "note": note + refused, "rounds": found["rounds_ms"]}


Step = Callable[[int], Tensor]


@dataclass(frozen=True, slots=True)
class Ours:
    """Our side of G4, and what others get to do the same.

    Attributes:
        dit: the model in float32.
        loop: OFFICIAL_STEPS steps in one CUDA graph.
        velocity: what a step of it gives at a timestep.
        states, mask: text states (2, S, D_text) and which of them are valid.
    """

    rig: Rig
    model: str
    dit: MaskDiT
    loop: Callable[[], object]
    velocity: Step
    states: Tensor
    mask: Tensor


def rivals(rig: Rig, model: str, emit: Emit, checkout: Path | None) -> None:
    """G4: a guided step as others do it against a step of ours."""
    ours = our_side(rig, model)
    if not rig.prepares:  # nothing to compile that other sections do not compile
        official(ours, emit, checkout)
    compiled(ours, emit)


def official(ours: Ours, emit: Emit, checkout: Path | None) -> None:
    """Eager, as the official sampling loop does it."""
    model, eager = ours.model, ("fp32 eager", "fp16 autocast")
    baseline: Any = ours.dit
    if checkout is not None:
        try:
            baseline = official_dit(checkout, preset(model), ours.dit)
        except Exception as error:  # noqa: BLE001  whatever a checkout raises says why it is not measured
            reason = f"the official code cannot be imported: {(str(error).splitlines() or ['?'])[0][:150]}"
            for rival in eager:
                emit(row("G4", model, rival, reason=reason))
            return
    named = "plain PyTorch model" if checkout is None else "official code"
    for rival in eager:
        with guarded(emit, "G4", model, rival), torch.inference_mode():
            emit(against(ours, rival, guided_step(ours, baseline, autocast=rival.startswith("fp16")), named))


def compiled(ours: Ours, emit: Emit) -> None:
    """The plain model with weights in fp16, its blocks compiled, and the step as one CUDA graph.

    A block's code serves all blocks of its kind, which saves minutes of compiling the same 29 times. What the
    compiler chooses by measuring is kept nowhere, so that it measures again when nothing runs beside it.
    """
    rig = ours.rig
    unkept = torch._inductor.config.patch(autotune_local_cache=False, fx_graph_cache=False)
    with guarded(emit, "G4", ours.model, "max-autotune"), torch.inference_mode(), unkept:
        half = copy.deepcopy(ours.dit).to(torch.float16 if rig.measures else torch.float32)
        settings = {"mode": "max-autotune-no-cudagraphs"} if rig.measures else {"backend": "eager"}
        counts, known = torch._dynamo.utils.counters["stats"], "unique_graphs"
        before = counts[known]
        # As it leaves the embedding the stream is transposed: slower, and one more kind of block to compile.
        half.model.patch_embed.register_forward_hook(lambda module, inputs, stream: stream.contiguous())
        # What an out block needs holds all that others need, and preparation may not come to a second kind.
        for block in half.model.out_blocks if rig.prepares else half.model.all_blocks():
            block.compile(dynamic=False, **settings)
        step = guided_step(ours, half, dtype=next(half.parameters()).dtype)
        taken = seconds(lambda: step(TIMESTEP), rig.device)
        if rig.prepares:
            return
        replay = captured(partial(step, TIMESTEP), rig.device)
        kinds = counts[known] - before
        named = f"plain PyTorch model in fp16 as one CUDA graph, {kinds} kinds of block compiled in {taken:.0f} s"
        emit(against(ours, "max-autotune", lambda timestep: replay(), named))


def our_side(rig: Rig, model: str) -> Ours:
    config = preset(model)
    dit = random_dit(config, rig)
    generator = torch.Generator().manual_seed(1)
    text, empty = (torch.randn(n, config.text.width, generator=generator).numpy() for n in (12, 1))
    sessions = open_sessions(graphs_of(config, dit=copy.deepcopy(dit)), config, rig, "fp16")
    steps = OFFICIAL_STEPS if rig.measures else 2
    asked = request(rig, solver_plan("ddim", steps, 0.0, config.diffusion), text, empty)
    shape = Shape.of(asked, config.text.max_tokens, draws_on_device=False)

    def velocity(timestep: int) -> Tensor:
        return step_velocity(rig, sessions, asked, shape, latents_of(rig, config), timestep)

    padded = torch.zeros(2, max(rig.tokens, 12), config.text.width)
    padded[0, :12], padded[1, :1] = torch.from_numpy(text), torch.from_numpy(empty)
    mask = torch.arange(padded.shape[1]) < torch.tensor([[12], [1]])
    loop = partial(sessions.generate, asked)
    return Ours(rig, model, dit, loop, velocity, padded.to(rig.device), mask.to(rig.device))


def latents_of(rig: Rig, config: EzAudioConfig) -> Tensor:
    size = (1, config.dit.latent_channels, rig.frames)
    return torch.randn(size, generator=torch.Generator().manual_seed(2)).to(rig.device)


def guided_step(ours: Ours, dit: Any, autocast: bool = False, dtype: torch.dtype = torch.float32) -> Step:
    """timestep → guided velocity, both branches as a batch of two at the padded length."""
    rig, context = ours.rig, ours.states.to(dtype)
    latents = latents_of(rig, preset(ours.model)).to(dtype)
    scale, rescale = (torch.tensor([x], device=rig.device) for x in (SCALE, RESCALE))

    def step(timestep: int) -> Tensor:
        timesteps = torch.full((2,), timestep, device=rig.device)
        with torch.autocast(rig.device, torch.float16 if rig.measures else torch.bfloat16, enabled=autocast):
            both = dit(torch.cat([latents, latents]), timesteps, context, context_mask=ours.mask)
        both = both[0] if isinstance(both, tuple) else both
        conditional, negative = both.float().chunk(2)
        return guide(conditional, negative, scale, rescale)

    return step


def against(ours: Ours, rival: str, step: Step, named: str) -> Row:
    """The ratio of a step, once both give the same velocity."""
    cosine, _ = agreement(ours.velocity(TIMESTEP), step(TIMESTEP))
    if not cosine >= MIN_STEP_COSINE:
        raise RuntimeError(f"velocities differ: cosine {cosine:.6f}, at least {MIN_STEP_COSINE}")
    count = OFFICIAL_STEPS if ours.rig.measures else 2

    def theirs() -> None:
        for _ in range(count):
            step(TIMESTEP)
        settle(ours.rig.device)

    timing = interleave({rival: theirs, "ours": ours.loop}, ours.rig.rounds)
    each = {side: 1e3 * timing.median(side) / count for side in (rival, "ours")}
    note = f"{each[rival]:.2f} ÷ {each['ours']:.2f} ms a step, ours fp16; {named}; cosine {cosine:.6f}"
    return row("G4", ours.model, rival, value=timing.ratio(rival, "ours"), unit="ratio", note=note)


def official_dit(checkout: Path, config: EzAudioConfig, dit: MaskDiT) -> torch.nn.Module:
    """The DiT of a checkout with our weights."""
    from official_code import Official

    return Official(checkout, SimpleNamespace(config=config, dit=lambda: dit)).dit()  # type: ignore[arg-type]


def training(rig: Rig, model: str, emit: Emit) -> None:
    """G9: a step of AdamW under bf16 autocast; the same model takes each path in turn."""
    config = preset(model)
    dit = random_dit(config, rig).requires_grad_(True).train()
    optimizer = torch.optim.AdamW(dit.parameters(), LEARNING_RATE, fused=rig.measures or None)
    batch = training_batch(rig, config)
    if rig.prepares:  # the other sides have nothing to compile
        training_loss(rig, dit, dit, batch, fused=True).backward()
        return
    networks: dict[str, nn.Module] = {"eager": dit, "fused": dit, "recorded": Recorded(dit).train()}

    def step(side: str) -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = training_loss(rig, dit, networks[side], batch, side != "eager")
        loss.backward()
        optimizer.step()
        settle(rig.device)
        return float(loss.detach())

    def peak(side: str) -> float:
        """GB that PyTorch holds, a graph's memory included, which it does not count as allocated."""
        if not rig.measures:
            return 1.0
        step(side)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        step(side)
        return torch.cuda.max_memory_reserved() / 1e9

    peaks = {}
    for side, suffix in (("fused", ""), ("recorded", ", recorded")):
        with guarded(emit, "G9", model, f"time{suffix}", f"peak memory{suffix}"):
            if "eager" not in peaks:
                peaks["eager"] = peak("eager")  # before there is a graph
            checked = same_training(rig, dit, networks, side, batch)
            optimizer.zero_grad(set_to_none=True)
            peaks[side] = peak(side)
            timing = interleave({name: partial(step, name) for name in ("eager", side)}, rig.rounds)
            ms, eager_ms = (1e3 * timing.median(name) for name in (side, "eager"))
            clips = f"{rig.train_batch / ms * 1e3:.1f} clips/s of 10 s, batch {rig.train_batch}, bf16 autocast"
            note = f"{eager_ms:.0f} ÷ {ms:.0f} ms, {clips}; {checked}"
            emit(row("G9", model, f"time{suffix}", value=timing.ratio("eager", side), unit="ratio", note=note))
            change = spread([peaks[side] / peaks["eager"] - 1])
            note = f"{peaks['eager']:.1f} → {peaks[side]:.1f} GB with weights, gradients and optimizer"
            emit(row("G9", model, f"peak memory{suffix}", value=change, unit="change", note=note))


def training_batch(rig: Rig, config: EzAudioConfig) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    size = (rig.train_batch, config.dit.latent_channels, rig.frames)
    lengths = torch.linspace(1, rig.tokens, rig.train_batch).long()
    batch = {
        "x": torch.randn(size, generator=generator),
        "timesteps": torch.linspace(0, 999, rig.train_batch).long(),
        "context": torch.randn(rig.train_batch, rig.tokens, config.text.width, generator=generator),
        "context_mask": torch.arange(rig.tokens) < lengths[:, None],
        "target": torch.randn(size, generator=generator),
    }
    return {name: value.to(rig.device) for name, value in batch.items()}


@contextmanager
def path(dit: MaskDiT, fused: bool) -> Iterator[None]:
    before, dit.model.fused = dit.model.fused, fused
    try:
        yield
    finally:
        dit.model.fused = before


def training_loss(rig: Rig, dit: MaskDiT, network: nn.Module, batch: dict[str, Tensor], fused: bool) -> Tensor:
    """network: the model, or what calls it."""
    given = (batch[name] for name in ("x", "timesteps", "context", "context_mask"))
    with path(dit, fused), torch.autocast(rig.device, torch.bfloat16, enabled=rig.measures):
        out = network(*given)
    return (out.float() - batch["target"]).square().mean()


def same_training(rig: Rig, dit: MaskDiT, networks: dict[str, nn.Module], side: str, batch: dict[str, Tensor]) -> str:
    """Loss and gradients of a path and of eager's, compared before anything is timed."""
    losses, gradients = [], []
    for path_name in ("eager", side):
        dit.zero_grad(set_to_none=True)
        loss = training_loss(rig, dit, networks[path_name], batch, path_name != "eager")
        loss.backward()
        losses.append(float(loss.detach()))
        gradients.append([p.grad.detach().clone() for p in dit.parameters() if p.grad is not None])
    eager, fused_loss = losses
    difference = abs(fused_loss - eager) / eager
    dot = sum(float((a.double() * b.double()).sum()) for a, b in zip(*gradients, strict=True))
    norms = [sum(float(g.double().square().sum()) for g in side) ** 0.5 for side in gradients]
    cosine = dot / (norms[0] * norms[1])
    if not (difference <= MAX_LOSS_DIFFERENCE and cosine >= MIN_GRADIENT_COSINE):
        raise RuntimeError(f"training differs: losses {eager:.5f} and {fused_loss:.5f}, gradients' cosine {cosine:.5f}")
    return f"loss within {difference:.1e}, gradients' cosine {cosine:.5f}"
