"""The autoencoder of the packaged model starts as a lapped transform with companding, set by formula.

From random weights an autoencoder takes days. This one reconstructs before its first step: the encoder's strided
convolutions are a modified discrete cosine transform (Princen & Bradley 1986) whose coefficients it compands; the
decoder expands them and transforms back. Faint sounds then lie far above a sampler's error, which is heard as hiss
where latents are linear in the sound: with noise of a fifth of the latents' deviation a classifier names 98 % of the
packaged model's sounds, and 19 % where the same transform is not companded.

A latent holds one coefficient of 25 Hz up to 1.6 kHz; above, it holds a signed sum of neighbours, of wider groups
towards the highs, and the decoder gives the whole group that one amplitude: a band keeps its level, not its waveform.

The signs of coefficients are as good as random. Their mean, whatever the caption, is zero, and a model that begins with
noise would learn nothing from the first steps of sampling, where it is decided what sounds when. So a fifth of the
latents are levels: the energy of a band over three frames. They are smooth, positive, and larger than the others, so
that they come out of the noise first, and tell what the coefficients are to be. The decoder does without them.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

from ezaudio.runtime.errors import InputError
from ezaudio.vae import AutoencoderOobleck, DecoderBlock, EncoderBlock, ResidualUnit, SnakeBeta, WeightNormConv

# Coefficients per latent, from the lowest: (latents, width of their groups).
BANDS = ((64, 1), (32, 2), (16, 8), (16, 14))
POSTERIOR_STD = 0.1
# Coefficients per level, and how many deviations of a coefficient a level is.
LEVELS = (2,) * 6 + (4,) * 21 + (4, 4, 8) + (8, 8)
LEVEL_SIZE = 2.0
LEVEL_TAPS = (0.25, 0.5, 0.25)  # frames before, at and after
# Largest latent that the decoder expands rightly, in deviations.
RANGE = 8.0
SQUARED = 60.0  # of the largest coefficient, where sin² has long stopped to grow: levels are companded twice
PASSED_ON = 6.0  # log β of snakes that are to pass a signal on unchanged

Matrix = NDArray[np.float64]


def lapped_transform(hop: int) -> Matrix:
    """Orthonormal MDCT with a sine window: (hop, 2·hop). Overlapping frames of its transpose add up to the signal."""
    time, frequency = np.arange(2 * hop), np.arange(hop)[:, None]
    window = np.sin(math.pi * (time + 0.5) / (2 * hop))
    return window * math.sqrt(2 / hop) * np.cos(math.pi / hop * (time + 0.5 + hop / 2) * (frequency + 0.5))


def cosine_transform(size: int) -> Matrix:
    """Orthonormal DCT-II (size, size)."""
    frequency, time = np.arange(size)[:, None], np.arange(size)
    basis = math.sqrt(2 / size) * np.cos(math.pi * (time + 0.5) * frequency / size)
    basis[0] /= math.sqrt(2)
    return basis


def latent_transform(hop: int, seed: int = 0) -> tuple[Matrix, Matrix]:
    """Analysis and synthesis of the latents, (C, 2·hop) each."""
    rng = np.random.default_rng(seed)
    transform = lapped_transform(hop)
    analysis, synthesis, first = [], [], 0
    for count, width in BANDS:
        for _ in range(count):
            signs = rng.choice([-1.0, 1.0], width)
            both = signs @ transform[first : first + width]
            analysis.append(both / math.sqrt(width))
            synthesis.append(both)
            first += width
    return np.array(analysis), np.array(synthesis)


def expander(power: float) -> tuple[float, float]:
    """(r, k) for which z + r·sin(k·z) is nearest to a multiple of sign(z)·|z|^power on |z| <= 1.

    A snake makes just this of its input, up to a constant.
    """
    z = np.linspace(1e-3, 1.05, 1200)
    wanted = z**power
    weight = 1 / (wanted + 5e-4)

    def fit(frequency: float) -> tuple[float, float]:
        terms = np.stack([z, np.sin(frequency * z)], 1) * weight[:, None]
        linear, sine = np.linalg.lstsq(terms, wanted * weight, rcond=None)[0]
        return float(sine / linear), float(np.square(terms @ [linear, sine] - wanted * weight).mean())

    frequency = float(minimize_scalar(lambda k: fit(k)[1], bounds=(2.0, 5.0), method="bounded").x)
    return fit(frequency)[0], frequency


@torch.no_grad()
def start_as_lapped_transform(vae: AutoencoderOobleck, clips: Tensor, seed: int = 0) -> None:
    """Set all weights by formula; of `clips`, every channel of coefficients then has a mean square of 1, levels of
    LEVEL_SIZE².

    Residual branches begin as nothing in the encoder and as very little in the decoder, hidden channels that are not
    needed as small noise.

    Args:
        clips: (B, T) sounds of the kind that is to be encoded.

    Raises: InputError for an autoencoder whose shape cannot hold the transform.
    """
    config = vae.config
    strides, hop, count = config.strides, config.hop, sum(LEVELS)
    widths = [config.channels * multiple for multiple in config.channel_multiples]
    held = np.cumprod(strides)[:-1]
    latents, samples = count + len(LEVELS), sum(n * width for n, width in BANDS)
    if (config.latent_channels, hop) != (latents, samples) or config.companding == 1:
        raise InputError(f"this start is for {latents} companded latents of {samples} samples")
    if any(width < size for width, size in zip(widths, held, strict=False)) or widths[-1] < 3 * count:
        raise InputError(f"channels {widths} are too few for strides {strides}")
    generator = torch.Generator().manual_seed(seed)
    _clear(vae, generator)
    encoder, decoder = vae.encoder.layers, vae.decoder.layers
    _pass_on(_conv(encoder[0]), 0, 0)
    _pass_on(_conv(decoder[-1]), 0, 0)
    blocks = np.ones((1, 1))  # channels by samples: what the channels of the layer so far are of its stretch of sound
    for index, stride in enumerate(strides[:-1]):
        down, up = _strided(vae, index)
        basis, size = torch.from_numpy(cosine_transform(stride)).float(), len(blocks)
        offset = math.ceil(stride / 2)
        for layer in (down, up):
            kernel = layer.weight_v.clone()
            kernel[: size * stride] = 0
            kernel[:, :size] = 0
            for channel in range(size):
                kernel[channel * stride : (channel + 1) * stride, channel, offset : offset + stride] = basis
            _set(layer, kernel)
        blocks = np.kron(blocks[:, None, None, :], basis.double().numpy()[None, :, :, None]).reshape(size * stride, -1)
    down, up = _strided(vae, len(strides) - 1)
    analysis, synthesis = latent_transform(hop, seed)
    power = 1 / config.companding
    scale = np.mean(np.abs(_coefficients(analysis, clips.numpy(), hop)) ** (2 * config.companding), axis=(0, 2))
    unit = torch.from_numpy(np.sqrt(scale) ** power).float()[:, None, None]

    size = len(blocks)

    def kernel_of(transform: Matrix) -> Tensor:
        by_block = transform.reshape(count, -1, blocks.shape[1])
        return torch.from_numpy(np.einsum("ctb,nb->cnt", by_block, blocks)).float()

    # Coefficients once to be passed on, and twice, with both signs, to be squared by their snakes.
    into = down.weight_v.clone()
    into[: 3 * count] = 0
    for part, sign in enumerate((1, 1, -1)):
        into[part * count : (part + 1) * count, :size] = sign * kernel_of(analysis) / unit
    _set(down, into)
    snake, last = _snake(encoder[-2]), _conv(encoder[-1])
    snake.beta.fill_(PASSED_ON)
    snake.alpha[count : 3 * count] = math.log(SQUARED / RANGE**power)
    snake.beta[count : 3 * count] = 0
    for channel in range(count):
        _pass_on(last, channel, channel)
    kernel = last.weight_v.clone()
    kernel[count : config.latent_channels] = 0
    taps, place = torch.tensor(LEVEL_TAPS), 0
    for level, width in enumerate(LEVELS):
        for sign in (1, 2):
            kernel[count + level, sign * count + place : sign * count + place + width] = taps / width
        place += width
    _set(last, kernel)
    assert last.bias is not None
    last.weight_g[config.latent_channels :] = 0
    last.bias[config.latent_channels :] = math.log(math.expm1(POSTERIOR_STD))
    levels = torch.cat([vae.encode(part[:, None])[:, count:] for part in clips.split(4)])
    factor = (LEVEL_SIZE / levels.square().mean(dim=(0, 2)).sqrt()) ** power
    last.weight_g[count : config.latent_channels] *= factor[:, None, None]
    _expand(vae, up, kernel_of(synthesis) * unit, power)


def _expand(vae: AutoencoderOobleck, up: WeightNormConv, synthesis: Tensor, power: float) -> None:
    """Half the difference of a snake of z and one of −z, both at x = ±z − π/4α: z − sin(2αz)/2β.

    The constants of the two take each other away, and in weights of half precision too.
    """
    count, size = synthesis.shape[:2]
    sine, frequency = expander(power)
    alpha, half = frequency / RANGE / 2, -sine * RANGE
    block, first = vae.decoder.layers[1], _conv(vae.decoder.layers[0])
    assert isinstance(block, DecoderBlock)
    assert first.bias is not None
    snake = _snake(block.layers[0])
    snake.alpha[: 2 * count], snake.beta[: 2 * count] = math.log(alpha), math.log(1 / (2 * half))
    first.bias[: 2 * count] = -math.pi / (4 * alpha)
    for channel in range(count):
        _pass_on(first, channel, channel)
        _pass_on(first, count + channel, channel, -1)
    middle = RANGE / 2
    gain = middle**power / (middle - half * math.sin(2 * alpha * middle))
    kernel = up.weight_v.clone()
    kernel[: 2 * count] = 0
    kernel[:, :size] = 0
    kernel[:count, :size] = gain / 2 * synthesis
    kernel[count : 2 * count, :size] = -gain / 2 * synthesis
    _set(up, kernel)


def _coefficients(analysis: Matrix, audio: NDArray[np.float32], hop: int) -> Matrix:
    """audio (B, T), T a multiple of the hop → (B, C, L), aligned as the encoder's strided convolutions are."""
    padded = np.pad(audio, ((0, 0), (hop // 2, hop // 2)))
    frames = np.lib.stride_tricks.sliding_window_view(padded, 2 * hop, axis=1)[:, ::hop]
    return np.einsum("blt,ct->bcl", frames, analysis)


def _clear(vae: AutoencoderOobleck, generator: torch.Generator) -> None:
    for module in vae.modules():
        if isinstance(module, SnakeBeta):
            module.alpha.zero_()
            module.beta.fill_(PASSED_ON)
        elif isinstance(module, WeightNormConv):
            kernel = 1e-3 * torch.randn(module.weight_v.shape, generator=generator)
            _set(module, kernel)
            if module.bias is not None:
                module.bias.zero_()
    for module in vae.modules():
        if isinstance(module, ResidualUnit):
            wide = _conv(module.layers[1])
            shape = wide.weight_v.shape
            _set(wide, torch.randn(shape, generator=generator) / math.sqrt(shape[1] * shape[2]))
    for module in vae.encoder.modules():
        if isinstance(module, ResidualUnit):
            _conv(module.layers[3]).weight_g.zero_()


def _strided(vae: AutoencoderOobleck, index: int) -> tuple[WeightNormConv, WeightNormConv]:
    """The encoder's strided convolution and the decoder's that mirrors it."""
    into, out_of = vae.encoder.layers[1 + index], vae.decoder.layers[len(vae.config.strides) - index]
    assert isinstance(into, EncoderBlock)
    assert isinstance(out_of, DecoderBlock)
    return _conv(into.layers[4]), _conv(out_of.layers[1])


def _pass_on(layer: WeightNormConv, output: int, channel: int, sign: int = 1) -> None:
    """Make one output of a convolution that does not stride the copy of one of its channels."""
    kernel = layer.weight_v.clone()
    kernel[output] = 0
    kernel[output, channel, kernel.shape[2] // 2] = sign
    _set(layer, kernel)


def _set(layer: WeightNormConv, kernel: Tensor) -> None:
    layer.weight_v.copy_(kernel)
    layer.weight_g.copy_(torch.linalg.vector_norm(kernel, dim=(1, 2), keepdim=True))


def _conv(module: nn.Module) -> WeightNormConv:
    assert isinstance(module, WeightNormConv)
    return module


def _snake(module: nn.Module) -> SnakeBeta:
    assert isinstance(module, SnakeBeta)
    return module
