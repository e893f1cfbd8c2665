"""What each preset gains and costs: time of a clip, distance to many steps, and whether the sound is still right.

    python benchmarks/presets.py --save                                        # the packaged model
    python benchmarks/presets.py --bundle l --precision int8 --no-quality      # time alone: no classifier for l

Times are of 10 s clips, presets in turn, repeated. The distances are those that `ezaudio-calibrate` stored in the
bundle. The quality report asks for every sound that the packaged model was taught synthetically and has a classifier
name it: ridge regression on statistics of mel levels, fitted to synthesised clips of the same twenty kinds. `ceiling`
is how many fresh synthesised clips it names right, and nothing is told when that is under nine in ten.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import click
import numpy as np
from measure import hardware_line, interleave, rounds_option, save_option, told, write_row
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

DURATION_S = 5.0
TRAINING_CLIPS, TEST_CLIPS = 30, 5  # of each kind
MIN_CEILING = 0.9
RIDGE = 30.0
MODULATION_BINS = 48


def features(samples: NDArray[np.float32], sample_rate: int) -> Float64:
    """What a sound is known by: mean, deviation and restlessness of each mel band, and how its loudness pulses."""
    from ezaudio.runtime.measures import levels_db

    levels = levels_db(samples / max(float(np.abs(samples).max()), 1e-9), sample_rate)
    loudness = np.logaddexp.reduce(levels * (np.log(10) / 10), axis=0)
    pulses = np.abs(np.fft.rfft(loudness - loudness.mean()))[1 : MODULATION_BINS + 1]
    change = np.abs(np.diff(levels, axis=1)).mean(axis=1)
    return np.concatenate([levels.mean(axis=1), levels.std(axis=1), change, 10 * np.log1p(pulses)])


@dataclass(frozen=True, slots=True)
class Classifier:
    """Ridge regression from standardised features to kinds."""

    mean: Float64
    deviation: Float64
    weights: Float64

    @classmethod
    def fit(cls, rows: Float64, kinds: NDArray[np.int64]) -> Classifier:
        mean, deviation = rows.mean(axis=0), rows.std(axis=0) + 1e-6
        scaled = np.column_stack([(rows - mean) / deviation, np.ones(len(rows))])
        targets = np.eye(kinds.max() + 1)[kinds]
        weights = np.linalg.solve(scaled.T @ scaled + RIDGE * np.eye(scaled.shape[1]), scaled.T @ targets)
        return cls(mean, deviation, weights)

    def __call__(self, row: Float64) -> int:
        return int(np.argmax(np.append((row - self.mean) / self.deviation, 1.0) @ self.weights))


def fitted(sample_rate: int) -> tuple[Classifier, list[str], float]:
    """A classifier of the synthesised kinds, their captions, and the share of fresh clips that it names right."""
    from ezaudio.data.clips import render
    from ezaudio.data.sounds import SOUNDS

    sounds, count = list(SOUNDS.values()), round(DURATION_S * sample_rate)
    rng = np.random.default_rng(0)
    rows, kinds = [], []
    for _ in range(TRAINING_CLIPS + TEST_CLIPS):
        for kind, sound in enumerate(sounds):
            rows.append(features(render(rng, sound, count).astype(np.float32), sample_rate))
            kinds.append(kind)
    split = TRAINING_CLIPS * len(sounds)
    classifier = Classifier.fit(np.array(rows[:split]), np.array(kinds[:split]))
    ceiling = float(np.mean([classifier(row) == kind for row, kind in zip(rows[split:], kinds[split:], strict=True)]))
    if ceiling < MIN_CEILING:
        raise click.ClickException(f"the classifier names {ceiling:.0%} of fresh clips right: nothing is told")
    return classifier, [sound.phrases[0] for sound in sounds], ceiling


def named_right(model: Any, preset: str | None, classifier: Classifier, captions: list[str], seeds: int) -> float:
    """Share of the preset's clips that the classifier names right."""
    right = []
    for kind, caption in enumerate(captions):
        for seed in range(seeds):
            samples = model.generate(caption, preset=preset, duration_s=DURATION_S, seed=seed).samples[0]
            right.append(classifier(features(samples, model.sample_rate)) == kind)
    return float(np.mean(right))


@click.command(help=__doc__)
@click.option("--bundle", help="Folder, l, xl or nano. [the packaged model]")
@click.option("--precision", help="Of a named bundle.")
@click.option("--seeds", type=int, default=3, show_default=True, help="Clips of each kind in the quality report.")
@click.option("--quality/--no-quality", default=True, help="Whether the classifier is asked.")
@rounds_option
@save_option
def main(bundle: str | None, precision: str | None, seeds: int, quality: bool, rounds: int, save: bool) -> None:
    from ezaudio.runtime import TextToAudio
    from ezaudio.runtime.calibration import num_evaluations
    from ezaudio.runtime.presets import Preset

    model = TextToAudio(bundle, precision=precision, backend="onnxruntime")
    defaults = model.config.defaults
    plans = {**model.presets, "default": Preset(defaults.solver, defaults.num_steps, defaults.eta)}
    given = {name: None if name == "default" else name for name in plans}
    classifier, captions, ceiling = fitted(model.sample_rate) if quality else (None, [], None)

    def clip(preset: str | None) -> None:
        model.generate("rain falling", preset=preset, duration_s=10.0, seed=1)

    timing = interleave({name: partial(clip, preset) for name, preset in given.items()}, rounds)
    results = []
    print(f"{model.model} {model.precision}, 10 s clips; {hardware_line()}")
    for name, preset in given.items():
        plan = plans[name]
        right = None if classifier is None else named_right(model, preset, classifier, captions, seeds)
        ratio = timing.ratio("official", name)
        evaluations = round(num_evaluations(plan, model.config), 2)
        results.append(
            {
                "preset": name,
                **plan.to_dict(),
                "evaluations": evaluations,
                "median_s": timing.median(name),
                "official_over_this": ratio,
                "named_right": right,
            }
        )
        error = "not measured" if plan.fidelity is None else f"{plan.fidelity.latent_error:.3f}"
        share = "not measured" if right is None else f"{right:.0%}"
        print(
            f"{name:9} {plan.solver:13} {plan.num_steps:4} steps {evaluations:6.1f} evaluations "
            f"{timing.median(name):8.3f} s, official/this {told(ratio)}, latents {error}, named right {share}"
        )
    row = {
        "benchmark": "presets",
        "model": model.model,
        "precision": model.precision,
        "origin": model.manifest.origin,
        "duration_s": 10.0,
        "ceiling": ceiling,
        "clips_of_each_kind": seeds if quality else 0,
        "presets": results,
        **timing.fields(),
    }
    write_row(row, save)


if __name__ == "__main__":
    main()
