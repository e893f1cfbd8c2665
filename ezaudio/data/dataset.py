"""Training clips from a manifest, each a function of (seed, epoch, index) alone.

    dataset = ManifestDataset(read_manifest(path, "train"), num_samples=240_000, seed=0)
    skipped = SkipReport()
    for batch in batches(dataset, batch_size=128, first_batch=step, num_batches=steps - step, num_workers=8):
        skipped.extend(batch.problems)
        ...                                  # batch.audio (B, 1, T), batch.captions
    skipped.log()

Samples are numbered without end: sample number n is place n mod len of epoch n div len. So a run that resumes at a step
asks for the numbers from there on and reads the same bytes, with any number of workers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ezaudio.data.audio import normalize_peak, read_crop
from ezaudio.data.manifest import Manifest
from ezaudio.data.synthesis import Sound
from ezaudio.data.synthesis.captions import scene_clip
from ezaudio.runtime.errors import EzAudioError, InputError
from ezaudio.runtime.sound_file import Audio

MAX_TRIES = 100
SAMPLE_RATE = 24000

Item = TypeVar("Item")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Clip:
    """audio (1, T) with a peak of 1; `row` is its index in the manifest; `problems` are files that were passed over."""

    audio: Tensor
    caption: str
    row: int
    problems: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class ClipBatch:
    """audio (B, 1, T), B captions, rows (B,), and the (file, reason) pairs of what was passed over."""

    audio: Tensor
    captions: list[str]
    rows: Tensor
    problems: list[tuple[str, str]]

    def pin_memory(self) -> ClipBatch:
        """What a DataLoader calls to speed up copies to a GPU."""
        return ClipBatch(self.audio.pin_memory(), self.captions, self.rows.pin_memory(), self.problems)


@dataclass(slots=True)
class SkipReport:
    """Files that could not be used, each once, and how often one was passed over."""

    reasons: dict[str, str] = field(default_factory=dict)
    count: int = 0

    def extend(self, problems: Sequence[tuple[str, str]]) -> None:
        for path, reason in problems:
            self.reasons.setdefault(path, reason)
            self.count += 1

    def summary(self, limit: int = 20) -> str:
        """One line a file, at most `limit` of them; "" when nothing was passed over."""
        if not self.reasons:
            return ""
        lines = [f"{len(self.reasons)} files were passed over ({self.count} times):"]
        lines += [f"  {reason}" for reason in list(self.reasons.values())[:limit]]
        if len(self.reasons) > limit:
            lines.append(f"  and {len(self.reasons) - limit} more")
        return "\n".join(lines)

    def log(self) -> None:
        if self.reasons:
            log.warning("%s", self.summary())


class SceneDataset(Dataset[Clip]):
    """Scenes of synthesised sounds, rendered when they are asked for: no number comes twice, and nothing is on disk.

    Clips are as those of `ManifestDataset`; an index is the number of a scene of the seed, so `row` is it, too.
    """

    def __init__(self, sounds: Sequence[Sound], num_samples: int = 10 * SAMPLE_RATE, seed: int = 0) -> None:
        self.sounds, self.num_samples, self.seed = list(sounds), num_samples, seed

    def __getitem__(self, number: int) -> Clip:
        if number < 0:
            raise IndexError(f"sample numbers start at 0, got {number}")
        audio, _, caption = scene_clip(self.seed, number, self.sounds, self.num_samples)
        return Clip(torch.from_numpy(normalize_peak(audio))[None], caption, number)


class PackedStrings(Sequence[str]):
    """Many strings in two arrays. A list of millions would be copied into every worker, object by object, as they are
    counted references; arrays stay shared."""

    def __init__(self, strings: Iterable[str]) -> None:
        encoded = [string.encode() for string in strings]
        self.data = np.frombuffer(b"".join(encoded), np.uint8)
        self.ends = np.cumsum([len(string) for string in encoded], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        return self.data[self.ends[index - 1] if index else 0 : self.ends[index]].tobytes().decode()


class ManifestDataset(Dataset[Clip]):
    """Random crops of the files of a manifest: mono, peak 1, phase flipped half the time.

    An index is a sample number as described above, from 0 without end; `len` is the length of an epoch. Where a file
    cannot be used, the clip comes from another row, drawn by the same (seed, epoch, index).
    """

    def __init__(
        self,
        manifest: Manifest,
        num_samples: int = 10 * SAMPLE_RATE,
        sample_rate: int = SAMPLE_RATE,
        seed: int = 0,
        shuffle: bool = True,
    ) -> None:
        if num_samples < 1:
            raise InputError(f"a clip needs at least 1 sample, got {num_samples}")
        self.name = manifest.name
        self.paths = PackedStrings(str(manifest.path_of(row)) for row in manifest.rows)
        self.captions = PackedStrings(row.caption for row in manifest.rows)
        self.num_samples = num_samples
        self.sample_rate = sample_rate
        self.seed = seed
        self.shuffle = shuffle

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> Clip:
        """Raises InputError when none of MAX_TRIES files (or of all, if fewer) can be read."""
        if number < 0:
            raise IndexError(f"sample numbers start at 0, got {number}")
        epoch, place = divmod(number, len(self))
        row = int(epoch_order(len(self), self.seed, epoch)[place]) if self.shuffle else place
        problems: list[tuple[str, str]] = []
        for candidate in self._candidates(row, epoch, place):
            try:
                audio = torch.from_numpy(self._read(candidate, epoch, place))[None]
            except InputError as error:
                problems.append((self.paths[candidate], str(error)))
                continue
            return Clip(audio, self.captions[candidate], candidate, tuple(problems))
        raise InputError(
            f"none of {len(problems)} files of manifest '{self.name}' can be read, the last: {problems[-1][1]}"
        )

    def _candidates(self, row: int, epoch: int, place: int) -> Iterator[int]:
        """The row, then others in random order: every row once when there are at most MAX_TRIES."""
        yield row
        if len(self) <= MAX_TRIES:
            others = np.random.default_rng((self.seed, epoch, place, 1)).permutation(len(self))
            yield from (int(other) for other in others if other != row)
        else:
            yield from (
                np.random.default_rng((self.seed, epoch, place, 1)).integers(0, len(self), MAX_TRIES - 1).tolist()
            )

    def _read(self, row: int, epoch: int, place: int) -> Audio:
        rng = np.random.default_rng((self.seed, epoch, place))
        audio = normalize_peak(read_crop(Path(self.paths[row]), rng, self.num_samples, self.sample_rate))
        return -audio if rng.random() < 0.5 else audio


@lru_cache(maxsize=4)
def epoch_order(length: int, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch: a permutation of `length` rows."""
    order = np.random.default_rng((seed, epoch)).permutation(length)
    order.setflags(write=False)
    return order


def collate(clips: Sequence[Clip]) -> ClipBatch:
    return ClipBatch(
        torch.stack([clip.audio for clip in clips]),
        [clip.caption for clip in clips],
        torch.tensor([clip.row for clip in clips]),
        [problem for clip in clips for problem in clip.problems],
    )


class Loader(DataLoader[Item]):
    """A DataLoader whose workers' errors keep their one line: PyTorch puts the whole traceback into them."""

    def __iter__(self) -> Any:
        try:
            yield from super().__iter__()
        except EzAudioError as error:
            kind = type(error)
            raise kind(str(error).rpartition(f".{kind.__qualname__}: ")[2].rstrip()) from error


def batches(
    dataset: Dataset[Item],
    batch_size: int,
    first_batch: int = 0,
    num_batches: int = 2**40,
    num_workers: int = 0,
    pin_memory: bool = False,
    collate_fn: Callable[[list[Any]], Any] = collate,
) -> DataLoader[Item]:
    """Batches `first_batch`, `first_batch` + 1, …: the same ones for any `num_workers` and wherever one starts."""
    numbers = range(first_batch * batch_size, (first_batch + num_batches) * batch_size)
    return Loader(
        dataset,
        batch_size=batch_size,
        sampler=numbers,
        num_workers=num_workers,
        collate_fn=collate_fn,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
    )
