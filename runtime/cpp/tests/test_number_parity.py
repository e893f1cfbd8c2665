"""C++ against Python, stage by stage: the same ids, solver tables, timesteps and noise, bit for bit."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import numpy as np
import pytest
from prompts import PROMPTS
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from ezaudio.config import DiffusionConfig
from ezaudio.runtime.bundle_store import PACKAGED
from ezaudio.runtime.noise import PhiloxNoise, TorchNoise
from ezaudio.runtime.solvers import SOLVERS, solver_plan, spaced_timesteps


def raw(build: Path, *words: object, stdin: bytes = b"") -> bytes:
    command = [str(build / "ezaudio_parity"), *map(str, words)]
    return subprocess.run(command, input=stdin, capture_output=True, check=True).stdout


ALPHABETS = (
    "abcdefghij klmnop qrstuvwxyz  ",
    "éàüßñçø",
    "日本語音한글",
    "😀🐶👍🏽👨\u200d👩\u200d👧",
    "  \t\n\r\u3000\u00a0\u200b\u2028",
    "ﬁ①ｶ℃½㍿ﷺ",
    "АБВгдعربى",
    "\u202e\ufeff\u00ad",
    "▁_\x01\x1b\x7f\x00",
    "0123.,!?'</s><pad><0x41><extra_id_0>",
    "\u0301\u0308\u20dd\u3099",
    "\U0001f1e9\U0001f1ea\U0010ffff\ufffd",
)


def fuzzed_prompts() -> list[str]:
    """Eight thousand: words, scripts, emoji, control characters, lone marks, any code points, and very long ones."""
    generator = random.Random(0)
    prompts = ["", " ", "a", "x" * 10_000, "日" * 5_000, " " * 10_000, "e\u0301" * 3_000, *PROMPTS]
    for _ in range(6000):
        alphabets = generator.sample(ALPHABETS, generator.randrange(1, 4))
        length = generator.randrange(24) if generator.random() < 0.95 else generator.randrange(800)
        prompts.append("".join(generator.choice(generator.choice(alphabets)) for _ in range(length)))
    for _ in range(2000):
        points = (generator.randrange(0x110000) for _ in range(generator.randrange(1, 12)))
        prompts.append("".join(chr(point) for point in points if not 0xD800 <= point < 0xE000))
    return prompts


@pytest.fixture(scope="module", params=["packaged", "no bytes"])
def spiece_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packaged model, which spells unknown characters in bytes, and one that does not, as FLAN-T5's."""
    if request.param == "packaged":
        return PACKAGED / "spiece.model"
    path = tmp_path_factory.mktemp("pieces") / "spiece.model"
    with path.open("wb") as file:
        SentencePieceTrainer.train(
            sentence_iterator=iter(PROMPTS * 5),
            model_writer=file,
            vocab_size=150,
            hard_vocab_limit=False,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            minloglevel=2,
        )
    return path


def test_ids_of_thousands_of_prompts_are_the_same(build: Path, spiece_model: Path) -> None:
    prompts = fuzzed_prompts()
    stdin = b"".join(b"%d\n%s" % (len(text), text) for text in (prompt.encode() for prompt in prompts))
    numbers = np.frombuffer(raw(build, "ids", spiece_model, stdin=stdin), np.int32)
    pieces = SentencePieceProcessor(model_file=str(spiece_model))
    position = 0
    for prompt in prompts:
        count = numbers[position]
        assert numbers[position + 1 : position + 1 + count].tolist() == pieces.encode(prompt), repr(prompt)
        position += 1 + count
    assert position == len(numbers)


@pytest.mark.parametrize(
    ("solver", "eta"), [(name, eta) for name in SOLVERS for eta in (0.0, 0.3, 1.0) if name != "dpmpp_2m" or not eta]
)
@pytest.mark.parametrize("spacing", [1.0, 1.7])
def test_every_solver_table_is_the_same(build: Path, solver: str, eta: float, spacing: float) -> None:
    rows = [solver_plan(solver, steps, eta, DiffusionConfig(), spacing).rows for steps in range(1, 1001)]
    assert raw(build, "rows", solver, eta, spacing) == np.concatenate(rows).tobytes()


@pytest.mark.parametrize("spacing", [1.0, 1.3, 2.0, 4.0])
def test_every_timestep_is_the_same(build: Path, spacing: float) -> None:
    expected = np.concatenate([spaced_timesteps(steps, spacing) for steps in range(1, 1001)]).astype(np.int32)
    assert raw(build, "timesteps", spacing) == expected.tobytes()


@pytest.mark.parametrize(("name", "kind"), [("torch", TorchNoise), ("philox", PhiloxNoise)])
@pytest.mark.parametrize("seed", [0, 1, 7, 2**31, 2**32 - 1, 2**32 + 7, 2**63, 2**64 - 1])
def test_noise_is_the_same(build: Path, name: str, kind: type, seed: int) -> None:
    counts = [64_000, 3, 1, 17, 15, 16, 40_000, 5, 0, 31, 200_001]
    noise = kind(seed)
    expected = b"".join(noise.draw(step, (count,)).tobytes() for step, count in enumerate(counts))
    assert raw(build, "noise", name, seed, *counts) == expected
