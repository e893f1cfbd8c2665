"""What a run tells while it goes on: TensorBoard, one JSON line a logged step, the loss curve, sounds to listen to."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Mapping
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ezaudio.data.journal import is_locked
from ezaudio.runtime.audio_file import write_audio
from ezaudio.runtime.errors import InputError
from ezaudio.runtime.naming import file_stem, make_folder

if TYPE_CHECKING:
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

NOT_LOSSES = ("step", "learning_rate", "step_s", "clips_per_s")


Method = TypeVar("Method", bound=Callable[..., None])


def told(method: Method) -> Method:
    """Lets a method of a journal that cannot write raise InputError."""

    @wraps(method)
    def telling(self: Journal, *given: Any) -> None:
        try:
            method(self, *given)
        except OSError as error:
            raise InputError(
                f"'{error.filename or self.folder}' cannot be written ({error.strerror or error}): free some room, or "
                "name another folder"
            ) from error

    return telling  # type: ignore[return-value]


class Journal:
    """In a run's folder: `metrics.jsonl`, `loss.png`, `tensorboard/`, `samples/step-…/`.

    Args:
        step: of the checkpoint that the run goes on from; what was told of later steps is dropped.

    Raises: InputError where the folder cannot be written, or another process trains there.
    """

    @told
    def __init__(self, folder: Path, step: int) -> None:
        make_folder(folder)
        self.folder, self._metrics = folder, folder / "metrics.jsonl"
        self._lock = (folder / ".lock").open("a")  # held until it is closed
        # Not `flock`, which processes that read data would hold for a while after this one is killed.
        if is_locked(self._lock, "lockf"):
            raise InputError(f"another process trains in '{folder}': wait for it, or name another")
        self._rows = [row for row in read_metrics(self._metrics) if row["step"] <= step]
        rows = "".join(json.dumps(row) + "\n" for row in self._rows)
        temporary = self._metrics.with_name(".metrics.jsonl")
        temporary.write_text(rows, encoding="utf-8")
        os.replace(temporary, self._metrics)
        self._file = self._metrics.open("a", encoding="utf-8")
        self._board = None
        if find_spec("tensorboard") is None:
            logger.warning('no TensorBoard logs: pip install "ezaudio[train]"')
        else:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    @told
    def add(self, step: int, values: Mapping[str, float]) -> None:
        """One logged step: losses and times by name."""
        self._rows.append({"step": step, **values})
        self._file.write(json.dumps(self._rows[-1]) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name if name in NOT_LOSSES else f"loss/{name}", value, step)

    @told
    def add_sounds(self, step: int, sounds: Mapping[str, NDArray[np.float32]], sample_rate: int) -> None:
        """Sounds (T,) by title, each a WAV with its spectrogram, and in TensorBoard."""
        from ezaudio.runtime.spectrogram import spectrogram_png

        folder = self.folder / "samples" / f"step-{step:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        for number, (title, samples) in enumerate(sounds.items()):
            name = f"{number:02d}-{file_stem(title)}"
            write_audio(folder / f"{name}.wav", samples, sample_rate, {"prompt": title, "step": step})
            if find_spec("matplotlib") is not None:
                (folder / f"{name}.png").write_bytes(spectrogram_png(samples, sample_rate, title))
            if self._board is not None:
                self._board.add_audio(name, samples[None], step, sample_rate)
        self.draw()

    def draw(self) -> None:
        """The loss curve so far, where matplotlib is installed."""
        if find_spec("matplotlib") is not None and self._rows:
            draw_losses({self.folder.name: self._rows}, self.folder / "loss.png")

    @told
    def close(self) -> None:
        with self._lock:
            self.draw()
            self._file.close()
            if self._board is not None:
                self._board.close()


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Rows of a `metrics.jsonl`; [] without one. A last line that a killed process left torn is passed over."""
    rows: list[dict[str, float]] = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                rows.append(row)
    return rows


def draw_losses(runs: Mapping[str, list[dict[str, float]]], path: Path, smoothing: float = 0.9) -> None:
    """Loss curves over steps, one line a run and loss, smoothed over faint raw values."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for run, rows in runs.items():
        for name in dict.fromkeys(key for row in rows for key in row if key not in NOT_LOSSES):
            points = [(row["step"], row[name]) for row in rows if name in row and math.isfinite(row[name])]
            steps, values = [p[0] for p in points], [p[1] for p in points]
            smooth, running = [], values[0]
            for index, value in enumerate(values):
                weight = min(smoothing, index / (index + 1))
                running = weight * running + (1 - weight) * value
                smooth.append(running)
            (line,) = axes.plot(steps, smooth, label=f"{run} {name}" if len(runs) > 1 else name)
            axes.plot(steps, values, color=line.get_color(), alpha=0.25, linewidth=0.8)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3)
    axes.legend()
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, format="png", dpi=120)
    os.replace(temporary, path)
    pyplot.close(figure)
