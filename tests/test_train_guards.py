"""What a run refuses, and what it never saves."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from console import fails, largest_file, one_line, runner
from training_cases import (
    RATE,
    command,
    settings,
    task_of,
    train,
)

from ezaudio.checkpoints import open_source
from ezaudio.config import DEBUG
from ezaudio.data.dataset import ManifestDataset, collate
from ezaudio.data.manifest import read_manifest
from ezaudio.dit import MaskDiT
from ezaudio.runtime.errors import BundleError, InputError
from ezaudio.training import checkpoint as checkpoints
from ezaudio.training import cli, journal
from ezaudio.training.journal import read_metrics
from ezaudio.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("own_accelerator")


def test_other_settings_are_refused_and_free_ones_taken(clips: Path, tmp_path: Path) -> None:
    train("stage1", settings(num_steps=2), clips, tmp_path)
    with pytest.raises(InputError, match=r"begun with batch_size 4, now 2: give the same again"):
        train("stage1", settings(num_steps=4, batch_size=2), clips, tmp_path)
    with pytest.raises(InputError, match=r"begun with stage \{'name': 'stage1'.*, now \{'name': 'stage3'"):
        train("stage3", settings(num_steps=4), clips, tmp_path)
    assert train("stage1", settings(num_steps=3, keep=1), clips, tmp_path).step == 3
    assert len(checkpoints.stored_checkpoints(tmp_path)) == 1


def test_the_command_that_is_told_exports_what_was_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"model": "l", "random_weights": False, "quiet": False}
    (tmp_path / "controlnet.safetensors").touch()
    base = MaskDiT(DEBUG.dit)
    source = open_source("debug", random_weights=True)
    cli._publish(source, given, tmp_path, base, tmp_path / "s3" / "dit.safetensors")
    told = capsys.readouterr().out.split()
    assert told[told.index("--checkpoint") + 1] == str(tmp_path / "s3" / "dit.safetensors")
    assert told[told.index("--controlnet") + 1] == str(tmp_path / "controlnet.safetensors")
    # A folder is no release, whatever size its model has: with an autoencoder of its own, it is written whole.
    (tmp_path / "controlnet.safetensors").unlink()
    own = replace(source, config=replace(DEBUG, name="l"))
    cli._publish(own, {**given, "model": "runs/vae/model"}, tmp_path, base)
    assert f"--model {tmp_path / 'model'} " in capsys.readouterr().out
    saved = open_source(str(tmp_path / "model")).dit().state_dict()
    assert all(torch.equal(saved[name], value) for name, value in base.state_dict().items())


def test_processes_that_do_not_share_the_folder_are_refused(clips: Path, tmp_path: Path) -> None:
    """With a mock of another process, which has found no checkpoint."""
    train("stage1", settings(num_steps=2), clips, tmp_path)
    run = settings(num_steps=4)
    with (
        patch("accelerate.Accelerator.gather", lambda self, tensor: torch.cat([tensor, torch.zeros_like(tensor)])),
        pytest.raises(InputError, match=r"from steps 0 and 2 of .* a folder that all machines share"),
    ):
        Trainer(task_of("stage1", run, clips), run, tmp_path, quiet=True)


def test_bad_input_is_one_line(clips: Path, tmp_path: Path) -> None:
    run = runner("ezaudio-train")
    few = ("--steps", "1")
    fails(run("stage2", *command(clips, tmp_path / "a", *few)), "stage2 goes on from stage1: give its run with --start")
    nowhere = ("--start", str(tmp_path / "nowhere"))
    fails(run("stage2", *command(clips, tmp_path / "a", *few, *nowhere)), "--start takes a run's folder or a file")
    (tmp_path / "empty").mkdir()
    empty = ("--start", str(tmp_path / "empty"))
    fails(run("stage3", *command(clips, tmp_path / "a", *few, *empty)), "is no run: it has neither dit.safetensors")
    fails(run("stage1", *command(clips, clips / "below a file", *few)), "clips.jsonl/below a file' cannot be made")
    fails(run("nano", str(clips / "below a file")), "clips.jsonl/below a file' cannot be made")
    fails(run("stage1", *command(tmp_path / "none.csv", tmp_path / "a", *few)), "none.csv")
    (tmp_path / "gone.csv").write_text("audio_path,caption\ngone.wav,a dog\n")
    gone = command(tmp_path / "gone.csv", tmp_path / "read", *few, "--workers", "1", "-q")
    result = run("stage1", *gone)
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: none of 1 files of manifest 'gone.csv' can be read, the last: no file '")
    assert "Traceback" not in result.stderr
    fails(run("vae", *command(clips, tmp_path / "a", *few, "--clip-s", "0.05")), "clips must be at least 0.11 s")
    fails(run("vae", *command(clips, tmp_path / "a", *few, "--gradient-checkpointing")), "are for transformers")
    for kind in ("stage1", "controlnet"):
        fails(
            run(kind, *command(clips, tmp_path / "a", *few, "--clip-s", "0.03")), "clip_s must be 0.04 to 60, got 0.03"
        )
        shortest = run(kind, *command(clips, tmp_path / kind, *few, "--clip-s", "0.04", "-q"))
        assert shortest.exit_code == 0, shortest.output
        negative = command(clips, tmp_path / "a", *few, "--min-snr-gamma", "-5")
        fails(run(kind, *negative), "min_snr_gamma must be more than 0, got -5.0")
    if not torch.cuda.is_available():
        for kind in ("stage1", "controlnet"):
            fails(run(kind, *command(clips, tmp_path / "a", *few, "--fused")), "--fused needs a GPU")
        fails(run("stage1", *command(clips, tmp_path / "a", *few, "--recorded")), "recorded steps need a GPU")
        fails(run("stage1", *command(clips, tmp_path / "a", *few, "--precision", "fp16")), "fp16 training needs a GPU")
    assert not (tmp_path / "a").exists()


def test_a_loss_that_is_not_finite_is_never_saved(clips: Path, tmp_path: Path) -> None:
    run = settings(num_steps=4, log_every=100, save_every=1)
    trainer = Trainer(task_of("stage1", run, clips), run, tmp_path, quiet=True)
    dataset = ManifestDataset(read_manifest(clips, "train"), round(run.clip_s * RATE), RATE, run.seed)

    def spoil(batch: Any) -> None:
        if trainer.step == 2:
            batch.audio.fill_(float("nan"))

    with pytest.raises(InputError, match="loss 'velocity' is nan at step 3: lower the learning rate"):
        trainer.train(dataset, collate, spoil)
    assert [path.name for path in checkpoints.stored_checkpoints(tmp_path)] == ["step-00000001", "step-00000002"]


def test_gradients_that_are_not_finite_are_never_saved(clips: Path, tmp_path: Path) -> None:
    """A loss can be finite where its gradients are not, and the update spoils every weight."""
    run = settings(num_steps=4, log_every=100, save_every=1)
    task = task_of("stage1", run, clips)
    trainer = Trainer(task, run, tmp_path, quiet=True)
    weight = next(value for value in task.networks["dit"].parameters() if value.requires_grad)
    weight.register_hook(lambda gradient: gradient * (float("inf") if trainer.step == 2 else 1.0))
    dataset = ManifestDataset(read_manifest(clips, "train"), round(run.clip_s * RATE), RATE, run.seed)
    with pytest.raises(
        InputError, match=r"norm of the gradients of 'dit' is (inf|nan) at step 3: lower the learning rate"
    ):
        trainer.train(dataset, collate)
    assert [path.name for path in checkpoints.stored_checkpoints(tmp_path)] == ["step-00000001", "step-00000002"]


def test_a_damaged_checkpoint_is_one_line(clips: Path, tmp_path: Path) -> None:
    train("stage1", settings(num_steps=2), clips, tmp_path)
    (last,) = checkpoints.stored_checkpoints(tmp_path)
    (last / "dit.safetensors").write_bytes(b"torn")
    with pytest.raises(BundleError, match="is damaged"):
        train("stage1", settings(num_steps=3), clips, tmp_path)


@pytest.mark.parametrize("part", ["average", "dit", "dit.optimizer"])
def test_a_checkpoint_without_one_of_its_files_is_one_line(part: str, clips: Path, tmp_path: Path) -> None:
    train("stage1", settings(num_steps=2), clips, tmp_path)
    (last,) = checkpoints.stored_checkpoints(tmp_path)
    (last / f"{part}.safetensors").unlink()
    with pytest.raises(BundleError, match=rf"'{last}' lacks {part}\.safetensors: delete it to go on"):
        train("stage1", settings(num_steps=3), clips, tmp_path)


def test_a_full_disk_is_one_line_and_the_run_goes_on_later(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # TensorBoard's own thread tells of a full disk in its own way.
    monkeypatch.setattr(journal, "find_spec", lambda name: None if name == "tensorboard" else find_spec(name))
    run = settings(num_steps=4, save_every=100)
    for size in (20, 30_000):  # the metrics, the checkpoint
        with largest_file(size), pytest.raises(InputError, match="cannot be written") as error:
            train("stage1", run, clips, tmp_path)
        one_line(error)
        assert checkpoints.stored_checkpoints(tmp_path) == []
    assert train("stage1", run, clips, tmp_path).step == 4
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]


def test_one_loss_scale_is_taken_off_once(clips: Path, tmp_path: Path) -> None:
    """With a mock of fp16's loss scale: clipping one network leaves what another has gathered as it is."""
    run = settings(num_steps=1, accumulation=2)
    trainer = Trainer(task_of("vae", run, clips), run, tmp_path, quiet=True)
    unscaled: list[Any] = []
    trainer._accelerator.unscale_gradients = unscaled.append  # type: ignore[method-assign]
    trainer._clip("discriminators")
    assert unscaled == [trainer._prepared["discriminators"]]
