"""The commands of `ezaudio-data` that make captions: merge, caption, write, filter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ezaudio.data.command import check_train_extra, progress_bar
from ezaudio.runtime.command import FloatRange
from ezaudio.runtime.errors import InputError

if TYPE_CHECKING:
    from ezaudio.data.manifest import Row

OUTPUT = click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="Manifest: .csv, .jsonl or .parquet."
)
QUIET = click.option("--quiet", "-q", is_flag=True, help="No progress bar.")
BATCH_SIZE = click.option("--batch-size", type=click.IntRange(1, 1024), default=8, show_default=True)
AUDIO = click.option("--audio", type=click.Path(path_type=Path), required=True, help="Folder of the sound files.")


@click.command(short_help="Join a published caption set with your audio.")
@click.argument("captions", type=click.Path(path_type=Path))
@AUDIO
@click.option("--split", default="train", show_default=True, help="What the manifest's split column says.")
@OUTPUT
def merge(captions: Path, audio: Path, split: str, output: Path) -> None:
    """Match CAPTIONS, a CSV of Auto-ACD's form (youtube_id, caption), with sound files and write a manifest.

    A file may be named ID, YID or ID_anything, in any subfolder.

    \b
    Example:
      ezaudio-data merge train.csv --audio audioset/ -o acd.jsonl
    """
    check_train_extra()
    from ezaudio.data.caption_sets import AudioFolder, merge_captions

    rows, missing = merge_captions(captions, AudioFolder(audio), split)
    _write_beside(output, rows)
    click.echo(f"{output}: {len(rows):,} captions; {missing:,} have no sound file in {audio}")


@click.command(short_help="Caption sounds with an audio-language model.")
@click.argument("manifest", type=click.Path(path_type=Path))
@click.option("--model", default="Qwen/Qwen2-Audio-7B-Instruct", show_default=True, help="Hub name or folder.")
@click.option("--prompt", help="What the model is asked. [one sentence about what is heard]")
@BATCH_SIZE
@OUTPUT
@QUIET
def caption(manifest: Path, model: str, prompt: str | None, batch_size: int, output: Path, quiet: bool) -> None:
    """Write a new caption for each clip of MANIFEST; the old one moves to the column old_caption.

    Finished captions are kept in OUTPUT.finished.jsonl, so that a stopped run goes on where it was.

    \b
    Example:
      ezaudio-data caption clips.jsonl --model Qwen/Qwen2-Audio-7B-Instruct --batch-size 16 -o qwen.jsonl
    """
    check_train_extra()
    from ezaudio.data.captioning import PROMPT, caption_manifest
    from ezaudio.data.manifest import manifest_format, read_manifest

    manifest_format(output)
    content = read_manifest(manifest)
    with progress_bar("clips", len({row.audio_path for row in content.rows}), quiet) as bar:
        rows, skipped = caption_manifest(content, model, _journal(output), prompt or PROMPT, batch_size, bar.update)
    _write_beside(output, rows)
    skipped.log()
    click.echo(f"{output}: {len(rows):,} captions")


@click.command(short_help="Let a language model write captions from temporal labels.")
@click.argument("labels", type=click.Path(path_type=Path))
@click.option("--names", type=click.Path(path_type=Path), required=True, help="mid_to_display_name.tsv of AudioSet.")
@AUDIO
@click.option("--base-url", required=True, help="OpenAI-compatible endpoint, such as https://api.example.com/v1.")
@click.option("--model", required=True, help="The model's name there.")
@click.option("--key-variable", default="OPENAI_API_KEY", show_default=True, help="Environment variable with the key.")
@click.option("--prompt", type=click.Path(path_type=Path), help="Template with {events} in it. [the built-in one]")
@click.option("--show-prompt", is_flag=True, help="Print the first request instead of sending any.")
@click.option("--requests-per-minute", type=FloatRange(0.1, 100_000), default=60.0, show_default=True)
@click.option("--parallel", type=click.IntRange(1, 64), default=4, show_default=True, help="Requests at once.")
@click.option("--timeout", type=FloatRange(0.1, 600), default=60.0, show_default=True, help="Seconds a request.")
@click.option("--prices", type=(float, float), help="Per million tokens, in and out: prints what it has cost.")
@click.option("--split", default="train", show_default=True)
@OUTPUT
@QUIET
def write(
    labels: Path,
    names: Path,
    audio: Path,
    base_url: str,
    model: str,
    key_variable: str,
    prompt: Path | None,
    show_prompt: bool,
    requests_per_minute: float,
    parallel: int,
    timeout: float,
    prices: tuple[float, float] | None,
    split: str,
    output: Path,
    quiet: bool,
) -> None:
    """Caption the segments of LABELS (AudioSet's audioset_train_strong.tsv) whose audio is at hand.

    Each answer is on disk in OUTPUT.finished.jsonl before the next counts; a stopped run goes on there and asks for
    nothing twice. Timeouts, 429 and 5xx are tried again with growing waits, or as long as Retry-After says.

    \b
    Examples:
      ezaudio-data write strong.tsv --names mid_to_display_name.tsv --audio audioset/ \\
          --base-url http://localhost:8000/v1 --model qwen -o written.jsonl --show-prompt
      OPENAI_API_KEY=... ezaudio-data write ... --requests-per-minute 500 --parallel 16 --prices 0.15 0.6
    """
    check_train_extra()
    from ezaudio.data.caption_sets import AudioFolder, read_strong_labels, video_of
    from ezaudio.data.chat import ChatClient
    from ezaudio.data.manifest import Row, manifest_format
    from ezaudio.data.writing import WritingReport, filled, read_prompt, write_captions

    manifest_format(output)
    template, folder = read_prompt(prompt), AudioFolder(audio)
    segments = read_strong_labels(labels, names)
    files = {s: path for s in segments if (path := folder.find(s) or folder.find(video_of(s)))}
    if not files:
        raise InputError(f"none of {len(segments)} segments of '{labels}' has a sound file in '{audio}'")
    segments = {segment: segments[segment] for segment in files}
    if show_prompt:
        click.echo(filled(template, next(iter(segments.values()))))
        return
    client = ChatClient(base_url, model, key_variable, requests_per_minute, timeout)
    with progress_bar("captions", len(segments), quiet) as bar:

        def progress(report: WritingReport) -> None:
            bar.update(report.written - bar.n)
            bar.set_postfix_str(_cost(report.prompt_tokens, report.completion_tokens, prices), refresh=False)

        captions, report = write_captions(segments, client, _journal(output), template, parallel, progress)
    _write_beside(output, [Row(str(files[s].absolute()), text, split, {"id": s}) for s, text in captions.items()])
    click.echo(f"{output}: {len(captions):,} captions, {_cost(report.prompt_tokens, report.completion_tokens, prices)}")
    if report.failures:
        segment, reason = next(iter(report.failures.items()))
        click.echo(
            f"{len(report.failures)} got none; run it again to try them. The first, {segment}: {reason}", err=True
        )


@click.command("filter", short_help="Keep captions that fit their sounds (CLAP).")
@click.argument("manifest", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder of what is written.")
@click.option("--model", default="laion/larger_clap_general", show_default=True, help="Hub name or folder.")
@click.option(
    "--threshold",
    "thresholds",
    type=FloatRange(-1, 1),
    multiple=True,
    default=(0.35, 0.40, 0.45),
    show_default=True,
    help="May be given repeatedly.",
)
@BATCH_SIZE
@QUIET
def filter_(
    manifest: Path, output: Path, model: str, thresholds: tuple[float, ...], batch_size: int, quiet: bool
) -> None:
    """Score each clip of MANIFEST against its caption and write a manifest for each threshold, and a histogram.

    The scores are computed once: other thresholds later read OUTPUT/scores.jsonl.

    \b
    Example:
      ezaudio-data filter acd.jsonl -o filtered/             # filtered/at_0.35.jsonl, at_0.40.jsonl, at_0.45.jsonl
      ezaudio-data filter acd.jsonl -o filtered/ --threshold 0.5
    """
    check_train_extra()
    from ezaudio.data.filtering import filter_manifest, manifest_name
    from ezaudio.data.manifest import read_manifest

    content = read_manifest(manifest)
    with progress_bar("clips", len(content), quiet) as bar:
        kept, skipped = filter_manifest(content, output, model, sorted(set(thresholds)), batch_size, bar.update)
    skipped.log()
    for threshold, number in kept.items():
        click.echo(f"{output / manifest_name(threshold)}: {number:,} of {len(content):,} captions")


def _journal(output: Path) -> Path:
    return output.with_name(f"{output.name}.finished.jsonl")


def _write_beside(output: Path, rows: list[Row]) -> None:
    """Rows of absolute paths, or of such relative to the output, as a manifest with paths relative to it."""
    from ezaudio.data.manifest import Manifest, write_manifest

    write_manifest(output, Manifest(tuple(rows), output.parent, output.name).moved_to(output.parent))


def _cost(prompt_tokens: int, completion_tokens: int, prices: tuple[float, float] | None) -> str:
    text = f"{prompt_tokens:,} + {completion_tokens:,} tokens"
    if prices is None:
        return text
    return f"{text}, {(prompt_tokens * prices[0] + completion_tokens * prices[1]) / 1e6:.2f} at the given prices"
