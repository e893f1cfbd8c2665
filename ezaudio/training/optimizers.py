"""What updates a network's weights."""

from __future__ import annotations

import torch
from torch import nn

from ezaudio.blocks import DiTBlock
from ezaudio.runtime.errors import InputError
from ezaudio.training.settings import RunSettings

# A group's rate is so many times the schedule's, under this key.
TIMES = "times"
MUON_TIMES = 2.0


def optimizers(network: nn.Module, run: RunSettings) -> list[torch.optim.Optimizer]:
    """AdamW, with weight decay on matrices and kernels alone; or Muon for the blocks' matrices and AdamW for the rest.

    Muon (Jordan et al. 2024) makes the momentum of a matrix nearly orthogonal before it is taken off, so that all
    directions are learnt at one pace; its steps have the size of AdamW's (Liu et al. 2025, arXiv 2502.16982). The
    low-rank factors of AdaLN-SOLA, embeddings and what reads latents in and out stay with AdamW.

    Raises: InputError for Muon where there is no block, or in fp16, whose loss scale two optimisers cannot share.
    """
    trained = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    if run.optimizer == "adamw":
        return [_adamw(trained, run)]
    if run.precision == "fp16":
        raise InputError("Muon cannot train in fp16: take bf16")
    matrices = [
        parameter
        for block in network.modules()
        if isinstance(block, DiTBlock)
        for name, parameter in block.named_parameters()
        if parameter.ndim == 2 and parameter.requires_grad and not name.startswith("adaln.")
    ]
    if not matrices:
        raise InputError("Muon is for diffusion transformers: train this with adamw")
    muon = torch.optim.Muon(
        matrices, run.schedule.learning_rate, run.weight_decay, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    muon.param_groups[0][TIMES] = MUON_TIMES
    chosen = {id(matrix) for matrix in matrices}
    return [muon, _adamw({name: p for name, p in trained.items() if id(p) not in chosen}, run)]


def _adamw(trained: dict[str, nn.Parameter], run: RunSettings) -> torch.optim.AdamW:
    # Tables of modulations have two dimensions and are vectors all the same: the release leaves them alone, too.
    decayed = {name for name, p in trained.items() if p.ndim > 1 and not name.endswith("scale_shift_table")}
    groups = [
        {"params": [p for name, p in trained.items() if name in decayed], "weight_decay": run.weight_decay},
        {"params": [p for name, p in trained.items() if name not in decayed], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, run.schedule.learning_rate, betas=run.betas)
