"""What steers the denoiser: prompts → text states → cross-attention, timesteps → modulation. Each computed once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ezaudio.runtime.denoising import Graphs
from ezaudio.runtime.settings import Settings
from ezaudio.runtime.solvers import SolverPlan
from ezaudio.runtime.tokenizer import PromptTokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.generic]
    Float32 = NDArray[np.float32]

Value = TypeVar("Value")

CACHED_PROMPTS = 16
MODULATION_CHUNK = 64  # timesteps a modulation run, so that 1000 steps need no 1000 rows at once in its activations


@dataclass(frozen=True, slots=True)
class PromptState:
    """What cross-attention needs of a prompt: keys, values (N, 1, H, S, E); output of a one-token prompt (N, 1, D)."""

    keys: Float32
    values: Float32
    constant: Float32

    @property
    def num_tokens(self) -> int:
        return int(self.keys.shape[3])


@dataclass(frozen=True, slots=True)
class TextState:
    """Text states (1, S, D_text) of a prompt, and its end that was too long to be encoded."""

    states: Float32
    dropped: str


class _Recent(OrderedDict[Any, Value]):
    """The last few results of a function of hashable arguments."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size

    def get_or_make(self, key: Any, make: Callable[[], Value]) -> Value:
        if key in self:
            self.move_to_end(key)
        else:
            self[key] = make()
            if len(self) > self._size:
                self.popitem(last=False)
        return self[key]


class Conditioning:
    """Text states of recent prompts, what cross-attention needs of them, and the modulation of the last plan.

    `prefix` in the methods: "" for the denoiser's graphs, `controlnet_` for the ControlNet's.
    """

    def __init__(self, sessions: Graphs, tokenizer: PromptTokenizer, cached_prompts: int = CACHED_PROMPTS) -> None:
        self._sessions, self.tokenizer = sessions, tokenizer
        self._texts: _Recent[TextState] = _Recent(cached_prompts)
        self._prompts: _Recent[PromptState] = _Recent(2 * cached_prompts)
        self._modulations: _Recent[dict[str, Float32]] = _Recent(2)

    def forget(self) -> None:
        """Compute everything anew."""
        for kept in (self._texts, self._prompts, self._modulations):
            kept.clear()

    def text(self, text: str) -> TextState:
        return self._texts.get_or_make(text, lambda: self._encode_text(text))

    def _encode_text(self, text: str) -> TextState:
        tokens = self.tokenizer.encode(text)
        return self.encode_ids(tokens.ids, tokens.dropped)

    def encode_ids(self, token_ids: tuple[int, ...], dropped: str = "") -> TextState:
        ids = np.array([token_ids], np.int64)
        states = self._sessions.run("text_encoder", input_ids=ids, attention_mask=np.ones_like(ids))
        return TextState(states["text_states"], dropped)  # type: ignore[arg-type]

    def prompt(self, text: str, prefix: str = "") -> PromptState:
        """`prefix`: "" for the denoiser's cross-attention, `controlnet_` for the ControlNet's."""

        def make() -> PromptState:
            cross = self._sessions.run(f"{prefix}conditioner", text_states=self.text(text).states)
            return PromptState(cross["cross_keys"], cross["cross_values"], cross["cross_constant"])  # type: ignore[arg-type]

        return self._prompts.get_or_make((prefix, text), make)

    def modulation(self, plan: SolverPlan, prefix: str = "") -> dict[str, Float32]:
        """Block modulation (N, blocks, 6, D) and, of the denoiser, final modulation (N, 2, D) of every step."""

        def make() -> dict[str, Float32]:
            chunks = [
                self._sessions.run(f"{prefix}modulation", timesteps=plan.timesteps[start : start + MODULATION_CHUNK])
                for start in range(0, plan.num_steps, MODULATION_CHUNK)
            ]
            return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}

        return self._modulations.get_or_make((prefix, plan.timesteps.tobytes()), make)

    def cross_inputs(self, settings: Settings, guided: bool, prefix: str = "") -> dict[str, Array]:
        """What cross-attention reads in a step: keys and values of the rows that attend to a prompt, the constant of
        those whose prompt is one token."""
        prompt = self.prompt(settings.prompt, prefix)
        inputs: dict[str, Array] = {
            "cross_keys": prompt.keys,
            "cross_values": prompt.values,
            "context_mask": np.ones((1, prompt.num_tokens), np.bool_),
            "cross_constant": prompt.constant[:, :0],
        }
        if not guided:
            return inputs
        negative = self.prompt(settings.negative_prompt, prefix)
        if negative.num_tokens == 1:
            return inputs | {"cross_constant": negative.constant}
        count = max(prompt.num_tokens, negative.num_tokens)
        pairs = {
            name: np.concatenate([_pad_tokens(getattr(state, name), count) for state in (prompt, negative)], axis=1)
            for name in ("keys", "values")
        }
        mask = np.arange(count) < np.array([[prompt.num_tokens], [negative.num_tokens]])
        return inputs | {"cross_keys": pairs["keys"], "cross_values": pairs["values"], "context_mask": mask}


def _pad_tokens(state: Float32, count: int) -> Float32:
    """Zeros after the last token of (N, 1, H, S, E), up to `count` tokens."""
    return np.pad(state, [(0, 0)] * 3 + [(0, count - state.shape[3]), (0, 0)])
