"""Training of the judge, on renderings that no model was trained on, and how often it is right about yet others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ezaudio.data.synthesis import Sound
from ezaudio.data.synthesis.primitives import SAMPLE_RATE
from ezaudio.evaluation.augmentation import draw_batch, noise_power
from ezaudio.evaluation.judge import BATCH, Judge, JudgeCard, JudgeNetwork
from ezaudio.evaluation.mels import BANDS, HOP, MelPower
from ezaudio.evaluation.progress import Progress, silent
from ezaudio.evaluation.renderings import CHECKED_SEED, CLIP_S, LEARNT_SEED, Rendering, pairs, singles
from ezaudio.runtime.bundle_store import cache_folder
from ezaudio.runtime.naming import Destination, make_folder
from ezaudio.training.nano.vocabulary import KINDS, known_sounds, taught_sounds


@dataclass(frozen=True, slots=True)
class JudgeSettings:
    """How a judge is trained.

    Attributes:
        alone, scenes: clips of each kind alone, and scenes of one sound.
        pairs: scenes of two sounds in all; more are mixed while training.
        checked: clips of each kind that it is checked on afterwards, and of two sounds as many as of all kinds.
    """

    alone: int = 28
    scenes: int = 40
    pairs: int = 1200
    steps: int = 1100
    batch: int = 48
    learning_rate: float = 3e-3
    checked: int = 4
    seed: int = LEARNT_SEED


def train_judge(
    held_out: Sequence[Sound],
    taught: Sequence[Sound] | None = None,
    settings: JudgeSettings = JudgeSettings(),
    progress: Progress = silent,
) -> Judge:
    """A judge of these kinds of sound. The same settings and number of threads give the same judge.

    Args:
        held_out: all kinds, drawing from the recorded events that are held out (`known_sounds(…, held_out=True)`).
        taught: the same kinds as models are taught them. The judge does not learn from these; that it knows them is
            checked, because it has heard other recorded events.
    """
    kinds, seed = len(held_out), settings.seed
    renderings = singles(kinds, settings.alone, seed, alone=True) + singles(kinds, settings.scenes, seed)
    renderings += pairs(kinds, settings.pairs, seed)
    power, labels = _rendered(renderings, held_out, progress)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = JudgeNetwork(kinds)
        torch.nn.init.constant_(network.score.bias, -3.0)  # of all kinds few are in a clip
        _fit(network, power, labels, settings, progress)
    judge = Judge(network, JudgeCard(tuple(sound.name for sound in held_out)))
    ceiling = check_judge(judge, held_out, settings.checked, progress)
    if taught:
        known = check_judge(judge, taught, settings.checked, progress)
        ceiling |= {f"taught_{name}": share for name, share in known.items()}
    training = asdict(settings) | {"recordings": any(sound.recorded for sound in held_out)}
    return Judge(network, JudgeCard(judge.card.kinds, training, ceiling))


def kept_judge(path: Path | None, recordings: Path | None, progress: Progress = silent) -> Judge:
    """The judge of the packaged model's vocabulary that `path` holds, or, where nothing is, a new one put there.

    Args:
        path: None keeps it in the user's cache.
        recordings: folder of `ezaudio-data recordings`, to train with; None trains on synthesised sounds alone.

    Raises:
        InputError: a judge of another vocabulary, no such recordings, or a path that cannot be written (nothing is
            trained then). BundleError: the file is no judge.
    """
    if path is None:
        path = cache_folder() / "judge.safetensors"
        make_folder(path.parent)
    if path.exists():
        return Judge.load(path, KINDS)
    held_out, taught = known_sounds(recordings, held_out=True), taught_sounds(recordings)
    Destination.parse(str(path), "judge")
    judge = train_judge(held_out, taught, progress=progress)
    judge.save(path)
    return judge


def check_judge(judge: Judge, sounds: Sequence[Sound], count: int, progress: Progress = silent) -> dict[str, float]:
    """Shares of right answers on other renderings than it was trained on, `count` of each kind.

    Returns: `alone` and `single` (scenes of one sound): the kind has the highest score; `pairs`: both kinds have the
        two highest.
    """
    kinds = len(sounds)
    sets = {
        "alone": singles(kinds, count, CHECKED_SEED, alone=True),
        "single": singles(kinds, count, CHECKED_SEED),
        "pairs": pairs(kinds, count * kinds, CHECKED_SEED),
    }
    shares = {}
    for name, renderings in sets.items():
        right = 0
        for start in range(0, len(renderings), BATCH):
            batch = renderings[start : start + BATCH]
            scores, _ = judge.hear([rendering.render(sounds) for rendering in batch])
            right += sum(heard(row, each.kinds) for row, each in zip(scores, batch, strict=True))
            progress("checking the judge", start + len(batch), len(renderings))
        shares[name] = right / len(renderings)
    return shares


def heard(scores: NDArray[np.float32], kinds: Sequence[int]) -> bool:
    """Whether the kinds (numbers) have the highest scores (K,)."""
    return set(np.argsort(-scores, kind="stable")[: len(kinds)].tolist()) == set(kinds)


def _rendered(renderings: Sequence[Rendering], sounds: Sequence[Sound], progress: Progress) -> tuple[Tensor, Tensor]:
    """Mel power (N, BANDS, columns) and labels (N, K)."""
    mels = MelPower(SAMPLE_RATE)
    columns = 1 + round(CLIP_S * SAMPLE_RATE) // HOP
    power = torch.empty(len(renderings), BANDS, columns)
    labels = torch.zeros(len(renderings), len(sounds))
    for number, rendering in enumerate(renderings):
        power[number] = mels(torch.from_numpy(rendering.render(sounds))[None])[0]
        labels[number, list(rendering.kinds)] = 1
        progress("rendering", number + 1, len(renderings))
    return power, labels


def _fit(network: JudgeNetwork, power: Tensor, labels: Tensor, settings: JudgeSettings, progress: Progress) -> None:
    rng = np.random.default_rng((settings.seed, 3))
    noise = noise_power(rng, (power.shape[2] - 1) * HOP)
    optimizer = torch.optim.AdamW(network.parameters(), settings.learning_rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, settings.steps, pct_start=0.15)
    network.train()
    for step in range(settings.steps):
        levels, wanted = draw_batch(rng, power, labels, noise, settings.batch)
        loss = F.binary_cross_entropy_with_logits(network(levels)[0], wanted, reduction="sum") / settings.batch
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress("training the judge", step + 1, settings.steps)
    network.eval()
