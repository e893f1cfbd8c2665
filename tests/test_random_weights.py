"""Random weights: the same from one seed, and signals of a trained model's size."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer

from ezaudio.checkpoints import open_source
from ezaudio.config import PRESETS, preset
from ezaudio.dit import MaskDiT
from ezaudio.text import encode_text


def test_random_weights_repeat_and_differ_between_seeds() -> None:
    first, again, other = (open_source("debug", random_weights=True, controlnet="energy", seed=s) for s in (0, 0, 1))
    assert first.origin == "random weights, seed 0"
    for part in ("dit", "vae", "text_encoder", "controlnet"):
        a, b, c = (getattr(source, part)().state_dict() for source in (first, again, other))
        assert all(torch.equal(a[key], b[key]) for key in a)
        assert all(not torch.equal(a[key], c[key]) for key in a if "inv_freq" not in key)
        tiny = torch.finfo(torch.float32).tiny
        assert all((value.abs() > tiny).all() for value in a.values())
    assert open_source("debug", random_weights=True).controlnet() is None


def test_random_rotary_frequencies_are_the_real_ones() -> None:
    debug = open_source("debug", random_weights=True)
    expected = MaskDiT(debug.config.dit).model.mid_block.attn.rotary.inv_freq
    assert torch.equal(debug.dit().model.mid_block.attn.rotary.inv_freq, expected)


@pytest.mark.parametrize("depth", [2, 28])
@torch.no_grad()
def test_random_signals_keep_their_size_and_no_block_is_an_identity(depth: int, monkeypatch) -> None:
    debug = preset("debug")
    dit_config = replace(debug.dit, depth=depth, width=96, num_heads=4)
    monkeypatch.setitem(PRESETS, "debug", replace(debug, dit=dit_config))
    source = open_source("debug", random_weights=True, controlnet="energy")
    dit, controlnet, encoder, vae = source.dit(), source.controlnet(), source.text_encoder(), source.vae()
    assert controlnet is not None

    changes: list[float] = []
    for block in dit.model.all_blocks():
        for branch in (block.attn, block.cross_attn, block.mlp):
            branch.register_forward_hook(lambda _module, _args, out: changes.append(out.std().item()))
        block.register_forward_hook(lambda _module, args, out: changes.append((out - args[0]).std().item()))
        block.register_forward_hook(lambda _module, _args, out: changes.append(out.std().item()))

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 8, 20, generator=generator)
    ids = torch.randint(3, 1000, (2, 6), generator=generator)
    context = encode_text(encoder, ids, torch.ones_like(ids))
    timesteps = torch.tensor([999, 10])
    velocity = dit(x, timesteps, context)
    # Measured at depth 28: branches 0.13 to 0.49, blocks up to 2.3.
    assert len(changes) == 5 * (depth + 1)
    assert 0.02 < min(changes) < max(changes) < 10
    assert 0.5 < velocity.std() < 2
    energy = torch.rand(2, 1, 40, generator=generator)
    residuals = controlnet(dit.assemble(x), timesteps, context, None, energy)
    assert all(0.1 < residual.std() < 10 for residual in residuals)
    audio = vae.decode(x)
    assert 0.02 < audio.std() < audio.abs().max() < 1
    assert vae.encode(audio).isfinite().all()


def test_random_weights_come_with_a_tokenizer() -> None:
    import sentencepiece

    source = open_source("debug", random_weights=True)
    files = source.tokenizer_files()
    tokenizer = Tokenizer.from_file(str(files["tokenizer.json"]))
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(files["spiece.model"]))
    assert tokenizer.get_vocab_size() <= source.config.text.vocab_size
    for text in ("A dog barks.", "", "über 猫"):
        assert tokenizer.encode(text).ids == [*pieces.encode(text), 1]
