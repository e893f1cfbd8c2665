"""The architectures that the paper compares: sizes, interface, and that they learn."""

from __future__ import annotations

import pytest
import torch

from ezaudio.config import DEBUG, PRESETS
from ezaudio.dit import MaskDiT
from ezaudio.runtime.errors import InputError
from ezaudio.variants import VARIANTS, build_variant, sinusoids

# Millions of parameters; the paper gives 596 and 874 for EzAudio.
SIZES = {
    ("ezaudio-dit", "l"): 596.83,
    ("ezaudio-dit", "xl"): 874.76,
    ("cross-dit", "l"): 688.07,
    ("pixart-dit", "l"): 537.08,
    ("stable-audio-dit", "l"): 688.08,
}


@pytest.mark.parametrize(("name", "size"), SIZES)
def test_sizes_at_the_official_widths(name: str, size: str) -> None:
    with torch.device("meta"):
        model = build_variant(name, PRESETS[size].dit)
    count = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert count == pytest.approx(SIZES[name, size], abs=0.006)


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_have_the_models_interface_and_learn(name: str) -> None:
    torch.manual_seed(0)
    model = build_variant(name, DEBUG.dit)
    x, target = torch.randn(2, 8, 12), torch.randn(2, 8, 12)
    t, context = torch.tensor([3, 700]), torch.randn(2, 5, DEBUG.text.width)
    mask = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    with torch.no_grad():  # at first nothing but the last layer's bias
        assert torch.equal(model(x, t, context, mask), model(target, t, 2 * context, mask))
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    losses = []
    for _ in range(60):
        loss = (model(x, t, context, mask) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    used = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert used == []
    with torch.no_grad():
        changed = torch.where(mask[..., None], context, context + 1)
        torch.testing.assert_close(model(x, t, changed, mask), model(x, t, context, mask))
        given = model(x, t, context, mask, given=target, mask=torch.arange(12)[None].repeat(2, 1) > 5)
        assert not torch.allclose(given, model(x, t, context, mask))
        assert model(x, t, None).shape == x.shape


@pytest.mark.parametrize("name", ["cross-dit", "pixart-dit"])
def test_positions_matter_without_rope(name: str) -> None:
    torch.manual_seed(0)
    model = build_variant(name, DEBUG.dit)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x = torch.randn(1, 8, 12)
    with torch.no_grad():
        moved = model(x.roll(3, 2), torch.tensor([5]), None).roll(-3, 2)
        assert not torch.allclose(moved[..., 2:8], model(x, torch.tensor([5]), None)[..., 2:8], atol=1e-3)


def test_sinusoids() -> None:
    table = sinusoids(50, 16)
    assert table.shape == (50, 16)
    assert table[0].tolist() == [0.0] * 8 + [1.0] * 8
    assert float(table[3, 0]) == pytest.approx(float(torch.sin(torch.tensor(3.0))))


def test_what_a_variant_lacks_is_said() -> None:
    model = build_variant("cross-dit", DEBUG.dit)
    with pytest.raises(RuntimeError, match="only ezaudio-dit has fused kernels"):
        model.fuse()
    with pytest.raises(InputError, match="unknown architecture 'unet': expected one of cross-dit, pixart-dit"):
        build_variant("unet", DEBUG.dit)
    assert type(build_variant("ezaudio-dit", DEBUG.dit)) is MaskDiT
