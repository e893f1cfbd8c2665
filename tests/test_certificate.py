"""Certificates: what they measure, seeded faults that are repaired or refused, and what is stored."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import typed
from golden import relative_error
from typed import changed, retyped, scaled

from ezaudio.checkpoints import open_source
from ezaudio.config import preset
from ezaudio.export import bundle, policy, probes, quantize, typed_bundle, typed_graphs
from ezaudio.export.certificate import CORPUS, Scope, walk
from ezaudio.export.engines import build_bundle_engines, engine_plan
from ezaudio.export.lint import lint_bundle
from ezaudio.export.policy import HALF, POLICY
from ezaudio.runtime.bundle_store import PACKAGED
from ezaudio.runtime.certificate import HEADROOM, TOLERANCES, Certificate, certificate_table
from ezaudio.runtime.errors import BundleError, InputError
from ezaudio.runtime.manifest import read_manifest
from ezaudio.runtime.measures import level_distance_db, levels_db, measure
from ezaudio.runtime.reference_data import MAX_BYTES, point_count, read_reference
from ezaudio.runtime.teacher_forcing import TeacherForced
from ezaudio.runtime.text_to_audio import TextToAudio

FP16_LIMIT = 65504.0

# (bundle, precision) → worst velocity cosine and relative L2, each with what was measured.
VELOCITIES = {
    ("packaged", "fp16"): (0.99998, 1e-2),  # 0.999982, 6.0e-3
    ("packaged", "bf16"): (0.999, 4.5e-2),  # 0.99909, 4.3e-2
    ("packaged at guidance 2", "int8"): (0.995, 1e-1),
    ("packaged at guidance 2", "fp8"): (0.995, 1e-1),
    ("debug", "fp16"): (0.99998, 6e-3),  # 0.999997, 2.6e-3
    ("debug", "bf16"): (0.9992, 4e-2),  # 0.99982, 1.9e-2
    ("debug", "int8"): (0.998, 6e-2),
}


@pytest.mark.parametrize(("which", "precision"), VELOCITIES)
def test_small_models_are_certified(
    which: str, precision: str, debug_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize, "MIN_INPUTS", 16)  # the debug model's products are small
    reference = debug_bundle if which == "debug" else PACKAGED
    if "guidance 2" in which:  # at its own guidance of 5 it is refused, see below
        reference = tmp_path / "guided"
        shutil.copytree(PACKAGED, reference)
        read = read_manifest(PACKAGED)
        defaults = replace(read.config.defaults, guidance_scale=2.0)
        replace(read, config=replace(read.config, defaults=defaults)).write(reference)
    manifest = retyped(reference, tmp_path / "typed", precision)
    certificate = manifest.certificate
    assert certificate is not None
    assert (manifest.precision, manifest.target) == (precision, "tensorrt")
    cosine, relative_l2 = VELOCITIES[which, precision]
    tolerance = TOLERANCES[precision]
    assert cosine >= tolerance.cosine
    assert relative_l2 <= tolerance.relative_l2
    assert min(row.cosine for row in certificate.velocities) > cosine
    assert max(row.relative_l2 for row in certificate.velocities) < relative_l2
    assert max(row.distance_db for row in certificate.levels) < 0.05  # 0.006
    graphs = {row.graph for row in certificate.velocities}
    assert graphs == {name for name in manifest.graphs if name.startswith("denoiser")}
    steps = {(row.frames, row.timestep) for row in certificate.velocities if row.graph == "denoiser"}
    assert len(steps) == manifest.config.defaults.num_steps + 2  # every step of the plan, and two of a longer clip
    assert lint_bundle(tmp_path / "typed", manifest.graphs, precision, typed=True) == []
    operators = [n.op_type for n in ir.load(tmp_path / "typed" / "denoiser.onnx").graph]
    assert ("QuantizeLinear" in operators) == (precision in ("int8", "fp8"))
    gpus = ("8.9", "12.0") if precision == "fp8" else ("8.0", "8.9", "12.0")
    plan = engine_plan("tensorrt-rtx", precision, gpus)
    assert plan is not None
    assert f"{len(manifest.graphs)} engines" in build_bundle_engines(tmp_path / "typed", plan, quiet=True)


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_an_error_that_guidance_multiplies_beyond_the_tolerance_is_refused(precision: str, tmp_path: Path) -> None:
    """8 bits are not enough for the packaged model at its guidance of 5, whatever is taken out of them."""
    with pytest.raises(BundleError, match="not certified, nothing was written: denoiser's velocity at timestep "):
        retyped(PACKAGED, tmp_path / "typed", precision)
    assert not (tmp_path / "typed").exists()


def test_tensors_of_half_precision_have_their_headroom_in_the_certificate(typed_debug_bundle: Path) -> None:
    certificate = read_manifest(typed_debug_bundle).certificate
    assert certificate is not None
    assert certificate.limit == FP16_LIMIT
    for name, tensors in certificate.largest.items():
        written = {
            policy.original_name(str(value.name))
            for node in ir.load(typed_debug_bundle / f"{name}.onnx").graph
            for value in node.outputs
            if value.dtype == ir.DataType.FLOAT16
        }
        assert written == tensors.keys(), name
        assert all(0 < value * HEADROOM <= certificate.limit for value in tensors.values())
    assert certificate.islands == ()


def test_tensors_watched_in_parts_reach_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where not all of a graph's tensors fit into memory at once."""
    scope = Scope(prompts=CORPUS[:3], lengths=((0.4, 2),), mode_steps=2)
    manifest = read_manifest(PACKAGED, verify=False)
    tensors = {}
    for name in ("denoiser", "decoder"):
        nodes = typed_graphs.half_nodes(ir.load(PACKAGED / f"{name}.onnx"), name, "fp16")
        tensors[name] = typed_graphs.half_tensors(nodes)[::40]
    found = []
    for limit in (1 << 30, 1 << 10):
        monkeypatch.setattr(probes, "MAX_PROBED_BYTES", limit)
        sessions = probes.ProbedSessions(PACKAGED, manifest, 1, tensors)
        walk(TeacherForced(sessions, PACKAGED, manifest, scope.prompts), manifest, scope, lambda *_: None)
        found.append([value for rows in sessions.largest.values() for value in rows.values()])
    assert min(found[0]) > 0
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def overflowing(factor: float) -> typed_bundle.Callable[[ir.Model, str], None]:
    """The values that GEGLU gates grow by a factor, which the next product takes back: the same function."""

    def change(model: ir.Model, name: str) -> None:
        scaled(model, "blocks.0.mlp.up.weight", factor, slice(0, 128))
        scaled(model, "blocks.0.mlp.up.bias", factor, slice(0, 128))
        scaled(model, "blocks.0.mlp.down.weight", 1 / factor)

    return change


def test_an_overflow_of_fp16_is_repaired_by_the_fewest_layers(debug_bundle: Path, tmp_path: Path) -> None:
    reference = changed(debug_bundle, tmp_path / "reference", overflowing(1e5))
    manifest = retyped(reference, tmp_path / "typed", "fp16")
    certificate = manifest.certificate
    assert certificate is not None
    moved = {(island.graph, island.layer) for island in certificate.islands if island.graph == "denoiser"}
    assert moved == {("denoiser", f"blocks.0.mlp.{name}.weight") for name in ("up", "down")}
    assert max(island.largest for island in certificate.islands) > FP16_LIMIT / HEADROOM
    assert min(row.cosine for row in certificate.velocities) > 0.99998  # 0.999997, as without the fault
    assert "'blocks.0.mlp.up.weight' reaches" in certificate_table(certificate, "fp16")


def test_an_overflow_that_is_not_repaired_is_refused_with_its_layer(
    debug_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(typed_bundle, "HEADROOM", 0.0)  # as if the walk had not seen it
    reference = changed(debug_bundle, tmp_path / "reference", overflowing(1e5))
    with pytest.raises(BundleError) as error:
        retyped(reference, tmp_path / "typed", "fp16")
    assert "the fp16 graphs are not certified, nothing was written: denoiser's velocity at timestep" in str(error.value)
    assert "layer 'matmul_9' of denoiser is off by inf" in str(error.value)  # blocks.0.mlp.up
    assert "\n" not in str(error.value)
    assert not (tmp_path / "typed").exists()


def test_weights_beyond_fp16_are_repaired(debug_bundle: Path, tmp_path: Path) -> None:
    def change(model: ir.Model, name: str) -> None:
        if name == "text_encoder":
            scaled(model, "layers.0.v.weight", 1e6)
            scaled(model, "layers.0.o.weight", 1e-6)

    manifest = retyped(changed(debug_bundle, tmp_path / "reference", change), tmp_path / "typed", "fp16")
    assert manifest.certificate is not None
    assert {"layers.0.v.weight", "layers.0.o.weight"} <= {island.layer for island in manifest.certificate.islands}


def test_a_dropped_island_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A policy that has lost T5's islands is caught by what it costs: 3.6e-3 in place of 9.7e-4."""
    monkeypatch.setitem(TOLERANCES, "fp16", replace(TOLERANCES["fp16"], graph=2e-3))
    lost = tuple(replace(rule, precision=HALF) if rule.graphs == "text_encoder" else rule for rule in POLICY)
    monkeypatch.setattr(policy, "POLICY", lost)
    monkeypatch.setattr(typed, "SHORT", replace(typed.SHORT, prompts=CORPUS))
    with pytest.raises(
        BundleError, match=r"not certified, nothing was written: text_encoder\.text_states is off by 3\.6"
    ):
        retyped(PACKAGED, tmp_path / "lost", "fp16")


@pytest.mark.parametrize("value", [float("-inf"), float("nan")])
def test_a_mask_constant_that_makes_nan_is_refused(debug_bundle: Path, tmp_path: Path, value: float) -> None:
    def change(model: ir.Model, name: str) -> None:
        for node in model.graph:
            if node.op_type == "Where" and name == "denoiser":
                constant = node.inputs[2]
                assert constant is not None
                constant.const_value = ir.tensor(np.array(value, np.float32), name=constant.name)

    reference = changed(debug_bundle, tmp_path / "reference", change)
    with pytest.raises(BundleError, match=r"the graphs break 1 rules.*denoiser, .*: holds infinity or NaN"):
        retyped(reference, tmp_path / "typed", "fp16")
    assert not (tmp_path / "typed").exists()


def test_a_reference_that_is_not_finite_is_refused(debug_bundle: Path, tmp_path: Path) -> None:
    reference = changed(
        debug_bundle, tmp_path / "reference", lambda model, _: scaled(model, "blocks.0.mlp.up.weight", 1e30)
    )
    with pytest.raises(
        BundleError, match="denoiser gives numbers that are not finite in fp32 at timestep 999 over 20 frames"
    ):
        retyped(reference, tmp_path / "typed", "fp16")


@pytest.mark.slow
def test_export_for_tensorrt_is_the_typed_form_of_the_fp32_export(tmp_path: Path, typed_debug_bundle: Path) -> None:
    source = open_source("debug", random_weights=True)
    manifest = bundle.export_bundle(source, tmp_path / "out", "fp16", target="tensorrt-rtx", scope=typed.SHORT)
    assert manifest.target == "tensorrt-rtx"
    assert max(check.relative_error for check in manifest.checks) < 1e-5  # of the fp32 graphs, against PyTorch
    assert {path.name for path in (tmp_path / "out").iterdir()} == manifest.files.keys() | {"manifest.json"}
    same = read_manifest(typed_debug_bundle)
    assert manifest.files["denoiser.onnx"] == same.files["denoiser.onnx"]
    assert manifest.graphs["denoiser"] == same.graphs["denoiser"]


def test_typed_bundles_run_on_a_cpu_where_it_has_the_kernels(typed_debug_bundle: Path, debug_bundle: Path) -> None:
    exact, half = (
        TextToAudio(folder).generate("rain", duration_s=0.4, seed=1).samples
        for folder in (debug_bundle, typed_debug_bundle)
    )
    assert 0 < relative_error(half, exact) < 2e-2


def test_a_bf16_bundle_on_a_cpu_is_refused_in_one_line(debug_bundle: Path, tmp_path: Path) -> None:
    def to_bf16(model: ir.Model, name: str) -> None:
        typed_graphs.apply_types(model, typed_graphs.half_nodes(model, name, "bf16"), "bf16")

    folder = changed(debug_bundle, tmp_path / "bf16", to_bf16)
    replace(read_manifest(folder), precision="bf16", target="tensorrt").write(folder)
    with pytest.raises(InputError, match="ONNX Runtime computes no bf16 on a CPU, which graphs for tensorrt ask for"):
        TextToAudio(folder, backend="onnxruntime")


def test_unknown_targets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown target 'cuda': expected one of cpu, tensorrt, tensorrt-rtx"):
        bundle.export_bundle(open_source("debug", random_weights=True), tmp_path / "out", target="cuda")


def test_a_certificate_is_the_same_after_json(typed_debug_bundle: Path) -> None:
    certificate = read_manifest(typed_debug_bundle).certificate
    assert certificate is not None
    assert Certificate.from_dict(json.loads(json.dumps(certificate.to_dict()))) == certificate
    data = read_reference(typed_debug_bundle, certificate.reference, preset("debug").vae)
    assert data.latents.shape == data.velocities.shape == (len(certificate.reference.points), 8, 20)
    with pytest.raises(BundleError, match=r"certificate\.f16' has [\d,]+ bytes, expected"):
        read_reference(typed_debug_bundle, replace(certificate.reference, frames=21), preset("debug").vae)


@pytest.mark.parametrize("name", ["l", "xl", "nano"])
def test_reference_data_stays_small(name: str) -> None:
    vae = preset(name).vae
    frames = round(vae.latent_rate)
    assert point_count(vae, frames, 16) == 16
    assert point_count(vae, 100 * frames, 16) == 1
    assert 2 * (2 * 16 + 1) * vae.latent_channels * frames < MAX_BYTES


def test_the_corpus_and_the_scope_cover_what_they_promise() -> None:
    assert 20 <= len(CORPUS) <= 30
    assert "" in CORPUS
    assert max(map(len, CORPUS)) > 700
    assert len({character for text in CORPUS for character in text if ord(character) > 0x2000}) > 10
    assert Scope().walks(preset("l")) == [(50, 100), (500, 100), (1500, 10)]


def test_measures() -> None:
    rng = np.random.default_rng(0)
    x, noise = rng.standard_normal((2, 1, 8, 100))
    assert measure(x, x) == (pytest.approx(1), 0)
    cosine, relative_l2 = measure(x + 1e-2 * noise, x)
    assert relative_l2 == pytest.approx(1e-2, rel=0.05)
    assert cosine == pytest.approx(1 - relative_l2**2 / 2, abs=1e-5)
    assert measure(np.full_like(x, np.nan), x) == (-1.0, float("inf"))
    assert measure(x[:, :4], x) == (-1.0, float("inf"))
    clip = rng.standard_normal(24000)
    levels = levels_db(clip, 24000)
    assert level_distance_db(clip, levels, 24000) == 0
    assert level_distance_db(0.5 * clip, levels, 24000) == pytest.approx(20 * np.log10(2), abs=0.01)
    assert level_distance_db(np.full_like(clip, np.inf), levels, 24000) == float("inf")
