"""Which captions fit their sounds: CLAP similarity, written once, then a manifest for each threshold."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ezaudio.data.dataset import SkipReport
from ezaudio.data.journal import Journal
from ezaudio.data.manifest import Manifest, Row, write_manifest
from ezaudio.data.pretrained import load_pretrained
from ezaudio.runtime.errors import InputError
from ezaudio.runtime.naming import make_folder, replace_file
from ezaudio.runtime.sound_file import Audio, read_start
from ezaudio.runtime.spectrogram import check_plot_extra

DEFAULT_MODEL = "laion/larger_clap_general"
THRESHOLDS = (0.35, 0.40, 0.45)
MAX_DURATION_S = 10.0  # what CLAP hears; of a longer clip it would take a random part
SCORES, HISTOGRAM = "scores.jsonl", "histogram.png"


class Clap:
    """Cosine similarity of sounds and captions. `model` is a Hub name or a folder."""

    def __init__(self, model: str = DEFAULT_MODEL) -> None:
        from transformers import ClapModel, ClapProcessor

        self.model, self.processor = load_pretrained(ClapModel, ClapProcessor, model)
        self.sample_rate = int(self.processor.feature_extractor.sampling_rate)
        self.max_tokens = int(self.model.config.text_config.max_position_embeddings) - 2

    def similarity(self, clips: Sequence[Audio], captions: Sequence[str]) -> NDArray[np.float32]:
        """clips (T,) each at `sample_rate`, as many captions → (N,) in -1…1."""
        sounds, texts = self.embeddings(clips, captions)
        return (sounds * texts).sum(-1)

    @torch.no_grad()
    def embeddings(
        self, clips: Sequence[Audio], captions: Sequence[str]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Of clips and captions as for `similarity`, (N, D) each, of length 1."""
        # Apart: the processor would pass `truncation` on to the sounds, where it means something else.
        text = self.processor.tokenizer(
            list(captions), padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        )
        sound = self.processor.feature_extractor(list(clips), sampling_rate=self.sample_rate, return_tensors="pt")
        output = self.model(**{name: value.to(self.model.device) for name, value in {**text, **sound}.items()})
        return output.audio_embeds.float().cpu().numpy(), output.text_embeds.float().cpu().numpy()


def score_manifest(
    manifest: Manifest,
    model: str,
    journal_path: Path,
    batch_size: int = 16,
    progress: Callable[[int], object] = lambda done: None,
) -> tuple[list[float | None], SkipReport]:
    """A score for each row, None where the file cannot be read. What the journal has is not computed again.

    Raises:
        BundleError: the model cannot be loaded.
        InputError: the journal belongs to another model.
    """
    skipped = SkipReport()
    # Paths as they are from the journal: in two manifests one name can be of two files.
    rows = manifest.moved_to(journal_path.parent)
    keys = [hashlib.sha256(f"{row.audio_path}\0{row.caption}".encode()).hexdigest()[:32] for row in rows]
    with Journal(journal_path, {"model": model}) as journal:
        left = [index for index, key in enumerate(keys) if key not in journal]
        progress(len(keys) - len(left))
        clap = Clap(model) if left else None
        for start in range(0, len(left), batch_size):
            indices: list[int] = []
            clips: list[Audio] = []
            for index in left[start : start + batch_size]:
                assert clap is not None
                path = manifest.path_of(manifest.rows[index])
                try:
                    clips.append(read_start(path, MAX_DURATION_S, clap.sample_rate))
                    indices.append(index)
                except InputError as error:
                    skipped.extend([(str(path), str(error))])
            if clips and clap is not None:
                scores = clap.similarity(clips, [manifest.rows[index].caption for index in indices])
                pairs = zip(indices, scores, strict=True)
                journal.append({"key": keys[index], "score": round(float(score), 6)} for index, score in pairs)
            progress(min(batch_size, len(left) - start))
        return [journal.records[key]["score"] if key in journal else None for key in keys], skipped


def filter_manifest(
    manifest: Manifest,
    folder: Path,
    model: str = DEFAULT_MODEL,
    thresholds: Sequence[float] = THRESHOLDS,
    batch_size: int = 16,
    progress: Callable[[int], object] = lambda done: None,
) -> tuple[dict[float, int], SkipReport]:
    """Writes scores.jsonl, at_T.jsonl for each threshold T (rows of at least that score, in a column "clap") and a
    histogram into `folder`, and returns how many rows each threshold keeps.

    Raises:
        MissingExtraError: matplotlib is not installed.
        InputError: not one file can be read.
    """
    check_plot_extra()
    make_folder(folder)
    scores, skipped = score_manifest(manifest, model, folder / SCORES, batch_size, progress)
    known = [score for score in scores if score is not None]
    if not known:
        raise InputError(f"none of {len(scores)} files can be read: {next(iter(skipped.reasons.values()))}")
    rows = manifest.moved_to(folder)
    kept = {}
    for threshold in thresholds:
        fitting = [
            Row(row.audio_path, row.caption, row.split, {**row.others, "clap": f"{score:.4f}"})
            for row, score in zip(rows, scores, strict=True)
            if score is not None and score >= threshold
        ]
        kept[threshold] = write_manifest(folder / manifest_name(threshold), fitting)
    replace_file(folder / HISTOGRAM, histogram_png(known, kept))
    return kept, skipped


def manifest_name(threshold: float) -> str:
    """at_0.40.jsonl: with two digits, or as many more as tell the threshold from others."""
    return f"at_{max(f'{threshold:.2f}', repr(threshold), key=len)}.jsonl"


def histogram_png(scores: Sequence[float], kept: dict[float, int]) -> bytes:
    """Scores in bins of 0.02, a line at each threshold with the share it keeps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    low, high = min(-0.1, min(scores)), max(0.8, max(scores))
    axes.hist(scores, bins=max(1, round((high - low) / 0.02)), range=(low, high), color="0.6")
    for threshold, count in kept.items():
        axes.axvline(threshold, color="C3", linewidth=1)
        label = f"{threshold:.2f}: {count / len(scores):.0%} "
        axes.text(
            threshold, 0.98, label, rotation=90, ha="right", va="top", fontsize=8, transform=axes.get_xaxis_transform()
        )
    axes.set_xlabel("CLAP similarity")
    axes.set_ylabel("Clips")
    axes.set_title(f"{len(scores):,} clips", loc="left", fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": "ezaudio"})
    return buffer.getvalue()
