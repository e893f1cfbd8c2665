"""Sound files → training clips of the model's rate: one crop is read, mixed to mono and resampled."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from ezaudio.runtime.errors import InputError
from ezaudio.runtime.sound_file import MAX_MISSING_S, Audio, open_sound

MARGIN_S = 0.02  # more than soxr's filter reaches: the crop equals that of the resampled whole file


def check_header(path: Path) -> tuple[int, int, int]:
    """Rate in Hz, frames and channels that the file announces. Raises InputError when it cannot be trained on."""
    with open_sound(path) as file:
        return file.samplerate, file.frames, file.channels


def read_crop(path: Path, rng: np.random.Generator, num_samples: int, sample_rate: int) -> Audio:
    """A random stretch as mono float32, (num_samples,), as it is in the file (peak not changed).

    Only the stretch is read from disk. A shorter file is padded with silence at its end. Two channels become, as in the
    official training code, their mean (half the time), the left or the right one; six (5.1) the mean of the front pair;
    other counts the mean of all.

    Args:
        rng: draws the place, then the channel.

    Raises:
        InputError: missing, damaged or truncated file, or one out of the limits of `open_sound`.
    """
    with open_sound(path) as file:
        source_rate, frames = file.samplerate, file.frames
        wanted = math.ceil(num_samples * source_rate / sample_rate)
        start = int(rng.integers(0, max(0, frames - wanted) + 1))
        margin = _margin(source_rate, sample_rate)
        step = source_rate // math.gcd(source_rate, sample_rate)  # frames between two that fall on new samples
        before = min(start // step * step, margin)
        stop = min(frames, start + wanted + margin)
        try:
            file.seek(start - before)
            stretch = file.read(stop - start + before, dtype="float32", always_2d=True)
        except (soundfile.LibsndfileError, RuntimeError) as error:
            raise InputError(f"'{path}' cannot be decoded: {error}") from error
    if len(stretch) < stop - start + before - MAX_MISSING_S * source_rate:
        raise InputError(f"'{path}' is truncated: {len(stretch)} of {stop - start + before} frames could be read")
    if not np.isfinite(stretch).all():
        raise InputError(f"'{path}' holds NaN or infinity")
    audio = _mix(stretch, rng)
    if source_rate != sample_rate:
        audio = soxr.resample(audio, source_rate, sample_rate)
    skip = round(before * sample_rate / source_rate)
    clip = np.zeros(num_samples, np.float32)
    length = min(num_samples, len(audio) - skip)
    clip[:length] = audio[skip : skip + length]
    return clip


def normalize_peak(audio: Audio) -> Audio:
    """Scaled to a peak of 1; silence (below 1e-6) stays as it is, where dividing would turn dither into noise."""
    peak = float(np.abs(audio).max(initial=0.0))
    return (audio / np.float32(peak)).astype(np.float32) if peak > 1e-6 else audio


def _mix(stretch: NDArray[np.float32], rng: np.random.Generator) -> Audio:
    """(frames, channels) → (frames,)."""
    channels = stretch.shape[1]
    if channels == 2:
        choice = int(rng.integers(4))
        return np.ascontiguousarray(stretch[:, choice - 2]) if choice >= 2 else stretch.mean(1)
    return stretch[:, :2].mean(1) if channels == 6 else stretch.mean(1)


def _margin(source_rate: int, sample_rate: int) -> int:
    """At least MARGIN_S, a whole number of steps where those are short; else the crop shifts by a part of a sample."""
    if source_rate == sample_rate:
        return 0
    step, least = source_rate // math.gcd(source_rate, sample_rate), math.ceil(MARGIN_S * source_rate)
    return least if step > least else -(-least // step) * step
