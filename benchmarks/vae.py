"""Latents → samples: PyTorch against a bundle's decoder, whole and in chunks; time, real-time factor, memory.

    python benchmarks/vae.py --save                                  # the decoder of l and xl, fp32
    python benchmarks/vae.py --bundle l32/ --official CHECKOUT --duration 10 --save

Without --bundle `l4` is exported with random weights into the cache: its VAE is that of the official models. Every side
decodes the same latents; before it is timed its samples are compared with PyTorch's. Sides run in turn; the real-time
factor is seconds of compute per second of sound. Peak memory is that of a process that decodes once.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from measure import hardware_line, in_child, require, rounds_option, save_option, write_row
from models import MAX_RELATIVE_L2, MIN_COSINE, Bundle, find_bundle, source_of, start_latents
from timing import interleave, told

from ezaudio.runtime.decoding import decode_chunks
from ezaudio.runtime.machine import cores
from ezaudio.runtime.measures import measure

PYTORCH, OFFICIAL = "pytorch", "official"


@click.command(help=__doc__)
@click.option("--bundle", type=click.Path(path_type=Path, exists=True), help="[l4 in fp32, exported]")
@click.option("--official", "checkout", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--duration", "durations_s", type=float, multiple=True, default=(1.0, 10.0, 30.0), show_default=True)
@rounds_option
@save_option
def main(
    bundle: Path | None, checkout: Path | None, durations_s: tuple[float, ...], rounds: int, save: Path | None
) -> None:
    import torch

    folder = bundle or find_bundle("l4", "fp32")
    names = ["whole", "chunks", PYTORCH, *([OFFICIAL] if checkout else [])]
    opened = Bundle.open(folder)
    manifest = opened.manifest
    print(f"decoder of {manifest.config.name} in {manifest.precision}; {hardware_line()}")
    stored = (
        "fp16" if manifest.precision == "int8" else manifest.precision
    )  # an int8 bundle's decoder is stored in fp16
    decoders = {name: decoder(name, opened, checkout) for name in names}
    for duration_s in durations_s:
        latents = start_latents(opened.config, duration_s)
        with torch.inference_mode():
            expected = decoders[PYTORCH](latents)
            for name in names:
                cosine, relative_l2 = measure(decoders[name](latents), expected)
                require(f"{name} of {duration_s:g} s", relative_l2, MAX_RELATIVE_L2[stored], cosine, MIN_COSINE[stored])
            timing = interleave({name: partial(decoders[name], latents) for name in names}, rounds)
        where = {"bundle": str(folder), "official": checkout and str(checkout), "duration_s": duration_s}
        memory = {name: in_child("vae", "decode_once", name=name, **where)["peak_memory_mib"] for name in names}
        factor = {name: timing.median(name) / duration_s for name in names}
        for name in names:
            ratio = "" if name == "whole" else f", {name} ÷ whole {told(timing.ratio(name, 'whole'))}"
            print(
                f"{duration_s:4g} s {name:8} {timing.median(name):.3f} s, real-time factor {factor[name]:.3f}, "
                f"{memory[name] or 0:,.0f} MiB{ratio}"
            )
        row: dict[str, Any] = {"benchmark": "vae", "case": "decode", "model": manifest.config.name}
        row |= {"precision": manifest.precision, "origin": manifest.origin, "duration_s": duration_s}
        row |= {"over_whole": {name: timing.ratio(name, "whole") for name in names if name != "whole"}}
        row |= {"real_time_factor": factor, "side_memory_mib": memory}
        write_row(row | timing.fields(), save)


def decoder(name: str, bundle: Bundle, checkout: Path | None) -> Callable[[Any], Any]:
    """Latents (1, C, L) → samples (T,)."""
    if name == OFFICIAL:
        from elsewhere import Elsewhere
        from official_code import OfficialSide

        assert checkout is not None
        official = Elsewhere(OfficialSide, checkout.resolve(), bundle.folder)
        return lambda latents: official.call("decode", latents).reshape(-1)
    if name == PYTORCH:
        import torch

        torch.set_num_threads(cores())
        vae: Any = source_of(bundle.manifest).vae()
        return lambda latents: vae.decoder(torch.from_numpy(latents)).reshape(-1).numpy()

    def whole(latents: Any) -> Any:
        return bundle.sessions.run("decoder", latents=latents)["audio"]

    if name == "whole":
        return lambda latents: whole(latents)[0]
    vae_config = bundle.config.vae
    return lambda latents: np.concatenate(
        [*decode_chunks(whole, latents, latents.shape[2] * vae_config.hop, vae_config)]
    )


def decode_once(name: str, bundle: str, official: str | None, duration_s: float) -> dict[str, Any]:
    """For a process of its own."""
    opened = Bundle.open(Path(bundle))
    if name == OFFICIAL:
        from official_code import OfficialSide

        assert official is not None
        OfficialSide(Path(official), opened.folder).decode(start_latents(opened.config, duration_s))
        return {}
    without_gradients: Any = nullcontext()
    if name == PYTORCH:
        import torch

        without_gradients = torch.inference_mode()
    with without_gradients:
        decoder(name, opened, None)(start_latents(opened.config, duration_s))
    return {}


if __name__ == "__main__":
    main()
