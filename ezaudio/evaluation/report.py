"""The quality report of a bundle: what a judge hears in its clips, what its autoencoder keeps, and how far its clips
are from renderings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ezaudio.data.synthesis import Sound
from ezaudio.data.synthesis.primitives import SAMPLE_RATE, Audio
from ezaudio.evaluation.judge import Judge
from ezaudio.evaluation.judge_training import heard
from ezaudio.evaluation.metrics import frechet_distance, log_mel_distance, si_sdr_db, stft_distance
from ezaudio.evaluation.progress import Progress, silent
from ezaudio.evaluation.renderings import COMPARED_SEED, Rendering
from ezaudio.runtime.errors import InputError
from ezaudio.runtime.text_to_audio import TextToAudio
from ezaudio.training.nano.vocabulary import (
    KINDS,
    PROMPT_SEED,
    Prompt,
    known_sounds,
    pair_prompts,
    seen_prompts,
    unseen_prompts,
)

GOALS = {"seen": 0.9, "unseen": 0.8, "pairs": 0.7}
TITLES = {"seen": "seen captions", "unseen": "unseen wordings", "pairs": "two sounds, both"}
USUAL = {"duration_s": 5.0, "guidance_scale": 5.0, "guidance_rescale": 0.75}
NUM_STEPS = 25  # unless a preset says
TOLD_KINDS = 12


@dataclass(frozen=True, slots=True)
class Answers:
    """What the judge heard in the clips of one set of prompts.

    Attributes:
        right: clips in which the kinds that were asked for have the highest scores.
        clips: all of them.
        taken_for: asked kind → heard kind → clips, the right ones too; empty for prompts of two sounds.
    """

    right: int
    clips: int
    taken_for: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def share(self) -> float:
        return self.right / self.clips


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """Means over held-out renderings that went through encoder and decoder; `named` is the judge's share of right
    answers about the results, above which no generated clip can be expected to come."""

    si_sdr_db: float
    log_mel: float
    stft: float
    named: float
    clips: int


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """A generated clip (T,), what was asked for and what was heard."""

    asked: str
    heard: str
    samples: Audio


@dataclass(frozen=True, slots=True, eq=False)
class QualityReport:
    """Everything that was measured.

    Attributes:
        settings: of the generation, without prompt and seed; `seed` is that of the first clip.
        answers: by set of prompts: `seen`, `unseen` and `pairs`.
        judge: its card's `training` and `ceiling`.
        frechet: between the clips of seen captions and as many held-out renderings of the same kinds.
        frechet_floor: between those renderings and as many others.
        examples: the first clip of each kind.
    """

    model: str
    precision: str
    bundle_id: str
    seed: int
    settings: dict[str, Any]
    answers: dict[str, Answers]
    judge: dict[str, dict[str, Any]]
    reconstruction: Reconstruction
    frechet: float
    frechet_floor: float
    examples: tuple[Example, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON, without the examples."""
        names = [name for name in self.__dataclass_fields__ if name not in ("answers", "reconstruction", "examples")]
        answers = {name: asdict(each) | {"share": each.share} for name, each in self.answers.items()}
        data = {name: getattr(self, name) for name in names}
        return {**data, "answers": answers, "goals": GOALS, "reconstruction": asdict(self.reconstruction)}


def draw_prompts(count: int, seed: int = 0) -> dict[str, list[Prompt]]:
    """`count` seen captions and as many unseen wordings of each kind, and as many of two sounds in all."""
    drawn = PROMPT_SEED + seed
    pairs = pair_prompts(count * len(KINDS), drawn)
    return {"seen": seen_prompts(count, drawn), "unseen": unseen_prompts(count, drawn), "pairs": pairs}


def evaluate(
    model: TextToAudio,
    judge: Judge,
    prompts: Mapping[str, Sequence[Prompt]],
    recordings: Path | None = None,
    seed: int = 0,
    progress: Progress = silent,
    **settings: Any,
) -> QualityReport:
    """Make a clip for each prompt, and measure.

    Args:
        judge: of the packaged model's vocabulary, `kept_judge`.
        prompts: `seen`, `unseen` and `pairs`, of `draw_prompts`; at least two seen ones.
        recordings: folder of `ezaudio-data recordings`: what is compared with has the recorded events that are held
            out; None compares with synthesised sounds alone.
        seed: of the first clip, the following ones count on; renderings are drawn from it too.
        settings: of `TextToAudio.generate`, preset, num_steps and so on, in place of the usual ones: guidance 5,
            rescale 0.75, 25 steps (or the preset's), 5 s.

    Raises:
        InputError: a setting that the bundle does not take, a bundle of another rate, or no such recordings.
    """
    if model.sample_rate != SAMPLE_RATE:
        raise InputError(f"the bundle makes {model.sample_rate} Hz, expected {SAMPLE_RATE} Hz, which the judge hears")
    if judge.card.kinds != KINDS:
        raise InputError(f"the judge knows {len(judge.card.kinds)} other kinds than the {len(KINDS)} of the vocabulary")
    given = {name: value for name, value in (USUAL | settings).items() if value is not None}
    if "preset" not in given:
        given.setdefault("num_steps", NUM_STEPS)
    resolved = model.settings("a sound", seed=seed, **given).to_dict()
    sounds = known_sounds(recordings, held_out=True)
    answers, embeddings = {}, {}
    examples: dict[str, Example] = {}
    clip_seed = seed
    for name in TITLES:
        scores, kept = [], []
        for number, prompt in enumerate(prompts[name], 1):
            samples = model.generate(prompt.text, seed=clip_seed, **given).samples[0]
            clip_seed += 1
            row, embedding = judge.hear([samples])
            scores.append(row[0])
            kept.append(embedding[0])
            if name == "seen" and prompt.kinds[0] not in examples:
                examples[prompt.kinds[0]] = Example(prompt.kinds[0], KINDS[int(row[0].argmax())], samples)
            progress(TITLES[name], number, len(prompts[name]))
        answers[name] = _judged(prompts[name], scores)
        embeddings[name] = np.stack(kept)
    duration_s = float(resolved["duration_s"])
    kinds = [KINDS.index(prompt.kinds[0]) for prompt in prompts["seen"]]
    first, second = _reference_embeddings(judge, sounds, kinds, seed, duration_s, progress)
    return QualityReport(
        model=model.model,
        precision=model.precision,
        bundle_id=model.bundle_id,
        seed=seed,
        settings={name: value for name, value in resolved.items() if name not in ("prompt", "seed")}
        | {"preset": given.get("preset")},
        answers=answers,
        judge={"training": judge.card.training, "ceiling": judge.card.ceiling},
        reconstruction=reconstruct(model, judge, sounds, sorted(set(kinds)), seed, duration_s, progress),
        frechet=frechet_distance(embeddings["seen"], first),
        frechet_floor=frechet_distance(second, first),
        examples=tuple(examples.values()),
    )


def _judged(prompts: Sequence[Prompt], scores: Sequence[NDArray[np.float32]]) -> Answers:
    right = 0
    taken_for: dict[str, Counter[str]] = {}
    for prompt, row in zip(prompts, scores, strict=True):
        right += heard(row, [KINDS.index(kind) for kind in prompt.kinds])
        if len(prompt.kinds) == 1:
            taken_for.setdefault(prompt.kinds[0], Counter())[KINDS[int(row.argmax())]] += 1
    return Answers(right, len(prompts), {kind: dict(counts) for kind, counts in taken_for.items()})


def _reference_embeddings(
    judge: Judge, sounds: Sequence[Sound], kinds: Sequence[int], seed: int, duration_s: float, progress: Progress
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Of two sets of held-out renderings of these kinds, one clip for each."""
    halves: tuple[list[NDArray[np.float32]], ...] = ([], [])
    for number in range(2 * len(kinds)):
        rendering = Rendering((kinds[number // 2],), (COMPARED_SEED + seed, 1, number))
        halves[number % 2].append(judge.hear([rendering.render(sounds, duration_s)])[1][0])
        progress("held-out renderings", number + 1, 2 * len(kinds))
    return np.stack(halves[0]), np.stack(halves[1])


def reconstruct(
    model: TextToAudio,
    judge: Judge,
    sounds: Sequence[Sound],
    kinds: Sequence[int],
    seed: int,
    duration_s: float,
    progress: Progress = silent,
) -> Reconstruction:
    """A held-out rendering of each of these kinds through the bundle's encoder (the posterior's mean) and decoder."""
    rows, right = [], 0
    renderings = [Rendering((kind,), (COMPARED_SEED + seed, 2, kind)) for kind in kinds]
    hop = model.config.vae.hop
    for number, rendering in enumerate(renderings):
        clip = rendering.render(sounds, duration_s)
        seen = np.zeros((1, -(-len(clip) // hop) * hop), np.float32)
        seen[0, : len(clip)] = clip
        result = model.decode(model.encode(seen))[0, : len(clip)]
        right += heard(judge.hear([result])[0][0], rendering.kinds)
        output, target = torch.from_numpy(result)[None], torch.from_numpy(clip)[None]
        spectral = (log_mel_distance(output, target, SAMPLE_RATE), stft_distance(output, target, SAMPLE_RATE))
        rows.append([float(si_sdr_db(output, target)), *(float(value) for value in spectral)])
        progress("reconstruction", number + 1, len(renderings))
    si_sdr, log_mel, stft = (float(value) for value in np.mean(rows, axis=0))
    return Reconstruction(si_sdr, log_mel, stft, right / len(renderings), len(renderings))


def told(report: QualityReport) -> list[str]:
    """The report as lines of text."""
    given = report.settings
    lines = [
        f"{report.model} {report.precision}: clips of {given['duration_s']:g} s, "
        f"{given['preset'] or given['solver']}, {given['num_steps']} steps, guidance {given['guidance_scale']:g}, "
        f"rescale {given['guidance_rescale']:g}",
        "",
        f"{'named right':<20}{'clips':>12}{'share':>9}{'goal':>7}",
    ]
    for name, each in report.answers.items():
        right_of = f"{each.right} of {each.clips}"
        lines.append(f"{TITLES[name]:<20}{right_of:>12}{each.share:>9.1%}{GOALS[name]:>7.0%}")
    ceiling = report.judge["ceiling"]
    if ceiling:
        lines.append(
            f"the judge itself: {ceiling['single']:.1%} of held-out scenes of one sound, {ceiling['pairs']:.1%} of two"
        )
    if "taught_single" in ceiling:
        lines.append(
            f"  and {ceiling['taught_single']:.1%} and {ceiling['taught_pairs']:.1%} of scenes as they are taught"
        )
    vae = report.reconstruction
    lines += [
        f"autoencoder, {vae.clips} held-out sounds: SI-SDR {vae.si_sdr_db:.1f} dB, log-mel L1 {vae.log_mel:.3f}, "
        f"multi-resolution STFT {vae.stft:.3f}; {vae.named:.1%} still named right",
        f"Fréchet distance to held-out renderings: {report.frechet:.2f}; between two sets of those: "
        f"{report.frechet_floor:.2f}",
    ]
    worst = weakest(report)
    if worst:
        lines += ["", "weakest kinds, seen and unseen wordings together:"]
    for kind, right, clips, others in worst[:TOLD_KINDS]:
        lines.append(f"  {kind}: {right} of {clips}, else {', '.join(f'{other} {n}' for other, n in others[:4])}")
    return lines


def weakest(report: QualityReport) -> list[tuple[str, int, int, list[tuple[str, int]]]]:
    """Kinds that were ever taken for another, worst first: kind, right, clips, and what else was heard, how often."""
    rows = []
    for kind in KINDS:
        counts: Counter[str] = Counter()
        for name in ("seen", "unseen"):
            counts.update(report.answers[name].taken_for.get(kind, {}))
        others = [(other, n) for other, n in counts.most_common() if other != kind]
        if others:
            rows.append((kind, counts[kind], counts.total(), others))
    return sorted(rows, key=lambda row: row[1] / row[2])
