"""A sheet of spectrograms: one small picture for each kind of sound."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np

from ezaudio.data.synthesis.primitives import SAMPLE_RATE, Audio, normalize, samples
from ezaudio.data.synthesis.registry import Sound
from ezaudio.data.synthesis.scenes import solo
from ezaudio.runtime.spectrogram import RANGE_DB, check_plot_extra, mel_spectrogram

COLUMNS = 8
COLUMN_PIXELS = 240
MAP, LEVELS, SHADES = "magma", 48, 6


def sheet_png(clips: Sequence[tuple[str, Audio]], columns: int = COLUMNS, colors: Sequence[str] | None = None) -> bytes:
    """Mel spectrograms of titled clips, (T,) each at 24 kHz, in rows of `columns`; 80 dB below each one's loudest cell.

    Args:
        colors: of the titles; None draws them all black.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    check_plot_extra()
    from matplotlib import colormaps
    from matplotlib.colors import to_rgb
    from matplotlib.figure import Figure
    from PIL import Image  # matplotlib needs it to write a PNG

    rows = -(-len(clips) // columns)
    figure = Figure(figsize=(2.5 * columns, 1.65 * rows + 0.2), dpi=80, layout="constrained")
    for place, (title, audio) in enumerate(clips):
        mels = mel_spectrogram(audio, SAMPLE_RATE, hop=max(256, len(audio) // COLUMN_PIXELS))
        level = 10 * np.log10(np.maximum(mels / max(mels.max(), 1e-12), 1e-12))
        axes = figure.add_subplot(rows, columns, place + 1)
        axes.imshow(level, origin="lower", aspect="auto", cmap=MAP, vmin=-RANGE_DB, vmax=0)
        axes.set_title(title, fontsize=8, color=colors[place] if colors else "black", parse_math=False)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlabel(f"{len(audio) / SAMPLE_RATE:.1f} s", fontsize=6, labelpad=1)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    # Spectrograms do not compress: with a palette (the map's levels, each title's color and its way to white) they take
    # a quarter of the bytes.
    shades = [colormaps[MAP](np.linspace(0, 1, LEVELS))[:, :3]]
    for color in sorted({"black", *(colors or ())}):
        shades.append(1 - np.linspace(0, 1, SHADES)[:, None] * (1 - np.array(to_rgb(color))))
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.rint(255 * np.concatenate(shades)).astype(np.uint8).tobytes())
    small = io.BytesIO()
    image = Image.open(buffer).convert("RGB").quantize(palette=palette, dither=Image.Dither.NONE)
    image.save(small, "png", optimize=True)
    return small.getvalue()


def kinds_png(sounds: Sequence[Sound], seed: int = 0) -> bytes:
    """One clip of 4 s of each kind. Raises MissingExtraError without matplotlib."""
    clips = []
    for sound in sounds:
        audio = solo(np.random.default_rng(seed), sound, samples(4.0))
        clips.append((sound.name, normalize(audio, 1.0)))
    return sheet_png(clips)
