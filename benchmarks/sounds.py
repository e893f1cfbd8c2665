"""Synthesised sounds: how fast they render, and whether a plain recogniser tells the kinds apart.

    python benchmarks/sounds.py                                        # about four minutes on one core
    python benchmarks/sounds.py --train 24 --test 8 --save benchmarks/results/sounds.jsonl

The recogniser (tests/sound_features.py) is logistic regression on statistics of log-mel energies. It learns from one
set of seeds and is judged on another, twice: each kind alone and near by, then in random rooms at random distances.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
import numpy as np
import torch
from measure import hardware_line, save_option, write_row
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from sound_features import accuracy_by_class, features

from ezaudio.data.synthesis import SOUNDS
from ezaudio.data.synthesis.dataset import real_time_factors
from ezaudio.data.synthesis.primitives import SAMPLE_RATE, normalize
from ezaudio.data.synthesis.rooms import DISTANCES, ROOMS, VARIANTS, heard
from ezaudio.data.synthesis.scenes import solo

DURATION_S = 5.0
DITHER = 1e-4


def clips(split: int, count: int, with_rooms: bool) -> tuple[np.ndarray, list[int]]:
    """Features of `count` clips of each kind, and the kind's number."""
    rows, labels = [], []
    for label, sound in enumerate(tqdm(SOUNDS.values(), desc="clips", leave=False)):
        for index in range(count):
            rng = np.random.default_rng((split, label, index))
            audio = solo(rng, sound, round(DURATION_S * SAMPLE_RATE))
            if with_rooms:
                distance, room = str(rng.choice(list(DISTANCES))), str(rng.choice(list(ROOMS)))
                audio = heard(audio, distance, room, int(rng.integers(VARIANTS)))
            dither = DITHER * rng.standard_normal(len(audio)).astype(np.float32)
            rows.append(features(normalize(audio, 0.9) + dither))
            labels.append(label)
    return np.array(rows), labels


@click.command(help=__doc__)
@click.option("--train", "num_train", type=click.IntRange(min=1), default=24, show_default=True, help="Clips a kind.")
@click.option("--test", "num_test", type=click.IntRange(min=1), default=8, show_default=True, help="Clips a kind.")
@click.option("--scenes", type=click.IntRange(min=1), default=40, show_default=True, help="Scenes of 10 s to time.")
@save_option
def main(num_train: int, num_test: int, scenes: int, save: Path | None) -> None:
    torch.set_num_threads(1)
    names = list(SOUNDS)
    speed, by_kind = real_time_factors(list(SOUNDS.values()), scenes)
    click.echo(hardware_line())
    click.echo(f"scenes of 10 s: {speed:,.0f} × real time, of CPU time; slowest kinds:")
    click.echo("".join(f"  {name} {factor:,.0f} ×\n" for name, factor in by_kind[:5]).rstrip())
    row = {"benchmark": "sounds", "num_kinds": len(names), "scenes_real_time_factor": speed}
    row |= {"slowest_kind": by_kind[0][0], "slowest_real_time_factor": by_kind[0][1]}
    for with_rooms in (False, True):
        accuracy, confusions = accuracy_by_class(*clips(0, num_train, with_rooms), *clips(1, num_test, with_rooms))
        place = "random rooms and distances" if with_rooms else "alone, near by"
        click.echo(f"{place}: {accuracy.mean():.1%} of {num_test * len(names):,} held-out clips named right")
        for label in np.argsort(accuracy)[:20]:
            if accuracy[label] < 1:
                others = [
                    names[int(i)] for i in np.argsort(-confusions[label])[:4] if i != label and confusions[label, i]
                ]
                click.echo(f"  {names[label]}: {accuracy[label]:.0%}, else {', '.join(others)}")
        key = "rooms" if with_rooms else "alone"
        row[f"accuracy_{key}"] = float(accuracy.mean())
        row[f"accuracy_{key}_by_kind"] = {name: float(value) for name, value in zip(names, accuracy, strict=True)}
    write_row({**row, "num_train": num_train, "num_test": num_test, "duration_s": DURATION_S}, save)


if __name__ == "__main__":
    main()
