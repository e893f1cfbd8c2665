"""The PyTorch models against what the official code computes."""

from __future__ import annotations

import json

import golden
import pytest
import torch

from ezaudio.config import PRESETS, EzAudioConfig, preset
from ezaudio.controlnet import ControlNet, audio_energy
from ezaudio.dit import MaskDiT
from ezaudio.vae import AutoencoderOobleck

NETWORK_TOLERANCE = 1e-5  # measured: 5e-7


@pytest.mark.parametrize("case", ["a", "b"])
def test_dit_matches_official(case: str) -> None:
    io = golden.load("dit_tiny_io")
    with torch.no_grad():
        out = golden.dit()(*(io[f"{case}.{name}"] for name in ("x", "timesteps", "context", "context_mask")))
    assert golden.relative_error(out, io[f"{case}.out"]) < NETWORK_TOLERANCE


def test_dit_editing_matches_official() -> None:
    io = golden.load("dit_tiny_io")
    args = [io[f"inpaint.{name}"] for name in ("x", "timesteps", "context", "context_mask", "gt")]
    with torch.no_grad():
        out = golden.dit()(*args, mask=io["inpaint.mask"][:, 0])
    assert golden.relative_error(out, io["inpaint.out"]) < NETWORK_TOLERANCE


def test_given_latent_needs_its_mask() -> None:
    x = torch.zeros(1, 16, 4)
    with pytest.raises(ValueError, match="needs a mask"):
        golden.dit().assemble(x, given=x)


@pytest.mark.parametrize("fold", [False, True], ids=["weight-norm", "folded"])
def test_vae_matches_official(fold: bool) -> None:
    io, vae = golden.load("vae_tiny_io"), golden.vae()
    if fold:
        vae.fold_weight_norm().fold_weight_norm()  # twice is once
        assert not any(name.endswith(("weight_g", "weight_v")) for name in vae.state_dict())
    with torch.no_grad():
        encoded, decoded, short = vae.encoder(io["audio"]), vae.decode(io["latent"]), vae.decode(io["latent_short"])
        mean, std = vae.encode_moments(io["audio"])
    assert golden.relative_error(encoded, io["encoder_out"]) < NETWORK_TOLERANCE
    assert golden.relative_error(decoded, io["decoded"]) < NETWORK_TOLERANCE
    assert golden.relative_error(short, io["decoded_short"]) < NETWORK_TOLERANCE
    assert torch.equal(mean, encoded[:, :16])
    assert (std > 1e-4).all()


def test_controlnet_matches_official() -> None:
    io, dit, controlnet = golden.load("controlnet_tiny_io"), golden.dit(), golden.controlnet()
    energy = audio_energy(io["audio"])
    assert golden.relative_error(energy.transpose(1, 2), io["energy"]) < NETWORK_TOLERANCE
    timesteps = io["timestep"].expand(2)
    with torch.no_grad():
        residuals = controlnet(
            dit.assemble(io["x"]), timesteps, io["context"], io["context_mask"], energy, io["conditioning_scale"]
        )
        out = dit(io["x"], timesteps, io["context"], io["context_mask"], residuals=residuals)
    for index, residual in enumerate(residuals):
        assert golden.relative_error(residual, io[f"skip.{index}"]) < NETWORK_TOLERANCE
    assert golden.relative_error(out, io["out"]) < NETWORK_TOLERANCE


@pytest.mark.parametrize(
    ("name", "size", "build"),
    [
        ("dit_L", "l", lambda c: MaskDiT(c.dit)),
        ("dit_XL", "xl", lambda c: MaskDiT(c.dit)),
        ("controlnet_energy_L", "l", lambda c: ControlNet(c.dit, c.controlnet)),
        ("vae", "l", lambda c: AutoencoderOobleck(c.vae)),
    ],
)
def test_names_and_shapes_equal_the_official_files(name: str, size: str, build) -> None:
    path = golden.FOLDER.parent / "state_dicts" / f"state_dict_{name}.json"
    expected = {key.removeprefix("autoencoder."): shape for key, shape in json.loads(path.read_text()).items()}
    with torch.device("meta"):
        model = build(preset(size))
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == expected


@pytest.mark.parametrize(("size", "millions"), [("l", 596.83), ("xl", 874.76)])
def test_parameter_counts_are_the_papers(size: str, millions: float) -> None:
    with torch.device("meta"):
        model = MaskDiT(preset(size).dit)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize("name", PRESETS)
def test_settings_survive_json(name: str) -> None:
    config = preset(name)
    assert EzAudioConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown model preset 'm'"):
        preset("m")
    data = preset("debug").to_dict()
    with pytest.raises(ValueError, match="do not fit"):
        EzAudioConfig.from_dict(data | {"surprise": 1})
