"""What each preset gains and costs: time of a clip, distance to many steps, and whether the sound is still right.

    python benchmarks/presets.py --save benchmarks/results                    # the packaged model
    python benchmarks/presets.py --bundle l --precision int8 --no-quality     # time alone: nobody judges l

Times are of 10 s clips, presets in turn, repeated. The distances are those that `ezaudio-calibrate` stored in the
bundle. The judge of `nano_quality.py` names clips of 5 s of captions as in training, at guidance 5 and rescale 0.75;
`ceiling` is its share of right answers on held-out renderings as they are taught.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from measure import hardware_line, rounds_option, save_option, write_row
from timing import interleave, told

from ezaudio.training.nano.vocabulary import KINDS, PROMPT_SEED, seen_prompts

PATH = click.Path(path_type=Path)


def named_right(model: Any, judge: Any, preset: str | None, count: int, name: str) -> float:
    """Share of the preset's clips, `count` of each kind, that the judge names right; `name` is for the progress bar."""
    from ezaudio.evaluation.judge_training import heard
    from ezaudio.evaluation.progress import bars
    from ezaudio.evaluation.report import USUAL

    right, prompts = [], seen_prompts(count, PROMPT_SEED)
    with bars() as progress:
        for seed, prompt in enumerate(prompts):
            samples = model.generate(prompt.text, preset=preset, seed=seed, **USUAL).samples[0]
            right.append(heard(judge.hear([samples])[0][0], [KINDS.index(kind) for kind in prompt.kinds]))
            progress(name, seed + 1, len(prompts))
    return float(np.mean(right))


@click.command(help=__doc__)
@click.option("--bundle", help="Folder, l, xl or nano. [the packaged model]")
@click.option("--precision", help="Of a named bundle.")
@click.option("--count", type=click.IntRange(1, 1000), default=2, show_default=True, help="Clips of each kind judged.")
@click.option("--quality/--no-quality", default=True, help="Whether the judge is asked.")
@click.option("--judge", "judge_path", type=PATH, metavar="FILE", help="Kept and used again. [default: in the cache]")
@click.option("--recordings", type=PATH, metavar="FOLDER", help="Of `ezaudio-data recordings`, for a judge to be made.")
@rounds_option
@save_option
def main(
    bundle: str | None,
    precision: str | None,
    count: int,
    quality: bool,
    judge_path: Path | None,
    recordings: Path | None,
    rounds: int,
    save: Path | None,
) -> None:
    from ezaudio.evaluation.judge_training import kept_judge
    from ezaudio.evaluation.progress import bars
    from ezaudio.runtime import TextToAudio
    from ezaudio.runtime.calibration import num_evaluations
    from ezaudio.runtime.presets import Preset

    model = TextToAudio(bundle, precision=precision, backend="onnxruntime")
    defaults = model.config.defaults
    plans = {**model.presets, "default": Preset(defaults.solver, defaults.num_steps, defaults.eta)}
    given = {name: None if name == "default" else name for name in plans}
    judge = None
    if quality:
        with bars() as progress:
            judge = kept_judge(judge_path, recordings, progress)

    def clip(preset: str | None) -> None:
        model.generate("rain falling", preset=preset, duration_s=10.0, seed=1)

    timing = interleave({name: partial(clip, preset) for name, preset in given.items()}, rounds)
    results = []
    print(f"{model.model} {model.precision}, 10 s clips; {hardware_line()}")
    for name, preset in given.items():
        plan = plans[name]
        right = None if judge is None else named_right(model, judge, preset, count, name)
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
        "ceiling": judge and judge.card.ceiling.get("taught_single"),
        "clips_of_each_kind": count if quality else 0,
        "kinds": len(KINDS),
        "presets": results,
        **timing.fields(),
    }
    write_row(row, save)


if __name__ == "__main__":
    main()
