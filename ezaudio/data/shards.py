"""Precomputed latents and texts in sharded safetensors, and the dataset that reads them: training without audio.

A folder holds shard-00000.safetensors, …, and index.json, which is written last. A shard of n clips has

    mean, std         (n, C, L) float16: posterior of the VAE
    text              (S₁ + … + Sₙ, D) float16 states of the text encoder, or (S₁ + … + Sₙ,) int32 token ids
    text_offsets      (n + 1,) int64: clip i has text[text_offsets[i] : text_offsets[i + 1]]
    rows              (n,) int64: rows of the manifest

and its metadata hold the settings, the captions and the files that were passed over.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils.data import Dataset

from ezaudio.checkpoints import ModelSource
from ezaudio.data.audio import normalize_peak, read_crop
from ezaudio.data.dataset import SkipReport, epoch_order
from ezaudio.data.manifest import Manifest
from ezaudio.runtime.errors import BundleError, InputError
from ezaudio.runtime.naming import make_folder, replace_file
from ezaudio.runtime.sound_file import Audio
from ezaudio.runtime.tokenizer import PromptTokenizer
from ezaudio.text import encode_text
from ezaudio.weights import fingerprints, first_line, read_json, save_atomic

INDEX = "index.json"
FORMAT = 2
READERS = 4  # threads: decoding and resampling leave the interpreter to others


@dataclass(frozen=True, slots=True)
class ShardSettings:
    """What the contents of a folder of shards depend on, besides the manifest."""

    model: str
    text_states: bool
    duration_s: float
    seed: int
    shard_size: int


def encode_shards(
    manifest: Manifest,
    source: ModelSource,
    folder: Path,
    settings: ShardSettings,
    batch_size: int = 8,
    progress: Callable[[int], object] = lambda done: None,
) -> tuple[int, SkipReport]:
    """Writes the shards that are not there yet, then the index. Returns the number of clips.

    Raises:
        InputError: no clip can be read, or the folder holds shards of other settings, models or rows.
    """
    make_folder(folder)
    encoder = _Encoder(source, settings)
    marks = {
        "format": FORMAT,
        **asdict(settings),
        **encoder.fingerprints,
        "manifest": manifest.name,
        "rows": manifest.fingerprint(),
    }
    skipped = SkipReport()
    shards = []
    for number, start in enumerate(range(0, len(manifest), settings.shard_size)):
        rows = range(start, min(start + settings.shard_size, len(manifest)))
        path = folder / f"shard-{number:05d}.safetensors"
        if not path.exists():
            tensors, captions, problems = encoder.encode(manifest, rows, batch_size, progress)
            # One entry of metadata: several would come in random order.
            metadata = {"settings": marks, "captions": captions, "problems": problems}
            save_atomic(tensors, path, {"ezaudio": json.dumps(metadata)})
        else:
            progress(len(rows))
        with _open_shard(path) as file:
            metadata = _metadata(file, path)
            if metadata.get("settings") != marks:
                raise InputError(
                    f"'{path}' is of other settings, another model or other rows: name another folder, or remove it"
                )
            skipped.extend([(problem[0], problem[1]) for problem in metadata["problems"]])
            shards.append({"file": path.name, "num_clips": file.get_slice("rows").get_shape()[0]})
    total = sum(int(shard["num_clips"]) for shard in shards)
    if not total:
        raise InputError(f"none of {len(manifest)} files can be read: {next(iter(skipped.reasons.values()))}")
    index = {**marks, "channels": encoder.channels, "num_frames": encoder.num_frames, "shards": shards}
    replace_file(folder / INDEX, (json.dumps(index, indent=2) + "\n").encode())
    return total, skipped


class _Encoder:
    """VAE, tokenizer and, for states, text encoder of a model."""

    def __init__(self, source: ModelSource, settings: ShardSettings) -> None:
        config = source.config
        self.settings, self.sample_rate = settings, config.vae.sample_rate
        self.num_frames = round(settings.duration_s * config.vae.latent_rate)
        self.num_samples, self.channels = self.num_frames * config.vae.hop, config.vae.latent_channels
        if not self.num_frames:
            raise InputError(f"{settings.duration_s} s are less than a latent frame: take longer clips")
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.vae = source.vae().to(self.device)
        self.tokenizer = PromptTokenizer(source.tokenizer_files()["spiece.model"], config.text.max_tokens)
        self.text_encoder = source.text_encoder() if settings.text_states else None
        if self.text_encoder is not None:
            torch.nn.Module.to(self.text_encoder, self.device)
        self.fingerprints = fingerprints(vae=self.vae, text_encoder=self.text_encoder)

    @torch.no_grad()
    def encode(
        self, manifest: Manifest, rows: range, batch_size: int, progress: Callable[[int], object]
    ) -> tuple[dict[str, Tensor], list[str], list[tuple[str, str]]]:
        """Tensors of a shard, its captions, and what was passed over."""
        parts: dict[str, list[Tensor]] = {"mean": [], "std": [], "text": []}
        kept: list[int] = []
        problems: list[tuple[str, str]] = []
        lengths = [0]
        with ThreadPoolExecutor(READERS) as pool:
            for start in range(0, len(rows), batch_size):
                batch = rows[start : start + batch_size]
                clips = []
                for row, audio in zip(batch, pool.map(partial(self._read, manifest), batch), strict=True):
                    if isinstance(audio, InputError):
                        problems.append((str(manifest.path_of(manifest.rows[row])), str(audio)))
                        continue
                    clips.append(audio)
                    kept.append(row)
                    text = self._text(manifest.rows[row].caption)
                    parts["text"].append(text)
                    lengths.append(len(text))
                if clips:
                    mean, std = self.vae.encode_moments(torch.from_numpy(np.stack(clips))[:, None].to(self.device))
                    parts["mean"].append(mean.half().cpu())
                    parts["std"].append(std.half().cpu())
                progress(len(batch))
        shape = (0, self.channels, self.num_frames)
        tensors = {
            "mean": torch.cat(parts["mean"] or [torch.zeros(shape, dtype=torch.float16)]),
            "std": torch.cat(parts["std"] or [torch.zeros(shape, dtype=torch.float16)]),
            "text": torch.cat(parts["text"] or [self._text("")[:0]]),
            "text_offsets": torch.tensor(lengths).cumsum(0),
            "rows": torch.tensor(kept, dtype=torch.int64),
        }
        return tensors, [manifest.rows[row].caption for row in kept], problems

    def _read(self, manifest: Manifest, row: int) -> Audio | InputError:
        rng = np.random.default_rng((self.settings.seed, 0, row))
        try:
            audio = read_crop(manifest.path_of(manifest.rows[row]), rng, self.num_samples, self.sample_rate)
        except InputError as error:
            return error
        return normalize_peak(audio)

    def _text(self, caption: str) -> Tensor:
        """States (S, D) or ids (S,) of one caption. One at a time: padding would change the states' last bits."""
        ids = torch.tensor([self.tokenizer.encode(caption).ids])
        if self.text_encoder is None:
            return ids[0].int()
        ids = ids.to(self.device)
        return encode_text(self.text_encoder, ids, torch.ones_like(ids))[0].half().cpu()


def _open_shard(path: Path) -> Any:
    try:
        return safe_open(path, "pt")
    except (OSError, SafetensorError) as error:
        raise BundleError(f"'{path}' is no shard ({first_line(error)}): remove it, it will be made again") from error


def _metadata(file: Any, path: Path) -> dict[str, Any]:
    try:
        metadata = json.loads((file.metadata() or {})["ezaudio"])
    except (KeyError, ValueError, RecursionError) as error:
        raise BundleError(f"'{path}' is no shard of latents ({first_line(error)})") from error
    return metadata if isinstance(metadata, dict) else {}


@dataclass(frozen=True, slots=True)
class LatentClip:
    """mean, std (C, L) float16; text (S, D) float16 or (S,) int32; `row` is that of the manifest."""

    mean: Tensor
    std: Tensor
    text: Tensor
    caption: str
    row: int


@dataclass(frozen=True, slots=True)
class LatentBatch:
    """mean, std (B, C, L); text (B, S, D) or (B, S), padded with 0; text_mask (B, S) bool; B captions; rows (B,)."""

    mean: Tensor
    std: Tensor
    text: Tensor
    text_mask: Tensor
    captions: list[str]
    rows: Tensor

    def pin_memory(self) -> LatentBatch:
        """What a DataLoader calls to speed up copies to a GPU."""
        tensors = {name: getattr(self, name).pin_memory() for name in ("mean", "std", "text", "text_mask")}
        return replace(self, **tensors)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """A draw from the posterior in float32: (B, C, L)."""
        noise = torch.randn(self.mean.shape, generator=generator)
        return self.mean.float() + self.std.float() * noise


class LatentShards(Dataset[LatentClip]):
    """Clips of a folder of shards. An index is a sample number, as in `dataset`: the order follows (seed, epoch).

        for batch in batches(LatentShards(folder, seed=0), 128, first_batch=step, collate_fn=collate_latents): …

    Raises:
        BundleError: no index, shards that do not fit it, or damage.
    """

    def __init__(self, folder: Path, seed: int = 0, shuffle: bool = True) -> None:
        self.folder, self.seed, self.shuffle = folder, seed, shuffle
        self.index = read_json(folder / INDEX)
        try:
            counts = [int(shard["num_clips"]) for shard in self.index["shards"]]
            self.files = [str(shard["file"]) for shard in self.index["shards"]]
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(
                f"'{folder / INDEX}' is no index of shards: make them with `ezaudio-data latents`"
            ) from error
        if any(not name.endswith(".safetensors") or "/" in name or "\\" in name for name in self.files):
            raise BundleError(f"'{folder / INDEX}' names files outside of its folder")
        self.ends = np.cumsum(counts)
        if not len(self.ends) or self.ends[-1] < 1 or min(counts) < 0:
            raise BundleError(f"'{folder / INDEX}' lists no clips")
        self._open: dict[int, tuple[Any, list[str], Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return int(self.ends[-1])

    def fingerprint(self) -> str:
        """As `Manifest.fingerprint`, of the index."""
        return hashlib.sha256(json.dumps(self.index, sort_keys=True).encode()).hexdigest()[:16]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # each worker maps the files itself

    def __getitem__(self, number: int) -> LatentClip:
        if number < 0:
            raise IndexError(f"sample numbers start at 0, got {number}")
        epoch, place = divmod(number, len(self))
        clip = int(epoch_order(len(self), self.seed, epoch)[place]) if self.shuffle else place
        shard = int(np.searchsorted(self.ends, clip, side="right"))
        file, captions, offsets, rows = self._shard(shard)
        index = clip - (int(self.ends[shard - 1]) if shard else 0)
        mean, std, text = (file.get_slice(name) for name in ("mean", "std", "text"))
        begin, end = int(offsets[index]), int(offsets[index + 1])
        return LatentClip(mean[index], std[index], text[begin:end], captions[index], int(rows[index]))

    def _shard(self, number: int) -> tuple[Any, list[str], Tensor, Tensor]:
        if number not in self._open:
            path = self.folder / self.files[number]
            file = _open_shard(path)
            count = int(self.ends[number]) - (int(self.ends[number - 1]) if number else 0)
            try:
                captions = _metadata(file, path)["captions"]
                offsets, rows = file.get_tensor("text_offsets"), file.get_tensor("rows")
            except (SafetensorError, KeyError, ValueError) as error:
                raise BundleError(f"'{path}' is no shard of latents ({first_line(error)})") from error
            if not len(captions) == len(rows) == len(offsets) - 1 == count:
                raise BundleError(f"'{path}' has {len(rows)} clips, its index says {count}: make the shards again")
            self._open[number] = file, captions, offsets, rows
        return self._open[number]


def collate_latents(clips: list[LatentClip]) -> LatentBatch:
    """Pads the texts to the longest of the batch."""
    text = torch.nn.utils.rnn.pad_sequence([clip.text for clip in clips], batch_first=True)
    lengths = torch.tensor([len(clip.text) for clip in clips])
    return LatentBatch(
        torch.stack([clip.mean for clip in clips]),
        torch.stack([clip.std for clip in clips]),
        text,
        torch.arange(text.shape[1])[None] < lengths[:, None],
        [clip.caption for clip in clips],
        torch.tensor([clip.row for clip in clips]),
    )
