"""FLAN-T5 encoder through transformers. Only the encoder half is built; text states feed the DiT's cross-attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ezaudio.config import TextConfig

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import T5EncoderModel

PAD_TOKEN, END_TOKEN = 0, 1


def build_text_encoder(config: TextConfig) -> T5EncoderModel:
    """A T5 v1.1 (gated GELU) encoder of the configured shape with random weights.

    Attention is the explicit ("eager") form, the one that exports to ONNX with dynamic shapes.
    """
    from transformers import T5Config, T5EncoderModel

    settings = T5Config(
        vocab_size=config.vocab_size,
        d_model=config.width,
        d_kv=config.head_width,
        d_ff=config.ff_width,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
        use_cache=False,
        pad_token_id=PAD_TOKEN,
        eos_token_id=END_TOKEN,
        dropout_rate=0.0,
    )
    settings._attn_implementation = "eager"
    return T5EncoderModel(settings)


def tokenize(tokenizer: Tokenizer, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Token ids padded to the longest caption, and the mask of valid ones: (B, S) each."""
    rows = [torch.tensor(encoding.ids) for encoding in tokenizer.encode_batch(list(captions))]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD_TOKEN)
    return ids, torch.arange(ids.shape[1])[None] < torch.tensor([len(row) for row in rows])[:, None]


def encode_text(encoder: T5EncoderModel, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """input_ids and attention_mask (B, S) → text states (B, S, D_text)."""
    return encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
