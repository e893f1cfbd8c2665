"""`ezaudio-export` through its entry point: what it refuses, what it says, and that it leaves nothing half-made."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from subprocess import PIPE

import pytest
import torch
from console import Run, answers_at_once_and_teaches, fails, imports_none_of, listen_to_interrupts, runner
from safetensors.torch import load_file, save_file

from ezaudio.checkpoints import open_source, save_folder
from ezaudio.runtime.manifest import read_manifest

SCRIPT = Path(sys.executable).with_name("ezaudio-export")
RANDOM = ("--model", "debug", "--random-weights")


@pytest.fixture
def run(empty_folder: None) -> Run:
    """Runs `ezaudio-export ARGUMENTS…` in an empty folder, with an empty cache."""
    return runner("ezaudio-export")


@pytest.fixture(scope="module")
def debug_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the debug model's weights, as training writes one."""
    source = open_source("debug", random_weights=True)
    folder = tmp_path_factory.mktemp("models") / "debug"
    save_folder(folder, source.config, source.dit(), source.vae(), source.text_encoder(), source.tokenizer_files())
    return folder


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (
            ["--precision", "fp4"],
            ["'--precision'", "'fp4' is not one of 'fp32', 'fp16', 'bf16', 'int8', 'fp8', 'w8', 'w4'"],
        ),
        (["--model", "small"], ["unknown model 'small': expected l, xl, nano or a folder with config.json, dit.safe"]),
        (["--model", "debug"], ["model 'debug' has no trained weights"]),
        (["--model", "small", "--random-weights"], ["random weights need a known model, one of l, xl, nano, debug"]),
        ([*RANDOM, "--checkpoint", "x.pt"], ["random weights take no files"]),
        (["--checkpoint", "none.pt"], ["checkpoint 'none.pt' does not exist"]),
        (
            ["--checkpoint", "."],
            ["'.' is not a copy of OpenSound/EzAudio: missing ckpts/s3/ezaudio_s3_l.pt, ckpts/vae/"],
        ),
        (["--text-encoder", "none"], ["'none' is not a folder: expected a text encoder folder"]),
        (["--text-encoder", "."], ["'.' is not a text encoder folder: missing config.json, model.safetensors"]),
        (["--controlnet", "none.pt"], ["ControlNet 'none.pt' does not exist"]),
        (["--model", "xl", "--controlnet", "energy"], ["there is no energy ControlNet for xl"]),
        (["--model", ".", "--checkpoint", "x.pt"], ["model '.' brings all its parts"]),
        (["--model", "."], ["'.' is not a model folder: missing config.json, dit.safetensors"]),
        (["--colour"], ["No such option", "--colour"]),
        (["l"], ["unexpected extra argument"]),
    ],
)
def test_bad_input_is_one_line_and_no_file(run, tmp_path, arguments, parts):
    fails(run(*arguments), *parts)
    assert os.listdir() == []
    assert not (tmp_path / "cache").exists()


def test_an_output_that_is_something_else_stays_as_it_is(run):
    Path("file").write_text("mine")
    Path("folder").mkdir()
    Path("folder/mine.txt").touch()
    for name in ("file", "folder", "."):
        fails(
            run(*RANDOM, "-o", name),
            f"'{Path(name).absolute()}' exists and is no bundle: name a new folder for --output",
        )
    assert sorted(path.name for path in Path().rglob("*")) == ["file", "folder", "mine.txt"]
    fails(run(*RANDOM, "-o", "file/bundle"), f"cannot write to '{Path('file').absolute()}'", "name another --output")
    assert Path("file").read_text() == "mine"


def test_unwritable_output(run):
    if hasattr(os, "geteuid") and os.geteuid() != 0:
        locked = Path("locked").absolute()
        locked.mkdir(mode=0o500)
    elif sys.platform == "linux":
        locked = Path("/sys")  # refuses even root
    else:
        pytest.skip("no folder that refuses root")
    fails(run(*RANDOM, "-o", locked / "bundle"), f"cannot write to '{locked}' (", "name another --output")


@pytest.mark.parametrize("missing", ["torch", "torch, transformers"], ids=["torch", "torch and transformers"])
def test_missing_packages_are_named_with_their_extra(run, monkeypatch, missing):
    for name in missing.split(", "):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    fails(run(*RANDOM, "-o", "bundle"), f'exporting needs {missing}: pip install "ezaudio[export]"')
    assert os.listdir() == []


def test_without_network_the_files_to_get_are_named(tmp_path):
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub"), "EZAUDIO_CACHE": str(tmp_path)}
    result = subprocess.run([SCRIPT], capture_output=True, text=True, env=offline)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("Error: cannot get ckpts/vae/1m.pt of OpenSound/EzAudio from the Hugging Face Hub")
    assert "HF_HUB_OFFLINE forbids downloads: unset it" in result.stderr
    assert "--checkpoint FOLDER (EzAudio), --text-encoder FOLDER (FLAN-T5)" in result.stderr
    assert result.stderr.count("\n") == 1
    assert list((tmp_path / "bundles").iterdir()) == []


@pytest.mark.parametrize("part", ["text_encoder", "dit"])
def test_every_key_that_does_not_fit_is_listed(run, debug_model, part):
    shutil.copytree(debug_model, "model")
    path = Path("model", f"{part}.safetensors")
    tensors = load_file(path)
    first, second, third, fourth, *_ = sorted(name for name in tensors if tensors[name].dim() == 2)
    shape = tuple(tensors[third].shape)
    del tensors[first], tensors[second]
    tensors |= {third: torch.zeros(3, 4), fourth: torch.zeros(5)}
    tensors |= {"encoder.extra.weight": torch.zeros(1), "encoder.more": torch.zeros(1)}
    save_file(tensors, path)
    fails(
        run("--model", "model", "-o", "bundle"),
        f"'{path}' does not fit",
        "2 missing, 2 unexpected, 2 of another shape",
        *(f"missing: {name}" for name in (first, second)),
        *("unexpected: encoder.extra.weight", "unexpected: encoder.more"),
        f"{third}: expected {shape}, got (3, 4)",
        f"{fourth}: expected ",
    )
    assert os.listdir() == ["model"]


@pytest.mark.parametrize(
    ("name", "data", "part"),
    [
        ("text_encoder.safetensors", b"", "cannot be read as safetensors"),
        ("text_encoder.safetensors", b"\xff" * 100, "cannot be read as safetensors"),
        ("config.json", b"{", "cannot be read"),
        ("config.json", b"[]", "holds list: expected a JSON object"),
        ("config.json", b"{}", "describes no model"),
    ],
    ids=["empty", "noise", "cut JSON", "another JSON", "no settings"],
)
def test_damaged_model_folders(run, debug_model, name, data, part):
    shutil.copytree(debug_model, "model")
    Path("model", name).write_bytes(data)
    fails(run("--model", "model", "-o", "bundle"), f"'{Path('model', name)}'", part)
    Path("model", name).unlink()
    fails(run("--model", "model", "-o", "bundle"), f"'model' is not a model folder: missing {name}")
    assert os.listdir() == ["model"]


def test_values_that_are_not_finite_are_refused(run, debug_model):
    shutil.copytree(debug_model, "model")
    tensors = load_file("model/text_encoder.safetensors")
    name = min(tensors)
    tensors[name].view(-1)[0] = float("nan")
    save_file(tensors, "model/text_encoder.safetensors")
    fails(run("--model", "model", "-o", "bundle"), "not finite in 1 tensors", name)
    assert os.listdir() == ["model"]


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_while_it_exports_leaves_nothing(tmp_path):
    command = [SCRIPT, *RANDOM, "-o", "bundle"]
    options = {"cwd": tmp_path, "stdout": PIPE, "stderr": PIPE, "text": True, "preexec_fn": listen_to_interrupts}
    with subprocess.Popen(command, **options) as running:
        while not list(tmp_path.rglob("*.onnx")):  # the first graph
            assert running.poll() is None, running.stderr.read()
            time.sleep(0.05)
        assert not (tmp_path / "bundle").exists()
        running.send_signal(signal.SIGINT)
        stdout, stderr = running.communicate(timeout=120)
    assert (running.returncode, stdout) == (130, "")
    assert stderr.endswith("Interrupted: no unfinished file was left.\n")
    assert "Traceback" not in stderr
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_a_bundle_takes_the_place_of_another(run, debug_model, tmp_path):
    Path("bundle").mkdir()
    older = {"format": "ezaudio-bundle", "format_version": 1, "files": {"old.onnx": {}}}
    Path("bundle/manifest.json").write_text(json.dumps(older))
    Path("bundle/old.onnx").touch()
    result = run("--model", debug_model, "--precision", "fp16", "-o", "bundle")
    assert result.exit_code == 0
    manifest = read_manifest(Path("bundle"))
    assert (manifest.config.name, manifest.precision, manifest.origin) == ("debug", "fp16", "folder debug")
    *table, summary = result.stdout.splitlines()
    assert table[0].split() == ["output", "error", "tolerance"]
    told = [line.rsplit(None, 2)[0] for line in table[1:]]
    assert told == [f"{check.graph}.{check.output}" for check in manifest.checks]
    assert summary.startswith("bundle: debug in fp16, 8 graphs, ")
    assert sorted(os.listdir("bundle")) == sorted([*manifest.files, "manifest.json"])
    assert os.listdir() == ["bundle"]


def test_script_answers_at_once_and_teaches():
    options = (
        *("--precision", "--model", "--checkpoint", "--text-encoder", "--controlnet", "--output", "--random-weights"),
        *("--quiet", "--version"),
    )
    answers_at_once_and_teaches(SCRIPT, "ezaudio-export --precision fp16", *options)


def test_importing_the_command_loads_nothing_heavy():
    heavy = {"numpy", "onnx", "onnxruntime", "onnxscript", "torch", "transformers", "tqdm", "huggingface_hub"}
    imports_none_of("ezaudio.export.cli", heavy)
