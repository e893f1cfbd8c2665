"""`TextToAudio`: a bundle that makes or edits sound from text. It reads as the system does: condition, plan, denoise,
decode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ezaudio.runtime.backends import check_device, choose_backend, open_clips, open_sessions
from ezaudio.runtime.bundle_store import find_bundle
from ezaudio.runtime.clips import Given
from ezaudio.runtime.conditioning import Conditioning
from ezaudio.runtime.decoding import decode_chunks
from ezaudio.runtime.editing import CONTEXT_S, Window, check_audio, model_input, splice
from ezaudio.runtime.energy import energy_contour
from ezaudio.runtime.errors import BundleError, CancelledError, InputError
from ezaudio.runtime.manifest import OnBytes, read_manifest
from ezaudio.runtime.presets import Preset
from ezaudio.runtime.settings import Edit, Generation, Settings, Step, resolve
from ezaudio.runtime.tokenizer import PromptTokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.generic]
    Float32 = NDArray[np.float32]

OnStep = Callable[[Step], "bool | None"]
OnAudio = Callable[[int, "Float32"], "bool | None"]

MAX_THREADS = 1024
EDIT_SETTINGS = frozenset(
    (
        "preset",
        "num_steps",
        "guidance_scale",
        "guidance_rescale",
        "guidance_interval",
        "eta",
        "seed",
        "negative_prompt",
        "solver",
        "spacing",
        "reuse",
        "noise",
    )
)


class TextToAudio:
    """Text to audio from a bundle. Not thread-safe: use one instance a thread.

    Prompts of one call run one after the other: on a CPU a batch gains nothing, and so an item's samples cannot depend
    on its batch. Text states of recent prompts and the modulation of the last plan are kept between calls.

    Args:
        bundle: a folder, the name of an exported model (`l`, `xl`, `nano`), or None for the model inside the package.
        precision: which exported bundle of a named model.
        threads: of ONNX Runtime or OpenVINO; None takes all cores.
        backend: `tensorrt`, `torch`, `onnxruntime-cuda`, `onnxruntime-tensorrt`, or on the CPU `openvino` or
            `onnxruntime`; `auto` takes the fastest that works here, OpenVINO aside, and logs why it passed others over.
            A named one never falls back.
        device: of the backend `torch`: `cuda`, `cuda:N` or `cpu`; None takes a GPU where there is one.
        low_memory: close the graphs of a stage (text, steps, decoding) before the next one opens, so that the largest
            alone sets the memory; each clip opens them again. Not for the backend `torch`, which makes a clip at once.
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
        backend: str = "auto",
        device: str | None = None,
        low_memory: bool = False,
        verify: bool = True,
        on_verify: OnBytes = lambda count, total: None,
    ) -> None:
        if threads is not None and not 1 <= threads <= MAX_THREADS:
            raise InputError(f"threads must be from 1 to {MAX_THREADS}, got {threads}")
        folder = find_bundle(bundle, precision)
        self.manifest = read_manifest(folder, verify, on_verify)
        self.config = self.manifest.config
        self.backend = choose_backend(backend, self.manifest)
        check_device(device, self.backend)
        self._sessions = open_sessions(self.backend, folder, self.manifest, threads, low_memory, device)
        tokenizer = PromptTokenizer(folder / "spiece.model", self.config.text.max_tokens)
        self._conditioning = Conditioning(self._sessions, tokenizer)
        self._clips = open_clips(self.backend, self._sessions, self._conditioning, self.config, low_memory)

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
        return resolve(self.config, prompt, self.manifest.presets, **given)

    @property
    def presets(self) -> dict[str, Preset]:
        """Sampling plans by name, each with what it was measured to cost on this bundle (None: it was not)."""
        return dict(self.manifest.presets)

    @property
    def has_controlnet(self) -> bool:
        """Whether `control_audio` can be given."""
        return "controlnet" in self.manifest.graphs

    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        preset: str | None = None,
        duration_s: float | None = None,
        num_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_rescale: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        eta: float | None = None,
        seed: int | Sequence[int] | None = None,
        negative_prompt: str = "",
        solver: str | None = None,
        spacing: float | None = None,
        reuse: Sequence[int] | None = None,
        noise: str = "torch",
        control_audio: Float32 | None = None,
        control_scale: float = 1.0,
        on_step: OnStep | None = None,
        on_audio: OnAudio | None = None,
    ) -> Generation:
        """Make one sound for every prompt.

        Args:
            prompts: one or several descriptions.
            preset: `fast`, `balanced`, `best` or `official`: a sampling plan with its measured fidelity, see
                `presets`. What is given besides changes single settings of it.
            duration_s, num_steps, guidance_scale, guidance_rescale, eta, solver, spacing: None takes the preset's, or
                else the model's default.
            guidance_interval: lowest and highest noise level that is guided, 0 to 1; a step beyond costs half.
            reuse: steps, from 0, that take what the inner blocks made last in place of running them.
            seed: for every prompt the same, or one each; None draws one each.
            noise: `torch` or `philox`, see `Settings`.
            control_audio: (T,) samples whose loudness contour the sound follows, cut or continued with silence; needs a
                bundle with the energy ControlNet.
            control_scale: how closely it follows; 0 not at all.
            on_step: called after every step; returning False cancels.
            on_audio: called with the item's number and its next samples (T,) as they are decoded, in chunks that grow
                from a quarter of a second to four seconds; returning False cancels. The samples equal those of a call
                without it to rounding.

        Returns:
            Samples (B, round(duration_s · sample_rate)) float32 with the settings used, in the order of the prompts.

        Raises:
            InputError: a setting is out of range. CancelledError: a callback returned False.
        """
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not texts:
            raise InputError("no prompt given: pass at least one description of a sound")
        seeds = list(seed) if isinstance(seed, Sequence) else [seed] * len(texts)
        if len(seeds) != len(texts):
            raise InputError(f"{len(texts)} prompts need as many seeds, got {len(seeds)}")
        controlled = control_audio is not None
        if controlled and not self.has_controlnet:
            raise InputError("this bundle has no ControlNet for control_audio: export one with --controlnet energy")
        items = [
            self.settings(
                text,
                preset=preset,
                duration_s=duration_s,
                num_steps=num_steps,
                guidance_scale=guidance_scale,
                guidance_rescale=guidance_rescale,
                guidance_interval=guidance_interval,
                eta=eta,
                seed=one,
                negative_prompt=negative_prompt,
                solver=solver,
                spacing=spacing,
                reuse=None if reuse is None else list(reuse),
                noise=noise,
                control_scale=control_scale if controlled else None,
            )
            for text, one in zip(texts, seeds, strict=True)
        ]
        given = self._nothing_given(items[0].duration_s)
        if control_audio is not None:
            given = replace(given, energy=self._energy(check_audio("control_audio", control_audio), given))
        samples = []
        for index, item in enumerate(items):
            samples.append(self._make(item, given, self._report(on_step, index, items), index, on_audio))
        return Generation(np.stack(samples), self.sample_rate, tuple(items), self._warnings(items))

    def edit(
        self,
        audio: Float32,
        prompt: str,
        *,
        start_s: float,
        end_s: float,
        context_s: float = CONTEXT_S,
        on_step: OnStep | None = None,
        **given: Any,
    ) -> Generation:
        """Make a part of a sound anew, to fit the prompt and what is around it.

        Outside the part the samples stay as they are, but for 30 ms on each side that are faded.

        Args:
            audio: (T,) samples at the model's rate.
            prompt: what to hear in the part.
            start_s, end_s: the part, in seconds; past the end of `audio` the sound is continued.
            context_s: how much the model sees on each side, at most half the part.
            on_step: called after every step; returning False cancels.
            given: settings as of `generate`: preset, num_steps, guidance_scale, guidance_rescale, guidance_interval,
                eta, seed, negative_prompt, solver, spacing, reuse, noise. The official code edits at guidance 3.5 and
                rescale 0.

        Returns:
            Samples (1, max(T, round(end_s · sample_rate))) float32, not clipped.

        Raises:
            InputError: a setting is out of range. CancelledError: `on_step` returned False.
        """
        if unknown := given.keys() - EDIT_SETTINGS:
            raise InputError(
                f"edit has no setting {min(unknown)!r}: expected one of {', '.join(sorted(EDIT_SETTINGS))}"
            )
        clip = check_audio("audio", audio)
        window = Window.plan(clip.size, start_s, end_s, context_s, self.config)
        seen_s = (window.end - window.begin) / self.sample_rate
        region = Edit(float(start_s), float(end_s), float(context_s))
        settings = self.settings(prompt, duration_s=seen_s, edit=region, **given)
        seen, peak = model_input(clip, window, self.config.vae.hop)
        given_latents = Given(self.encode(seen), window.mask())
        made = self._make(settings, given_latents, self._report(on_step, 0, [settings]))
        edited = splice(clip, made * peak, window, self.sample_rate)
        return Generation(edited[None], self.sample_rate, (settings,), self._warnings([settings]))

    def _report(self, on_step: OnStep | None, index: int, items: list[Settings]) -> Callable[[int], None]:
        def report(step: int) -> None:
            num_steps = items[index].num_steps
            if on_step is not None and on_step(Step(index, len(items), step, num_steps)) is False:
                raise CancelledError(f"cancelled after step {step + 1} of {num_steps}")

        return report

    def _warnings(self, items: list[Settings]) -> tuple[str, ...]:
        """That the end of a prompt was dropped, each once."""
        most = self.config.text.max_tokens
        dropped = (
            self._conditioning.tokenizer.encode(text).dropped
            for item in items
            for text in (item.prompt, item.negative_prompt)
        )
        return tuple(
            dict.fromkeys(
                f"the prompt is longer than {most} tokens; its end was dropped: {end!r}" for end in dropped if end
            )
        )

    def _nothing_given(self, duration_s: float) -> Given:
        frames = -(-round(duration_s * self.sample_rate) // self.config.vae.hop)
        shape = (1, self.config.vae.latent_channels, frames)
        return Given(np.zeros(shape, np.float32), np.ones((1, frames), np.bool_))

    def _energy(self, audio: Float32, given: Given) -> Float32:
        frames, hop = given.mask.shape[1], self.config.vae.hop
        if frames < 2:
            raise InputError(f"control_audio needs a sound of at least {2 * hop / self.sample_rate:g} s: ask for more")
        samples = np.zeros(frames * hop, np.float32)
        heard = audio[: samples.size]
        samples[: heard.size] = heard
        return energy_contour(samples, hop // 2)

    def _denoise(self, settings: Settings, given: Given, report: Callable[[int], None]) -> Float32:
        """Latents (1, C, L) of one clip."""
        return self._clips.latents(settings, given, report)

    def latents(self, settings: Settings) -> Float32:
        """Latents (1, C, L) of one clip made from text alone, before they are decoded."""
        return self._denoise(settings, self._nothing_given(settings.duration_s), lambda step: None)

    def encode(self, samples: Float32) -> Float32:
        """Latents (1, C, L) of samples (1, L · hop): the posterior's mean."""
        return self._sessions.run("encoder", audio=samples)["mean"]  # type: ignore[return-value]

    def decode(self, latents: Float32) -> Float32:
        """Samples (1, L · hop), not clipped, of latents (1, C, L)."""
        return self._clips.decode(latents)

    def warmup(self, **given: Any) -> None:
        """Make a clip of these settings of `generate` and drop it: what the first clip of its kind must wait for
        (sessions, a GPU's recordings, which are kept for a length and a plan) is then there."""
        self.generate("warm-up", **{"seed": 0, **given})

    def _make(
        self,
        settings: Settings,
        given: Given,
        report: Callable[[int], None],
        index: int = 0,
        on_audio: OnAudio | None = None,
    ) -> Float32:
        """Samples (T,) of one clip."""
        if on_audio is None:
            return _finite(self._clips.samples(settings, given, report), settings)
        latents = self._clips.latents(settings, given, report)
        num_samples = round(settings.duration_s * self.sample_rate)
        chunks = []
        for chunk in decode_chunks(self._clips.decode, latents, num_samples, self.config.vae):
            chunks.append(_finite(chunk, settings).copy())  # the listener may turn its own up or down in place
            if on_audio(index, chunk) is False:
                done = sum(map(len, chunks))
                raise CancelledError(f"cancelled after sample {done} of {num_samples}")
        self._clips.close()
        return np.concatenate(chunks)


def _finite(samples: Float32, settings: Settings) -> Float32:
    """The samples. Raises BundleError when they are not finite."""
    if not np.isfinite(samples).all():
        raise BundleError(f"the model gave samples that are not finite (seed {settings.seed}): export the bundle again")
    return samples
