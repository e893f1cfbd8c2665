"""C++ against Python: the same samples, files and errors, bit for bit and word for word."""

from __future__ import annotations

import os
import resource
import subprocess
from pathlib import Path

import numpy as np
import pytest
from binding import BUNDLE_ERROR, CANCELLED, INPUT_ERROR, LOW_MEMORY, CPipeline, Options, Refusal
from prompts import PROMPTS

from ezaudio import __version__
from ezaudio.runtime import EzAudioError, TextToAudio
from ezaudio.runtime.audio_file import write_audio
from ezaudio.runtime.bundle_store import PACKAGED
from ezaudio.runtime.solvers import SOLVERS

RATE = 24000
PRESETS = ("fast", "balanced", "best")
# Steps, guidance, negative prompt, eta where the solver takes one, noise.
WAYS = {
    "quick": {"num_steps": 2, "guidance_scale": 1.0},
    "usual": {"num_steps": 4, "guidance_scale": 3.0, "guidance_rescale": 0.5},
    "negative": {"num_steps": 3, "guidance_scale": 5.0, "guidance_rescale": 0.75, "negative_prompt": "music and hum"},
    "philox": {"num_steps": 3, "guidance_scale": 2.5, "noise": "philox"},
    "interval": {"num_steps": 4, "guidance_scale": 3.0, "guidance_interval": (0.3, 0.8)},
    "spaced": {"num_steps": 5, "spacing": 1.7},
}
REUSING = {
    "guided": {"reuse": [1, 3]},
    "negative": {"reuse": [1, 2, 4], "negative_prompt": "music and hum"},
    "unguided": {"reuse": [2, 4], "guidance_scale": 1.0},
    "guided, then not": {"reuse": [2, 3, 4], "guidance_interval": (0.5, 1.0)},
    "guided, then not, negative": {"reuse": [3], "guidance_interval": (0.5, 1.0), "negative_prompt": "music and hum"},
    "not, then guided": {"reuse": [1, 4], "guidance_interval": (0.0, 0.7)},
}


def tone(duration_s: float) -> np.ndarray:
    time = np.arange(round(duration_s * RATE)) / RATE
    return (0.3 * (1 + np.sin(7 * time)) * np.sin(2000 * time)).astype(np.float32)


def written_by_python(path: Path, model: TextToAudio, generation, bit_depth: int = 16) -> bytes:
    """The file as ezaudio-run makes it."""
    (settings,) = generation.settings
    maker = {"ezaudio": __version__, "model": model.model, "precision": model.precision, "bundle_id": model.bundle_id}
    metadata = {**maker, **settings.to_dict(), "bit_depth": bit_depth}
    write_audio(path, generation.samples[0], generation.sample_rate, metadata, bit_depth)
    return path.read_bytes()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_files_are_the_same_bytes(cpp: CPipeline, model: TextToAudio, solver: str, way: str, tmp_path: Path) -> None:
    for index, prompt in enumerate(PROMPTS):
        given = {"duration_s": 0.2 + 0.05 * index, "seed": 2**40 * index + 7, "solver": solver, **WAYS[way]}
        if SOLVERS[solver].stochastic:
            given["eta"] = (0.0, 0.3, 1.0)[index % 3]
        cpp.generate(prompt, tmp_path / "cpp.wav", **given)
        expected = written_by_python(tmp_path / "python.wav", model, model.generate(prompt, **given))
        assert (tmp_path / "cpp.wav").read_bytes() == expected, prompt


def test_a_clip_that_is_decoded_in_parts_is_the_same_bytes(cpp: CPipeline, model: TextToAudio, tmp_path: Path) -> None:
    given = {"num_steps": 1, "duration_s": 23.17, "seed": 5}
    cpp.generate("rain", tmp_path / "cpp.wav", **given)
    expected = written_by_python(tmp_path / "python.wav", model, model.generate("rain", **given))
    assert (tmp_path / "cpp.wav").read_bytes() == expected


@pytest.mark.parametrize("given", [{}, {"num_steps": 7, "guidance_scale": 2.0, "negative_prompt": "hum"}], ids=str)
@pytest.mark.parametrize("preset", PRESETS)
def test_files_of_presets_are_the_same_bytes(
    cpp: CPipeline, model: TextToAudio, preset: str, given: dict, tmp_path: Path
) -> None:
    for index, prompt in enumerate(PROMPTS[:6]):
        settings = {"preset": preset, "duration_s": 0.3 + 0.1 * index, "seed": index, **given}
        cpp.generate(prompt, tmp_path / "cpp.wav", **settings)
        generation = model.generate(prompt, **settings)
        assert (tmp_path / "cpp.wav").read_bytes() == written_by_python(tmp_path / "python.wav", model, generation)
        assert generation.settings[0].solver == model.presets[preset].solver


@pytest.mark.parametrize("low_memory", [False, True])
@pytest.mark.parametrize("way", REUSING)
def test_files_of_reused_blocks_are_the_same_bytes(
    library, bundle: Path, way: str, low_memory: bool, tmp_path: Path
) -> None:
    """Whether the graphs are closed between stages, too; then one prompt, since opening them takes most of the time."""
    pipeline = CPipeline(library, bundle, flags=LOW_MEMORY if low_memory else 0)
    model = TextToAudio(bundle, threads=1, low_memory=low_memory)
    for index, prompt in enumerate(PROMPTS[: 1 if low_memory else 6]):
        given = {"duration_s": 0.3 + 0.1 * index, "seed": index, "num_steps": 5, **REUSING[way]}
        pipeline.generate(prompt, tmp_path / "cpp.wav", **given)
        expected = written_by_python(tmp_path / "python.wav", model, model.generate(prompt, **given))
        assert (tmp_path / "cpp.wav").read_bytes() == expected, prompt
    region = {"start_s": 0.2, "end_s": 0.7, "context_s": 0.2, "seed": 1, "num_steps": 5, **REUSING[way]}
    pipeline.generate("rain", tmp_path / "cpp.wav", edit_audio=tone(1.0), **region)
    generation = model.edit(tone(1.0), "rain", **region)
    assert (tmp_path / "cpp.wav").read_bytes() == written_by_python(tmp_path / "python.wav", model, generation)
    pipeline.close()


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("bit_depth", [16, 24, 32])
def test_edited_files_are_the_same_bytes(
    cpp: CPipeline, model: TextToAudio, solver: str, bit_depth: int, tmp_path: Path
) -> None:
    clip = tone(1.3)
    for index, prompt in enumerate(PROMPTS):
        region = {"start_s": 0.05 * index, "end_s": 0.05 * index + 0.511, "context_s": (0.0, 0.2, 2.0)[index % 3]}
        given = {"seed": index, "num_steps": 2, "solver": solver, "guidance_scale": 3.5}
        cpp.generate(prompt, tmp_path / "cpp.wav", bit_depth, edit_audio=clip, **region, **given)
        generation = model.edit(clip, prompt, **region, **given)
        expected = written_by_python(tmp_path / "python.wav", model, generation, bit_depth)
        assert (tmp_path / "cpp.wav").read_bytes() == expected, prompt


@pytest.mark.parametrize("way", [*WAYS, "preset"])
def test_controlled_files_are_the_same_bytes(cpp: CPipeline, model: TextToAudio, way: str, tmp_path: Path) -> None:
    for index, prompt in enumerate(PROMPTS):
        control = {"control_audio": tone(0.1 + 0.1 * index), "control_scale": 0.25 * index}
        given = {"duration_s": 0.5, "seed": index, **control, **WAYS.get(way, {"preset": "fast"})}
        cpp.generate(prompt, tmp_path / "cpp.wav", **given)
        expected = written_by_python(tmp_path / "python.wav", model, model.generate(prompt, **given))
        assert (tmp_path / "cpp.wav").read_bytes() == expected, prompt


def test_streamed_samples_are_the_same(cpp: CPipeline, model: TextToAudio) -> None:
    given = {"duration_s": 3.1, "seed": 3, "num_steps": 2}
    ours: list[np.ndarray] = []
    theirs: list[np.ndarray] = []
    cpp.generate("rain", on_audio=lambda chunk: ours.append(chunk) is None, **given)
    model.generate("rain", on_audio=lambda _item, chunk: theirs.append(chunk), **given)
    assert [chunk.tobytes() for chunk in ours] == [chunk.tobytes() for chunk in theirs]
    assert len(ours) > 3


def test_the_packaged_model_makes_the_same_file(library, tmp_path: Path) -> None:
    """Real weights in half precision, at the bundle's own settings and its presets, and with every core."""
    pipeline, model = CPipeline(library, PACKAGED, threads=0), TextToAudio()
    for seed, prompt in enumerate(["dog barking", "a siren"]):
        pipeline.generate(prompt, tmp_path / "cpp.wav", seed=seed, duration_s=2.0)
        expected = written_by_python(tmp_path / "python.wav", model, model.generate(prompt, seed=seed, duration_s=2.0))
        assert (tmp_path / "cpp.wav").read_bytes() == expected
    for preset in PRESETS:
        given = {"preset": preset, "seed": 1, "duration_s": 2.0}
        pipeline.generate("dog barking", tmp_path / "cpp.wav", **given)
        expected = written_by_python(tmp_path / "python.wav", model, model.generate("dog barking", **given))
        assert (tmp_path / "cpp.wav").read_bytes() == expected, preset
    pipeline.close()


def test_the_example_makes_the_file_of_the_command(build: Path, tmp_path: Path) -> None:
    common = ["--seed", "7", "--duration", "1.5"]
    example = [str(build / "text_to_audio"), str(PACKAGED), "dog barking", str(tmp_path / "cpp.wav"), *common]
    subprocess.run(example, check=True, capture_output=True)
    command = ["ezaudio-run", "dog barking", "-o", str(tmp_path / "python.wav"), *common]
    subprocess.run(command, check=True, capture_output=True)
    assert (tmp_path / "cpp.wav").read_bytes() == (tmp_path / "python.wav").read_bytes()


def test_the_example_takes_a_preset(build: Path, tmp_path: Path) -> None:
    command = [str(build / "text_to_audio"), str(PACKAGED), "dog barking", str(tmp_path / "cpp.wav")]
    subprocess.run([*command, "--preset", "fast", "--seed", "7", "--duration", "1"], check=True, capture_output=True)
    model = TextToAudio()
    generation = model.generate("dog barking", preset="fast", seed=7, duration_s=1.0)
    assert (tmp_path / "cpp.wav").read_bytes() == written_by_python(tmp_path / "python.wav", model, generation)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "rain", "x.wav"], "Error: no bundle at 'nowhere': there is no such folder"),
        ([PACKAGED, "rain", "x.wav", "--seed", "x"], "Error: 'x' is no such number"),
        ([PACKAGED, "rain", "x.wav", "--steps"], "Error: --steps needs a value"),
        ([PACKAGED, "rain", "x.wav", "--preset", "x"], "Error: unknown preset 'x': expected one of fast, balanced,"),
        ([PACKAGED, "rain", "no/x.wav", "--steps", "1", "--duration", "0.1"], "Error: 'no/x.wav' cannot be written"),
        ([PACKAGED, "rain", "x.wav", "--edit", "none.wav", "0", "1"], "Error: 'none.wav' cannot be read"),
        ([PACKAGED, "rain"], "usage: text_to_audio BUNDLE PROMPT FILE.wav"),
    ],
)
def test_the_example_says_what_is_wrong(build: Path, tmp_path: Path, arguments: list, message: str) -> None:
    command = [str(build / "text_to_audio"), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 2
    assert message in result.stderr
    assert not (tmp_path / "x.wav").exists()


def test_sound_starts_before_the_clip_is_decoded(build: Path) -> None:
    command = [str(build / "realtime"), str(PACKAGED), "a siren", "--null"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    first, decoded = (float(line.split(" after ")[1].split()[0]) for line in lines[:2])
    assert first < decoded
    assert lines[2] == "played 10 s, waited 0 s inside clips"


@pytest.mark.parametrize(
    ("prompt", "given"),
    [
        (" ", {}),
        ("rain", {"duration_s": 0.0}),
        ("rain", {"duration_s": 31.5}),
        ("rain", {"num_steps": -1}),
        ("rain", {"num_steps": 1001}),
        ("rain", {"guidance_scale": -0.5}),
        ("rain", {"guidance_scale": 1e300}),
        ("rain", {"guidance_rescale": 1.25}),
        ("rain", {"eta": 2.0}),
        ("rain", {"solver": "euler"}),
        ("rain", {"solver": "dpmpp_2m", "eta": 1.0}),
        ("rain", {"noise": "white"}),
        ("rain", {"preset": "quick"}),
        ("rain", {"preset": "fast", "solver": "euler"}),
        ("rain", {"preset": "best", "eta": 0.5}),
        ("rain", {"spacing": 0.5}),
        ("rain", {"spacing": 4.5}),
        ("rain", {"guidance_interval": (-0.25, 1.0)}),
        ("rain", {"guidance_interval": (0.0, 1e300)}),
        ("rain", {"guidance_interval": (0.7, 0.6)}),
        ("rain", {"num_steps": 4, "reuse": [0]}),
        ("rain", {"num_steps": 4, "reuse": [1, 4]}),
        ("rain", {"num_steps": 4, "reuse": [2, 1]}),
        ("rain", {"num_steps": 4, "reuse": [1, 1]}),
        ("rain", {"num_steps": 4, "reuse": [2], "guidance_interval": (0.0, 0.5)}),
        ("rain", {"num_steps": 4, "reuse": [2], "control_audio": tone(0.1)}),
        (" ", {"guidance_interval": (0.7, 0.6), "num_steps": 0, "reuse": [0]}),
        ("rain", {"duration_s": 0.01, "control_audio": tone(0.1)}),
        ("rain", {"control_audio": tone(0.1), "control_scale": -1.0}),
        ("x" * 10_001, {}),
    ],
)
def test_errors_have_the_same_words(cpp: CPipeline, model: TextToAudio, prompt: str, given: dict) -> None:
    with pytest.raises(EzAudioError) as python:
        model.generate(prompt, seed=1, **given)
    with pytest.raises(Refusal) as refusal:
        cpp.generate(prompt, seed=1, **given)
    assert str(refusal.value) == str(python.value)
    assert refusal.value.status == INPUT_ERROR


@pytest.mark.parametrize(("start_s", "end_s", "context_s"), [(2, 1, 1), (-1, 1, 1), (0, 1, 31), (0, 33, 1)])
def test_errors_of_edits_have_the_same_words(
    cpp: CPipeline, model: TextToAudio, start_s: float, end_s: float, context_s: float
) -> None:
    region = {"start_s": float(start_s), "end_s": float(end_s), "context_s": float(context_s)}
    with pytest.raises(EzAudioError) as python:
        model.edit(tone(1.0), "rain", **region)
    with pytest.raises(Refusal) as refusal:
        cpp.generate("rain", edit_audio=tone(1.0), **region)
    assert str(refusal.value) == str(python.value)


def test_errors_of_bundles_have_the_same_words(library, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "manifest.json").write_text('{"format": "other"}')
    for folder in (tmp_path / "none", tmp_path / "empty", tmp_path / "other"):
        with pytest.raises(EzAudioError) as python:
            TextToAudio(folder)
        with pytest.raises(Refusal) as refusal:
            CPipeline(library, folder)
        assert str(refusal.value) == str(python.value)
        assert refusal.value.status == BUNDLE_ERROR


def test_a_long_prompt_warns_in_the_same_words(cpp: CPipeline, model: TextToAudio) -> None:
    prompt = " ".join(f"sound{number}" for number in range(200))
    given = {"duration_s": 0.1, "num_steps": 1, "seed": 1}
    cpp.generate(prompt, **given)
    assert tuple(cpp.warnings) == model.generate(prompt, **given).warnings


def test_callbacks_through_ctypes(cpp: CPipeline) -> None:
    seen: list[tuple[int, int]] = []
    cpp.generate("rain", duration_s=0.1, num_steps=3, on_step=lambda *step: seen.append(step) is None)
    assert seen == [(0, 3), (1, 3), (2, 3)]
    with pytest.raises(Refusal, match="cancelled after step 1 of 3") as refusal:
        cpp.generate("rain", duration_s=0.1, num_steps=3, on_step=lambda *step: False)
    assert refusal.value.status == CANCELLED


def test_random_seeds_differ_and_are_told(cpp: CPipeline) -> None:
    given = {"duration_s": 0.1, "num_steps": 1}
    first, seed = cpp.generate("rain", **given), cpp.seed
    assert not np.array_equal(cpp.generate("rain", **given), first)
    assert np.array_equal(cpp.generate("rain", seed=seed, **given), first)


def test_the_versions_are_the_same(library) -> None:
    assert library.ezaudio_version().decode() == __version__


def test_the_struct_is_the_headers(library) -> None:
    import ctypes

    options = Options()
    library.ezaudio_options_init(ctypes.byref(options))
    assert options.size == ctypes.sizeof(Options)
    assert np.isnan([options.duration_s, options.guidance_low, options.guidance_high]).all()
    assert (options.control_scale, options.context_s) == (1.0, 2.0)


@pytest.mark.parametrize("room_mib", [12, 60], ids=["to open a graph", "to run it"])
def test_memory_that_is_not_there_is_one_line(library, room_mib: int) -> None:
    pipeline = CPipeline(library, PACKAGED, flags=LOW_MEMORY)  # without an arena, which may hold enough already
    pipeline.generate("rain", num_steps=1, duration_s=0.1)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + (room_mib << 20), hard))
    try:
        with pytest.raises(Refusal) as refused:
            pipeline.generate("rain", num_steps=1, duration_s=30.0)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    pipeline.close()
    line = str(refused.value)
    assert line.startswith("there is no memory to run graph ")
    assert line.endswith("): make a shorter clip, close other programs, or set low_memory")
    assert "\n" not in line


def resident_kib() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


def test_memory_is_constant_over_two_hundred_generations(cpp: CPipeline) -> None:
    """Text, edits and control in turn, with prompts that push each other out of the cache."""
    clip = tone(0.5)

    def generate(number: int) -> None:
        common = {"num_steps": 2, "seed": number}
        cpp.generate(f"sound {number % 40}", duration_s=0.5, **common)
        cpp.generate(f"sound {number % 40}", duration_s=0.5, control_audio=clip, **common)
        cpp.generate(f"sound {number % 40}", duration_s=0.5, **common, reuse=[1])
        cpp.generate("edit", edit_audio=clip, start_s=0.1, end_s=0.4, **common)

    for number in range(60):
        generate(number)
    before = resident_kib()
    for number in range(200):
        generate(number)
    assert resident_kib() - before < 1024
