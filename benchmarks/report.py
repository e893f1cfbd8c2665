"""Rebuilds the README's performance section, docs/performance.md and its chart from benchmarks/results/.

    python benchmarks/report.py            # after a run with --save
    python benchmarks/report.py --check    # exit code 1 where a file is not what the results give

Only measured rows are told, the newest of each case; what has none is "not measured". Text outside of the markers
`<!-- performance -->` … `<!-- /performance -->` is left as it is.
"""

from __future__ import annotations

from pathlib import Path

import click
from chart import Bar, draw
from cpu_goals import DURATION_S, MODELS, cpu_goals
from gpu_tables import gpu_goals, kernel_rivals
from measure import RESULTS
from rows import NOT_MEASURED, Results, Row, median, number, span, table, where
from timing import spread

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- performance -->", "<!-- /performance -->"
SIDES = {  # of official.py → code, precision
    "official fp32": ("official PyTorch", "fp32"),
    "plain fp32": ("plain ONNX Runtime", "fp32"),
    "ours fp32": ("this", "fp32"),
    "ours int8": ("this", "int8"),
}


# The README's section.


def readme_section(results: Results) -> list[str]:
    lines = [claim(results), ""]
    rows = []
    for model in MODELS:
        step, decode = (
            results.newest("official", case=case, model=model, duration_s=DURATION_S) for case in ("step", "decode")
        )
        for side, (code, precision) in SIDES.items():
            ratio = "1" if side == "official fp32" else _ratio(step, side)
            cases = ["official"] if code.startswith("official") else ["usual", "low_memory"] if code == "this" else []
            found = [results.newest("memory", case=case, model=model, precision=precision) for case in cases]
            memory = [number(row["peak_memory_mib"] if row else None, "MiB") for row in found]
            decoded = "" if side == "plain fp32" else number(median(decode, side), "s")
            cells = [number(median(step, side), "s"), ratio, decoded, " / ".join(dict.fromkeys(memory))]
            rows.append([model.upper(), code, precision, *cells])
    lines += ["One guided step and the decoding of 10 s of sound:", ""]
    header = ["model", "code", "precision", "step", "official ÷ this", "decode", "peak memory / low memory"]
    lines += [*table(header, rows), ""]
    lines += ["Whole clips of 10 s, prompt to file:", ""]
    rows = []
    for row in results.each("sampling", "model", "precision", "preset", "num_steps", duration_s=DURATION_S):
        if clip := row.get("median"):
            settings = f"{row.get('preset') or 'defaults'}, {row['num_steps']} steps"
            cells = [number(clip[f"{key}_s"], "s") for key in ("step", "decode", "total")]
            size = number(row["bundle_bytes"] / 1e6, "MB")
            rows.append([row["model"], row["precision"], settings, size, *cells, number(row["peak_memory_mib"], "MiB")])
    header = ["model", "precision", "settings", "bundle", "step", "decode", "clip", "peak memory"]
    lines += [*table(header, rows), ""]
    lines.append(
        "![What each step adds to the speed of a clip](docs/performance.svg)\n\n"
        "Every number is a median of a row in [benchmarks/results](benchmarks/results), L and XL with random weights\n"
        "of the right shapes, which changes nothing about speed. [docs/performance.md](docs/performance.md) has the\n"
        "spreads, goals, profiles and commands."
    )
    return lines


def claim(results: Results) -> str:
    row = results.newest("official", case="step", model="l", duration_s=DURATION_S)
    if row is None:
        return f"Against the official PyTorch code on a CPU: {NOT_MEASURED}."
    parts = [
        f"{row['official_over'][f'ours {precision}']['median']:.2f} times as fast in {precision} "
        f"({number(median(row, f'ours {precision}'), 's')})"
        for precision in ("fp32", "int8")
        if f"ours {precision}" in row["official_over"]
    ]
    return (
        f"**A guided step of EzAudio-L is {' and '.join(parts)}** as the official PyTorch code in fp32 "
        f"({number(median(row, 'official fp32'), 's')}), for {row['duration_s']:g} s of sound on {where(row)}."
    )


def _ratio(row: Row | None, side: str) -> str:
    return NOT_MEASURED if row is None or side not in row["official_over"] else span(row["official_over"][side])


# docs/performance.md.


def profiles(results: Results, most: int = 8) -> list[str]:
    lines = []
    for row in results.each("denoiser", "model", "precision", case="step", duration_s=DURATION_S):
        profile = row["profile"]
        integer = "ort_int8" if row["precision"] == "int8" else "ort_fp32"
        lines += [
            f"**{row['model'].upper()} in {row['precision']}**: {number(profile['step_s'], 's')} a guided step, "
            f"{profile['products_share']:.0%} of it in products; a product of 1000 × 1024 × 4096 reaches "
            f"{profile['floor'][integer]:.0f} GFLOP/s in the same run. {where(row)}.",
            "",
        ]
        times = [
            [f"`{name}`", number(s * 1e3), f"{s / profile['step_s']:.1%}"] for name, s in profile["operators"].items()
        ]
        lines += [*table(["operator", "ms", "share"], times[:most]), ""]
        products = [
            [
                f"`{p['operator']}` {p['shape']}",
                str(p["count"]),
                number(p["seconds"] * 1e3),
                number(p["gflop_per_s"]),
                f"{p['share_of_floor']:.0%}",
            ]
            for p in profile["products"][:most]
        ]
        lines += [*table(["product", "count", "ms", "GFLOP/s", "of the floor"], products), ""]
    return lines or [f"{NOT_MEASURED.capitalize()}.", ""]


def decoding(results: Results) -> list[str]:
    rows = []
    for row in results.each("vae", "model", "precision", "duration_s"):
        for side in row["seconds"]:
            memory = number(row["side_memory_mib"][side], "MiB")
            cells = [number(median(row, side), "s"), number(row["real_time_factor"][side]), memory]
            what = {"whole": "bundle, whole", "chunks": "bundle, in chunks"}.get(side, side)
            rows.append([f"{row['duration_s']:g} s", what, row["precision"], *cells])
    if not rows:
        return [f"{NOT_MEASURED.capitalize()}."]
    return table(["sound", "decoder", "precision", "time", "real-time factor", "peak memory"], rows)


def presets_told(results: Results) -> list[str]:
    """What each preset of a bundle gains and costs."""
    lines = []
    for row in results.each("presets", "model", "precision"):
        rows = []
        for preset in row["presets"]:
            fidelity = preset.get("fidelity") or {}
            low, high = preset["guidance_interval"]
            plan = f"{preset['solver']}, {preset['num_steps']} steps"
            if preset["spacing"] != 1:
                plan += f", spacing {preset['spacing']:g}"
            if low > 0 or high < 1:
                plan += f", guided at {low:g} to {high:g}"
            if preset["reuse"]:
                plan += f", {len(preset['reuse'])} reused"
            right = preset["named_right"]
            cells = [
                number(preset["evaluations"]),
                number(preset["median_s"], "s"),
                span(preset["official_over_this"]),
                number(fidelity.get("latent_error")),
                number(fidelity.get("level_distance_db"), "dB"),
                NOT_MEASURED if right is None else f"{right:.0%}",
            ]
            rows.append([preset["preset"], plan, *cells])
        header = ["preset", "plan", "evaluations", "clip", "official ÷ this", "latents", "mel levels", "named right"]
        lines += [f"**{row['model'].upper()} in {row['precision']}**, clips of {row['duration_s']:g} s.", ""]
        lines += [*table(header, rows), ""]
        if row["ceiling"] is not None:
            lines += [
                f"Named right: of {row['clips_of_each_kind']} clips of each of {row.get('kinds', 20)} kinds of "
                f"sound, by a classifier that names {row['ceiling']:.0%} of held-out renderings right.",
                "",
            ]
    return lines or [f"{NOT_MEASURED.capitalize()}.", ""]


def clips(results: Results) -> list[str]:
    rows = []
    for row in results.each("official", "model", "num_steps", case="clip", duration_s=DURATION_S):
        for side in row["seconds"]:
            ratio = "1" if side not in row["official_over"] else _ratio(row, side)
            rows.append([row["model"].upper(), str(row["num_steps"]), side, number(median(row, side), "s"), ratio])
    if not rows:
        return [f"{NOT_MEASURED.capitalize()}."]
    return table(["model", "steps", "code", "clip of 10 s", "official ÷ this"], rows)


def document(results: Results) -> list[str]:
    return [
        "## Goals on a CPU",
        "",
        *cpu_goals(results),
        "",
        "## What each step adds",
        "",
        "![What each step adds to the speed of a clip](performance.svg)",
        "",
        "## Where the time of a step goes",
        "",
        *profiles(results),
        "## Presets",
        "",
        "Distances are of latents and mel levels to those of 100 guided steps from the same noise, as",
        "`ezaudio-calibrate` measured them on prompts that the presets were not chosen on. `official` and `default`",
        "add noise in every step, so that their clips are other clips.",
        "",
        *presets_told(results),
        "## Whole clips against the official code",
        "",
        *clips(results),
        "",
        "## Decoding",
        "",
        *decoding(results),
        "",
        "## Goals on one GPU",
        "",
        *gpu_goals(results),
        "",
        "## The kernels against others",
        "",
        "16 rows in bf16, cold second-level cache; how many times as long as the fused operator the others take.",
        "",
        *kernel_rivals(results),
    ]


# The chart.


def bars(results: Results) -> list[Bar]:
    """Each step's own factor on L: the first three of one guided step in one run, the last of whole clips."""
    row = results.newest("official", case="step", model="l", duration_s=DURATION_S) or {"rounds": {}}
    preset = results.newest("sampling", case="preset", preset="fast", model="l", precision="int8", num_steps=100)

    def factor(slow: str, fast: str) -> float | None:
        if slow not in row["rounds"] or fast not in row["rounds"]:
            return None
        return spread([a / b for a, b in zip(row["rounds"][slow], row["rounds"][fast], strict=True)])["median"]

    return [
        Bar("plain ONNX Runtime, fp32", factor("official fp32", "plain fp32")),
        Bar("hoists and fusions, fp32", factor("plain fp32", "ours fp32")),
        Bar("int8", factor("ours fp32", "ours int8")),
        Bar("preset fast, whole clips", preset["official_over_preset"]["median"] if preset else None),
    ]


def between_markers(text: str, lines: list[str], name: str) -> str:
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise click.ClickException(f"{name} must have {BEGIN} and {END} once each")
    return text[: text.index(BEGIN) + len(BEGIN)] + "\n" + "\n".join(lines) + "\n" + text[text.index(END) :]


def generated(root: Path, results: Results) -> dict[Path, str]:
    """File → what it should hold."""
    readme, page = root / "README.md", root / "docs" / "performance.md"
    return {
        readme: between_markers(readme.read_text("utf-8"), readme_section(results), readme.name),
        page: between_markers(page.read_text("utf-8"), document(results), page.name),
        page.with_suffix(".svg"): draw("Speed against the official code, EzAudio-L on a CPU", bars(results)),
    }


@click.command(help=__doc__)
@click.option("--check", is_flag=True, help="Write nothing, fail when a file differs.")
@click.option("--root", type=click.Path(path_type=Path, exists=True), default=ROOT, help="[this checkout]")
@click.option("--results", type=click.Path(path_type=Path, exists=True), default=RESULTS, help="[benchmarks/results]")
def main(check: bool, root: Path, results: Path) -> None:
    stale = []
    for path, text in generated(root, Results(results)).items():
        if not path.is_file() or path.read_text("utf-8") != text:
            stale.append(str(path.relative_to(root)))
            if not check:
                path.write_text(text, "utf-8")
    if check and stale:
        raise click.ClickException(f"{', '.join(stale)} differ from the results: run python benchmarks/report.py")
    print(f"{'wrote' if stale else 'unchanged'} {' '.join(stale)}".rstrip())


if __name__ == "__main__":
    main()
