"""`ezaudio-run`: prompts → audio files, from the command line.

Everything that can be checked is checked before the model runs, and each file appears whole or not at all. NumPy,
soundfile and ONNX Runtime are imported where used: `--help` answers at once.
"""

from __future__ import annotations

import json
import math
import secrets
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ezaudio import __version__
from ezaudio.runtime.audio_file import (
    SUPPORTED_FORMATS,
    audio_format,
    check_bit_depth,
    encode_audio,
    encode_metadata,
    read_settings,
)
from ezaudio.runtime.command import Command, Numbers, errors_only, one_line
from ezaudio.runtime.errors import BundleError, InputError
from ezaudio.runtime.given_sound import GivenSound
from ezaudio.runtime.naming import Destination, file_stem
from ezaudio.runtime.prompts import check_prompts, read_prompts_file
from ezaudio.runtime.spectrogram import check_plot_extra, spectrogram_png

if TYPE_CHECKING:
    from ezaudio.runtime.settings import Generation, Settings, Step
    from ezaudio.runtime.text_to_audio import TextToAudio

MAX_SOUNDS = 10_000

HELP = """Make sound from text.

Writes one file for each PROMPT, named after it, into the current folder. Put a prompt of several words in quotes.

\b
Examples:
  ezaudio-run "a dog barks in the distance"             # writes a_dog_barks_in_the_distance.wav
  ezaudio-run "rain on a tin roof" -o rain.flac --duration 8 --seed 7
  ezaudio-run "church bells" --variations 4 -o takes/   # four seeds; the folder must exist
  ezaudio-run --prompts-file prompts.txt --format ogg -o sounds/
  ezaudio-run "waves" --negative "music, speech" --steps 50 --guidance 4
  ezaudio-run "hail on a window" --preset fast          # or balanced, best, official: time against fidelity
  ezaudio-run "a train passes" --bundle xl --spectrogram train.png
  ezaudio-run "a door slams" --edit street.wav --between 2,3.5   # that part anew, the rest as it was
  ezaudio-run "footsteps" --control claps.wav --bundle l         # follows their loudness, with its ControlNet
  ezaudio-run --from rain.flac -o again.flac            # the same sound again
  ezaudio-run --from rain.flac --seed 8                 # the same settings, another seed

A file remembers how it was made: its comment holds every setting as JSON, which --from reads. A name made from a
prompt never replaces a file (rain.wav, then rain-2.wav); a FILE named by -o or --spectrogram is replaced. Settings
that are not given are the preset's or, without --preset, the model's own.

Exit code: 0 done, 2 wrong input (one line says what to do), 130 interrupted.
"""

# Setting → types that metadata may hold. These names are the keywords of `TextToAudio.settings`, too.
SETTINGS: dict[str, tuple[type, ...]] = {
    "prompt": (str,),
    "negative_prompt": (str,),
    "duration_s": (int, float),
    "num_steps": (int,),
    "guidance_scale": (int, float),
    "guidance_rescale": (int, float),
    "eta": (int, float),
    "seed": (int,),
    "solver": (str,),
    "noise": (str,),
    "spacing": (int, float),
    "guidance_interval": (list,),
    "reuse": (list,),
}


def _tell(message: str) -> None:
    if not click.get_current_context().params["quiet"]:
        click.echo(one_line(message), err=True)


@dataclass(frozen=True, slots=True)
class Job:
    """What to make and where it goes: one sound for each entry of `sounds`, in turn.

    Attributes:
        sounds: the settings that the user or `--from` named; the bundle's defaults fill the rest.
        bit_depth: None for a format that has none.
        sound: to edit or to follow.
    """

    sounds: list[dict[str, Any]]
    output: Destination
    format: str
    bit_depth: int | None
    spectrogram: Destination | None
    as_json: bool
    quiet: bool
    sound: GivenSound | None


@click.command(cls=Command, help=HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("prompts", nargs=-1, metavar="PROMPT...")
@click.option("--prompts-file", metavar="FILE|-", help="One prompt per line (- reads stdin); # starts a comment.")
@click.option("--from", "source", metavar="FILE", help="Repeat FILE; options given change single settings.")
@click.option("-o", "--output", metavar="FILE|FOLDER", help="Where to write; several sounds need a folder that exists.")
@click.option("--format", type=click.Choice(list(SUPPORTED_FORMATS)), help="Format of files in a folder. [wav]")
@click.option("--bit-depth", type=click.Choice(["16", "24", "32"]), help="wav: any, 32 is float; flac: 16 or 24. [16]")
@click.option("--spectrogram", metavar="PNG|FOLDER", help="Draw the spectrogram too. Needs ezaudio[plot].")
@click.option("--preset", metavar="NAME", help="Steps and shortcuts: fast, balanced, best or official.")
@click.option("--duration", "--duration-s", "duration_s", type=float, metavar="S", help="Seconds of sound.")
@click.option("--steps", "--num-steps", "num_steps", type=int, metavar="N", help="Sampling steps; more take longer.")
@click.option(
    "--guidance",
    "--guidance-scale",
    "guidance_scale",
    type=float,
    metavar="X",
    help="How closely to follow the prompt.",
)
@click.option(
    "--rescale", "--guidance-rescale", "guidance_rescale", type=float, metavar="X", help="0 to 1: tames guidance."
)
@click.option(
    "--guidance-interval",
    type=Numbers(float),
    metavar="LOW,HIGH",
    help="Noise levels to guide, 0 (clean) to 1; a step beyond costs half. [0,1]",
)
@click.option(
    "--reuse", type=Numbers(int), metavar="N,N,...", help="Steps (from 0) that reuse the inner blocks. [none]"
)
@click.option("--negative", "--negative-prompt", "negative_prompt", metavar="TEXT", help="What must not be heard.")
@click.option("--seed", type=int, metavar="N", help="Same seed, same sound. [random, and reported]")
@click.option(
    "--variations", type=click.IntRange(1), default=1, metavar="N", help="Sounds per prompt, seeds counting up."
)
@click.option("--edit", metavar="FILE", help="Make a part of this sound anew; mono at the model's rate.")
@click.option(
    "--between",
    type=Numbers(float),
    metavar="START,END",
    help="The part, in seconds; past the end the sound is continued.",
)
@click.option("--control", metavar="FILE", help="Follow the loudness of this sound; needs a bundle with a ControlNet.")
@click.option("--control-scale", type=float, metavar="X", help="How closely to follow it; 0 is not at all. [1]")
@click.option("--solver", metavar="NAME", help="ddim, dpmpp_2m or dpmpp_2m_sde.")
@click.option("--spacing", type=float, metavar="X", help="1: even timesteps; to 4: denser at high noise. [1]")
@click.option("--eta", type=float, metavar="X", help="Noise added by each step: 0 (none) to 1.")
@click.option("--noise", type=click.Choice(["torch", "philox"]), help="Random stream; torch is PyTorch's. [torch]")
@click.option("--bundle", metavar="DIR|l|xl", help="Model to use. [the small one in the package]")
@click.option("--precision", metavar="NAME", help="Which one of the bundle: fp32, fp16, bf16, int8, fp8, w8 or w4.")
@click.option("--backend", metavar="NAME", default="auto", help="What computes, see ezaudio-doctor. [the best here]")
@click.option("--device", metavar="NAME", help="Of the backend torch: cuda, cuda:N or cpu. [a GPU where there is one]")
@click.option("--low-memory", is_flag=True, help="Keep one part of the model in memory at a time; a little slower.")
@click.option("--threads", type=click.IntRange(1, 1024), metavar="N", help="CPU threads. [all cores]")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON per file on stdout, the rest on stderr.")
@click.option("--quiet", "-q", is_flag=True, callback=errors_only, help="Print errors only (and what --json prints).")
@click.version_option(__version__, message="ezaudio %(version)s")
def main(
    prompts: tuple[str, ...],
    prompts_file: str | None,
    source: str | None,
    output: str | None,
    format: str | None,
    bit_depth: str | None,
    spectrogram: str | None,
    seed: int | None,
    variations: int,
    edit: str | None,
    between: list[float] | None,
    control: str | None,
    control_scale: float | None,
    bundle: str | None,
    precision: str | None,
    backend: str,
    device: str | None,
    threads: int | None,
    low_memory: bool,
    as_json: bool,
    quiet: bool,
    **given: Any,
) -> None:
    given = {name: value for name, value in given.items() if value is not None}
    made_with: dict[str, Any] = {}
    sound = GivenSound.of_options(edit, between, control, control_scale)
    if sound is not None and sound.region is not None and "duration_s" in given:
        raise InputError("--edit keeps the length of its file: leave out --duration")
    if sound is not None:
        given["control_scale"] = sound.control_scale
    if source is not None:
        if prompts or prompts_file is not None:
            raise InputError("--from brings its own prompt: leave out PROMPT and --prompts-file")
        if "preset" in given:
            raise InputError("--from brings its own settings: leave out --preset")
        if sound is not None:
            raise InputError("--from repeats a sound made from text alone: leave out --edit and --control")
        made_with = _read_source(source)
        if {"num_steps", "solver"} & given.keys():
            made_with["reuse"] = []  # it names steps of the plan that these change
        stored = {name: made_with[name] for name in SETTINGS}
        if given.get("solver", stored["solver"]) != stored["solver"]:
            del stored["eta"]  # another solver adds its own usual noise, or none
        given = stored | given
        seed = made_with["seed"] if seed is None else seed
        prompts = (made_with["prompt"],)
    words = prompts if len(prompts) > 1 and not any(" " in prompt.strip() for prompt in prompts) else ()
    if prompts_file is not None:
        prompts += read_prompts_file(prompts_file)
    check_prompts(prompts)
    if len(prompts) * variations > MAX_SOUNDS:
        raise InputError(
            f"{len(prompts) * variations:,} sounds asked for, at most {MAX_SOUNDS:,} a run: split the prompts"
        )
    first = secrets.randbelow(2**32) if seed is None else seed
    seeds = range(first, first + variations)
    sounds = [{**given, "prompt": prompt, "seed": seed} for prompt in prompts for seed in seeds]

    destination, format = _plan_output(output, format, source, len(sounds))
    depth = _plan_bit_depth(format, bit_depth, made_with.get("bit_depth"))
    picture = _plan_spectrogram(spectrogram, len(sounds))
    model = _load_model(bundle, precision, Opening(backend, device, threads, low_memory), source, made_with)
    if words:
        _tell(f"Note: {len(words)} prompts of one word each; quotes around them make one prompt.")
    if sound is not None:
        sound = sound.read(model)
        if note := sound.changes(model.sample_rate):
            _tell(f"Note: {note}")
    _run(Job(sounds, destination, format, depth, picture, as_json, quiet, sound), model)


def _run(job: Job, model: TextToAudio) -> None:
    """Checks the settings of every sound, then makes one after the other."""

    def metadata_of(settings: Settings) -> dict[str, Any]:
        maker = {"ezaudio": __version__, "model": model.model, "precision": model.precision}
        depth = {} if job.bit_depth is None else {"bit_depth": job.bit_depth}
        return {**maker, "bundle_id": model.bundle_id, **settings.to_dict(), **depth}

    checked = [model.settings(**given) for given in job.sounds]
    for settings in checked:
        encode_metadata(metadata_of(settings))
    for number, settings in enumerate(checked, start=1):
        stem = file_stem(settings.prompt)
        start = time.perf_counter()
        label = f"{stem} ({number}/{len(checked)})" if len(checked) > 1 else stem
        generation = _generate(model, settings, label, job)
        elapsed_s = time.perf_counter() - start

        samples, sample_rate, settings = generation.samples[0], generation.sample_rate, generation.settings[0]
        audio = encode_audio(samples, sample_rate, job.format, metadata_of(settings), job.bit_depth or 16)
        picture = spectrogram_png(samples, sample_rate, settings.prompt) if job.spectrogram else b""
        path = job.output.write(stem, f".{job.format}", audio)
        picture_path = job.spectrogram.write(path.stem, ".png", picture) if job.spectrogram else None

        audio_s = len(samples) / sample_rate
        if settings.edit is not None and job.bit_depth != 32 and (peak := float(abs(samples).max())) > 1:
            loss = f"all of it was turned down by {20 * math.log10(peak):.1f} dB"
            _tell(f"Note: the edited sound is beyond full scale: {loss}; --bit-depth 32 in a wav keeps its level")
        for warning in generation.warnings:
            _tell(f"Warning: {warning}")
        if job.as_json:
            report = {
                "file": str(path),
                "spectrogram": str(picture_path) if picture_path else None,
                "audio_s": audio_s,
                "elapsed_s": elapsed_s,
                "real_time_factor": elapsed_s / audio_s,
                "sample_rate": sample_rate,
                "warnings": generation.warnings,
                "metadata": metadata_of(settings),
            }
            click.echo(json.dumps(report))
        elif not job.quiet:
            cost = f"{elapsed_s:.2f} s (real-time factor {elapsed_s / audio_s:.3f}, seed {settings.seed})"
            click.echo(f"{path}: {audio_s:.2f} s of audio in {cost}")


def _generate(model: TextToAudio, settings: Settings, label: str, job: Job) -> Generation:
    from tqdm import tqdm

    given = {name: getattr(settings, name) for name in SETTINGS if name != "prompt"}
    # None: no bar where stderr is no terminal
    hidden = True if job.quiet else None
    with tqdm(total=settings.num_steps, desc=label, unit="step", leave=False, disable=hidden) as bar:

        def on_step(step: Step) -> None:
            bar.update()

        if job.sound is None:
            return model.generate([settings.prompt], **given, on_step=on_step)
        return job.sound.generate(model, settings.prompt, **given, on_step=on_step)


def _read_source(source: str) -> dict[str, Any]:
    """The settings stored in a file that ezaudio made, each of the right type; ranges are checked with the bundle."""
    found = read_settings(source)
    for name, types in (SETTINGS | dict.fromkeys(("model", "precision", "bundle_id"), (str,))).items():
        if not isinstance(found.get(name), types) or isinstance(found[name], bool):
            got = f"has {name} = {json.dumps(found[name])[:40]}" if name in found else f"lacks {name}"
            raise InputError(f"--from: '{source}' {got}, so it cannot be repeated: name a file as ezaudio-run wrote it")
    if given := {"edit", "control_scale"} & found.keys():
        how = "an edit of another sound" if "edit" in given else "steered by another sound"
        raise InputError(f"--from: '{source}' is {how}, which it does not hold: name a file made from text alone")
    return found


def _plan_output(output: str | None, format: str | None, source: str | None, num_files: int) -> tuple[Destination, str]:
    """Where the sounds go, and their format: that of the named file, else `--format`, that of `--from`, or wav."""
    destination = Destination.parse(output, "--output", num_files)
    if destination.name is None:
        source_format = Path(source or "").suffix.lower().removeprefix(".")
        return destination, format or (source_format if source_format in SUPPORTED_FORMATS else "wav")
    named = audio_format(destination.name)
    if format not in (None, named):
        raise InputError(f"--format {format} contradicts --output '{output}': leave one out, or name a folder")
    return destination, named


def _plan_bit_depth(format: str, given: str | None, of_source: Any) -> int | None:
    if given is not None:
        check_bit_depth(format, int(given))
        return int(given)
    depths = SUPPORTED_FORMATS[format]
    return next((depth for depth in depths if depth == of_source), depths[0] if depths else None)


def _plan_spectrogram(given: str | None, num_files: int) -> Destination | None:
    if given is None:
        return None
    check_plot_extra()
    destination = Destination.parse(given, "--spectrogram", num_files)
    if destination.name is not None and not destination.name.lower().endswith(".png"):
        raise InputError(f"--spectrogram: '{given}' does not end in .png: name a PNG file, or a folder that exists")
    return destination


@dataclass(frozen=True, slots=True)
class Opening:
    """How a bundle is opened."""

    backend: str
    device: str | None
    threads: int | None
    low_memory: bool


def _open_bundle(bundle: str | None, precision: str | None, opening: Opening) -> TextToAudio:
    from tqdm import tqdm

    from ezaudio.runtime.bundle_store import find_bundle
    from ezaudio.runtime.text_to_audio import TextToAudio

    hidden = True if click.get_current_context().params["quiet"] else None
    bar = tqdm(desc="checking the bundle", unit="B", unit_scale=True, delay=1, leave=False, disable=hidden)
    with bar:

        def on_verify(count: int, total: int) -> None:
            bar.total = total
            bar.update(count)

        folder = find_bundle(bundle, precision)
        return TextToAudio(folder, **asdict(opening), on_verify=on_verify)


def _load_model(
    bundle: str | None,
    precision: str | None,
    opening: Opening,
    source: str | None,
    made_with: dict[str, Any],
) -> TextToAudio:
    """The bundle named by the user, else the one that `source` was made with, else the packaged one."""
    if not made_with:
        return _open_bundle(bundle, precision, opening)
    named = bundle is not None or precision is not None
    if not named and made_with["model"] in ("l", "xl"):
        bundle, precision = made_with["model"], made_with["precision"]
    model = _open_bundle(bundle, precision, opening)
    if model.bundle_id != made_with["bundle_id"]:
        maker = f"model {made_with['model']!r} in {made_with['precision']} (bundle {made_with['bundle_id']})"
        other = f"model {model.model!r} in {model.precision} (bundle {model.bundle_id})"
        if not named:
            fix = "name the bundle it was made with by --bundle DIR; any other named so makes another sound"
            raise BundleError(f"'{source}' was made with {maker}, but at hand is {other}: {fix}")
        _tell(f"Warning: '{source}' was made with {maker}: {other} makes another sound")
    return model
