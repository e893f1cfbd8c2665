"""Backend `openvino`: the clips of ONNX Runtime, bf16 where the processor has it, and what is refused."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import golden
import numpy as np
import pytest
from clip_cases import CASES, CONTROL, settings
from console import fails, runner
from typed import changed

from ezaudio.export.precision import apply
from ezaudio.runtime import backends, openvino_session
from ezaudio.runtime.bundle_store import PACKAGED
from ezaudio.runtime.errors import BundleError, CancelledError, InputError, MissingExtraError
from ezaudio.runtime.manifest import Manifest, read_manifest
from ezaudio.runtime.text_to_audio import TextToAudio

has_bf16 = pytest.mark.skipif(not openvino_session.computes_bf16(), reason="needs a processor with bf16")


@pytest.fixture(scope="module")
def expected(debug_bundle: Path) -> TextToAudio:
    return TextToAudio(debug_bundle, backend="onnxruntime", threads=1)


@pytest.fixture(scope="module")
def model(debug_bundle: Path) -> TextToAudio:
    return TextToAudio(debug_bundle, backend="openvino", threads=1)


@pytest.fixture(scope="module")
def bf16_bundle(debug_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The debug bundle with its weights as an export in bf16 stores them."""
    folder = tmp_path_factory.mktemp("openvino") / "bf16"
    changed(debug_bundle, folder, lambda model, name: apply(model, name, "bf16"))
    replace(read_manifest(folder), precision="bf16").write(folder)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_a_clip_equals_onnx_runtimes(model: TextToAudio, expected: TextToAudio, case: str) -> None:
    steps: list[int] = []
    given = settings(**CASES[case])
    got = model.generate("a dog barks", **given, on_step=lambda step: steps.append(step.index))
    other = expected.generate("a dog barks", **given)
    assert (model.backend, got.settings) == ("openvino", other.settings)
    assert steps == list(range(got.settings[0].num_steps))
    assert golden.relative_error(got.samples, other.samples) < 1e-5


def test_an_edit_equals_onnx_runtimes(model: TextToAudio, expected: TextToAudio) -> None:
    given = {"start_s": 0.4, "end_s": 0.9, "seed": 1, "num_steps": 3, "context_s": 0.3}
    got, other = (one.edit(CONTROL, "a bell", **given).samples for one in (model, expected))
    assert golden.relative_error(got, other) < 1e-5


def test_a_stream_equals_the_clip_decoded_at_once(model: TextToAudio) -> None:
    chunks: list[np.ndarray] = []
    whole = model.generate("rain", **settings()).samples
    model.generate("rain", **settings(), on_audio=lambda item, samples: chunks.append(samples))
    assert len(chunks) > 1
    assert golden.relative_error(np.concatenate(chunks)[None], whole) < 1e-5


def test_a_callback_cancels_and_the_next_clip_is_as_before(model: TextToAudio) -> None:
    before = model.generate("rain", **settings()).samples
    with pytest.raises(CancelledError, match="cancelled after step 2 of 4"):
        model.generate("rain", **settings(), on_step=lambda step: step.index < 1)
    assert model.generate("rain", **settings()).samples.tobytes() == before.tobytes()


def test_low_memory_closes_what_is_done_and_makes_the_same_clip(debug_bundle: Path, model: TextToAudio) -> None:
    low = TextToAudio(debug_bundle, backend="openvino", threads=1, low_memory=True)
    made = low.generate("rain", **settings())
    assert golden.relative_error(made.samples, model.generate("rain", **settings()).samples) < 1e-6
    assert not low._sessions._requests  # type: ignore[attr-defined]
    assert "decoder" in model._sessions._requests  # type: ignore[attr-defined]


@has_bf16
def test_a_bf16_bundle_is_decoded_in_bf16(bf16_bundle: Path) -> None:
    """Latents are ONNX Runtime's to rounding in fp32, samples to rounding in bf16, which ONNX Runtime does not do."""
    got, other = (TextToAudio(bf16_bundle, backend=name, threads=1) for name in ("openvino", "onnxruntime"))
    given = settings(duration_s=10.0, num_steps=2)
    latents = [one.latents(one.settings("a dog barks", **given)) for one in (got, other)]
    assert golden.relative_error(*latents) < 1e-5
    assert 1e-4 < golden.relative_error(got.decode(latents[1]), other.decode(latents[1])) < 5e-2


def test_a_bf16_bundle_is_refused_where_the_processor_has_none(
    bf16_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_session, "computes_bf16", lambda: False)
    with pytest.raises(InputError, match=r"no bf16 of its own.*--precision int8$"):
        TextToAudio(bf16_bundle, backend="openvino")


@pytest.mark.parametrize(("precision", "target"), [("int8", "cpu"), ("fp16", "tensorrt")])
def test_graphs_of_other_operators_are_refused(precision: str, target: str) -> None:
    manifest: Manifest = replace(read_manifest(PACKAGED, verify=False), precision=precision, target=target)
    with pytest.raises(InputError, match=rf"this one is {precision} for .*--target cpu --precision bf16$"):
        backends.choose_backend("openvino", manifest)


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match=r'openvino is not installed.*pip install "ezaudio\[openvino\]"$'):
        TextToAudio(backend="openvino")


def test_a_graph_that_it_cannot_read_is_named(debug_bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(debug_bundle, tmp_path / "broken"))
    graph = folder / "text_encoder.onnx"
    graph.write_bytes(graph.read_bytes().replace(b"Gather", b"Gathxx"))
    model = TextToAudio(folder, backend="openvino", verify=False)
    with pytest.raises(BundleError, match=r"OpenVINO cannot open '.*text_encoder\.onnx': .") as error:
        model.generate("rain", **settings())
    assert "\n" not in str(error.value)


def test_the_command_takes_it_by_name(debug_bundle: Path, tmp_path: Path) -> None:
    run = runner("ezaudio-run")
    given = ("rain", "--steps", "2", "--duration", "0.5", "--seed", "1", "--backend", "openvino")
    result = run(*given, "--bundle", str(debug_bundle), "-o", str(tmp_path / "rain.wav"))
    assert result.exit_code == 0, result.output
    assert (tmp_path / "rain.wav").stat().st_size > 20_000
    fails(run(*given, "--device", "cuda"), "goes with backend torch")
