"""The official PyTorch code against our bundles on the same weights: the guided step, the decoder, whole clips.

    python benchmarks/official.py --official CHECKOUT --model l --save
    python benchmarks/official.py --official CHECKOUT --model l --bundle l32/ --bundle l8/ --plain --save
    python benchmarks/official.py --official CHECKOUT --model l --no-step --openvino lbf16/ --save
    python benchmarks/official.py --official CHECKOUT --model l --no-step --no-decode --clip-steps 10 --save
    python benchmarks/official.py --official CHECKOUT --model l --no-step --no-decode --preset fast --save

CHECKOUT is a clone of github.com/haidog-yaqub/EzAudio (pip install einops diffusers pyyaml). Its modules get the random
weights that the bundles were exported from (ezaudio-export --random-weights; without --bundle they are exported into
the cache first), which changes nothing about speed. `l4` is L's width in five blocks, for quick runs.

A step is what the official sampling loop does: float32, a batch of two (the prompt and the empty one, 100 tokens each),
guidance and rescale; all cores. Before anything is timed every side's velocity is compared with the official one at
four timesteps, decoded samples and whole clips likewise, and a difference beyond the bound ends the run. The official
code runs in a process of its own, as its users run it, and does nothing while it is not its turn. Sides run in turn; a
ratio is the median over the rounds of official ÷ ours of the same round. `--plain` adds the plain ONNX export of the
PyTorch model. Clips are made without noise in the steps, where the official code gives numbers at any count.
`--preset` times one clip of 100 steps by the official code, ten minutes for L, and clips with the preset before and
after it; clips of two steps are compared first.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from elsewhere import BundleDecoder, Elsewhere, decoded
from measure import hardware_line, require, rounds_option, save_option, write_row
from models import (
    MAX_RELATIVE_L2,
    MIN_COSINE,
    MODELS,
    PROMPT,
    TIMESTEPS,
    Bundle,
    find_bundle,
    padded_text,
    source_of,
    start_latents,
    worst,
)
from official_code import OfficialSide
from plain import PlainStep
from timing import Timing, interleave, spread, told

from ezaudio.checkpoints import ModelSource
from ezaudio.runtime import TextToAudio
from ezaudio.runtime.machine import cores
from ezaudio.runtime.manifest import read_manifest
from ezaudio.runtime.measures import measure

OFFICIAL = "official fp32"
MAX_CLIP_ERROR = 1e-2  # of samples after a whole loop in fp32: rounding grows with every step
DEFAULT_STEPS = 100  # of the official code


@click.command(help=__doc__)
@click.option("--official", "checkout", required=True, type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--model", type=click.Choice(MODELS), default="l", show_default=True)
@click.option(
    "--bundle", "folders", multiple=True, type=click.Path(path_type=Path, exists=True), help="[fp32 and int8, exported]"
)
@click.option("--duration", "duration_s", default=10.0, show_default=True)
@click.option("--step/--no-step", default=True, show_default=True, help="Time the guided step.")
@click.option("--decode/--no-decode", default=True, show_default=True, help="Time the VAE's decoder.")
@click.option("--min-cosine", default=MIN_COSINE["int8"], show_default=True, help="Of an int8 step's velocities.")
@click.option("--plain", is_flag=True, help="Time a plain ONNX export, too.")
@click.option(
    "--openvino",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="BUNDLE",
    help="Time the decoder of this bundle on the backend openvino, too, in a process of its own.",
)
@click.option("--clip-steps", type=click.IntRange(min=1), help="Time whole clips of so many steps, too.")
@click.option("--preset", metavar="NAME", help="Time whole clips of 100 official steps against this preset, too.")
@rounds_option
@save_option
def main(
    checkout: Path,
    model: str,
    folders: tuple[Path, ...],
    duration_s: float,
    step: bool,
    decode: bool,
    min_cosine: float,
    plain: bool,
    openvino: Path | None,
    clip_steps: int | None,
    preset: str | None,
    rounds: int,
    save: Path | None,
) -> None:
    torch.set_num_threads(cores())
    found = folders or [find_bundle(model, precision) for precision in ("fp32", "int8")]
    bundles = {}
    for folder in found:
        manifest = read_manifest(folder, verify=False)
        find_bundle(model, manifest.precision, folder)
        bundles[manifest.precision] = Bundle.open(folder)
    source = source_of(next(iter(bundles.values())).manifest)
    if any(bundle.manifest.origin != source.origin for bundle in bundles.values()):
        raise click.ClickException("the bundles come from different weights: export them from the same")
    official = Elsewhere(OfficialSide, checkout.resolve(), next(iter(bundles.values())).folder)
    print(f"{model}, {duration_s:g} s; {hardware_line()}")
    common = {"model": model, "origin": source.origin, "duration_s": duration_s}
    with torch.inference_mode():
        if step:
            write_row(common | measure_step(official, source, bundles, duration_s, plain, min_cosine, rounds), save)
        if decode:
            write_row(common | measure_decode(official, source, bundles, openvino, duration_s, rounds), save)
        if clip_steps is not None:
            write_row(common | measure_clip(official, source, bundles, duration_s, clip_steps, rounds), save)
        if preset is not None:
            write_row(common | measure_preset(official, source, bundles, duration_s, preset, rounds), save)
    official.close()


def measure_step(
    official: Elsewhere,
    source: ModelSource,
    bundles: dict[str, Bundle],
    duration_s: float,
    plain: bool,
    min_cosine: float,
    rounds: int,
) -> dict[str, Any]:
    """C1 and C2: a guided step of every bundle, and of the plain export, against the official one."""
    some = next(iter(bundles.values()))
    latents = start_latents(source.config, duration_s)
    text, mask = padded_text(source, some)
    scale, rescale = some.guidance(latents)
    official.call("prepare_step", latents, text, mask, scale, rescale)
    velocities = {timestep: official.call("step", timestep) for timestep in TIMESTEPS}
    steps: dict[str, tuple[str, Callable[[int], Callable[[], Any]]]] = {}
    if plain:
        graph = PlainStep(some, latents, text.numpy(), mask.numpy())
        steps["plain fp32"] = ("fp32", lambda timestep: lambda: graph(timestep))
    for precision, bundle in bundles.items():
        steps[f"ours {precision}"] = (precision, lambda timestep, bundle=bundle: bundle.step(latents, timestep))  # type: ignore[misc]
    parity = {}
    for side, (precision, at) in steps.items():
        cosine, relative_l2, timestep = worst(at, lambda timestep: lambda: velocities[timestep])
        print(f"parity of {side}: cosine {cosine:.6f}, relative L2 {relative_l2:.1e} (worst at timestep {timestep})")
        at_least = min_cosine if precision == "int8" else MIN_COSINE[precision]
        require(f"step of {side}", relative_l2, MAX_RELATIVE_L2[precision], cosine, at_least)
        parity[side] = {"cosine": cosine, "relative_l2": relative_l2}
    for bundle in bundles.values():
        bundle.sessions.release("text_encoder")
    sides = {side: at(TIMESTEPS[1]) for side, (_, at) in steps.items()}
    return _timed("step", {OFFICIAL: lambda: official.call("step", TIMESTEPS[1]), **sides}, parity, rounds)


def measure_decode(
    official: Elsewhere,
    source: ModelSource,
    bundles: dict[str, Bundle],
    openvino: Path | None,
    duration_s: float,
    rounds: int,
) -> dict[str, Any]:
    """C3: latents → samples by every bundle's decoder against the official one."""
    latents = start_latents(source.config, duration_s)
    expected = official.call("decode", latents)
    sides: dict[str, Callable[[], Any]] = {OFFICIAL: lambda: official.call("decode", latents)}
    precisions = {}
    for precision, bundle in bundles.items():
        bundle.sessions.release()
        precisions[f"ours {precision}"] = precision
        sides[f"ours {precision}"] = lambda bundle=bundle: decoded(bundle.sessions, bundle.config.vae, latents)  # type: ignore[misc]
    if openvino is not None:
        manifest = read_manifest(openvino, verify=False)
        if manifest.origin != source.origin:
            raise click.ClickException(f"'{openvino}' comes from different weights: export it from the same")
        other = Elsewhere(BundleDecoder, openvino, "openvino")
        precisions[f"openvino {manifest.precision}"] = manifest.precision
        sides[f"openvino {manifest.precision}"] = lambda: other.call("decode", latents)
    parity = {}
    for side, precision in precisions.items():
        cosine, relative_l2 = measure(sides[side](), expected)
        parity[side] = {"cosine": cosine, "relative_l2": relative_l2}
        print(f"parity of {side}: cosine {cosine:.6f}, relative L2 {relative_l2:.1e}")
        stored = "fp16" if precision == "int8" else precision  # an int8 bundle's decoder is stored in fp16
        require(f"decoder of {side}", relative_l2, MAX_RELATIVE_L2[stored], cosine, MIN_COSINE[stored])
    return _timed("decode", sides, parity, rounds)


def measure_clip(
    official: Elsewhere, source: ModelSource, bundles: dict[str, Bundle], duration_s: float, steps: int, rounds: int
) -> dict[str, Any]:
    """Prompt → samples. The official `inference` encodes both prompts anew; so do we."""
    official.call("prepare_clip", round(duration_s * source.config.vae.latent_rate), steps, 1)
    expected = official.call("clip")
    sides: dict[str, Callable[[], Any]] = {OFFICIAL: lambda: official.call("clip")}
    parity = {}
    for precision, bundle in bundles.items():
        bundle.sessions.release()
        model = TextToAudio(bundle.folder, verify=False, backend="onnxruntime")
        sides[f"ours {precision}"] = ours = _clip(model, duration_s, {"num_steps": steps, "eta": 0.0, "solver": "ddim"})
        cosine, relative_l2 = measure(ours(), expected)
        parity[f"ours {precision}"] = {"cosine": cosine, "relative_l2": relative_l2}
        print(f"clip of ours {precision}: cosine {cosine:.6f}, relative L2 {relative_l2:.1e}")
        if precision == "fp32":  # the others are judged step by step: loops drift apart however small the error
            require("clip in fp32", relative_l2, MAX_CLIP_ERROR)
    return _timed("clip", sides, parity, rounds) | {"num_steps": steps}


def measure_preset(
    official: Elsewhere, source: ModelSource, bundles: dict[str, Bundle], duration_s: float, preset: str, rounds: int
) -> dict[str, Any]:
    """C5: one clip of the official code at its own number of steps, and half of the rounds of ours on each side."""
    frames = round(duration_s * source.config.vae.latent_rate)
    official.call("prepare_clip", frames, 2, 1)
    expected = official.call("clip")
    sides: dict[str, Callable[[], Any]] = {}
    parity = {}
    for precision, bundle in bundles.items():
        bundle.sessions.release()
        model = TextToAudio(bundle.folder, verify=False, backend="onnxruntime")
        two = {"num_steps": 2, "eta": 0.0, "solver": "ddim"}
        cosine, relative_l2 = measure(_clip(model, duration_s, two)(), expected)
        parity[f"ours {precision}"] = {"cosine": cosine, "relative_l2": relative_l2}
        print(f"two steps of ours {precision}: cosine {cosine:.6f}, relative L2 {relative_l2:.1e}")
        if precision == "fp32":
            require("two steps in fp32", relative_l2, MAX_CLIP_ERROR)
        sides[f"ours {precision}"] = _clip(model, duration_s, {"preset": preset})
    before = interleave(sides, rounds // 2)
    official.call("prepare_clip", frames, DEFAULT_STEPS, 1)
    start = time.perf_counter()
    official.call("clip")
    seconds = {OFFICIAL: [time.perf_counter() - start]}
    after = interleave(sides, rounds - rounds // 2)
    seconds |= {side: before.seconds[side] + after.seconds[side] for side in sides}
    timing = Timing(before.warm_up, seconds)
    ratios = {side: spread([seconds[OFFICIAL][0] / ours for ours in seconds[side]]) for side in sides}
    print(f"{DEFAULT_STEPS} steps of the {OFFICIAL} {seconds[OFFICIAL][0]:.1f} s")
    for side, ratio in ratios.items():
        print(f"{preset}: {side} {timing.median(side):.3f} s, official ÷ ours {told(ratio)}")
    row = {"benchmark": "official", "case": "preset", "preset": preset, "num_steps": DEFAULT_STEPS}
    return row | {"official_over": ratios, "parity": parity} | timing.fields()


def _clip(model: TextToAudio, duration_s: float, settings: dict[str, Any]) -> Callable[[], np.ndarray]:
    """Prompt → samples (T,), nothing kept of the clip before but open sessions."""

    def run() -> np.ndarray:
        model._conditioning.forget()
        return model.generate(PROMPT, duration_s=duration_s, seed=1, **settings).samples[0]

    return run


def _timed(
    case: str, sides: dict[str, Callable[[], Any]], parity: dict[str, dict[str, float]], rounds: int
) -> dict[str, Any]:
    timing = interleave(sides, rounds)
    ratios = {side: timing.ratio(OFFICIAL, side) for side in sides if side != OFFICIAL}
    print(f"{case}: {OFFICIAL} {timing.median(OFFICIAL):.3f} s")
    for side, ratio in ratios.items():
        print(f"{case}: {side} {timing.median(side):.3f} s, official ÷ ours {told(ratio)}")
    return {"benchmark": "official", "case": case, "official_over": ratios, "parity": parity} | timing.fields()


if __name__ == "__main__":
    main()
