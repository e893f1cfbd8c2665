"""EzAudio's transformer beside those that the paper compares it with: parameters, memory, loss curves (figure 2).

    python benchmarks/architectures.py --steps 1500 --save

Parameters are of the official widths. Then each architecture is trained, in a process of its own, at a small size:
equal width, depth, steps, data, noise and timesteps. The data are synthesised scenes in nano's latents and
text states, made once and kept in --work. Whatever comes out is the result.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import measure
import torch

from ezaudio.checkpoints import open_source
from ezaudio.config import PRESETS, DiTConfig, EzAudioConfig
from ezaudio.variants import VARIANTS, build_variant

FRAMES, RATE = 64, 25  # of a clip, and of nano's latents a second
CLEAR_PEAK = Path("/proc/self/clear_refs")
FIGURE = Path(__file__).resolve().parents[1] / "docs" / "architectures.png"


def small(config: EzAudioConfig, width: int, depth: int) -> DiTConfig:
    """nano's interface, another size."""
    return replace(config.dit, width=width, depth=depth, num_heads=width // 32, mlp_ratio=4.0, adaln_rank=8)


def count(name: str, config: DiTConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_variant(name, config).parameters())


def prepare(work: Path, clips: int) -> Path:
    """Shards of synthesised scenes; what is there already is taken."""
    from ezaudio.data.manifest import read_manifest
    from ezaudio.data.shards import ShardSettings, encode_shards
    from ezaudio.data.synthesis import SOUNDS
    from ezaudio.data.synthesis.dataset import render_folder

    manifest = render_folder(work / "scenes", list(SOUNDS.values()), clips, duration_s=FRAMES / RATE)
    settings = ShardSettings("nano", text_states=True, duration_s=FRAMES / RATE, seed=0, shard_size=256)
    encode_shards(read_manifest(manifest), open_source("nano"), work / "shards", settings)
    return work / "shards"


def train(name: str, work: str, steps: int, width: int, depth: int, batch: int) -> dict[str, Any]:
    """One architecture, in a process of its own; its peak memory beyond that before the model, and the median step."""
    from tokenizers import Tokenizer

    from ezaudio.data.shards import LatentShards, collate_latents
    from ezaudio.training.encoders import Encoders
    from ezaudio.training.journal import read_metrics
    from ezaudio.training.latent_diffusion import LatentDiffusionTask
    from ezaudio.training.settings import STAGES, RunSettings, Schedule
    from ezaudio.training.trainer import Trainer

    folder, shards = Path(work) / name, Path(work) / "shards"
    source = open_source("nano")
    tokenizer = Tokenizer.from_file(str(source.tokenizer_files()["tokenizer.json"]))
    encoders = Encoders(source.config, source.vae(), source.text_encoder(), tokenizer)
    before = forget_peak()
    torch.manual_seed(0)
    dit = build_variant(name, small(source.config, width, depth))
    run = RunSettings(
        num_steps=steps,
        schedule=Schedule(5e-4, warmup_steps=100),
        batch_size=batch,
        precision="bf16" if torch.cuda.is_available() else "fp32",
        ema_decay=0.99,
        clip_s=FRAMES / RATE,
        save_every=steps,
        sample_every=0,
    )
    # Its own weights and widths make it no model that could be listened to or exported with nano's parts.
    task = LatentDiffusionTask(encoders, dit, STAGES["stage2"], run.schedule)
    task.publish = lambda folder: None  # type: ignore[method-assign]
    start = time.perf_counter()
    Trainer(task, run, folder).train(LatentShards(shards, seed=0), collate_latents)
    rows = read_metrics(folder / "metrics.jsonl")
    last = [row["velocity"] for row in rows[-max(1, len(rows) // 10) :]]
    return {
        "variant": name,
        "parameters": sum(parameter.numel() for parameter in dit.parameters()),
        "training_memory_mib": peak_mib() - before,
        "step_s": sorted(row["step_s"] for row in rows)[len(rows) // 2],
        "total_s": time.perf_counter() - start,
        "final_loss": sum(last) / len(last),
        "losses": [[row["step"], round(row["velocity"], 5)] for row in rows],
    }


def forget_peak() -> float:
    """Start a new peak; returns what is in use now, in MiB."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20
    CLEAR_PEAK.write_text("5")  # proc(5): the resident set's high-water mark becomes what it is
    return peak_mib()


def peak_mib() -> float:
    """Of the GPU's memory where there is one, else of the process's."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return measure.peak_memory_mib() or 0.0


@click.command(help=__doc__)
@click.option("--steps", type=click.IntRange(min=20), default=1500, show_default=True)
@click.option("--clips", type=click.IntRange(min=16), default=1024, show_default=True, help="2.56 s each.")
@click.option("--width", type=click.IntRange(min=32), default=160, show_default=True)
@click.option("--depth", type=click.IntRange(min=2), default=6, show_default=True)
@click.option("--batch", type=click.IntRange(min=1), default=16, show_default=True)
@click.option("--work", type=click.Path(path_type=Path), default=Path("architectures"), show_default=True)
@measure.save_option
def main(steps: int, clips: int, width: int, depth: int, batch: int, work: Path, save: Path | None) -> None:
    sizes = {name: {size: count(name, PRESETS[size].dit) for size in ("l", "xl")} for name in VARIANTS}
    prepare(work, clips)
    given = {"steps": steps, "width": width, "depth": depth, "batch": batch}
    rows = []
    for name in VARIANTS:
        print(f"{name}: {steps} steps", file=sys.stderr)
        rows.append(measure.in_child("architectures", "train", name=name, work=str(work.resolve()), **given))
    print(f"{'variant':18}{'L':>9}{'XL':>9}{'small':>9}{'peak':>10}{'step':>9}  final loss")
    for row in rows:
        official = "".join(f"{sizes[row['variant']][size] / 1e6:7.1f} M" for size in ("l", "xl"))
        trained = f"{row['parameters'] / 1e6:7.2f} M{row['training_memory_mib']:6.0f} MiB{row['step_s'] * 1e3:6.0f} ms"
        print(f"{row['variant']:18}{official}{trained}  {row['final_loss']:.4f}")
    if save is not None:
        from ezaudio.training.journal import draw_losses

        curves = {row["variant"]: [{"step": s, "loss": v} for s, v in row["losses"]] for row in rows}
        draw_losses(curves, FIGURE, smoothing=0.95)
        for row in rows:
            row = {**row, "official_parameters": sizes[row["variant"]]}
            measure.write_row({"benchmark": "architectures", **given, "clips": clips, **row}, save)


if __name__ == "__main__":
    main()
