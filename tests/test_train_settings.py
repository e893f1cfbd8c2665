"""Settings of a training run: presets, schedules, optimizers, which clip each process takes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from ezaudio.config import DEBUG
from ezaudio.dit import MaskDiT
from ezaudio.runtime.errors import InputError
from ezaudio.training.optimizers import optimizers
from ezaudio.training.settings import RUNS, STAGES, RunSettings, Schedule, changed
from ezaudio.training.trainer import Numbers
from ezaudio.vae import AutoencoderOobleck


def of_stage_one(**given: Any) -> RunSettings:
    return replace(RUNS["stage1"], **given)


def test_muon_gives_the_matrices_of_blocks_steps_of_one_size_in_all_directions() -> None:
    dit = MaskDiT(DEBUG.dit)
    run = of_stage_one(optimizer="muon")
    muon, adamw = optimizers(dit, run)
    names = {id(parameter): name for name, parameter in dit.named_parameters()}
    matrices = [parameter for group in muon.param_groups for parameter in group["params"]]
    rest = [names[id(parameter)] for group in adamw.param_groups for parameter in group["params"]]
    chosen = {names[id(matrix)] for matrix in matrices}
    assert {"model.mid_block.attn.proj.weight", "model.mid_block.cross_attn.to_k.weight"} <= chosen
    assert chosen.isdisjoint(rest)
    assert sorted([*chosen, *rest]) == sorted(names.values())
    assert all("block" in name and "final" not in name and "adaln" not in name for name in chosen)
    matrix = matrices[0]
    before = matrix.detach().clone()
    # One direction of the gradient is a hundred times the others.
    left, _, right = torch.linalg.svd(torch.randn(matrix.shape), full_matrices=False)
    sizes = torch.ones(len(right))
    sizes[0] = 100
    matrix.grad = left * sizes @ right
    muon.step()
    stepped = torch.linalg.svdvals(before - matrix.detach())
    assert stepped.max() < 2.5 * stepped.min()


def test_weights_decay_as_those_of_the_release() -> None:
    dit = MaskDiT(DEBUG.dit)
    (adamw,) = optimizers(dit, of_stage_one())
    names = {id(parameter): name for name, parameter in dit.named_parameters()}
    kept = {names[id(p)] for group in adamw.param_groups if not group["weight_decay"] for p in group["params"]}
    expected = {name for name in names.values() if name.endswith(("bias", "mask_embed", "scale_shift_table"))}
    norms = {f"{name}.weight" for name, module in dit.named_modules() if isinstance(module, torch.nn.LayerNorm)}
    assert kept == expected | norms
    assert sum(len(group["params"]) for group in adamw.param_groups) == len(names)


def test_muon_refuses_what_it_cannot_train() -> None:
    with pytest.raises(InputError, match="for diffusion transformers"):
        optimizers(AutoencoderOobleck(DEBUG.vae), of_stage_one(optimizer="muon"))
    with pytest.raises(InputError, match="cannot train in fp16"):
        optimizers(MaskDiT(DEBUG.dit), of_stage_one(optimizer="muon", precision="fp16"))


def test_processes_share_a_batch_and_start_anywhere() -> None:
    run = of_stage_one(num_steps=5, batch_size=12, accumulation=3)
    alone = [number for part in Numbers(run, 0, 0, 1) for number in part]
    assert alone == list(range(60))
    shared = [list(Numbers(run, 0, process, 2)) for process in range(2)]
    together = [number for parts in zip(*shared, strict=True) for part in parts for number in part]
    assert together == alone
    assert [n for part in Numbers(run, 3, 0, 1) for n in part] == alone[36:]
    assert len(Numbers(run, 3, 0, 1)) == 6
    with pytest.raises(InputError, match="batch size 12 must be a multiple of 3 parts x 5 processes"):
        Numbers(run, 0, 0, 5)


def test_presets_are_the_papers() -> None:
    rows = [(RUNS[name].num_steps, RUNS[name].schedule.learning_rate, RUNS[name].batch_size) for name in STAGES]
    assert rows == [(100_000, 1e-4, 128), (50_000, 5e-5, 128), (30_000, 1e-5, 128)]
    assert [stage.empty_captions for stage in STAGES.values()] == [0.0, 0.1, 0.1]
    assert STAGES["stage1"].partly_masked > STAGES["stage2"].partly_masked  # full masks grow more likely
    assert RUNS["vae"].betas == (0.8, 0.99)


def test_a_schedule_warms_up_and_decays() -> None:
    schedule = Schedule(1e-3, warmup_steps=10, half_life=100)
    assert schedule.rate(0) == pytest.approx(1e-4)
    assert schedule.rate(9) == pytest.approx(1e-3 * (1.09) ** -0.5)
    assert schedule.rate(300) == pytest.approx(1e-3 * 0.5, rel=1e-2)
    assert Schedule(1e-3).rate(10**6) == 1e-3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate must be more than 0"),
        ({"batch_size": 0}, "batch_size must be 1 to 65,536"),
        ({"clip_s": 61.0}, "clip_s must be 0.04 to 60"),
        ({"precision": "fp8"}, "precision must be fp32, bf16 or fp16"),
    ],
)
def test_settings_out_of_range(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        changed(RUNS["stage1"], given)
