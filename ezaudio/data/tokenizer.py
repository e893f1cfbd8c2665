"""A small T5-style tokenizer for `nano`: sentencepiece unigram with byte fallback, the same as `tokenizer.json`.

Ids follow T5: pad 0, end 1 (appended to every prompt), unknown 2. Both files give the same ids for the same text.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import sentencepiece
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from tokenizers.decoders import ByteFallback, Fuse, Metaspace, Sequence

from ezaudio.data.synthesis import SOUNDS
from ezaudio.data.synthesis.captions import COUNTS, FAR, MANY, NEAR, PLACES

GENERAL_WORDS = """
a about above after again all along also an and animal another are around as at away baby back background bark beach
bird birds boat body break breathing bus by car cars child children city close closed coming crowd dark day deep
distance distant dog door down driving dry each early echo electric empty engine fall falling far fast few field
fire flowing fly footsteps for forest from garden gentle glass gone ground hard heard heavy her high his hit horse
hot house in indoors inside into is it kitchen large laugh laughing leaves light little long loud low machine making
man many metal middle morning moving music near next night noise of off old on one open or other out outdoors
outside over passing people pitch piano place play playing quiet quietly rain road room running sea short silence
singing slow slowly small soft softly some someone something song sound sounds speak speaking speech spring stone
storm stream street strong sudden summer talk talking tap the their then three through to tone train traffic truck
two under up vehicle very voice walking wall warm water weather while wild wind window winter with woman wood wooden
young
"""
CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ abcdefghijklmnopqrstuvwxyz 0123456789 . , ! ? ' - : ; ( ) \" & / % + #"


def corpus() -> list[str]:
    """Every phrase of every sound, as written and as a sentence, what scenes add to them, words and characters."""
    lines = [phrase for sound in SOUNDS.values() for phrase in sound.phrases]
    lines += [line[0].upper() + line[1:] + "." for line in lines]
    additions = [*(word for words in COUNTS.values() for word in words), *MANY, *FAR, *NEAR]
    additions += [place for places in PLACES.values() for place in places]
    additions += [
        "the sound of",
        "a recording of",
        "sound effect",
        "followed by",
        "while",
        "first",
        "finally",
        "at last",
    ]
    additions += ["before", "after", "in the background", "and then"]
    return lines + additions * 20 + GENERAL_WORDS.split() * 4 + CHARACTERS.split() * 4 + [CHARACTERS]


def train_tokenizer(lines: Iterable[str], vocab_size: int) -> bytes:
    """A sentencepiece model of at most `vocab_size` pieces, 256 of them bytes; fewer when the text has fewer."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="unigram",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        byte_fallback=True,
        character_coverage=1.0,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def to_tokenizers(model: bytes) -> Tokenizer:
    """The sentencepiece model as a `tokenizers` tokenizer that appends the end token."""
    # Generated code without types, and only needed here.
    from sentencepiece import sentencepiece_model_pb2 as protobuf

    proto = protobuf.ModelProto.FromString(model)  # type: ignore[attr-defined]
    tokenizer = Tokenizer(
        models.Unigram([(piece.piece, piece.score) for piece in proto.pieces], unk_id=2, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap),
            normalizers.Replace(Regex(" {2,}"), " "),
            normalizers.Replace(Regex("^ | $"), ""),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="always", split=False)
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", "$A </s> $B </s>", [("</s>", 1)])
    tokenizer.decoder = Sequence([ByteFallback(), Fuse(), Metaspace("▁", prepend_scheme="always", split=False)])
    return tokenizer


def write_tokenizer(folder: Path, vocab_size: int) -> Tokenizer:
    """Train on the captions and write `spiece.model` and `tokenizer.json`."""
    model = train_tokenizer(corpus(), vocab_size)
    tokenizer = to_tokenizers(model)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spiece.model").write_bytes(model)
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer
