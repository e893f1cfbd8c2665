"""`ezaudio-run` through its entry point: what it writes, what it says, and what it refuses."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, fields
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner, Result

from ezaudio import __version__
from ezaudio.runtime.audio_file import read_settings, write_audio
from ezaudio.runtime.errors import BundleError, InputError

RATE = 24000
SCRIPT = Path(sys.executable).with_name("ezaudio-run")


@dataclass(frozen=True)
class FakeSettings:
    prompt: str
    negative_prompt: str = ""
    duration_s: float = 10.0
    num_steps: int = 4
    guidance_scale: float = 3.0
    guidance_rescale: float = 0.5
    eta: float = 0.0
    seed: int = 0
    solver: str = "ddim"
    noise: str = "torch"

    def to_dict(self):
        return asdict(self)


class FakeTextToAudio:
    """Stand-in for the runtime: noise that depends on every setting and on the bundle, and the same checks."""

    sample_rate, max_duration_s = RATE, 30.0
    on_each_step = staticmethod(lambda: None)
    gain = 0.1
    made: list = []  # noqa: RUF012

    def __init__(self, bundle=None, *, threads=None, verify=True):
        self.model, self.precision = bundle.name.split("-")
        self.bundle_id = f"id of {bundle.name}"

    def settings(self, **given):
        settings = FakeSettings(**given)
        if not 0 < settings.duration_s <= self.max_duration_s:
            raise InputError(f"duration_s must be above 0 and at most 30, got {settings.duration_s}")
        if settings.num_steps < 1:
            raise InputError(f"num_steps must be at least 1, got {settings.num_steps}")
        if not math.isfinite(settings.guidance_scale):
            raise InputError(f"guidance_scale must be finite, got {settings.guidance_scale}")
        if not 0 <= settings.seed < 2**64:
            raise InputError(f"seed must be 0 to 2**64 - 1, got {settings.seed}")
        return settings

    def generate(self, prompts, *, on_step=None, **given):
        (prompt,) = prompts
        settings = self.settings(prompt=prompt, **given)
        self.made.append(settings)
        for index in range(settings.num_steps):
            self.on_each_step()
            on_step(SimpleNamespace(item=0, num_items=1, index=index, num_steps=settings.num_steps))
        words = prompt.split()
        warnings = (f"prompt cut to 100 tokens, dropped: {' '.join(words[100:])!r}",) if len(words) > 100 else ()
        entropy = list(repr((settings, self.bundle_id)).encode())
        samples = np.random.default_rng(entropy).normal(0, self.gain, (1, round(settings.duration_s * RATE)))
        return SimpleNamespace(
            samples=samples.astype(np.float32), sample_rate=RATE, settings=(settings,), warnings=warnings
        )


def fake_find_bundle(name, precision):
    if name not in (None, "nano", "l"):
        raise BundleError(f"'{name}' is no bundle: expected a folder with manifest.json; make one by ezaudio-export")
    return Path(f"{name or 'nano'}-{precision or 'fp32'}")


@pytest.fixture
def model(monkeypatch):
    """The model behind the command, replaced by its stand-in."""
    for name, members in {
        "text_to_audio": {"TextToAudio": FakeTextToAudio},
        "bundle_store": {"find_bundle": fake_find_bundle},
    }.items():
        module = ModuleType(f"ezaudio.runtime.{name}")
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(FakeTextToAudio, "made", [])
    return FakeTextToAudio


@pytest.fixture
def run(model, tmp_path, monkeypatch):
    """Runs `ezaudio-run ARGUMENTS…` in an empty folder."""
    monkeypatch.chdir(tmp_path)
    (script,) = entry_points(group="console_scripts", name="ezaudio-run")
    command = script.load()

    def run(*arguments: str, stdin: str | bytes | None = None) -> Result:
        result = CliRunner().invoke(command, [str(a) for a in arguments], input=stdin, prog_name="ezaudio-run")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


def fails(result: Result, *parts: str) -> None:
    """Exit code 2, one line on stderr with all `parts`, nothing on stdout."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    for part in parts:
        assert part in result.stderr


def files() -> list[str]:
    return sorted(os.listdir())


def test_one_prompt(run):
    result = run("A dog barks!", "--duration", "2", "--seed", "7")
    assert result.exit_code == 0
    assert result.stderr == ""
    assert result.stdout.startswith("a_dog_barks.wav: 2.00 s of audio in 0.")
    assert "(real-time factor 0." in result.stdout
    assert result.stdout.endswith(", seed 7)\n")
    assert files() == ["a_dog_barks.wav"]
    assert soundfile.info("a_dog_barks.wav").frames == 2 * RATE
    assert read_settings("a_dog_barks.wav") == {
        "ezaudio": __version__,
        "model": "nano",
        "precision": "fp32",
        "bundle_id": "id of nano-fp32",
        **FakeSettings("A dog barks!", duration_s=2.0, seed=7).to_dict(),
        "bit_depth": 16,
    }


def test_every_setting_reaches_the_model(run, model):
    settings = FakeSettings("rain", "music", 1.5, 3, 2.5, 0.25, 0.5, 2**63, "dpmpp_2m_sde", "philox")
    values = settings.to_dict()
    short = {"num_steps": "steps", "guidance_scale": "guidance", "guidance_rescale": "rescale"}
    for names in ({}, {**short, "duration_s": "duration", "negative_prompt": "negative"}):
        options = [f"--{names.get(k, k).replace('_', '-')}={v}" for k, v in values.items() if k != "prompt"]
        assert run("rain", *options).exit_code == 0
        assert model.made[-1] == settings


@pytest.mark.parametrize(
    ("name", "options", "subtype"),
    [
        ("a.wav", [], "PCM_16"),
        ("a.WAV", ["--bit-depth", "24"], "PCM_24"),
        ("a.wav", ["--bit-depth", "32"], "FLOAT"),
        ("a.flac", ["--format", "flac"], "PCM_16"),
        ("a.flac", ["--bit-depth", "24"], "PCM_24"),
        ("a.ogg", [], "VORBIS"),
        ("a.mp3", [], "MPEG_LAYER_III"),
    ],
)
def test_from_repeats_a_file_to_the_byte(run, model, name, options, subtype):
    arguments = ["--negative", "müsic", "--duration", "0.5", "--solver", "dpmpp_2m", "-o", name, *options]
    assert run("犬が吠える \x07", *arguments).exit_code == 0
    assert soundfile.info(name).subtype == subtype
    assert run("--from", name, "-o", f"again{Path(name).suffix}").exit_code == 0
    assert run("--from", name).exit_code == 0
    assert model.made[0] == model.made[1] == model.made[2]
    derived = f"犬が吠える{Path(name).suffix.lower()}"
    assert files() == sorted([name, f"again{Path(name).suffix}", derived])
    assert Path(name).read_bytes() == Path(derived).read_bytes() == Path(f"again{Path(name).suffix}").read_bytes()


def test_from_with_changes(run, model):
    assert run("rain", "--seed", "3", "--duration", "0.1", "-o", "a.wav", "--bit-depth", "24").exit_code == 0
    assert run("--from", "a.wav", "--steps", "2", "--variations", "2", "--format", "ogg").exit_code == 0
    assert [(s.seed, s.num_steps, s.duration_s) for s in model.made[1:]] == [(3, 2, 0.1), (4, 2, 0.1)]
    assert files() == ["a.wav", "rain-2.ogg", "rain.ogg"]
    assert "bit_depth" not in read_settings("rain.ogg")


def test_from_finds_the_bundle_or_says_which(run):
    assert run("rain", "--duration", "0.1", "--bundle", "l", "--precision", "fp16", "-o", "l.wav").exit_code == 0
    assert run("--from", "l.wav", "-o", "again.wav").exit_code == 0
    assert Path("l.wav").read_bytes() == Path("again.wav").read_bytes()

    write_audio("other.wav", np.zeros(9), RATE, {**read_settings("l.wav"), "model": "nano", "bundle_id": "older"})
    parts = ["'other.wav' was made with model 'nano' in fp16 (bundle older)", "id of nano-fp32", "--bundle DIR"]
    fails(run("--from", "other.wav"), *parts)
    result = run("--from", "other.wav", "--bundle", "nano")
    assert result.exit_code == 0
    assert "Warning: 'other.wav' was made with" in result.stderr


def test_from_refuses_what_it_cannot_repeat(run):
    fails(run("--from", "none.wav"), "'none.wav' cannot be read (No such file")
    fails(run("--from", "none.wav", "rain"), "leave out PROMPT")
    write_audio("plain.wav", np.zeros(9), RATE, {})
    fails(run("--from", "plain.wav"), "carries no ezaudio settings")
    good = {"ezaudio": "1", "model": "nano", "precision": "fp32", "bundle_id": "id of nano-fp32"}
    good |= FakeSettings("rain").to_dict()
    for change, part in [
        ({"seed": "7"}, 'has seed = "7"'),
        ({"seed": True}, "has seed = true"),
        ({"num_steps": 2.5}, "has num_steps = 2.5"),
        ({"prompt": None}, "has prompt = null"),
        ({"bundle_id": 5}, "has bundle_id = 5"),
        ({"prompt": " "}, "the prompt is blank"),
        ({"prompt": "\ud800"}, "not valid UTF-8"),
        ({"num_steps": -1}, "num_steps must be at least 1, got -1"),
        ({"model": "\x1b[31mx\n", "bundle_id": "\x1b[31m\nx"}, "(bundle [31m x)"),
    ]:
        write_audio("bad.wav", np.zeros(9), RATE, good | change)
        fails(run("--from", "bad.wav"), part)
    write_audio("bad.wav", np.zeros(9), RATE, {k: v for k, v in good.items() if k != "eta"})
    fails(run("--from", "bad.wav"), "'bad.wav' lacks eta")
    assert files() == ["bad.wav", "plain.wav"]


def test_several_prompts_and_variations(run, model):
    os.mkdir("takes")
    arguments = ["--variations", "2", "--seed", "5", "--duration", "0.1", "-o", "takes", "--format", "flac"]
    result = run("rain falls", "a dog", *arguments)
    assert result.exit_code == 0
    assert [(s.prompt, s.seed) for s in model.made] == [
        ("rain falls", 5),
        ("rain falls", 6),
        ("a dog", 5),
        ("a dog", 6),
    ]
    names = ["rain_falls.flac", "rain_falls-2.flac", "a_dog.flac", "a_dog-2.flac"]
    assert [line.split(":")[0] for line in result.stdout.splitlines()] == [os.path.join("takes", n) for n in names]
    assert sorted(os.listdir("takes")) == sorted(names)
    assert [read_settings(f"takes/{name}")["seed"] for name in names] == [5, 6, 5, 6]


def test_words_without_quotes_are_noticed(run):
    result = run("a", "dog", "--duration", "0.1")
    assert "Note: 2 prompts of one word each" in result.stderr
    assert files() == ["a.wav", "dog.wav"]


@pytest.mark.parametrize("from_stdin", [True, False])
def test_prompts_file(run, model, from_stdin):
    text = "\ufeff# sounds\nrain\n\n  a dog, été  \r\n# end".encode()
    Path("list.txt").write_bytes(text)
    result = run("--prompts-file", "-" if from_stdin else "list.txt", "--duration", "0.1", stdin=text)
    assert result.exit_code == 0
    assert [s.prompt for s in model.made] == ["rain", "a dog, été"]
    assert files() == ["a_dog_ete.wav", "list.txt", "rain.wav"]


def test_bad_prompts_files(run):
    fails(run("--prompts-file", "none.txt"), "'none.txt' cannot be read (No such file")
    for data, part in [
        (b"", "has no prompts"),
        (b" \n\t\n# only this\n", "has no prompts"),
        (b"rain\ncaf\xe9\n", "line 2 of 'list.txt' is not UTF-8"),
        (b"x" * 1_000_001, "larger than 1,000,000 bytes"),
        (b"x\n" * 10_001, "10,001 sounds asked for, at most 10,000"),
        (b"rain\n" + b"x" * 10_001, "prompt 2 of 2 has 10,001 characters"),
    ]:
        Path("list.txt").write_bytes(data)
        fails(run("--prompts-file", "list.txt"), part)
    assert files() == ["list.txt"]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["no prompt", 'ezaudio-run "a dog barks"', "--help"]),
        ([""], ["the prompt is blank"]),
        ([" \t\n"], ["the prompt is blank"]),
        (["rain", " "], ["prompt 2 of 2 is blank"]),
        (["rain \udcff"], ["not valid UTF-8"]),
        (["rain", "--duration", "0"], ["duration_s must be above 0"]),
        (["rain", "--duration", "-1"], ["duration_s must be above 0"]),
        (["rain", "--duration", "30.1"], ["at most 30, got 30.1"]),
        (["rain", "--duration", "nan"], ["got nan"]),
        (["rain", "--duration", "long"], ["'--duration'", "'long' is not a valid float"]),
        (["rain", "--steps", "0"], ["num_steps must be at least 1"]),
        (["rain", "--steps", "1.5"], ["'--steps'", "'1.5' is not a valid integer"]),
        (["rain", "--guidance", "inf"], ["guidance_scale must be finite"]),
        (["rain", "--seed", "-1"], ["seed must be 0"]),
        (["rain", "--seed", str(2**64 - 1), "--variations", "2"], ["seed must be 0"]),
        (["rain", "--variations", "0"], ["'--variations'"]),
        (["rain", "--threads", "0"], ["'--threads'"]),
        (["rain", "--noise", "pink"], ["'pink' is not one of 'torch', 'philox'"]),
        (["rain", "--bundle", "here"], ["'here' is no bundle"]),
        (["rain", "--colour"], ["No such option", "--colour"]),
        (["rain", "-o", "rain.aiff"], ["unknown format '.aiff'", ".wav, .flac, .ogg, .mp3"]),
        (["rain", "-o", "rain"], ["'rain' has no extension", "mkdir -p"]),
        (["rain", "-o", "new/"], ["no folder 'new'", "mkdir -p 'new'"]),
        (["rain", "-o", "new/rain.wav"], ["no folder 'new'"]),
        (["rain", "-o", ""], ["--output is blank"]),
        (["rain", "-o", "/dev/null/"], ["'/dev/null' is a file"]),
        (["rain", "-o", "a.wav", "--format", "ogg"], ["--format ogg contradicts --output 'a.wav'"]),
        (["rain", "-o", "a.mp3", "--bit-depth", "16"], ["mp3 has no bit depth 16"]),
        (["rain", "--format", "flac", "--bit-depth", "32"], ["flac has no bit depth 32: expected 16 or 24"]),
        (["rain", "dog here", "-o", "a.wav"], ["'a.wav' is one file, but 2 are to be written"]),
        (["rain", "--variations", "3", "-o", "a.wav"], ["'a.wav' is one file, but 3"]),
        (["rain", "--variations", "3", "--spectrogram", "a.png"], ["--spectrogram: 'a.png' is one file, but 3"]),
        (["rain", "--spectrogram", "a.jpg"], ["'a.jpg' does not end in .png"]),
        (["rain", "--spectrogram", "new/a.png"], ["--spectrogram: no folder 'new'"]),
    ],
)
def test_bad_input_is_one_line_and_no_file(run, model, arguments, parts):
    fails(run(*arguments), *parts)
    assert files() == []
    assert model.made == []


def test_missing_plot_extra_is_found_before_the_work(run, model, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    fails(run("rain", "--spectrogram", "a.png"), 'pip install "ezaudio[plot]"')
    assert model.made == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_folder(run, model):
    os.mkdir("locked", 0o500)
    fails(run("rain", "-o", "locked"), "'locked' cannot be written (Permission denied)")
    assert model.made == []


def test_a_failed_write_is_one_line(run, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "link", full)
    fails(run("rain", "--duration", "0.1"), "'rain.wav' cannot be written (No space left on device)")
    assert files() == []


def test_named_files_are_replaced_and_derived_ones_numbered(run):
    Path("a.wav").write_bytes(b"old")
    for arguments in (["-o", "a.wav"], [], []):
        assert run("rain", "--duration", "0.1", *arguments).exit_code == 0
    assert files() == ["a.wav", "rain-2.wav", "rain.wav"]
    assert read_settings("a.wav")["prompt"] == "rain"


def test_interrupting_leaves_no_file(run, model, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(model, "on_each_step", staticmethod(interrupt))
    result = run("rain", "--spectrogram", "rain.png")
    assert result.exit_code == 130
    assert "Interrupted" in result.stderr
    assert files() == []


def test_a_defect_keeps_its_traceback(run, model, monkeypatch):
    def defect():
        raise RuntimeError("ours")

    monkeypatch.setattr(model, "on_each_step", staticmethod(defect))
    with pytest.raises(RuntimeError, match="ours"):
        run("rain")


def test_json_is_one_line_a_file(run):
    result = run("a dog, été", "rain", "--duration", "0.5", "--json", "--spectrogram", ".")
    first, second = map(json.loads, result.stdout.splitlines())
    assert first["file"] == "a_dog_ete.wav"
    assert second["spectrogram"] == "rain.png"
    assert first["audio_s"] == 0.5
    assert first["sample_rate"] == RATE
    assert first["real_time_factor"] == pytest.approx(first["elapsed_s"] / 0.5)
    assert first["metadata"] == read_settings("a_dog_ete.wav")
    assert first["warnings"] == []
    assert files() == ["a_dog_ete.png", "a_dog_ete.wav", "rain.png", "rain.wav"]


def test_warnings_and_quiet(run, model, monkeypatch):
    monkeypatch.setattr(model, "gain", 2.0)
    prompt = "word " * 100 + "and the rest"
    result = run(prompt, "--duration", "0.1", "-o", "a.wav")
    assert "Warning: prompt cut to 100 tokens, dropped: 'and the rest'\n" in result.stderr
    assert "were clipped" in result.stderr
    result = run(prompt, "--duration", "0.1", "-o", "a.wav", "--quiet")
    assert result.exit_code == 0
    assert result.output == ""
    fails(run("rain", "--quiet", "--steps", "0"), "num_steps")


def test_a_random_seed_is_reported_and_stored(run, model):
    seeds = {json.loads(run("rain", "--duration", "0.1", "--json").stdout)["metadata"]["seed"] for _ in range(3)}
    assert len(seeds) == 3
    assert seeds == {s.seed for s in model.made} == {read_settings(f)["seed"] for f in files()}


def test_fake_has_the_settings_of_the_command():
    from ezaudio.runtime.cli import SETTINGS

    assert list(SETTINGS) == [f.name for f in fields(FakeSettings)]


def test_script_answers_at_once_and_teaches():
    start = time.perf_counter()
    result = subprocess.run([SCRIPT, "--help"], capture_output=True, text=True, check=True, encoding="utf-8")
    assert time.perf_counter() - start < 2.0  # measured 0.2 s; the next test holds the reason
    for option in (
        *("--output", "--duration", "--seed", "--steps", "--guidance", "--negative", "--variations", "--prompts-file"),
        *("--bundle", "--precision", "--threads", "--spectrogram", "--json", "--quiet", "--from", "--rescale", "--eta"),
        *("--solver", "--noise", "--bit-depth", "--format", "--version"),
    ):
        assert option in result.stdout
    assert 'ezaudio-run "a dog barks' in result.stdout
    version = subprocess.run([SCRIPT, "--version"], capture_output=True, text=True, check=True)
    assert version.stdout == f"ezaudio {__version__}\n"


def test_importing_the_command_loads_nothing_heavy():
    heavy = {"numpy", "soundfile", "onnxruntime", "tokenizers", "matplotlib", "torch", "tqdm", "huggingface_hub"}
    code = f"import sys, ezaudio.runtime.cli; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals and terminals")
def test_script_fails_in_one_line_and_ctrl_c_ends_it(tmp_path):
    result = subprocess.run([SCRIPT, " ", "-o", tmp_path], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == 'Error: the prompt is blank: describe a sound, as in ezaudio-run "a dog barks"\n'

    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    command = [SCRIPT, "--prompts-file", pipe]
    with (
        subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as waiting,
        open(pipe, "wb"),  # returns once the script reads
    ):
        waiting.send_signal(signal.SIGINT)
        _, stderr = waiting.communicate(timeout=10)
    assert waiting.returncode == 130
    assert b"Traceback" not in stderr
    assert os.listdir(tmp_path) == ["pipe"]
