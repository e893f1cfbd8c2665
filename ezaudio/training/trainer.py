"""The training loop, for whatever a `Task` trains: accelerate, checkpoints, averages, logs, sounds to listen to.

Nothing random is carried from step to step. Batches are numbered, and every draw comes from a generator seeded with the
run's seed, the step, the part and the process; so a resumed run computes what an uninterrupted one would have.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from ezaudio.runtime.errors import InputError, MissingExtraError
from ezaudio.training import checkpoint as checkpoints
from ezaudio.training.checkpoint import Arrays, Checkpoint
from ezaudio.training.journal import Journal
from ezaudio.training.optimizers import TIMES, optimizers
from ezaudio.training.recorded import Recorded
from ezaudio.training.settings import RunSettings, Schedule, check_same

if TYPE_CHECKING:
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

MIXED = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


class Losses(NamedTuple):
    """What one network is to be updated by: `total` is minimised, `terms` are shown."""

    network: str
    total: Tensor
    terms: dict[str, Tensor]


class Task(Protocol):
    """What is trained.

    Attributes:
        settings: what else than the run's settings decides the result; a run goes on with the same ones only.
        networks: those that are trained, by name.
        frozen: those that are called beside them, in the precision of the run.
        schedules: the learning rate of each.
        averaged: the one whose average is kept and published.
        sample_rate: of the sounds that `listen` gives.
    """

    settings: dict[str, Any]
    networks: dict[str, nn.Module]
    frozen: dict[str, nn.Module]
    schedules: dict[str, Schedule]
    averaged: str
    sample_rate: int

    def to(self, device: torch.device) -> None:
        """Move what is not trained."""

    def record(self) -> bool:
        """Keep the shapes of what networks are called with from now on, for CUDA graphs. False: they cannot be."""

    def losses(self, networks: dict[str, nn.Module], batch: Any, generator: torch.Generator) -> Iterator[Losses]:
        """One for every network, in the order of their updates; the next is asked for after the update.

        Args:
            networks: `self.networks` and `self.frozen` as they are to be called.
            generator: on the device.
        """

    def listen(self, generator: torch.Generator) -> dict[str, NDArray[np.float32]]:
        """Sounds (T,) by title, made with the averaged weights, which are in place."""

    def publish(self, folder: Path) -> None:
        """Write what a run leaves, with the averaged weights, which are in place."""


class Numbers:
    """The batches of one process: lists of sample numbers, from a step on."""

    def __init__(self, run: RunSettings, first_step: int, process: int, num_processes: int) -> None:
        parts = run.accumulation * num_processes
        if run.batch_size % parts:
            raise InputError(
                f"batch size {run.batch_size} must be a multiple of {run.accumulation} parts x {num_processes} "
                "processes"
            )
        self._size, self._parts, self._steps = run.batch_size // parts, run.accumulation, (first_step, run.num_steps)
        self._batch, self._process, self._processes = run.batch_size, process, num_processes

    def __iter__(self) -> Iterator[list[int]]:
        for step, part in itertools.product(range(*self._steps), range(self._parts)):
            start = step * self._batch + (part * self._processes + self._process) * self._size
            yield list(range(start, start + self._size))

    def __len__(self) -> int:
        return (self._steps[1] - self._steps[0]) * self._parts


class Trainer:
    """One run: a task, its settings and its folder. The same call again continues it.

    Args:
        num_workers: processes that read data.

    Raises:
        InputError: the folder holds a run with other settings, the hardware lacks the precision, or the processes do
            not share the folder.
        MissingExtraError: accelerate is not installed.
    """

    def __init__(self, task: Task, run: RunSettings, folder: Path, num_workers: int = 0, quiet: bool = False) -> None:
        try:
            from accelerate import Accelerator
            from accelerate.state import AcceleratorState
        except ModuleNotFoundError as error:
            raise MissingExtraError('training needs accelerate: pip install "ezaudio[train]"') from error
        if run.precision == "fp16" and not torch.cuda.is_available():
            raise InputError("fp16 training needs a GPU: use bf16 or fp32")
        self.task, self.run, self.folder, self._workers, self._quiet = task, run, folder, num_workers, quiet
        # One for the whole process, and it would keep the precision of a run before this one.
        AcceleratorState._reset_state()
        self._accelerator = Accelerator(
            mixed_precision=MIXED[run.precision], gradient_accumulation_steps=run.accumulation
        )
        self._device = self._accelerator.device
        task.to(self._device)
        for network in task.networks.values():
            network.to(self._device).train()
        self._optimizers = {name: optimizers(network, run) for name, network in task.networks.items()}
        self.step = 0
        self.average: Arrays = {
            name: value.detach().clone() for name, value in checkpoints.weights(task.networks[task.averaged]).items()
        }
        stored = self._resume()
        self._check_shared()
        prepare = self._accelerator.prepare
        self._recorded = self._can_record()
        if self._recorded and not task.record():
            raise InputError("only the stages of the transformer can be recorded: leave --recorded out")
        self._networks = {
            name: prepare(Recorded(network) if self._recorded else network) for name, network in task.networks.items()
        }
        self._called = self._networks | {name: prepare(network) for name, network in task.frozen.items()}
        self._prepared = {name: [prepare(each) for each in parts] for name, parts in self._optimizers.items()}
        # Only now: what accelerate prepares goes to the GPU whole, and AdamW would wait for its step counts there.
        if stored is not None:
            for name, network in task.networks.items():
                checkpoints.take_optimizer_state(network, self._optimizers[name], stored.parts[f"{name}.optimizer"])
        self._norms: dict[str, Tensor] = {}

    def _can_record(self) -> bool:
        """Raises InputError where the settings ask for what cannot be recorded."""
        if not self.run.recorded:
            return False
        if self._device.type != "cuda":
            raise InputError("recorded steps need a GPU: leave --recorded out")
        if self._accelerator.num_processes > 1 or self.run.accumulation > 1 or self.run.gradient_checkpointing:
            raise InputError("recorded steps are of one process, without accumulation and gradient checkpointing")
        return True

    def train(self, dataset: Any, collate: Any, on_batch: Callable[[Any], None] = lambda batch: None) -> None:
        """Run all steps that are left, then publish.

        Args:
            dataset: sample number → item.
            collate: items → batch for the task.
            on_batch: called with every batch before the task is.
        """
        batches = self._batches(dataset, collate)
        main = self._accelerator.is_main_process
        journal = Journal(self.folder, self.step) if main else None
        bar = tqdm(
            total=self.run.num_steps,
            initial=self.step,
            unit="step",
            desc=self.folder.name,
            disable=True if self._quiet or not main else None,
        )
        try:
            with bar:
                while self.step < self.run.num_steps:
                    start = time.perf_counter()
                    terms = self._one_step(batches, on_batch)
                    self.step += 1
                    bar.update()
                    logged, saved = (
                        self._due(every) or self.step == self.run.num_steps
                        for every in (self.run.log_every, self.run.save_every)
                    )
                    values = self._checked(terms) if logged or saved else {}
                    if journal is not None and logged:
                        self._log(journal, bar, values, time.perf_counter() - start)
                    if saved:
                        self.save()
                    if journal is not None and self.run.sample_every and self._due(self.run.sample_every):
                        self._listen(journal)
        finally:
            if journal is not None:
                journal.close()
        if main:
            with self._averaged():
                self.task.publish(self.folder)
        self._accelerator.wait_for_everyone()

    def _due(self, every: int) -> bool:
        return self.step % every == 0

    def _batches(self, dataset: Any, collate: Any) -> Iterator[Any]:
        from ezaudio.data.dataset import Loader

        place = (self._accelerator.process_index, self._accelerator.num_processes)
        loader: Loader[Any] = Loader(
            dataset,
            batch_sampler=Numbers(self.run, self.step, *place),
            num_workers=self._workers,
            collate_fn=collate,
            # Its thread would allocate while a graph is recorded.
            pin_memory=self._device.type == "cuda" and not self._recorded,
        )
        return iter(loader)

    def _one_step(self, batches: Iterable[Any], on_batch: Callable[[Any], None]) -> dict[str, Tensor]:
        """The terms of the last part."""
        terms: dict[str, Tensor] = {}
        for name, parts in self._optimizers.items():
            for group in (group for each in parts for group in each.param_groups):
                group["lr"] = self.task.schedules[name].rate(self.step) * group.get(TIMES, 1.0)
        for part, batch in enumerate(itertools.islice(batches, self.run.accumulation)):
            on_batch(batch)
            with self._accelerator.accumulate(*self._networks.values()), self._attention():
                for losses in self.task.losses(self._called, batch, self._generator(self.step, part)):
                    self._accelerator.backward(losses.total)
                    if self._accelerator.sync_gradients:
                        self._clip(losses.network)
                    for optimizer in self._prepared[losses.network]:
                        optimizer.step()
                        optimizer.zero_grad()
                    terms |= losses.terms
        self._update_average()
        return terms

    def _clip(self, name: str) -> None:
        """Of the network that is updated next alone: accelerate's own clipping also takes the loss scale off the
        gradients that others have gathered so far, and takes it off again once theirs are complete."""
        self._accelerator.unscale_gradients(self._prepared[name])
        parameters = self.task.networks[name].parameters()
        self._norms[name] = torch.nn.utils.clip_grad_norm_(parameters, self.run.clip_norm)

    def _attention(self) -> AbstractContextManager[None]:
        # On a CPU the backward pass of PyTorch's flash attention takes several times as long as plain products.
        return sdpa_kernel(SDPBackend.MATH) if self._device.type == "cpu" else nullcontext()

    def _generator(self, *numbers: int) -> torch.Generator:
        seed = np.random.SeedSequence((self.run.seed, *numbers, self._accelerator.process_index))
        return torch.Generator(self._device).manual_seed(int(seed.generate_state(1, np.uint64)[0]))

    @torch.no_grad()
    def _update_average(self) -> None:
        # Early on the average is young: it would hold the first weights for 1 / (1 − decay) steps.
        decay = min(self.run.ema_decay, (1 + self.step) / (10 + self.step))
        own = checkpoints.weights(self.task.networks[self.task.averaged])
        numbers = [name for name, value in own.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.average[n] for n in numbers], [own[n].detach() for n in numbers], 1 - decay)

    def _checked(self, terms: dict[str, Tensor]) -> dict[str, float]:
        """Raises InputError for a loss or gradients that are not finite: no checkpoint of such a step is written.

        Where losses are scaled, gradients may be: that step is left out.
        """
        values = {name: float(value.detach()) for name, value in terms.items()}
        told = {f"loss {name!r}": value for name, value in values.items()}
        if self._accelerator.scaler is None:
            told |= {f"the norm of the gradients of {name!r}": float(norm) for name, norm in self._norms.items()}
        bad = [what for what, value in told.items() if not np.isfinite(value)]
        if bad:
            raise InputError(
                f"{bad[0]} is {told[bad[0]]} at step {self.step}: lower the learning rate; the last checkpoint is from "
                "before"
            )
        return values

    def _log(self, journal: Journal, bar: tqdm, values: dict[str, float], step_s: float) -> None:
        rate = self.task.schedules[self.task.averaged].rate(self.step - 1)
        clips_per_s = self.run.batch_size / step_s
        journal.add(self.step, {**values, "learning_rate": rate, "step_s": step_s, "clips_per_s": clips_per_s})
        bar.set_postfix({name: f"{value:.4f}" for name, value in values.items()} | {"clips/s": f"{clips_per_s:.1f}"})

    def _averaged(self) -> _Exchanged:
        return _Exchanged(self.task.networks[self.task.averaged], self.average)

    @torch.no_grad()
    def _listen(self, journal: Journal) -> None:
        with self._averaged():
            sounds = self.task.listen(self._generator(self.step, 1 << 20))
        journal.add_sounds(self.step, sounds, self.task.sample_rate)

    def save(self) -> None:
        """A checkpoint of the present step."""
        self._accelerator.wait_for_everyone()
        if not self._accelerator.is_main_process:
            return
        parts: dict[str, Arrays] = {"average": self.average}
        for name, network in self.task.networks.items():
            parts[name] = checkpoints.weights(network)
            parts[f"{name}.optimizer"] = checkpoints.optimizer_state(network, self._optimizers[name])
        scaler = self._accelerator.scaler.state_dict() if self._accelerator.scaler is not None else {}
        stored = Checkpoint(self.step, asdict(self.run) | self.task.settings, scaler, parts)
        checkpoints.save_checkpoint(self.folder, stored, self.run.keep)

    def _check_shared(self) -> None:
        """Raises InputError where a process has not found the checkpoint that another has."""
        steps = self._accelerator.gather(torch.tensor([self.step], device=self._device)).tolist()
        if len(set(steps)) > 1:
            raise InputError(
                f"processes would go on from steps {min(steps)} and {max(steps)} of '{self.folder}': it must be a "
                "folder that all machines share"
            )

    def _resume(self) -> Checkpoint | None:
        """Weights, averages, scale and step of the last checkpoint; it is given back for its moments."""
        found = checkpoints.stored_checkpoints(self.folder)
        if not found:
            return None
        stored = checkpoints.read_checkpoint(found[-1])
        check_same(stored.settings, asdict(self.run) | self.task.settings)
        checkpoints.check_parts(found[-1], stored, self.task.networks)
        for name, network in self.task.networks.items():
            checkpoints.take_weights(network, stored.parts[name], f"the checkpoint '{found[-1]}'")
        self.average = {name: value.to(self._device) for name, value in stored.parts["average"].items()}
        if self._accelerator.scaler is not None and stored.scaler:
            self._accelerator.scaler.load_state_dict(stored.scaler)
        self.step = stored.step
        logger.info("going on from step %d of '%s'", self.step, self.folder)
        return stored


class _Exchanged:
    """Other weights in a module, as long as the context lasts, in eval mode."""

    def __init__(self, module: nn.Module, other: Arrays) -> None:
        self._module, self._other = module, other

    def __enter__(self) -> None:
        self._own = {name: value.detach().clone() for name, value in checkpoints.weights(self._module).items()}
        checkpoints.take_weights(self._module, self._other, "the average")
        self._module.eval()

    def __exit__(self, *_: object) -> None:
        checkpoints.take_weights(self._module, self._own, "the weights")
        self._module.train()
