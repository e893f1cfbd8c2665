"""Checkpoints: the release's files, model folders, random weights, and the messages when something is wrong."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import golden
import pytest
import torch
from console import one_line
from safetensors.torch import load_file, save_file
from torch import nn

from ezaudio import checkpoints, hub, text_files
from ezaudio.checkpoints import ModelSource, open_source, save_folder
from ezaudio.config import PRESETS, preset
from ezaudio.controlnet import ControlNet
from ezaudio.runtime.errors import BundleError, InputError, MissingExtraError
from ezaudio.text import build_text_encoder, encode_text

NETWORK_TOLERANCE = 1e-5  # measured: 5e-7
HALF_TOLERANCE = 2e-3  # measured: 6.4e-4 (DiT), weights rounded to float16


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
    dit, vae = source.dit(), source.vae()
    parts = {golden.dit_error: dit, run_vae: vae, run_text_encoder: encoder, run_controlnet: controlnet}
    for run, module in parts.items():
        assert run(module) < tolerance, run.__name__
        assert not module.training
        assert all(p.dtype == torch.float32 and not p.requires_grad for p in module.parameters())
    assert not any(name.endswith("weight_g") for name in parts[run_vae].state_dict())
    assert encoder.encoder.embed_tokens.weight is encoder.shared.weight
    assert encoder.config._attn_implementation == "eager"


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
    assert golden.dit_error(source.dit()) < NETWORK_TOLERANCE
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
    assert golden.dit_error(source.dit()) < NETWORK_TOLERANCE
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
        (json.dumps(settings | {"name": "../mine"}).encode(), "describes no model: '../mine' is no plain file name"),
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


# Missing packages


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
