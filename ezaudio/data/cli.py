"""`ezaudio-data`: training data from nothing, from sound files, and from captions that models write."""

from __future__ import annotations

import logging

import click

from ezaudio import __version__
from ezaudio.data.caption_cli import caption, filter_, merge, write
from ezaudio.data.sound_cli import check, latents, recordings, render, sounds
from ezaudio.evaluation.cli import evaluate
from ezaudio.runtime.command import Group

HELP = """Prepare training data: a manifest lists sound files with captions, and shards hold their latents.

\b
From nothing, for a first training:
  ezaudio-data sounds --list                             # the kinds of sound that can be synthesised
  ezaudio-data render scenes/ --count 10000 --seed 0     # scenes of them, with captions; resumes
  ezaudio-data sounds --sheet kinds.png                  # a spectrogram of each kind

\b
The paper's caption sources:
  ezaudio-data merge auto_acd.csv --audio audioset/ -o acd.jsonl
  ezaudio-data caption clips.jsonl -o qwen.jsonl         # by an audio-language model
  ezaudio-data write strong.tsv --names mid_to_display_name.tsv --audio audioset/ \\
      --base-url https://api.example.com/v1 --model some-llm -o written.jsonl

\b
Then, for all of them:
  ezaudio-data check acd.jsonl                           # which files can be read, how many hours
  ezaudio-data filter acd.jsonl -o filtered/             # CLAP similarity at 0.35, 0.40 and 0.45
  ezaudio-data latents filtered/at_0.40.jsonl -o shards/ --model l

\b
And of what a model made:
  ezaudio-data evaluate made/ --reference audiocaps.csv --split test -o scores/

Long commands show their progress, may be stopped at any moment and go on where they were when started again with the
same settings. `ezaudio-data COMMAND --help` has the options and examples of each.

Exit code: 0 done, 2 wrong input (one line says what to do), 130 interrupted.
"""


@click.group(cls=Group, help=HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="ezaudio %(version)s")
def main() -> None:
    # What the library logs, such as the list of files that were passed over, goes to stderr as it is.
    logging.basicConfig(level=logging.WARNING, format="%(message)s")


for command in (sounds, render, recordings, merge, caption, write, check, filter_, latents, evaluate):
    main.add_command(command)
