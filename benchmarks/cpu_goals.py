"""The table of the goals on a CPU, C1 to C10: what was measured for each, and by which command."""

from __future__ import annotations

from typing import Any

from rows import NOT_MEASURED, Results, Row, span, table

DURATION_S = 10.0
MODELS = ("l", "xl")


def cpu_goals(results: Results) -> list[str]:
    official = "python benchmarks/official.py --official CHECKOUT --model l --save"

    def over(case: str, side: str) -> str:
        found = {model: results.newest("official", case=case, model=model, duration_s=DURATION_S) for model in MODELS}
        rows = {model: row for model, row in found.items() if row is not None and side in row["official_over"]}
        texts = []
        for model, row in rows.items():
            cosine = f", cosine {row['parity'][side]['cosine']:.5f}" if "int8" in side and case == "step" else ""
            texts.append(f"{model.upper()} {span(row['official_over'][side])}{cosine}")
        return "; ".join(texts) or NOT_MEASURED

    def every(rows: list[Row], value: Any) -> str:
        return "; ".join(f"{row['model'].upper()} {row['precision']} {value(row)}" for row in rows) or NOT_MEASURED

    decoded = over("decode", "ours fp32")
    if (in_bf16 := over("decode", "openvino bf16")) != NOT_MEASURED:
        decoded += f"; backend openvino in bf16: {in_bf16}"
    hoists = results.each("denoiser", "model", case="step", precision="fp32", duration_s=DURATION_S)
    presets = results.each("sampling", "model", "precision", case="preset", preset="fast", num_steps=100)
    against = results.each("official", "model", case="preset", preset="fast", num_steps=100, duration_s=DURATION_S)
    outside = [
        row
        for row in results.each("sampling", "model", "precision", "preset", case="clip", backend="onnxruntime")
        if row["median"]
    ]
    memory = results.each("memory", "model", "precision", "case")
    cold, cpp = results.newest("cold_start"), results.newest("cpp")

    def started(side: str) -> str:
        return NOT_MEASURED if cold is None else f"{cold['seconds'][side]['median']:.2f} s"

    def cpp_value(name: str) -> str:
        return NOT_MEASURED if cpp is None else f"{cpp['model']} {span(cpp[name])}"

    def hoisted(row: Row) -> str:
        return span(row["over_ours"]["unhoisted"])

    def preset_value(row: Row) -> str:
        return f"{span(row['official_over_preset'])}, clips of {row['duration_s']:g} s"

    def clip_value(row: Row) -> str:
        ours = [f"{side.removeprefix('ours ')} {span(ratio)}" for side, ratio in row["official_over"].items()]
        return f"{row['model'].upper()} {', '.join(ours)}"

    def outside_value(row: Row) -> str:
        return f"{row['median']['outside_share']:.2%}"

    def memory_value(row: Row) -> str:
        return f"{row['case'].replace('_', ' ')} {row['peak_over_weights']:.2f}"

    run = "python benchmarks"
    rows = [
        ["C1", "a guided step, official fp32 ÷ fp32", "1.25", "1.45", over("step", "ours fp32"), official],
        ["C2", "the same, official fp32 ÷ int8, cosine ≥ 0.999", "3.5", "4.5", over("step", "ours int8"), official],
        ["C3", "decoding 10 s, official ÷ fp32", "1.5", "2.5", decoded, official],
        ["C4", "hoists off ÷ on", "1.06", "1.08", every(hoists, hoisted), f"{run}/denoiser.py --model l --save"],
        [
            "C5",
            "whole clip, official code at its 100 steps ÷ preset fast",
            "20",
            "40",
            "; ".join(map(clip_value, against)) or NOT_MEASURED,
            f"{run}/official.py --official CHECKOUT --model l --no-step --no-decode --preset fast --save",
        ],
        [
            "",
            "the same, both on this runtime: what the preset alone gives",
            "",
            "",
            every(presets, preset_value),
            f"{run}/sampling.py --bundle BUNDLE --against-official fast --save",
        ],
        [
            "C6",
            "time outside model calls ÷ whole",
            "≤ 1 %",
            "",
            every(outside, outside_value),
            f"{run}/sampling.py --bundle BUNDLE --save",
        ],
        [
            "C7",
            "import of the runtime; `ezaudio-run --help`",
            "≤ 0.25 s",
            "0.15 s",
            f"{started('import')}; {started('help')}",
            f"{run}/cold_start.py --save",
        ],
        ["", "packaged model, cold start to WAV", "≤ 3 s", "", started("sound"), f"{run}/cold_start.py --save"],
        [
            "C8",
            "peak memory ÷ weights in use together",
            "≤ 1.25",
            "1.1",
            every([row for row in memory if row["case"] != "official"], memory_value),
            f"{run}/memory.py --bundle BUNDLE --save",
        ],
        ["C9", "C++ ÷ Python", "0.97 to 1.03", "", cpp_value("cpp_over_python"), f"{run}/cpp.py --build BUILD"],
        [
            "C10",
            "first streamed chunk ÷ whole decode",
            "≤ 0.12",
            "0.06",
            cpp_value("first_chunk_over_decode"),
            f"{run}/cpp.py --build BUILD",
        ],
    ]
    quoted = [[*row[:-1], f"`{row[-1]}`"] for row in rows]
    return table(["", "what", "goal", "stretch", "measured", "command"], quoted)
