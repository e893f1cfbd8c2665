"""Training of the waveform autoencoder: spectra, posterior and discriminators, with the release's weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from ezaudio.data.dataset import ClipBatch
from ezaudio.runtime.errors import InputError
from ezaudio.training.discriminator import Discriminators
from ezaudio.training.losses import (
    SpectralLoss,
    adversarial_loss,
    discriminator_loss,
    feature_matching_loss,
    kl_divergence,
)
from ezaudio.training.settings import DISCRIMINATOR_SCHEDULE, AutoencoderLosses, Schedule
from ezaudio.training.trainer import Losses
from ezaudio.vae import AutoencoderOobleck
from ezaudio.weights import write_safetensors

if TYPE_CHECKING:
    from numpy.typing import NDArray

LISTEN_CLIPS = 4


class AutoencoderTask:
    """See `trainer.Task`. The discriminators are updated first, on what the autoencoder makes before its own update."""

    averaged = "vae"

    def __init__(
        self,
        vae: AutoencoderOobleck,
        schedule: Schedule,
        losses: AutoencoderLosses | None = None,
        on_publish: Callable[[Path], None] = lambda folder: None,
    ) -> None:
        self.weights = losses or AutoencoderLosses()
        self.settings = {"task": "autoencoder", "losses": asdict(self.weights)}
        self.networks: dict[str, nn.Module] = {
            "vae": vae.requires_grad_(True),
            "discriminators": Discriminators(self.weights.judged_windows, self.weights.filters),
        }
        self.frozen: dict[str, nn.Module] = {}
        self.schedules = {"vae": schedule, "discriminators": DISCRIMINATOR_SCHEDULE}
        self.sample_rate = vae.config.sample_rate
        self._spectral = SpectralLoss(self.weights.windows, vae.config.sample_rate)
        self._on_publish = on_publish
        self._heard: torch.Tensor | None = None  # clips of a recent batch, to be listened to

    def to(self, device: torch.device) -> None:
        self._spectral.to(device)

    def record(self) -> bool:
        return False

    def losses(self, networks: dict[str, nn.Module], batch: Any, generator: torch.Generator) -> Iterator[Losses]:
        vae, discriminators = self.networks["vae"], self.networks["discriminators"]
        assert isinstance(vae, AutoencoderOobleck)
        hop = vae.config.hop
        if not isinstance(batch, ClipBatch):
            raise InputError("an autoencoder is trained on sounds, not on latents: give a manifest")
        audio = batch.audio.to(generator.device, torch.float32)
        audio = audio[..., : audio.shape[-1] // hop * hop]
        self._heard = audio[:LISTEN_CLIPS].detach()
        shape = (len(audio), vae.config.latent_channels, audio.shape[-1] // hop)
        noise = torch.randn(shape, generator=generator, device=generator.device)
        output, mean, std = networks["vae"](audio, noise)
        target, made = audio[:, 0], output[:, 0].float()

        # One call on both: DistributedDataParallel wants a backward pass for every forward pass.
        judged = networks["discriminators"](torch.cat([target, made.detach()]))
        real, fake = zip(*(verdict.logits.chunk(2) for verdict in judged), strict=True)
        loss = discriminator_loss(real, fake)
        yield Losses("discriminators", loss, {"discriminators": loss})

        with _frozen(discriminators):
            judged = discriminators(torch.cat([target, made]))
        layers = [[layer.chunk(2) for layer in verdict.layers] for verdict in judged]
        weights = self.weights
        terms = {
            "spectrum": weights.spectral * self._spectral(made, target),
            "kl": weights.kl * 2 * kl_divergence(mean, std),  # without the one half, as the release
            "adversarial": weights.adversarial * adversarial_loss([verdict.logits.chunk(2)[1] for verdict in judged]),
            "features": weights.feature_matching
            * feature_matching_loss(
                [[real for real, _ in one] for one in layers], [[f for _, f in one] for one in layers]
            ),
        }
        yield Losses("vae", torch.stack(list(terms.values())).sum(), terms)

    def listen(self, generator: torch.Generator) -> dict[str, NDArray[np.float32]]:
        """Clips of the last batch beside their reconstructions."""
        vae = self.networks["vae"]
        assert isinstance(vae, AutoencoderOobleck)
        if self._heard is None:
            return {}
        output = vae.decode(vae.encode(self._heard))
        sounds = {}
        for number, (clip, made) in enumerate(zip(self._heard, output, strict=True)):
            sounds[f"clip {number + 1}"] = clip[0].cpu().numpy()
            sounds[f"clip {number + 1} reconstructed"] = made[0].float().cpu().numpy()
        return sounds

    def publish(self, folder: Path) -> None:
        write_safetensors(folder / "vae.safetensors", self.networks["vae"], torch.float32)
        self._on_publish(folder)


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Gradients flow through a module, not into it."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)
