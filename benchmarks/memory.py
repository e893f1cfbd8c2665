"""Peak memory of making one clip, in a process of its own, against the bytes of weights that are in use together.

    python benchmarks/memory.py --bundle l32/ --bundle l8/ --save
    python benchmarks/memory.py --bundle l32/ --official CHECKOUT --save   # the official code, too
    python benchmarks/memory.py                                   # the packaged model

Peak memory is the largest resident set (VmHWM) of a process that opens the bundle, makes one clip of two steps and
ends; Python, NumPy and ONNX Runtime are part of it, and measured beside it. Both the usual way, which keeps every
session, and low memory, which keeps those of one stage: text, steps, decoding. Samples of both must be equal. The
weights are the initialisers of the graphs that run, each stored tensor once; where a graph widens half precision to
fp32 the fp32 bytes count, and the bytes as stored stand beside them. The official code makes the same kind of clip with
the bundle's weights, which are made in place: a checkpoint that it loads would come on top.
"""

from __future__ import annotations

import hashlib
import inspect
from pathlib import Path
from typing import Any

import click
from measure import hardware_line, in_child, peak_memory_mib, save_option, write_row

from ezaudio.runtime.bundle_store import PACKAGED
from ezaudio.runtime.manifest import Manifest, read_manifest

STAGES = {
    "text": ("text_encoder", "conditioner", "modulation", "frame_bias"),
    "steps": ("denoiser",),
    "decoding": ("decoder",),
}
MIB = 1 << 20


@click.command(help=__doc__)
@click.option("--bundle", "folders", multiple=True, type=click.Path(path_type=Path, exists=True), help="[packaged]")
@click.option("--official", "checkout", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--duration", "duration_s", default=10.0, show_default=True)
@click.option("--steps", default=2, show_default=True)
@save_option
def main(folders: tuple[Path, ...], checkout: Path | None, duration_s: float, steps: int, save: Path | None) -> None:
    print(hardware_line())
    for folder in folders or (PACKAGED,):
        manifest = read_manifest(folder, verify=False)
        stages = {name: weight_bytes(folder, manifest, graphs) for name, graphs in STAGES.items()}
        together = weight_bytes(folder, manifest, tuple({graph for graphs in STAGES.values() for graph in graphs}))
        clip = {"bundle": str(folder), "duration_s": duration_s, "num_steps": steps}
        common = {"benchmark": "memory", "model": manifest.config.name, "duration_s": duration_s, "num_steps": steps}
        if checkout is not None:
            peak = in_child("memory", "make_official_clip", **clip, checkout=str(checkout))["peak_memory_mib"]
            print(f"{manifest.config.name} fp32, official code: {peak:,.0f} MiB")
            write_row(common | {"case": "official", "precision": "fp32", "peak_memory_mib": peak}, save)
        largest = max(stages.values(), key=lambda sizes: sizes["used"])
        digests = set()
        for low_memory, weights in ((False, together), (True, largest)):
            title = f"{manifest.config.name} {manifest.precision}{', low memory' if low_memory else ''}"
            found = in_child("memory", "make_clip", **clip, low_memory=low_memory)
            if found["digest"] is None:
                print(f"{title}: not measured, this version has no low memory mode")
                continue
            digests.add(found["digest"])
            if len(digests) > 1:
                raise click.ClickException(f"{title}: low memory gives other samples: nothing is told")
            peak = found["peak_memory_mib"]
            if peak is None:
                raise click.ClickException("this system does not tell a process its peak memory (VmHWM)")
            ratio = peak * MIB / weights["used"]
            print(
                f"{title}: {peak:,.0f} MiB, {found['imported_mib']:,.0f} MiB before the bundle is opened; {ratio:.2f} "
                f"of the weights in use, {weights['used'] / MIB:,.0f} MiB (stored {weights['stored'] / MIB:,.0f})"
            )
            row = common | {"case": "low_memory" if low_memory else "usual", "precision": manifest.precision}
            row |= {"imported_mib": found["imported_mib"], "peak_memory_mib": peak}
            row |= {"weights": weights, "stages": stages, "peak_over_weights": ratio}
            write_row(row, save)


def weight_bytes(folder: Path, manifest: Manifest, graphs: tuple[str, ...]) -> dict[str, int]:
    """Of the initialisers of these graphs, tensors that they share once: as stored, and as used."""
    import onnx

    places: dict[Any, tuple[int, int]] = {}
    for graph in graphs:
        model = onnx.load(str(folder / manifest.graphs[graph].file), load_external_data=False)
        for tensor in model.graph.initializer:
            half = tensor.data_type in (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
            entries = {entry.key: entry.value for entry in tensor.external_data}
            inline = len(tensor.raw_data) or tensor.ByteSize()
            stored = int(entries["length"]) if entries else inline
            place = (entries["location"], entries.get("offset")) if entries else (graph, tensor.name)
            places[place] = (stored, 2 * stored if half else stored)
    return {"stored": sum(p[0] for p in places.values()), "used": sum(p[1] for p in places.values())}


def make_clip(bundle: str, duration_s: float, num_steps: int, low_memory: bool) -> dict[str, Any]:
    """For a process of its own: digest of the samples, None where this version lacks the mode."""
    from ezaudio.runtime import TextToAudio

    imported = peak_memory_mib()
    mode = {"low_memory": True} if low_memory else {}
    if not mode.keys() <= inspect.signature(TextToAudio).parameters.keys():
        return {"digest": None}
    model = TextToAudio(bundle, verify=False, backend="onnxruntime", **mode)  # type: ignore[arg-type]
    samples = model.generate("a dog barks", duration_s=duration_s, num_steps=num_steps, seed=0).samples
    return {"digest": hashlib.sha256(samples.tobytes()).hexdigest(), "imported_mib": imported}


def make_official_clip(bundle: str, checkout: str, duration_s: float, num_steps: int) -> dict[str, Any]:
    """For a process of its own."""
    from models import source_of
    from official_code import Official

    from ezaudio.runtime.tokenizer import PromptTokenizer

    manifest = read_manifest(Path(bundle), verify=False)
    official = Official(Path(checkout), source_of(manifest))
    tokenizer = PromptTokenizer(Path(bundle, "spiece.model"), manifest.config.text.max_tokens)
    frames = round(duration_s * manifest.config.vae.latent_rate)
    official.clip(official.dit(), official.vae(), tokenizer, frames, num_steps, seed=0)()
    return {}


if __name__ == "__main__":
    main()
