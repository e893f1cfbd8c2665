"""`TextToAudio`: a bundle that makes sound from text. It reads as the system does: condition, plan, denoise, decode."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ezaudio.runtime.bundle_store import find_bundle
from ezaudio.runtime.errors import BundleError, CancelledError, InputError
from ezaudio.runtime.manifest import OnBytes, read_manifest
from ezaudio.runtime.noise import NoiseSource, PhiloxNoise, TorchNoise
from ezaudio.runtime.session import DenoiserLoop, GraphSessions, choose_device
from ezaudio.runtime.settings import Generation, Settings, Step, resolve
from ezaudio.runtime.solvers import SolverPlan, solver_plan
from ezaudio.runtime.tokenizer import PromptTokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.generic]
    Float32 = NDArray[np.float32]

OnStep = Callable[[Step], "bool | None"]
Value = TypeVar("Value")

CACHED_PROMPTS = 16
MAX_THREADS = 1024
MODULATION_CHUNK = 64  # timesteps a modulation run, so that 1000 steps need no 1000 rows at once in its activations


@dataclass(frozen=True, slots=True)
class PromptState:
    """What cross-attention needs of a prompt: keys, values (N, 1, H, S, E); output of a one-token prompt (N, 1, D)."""

    keys: Float32
    values: Float32
    constant: Float32
    dropped: str

    @property
    def num_tokens(self) -> int:
        return int(self.keys.shape[3])


class _Recent(OrderedDict[Any, Value]):
    """The last few results of a function of hashable arguments."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size

    def get_or_make(self, key: Any, make: Callable[[], Value]) -> Value:
        if key in self:
            self.move_to_end(key)
        else:
            self[key] = make()
            if len(self) > self._size:
                self.popitem(last=False)
        return self[key]


class TextToAudio:
    """Text to audio from a bundle. Not thread-safe: use one instance a thread.

    Prompts of one call run one after the other: on a CPU a batch gains nothing, and so an item's samples cannot depend
    on its batch. Text states of recent prompts and the modulation of the last plan are kept between calls.

    Args:
        bundle: a folder, the name of an exported model (`l`, `xl`, `nano`), or None for the model inside the package.
        precision: which exported bundle of a named model.
        threads: of ONNX Runtime; None takes all cores.
        device: `cpu`, `cuda`, or `auto`.
        verify: compare every file of the bundle with its sha256 before use.
        on_verify: told the bytes compared since the last call and the bytes there are in all, for a progress bar.

    Raises: BundleError, InputError, MissingExtraError (all `EzAudioError`) with one line that says what to do.
    """

    def __init__(
        self,
        bundle: str | Path | None = None,
        *,
        precision: str | None = None,
        threads: int | None = None,
        device: str = "auto",
        verify: bool = True,
        on_verify: OnBytes = lambda count, total: None,
    ) -> None:
        if threads is not None and not 1 <= threads <= MAX_THREADS:
            raise InputError(f"threads must be from 1 to {MAX_THREADS}, got {threads}")
        folder = find_bundle(bundle, precision)
        self.manifest = read_manifest(folder, verify, on_verify)
        self.config = self.manifest.config
        self._sessions = GraphSessions(folder, self.manifest, threads, choose_device(device))
        self._tokenizer = PromptTokenizer(folder / "tokenizer.json", self.config.text.max_tokens)
        self._prompts: _Recent[PromptState] = _Recent(CACHED_PROMPTS)
        self._modulations: _Recent[tuple[Float32, Float32]] = _Recent(1)

    @property
    def sample_rate(self) -> int:
        """Samples per second."""
        return self.config.vae.sample_rate

    @property
    def max_duration_s(self) -> float:
        return self.config.max_duration_s

    @property
    def model(self) -> str:
        return self.config.name

    @property
    def precision(self) -> str:
        return self.manifest.precision

    @property
    def bundle_id(self) -> str:
        """Identifies the bundle's content, whatever its folder."""
        return self.manifest.bundle_id

    def settings(self, prompt: str, **given: Any) -> Settings:
        """The complete settings for a prompt: what is not given comes from the model. Raises InputError."""
        settings = resolve(self.config, prompt, **given)
        solver_plan(settings.solver, settings.num_steps, settings.eta, self.config.diffusion)
        return settings

    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        duration_s: float | None = None,
        num_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_rescale: float | None = None,
        eta: float | None = None,
        seed: int | Sequence[int] | None = None,
        negative_prompt: str = "",
        solver: str | None = None,
        noise: str = "torch",
        on_step: OnStep | None = None,
    ) -> Generation:
        """Make one sound for every prompt.

        Args:
            prompts: one or several descriptions.
            duration_s, num_steps, guidance_scale, guidance_rescale, eta, solver: None takes the model's default.
            seed: for every prompt the same, or one each; None draws one each.
            noise: `torch` or `philox`, see `Settings`.
            on_step: called after every step; returning False cancels.

        Returns:
            Samples (B, round(duration_s · sample_rate)) float32 with the settings used, in the order of the prompts.

        Raises:
            InputError: a setting is out of range. CancelledError: `on_step` returned False.
        """
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not texts:
            raise InputError("no prompt given: pass at least one description of a sound")
        seeds = list(seed) if isinstance(seed, Sequence) else [seed] * len(texts)
        if len(seeds) != len(texts):
            raise InputError(f"{len(texts)} prompts need as many seeds, got {len(seeds)}")
        items = [
            self.settings(
                text,
                duration_s=duration_s,
                num_steps=num_steps,
                guidance_scale=guidance_scale,
                guidance_rescale=guidance_rescale,
                eta=eta,
                seed=one,
                negative_prompt=negative_prompt,
                solver=solver,
                noise=noise,
            )
            for text, one in zip(texts, seeds, strict=True)
        ]
        samples, warnings = [], dict[str, None]()
        for index, item in enumerate(items):
            for text in (item.prompt, item.negative_prompt):
                if dropped := self._prompt(text).dropped:
                    most = self.config.text.max_tokens
                    warnings[f"the prompt is longer than {most} tokens; its end was dropped: {dropped!r}"] = None

            def report(step: int, index: int = index, item: Settings = item) -> None:
                if on_step is not None and on_step(Step(index, len(items), step, item.num_steps)) is False:
                    raise CancelledError(f"cancelled after step {step + 1} of {item.num_steps}")

            samples.append(self._decode(self._denoise(item, report), item))
        return Generation(np.stack(samples), self.sample_rate, tuple(items), tuple(warnings))

    def _prompt(self, text: str) -> PromptState:
        return self._prompts.get_or_make(text, lambda: self._encode_prompt(text))

    def _encode_prompt(self, text: str) -> PromptState:
        tokens = self._tokenizer.encode(text)
        return self._encode_ids(tokens.ids, tokens.dropped)

    def _encode_ids(self, token_ids: tuple[int, ...], dropped: str = "") -> PromptState:
        ids = np.array([token_ids], np.int64)
        states = self._sessions.run("text_encoder", input_ids=ids, attention_mask=np.ones_like(ids))
        cross = self._sessions.run("conditioner", text_states=states["text_states"])
        return PromptState(cross["cross_keys"], cross["cross_values"], cross["cross_constant"], dropped)  # type: ignore[arg-type]

    def _modulation(self, plan: SolverPlan) -> tuple[Float32, Float32]:
        """Block modulation (N, blocks, 6, D) and final modulation (N, 2, D) of every step."""

        def make() -> tuple[Float32, Float32]:
            chunks = [
                self._sessions.run("modulation", timesteps=plan.timesteps[start : start + MODULATION_CHUNK])
                for start in range(0, plan.num_steps, MODULATION_CHUNK)
            ]
            block, final = (np.concatenate([c[f"{name}_modulation"] for c in chunks]) for name in ("block", "final"))
            return block, final

        return self._modulations.get_or_make(plan.timesteps.tobytes(), make)

    def _guidance(self, settings: Settings) -> tuple[str, dict[str, Array]]:
        """The denoiser graph that fits the settings, and its conditioning inputs."""
        prompt = self._prompt(settings.prompt)
        scalars = {
            "guidance_scale": np.array([settings.guidance_scale], np.float32),
            "guidance_rescale": np.array([settings.guidance_rescale], np.float32),
        }
        inputs: dict[str, Array] = {
            "cross_keys": prompt.keys,
            "cross_values": prompt.values,
            "context_mask": np.ones((1, prompt.num_tokens), np.bool_),
        }
        if settings.guidance_scale == 1:
            return "denoiser_unguided", inputs
        negative = self._prompt(settings.negative_prompt)
        if negative.num_tokens == 1:
            return "denoiser", inputs | scalars | {"cross_constant": negative.constant}
        count = max(prompt.num_tokens, negative.num_tokens)
        pairs = {
            name: np.concatenate([_pad_tokens(getattr(state, name), count) for state in (prompt, negative)], axis=1)
            for name in ("keys", "values")
        }
        mask = np.arange(count) < np.array([[prompt.num_tokens], [negative.num_tokens]])
        cross = {"cross_keys": pairs["keys"], "cross_values": pairs["values"], "context_mask": mask}
        return "denoiser_negative", cross | scalars

    def _denoise(self, settings: Settings, report: Callable[[int], None]) -> Float32:
        """Latents (1, C, L) of one clip."""
        config = self.config
        plan = solver_plan(settings.solver, settings.num_steps, settings.eta, config.diffusion)
        graph, condition = self._guidance(settings)
        block_modulation, final_modulation = self._modulation(plan)
        frames = math.ceil(round(settings.duration_s * self.sample_rate) / config.vae.hop)
        shape = (1, config.vae.latent_channels, frames)
        bias = self._sessions.run("frame_bias", given=np.zeros(shape, np.float32), mask=np.ones((1, frames), np.bool_))
        source: NoiseSource = (TorchNoise if settings.noise == "torch" else PhiloxNoise)(settings.seed)
        constants = condition | bias
        constants |= {
            "block_modulation": block_modulation[0],
            "final_modulation": final_modulation[0],
            "coefficients": plan.rows[0],
            "noise": np.zeros(shape, np.float32),
        }
        loop = DenoiserLoop(self._sessions, graph, source.draw(0, shape), constants)
        for index in range(plan.num_steps):
            drawn = {"noise": source.draw(index + 1, shape)} if plan.draws_noise else {}
            loop.step(
                block_modulation=block_modulation[index],
                final_modulation=final_modulation[index],
                coefficients=plan.rows[index],
                **drawn,
            )
            report(index)
        return loop.latents()  # type: ignore[return-value]

    def _decode(self, latents: Float32, settings: Settings) -> Float32:
        audio = self._sessions.run("decoder", latents=latents)["audio"][
            0, : round(settings.duration_s * self.sample_rate)
        ]
        if not np.isfinite(audio).all():
            raise BundleError(
                f"the model gave samples that are not finite (seed {settings.seed}): export the bundle again"
            )
        return audio  # type: ignore[return-value]


def _pad_tokens(state: Float32, count: int) -> Float32:
    """Zeros after the last token of (N, 1, H, S, E), up to `count` tokens."""
    return np.pad(state, [(0, 0)] * 3 + [(0, count - state.shape[3]), (0, 0)])
