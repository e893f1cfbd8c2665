"""A sound that is given to the command: to make a part of it anew, or to follow its loudness."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ezaudio.runtime.errors import InputError

if TYPE_CHECKING:
    from ezaudio.runtime.settings import Generation
    from ezaudio.runtime.sound_file import Audio
    from ezaudio.runtime.text_to_audio import TextToAudio


@dataclass(frozen=True, slots=True)
class GivenSound:
    """Which file, and what for.

    Attributes:
        region: seconds from and to which it is made anew; None to follow its loudness.
        control_scale: how closely to follow it; None where it is edited.
        samples: (T,) at the model's rate, once they are read.
    """

    path: Path
    region: tuple[float, float] | None
    control_scale: float | None
    samples: Audio | None = None

    @classmethod
    def of_options(
        cls, edit: str | None, between: Sequence[float] | None, control: str | None, control_scale: float | None
    ) -> GivenSound | None:
        """What --edit and --between, or --control, ask for. Raises InputError where they do not go together, or where
        the file is none that can be read."""
        if edit is not None and control is not None:
            raise InputError("--edit and --control are given: one sound is edited or followed, leave one out")
        if (edit is None) != (between is None):
            fix = "add --between START,END, the seconds to make anew" if between is None else "add --edit FILE"
            raise InputError(f"--edit and --between go together: {fix}")
        if control is None and control_scale is not None:
            raise InputError("--control-scale says how closely to follow a sound: add --control FILE")
        if edit is not None and between is not None:
            if len(between) != 2:
                raise InputError(f"--between needs two numbers, START,END in seconds, got {len(between)}")
            return cls(_checked(edit), (between[0], between[1]), None)
        if control is not None:
            return cls(_checked(control), None, 1.0 if control_scale is None else control_scale)
        return None

    def read(self, model: TextToAudio) -> GivenSound:
        """The same with its samples. Raises InputError where the model cannot use them, or the file is damaged."""
        from ezaudio.runtime.editing import MAX_CLIP_S
        from ezaudio.runtime.sound_file import read_start

        if self.region is None and not model.has_controlnet:
            raise InputError("this bundle has no ControlNet for --control: export one with --controlnet energy")
        heard_s = MAX_CLIP_S if self.region is not None else model.max_duration_s  # of an hour only as long as a clip
        return replace(self, samples=read_start(self.path, heard_s, model.sample_rate))

    def changes(self, sample_rate: int) -> str | None:
        """What an edit does to all of the file, where it does: mono at the model's rate is what models know."""
        from ezaudio.runtime.sound_file import open_sound

        if self.region is None:
            return None
        with open_sound(self.path) as file:
            found = file.channels, file.samplerate
        if found == (1, sample_rate):
            return None
        of = "mono" if found[0] == 1 else f"{found[0]} channels"
        return f"'{self.path}' ({of}, {found[1]} Hz) becomes mono at {sample_rate} Hz"

    def generate(self, model: TextToAudio, prompt: str, *, duration_s: float, **given: Any) -> Generation:
        assert self.samples is not None
        if self.region is not None:
            start_s, end_s = self.region
            return model.edit(self.samples, prompt, start_s=start_s, end_s=end_s, **given)
        given |= {"duration_s": duration_s, "control_audio": self.samples, "control_scale": self.control_scale}
        return model.generate([prompt], **given)


def _checked(name: str) -> Path:
    """Raises InputError unless the file is a sound, and not longer than can be worked on."""
    from ezaudio.runtime.editing import MAX_CLIP_S
    from ezaudio.runtime.sound_file import open_sound

    path = Path(name)
    with open_sound(path) as file:
        seconds = file.frames / file.samplerate
    if seconds > MAX_CLIP_S:
        raise InputError(f"'{path}' is {seconds:.0f} s long, expected at most {MAX_CLIP_S:.0f}")
    return path
