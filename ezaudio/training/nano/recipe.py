"""Train the packaged model `nano` from nothing, in one command that goes on where it was stopped.

    ezaudio-train nano RUN --recordings RECORDINGS
    ezaudio-train nano RUN --recordings RECORDINGS --further nano       # not from nothing, but from a model

RUN/sounds-short, -pairs, -long    scenes of synthesised and recorded sounds with captions
RUN/model                          the model: config.json, weights, tokenizer; what the stages have taught it comes here
RUN/latents-short, -pairs, -long   the scenes as latents
RUN/stage1, stage2, stage3-pairs, stage3-long   the paper's stages, each a run of the general trainer
RUN/bundle, quality.json           the model exported, and judged; its model card is in RUN/model too
RUN/clips.png, confusion.png       a clip of each kind, and what kinds are taken for, where matplotlib is installed
"""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tokenizers import Tokenizer

from ezaudio.checkpoints import ModelSource, open_source, save_folder
from ezaudio.config import EzAudioConfig, preset
from ezaudio.data.command import progress_bar
from ezaudio.data.manifest import read_manifest
from ezaudio.data.recordings import sources
from ezaudio.data.shards import LatentShards, ShardSettings, collate_latents, encode_shards
from ezaudio.data.synthesis import Sound
from ezaudio.data.synthesis.dataset import render_folder
from ezaudio.data.synthesis.primitives import normalize
from ezaudio.data.synthesis.scenes import solo
from ezaudio.data.tokenizer import write_tokenizer
from ezaudio.dit import MaskDiT
from ezaudio.runtime.errors import InputError
from ezaudio.runtime.manifest import CARD_FILE
from ezaudio.runtime.naming import make_folder, replace_file
from ezaudio.text import build_text_encoder
from ezaudio.training.encoders import Encoders
from ezaudio.training.latent_diffusion import LatentDiffusionTask, TextAndDiffusionTask, start_cross_attention
from ezaudio.training.nano.autoencoder import start_as_lapped_transform
from ezaudio.training.nano.start import start_as_pass_through, teach_names
from ezaudio.training.nano.vocabulary import PROMPT_SEED, style_of, taught_sounds
from ezaudio.training.settings import STAGES, DiffusionStage, RunSettings, Schedule
from ezaudio.training.trainer import Trainer
from ezaudio.vae import AutoencoderOobleck
from ezaudio.weights import load_weights, read_state_dict

if TYPE_CHECKING:
    from transformers import T5EncoderModel

    from ezaudio.evaluation.report import QualityReport

PROMPTS = ("dog barking", "a puppy barking while rain falls", "church bell tolling", "piano playing")
HIGH_NOISE = 0.55
STORED = torch.float16  # as it ships, and from the start: latents and stages are of the autoencoder that stays
SCENE_SETS = 5  # seeds of scenes that a seed of a recipe takes, from nothing and further
MAX_SEED = PROMPT_SEED // SCENE_SETS - 1
ENCODED_AT_ONCE = 2  # on a CPU larger batches take twice as long, for page faults


@dataclass(frozen=True, slots=True)
class Scenes:
    """A set of training scenes. `pairs`: the share of scenes of two sounds; the others have one."""

    name: str
    duration_s: float
    count: int
    pairs: float
    seed: int


@dataclass(frozen=True, slots=True)
class Stage:
    """One of the paper's stages at this size, in a folder called `name`; `scenes` names what it learns from."""

    name: str
    stage: DiffusionStage
    run: RunSettings
    scenes: str


@dataclass(frozen=True, slots=True)
class Recipe:
    """Sizes of everything. `start` is a trained model to begin with; None begins with nothing. `seed`: of all draws."""

    config: EzAudioConfig
    scenes: tuple[Scenes, ...]
    stages: tuple[Stage, ...]
    seed: int = 0
    name_steps: int = 600
    start: ModelSource | None = None


def recipe(effort: float = 1.0, seed: int = 0) -> Recipe:
    """The packaged model's, from nothing. effort: multiplies the steps of all stages.

    Raises InputError where `seed` is not in 0 to MAX_SEED.
    """
    first = _first_scenes(seed)
    scenes = (
        Scenes("short", 2.5, 10_000, 0.35, first),
        Scenes("pairs", 2.5, 16_000, 0.7, first + 1),
        Scenes("long", 10.0, 1200, 0.5, first + 2),
    )
    stages = (
        _stage("stage1", scenes[0], effort * 500, 1e-3, 24, seed),
        _stage("stage2", scenes[0], effort * 8_500, 1e-3, 24, seed),
        _stage("stage3-pairs", scenes[1], effort * 7_000, 1e-3, 24, seed),
        _stage("stage3-long", scenes[2], effort * 900, 2e-4, 6, seed),
    )
    return Recipe(preset("nano"), scenes, stages, seed)


def further(model: str, effort: float = 1.0, seed: int = 0) -> Recipe:
    """The last two stages again for a model that has been through all of them, on scenes that no other seed draws.

    Raises InputError where `model`, of `open_source`, does not have the packaged model's sizes, or for a wrong seed.
    """
    start, config = open_source(model), preset("nano")
    if (start.config.dit, start.config.vae, start.config.text) != (config.dit, config.vae, config.text):
        raise InputError(f"'{model}' is not a model of nano's sizes: give nano, or the folder RUN/model of such a run")
    first = _first_scenes(seed) + 3
    scenes = (Scenes("pairs", 2.5, 20_000, 0.8, first), Scenes("long", 10.0, 1200, 0.7, first + 1))
    stages = (
        _stage("stage3-pairs", scenes[0], effort * 7_000, 1e-3, 24, seed),
        _stage("stage3-long", scenes[1], effort * 900, 2e-4, 6, seed),
    )
    return Recipe(config, scenes, stages, seed, start=start)


def _first_scenes(seed: int) -> int:
    if not 0 <= seed <= MAX_SEED:
        raise InputError(f"seed: expected 0 to {MAX_SEED}, got {seed}")
    return SCENE_SETS * seed


def _stage(name: str, of: Scenes, steps: float, rate: float, batch: int, seed: int) -> Stage:
    paper, _, _ = name.partition("-")
    steps, first = max(1, round(steps)), paper == "stage1"
    partly_masked = STAGES[paper].partly_masked if first else 0.1
    run = RunSettings(
        steps,
        Schedule(rate, warmup_steps=min(300, steps), fall=None if first else (steps // 2, steps)),
        batch_size=batch,
        ema_decay=0.999,
        betas=(0.9, 0.99),
        optimizer="muon",
        clip_s=of.duration_s,
        save_every=500,
        sample_every=3000,
        seed=seed,
    )
    return Stage(name, replace(STAGES[paper], high_noise=HIGH_NOISE, partly_masked=partly_masked), run, of.name)


def train_nano(
    folder: Path, recordings: Path | None, made: Recipe, quiet: bool = False, command: str = "", count: int = 3
) -> QualityReport:
    """What is not trained yet is, step by step; then `folder`/model is put together, exported to bundle and judged.

    Args:
        recordings: folder of `ezaudio-data recordings`; None trains on synthesised sounds alone.
        command: for the model card.
        count: clips a kind and wording that are judged.

    Raises: InputError when recordings are missing, or the folder was begun with other settings.
    """
    # Long quiet tails make denormal numbers, which a CPU multiplies a hundred times slower.
    torch.set_flush_denormal(True)
    sounds = taught_sounds(recordings)
    if recordings is not None:
        sources(recordings)  # what the model card tells in the end
    make_folder(folder)
    for scenes in made.scenes:
        style = style_of(scenes.pairs)
        with progress_bar(f"{scenes.name} scenes", scenes.count, quiet) as bar:
            render_folder(
                folder / f"sounds-{scenes.name}",
                sounds,
                scenes.count,
                scenes.seed,
                scenes.duration_s,
                style=style,
                progress=bar.update,
            )
    model = folder / "model"
    if not (model / "config.json").is_file():
        if made.start is None:
            begin_model(model, folder, made, sounds)
        else:
            parts = made.start.dit(), made.start.vae(), made.start.text_encoder(), made.start.tokenizer_files()
            save_folder(model, made.config, *parts, dtype=STORED)
    source = open_source(str(model))
    for scenes in made.scenes:
        manifest = read_manifest(folder / f"sounds-{scenes.name}" / "manifest.jsonl")
        settings = ShardSettings(source.origin, text_states=False, duration_s=scenes.duration_s, seed=0, shard_size=500)
        with progress_bar(f"latents of {scenes.name} scenes", scenes.count, quiet) as bar:
            encode_shards(manifest, source, folder / f"latents-{scenes.name}", settings, ENCODED_AT_ONCE, bar.update)
    before: Path | None = None
    for stage in made.stages:
        before = train_stage(folder, source, stage, before, quiet)
    assert before is not None
    put_together(model, source, before)
    return judge_model(folder, recordings, made, quiet, command, count)


def begin_model(model: Path, folder: Path, made: Recipe, sounds: list[Sound]) -> None:
    """The model as it is before any stage: the autoencoder set by formula, a text encoder that names sounds."""
    config = made.config
    torch.manual_seed(made.seed)
    tokenizer = write_tokenizer(folder / "tokenizer", config.text.vocab_size)
    vae = AutoencoderOobleck(config.vae)
    start_as_lapped_transform(vae, _clips(sounds, 120 * config.vae.hop))
    text_encoder = build_text_encoder(config.text)
    captions = [
        (row.caption, frozenset(event["name"] for event in json.loads(row.others["events"])))
        for scenes in made.scenes
        for row in read_manifest(folder / f"sounds-{scenes.name}" / "manifest.jsonl").rows
    ]
    teach_names(text_encoder, tokenizer, captions, made.name_steps)
    dit = start_as_pass_through(MaskDiT(config.dit), torch.Generator().manual_seed(made.seed))
    files = {name: folder / "tokenizer" / name for name in ("tokenizer.json", "spiece.model")}
    save_folder(model, config, dit, vae, text_encoder, files, dtype=STORED)


def train_stage(folder: Path, source: ModelSource, stage: Stage, before: Path | None, quiet: bool) -> Path:
    """Run what is left of one stage, from what the one `before` left or the model's own weights. Returns its folder.

    A finished stage too is asked whether it was run with these settings: the model card tells of them.
    """
    run = folder / stage.name
    dit, text_encoder = source.dit(), source.text_encoder()
    if before is not None:
        _take(before, dit, text_encoder)
    if stage.stage.name == "stage2":
        start_cross_attention(dit)
    given = (stage.run.schedule, PROMPTS, min(stage.run.clip_s, 5.0))
    task: LatentDiffusionTask
    if stage.stage.with_text:
        tokenizer = Tokenizer.from_file(str(source.tokenizer_files()["tokenizer.json"]))
        task = TextAndDiffusionTask(
            Encoders(source.config, source.vae(), text_encoder, tokenizer), dit, stage.stage, *given
        )
    else:
        task = LatentDiffusionTask(Encoders(source.config, source.vae()), dit, stage.stage, *given)
    trainer = Trainer(task, stage.run, run, num_workers=0, quiet=quiet)
    trainer.train(LatentShards(folder / f"latents-{stage.scenes}"), collate_latents)
    return run


def put_together(model: Path, source: ModelSource, last: Path) -> None:
    """The model with the weights of its last stage."""
    dit, text_encoder = source.dit(), source.text_encoder()
    _take(last, dit, text_encoder)
    save_folder(model, source.config, dit, source.vae(), text_encoder, source.tokenizer_files(), dtype=STORED)


def judge_model(
    folder: Path, recordings: Path | None, made: Recipe, quiet: bool, command: str, count: int
) -> QualityReport:
    """Export in half precision, judge the bundle, and put the model card into model and bundle."""
    from ezaudio.evaluation.figures import confusion_png, examples_png
    from ezaudio.evaluation.judge_training import kept_judge
    from ezaudio.evaluation.progress import bars, silent
    from ezaudio.evaluation.report import draw_prompts, evaluate
    from ezaudio.export.bundle import export_bundle
    from ezaudio.runtime.text_to_audio import TextToAudio
    from ezaudio.training.nano.card import model_card

    source = open_source(str(folder / "model"))
    manifest = export_bundle(source, folder / "bundle", "fp16")
    with nullcontext(silent) if quiet else bars() as progress:
        judge = kept_judge(folder / "judge.safetensors", recordings, progress)
        model = TextToAudio(str(folder / "bundle"))
        report = evaluate(model, judge, draw_prompts(count), recordings, progress=progress)
    if find_spec("matplotlib") is not None:
        replace_file(folder / "clips.png", examples_png(report))
        replace_file(folder / "confusion.png", confusion_png(report))
    replace_file(folder / "quality.json", (json.dumps(report.to_dict(), indent=2) + "\n").encode())
    card = model_card(folder, made, recordings, command, report)
    manifest.with_card(folder / "bundle", card).write(folder / "bundle")
    replace_file(folder / "model" / CARD_FILE, card.encode())
    return report


def _take(run: Path, dit: MaskDiT, text_encoder: T5EncoderModel) -> None:
    """The weights that a stage left; the first one leaves the text encoder alone."""
    load_weights(dit, read_state_dict(run / "dit.safetensors"), f"'{run}'")
    path = run / "text_encoder.safetensors"
    if path.is_file():
        weights = read_state_dict(path)
        weights["encoder.embed_tokens.weight"] = weights["shared.weight"]  # tied, stored once
        load_weights(text_encoder, weights, f"'{path}'")


def _clips(sounds: list[Sound], num_samples: int, count: int = 6) -> torch.Tensor:
    clips = []
    for number, sound in enumerate(sounds):
        for index in range(count):
            clips.append(normalize(solo(np.random.default_rng((0, number, index)), sound, num_samples), 1.0))
    return torch.from_numpy(np.array(clips, np.float32))
