"""Backend `torch`: the clips of ONNX Runtime, on the CPU; its fused operators against the plain ones; and what only a
GPU can show."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import golden
import numpy as np
import pytest
import torch
from console import fails, runner

from ezaudio.config import DEBUG
from ezaudio.export.text_graph import relative_buckets
from ezaudio.runtime import backends
from ezaudio.runtime.bundle_store import PACKAGED
from ezaudio.runtime.errors import BundleError, CancelledError, InputError, MissingExtraError
from ezaudio.runtime.manifest import read_manifest
from ezaudio.runtime.solvers import solver_plan
from ezaudio.runtime.text_to_audio import TextToAudio
from ezaudio.runtime.torch_backend import recording
from ezaudio.runtime.torch_backend.bundle import load_graphs
from ezaudio.runtime.torch_backend.modules import compute_type, num_bytes
from ezaudio.runtime.torch_backend.random_graphs import random_graphs
from ezaudio.runtime.torch_backend.recording import Recording
from ezaudio.runtime.torch_backend.request import Request, Shape, StepKind
from ezaudio.runtime.torch_backend.sessions import TorchSessions

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
gpu = pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
no_gpu = pytest.mark.skipif(DEVICE != "cpu", reason="what it replaces is here")

CONTROL = np.sin(np.arange(24000, dtype=np.float32) / 20)
CASES: dict[str, dict[str, Any]] = {
    "guided": {},
    "negative": {"negative_prompt": "wind and a very loud engine"},
    "unguided": {"guidance_scale": 1.0},
    "noise": {"eta": 1.0},
    "philox": {"eta": 1.0, "noise": "philox"},
    "solver": {"solver": "dpmpp_2m_sde"},
    "interval and reuse": {"guidance_interval": (0.3, 1.0), "reuse": [1, 2]},
    "preset": {"preset": "fast", "num_steps": None},
    "controlled": {"control_audio": CONTROL, "control_scale": 0.8},
    "controlled, negative": {"control_audio": CONTROL, "negative_prompt": "wind"},
}


@pytest.fixture(scope="module")
def expected(debug_bundle: Path) -> TextToAudio:
    return TextToAudio(debug_bundle, backend="onnxruntime", threads=1)


@pytest.fixture(scope="module")
def model(debug_bundle: Path) -> TextToAudio:
    return TextToAudio(debug_bundle, backend="torch", device="cpu")


def settings(**given: Any) -> dict[str, Any]:
    return {"duration_s": 1.01, "num_steps": 4, "seed": 3, **given}


@pytest.mark.parametrize("case", CASES)
def test_a_clip_equals_onnx_runtimes(model: TextToAudio, expected: TextToAudio, case: str) -> None:
    steps: list[int] = []
    given = settings(**CASES[case])
    got = model.generate("a dog barks", **given, on_step=lambda step: steps.append(step.index))
    other = expected.generate("a dog barks", **given)
    assert got.settings == other.settings
    assert steps == list(range(got.settings[0].num_steps))
    assert golden.relative_error(got.samples, other.samples) < 1e-5  # measured: 1.1e-6


def test_an_edit_equals_onnx_runtimes(model: TextToAudio, expected: TextToAudio) -> None:
    given = {"start_s": 0.4, "end_s": 0.9, "seed": 1, "num_steps": 3, "context_s": 0.3}
    got, other = (one.edit(CONTROL, "a bell", **given).samples for one in (model, expected))
    assert golden.relative_error(got, other) < 1e-5  # measured: 8e-8


def test_a_long_clip_is_decoded_in_parts(model: TextToAudio, expected: TextToAudio) -> None:
    given = {"duration_s": 10.3, "num_steps": 1, "seed": 1, "guidance_scale": 1.0}
    got, other = (one.generate("rain", **given).samples for one in (model, expected))
    assert golden.relative_error(got, other) < 1e-5  # measured: 4e-7


def test_a_stream_equals_the_clip_decoded_at_once(model: TextToAudio) -> None:
    chunks: list[np.ndarray] = []
    whole = model.generate("rain", **settings()).samples
    model.generate("rain", **settings(), on_audio=lambda item, samples: chunks.append(samples))
    assert len(chunks) > 1
    assert golden.relative_error(np.concatenate(chunks)[None], whole) < 1e-5  # measured: 2e-7


def test_latents_and_their_decoding_equal_the_clip(model: TextToAudio) -> None:
    resolved = model.settings("rain", **settings())
    latents = model.latents(resolved)
    assert golden.relative_error(model.decode(latents)[:, :24240], model.generate("rain", **settings()).samples) < 1e-5


def test_a_callback_cancels(model: TextToAudio) -> None:
    with pytest.raises(CancelledError, match="cancelled after step 2 of 4"):
        model.generate("rain", **settings(), on_step=lambda step: step.index < 1)


def test_every_graph_runs_by_itself(model: TextToAudio, expected: TextToAudio) -> None:
    """What the measures of a bundle (teacher forcing, certificates) call."""
    sizes = {"batch": 1, "frames": 6, "tokens": 5, "steps": 2, "prompt_rows": 1, "constant_rows": 1, "rows": 2}
    generator = np.random.default_rng(0)
    for name in model.manifest.graphs:
        inputs: dict[str, Any] = {}
        for spec in model._sessions.specs(name)[0]:
            shape = spec.sizes(sizes)
            values = generator.standard_normal(shape) if spec.dtype == "float32" else np.ones(shape)
            inputs[spec.name] = np.asarray(values).astype(spec.dtype)
        got, other = (one._sessions.run(name, **inputs) for one in (model, expected))
        assert list(got) == list(other)
        for output, values in other.items():
            assert golden.relative_error(got[output], values) < 1e-5, (name, output)  # measured: 6e-7


@pytest.mark.parametrize("case", ["guided", "preset"])
def test_half_precision_stays_close(case: str) -> None:
    """The packaged model, whose weights are fp16: products in fp16 against ONNX Runtime's in fp32."""
    given = settings(**CASES[case])
    got, other = (
        TextToAudio(backend=name, verify=False).generate("rain", **given).samples for name in ("torch", "onnxruntime")
    )
    assert golden.relative_error(got, other) < 1e-2  # measured: 2e-3, 1.3e-3


def test_typed_bundles_are_read_too(typed_debug_bundle: Path, expected: TextToAudio) -> None:
    typed = TextToAudio(typed_debug_bundle, backend="torch", device="cpu")
    got, other = (one.generate("a dog barks", **settings()).samples for one in (typed, expected))
    assert 1e-6 < golden.relative_error(got, other) < 1e-2  # measured: 1.2e-3


# Requests -----------------------------------------------------------------------------------------------------------


def states(*lengths: int, seed: int = 0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.standard_normal((length, DEBUG.text.width), np.float32) for length in lengths]


def request(batch: int = 1, negative: int = 1, num_steps: int = 2, **given: Any) -> Request:
    """negative: tokens of the negative prompts, 0 without guidance."""
    plan = solver_plan("ddim", num_steps, 1.0, DEBUG.diffusion)
    steps = given.pop("steps", (StepKind(negative > 0, False),) * num_steps)
    return Request(
        text_states=given.pop("text_states", states(*range(5, 5 + batch))),
        negative_states=states(*[negative] * batch, seed=1) if negative else None,
        plan=plan,
        steps=steps,
        num_frames=5,
        seeds=list(range(batch)),
        scale=[3.0] * batch,
        rescale=[0.5] * batch,
        **given,
    )


def sessions(
    dtype: torch.dtype = torch.float32, fused: bool = False, device: str = "cpu", **given: Any
) -> TorchSessions:
    return TorchSessions(random_graphs(DEBUG, controlnet=True), DEBUG, device, dtype, fused=fused, **given)


def controlled(batch: int = 1) -> dict[str, Any]:
    return {"energy": np.random.default_rng(5).random((batch, 1, 10), np.float32), "control_scale": 0.7}


def edited(batch: int = 1) -> dict[str, Any]:
    mask = np.ones((batch, 5), np.bool_)
    mask[:, :2] = False
    return {"given": np.random.default_rng(6).standard_normal((batch, 8, 5), np.float32), "mask": mask}


SHALLOW = (StepKind(True, False), StepKind(True, True), StepKind(False, True))
REQUESTS: dict[str, dict[str, Any]] = {
    "unguided": {"negative": 0},
    "constant": {"noise": "philox"},
    "negative": {"negative": 3, **edited()},
    "reuse": {"num_steps": 3, "steps": SHALLOW},
    "controlled": {**controlled()},
    "controlled, negative": {"negative": 3, **controlled()},
}


@pytest.mark.parametrize("case", REQUESTS)
def test_fused_operators_give_the_plain_latents(case: str) -> None:
    made = [
        sessions(fused=fused, device=DEVICE).generate(request(decoded=False, **REQUESTS[case]))
        for fused in (False, True)
    ]
    assert made[1].samples is None
    assert golden.relative_error(made[1].latents, made[0].latents) < 1e-5  # measured: 2e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_fused_half_precision_strays_no_further_than_plain(dtype: torch.dtype) -> None:
    asked = request(batch=2, num_steps=2, noise="philox")
    exact = sessions().generate(asked)
    errors = []
    for fused in (False, True):
        made = sessions(dtype, fused).generate(asked)
        assert made.samples is not None
        assert exact.samples is not None
        errors.append(golden.relative_error(made.latents, exact.latents))
        assert golden.relative_error(made.samples, exact.samples) < 2e-2  # measured: fp16 8e-4, bf16 4e-3
    plain, fused_error = errors  # measured: fp16 1.2e-3 and 1.3e-3, bf16 1.4e-2 and 1.3e-2
    assert fused_error < 1.5 * plain


def test_an_item_does_not_depend_on_its_neighbours() -> None:
    """Bitwise in batches of one size. In others a library may choose another kernel, which sums in another order."""
    model = sessions()
    first, second, third = states(5, 9, 7)
    others = states(12, 3, seed=8)
    a, b = (
        model.generate(request(batch=3, text_states=text))
        for text in ([first, second, third], [others[0], second, others[1]])
    )
    assert a.samples is not None
    assert b.samples is not None
    assert a.samples[1].tobytes() == b.samples[1].tobytes()
    assert a.samples[0].tobytes() != b.samples[0].tobytes()
    alone = model.generate(replace(request(text_states=[second]), seeds=[1]))
    negative = request(batch=3).negative_states
    assert negative is not None
    alone = model.generate(replace(request(text_states=[second]), seeds=[1], negative_states=[negative[1]]))
    assert golden.relative_error(alone.latents[0], a.latents[1]) < 1e-5  # measured: 9e-7


def test_requests_of_one_shape_share_a_recording() -> None:
    model = sessions()
    asked = request()
    model.generate(asked)
    values = replace(asked, seeds=[9], scale=[1.5], rescale=[0.0], text_states=states(16), **edited())
    model.generate(values)
    model.generate(replace(asked, plan=solver_plan("dpmpp_2m_sde", 2, 1.0, DEBUG.diffusion)))
    assert len(model._functions) == 1
    model.generate(replace(asked, text_states=states(17)))
    model.generate(replace(asked, negative_states=states(2)))
    model.generate(replace(asked, decoded=False))
    assert len(model._functions) == 4
    for length in range(1, 10):
        model.generate(replace(asked, num_frames=length, decoded=False))
    assert len(model._functions) == 8
    model.release()
    assert not model._functions


def test_padding_of_prompts_changes_nothing() -> None:
    """Masked keys add exact zeros; products of more rows may sum in another order."""
    short, model = request(negative=3), sessions()
    padded = replace(short, text_states=[*short.text_states], negative_states=states(40, seed=1))
    shapes = [Shape.of(one, DEBUG.text.max_tokens, False) for one in (short, padded)]
    assert [shape.tokens for shape in shapes] == [16, 64]
    scale = replace(short, scale=[1.0], rescale=[0.0]), replace(padded, scale=[1.0], rescale=[0.0])  # negative: unused
    a, b = (model.generate(one).latents for one in scale)
    assert golden.relative_error(a, b) < 1e-5


def test_forms_of_the_denoiser_share_their_weights(debug_bundle: Path) -> None:
    manifest = read_manifest(debug_bundle)
    graphs = load_graphs(debug_bundle, manifest)
    together = num_bytes(TorchSessions(graphs, manifest.config, "cpu", torch.float16)._graphs)
    whole = num_bytes({"denoiser": graphs["denoiser"]})
    assert num_bytes({name: graphs[name] for name in graphs if name.startswith("denoiser")}) == whole
    apart = sum(num_bytes({name: graph}) for name, graph in graphs.items())
    assert together <= apart - 2 * whole + 0.2 * whole  # the shallow form has two thirds of the blocks
    projection = graphs["conditioner"].projections[0].weight  # type: ignore[union-attr, index]
    assert projection.data_ptr() == graphs["denoiser"].blocks["0"].cross_attn.proj.weight.data_ptr()  # type: ignore[union-attr]


def test_islands_are_in_fp32() -> None:
    for name in (
        "modulation.time_ada.weight",
        "denoiser.embedding.patch.weight",
        "denoiser_shallow.final_linear.weight",
        "denoiser.blocks.0.attn.norm_q.weight",
        "decoder.layers.6.weight",
        "decoder.layers.1.0.frequency",
        "text_encoder.position_bias",
    ):
        assert compute_type(name, torch.float16) == torch.float32, name
    for name in ("denoiser.blocks.0.attn.qkv.weight", "text_encoder.layers.0.wo.weight", "conditioner.keys.0.weight"):
        assert compute_type(name, torch.bfloat16) == torch.bfloat16
    assert compute_type("decoder.layers.1.1.weight", torch.float16) == torch.float16
    assert compute_type("decoder.layers.1.1.weight", torch.bfloat16) == torch.float32


def test_distances_fall_into_t5s_buckets() -> None:
    from transformers.models.t5.modeling_t5 import T5Attention

    distance = torch.arange(-99, 100)
    expected = T5Attention._relative_position_bucket(distance, bidirectional=True, num_buckets=32, max_distance=128)
    assert torch.equal(relative_buckets(100), expected)


# What is refused -----------------------------------------------------------------------------------------------------


def test_bundles_of_codes_are_refused() -> None:
    manifest = replace(read_manifest(PACKAGED, verify=False), precision="int8")
    with pytest.raises(InputError) as error:
        backends.choose_backend("torch", manifest)
    assert "it reads bundles in fp32, fp16 and bf16, this one is int8): ezaudio-export --model nano" in str(error.value)


@pytest.mark.parametrize("module", ["torch", "onnx"])
def test_a_missing_package_is_named_with_its_extra(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_found", lambda name: name != module)
    with pytest.raises(MissingExtraError, match=rf'{module} is not installed.*: pip install "ezaudio\[torch\]"$'):
        backends.choose_backend("torch", read_manifest(PACKAGED, verify=False))


@no_gpu
def test_without_a_gpu_it_runs_by_name_alone(caplog: pytest.LogCaptureFixture) -> None:
    manifest = read_manifest(PACKAGED, verify=False)
    assert backends.choose_backend("torch", manifest) == "torch"
    assert "slower than onnxruntime" in caplog.text
    assert backends.choose_backend("auto", manifest) == "onnxruntime"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"device": "cpu", "backend": "onnxruntime"}, "device 'cpu' goes with backend torch, this is onnxruntime"),
        ({"device": "gpu", "backend": "torch"}, "unknown device 'gpu': expected cpu, cuda or cuda:N"),
        ({"device": "cuda:99", "backend": "torch"}, "device 'cuda:99' is not there, PyTorch sees"),
    ],
)
def test_devices_are_checked(options: dict[str, str], text: str) -> None:
    with pytest.raises(InputError, match=text):
        TextToAudio(**options, verify=False)  # type: ignore[arg-type]


def test_the_command_takes_a_device(tmp_path: Path) -> None:
    run = runner("ezaudio-run")
    options = ("--duration", "0.2", "--steps", "1", "--seed", "1", "-o", tmp_path / "rain.wav", "--json")
    report = run("rain", "--backend", "torch", "--device", "cpu", *options)
    assert report.exit_code == 0, report.output
    assert json.loads(report.stdout)["audio_s"] == pytest.approx(0.2)
    fails(run("rain", "--backend", "onnxruntime", "--device", "cpu"), "device 'cpu' goes with backend torch")


def test_damaged_bundles_are_one_line(own_debug_bundle: Path) -> None:
    manifest = read_manifest(own_debug_bundle)
    graph = own_debug_bundle / "conditioner.onnx"
    graph.write_bytes(graph.read_bytes()[:-400])
    with pytest.raises(BundleError, match=r"conditioner\.onnx' cannot be read"):
        load_graphs(own_debug_bundle, manifest)
    wider = replace(manifest.config, dit=replace(manifest.config.dit, adaln_rank=3))
    with pytest.raises(BundleError, match=r"adaln\.0\.lora_a\.weight has shape \(12, 32\), expected \(18, 32\)"):
        load_graphs(
            own_debug_bundle, replace(manifest, config=wider, graphs={"modulation": manifest.graphs["modulation"]})
        )
    deeper = replace(manifest.config, dit=replace(manifest.config.dit, depth=4))
    with pytest.raises(BundleError, match=r"is missing, expected .*: export the bundle again"):
        load_graphs(
            own_debug_bundle, replace(manifest, config=deeper, graphs={"denoiser": manifest.graphs["denoiser"]})
        )
    (own_debug_bundle / "vae.weights").write_bytes(b"short")
    with pytest.raises(BundleError, match=r"lies outside of 'vae\.weights'"):
        load_graphs(own_debug_bundle, replace(manifest, graphs={"decoder": manifest.graphs["decoder"]}))


def test_no_other_backend_loads_pytorch() -> None:
    code = (
        "import sys; from ezaudio.runtime import TextToAudio; m = TextToAudio(backend='onnxruntime', verify=False);"
        "m.generate('rain', duration_s=0.1, num_steps=1, seed=0); print(sorted({'torch', 'onnx'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


def test_random_graphs_need_pytorch_alone() -> None:
    """A machine with a GPU may have nothing but PyTorch, Triton and NumPy."""
    code = """
import sys
for name in ("onnx", "onnx_ir", "onnxruntime", "transformers", "safetensors", "sentencepiece", "soundfile", "click"):
    sys.modules[name] = None
from ezaudio.runtime.torch_backend import bundle, random_graphs, sessions
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# Recordings ----------------------------------------------------------------------------------------------------------


@no_gpu
def test_a_recording_on_a_mocked_cuda_keeps_its_buffers_and_counts_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA is replaced: a replay runs the function again, on the buffers of the recording, a step at each query."""
    mock = MockedCuda()
    monkeypatch.setattr(recording.torch, "cuda", mock)
    monkeypatch.setattr(recording.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self.clone())
    addresses = set()

    def function(inputs: recording.Tensors, after_step: recording.OnStepDone) -> dict[str, torch.Tensor]:
        addresses.add(inputs["x"].data_ptr())
        total = inputs["x"]
        for step in range(3):
            total = total * 2
            after_step(step)
        return {"y": total}

    recorded = Recording(function, {"x": torch.ones(2)}, 3, torch.device("cpu"), None)
    assert mock.runs == ["warm-up", "captured"]
    for value in (3.0, 5.0):
        steps: list[int] = []
        mock.replayed = lambda: recorded._outputs.update(function(recorded._inputs, mock.tell(recorded)))
        outputs = recorded({"x": torch.full((2,), value)}, steps.append)
        assert outputs["y"].tolist() == [8 * value] * 2
        assert steps == [0, 1, 2]
    assert len(addresses) == 1

    def cancel(step: int) -> None:
        raise CancelledError("enough")

    mock.waited = False
    with pytest.raises(CancelledError):
        recorded({"x": torch.ones(2)}, cancel)
    assert mock.waited  # the device is idle before anything else uses the buffers


class MockedCuda:
    """What `Recording` calls of torch.cuda."""

    def __init__(self) -> None:
        self.runs: list[str] = []
        self.replayed: Any = None
        self.waited = False
        self.queries = 0

    def tell(self, recorded: Recording) -> Any:
        return recorded._mark

    def Stream(self, device: torch.device) -> MockedCuda:
        return self

    def current_stream(self, device: torch.device) -> MockedCuda:
        return self

    def wait_stream(self, stream: MockedCuda) -> None: ...

    def stream(self, stream: MockedCuda) -> MockedCuda:
        self.runs.append("warm-up")
        return self

    def graph(self, graph: MockedCuda, **options: Any) -> MockedCuda:
        self.runs.append("captured")
        return self

    def CUDAGraph(self) -> MockedCuda:
        return self

    def Event(self) -> MockedCuda:
        self.queries = 0
        return self

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...

    def record(self) -> None: ...

    def query(self) -> bool:
        self.queries += 1
        return self.queries > 2

    def synchronize(self) -> None:
        self.waited = True

    def replay(self) -> None:
        self.replayed()


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("case", REQUESTS)
def test_a_recording_gives_what_the_operators_give(case: str, dtype: torch.dtype) -> None:
    asked = request(**REQUESTS[case])
    eager, recorded = (sessions(dtype, True, "cuda", recorded=one).generate(asked) for one in (False, True))
    assert eager.samples is not None
    assert recorded.samples is not None
    assert recorded.samples.tobytes() == eager.samples.tobytes()
    reference = sessions().generate(asked)
    bound = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 1e-1}[dtype]
    assert golden.relative_error(recorded.latents, reference.latents) < bound


@gpu
@pytest.mark.gpu
def test_one_seed_gives_the_same_bytes_whatever_runs_between() -> None:
    model = sessions(torch.float16, True, "cuda")
    asked, other = request(noise="philox"), replace(request(noise="philox"), seeds=[7], text_states=states(9))
    first = model.generate(asked)
    assert first.samples is not None
    for _ in range(50):
        model.generate(other)
        again = model.generate(asked)
        assert again.samples is not None
        assert again.samples.tobytes() == first.samples.tobytes()
    assert len(model._functions) == 1


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES)
def test_on_a_gpu_a_clip_equals_the_cpus(debug_bundle: Path, expected: TextToAudio, case: str) -> None:
    here = TextToAudio(debug_bundle, backend="torch", device="cuda")
    for duration_s in (1.0, 1.0, 3.0, 1.0):  # recorded, replayed, recorded, replayed
        given = {**settings(**CASES[case]), "duration_s": duration_s}
        steps: list[int] = []
        got = here.generate("a dog barks", **given, on_step=lambda step: steps.append(step.index)).samples  # noqa: B023
        other = expected.generate("a dog barks", **given)
        assert steps == list(range(other.settings[0].num_steps))
        assert golden.relative_error(got, other.samples) < 1e-3


@gpu
@pytest.mark.gpu
def test_cancelled_on_a_gpu_the_next_clip_is_whole(debug_bundle: Path) -> None:
    here = TextToAudio(debug_bundle, backend="torch", device="cuda")
    here.warmup(**settings())
    whole = here.generate("rain", **settings()).samples
    with pytest.raises(CancelledError):
        here.generate("rain", **settings(), on_step=lambda step: False)
    assert here.generate("rain", **settings()).samples.tobytes() == whole.tobytes()


@gpu
@pytest.mark.gpu
def test_released_recordings_give_their_memory_back() -> None:
    model = sessions(torch.float16, True, "cuda")
    before = torch.cuda.memory_reserved()
    model.generate(replace(request(), num_frames=400))
    held = torch.cuda.memory_reserved()
    model.release()
    assert torch.cuda.memory_reserved() < held
    assert torch.cuda.memory_reserved() <= before + (32 << 20)  # workspaces of libraries stay
