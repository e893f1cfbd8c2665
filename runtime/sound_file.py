"""Sound files that are given, of any format, rate and number of channels that libsndfile reads.

Resampling is soxr's: at 44.1 → 24 kHz a tone above the new Nyquist comes back 140 dB down where scipy's `resample_poly`
leaves it at -18 dB with its default filter, in half its time (10 s: 1.7 against 3.7 ms), and any two rates will do.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from ezaudio.runtime.errors import InputError

Audio = NDArray[np.float32]

MAX_CHANNELS = 8
MIN_SAMPLE_RATE, MAX_SAMPLE_RATE = 4_000, 384_000
MIN_DURATION_S, MAX_DURATION_S = 0.05, 24 * 3600.0
BLOCK = 1 << 20  # frames
MAX_MISSING_S = 0.1  # lengths that an MP3 header announces are not exact


def open_sound(path: Path) -> soundfile.SoundFile:
    """The file, open. Raises InputError where there is none, or one out of the limits above."""
    if not os.path.isfile(path):  # also no pipe or device, which could block for ever
        raise InputError(f"no file '{path}'")
    try:
        file = soundfile.SoundFile(path)
    except (soundfile.LibsndfileError, RuntimeError, OSError, TypeError) as error:  # TypeError: .raw, without a header
        raise InputError(f"'{path}' is no sound file that libsndfile reads: {str(error).splitlines()[0]}") from error
    duration_s = file.frames / file.samplerate if file.samplerate else 0.0
    if not 1 <= file.channels <= MAX_CHANNELS:
        problem = f"{file.channels} channels, expected 1 to {MAX_CHANNELS}"
    elif not MIN_SAMPLE_RATE <= file.samplerate <= MAX_SAMPLE_RATE:
        problem = f"{file.samplerate} Hz, expected {MIN_SAMPLE_RATE} to {MAX_SAMPLE_RATE}"
    elif not MIN_DURATION_S <= duration_s <= MAX_DURATION_S:
        problem = f"{duration_s:.3f} s, expected {MIN_DURATION_S} s to {MAX_DURATION_S / 3600:.0f} h"
    else:
        return file
    file.close()
    raise InputError(f"'{path}' has {problem}")


def read_start(path: Path, max_duration_s: float, sample_rate: int) -> Audio:
    """The first `max_duration_s` of a file, or all of a shorter one: mean of all channels, float32 (T,).

    Raises:
        InputError: as `open_sound`, or the file is damaged or truncated.
    """
    with open_sound(path) as file:
        rate, got = file.samplerate, 0
        wanted = min(file.frames, math.ceil(max_duration_s * rate))
        resampler = soxr.ResampleStream(rate, sample_rate, 1, "float32") if rate != sample_rate else None
        parts = []
        while got < wanted:  # in blocks: an hour of eight channels is no reason to hold all of it twice
            try:
                block = file.read(min(BLOCK, wanted - got), dtype="float32", always_2d=True)
            except (soundfile.LibsndfileError, RuntimeError) as error:
                raise InputError(f"'{path}' cannot be decoded: {error}") from error
            if not len(block):
                break
            if not np.isfinite(block).all():
                raise InputError(f"'{path}' is truncated or holds NaN or infinity")
            got += len(block)
            mono = block.mean(1)
            parts.append(mono if resampler is None else resampler.resample_chunk(mono))
    if got < wanted - MAX_MISSING_S * rate:
        raise InputError(f"'{path}' is truncated or holds NaN or infinity")
    if resampler is not None:
        parts.append(resampler.resample_chunk(np.zeros(0, np.float32), last=True))
    return np.asarray(np.concatenate(parts)[: round(max_duration_s * sample_rate)], np.float32)
