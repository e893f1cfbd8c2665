"""`ezaudio-train nano`."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from ezaudio.runtime.command import FloatRange, errors_only


@click.command("nano", short_help="The packaged model, from nothing or further, to a judged bundle.")
@click.argument("folder", metavar="RUN", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--recordings",
    type=click.Path(path_type=Path, exists=True),
    help="Folder of `ezaudio-data recordings`. [synthesised sounds alone]",
)
@click.option(
    "--effort",
    type=FloatRange(min=0, max=1000, min_open=True),
    default=1.0,
    show_default=True,
    help="Multiplies the steps of every stage.",
)
@click.option(
    "--further",
    metavar="nano|FOLDER",
    help="Begin with a trained model, the packaged one or a RUN/model: other scenes, the last stages again.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Of scenes and noise: another one each time that a model is trained further.",
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads. Use fewer when cores are shared.")
@click.option("--quiet", "-q", is_flag=True, callback=errors_only, help="Print errors only.")
def nano(
    folder: Path,
    recordings: Path | None,
    effort: float,
    further: str | None,
    seed: int,
    threads: int | None,
    quiet: bool,
) -> None:
    """Scenes, autoencoder, text encoder and the three stages of the model in the package; goes on where it stopped.

    RUN/model then is a model, RUN/bundle is that exported, and RUN/quality.json says how well it does:
    ezaudio-run "dog barking" --bundle RUN/bundle. Once more: ezaudio-train nano MORE --further RUN/model --seed 1.
    """
    import torch

    from ezaudio.evaluation.report import told
    from ezaudio.training.nano import recipe

    if threads:
        torch.set_num_threads(threads)
    given = ["ezaudio-train", "nano", str(folder), *(["--recordings", str(recordings)] if recordings else [])]
    given += [*(["--effort", f"{effort:g}"] if effort != 1 else []), *(["--further", further] if further else [])]
    given += ["--seed", str(seed)] if seed else []
    made = recipe.further(further, effort, seed) if further else recipe.recipe(effort, seed)
    report = recipe.train_nano(folder, recordings, made, quiet, shlex.join(given))
    if not quiet:
        click.echo("\n".join(told(report)))
