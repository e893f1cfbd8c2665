"""Audio files that carry their settings, their names and their pictures."""

import json
import os
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from ezaudio.runtime.audio_file import (
    MAX_METADATA_BYTES,
    SUPPORTED_FORMATS,
    encode_audio,
    quantize,
    read_settings,
    write_audio,
)
from ezaudio.runtime.errors import InputError, MissingExtraError
from ezaudio.runtime.naming import MAX_STEM_CHARS, RESERVED_STEMS, Destination, create_file, file_stem, replace_file
from ezaudio.runtime.spectrogram import mel_spectrogram, spectrogram_png

RATE = 24000
EVERY_KIND = [
    ("wav", 16, "PCM_16"),
    ("wav", 24, "PCM_24"),
    ("wav", 32, "FLOAT"),
    ("flac", 16, "PCM_16"),
    ("flac", 24, "PCM_24"),
    ("ogg", 16, "VORBIS"),
    ("mp3", 16, "MPEG_LAYER_III"),
]
PROMPTS = {
    "ascii": "a dog barks",
    "scripts": "Ein Hündchen bellt, 犬が吠える \U0001f415",
    "10 kB": "rain on a roof " * 680,
}


def metadata(prompt: str = "a dog barks") -> dict:
    return {"ezaudio": "0.1.0", "model": "nano", "prompt": prompt, "seed": 2**63 - 1, "guidance_scale": 0.1, "eta": 0.0}


def chirp(seconds: float = 1.0) -> np.ndarray:
    time = np.arange(round(seconds * RATE)) / RATE
    return (0.5 * np.sin(2 * np.pi * (200 + 300 * time) * time)).astype(np.float32)


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
@pytest.mark.parametrize(("format", "bit_depth", "subtype"), EVERY_KIND)
def test_settings_and_samples_come_back(tmp_path, format, bit_depth, subtype, prompt):
    path, samples = tmp_path / f"sound.{format}", chirp()
    write_audio(path, samples, RATE, metadata(prompt), bit_depth)
    assert read_settings(path) == metadata(prompt)

    with soundfile.SoundFile(path) as file:
        assert (file.samplerate, file.channels, file.frames, file.subtype) == (RATE, 1, samples.size, subtype)
        assert file.title == prompt[:200].strip()
        assert file.software.startswith("ezaudio 0.1.0")
        read = file.read(dtype="float64")
    # Measured: Vorbis 0.0123, MP3 0.0260; integers 1.0 of a step (half a step of rounding, 1/32767 against 1/32768).
    tolerance = {"ogg": 0.03, "mp3": 0.06}.get(format, 0.0 if bit_depth == 32 else 1.6 * 2.0 ** (1 - bit_depth))
    assert np.abs(read - samples).max() <= tolerance


@pytest.mark.parametrize(("format", "bit_depth", "subtype"), EVERY_KIND)
def test_equal_input_gives_equal_bytes(format, bit_depth, subtype):
    first, second = (encode_audio(chirp(), RATE, format, metadata(), bit_depth) for _ in range(2))
    assert first == second
    other = encode_audio(chirp(), RATE, format, metadata("a cat"), bit_depth)
    assert other != first


def test_integers_follow_the_documented_rule():
    """round_half_even(x · 32767); the halves are exact in float32."""
    halves = np.array([0.5, 1.5, 2.5, -0.5, -1.5], dtype=np.float64) / 32767
    assert quantize(np.array([0, 1, -1], np.float32), 16).tolist() == [0, 32767, -32767]
    assert np.abs(quantize(halves.astype(np.float32), 16) - [0, 2, 2, 0, -2]).max() <= 1
    assert quantize(np.array([0.5], np.float32), 16).tolist() == [16384]  # 16383.5, half to even
    assert quantize(np.array([-0.5, 1, 2.0**-23], np.float32), 24).tolist() == [-4194304, 8388607, 1]


@pytest.mark.parametrize(("format", "bit_depth"), [("wav", 16), ("wav", 24), ("flac", 16), ("flac", 24)])
def test_files_hold_exactly_those_integers(tmp_path, format, bit_depth):
    samples = np.random.default_rng(0).uniform(-1.2, 1.2, 4001).astype(np.float32)
    path = tmp_path / f"sound.{format}"
    write_audio(path, samples, RATE, metadata(), bit_depth)
    read, _ = soundfile.read(path, dtype="int32")
    turned_down = samples / np.abs(samples).max()
    assert np.array_equal(read >> (32 - bit_depth), quantize(turned_down, bit_depth))


@pytest.mark.parametrize(("format", "bit_depth", "subtype"), EVERY_KIND)
def test_a_loud_clip_is_turned_down_and_not_clipped(tmp_path, format, bit_depth, subtype):
    quiet, loud = (tmp_path / f"{name}.{format}" for name in ("quiet", "loud"))
    samples = chirp()
    write_audio(quiet, samples / np.abs(samples).max(), RATE, metadata(), bit_depth)
    write_audio(loud, 8 * samples, RATE, metadata(), bit_depth)
    expected = 8 * samples if (format, bit_depth) == ("wav", 32) else soundfile.read(quiet, dtype="float32")[0]
    np.testing.assert_allclose(soundfile.read(loud, dtype="float32")[0], expected, atol=2e-3)


def test_float_wav_keeps_a_level_beyond_full_scale(tmp_path):
    samples = chirp() * 4
    write_audio(tmp_path / "loud.wav", samples[None], RATE, metadata(), 32)
    assert np.array_equal(soundfile.read(tmp_path / "loud.wav", dtype="float32")[0], samples)


@pytest.mark.parametrize("num_samples", [1, 3, 30 * RATE])
@pytest.mark.parametrize("format", SUPPORTED_FORMATS)
def test_any_length(tmp_path, format, num_samples):
    path = tmp_path / f"sound.{format}"
    write_audio(path, np.resize(chirp(), num_samples), RATE, metadata(), 24)
    assert soundfile.info(path).frames == num_samples
    assert read_settings(path) == metadata()


def test_wav_is_laid_out_as_any_reader_expects():
    data = encode_audio(chirp(), RATE, "wav", metadata(), 16)
    assert struct.unpack("<4sI8sIHHIIHH4sI", data[:44]) == (
        *(b"RIFF", len(data) - 8, b"WAVEfmt ", 16, 1, 1, RATE, RATE * 2, 2, 16),
        *(b"data", RATE * 2),
    )
    odd = encode_audio(chirp()[:3], RATE, "wav", metadata(), 24)
    assert odd[44 + 9] == 0  # chunks start at even offsets
    assert odd[44 + 10 :][:4] == b"LIST"


def test_a_title_is_printable(tmp_path):
    write_audio(tmp_path / "sound.flac", chirp(), RATE, metadata("rain\n\x1b[31mon\0 a \ud800 roof"))
    assert soundfile.SoundFile(tmp_path / "sound.flac").title == "rain [31mon a roof"
    assert read_settings(tmp_path / "sound.flac")["prompt"] == "rain\n\x1b[31mon\0 a \ud800 roof"


@pytest.mark.parametrize(
    ("name", "samples", "bit_depth", "message"),
    [
        ("x.aiff", chirp(0.1), 16, "unknown format '.aiff', expected one of .wav, .flac, .ogg, .mp3"),
        ("x", chirp(0.1), 16, "has no extension"),
        ("x.wav", chirp(0.1), 20, "wav has no bit depth 20: expected 16 or 24 or 32"),
        ("x.flac", chirp(0.1), 32, "flac has no bit depth 32"),
        ("x.wav", np.zeros((2, 10)), 16, r"shape \(2, 10\), expected one mono clip"),
        ("x.wav", np.zeros(0), 16, r"shape \(0,\)"),
        ("x.wav", np.array([0, np.nan]), 16, "NaN or infinity"),
        ("no/such/x.wav", chirp(0.1), 16, "cannot be written"),
    ],
)
def test_bad_input_writes_nothing(tmp_path, name, samples, bit_depth, message):
    with pytest.raises(InputError, match=message):
        write_audio(tmp_path / name, samples, RATE, metadata(), bit_depth)
    assert os.listdir(tmp_path) == []


def test_metadata_has_a_limit_both_ways(tmp_path):
    with pytest.raises(InputError, match="shorten the prompt"):
        encode_audio(chirp(), RATE, "wav", metadata("x" * MAX_METADATA_BYTES))
    with soundfile.SoundFile(tmp_path / "big.flac", "w", RATE, 1) as file:
        file.comment = json.dumps(metadata("x" * MAX_METADATA_BYTES))
        file.write(chirp())
    with pytest.raises(InputError, match="larger than"):
        read_settings(tmp_path / "big.flac")


def riff(*chunks: bytes) -> bytes:
    body = b"WAVE" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def comment(text: bytes) -> bytes:
    return b"LIST" + struct.pack("<I", 12 + len(text)) + b"INFOICMT" + struct.pack("<I", len(text)) + text


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"RIFF",
        riff(),
        riff(comment(b"Recorded at the lake")),
        riff(comment(b'["ezaudio"]')),
        riff(comment(b'{"prompt": "rain"}')),
        riff(comment(b'{"ezaudio": NaN}')),
        riff(comment(b"[" * 100_000)),
        riff(comment(b'{"ezaudio": ' + b"9" * 10_000 + b"}")),
        riff(comment(b'{"ezaudio"')[:-4]),
        riff(b"LIST\xff\xff\xff\xffINFOIXXX\xff\xff\xff\xff"),
        riff(b"LIST\0\0\0\0" * 50),
        b"OggS" + bytes(40),
        b"ID3\3\0\0\0\0\0\0",
        b"just text, long enough to look at",
    ],
)
def test_files_without_settings_are_refused(tmp_path, data):
    path = tmp_path / "sound.wav"
    path.write_bytes(data)
    with pytest.raises(InputError, match="carries no ezaudio settings"):
        read_settings(path)


def test_unreadable_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        read_settings(tmp_path / "none.wav")
    with pytest.raises(InputError, match="Is a directory"):
        read_settings(tmp_path)


def test_settings_survive_chunks_before_them(tmp_path):
    odd = b"bext" + struct.pack("<I", 3) + b"abc\0"
    other = b"LIST" + struct.pack("<I", 4) + b"adtl"
    info = b"LIST" + struct.pack("<I", 12) + b"INFO" + b"INAM" + struct.pack("<I", 0)
    data = encode_audio(chirp(), RATE, "wav", metadata())
    (tmp_path / "edited.wav").write_bytes(riff(odd, other, info, data[12:]))
    assert read_settings(tmp_path / "edited.wav") == metadata()


@pytest.mark.parametrize(
    ("prompt", "stem"),
    [
        ("A dog barking.", "a_dog_barking"),
        ("Café à l'été", "cafe_a_lete"),
        ("../../etc/passwd", "etc_passwd"),
        ("C:\\Windows", "c_windows"),
        ("-rf *", "rf"),
        ("犬が吠える", "犬が吠える"),
        ("İstanbul", "istanbul"),
        ("CON", "con_sound"),
        ("lpt1", "lpt1_sound"),
        ("\U0001f415!", "sound"),
        ("", "sound"),
        ("rain " * 20, "_".join(["rain"] * 12)),
        ("x" * 300, "x" * 60),
    ],
)
def test_file_stem(prompt, stem):
    assert file_stem(prompt) == stem


@settings(deadline=None)
@given(st.text(max_size=200))
def test_every_stem_is_a_safe_name(prompt):
    stem = file_stem(prompt)
    assert 1 <= len(stem) <= MAX_STEM_CHARS + len("_sound")
    assert len(stem.encode()) <= 200
    assert stem not in RESERVED_STEMS
    assert all(c == "_" or c.isalnum() or not c.isascii() for c in stem)
    assert not set(stem) & set('/\\:*?"<>|. \0')
    assert stem.isprintable()


def test_derived_names_never_replace(tmp_path):
    (tmp_path / "rain.wav").write_bytes(b"old")
    (tmp_path / "rain-2.wav").symlink_to("nowhere")
    assert create_file(tmp_path, "rain", ".wav", b"new").name == "rain-3.wav"
    assert create_file(tmp_path, "rain", ".wav", b"new").name == "rain-4.wav"
    assert (tmp_path / "rain.wav").read_bytes() == b"old"
    assert len(os.listdir(tmp_path)) == 4


def test_derived_names_without_hard_links(tmp_path, monkeypatch):
    def no_links(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    names = [create_file(tmp_path, "rain", ".wav", b"new").name for _ in range(2)]
    assert names == ["rain.wav", "rain-2.wav"]
    assert sorted(os.listdir(tmp_path)) == sorted(names)


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    target = tmp_path / "rain.wav"
    target.write_bytes(b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match="No space left on device"):
        replace_file(target, b"new")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("rain.wav", b"old")]


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
def test_files_get_ordinary_permissions(tmp_path):
    mask = os.umask(0o022)
    try:
        assert replace_file(tmp_path / "a.wav", b"").stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(mask)


def test_destination(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "takes").mkdir()
    (tmp_path / "a.wav").touch()
    (tmp_path / "link.wav").symlink_to("a.wav")
    assert Destination.parse(None, "-o") == Destination(Path("."))
    assert Destination.parse("takes", "-o", 5) == Destination(Path("takes"))
    assert Destination.parse("takes/b.wav", "-o") == Destination(Path("takes"), "b.wav")
    Destination.parse("link.wav", "-o").write("", "", b"new")
    assert (tmp_path / "link.wav").is_symlink()
    assert (tmp_path / "a.wav").read_bytes() == b"new"


@pytest.mark.parametrize(
    ("given_path", "num_files", "message"),
    [
        (" ", 1, "-o is blank"),
        ("new/", 1, r"no folder 'new': create it \(mkdir -p 'new'\)"),
        ("new/x.wav", 1, "no folder 'new'"),
        ("file/", 1, "'file' is a file, expected a folder"),
        ("file/x.wav", 1, "'file' is a file, expected a folder"),
        ("x.wav", 2, "'x.wav' is one file, but 2 are to be written"),
        ("pipe", 1, "'pipe' exists and is not a regular file"),
        ("x" * 300 + ".wav", 1, "File name too long"),
        ("/proc/x.wav", 1, "'/proc' cannot be written"),
    ],
)
def test_bad_destinations(tmp_path, monkeypatch, given_path, num_files, message):
    if given_path.startswith("/proc") and not sys.platform.startswith("linux"):
        pytest.skip("/proc is of Linux")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match=message):
        Destination.parse(given_path, "-o", num_files)
    assert sorted(os.listdir(tmp_path)) == ["file", "pipe"]


@pytest.mark.parametrize("hz", [100, 440, 1000, 5000, 11000])
def test_a_tone_lands_in_its_band(hz):
    tone = np.sin(2 * np.pi * hz * np.arange(RATE) / RATE)
    mels = mel_spectrogram(tone, RATE)
    assert mels.shape == (160, 1 + RATE // 256)
    centres_hz = 700 * (10 ** (np.arange(1, 161) / 161 * np.log10(1 + RATE / 2 / 700)) - 1)
    loudest = centres_hz[mels[:, 40].argmax()]
    assert abs(loudest - hz) <= max(25, 0.02 * hz)


@pytest.mark.parametrize("samples", [chirp(), np.zeros(10), np.zeros((1, RATE * 2))], ids=["chirp", "short", "silence"])
def test_spectrogram_is_a_png(samples, recwarn):
    data = spectrogram_png(samples, RATE, "Rain for $5, 犬 \x00 " + "and more " * 50)
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    assert (width, height) == (1500, 630)
    assert not recwarn


def test_spectrogram_names_its_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r'pip install "ezaudio\[plot\]"'):
        spectrogram_png(chirp(), RATE, "rain")
