"""Model and diffusion settings, and the presets `l`, `xl` (official), `nano` (packaged), `debug` (tests).

Torch-free, so that the exporter, the trainer and the tests share one description of a model.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from math import prod
from pathlib import PurePath
from typing import Any


@dataclass(frozen=True, slots=True)
class DiTConfig:
    """Diffusion transformer (paper section 3.2).

    `depth` counts as the release does: depth // 2 in blocks, one middle block, depth // 2 out blocks.
    """

    latent_channels: int
    width: int
    depth: int
    num_heads: int
    context_width: int
    adaln_rank: int
    adaln_alpha: float
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        _check_positive(self, "latent_channels", "width", "num_heads", "context_width", "adaln_rank")
        if self.width % self.num_heads or (self.width // self.num_heads) % 2:
            raise ValueError(
                f"width {self.width} must be a multiple of num_heads {self.num_heads} with an even head width (RoPE)"
            )
        if self.depth < 2 or self.depth % 2:
            raise ValueError(f"depth must be even and at least 2, got {self.depth}")

    @property
    def head_width(self) -> int:
        return self.width // self.num_heads

    @property
    def num_in_blocks(self) -> int:
        return self.depth // 2

    @property
    def num_blocks(self) -> int:
        return 2 * (self.depth // 2) + 1

    @property
    def num_outer_blocks(self) -> int:
        """Blocks at either end that run in every step, also in those that reuse what the inner ones made before."""
        return max(1, self.num_in_blocks // 4)

    @property
    def input_channels(self) -> int:
        """Noisy latent, given latent and the mask channel, concatenated."""
        return 2 * self.latent_channels + 1


@dataclass(frozen=True, slots=True)
class VAEConfig:
    """Oobleck waveform autoencoder: `channels` times each multiple, one strided block a stride.

    The encoder's mean m becomes sign(m)·|m|^companding; 1, as in the release, leaves it. Below 1 faint sounds take more
    of a latent's range, and so much less of a sampler's error is heard as hiss. The decoder learns the inverse.
    """

    latent_channels: int
    channels: int
    channel_multiples: tuple[int, ...]
    strides: tuple[int, ...]
    sample_rate: int = 24000
    companding: float = 1.0

    def __post_init__(self) -> None:
        if len(self.channel_multiples) != len(self.strides):
            raise ValueError(f"one channel multiple a stride, got {self.channel_multiples} and {self.strides}")
        _check_positive(self, "latent_channels", "channels", "sample_rate")
        if not 0 < self.companding <= 1:
            raise ValueError(f"companding must be more than 0 and at most 1, got {self.companding!r}")
        if any(stride % 2 for stride in self.strides):
            raise ValueError(f"strides must be even for exact lengths, got {self.strides}")

    @property
    def hop(self) -> int:
        """Audio samples per latent frame."""
        return prod(self.strides)

    @property
    def latent_rate(self) -> float:
        """Latent frames per second."""
        return self.sample_rate / self.hop


@dataclass(frozen=True, slots=True)
class TextConfig:
    """FLAN-T5 encoder. `hub_name` is the published model; without one the weights are local and of the shape below."""

    width: int
    hub_name: str | None = None
    num_layers: int = 0
    num_heads: int = 0
    head_width: int = 64
    ff_width: int = 0
    vocab_size: int = 32128
    max_tokens: int = 100

    def __post_init__(self) -> None:
        _check_positive(self, "width", "max_tokens")


@dataclass(frozen=True, slots=True)
class ControlNetConfig:
    """Energy ControlNet: a copy of the in blocks fed with frame energies at twice the latent rate."""

    condition_channels: int = 1
    hidden_channels: tuple[int, int] = (64, 128)


@dataclass(frozen=True, slots=True)
class DiffusionConfig:
    """Scaled-linear betas rescaled to zero terminal SNR, v-prediction, trailing timesteps."""

    num_train_steps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012

    def __post_init__(self) -> None:
        if not 2 <= self.num_train_steps <= 100_000 or not 0 < self.beta_start < self.beta_end < 1:
            raise ValueError(f"need 2 to 100,000 training steps and 0 < beta_start < beta_end < 1, got {self}")


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """What `generate` does when a setting is not given."""

    duration_s: float = 10.0
    num_steps: int = 100
    guidance_scale: float = 5.0
    guidance_rescale: float = 0.75
    eta: float = 1.0
    solver: str = "ddim"


@dataclass(frozen=True, slots=True)
class EzAudioConfig:
    """A whole system: text encoder, DiT, VAE, diffusion. Bundles and engines in the user's cache are named after it."""

    name: str
    dit: DiTConfig
    vae: VAEConfig
    text: TextConfig
    controlnet: ControlNetConfig = field(default_factory=ControlNetConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    defaults: GenerationDefaults = field(default_factory=GenerationDefaults)
    max_duration_s: float = 30.0

    def __post_init__(self) -> None:
        plain_name(self.name)
        if self.dit.latent_channels != self.vae.latent_channels:
            raise ValueError(
                f"DiT expects {self.dit.latent_channels} latent channels, the VAE makes {self.vae.latent_channels}"
            )
        if self.dit.context_width != self.text.width:
            raise ValueError(
                f"DiT expects text states {self.dit.context_width} wide, the encoder makes {self.text.width}"
            )

        if not 0 < self.defaults.duration_s <= self.max_duration_s:
            raise ValueError(
                f"duration_s of the defaults must be more than 0 and at most max_duration_s {self.max_duration_s!r}, "
                f"got {self.defaults.duration_s!r}"
            )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> EzAudioConfig:
        """Inverse of `to_dict`, from JSON. Raises ValueError on unknown or missing fields."""
        parts = {
            "dit": DiTConfig,
            "vae": VAEConfig,
            "text": TextConfig,
            "controlnet": ControlNetConfig,
            "diffusion": DiffusionConfig,
            "defaults": GenerationDefaults,
        }
        try:
            built = {key: _build(kind, data[key]) for key, kind in parts.items() if key in data}
            return _build(cls, {**data, **built})
        except TypeError as error:
            raise ValueError(f"model settings do not fit this version: {error}") from error


def plain_name(name: str) -> str:
    """A file name that cannot leave the folder it is used in. Raises ValueError."""
    if not name or name == ".." or PurePath(name).name != name or "\\" in name or ":" in name:
        raise ValueError(f"{name!r} is no plain file name")
    return name


def _build(kind: type, data: dict[str, Any]) -> Any:
    """An instance from JSON values, each of the field's type: what a file from anywhere says is checked here."""
    types = {f.name: str(f.type) for f in fields(kind)}
    values = {}
    for name, value in data.items():
        expected = types.get(name, "")
        if expected in _SCALARS or expected.startswith("tuple"):
            if not _fits(expected, value):
                raise ValueError(f"{name} must be {expected} within reason, got {value!r}")
            value = tuple(value) if expected.startswith("tuple") else value
        values[name] = value
    return kind(**values)


_SCALARS: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "str | None": (str, type(None)),
}
_LARGEST = 1e9


def _fits(expected: str, value: Any) -> bool:
    if expected.startswith("tuple"):
        return isinstance(value, (list, tuple)) and bool(value) and all(_fits("int", v) and v > 0 for v in value)
    if not isinstance(value, _SCALARS[expected]) or isinstance(value, bool):
        return False
    return not isinstance(value, (int, float)) or 0 <= value <= _LARGEST


def _check_positive(settings: Any, *names: str) -> None:
    for name in names:
        if not getattr(settings, name) > 0:
            raise ValueError(f"{name} must be more than 0, got {getattr(settings, name)!r}")


OFFICIAL_VAE = VAEConfig(latent_channels=128, channels=128, channel_multiples=(1, 2, 4, 8), strides=(2, 4, 6, 10))

PRESETS: dict[str, EzAudioConfig] = {}


def _preset(config: EzAudioConfig) -> EzAudioConfig:
    PRESETS[config.name] = config
    return config


L = _preset(
    EzAudioConfig(
        name="l",
        dit=DiTConfig(
            latent_channels=128, width=1024, depth=24, num_heads=16, context_width=1024, adaln_rank=32, adaln_alpha=32
        ),
        vae=OFFICIAL_VAE,
        text=TextConfig(
            width=1024, hub_name="google/flan-t5-large", num_layers=24, num_heads=16, head_width=64, ff_width=2816
        ),
    )
)
XL = _preset(
    EzAudioConfig(
        name="xl",
        dit=DiTConfig(
            latent_channels=128, width=1152, depth=28, num_heads=16, context_width=2048, adaln_rank=36, adaln_alpha=36
        ),
        vae=OFFICIAL_VAE,
        text=TextConfig(
            width=2048, hub_name="google/flan-t5-xl", num_layers=24, num_heads=32, head_width=64, ff_width=5120
        ),
    )
)
NANO = _preset(
    EzAudioConfig(
        name="nano",
        dit=DiTConfig(
            latent_channels=160,
            width=256,
            depth=4,
            num_heads=4,
            context_width=128,
            adaln_rank=8,
            adaln_alpha=8,
            mlp_ratio=3.0,
        ),
        vae=VAEConfig(
            latent_channels=160, channels=8, channel_multiples=(4, 12, 48), strides=(8, 6, 10), companding=0.4
        ),
        text=TextConfig(width=128, num_layers=2, num_heads=4, head_width=32, ff_width=256, vocab_size=1024),
        defaults=GenerationDefaults(num_steps=25, guidance_scale=5.0, guidance_rescale=0.75, eta=1.0),
    )
)
DEBUG = _preset(
    EzAudioConfig(
        name="debug",
        dit=DiTConfig(latent_channels=8, width=32, depth=2, num_heads=2, context_width=16, adaln_rank=2, adaln_alpha=3),
        vae=VAEConfig(latent_channels=8, channels=4, channel_multiples=(1, 2, 2, 4), strides=(2, 4, 6, 10)),
        text=TextConfig(width=16, num_layers=1, num_heads=2, head_width=8, ff_width=32, vocab_size=1024),
        controlnet=ControlNetConfig(hidden_channels=(8, 16)),
        defaults=GenerationDefaults(num_steps=4, guidance_scale=3.0, guidance_rescale=0.5, eta=0.0),
    )
)


def preset(name: str, **changes: Any) -> EzAudioConfig:
    """A named preset, with top-level fields replaced. Raises ValueError for an unknown name."""
    if name not in PRESETS:
        raise ValueError(f"unknown model preset {name!r}: expected one of {', '.join(PRESETS)}")
    return replace(PRESETS[name], **changes)
