"""Where a GPU's time goes: kernels of a guided clip's replay, of its decoder, of a training step, by their total time.

    python benchmarks/gpu_profile.py                      # XL and L; from a checkout, like gpu.py
    python benchmarks/gpu_profile.py --models xl --batch 8 --top 25
    ncu --set full --clock-control none -k regex:norm_bwd python benchmarks/gpu_profile.py --once "adaln-sola,skip norm"

The last runs operators of kernels.py once, in the shapes that are timed there, for a profiler to watch.

Times are of PyTorch's profiler, which slows nothing inside of a kernel but leaves out the gaps between them: the line
"idle" is what the same replay takes on the host's clock without the profiler beyond the sum.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator

import torch
from checkout import use_checkout

use_checkout("kernels", "runtime", "export")

from gpu_backend import EMPTY_IDS, PROMPT_IDS, encode, open_sessions, random_dit, request  # noqa: E402
from gpu_baselines import training_batch, training_loss  # noqa: E402
from gpu_goals import KERNELS  # noqa: E402
from gpu_rig import GPU, hardware, seconds, settle  # noqa: E402
from operators import all_cases, run_once  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402

from ezaudio.config import preset  # noqa: E402
from ezaudio.runtime.solvers import solver_plan  # noqa: E402
from ezaudio.runtime.torch_backend.random_graphs import random_graphs  # noqa: E402
from ezaudio.training.recorded import Recorded  # noqa: E402
from kernels import MODELS, named  # noqa: E402

STEPS = 5


def calls(model: str, batch: int) -> Iterator[tuple[str, int, Callable[[], object]]]:
    """What is profiled: its title, by how many its times are divided, and the call."""
    config = preset(model)
    sessions = open_sessions(random_graphs(config, device=GPU.device), config, GPU, "fp16")
    with torch.inference_mode():
        text, empty = encode(sessions, PROMPT_IDS), encode(sessions, EMPTY_IDS)
    plan = solver_plan("ddim", STEPS, 1.0, config.diffusion)
    loop = request(GPU, plan, text, empty, batch)
    whole = request(GPU, plan, text, empty, batch, decoded=True)
    yield f"{model.upper()}, a step of {batch} guided clips, fp16", STEPS, lambda: sessions.generate(loop)
    yield f"{model.upper()}, {STEPS} steps and decoder of {batch}, fp16", 1, lambda: sessions.generate(whole)


def training_step(model: str, side: str) -> Callable[[], object]:
    config = preset(model)
    dit = random_dit(config, GPU).requires_grad_(True).train()
    network = Recorded(dit).train() if side == "recorded" else dit
    optimizer = torch.optim.AdamW(dit.parameters(), 1e-4, fused=True)
    batch = training_batch(GPU, config)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        training_loss(GPU, dit, network, batch, side != "eager").backward()
        optimizer.step()

    return step


def once(model: str, operators: list[str]) -> None:
    """Forward and, where there is one, backward of operators, a single time."""
    for case in all_cases(GPU, model):
        if case.name in operators:
            inputs = {name: x.requires_grad_() for name, x in case.inputs(GPU.device).items()}
            run_once(case, inputs, case.trained)
            settle(GPU.device)
            print(f"{model.upper()} {case.name}", flush=True)


def short(name: str) -> str:
    """A kernel's name without namespaces, arguments and what fills a line."""
    name = re.sub(r"^void |\(anonymous namespace\)::|at::native::|at_cuda_detail::|cutlass::|\(.*\)$", "", name)
    return name[:100]


def tell(title: str, divisor: int, call: Callable[[], object], top: int) -> None:
    for _ in range(3):
        call()
    taken = min(seconds(call, "cuda") for _ in range(5))
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        call()
        torch.cuda.synchronize()
    events = [e for e in found.key_averages() if e.self_device_time_total > 0]
    events.sort(key=lambda e: -e.self_device_time_total)
    total = sum(e.self_device_time_total for e in events)
    wall = 1e6 * taken
    print(f"\n{title}: {wall / divisor:.0f} µs, {total / divisor:.0f} in {sum(e.count for e in events) / divisor:.0f} "
          f"kernels, idle {(wall - total) / divisor:.0f}")  # fmt: skip
    for e in events[:top]:
        each = e.self_device_time_total / e.count
        print(f"{e.self_device_time_total / divisor:9.1f} µs {e.self_device_time_total / total:6.1%} "
              f"{e.count / divisor:7.1f} × {each:7.2f}  {short(e.key)}")  # fmt: skip
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="xl,l", help="with commas between them [%(default)s]")
    parser.add_argument("--batch", type=int, default=1, help="clips at once [%(default)s]")
    parser.add_argument("--top", type=int, default=30, help="kernels to list [%(default)s]")
    parser.add_argument("--training", action="store_true", help="training steps, too: eager, fused, recorded")
    parser.add_argument("--once", metavar="OPERATORS", help="run these once and measure nothing")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("This machine has no CUDA GPU that PyTorch can use: nothing is measured.")
    models = named(parser, "--models", arguments.models, MODELS)
    if arguments.once:
        known = tuple(dict.fromkeys(operator for _, operator in KERNELS))
        for model in models:
            once(model, named(parser, "--once", arguments.once, known))
        return 0
    print(", ".join(f"{name} {value}" for name, value in hardware().items()))
    for model in models:
        for title, divisor, call in calls(model, arguments.batch):
            tell(title, divisor, call, arguments.top)
        if arguments.training:
            for side in ("eager", "fused", "recorded"):
                title = f"{model.upper()}, a training step of {GPU.train_batch}, {side}"
                tell(title, 1, training_step(model, side), arguments.top)
    return 0


if __name__ == "__main__":
    sys.exit(main())
