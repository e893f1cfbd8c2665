"""Tiny models of other projects' classes with random weights, saved as folders that transformers loads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    ClapProcessor,
    PreTrainedTokenizerFast,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    WhisperFeatureExtractor,
)

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
QWEN_SPECIAL = ["<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>", "<|im_start|>", "<|im_end|>"]


def noise(seed: int, rate: int, seconds: float = 0.4) -> np.ndarray:
    """Something to hear, float32 (T,)."""
    rng, count = np.random.default_rng(seed), round(rate * seconds)
    return (0.1 * rng.standard_normal(count) * np.linspace(rng.random(), 1, count)).astype(np.float32)


def _tokenizer(special: list[str], **names: str) -> PreTrainedTokenizerFast:
    """Single characters, and the special tokens first."""
    vocabulary = {token: index for index, token in enumerate([*special, *map(chr, range(32, 127)), "\n"])}
    model = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, unk_token="<unk>", pad_token="<pad>", **names)
    tokenizer.add_special_tokens({"additional_special_tokens": special[4:]} if len(special) > 4 else {})
    return tokenizer


def save_clap(folder: Path) -> Path:
    """A CLAP of a few thousand weights that hears 10 s at 48 kHz."""
    torch.manual_seed(0)
    text = {"vocab_size": 128, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"intermediate_size": 16, "max_position_embeddings": 130, "projection_dim": 8}
    audio = {"patch_embeds_hidden_size": 8, "depths": [1, 1], "num_attention_heads": [1, 2], "hidden_size": 16}
    audio |= {"spec_size": 128, "num_mel_bins": 16, "window_size": 4, "projection_dim": 8, "num_hidden_layers": 2}
    ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=8)).save_pretrained(folder)
    extractor = ClapFeatureExtractor(feature_size=16, truncation="rand_trunc", padding="repeatpad")
    ClapProcessor(extractor, _tokenizer(SPECIAL, bos_token="<s>", eos_token="</s>")).save_pretrained(folder)
    return folder


def save_tagger(folder: Path) -> Path:
    """An AST of a few thousand weights that hears 2.56 s at 16 kHz and knows five classes."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = ASTConfig(**sizes, num_mel_bins=16, max_length=256, num_labels=5, initializer_range=1.0)
    ASTForAudioClassification(config).save_pretrained(folder)
    ASTFeatureExtractor(num_mel_bins=16, max_length=256).save_pretrained(folder)
    return folder


def save_qwen2_audio(folder: Path) -> Path:
    """A Qwen2-Audio of a few thousand weights that hears 2 s; what it says is noise."""
    torch.manual_seed(0)
    special = [*SPECIAL, *QWEN_SPECIAL]
    tokenizer = _tokenizer(special, eos_token="<|im_end|>")
    audio = {
        "num_mel_bins": 16,
        "encoder_layers": 1,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 16,
        "d_model": 16,
    }
    audio |= {"max_source_positions": 100}
    text = {"vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 4096}
    text |= {"pad_token_id": 1, "eos_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>")}
    config = Qwen2AudioConfig(
        audio_config=audio, text_config=text, audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>")
    )
    Qwen2AudioForConditionalGeneration(config).save_pretrained(folder)
    Qwen2AudioProcessor(WhisperFeatureExtractor(feature_size=16, chunk_length=2), tokenizer).save_pretrained(folder)
    return folder
