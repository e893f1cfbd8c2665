"""A sound that is given to the command: to make a part of it anew, or to follow its loudness."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ezaudio.runtime.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ezaudio.runtime.settings import Generation
    from ezaudio.runtime.text_to_audio import TextToAudio

    Float32 = NDArray[np.float32]

BLOCK_FRAMES = 2**16


@dataclass(frozen=True, slots=True)
class GivenSound:
    """Which file, and what for.

    Attributes:
        path: of the file.
        region: seconds from and to which it is made anew; None to follow its loudness.
        samples: (T,) at the model's rate, once they are read.
    """

    path: str
    region: tuple[float, float] | None
    samples: Float32 | None = None

    @classmethod
    def of_options(
        cls, edit: str | None, between: Sequence[float] | None, control: str | None, given: dict[str, Any]
    ) -> GivenSound | None:
        """What --edit and --between, or --control, ask for. Raises InputError where they do not go together, or where
        the file is none that can be read."""
        if edit is not None and control is not None:
            raise InputError("--edit and --control are given: one sound is edited or followed, leave one out")
        if (edit is None) != (between is None):
            fix = "add --between START,END, the seconds to make anew" if between is None else "add --edit FILE"
            raise InputError(f"--edit and --between go together: {fix}")
        if edit is not None and between is not None:
            if len(between) != 2:
                raise InputError(f"--between needs two numbers, START,END in seconds, got {len(between)}")
            if "duration_s" in given:
                raise InputError("--edit keeps the length of its file: leave out --duration")
            check_sound("--edit", edit)
            return cls(edit, (between[0], between[1]))
        if control is not None:
            given.setdefault("control_scale", 1.0)
            check_sound("--control", control)
            return cls(control, None)
        if "control_scale" in given:
            raise InputError("--control-scale says how closely to follow a sound: add --control FILE")
        return None

    def read(self, model: TextToAudio) -> GivenSound:
        """The same with its samples. Raises InputError where the model cannot use them."""
        if self.region is None and not model.has_controlnet:
            raise InputError("this bundle has no ControlNet for --control: export one with --controlnet energy")
        return replace(self, samples=read_sound(self.path, model.sample_rate))

    def generate(self, model: TextToAudio, prompt: str, **given: Any) -> Generation:
        assert self.samples is not None
        if self.region is None:
            return model.generate([prompt], control_audio=self.samples, **given)
        del given["duration_s"], given["control_scale"]
        start_s, end_s = self.region
        return model.edit(self.samples, prompt, start_s=start_s, end_s=end_s, **given)


@contextmanager
def readable(path: str) -> Iterator[None]:
    """What libsndfile says of a file becomes one line."""
    import soundfile

    try:
        yield
    except soundfile.SoundFileError as error:
        reason = (str(error).strip().splitlines() or ["?"])[-1]
        raise InputError(f"'{path}' cannot be read as sound ({reason})") from error


def check_sound(option: str, path: str) -> None:
    """Raises InputError unless libsndfile reads the file, and it is of a length to work on."""
    import soundfile

    from ezaudio.runtime.editing import MAX_CLIP_S

    if not Path(path).is_file():
        raise InputError(f"{option}: there is no file '{path}'")
    with readable(path):
        seconds = soundfile.info(path).duration
    if not 0 < seconds <= MAX_CLIP_S:
        raise InputError(f"{option}: '{path}' is {seconds:.0f} s long, expected more than 0 to {MAX_CLIP_S:.0f}")


def read_sound(path: str, sample_rate: int) -> Float32:
    """(T,) samples at `sample_rate`: the mean of the file's channels. Raises InputError where it is damaged."""
    import numpy as np
    import soundfile

    with readable(path), soundfile.SoundFile(path) as file:
        blocks = file.blocks(BLOCK_FRAMES, dtype="float32", always_2d=True)
        mono: Float32 = np.concatenate([np.zeros(0, np.float32), *(block.mean(axis=1) for block in blocks)])
        source_rate = file.samplerate
    if source_rate != sample_rate:
        import soxr

        mono = soxr.resample(mono, source_rate, sample_rate)
    return mono
