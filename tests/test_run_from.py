"""`ezaudio-run --from FILE`: a file made again to the byte, made with changes, or refused."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
from console import fails
from run_cases import DEBUG, RATE, SCRIPT, files, settings_of

from ezaudio.runtime import bundle_store
from ezaudio.runtime.audio_file import read_settings, write_audio
from ezaudio.runtime.manifest import read_manifest, sealed


@pytest.mark.parametrize(
    ("name", "options", "subtype"),
    [
        ("a.wav", [], "PCM_16"),
        ("a.WAV", ["--bit-depth", "24"], "PCM_24"),
        ("a.wav", ["--bit-depth", "32"], "FLOAT"),
        ("a.flac", ["--format", "flac"], "PCM_16"),
        ("a.flac", ["--bit-depth", "24"], "PCM_24"),
        ("a.ogg", [], "VORBIS"),
        ("a.mp3", [], "MPEG_LAYER_III"),
    ],
)
def test_from_repeats_a_file_to_the_byte(make, name, options, subtype):
    arguments = ["--negative", "müsic", "--duration", "0.5", "--solver", "dpmpp_2m", "-o", name, *options]
    assert make("犬が吠える \x07", *arguments).exit_code == 0
    assert soundfile.info(name).subtype == subtype
    assert make("--from", name, "-o", f"again{Path(name).suffix}").exit_code == 0
    assert make("--from", name).exit_code == 0
    derived = f"犬が吠える{Path(name).suffix.lower()}"
    assert files() == sorted([name, f"again{Path(name).suffix}", derived])
    assert Path(name).read_bytes() == Path(derived).read_bytes() == Path(f"again{Path(name).suffix}").read_bytes()


def test_the_script_repeats_a_file_in_another_process(debug_bundle, tmp_path):
    command = [SCRIPT, "--bundle", debug_bundle, "-o"]
    for arguments in (["a.flac", "rain", "--duration", "0.5", "--eta", "1"], ["b.flac", "--from", "a.flac"]):
        result = subprocess.run([*command, *arguments], cwd=tmp_path, check=True, capture_output=True)
        assert result.stderr == b""
    assert (tmp_path / "a.flac").read_bytes() == (tmp_path / "b.flac").read_bytes()


def test_from_with_changes(make):
    assert make("rain", "--seed", "3", "--duration", "0.1", "-o", "a.wav", "--bit-depth", "24").exit_code == 0
    assert make("--from", "a.wav", "--steps", "2", "--variations", "2", "--format", "ogg").exit_code == 0
    assert files() == ["a.wav", "rain-2.ogg", "rain.ogg"]
    expected = DEBUG | {"duration_s": 0.1, "num_steps": 2}
    assert settings_of("rain.ogg") == expected | {"seed": 3}
    assert settings_of("rain-2.ogg") == expected | {"seed": 4}
    assert "bit_depth" not in read_settings("rain.ogg")


def test_another_solver_adds_its_own_usual_noise(make):
    assert make("rain", "--duration", "0.1", "--eta", "1", "-o", "a.wav").exit_code == 0
    assert make("--from", "a.wav", "--solver", "dpmpp_2m", "-o", "b.wav").exit_code == 0
    assert make("--from", "a.wav", "--solver", "ddim", "-o", "c.wav").exit_code == 0
    assert make("--from", "a.wav", "--solver", "dpmpp_2m_sde", "--eta", "0.5", "-o", "d.wav").exit_code == 0
    assert [settings_of(f"{name}.wav")["eta"] for name in "abcd"] == [1.0, 0.0, 1.0, 0.5]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"edit": {"start_s": 0.0, "end_s": 1.0, "context_s": 2.0}}, "'a.wav' is an edit of another sound"),
        ({"control_scale": 1.0}, "'a.wav' is steered by another sound"),
    ],
)
def test_from_needs_a_file_made_from_text_alone(make, given, message):
    assert make("rain", "--seed", "3", "--duration", "0.1", "-o", "a.wav").exit_code == 0
    write_audio("a.wav", np.zeros(9), RATE, {**read_settings("a.wav"), **given})
    fails(make("--from", "a.wav"), message, "which it does not hold: name a file made from text alone")


def test_from_finds_the_bundle_or_says_which(ezaudio_run, debug_bundle):
    exported = bundle_store.cached_bundle("l", "fp16")  # as ezaudio-export leaves EzAudio-L, but small
    shutil.copytree(debug_bundle, exported)
    manifest = json.loads((exported / "manifest.json").read_text())
    manifest["config"]["name"], manifest["precision"] = "l", "fp16"
    (exported / "manifest.json").write_text(json.dumps(sealed(manifest)))
    bundle_id = read_manifest(exported).bundle_id

    assert (
        ezaudio_run("rain", "--duration", "0.1", "--bundle", "l", "--precision", "fp16", "-o", "l.wav").exit_code == 0
    )
    assert ezaudio_run("--from", "l.wav", "-o", "again.wav").exit_code == 0
    assert Path("l.wav").read_bytes() == Path("again.wav").read_bytes()

    write_audio("other.wav", np.zeros(9), RATE, {**read_settings("l.wav"), "bundle_id": "older"})
    maker = "'other.wav' was made with model 'l' in fp16 (bundle older)"
    fails(
        ezaudio_run("--from", "other.wav"), maker, f"at hand is model 'l' in fp16 (bundle {bundle_id})", "--bundle DIR"
    )
    result = ezaudio_run("--from", "other.wav", "--bundle", "l")
    assert result.exit_code == 0
    assert f"Warning: {maker}" in result.stderr

    shutil.rmtree(exported)
    fails(ezaudio_run("--from", "l.wav"), "model 'l' has not been exported in fp16 yet")


def test_from_refuses_what_it_cannot_repeat(make, debug_bundle):
    fails(make("--from", "none.wav"), "'none.wav' cannot be read (No such file")
    fails(make("--from", "none.wav", "rain"), "leave out PROMPT")
    write_audio("plain.wav", np.zeros(9), RATE, {})
    fails(make("--from", "plain.wav"), "carries no ezaudio settings")
    good = {"ezaudio": "1", "model": "debug", "precision": "fp32", "bundle_id": read_manifest(debug_bundle).bundle_id}
    good |= DEBUG
    for change, part in [
        ({"seed": "7"}, 'has seed = "7"'),
        ({"seed": True}, "has seed = true"),
        ({"num_steps": 2.5}, "has num_steps = 2.5"),
        ({"prompt": None}, "has prompt = null"),
        ({"bundle_id": 5}, "has bundle_id = 5"),
        ({"prompt": " "}, "the prompt is blank"),
        ({"prompt": "\ud800"}, "not valid UTF-8"),
        ({"num_steps": -1}, "num_steps must be a whole number from 1 to 1000, got -1"),
        ({"solver": "euler"}, "unknown solver 'euler'"),
        ({"noise": "pink"}, "unknown noise 'pink'"),
        ({"duration_s": 10**400}, "duration_s must be more than 0"),
    ]:
        write_audio("bad.wav", np.zeros(9), RATE, good | change)
        fails(make("--from", "bad.wav"), part)
    write_audio("bad.wav", np.zeros(9), RATE, {k: v for k, v in good.items() if k != "eta"})
    fails(make("--from", "bad.wav"), "'bad.wav' lacks eta")
    assert files() == ["bad.wav", "plain.wav"]


def test_what_a_file_says_cannot_steer_the_terminal(make):
    made = {"ezaudio": "1", "model": "\x1b[31mx\n", "precision": "fp32", "bundle_id": "\x1b[31m\nx", **DEBUG}
    write_audio("bad.wav", np.zeros(9), RATE, made | {"duration_s": 0.1})
    result = make("--from", "bad.wav")
    assert result.exit_code == 0
    assert "(bundle [31m x)" in result.stderr
    assert "\x1b" not in result.output
