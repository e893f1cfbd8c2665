"""From files, or a seed, to modules: the official release, folders of our own, random weights.

    source = open_source("l")                       # the release, from the Hub
    source = open_source("l", checkpoint=folder)    # a local copy of it
    source = open_source("my-model/")               # a folder that `save_folder` wrote
    source = open_source("xl", random_weights=True)
    dit = source.dit()

Parts are loaded on demand: XL with its text encoder takes 8 GB, and an exporter needs one part at a time.
Only tensors are read. A pickle that asks for anything else is refused and nothing of it runs.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import secrets
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from ezaudio import hub
from ezaudio.config import PRESETS, EzAudioConfig, preset
from ezaudio.runtime.errors import BundleError, InputError, MissingExtraError
from ezaudio.runtime.manifest import CARD_FILE

try:
    import torch
    from safetensors import SafetensorError
    from torch import nn

    from ezaudio.controlnet import ControlNet
    from ezaudio.dit import MaskDiT
    from ezaudio.random_weights import fill_randomly, small_tokenizer
    from ezaudio.text import build_text_encoder
    from ezaudio.text_files import HUB_TEXT_WEIGHTS, TEXT_WEIGHTS, TOKENIZER_FILES, check_text_folder, from_transformers
    from ezaudio.vae import AutoencoderOobleck
    from ezaudio.weights import (
        RELEASE,
        Fill,
        check_present,
        first_line,
        load_weights,
        read_json,
        read_state_dict,
        write_safetensors,
    )
except ModuleNotFoundError as error:
    raise MissingExtraError(f'{error.name} is not installed: pip install "ezaudio[export]"') from error

if TYPE_CHECKING:
    from transformers import T5EncoderModel

Module = TypeVar("Module", bound=nn.Module)

RELEASE_LICENCE = "MIT (EzAudio), Apache-2.0 (FLAN-T5)"
VAE_FILE = "ckpts/vae/1m.pt"
DIT_FILES = {"l": "ckpts/s3/ezaudio_s3_l.pt", "xl": "ckpts/s3/ezaudio_s3_xl.pt"}
ENERGY_FILES = {"l": "ckpts/controlnet/s3_l_energy.pt"}

FOLDER_FILES = ("config.json", "dit.safetensors", "vae.safetensors", "text_encoder.safetensors", *TOKENIZER_FILES)
CONTROLNET_FILE = "controlnet.safetensors"
NANO_FOLDER = Path(__file__).parent / "nano"


@dataclass(frozen=True)
class ModelSource:
    """Where the parts of a system come from. Each call loads its part anew: float32, eval mode, no gradients.

    `origin` and `licence` are what a bundle made of these parts says about them, `card` is the file that tells how they
    were trained.
    """

    config: EzAudioConfig
    origin: str
    licence: str
    fills: Mapping[str, Fill]
    find_tokenizer: Callable[[], dict[str, Path]]
    card: Path | None = None

    def dit(self) -> MaskDiT:
        """The diffusion transformer."""
        return self._load("dit", lambda: MaskDiT(self.config.dit))

    def vae(self) -> AutoencoderOobleck:
        """The autoencoder, its weight-norm folded."""
        return self._load("vae", lambda: AutoencoderOobleck(self.config.vae)).fold_weight_norm().requires_grad_(False)

    def text_encoder(self) -> T5EncoderModel:
        """The encoder half of T5, with eager attention."""
        import transformers.models.t5.modeling_t5  # noqa: F401  not first under the meta device: constants would land there

        encoder = self._load("text_encoder", lambda: build_text_encoder(self.config.text))
        encoder.encoder.embed_tokens.weight = encoder.shared.weight  # taking tensors over undid the tie
        return encoder

    def controlnet(self) -> ControlNet | None:
        """The energy ControlNet, None where the source has none."""
        if "controlnet" not in self.fills:
            return None
        return self._load("controlnet", lambda: ControlNet(self.config.dit, self.config.controlnet))

    def check_parts(self) -> None:
        """Load every part once and drop it. Raises BundleError for the first that does not fit its module."""
        for load in (self.vae, self.dit, self.controlnet, self.text_encoder):
            load()

    def tokenizer_files(self) -> dict[str, Path]:
        """Paths of "tokenizer.json" and "spiece.model"."""
        return self.find_tokenizer()

    def _load(self, part: str, build: Callable[[], Module]) -> Module:
        try:
            with torch.device("meta"):
                module = build()
        except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
            raise BundleError(f"{self.origin}: its settings make no {part} ({first_line(error)})") from error
        self.fills[part](module)
        return module.requires_grad_(False).eval()


def open_source(
    model: str,
    *,
    checkpoint: Path | None = None,
    text_encoder: Path | None = None,
    controlnet: str | Path | None = None,
    random_weights: bool = False,
    seed: int = 0,
) -> ModelSource:
    """Finds the parts of a model and checks that local files are there; loads nothing yet.

    Args:
        model: "l" or "xl" (official), "nano" (in the package), or a folder that `save_folder` wrote. With
            `random_weights` any preset, "debug" too.
        checkpoint: official models only. A folder laid out as the release (`ckpts/…`), or one `.pt` or `.safetensors`
            file with the DiT; then the rest comes from the Hub.
        text_encoder: official models only. A transformers folder: config.json, model.safetensors (or its shards),
            tokenizer.json, spiece.model.
        controlnet: "energy" for the model's own (L, or a folder that has one), or a file. None: only what a folder has.
        random_weights: reproducible values from `seed` in every layer, none of them zero.
        seed: any whole number.

    Raises:
        InputError: unknown model, or options that do not go together.
        BundleError: local files are missing or are no model.
        MissingExtraError: transformers is not installed.
    """
    if importlib.util.find_spec("transformers") is None:
        raise MissingExtraError('transformers is not installed: pip install "ezaudio[export]"')
    if random_weights:
        if checkpoint or text_encoder or controlnet not in (None, "energy"):
            raise InputError("random weights take no files: leave out checkpoint, text encoder and ControlNet files")
        return _random_source(_known(model), with_controlnet=controlnet is not None, seed=seed)
    if model in DIT_FILES:
        return _official_source(preset(model), _path(checkpoint), _path(text_encoder), controlnet)
    if checkpoint or text_encoder:
        raise InputError(f"model '{model}' brings all its parts: a checkpoint or text encoder goes with l and xl only")
    if model == "nano":
        if not NANO_FOLDER.is_dir():
            raise BundleError("nano's weights are not in this installation: reinstall ezaudio, or use random weights")
        return _folder_source(NANO_FOLDER, controlnet, origin="nano, of this package", licence="MIT")
    if model in PRESETS:
        raise InputError(f"model '{model}' has no trained weights: add random weights, or choose l, xl or nano")
    folder = Path(model)
    if not folder.is_dir():
        raise InputError(f"unknown model '{model}': expected l, xl, nano or a folder with {', '.join(FOLDER_FILES)}")
    return _folder_source(folder, controlnet, origin=f"folder {folder.resolve().name}", licence="not stated")


def save_folder(
    folder: Path,
    config: EzAudioConfig,
    dit: MaskDiT,
    vae: AutoencoderOobleck,
    text_encoder: T5EncoderModel,
    tokenizer_files: Mapping[str, Path],
    controlnet: ControlNet | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Writes a folder that `open_source` reads, whole or not at all; replaces an empty folder or one of the same kind.

    Args:
        vae: with or without weight-norm, not changed; stored folded.
        tokenizer_files: "tokenizer.json" and "spiece.model".
        dtype: float32, or float16 for half the size. Buffers stay as they are.

    Raises:
        InputError: the folder cannot be written or holds something else.
        BundleError: weights that are not finite in `dtype`.
    """
    if dtype not in (torch.float32, torch.float16):
        raise InputError(f"weights are stored in float32 or float16, got {dtype}")
    if dit.config != config.dit or vae.config != config.vae or text_encoder.config.d_model != config.text.width:
        raise InputError(f"the modules are not those that the settings of '{config.name}' describe")
    folder = folder.absolute()
    _check_replaceable(folder)
    parts: dict[str, nn.Module] = {
        "dit.safetensors": dit,
        "vae.safetensors": copy.deepcopy(vae).fold_weight_norm(),
        "text_encoder.safetensors": text_encoder,
    }
    if controlnet is not None:
        parts[CONTROLNET_FILE] = controlnet
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    old = temporary.with_suffix(".old")
    try:
        temporary.mkdir()
        for name, module in parts.items():
            write_safetensors(temporary / name, module, dtype)
        for name in TOKENIZER_FILES:
            shutil.copyfile(tokenizer_files[name], temporary / name)
        (temporary / "config.json").write_text(json.dumps(config.to_dict(), indent=2) + "\n", encoding="utf-8")
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
    except (OSError, SafetensorError) as error:
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise InputError(f"'{folder}' cannot be written: {first_line(error)}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _official_source(
    config: EzAudioConfig, checkpoint: Path | None, text_encoder: Path | None, controlnet: str | Path | None
) -> ModelSource:
    dit_file = DIT_FILES[config.name]
    if controlnet == "energy" and config.name not in ENERGY_FILES:
        raise InputError(f"there is no energy ControlNet for {config.name}: use model l, or give a ControlNet file")

    find: Callable[[str], Path] = partial(hub.download, RELEASE)
    find_dit: Callable[[], Path] = partial(find, dit_file)
    origin = f"{RELEASE} {dit_file}"
    if checkpoint is not None and checkpoint.is_dir():
        needed = [dit_file, VAE_FILE, *([ENERGY_FILES[config.name]] if controlnet == "energy" else [])]
        check_present(checkpoint, needed, f"a copy of {RELEASE}")
        find = checkpoint.joinpath
        find_dit = partial(find, dit_file)
        origin = f"local copy of {origin}"
    elif checkpoint is not None:
        if not checkpoint.is_file():
            raise InputError(f"checkpoint '{checkpoint}' does not exist: expected a folder with ckpts/ or a file")
        find_dit = lambda: checkpoint  # noqa: E731
        origin = f"local {checkpoint.name}, VAE of {RELEASE}"

    fills = {"dit": _from_file(find_dit, "model"), "vae": _from_file(partial(find, VAE_FILE), "state_dict")}
    if controlnet == "energy":
        fills["controlnet"] = _from_file(partial(find, ENERGY_FILES[config.name]), "model")
    elif controlnet is not None:
        fills["controlnet"] = _given_controlnet(controlnet)

    hub_name = str(config.text.hub_name)
    find_text: Callable[[str], Path] = partial(hub.download, hub_name)
    text_weights = HUB_TEXT_WEIGHTS.get(hub_name, TEXT_WEIGHTS)
    if text_encoder is not None:
        text_weights = check_text_folder(text_encoder, config.text)
        find_text = text_encoder.joinpath
    fills["text_encoder"] = from_transformers(find_text, text_weights)
    return ModelSource(
        config, origin, RELEASE_LICENCE, fills, lambda: {name: find_text(name) for name in TOKENIZER_FILES}
    )


def _folder_source(folder: Path, controlnet: str | Path | None, origin: str, licence: str) -> ModelSource:
    needed = [*FOLDER_FILES, *([CONTROLNET_FILE] if controlnet == "energy" else [])]
    check_present(folder, needed, "a model folder")
    try:
        config = EzAudioConfig.from_dict(read_json(folder / "config.json"))
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise BundleError(f"'{folder / 'config.json'}' describes no model: {first_line(error)}") from error
    fills = {part: _from_file(partial(folder.joinpath, f"{part}.safetensors")) for part in ("dit", "vae")}
    fills["text_encoder"] = from_transformers(folder.joinpath, "text_encoder.safetensors")
    if controlnet not in (None, "energy"):
        fills["controlnet"] = _given_controlnet(controlnet)
    elif (folder / CONTROLNET_FILE).is_file():
        fills["controlnet"] = _from_file(partial(folder.joinpath, CONTROLNET_FILE))
    card = folder / CARD_FILE
    find_tokenizer: Callable[[], dict[str, Path]] = lambda: {name: folder / name for name in TOKENIZER_FILES}  # noqa: E731
    return ModelSource(config, origin, licence, fills, find_tokenizer, card if card.is_file() else None)


def _random_source(config: EzAudioConfig, with_controlnet: bool, seed: int) -> ModelSource:
    parts = ["dit", "vae", "text_encoder", *(["controlnet"] if with_controlnet else [])]
    fills: dict[str, Fill] = {part: partial(fill_randomly, seed=seed, part=part) for part in parts}
    find_tokenizer = partial(small_tokenizer, {name: NANO_FOLDER / name for name in TOKENIZER_FILES})
    return ModelSource(config, f"random weights, seed {seed}", "none needed", fills, find_tokenizer)


def _from_file(find: Callable[[], Path], entry: Literal["model", "state_dict"] | None = None) -> Fill:
    def fill(module: nn.Module) -> None:
        path = find()
        state_dict = read_state_dict(path, entry=entry)
        if isinstance(module, AutoencoderOobleck) and not any(key.endswith(".weight_g") for key in state_dict):
            module.fold_weight_norm()
        load_weights(module, state_dict, f"'{path}'")

    return fill


def _given_controlnet(controlnet: str | Path) -> Fill:
    path = Path(controlnet)
    if not path.is_file():
        raise InputError(f"ControlNet '{controlnet}' does not exist: expected 'energy', or a .safetensors or .pt file")
    return _from_file(lambda: path, "model")


def _check_replaceable(folder: Path) -> None:
    if not folder.parent.is_dir():
        raise InputError(f"'{folder.parent}' is not a folder: make it first (mkdir -p)")
    if not folder.exists() and not folder.is_symlink():
        return
    names = {path.name for path in folder.iterdir()} if folder.is_dir() and not folder.is_symlink() else {""}
    if names and not ("config.json" in names and names <= {*FOLDER_FILES, CONTROLNET_FILE, CARD_FILE}):
        raise InputError(f"'{folder}' exists and is no model folder: choose another name, or remove it")


def _known(model: str) -> EzAudioConfig:
    if model not in PRESETS:
        raise InputError(f"random weights need a known model, one of {', '.join(PRESETS)}; got '{model}'")
    return preset(model)


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)
