"""The reference velocities of a certificate: float16 arrays one after another in a file, nothing else in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ezaudio.config import VAEConfig
from ezaudio.runtime.certificate import Reference
from ezaudio.runtime.errors import BundleError
from ezaudio.runtime.spectrogram import HOP, NUM_BANDS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Float16 = NDArray[np.float16]

FILE_NAME = "certificate.f16"
MAX_BYTES = 1_000_000


@dataclass(frozen=True, slots=True, eq=False)
class ReferenceData:
    """latents, velocities (points, C, L) of the reference bundle; clip (1, C, L) and the levels (bands, columns) it
    decodes to.

    float16 latents are what the reference bundle was given, exactly; its answers are rounded by 3e-4, which moves no
    cosine by more than 1e-7.
    """

    latents: Float16
    velocities: Float16
    clip: Float16
    levels: Float16

    def write(self, folder: Path) -> str:
        arrays = (self.latents, self.velocities, self.clip, self.levels)
        data = b"".join(array.astype("<f2").tobytes() for array in arrays)
        assert len(data) <= MAX_BYTES, len(data)
        (folder / FILE_NAME).write_bytes(data)
        return FILE_NAME


def point_count(vae: VAEConfig, frames: int, wanted: int) -> int:
    """How many of the wanted points fit into the file."""
    levels = NUM_BANDS * _columns(vae, frames)
    each = vae.latent_channels * frames
    return max(1, min(wanted, (MAX_BYTES // 2 - levels - each) // (2 * each)))


def read_reference(folder: Path, reference: Reference, vae: VAEConfig) -> ReferenceData:
    """Raises BundleError when the file does not hold what the certificate says."""
    points, columns = len(reference.points), _columns(vae, reference.frames)
    clip, levels = (1, vae.latent_channels, reference.frames), (NUM_BANDS, columns)
    shapes = ((points, *clip[1:]), (points, *clip[1:]), clip, levels)
    counts = [int(np.prod(shape)) for shape in shapes]
    path = folder / reference.file
    if reference.frames < 1 or not points or 2 * sum(counts) > MAX_BYTES:
        raise BundleError(f"'{path}' is described as {shapes}, which is no reference data: export the bundle again")
    data = path.read_bytes()
    if len(data) != 2 * sum(counts):
        raise BundleError(f"'{path}' has {len(data):,} bytes, expected {2 * sum(counts):,}: export the bundle again")
    parts = np.split(np.frombuffer(data, "<f2").astype(np.float16), np.cumsum(counts)[:-1])
    return ReferenceData(*(part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)))


def _columns(vae: VAEConfig, frames: int) -> int:
    return 1 + frames * vae.hop // HOP
