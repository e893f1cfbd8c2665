"""Training objectives against plain definitions, and the statistics of the masks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ezaudio.config import DiffusionConfig, preset
from ezaudio.data.dataset import ClipBatch
from ezaudio.runtime.solvers import alphas_cumprod
from ezaudio.training import losses
from ezaudio.training.autoencoder import AutoencoderTask
from ezaudio.training.discriminator import Discriminators
from ezaudio.training.masks import generation_mask, span_mask
from ezaudio.training.settings import AutoencoderLosses, Schedule
from ezaudio.vae import AutoencoderOobleck


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_velocity_loss_is_the_mean_over_the_frames_to_generate() -> None:
    alphas = torch.tensor([0.9, 0.2, 0.0])
    clean, noise, predicted = normal(3, 4, 6), normal(3, 4, 6, seed=1), normal(3, 4, 6, seed=2)
    mask = torch.tensor([[1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1], [1, 1, 1, 1, 1, 1]], dtype=torch.bool)
    weights = torch.tensor([1.0, 0.5, 2.0])
    noisy, target = losses.add_noise(clean, noise, alphas)
    rows = []
    for row, alpha in enumerate(alphas.tolist()):
        total, count = 0.0, 0
        for frame in range(6):
            for channel in range(4):
                x, e = float(clean[row, channel, frame]), float(noise[row, channel, frame])
                assert float(noisy[row, channel, frame]) == pytest.approx(
                    math.sqrt(alpha) * x + math.sqrt(1 - alpha) * e
                )
                v = math.sqrt(alpha) * e - math.sqrt(1 - alpha) * x
                if mask[row, frame]:
                    total += (float(predicted[row, channel, frame]) - v) ** 2
                    count += 1
        rows.append(total / count)
    assert float(losses.velocity_loss(predicted, target, mask)) == pytest.approx(np.mean(rows), rel=1e-5)
    weighted = np.mean(np.array(rows) * weights.numpy())
    assert float(losses.velocity_loss(predicted, target, mask, weights)) == pytest.approx(weighted, rel=1e-5)


def test_what_is_given_does_not_count() -> None:
    predicted, target = normal(2, 3, 5), normal(2, 3, 5, seed=1)
    mask = torch.tensor([[1, 0, 1, 0, 1], [0, 1, 1, 1, 0]], dtype=torch.bool)
    changed = torch.where(mask[:, None], predicted, predicted + 100)
    assert torch.equal(losses.velocity_loss(changed, target, mask), losses.velocity_loss(predicted, target, mask))
    touched = torch.where(mask[:, None], predicted + 1, predicted)
    assert not torch.equal(losses.velocity_loss(touched, target, mask), losses.velocity_loss(predicted, target, mask))


def test_min_snr_weights_at_every_timestep() -> None:
    alphas = torch.from_numpy(alphas_cumprod(DiffusionConfig()))
    weights = losses.min_snr_weights(alphas, 5.0)
    assert alphas[-1] == 0
    for alpha, weight in zip(alphas.tolist(), weights.tolist(), strict=True):
        snr = alpha / (1 - alpha)
        assert weight == pytest.approx(min(snr, 5.0) / (snr + 1), rel=1e-9, abs=1e-12)
    assert 0 <= float(weights.min()) <= float(weights.max()) <= 5 / 6 + 1e-3


def test_kl_is_that_of_gaussians() -> None:
    mean, std = normal(2, 3, 4), 0.1 + normal(2, 3, 4, seed=1).abs()
    posterior = torch.distributions.Normal(mean, std)
    expected = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(torch.zeros(()), torch.ones(())))
    torch.testing.assert_close(losses.kl_divergence(mean, std), expected.sum(1).mean())
    assert float(losses.kl_divergence(torch.zeros(1, 2, 3), torch.ones(1, 2, 3))) == 0


def test_the_autoencoder_weighs_kl_as_the_release() -> None:
    """Whose bottleneck leaves the one half out; its weight of that is 1e-4."""
    config = preset("debug").vae
    task = AutoencoderTask(AutoencoderOobleck(config), Schedule(1e-3), AutoencoderLosses(filters=2))
    audio = 0.1 * normal(2, 1, 8 * config.hop)
    batch = ClipBatch(audio, ["", ""], torch.arange(2), [])
    *_, of_autoencoder = task.losses(task.networks, batch, torch.Generator().manual_seed(0))
    mean, std = task.networks["vae"].encode_moments(audio)  # type: ignore[operator]
    released = 1e-4 * (mean.square() + std.square() - std.square().log() - 1).sum(1).mean()
    torch.testing.assert_close(of_autoencoder.terms["kl"], released)


@pytest.mark.parametrize(
    ("frequency", "decibels"), [(1000, 0.0), (100, -19.1), (31.62, -39.4), (3981, 1.0), (10000, -2.5), (63.1, -26.2)]
)
def test_the_a_curve_is_the_standards(frequency: float, decibels: float) -> None:
    gain = losses.a_weighting(torch.tensor([float(frequency)]))
    assert 20 * math.log10(float(gain)) == pytest.approx(decibels, abs=0.1)


def test_spectral_loss_is_its_plain_definition() -> None:
    output, target = normal(2, 800), normal(2, 800, seed=1)
    sizes = (160, 40)
    total = 0.0
    for size in sizes:
        spectra = []
        for sound in (output, target):
            padded = np.pad(sound.double().numpy(), ((0, 0), (size // 2, size // 2)), mode="reflect")
            window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
            starts = range(0, padded.shape[1] - size + 1, size // 4)
            frames = np.stack([padded[:, start : start + size] * window for start in starts], axis=-1)
            magnitude = np.sqrt(np.abs(np.fft.rfft(frames, axis=1)) ** 2 + losses.EPSILON)
            gain = losses.a_weighting(torch.fft.rfftfreq(size, 1 / 24000)).numpy()
            spectra.append(magnitude * gain[:, None])
        got, expected = spectra
        distance = np.sqrt(((got - expected) ** 2).sum((1, 2))) / np.sqrt((expected**2).sum((1, 2)))
        total += distance.mean() + np.abs(np.log(got + losses.EPSILON) - np.log(expected + losses.EPSILON)).mean()
    found = losses.SpectralLoss(sizes, 24000)(output, target)
    assert float(found) == pytest.approx(total / len(sizes), rel=1e-4)


def test_spectral_loss_has_a_gradient_where_a_sound_is_silent() -> None:
    output = torch.zeros(1, 800, requires_grad=True)
    losses.SpectralLoss((160, 40), 24000)(output, normal(1, 800)).backward()
    assert output.grad is not None
    assert output.grad.isfinite().all()


def test_discriminator_losses_are_hinges() -> None:
    real, fake = [torch.tensor([0.3, 2.0]), torch.tensor([-1.0])], [torch.tensor([0.3, -2.0]), torch.tensor([5.0])]
    expected = ((0.7 + 0) / 2 + (1.3 + 0) / 2 + 2.0 + 6.0) / 2
    assert float(losses.discriminator_loss(real, fake)) == pytest.approx(expected)
    assert float(losses.adversarial_loss(fake)) == pytest.approx(((0.7 + 3.0) / 2 + 0.0) / 2)
    matching = losses.feature_matching_loss([[torch.tensor([2.0, 4.0])]], [[torch.tensor([3.0, 4.0])]])
    assert float(matching) == pytest.approx(0.5 / 3.0)


def test_discriminators_judge_every_resolution_and_learn_to_tell() -> None:
    torch.manual_seed(0)
    judges = Discriminators((320, 80), filters=4)
    verdicts = judges(normal(2, 960))
    assert len(verdicts) == 2
    for verdict, size in zip(verdicts, (320, 80), strict=True):
        frames, bins = 1 + (960 - size) // (size // 4), size // 2 + 1
        assert verdict.logits.shape == (2, 1, frames, math.ceil(math.ceil(math.ceil(bins / 2) / 2) / 2))
        assert len(verdict.layers) == 5
    optimizer = torch.optim.AdamW(judges.parameters(), 3e-3)
    tone = torch.sin(torch.arange(960) * 0.3)[None].repeat(2, 1)
    history = []
    for step in range(25):
        judged = judges(torch.cat([tone, normal(2, 960, seed=step)]))
        real, fake = zip(*(verdict.logits.chunk(2) for verdict in judged), strict=True)
        loss = losses.discriminator_loss(real, fake)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(float(loss.detach()))
    assert history[-1] < 0.7 * history[0]


def runs(row: Tensor) -> list[int]:
    """Lengths of the stretches of True."""
    edges = torch.diff(torch.cat([torch.tensor([0]), row.int(), torch.tensor([0])]))
    starts, ends = (edges == 1).nonzero()[:, 0], (edges == -1).nonzero()[:, 0]
    return (ends - starts).tolist()


@pytest.mark.parametrize(("num_frames", "span"), [(500, 10), (37, 10), (64, 1), (10, 10), (3, 10)])
def test_stretches_have_their_length_and_share(num_frames: int, span: int) -> None:
    generator = torch.Generator().manual_seed(0)
    for ratio in (0.25, 0.6, 0.95):
        mask = span_mask(torch.full((400,), ratio), num_frames, span, generator)
        assert mask.shape == (400, num_frames)
        shortest = min(span, num_frames)
        assert all(length >= shortest for row in mask for length in runs(row))
        counts = mask.sum(1)
        assert (counts % shortest == 0).all()  # never overlapping
        if num_frames >= 4 * span:
            assert float(counts.float().mean()) == pytest.approx(ratio * num_frames, rel=0.06)


def test_stretches_are_anywhere() -> None:
    mask = span_mask(torch.full((4000,), 0.3), 100, 10, torch.Generator().manual_seed(1))
    share = mask.float().mean(0)
    assert float(share.min()) > 0.03  # a frame at the edge is covered by fewer places
    assert 0.25 < float(share[20:80].mean()) < 0.36
    assert float(share[:10].sum()) == pytest.approx(float(share[-10:].sum()), rel=0.15)


def test_masks_of_a_stage() -> None:
    generator = torch.Generator().manual_seed(0)
    mask = generation_mask(4000, 500, 0.75, (0.25, 1.0), 10, generator)
    shares = mask.float().mean(1)
    partly = shares < 1
    assert float(partly.float().mean()) == pytest.approx(0.75, abs=0.04)
    assert float(shares[partly].min()) >= 0.23
    assert float(shares[partly].mean()) == pytest.approx(0.62, abs=0.03)
    assert generation_mask(50, 500, 0.0, (0.25, 1.0), 10, generator).all()
    again = generation_mask(4000, 500, 0.75, (0.25, 1.0), 10, torch.Generator().manual_seed(0))
    assert torch.equal(again, mask)
