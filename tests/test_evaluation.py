"""The judge learns, is kept and refuses what it does not know; distances are what they are defined as; the report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmark_runs import run
from scipy.linalg import sqrtm

from ezaudio.data.synthesis import SOUNDS
from ezaudio.evaluation.judge import Judge, JudgeCard, JudgeNetwork
from ezaudio.evaluation.judge_training import JudgeSettings, heard, kept_judge, train_judge
from ezaudio.evaluation.mels import FFT_SIZE, HOP, MelPower
from ezaudio.evaluation.metrics import frechet_distance, log_mel_distance, si_sdr_db, stft_distance
from ezaudio.evaluation.progress import bars
from ezaudio.evaluation.renderings import pairs, singles
from ezaudio.evaluation.report import USUAL, QualityReport, draw_prompts, evaluate, told, weakest
from ezaudio.runtime.errors import BundleError, InputError
from ezaudio.runtime.spectrogram import mel_bank
from ezaudio.runtime.text_to_audio import TextToAudio
from ezaudio.training.losses import EPSILON, a_weighting
from ezaudio.training.nano.vocabulary import KINDS, Prompt
from ezaudio.weights import save_atomic

RATE = 24_000
THREE = [SOUNDS[name] for name in ("rain", "police siren", "church bell")]
QUICK = JudgeSettings(alone=4, scenes=6, pairs=8, steps=60, batch=12, checked=2)
ONE_STEP = {"num_steps": 1, "duration_s": 0.5}


def clips(count: int, num_samples: int = 9_600, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(0.1 * np.random.default_rng(seed).standard_normal((count, num_samples), np.float32))


# Distances.


def test_si_sdr_is_its_definition() -> None:
    target, noise = clips(2, seed=1)
    noise -= (noise @ target) / (target @ target) * target  # orthogonal: what the scale cannot explain
    noise *= target.norm() / noise.norm()
    output = torch.stack([2.5 * (target + 10 ** (-db / 20) * noise) for db in (-3.0, 12.0, 40.0)])
    got = si_sdr_db(output, target.expand(3, -1))
    torch.testing.assert_close(got, torch.tensor([-3.0, 12.0, 40.0]), rtol=0, atol=1e-3)  # measured 1e-5
    torch.testing.assert_close(si_sdr_db(0.1 * output, target.expand(3, -1)), got, rtol=0, atol=1e-3)


def test_si_sdr_of_silence_and_of_copies_is_finite() -> None:
    sound, silence = clips(1), torch.zeros(1, 9_600)
    assert si_sdr_db(sound, sound).item() == 100
    assert [si_sdr_db(a, b).item() for a, b in ((silence, sound), (sound, silence))] == [-100, -100]


def mels_by_hand(audio: torch.Tensor) -> np.ndarray:
    padded = np.pad(audio.double().numpy(), FFT_SIZE // 2)
    window = np.hanning(FFT_SIZE + 1)[:-1]
    starts = range(0, len(audio) + 1, HOP)
    power = [np.abs(np.fft.rfft(padded[start : start + FFT_SIZE] * window)) ** 2 for start in starts]
    return mel_bank(RATE, FFT_SIZE, 64) @ np.array(power).T


def test_log_mel_distance_is_its_definition() -> None:
    output, target = clips(2), clips(2, seed=1)
    expected = [
        np.abs(np.log(mels_by_hand(a) ** 0.5) - np.log(mels_by_hand(b) ** 0.5)).mean()
        for a, b in zip(output, target, strict=True)
    ]
    np.testing.assert_allclose(log_mel_distance(output, target, RATE), expected, rtol=1e-4)  # measured 1e-6
    louder = log_mel_distance(np.e * output, output, RATE)
    np.testing.assert_allclose(louder, [1, 1], rtol=1e-4)


def test_stft_distance_is_its_definition() -> None:
    output, target = clips(2), clips(2, seed=1)

    def magnitudes(audio: torch.Tensor, size: int) -> np.ndarray:
        padded = np.pad(audio.double().numpy(), size // 2, mode="reflect")
        window, hop = np.hanning(size + 1)[:-1], size // 4
        frames = [padded[start : start + size] * window for start in range(0, len(audio) + 1, hop)]
        gain = a_weighting(torch.fft.rfftfreq(size, 1 / RATE)).numpy()
        return gain * np.sqrt(np.abs(np.fft.rfft(frames)) ** 2 + EPSILON)

    expected = []
    for got, wanted in zip(output, target, strict=True):
        parts = []
        for size in (2048, 1024, 512):
            a, b = magnitudes(got, size), magnitudes(wanted, size)
            converged = np.linalg.norm(a - b) / np.linalg.norm(b)
            parts.append(converged + np.abs(np.log(a + EPSILON) - np.log(b + EPSILON)).mean())
        expected.append(np.mean(parts))
    np.testing.assert_allclose(stft_distance(output, target, RATE), expected, rtol=1e-3)  # measured 2e-5
    assert stft_distance(output, output, RATE).abs().max() == 0


def test_frechet_distance_is_its_definition() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((200, 6)), 1 + rng.standard_normal((150, 6)) @ rng.standard_normal((6, 6))
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(first + second - 2 * sqrtm(first @ second).real)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a + 2) == pytest.approx(6 * 4, rel=1e-9)
    assert frechet_distance(a, 3 * a - 2 * a.mean(0)) == pytest.approx(4 * np.trace(first), rel=1e-9)


def test_frechet_distance_of_few_rows_is_finite() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((2, 3, 64))
    assert 0 < frechet_distance(a, b) < 1000
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(("first", "message"), [(np.zeros((1, 4)), "at least 2"), (np.full((3, 4), np.nan), "NaN")])
def test_frechet_distance_refuses(first: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        frechet_distance(first, np.zeros((3, 4)))


def test_mel_power_of_a_tone_is_in_its_band() -> None:
    tone = torch.sin(2 * torch.pi * 1000 * torch.arange(RATE) / RATE)[None]
    power = MelPower(RATE)(tone)
    assert power.shape == (1, 64, 51)
    centre = int(power[0, :, 25].argmax())
    bank = mel_bank(RATE, FFT_SIZE, 64)
    assert abs(float(bank[centre] @ np.fft.rfftfreq(FFT_SIZE, 1 / RATE)) - 1000) < 40
    np.testing.assert_allclose(bank.sum(1), 1)


# Renderings.


def test_renderings_repeat_and_name_their_kinds() -> None:
    drawn = [*singles(3, 2, 7), *singles(3, 2, 7, alone=True), *pairs(3, 4, 7)]
    assert len({rendering.seed for rendering in drawn}) == len(drawn)
    assert [len(rendering.kinds) for rendering in drawn] == [1] * 12 + [2] * 4
    assert all(len(set(rendering.kinds)) == 2 for rendering in drawn[12:])
    for rendering in drawn[::5]:
        audio = rendering.render(THREE, 1.0)
        assert audio.shape == (RATE,)
        assert 0.49 < np.abs(audio).max() < 0.91
        np.testing.assert_array_equal(audio, rendering.render(THREE, 1.0))


# The judge.


@pytest.fixture(scope="module")
def judge() -> Judge:
    """Of three very different kinds."""
    return train_judge(THREE, THREE, QUICK)


def test_judge_tells_three_kinds_apart(judge: Judge) -> None:
    # Measured: 1, 1, 1 and the same of taught renderings.
    assert judge.card.ceiling.keys() >= {"alone", "single", "pairs", "taught_alone", "taught_single", "taught_pairs"}
    assert judge.card.ceiling["alone"] > 0.8
    assert judge.card.ceiling["single"] > 0.6
    assert judge.card.training["recordings"] is False


def test_judge_is_kept_exactly(judge: Judge, tmp_path: Path) -> None:
    judge.save(tmp_path / "judge.safetensors")
    again = Judge.load(tmp_path / "judge.safetensors", [sound.name for sound in THREE])
    assert again.card == judge.card
    audio = list(clips(2, 24_000).numpy())
    for got, expected in zip(again.hear(audio), judge.hear(audio), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_the_same_seed_gives_the_same_judge() -> None:
    tiny = replace(QUICK, alone=1, scenes=1, pairs=1, steps=2, batch=4, checked=1)
    first, second = (train_judge(THREE, None, tiny).network.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = train_judge(THREE, None, replace(tiny, seed=tiny.seed + 1)).network.state_dict()
    assert not torch.equal(other["score.weight"], first["score.weight"])


def test_judge_hears_any_length_and_level(judge: Judge) -> None:
    audio = singles(3, 1, 99)[1].render(THREE, 2.0)
    lengths = [audio, 0.01 * audio, audio[:7_000], audio[:1], np.zeros(12_000, np.float32)]
    scores, embeddings = judge.hear(lengths)
    assert scores.shape == (5, 3)
    assert embeddings.shape == (5, 64)
    assert np.isfinite(scores).all()
    np.testing.assert_allclose(scores[1], scores[0], rtol=0, atol=1e-3)
    for row, clip in zip(scores, lengths, strict=True):
        np.testing.assert_allclose(judge.hear([clip])[0][0], row, rtol=0, atol=1e-4)


def test_heard_is_the_highest_scores() -> None:
    scores = np.array([0.1, 3.0, -2.0, 1.0], np.float32)
    assert heard(scores, [1])
    assert not heard(scores, [3])
    assert heard(scores, [3, 1])
    assert not heard(scores, [1, 0])


def test_judge_of_another_vocabulary_is_refused(judge: Judge, tmp_path: Path) -> None:
    judge.save(tmp_path / "judge.safetensors")
    with pytest.raises(InputError, match="judges 3 other kinds of sound than the 49 of the vocabulary: remove it"):
        kept_judge(tmp_path / "judge.safetensors", None)


def test_what_is_no_judge_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a file"):
        kept_judge(tmp_path, None)
    (tmp_path / "text").write_text("no tensors")
    save_atomic({"x": torch.zeros(1)}, tmp_path / "tensors")
    save_atomic({"x": torch.zeros(1)}, tmp_path / "other", {"judge": json.dumps({"format": 2})})
    card = {"format": 1, "kinds": list(KINDS), "training": {}, "ceiling": {}}
    save_atomic({"x": torch.zeros(1)}, tmp_path / "empty", {"judge": json.dumps(card)})
    for name, message in {"text": "no judge", "tensors": "no judge", "other": "another format"}.items():
        with pytest.raises(BundleError, match=message):
            kept_judge(tmp_path / name, None)
    with pytest.raises(BundleError, match="does not fit JudgeNetwork"):
        kept_judge(tmp_path / "empty", None)


def test_judge_is_not_trained_in_vain(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no recording '.*dog\.flac': collect them"):
        kept_judge(tmp_path / "judge.safetensors", tmp_path / "missing")
    with pytest.raises(InputError, match="no folder"):
        kept_judge(tmp_path / "missing" / "judge.safetensors", None)


# The report.


@pytest.fixture(scope="module")
def blank_judge() -> Judge:
    """Of the vocabulary, not trained."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Judge(JudgeNetwork(len(KINDS)), JudgeCard(KINDS))


def few_prompts() -> dict[str, list[Prompt]]:
    """Of six kinds."""
    return {name: prompts[:6] for name, prompts in draw_prompts(1).items()}


@pytest.fixture(scope="module")
def report(debug_bundle: Path, blank_judge: Judge) -> QualityReport:
    with bars() as progress:
        return evaluate(TextToAudio(debug_bundle, threads=1), blank_judge, few_prompts(), progress=progress, **ONE_STEP)


def test_report_counts_what_was_heard(report: QualityReport) -> None:
    for name, each in report.answers.items():
        assert each.clips == 6
        assert sum(sum(row.values()) for row in each.taken_for.values()) == (0 if name == "pairs" else 6)
        assert name == "pairs" or each.right == sum(row.get(kind, 0) for kind, row in each.taken_for.items())
    assert [example.asked for example in report.examples] == list(KINDS[:6])
    worst = weakest(report)
    assert len(worst) >= 4  # an untrained judge hears nearly the same everywhere
    assert [right / clips for _, right, clips, _ in worst] == sorted(right / clips for _, right, clips, _ in worst)


def test_report_measures(report: QualityReport) -> None:
    assert report.frechet >= 0
    assert report.frechet_floor >= 0
    assert report.reconstruction.clips == 6
    assert report.reconstruction.si_sdr_db < 5  # random weights
    assert report.reconstruction.log_mel > 0.1
    assert report.settings["guidance_scale"] == 5
    assert report.settings["num_steps"] == 1


def test_report_is_told_and_stored(report: QualityReport) -> None:
    stored = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert stored["answers"]["seen"]["share"] == report.answers["seen"].share
    assert stored["goals"] == {"seen": 0.9, "unseen": 0.8, "pairs": 0.7}
    text = "\n".join(told(report))
    assert "two sounds, both" in text
    assert f"SI-SDR {report.reconstruction.si_sdr_db:.1f} dB" in text
    assert f"{weakest(report)[0][0]}: 0 of 2, else" in text


def test_prompts_are_of_every_kind() -> None:
    prompts = draw_prompts(2)
    for name in ("seen", "unseen"):
        assert [prompt.kinds for prompt in prompts[name]] == [(kind,) for kind in KINDS for _ in range(2)]
    assert len(prompts["pairs"]) == 2 * len(KINDS)
    assert all(len(set(prompt.kinds)) == 2 for prompt in prompts["pairs"])
    assert draw_prompts(2) == prompts
    assert draw_prompts(2, 1) != prompts


def test_the_same_seeds_give_the_same_clips(debug_bundle: Path, report: QualityReport) -> None:
    model, example = TextToAudio(debug_bundle, threads=1), report.examples[0]
    clip = model.generate(few_prompts()["seen"][0].text, seed=0, **{**USUAL, **ONE_STEP}).samples[0]  # type: ignore[arg-type]
    np.testing.assert_array_equal(clip, example.samples)


def test_report_refuses_another_judge(debug_bundle: Path, judge: Judge) -> None:
    with pytest.raises(InputError, match="the judge knows 3 other kinds than the 49"):
        evaluate(TextToAudio(debug_bundle, threads=1), judge, few_prompts())


# The benchmark.


@pytest.mark.usefixtures("benchmark_scripts")
def test_benchmark(
    debug_bundle: Path, blank_judge: Judge, report: QualityReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the command asks for and writes; the report itself is the one of the tests above, which takes seconds."""
    asked: dict[str, object] = {}

    def measured(*positional: Any, **settings: object) -> QualityReport:
        asked.update(settings, count=len(positional[2]["seen"]) // len(KINDS))
        return report

    monkeypatch.setattr("ezaudio.evaluation.report.evaluate", measured)
    blank_judge.save(tmp_path / "judge.safetensors")
    pictures = ("--sheet", tmp_path / "sheet.png", "--confusion", tmp_path / "confusion.png")
    given = ("--count", 2, "--steps", 7, "--rescale", 0, "--judge", tmp_path / "judge.safetensors")
    result = run("nano_quality", "--bundle", debug_bundle, *given, *pictures, "--save", tmp_path)
    assert result.exit_code == 0, result.output
    assert asked == {
        "count": 2,
        "num_steps": 7,
        "guidance_scale": 5.0,
        "guidance_rescale": 0.0,
        "duration_s": 5.0,
        "preset": None,
    }
    assert "\n".join(told(report)) in result.stdout
    (row,) = (json.loads(line) for line in (tmp_path / "nano_quality.jsonl").read_text().splitlines())
    assert row["benchmark"] == "nano_quality"
    assert row["answers"] == report.to_dict()["answers"]
    assert row["versions"]["ezaudio"]
    for name in ("sheet.png", "confusion.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("benchmark_scripts")
def test_benchmark_errors_are_one_line(debug_bundle: Path, tmp_path: Path) -> None:
    common = ("--bundle", debug_bundle, "--judge", tmp_path / "judge.safetensors")
    for arguments, message in (
        (("--recordings", tmp_path / "nothing"), "collect them with"),
        (("--sheet", tmp_path / "missing" / "sheet.png"), "no folder"),
        (("--judge", tmp_path), "is not a file"),
    ):
        result = run("nano_quality", *common, *arguments)
        assert result.exit_code == 2
        assert result.stderr.startswith("Error: ")
        assert result.stderr.count("\n") == 1
        assert message in result.stderr
    assert not list(tmp_path.iterdir())
