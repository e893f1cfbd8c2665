"""Clips on the backend `torch`: settings become a `Request`, which is one call from text states to samples."""

from __future__ import annotations

from dataclasses import replace

from ezaudio.config import EzAudioConfig
from ezaudio.runtime.clips import Given
from ezaudio.runtime.conditioning import Conditioning
from ezaudio.runtime.denoising import OnStepDone
from ezaudio.runtime.settings import Settings, plan_of
from ezaudio.runtime.solvers import guided_steps
from ezaudio.runtime.torch_backend.request import Float32, Request, StepKind
from ezaudio.runtime.torch_backend.sessions import TorchSessions


class WholeClips:
    """See `clips.Clips`."""

    def __init__(self, sessions: TorchSessions, conditioning: Conditioning, config: EzAudioConfig) -> None:
        self._sessions, self._conditioning, self._config = sessions, conditioning, config

    def samples(self, settings: Settings, given: Given, on_step_done: OnStepDone) -> Float32:
        samples = self._sessions.generate(self._request(settings, given), on_step_done).samples
        assert samples is not None
        return samples[0, : round(settings.duration_s * self._config.vae.sample_rate)]

    def latents(self, settings: Settings, given: Given, on_step_done: OnStepDone) -> Float32:
        request = replace(self._request(settings, given), decoded=False)
        return self._sessions.generate(request, on_step_done).latents

    def decode(self, latents: Float32) -> Float32:
        return self._sessions.run("decoder", latents=latents)["audio"]  # type: ignore[return-value]

    def close(self) -> None:
        """Nothing: a recording keeps its memory for the next clip."""

    def _request(self, settings: Settings, given: Given) -> Request:
        plan = plan_of(settings, self._config)
        guided = [one and settings.guidance_scale != 1 for one in guided_steps(plan, settings.guidance_interval)]
        negative = [self._conditioning.text(settings.negative_prompt).states[0]] if any(guided) else None
        return Request(
            text_states=[self._conditioning.text(settings.prompt).states[0]],
            negative_states=negative,
            plan=plan,
            steps=tuple(StepKind(one, step in settings.reuse) for step, one in enumerate(guided)),
            num_frames=given.mask.shape[1],
            seeds=[settings.seed],
            scale=[settings.guidance_scale],
            rescale=[settings.guidance_rescale],
            noise=settings.noise,
            given=given.latents,
            mask=given.mask,
            energy=given.energy,
            control_scale=1.0 if settings.control_scale is None else settings.control_scale,
        )
