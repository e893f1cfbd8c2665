"""Autoencoder training: a start from principal components, spectral and waveform losses, scaled latents."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ezaudio.config import VAEConfig
from ezaudio.data.clips import draw_sound, render
from ezaudio.data.synthesis import Sound
from ezaudio.training.nano.state import TrainState
from ezaudio.vae import AutoencoderOobleck, DecoderBlock, EncoderBlock, ResidualUnit, SnakeBeta, WeightNormConv

WINDOWS = (2048, 512, 128)
START_STD = 0.1
START_CLIPS = 400
REFINE_NOISE = 0.3
WAVE_WEIGHT = 6.0
KL_WEIGHT = 0.05


def draw_audio(seed: tuple[int, ...], sounds: list[Sound], batch: int, num_samples: int, hop: int) -> Tensor:
    """Random stretches of random clips, cut on latent frames, with faint dither: (B, 1, T)."""
    rng = np.random.default_rng(seed)
    audio = np.empty((batch, 1, num_samples), np.float32)
    for row in range(batch):
        clip = render(rng, sounds[draw_sound(rng, sounds)], 3 * num_samples)
        start = int(rng.integers(0, 2 * num_samples // hop + 1)) * hop
        audio[row, 0] = clip[start : start + num_samples]
    return torch.from_numpy(audio + 2e-4 * rng.standard_normal(audio.shape).astype(np.float32))


@torch.no_grad()
def initialize(vae: AutoencoderOobleck, audio: Tensor, generator: torch.Generator) -> None:
    """Start as a nearly linear transform: each strided convolution holds the leading eigenvectors of its input blocks.

    The mirrored transposed convolution holds their transpose, residual branches are scaled down, snakes are almost
    linear, and the latents have unit variance. Reconstruction then starts from principal components instead of noise.

    Args:
        vae: untrained, changed in place.
        audio: (B, 1, T) training sounds, T a multiple of the hop.
        generator: for the directions that the data leave open.
    """
    for module in vae.modules():
        if isinstance(module, SnakeBeta):
            module.beta.fill_(4.0)
        elif isinstance(module, ResidualUnit):
            _conv(module.layers[3]).weight_g.mul_(0.05)
        elif isinstance(module, WeightNormConv) and module.bias is not None:
            module.bias.zero_()
    encoder, decoder = vae.encoder.layers, vae.decoder.layers
    entry, exit_ = _conv(encoder[0]), _conv(decoder[-1])
    impulse = torch.zeros_like(entry.weight_v)
    impulse[:, 0] = 1e-3 * torch.randn(impulse.shape[0], impulse.shape[2], generator=generator)
    impulse[0, 0, impulse.shape[2] // 2] = 1.0
    _set_kernel(entry, impulse)
    _set_kernel(exit_, impulse[:, 0][None])
    x = entry(audio)
    count = len(vae.config.strides)
    for index, stride in enumerate(vae.config.strides):
        into, out_of = encoder[1 + index], decoder[count - index]
        assert isinstance(into, EncoderBlock)
        assert isinstance(out_of, DecoderBlock)
        down, up = _conv(into.layers[4]), _conv(out_of.layers[1])
        basis = _principal(into.layers[:4](x), stride, down.weight_v.shape[0], generator)
        kernel = torch.zeros_like(down.weight_v)
        kernel[:, :, stride // 2 : stride // 2 + stride] = basis
        _set_kernel(down, kernel)
        _set_kernel(up, kernel)
        x = into(x)
    channels = vae.config.latent_channels
    scale = encoder[-2](x)[:, :channels].std(dim=(0, 2)).clamp_min(1e-4)
    last, first = _conv(encoder[-1]), _conv(decoder[0])
    to_latent = 1e-3 * torch.randn(last.weight_v.shape, generator=generator)
    from_latent = 1e-3 * torch.randn(first.weight_v.shape, generator=generator)
    rows = torch.arange(channels)
    to_latent[rows, rows, 1] = 1 / scale
    from_latent[rows, rows, 3] = scale
    _set_kernel(last, to_latent)
    _set_kernel(first, from_latent)
    assert last.bias is not None
    last.bias[channels:] = math.log(math.expm1(START_STD))


def _conv(module: nn.Module) -> WeightNormConv:
    assert isinstance(module, WeightNormConv)
    return module


def _set_kernel(layer: WeightNormConv, kernel: Tensor) -> None:
    layer.weight_v.copy_(kernel)
    layer.weight_g.copy_(torch.linalg.vector_norm(kernel, dim=(1, 2), keepdim=True))


def _principal(x: Tensor, stride: int, count: int, generator: torch.Generator) -> Tensor:
    """Leading eigenvectors of the blocks of x, completed by small random ones: (count, channels, stride)."""
    channels = x.shape[1]
    blocks = x.unfold(2, stride, stride).permute(0, 2, 1, 3).reshape(-1, channels * stride).double()
    vectors = torch.linalg.eigh(blocks.T @ blocks / len(blocks)).eigenvectors.flip(1).T.float()
    if len(vectors) < count:
        vectors = torch.cat([vectors, 0.05 * torch.randn(count - len(vectors), channels * stride, generator=generator)])
    return vectors[:count].reshape(count, channels, stride)


def spectral_loss(output: Tensor, target: Tensor) -> Tensor:
    """Spectral convergence and log-magnitude L1, guarded against silence, mean over three windows. (B, T) each."""
    total = output.new_zeros(())
    for size in WINDOWS:
        window = torch.hann_window(size, device=output.device)
        spectra = [torch.stft(x, size, size // 4, window=window, return_complex=True).abs() for x in (output, target)]
        gap = (spectra[0] - spectra[1]).square().sum(dim=(1, 2)).add(1e-9).sqrt()
        total = total + (gap / (spectra[1].square().sum(dim=(1, 2)).sqrt() + 10)).mean()
        total = total + F.l1_loss((spectra[0] + 0.05).log(), (spectra[1] + 0.05).log())
    return total / len(WINDOWS)


def loss_terms(vae: AutoencoderOobleck, audio: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """Weighted losses of a batch (B, 1, T); their sum is minimised."""
    mean, std = vae.encode_moments(audio)
    noise = torch.randn(mean.shape, generator=generator).to(mean)
    output = vae.decode(mean + std * noise)[:, 0].float()
    target = audio[:, 0]
    kl = 0.5 * (mean.square() + std.square() - 1 - 2 * std.log()).mean()
    return {**audio_terms(output, target), "kl": KL_WEIGHT * kl}


def audio_terms(output: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Weighted reconstruction losses, (B, T) each."""
    return {"spectrum": spectral_loss(output, target), "wave": WAVE_WEIGHT * F.l1_loss(output, target)}


def signal_to_error_db(output: Tensor, target: Tensor) -> Tensor:
    """Per row, (B, T) each."""
    return 10 * torch.log10(target.square().sum(1) / ((output - target).square().sum(1) + 1e-9) + 1e-9)


@torch.no_grad()
def scale_latents(vae: AutoencoderOobleck, audio: Tensor) -> None:
    """Fold a shift and a scale per latent channel into the last encoder and the first decoder convolution.

    Afterwards every channel has zero mean and all together unit variance, a channel's deviation growing with the square
    root of its weight in the decoder: half-way between equal channels, where a diffusion model spends itself on faint
    detail, and natural ones, where its error is white noise. Means and decoding are exact (but for the padded ends, as
    far as the shift goes); the posterior's deviation, a softplus, follows its exponential part.
    """
    channels = vae.config.latent_channels
    encoder, decoder = _conv(vae.encoder.layers[-1]), _conv(vae.decoder.layers[0])
    assert encoder.bias is not None
    assert decoder.bias is not None
    means = torch.cat([vae.encode_moments(part)[0] for part in audio.split(8)])
    shift, deviation = means.mean(dim=(0, 2)), means.std(dim=(0, 2))
    kernel = decoder.kernel().clone()
    weight = (torch.linalg.vector_norm(kernel, dim=(0, 2)) * deviation).sqrt()
    scale = deviation / weight * weight.square().mean().sqrt()
    encoder.weight_g[:channels] /= scale[:, None, None]
    encoder.bias[:channels] = (encoder.bias[:channels] - shift) / scale
    encoder.bias[channels:] -= scale.log()
    _set_kernel(decoder, kernel * scale[None, :, None])
    decoder.bias.add_(torch.einsum("oik,i->o", kernel, shift))


def train_vae(
    config: VAEConfig,
    sounds: list[Sound],
    path: Path,
    minutes: float,
    batch: int = 8,
    num_frames: int = 24,
    seed: int = 0,
) -> AutoencoderOobleck:
    """Train (or resume from `path`) and return the averaged weights with scaled latents."""
    torch.manual_seed(seed)
    vae = AutoencoderOobleck(config)
    state = TrainState(vae, learning_rate=5e-4, clip_norm=5.0, weight_decay=0.0)
    num_samples = num_frames * config.hop
    if path.is_file():
        state.load(path)
    else:
        start = draw_audio((seed, 1), sounds, START_CLIPS, num_samples, config.hop)
        initialize(vae, start, torch.Generator().manual_seed(seed))
        state.reset_average()
    generator = torch.Generator()
    for progress, bar in state.steps(minutes, path, "autoencoder"):
        audio = draw_audio((seed, 2, state.step), sounds, batch, num_samples, config.hop)
        terms = loss_terms(vae, audio, generator.manual_seed(state.step))
        state.apply(torch.stack(list(terms.values())).sum(), progress)
        if state.step % 50 == 0:
            bar.set_postfix({name: f"{float(value):.3f}" for name, value in terms.items()})
    state.use(state.average)
    scale_latents(vae, draw_audio((seed, 3), sounds, START_CLIPS // 2, num_samples, config.hop))
    return vae


def refine_decoder(
    vae: AutoencoderOobleck,
    sounds: list[Sound],
    path: Path,
    minutes: float,
    batch: int = 8,
    num_frames: int = 24,
    seed: int = 0,
) -> None:
    """Train (or resume from `path`) the decoder alone, in place, on latents with noise like a sampler's remainder.

    Each clip has its own level, 0 to `REFINE_NOISE` of the latents' deviation; the decoder learns to keep it quiet.
    """
    state = TrainState(vae.decoder, learning_rate=3e-4, clip_norm=5.0, weight_decay=0.0)
    if path.is_file():
        state.load(path)
    generator = torch.Generator()
    for progress, bar in state.steps(minutes, path, "decoder"):
        audio = draw_audio((seed, 5, state.step), sounds, batch, num_frames * vae.config.hop, vae.config.hop)
        generator.manual_seed(state.step)
        with torch.no_grad():
            latents = vae.encode(audio)
            level = REFINE_NOISE * torch.rand(batch, 1, 1, generator=generator)
            latents += level * torch.randn(latents.shape, generator=generator)
        terms = audio_terms(vae.decode(latents)[:, 0], audio[:, 0])
        state.apply(torch.stack(list(terms.values())).sum(), progress)
        if state.step % 50 == 0:
            bar.set_postfix({name: f"{float(value):.3f}" for name, value in terms.items()})
    state.use(state.average)
