"""What the benchmarks share: interleaved rounds, rows and their hardware line, children, the floor of the machine."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click
from timing import MIN_ROUNDS, interleave

from ezaudio.runtime.machine import cores, lines, processor

FOLDER = Path(__file__).resolve().parent
RESULTS = FOLDER / "results"
PRODUCT = (1000, 1024, 4096)  # rows, inputs and outputs of the product the floor is measured with
COPIED_BYTES = 1 << 28
PACKAGES = ("ezaudio", "onnxruntime", "torch", "numpy")


def rounds_option(function: Any) -> Any:
    """`--rounds`, each of which runs every side once; fewer make no median to be told."""
    kind = click.IntRange(min=MIN_ROUNDS)
    return click.option("--rounds", type=kind, default=MIN_ROUNDS, show_default=True, help="Of all sides in turn.")(
        function
    )


def save_option(function: Any) -> Any:
    """`--save [FILE|FOLDER]`."""
    return click.option(
        "--save",
        type=click.Path(path_type=Path),
        is_flag=False,
        flag_value=str(RESULTS),
        metavar="[PATH]",
        help="Append the rows, as JSON lines, to this file, or to a folder's <benchmark>.jsonl. [benchmarks/results]",
    )(function)


def require(name: str, relative_l2: float, at_most: float, cosine: float = 1.0, at_least: float = -1.0) -> None:
    """Parity: fails, before anything was timed, where a result is further from its reference than allowed."""
    if not (relative_l2 <= at_most and cosine >= at_least):
        raise click.ClickException(
            f"{name}: relative L2 {relative_l2:.1e} (at most {at_most:.0e}), cosine {cosine:.6f} (at least "
            f"{at_least:g}): nothing is timed"
        )


def _status_mib(path: str, name: str) -> float | None:
    found = [int(line.split()[1]) / 1024 for line in lines(path) if line.startswith(f"{name}:")]
    return found[0] if found else None


def peak_memory_mib() -> float | None:
    """VmHWM: the largest resident set of this process so far. None where the system does not say."""
    return _status_mib("/proc/self/status", "VmHWM")


def hardware() -> dict[str, Any]:
    """Fields of every row: where it was measured and with what."""
    return {
        "hardware": processor(),
        "memory_mib": _status_mib("/proc/meminfo", "MemTotal"),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def hardware_line() -> str:
    facts = hardware()
    memory = "unknown memory" if facts["memory_mib"] is None else f"{facts['memory_mib'] / 1024:.0f} GiB"
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items() if number)
    return f"{facts['hardware']}, {memory}; {versions}"


def write_row(row: dict[str, Any], save: Path | None) -> None:
    """Append with the hardware to a file, or to <benchmark>.jsonl in a folder."""
    if save is not None:
        path = save / f"{row['benchmark']}.jsonl" if save.is_dir() else save
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row | hardware()) + "\n")


def in_child(script: str, function: str, **arguments: Any) -> dict[str, Any]:
    """What a function of a benchmark returns, and its `peak_memory_mib`, in a process of its own."""
    code = (
        f"import json, sys; sys.path.insert(0, {str(FOLDER)!r}); import {script}, measure\n"
        f"result = {script}.{function}(**json.loads(sys.argv[1]))\n"
        "print(json.dumps(result | {'peak_memory_mib': measure.peak_memory_mib()}))"
    )
    run = subprocess.run([sys.executable, "-c", code, json.dumps(arguments)], capture_output=True, text=True)
    if run.returncode:
        raise click.ClickException(f"{script}.{function}({arguments}) failed: {(run.stderr.splitlines() or ['?'])[-1]}")
    return json.loads(run.stdout.splitlines()[-1])


def floor(rounds: int = MIN_ROUNDS) -> dict[str, float]:
    """Rates this machine reaches: products in GFLOP/s (int8: GOP/s, quantising included), and a copy in GB/s."""
    import numpy as np
    import onnxruntime as ort
    import torch

    rows, inputs, outputs = PRODUCT
    generator = np.random.default_rng(0)
    x = generator.standard_normal((rows, inputs), np.float32)
    weight = generator.standard_normal((inputs, outputs), np.float32)
    source = np.ones(COPIED_BYTES // 4, np.float32)
    target = np.empty_like(source)
    torch.set_num_threads(cores())
    a, b = torch.from_numpy(x), torch.from_numpy(weight)
    options = ort.SessionOptions()
    # Threads of a side that has run would go on waiting busily, and keep the next one's from the cores.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    with tempfile.TemporaryDirectory() as folder:
        sessions = {}
        for name, model in _product_models(weight).items():
            path = Path(folder, f"{name}.onnx")
            path.write_bytes(model)
            sessions[name] = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        sides: dict[str, Callable[[], object]] = {
            "ort_fp32": lambda: sessions["fp32"].run(None, {"x": x}),
            "ort_int8": lambda: sessions["int8"].run(None, {"x": x}),
            "torch_fp32": lambda: torch.mm(a, b),
            "copy": lambda: np.copyto(target, source),
        }
        timing = interleave(sides, rounds)
    work = 2 * rows * inputs * outputs
    amounts = {"ort_fp32": work, "ort_int8": work, "torch_fp32": work, "copy": 2 * source.nbytes}
    return {side: amount / min(timing.seconds[side]) / 1e9 for side, amount in amounts.items()}


def _product_models(weight: Any) -> dict[str, bytes]:
    """x · weight in fp32, and with int8 weights per column and activations quantised as they come."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    scales = np.abs(weight).max(axis=0) / 127
    constants = {
        "weight": weight,
        "codes": np.rint(weight / scales).astype(np.int8),
        "scales": scales,
        "zero": np.zeros(weight.shape[1], np.int8),
    }
    nodes = {
        "fp32": [helper.make_node("MatMul", ["x", "weight"], ["y"])],
        "int8": [
            helper.make_node("DynamicQuantizeLinear", ["x"], ["x_codes", "x_scale", "x_zero"]),
            helper.make_node("MatMulInteger", ["x_codes", "codes", "x_zero", "zero"], ["sums"]),
            helper.make_node("Cast", ["sums"], ["wide"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["x_scale", "scales"], ["scale"]),
            helper.make_node("Mul", ["wide", "scale"], ["y"]),
        ],
    }
    models = {}
    for name, chain in nodes.items():
        used = {value for node in chain for value in node.input}
        graph = helper.make_graph(
            chain,
            name,
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, weight.shape[0]])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, weight.shape[1]])],
            [numpy_helper.from_array(array, key) for key, array in constants.items() if key in used],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        onnx.checker.check_model(model)
        models[name] = model.SerializeToString()
    return models
