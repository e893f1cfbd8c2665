"""The official code from a checkout of github.com/haidog-yaqub/EzAudio, with the weights that a bundle was made from.

Packages that it imports but does not need to make a sound are replaced by empty modules where they are not installed.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import click
import torch
from torch import Tensor, nn

from ezaudio.config import DiTConfig

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ezaudio.checkpoints import ModelSource
    from ezaudio.runtime.tokenizer import PromptTokenizer

UNUSED = (
    "alias_free_torch",
    "argbind",
    "audiotools",
    "audiotools.ml",
    "librosa",
    "pandas",
    "torchaudio",
    "vector_quantize_pytorch",
)


class _Empty(ModuleType):
    """Has any name, each a class that does nothing."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__ = []  # a package
        self.__spec__ = ModuleSpec(name, None)  # others look whether the package is there

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (nn.Module,), {})


class Official:
    """Modules of a checkout. Its top-level package is called `src`, so a process can use one checkout."""

    def __init__(self, folder: Path, source: ModelSource) -> None:
        import yaml

        self.folder, self.source = folder, source
        if not (folder / "src" / "models").is_dir():
            raise click.ClickException(f"'{folder}' is no checkout of the official code: it has no src/models")
        sys.path.insert(0, str(folder))
        for name in UNUSED:
            try:
                importlib.import_module(name)
            except ImportError:
                sys.modules[name] = _Empty(name)
        size = "xl" if source.config.name == "xl" else "l"
        self.params = yaml.safe_load((folder / "ckpts" / f"ezaudio-{size}.yml").read_text(encoding="utf-8"))
        self.params["model"] |= _sizes(source.config.dit)

    def _find(self, module: str, name: str) -> Any:
        try:
            return getattr(importlib.import_module(module), name)
        except ModuleNotFoundError as error:
            raise click.ClickException(f"the official code needs {error.name}: pip install {error.name}") from error

    def dit(self) -> nn.Module:
        """Its MaskDiT with our weights, key by key."""
        build = self._find("src.models.conditioners", "MaskDiT")
        with torch.device("meta"), redirect_stdout(sys.stderr):
            model = build(**self.params["model"])
        model.load_state_dict(self.source.dit().state_dict(), strict=True, assign=True)
        return model.requires_grad_(False).eval()

    def vae(self) -> nn.Module:
        """Its autoencoder, weight-norm unfolded as its own loader leaves it."""
        from ezaudio.vae import AutoencoderOobleck

        build = self._find("src.modules.stable_vae.models.autoencoders", "create_autoencoder_from_config")
        ours = AutoencoderOobleck(self.source.config.vae)
        self.source.fills["vae"](ours)
        model = build(json.loads((self.folder / "ckpts" / "vae" / "config.json").read_text(encoding="utf-8")))
        model.load_state_dict(ours.state_dict(), strict=True)
        return model.requires_grad_(False).eval()

    def guided_step(
        self, dit: nn.Module, latents: Tensor, text: Tensor, mask: Tensor, scale: float, rescale: float
    ) -> Callable[[int], Tensor]:
        """timestep → guided velocity (1, C, L), as its sampling loop computes it: both branches as a batch of two."""
        rescaled = self._find("src.inference", "rescale_noise_cfg")

        def step(timestep: int) -> Tensor:
            both, _ = dit(torch.cat([latents, latents]), torch.tensor(timestep), text, context_mask=mask)
            conditional, unconditional = both.chunk(2)
            guided = unconditional + scale * (conditional - unconditional)
            return rescaled(guided, conditional, guidance_rescale=rescale) if rescale > 0 else guided

        return step

    def clip(
        self, dit: nn.Module, vae: nn.Module, tokenizer: PromptTokenizer, frames: int, steps: int, seed: int
    ) -> Callable[[], NDArray[np.float32]]:
        """Its whole `inference` of one prompt without noise in the steps → samples (T,)."""
        from diffusers import DDIMScheduler
        from models import PROMPT

        inference = self._find("src.inference", "inference")
        encoder, defaults = self.source.text_encoder(), self.source.config.defaults
        scheduler = DDIMScheduler(**self.params["diff"])
        return lambda: (
            inference(
                lambda embedding: vae.decoder(embedding),  # type: ignore[operator]
                dit,
                None,
                None,
                _Tokenizer(tokenizer),
                encoder,
                self.params,
                scheduler,
                [PROMPT],
                audio_frames=frames,
                guidance_scale=defaults.guidance_scale,
                guidance_rescale=defaults.guidance_rescale,
                ddim_steps=steps,
                eta=0,
                random_seed=seed,
                device="cpu",
            )
            .reshape(-1)
            .numpy()
        )


class OfficialSide:
    """A checkout with the weights of a bundle, for a process of its own: see `elsewhere`."""

    def __init__(self, checkout: Path, bundle: Path) -> None:
        from models import source_of

        from ezaudio.runtime.machine import cores
        from ezaudio.runtime.manifest import read_manifest

        torch.set_num_threads(cores())
        torch.set_grad_enabled(False)
        self._bundle = bundle
        self._official = Official(checkout, source_of(read_manifest(bundle, verify=False)))
        self._dit: nn.Module | None = None
        self._vae: nn.Module | None = None

    def prepare_step(
        self, latents: NDArray[np.float32], text: Tensor, mask: Tensor, scale: float, rescale: float
    ) -> None:
        self._dit = self._dit or self._official.dit()
        self._step = self._official.guided_step(self._dit, torch.from_numpy(latents), text, mask, scale, rescale)

    def step(self, timestep: int) -> NDArray[np.float32]:
        """Guided velocity (1, C, L) of what was prepared."""
        return self._step(timestep).numpy()

    def decode(self, latents: NDArray[np.float32]) -> NDArray[np.float32]:
        """(1, C, L) → samples (1, T)."""
        self._vae = self._vae or self._official.vae()
        return self._vae.decoder(torch.from_numpy(latents))[:, 0].numpy()  # type: ignore[operator]

    def prepare_clip(self, frames: int, steps: int, seed: int) -> None:
        from models import Bundle

        self._dit, self._vae = self._dit or self._official.dit(), self._vae or self._official.vae()
        tokenizer = Bundle.open(self._bundle).teacher.conditioning.tokenizer
        self._clip = self._official.clip(self._dit, self._vae, tokenizer, frames, steps, seed)

    def clip(self) -> NDArray[np.float32]:
        """Samples (T,) of what was prepared."""
        return self._clip()


class _Tokenizer:
    """Our tokenizer, called as transformers' are."""

    def __init__(self, tokenizer: PromptTokenizer) -> None:
        self._tokenizer = tokenizer

    def __call__(self, texts: list[str], max_length: int, **_: Any) -> SimpleNamespace:
        ids = [list(self._tokenizer.encode(text).ids) for text in texts]
        padded = torch.tensor([row + [0] * (max_length - len(row)) for row in ids])
        lengths = torch.tensor([[len(row)] for row in ids])
        return SimpleNamespace(input_ids=padded, attention_mask=(torch.arange(max_length) < lengths).long())


def _sizes(dit: DiTConfig) -> dict[str, Any]:
    """A model's sizes under the names that the official settings have for them."""
    return {
        "in_chans": dit.input_channels,
        "out_chans": dit.latent_channels,
        "embed_dim": dit.width,
        "depth": dit.depth,
        "num_heads": dit.num_heads,
        "mlp_ratio": dit.mlp_ratio,
        "context_dim": dit.context_width,
        "ada_sola_rank": dit.adaln_rank,
        "ada_sola_alpha": dit.adaln_alpha,
    }
