"""Manifests and the clips read from them: formats, limits, crops, damage, and the same bytes however they are read."""

from __future__ import annotations

import importlib.util
import logging
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch
from console import one_line

from ezaudio.data import dataset as dataset_module
from ezaudio.data import manifest as manifest_module
from ezaudio.data.audio import check_header, normalize_peak, read_crop
from ezaudio.data.dataset import ManifestDataset, PackedStrings, SkipReport, batches
from ezaudio.data.manifest import Row, read_manifest, write_manifest
from ezaudio.runtime import sound_file
from ezaudio.runtime.errors import InputError, MissingExtraError
from ezaudio.runtime.sound_file import read_start

RATE = 24000
ROWS = [
    Row("a.wav", "a dog barks, twice", "train", {"source": "1"}),
    Row("sub/b.flac", 'a "bell" rings – über', "val", {"source": "2"}),
    Row("-c.wav", "rain", "train", {"source": "3"}),
]


def noise(seconds: float, rate: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    """Low-passed, so that lossy codecs and resampling leave it much as it is."""
    white = np.random.default_rng(seed).standard_normal((round(seconds * rate) + 64, channels))
    smooth = sum(white[k : len(white) - 64 + k] for k in range(64))
    return (0.5 * smooth / np.abs(smooth).max()).astype(np.float32)


@pytest.mark.parametrize("suffix", manifest_module.FORMATS)
def test_rows_survive_each_format(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    assert write_manifest(path, ROWS) == 3
    assert list(read_manifest(path).rows) == ROWS
    assert [row.audio_path for row in read_manifest(path, "train").rows] == ["a.wav", "-c.wav"]
    assert read_manifest(path).path_of(ROWS[1]) == tmp_path / "sub" / "b.flac"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    with pytest.raises(InputError, match=r"no row of split 'test'.*train, val"):
        read_manifest(path, "test")


def test_paths_follow_a_manifest_that_moves(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write_manifest(tmp_path / "data" / "m.csv", [Row("a.wav", "x"), Row(str(tmp_path / "far.wav"), "y")])
    manifest = read_manifest(tmp_path / "data" / "m.csv")
    assert [row.audio_path for row in manifest.moved_to(tmp_path)] == ["data/a.wav", "far.wav"]
    assert manifest.moved_to(tmp_path / "else")[0].audio_path == str(tmp_path / "data" / "a.wav")


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for call in (lambda: write_manifest(tmp_path / "m.parquet", ROWS), lambda: read_manifest(tmp_path / "m.parquet")):
        with pytest.raises(MissingExtraError, match=r"pip install \"ezaudio\[parquet\]\""):
            call()


BAD = {
    "empty.csv": ("", "has no rows"),
    "head.csv": ("audio_path,caption,split\n", "has no rows"),
    "columns.csv": ("path,caption\na,b\n", "no column audio_path"),
    "short.csv": ("audio_path,caption\na.wav\n", "line 2 has not as many fields"),
    "long.csv": ("audio_path,caption\na.wav,b,c\n", "line 2 has not as many fields"),
    "quote.csv": ('audio_path,caption\na.wav,"b"c\n', "after line 1: no CSV"),
    "line.csv": ("audio_path,caption\na.wav," + "b" * 70_000 + "\n", "line 2 is longer than 65536"),
    "caption.csv": ("audio_path,caption\na.wav," + "b" * 5_000 + "\n", "caption is longer than 4000"),
    "blank.csv": ("audio_path,caption\n ,b\n", "audio_path is empty"),
    "bytes.csv": (b"audio_path,caption\na.wav,\xff\xfe\n", "expected UTF-8"),
    "json.jsonl": ('{"audio_path": "a.wav", "caption": "b"}\n{"audio\n', "line 2 is no JSON"),
    "list.jsonl": ("[1]\n", "line 1 holds list"),
    "missing.jsonl": ('{"audio_path": "a.wav"}\n', "line 1: no caption"),
    "nested.jsonl": ('{"audio_path": "a.wav", "caption": ["b"]}\n', "caption holds list"),
    "deep.jsonl": ("[" * 60_000 + "\n", "line 1 is no JSON"),
    "zero.jsonl": ('{"audio_path": "a\\u0000.wav", "caption": "b"}\n', "zero byte"),
    "half.jsonl": (
        '{"audio_path": "a.wav", "caption": "b \\ud83d"}\n',
        r"line 1: caption 'b \ud83d' is not UTF-8 text",
    ),
    "no.parquet": ("PAR1 not really", "cannot be read as Parquet"),
    "rows.txt": ("", "extension '.txt'"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_manifest_is_one_line(tmp_path: Path, name: str) -> None:
    content, message = BAD[name]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as caught:
        read_manifest(tmp_path / name)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("suffix", "rate", "bound"),
    # Measured: 0 at the model's rate, 1.5e-7 at most from others. Lossy files are compared with what they decode to.
    [
        ("wav", 24000, 0),
        ("flac", 24000, 0),
        ("wav", 44100, 1e-5),
        ("flac", 48000, 1e-5),
        ("ogg", 44100, 1e-5),
        ("mp3", 48000, 1e-5),
        ("wav", 8000, 1e-5),
    ],
)
def test_a_crop_equals_that_of_the_whole_file(tmp_path: Path, suffix: str, rate: int, bound: float) -> None:
    path = tmp_path / f"x.{suffix}"
    soundfile.write(path, noise(3.0, rate), rate)
    whole = soundfile.read(path, dtype="float32")[0]
    step = rate // np.gcd(rate, RATE)
    seed = next(s for s in range(5000) if np.random.default_rng(s).integers(0, len(whole) - rate + 1) % step == 0)
    start = int(np.random.default_rng(seed).integers(0, len(whole) - rate + 1))
    crop = read_crop(path, np.random.default_rng(seed), RATE, RATE)
    resampled = whole if rate == RATE else soxr.resample(whole, rate, RATE)
    first = start * RATE // rate
    assert crop.shape == (RATE,)
    assert crop.dtype == np.float32
    assert np.abs(crop - resampled[first : first + RATE]).max() <= bound


def test_any_rate_is_resampled_and_short_files_are_padded(tmp_path: Path) -> None:
    for rate in (11025, 22051, 96000):
        tone = np.sin(2 * np.pi * 500 * np.arange(rate // 2) / rate).astype(np.float32)
        soundfile.write(tmp_path / "x.wav", tone, rate, subtype="FLOAT")
        crop = read_crop(tmp_path / "x.wav", np.random.default_rng(0), RATE, RATE)
        inner = np.arange(500, RATE // 2 - 500)
        np.testing.assert_allclose(crop[inner], np.sin(2 * np.pi * 500 * inner / RATE), atol=2e-4)  # measured 7e-5
        assert not crop[RATE // 2 + 10 :].any()


def test_channels_are_mixed_as_the_official_code_does(tmp_path: Path) -> None:
    sound = noise(1.0, RATE, 6)
    for channels in (1, 2, 6, 5):
        soundfile.write(tmp_path / f"{channels}.wav", sound[:, :channels], RATE, subtype="FLOAT")
    crops = {
        channels: [read_crop(tmp_path / f"{channels}.wav", np.random.default_rng(s), RATE, RATE) for s in range(60)]
        for channels in (1, 2, 6, 5)
    }
    candidates = [sound[:, :2].mean(1), sound[:, 0], sound[:, 1]]
    counts = [sum(np.array_equal(crop, candidate) for crop in crops[2]) for candidate in candidates]
    assert sum(counts) == 60
    assert 20 <= counts[0] <= 40
    assert min(counts) >= 5
    np.testing.assert_array_equal(crops[6][0], sound[:, :2].mean(1))
    np.testing.assert_array_equal(crops[5][0], sound[:, :5].mean(1))
    np.testing.assert_array_equal(crops[1][0], sound[:, 0])
    np.testing.assert_array_equal(read_start(tmp_path / "2.wav", 0.5, RATE), sound[:12000, :2].mean(1))
    assert len(read_start(tmp_path / "2.wav", 9.0, 16000)) == 16000


@pytest.mark.parametrize("block", [1, 1000, 1 << 20])
def test_blocks_of_a_file_are_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(sound_file, "BLOCK", block)
    sound = np.random.default_rng(0).uniform(-1, 1, (3001, 2)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", sound, 16000, subtype="FLOAT")
    np.testing.assert_array_equal(read_start(tmp_path / "a.wav", 1.0, 16000), sound.mean(1))
    np.testing.assert_array_equal(read_start(tmp_path / "a.wav", 1.0, RATE), soxr.resample(sound.mean(1), 16000, RATE))


def damaged_files(folder: Path) -> dict[str, str]:
    """Name of each bad file → what the message about it says."""
    soundfile.write(folder / "whole.flac", noise(4.0, RATE), RATE)
    (folder / "cut.flac").write_bytes((folder / "whole.flac").read_bytes()[:3000])
    (folder / "empty.wav").write_bytes(b"")
    (folder / "text.wav").write_text("not a sound")
    soundfile.write(folder / "many.wav", noise(0.2, RATE, 9), RATE)
    soundfile.write(folder / "slow.wav", noise(1.0, 1000), 1000)
    soundfile.write(folder / "short.wav", noise(0.01, RATE), RATE)
    soundfile.write(folder / "nan.wav", np.full(RATE, np.nan, np.float32), RATE, subtype="FLOAT")
    (folder / "folder.wav").mkdir()
    os.mkfifo(folder / "pipe.wav")
    return {
        "cut.flac": "cannot be decoded",
        "empty.wav": "no sound file",
        "text.wav": "no sound file",
        "many.wav": "9 channels, expected 1 to 8",
        "slow.wav": "1000 Hz, expected 4000 to 384000",
        "short.wav": "0.010 s, expected 0.05 s",
        "nan.wav": "NaN or infinity",
        "folder.wav": "no file",
        "pipe.wav": "no file",
        "missing.wav": "no file",
    }


def test_damage_is_one_line_that_names_the_file(tmp_path: Path) -> None:
    for name, message in damaged_files(tmp_path).items():
        with pytest.raises(InputError, match=name):
            read_start(tmp_path / name, 10.0, RATE)
        with pytest.raises(InputError) as caught:
            read_crop(tmp_path / name, np.random.default_rng(3), RATE, RATE)
        assert message in str(caught.value), name
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert check_header(tmp_path / "whole.flac") == (RATE, 4 * RATE, 1)
    mp3 = tmp_path / "x.mp3"
    soundfile.write(mp3, noise(4.0, RATE), RATE)
    mp3.write_bytes(mp3.read_bytes()[:4000])
    with pytest.raises(InputError, match=r"is truncated|cannot be decoded"):
        read_crop(mp3, np.random.default_rng(0), 4 * RATE, RATE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight good stereo files, and a manifest of them and of three bad ones."""
    for index in range(8):
        soundfile.write(tmp_path / f"{index}.wav", noise(0.5 + 0.1 * index, 32000, 2, index), 32000)
    (tmp_path / "bad.wav").write_text("no sound")
    names = ["gone.wav", *(f"{index}.wav" for index in range(8)), "bad.wav", "away.wav"]
    write_manifest(tmp_path / "m.csv", [Row(name, f"sound {name}") for name in names])
    return tmp_path


@pytest.mark.parametrize("num_workers", [1, 2])
def test_any_number_of_workers_gives_the_same_batches(folder: Path, num_workers: int) -> None:
    dataset = ManifestDataset(read_manifest(folder / "m.csv"), 9600, seed=3)
    alone = list(batches(dataset, 4, num_batches=6))
    for first in (0, 3):
        several = list(batches(dataset, 4, first, 6 - first, num_workers=num_workers))
        assert len(several) == 6 - first
        for ours, theirs in zip(several, alone[first:], strict=True):
            assert ours.audio.shape == (4, 1, 9600)
            assert torch.equal(ours.audio, theirs.audio)
            assert torch.equal(ours.rows, theirs.rows)
            assert (ours.captions, ours.problems) == (theirs.captions, theirs.problems)


def test_bad_files_are_replaced_counted_and_listed(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = ManifestDataset(read_manifest(folder / "m.csv"), 9600, seed=1)
    report = SkipReport()
    rows = []
    for batch in batches(dataset, 11, num_batches=3):
        report.extend(batch.problems)
        rows += batch.rows.tolist()
        assert batch.captions == [dataset.captions[row] for row in batch.rows.tolist()]
    assert {Path(path).name for path in report.reasons} == {"gone.wav", "bad.wav", "away.wav"}
    assert report.count >= 9  # each once an epoch, more where the replacement is bad, too
    assert set(rows) == set(range(1, 9))
    with caplog.at_level(logging.WARNING):
        report.log()
    assert "3 files were passed over" in caplog.text
    assert "gone.wav" in caplog.text
    assert "and 2 more" in report.summary(limit=1)
    assert SkipReport().summary() == ""


def test_packed_strings_are_a_sequence() -> None:
    strings = ["a dog", "", "über", "日本"]
    packed = PackedStrings(strings)
    assert list(packed) == strings
    assert packed[-1] == "日本"
    assert packed[1:3] == ["", "über"]
    assert len(PackedStrings([])) == 0
    with pytest.raises(IndexError):
        packed[4]


def test_clips_differ_by_epoch_and_seed_and_are_normalized(folder: Path) -> None:
    manifest = read_manifest(folder / "m.csv")
    dataset = ManifestDataset(manifest, 9600, seed=1)
    epochs = [{dataset[epoch * 11 + place].row for place in range(11)} for epoch in range(2)]
    assert epochs[0] == epochs[1] == set(range(1, 9))
    order = [[dataset[epoch * 11 + place].row for place in range(11)] for epoch in range(2)]
    assert order[0] != order[1]
    assert [ManifestDataset(manifest, 9600, seed=2)[place].row for place in range(11)] != order[0]
    peaks = [float(dataset[n].audio.abs().max()) for n in range(22)]
    assert np.allclose(peaks, 1)
    in_order = ManifestDataset(manifest, 9600, shuffle=False)
    assert [in_order[place].row for place in range(1, 9)] == list(range(1, 9))
    assert not normalize_peak(np.full(4, 1e-7, np.float32)).max() > 1e-6


def test_half_of_the_clips_have_their_phase_flipped(folder: Path) -> None:
    soundfile.write(folder / "up.wav", np.linspace(0.1, 0.5, 4800, dtype=np.float32), RATE)
    write_manifest(folder / "up.csv", [Row("up.wav", "a ramp")])
    dataset = ManifestDataset(read_manifest(folder / "up.csv"), 4800)
    signs = [float(torch.sign(dataset[number].audio.sum())) for number in range(100)]
    assert 35 <= signs.count(-1.0) <= 65
    assert signs.count(-1.0) + signs.count(1.0) == 100


def test_no_readable_file_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_manifest(tmp_path / "m.csv", [Row(f"{n}.wav", "x") for n in range(30)])
    manifest = read_manifest(tmp_path / "m.csv")
    with pytest.raises(
        InputError, match=r"^none of 30 files of manifest 'm\.csv' can be read, the last: no file '.*'$"
    ):
        ManifestDataset(manifest, 100)[0]
    for workers in (0, 1):  # a worker's error comes with its traceback
        with pytest.raises(InputError, match=r"^none of 30 files of manifest 'm\.csv' can be read, .*'$") as error:
            next(iter(batches(ManifestDataset(manifest, 100), 4, num_workers=workers)))
        one_line(error)
    monkeypatch.setattr(dataset_module, "MAX_TRIES", 10)
    with pytest.raises(InputError, match="none of 10 files"):
        ManifestDataset(manifest, 100)[0]
    with pytest.raises(IndexError):
        ManifestDataset(manifest, 100)[-1]
