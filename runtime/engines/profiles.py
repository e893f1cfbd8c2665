"""Optimisation profiles: the ranges of batch, frames, tokens and steps that an engine accepts and is tuned for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ezaudio.config import EzAudioConfig
from ezaudio.runtime.errors import InputError
from ezaudio.runtime.manifest import GraphEntry
from ezaudio.runtime.tensor_spec import TensorSpec

PER_STEP = frozenset(("denoiser", "denoiser_shallow", "denoiser_controlled", "controlnet"))
"""Graphs that run once a step, where an engine tuned for one length pays."""

Range = tuple[int, int, int]
"""Smallest size, the one to tune for, largest size."""
Profile = dict[str, Range]
"""Axis → range."""


@dataclass(frozen=True, slots=True)
class Durations:
    """Clip lengths that an engine is built for, in seconds; equal bounds fix every shape."""

    shortest_s: float
    longest_s: float

    @classmethod
    def parse(cls, text: str, config: EzAudioConfig) -> Durations:
        """`10` or `5-30`. Raises InputError for anything else, or beyond what the model is good for."""
        first, _, last = text.partition("-")
        try:
            found = cls(float(first), float(last or first))
        except ValueError as error:
            raise InputError(f"duration {text!r} is no length: expected seconds, as 10, or a range, as 5-30") from error
        if not 0 < found.shortest_s <= found.longest_s <= config.max_duration_s:
            raise InputError(
                f"duration {text!r} is out of range: expected more than 0 to {config.max_duration_s:g} seconds, "
                "the shorter bound first"
            )
        return found

    def frames(self, config: EzAudioConfig) -> Range:
        shortest, longest = (num_frames(bound, config) for bound in (self.shortest_s, self.longest_s))
        return shortest, longest, longest


def num_frames(duration_s: float, config: EzAudioConfig) -> int:
    """Latent frames of a clip, the last one begun counts."""
    return max(1, -(-round(duration_s * config.vae.sample_rate) // config.vae.hop))


def ranges(entry: GraphEntry) -> Profile:
    """What the bundle declares for every axis of a graph's inputs."""
    return {axis.name: (axis.min, axis.opt, axis.max) for spec in entry.inputs for axis in spec.axes().values()}


def profiles_of(
    name: str, entry: GraphEntry, config: EzAudioConfig, durations: Iterable[Durations] = (), buckets: bool = False
) -> list[Profile]:
    """The profiles to build a graph with.

    Args:
        durations: one profile for each, in the graphs that run once a step; none takes the bundle's whole range.
        buckets: cut that range at the usual length, so that usual and long clips get kernels of their own.
    """
    whole = ranges(entry)
    if "frames" not in whole or name not in PER_STEP:
        return [whole]
    least, usual, most = whole["frames"]
    lengths = [one.frames(config) for one in durations]
    if not lengths:
        lengths = [whole["frames"]] if not buckets or usual == most else [(least, usual, usual), (usual, most, most)]
    return [{**whole, "frames": length} for length in lengths]


def shape_range(spec: TensorSpec, profile: Profile) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Smallest, tuned and largest shape of an input."""
    least, usual, most = (spec.sizes({axis: bounds[which] for axis, bounds in profile.items()}) for which in range(3))
    return least, usual, most


def axis_sizes(specs: Iterable[TensorSpec], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """The size of every axis, found in the shapes of the inputs; of `rows` from the two kinds of rows it counts."""
    sizes: dict[str, int] = {}
    for spec in specs:
        for index, axis in spec.axes().items():
            size, rest = divmod(shapes[spec.name][index], axis.times)
            assert rest == 0, (spec.name, shapes[spec.name])
            assert sizes.setdefault(axis.name, size) == size, (spec.name, axis.name, size, sizes)
    if "prompt_rows" in sizes:
        sizes.setdefault("rows", sizes["prompt_rows"] + sizes["constant_rows"])
    return sizes


def covering(profiles: list[Profile], sizes: Mapping[str, int]) -> int | None:
    """The first profile that accepts these sizes, the one tuned for the nearest length first; None: none does.

    A profile tells of the axes of inputs; sizes may have others that follow from those.
    """
    fitting = [
        index
        for index, profile in enumerate(profiles)
        if all(profile[axis][0] <= size <= profile[axis][2] for axis, size in sizes.items() if axis in profile)
    ]
    return min(
        fitting,
        key=lambda index: abs(profiles[index].get("frames", (0, 0, 0))[1] - sizes.get("frames", 0)),
        default=None,
    )


def uncovered(name: str, built: list[list[Profile]], sizes: Mapping[str, int], config: EzAudioConfig) -> InputError:
    """That no engine of a graph accepts these sizes, and which ones they do accept.

    Args:
        built: the profiles of every engine there is for the graph.
    """
    known = [profile for profiles in built for profile in profiles]
    sizes = {axis: size for axis, size in sizes.items() if any(axis in profile for profile in known)}
    for axis, size in sizes.items():
        bounds = sorted({profile[axis][::2] for profile in known if axis in profile})
        if any(least <= size <= most for least, most in bounds):
            continue
        if axis == "frames":
            rate = config.vae.latent_rate
            lengths = ", ".join(
                f"{least / rate:g} to {most / rate:g} s" if least < most else f"{least / rate:g} s"
                for least, most in bounds
            )
            duration = f"{size / rate:g}"
            fix = f"ask for one of these lengths or run ezaudio-build --duration {duration}"
            return InputError(f"no engine of {name!r} covers {duration} s, they are built for {lengths}: {fix}")
        sizes_built = ", ".join(f"{least} to {most}" for least, most in bounds)
        return InputError(
            f"no engine of {name!r} covers {axis} {size}, they are built for {sizes_built}: run ezaudio-build"
        )
    together = ", ".join(f"{axis} {size}" for axis, size in sizes.items())
    return InputError(f"no engine of {name!r} covers {together} in one profile: run ezaudio-build")


def to_json(profile: Profile) -> dict[str, Any]:
    return {axis: list(bounds) for axis, bounds in sorted(profile.items())}


def from_json(data: dict[str, Any]) -> Profile:
    """Inverse of `to_json`. Raises TypeError or ValueError when the data is no profile."""
    profile: Profile = {}
    for axis, bounds in data.items():
        least, usual, most = (int(bound) for bound in bounds)
        profile[str(axis)] = (least, usual, most)
    return profile
