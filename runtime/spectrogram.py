"""Mel spectrogram of a clip as a PNG: time in seconds, frequency in Hz, level in dB below the loudest cell."""

from __future__ import annotations

import importlib.util
import io
import textwrap
import warnings
from typing import TYPE_CHECKING

from ezaudio.runtime.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FFT_SIZE = 2048
HOP = 256
NUM_BANDS = 160
RANGE_DB = 80.0
MAX_COLUMNS = 4000  # more than the picture has pixels
TICKS_HZ = (0, 125, 250, 500, 1000, 2000, 4000, 8000, 16000)


def check_plot_extra() -> None:
    """Raises MissingExtraError unless matplotlib is installed. Imports nothing, so it can run before any work."""
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError('a spectrogram needs matplotlib, which is not installed: pip install "ezaudio[plot]"')


def mel_spectrogram(samples: NDArray[np.floating], sample_rate: int, hop: int = HOP) -> NDArray[np.float64]:
    """Power in NUM_BANDS triangular mel bands up to half the sample rate; Hann windows centred on multiples of `hop`.

    Args:
        samples: (T,)

    Returns:
        (NUM_BANDS, 1 + T // hop)
    """
    import numpy as np

    padded = np.pad(np.asarray(samples, dtype=np.float64), FFT_SIZE // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, FFT_SIZE)[::hop]
    power = np.abs(np.fft.rfft(frames * np.hanning(FFT_SIZE + 1)[:-1])) ** 2
    mels: NDArray[np.float64] = mel_bank(sample_rate, FFT_SIZE, NUM_BANDS) @ power.T
    return mels


def mel_bank(sample_rate: int, fft_size: int, num_bands: int) -> NDArray[np.float64]:
    """Triangles (num_bands, 1 + fft_size // 2), even in mel from 0 to half the sample rate, each with a sum of 1."""
    import numpy as np

    bins_hz = np.fft.rfftfreq(fft_size, 1 / sample_rate)
    edges_hz = _mel_to_hz(np.linspace(0, _hz_to_mel(np.array(sample_rate / 2)), num_bands + 2))
    # Low bands are narrower than a bin: a triangle no narrower than two bins leaves none of them empty.
    centre = edges_hz[1:-1, None]
    below = np.maximum(centre - edges_hz[:-2, None], bins_hz[1])
    above = np.maximum(edges_hz[2:, None] - centre, bins_hz[1])
    distance = bins_hz[None, :] - centre
    bands = np.clip(1 - np.where(distance < 0, -distance / below, distance / above), 0, None)
    bank: NDArray[np.float64] = bands / bands.sum(1, keepdims=True)
    return bank


def spectrogram_png(samples: NDArray[np.floating], sample_rate: int, title: str) -> bytes:
    """Draws one clip. The title is drawn as it is (no TeX), on at most two lines.

    Args:
        samples: (T,) or (1, T)

    Raises:
        MissingExtraError: matplotlib is not installed.
        InputError: not one mono clip.
    """
    import numpy as np

    check_plot_extra()
    mono = np.asarray(samples)
    if mono.ndim == 2 and mono.shape[0] == 1:
        mono = mono[0]
    if mono.ndim != 1 or not mono.size:
        raise InputError(f"samples have shape {np.shape(samples)}, expected one mono clip: (T,) or (1, T)")
    from matplotlib.figure import Figure

    hop = max(HOP, mono.size // MAX_COLUMNS)
    mels = mel_spectrogram(mono, sample_rate, hop)
    level = 10 * np.log10(np.maximum(mels / max(mels.max(), 1e-12), 1e-12))
    top_mel = float(_hz_to_mel(np.array(sample_rate / 2)))
    cell_s, cell_mel = hop / sample_rate, top_mel / (NUM_BANDS + 1)
    ticks_hz = [hz for hz in TICKS_HZ if hz <= sample_rate / 2]

    figure = Figure(figsize=(10, 4.2), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(
        level,
        origin="lower",
        aspect="auto",
        cmap="magma",
        vmin=-RANGE_DB,
        vmax=0,
        extent=(-cell_s / 2, (mels.shape[1] - 0.5) * cell_s, cell_mel / 2, top_mel - cell_mel / 2),
        interpolation="bilinear",
    )
    axes.set_yticks(_hz_to_mel(np.array(ticks_hz, dtype=float)), [f"{hz:,}" for hz in ticks_hz])
    axes.set_facecolor(image.cmap(0.0))
    axes.set_xlim(0, mono.size / sample_rate)
    axes.set_ylim(0, top_mel)
    axes.set_xlabel("Time (s)")
    axes.set_ylabel("Frequency (Hz)")
    lines = textwrap.wrap(title, width=90, max_lines=2, placeholder=" …")
    axes.set_title("\n".join(lines), loc="left", fontsize=11, parse_math=False)
    figure.colorbar(image, ax=axes, label="Level (dB)", pad=0.01)
    buffer = io.BytesIO()
    with warnings.catch_warnings():  # a script that the default font lacks is drawn as boxes, and that is all
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(buffer, format="png", metadata={"Title": title, "Software": "ezaudio"})
    return buffer.getvalue()


def _hz_to_mel(hz: NDArray[np.float64]) -> NDArray[np.float64]:
    import numpy as np

    return 2595 * np.log10(1 + hz / 700)


def _mel_to_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    return 700 * (10 ** (mel / 2595) - 1)
