"""Training of the diffusion transformer: the paper's three stages, and the ControlNet on a frozen transformer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ezaudio.config import EzAudioConfig
from ezaudio.controlnet import ControlNet, audio_energy
from ezaudio.dit import MaskDiT
from ezaudio.runtime.errors import InputError
from ezaudio.runtime.noise import PhiloxNoise
from ezaudio.runtime.solvers import alphas_cumprod, solver_plan
from ezaudio.sampling import Condition, sample
from ezaudio.text import encode_text
from ezaudio.training.encoders import Encoders
from ezaudio.training.losses import add_noise, min_snr_weights, velocity_loss
from ezaudio.training.masks import generation_mask, span_mask, uniform
from ezaudio.training.settings import ControlNetStage, DiffusionStage, Schedule
from ezaudio.training.trainer import Losses
from ezaudio.weights import fingerprint, write_safetensors

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import T5EncoderModel

LISTEN_STEPS = 50


class LatentDiffusionTask:
    """One of the stages, see `trainer.Task`.

    Args:
        prompts: what to make sounds of to listen to; a stage without text makes as many without one.
        on_publish: called with the run's folder once the averaged transformer is written there.
    """

    averaged = "dit"

    def __init__(
        self,
        encoders: Encoders,
        dit: MaskDiT,
        stage: DiffusionStage,
        schedule: Schedule,
        prompts: Sequence[str] = (),
        clip_s: float = 10.0,
        on_publish: Callable[[Path], None] = lambda folder: None,
    ) -> None:
        self.encoders, self.stage, self.prompts, self.clip_s = encoders, stage, tuple(prompts), clip_s
        frozen = encoders.fingerprints()
        self.settings: dict[str, Any] = {"task": "diffusion", "stage": asdict(stage), "frozen_models": frozen}
        self.networks: dict[str, nn.Module] = {"dit": dit.requires_grad_(True)}
        self.frozen: dict[str, nn.Module] = {}
        self.schedules = {"dit": schedule}
        self.sample_rate = encoders.config.vae.sample_rate
        self._on_publish = on_publish
        self._tokens = 0  # at least so many, padded
        self._alphas = torch.from_numpy(alphas_cumprod(encoders.config.diffusion)).float()
        if not stage.with_text:
            for parameter in dit.text_parameters():
                parameter.requires_grad_(False)

    def to(self, device: torch.device) -> None:
        self.encoders.to(device)
        self._alphas = self._alphas.to(device)

    def record(self) -> bool:
        self._tokens = self.encoders.config.text.max_tokens
        return True

    def losses(self, networks: dict[str, nn.Module], batch: Any, generator: torch.Generator) -> Iterator[Losses]:
        stage = self.stage
        latents, *text = self._inputs(batch, generator)
        text = [padded(x, self._tokens) for x in text]
        mask = generation_mask(
            len(latents), latents.shape[2], stage.partly_masked, stage.mask_ratio, stage.mask_span, generator
        )
        noisy, target, timesteps, weights = _noised(
            latents, self._alphas, stage.min_snr_gamma, generator, stage.high_noise
        )
        predicted = networks["dit"](noisy, timesteps, *text, latents, mask)
        loss = velocity_loss(predicted, target, mask, weights)
        yield Losses("dit", loss, {"velocity": loss})

    def _inputs(self, batch: Any, generator: torch.Generator) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Latents, then what the network takes as its text, and the mask of that."""
        example = self.encoders(batch, self.stage.empty_captions, generator)
        return example.latents, example.context, example.context_mask

    @property
    def _dit(self) -> nn.Module:
        return self.networks["dit"]

    def listen(self, generator: torch.Generator) -> dict[str, NDArray[np.float32]]:
        dit = self._dit
        assert isinstance(dit, MaskDiT)
        if self.stage.with_text:
            return listen(self.encoders, dit, self.prompts, self.clip_s, seed=generator.initial_seed() % 2**31)
        seed, count = generator.initial_seed() % 2**31, max(1, min(len(self.prompts), 4))
        return {
            f"without text {number + 1}": _decoded(self.encoders, dit, None, self.clip_s, seed + number)
            for number in range(count)
        }

    def publish(self, folder: Path) -> None:
        write_safetensors(folder / "dit.safetensors", self._dit, torch.float32)
        self._on_publish(folder)


def padded(text: Tensor | None, tokens: int) -> Tensor | None:
    """Text states, ids or their mask (B, S, …) with zeros up to that many tokens; a mask says False of those."""
    if text is None or text.shape[1] >= tokens:
        return text
    return F.pad(text, (0, 0) * (text.ndim - 2) + (0, tokens - text.shape[1]))


class TextToLatents(nn.Module):
    """A text encoder that is trained with the transformer: token ids in place of text states."""

    def __init__(self, text_encoder: T5EncoderModel, dit: MaskDiT) -> None:
        super().__init__()
        self.text_encoder, self.dit = text_encoder, dit

    def forward(
        self, noisy: Tensor, timesteps: Tensor, ids: Tensor, ids_mask: Tensor, latents: Tensor, mask: Tensor
    ) -> Tensor:
        context = encode_text(self.text_encoder, ids, ids_mask.long())
        return self.dit(noisy, timesteps, context, ids_mask, latents, mask)


class TextAndDiffusionTask(LatentDiffusionTask):
    """A stage with text in which the text encoder is trained along, for a model without a pretrained one."""

    def __init__(self, encoders: Encoders, dit: MaskDiT, stage: DiffusionStage, *args: Any, **given: Any) -> None:
        super().__init__(encoders, dit, stage, *args, **given)
        assert encoders.text_encoder is not None
        self.networks = {"dit": TextToLatents(encoders.text_encoder, dit).requires_grad_(True)}
        self.settings["frozen_models"]["text_encoder"] = "trained"

    def _inputs(self, batch: Any, generator: torch.Generator) -> tuple[Tensor, Tensor | None, Tensor | None]:
        latents, _ = self.encoders.latents(batch, generator)
        return latents, *self.encoders.tokens(self.encoders.captions(batch, self.stage.empty_captions, generator))

    @property
    def _dit(self) -> nn.Module:
        model = self.networks["dit"]
        assert isinstance(model, TextToLatents)
        return model.dit

    def publish(self, folder: Path) -> None:
        assert self.encoders.text_encoder is not None
        write_safetensors(folder / "text_encoder.safetensors", self.encoders.text_encoder, torch.float32)
        super().publish(folder)


class ControlNetTask:
    """The energy ControlNet on a frozen transformer, see `trainer.Task`. It starts as a copy of the in blocks."""

    averaged = "controlnet"

    def __init__(
        self,
        encoders: Encoders,
        dit: MaskDiT,
        controlnet: ControlNet,
        stage: ControlNetStage,
        schedule: Schedule,
        on_publish: Callable[[Path], None] = lambda folder: None,
    ) -> None:
        self.encoders, self.dit, self.stage = encoders, dit.eval().requires_grad_(False), stage
        frozen = {**encoders.fingerprints(), "dit": fingerprint(dit)}
        self.settings: dict[str, Any] = {"task": "controlnet", "stage": asdict(stage), "frozen_models": frozen}
        self.networks: dict[str, nn.Module] = {"controlnet": controlnet.requires_grad_(True)}
        self.frozen: dict[str, nn.Module] = {"dit": self.dit}
        self.schedules = {"controlnet": schedule}
        self.sample_rate = encoders.config.vae.sample_rate
        self._on_publish = on_publish
        self._alphas = torch.from_numpy(alphas_cumprod(encoders.config.diffusion)).float()

    def to(self, device: torch.device) -> None:
        self.encoders.to(device)
        self.dit.to(device)
        self._alphas = self._alphas.to(device)

    def record(self) -> bool:
        return False

    def losses(self, networks: dict[str, nn.Module], batch: Any, generator: torch.Generator) -> Iterator[Losses]:
        stage = self.stage
        example = self.encoders(batch, stage.empty_captions, generator)
        latents = example.latents
        if example.audio is None:
            raise InputError("a ControlNet is trained on sounds, not on latents: give a manifest")
        energy = audio_energy(example.audio[:, 0, : latents.shape[2] * self.encoders.config.vae.hop])
        ratios = uniform((len(latents),), *stage.hidden_ratio, generator)
        hidden = span_mask(ratios, energy.shape[2], stage.hidden_span, generator)
        partly = torch.rand(len(latents), generator=generator, device=generator.device) < stage.partly_hidden
        noisy, target, timesteps, weights = _noised(latents, self._alphas, stage.min_snr_gamma, generator)
        context, context_mask = example.context, example.context_mask
        inputs = self.dit.assemble(noisy)
        residuals = networks["controlnet"](
            inputs, timesteps, context, context_mask, energy, 1.0, hidden & partly[:, None]
        )
        predicted = networks["dit"](noisy, timesteps, context, context_mask, residuals=residuals)
        loss = velocity_loss(predicted, target, torch.ones_like(latents[:, 0], dtype=torch.bool), weights)
        yield Losses("controlnet", loss, {"velocity": loss})

    def listen(self, generator: torch.Generator) -> dict[str, NDArray[np.float32]]:
        """A contour that swells twice, for an empty prompt."""
        controlnet = self.networks["controlnet"]
        assert isinstance(controlnet, ControlNet)
        frames = _num_frames(self.encoders.config, 5.0)
        contour = torch.linspace(0, 4 * np.pi, 2 * frames).sin().square()[None, None].to(generator.device)
        samples = _decoded(
            self.encoders, self.dit, "", 5.0, generator.initial_seed() % 2**31, controlnet=controlnet, energy=contour
        )
        return {"two swells": samples}

    def publish(self, folder: Path) -> None:
        write_safetensors(folder / "controlnet.safetensors", self.networks["controlnet"], torch.float32)
        self._on_publish(folder)


def start_controlnet(controlnet: ControlNet, dit: MaskDiT) -> ControlNet:
    """Copy the transformer's embeddings and in blocks; the condition's layers stay as they are, the last ones zero."""
    own = controlnet.state_dict()
    shared = {name: value for name, value in dit.model.state_dict().items() if name in own}
    controlnet.load_state_dict(shared, strict=False)
    return controlnet


def start_cross_attention(dit: MaskDiT) -> MaskDiT:
    """Let cross-attention begin as nothing: its output projection at zero, as stage 2 adds it to stage 1's model."""
    for block in dit.model.all_blocks():
        nn.init.zeros_(block.cross_attn.proj.weight)
        nn.init.zeros_(block.cross_attn.proj.bias)
    return dit


def _noised(
    latents: Tensor, alphas: Tensor, gamma: float | None, generator: torch.Generator, high_noise: float | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Noisy latents and velocities at random timesteps, those (B,), and their weights."""
    device = generator.device
    noise = torch.randn(latents.shape, generator=generator, device=device)
    timesteps = draw_timesteps(len(latents), len(alphas), high_noise, generator)
    noisy, target = add_noise(latents, noise, alphas[timesteps])
    return noisy, target, timesteps, None if gamma is None else min_snr_weights(alphas[timesteps], gamma)


def draw_timesteps(count: int, num_steps: int, high_noise: float | None, generator: torch.Generator) -> Tensor:
    """(B,) timesteps: even draws, or one from each of `count` equal parts with `high_noise` of them all above 60 %.

    What sounds when is decided in the noise: in thousands of latent values an event shows through far more of it than
    in one. A small model that sees too little of it samples near-silence.
    """
    device = generator.device
    if high_noise is None:
        return torch.randint(num_steps, (count,), generator=generator, device=device)
    place = (torch.arange(count, device=device) + torch.rand(count, generator=generator, device=device)) / count
    place = (place + torch.rand(1, generator=generator, device=device)) % 1
    below = 1 - high_noise
    share = torch.where(place < below, 0.6 * place / below, 0.6 + 0.4 * (place - below) / high_noise)
    return (share * num_steps).long().clamp(max=num_steps - 1)


def listen(
    encoders: Encoders, dit: MaskDiT, prompts: Sequence[str], duration_s: float, seed: int
) -> dict[str, NDArray[np.float32]]:
    """One sound a prompt, at the model's default guidance."""
    return {prompt: _decoded(encoders, dit, prompt, duration_s, seed) for prompt in prompts}


def _num_frames(config: EzAudioConfig, duration_s: float) -> int:
    return max(2, round(duration_s * config.vae.latent_rate))


@torch.no_grad()
def _decoded(
    encoders: Encoders,
    dit: MaskDiT,
    prompt: str | None,
    duration_s: float,
    seed: int,
    controlnet: ControlNet | None = None,
    energy: Tensor | None = None,
) -> NDArray[np.float32]:
    """Samples (T,) of one clip; without a prompt through the model without cross-attention."""
    config, device = encoders.config, next(dit.parameters()).device
    defaults = config.defaults
    plan = solver_plan(defaults.solver, min(LISTEN_STEPS, defaults.num_steps), defaults.eta, config.diffusion)
    if prompt is None or encoders.text_encoder is None:
        nothing = torch.zeros((1, 1, config.text.width), device=device)
        condition = Condition(nothing, torch.ones((1, 1), dtype=torch.bool, device=device), energy=energy)
        dit = _WithoutText(dit)
    else:
        context, mask = encoders.text([prompt])
        negative, negative_mask = encoders.text([""])
        condition = Condition(context, mask, negative, negative_mask, energy=energy)
    latents = sample(
        dit,
        plan,
        condition,
        [PhiloxNoise(seed)],
        _num_frames(config, duration_s),
        defaults.guidance_scale,
        defaults.guidance_rescale,
        controlnet,
    )
    audio = encoders.vae.decode(latents)[0, 0].float().cpu().numpy()
    return np.asarray(F.hardtanh(torch.from_numpy(audio)).numpy(), np.float32)


class _WithoutText(MaskDiT):
    """The same transformer, its context left out."""

    def __init__(self, dit: MaskDiT) -> None:
        nn.Module.__init__(self)
        self.config, self.inner = dit.config, dit

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor | None, *given: Any) -> Tensor:
        return self.inner(x, timesteps, None, None, *given[1:])
