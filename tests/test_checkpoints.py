"""Checkpoints: the release's files, model folders, random weights, and the messages when something is wrong."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import golden
import pytest
import torch
from huggingface_hub import errors as hub_errors
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import nn

from ezaudio import checkpoints, hub, text_files
from ezaudio.checkpoints import ModelSource, open_source, save_folder
from ezaudio.config import PRESETS, preset
from ezaudio.controlnet import ControlNet
from ezaudio.dit import MaskDiT
from ezaudio.runtime.errors import BundleError, InputError, MissingExtraError
from ezaudio.text import build_text_encoder, encode_text
from ezaudio.weights import load_weights, read_state_dict

NETWORK_TOLERANCE = 1e-5  # measured: 5e-7
HALF_TOLERANCE = 2e-3  # measured: 6.4e-4 (DiT), weights rounded to float16


def run_dit(dit: nn.Module) -> float:
    """Relative error against the official output."""
    io = golden.load("dit_tiny_io")
    with torch.no_grad():
        out = dit(*(io[f"a.{name}"] for name in ("x", "timesteps", "context", "context_mask")))
    return golden.relative_error(out, io["a.out"])


def run_vae(vae: nn.Module) -> float:
    io = golden.load("vae_tiny_io")
    with torch.no_grad():
        return golden.relative_error(vae.decode(io["latent"]), io["decoded"])


def run_text_encoder(encoder: nn.Module) -> float:
    io = golden.load("pipeline_tiny_io")
    with torch.no_grad():
        states = encode_text(encoder, io["input_ids"], io["attention_mask"])
    return golden.relative_error(states, io["text_states"])


def run_controlnet(controlnet: nn.Module) -> float:
    io, dit = golden.load("controlnet_tiny_io"), golden.dit()
    with torch.no_grad():
        inputs, timesteps, energy = dit.assemble(io["x"]), io["timestep"].expand(2), io["energy"].transpose(1, 2)
        first = controlnet(inputs, timesteps, io["context"], io["context_mask"], energy, io["conditioning_scale"])[0]
    return golden.relative_error(first, io["skip.0"])


def check_golden(source: ModelSource, tolerance: float) -> None:
    controlnet = source.controlnet()
    assert controlnet is not None
    encoder = source.text_encoder()
    parts = {run_dit: source.dit(), run_vae: source.vae(), run_text_encoder: encoder, run_controlnet: controlnet}
    for run, module in parts.items():
        assert run(module) < tolerance, run.__name__
        assert not module.training
        assert all(p.dtype == torch.float32 and not p.requires_grad for p in module.parameters())
    assert not any(name.endswith("weight_g") for name in parts[run_vae].state_dict())
    assert encoder.encoder.embed_tokens.weight is encoder.shared.weight
    assert encoder.config._attn_implementation == "eager"


def one_line(error: pytest.ExceptionInfo[Exception]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.fixture
def tokenizer_files() -> dict[str, Path]:
    return open_source("debug", random_weights=True).tokenizer_files()


@pytest.fixture
def golden_l(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes `l` the golden system."""
    text = replace(golden.TEXT, hub_name="google/flan-t5-large")
    monkeypatch.setitem(PRESETS, "l", replace(golden.SYSTEM, name="l", text=text))


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """The golden weights, wrapped as the release wraps its own."""
    folder = tmp_path / "release"
    vae = {f"autoencoder.{key}": value for key, value in golden.load("vae_tiny").items()}
    discriminator = {"discriminator.layers.0.weight": torch.ones(2), "losses.x": torch.ones(1)}
    for name, content in {
        "ckpts/s3/ezaudio_s3_l.pt": {"model": golden.load("dit_tiny")},
        "ckpts/vae/1m.pt": {"state_dict": vae | discriminator, "global_step": 3},
        "ckpts/controlnet/s3_l_energy.pt": {"model": golden.load("controlnet_tiny")},
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, folder / name)
    return folder


@pytest.fixture
def text_folder(tmp_path: Path, tokenizer_files: dict[str, Path]) -> Path:
    """The golden text encoder as transformers saves it, with a tokenizer."""
    folder = tmp_path / "t5"
    folder.mkdir()
    for path in [*(golden.FOLDER / "t5_tiny").iterdir(), *tokenizer_files.values()]:
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def save_golden(folder: Path, tokenizer_files: dict[str, Path], dtype: torch.dtype = torch.float32) -> None:
    encoder = build_text_encoder(golden.TEXT)
    encoder.load_state_dict(load_file(golden.FOLDER / "t5_tiny" / "model.safetensors"), strict=False)
    parts = (golden.dit(), golden.vae(), encoder, tokenizer_files, golden.controlnet())
    save_folder(folder, golden.SYSTEM, *parts, dtype=dtype)


# The release


@pytest.mark.usefixtures("golden_l")
def test_local_copy_of_the_release_gives_the_official_outputs(release: Path, text_folder: Path) -> None:
    source = open_source("l", checkpoint=release, text_encoder=text_folder, controlnet="energy")
    check_golden(source, NETWORK_TOLERANCE)
    assert source.origin == "local copy of OpenSound/EzAudio ckpts/s3/ezaudio_s3_l.pt"
    assert "Apache-2.0" in source.licence
    assert source.tokenizer_files()["spiece.model"] == text_folder / "spiece.model"
    assert open_source("l", checkpoint=release, text_encoder=text_folder).controlnet() is None


@pytest.mark.usefixtures("golden_l")
def test_the_hub_is_asked_for_the_official_files(release: Path, text_folder: Path, monkeypatch) -> None:
    asked = []

    def download(repo_id: str, filename: str) -> Path:
        asked.append((repo_id, filename))
        return (release if repo_id == "OpenSound/EzAudio" else text_folder) / filename

    monkeypatch.setattr(hub, "download", download)
    source = open_source("l", controlnet="energy")
    assert asked == []
    check_golden(source, NETWORK_TOLERANCE)
    source.tokenizer_files()
    assert set(asked) == {
        ("OpenSound/EzAudio", "ckpts/s3/ezaudio_s3_l.pt"),
        ("OpenSound/EzAudio", "ckpts/vae/1m.pt"),
        ("OpenSound/EzAudio", "ckpts/controlnet/s3_l_energy.pt"),
        *(("google/flan-t5-large", name) for name in ("model.safetensors", "tokenizer.json", "spiece.model")),
    }
    assert source.origin == "OpenSound/EzAudio ckpts/s3/ezaudio_s3_l.pt"


@pytest.mark.usefixtures("golden_l")
def test_one_checkpoint_file_is_the_dit(tmp_path: Path) -> None:
    path = tmp_path / "tuned.safetensors"
    save_file(golden.load("dit_tiny"), path)
    source = open_source("l", checkpoint=path)
    assert run_dit(source.dit()) < NETWORK_TOLERANCE
    assert source.origin == "local tuned.safetensors, VAE of OpenSound/EzAudio"


@pytest.mark.usefixtures("golden_l")
def test_missing_files_of_the_release_are_all_named(release: Path) -> None:
    (release / "ckpts/vae/1m.pt").unlink()
    (release / "ckpts/controlnet/s3_l_energy.pt").unlink()
    with pytest.raises(BundleError) as error:
        open_source("l", checkpoint=release, controlnet="energy")
    assert "missing ckpts/vae/1m.pt, ckpts/controlnet/s3_l_energy.pt" in one_line(error)


# Text encoders


@pytest.mark.usefixtures("golden_l")
@pytest.mark.parametrize("embedding", text_files.EMBEDDING_KEYS)
def test_sharded_text_encoder_skips_the_decoder(release: Path, text_folder: Path, embedding: str) -> None:
    (text_folder / "model.safetensors").rename(text_folder / "whole")
    tensors = load_file(text_folder / "whole")
    tensors[embedding] = tensors.pop("shared.weight")
    save_file({key: tensors[key] for key in list(tensors)[::2]}, text_folder / "a.safetensors")
    save_file(
        {key: tensors[key] for key in list(tensors)[1::2]} | {"decoder.final_layer_norm.weight": torch.ones(3)},
        text_folder / "b.safetensors",
    )
    weight_map = {key: "ab"[index % 2] + ".safetensors" for index, key in enumerate(tensors)}
    weight_map |= {"decoder.final_layer_norm.weight": "b.safetensors", "lm_head.weight": "absent.safetensors"}
    index = text_folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    source = open_source("l", checkpoint=release, text_encoder=text_folder)
    assert run_text_encoder(source.text_encoder()) < NETWORK_TOLERANCE


@pytest.mark.usefixtures("golden_l")
@pytest.mark.parametrize("name", ["../stolen.safetensors", "/stolen.safetensors", "..\\x.safetensors", "a.bin", 3])
def test_shards_outside_the_folder_are_refused(release: Path, text_folder: Path, name: object) -> None:
    (text_folder / "model.safetensors").unlink()
    index = {"weight_map": {"shared.weight": name}}
    (text_folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BundleError) as error:
        open_source("l", checkpoint=release, text_encoder=text_folder)
    assert "model.safetensors.index.json" in one_line(error)


@pytest.mark.usefixtures("golden_l")
def test_another_text_encoder_is_refused(release: Path, text_folder: Path) -> None:
    settings = json.loads((text_folder / "config.json").read_text())
    (text_folder / "config.json").write_text(json.dumps(settings | {"d_model": 768, "feed_forward_proj": "relu"}))
    with pytest.raises(BundleError) as error:
        open_source("l", checkpoint=release, text_encoder=text_folder)
    message = one_line(error)
    assert "google/flan-t5-large" in message
    assert "d_model 768 (expected 40), feed_forward_proj 'relu' (expected 'gated-gelu')" in message
    (text_folder / "tokenizer.json").unlink()
    (text_folder / "model.safetensors").rename(text_folder / "pytorch_model.bin")
    with pytest.raises(BundleError, match=re.escape("missing model.safetensors, tokenizer.json")):
        open_source("l", checkpoint=release, text_encoder=text_folder)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("l", {"d_model": 1024, "d_ff": 2816, "num_layers": 24, "num_heads": 16, "millions": 341.23}),
        ("xl", {"d_model": 2048, "d_ff": 5120, "num_layers": 24, "num_heads": 32, "millions": 1223.53}),
    ],
)
def test_official_text_encoders_have_the_published_shapes(size: str, expected: dict[str, float]) -> None:
    from transformers import T5Config, T5EncoderModel

    millions = expected.pop("millions")
    with torch.device("meta"):
        ours = build_text_encoder(preset(size).text)
        published = T5EncoderModel(T5Config(vocab_size=32128, d_kv=64, feed_forward_proj="gated-gelu", **expected))
    shapes = {key: value.shape for key, value in ours.state_dict().items()}
    assert shapes == {key: value.shape for key, value in published.state_dict().items()}
    assert sum(p.numel() for p in ours.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)
    for key in ("layer_norm_epsilon", "relative_attention_num_buckets", "relative_attention_max_distance"):
        assert getattr(ours.config, key) == getattr(published.config, key)


# Files that do not load


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
    assert run_dit(module) < HALF_TOLERANCE


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
        ({"model": {"a": 1, "b": torch.zeros(1), "c": "x"}}, "model", "no tensors: a, c"),
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


# Folders


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, NETWORK_TOLERANCE), (torch.float16, HALF_TOLERANCE)], ids=["fp32", "fp16"]
)
def test_folder_round_trip(tmp_path: Path, tokenizer_files: dict[str, Path], dtype, tolerance: float) -> None:
    folder = tmp_path / "mine"
    save_golden(folder, tokenizer_files, dtype)
    save_golden(folder, tokenizer_files, dtype)  # over one of its own kind
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert {value.dtype for key, value in load_file(folder / "dit.safetensors").items() if "inv_freq" not in key} == {
        dtype
    }
    source = open_source(str(folder), controlnet="energy")
    check_golden(source, tolerance)
    assert source.config == golden.SYSTEM
    assert source.origin == "folder mine"
    assert source.tokenizer_files() == {name: folder / name for name in ("tokenizer.json", "spiece.model")}


def test_nano_is_a_folder_of_the_package(tmp_path: Path, tokenizer_files: dict[str, Path], monkeypatch) -> None:
    monkeypatch.setattr(checkpoints, "NANO_FOLDER", tmp_path / "nano")
    with pytest.raises(BundleError, match="nano's weights are not in this installation"):
        open_source("nano")
    save_golden(tmp_path / "nano", tokenizer_files)
    source = open_source("nano")
    assert run_dit(source.dit()) < NETWORK_TOLERANCE
    assert source.licence == "MIT"
    assert open_source("debug", random_weights=True).tokenizer_files() == source.tokenizer_files()


def test_saving_leaves_the_modules_alone_and_other_folders_too(tmp_path: Path, tokenizer_files) -> None:
    debug = open_source("debug", random_weights=True)
    parts = (debug.dit(), golden.vae(), debug.text_encoder(), tokenizer_files)
    with pytest.raises(InputError, match="not those that the settings of 'debug' describe"):
        save_folder(tmp_path / "x", debug.config, *parts)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "config.json").touch()
    (tmp_path / "photos" / "cat.jpg").touch()
    (tmp_path / "file").touch()
    for name in ("photos", "file"):
        with pytest.raises(InputError, match="is no model folder"):
            save_golden(tmp_path / name, tokenizer_files)
    with pytest.raises(InputError, match="make it first"):
        save_golden(tmp_path / "absent" / "x", tokenizer_files)
    with pytest.raises(InputError, match="float32 or float16"):
        save_golden(tmp_path / "x", tokenizer_files, torch.bfloat16)
    with pytest.raises(InputError, match="cannot be written"):
        save_golden(tmp_path / "x", dict.fromkeys(tokenizer_files, tmp_path / "absent"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "photos"]

    dit = golden.dit()
    dit.mask_embed.data[0] = 1e6
    vae, encoder = golden.vae(), build_text_encoder(golden.TEXT)
    with pytest.raises(BundleError, match=r"dit in torch.float16 holds values that are not finite"):
        save_folder(tmp_path / "x", golden.SYSTEM, dit, vae, encoder, tokenizer_files, dtype=torch.float16)
    save_folder(tmp_path / "x", golden.SYSTEM, dit, vae, encoder, tokenizer_files)
    assert any(name.endswith("weight_g") for name in vae.state_dict())


def test_broken_folders_are_one_line(tmp_path: Path, tokenizer_files: dict[str, Path]) -> None:
    folder = tmp_path / "mine"
    save_golden(folder, tokenizer_files)
    settings = golden.SYSTEM.to_dict()
    broken: list[tuple[bytes, str]] = [
        (b"\xff\xfe", "cannot be read"),
        (b"{", "cannot be read"),
        (b"[]", "holds list"),
        (b"[" * 100_000, "cannot be read"),
        (b" " * 1_000_001, "larger than"),
        (json.dumps(settings | {"surprise": 1}).encode(), "describes no model"),
        (json.dumps(settings | {"dit": []}).encode(), "describes no model"),
        (json.dumps(settings | {"dit": settings["dit"] | {"num_heads": 5}}).encode(), "must be a multiple"),
        (json.dumps(settings | {"dit": settings["dit"] | {"num_heads": 0}}).encode(), "describes no model"),
    ]
    for content, message in broken:
        (folder / "config.json").write_bytes(content)
        with pytest.raises(BundleError) as error:
            open_source(str(folder))
        assert message in one_line(error)
    (folder / "config.json").write_text(json.dumps(settings | {"dit": settings["dit"] | {"mlp_ratio": "4"}}))
    with pytest.raises(BundleError, match="mlp_ratio must be float") as error:
        open_source(str(folder)).dit()
    one_line(error)
    (folder / "controlnet.safetensors").unlink()
    (folder / "vae.safetensors").unlink()
    with pytest.raises(BundleError, match=re.escape("missing vae.safetensors, controlnet.safetensors")):
        open_source(str(folder), controlnet="energy")


def test_a_controlnet_of_ones_own(tmp_path: Path, tokenizer_files: dict[str, Path]) -> None:
    save_golden(tmp_path / "mine", tokenizer_files)
    (tmp_path / "mine" / "controlnet.safetensors").rename(tmp_path / "other.safetensors")
    assert open_source(str(tmp_path / "mine")).controlnet() is None
    controlnet = open_source(str(tmp_path / "mine"), controlnet=tmp_path / "other.safetensors").controlnet()
    assert isinstance(controlnet, ControlNet)
    assert run_controlnet(controlnet) < NETWORK_TOLERANCE


# Random weights


def test_random_weights_repeat_and_differ_between_seeds() -> None:
    first, again, other = (open_source("debug", random_weights=True, controlnet="energy", seed=s) for s in (0, 0, 1))
    assert first.origin == "random weights, seed 0"
    for part in ("dit", "vae", "text_encoder", "controlnet"):
        a, b, c = (getattr(source, part)().state_dict() for source in (first, again, other))
        assert all(torch.equal(a[key], b[key]) for key in a)
        assert all(not torch.equal(a[key], c[key]) for key in a if "inv_freq" not in key)
        tiny = torch.finfo(torch.float32).tiny
        assert all((value.abs() > tiny).all() for value in a.values())
    assert open_source("debug", random_weights=True).controlnet() is None


def test_random_rotary_frequencies_are_the_real_ones() -> None:
    debug = open_source("debug", random_weights=True)
    expected = MaskDiT(debug.config.dit).model.mid_block.attn.rotary.inv_freq
    assert torch.equal(debug.dit().model.mid_block.attn.rotary.inv_freq, expected)


@pytest.mark.parametrize("depth", [2, 28])
@torch.no_grad()
def test_random_signals_keep_their_size_and_no_block_is_an_identity(depth: int, monkeypatch) -> None:
    debug = preset("debug")
    dit_config = replace(debug.dit, depth=depth, width=96, num_heads=4)
    monkeypatch.setitem(PRESETS, "debug", replace(debug, dit=dit_config))
    source = open_source("debug", random_weights=True, controlnet="energy")
    dit, controlnet, encoder, vae = source.dit(), source.controlnet(), source.text_encoder(), source.vae()
    assert controlnet is not None

    changes: list[float] = []
    for block in dit.model.all_blocks():
        for branch in (block.attn, block.cross_attn, block.mlp):
            branch.register_forward_hook(lambda _module, _args, out: changes.append(out.std().item()))
        block.register_forward_hook(lambda _module, args, out: changes.append((out - args[0]).std().item()))
        block.register_forward_hook(lambda _module, _args, out: changes.append(out.std().item()))

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 8, 20, generator=generator)
    ids = torch.randint(3, 1000, (2, 6), generator=generator)
    context = encode_text(encoder, ids, torch.ones_like(ids))
    timesteps = torch.tensor([999, 10])
    velocity = dit(x, timesteps, context)
    # Measured at depth 28: branches 0.13 to 0.49, blocks up to 2.3.
    assert len(changes) == 5 * (depth + 1)
    assert 0.02 < min(changes) < max(changes) < 10
    assert 0.5 < velocity.std() < 2
    energy = torch.rand(2, 1, 40, generator=generator)
    residuals = controlnet(dit.assemble(x), timesteps, context, None, energy)
    assert all(0.1 < residual.std() < 10 for residual in residuals)
    audio = vae.decode(x)
    assert 0.02 < audio.std() < audio.abs().max() < 1
    assert vae.encode(audio).isfinite().all()


def test_random_weights_come_with_a_tokenizer() -> None:
    import sentencepiece

    source = open_source("debug", random_weights=True)
    files = source.tokenizer_files()
    tokenizer = Tokenizer.from_file(str(files["tokenizer.json"]))
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(files["spiece.model"]))
    assert tokenizer.get_vocab_size() <= source.config.text.vocab_size
    for text in ("A dog barks.", "", "über 猫"):
        assert tokenizer.encode(text).ids == [*pieces.encode(text), 1]


# Choices that do not go together


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("m", {}, "unknown model 'm': expected l, xl, nano or a folder with config.json"),
        ("debug", {}, "'debug' has no trained weights"),
        ("m", {"random_weights": True}, "one of l, xl, nano, debug"),
        ("l", {"random_weights": True, "checkpoint": Path("x")}, "random weights take no files"),
        ("l", {"random_weights": True, "controlnet": "x.pt"}, "random weights take no files"),
        ("nano", {"checkpoint": Path("x")}, "'nano' brings all its parts"),
        (".", {"text_encoder": Path("x")}, "'.' brings all its parts"),
        ("xl", {"controlnet": "energy"}, "no energy ControlNet for xl"),
        ("l", {"controlnet": "absent.pt"}, "ControlNet 'absent.pt' does not exist"),
        ("l", {"checkpoint": Path("absent")}, "checkpoint 'absent' does not exist"),
        ("l", {"text_encoder": Path("absent")}, "'absent' is not a folder"),
    ],
)
def test_wrong_choices_are_one_line(model: str, options: dict, message: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        open_source(model, **options)
    assert message in one_line(error)


# The Hub and missing packages


def test_offline_hub_is_one_line(tmp_path: Path) -> None:
    code = (
        "from ezaudio.hub import download\n"
        "from ezaudio.runtime.errors import BundleError\n"
        "try: download('OpenSound/EzAudio', 'ckpts/s3/ezaudio_s3_l.pt')\n"
        "except BundleError as error: print(error)\n"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == (
        "cannot get ckpts/s3/ezaudio_s3_l.pt of OpenSound/EzAudio from the Hugging Face Hub: not in the cache, and"
        " HF_HUB_OFFLINE forbids downloads: unset it; or give local files: --checkpoint FOLDER (EzAudio),"
        " --text-encoder FOLDER (FLAN-T5)\n"
    )


RESPONSE = SimpleNamespace(status_code=404, headers={}, request=None)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (hub_errors.LocalEntryNotFoundError("no"), "check the network and try again"),
        (hub_errors.RemoteEntryNotFoundError("no", response=RESPONSE), "no such file in the repository"),
        (hub_errors.GatedRepoError("no", response=RESPONSE), "access is restricted"),
        (hub_errors.RepositoryNotFoundError("no", response=RESPONSE), "no such repository, or a private one"),
        (OSError(28, "No space left\non device"), "No space left on device"),
        (TimeoutError(), "TimeoutError"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_hub_failures_are_one_line(error: Exception, reason: str, monkeypatch) -> None:
    def fail(*_args: object) -> None:
        raise error

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    with pytest.raises(BundleError) as caught:
        hub.download("owner/name", "a/b.pt")
    message = one_line(caught)
    assert message.startswith("cannot get a/b.pt of owner/name from the Hugging Face Hub: ")
    assert reason in message


def test_downloads_return_the_path(monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repo_id, filename: f"/cache/{repo_id}/{filename}")
    assert hub.download("owner/name", "a/b.pt") == Path("/cache/owner/name/a/b.pt")


def test_missing_packages_name_the_extra() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from ezaudio.runtime.errors import MissingExtraError\n"
        "try: import ezaudio.checkpoints\n"
        "except MissingExtraError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == 'torch is not installed: pip install "ezaudio[export]"\n'


def test_missing_transformers_names_the_extra(monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=re.escape('pip install "ezaudio[export]"')):
        open_source("debug", random_weights=True)
