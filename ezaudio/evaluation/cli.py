"""`ezaudio-data evaluate`: a set of generated sounds beside recorded ones."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from ezaudio.data.caption_cli import BATCH_SIZE, QUIET
from ezaudio.data.command import check_train_extra, progress_bar


@click.command(short_help="Compare sounds that were made with recorded ones (FD, KL, IS, CLAP).")
@click.argument("made", type=click.Path(path_type=Path))
@click.option("--reference", type=click.Path(path_type=Path), metavar="MANIFEST", help="Recorded clips with captions.")
@click.option("--split", metavar="NAME", help="Of the reference, such as test. [all]")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder of what is written.")
@click.option("--clap", default="laion/larger_clap_general", show_default=True, help="Hub name or folder.")
@click.option(
    "--tagger", default="MIT/ast-finetuned-audioset-10-10-0.4593", show_default=True, help="Of AudioSet's classes."
)
@BATCH_SIZE
@QUIET
def evaluate(
    made: Path,
    reference: Path | None,
    split: str | None,
    output: Path,
    clap: str,
    tagger: str,
    batch_size: int,
    quiet: bool,
) -> None:
    """Measure MADE, a folder of sounds from ezaudio-run or a manifest, and write OUTPUT/evaluation.json.

    CLAP similarity to the captions and the inception score need nothing else; the Fréchet distance and the divergence
    compare with a reference. Each clip is heard once: what is in OUTPUT/heard.jsonl is not heard again. Numbers compare
    only where CLAP and the tagger are the same.

    \b
    Example:
      mkdir made && ezaudio-run --prompts-file captions.txt --bundle l -o made/
      ezaudio-data evaluate made/ --reference audiocaps.csv --split test -o scores/
    """
    check_train_extra()
    from ezaudio.evaluation.sets import JOURNAL, REPORT, compare, hear, read_set, told
    from ezaudio.runtime.naming import make_folder, replace_file

    sets = [read_set(made)] + ([] if reference is None else [read_set(reference, split)])
    make_folder(output)
    heard = []
    with progress_bar("clips", sum(map(len, sets)), quiet) as bar:
        for one in sets:
            found, skipped = hear(one, clap, tagger, output / JOURNAL, batch_size, bar.update)
            heard.append(found)
            skipped.log()
    report = compare(heard[0], heard[1] if reference is not None else None)
    record = {"clap_model": clap, "tagger_model": tagger, **asdict(report)}
    replace_file(output / REPORT, (json.dumps(record, indent=2) + "\n").encode())
    click.echo("\n".join(told(report)))
