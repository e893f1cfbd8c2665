"""Making a part of a sound anew: which samples the model sees, which it makes, and how they are joined.

The model sees the region with some context on both sides, encoded frame by frame; it makes the region's frames and
keeps the others. Outside the region the clip keeps its own samples, bit for bit, but for a short fade on each side in
which they pass into the same sound as the decoder gives it back, so that no seam is heard.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ezaudio.config import EzAudioConfig
from ezaudio.runtime.errors import InputError
from ezaudio.runtime.settings import plain

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Float32 = NDArray[np.float32]

CONTEXT_S = 2.0
FADE_S = 0.03
MAX_CLIP_S = 3600.0
SILENCE = 1e-4  # a peak below −80 dB is no level to scale by


@dataclass(frozen=True, slots=True)
class Window:
    """The samples of a clip that the model sees.

    Attributes:
        begin, end: of the window, in samples of the clip.
        start, stop: of the region to make, in samples of the clip.
        num_samples: of the edited clip; more than the given one has when the region reaches past its end.
        num_frames: L, latent frames of the window.
        first, last: frames of the window to make, one past the last.
    """

    begin: int
    end: int
    start: int
    stop: int
    num_samples: int
    num_frames: int
    first: int
    last: int

    @classmethod
    def plan(cls, num_samples: int, start_s: float, end_s: float, context_s: float, config: EzAudioConfig) -> Window:
        """The window around start_s…end_s of a clip of `num_samples`.

        The context is `context_s` on each side, at most half the region (the official code's rule), whole frames, and
        ends with the clip.

        Raises: InputError when the region is empty, outside the clip's limits, or longer than the model makes.
        """
        rate, hop = config.vae.sample_rate, config.vae.hop
        start_s, end_s, context_s = plain(start_s), plain(end_s), plain(context_s)
        _check_seconds("start_s", start_s, MAX_CLIP_S)
        _check_seconds("end_s", end_s, MAX_CLIP_S)
        _check_seconds("context_s", context_s, config.max_duration_s)
        start, stop = round(start_s * rate), round(end_s * rate)
        if start >= stop:
            raise InputError(f"the region must end after it starts, got {start_s:g} to {end_s:g} s")
        total = max(num_samples, stop)
        context = min(round(context_s * rate), (stop - start) // 2) // hop * hop
        begin, end = max(start - context, 0), min(stop + context, total)
        frames = -(-(end - begin) // hop)
        if end - begin > config.max_duration_s * rate:
            length_s, most = (end - begin) / rate, config.max_duration_s
            raise InputError(
                f"the region and its context take {length_s:g} s, the model makes at most {most:g} s: edit less at once"
            )
        return cls(begin, end, start, stop, total, frames, (start - begin) // hop, -(-(stop - begin) // hop))

    def mask(self) -> NDArray[np.bool_]:
        """(1, L), True where a frame is to be made."""
        frames = np.arange(self.num_frames)
        return ((frames >= self.first) & (frames < self.last))[None]


def _check_seconds(name: str, value: float, most: float) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= most:
        raise InputError(f"{name} must be from 0 to {most:g}, got {value!r}")


def check_audio(name: str, audio: Float32) -> Float32:
    """`audio` as float32 (T,). Raises InputError for another shape, no samples, or values that are no sound."""
    samples = np.asarray(audio)
    if samples.ndim != 1 or samples.dtype.kind != "f":
        got = f"{samples.dtype} {samples.shape}"
        raise InputError(f"{name} must be mono samples, float (T,) with full scale ±1, got {got}")
    samples = samples.astype(np.float32)
    if not samples.size:
        raise InputError(f"{name} has no samples")
    if not np.isfinite(samples).all():
        raise InputError(f"{name} contains NaN or infinity")
    return samples


def model_input(clip: Float32, window: Window, hop: int) -> tuple[Float32, np.float32]:
    """What the encoder is given: the window scaled to a peak of 1, silence after the clip's end.

    Returns: samples (1, L · hop), and the peak to multiply by afterwards.
    """
    samples = np.zeros((1, window.num_frames * hop), np.float32)
    seen = clip[window.begin : window.end]
    peak = np.abs(seen).max(initial=np.float32(0))
    if peak < SILENCE:
        peak = np.float32(1)
    samples[0, : seen.size] = seen / peak
    return samples, peak


def splice(clip: Float32, made: Float32, window: Window, sample_rate: int) -> Float32:
    """The clip with the region replaced: (T,), (window samples,) → (num_samples,)."""
    edited = np.zeros(window.num_samples, np.float32)
    edited[: clip.size] = clip
    start, stop = window.start, window.stop
    edited[start:stop] = made[start - window.begin : stop - window.begin]
    fade = round(FADE_S * sample_rate)
    before, after = min(fade, start - window.begin), min(fade, window.end - stop)
    rising = (np.arange(before, dtype=np.float32) + np.float32(0.5)) / np.float32(max(before, 1))
    falling = ((np.arange(after, dtype=np.float32) + np.float32(0.5)) / np.float32(max(after, 1)))[::-1]
    for first, weight in ((start - before, rising), (stop, falling)):
        old = edited[first : first + weight.size]
        new = made[first - window.begin : first - window.begin + weight.size]
        edited[first : first + weight.size] = old + (new - old) * weight
    return edited
