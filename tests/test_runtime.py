"""The torch-free runtime on real bundles: against the official code, against PyTorch, and against itself."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import golden
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from ezaudio.checkpoints import open_source
from ezaudio.runtime.bundle_store import PACKAGED
from ezaudio.runtime.errors import BackendError, BundleError, CancelledError, InputError
from ezaudio.runtime.manifest import GraphEntry, read_manifest
from ezaudio.runtime.noise import PhiloxNoise, TorchNoise
from ezaudio.runtime.session import GraphSessions
from ezaudio.runtime.settings import Step
from ezaudio.runtime.solvers import solver_plan
from ezaudio.runtime.tensor_spec import TensorSpec
from ezaudio.runtime.text_to_audio import TextToAudio
from ezaudio.sampling import Condition, sample
from ezaudio.text import encode_text

PARITY = 1e-4  # ONNX against PyTorch over a whole loop; measured: 2e-6


@pytest.fixture(scope="module")
def model(debug_bundle: Path) -> TextToAudio:
    return TextToAudio(debug_bundle, threads=2)


@pytest.mark.parametrize(
    ("name", "settings", "tolerance"),
    [
        ("ddim10_eta0_w3", {"num_steps": 10, "eta": 0.0, "guidance_scale": 3.0, "seed": 7}, 1e-4),
        ("ddim10_eta1_noguide", {"num_steps": 10, "eta": 1.0, "guidance_scale": 1.0, "seed": 3}, 1e-3),
        (
            "ddim20_eta1_w5_phi075",
            {"num_steps": 20, "eta": 1.0, "guidance_scale": 5.0, "guidance_rescale": 0.75, "seed": 11},
            1e-3,
        ),
    ],
)
def test_bundle_gives_the_official_latents(golden_bundle: Path, name: str, settings: dict, tolerance: float) -> None:
    io = golden.load("pipeline_tiny_io")
    model = TextToAudio(golden_bundle)
    for text, row in (("the golden prompt", 0), ("", 1)):  # the golden ids belong to no words
        ids = io["input_ids"][row][io["attention_mask"][row].bool()]
        model._conditioning._texts[text] = model._conditioning.encode_ids(tuple(ids.tolist()))
    resolved = model.settings("the golden prompt", duration_s=40 / 50, **{"guidance_rescale": 0.0, **settings})
    latents = model._denoise(resolved, model._nothing_given(40 / 50), lambda step: None)
    assert golden.relative_error(latents, io[f"latent.{name}"]) < tolerance


@pytest.mark.parametrize("solver", ["ddim", "dpmpp_2m", "dpmpp_2m_sde"])
@pytest.mark.parametrize(
    "guidance",
    [
        {},
        {"negative_prompt": "wind and a very loud engine"},
        {"guidance_scale": 1.0},
        {"guidance_interval": (0.3, 0.9)},
        {"reuse": [1, 3, 4]},
        {"negative_prompt": "wind", "guidance_interval": (0.5, 1.0), "reuse": [2, 4]},
    ],
    ids=["guided", "negative", "unguided", "interval", "reuse", "all together"],
)
def test_whole_clip_equals_pytorch(model: TextToAudio, solver: str, guidance: dict) -> None:
    settings = model.settings("a dog barks", duration_s=1.01, num_steps=5, solver=solver, seed=3, **guidance)
    source = open_source("debug", controlnet="energy", random_weights=True)
    encoder, dit, vae = source.text_encoder(), source.dit(), source.vae()

    def encode(text: str) -> tuple[torch.Tensor, torch.Tensor]:
        ids = torch.tensor([model._conditioning.tokenizer.encode(text).ids])
        return encode_text(encoder, ids, torch.ones_like(ids)), torch.ones_like(ids).bool()

    negative = (None, None) if settings.guidance_scale == 1 else encode(settings.negative_prompt)
    plan = solver_plan(solver, 5, settings.eta, model.config.diffusion)
    condition = Condition(*encode(settings.prompt), *negative)
    scale = (settings.guidance_scale, settings.guidance_rescale)
    cheaper = {"guidance_interval": settings.guidance_interval, "reuse": settings.reuse}
    latents = sample(dit, plan, condition, [TorchNoise(3)], 51, *scale, **cheaper)
    with torch.no_grad():
        audio = vae.decode(latents)[0, 0, : round(1.01 * 24000)]
    got = model.generate(settings.prompt, duration_s=1.01, num_steps=5, solver=solver, seed=3, **guidance).samples
    assert golden.relative_error(got[0], audio) < PARITY


@pytest.mark.parametrize("duration_s", [10.0, 30.0], ids=["usual length", "longest"])
def test_long_clips_equal_pytorch(model: TextToAudio, duration_s: float) -> None:
    settings = model.settings("wind", duration_s=duration_s, num_steps=2, guidance_scale=1.0, seed=4)
    source = open_source("debug", controlnet="energy", random_weights=True)
    ids = torch.tensor([model._conditioning.tokenizer.encode("wind").ids])
    condition = Condition(encode_text(source.text_encoder(), ids, torch.ones_like(ids)), torch.ones_like(ids).bool())
    plan = solver_plan("ddim", 2, settings.eta, model.config.diffusion)
    expected = sample(source.dit(), plan, condition, [TorchNoise(4)], round(duration_s * 50))
    assert (
        golden.relative_error(
            model._denoise(settings, model._nothing_given(settings.duration_s), lambda step: None), expected
        )
        < PARITY
    )


def test_a_batch_in_the_graph_equals_its_rows_alone(model: TextToAudio) -> None:
    """The runtime runs clip by clip; other hosts may run several at once."""
    prompts = [model._conditioning.prompt(text) for text in ("rain and thunder", "a dog", "bells ring slowly far away")]
    tokens, frames, batch = max(prompt.num_tokens for prompt in prompts), 21, len(prompts)
    plan = solver_plan("ddim", 4, 0.0, model.config.diffusion)
    block, final = model._conditioning.modulation(plan).values()
    shape = (batch, model.config.vae.latent_channels, frames)
    padding = [(0, tokens - prompt.num_tokens) for prompt in prompts]
    together = {
        "latents": np.random.default_rng(0).standard_normal(shape, np.float32),
        "frame_bias": model._sessions.run(
            "frame_bias", given=np.zeros(shape, np.float32), mask=np.ones((batch, frames), np.bool_)
        )["frame_bias"],
        "cross_constant": np.repeat(model._conditioning.prompt("").constant, batch, axis=1),
        "context_mask": np.arange(tokens) < np.array([[prompt.num_tokens] for prompt in prompts]),
        "previous_clean": np.zeros(shape, np.float32),
        "noise": np.zeros(shape, np.float32),
        "guidance_scale": np.array([1.5, 3.0, 5.0], np.float32),
        "guidance_rescale": np.array([0.0, 0.5, 1.0], np.float32),
    }
    for name in ("keys", "values"):
        rows = [
            np.pad(getattr(prompt, name), [(0, 0)] * 3 + [pad, (0, 0)])
            for prompt, pad in zip(prompts, padding, strict=True)
        ]
        together[f"cross_{name}"] = np.concatenate(rows, axis=1)
    shared = {"block_modulation": block[1], "final_modulation": final[1], "coefficients": plan.rows[1]}
    expected = model._sessions.run("denoiser", **shared, **together)["next_latents"]
    by_block = ("cross_constant", "cross_keys", "cross_values")
    for row, prompt in enumerate(prompts):
        alone = {k: v[:, row : row + 1] if k in by_block else v[row : row + 1] for k, v in together.items()}
        alone |= {"cross_keys": prompt.keys, "cross_values": prompt.values}
        alone["context_mask"] = np.ones((1, prompt.num_tokens), np.bool_)
        got = model._sessions.run("denoiser", **shared, **alone)["next_latents"]
        assert golden.relative_error(got[0], expected[row]) < 1e-5


def test_text_states_of_a_prompt_are_kept(model: TextToAudio) -> None:
    assert model._conditioning.prompt("a prompt said twice") is model._conditioning.prompt("a prompt said twice")


@pytest.mark.parametrize("duration_s", [0.0001, 0.01, 0.5, 1.0, 1.2345])
def test_length_is_exact(model: TextToAudio, duration_s: float) -> None:
    result = model.generate("rain", duration_s=duration_s, num_steps=1, seed=0)
    assert result.samples.shape == (1, round(duration_s * 24000))
    assert result.samples.dtype == np.float32
    assert np.isfinite(result.samples).all()


@pytest.mark.parametrize("noise", ["torch", "philox"])
def test_an_item_does_not_depend_on_its_batch(model: TextToAudio, noise: str) -> None:
    options = {"duration_s": 0.4, "num_steps": 3, "solver": "dpmpp_2m_sde", "noise": noise}
    together = model.generate(["rain", "a dog", "a much longer prompt about bells"], seed=[1, 2, 2], **options)
    for index, settings in enumerate(together.settings):
        alone = model.generate(settings.prompt, seed=settings.seed, **options)
        assert alone.settings == (settings,)
        assert alone.samples.tobytes() == together.samples[index].tobytes()
    assert not np.array_equal(together.samples[0], together.samples[1])


def test_one_seed_gives_the_same_bytes_every_time(model: TextToAudio, debug_bundle: Path) -> None:
    options = {"duration_s": 0.3, "num_steps": 3, "eta": 1.0, "seed": 5}
    first = model.generate("bells", **options).samples.tobytes()
    assert all(model.generate("bells", **options).samples.tobytes() == first for _ in range(20))
    assert TextToAudio(debug_bundle, threads=2).generate("bells", **options).samples.tobytes() == first
    assert model.generate("bells", **{**options, "seed": 6}).samples.tobytes() != first


def test_philox_takes_the_place_of_the_torch_stream(model: TextToAudio) -> None:
    settings = model.settings("bells", duration_s=0.4, num_steps=1, eta=0.0, guidance_scale=1.0, seed=8, noise="philox")
    start = PhiloxNoise(8).draw(0, (1, 8, 20))
    plan = solver_plan("ddim", 1, 0.0, model.config.diffusion)
    dit = open_source("debug", controlnet="energy", random_weights=True).dit()
    encoder = open_source("debug", random_weights=True).text_encoder()
    ids = torch.tensor([model._conditioning.tokenizer.encode("bells").ids])
    condition = Condition(encode_text(encoder, ids, torch.ones_like(ids)), torch.ones_like(ids).bool())
    expected = sample(dit, plan, condition, [PhiloxNoise(8)], 20)
    assert start.shape == expected.shape
    assert (
        golden.relative_error(
            model._denoise(settings, model._nothing_given(settings.duration_s), lambda step: None), expected
        )
        < PARITY
    )


def test_progress_and_cancelling(model: TextToAudio) -> None:
    seen: list[Step] = []
    model.generate(["a", "b"], duration_s=0.1, num_steps=2, on_step=seen.append)
    assert [(s.item, s.index) for s in seen] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert {(s.num_items, s.num_steps) for s in seen} == {(2, 2)}
    with pytest.raises(CancelledError, match="after step 2 of 9"):
        model.generate("a", duration_s=0.1, num_steps=9, on_step=lambda step: step.index < 1)


def test_a_long_prompt_is_cut_and_says_what_was_dropped(model: TextToAudio) -> None:
    words = [f"sound{number}" for number in range(200)]
    result = model.generate(" ".join(words), duration_s=0.1, num_steps=1, seed=1)
    (warning,) = result.warnings
    assert "longer than 100 tokens" in warning
    assert warning.endswith(f"{words[-1]}'")
    dropped = warning.split("dropped: ")[1].strip("'")
    kept = " ".join(words).removesuffix(dropped)
    assert len(model._conditioning.tokenizer.encode(kept).ids) <= 100
    assert not model.generate("short", duration_s=0.1, num_steps=1).warnings


def test_defaults_come_from_the_bundle_and_eta_fits_the_solver(model: TextToAudio) -> None:
    settings = model.settings("rain")
    defaults = model.config.defaults
    for name in ("duration_s", "num_steps", "guidance_scale", "guidance_rescale", "eta", "solver"):
        assert getattr(settings, name) == getattr(defaults, name)
    assert model.settings("rain", solver="dpmpp_2m").eta == 0
    assert model.settings("rain", solver="dpmpp_2m_sde").eta == 1
    assert model.settings("rain").seed != model.settings("rain").seed


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompt": " \t"}, "prompt is blank"),
        ({"duration_s": 0}, "more than 0 and at most 30 seconds, got 0"),
        ({"duration_s": 1e-9}, "shorter than one sample"),
        ({"duration_s": 30.001}, "got 30.001"),
        ({"duration_s": float("nan")}, "got nan"),
        ({"duration_s": "10"}, "got '10'"),
        ({"num_steps": 0}, "from 1 to 1000, got 0"),
        ({"num_steps": 1001}, "got 1001"),
        ({"num_steps": 2.0}, "got 2.0"),
        ({"guidance_scale": float("inf")}, "got inf"),
        ({"guidance_rescale": 1.1}, "from 0 to 1, got 1.1"),
        ({"eta": -0.1}, "got -0.1"),
        ({"solver": "euler"}, "expected one of ddim, dpmpp_2m, dpmpp_2m_sde"),
        ({"solver": "dpmpp_2m", "eta": 1.0}, "eta"),
        ({"noise": "white"}, "expected one of torch, philox"),
        ({"seed": 2**64}, "seed must be"),
        ({"seed": True}, "seed must be"),
    ],
)
def test_bad_settings_are_refused(model: TextToAudio, given: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        model.settings(**{"prompt": "rain", **given})


def test_bad_calls_are_refused(model: TextToAudio, debug_bundle: Path) -> None:
    with pytest.raises(InputError, match="no prompt"):
        model.generate([])
    with pytest.raises(InputError, match="2 prompts need as many seeds, got 3"):
        model.generate(["a", "b"], seed=[1, 2, 3])
    with pytest.raises(InputError, match="threads"):
        TextToAudio(debug_bundle, threads=0)
    with pytest.raises(InputError, match="unknown backend 'tpu'"):
        TextToAudio(debug_bundle, backend="tpu")


def test_memory_does_not_grow_with_steps(model: TextToAudio) -> None:
    def resident_mib() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

    model.generate("rain", duration_s=2.0, num_steps=30, eta=1.0)
    before = resident_mib()
    model.generate("rain", duration_s=2.0, num_steps=600, eta=1.0)
    assert resident_mib() - before < 8


def test_threads_rest_between_calls(model: TextToAudio) -> None:
    """ONNX Runtime's own would wait busily for the next run of their session, while another session runs."""
    model.generate("rain", duration_s=1.0, num_steps=2, seed=0)
    before = time.process_time()
    time.sleep(0.2)
    assert time.process_time() - before < 0.02  # 1e-4; otherwise 0.05


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_weights_of_text_stay_in_the_file(debug_bundle: Path, tmp_path: Path) -> None:
    """A product would copy them into an order of its own, as it does those of a step."""
    weight = np.random.default_rng(0).standard_normal((4096, 4096)).astype(np.float32)
    specs = {"x": TensorSpec("x", "float32", ("rows", 4096)), "y": TensorSpec("y", "float32", ("rows", 4096))}
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, spec.shape) for name, spec in specs.items()]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        values[:1],
        values[1:],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "g.onnx", save_as_external_data=True, location="g.weights")
    entry = GraphEntry("g.onnx", (specs["x"],), (specs["y"],))
    manifest = replace(
        read_manifest(debug_bundle, verify=False), graphs=dict.fromkeys(("text_encoder", "denoiser"), entry)
    )
    sessions = GraphSessions(tmp_path, manifest, 1, "onnxruntime")
    x = np.random.default_rng(1).standard_normal((3, 4096)).astype(np.float32)
    grown = {}
    for name in manifest.graphs:
        before = _own_mib()
        assert np.allclose(sessions.run(name, x=x)["y"], x @ weight, atol=1e-3)
        grown[name] = _own_mib() - before
    assert grown["text_encoder"] < 8 < 48 < grown["denoiser"]  # of 64 MiB, more than malloc keeps


def _own_mib() -> float:
    """Memory of this process that no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))


def test_generating_imports_neither_torch_nor_transformers(debug_bundle: Path, tmp_path: Path) -> None:
    script = f"""
import sys
from ezaudio.runtime import TextToAudio
TextToAudio({str(debug_bundle)!r}).generate("rain", duration_s=0.1, num_steps=1)
heavy = {{"torch", "transformers", "onnx", "scipy"}} & sys.modules.keys()
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)


def test_clips_of_one_shape_share_their_buffers(debug_bundle: Path) -> None:
    """As on a GPU, where they replay what the first one captured; captured graphs of other shapes would pile up."""
    model = TextToAudio(debug_bundle, threads=1)
    model._sessions._keeps_loop = True  # type: ignore[union-attr]
    given = {"num_steps": 3, "eta": 1.0}
    expected = [TextToAudio(debug_bundle, threads=1).generate(text, seed=3, duration_s=0.5, **given) for text in "ab"]
    loops = []
    for text, duration_s in (("a", 0.5), ("b", 0.5), ("a", 0.7), ("a", 0.5)):
        made = model.generate(text, seed=3, duration_s=duration_s, **given)
        loops.append(model._sessions._loop)
        if duration_s == 0.5:
            assert made.samples.tobytes() == expected["ab".index(text)].samples.tobytes()
    assert loops[0] is loops[1]
    assert len({id(loop) for loop in loops}) == 3


def test_memory_that_is_not_there_is_one_line(debug_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a mock of ONNX Runtime's refusal; what else a run raises is a defect."""
    model = TextToAudio(debug_bundle, threads=1)
    for said, expected in (("Failed to allocate memory for a buffer", BackendError), ("a defect", RuntimeError)):
        session = SimpleNamespace(run=Mock(side_effect=RuntimeError(said)))
        monkeypatch.setattr(model._sessions, "open", lambda name, session=session: session)
        with pytest.raises(expected, match=said) as raised:
            model.generate("rain", num_steps=1, duration_s=0.1)
        assert ("no memory to run graph" in str(raised.value)) == (expected is BackendError)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("Exception during initialization: std::bad_alloc", BackendError),
        ("Load model from {path} failed: Protobuf parsing failed.", BundleError),
    ],
)
def test_memory_that_is_not_there_to_open_a_graph_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, expected: type[Exception]
) -> None:
    """With a mock of ONNX Runtime's refusal, of a bundle in a folder with any name."""
    shutil.copytree(PACKAGED, folder := tmp_path / "allocated")
    model = TextToAudio(folder, threads=1)

    def refuse(path: str, *given: object, **named: object) -> None:
        raise RuntimeError(said.format(path=path))

    monkeypatch.setattr("onnxruntime.InferenceSession", refuse)
    with pytest.raises(expected) as raised:
        model.generate("rain", num_steps=1, duration_s=0.1)
    assert ("no memory to run graph" in str(raised.value)) == (expected is BackendError)
    assert ("ONNX Runtime cannot open" in str(raised.value)) == (expected is BundleError)
