"""Pictures of a quality report: confusion matrix, and a sheet of spectrograms with the judge's verdicts."""

from __future__ import annotations

import io

import numpy as np

from ezaudio.data.synthesis.primitives import normalize
from ezaudio.data.synthesis.sheet import sheet_png
from ezaudio.evaluation.report import QualityReport
from ezaudio.runtime.spectrogram import check_plot_extra
from ezaudio.training.nano.vocabulary import KINDS

RIGHT, WRONG = "tab:green", "tab:red"


def confusion_png(report: QualityReport) -> bytes:
    """Share of each kind's clips (rows, seen captions) that the judge took for each kind (columns).

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    check_plot_extra()
    from matplotlib.figure import Figure

    taken_for = report.answers["seen"].taken_for
    counts = np.array([[taken_for.get(asked, {}).get(heard, 0) for heard in KINDS] for asked in KINDS], float)
    figure = Figure(figsize=(10, 9.5), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(counts / np.maximum(counts.sum(1, keepdims=True), 1), cmap="viridis", vmin=0, vmax=1)
    axes.set_xticks(range(len(KINDS)), KINDS, rotation=90, fontsize=7)
    axes.set_yticks(range(len(KINDS)), KINDS, fontsize=7)
    axes.set_xlabel("heard by the judge")
    axes.set_ylabel("asked for")
    answers = report.answers["seen"]
    axes.set_title(f"{report.model}: {answers.right} of {answers.clips} clips named right", fontsize=11)
    figure.colorbar(image, ax=axes, label="share of clips", shrink=0.6, pad=0.01)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": "ezaudio"})
    return buffer.getvalue()


def examples_png(report: QualityReport) -> bytes:
    """One generated clip of each kind; its title is green where the judge heard the kind, else red with what it heard.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    clips, colors = [], []
    for example in report.examples:
        right = example.asked == example.heard
        title = example.asked if right else f"{example.asked} (heard: {example.heard})"
        clips.append((title, normalize(example.samples, 1.0)))
        colors.append(RIGHT if right else WRONG)
    return sheet_png(clips, colors=colors)
