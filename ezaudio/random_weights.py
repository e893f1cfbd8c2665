"""Random weights of the right shapes: real speed and memory without downloads, for benchmarks and tests."""

from __future__ import annotations

import math
import tempfile
import zlib
from functools import cache
from pathlib import Path

import torch
from torch import nn

from ezaudio.blocks import Rotary
from ezaudio.runtime.errors import MissingExtraError
from ezaudio.vae import SnakeBeta, WeightNormConv
from ezaudio.weights import StateDict, load_weights


def fill_randomly(module: nn.Module, seed: int, part: str, device: str = "cpu") -> None:
    """Values under which no block is an identity and signals keep their size through any number of blocks.

    device: where they are drawn, others on a GPU than on a CPU; a module on the meta device stays there.
    """
    generator = torch.Generator(device).manual_seed(zlib.crc32(f"{seed} {part}".encode()))
    state_dict: StateDict = {}
    for prefix, child in module.named_modules():
        for short, parameter in child.named_parameters(recurse=False):
            name = f"{prefix}.{short}" if prefix else short
            mean, std = _random_scale(child, name, parameter.shape)
            state_dict[name] = torch.empty(parameter.shape, device=device).normal_(mean, std, generator=generator)
        if isinstance(child, Rotary):
            state_dict[f"{prefix}.inv_freq"] = Rotary(child.head_width).inv_freq.to(device)
    load_weights(module, state_dict, f"random weights, seed {seed}")


# Last projections of residual branches, modulations, and T5's queries, which have no 1/√E: less than unit gain.
_SMALL_GAINS = {
    "cross_attn.proj.weight": 0.2,
    ".attn.proj.weight": 0.5,
    "mlp.net.2.weight": 0.5,
    "lora_b.weight": 0.2,
    "time_ada.weight": 0.2,
    "time_ada_final.weight": 0.2,
    "SelfAttention.q.weight": 0.15,
}


def _random_scale(child: nn.Module, name: str, shape: torch.Size) -> tuple[float, float]:
    """Mean and standard deviation of a parameter."""
    if isinstance(child, WeightNormConv) and name.endswith("weight_g"):
        gain = 0.5
        if child.transposed:  # its norm spans outputs and taps, two of which meet in an output sample
            inputs, outputs, _ = child.weight_v.shape
            gain *= math.sqrt(outputs * child.stride / inputs)
        return gain, 0.1 * gain
    if type(child).__name__.endswith("Norm") and name.endswith("weight"):
        return 1.0, 0.1
    if isinstance(child, nn.Embedding):
        return 0.0, 0.5
    if len(shape) < 2 or isinstance(child, SnakeBeta) or name.endswith("scale_shift_table"):
        return 0.0, 0.1
    gain = next((gain for suffix, gain in _SMALL_GAINS.items() if name.endswith(suffix)), 1.0)
    return 0.0, gain / math.sqrt(math.prod(shape[1:]))


def small_tokenizer(packaged: dict[str, Path]) -> dict[str, Path]:
    """The packaged tokenizer files or, in a tree without them, those of one trained on a word list."""
    if all(path.is_file() for path in packaged.values()):
        return packaged
    folder = Path(_word_list_tokenizer().name)
    return {name: folder / name for name in packaged}


@cache
def _word_list_tokenizer() -> tempfile.TemporaryDirectory[str]:
    """A folder with the two files, removed when the process ends."""
    try:
        from ezaudio.data.tokenizer import CHARACTERS, GENERAL_WORDS, to_tokenizers, train_tokenizer
    except ModuleNotFoundError as error:
        raise MissingExtraError(f'{error.name} is not installed: pip install "ezaudio[train]"') from error
    model = train_tokenizer([*GENERAL_WORDS.split(), *CHARACTERS.split()] * 4, vocab_size=600)
    folder = tempfile.TemporaryDirectory(prefix="ezaudio-tokenizer-")
    Path(folder.name, "spiece.model").write_bytes(model)
    to_tokenizers(model).save(str(Path(folder.name, "tokenizer.json")))
    return folder
