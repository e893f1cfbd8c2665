"""`ezaudio-train`: the autoencoder, the three stages of the diffusion transformer, the ControlNet."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ezaudio import __version__
from ezaudio.runtime.command import Group, errors_only
from ezaudio.runtime.errors import InputError, MissingExtraError
from ezaudio.training.nano.cli import nano

if TYPE_CHECKING:
    from ezaudio.checkpoints import ModelSource
    from ezaudio.dit import MaskDiT
    from ezaudio.training.settings import RunSettings
    from ezaudio.training.trainer import Task

NEEDED = ("torch", "accelerate", "transformers", "safetensors", "tokenizers", "scipy")
PROMPTS = ("a dog barking", "rain falling on a roof", "church bells ringing", "a man speaks, followed by applause")

HELP = """Train EzAudio from sound files with captions.

\b
The paper's recipe:
  ezaudio-train vae runs/vae --data sounds.jsonl --model l             # or take the released autoencoder
  ezaudio-train stage1 runs/s1 --data sounds.jsonl --model l           # sound alone: completing masked clips
  ezaudio-train stage2 runs/s2 --data captions.jsonl --start runs/s1   # with captions, those that models wrote
  ezaudio-train stage3 runs/s3 --data human.jsonl --start runs/s2      # with captions that people wrote
  ezaudio-export --model l --checkpoint runs/s3/dit.safetensors        # to a bundle

\b
The model in the package, from synthesised sounds:
  ezaudio-train nano runs/nano && ezaudio-run "dog barking" --bundle runs/nano/bundle

\b
On several GPUs or machines, by accelerate's launcher:
  accelerate launch -m ezaudio.training stage2 runs/s2 --data captions.jsonl --start runs/s1

The manifest is CSV, JSON Lines or Parquet with audio_path, caption and split; ezaudio-data makes and checks them. The
same command again continues a stopped run from its last checkpoint, and computes what an uninterrupted run would have.
A run's folder holds checkpoints/, metrics.jsonl, loss.png, samples/ and tensorboard/ (tensorboard --logdir runs).

Exit code: 0 done, 2 wrong input (one line says what to do), 130 interrupted.
"""

Function = Callable[..., Any]


@click.group(cls=Group, help=HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="ezaudio %(version)s")
def main() -> None:
    # What a library warns of, such as files that were passed over, is for the user.
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise MissingExtraError(f'training needs {", ".join(missing)}: pip install "ezaudio[train]"')


def options(*added: Callable[[Function], Function]) -> Callable[[Function], Function]:
    """What every kind of training takes, then `added`. The presets' values are those of the paper or the release."""
    common: tuple[Callable[[Function], Function], ...] = (
        click.argument("run", type=click.Path(path_type=Path, file_okay=False)),
        click.option(
            "--data",
            type=click.Path(path_type=Path),
            required=True,
            metavar="MANIFEST|SHARDS",
            help="Sounds with captions, or what `ezaudio-data latents` made of them.",
        ),
        click.option("--split", default="train", show_default=True, help="Rows of the manifest to train on."),
        click.option("--model", metavar="l|xl|FOLDER", default="l", show_default=True, help="What is trained."),
        click.option("--checkpoint", type=click.Path(path_type=Path), help="Local copy of the release. [from the Hub]"),
        click.option("--text-encoder", type=click.Path(path_type=Path), help="Local FLAN-T5 folder. [from the Hub]"),
        click.option("--random-weights", is_flag=True, help="Of all that is not trained: trying out, no downloads."),
        *added,
        click.option("--steps", "num_steps", type=click.IntRange(min=1), help="Length of the run."),
        click.option("--batch-size", type=click.IntRange(min=1), help="Clips a step, over all GPUs."),
        click.option("--accumulation", type=click.IntRange(min=1), help="Parts that a GPU's share is computed in."),
        click.option("--learning-rate", type=float, metavar="X"),
        click.option("--warmup-steps", type=click.IntRange(min=0)),
        click.option("--precision", type=click.Choice(["fp32", "bf16", "fp16"]), help="Of the products. [bf16]"),
        click.option(
            "--optimizer",
            type=click.Choice(["adamw", "muon"]),
            help="muon: for transformers; learns in fewer steps from random weights. [adamw]",
        ),
        click.option("--gradient-checkpointing", is_flag=True, default=None, help="Slower, with far less memory."),
        click.option("--fused", is_flag=True, default=None, help="Triton kernels; needs a GPU."),
        click.option("--recorded", is_flag=True, default=None, help="Steps as CUDA graphs: what makes --fused fast."),
        click.option("--clip-s", type=float, metavar="S", help="Length of the clips."),
        click.option("--ema-decay", type=float, metavar="X", help="Of the average that is published."),
        click.option("--seed", type=click.IntRange(min=0)),
        click.option("--save-every", type=click.IntRange(min=1), metavar="N", help="Steps between checkpoints."),
        click.option("--sample-every", type=click.IntRange(min=0), metavar="N", help="Steps between sounds; 0: none."),
        click.option("--keep", type=click.IntRange(min=1), metavar="N", help="Checkpoints that stay."),
        click.option("--workers", type=click.IntRange(0, 256), default=4, show_default=True, help="That read sounds."),
        click.option("--quiet", "-q", is_flag=True, callback=errors_only, help="Print errors only."),
    )

    def decorate(function: Function) -> Function:
        for option in reversed(common):
            function = option(function)
        return function

    return decorate


START = click.option("--start", type=click.Path(path_type=Path), metavar="RUN|FILE", help="Weights to go on from.")
PROMPT = click.option(
    "--prompt", "prompts", multiple=True, metavar="TEXT", help="To make sounds of while training; repeatable."
)
GAMMA = click.option("--min-snr-gamma", type=float, metavar="X", help="Weigh timesteps by min(SNR, X). [all alike]")


@main.command("stage1", short_help="Diffusion of sound alone, masked clips completed.")
@options(START, GAMMA)
def stage1(**given: Any) -> None:
    """Masked diffusion without text, 100,000 steps of 128 clips at 1e-4.

    Of three quarters of the clips 25 to 100 % of the frames are made from the rest, in stretches of 0.2 s and more; of
    the others all.
    """
    _train_stage("stage1", given)


@main.command("stage2", short_help="With captions; cross-attention is added.")
@options(START, PROMPT, GAMMA)
def stage2(**given: Any) -> None:
    """Text to audio on captions that models wrote, 50,000 steps of 128 clips at 5e-5.

    Cross-attention starts as nothing, its output projections at zero. A tenth of the captions is emptied, for guidance.
    """
    if given["start"] is None:
        raise InputError("stage2 goes on from stage1: give its run with --start")
    _train_stage("stage2", given)


@main.command("stage3", short_help="Fine-tuning on captions that people wrote.")
@options(START, PROMPT, GAMMA)
def stage3(**given: Any) -> None:
    """Fine-tuning, 30,000 steps of 128 clips at 1e-5, of a run or, without --start, of the model's own weights."""
    _train_stage("stage3", given)


@main.command("controlnet", short_help="Energy ControlNet on a frozen transformer.")
@options(START, GAMMA)
def controlnet(start: Path | None, min_snr_gamma: float | None, **given: Any) -> None:
    """The energy ControlNet. The transformer (the model's own, or of --start) stays as it is."""
    import torch

    from ezaudio.controlnet import ControlNet
    from ezaudio.training.latent_diffusion import ControlNetTask, start_controlnet
    from ezaudio.training.settings import RUNS, ControlNetStage

    source, run = _opened(given), _run_settings(RUNS["controlnet"], given)
    torch.manual_seed(run.seed)
    dit = source.dit() if start is None else _started(source, start)
    network = start_controlnet(ControlNet(source.config.dit, source.config.controlnet), dit)
    _prepare(dit, run)
    if run.fused:
        network.fuse()
    stage = replace(ControlNetStage(), min_snr_gamma=min_snr_gamma)
    base_file = given["checkpoint"] if start is None else _file(start)
    publish = partial(_publish, source, given, base=dit, base_file=base_file)
    _train(ControlNetTask(_encoders(source, True), dit, network, stage, run.schedule, publish), run, source, given)


@main.command("vae", short_help="The waveform autoencoder, with discriminators.")
@options(
    click.option("--resume-weights", is_flag=True, help="Go on from the model's own autoencoder. [from scratch]"),
)
def vae(resume_weights: bool, **given: Any) -> None:
    """The autoencoder with the settings of the released one: spectra, KL, discriminators."""
    import torch

    from ezaudio.training.autoencoder import AutoencoderTask
    from ezaudio.training.settings import RUNS, AutoencoderLosses
    from ezaudio.vae import AutoencoderOobleck

    source, run = _opened(given), _run_settings(RUNS["vae"], given)
    if run.fused or run.gradient_checkpointing:
        raise InputError("--fused and --gradient-checkpointing are for transformers: leave them out")
    torch.manual_seed(run.seed)
    network = source.vae().unfold_weight_norm() if resume_weights else AutoencoderOobleck(source.config.vae)
    losses = AutoencoderLosses()
    longest = max(*losses.windows, *losses.judged_windows) / source.config.vae.sample_rate
    if run.clip_s < 2 * longest:
        raise InputError(f"clips must be at least {2 * longest:.2f} s for the longest window, got {run.clip_s:g} s")
    _train(AutoencoderTask(network, run.schedule, losses, partial(_publish, source, given)), run, source, given)


main.add_command(nano)


def _train_stage(name: str, given: dict[str, Any]) -> None:
    import torch

    from ezaudio.dit import MaskDiT
    from ezaudio.training.latent_diffusion import LatentDiffusionTask, start_cross_attention
    from ezaudio.training.settings import RUNS, STAGES

    source, run = _opened(given), _run_settings(RUNS[name], given)
    stage = replace(STAGES[name], min_snr_gamma=given["min_snr_gamma"])
    torch.manual_seed(run.seed)
    if given["start"] is not None:
        dit = _started(source, given["start"])
    else:
        dit = MaskDiT(source.config.dit) if name == "stage1" else source.dit()
    if name == "stage2":
        start_cross_attention(dit)
    _prepare(dit, run)
    prompts = given.get("prompts") or PROMPTS
    publish = partial(_publish, source, given)
    encoders = _encoders(source, stage.with_text)
    task = LatentDiffusionTask(encoders, dit, stage, run.schedule, prompts, run.clip_s, publish)
    _train(task, run, source, given)


def _prepare(dit: MaskDiT, run: RunSettings) -> None:
    """Let it compute as the run asks for. Raises InputError where the machine cannot."""
    import torch

    if run.gradient_checkpointing:
        dit.checkpoint_blocks()
    if run.fused:
        if not torch.cuda.is_available():
            raise InputError("--fused needs a GPU: leave it out")
        dit.fuse()


def _opened(given: dict[str, Any]) -> ModelSource:
    from ezaudio.checkpoints import open_source

    return open_source(
        given["model"],
        checkpoint=given["checkpoint"],
        text_encoder=given["text_encoder"],
        random_weights=given["random_weights"],
    )


def _run_settings(preset: RunSettings, given: dict[str, Any]) -> RunSettings:
    from dataclasses import fields

    from ezaudio.training.settings import changed

    names = {f.name for f in fields(preset)} | {"learning_rate", "warmup_steps"}
    return changed(preset, {name: value for name, value in given.items() if name in names})


def _started(source: ModelSource, start: Path) -> MaskDiT:
    """The transformer of `_file`."""
    from ezaudio.dit import MaskDiT
    from ezaudio.weights import load_weights, read_state_dict

    path = _file(start)
    dit = MaskDiT(source.config.dit)
    load_weights(dit, read_state_dict(path, entry="model" if path.suffix == ".pt" else None), f"'{path}'")
    return dit


def _file(start: Path) -> Path:
    """Weights of a finished run, of one that goes on (its last average), or the file itself."""
    from ezaudio.training.checkpoint import stored_checkpoints

    path = start
    if start.is_dir():
        path = start / "dit.safetensors"
        if not path.is_file():
            found = stored_checkpoints(start)
            if not found:
                raise InputError(f"'{start}' is no run: it has neither dit.safetensors nor checkpoints")
            path = found[-1] / "average.safetensors"
    if not path.is_file():
        raise InputError(f"no weights at '{path}': --start takes a run's folder or a file")
    return path


def _encoders(source: ModelSource, with_text: bool) -> Any:
    from tokenizers import Tokenizer

    from ezaudio.training.encoders import Encoders

    if not with_text:
        return Encoders(source.config, source.vae())
    tokenizer = Tokenizer.from_file(str(source.tokenizer_files()["tokenizer.json"]))
    return Encoders(source.config, source.vae(), source.text_encoder(), tokenizer)


def _train(task: Task, run: RunSettings, source: ModelSource, given: dict[str, Any]) -> None:
    from ezaudio.data.dataset import ManifestDataset, SkipReport, collate
    from ezaudio.data.manifest import read_manifest
    from ezaudio.data.shards import LatentShards, collate_latents
    from ezaudio.training.trainer import Trainer

    data: Path = given["data"]
    if data.is_dir():
        shards = LatentShards(data, run.seed)
        check_shards(shards.index, source, task.settings.get("frozen_models", {}), data)
        task.settings["data"] = shards.fingerprint()
        Trainer(task, run, given["run"], given["workers"], given["quiet"]).train(shards, collate_latents)
        return
    rate = source.config.vae.sample_rate
    manifest = read_manifest(data, given["split"])
    task.settings["data"] = manifest.fingerprint()
    dataset = ManifestDataset(manifest, round(run.clip_s * rate), rate, run.seed)
    trainer = Trainer(task, run, given["run"], given["workers"], given["quiet"])
    skipped = SkipReport()
    try:
        trainer.train(dataset, collate, lambda batch: skipped.extend(batch.problems))
    finally:
        skipped.log()


def check_shards(index: dict[str, Any], source: ModelSource, frozen: dict[str, str], folder: Path) -> None:
    """Raises InputError when shards are not of the model's autoencoder and, if they hold its states, text encoder.

    Args:
        frozen: fingerprints of those that the training uses.
    """
    made_by, channels = index.get("model"), index.get("channels")
    if channels != source.config.vae.latent_channels:
        raise InputError(
            f"the shards at '{folder}' have {channels} channels (they are of {made_by}), {source.config.name!r} has "
            f"{source.config.vae.latent_channels}: make them with ezaudio-data latents --model {source.config.name}"
        )
    stored = ("vae", "text_encoder") if index.get("text_states") else ("vae",)  # token ids are made anew of captions
    for part in stored:
        if part in frozen and index.get(part) != frozen[part]:
            name = "autoencoder" if part == "vae" else "text encoder"
            raise InputError(
                f"the shards at '{folder}' are of another {name} (that of {made_by}) than {source.origin}: make them "
                "with its own"
            )


def _publish(
    source: ModelSource, given: dict[str, Any], run: Path, base: MaskDiT | None = None, base_file: Path | None = None
) -> None:
    """Tell how the result is exported; for a model of one's own, write it whole to `model/` in the run's folder.

    Args:
        base: the transformer that a ControlNet was trained on, and the file it is of; None is the source's own.
    """
    official = given["model"] in ("l", "xl") and not given["random_weights"]
    command = ["ezaudio-export", "--model", given["model"]]
    if official and (run / "dit.safetensors").is_file():
        command += ["--checkpoint", str(run / "dit.safetensors")]
    elif official and (run / "controlnet.safetensors").is_file():
        command += ["--checkpoint", str(base_file)] if base_file is not None else []
        command += ["--controlnet", str(run / "controlnet.safetensors")]
    else:
        _save_model(source, run, base)
        command[-1] = str(run / "model")
    if not given["quiet"]:
        click.echo(f"{run}: done; to run it: {shlex.join([*command, '-o', str(run / 'bundle')])}")


def _save_model(source: ModelSource, run: Path, base: MaskDiT | None) -> None:
    from ezaudio.checkpoints import save_folder
    from ezaudio.controlnet import ControlNet
    from ezaudio.vae import AutoencoderOobleck
    from ezaudio.weights import load_weights, read_state_dict

    config, controlnet = source.config, source.controlnet()
    dit, vae = base or source.dit(), source.vae().unfold_weight_norm()
    trained = {"dit": dit, "vae": vae, "controlnet": controlnet or ControlNet(config.dit, config.controlnet)}
    for part, module in trained.items():
        path = run / f"{part}.safetensors"
        if path.is_file():
            load_weights(module, read_state_dict(path), f"'{path}'")
            controlnet = trained["controlnet"] if part == "controlnet" else controlnet  # type: ignore[assignment]
    assert isinstance(vae, AutoencoderOobleck)
    save_folder(run / "model", config, dit, vae, source.text_encoder(), source.tokenizer_files(), controlnet)
