"""Rendered scenes as files with a manifest, and how fast they render."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import soundfile

from ezaudio.data.journal import Journal
from ezaudio.data.manifest import Row, write_manifest
from ezaudio.data.synthesis.captions import scene_clip
from ezaudio.data.synthesis.primitives import SAMPLE_RATE, Audio, samples
from ezaudio.data.synthesis.registry import Sound
from ezaudio.data.synthesis.scenes import VARIED, SceneStyle, solo
from ezaudio.runtime.errors import InputError
from ezaudio.runtime.naming import make_folder, replace_file

AUDIO_FORMATS = ("flac", "wav")
BATCH = 16
JOURNAL = "finished.jsonl"

Progress = Callable[[int], object]


def render_folder(
    folder: Path,
    sounds: Sequence[Sound],
    count: int,
    seed: int = 0,
    duration_s: float = 10.0,
    audio_format: str = "flac",
    split: str = "train",
    style: SceneStyle = VARIED,
    progress: Progress = lambda done: None,
) -> Path:
    """Writes `count` scenes into `folder` and, when all are there, the manifest.jsonl that lists them. Resumes.

    Returns:
        The manifest's path. Besides the usual columns it has `events`: what sounds when, as JSON.

    Raises:
        InputError: settings out of range, a folder begun with other settings, or one that cannot be written.
    """
    if audio_format not in AUDIO_FORMATS:
        raise InputError(f"unknown format {audio_format!r}: expected {' or '.join(AUDIO_FORMATS)}")
    if not 1.0 <= duration_s <= 60.0 or not 1 <= count <= 10_000_000:
        raise InputError(f"expected 1 to 60 s and 1 to 10,000,000 scenes, got {duration_s} s and {count}")
    make_folder(folder)
    settings = {
        "seed": seed,
        "duration_s": duration_s,
        "format": audio_format,
        "split": split,
        "sounds": sorted(sound.name for sound in sounds),
        "recorded": sorted(sound.name for sound in sounds if sound.recorded),
        "style": json.loads(json.dumps(asdict(style))),
    }
    with Journal(folder / JOURNAL, settings) as journal:
        missing = [
            index
            for index in range(count)
            if str(index) not in journal or not (folder / _file_name(index, audio_format)).is_file()
        ]
        progress(count - len(missing))
        for start in range(0, len(missing), BATCH):
            batch = missing[start : start + BATCH]
            records = []
            for index in batch:
                audio, scene, text = scene_clip(seed, index, sounds, samples(duration_s), style)
                name = _file_name(index, audio_format)
                replace_file(folder / name, encoded(audio, audio_format))
                events = json.dumps(scene.labels())
                records.append({"key": str(index), "audio_path": name, "caption": text, "events": events})
            journal.append(records)
            progress(len(batch))
        rows = [journal.records[str(index)] for index in range(count)]
    manifest = folder / "manifest.jsonl"
    write_manifest(manifest, [Row(r["audio_path"], r["caption"], split, {"events": r["events"]}) for r in rows])
    return manifest


def real_time_factors(sounds: Sequence[Sound], num_scenes: int, seed: int = 0) -> tuple[float, list[tuple[str, float]]]:
    """Seconds of sound rendered in a second of CPU time: scenes of 10 s, and clips of each kind, slowest first."""
    num_samples = samples(10.0)
    scene_clip(seed, 0, sounds, num_samples)  # the first one fills caches
    begin = time.process_time()
    for index in range(num_scenes):
        scene_clip(seed, 1 + index, sounds, num_samples)
    factor = 10.0 * num_scenes / (time.process_time() - begin)
    kinds = []
    for sound in sounds:
        solo(np.random.default_rng(seed), sound, num_samples)
        begin = time.process_time()
        solo(np.random.default_rng(seed), sound, num_samples)
        kinds.append((sound.name, 10.0 / (time.process_time() - begin)))
    return factor, sorted(kinds, key=lambda kind: kind[1])


def _file_name(index: int, audio_format: str) -> str:
    return f"{index:07d}.{audio_format}"


def encoded(audio: Audio, audio_format: str) -> bytes:
    """A file of AUDIO_FORMATS with 16 bits a sample."""
    buffer = io.BytesIO()
    soundfile.write(buffer, audio, SAMPLE_RATE, format=audio_format.upper(), subtype="PCM_16")
    return buffer.getvalue()
