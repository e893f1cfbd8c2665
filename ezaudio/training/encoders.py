"""A batch as it is read → as the transformer sees it: latents and text states, from models that are never trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ezaudio.config import EzAudioConfig
from ezaudio.data.dataset import ClipBatch
from ezaudio.data.shards import LatentBatch
from ezaudio.text import encode_text, tokenize
from ezaudio.vae import AutoencoderOobleck
from ezaudio.weights import fingerprints

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import T5EncoderModel


@dataclass(frozen=True, slots=True)
class Example:
    """A batch as the transformer sees it.

    Attributes:
        latents: (B, C, L).
        context, context_mask: (B, S, D_text) and (B, S); None in a stage without text.
        audio: (B, 1, T) that the latents were made from; None where they were precomputed.
    """

    latents: Tensor
    context: Tensor | None
    context_mask: Tensor | None
    audio: Tensor | None = None


class Encoders(nn.Module):
    """What turns clips and captions into latents and text states; never trained.

    Args:
        text_encoder, tokenizer: None for a stage without text.
    """

    def __init__(
        self,
        config: EzAudioConfig,
        vae: AutoencoderOobleck,
        text_encoder: T5EncoderModel | None = None,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.vae = vae.eval().requires_grad_(False)
        self.text_encoder = None if text_encoder is None else text_encoder.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        if tokenizer is not None:
            tokenizer.enable_truncation(config.text.max_tokens)

    def fingerprints(self) -> dict[str, str]:
        """Of the models' weights, by name: what a run learns depends on them."""
        return fingerprints(vae=self.vae, text_encoder=self.text_encoder)

    def forward(self, batch: ClipBatch | LatentBatch, empty_captions: float, generator: torch.Generator) -> Example:
        """Encode a batch of clips, or take a precomputed one over; a share of the captions is emptied."""
        latents, audio = self.latents(batch, generator)
        if self.text_encoder is None:
            return Example(latents, None, None, audio)
        if isinstance(batch, LatentBatch) and batch.text.ndim == 3:
            empty = self._emptied(len(batch.captions), empty_captions, generator)
            device = generator.device
            context, mask = batch.text.to(device).float(), batch.text_mask.to(device)
            state, _ = self.text([""])
            context[empty, : state.shape[1]] = state[0]
            mask[empty] = torch.arange(mask.shape[1], device=device) < state.shape[1]
            return Example(latents, context, mask, audio)
        return Example(latents, *self.text(self.captions(batch, empty_captions, generator)), audio)

    @torch.no_grad()
    def latents(self, batch: ClipBatch | LatentBatch, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Samples of the posterior (B, C, L), as the release trains on, and the audio (B, 1, T) if it was there."""
        device, hop = generator.device, self.config.vae.hop
        if isinstance(batch, LatentBatch):
            mean, std = batch.mean.to(device).float(), batch.std.to(device).float()
            return mean + std * torch.randn(mean.shape, generator=generator, device=device), None
        audio = batch.audio.to(device, torch.float32)
        return self.vae.encode(audio[..., : audio.shape[-1] // hop * hop], generator, sample=True), audio

    def captions(self, batch: ClipBatch | LatentBatch, empty_captions: float, generator: torch.Generator) -> list[str]:
        """The batch's captions, a share of them emptied."""
        empty = self._emptied(len(batch.captions), empty_captions, generator).tolist()
        return ["" if gone else caption for gone, caption in zip(empty, batch.captions, strict=True)]

    def _emptied(self, count: int, share: float, generator: torch.Generator) -> Tensor:
        return torch.rand(count, generator=generator, device=generator.device) < share

    def tokens(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids and mask of valid ones, (B, S) each, where the text encoder is."""
        assert self.text_encoder is not None
        assert self.tokenizer is not None
        ids, mask = tokenize(self.tokenizer, captions)
        device = next(self.text_encoder.parameters()).device
        return ids.to(device), mask.to(device)

    @torch.no_grad()
    def text(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Text states (B, S, D_text) and their mask (B, S)."""
        assert self.text_encoder is not None
        ids, mask = self.tokens(captions)
        return encode_text(self.text_encoder, ids, mask.long()), mask
