"""Backend `torch` on a bundle: the clips of ONNX Runtime, and what is refused."""

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
from clip_cases import CASES, CONTROL, settings
from console import fails, runner
from torch_cases import gpu, no_gpu

from ezaudio.runtime import backends
from ezaudio.runtime.bundle_store import PACKAGED
from ezaudio.runtime.errors import BundleError, CancelledError, InputError, MissingExtraError
from ezaudio.runtime.manifest import read_manifest
from ezaudio.runtime.text_to_audio import TextToAudio
from ezaudio.runtime.torch_backend.bundle import load_graphs
from ezaudio.runtime.torch_backend.modules import num_bytes
from ezaudio.runtime.torch_backend.sessions import TorchSessions


@pytest.fixture(scope="module")
def expected(debug_bundle: Path) -> TextToAudio:
    return TextToAudio(debug_bundle, backend="onnxruntime", threads=1)


@pytest.fixture(scope="module")
def model(debug_bundle: Path) -> TextToAudio:
    return TextToAudio(debug_bundle, backend="torch", device="cpu")


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
    assert golden.relative_error(got, other) < 1e-2  # measured: 6e-3, 1.4e-3


def test_typed_bundles_are_read_too(typed_debug_bundle: Path, expected: TextToAudio) -> None:
    typed = TextToAudio(typed_debug_bundle, backend="torch", device="cpu")
    got, other = (one.generate("a dog barks", **settings()).samples for one in (typed, expected))
    assert 1e-6 < golden.relative_error(got, other) < 1e-2  # measured: 1.2e-3


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
