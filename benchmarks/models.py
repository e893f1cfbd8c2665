"""The models that the benchmarks measure: bundles, the PyTorch modules they came from, and one step of each.

What a denoiser's graph is called and fed with stands here and nowhere else in the benchmarks.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from ezaudio.config import EzAudioConfig, TextConfig, preset
from ezaudio.runtime.bundle_store import cache_folder
from ezaudio.runtime.manifest import Manifest, read_manifest
from ezaudio.runtime.measures import measure
from ezaudio.runtime.session import GraphSessions
from ezaudio.runtime.teacher_forcing import Point, TeacherForced

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from ezaudio.checkpoints import ModelSource

    Float32 = NDArray[np.float32]

# transformers asks whether a package of this name is there, and would take benchmarks/kernels.py for it.
sys.modules.setdefault("kernels", None)  # type: ignore[arg-type]

PROMPT, OTHER_PROMPT = "a dog barks in the distance", "music, speech"
MODELS = ("l", "xl", "l4", "nano", "debug")
TIMESTEPS = (999, 701, 401, 101)
# After guidance, which multiplies what the branches differ by. int8 is bounded by its cosine alone.
MAX_RELATIVE_L2 = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 1e-1, "int8": 1.0}
MIN_COSINE = {"fp32": 0.999999, "fp16": 0.9998, "bf16": 0.995, "int8": 0.999}


def config_of(model: str) -> EzAudioConfig:
    """A preset, or `l4`: L's width and VAE in 4 + 1 blocks with a small text encoder, for quick runs."""
    if model != "l4":
        return preset(model)
    large = preset("l")
    text = TextConfig(
        large.text.width, num_layers=1, num_heads=16, head_width=64, ff_width=large.text.ff_width, vocab_size=1024
    )
    return replace(large, name="l4", dit=replace(large.dit, depth=4), text=text)


def random_source(config: EzAudioConfig, seed: int = 0) -> ModelSource:
    """Random weights of any shape, the same as `ezaudio-export --random-weights` takes."""
    from ezaudio.checkpoints import open_source

    return replace(open_source("debug", random_weights=True, seed=seed), config=config)


def source_of(manifest: Manifest) -> ModelSource:
    """The PyTorch weights that a bundle was exported from."""
    from ezaudio.checkpoints import open_source

    if found := re.fullmatch(r"random weights, seed (-?\d+)", manifest.origin):
        return random_source(manifest.config, int(found[1]))
    if manifest.config.name == "nano":
        return open_source("nano")
    raise click.ClickException(
        f"the bundle's weights are of {manifest.origin}: export one with --random-weights, which can be made again"
    )


def find_bundle(model: str, precision: str, folder: Path | None = None) -> Path:
    """`folder`, or the model with random weights in that precision, exported into the user's cache when first asked."""
    if folder is not None:
        found = read_manifest(folder, verify=False)
        if (found.config.name, found.precision) != (model, precision):
            raise click.ClickException(
                f"'{folder}' is {found.config.name} in {found.precision}, expected {model} in {precision}"
            )
        return folder
    path = cache_folder() / "benchmarks" / f"{model}-{precision}"
    if not (path / "manifest.json").is_file():
        from ezaudio.export.bundle import export_bundle

        print(f"exporting {model} in {precision} to {path}", file=sys.stderr)
        export_bundle(random_source(config_of(model)), path, precision)
    return path


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened bundle, asked for velocities."""

    folder: Path
    manifest: Manifest
    sessions: GraphSessions
    teacher: TeacherForced

    @classmethod
    def open(cls, folder: Path, threads: int | None = None) -> Bundle:
        manifest = read_manifest(folder, verify=False)
        sessions = GraphSessions(folder, manifest, threads, "onnxruntime")
        return cls(folder, manifest, sessions, TeacherForced(sessions, folder, manifest, (OTHER_PROMPT, PROMPT)))

    @property
    def config(self) -> EzAudioConfig:
        return self.manifest.config

    def step(self, latents: Float32, timestep: int, guided: bool = True) -> Callable[[], Float32]:
        """One evaluation of the denoiser → velocity (1, C, L); what is computed once a clip is done beforehand."""
        point = Point(latents, timestep, PROMPT, "guided" if guided else "unguided")
        inputs = self.teacher.inputs(point)
        return lambda: self.sessions.run(point.graph, **inputs)["next_latents"]  # type: ignore[return-value]

    def unhoisted_step(self, latents: Float32, timestep: int) -> Callable[[], Float32]:
        """The same velocity by the same graphs with nothing computed ahead: in every step the keys and values of the
        prompt and the empty prompt at the full number of tokens, the modulation and the constant part of the first
        convolution; and attention to padded keys in both branches of guidance."""
        point = Point(latents, timestep, PROMPT, "negative")
        inputs = self.teacher.inputs(point)
        states, mask = self.padded_states()
        given = {"given": np.zeros_like(latents), "mask": np.ones((1, latents.shape[2]), np.bool_)}

        def run() -> Float32:
            cross = self.sessions.run("conditioner", text_states=states)
            modulation = self.sessions.run("modulation", timesteps=np.array([timestep], np.int64))
            inputs["frame_bias"] = self.sessions.run("frame_bias", **given)["frame_bias"]
            inputs.update({name: rows[0] for name, rows in modulation.items()})
            inputs.update(cross_keys=cross["cross_keys"], cross_values=cross["cross_values"], context_mask=mask)
            return self.sessions.run(point.graph, **inputs)["next_latents"]  # type: ignore[return-value]

        return run

    def padded_states(self) -> tuple[Float32, NDArray[np.bool_]]:
        """Text states (2, S, D_text) of the prompt and the empty prompt, zeros after the last token, and their mask."""
        most = self.config.text.max_tokens
        texts = [self.teacher.conditioning.text(text).states for text in (PROMPT, "")]
        states = [np.pad(state, [(0, 0), (0, most - state.shape[1]), (0, 0)]) for state in texts]
        return np.concatenate(states), np.arange(most) < np.array([[state.shape[1]] for state in texts])

    def guidance(self, latents: Float32) -> tuple[float, float]:
        """Scale and rescale of `step`."""
        inputs = self.teacher.inputs(Point(latents, TIMESTEPS[0], PROMPT))
        return tuple(float(inputs[f"guidance_{name}"][0]) for name in ("scale", "rescale"))  # type: ignore[return-value]


def start_latents(config: EzAudioConfig, duration_s: float) -> Float32:
    """Normal (1, C, L): what a sampler starts from."""
    frames = round(duration_s * config.vae.latent_rate)
    return np.random.default_rng(0).standard_normal((1, config.vae.latent_channels, frames), np.float32)


def worst(
    got: Callable[[int], Callable[[], Any]], expected: Callable[[int], Callable[[], Any]]
) -> tuple[float, float, int]:
    """Over TIMESTEPS: lowest cosine, largest relative L2, and the timestep of the latter."""
    found = [(*measure(np.asarray(got(t)()), np.asarray(expected(t)())), t) for t in TIMESTEPS]
    cosine = min(row[0] for row in found)
    _, relative_l2, timestep = max(found, key=lambda row: row[1])
    return cosine, relative_l2, timestep


def padded_text(source: ModelSource, bundle: Bundle) -> tuple[torch.Tensor, torch.Tensor]:
    """Text states (2, S, D_text) of the prompt and the empty prompt at full length by PyTorch, and a mask (2, S)."""
    import torch

    from ezaudio.text import PAD_TOKEN, encode_text

    most = source.config.text.max_tokens
    ids = [list(bundle.teacher.conditioning.tokenizer.encode(text).ids) for text in (PROMPT, "")]
    padded = torch.tensor([row + [PAD_TOKEN] * (most - len(row)) for row in ids])
    mask = torch.arange(most) < torch.tensor([[len(row)] for row in ids])
    with torch.no_grad():
        return encode_text(source.text_encoder(), padded, mask.long()), mask
