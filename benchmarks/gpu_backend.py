"""The sections of `gpu.py` about the torch backend: loops, whole clips, memory, fidelity."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from gpu_goals import Row, row, step_flops
from gpu_rig import Rig, product_call, seconds, settle, used_bytes
from timing import interleave, spread
from torch import Tensor

from ezaudio.config import EzAudioConfig, preset
from ezaudio.dit import MaskDiT
from ezaudio.random_weights import fill_randomly
from ezaudio.runtime.presets import PRESETS
from ezaudio.runtime.solvers import SolverPlan, guided_steps, solver_plan
from ezaudio.runtime.torch_backend import generation
from ezaudio.runtime.torch_backend.exact import exact
from ezaudio.runtime.torch_backend.modules import graphs_of, num_bytes
from ezaudio.runtime.torch_backend.random_graphs import random_graphs
from ezaudio.runtime.torch_backend.request import Request, Shape, StepKind, host_inputs
from ezaudio.runtime.torch_backend.sessions import TorchSessions
from ezaudio.sampling import Condition, velocity

Emit = Callable[[Row], None]

PROMPT_IDS = (3, 9, 782, 6, 11, 57, 208, 44, 16, 5, 92, 1)  # a dozen tokens, as many as a usual prompt has
EMPTY_IDS = (1,)
SCALE, RESCALE = 5.0, 0.75
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
# After guidance, which multiplies what the branches differ by. Cosine and relative L2 of any step.
MIN_COSINE = {"fp16": 0.999, "bf16": 0.99}
MAX_PARITY = 0.05  # relative L2 of latents, or samples, fused and recorded against plain and eager


@contextmanager
def guarded(emit: Emit, goal: str, model: str, *whats: str) -> Iterator[None]:
    """What goes wrong inside becomes failed rows, and what comes after goes on."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  the boundary at which a failure becomes a row
        reason = (str(error).strip().splitlines() or [""])[0][:200] or type(error).__name__
        for what in whats:
            emit(row(goal, model, what, failed=True, reason=f"{type(error).__name__}: {reason}"))


def open_sessions(graphs: Any, config: EzAudioConfig, rig: Rig, precision: str, **how: bool) -> TorchSessions:
    """Fused and recorded; in a rehearsal float32 in plain PyTorch, unless the section asks for the interpreter."""
    dtype = DTYPES[precision] if rig.measures else torch.float32
    usual = {"fused": rig.measures, "recorded": rig.measures}
    return TorchSessions(graphs, config, rig.device, dtype, **(usual | how))


def encode(sessions: TorchSessions, ids: tuple[int, ...]) -> np.ndarray:
    """Text states (S, D_text)."""
    given = np.array([ids], np.int64)
    return sessions.run("text_encoder", input_ids=given, attention_mask=np.ones_like(given))["text_states"][0]


def request(
    rig: Rig,
    plan: SolverPlan,
    text: np.ndarray,
    empty: np.ndarray,
    batch: int = 1,
    steps: tuple[StepKind, ...] | None = None,
    decoded: bool = False,
) -> Request:
    """Guided clips of 10 s whose noise is drawn on the device."""
    return Request(
        text_states=[text] * batch,
        negative_states=[empty] * batch,
        plan=plan,
        steps=steps or (StepKind(guided=True, reused=False),) * plan.num_steps,
        num_frames=rig.frames,
        seeds=list(range(batch)),
        scale=[SCALE] * batch,
        rescale=[RESCALE] * batch,
        noise="philox",
        decoded=decoded,
    )


def fast(rig: Rig, config: EzAudioConfig) -> tuple[SolverPlan, tuple[StepKind, ...]]:
    """The plan of preset fast: which steps are guided, and which run the outer blocks alone."""
    chosen = PRESETS["fast"]
    plan = solver_plan(chosen.solver, chosen.num_steps, chosen.eta, config.diffusion, chosen.spacing)
    guided = guided_steps(plan, chosen.guidance_interval)
    return plan, tuple(StepKind(guided=g, reused=i in chosen.reuse) for i, g in enumerate(guided))


def parity(rig: Rig, graphs: Any, config: EzAudioConfig, fused: TorchSessions, asked: Request) -> float:
    """Relative L2 of a request's samples, or else latents, to those of the same weights in plain PyTorch, eager."""
    plain = open_sessions(graphs, config, rig, "fp16", fused=False, recorded=False)
    made = [sessions.generate(asked) for sessions in (fused, plain)]
    got, expected = (one.latents if one.samples is None else one.samples for one in made)
    error = float(np.linalg.norm(got - expected) / np.linalg.norm(expected))
    if not error <= MAX_PARITY:
        what = f"{len(asked.seeds)} clips of {asked.plan.num_steps} steps"
        raise RuntimeError(f"{what} are {error:.2g} from plain PyTorch's, at most {MAX_PARITY}")
    return error


def clips(rig: Rig, model: str, emit: Emit) -> None:
    """G1, G2, G3, G5, G6, G10 of one model in fp16."""
    config = preset(model)
    before = used_bytes(rig)
    graphs = random_graphs(config, device=rig.device)
    sessions = open_sessions(graphs, config, rig, "fp16")
    plan, two = (solver_plan("ddim", steps, eta, config.diffusion) for steps, eta in ((rig.steps, 1.0), (2, 0.0)))
    quick, kinds = fast(rig, config)
    with torch.inference_mode():
        text, empty = encode(sessions, PROMPT_IDS), encode(sessions, EMPTY_IDS)
        quick_clip = request(rig, quick, text, empty, steps=kinds, decoded=True)

        def two_steps_of(batch: int) -> str:
            """Which kernels run depends on how many clips there are."""
            error = parity(rig, graphs, config, sessions, request(rig, two, text, empty, batch))
            return f"two steps within {error:.1g} of plain PyTorch"

        checked = two_steps_of(1)
        decoded = f"decoded clips within {parity(rig, graphs, config, sessions, quick_clip):.1g}"

    def whole(asked: Request) -> Callable[[], object]:
        def run() -> object:
            return sessions.generate(replace(asked, text_states=[encode(sessions, PROMPT_IDS)]))

        return run

    if model != "l":
        with guarded(emit, "G3", model, "prompt to samples"):
            call = whole(request(rig, plan, text, empty, decoded=True))
            note = f"token ids to samples on the host, fp16; {checked}, {decoded}"
            emit(timed(rig, "G3", model, "prompt to samples", call, note))
    with guarded(emit, "G6", model, "prompt to samples"):
        note = f"{quick.name}, {quick.num_steps} steps, {sum(k.guided for k in kinds)} guided, token ids to samples"
        emit(timed(rig, "G6", model, "prompt to samples", whole(quick_clip), f"{note}, fp16; {decoded}"))
    if model != "l":
        with guarded(emit, "G10", model, "resident"):
            size = (used_bytes(rig) - before) / 1e9
            weights = num_bytes(graphs) / 1e9
            note = f"of it {weights:.2f} GB weights with the text encoder; graphs of G3 and G6; without CUDA's context"
            emit(row("G10", model, "resident", value=spread([size]), unit="GB", note=note))
    for goal, batch in (("G1", 1), ("G2", rig.batch)):
        with guarded(emit, goal, model, "loop"):
            with torch.inference_mode():
                found = checked if batch == 1 else two_steps_of(batch)
            emit(loop(rig, goal, model, sessions, request(rig, plan, text, empty, batch), found))
    if model != "xl":
        with guarded(emit, "G5", model, "loop"):
            eager = open_sessions(graphs, config, rig, "fp16", recorded=False)
            asked = request(rig, plan, text, empty)
            same = bool(np.array_equal(eager.generate(asked).latents, sessions.generate(asked).latents))
            sides = {"off": lambda: eager.generate(asked), "on": lambda: sessions.generate(asked)}
            timing = interleave(sides, rig.rounds)
            if not same:
                raise RuntimeError("the latents of a replay are not those of the eager run")
            note = f"{1e3 * timing.median('off'):.0f} ms ÷ {1e3 * timing.median('on'):.0f} ms, equal bytes"
            emit(row("G5", model, "loop", value=timing.ratio("off", "on"), unit="ratio", note=note))


def timed(rig: Rig, goal: str, model: str, what: str, call: Callable[[], object], note: str) -> Row:
    call()
    values = [1e3 * seconds(call, rig.device) for _ in range(rig.rounds)]
    return row(goal, model, what, value=spread(values), unit="ms", note=note, rounds=values)


def loop(rig: Rig, goal: str, model: str, sessions: TorchSessions, asked: Request, checked: str) -> Row:
    """Share of P that the plain math of the loop comes to, P measured in the same rounds."""
    products, product_flops = product_call(rig)
    work = asked.plan.num_steps * step_flops(preset(model), 2 * len(asked.seeds), rig.frames, rig.tokens)

    def product() -> None:
        products()
        settle(rig.device)

    sessions.generate(asked)
    timing = interleave({"loop": lambda: sessions.generate(asked), "product": product}, rig.rounds)
    rates = [product_flops / s for s in timing.seconds["product"]]
    shares = [work / s / p for s, p in zip(timing.seconds["loop"], rates, strict=True)]
    times = spread([1e3 * s for s in timing.seconds["loop"]])
    rate = spread(rates)["median"] / 1e12
    note = f"{times['median']:.1f} ms of {asked.plan.num_steps} steps, fp16; P {rate:.0f} TFLOP/s"
    return row(goal, model, "loop", value=spread(shares), unit="share", note=f"{note}; {checked}", ms=times)


def fidelity(rig: Rig, model: str, emit: Emit, precisions: tuple[str, ...] = ("fp16", "bf16")) -> None:
    """G11: guided velocities of every step, teacher-forced along the plain model's own loop in float32."""
    config = preset(model)
    dit = random_dit(config, rig)
    generator = torch.Generator().manual_seed(1)
    text, empty = (torch.randn(n, config.text.width, generator=generator).numpy() for n in (12, 1))
    plan = solver_plan("ddim", rig.steps, 0.0, config.diffusion)
    asked = request(rig, plan, text, empty)
    with exact():
        points = trajectory(rig, dit, plan, text, empty)
    for precision in precisions:
        with guarded(emit, "G11", model, precision):
            copied = copy.deepcopy(dit)  # opening takes its modules over, in half precision
            sessions = open_sessions(graphs_of(config, dit=copied), config, rig, precision, fused=True)
            shape = Shape.of(asked, config.text.max_tokens, draws_on_device=False)
            with exact():
                found = [
                    agreement(step_velocity(rig, sessions, asked, shape, latents, timestep), expected)
                    for timestep, latents, expected in points
                ]
            cosine, distance = min(c for c, _ in found), max(d for _, d in found)
            if not cosine >= MIN_COSINE[precision]:
                raise RuntimeError(f"the worst step's cosine is {cosine:.6f}, at least {MIN_COSINE[precision]}")
            note = f"worst of {len(found)} steps, largest relative L2 {distance:.1e}; random weights"
            emit(row("G11", model, precision, value=spread([cosine]), unit="cosine", note=note))
    emit(row("G11", model, "int8", reason="the torch backend has no int8"))


def random_dit(config: EzAudioConfig, rig: Rig) -> MaskDiT:
    """The plain model in float32 on the device."""
    with torch.device("meta"):
        dit = MaskDiT(config.dit)
    fill_randomly(dit, 0, "dit", rig.device)
    return dit.requires_grad_(False).eval()


def trajectory(
    rig: Rig, dit: MaskDiT, plan: SolverPlan, text: np.ndarray, empty: np.ndarray
) -> list[tuple[int, Tensor, Tensor]]:
    """Timestep, latents and guided velocity of every step."""
    states, negative = (torch.from_numpy(x)[None].to(rig.device) for x in (text, empty))
    condition = Condition(
        states,
        torch.ones(states.shape[:2], dtype=torch.bool, device=rig.device),
        negative,
        torch.ones(negative.shape[:2], dtype=torch.bool, device=rig.device),
    )
    scale, rescale = (torch.tensor([x], device=rig.device) for x in (SCALE, RESCALE))
    size = (1, dit.config.latent_channels, rig.frames)
    latents = torch.randn(size, generator=torch.Generator().manual_seed(2)).to(rig.device)
    points = []
    for timestep, coefficients in zip(plan.timesteps, plan.rows, strict=True):
        predicted = velocity(dit, condition, latents, int(timestep), scale, rescale)
        points.append((int(timestep), latents, predicted))
        latents = float(coefficients[0]) * latents + float(coefficients[1]) * predicted
    return points


def step_velocity(
    rig: Rig, sessions: TorchSessions, asked: Request, shape: Shape, latents: Tensor, timestep: int
) -> Tensor:
    """The guided velocity of a one-step loop whose row is (0, 1, 0, 0, 0, 1): what it makes is the velocity itself."""
    rows = np.array([[0, 1, 0, 0, 0, 1]], np.float32)
    plan = SolverPlan("velocity", np.array([timestep]), rows, 1000, draws_noise=False)
    kinds = (StepKind(guided=True, reused=False),)
    one = replace(shape, steps=kinds)
    inputs = host_inputs(replace(asked, plan=plan, steps=kinds), one, latents.shape[1])
    given = {name: value.to(rig.device) for name, value in inputs.items()} | {"start": latents}
    return generation.denoise(sessions._network, one, given, lambda step: None)


def agreement(got: Tensor, expected: Tensor) -> tuple[float, float]:
    """Cosine and relative L2."""
    a, b = got.double().flatten(), expected.double().flatten()
    return float(a @ b / (a.norm() * b.norm())), float((a - b).norm() / b.norm())
