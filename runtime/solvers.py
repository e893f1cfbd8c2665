"""Samplers as tables: every solver becomes, in float64, one row of six coefficients per step.

With latents x, velocity v, noise z and the clean estimate p of the step before, any host does

    clean = c4·x + c5·v        next = c0·x + c1·v + c2·p + c3·z

Notation: x = α·x₀ + σ·ε with α² = ᾱ and σ² = 1 − ᾱ; the network predicts v = α·ε − σ·x₀ (Salimans and Ho 2022), hence
x₀ = α·x − σ·v and ε = σ·x + α·v. Zero terminal SNR makes ᾱ(999) = 0 (Lin et al. 2023, algorithm 1).

A new solver is one function from (timesteps, alphas_cumprod, eta) to rows, and its entry in `SOLVERS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ezaudio.config import DiffusionConfig
from ezaudio.runtime import exact_math
from ezaudio.runtime.errors import InputError
from ezaudio.runtime.settings import MAX_SPACING

Float64: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class SolverPlan:
    """What a host walks: one timestep and one row of coefficients per step.

    Attributes:
        name: key of `SOLVERS`.
        timesteps: (N,) int64, decreasing, the training steps the network is asked about.
        rows: (N, 6) float32 c0…c5: weights of latents, velocity, previous clean estimate and noise in the next latents,
            then of latents and velocity in the clean estimate. The first row has c2 = 0: nothing is before it.
        num_train_steps: T, which timesteps count up to.
        draws_noise: whether the reference random stream advances at every step. True for eta > 0, the last step
            included, although c3 is 0 there.
    """

    name: str
    timesteps: NDArray[np.int64]
    rows: NDArray[np.float32]
    num_train_steps: int
    draws_noise: bool

    def __post_init__(self) -> None:
        assert self.rows.shape == (len(self.timesteps), 6)
        assert np.isfinite(self.rows).all()
        self.timesteps.setflags(write=False)
        self.rows.setflags(write=False)

    @property
    def num_steps(self) -> int:
        return len(self.timesteps)

    @property
    def uses_noise(self) -> bool:
        """Whether any step adds noise."""
        return bool(self.rows[:, 3].any())


def alphas_cumprod(diffusion: DiffusionConfig) -> Float64:
    """ᾱ of every training step: scaled-linear betas, then √ᾱ shifted and scaled to end at 0 and keep its first value.

    Returns: (num_train_steps,) float64, decreasing, the last exactly 0. Source: Lin et al. 2023, algorithm 1.
    """
    first, last = np.sqrt(diffusion.beta_start), np.sqrt(diffusion.beta_end)
    betas = np.square(first + np.arange(diffusion.num_train_steps) * ((last - first) / (diffusion.num_train_steps - 1)))
    root = np.sqrt(np.cumprod(1.0 - betas))
    return ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2


def trailing_timesteps(num_steps: int, num_train_steps: int = 1000) -> NDArray[np.int64]:
    """Timesteps that start at the last training step: round(T − i·T/N) − 1 for i = 0…N−1 (Lin et al. 2023, table 2).

    Args:
        num_steps: N, 1 to num_train_steps.
        num_train_steps: T.

    Returns: (N,) int64, strictly decreasing from T − 1.
    Raises: InputError when N is not a whole number in that range.
    """
    if isinstance(num_steps, bool) or not isinstance(num_steps, (int, np.integer)):
        raise InputError(f"num_steps must be a whole number, got {num_steps!r}")
    if not 1 <= num_steps <= num_train_steps:
        raise InputError(f"num_steps must be 1 to {num_train_steps}, got {num_steps}")
    # Accumulated rounding of the stride gives arange an extra element for 62 values of N.
    return np.round(np.arange(num_train_steps, 0, -num_train_steps / num_steps))[:num_steps].astype(np.int64) - 1


def spaced_timesteps(num_steps: int, spacing: float, num_train_steps: int = 1000) -> NDArray[np.int64]:
    """Timesteps from the last training step on, denser the higher the noise: T·(1 − (i/N)^spacing) − 1, i = 0…N−1.

    What a clip becomes is decided at high noise; with few steps most of the error of an even grid is made there.

    Args:
        num_steps: N, 1 to num_train_steps.
        spacing: 1 is the even trailing grid of the official code, to the last rounding; at most MAX_SPACING.
        num_train_steps: T.

    Returns: (N,) int64, strictly decreasing from T − 1.
    Raises: InputError when N is not a whole number in that range.
    """
    even = trailing_timesteps(num_steps, num_train_steps)
    if spacing == 1:
        return even
    done = exact_math.power(np.arange(1, num_steps) / num_steps, spacing)
    listed = np.append(num_train_steps, np.round(num_train_steps * (1.0 - done))).astype(np.int64) - 1
    # Where the formula's neighbours round to the same step, each is one below the one before.
    count = np.arange(num_steps)
    return np.minimum.accumulate(listed + count) - count


def _ddim(timesteps: NDArray[np.int64], alphas_cumprod: Float64, eta: float) -> Float64:
    """DDIM (Song et al. 2021, equations 12 and 16): next = α'·x₀ + √(1 − ᾱ' − s²)·ε + s·z with
    s² = η²·(1 − ᾱ')/(1 − ᾱ)·(1 − ᾱ/ᾱ').

    ᾱ' belongs to t − T//N, as in the official sampler: not the next listed timestep when N does not divide T. Only on
    a grid that is not even it is the next listed one. Past the start it is 1. The root's argument rounds below zero at
    t = T − 1 for many N when η = 1, so it is clamped.
    """
    now = alphas_cumprod[timesteps]
    previous = timesteps - len(alphas_cumprod) // len(timesteps)
    if not np.array_equal(timesteps, trailing_timesteps(len(timesteps), len(alphas_cumprod))):
        previous = np.append(timesteps[1:], -1)
    after = np.where(previous >= 0, alphas_cumprod[np.maximum(previous, 0)], 1.0)
    variance = eta * eta * (1.0 - after) / (1.0 - now) * (1.0 - now / after)
    direction = np.sqrt(np.maximum(1.0 - after - variance, 0.0))
    alpha, sigma, alpha_after = np.sqrt(now), np.sqrt(1.0 - now), np.sqrt(after)
    return np.stack(
        [
            alpha_after * alpha + direction * sigma,
            direction * alpha - alpha_after * sigma,
            np.zeros_like(now),
            np.sqrt(variance),
            alpha,
            -sigma,
        ],
        axis=1,
    )


def _dpmpp_2m_sde(timesteps: NDArray[np.int64], alphas_cumprod: Float64, eta: float) -> Float64:
    """DPM-Solver++(2M) with noise level η: the ODE form of Lu et al. 2022 (algorithm 2) at η = 0, its SDE form
    (midpoint) at η = 1.

    With λ = ln(α/σ), h = λ' − λ, q = e⁻ʰ = (α·σ')/(α'·σ), h₋ the h of the step before and k = h/(2·h₋):

        next = (σ'/σ)·q^η·x + α'·(1 − q^(1+η))·[(1 + k)·x₀ − k·p] + σ'·√(1 − q^(2η))·z

    Written in q, both ends are exact: at zero terminal SNR λ = −∞, so q = 0 and the first step is one v-DDIM step; the
    last goes to α' = 1, where q = 0 gives the clean estimate. k = 0 in both, and in the second, whose h₋ is infinite.
    """
    now = alphas_cumprod[timesteps]
    after = np.append(now[1:], 1.0)
    alpha, sigma = np.sqrt(now), np.sqrt(1.0 - now)
    alpha_after, sigma_after = np.sqrt(after), np.sqrt(1.0 - after)
    q = (alpha * sigma_after) / (alpha_after * sigma)
    k = np.zeros_like(q)
    h = -exact_math.log(q[1:-1])
    k[2:-1] = h[1:] / (2.0 * h[:-1])
    decay = sigma_after / sigma * exact_math.power(q, eta)
    gain = alpha_after * (1.0 - exact_math.power(q, 1.0 + eta))
    return np.stack(
        [
            decay + gain * (1.0 + k) * alpha,
            -gain * (1.0 + k) * sigma,
            -gain * k,
            sigma_after * np.sqrt(np.maximum(1.0 - exact_math.power(q, 2.0 * eta), 0.0)),
            alpha,
            -sigma,
        ],
        axis=1,
    )


@dataclass(frozen=True, slots=True)
class Solver:
    """One entry of `SOLVERS`.

    Attributes:
        rows: (timesteps, alphas_cumprod, eta) → (N, 6) float64 coefficients, all finite.
        stochastic: whether eta above 0 is allowed.
    """

    rows: Callable[[NDArray[np.int64], Float64, float], Float64]
    stochastic: bool


SOLVERS: dict[str, Solver] = {
    "ddim": Solver(_ddim, stochastic=True),
    "dpmpp_2m": Solver(_dpmpp_2m_sde, stochastic=False),
    "dpmpp_2m_sde": Solver(_dpmpp_2m_sde, stochastic=True),
}


def solver_plan(name: str, num_steps: int, eta: float, diffusion: DiffusionConfig, spacing: float = 1.0) -> SolverPlan:
    """The table of a solver.

    Args:
        name: key of `SOLVERS`.
        num_steps: network calls (two evaluations each under guidance), 1 to `diffusion.num_train_steps`.
        eta: noise level, 0 (deterministic) to 1 (ancestral). Only 0 for "dpmpp_2m".
        diffusion: the schedule the model was trained with.
        spacing: 1 (even) to MAX_SPACING, see `spaced_timesteps`.

    Raises: InputError for any of them out of range.
    """
    if not 1 <= spacing <= MAX_SPACING:
        raise InputError(f"spacing must be 1 to {MAX_SPACING:g}, got {spacing}")
    if name not in SOLVERS:
        raise InputError(f"unknown solver {name!r}: expected one of {', '.join(SOLVERS)}")
    solver = SOLVERS[name]
    if not 0.0 <= eta <= 1.0:
        raise InputError(f"eta must be 0 to 1, got {eta}")
    if eta > 0 and not solver.stochastic:
        others = ", ".join(key for key, other in SOLVERS.items() if other.stochastic)
        raise InputError(f"solver {name!r} adds no noise: eta must be 0, got {eta}; solvers with noise: {others}")
    timesteps = spaced_timesteps(num_steps, float(spacing), diffusion.num_train_steps)
    rows = solver.rows(timesteps, alphas_cumprod(diffusion), float(eta))
    return SolverPlan(name, timesteps, rows.astype(np.float32), diffusion.num_train_steps, draws_noise=eta > 0)


def guided_steps(plan: SolverPlan, interval: tuple[float, float]) -> tuple[bool, ...]:
    """Which steps are guided: those whose noise level (t + 1)/T lies in the interval, 1 being pure noise.

    Far from the data guidance mostly narrows the choice of sounds, close to it it changes little (Kynkäänniemi et al.
    2024); a step without it costs half.
    """
    low, high = (bound * plan.num_train_steps for bound in interval)
    return tuple(low <= int(timestep) + 1 <= high for timestep in plan.timesteps)
