"""Prompt → token ids, cut to what the text encoder was trained with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sentencepiece import SentencePieceProcessor

from ezaudio.runtime.errors import BundleError

END_TOKEN = 1


@dataclass(frozen=True, slots=True)
class Tokens:
    """Ids, the end token last; `dropped` is the end of a prompt that was too long."""

    ids: tuple[int, ...]
    dropped: str


class PromptTokenizer:
    """The bundle's `spiece.model`: what T5 was trained with, and what the C++ runtime reads.

    `tokenizer.json` holds the same pieces for the tokenizers library, which loses a combining mark that follows a
    compatibility character.
    """

    def __init__(self, path: Path, max_tokens: int) -> None:
        try:
            self._pieces = SentencePieceProcessor(model_file=str(path))
        except (RuntimeError, OSError) as error:
            raise BundleError(f"'{path}' is no tokenizer ({error}): copy or export the bundle again") from error
        self._max_tokens = max_tokens

    def encode(self, prompt: str) -> Tokens:
        """Ids of the prompt with the end token, at most `max_tokens` of them."""
        ids = self._pieces.encode(prompt)
        kept = self._max_tokens - 1
        dropped = self._pieces.decode(ids[kept:]) if len(ids) > kept else ""
        return Tokens((*ids[:kept], END_TOKEN), dropped)
