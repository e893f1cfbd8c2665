"""What a training run is: its data order, optimiser and stages, with the paper's values as presets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from ezaudio.runtime.errors import InputError

Precision = Literal["fp32", "bf16", "fp16"]
Optimizer = Literal["adamw", "muon"]
MIN_CLIP_S = 0.04  # two latent frames: with less, convolutions and the energy's padding have nothing to work on


def _check(holds: bool, name: str, expected: str, got: Any) -> None:
    if not holds:
        raise InputError(f"{name} must be {expected}, got {got!r}")


def _check_gamma(gamma: float | None) -> None:
    _check(gamma is None or gamma > 0, "min_snr_gamma", "more than 0", gamma)


@dataclass(frozen=True, slots=True)
class Schedule:
    """Learning rate of a step: warm-up times a slow decay.

    Attributes:
        learning_rate: reached after the warm-up.
        warmup_steps: of a straight rise from zero.
        half_life: steps after which 1/√(1 + step / half_life) has fallen to 0.71; 0 keeps the rate.
        fall: the first and the last step of a straight fall to a hundredth, which is kept from there on; None: none.
    """

    learning_rate: float
    warmup_steps: int = 0
    half_life: int = 0
    fall: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        _check(0 < self.learning_rate < 1, "learning_rate", "more than 0 and less than 1", self.learning_rate)
        _check(self.warmup_steps >= 0, "warmup_steps", "at least 0", self.warmup_steps)

    def rate(self, step: int) -> float:
        """step: from 0."""
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        decay = (1 + step / self.half_life) ** -0.5 if self.half_life else 1.0
        if self.fall is not None:
            first, last = self.fall
            decay *= min(1.0, max(0.01, (last - step) / max(1, last - first)))
        return self.learning_rate * warm * decay


@dataclass(frozen=True, slots=True)
class RunSettings:
    """What every kind of training has.

    Attributes:
        batch_size: of one step, over all processes and all parts of an accumulation.
        accumulation: parts that a process's share of the batch is computed in.
        precision: of the products; weights, averages and losses stay in fp32.
        optimizer: "muon" gives the matrices of transformer blocks orthogonalised momentum, see `optimizers`.
        gradient_checkpointing: recompute activations in the backward pass; a third slower, and far less memory.
        fused: Triton operators, see `MaskDiT.fuse`.
        recorded: the transformer's steps as CUDA graphs, see `recorded.Recorded`.
        save_every, sample_every: steps between checkpoints, and between sounds made to listen to; 0: never.
        keep: checkpoints that stay.
        clip_s: length of the training clips.
    """

    num_steps: int
    schedule: Schedule
    batch_size: int = 128
    accumulation: int = 1
    precision: Precision = "bf16"
    optimizer: Optimizer = "adamw"
    gradient_checkpointing: bool = False
    fused: bool = False
    recorded: bool = False
    ema_decay: float = 0.9999
    clip_norm: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    clip_s: float = 10.0
    seed: int = 0
    log_every: int = 10
    save_every: int = 1000
    sample_every: int = 5000
    keep: int = 2

    def __post_init__(self) -> None:
        _check(self.num_steps >= 1, "num_steps", "at least 1", self.num_steps)
        _check(1 <= self.batch_size <= 65536, "batch_size", "1 to 65,536", self.batch_size)
        _check(self.accumulation >= 1, "accumulation", "at least 1", self.accumulation)
        _check(self.precision in get_args(Precision), "precision", "fp32, bf16 or fp16", self.precision)
        _check(self.optimizer in get_args(Optimizer), "optimizer", "adamw or muon", self.optimizer)
        _check(0 <= self.ema_decay < 1, "ema_decay", "0 to less than 1", self.ema_decay)
        _check(self.clip_norm > 0, "clip_norm", "more than 0", self.clip_norm)
        _check(MIN_CLIP_S <= self.clip_s <= 60, "clip_s", f"{MIN_CLIP_S} to 60", self.clip_s)
        _check(self.seed >= 0, "seed", "at least 0", self.seed)
        for name in ("log_every", "save_every", "keep"):
            _check(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        _check(self.sample_every >= 0, "sample_every", "at least 0", self.sample_every)


@dataclass(frozen=True, slots=True)
class DiffusionStage:
    """One of the paper's three stages (section 3.3).

    Attributes:
        with_text: cross-attention takes part. Without it the model learns sound alone.
        partly_masked: share of the clips of which some frames are given. The others are generated whole, which is what
            sampling without a given latent asks for.
        mask_ratio: of the frames to generate in those, drawn evenly from this range.
        mask_span: frames of the shortest stretch to generate; 10 are 0.2 s.
        empty_captions: share of captions replaced by "", for guidance.
        min_snr_gamma: weight min(SNR, γ) / (SNR + 1) of a timestep's loss (Hang et al. 2023, for v-prediction); None
            weighs all alike.
        high_noise: share of the timesteps in the noisiest 40 %, and all spread over the batch; None draws evenly.
    """

    name: str
    with_text: bool
    partly_masked: float
    mask_ratio: tuple[float, float] = (0.25, 1.0)
    mask_span: int = 10
    empty_captions: float = 0.0
    min_snr_gamma: float | None = None
    high_noise: float | None = None

    def __post_init__(self) -> None:
        _check(self.high_noise is None or 0 < self.high_noise < 1, "high_noise", "between 0 and 1", self.high_noise)
        low, high = self.mask_ratio
        _check(0 < low <= high <= 1, "mask_ratio", "0 < low <= high <= 1", self.mask_ratio)
        for name in ("partly_masked", "empty_captions"):
            _check(0 <= getattr(self, name) <= 1, name, "0 to 1", getattr(self, name))
        _check(self.mask_span >= 1, "mask_span", "at least 1", self.mask_span)
        _check_gamma(self.min_snr_gamma)


# The release's own settings have 0.25 for stages with text; for the first stage none are published.
STAGES = {
    "stage1": DiffusionStage("stage1", with_text=False, partly_masked=0.75),
    "stage2": DiffusionStage("stage2", with_text=True, partly_masked=0.25, empty_captions=0.1),
    "stage3": DiffusionStage("stage3", with_text=True, partly_masked=0.25, empty_captions=0.1),
}


@dataclass(frozen=True, slots=True)
class ControlNetStage:
    """Condition masking of the ControlNet's training: a share of clips with a part of the contour hidden.

    Attributes:
        hidden_span: in steps of the contour, 100 a second.
    """

    partly_hidden: float = 0.25
    hidden_ratio: tuple[float, float] = (0.25, 0.5)
    hidden_span: int = 10
    empty_captions: float = 0.1
    min_snr_gamma: float | None = None

    def __post_init__(self) -> None:
        _check_gamma(self.min_snr_gamma)


@dataclass(frozen=True, slots=True)
class AutoencoderLosses:
    """Weights of the VAE's losses, those of the release's autoencoder.

    Attributes:
        kl: of twice the divergence, which the release leaves the one half out of.
        windows: of the spectral loss, in samples; hops are a quarter.
        judged_windows: of the discriminators.
        filters: channels of the discriminators' inner layers.
    """

    spectral: float = 1.0
    kl: float = 1e-4
    adversarial: float = 0.1
    feature_matching: float = 5.0
    windows: tuple[int, ...] = (1280, 640, 320, 160, 80, 40, 20)
    judged_windows: tuple[int, ...] = (1280, 640, 320, 160, 80)
    filters: int = 64


RUNS = {
    "stage1": RunSettings(100_000, Schedule(1e-4, warmup_steps=5000)),
    "stage2": RunSettings(50_000, Schedule(5e-5, warmup_steps=5000)),
    "stage3": RunSettings(30_000, Schedule(1e-5, warmup_steps=1000)),
    "controlnet": RunSettings(30_000, Schedule(5e-5, warmup_steps=1000)),
    "vae": RunSettings(
        1_000_000,
        Schedule(1.5e-4, half_life=200_000),
        batch_size=64,
        betas=(0.8, 0.99),
        weight_decay=1e-3,
        clip_norm=1e3,
        clip_s=0.5,
    ),
}
DISCRIMINATOR_SCHEDULE = Schedule(3e-4, half_life=200_000)


def changed(run: RunSettings, given: dict[str, Any]) -> RunSettings:
    """A preset with what a user gave (None: not given). Raises InputError for a value out of range."""
    values = {name: value for name, value in given.items() if value is not None}
    rate = values.pop("learning_rate", None)
    warmup = values.pop("warmup_steps", None)
    schedule = replace(
        run.schedule,
        learning_rate=run.schedule.learning_rate if rate is None else rate,
        warmup_steps=run.schedule.warmup_steps if warmup is None else warmup,
    )
    return replace(run, schedule=schedule, **values)


# What may differ between a run and the command that continues it.
FREE = frozenset(
    ("num_steps", "log_every", "save_every", "sample_every", "keep", "gradient_checkpointing", "fused", "recorded")
)


def check_same(stored: dict[str, Any], settings: dict[str, Any]) -> None:
    """Raises InputError when a stopped run had other settings, those in `FREE` aside: it could not go on exactly."""
    present = _plain(settings)
    differing = [
        f"{name} {stored.get(name)!r}, now {present.get(name)!r}"
        for name in dict.fromkeys((*present, *stored))
        if name not in FREE and stored.get(name) != present.get(name)
    ]
    if differing:
        raise InputError(f"the run was begun with {'; '.join(differing)}: give the same again, or name another folder")


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
