"""What a training run carries from step to step: weights, average, optimiser; saved atomically as safetensors."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from tqdm import tqdm

from ezaudio.training.checkpoint import (
    Arrays,
    optimizer_state,
    take_optimizer_state,
    take_weights,
    weights,
)
from ezaudio.weights import save_atomic


@dataclass(slots=True)
class TrainState:
    """A module in training with AdamW and an exponential moving average of its weights.

    Batches and noise are drawn from `step` alone, so that a resumed run repeats an uninterrupted one.
    """

    module: nn.Module
    learning_rate: float
    ema_decay: float = 0.999
    warmup_steps: int = 200
    clip_norm: float = 1.0
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    step: int = 0
    elapsed_s: float = 0.0
    average: Arrays = field(init=False)
    optimizer: torch.optim.AdamW = field(init=False)

    def __post_init__(self) -> None:
        self.reset_average()
        matrices = [w for w in self.module.parameters() if w.requires_grad and w.ndim > 1]
        vectors = [w for w in self.module.parameters() if w.requires_grad and w.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": self.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, self.learning_rate, betas=self.betas)

    def reset_average(self) -> None:
        """Start the average from the present weights."""
        self.average = {name: value.detach().clone() for name, value in weights(self.module).items()}

    def use(self, tensors: Arrays) -> None:
        """Copy a complete set of weights, such as `average`, into the module."""
        take_weights(self.module, tensors, "a set of weights")

    def apply(self, loss: Tensor, progress: float = 0.0) -> None:
        """One optimiser step. The rate warms up and falls straight to zero over the second half of `progress` 0…1."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.module.parameters(), self.clip_norm)
        rate = (
            self.learning_rate * min(1.0, (self.step + 1) / self.warmup_steps) * min(1.0, max(0.02, 2 * (1 - progress)))
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.step += 1
        decay = min(self.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, value in weights(self.module).items():
                self.average[name].lerp_(value, 1 - decay)

    def save(self, path: Path) -> None:
        tensors = {f"module.{name}": value for name, value in weights(self.module).items()}
        tensors |= {f"average.{name}": value for name, value in self.average.items()}
        moments = optimizer_state(self.module, self.optimizer)
        tensors |= {f"optimizer.{name}": value for name, value in moments.items()}
        save_atomic(tensors, path, {"train": json.dumps({"step": self.step, "elapsed_s": self.elapsed_s})})

    def load(self, path: Path) -> None:
        with safe_open(path, "pt") as file:
            progress = json.loads(file.metadata()["train"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        part = lambda prefix: {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)}  # noqa: E731
        self.use(part("module."))
        self.average = part("average.")
        take_optimizer_state(self.module, self.optimizer, part("optimizer."))
        self.step, self.elapsed_s = progress["step"], progress["elapsed_s"]

    def steps(
        self, minutes: float, path: Path, label: str, save_every_s: float = 120.0
    ) -> Iterator[tuple[float, tqdm]]:
        """Iterate until `minutes` of training, earlier runs included; saves now and then and at the end.

        Yields:
            Progress 0…1 and the progress bar, for messages.
        """
        start, saved, before = time.monotonic(), time.monotonic(), self.elapsed_s
        with tqdm(desc=label, unit="step", initial=self.step, mininterval=5.0) as bar:
            while self.elapsed_s < 60 * minutes:
                yield self.elapsed_s / (60 * minutes), bar
                bar.update()
                self.elapsed_s = before + time.monotonic() - start
                if time.monotonic() - saved > save_every_s:
                    self.save(path)
                    saved = time.monotonic()
        self.save(path)
