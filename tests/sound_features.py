"""A small recogniser for the tests of synthesised sounds: statistics of log-mel energies, and logistic regression."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from ezaudio.data.synthesis.primitives import SAMPLE_RATE

FFT_SIZE, HOP, BANDS = 1024, 480, 40


def _mel_bank() -> NDArray[np.float32]:
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 12000 / 700), BANDS + 2) / 2595) - 1)
    bins = np.fft.rfftfreq(FFT_SIZE, 1 / SAMPLE_RATE)
    rise = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    return np.maximum(0, np.minimum(rise, fall)).astype(np.float32)


BANK = _mel_bank()


def features(audio: NDArray[np.float32]) -> NDArray[np.float32]:
    """Level-free statistics of a clip (T,): mean, deviation and change of each band, and how the loudness moves."""
    frames = np.lib.stride_tricks.sliding_window_view(audio, FFT_SIZE)[::HOP] * np.hanning(FFT_SIZE).astype(np.float32)
    power = np.abs(np.fft.rfft(frames)).astype(np.float32) ** 2
    mels = np.log(power @ BANK.T + 1e-5 * power.mean())
    mels -= mels.mean()
    loudness = np.log(power.sum(1) + 1e-4 * power.sum(1).max())
    loudness = (loudness - loudness.mean()) / (loudness.std() + 0.1)
    movement = np.abs(np.fft.rfft(loudness, 512))[1:129].reshape(32, 4).mean(1)
    change = np.abs(np.diff(mels, axis=0))
    loud = mels[loudness >= np.median(loudness)]
    parts = [
        mels.mean(0),
        mels.std(0),
        change.mean(0),
        loud.mean(0),
        mels.max(0),
        np.log(movement + 1),
        [loudness.std()],
    ]
    return np.concatenate(parts).astype(np.float32)


def accuracy_by_class(
    train: NDArray[np.float32], train_labels: list[int], test: NDArray[np.float32], test_labels: list[int]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Logistic regression on standardised features: share of right answers of each class, and confusions (C, C)."""
    mean, std = train.mean(0), train.std(0) + 1e-3
    x, y = torch.from_numpy((train - mean) / std), torch.tensor(train_labels)
    classes = int(y.max()) + 1
    torch.manual_seed(0)
    weight = torch.zeros(x.shape[1], classes, requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], 0.02)
    for _ in range(200):
        loss = torch.nn.functional.cross_entropy(x @ weight + bias, y) + 3e-3 * weight.square().sum() / classes
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        answers = (torch.from_numpy((test - mean) / std) @ weight + bias).argmax(1).numpy()
    confusions = np.zeros((classes, classes), np.int64)
    np.add.at(confusions, (np.array(test_labels), answers), 1)
    return confusions.diagonal() / confusions.sum(1), confusions
