"""FLAN-T5's encoder from the files that transformers writes: one of weights, or shards that an index names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import nn

from ezaudio.config import TextConfig
from ezaudio.runtime.errors import BundleError
from ezaudio.weights import Fill, StateDict, check_present, load_weights, read_json, read_safetensors

TEXT_WEIGHTS, TEXT_INDEX = "model.safetensors", "model.safetensors.index.json"
HUB_TEXT_WEIGHTS = {"google/flan-t5-large": TEXT_WEIGHTS, "google/flan-t5-xl": TEXT_INDEX}
EMBEDDING_KEYS = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")  # one tensor in T5

TOKENIZER_FILES = ("tokenizer.json", "spiece.model")


def from_transformers(find: Callable[[str], Path], weights: str) -> Fill:
    """The encoder half of T5 weights in one file, or in the shards that an index names."""

    def fill(module: nn.Module) -> None:
        path = find(weights)
        shards = _shards(path) if weights == TEXT_INDEX else [weights]
        state_dict: StateDict = {}
        for shard in shards:
            state_dict |= read_safetensors(find(shard), _of_encoder)
        embeddings = [state_dict.pop(key) for key in EMBEDDING_KEYS if key in state_dict]
        if embeddings:
            state_dict |= dict.fromkeys(EMBEDDING_KEYS[:2], embeddings[0])
        load_weights(module, state_dict, f"'{path}'")

    return fill


def _of_encoder(key: str) -> bool:
    return key.startswith("encoder.") or key in EMBEDDING_KEYS


def _shards(index: Path) -> list[str]:
    """Names of the shards that hold the encoder. Raises BundleError where one would lie outside the index's folder."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise BundleError(f"'{index}' has no weight_map of file names")
    shards = sorted({name for key, name in weight_map.items() if _of_encoder(key)})
    for shard in shards:
        if not shard.endswith(".safetensors") or "/" in shard or "\\" in shard:
            raise BundleError(f"'{index}' names {shard!r}: expected .safetensors files beside it")
    return shards


def check_text_folder(folder: Path, text: TextConfig) -> str:
    """Name of the file that holds, or lists, the weights of a local transformers folder."""
    weights = TEXT_INDEX if (folder / TEXT_INDEX).is_file() and not (folder / TEXT_WEIGHTS).exists() else TEXT_WEIGHTS
    check_present(folder, ["config.json", weights, *TOKENIZER_FILES], "a text encoder folder")
    if weights == TEXT_INDEX:
        check_present(folder, _shards(folder / TEXT_INDEX), "a text encoder folder")
    expected = {
        "model_type": "t5",
        "d_model": text.width,
        "d_kv": text.head_width,
        "d_ff": text.ff_width,
        "num_layers": text.num_layers,
        "num_heads": text.num_heads,
        "vocab_size": text.vocab_size,
        "feed_forward_proj": "gated-gelu",
        "layer_norm_epsilon": 1e-6,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
    }
    settings = read_json(folder / "config.json")
    wrong = [
        f"{key} {settings[key]!r} (expected {value!r})"
        for key, value in expected.items()
        if settings.get(key, value) != value
    ]
    if wrong:
        wanted = text.hub_name or "the model's own"
        raise BundleError(f"'{folder}' is another text encoder than {wanted}: {', '.join(wrong)}")
    return weights
