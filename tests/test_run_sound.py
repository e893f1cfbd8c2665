"""`ezaudio-run` with a sound that is given: a part of it made anew, or its loudness followed."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
from console import Run, fails, runner

from ezaudio.runtime.audio_file import read_settings
from ezaudio.runtime.given_sound import GivenSound
from ezaudio.runtime.text_to_audio import TextToAudio

RATE = 24000
QUICK = ("--steps", 2, "--seed", 3, "--bit-depth", 32)


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, debug_bundle: Path) -> Run:
    """Runs `ezaudio-run ARGUMENTS… --bundle DIR` on the debug model, which has a ControlNet, beside street.wav."""
    monkeypatch.chdir(tmp_path)
    soundfile.write("street.wav", street(3.0), RATE, subtype="FLOAT")
    run = runner("ezaudio-run")
    return lambda *arguments: run(*arguments, "--bundle", debug_bundle)


def street(seconds: float, rate: int = RATE) -> np.ndarray:
    time = np.arange(round(seconds * rate)) / rate
    return (0.4 * np.sin(2 * np.pi * 220 * time) * (1 + np.sin(2 * np.pi * time))).astype(np.float32) / 2


def test_a_part_is_made_anew(make: Run, debug_bundle: Path) -> None:
    result = make("a door slams", "--edit", "street.wav", "--between", "1,2", *QUICK, "-o", "edited.wav")
    assert result.exit_code == 0, result.output
    given, edited = (soundfile.read(name, dtype="float32")[0] for name in ("street.wav", "edited.wav"))
    assert edited.shape == given.shape
    assert np.array_equal(edited[: RATE // 2], given[: RATE // 2])
    assert np.array_equal(edited[-RATE // 2 :], given[-RATE // 2 :])
    assert not np.allclose(edited[RATE : 2 * RATE], given[RATE : 2 * RATE], atol=1e-3)
    assert read_settings("edited.wav")["edit"]["start_s"] == 1.0
    expected = TextToAudio(debug_bundle).edit(given, "a door slams", start_s=1.0, end_s=2.0, num_steps=2, seed=3)
    assert np.array_equal(edited, expected.samples[0])
    fails(make("--from", "edited.wav"), "'edited.wav' is an edit of another sound")


def test_a_sound_is_continued_and_varied(make: Run) -> None:
    os.mkdir("takes")
    result = make("wind", "--edit", "street.wav", "--between", "2.5,4", "--variations", 2, *QUICK, "-o", "takes/")
    assert result.exit_code == 0, result.output
    takes = [soundfile.read(f"takes/{name}")[0] for name in sorted(os.listdir("takes"))]
    assert [len(take) for take in takes] == [4 * RATE] * 2
    assert not np.array_equal(*takes)


def test_another_rate_and_two_channels(make: Run) -> None:
    stereo = np.stack([street(3.0, 44100), np.zeros(3 * 44100, np.float32)], axis=1)
    soundfile.write("stereo.flac", stereo, 44100, subtype="PCM_24")
    result = make("rain", "--edit", "stereo.flac", "--between", "1,2", *QUICK, "-o", "edited.wav")
    assert result.exit_code == 0, result.output
    assert "Note: 'stereo.flac' (2 channels, 44100 Hz) becomes mono at 24000 Hz" in result.stderr
    edited, rate = soundfile.read("edited.wav", dtype="float32")
    assert (rate, len(edited)) == (RATE, 3 * RATE)
    mono = soxr.resample(soundfile.read("stereo.flac", dtype="float32")[0].mean(axis=1), 44100, RATE)
    assert np.array_equal(edited[: RATE // 2], mono[: RATE // 2])


def test_an_edit_that_is_turned_down_says_so(make: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    edit = TextToAudio.edit

    def loud(self: TextToAudio, *given: Any, **settings: Any) -> Any:
        made = edit(self, *given, **settings)
        return replace(made, samples=2 * made.samples / abs(made.samples).max())

    monkeypatch.setattr(TextToAudio, "edit", loud)
    given = ("rain", "--edit", "street.wav", "--between", "1,2", "--steps", 2)
    said = "Note: the edited sound is beyond full scale: all of it was turned down by 6.0 dB"
    assert said in make(*given, "-o", "a.wav").stderr
    assert said not in make(*given, "-o", "b.wav", "--bit-depth", 32).stderr


def test_loudness_is_followed(make: Run, debug_bundle: Path) -> None:
    given = ("--control", "street.wav", "--duration", 1, *QUICK)
    assert make("steps", *given, "--control-scale", 0.5, "-o", "half.wav").exit_code == 0
    assert make("steps", *given, "-o", "whole.wav").exit_code == 0
    half, whole = (soundfile.read(name, dtype="float32")[0] for name in ("half.wav", "whole.wav"))
    assert not np.array_equal(half, whole)
    assert [read_settings(name)["control_scale"] for name in ("half.wav", "whole.wav")] == [0.5, 1.0]
    model = TextToAudio(debug_bundle)
    expected = model.generate("steps", control_audio=street(3.0), duration_s=1.0, num_steps=2, seed=3)
    assert np.array_equal(whole, expected.samples[0])


def test_no_more_is_read_than_a_clip_can_follow(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    soundfile.write(path, street(4.0, 44100), 44100)
    model = SimpleNamespace(has_controlnet=True, max_duration_s=2.5, sample_rate=RATE)
    for sound, seconds in ((GivenSound(path, None, 1.0), 2.5), (GivenSound(path, (1.0, 2.0), None), 4.0)):
        samples = sound.read(model).samples
        assert samples.size == seconds * RATE
        whole = soxr.resample(soundfile.read(path, dtype="float32")[0], 44100, RATE)
        assert np.abs(samples - whole[: samples.size]).max() < 1e-3  # measured 2e-4, where the cut is


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("--edit", "street.wav"), "add --between START,END"),
        (("--edit", "headerless.raw", "--between", "1,2"), "'headerless.raw' is no sound file that libsndfile reads"),
        (("--between", "1,2"), "add --edit FILE"),
        (("--edit", "street.wav", "--between", "1"), "needs two numbers"),
        (("--edit", "street.wav", "--between", "1,x"), "is no list of numbers"),
        (("--edit", "street.wav", "--between", "2,1"), "the region must end after it starts"),
        (("--edit", "street.wav", "--between", "1,2", "--duration", 3), "leave out --duration"),
        (("--edit", "street.wav", "--between", "1,2", "--control", "street.wav"), "leave one out"),
        (("--edit", "none.wav", "--between", "1,2"), "no file 'none.wav'"),
        (("--edit", ".", "--between", "1,2"), "no file '.'"),
        (("--edit", "text.wav", "--between", "1,2"), "'text.wav' is no sound file that libsndfile reads"),
        (("--edit", "cut.flac", "--between", "1,2"), "'cut.flac' cannot be decoded"),
        (("--edit", "silent.wav", "--between", "1,2"), "'silent.wav' has 0.000 s"),
        (("--edit", "long.flac", "--between", "1,2"), "'long.flac' is 3601 s long, expected at most 3600"),
        (("--control", "none.wav"), "no file 'none.wav'"),
        (("--control-scale", 0.5), "add --control FILE"),
        (("--control", "street.wav", "--control-scale", -1), "control_scale"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_is_one_line_and_no_file(make: Run, arguments: tuple[object, ...], part: str) -> None:
    Path("text.wav").write_text("no sound")
    soundfile.write("silent.wav", np.zeros(0), RATE)
    Path("headerless.raw").write_bytes(bytes(9000))
    soundfile.write("cut.flac", np.random.default_rng(0).normal(0, 0.1, RATE), RATE)
    Path("cut.flac").write_bytes(Path("cut.flac").read_bytes()[:5000] + bytes(9000))
    if "long.flac" in arguments:
        soundfile.write("long.flac", np.zeros(3601 * 8000, np.int16), 8000)
    os.mkdir("out")
    fails(make("rain", *arguments, *QUICK, "-o", "out/"), part)
    assert os.listdir("out") == []


def test_from_brings_no_sound_along(make: Run) -> None:
    assert make("rain", "--duration", 1, *QUICK, "-o", "rain.wav").exit_code == 0
    fails(make("--from", "rain.wav", "--edit", "street.wav", "--between", "1,2"), "leave out --edit and --control")


def test_the_packaged_model_edits_but_has_no_controlnet(make: Run) -> None:
    run = runner("ezaudio-run")
    fails(run("steps", "--control", "street.wav"), "this bundle has no ControlNet for --control")
    assert run("a dog barks", "--edit", "street.wav", "--between", "1,2", *QUICK, "-o", "dog.wav").exit_code == 0
