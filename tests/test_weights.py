"""Files of weights: what is read, what fits a module, and the messages when something is wrong."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import golden
import pytest
import torch
from console import largest_file, one_line
from safetensors.torch import save_file

from ezaudio.dit import MaskDiT
from ezaudio.runtime.errors import BundleError, InputError
from ezaudio.weights import load_weights, read_state_dict, write_safetensors

HALF_TOLERANCE = 2e-3  # measured: 6.4e-4, weights rounded to float16


def test_every_key_that_does_not_fit_is_listed_and_nothing_is_loaded() -> None:
    module, state_dict = golden.dit(), golden.load("dit_tiny")
    before = {key: value.clone() for key, value in module.state_dict().items()}
    missing = [key for key in state_dict if "mid_block" in key]
    misshapen = [key for key in state_dict if "norm_q" in key and key not in missing]
    changed = {key: torch.zeros(7) if key in misshapen else value + 1 for key, value in state_dict.items()}
    changed = {key: value for key, value in changed.items() if key not in missing}
    changed["mask_embed"] = torch.zeros(16, dtype=torch.int8)
    unexpected = [f"extra.{i}" for i in range(50)]
    with pytest.raises(BundleError) as error:
        load_weights(module, changed | dict.fromkeys(unexpected, torch.zeros(1)), "'x.pt'")
    summary, *lines = str(error.value).splitlines()
    counts = f"{len(missing)} missing, 50 unexpected, {len(misshapen) + 1} of another shape"
    assert summary == f"'x.pt' does not fit MaskDiT: {counts}"
    assert lines[: len(missing)] == [f"  missing: {key}" for key in before if key in missing]
    assert [line for line in lines if "unexpected" in line] == [f"  unexpected: {key}" for key in unexpected]
    assert f"  shape: {misshapen[0]}: expected (32,), got (7,)" in lines
    assert "  shape: mask_embed: expected (16,), got (16,) of torch.int8" in lines
    assert len(lines) == len(missing) + 50 + len(misshapen) + 1
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_named(value: float) -> None:
    state_dict = golden.load("dit_tiny")
    for key in ("mask_embed", "model.time_ada.bias"):
        state_dict[key][3] = value
    with pytest.raises(BundleError, match=r"not finite in 2 tensors\n  not finite: .*\n  not finite: ") as error:
        load_weights(MaskDiT(golden.DIT), state_dict, "'x.pt'")
    assert "mask_embed" in str(error.value)
    assert "model.time_ada.bias" in str(error.value)


def test_half_weights_are_widened_into_a_module_in_place() -> None:
    module = MaskDiT(golden.DIT)
    weight = module.mask_embed
    load_weights(module, {key: value.half() for key, value in golden.load("dit_tiny").items()}, "x")
    assert module.mask_embed is weight
    assert weight.dtype == torch.float32
    assert golden.dit_error(module) < HALF_TOLERANCE


class Malicious:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("how", ["torch", "legacy", "pickle"])
def test_pickled_code_is_refused_and_not_run(tmp_path: Path, how: str) -> None:
    proof, path = tmp_path / "proof", tmp_path / "evil.pt"
    content = {"model": golden.load("dit_tiny"), "x": Malicious(f"touch {proof}")}
    if how == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "torch")
    with pytest.raises(BundleError) as error:
        read_state_dict(path, entry="model")
    one_line(error)
    assert not proof.exists()
    if how == "torch":
        assert "its pickled code was not run" in str(error.value)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("damage", ["empty", "text", "cut", "absent", "folder"])
def test_damaged_files_are_one_line(tmp_path: Path, suffix: str, damage: str) -> None:
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save({"model": golden.load("dit_tiny")}, path)
    else:
        save_file(golden.load("dit_tiny"), path)
    if damage in ("absent", "folder"):
        path.unlink()
        if damage == "folder":
            path.mkdir()
    else:
        path.write_bytes({"empty": b"", "text": b"not a checkpoint", "cut": path.read_bytes()[:20000]}[damage])
    with pytest.raises(BundleError) as error:
        read_state_dict(path, entry="model")
    assert path.name in one_line(error)


@pytest.mark.parametrize(
    ("content", "entry", "message"),
    [
        ({"state_dict": {}}, "model", "has no dictionary 'model'"),
        ([1], "model", "has no dictionary 'model'"),
        ([1], None, "holds list"),
        ({"model": {"a": 1, "b": torch.zeros(1), "c": "x"}}, "model", "no plain tensors: a, c"),
        ({"model": {0: torch.zeros(1)}}, "model", "no plain tensors: 0"),
        ({"state_dict": {0: torch.zeros(1)}}, "state_dict", "no plain tensors: 0"),
        ({"model": {"a": torch.zeros(2, 2).to_sparse()}}, "model", "no plain tensors: a"),
        ({"model": {"a": torch.zeros(2, device="meta")}}, "model", "no plain tensors: a"),
    ],
)
def test_files_of_another_layout_are_one_line(tmp_path: Path, content, entry, message: str) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(BundleError, match=message) as error:
        read_state_dict(tmp_path / "x.pt", entry=entry)
    one_line(error)


def test_other_extensions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is no checkpoint"):
        read_state_dict(tmp_path / "weights.bin")


def test_a_full_disk_is_one_line_and_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "dit.safetensors"
    write_safetensors(path, golden.dit(), torch.float32)
    before = path.read_bytes()
    with (
        largest_file(3000),
        pytest.raises(InputError, match=r"dit\.safetensors' cannot be written .*too large") as error,
    ):
        write_safetensors(path, golden.dit(), torch.float32)
    one_line(error)
    assert [each.name for each in tmp_path.iterdir()] == ["dit.safetensors"]
    assert path.read_bytes() == before
    with pytest.raises(InputError, match="cannot be made"):
        write_safetensors(path / "below.safetensors", golden.dit(), torch.float32)
