"""The model card of the packaged model: what made it, of what, and how well it does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ezaudio import __version__
from ezaudio.data.recordings import sources
from ezaudio.evaluation.report import told
from ezaudio.runtime.machine import processor
from ezaudio.training.journal import read_metrics
from ezaudio.training.nano.vocabulary import KINDS

if TYPE_CHECKING:
    from ezaudio.evaluation.report import QualityReport
    from ezaudio.training.nano.recipe import Recipe

TEXT = """# nano, the model inside the ezaudio package

EzAudio (arXiv 2409.10819) of {parameters:.1f} million parameters, trained from nothing: text encoder, diffusion
transformer and waveform autoencoder. A demonstration that knows {num_kinds} kinds of sound, alone and two at a time,
and nothing else: {kinds}.

Weights: MIT, made by this project. Sounds: {sounds}.

## How it was made

    {command}

{hardware}; torch {torch}, ezaudio {version}. Seed {seed}.

| | steps | clips a step | learning rate | hours |
|---|---|---|---|---|
{rows}

Scenes: {scenes}. Captions leave out some pairs of words, such as "a puppy barking", to be asked for afterwards.
{before}
## How well it does

Judged by a classifier that was trained on other renderings alone (`benchmarks/nano_quality.py`):

    {report}
"""

BEFORE = """
### Before that

"""


def model_card(folder: Path, made: Recipe, recordings: Path | None, command: str, report: QualityReport) -> str:
    """Markdown. `folder` is the run's, whose stages tell their times; what it began with is told by its own card."""
    former = None if made.start is None else made.start.card
    rows = [_row(stage.name, folder / stage.name, stage.run.batch_size) for stage in made.stages]
    return TEXT.format(
        parameters=_parameters(folder / "model") / 1e6,
        num_kinds=len(KINDS),
        kinds=", ".join(KINDS),
        sounds=_sources(recordings),
        command=command,
        hardware=torch.cuda.get_device_name() if torch.cuda.is_available() else processor(),
        torch=torch.__version__,
        version=__version__,
        seed=made.seed,
        rows="\n".join(rows),
        scenes=", ".join(f"{s.count:,} of {s.duration_s:g} s, {s.pairs:.0%} with two sounds" for s in made.scenes),
        before="" if former is None else BEFORE + _history(former.read_text(encoding="utf-8")),
        report="\n    ".join(told(report)),
    )


def _history(card: str) -> str:
    """How the model of a card was made."""
    _, _, rest = card.partition("\n## How it was made\n\n")
    return rest.partition("\n## ")[0]


def _row(name: str, run: Path, batch_size: int) -> str:
    """Hours are those of the steps: their number times the mean of the logged ones."""
    metrics = read_metrics(run / "metrics.jsonl")
    steps = int(metrics[-1]["step"])
    rates = [row["learning_rate"] for row in metrics]
    hours = steps * float(np.mean([row["step_s"] for row in metrics])) / 3600
    return f"| {name} | {steps:,} | {batch_size} | {max(rates):g} to {rates[-1]:g} | {hours:.2f} |"


def _parameters(model: Path) -> int:
    from safetensors import safe_open

    total = 0
    for path in sorted(model.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            total += sum(int(np.prod(file.get_slice(name).get_shape())) for name in file.keys())  # noqa: SIM118
    return total


def _sources(recordings: Path | None) -> str:
    made = "synthesised by ezaudio/data/synthesis (MIT)"
    if recordings is None:
        return made
    told_sources = [
        f"{s['name']} by {s['author']}, {s['source']}, {s['licence']}"
        for s in sources(recordings)
        if s["name"] in KINDS
    ]
    return f"{made}, and recordings: " + "; ".join(told_sources)
