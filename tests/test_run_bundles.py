"""`ezaudio-run` with bundles that are missing, damaged, or none: one line each, and no file."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from console import fails, runner

from ezaudio.runtime.manifest import sealed


def test_a_missing_extra_is_named_before_the_work(ezaudio_run, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as if it were not installed
    fails(ezaudio_run("rain", "--bundle", "no_bundle", "--spectrogram", "a.png"), 'pip install "ezaudio[plot]"')
    fails(ezaudio_run("rain", "--bundle", "xl"), "model 'xl' has not been exported yet: run ezaudio-export --model xl")
    command = "run ezaudio-export --model l --precision fp8 --target tensorrt-rtx, then use --bundle l-tensorrt-rtx"
    fails(
        ezaudio_run("rain", "--bundle", "l", "--precision", "fp8"),
        f"model 'l' has not been exported in fp8 yet: {command}",
    )
    command = "run ezaudio-export --model l --precision fp16 --random-weights --target tensorrt"
    fails(
        ezaudio_run("rain", "--bundle", "l-random-tensorrt"),
        f"model 'l-random-tensorrt' has not been exported yet: {command}",
    )
    monkeypatch.setitem(sys.modules, "torch", None)
    parts = ["model 'l' must be exported first", 'pip install "ezaudio[export]"', "ezaudio-export --model l"]
    fails(ezaudio_run("rain", "--bundle", "l"), *parts)
    assert os.listdir() == []


def test_folders_that_are_no_bundle(ezaudio_run):
    os.mkdir("empty")
    Path("file").touch()
    fails(ezaudio_run("rain", "--bundle", "none"), "no bundle at 'none': there is no such folder")
    fails(
        ezaudio_run("rain", "--bundle", "empty"),
        "'empty' is no bundle: it has no manifest.json; make one with ezaudio-export",
    )
    fails(ezaudio_run("rain", "--bundle", "file"), "'file'")
    fails(ezaudio_run("rain", "--bundle", ""), "manifest.json")
    fails(ezaudio_run("rain", "--bundle", f"./{'x' * 300}"), "there is no such folder")


def test_a_user_without_a_home_names_the_cache(ezaudio_run, monkeypatch):
    """With a mock of what pathlib says where HOME is not set and the user has no entry."""
    for name in ("EZAUDIO_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", Mock(side_effect=RuntimeError("Could not determine home directory.")))
    fails(ezaudio_run("rain", "--bundle", "l"), "no home folder", "EZAUDIO_CACHE")
    fails(runner("ezaudio-doctor")("--bundle", "nano", "--precision", "int8"), "no home folder", "EZAUDIO_CACHE")


@pytest.mark.parametrize("file", ["manifest.json", "spiece.model"])
def test_a_file_that_may_not_be_read_is_one_line(make, debug_bundle, monkeypatch, file):
    """With a mock of its permissions, which root would not be held by."""
    path_open = Path.open

    def refuse(path, *given, **named):
        if path.name == file:
            raise PermissionError(13, "Permission denied")
        return path_open(path, *given, **named)

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "read_bytes", lambda path: refuse(path, "rb").read())
    fails(make("rain"), f"'{debug_bundle / file}' cannot be read (Permission denied): mend its permissions")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "has changed since the bundle was made (its sha256 differs)"),
        (lambda data: data[: len(data) // 2], "the manifest says"),
        (lambda data: None, "the bundle lacks"),
    ],
    ids=["one bit changed", "truncated", "missing"],
)
def test_every_damaged_file_is_named(ezaudio_run, debug_bundle, tmp_path, damage, message):
    names = [path.name for path in debug_bundle.iterdir() if path.name != "manifest.json"]
    assert len(names) > 10
    for name in names:
        folder = tmp_path / f"without {name}"
        shutil.copytree(debug_bundle, folder)
        data = damage((folder / name).read_bytes())
        (folder / name).unlink()  # of this folder alone: the debug bundle keeps its link
        if data is not None:
            (folder / name).write_bytes(data)
        fails(ezaudio_run("rain", "--bundle", folder), f"'{folder / name}'", message, "copy or export the bundle again")
    assert os.listdir() == []


def put(value: Any, *keys: str) -> Callable[[dict[str, Any]], None]:
    """Sets manifest[keys[0]][keys[1]]… = value."""

    def change(manifest: dict[str, Any]) -> None:
        for key in keys[:-1]:
            manifest = manifest[key]
        manifest[keys[-1]] = value

    return change


def rename(name: str) -> Callable[[dict[str, Any]], None]:
    """Gives the bundle's tokenizer.json another name."""

    def change(manifest: dict[str, Any]) -> None:
        manifest["files"][name] = manifest["files"].pop("tokenizer.json")

    return change


NO_PLAIN_NAMES = ("..", "../x", "/etc/passwd", ".", "", "a/b", "a\\b", "c:x")


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (b"", ["is damaged (JSONDecodeError"]),
        (b"{", ["is damaged (JSONDecodeError"]),
        (b"\x80\x81", ["is damaged (UnicodeDecodeError"]),
        (b"[" * 100_000, ["is damaged (RecursionError"]),
        (b"null", ["is no manifest of an EzAudio bundle"]),
        (b"[]", ["is no manifest of an EzAudio bundle"]),
        (b'{"format": "other"}', ["is no manifest of an EzAudio bundle"]),
        (b'{"format": "ezaudio-bundle"}', ["is damaged (KeyError: 'format_version')"]),
        (b'{"format": "ezaudio-bundle", "format_version": 2, "sha256": ""}', ["manifest.json' has changed since"]),
        (b" " * 5_000_000, ["is larger than 4,194,304 bytes"]),
        (put(3, "format_version"), ["has the newer format 3, this version reads 2: upgrade ezaudio"]),
        (put("1", "format_version"), ["has the unknown format '1'"]),
        (put([], "files"), ["is damaged (AttributeError"]),
        (put(None, "files", "vae.weights"), ["is damaged (TypeError"]),
        (put("big", "files", "vae.weights", "size"), ["is damaged (ValueError"]),
        (put("0", "files", "vae.weights", "sha256"), ["vae.weights' has changed since the bundle was made"]),
        (put("../vae.weights", "graphs", "decoder", "file"), ["'../vae.weights' is not listed"]),
        (put(5, "graphs", "decoder", "inputs"), ["is damaged (TypeError"]),
        (put([{"name": "x"}], "graphs", "decoder", "inputs"), ["not the description of a tensor: {'name': 'x'}"]),
        (put({}, "graphs"), ["has no graph 'frame_bias': export it again"]),
        (put(None, "config"), ["is damaged (ValueError: model settings do not fit this version"]),
        (put(1, "config", "colour"), ["model settings do not fit this version"]),
        (put(1, "config", "dit", "colour"), ["model settings do not fit this version"]),
        (put(7, "config", "dit", "num_heads"), ["width 32 must be a multiple of num_heads 7"]),
        (put(float("inf"), "files", "vae.weights", "size"), ["is damaged (OverflowError"]),
        (put("long", "config", "max_duration_s"), ["max_duration_s must be float within reason, got 'long'"]),
        (put(float("nan"), "config", "max_duration_s"), ["max_duration_s must be float within reason, got nan"]),
        (put(None, "config", "vae", "sample_rate"), ["sample_rate must be int within reason, got None"]),
        (put(0, "config", "text", "max_tokens"), ["max_tokens must be more than 0, got 0"]),
        (put([0, 2, 2, 2], "config", "vae", "strides"), ["strides must be"]),
        (put([], "graphs", "text_encoder", "outputs"), ["the manifest says otherwise: export the bundle again"]),
        *((rename(name), ["is no plain file name"]) for name in NO_PLAIN_NAMES),
        *((put(name, "config", "name"), ["is no plain file name"]) for name in NO_PLAIN_NAMES),
        (put({"file": "vae.weights", "inputs": [], "outputs": []}, "graphs", "../x"), ["'../x' is no plain file name"]),
    ],
)
def test_a_bad_manifest_is_one_line(ezaudio_run, debug_bundle, tmp_path, change, parts):
    folder = tmp_path / "bundle"
    shutil.copytree(debug_bundle, folder)
    path = folder / "manifest.json"
    manifest = json.loads(path.read_bytes())
    path.unlink()
    if isinstance(change, bytes):
        path.write_bytes(change)
    else:
        change(manifest)
        path.write_text(json.dumps(sealed(manifest)))
    fails(ezaudio_run("rain", "--bundle", folder), *parts)
    assert os.listdir() == []
