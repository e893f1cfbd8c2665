"""The tables of what was measured on a GPU: the goals, and the kernels against all that computes the same."""

from __future__ import annotations

from gpu_goals import GOALS, KERNELS, PASSES, PLAN, floor, kernel_floor, sizes_of, told
from rows import NOT_MEASURED, Results, Row, number, table

SDPA = "compiled + SDPA "  # begins the rivals that are told by their fastest


def gpu_goals(results: Results) -> list[str]:
    """Every row that a whole run of gpu.py makes: its newest figure, and what it was measured on."""
    rows = []
    machines: dict[str, None] = {}
    for goal, model, what in PLAN:
        row = results.newest("gpu", goal=goal, model=model, what=what)
        figure = NOT_MEASURED
        if row is not None:
            machine = f"{row['gpu']}, driver {row['driver']}, CUDA {row['cuda']}, torch {row['torch']}"
            machines[f"{machine}, triton {row['triton']}"] = None
            figure = f"{told(row)}; {row['note']}" if row.get("value") else told(row)
        about = GOALS[goal]
        rows.append([goal, about.what, f"{model.upper()}, {what}", about.goal, about.stretch, figure])
        rows[-1].append(floor(goal, model, what))
    lines = table(["", "what", "of", "goal", "stretch", "measured", "floor"], rows)
    return [
        *lines,
        "",
        f"Measured on: {'; '.join(machines)}." if machines else "No run on a GPU has been recorded yet.",
    ]


def kernel_rivals(results: Results) -> list[str]:
    """What each pass of a kernel has to move and compute, and times of the others in those of the fused operator."""
    lines = []
    machines: dict[str, None] = {}
    for model, operator in KERNELS:
        floors = kernel_floor(operator, sizes_of(model))
        for index, direction in enumerate(PASSES[:1] if operator == "sampler step" else PASSES):
            moved, flops = (each[index] for each in floors)
            least = f"{moved / 1e6:.0f} MB" + (f", {flops / 1e9:.0f} GFLOP" if flops else "")
            row = results.newest("kernels", model=model, operator=operator, **{"pass": direction})
            told_so = [NOT_MEASURED, "", "", "", ""]
            if row is not None and "ms" in row:
                machines[f"{row['gpu']}, torch {row['torch']}, triton {row['triton']}"] = None
                told_so = _kernel(row)
            lines.append([model.upper(), operator, direction, least, *told_so])
    header = ["", "operator", "pass", "floor", "fused"]
    header += ["eager", "torch.compile", "best SDPA, compiled", "FlexAttention"]
    return [*table(header, lines), "", f"Measured on: {'; '.join(machines) or 'nothing yet'}."]


def _kernel(row: Row) -> list[str]:
    ms, ratios = row["ms"]["fused"], {name: ratio["median"] for name, ratio in row["ratio"].items()}
    speed = row["moved_bytes"] / ms / 1e6
    reached = f"{row['flops'] / ms / 1e9:.0f} TFLOP/s"
    if not row["flops"]:
        reached = f"{speed:.0f} GB/s, {speed / row['copy_gb_per_s']:.0%} of a copy's"
    backends = {name.removeprefix(SDPA): ratio for name, ratio in ratios.items() if name.startswith(SDPA)}
    best = f"{min(backends.values()):.2f}, {min(backends, key=backends.__getitem__)}" if backends else ""

    def times(name: str) -> str:
        return f"{ratios[name]:.2f}" if name in ratios else ""

    return [
        f"{number(1e3 * ms)} µs; {reached}", times("eager"), times("torch.compile"), best, times("FlexAttention")
    ]  # fmt: skip
