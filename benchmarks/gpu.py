"""Everything that needs a GPU, in one command of under eight minutes: correctness, then goals G1 to G11.

    python benchmarks/gpu.py                     # from a checkout; needs PyTorch ≥ 2.11, Triton ≥ 3.6, NumPy alone
    python benchmarks/gpu.py --only G1,G7        # some goals
    python benchmarks/gpu.py --tests             # the kernels' tests, natively, where pytest is installed
    python benchmarks/gpu.py --official CHECKOUT # the official code as G4's baseline: pip install einops pyyaml click

Models have their real sizes and random weights, which changes nothing about speed. No network is used. All sections
run at once first, for what they compile, which takes most of the time and fills a host's cores; then each alone, to be
measured. A section runs in a process of its own with its share of the time, so that neither an error nor a hang takes
others with it; what it imports, it imports during the section before. What fails is a row that says so. Sides run in
turn, at least seven rounds; a ratio is the median over the rounds, with its 20th and 80th percentile, and there is none
where results differ. P is a bf16 product of 8192³ and BW a copy, measured in the same process.
Rows are appended to benchmarks/results/gpu.jsonl, from which benchmarks/report.py makes its tables.

Without a GPU it prints what each figure is at least made of. --dry-run rehearses every section on tiny CPU tensors.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from checkout import ROOT, use_checkout

use_checkout("kernels", "runtime", "export")

from gpu_goals import GOALS, PLAN, Row, row, told  # noqa: E402
from gpu_rig import GPU, PREPARATION, REHEARSAL, Rig, hardware, save  # noqa: E402

TOTAL_S, PREPARATION_S = 470, 100
MARK, FACTS, WHY = "gpu-row ", "gpu-facts ", "gpu-failed "  # begin lines of a section's output: rows, GPU, its end
TESTS = (
    "adaln", "attention", "folded", "fuse", "geglu", "gradcheck", "sampler_step", "skip_norm", "training",
)  # fmt: skip
OPERATORS = ("norms", "self-attention", "cross-attention")
Emit = Callable[[Row], None]


@dataclass(frozen=True, slots=True)
class Section:
    """A process: which goals it measures, of which model, and the most seconds it gets.

    Attributes:
        parts: what it can do one at a time, each in a process of its own where sections are prepared.
    """

    name: str
    goals: tuple[str, ...]
    model: str
    seconds: int
    parts: tuple[str, ...] = ("",)


SECTIONS = (
    Section("clips", ("G1", "G2", "G3", "G6", "G10"), "xl", 80),
    Section("clips", ("G1", "G2", "G5", "G6"), "l", 60),
    Section("operators", ("G7", "G8"), "xl", 120, OPERATORS),
    Section("training", ("G9",), "l", 60),
    Section("fidelity", ("G11",), "xl", 45),
    Section("operators", ("G7", "G8"), "l", 120, OPERATORS),
    Section("rivals", ("G4",), "xl", 300),  # last: what max-autotune has not compiled before may take all that is left
)


def run_section(section: Section, parts: tuple[str, ...], rig: Rig, official: Path | None, emit: Emit) -> None:
    """In the child."""
    import gpu_backend
    import gpu_baselines

    model = section.model if rig.measures else rig.models[0]
    if section.name == "operators":
        gpu_baselines.operators(rig, model, emit, parts)
    elif section.name == "clips":
        gpu_backend.clips(rig, model, emit)
    elif section.name == "fidelity":
        gpu_backend.fidelity(rig, model, emit)
    elif section.name == "training":
        gpu_baselines.training(rig, model, emit)
    else:
        gpu_baselines.rivals(rig, model, emit, official)


def child(numbers: list[int], part: str | None, held: bool, rig: Rig, official: Path | None) -> None:
    """Run sections, or a part of one, and print their rows as they are made."""
    if held:
        import gpu_baselines  # noqa: F401  takes seconds, and no GPU

        if not sys.stdin.readline():  # the parent has ended
            return
    facts = hardware(rig.device)
    sys.stdout.write(FACTS + json.dumps(facts) + "\n")

    def emit(made: Row) -> None:
        sys.stdout.write(MARK + json.dumps(made | facts) + "\n")
        sys.stdout.flush()

    for number in numbers:
        section = SECTIONS[number]
        try:
            run_section(section, section.parts if part is None else (part,), rig, official, emit)
        except Exception as error:  # noqa: BLE001  told by the parent as the reason of rows that are missing
            traceback.print_exc()
            first = (str(error).strip().splitlines() or ["?"])[0][:200]
            sys.stdout.write(WHY + json.dumps(f"{type(error).__name__}: {first}") + "\n")
            sys.exit(1)


@dataclass(slots=True)
class Outcome:
    """Of a process: its rows, what it ran on, and why it ended before its end, if it did."""

    rows: list[Row] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    reason: str = ""
    late: bool = False

    def take(self, line: str) -> None:
        """A line of its output; what is none of ours is passed on."""
        for mark in (MARK, FACTS, WHY):
            if line.startswith(mark):
                told_so = json.loads(line[len(mark) :])
                if mark == MARK:
                    self.rows.append(told_so)
                elif mark == FACTS:
                    self.facts = told_so
                else:
                    self.reason = told_so
                return
        sys.stderr.write(line)


@dataclass(slots=True)
class Child:
    """Sections in a process of their own."""

    process: subprocess.Popen[str]
    reader: threading.Thread
    outcome: Outcome


def launch(numbers: list[int], arguments: argparse.Namespace, prepared: str | None = None, held: bool = False) -> Child:
    """Start sections, or only what a part of one compiles.

    Args:
        held: it imports what it needs and waits for `finish`, while another is measured.
    """
    command = [sys.executable, str(Path(__file__).resolve()), "--child", ",".join(map(str, numbers))]
    command += ["--dry-run"] if arguments.dry_run else []
    command += ["--held"] if held else []
    command += [] if prepared is None else ["--prepare", prepared]
    command += ["--official", str(arguments.official)] if arguments.official else []
    environment = dict(os.environ)
    if prepared is not None and all(SECTIONS[number].name != "rivals" for number in numbers):
        environment["TORCHINDUCTOR_COMPILE_THREADS"] = "4"  # max-autotune alone has work for all cores
    if arguments.dry_run:
        environment |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=None if prepared is None else subprocess.DEVNULL,
        text=True,
        env=environment,
        start_new_session=True,
    )
    outcome = Outcome()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            outcome.take(line)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    return Child(process, reader, outcome)


def finish(child: Child, seconds: float) -> Outcome:
    """Let it run, and so many seconds later stop it."""
    process, outcome = child.process, child.outcome
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # it has failed before, and says why
        process.stdin.write("go\n")
        process.stdin.close()
    try:
        status = process.wait(seconds)
        child.reader.join(10)
        if status and not outcome.reason:
            outcome.reason = f"the section ended with status {status}"
    except subprocess.TimeoutExpired:
        outcome.reason, outcome.late = f"not within its {seconds:.0f} s", True
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # with the processes that compile for it
            process.wait()
            child.reader.join(10)
    return outcome


def start(numbers: list[int], arguments: argparse.Namespace, seconds: float, prepared: str | None = None) -> Outcome:
    return finish(launch(numbers, arguments, prepared), seconds)


def wanted(section: Section, only: set[str], models: set[str]) -> bool:
    return section.model in models and bool(only & set(section.goals))


def planned(section: Section, only: set[str]) -> list[tuple[str, str, str]]:
    """Rows that a section should make."""
    return [
        (goal, model, what)
        for goal, model, what in PLAN
        if goal in only and goal in section.goals and model == section.model
    ]


def prepare(numbers: list[int], arguments: argparse.Namespace, seconds: float) -> None:
    """Run sections side by side, for what they leave in the caches of compilers. Failures are told when measured."""
    jobs = [(number, part) for number in numbers for part in SECTIONS[number].parts]
    with ThreadPoolExecutor(len(jobs)) as pool:
        ended = {pool.submit(start, [job[0]], arguments, seconds, prepared=job[1]): job for job in jobs}
        for future in as_completed(ended):
            future.result()
            number, part = ended[future]
            section = SECTIONS[number]
            print(f"  {part or section.name} of {section.model.upper()} is compiled", file=sys.stderr)


def measure_all(arguments: argparse.Namespace, only: set[str]) -> tuple[list[Row], dict[str, str]]:
    """The rows of every section that is wanted, in turn, within the whole time; and what they were measured on."""
    deadline = time.monotonic() + arguments.seconds
    rows: list[Row] = []
    facts: dict[str, str] = {}
    chosen = [number for number, section in enumerate(SECTIONS) if wanted(section, only, arguments.models)]
    print(f"compiling for {len(chosen)} sections side by side", file=sys.stderr)
    prepare(chosen, arguments, PREPARATION_S * arguments.seconds / TOTAL_S)
    held = [launch([number], arguments, held=True) for number in chosen[:1]]
    for number, following in zip(chosen, [*chosen[1:], None], strict=True):
        running, section, left = held.pop(), SECTIONS[number], deadline - time.monotonic()
        if following is not None:
            held.append(launch([following], arguments, held=True))
        print(f"{section.name} of {section.model.upper()}, {left:.0f} s left", file=sys.stderr)
        outcome = finish(running, max(1.0, min(section.seconds * arguments.seconds / TOTAL_S, left)))
        facts = outcome.facts or facts
        made = [r for r in outcome.rows if r["goal"] in only]
        found = {(r["goal"], r["model"], r["what"]) for r in made}
        reason, failed = outcome.reason or "the section made no row", not outcome.late
        made += [
            row(*plan, reason=reason, failed=failed) | facts for plan in planned(section, only) if plan not in found
        ]
        for one in made:
            save(one, arguments.output)
        rows += made
    return rows, facts


def rehearse(arguments: argparse.Namespace, only: set[str]) -> list[Row]:
    """One process, since what is tested is the sections; each of a kind once."""
    kinds: dict[str, int] = {}
    for number, section in enumerate(SECTIONS):
        if wanted(section, only, arguments.models):
            kinds.setdefault(section.name, number)
    outcome = start([*kinds.values()], arguments, arguments.seconds)
    rows = [r for r in outcome.rows if r["goal"] in only]
    expected = {(goal, what) for number in kinds.values() for goal, _, what in planned(SECTIONS[number], only)}
    missing = expected - {(r["goal"], r["what"]) for r in rows}
    why = outcome.reason or "the section made no row"
    return rows + [row(goal, "debug", what, reason=why, failed=True) for goal, what in sorted(missing)]


def table(rows: list[Row]) -> str:
    """By goal: the figure, the goal, what it is at least made of, and the particulars."""
    lines = []
    for goal, about in GOALS.items():
        of_goal = [r for r in rows if r["goal"] == goal]
        if of_goal:
            stretch = f" (stretch {about.stretch})" if about.stretch else ""
            lines.append(f"{goal:4} {about.what}; goal {about.goal}{stretch}")
        for made in of_goal:
            parts = [f"     {made['model'].upper():5} {made['what']:26} {told(made)}"]
            parts += [made["note"]] if made.get("note") else []
            parts += [f"floor {made['floor']}"] if made["floor"] else []
            lines.append("; ".join(parts))
    return "\n".join(lines)


def run_tests() -> int:
    """The kernels' tests on this GPU, in this process: the checkout's packages are already the ones in use."""
    try:
        import pytest
    except ModuleNotFoundError:
        print("pytest is not installed: pip install pytest")
        return 1
    files = [str(ROOT / "tests" / f"test_kernel_{name}.py") for name in TESTS]
    return int(pytest.main(["-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT), *files]))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(GOALS), help="goals, with commas between them [all]")
    parser.add_argument("--models", default="xl,l", help="with a comma between them [%(default)s]")
    parser.add_argument("--official", type=Path, metavar="CHECKOUT", help="of github.com/haidog-yaqub/EzAudio, for G4")
    parser.add_argument("--seconds", type=float, default=TOTAL_S, help="for everything [%(default)s]")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "gpu.jsonl")
    parser.add_argument("--tests", action="store_true", help="run the kernels' tests and measure nothing")
    parser.add_argument("--dry-run", action="store_true", help="every section on tiny CPU tensors; nothing is saved")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--held", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--prepare", metavar="PART", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if unknown := set(arguments.only.split(",")) - set(GOALS):
        parser.error(f"unknown goals {', '.join(sorted(unknown))}: expected some of {', '.join(GOALS)}")
    arguments.models = set(arguments.models.split(","))
    if unknown := arguments.models - {"xl", "l"}:
        parser.error(f"unknown models {', '.join(sorted(unknown))}: expected xl, l or both")
    if not any(wanted(section, set(arguments.only.split(",")), arguments.models) for section in SECTIONS):
        parser.error(f"--only {arguments.only} has nothing to measure of {', '.join(sorted(arguments.models))}")
    if arguments.official and not (arguments.official / "src").is_dir():
        parser.error(f"'{arguments.official}' is no checkout of the official code: it has no src")
    return arguments


def main() -> int:
    arguments = parsed()
    rig = REHEARSAL if arguments.dry_run else GPU if arguments.prepare is None else PREPARATION
    if arguments.child:
        numbers = [int(number) for number in arguments.child.split(",")]
        child(numbers, arguments.prepare, arguments.held, rig, arguments.official)
        return 0
    if arguments.tests:
        return run_tests()
    only = set(arguments.only.split(","))
    if arguments.dry_run:
        rows = rehearse(arguments, only)
        print("dry run: tiny CPU tensors, nothing is measured and nothing saved; these figures mean nothing")
        print(table(rows))
        return 1 if any(r.get("failed") for r in rows) else 0
    if not torch.cuda.is_available():
        rows = [row(*plan, reason="no GPU") for plan in PLAN if plan[0] in only and plan[1] in arguments.models]
        print("This machine has no CUDA GPU that PyTorch can use: nothing is measured.")
        print(table(rows))
        return 0
    rows, facts = measure_all(arguments, only)
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    print(table(rows))
    print(f"appended to {arguments.output}: send this file to the project, see docs/performance.md")
    return 1 if any(r.get("failed") for r in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
