"""How good the packaged model is: a judge that learnt from held-out sounds names what it hears in generated clips.

    ezaudio-data recordings recordings                                          # once: the recorded animals
    python benchmarks/nano_quality.py --recordings recordings --save
    python benchmarks/nano_quality.py --recordings recordings --bundle FOLDER --preset fast --count 8
    python benchmarks/nano_quality.py --recordings recordings --confusion confusion.png --sheet sheet.png

The judge, a small network, is trained once and kept. It learns from seeds and recorded events that
no training uses; how often it names yet other renderings right is the ceiling for any model. Told are the shares of
clips named right for captions as in training, for wordings that were held out and for two sounds at once (both
heard), what the autoencoder keeps of held-out sounds, and the Fréchet distance to held-out renderings.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from measure import hardware_line, save_option, write_row

from ezaudio.runtime.command import Command
from ezaudio.runtime.naming import Destination, replace_file
from ezaudio.runtime.spectrogram import check_plot_extra

PATH = click.Path(path_type=Path)


@click.command(cls=Command, help=__doc__)
@click.option("--bundle", metavar="NAME|FOLDER", help="[default: the packaged model]")
@click.option("--precision", help="Which exported bundle of a named model.")
@click.option("--recordings", type=PATH, metavar="FOLDER", help="Of `ezaudio-data recordings`.")
@click.option("--judge", "judge_path", type=PATH, metavar="FILE", help="Kept and used again. [default: in the cache]")
@click.option("--count", type=click.IntRange(1, 1000), default=4, show_default=True, help="Clips a kind and wording.")
@click.option("--seed", type=click.IntRange(0, 10**6), default=0, show_default=True, help="Of the first clip.")
@click.option("--duration", "duration_s", type=float, default=5.0, show_default=True, help="Seconds a clip.")
@click.option("--preset", help="A sampling plan of the bundle.")
@click.option("--steps", "num_steps", type=int, help="[default: 25, or the preset's]")
@click.option("--guidance", "guidance_scale", type=float, default=5.0, show_default=True)
@click.option("--rescale", "guidance_rescale", type=float, default=0.75, show_default=True)
@click.option("--confusion", type=PATH, metavar="FILE.png", help="Draw what each kind was taken for.")
@click.option("--sheet", type=PATH, metavar="FILE.png", help="Draw a clip of each kind with the judge's verdict.")
@save_option
def main(
    bundle: str | None,
    precision: str | None,
    recordings: Path | None,
    judge_path: Path | None,
    count: int,
    seed: int,
    confusion: Path | None,
    sheet: Path | None,
    save: Path | None,
    **settings: Any,
) -> None:
    pictures = {"--confusion": confusion, "--sheet": sheet}
    for flag, path in pictures.items():
        if path is not None:
            check_plot_extra()
            Destination.parse(str(path), flag)
    from ezaudio.evaluation.figures import confusion_png, examples_png
    from ezaudio.evaluation.judge_training import kept_judge
    from ezaudio.evaluation.progress import bars
    from ezaudio.evaluation.report import draw_prompts, evaluate, told
    from ezaudio.runtime.text_to_audio import TextToAudio

    model = TextToAudio(bundle, precision=precision)
    with bars() as progress:
        judge = kept_judge(judge_path, recordings, progress)
        report = evaluate(model, judge, draw_prompts(count, seed), recordings, seed, progress, **settings)
    click.echo(hardware_line())
    click.echo("\n".join(told(report)))
    for path, draw in ((confusion, confusion_png), (sheet, examples_png)):
        if path is not None:
            replace_file(path, draw(report))
    write_row(
        {"benchmark": "nano_quality", "count": count, "recordings": recordings is not None, **report.to_dict()}, save
    )


if __name__ == "__main__":
    main()
