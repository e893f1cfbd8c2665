"""The Triton kernels on a GPU: correctness first, then time against eager, torch.compile, SDPA and FlexAttention.

    python benchmarks/kernels.py          # from a checkout; needs PyTorch ≥ 2.11 and Triton ≥ 3.6, nothing else
    python benchmarks/kernels.py --models xl --only self-attention,cross-attention

Every operator and pass has a process of its own. They compile and record side by side, as many as the GPU's memory
holds, and are timed in turn while the others wait. A ratio is the median over the rounds, with its 20th and 80th
percentile. Rows are appended to benchmarks/results/kernels.jsonl.

Without a GPU it prints what each operator has to move and compute. --dry-run rehearses it on tiny CPU tensors.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from checkout import ROOT, use_checkout

use_checkout("kernels", "runtime")

from gpu_goals import KERNEL_BATCH, PASSES  # noqa: E402
from gpu_rig import GPU, REHEARSAL, Rig, copy_bandwidth, hardware, save  # noqa: E402
from operators import FAULT, Case, all_cases, recorded, timed, wrong  # noqa: E402

MODELS = ("l", "xl")
BYTES_EACH = 6 * 2**30  # of a process, at most: attention in float64 and as plain operators


@dataclass(slots=True)
class Job:
    """A pass of an operator, and the rivals that are left out, each with what it ended in before."""

    model: str
    index: int
    direction: str
    faulty: dict[str, str] = field(default_factory=dict)

    def case(self, rig: Rig, batch: int) -> Case:
        return all_cases(rig, self.model, batch)[self.index]


def work(parent: Connection, job: Job, rig: Rig, batch: int) -> None:
    """In the child: `problem`, or {} once all is recorded; then, when it is its turn, what was timed."""
    try:
        case = job.case(rig, batch)
        if bad := wrong(case, rig.device):
            parent.send({"problem": f"not correct: {'; '.join(bad)}"})
            return
        rivals = [name for name in ("eager", "torch.compile", *case.rivals) if name not in job.faulty]
        calls, refused = recorded(case, job.direction == "both", rig, rivals)
        parent.send({})
        parent.recv()
        parent.send(timed(calls, case, rig) | {"refused": refused | job.faulty})
    except EOFError:  # the parent has ended
        return
    except Exception as error:  # noqa: BLE001  told by the parent, which goes on with the others
        parent.send({"problem": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"})


@dataclass(slots=True)
class Worker:
    """After a fault a process can use its GPU no more: a rival's, too."""

    job: Job
    process: multiprocessing.process.BaseProcess
    child: Connection

    def answer(self) -> dict[str, Any]:
        try:
            return self.child.recv()
        except EOFError:
            self.process.join()
            return {"problem": f"its process ended with status {self.process.exitcode}"}

    def timed(self) -> dict[str, Any]:
        with suppress(BrokenPipeError):  # it has ended since, and `answer` says how
            self.child.send("go")
        return self.answer()


def started(job: Job, rig: Rig, batch: int) -> Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(theirs, job, rig, batch), daemon=False)
    process.start()
    theirs.close()
    return Worker(job, process, ours)


def without(job: Job, problem: str) -> Job | None:
    """The job again, if its problem was a rival's fault."""
    _, fault, told = problem.partition(FAULT)
    name, _, reason = told.partition(": ")
    return Job(job.model, job.index, job.direction, job.faulty | {name: reason}) if fault else None


def measured(jobs: list[Job], rig: Rig, batch: int, at_once: int) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Each job with what was found, groups of `at_once` side by side."""
    waiting = deque(jobs)
    while waiting:
        workers = [started(waiting.popleft(), rig, batch) for _ in range(min(at_once, len(waiting)))]
        try:
            print(f"{len(workers)} are compiled and recorded side by side …", file=sys.stderr)
            answers = [worker.answer() for worker in workers]
            for worker, prepared in zip(workers, answers, strict=True):
                found = prepared or worker.timed()
                worker.process.join()  # what it held is given back before the next one's turn
                again = without(worker.job, found.get("problem", ""))
                if again is None:
                    yield worker.job, found
                else:
                    waiting.append(again)
        finally:
            for worker in workers:
                worker.process.kill()
                worker.process.join()


def row_of(job: Job, case: Case, batch: int, found: dict[str, Any]) -> dict[str, Any]:
    """The floor, and what was measured or why it was not."""
    index = PASSES.index(job.direction)
    row = {"benchmark": "kernels", "model": job.model, "operator": case.name, "pass": job.direction, "batch": batch}
    return row | {"moved_bytes": case.moved[index], "flops": case.flops[index]} | found


def told(row: dict[str, Any], bandwidth: float) -> str:
    """A line of the table."""
    floor = f"{row['moved_bytes'] / 1e6:8.1f} MB {row['flops'] / 1e9:8.1f} GFLOP"
    head = f"{row['model']:3} {row['operator']:16} {row['pass']:9} {floor}"
    if "ms" not in row:
        return f"{head}   not measured" + (f": {row['problem']}" if "problem" in row else "")
    time = row["ms"]["fused"]
    speed = row["moved_bytes"] / time / 1e6
    products = f"{row['flops'] / time / 1e9:6.0f} TFLOP/s" if row["flops"] else " " * 14
    rivals = [
        f"{name} {q['median']:.2f}× ({q['p20']:.2f}–{q['p80']:.2f})"
        for name, q in row["ratio"].items()
        if name != "fused"
    ]
    rivals += [f"{name} refused" for name in row["refused"]]
    share = f"{speed:6.0f} GB/s {speed / bandwidth:4.0%}"
    return f"{head} {time * 1e3:8.1f} µs {share} {products}  {'  '.join(rivals)}"


def named(parser: argparse.ArgumentParser, option: str, given: str, known: tuple[str, ...]) -> list[str]:
    """The values of an option that takes several, with commas between them."""
    names = given.split(",")
    if unknown := sorted(set(names) - set(known)):
        parser.error(f"{option}: unknown {', '.join(unknown)}; expected some of {', '.join(known)}")
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=KERNEL_BATCH, help="rows: 16 is eight guided clips [%(default)s]")
    parser.add_argument("--models", default=",".join(MODELS), help="with a comma between them [%(default)s]")
    parser.add_argument("--only", metavar="OPERATORS", help="with commas between them [all]")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "kernels.jsonl")
    parser.add_argument("--dry-run", action="store_true", help="tiny CPU tensors; nothing is saved")
    arguments = parser.parse_args()
    rig = REHEARSAL if arguments.dry_run else GPU
    models = named(parser, "--models", arguments.models, MODELS)
    described = {model: all_cases(replace(rig, device="cpu"), model, arguments.batch) for model in models}
    known = tuple(dict.fromkeys(case.name for cases in described.values() for case in cases))
    only = named(parser, "--only", arguments.only or ",".join(known), known)
    jobs = [
        Job(model, index, direction)
        for model, cases in described.items()
        for index, case in enumerate(cases)
        for direction in (PASSES if case.trained else PASSES[:1])
        if case.name in only
    ]

    def row(job: Job, found: dict[str, Any]) -> dict[str, Any]:
        return row_of(job, described[job.model][job.index], arguments.batch, found)

    print("Bytes that must be moved, FLOPs of the products; ratio = time of the rival ÷ time of the fused operator.")
    if not arguments.dry_run and not torch.cuda.is_available():
        for job in jobs:
            print(told(row(job, {}), 1.0))
        sys.exit("A CUDA GPU is needed to measure: the table above is only what each operator has to move and compute.")
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "4")  # of each process, and there are many
    bandwidth, facts, at_once = copy_bandwidth(rig), hardware(rig.device), 2
    if not arguments.dry_run:
        at_once = max(1, torch.cuda.mem_get_info()[0] // BYTES_EACH)
    print(", ".join(f"{name} {value}" for name, value in facts.items()) + f", copy {bandwidth:.0f} GB/s", flush=True)
    problems = 0
    for job, found in measured(jobs, rig, arguments.batch, at_once):
        made = row(job, found)
        problems += "problem" in made
        print(told(made, bandwidth), flush=True)
        if not arguments.dry_run:
            save(made | {"copy_gb_per_s": bandwidth} | facts, arguments.output)
    if problems:
        sys.exit(f"{problems} of {len(jobs)} were not correct or not measured, and have no ratio")


if __name__ == "__main__":
    main()
