"""`ezaudio-run` through its entry point, on a real bundle: what it writes, what it says, and what it refuses."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from console import answers_at_once_and_teaches, fails, imports_none_of
from run_cases import DEBUG, RATE, SCRIPT, files, settings_of

from ezaudio import __version__
from ezaudio.runtime.audio_file import read_settings
from ezaudio.runtime.manifest import read_manifest
from ezaudio.runtime.settings import Settings
from ezaudio.runtime.text_to_audio import TextToAudio


def test_one_prompt(make, debug_bundle):
    result = make("A dog barks!", "--duration", "2", "--seed", "7")
    assert result.exit_code == 0
    assert result.stderr == ""
    assert re.fullmatch(
        r"a_dog_barks\.wav: 2\.00 s of audio in \d+\.\d\d s \(real-time factor \d+\.\d{3}, seed 7\)\n", result.stdout
    )
    assert files() == ["a_dog_barks.wav"]
    assert soundfile.info("a_dog_barks.wav").frames == 2 * RATE
    assert read_settings("a_dog_barks.wav") == {
        "ezaudio": __version__,
        "model": "debug",
        "precision": "fp32",
        "bundle_id": read_manifest(debug_bundle).bundle_id,
        **DEBUG,
        "prompt": "A dog barks!",
        "duration_s": 2.0,
        "seed": 7,
        "bit_depth": 16,
    }


def test_packaged_model_makes_ten_seconds(tmp_path):
    result = subprocess.run([SCRIPT, "dog barking"], cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert os.listdir(tmp_path) == ["dog_barking.wav"]
    samples, rate = soundfile.read(tmp_path / "dog_barking.wav")
    assert (len(samples), rate) == (10 * RATE, RATE)
    assert np.isfinite(samples).all()
    assert 0.1 <= np.abs(samples).max() <= 1.0


def test_nothing_but_the_sound_is_left_or_said(tmp_path):
    """ONNX Runtime would put an identifier into the home folder, to report its use with."""
    home = tmp_path / "home"
    home.mkdir()
    kept = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    command = [SCRIPT, "dog barking", "--duration", "0.1", "--steps", "1", "--quiet"]
    for folder in (home, Path(os.devnull) / "none"):  # the other can hold nothing
        environment = {**kept, "HOME": str(folder), "XDG_CACHE_HOME": str(folder)}
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
        assert os.listdir(home) == []


def test_every_setting_reaches_the_model(make, debug_bundle):
    settings = Settings("rain", "music", 1.5, 3, 2.5, 0.25, 0.5, 2**63, "dpmpp_2m_sde", "philox")
    settings = replace(settings, spacing=1.5, guidance_interval=(0.25, 1.0), reuse=(1,)).to_dict()
    expected = TextToAudio(debug_bundle).generate(
        settings["prompt"], **{k: settings[k] for k in settings if k != "prompt"}
    )
    short = {"num_steps": "steps", "guidance_scale": "guidance", "guidance_rescale": "rescale"}
    for names in ({}, {**short, "duration_s": "duration", "negative_prompt": "negative"}):
        told = {k: ",".join(map(str, v)) if isinstance(v, list) else v for k, v in settings.items() if k != "prompt"}
        options = [f"--{names.get(k, k).replace('_', '-')}={v}" for k, v in told.items()]
        assert make("rain", *options, "-o", "a.wav", "--bit-depth", "32").exit_code == 0
        assert settings_of("a.wav") == settings
        np.testing.assert_array_equal(soundfile.read("a.wav", dtype="float32")[0], expected.samples[0])


def test_several_prompts_and_variations(make):
    os.mkdir("takes")
    arguments = ["--variations", "2", "--seed", "5", "--duration", "0.1", "-o", "takes", "--format", "flac"]
    result = make("rain falls", "a dog", *arguments)
    assert result.exit_code == 0
    names = ["rain_falls.flac", "rain_falls-2.flac", "a_dog.flac", "a_dog-2.flac"]
    assert [line.split(":")[0] for line in result.stdout.splitlines()] == [os.path.join("takes", n) for n in names]
    assert sorted(os.listdir("takes")) == sorted(names)
    made = [settings_of(f"takes/{name}") for name in names]
    assert [(s["prompt"], s["seed"]) for s in made] == [
        ("rain falls", 5),
        ("rain falls", 6),
        ("a dog", 5),
        ("a dog", 6),
    ]
    assert len({Path("takes", name).read_bytes() for name in names}) == 4


def test_words_without_quotes_are_noticed(make):
    result = make("a", "dog", "--duration", "0.1")
    assert "Note: 2 prompts of one word each" in result.stderr
    assert files() == ["a.wav", "dog.wav"]


@pytest.mark.parametrize("from_stdin", [True, False])
def test_prompts_file(make, from_stdin):
    text = "\ufeff# sounds\nrain\n\n  a dog, été  \r\n# end".encode()
    Path("list.txt").write_bytes(text)
    result = make("--prompts-file", "-" if from_stdin else "list.txt", "--duration", "0.1", stdin=text)
    assert result.exit_code == 0
    assert files() == ["a_dog_ete.wav", "list.txt", "rain.wav"]
    assert settings_of("rain.wav")["prompt"] == "rain"
    assert settings_of("a_dog_ete.wav")["prompt"] == "a dog, été"


def test_bad_prompts_files(make):
    fails(make("--prompts-file", "none.txt"), "'none.txt' cannot be read (No such file")
    for data, part in [
        (b"", "has no prompts"),
        (b" \n\t\n# only this\n", "has no prompts"),
        (b"rain\ncaf\xe9\n", "line 2 of 'list.txt' is not UTF-8"),
        (b"x" * 1_000_001, "larger than 1,000,000 bytes"),
        (b"x\n" * 10_001, "10,001 sounds asked for, at most 10,000"),
        (b"rain\n" + b"x" * 10_001, "prompt 2 of 2 has 10,001 characters"),
    ]:
        Path("list.txt").write_bytes(data)
        fails(make("--prompts-file", "list.txt"), part)
    assert files() == ["list.txt"]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["no prompt", 'ezaudio-run "a dog barks"', "--help"]),
        ([""], ["the prompt is blank"]),
        ([" \t\n"], ["the prompt is blank"]),
        (["rain", " "], ["prompt 2 of 2 is blank"]),
        (["rain \udcff"], ["not valid UTF-8"]),
        (["rain", "--duration", "long"], ["'--duration'", "'long' is not a valid float"]),
        (["rain", "--steps", "1.5"], ["'--steps'", "'1.5' is not a valid integer"]),
        (["rain", "--variations", "0"], ["'--variations'"]),
        (["rain", "--threads", "0"], ["'--threads'"]),
        (["rain", "--threads", "1" + "0" * 30], ["'--threads'"]),
        (["rain", "--noise", "pink"], ["'pink' is not one of 'torch', 'philox'"]),
        (["rain", "--colour"], ["No such option", "--colour"]),
        (["rain", "--format", "aiff"], ["'--format'", "'aiff' is not one of 'wav', 'flac', 'ogg', 'mp3'"]),
        (["rain", "-o", "rain.aiff"], ["unknown format '.aiff'", ".wav, .flac, .ogg, .mp3"]),
        (["rain", "-o", "rain"], ["'rain' has no extension", "mkdir -p"]),
        (["rain", "-o", "new/"], ["no folder 'new'", "mkdir -p 'new'"]),
        (["rain", "-o", "new/rain.wav"], ["no folder 'new'"]),
        (["rain", "-o", ""], ["--output is blank"]),
        (["rain", "-o", "/dev/null/"], ["'/dev/null' is a file"]),
        (["rain", "-o", "a.wav", "--format", "ogg"], ["--format ogg contradicts --output 'a.wav'"]),
        (["rain", "-o", "a.mp3", "--bit-depth", "16"], ["mp3 has no bit depth 16"]),
        (["rain", "--format", "flac", "--bit-depth", "32"], ["flac has no bit depth 32: expected 16 or 24"]),
        (["rain", "dog here", "-o", "a.wav"], ["'a.wav' is one file, but 2 are to be written"]),
        (["rain", "--variations", "3", "-o", "a.wav"], ["'a.wav' is one file, but 3"]),
        (["rain", "--variations", "3", "--spectrogram", "a.png"], ["--spectrogram: 'a.png' is one file, but 3"]),
        (["rain", "--spectrogram", "a.jpg"], ["'a.jpg' does not end in .png"]),
        (["rain", "--spectrogram", "new/a.png"], ["--spectrogram: no folder 'new'"]),
        (["rain", "-o", f"{'x' * 300}/a.wav"], ["--output: no folder 'xxx"]),
    ],
)
def test_bad_input_is_found_before_the_bundle_is_opened(ezaudio_run, arguments, parts):
    result = ezaudio_run(*arguments, "--bundle", "no_bundle")
    fails(result, *parts)
    assert "no_bundle" not in result.stderr
    assert files() == []


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--duration", "0"], "duration_s must be more than 0 and at most 30 seconds, got 0.0"),
        (["--duration", "-1"], "at most 30 seconds, got -1.0"),
        (["--duration", "30.1"], "at most 30 seconds, got 30.1"),
        (["--duration", "nan"], "at most 30 seconds, got nan"),
        (["--duration", "inf"], "at most 30 seconds, got inf"),
        (["--duration", "1e-9"], "shorter than one sample"),
        (["--steps", "0"], "num_steps must be a whole number from 1 to 1000, got 0"),
        (["--steps", "1001"], "got 1001"),
        (["--guidance", "inf"], "guidance_scale must be from 0 to 100, got inf"),
        (["--guidance", "nan"], "got nan"),
        (["--guidance", "-1"], "got -1.0"),
        (["--rescale", "1.1"], "guidance_rescale must be from 0 to 1, got 1.1"),
        (["--rescale", "nan"], "got nan"),
        (["--eta", "2"], "eta must be from 0 to 1, got 2.0"),
        (["--solver", "dpmpp_2m", "--eta", "1"], "eta"),
        (["--solver", "euler"], "unknown solver 'euler': expected one of ddim, dpmpp_2m, dpmpp_2m_sde"),
        (["--seed", str(-(2**63) - 1)], "seed must be a whole number from −2⁶³ to 2⁶⁴ − 1"),
        (
            ["--seed", str(2**64 - 1), "--variations", "2"],
            f"seed must be a whole number from −2⁶³ to 2⁶⁴ − 1, got {2**64}",
        ),
        (["--precision", "int8"], "is fp32, not int8: leave out --precision"),
        (["--precision", "fp4"], "unknown precision 'fp4': expected one of fp32, fp16, bf16, int8, fp8, w8, w4"),
    ],
)
def test_a_setting_out_of_range_is_one_line_and_no_file(make, arguments, part):
    fails(make("rain", *arguments), part)
    assert files() == []


def test_a_long_prompt_is_cut_and_says_where(make):
    prompt = "word " * 100 + "and the rest"
    for arguments in ([prompt], ["rain", "--negative", prompt]):
        result = make(*arguments, "--duration", "0.1", "-o", "a.wav")
        assert result.exit_code == 0
        (dropped,) = re.findall(
            "Warning: the prompt is longer than 100 tokens; its end was dropped: '(.*)'\n", result.stderr
        )
        assert dropped.endswith("word and the rest")
        assert prompt.endswith(dropped)
        assert settings_of("a.wav")["prompt"] == arguments[0]
    assert make(prompt, "--duration", "0.1", "-o", "a.wav", "--quiet").output == ""


def test_a_loud_clip_is_turned_down(make):
    loud = ["rain", "--duration", "0.5", "--seed", "1", "--steps", "1", "--guidance", "100", "--rescale", "0"]
    result = make(*loud, "-o", "a.wav")
    assert result.stderr == ""
    turned_down = soundfile.read("a.wav")[0]
    assert np.abs(turned_down).max() == pytest.approx(1, abs=1e-3)
    result = make(*loud, "-o", "a.wav", "--bit-depth", "32")
    assert result.stderr == ""
    whole = soundfile.read("a.wav")[0]
    np.testing.assert_allclose(turned_down, whole / np.abs(whole).max(), atol=1e-4)
    assert np.abs(soundfile.read("a.wav")[0]).max() > 1
    assert make(*loud, "-o", "a.wav", "--quiet").output == ""


def test_quiet_still_tells_errors(make):
    fails(make("rain", "--quiet", "--steps", "0"), "num_steps")


def test_named_files_are_replaced_and_derived_ones_numbered(make):
    Path("a.wav").write_bytes(b"old")
    for arguments in (["-o", "a.wav"], [], []):
        assert make("rain", "--duration", "0.1", *arguments).exit_code == 0
    assert files() == ["a.wav", "rain-2.wav", "rain.wav"]
    assert read_settings("a.wav")["prompt"] == "rain"


def test_a_defect_keeps_its_traceback(make, monkeypatch):
    def defect(*_: Any) -> None:
        raise RuntimeError("ours")

    monkeypatch.setattr(TextToAudio, "_make", defect)
    with pytest.raises(RuntimeError, match="ours"):
        make("rain")
    assert files() == []


def test_json_is_one_line_a_file(make):
    result = make("a dog, été", "rain", "--duration", "0.5", "--json", "--spectrogram", ".")
    first, second = map(json.loads, result.stdout.splitlines())
    assert first["file"] == "a_dog_ete.wav"
    assert second["spectrogram"] == "rain.png"
    assert first["audio_s"] == 0.5
    assert first["sample_rate"] == RATE
    assert first["real_time_factor"] == pytest.approx(first["elapsed_s"] / 0.5)
    assert first["metadata"] == read_settings("a_dog_ete.wav")
    assert first["warnings"] == []
    assert files() == ["a_dog_ete.png", "a_dog_ete.wav", "rain.png", "rain.wav"]
    assert Path("rain.png").read_bytes().startswith(b"\x89PNG\r\n")


def test_a_random_seed_is_reported_and_stored(make):
    seeds = {json.loads(make("rain", "--duration", "0.1", "--json").stdout)["metadata"]["seed"] for _ in range(3)}
    assert len(seeds) == 3
    assert seeds == {read_settings(name)["seed"] for name in files()}


def test_settings_of_files_are_those_of_the_model():
    from ezaudio.runtime.cli import SETTINGS

    assert list(SETTINGS) == list(DEBUG)


def test_script_answers_at_once_and_teaches():
    options = (
        *("--output", "--duration", "--seed", "--steps", "--guidance", "--negative", "--variations", "--prompts-file"),
        *("--bundle", "--precision", "--threads", "--spectrogram", "--json", "--quiet", "--from", "--rescale", "--eta"),
        *("--solver", "--noise", "--bit-depth", "--format", "--version"),
    )
    answers_at_once_and_teaches(SCRIPT, 'ezaudio-run "a dog barks', *options)


def test_importing_the_command_loads_nothing_heavy():
    heavy = {"numpy", "soundfile", "onnxruntime", "tokenizers", "matplotlib", "torch", "tqdm", "huggingface_hub"}
    imports_none_of("ezaudio.runtime.cli", heavy)


def test_making_sound_needs_no_torch(debug_bundle, tmp_path):
    hide = "sys.modules |= dict.fromkeys(['torch', 'transformers', 'onnx'])"
    code = f"import sys\n{hide}\nfrom ezaudio.runtime.cli import main\nmain()"
    command = [sys.executable, "-c", code, "rain", "--duration", "0.1", "--bundle", debug_bundle]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert os.listdir(tmp_path) == ["rain.wav"]


def test_the_script_fails_in_one_line(debug_bundle, tmp_path):
    result = subprocess.run([SCRIPT, " ", "-o", tmp_path], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == 'Error: the prompt is blank: describe a sound, as in ezaudio-run "a dog barks"\n'
    command = [SCRIPT, "rain", "--bundle", debug_bundle, "--duration", "nan", "-o", tmp_path]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "Error: duration_s must be more than 0 and at most 30 seconds, got nan\n"
    assert os.listdir(tmp_path) == []
