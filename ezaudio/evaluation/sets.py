"""A set of generated sounds beside recorded ones: FD, KL, IS and CLAP, as papers on text to audio tell of them
(arXiv 2409.10819, section 4).

What the numbers are depends on the models that listen, here CLAP and a tagger of AudioSet's classes; published tables
mostly have PANNs. Compare only what the same two have heard.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ezaudio.data.caption_sets import AUDIO_SUFFIXES
from ezaudio.data.dataset import SkipReport
from ezaudio.data.filtering import MAX_DURATION_S, Clap
from ezaudio.data.journal import Journal
from ezaudio.data.manifest import Manifest, Row, read_manifest
from ezaudio.data.pretrained import load_pretrained
from ezaudio.evaluation.metrics import frechet_distance, inception_score, kl_divergence
from ezaudio.runtime.audio_file import read_settings
from ezaudio.runtime.errors import InputError
from ezaudio.runtime.manifest import describe_file
from ezaudio.runtime.sound_file import Audio, read_start

DEFAULT_TAGGER = "MIT/ast-finetuned-audioset-10-10-0.4593"
JOURNAL, REPORT = "heard.jsonl", "evaluation.json"

Floats = NDArray[np.float32]


class Tagger:
    """A classifier of sounds, of any class that transformers knows. `model` is a Hub name or a folder."""

    def __init__(self, model: str = DEFAULT_TAGGER) -> None:
        from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a mel band below the first frequency is empty
            self.model, self.extractor = load_pretrained(AutoModelForAudioClassification, AutoFeatureExtractor, model)
        self.sample_rate = int(self.extractor.sampling_rate)

    @torch.no_grad()
    def logits(self, clips: Sequence[Audio]) -> Floats:
        """clips (T,) each at `sample_rate` → (N, classes)."""
        inputs = self.extractor(list(clips), sampling_rate=self.sample_rate, return_tensors="pt")
        output = self.model(**{name: value.to(self.model.device) for name, value in inputs.items()})
        return np.asarray(output.logits.float().cpu())


@dataclass(frozen=True, slots=True)
class Heard:
    """What the models heard in the clips of a set that could be read.

    Attributes:
        sounds, texts: CLAP's embeddings of clips and captions, (N, D), of length 1.
        logits: of the tagger, (N, classes).
    """

    captions: tuple[str, ...]
    sounds: Floats
    texts: Floats
    logits: Floats

    @property
    def similarity(self) -> float:
        """Mean cosine of clips and captions."""
        return float((self.sounds * self.texts).sum(1).mean())


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Measures of a set, and of its reference where there is one.

    Attributes:
        pairs: clips whose caption the reference has too, which `kl` is the mean over.
        clap, inception: similarity to the captions, and inception score; higher is better.
        fd, kl: Fréchet distance of CLAP's embeddings, and divergence of the tagger's classes; lower is better. None
            without a reference, `kl` also without pairs.
    """

    clips: int
    clap: float
    inception: float
    reference_clips: int = 0
    pairs: int = 0
    fd: float | None = None
    kl: float | None = None
    reference_clap: float | None = None
    reference_inception: float | None = None


def made_by_ezaudio(folder: Path) -> Manifest:
    """The sounds of a folder with the prompts that they were made of, which lie in the files.

    Raises InputError where there is none, or one that ezaudio did not make.
    """
    try:
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() in AUDIO_SUFFIXES)
    except OSError as error:
        raise InputError(f"'{folder}' cannot be read ({error.strerror}): name another folder") from error
    if not files:
        raise InputError(f"'{folder}' has no sound file: expected {', '.join(AUDIO_SUFFIXES)}")
    rows = tuple(Row(path.name, str(read_settings(path).get("prompt", "")), "test", {}) for path in files)
    return Manifest(rows, folder, folder.name)


def read_set(path: Path, split: str | None = None) -> Manifest:
    """A folder of sounds that ezaudio made, or a manifest."""
    return made_by_ezaudio(path) if path.is_dir() else read_manifest(path, split)


def hear(
    manifest: Manifest,
    clap_model: str,
    tagger_model: str,
    journal_path: Path,
    batch_size: int = 8,
    progress: Callable[[int], object] = lambda done: None,
) -> tuple[Heard, SkipReport]:
    """The first 10 s of every clip, through both models. What the journal has is not heard again.

    Raises:
        BundleError: a model cannot be loaded.
        InputError: the journal belongs to other models, or not one file can be read.
    """
    skipped, keys, found = SkipReport(), [], []
    for row in manifest.rows:  # of its bytes: a set that was made anew under the same names is another
        try:
            content = describe_file(manifest.path_of(row)).sha256
        except OSError as error:
            skipped.extend([(str(manifest.path_of(row)), f"'{manifest.path_of(row)}': {error.strerror or error}")])
            continue
        keys.append(hashlib.sha256(f"{content}\0{row.caption}".encode()).hexdigest()[:32])
        found.append(row)
    with Journal(journal_path, {"clap": clap_model, "tagger": tagger_model}) as journal:
        left = [(key, row) for key, row in zip(keys, found, strict=True) if key not in journal]
        progress(len(manifest) - len(left))
        models = (Clap(clap_model), Tagger(tagger_model)) if left else None
        for start in range(0, len(left), batch_size):
            assert models is not None
            clap, tagger = models
            batch, clips = [], []
            for key, row in left[start : start + batch_size]:
                path = manifest.path_of(row)
                try:
                    clips.append([read_start(path, MAX_DURATION_S, one.sample_rate) for one in models])
                    batch.append((key, row))
                except InputError as error:
                    skipped.extend([(str(path), str(error))])
            if batch:
                sounds, texts = clap.embeddings([clip for clip, _ in clips], [row.caption for _, row in batch])
                logits = tagger.logits([clip for _, clip in clips])
                journal.append(
                    {"key": key, "sound": _digits(a), "text": _digits(b), "logits": _digits(c)}
                    for (key, _), a, b, c in zip(batch, sounds, texts, logits, strict=True)
                )
            progress(min(batch_size, len(left) - start))
        known = [(row, journal.records[key]) for key, row in zip(keys, found, strict=True) if key in journal]
    if not known:
        raise InputError(f"none of {len(manifest)} files can be read: {next(iter(skipped.reasons.values()))}")
    columns = [np.array([record[name] for _, record in known], np.float32) for name in ("sound", "text", "logits")]
    return Heard(tuple(row.caption for row, _ in known), *columns), skipped


def _digits(values: Floats) -> list[float]:
    return [float(f"{value:.6g}") for value in values]


def compare(made: Heard, reference: Heard | None) -> Evaluation:
    """Measures of a set. A pair is a made clip and the first of the reference with the same caption."""
    own = Evaluation(len(made.captions), made.similarity, inception_score(made.logits))
    if reference is None:
        return own
    first = {caption: index for index, caption in reversed([*enumerate(reference.captions)])}
    pairs = [(index, first[caption]) for index, caption in enumerate(made.captions) if caption in first]
    kl = None
    if pairs:
        ours, theirs = (list(side) for side in zip(*pairs, strict=True))
        kl = kl_divergence(reference.logits[theirs], made.logits[ours])
    return Evaluation(
        own.clips,
        own.clap,
        own.inception,
        len(reference.captions),
        len(pairs),
        frechet_distance(made.sounds, reference.sounds),
        kl,
        reference.similarity,
        inception_score(reference.logits),
    )


def told(found: Evaluation) -> list[str]:
    """Lines of text."""

    def line(name: str, value: float | None, better: str, reference: float | None = None) -> str:
        beside = "" if reference is None else f", reference {reference:.4g}"
        return f"{name:22} {'no pairs' if value is None else f'{value:.4g}'}{beside}  ({better})"

    lines = [
        f"{found.clips:,} clips",
        line("CLAP similarity", found.clap, "higher is better", found.reference_clap),
        line("inception score, IS", found.inception, "higher is better", found.reference_inception),
    ]
    if found.reference_clips:
        lines[0] += f", {found.reference_clips:,} of the reference, {found.pairs:,} pairs of one caption"
        lines += [
            line("Fréchet distance, FD", found.fd, "lower is better"),
            line("divergence, KL", found.kl, "lower is better"),
        ]
    return lines
