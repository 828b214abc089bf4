"""Least squares along a chain: each frame has unknowns of its own and is tied to the next one only.

The normal equations are then block tridiagonal, and a block Cholesky factorisation solves them in time and memory
proportional to the number of frames. Everything here is NumPy in double precision: the blocks are small, and what
fills them (thousands of pixels a frame) is compiled elsewhere.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import scipy.linalg
from jaxtyping import Bool, Float

State = TypeVar("State")

Blocks = Float[np.ndarray, "frame n n"]
Ties = Float[np.ndarray, "tie n n"]
Rows = Float[np.ndarray, "frame n"]

_PASSES = 12  # at most; two for a step that meets no bound


@dataclass(frozen=True, eq=False)
class Chain:
    """Gauss-Newton model of an energy of a chain: energy + gradient · step + ½ step · hessian · step."""

    diagonal: Blocks  # of the Hessian
    ties: Ties  # the Hessian's blocks (t, t + 1); one fewer than frames
    gradient: Rows
    energy: float

    def __post_init__(self):
        frames, n = self.gradient.shape
        if self.diagonal.shape != (frames, n, n) or self.ties.shape != (max(frames - 1, 0), n, n):
            raise ValueError(
                f"Chain: got blocks of {self.diagonal.shape} and ties of {self.ties.shape} for a gradient of "
                f"{self.gradient.shape}, expected ({frames}, {n}, {n}) and ({max(frames - 1, 0)}, {n}, {n})."
            )

    def times(self, step: Rows) -> Rows:
        """The Hessian times a step."""
        out = np.einsum("tij,tj->ti", self.diagonal, step)
        out[:-1] += np.einsum("tij,tj->ti", self.ties, step[1:])
        out[1:] += np.einsum("tij,ti->tj", self.ties, step[:-1])
        return out


def solve_chain(diagonal: Blocks, ties: Ties, right: Rows) -> Rows:
    """x with hessian · x = right, for a positive definite block-tridiagonal Hessian.

    Block Cholesky: forwards S_t = D_t - O_{t-1}ᵀ S_{t-1}⁻¹ O_{t-1}, then back substitution. Raises numpy's LinAlgError
    where the Hessian is not positive definite.
    """
    frames = len(right)
    factors, reduced = [], []
    system, value = diagonal[0], right[0]
    for t in range(frames):
        factor = scipy.linalg.cholesky(system, lower=True, check_finite=False)
        half = scipy.linalg.solve_triangular(factor, value, lower=True, check_finite=False)
        factors.append(factor)
        reduced.append(half)
        if t + 1 < frames:
            spread = scipy.linalg.solve_triangular(factor, ties[t], lower=True, check_finite=False)
            system = diagonal[t + 1] - spread.T @ spread
            value = right[t + 1] - spread.T @ half
    out = np.empty_like(right)
    following = None
    for t in reversed(range(frames)):
        half = reduced[t]
        if following is not None:
            half = half - scipy.linalg.solve_triangular(factors[t], ties[t] @ following, lower=True, check_finite=False)
        following = scipy.linalg.solve_triangular(factors[t], half, lower=True, trans=1, check_finite=False)
        out[t] = following
    return out


def bounded_step(chain: Chain, free: Bool[np.ndarray, "*frame n"], low: Rows, high: Rows, damping: float) -> Rows:
    """Minimiser of the damped model over the free unknowns of each frame, between bounds on the step.

    Marquardt's damping scales the diagonal. Which unknowns rest on a bound is found by the primal-dual active set
    method (Hintermüller, Ito & Kunisch 2003): those beyond a bound are set on it, those pulled back inside are let go,
    until nothing changes; it mostly takes three passes. `free` may also be a mask of each frame.
    """
    diagonal = chain.diagonal.copy()
    n = diagonal.shape[1]
    index = np.arange(n)
    diagonal[:, index, index] *= 1 + damping
    # Radians, millimetres, light and weights: scaled to a unit diagonal, or rounding decides.
    scale = 1 / np.sqrt(np.maximum(diagonal[:, index, index], 1e-20))
    diagonal *= scale[:, :, None] * scale[:, None, :]
    diagonal[:, index, index] += 1e-9
    ties = chain.ties * scale[:-1, :, None] * scale[1:, None, :]
    gradient = chain.gradient * scale
    least, most = low, high
    low, high = low / scale, high / scale
    scaled = Chain(diagonal, ties, gradient, 0.0)
    fixed = np.broadcast_to(~free, gradient.shape)
    value = np.zeros_like(gradient)
    lower = upper = np.zeros(gradient.shape, bool)
    for _ in range(_PASSES):
        on_bound = np.where(upper, high, np.where(lower, low, 0.0))  # 0 where nothing moves
        held = fixed | lower | upper
        loose = ~held
        right = np.where(loose, -gradient - scaled.times(np.where(held, on_bound, 0.0)), on_bound)
        blocks = np.where(loose[:, :, None] & loose[:, None, :], diagonal, 0.0)
        blocks[:, index, index] = np.where(loose, blocks[:, index, index], 1.0)
        between = np.where(loose[:-1, :, None] & loose[1:, None, :], ties, 0.0)
        value = solve_chain(blocks, between, right)
        pull = np.where(lower | upper, -(gradient + scaled.times(value)), 0.0)  # outwards, of what is held on a bound
        above, below = pull + (value - high) > 0, pull + (value - low) < 0
        if (above == upper).all() and (below == lower).all():
            break
        lower, upper = below & ~fixed, above & ~fixed
    return np.where(fixed, 0.0, np.clip(value * scale, least, most))


@dataclass(frozen=True, eq=False)
class ChainSolution(Generic[State]):
    """Where the solver stopped."""

    state: State
    energy: float
    steps: int
    converged: bool


def chain_least_squares(
    linearise: Callable[[State], Chain],
    move: Callable[[State, Rows], State],
    bounds: Callable[[State], tuple[Rows, Rows]],
    start: State,
    free: Bool[np.ndarray, "*frame n"],
    steps: int = 10,
    tolerance: float = 1e-4,
    damping: float = 1e-4,
) -> ChainSolution[State]:
    """Levenberg-Marquardt over all frames at once.

    `move` makes a step, `bounds` says between which steps a state's unknowns may move (infinite where they are free).
    Stops once a step lowers the energy by less than the share `tolerance`; a state whose energy is not finite is never
    accepted.
    """
    state, chain = start, linearise(start)
    for made in range(1, steps + 1):
        accepted = None
        for _ in range(6):
            low, high = bounds(state)
            try:
                proposal = move(state, bounded_step(chain, free, low, high, damping))
            except np.linalg.LinAlgError:
                damping = max(damping, 1e-6) * 10
                continue
            model = linearise(proposal)
            if np.isfinite(model.energy) and model.energy < chain.energy:
                accepted = model
                state, damping = proposal, max(damping * 0.3, 1e-9)
                break
            damping = max(damping, 1e-6) * 10
        if accepted is None:
            return ChainSolution(state, chain.energy, made - 1, True)
        decrease = (chain.energy - accepted.energy) / max(abs(chain.energy), 1e-12)
        chain = accepted
        if decrease < tolerance:
            return ChainSolution(state, chain.energy, made, True)
    return ChainSolution(state, chain.energy, steps, False)
