"""The judge: a small convolutional network that says which kinds of sound are in a clip of any length."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ezaudio.data.synthesis.primitives import SAMPLE_RATE, Audio
from ezaudio.evaluation.mels import BANDS, MelPower
from ezaudio.runtime.errors import BundleError, InputError
from ezaudio.weights import first_line, load_weights, read_safetensors, save_atomic

FORMAT = 1
RANGE_DB = 70.0  # what lies further below the loudest cell is the noise floor of a recording, or of a model
EMBEDDING = 64
CHANNELS = (16, 32, 64, 96)
FRAME_CHANNELS = 128
BATCH = 16


def decibels(power: Tensor) -> Tensor:
    """Mel power (B, BANDS, N) → about −1 to 1 from RANGE_DB below each clip's loudest cell up to it: no level left."""
    loudest = power.amax(dim=(1, 2), keepdim=True).clamp_min(1e-20)
    level = 10 * torch.log10(power / loudest + 10 ** (-RANGE_DB / 10))
    return level / (RANGE_DB / 2) + 1


class _Context(nn.Module):
    """Adds what lies `dilation` frames before and after."""

    def __init__(self, dilation: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(FRAME_CHANNELS, FRAME_CHANNELS, 3, padding=dilation, dilation=dilation, bias=False)
        self.norm = nn.BatchNorm1d(FRAME_CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.relu(self.norm(self.conv(x)))


class JudgeNetwork(nn.Module):
    """Decibels (B, BANDS, N) → logits (B, K) and embeddings (B, EMBEDDING).

    Strided convolutions over time and frequency give a frame every 0.16 s, dilated ones over time a view of 4 s; the
    mean and the maximum over all frames are what any length is reduced to.
    """

    def __init__(self, num_kinds: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 1
        for index, channels in enumerate(CHANNELS):
            size, stride = (5, 2) if index == 0 else (3, 2)
            last = index == len(CHANNELS) - 1
            conv = nn.Conv2d(before, channels, size, (stride, 1 if last else stride), size // 2, bias=False)
            layers += [conv, nn.BatchNorm2d(channels), nn.ReLU()]
            before = channels
        self.local = nn.Sequential(*layers)
        height = BANDS // 2 ** len(CHANNELS)
        self.frames = nn.Sequential(
            nn.Conv1d(before * height, FRAME_CHANNELS, 1, bias=False), nn.BatchNorm1d(FRAME_CHANNELS), nn.ReLU()
        )
        self.context = nn.Sequential(*(_Context(dilation) for dilation in (1, 2, 4)))
        self.embed = nn.Linear(2 * FRAME_CHANNELS, EMBEDDING)
        self.score = nn.Linear(EMBEDDING, num_kinds)

    def forward(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        frames = self.context(self.frames(self.local(levels[:, None]).flatten(1, 2)))
        embedding = self.embed(torch.cat([frames.mean(2), frames.amax(2)], dim=1))
        return self.score(F.relu(embedding)), embedding


@dataclass(frozen=True, slots=True)
class JudgeCard:
    """What a judge is: its kinds, how it was trained, and how often it is right about held-out renderings."""

    kinds: tuple[str, ...]
    training: dict[str, Any] = field(default_factory=dict)
    ceiling: dict[str, float] = field(default_factory=dict)


class Judge:
    """A trained network with its card."""

    def __init__(self, network: JudgeNetwork, card: JudgeCard) -> None:
        self.network, self.card = network.eval(), card
        self.mels = MelPower(SAMPLE_RATE)

    @torch.inference_mode()
    def hear(self, clips: Sequence[Audio]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Scores (B, K), the highest for what is heard most surely, and embeddings (B, EMBEDDING).

        Args:
            clips: (T,) each at 24 kHz, of any lengths and levels. A clip's result does not depend on the others.
        """
        heard = []
        for batch in _equal_lengths(clips):
            heard.append(self.network(decibels(self.mels(torch.from_numpy(np.stack(batch))))))
        scores, embeddings = (torch.cat(parts).numpy() for parts in zip(*heard, strict=True))
        return scores, embeddings

    def save(self, path: Path) -> None:
        """Safetensors with the card as JSON in its header; the whole file or none."""
        save_atomic(self.network.state_dict(), path, {"judge": json.dumps({"format": FORMAT} | asdict(self.card))})

    @classmethod
    def load(cls, path: Path, kinds: Sequence[str]) -> Judge:
        """Inverse of `save`.

        Raises:
            BundleError: no such file, damaged, or not a judge. InputError: a judge of other kinds of sound.
        """
        if not path.is_file():
            raise BundleError(f"'{path}' does not exist or is not a file: name a judge, or a file it can be kept in")
        card = _read_card(path)
        if card.kinds != tuple(kinds):
            raise InputError(
                f"'{path}' judges {len(card.kinds)} other kinds of sound than the {len(kinds)} of the vocabulary: "
                "remove it or name another file, and a new judge is trained"
            )
        network = JudgeNetwork(len(kinds))
        load_weights(network, read_safetensors(path), f"'{path}'")
        return cls(network, card)


def _equal_lengths(clips: Sequence[Audio]) -> Iterator[list[Audio]]:
    """In their order, up to BATCH of one length at a time."""
    batch: list[Audio] = []
    for clip in clips:
        if batch and (len(batch) == BATCH or len(clip) != len(batch[0])):
            yield batch
            batch = []
        batch.append(clip)
    if batch:
        yield batch


def _read_card(path: Path) -> JudgeCard:
    try:
        with safe_open(path, framework="pt") as file:
            data = json.loads((file.metadata() or {})["judge"])
        if data.pop("format") != FORMAT:
            raise ValueError("another format")
        return JudgeCard(tuple(map(str, data["kinds"])), dict(data["training"]), dict(data["ceiling"]))
    except (OSError, SafetensorError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise BundleError(
            f"'{path}' is no judge ({first_line(error)}): remove it or name another file, and a new one is trained"
        ) from error
