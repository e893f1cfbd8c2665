"""Prompt → token ids, cut to what the text encoder was trained with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from ezaudio.runtime.errors import BundleError

END_TOKEN = 1


@dataclass(frozen=True, slots=True)
class Tokens:
    """Ids, the end token last; `dropped` is the end of a prompt that was too long."""

    ids: tuple[int, ...]
    dropped: str


class PromptTokenizer:
    """The bundle's tokenizer.json."""

    def __init__(self, path: Path, max_tokens: int) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:
            raise BundleError(f"'{path}' is no tokenizer ({error}): copy or export the bundle again") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._max_tokens = max_tokens

    def encode(self, prompt: str) -> Tokens:
        """Ids of the prompt with the end token, at most `max_tokens` of them."""
        encoding = self._tokenizer.encode(prompt, add_special_tokens=False)
        kept = self._max_tokens - 1
        dropped = prompt[encoding.offsets[kept][0] :].strip() if len(encoding.ids) > kept else ""
        return Tokens((*encoding.ids[:kept], END_TOKEN), dropped)
