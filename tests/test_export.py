"""Exporting: exact rewrites, what the graphs contain, precisions, and folders that are whole or not there."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import golden
import onnx
import pytest
import torch
from torch import nn

from ezaudio.checkpoints import ModelSource, open_source
from ezaudio.config import DiTConfig, preset
from ezaudio.dit import MaskDiT
from ezaudio.export import bundle, graphs
from ezaudio.export.blocks import Block
from ezaudio.export.onnx_writer import to_onnx
from ezaudio.export.vae_graphs import DecoderGraph, ShuffledUpsampling
from ezaudio.kernels import reference as ops
from ezaudio.runtime.errors import BundleError, InputError
from ezaudio.runtime.manifest import read_manifest
from ezaudio.vae import WeightNormConv


@pytest.fixture(scope="module")
def source() -> ModelSource:
    return open_source("debug", random_weights=True)


def test_graphs_keep_to_the_rules(debug_bundle: Path) -> None:
    """Opset 20, fp32 or integers only, LayerNorm whole, and no other dynamic axis than the declared ones."""
    manifest = read_manifest(debug_bundle)
    assert len(manifest.graphs) == 13
    for name, entry in manifest.graphs.items():
        model = onnx.load(debug_bundle / entry.file, load_external_data=False)
        assert [(o.domain, o.version) for o in model.opset_import] == [("", 20)], name
        types = {tensor.data_type for tensor in model.graph.initializer}
        assert onnx.TensorProto.DOUBLE not in types, name
        for values, specs in ((model.graph.input, entry.inputs), (model.graph.output, entry.outputs)):
            assert [value.name for value in values] == [spec.name for spec in specs]
            for value, spec in zip(values, specs, strict=True):
                shape = [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
                assert shape == [d if isinstance(d, int) else str(d) for d in spec.shape], (name, value.name)
        operators = [node.op_type for node in model.graph.node]
        if name.startswith("denoiser"):
            # attention, MLP: 3 norms a block, 4 of heads, the long skip's and the final one
            blocks = 2 if name == "denoiser_shallow" else 3
            assert operators.count("LayerNormalization") == 3 * blocks + 3 * blocks + 1 + 1


def test_equal_weights_are_stored_once(debug_bundle: Path, source: ModelSource) -> None:
    values = sum(p.numel() for p in source.dit().parameters())
    stored = (debug_bundle / "denoiser.weights").stat().st_size
    padding = 4096 * 200
    assert stored < 4 * values + padding  # three denoisers


def test_equal_weights_keep_their_names(source: ModelSource) -> None:
    """Untrained autoencoders have many equal tensors, and what reads a graph finds its weights by name."""
    decoder = DecoderGraph(source.vae(), source.config)
    weights = decoder.state_dict()
    for value in weights.values():
        nn.init.constant_(value, 0.5)
    stored = to_onnx(decoder).graph.initializers
    assert [name for name in weights if name not in stored] == []


def test_every_error_is_in_the_manifest_and_small(debug_bundle: Path) -> None:
    manifest = read_manifest(debug_bundle)
    outputs = {(name, spec.name) for name, entry in manifest.graphs.items() for spec in entry.outputs}
    assert {(check.graph, check.output.split(",")[0]) for check in manifest.checks} == outputs
    for name in ("denoiser", "denoiser_shallow", "denoiser_controlled", "controlnet"):
        cases = {check.output.split(", ")[1] for check in manifest.checks if check.graph == name}
        assert cases == {"guided", "negative", "unguided"}
    assert all(0 <= check.relative_error < 1e-5 for check in manifest.checks)  # measured: 4e-6


def test_a_wrong_graph_fails_the_export_and_leaves_nothing(
    source: ModelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fold = graphs.ModulationGraph.fold
    monkeypatch.setattr(graphs.ModulationGraph, "fold", staticmethod(lambda norm, a, b: fold(norm, a, b * 1.001)))
    with pytest.raises(BundleError, match=r"more than the tolerance.*denoiser\.next_latents, unguided"):
        bundle.export_bundle(source, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_only_a_bundle_is_replaced(source: ModelSource, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("ten years")
    for output in (tmp_path / "mine", tmp_path / "mine" / "thesis.txt"):
        with pytest.raises(InputError, match="is no bundle"):
            bundle.export_bundle(source, output)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "ten years"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "manifest.json").write_text('{"name": "a web application"}')
    with pytest.raises(InputError, match="is no bundle"):
        bundle.export_bundle(source, tmp_path / "site")
    with pytest.raises(InputError, match="unknown precision 'fp4'"):
        bundle.export_bundle(source, tmp_path / "out", "fp4")


def test_a_bundle_is_replaced_where_a_link_points_but_not_with_files_of_ones_own(
    source: ModelSource, own_debug_bundle: Path, tmp_path: Path
) -> None:
    (own_debug_bundle / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds 'notes\.txt', which is not of the bundle there and would be lost"):
        bundle.export_bundle(source, own_debug_bundle)
    (own_debug_bundle / "notes.txt").unlink()
    (own_debug_bundle / "engines").mkdir()
    (tmp_path / "link").symlink_to(own_debug_bundle, target_is_directory=True)
    bundle.export_bundle(source, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert not (own_debug_bundle / "engines").exists()
    read_manifest(own_debug_bundle)


def test_a_file_that_came_while_it_exported_stays(
    source: ModelSource, own_debug_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = own_debug_bundle / "mine.txt"
    monkeypatch.setattr(bundle, "_write_bundle", lambda *_: mine.touch())
    with pytest.raises(InputError, match=r"holds 'mine\.txt', which is not of the bundle there and would be lost"):
        bundle.export_bundle(source, own_debug_bundle)
    assert mine.exists()
    assert read_manifest(own_debug_bundle)
    assert os.listdir(own_debug_bundle.parent) == [own_debug_bundle.name]


def test_a_bundle_that_cannot_be_replaced_is_back(
    source: ModelSource, own_debug_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a mock of a file system that refuses the second of two renames."""
    rename = Path.rename

    def refused(path: Path, target: Path) -> Path:
        if path.suffix == ".partial":
            raise OSError(errno.EIO, "Input/output error")
        return rename(path, target)

    before = read_manifest(own_debug_bundle)
    monkeypatch.setattr(bundle, "_write_bundle", lambda *_: None)
    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(InputError, match=r"cannot write to .* \(Input/output error\)"):
        bundle.export_bundle(source, own_debug_bundle)
    assert read_manifest(own_debug_bundle) == before
    assert os.listdir(own_debug_bundle.parent) == [own_debug_bundle.name]


def test_a_mount_point_is_refused_before_the_work(
    source: ModelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a mock of the mount: renaming one fails after minutes."""
    monkeypatch.setattr(os.path, "ismount", lambda path: path == tmp_path)
    with pytest.raises(InputError, match="is a mount point, which cannot be replaced whole: name a folder in it"):
        bundle.export_bundle(source, tmp_path)


def test_the_manifest_says_what_was_exported(debug_bundle: Path) -> None:
    data = json.loads((debug_bundle / "manifest.json").read_text())
    assert data["model"] == "debug"
    assert data["precision"] == "fp32"
    assert data["origin"] == "random weights, seed 0"
    assert data["packages"]["torch"].startswith("2.")
    assert {"tokenizer.json", "spiece.model", "denoiser.onnx", "denoiser.weights"} <= data["files"].keys()
    assert data["files"].keys() == {path.name for path in debug_bundle.iterdir()} - {"manifest.json"}


@pytest.mark.parametrize("head_width", [32, 64, 72])
def test_exported_block_equals_the_models(head_width: int) -> None:
    """Also at the head width of XL, where the softmax scale is no power of two."""
    config = DiTConfig(8, 2 * head_width, 2, 2, 16, 4, 6)
    torch.manual_seed(0)
    dit = MaskDiT(config)
    block = dit.model.out_blocks[0]
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.2)
    block.requires_grad_(False)
    x, skip = torch.randn(2, 2, 600, config.width) + 3
    context, state, shared = (
        torch.randn(2, 5, config.width),
        torch.randn(1, config.width),
        torch.randn(1, 6 * config.width),
    )
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    rope = ops.rope_tables(600, head_width)
    expected = block(x, state.expand(2, -1), shared.expand(2, -1), context, mask, rope, skip)

    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = block.adaln(state, shared)[0]
    fold = graphs.ModulationGraph.fold
    modulation = [*fold(block.norm1, shift_a, scale_a), 1 - gate_a, *fold(block.norm3, shift_m, scale_m), 1 - gate_m]
    cross, normed = block.cross_attn, block.norm_context(context)
    keys = cross.norm_k(ops.split_heads(cross.to_k(normed), 2))
    values = ops.split_heads(cross.to_v(normed), 2)
    got = Block(block)(x, torch.stack(modulation), rope, keys, values, mask, torch.zeros(0, config.width), skip)
    assert golden.relative_error(got, expected) < 1e-5


@pytest.mark.parametrize("stride", [2, 4, 6, 10])
@pytest.mark.parametrize("length", [1, 2, 17])
def test_upsampling_by_shuffle_is_the_transposed_convolution(stride: int, length: int) -> None:
    torch.manual_seed(stride)
    conv = WeightNormConv(nn.ConvTranspose1d(6, 5, 2 * stride, stride, stride // 2)).requires_grad_(False)
    x = torch.randn(2, 6, length)
    got = ShuffledUpsampling(conv)(x)
    assert got.shape == (2, 5, length * stride)
    assert golden.relative_error(got, conv(x)) < 1e-6


def test_axes_cover_the_presets() -> None:
    for name in ("l", "xl", "nano"):
        config = preset(name)
        axes = graphs.Axes.of(config)
        assert axes.frames.max == round(config.max_duration_s * config.vae.latent_rate)
        assert axes.tokens.max == 100


def test_axes_cover_what_settings_allow() -> None:
    """A model of few tokens and training steps; and one whose longest clip ends within a frame, which counts."""
    config = preset("debug")
    vae = replace(config.vae, sample_rate=44_100)
    few = replace(
        config, vae=vae, text=replace(config.text, max_tokens=8), diffusion=replace(config.diffusion, num_train_steps=9)
    )
    axes = graphs.Axes.of(few)
    assert (axes.frames.opt, axes.frames.max) == (919, 2757)  # 918.75, 2756.25
    assert (axes.tokens.opt, axes.tokens.max, axes.steps.opt, axes.steps.max) == (8, 8, 9, 9)
    with pytest.raises(ValueError, match=r"at most max_duration_s 5\.0, got 10\.0"):
        preset("debug", max_duration_s=5.0)
