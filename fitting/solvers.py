"""Solvers: one interface, `solve(terms, start, free, solver)`, from Gauss-Newton to random triangles.

All of them minimise the sum of the terms' energies over the free unknowns, keep expression weights in their limits,
stop when the energy falls by less than a share of itself, report what is not finite instead of raising, and keep the
energy of every term as they go.
"""

import abc
import dataclasses
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from fitting.energies import BoundsTerm
from fitting.parameters import FaceParameters, natural_steps, retract, within_limits
from fitting.terms import AbstractTerm, Quadratic, Terms, energies, linearise_all

if TYPE_CHECKING:
    import optax

HISTORY = 48  # rows of energies that a compiled Levenberg-Marquardt run keeps: its start and 47 steps

Watch = Callable[[int, dict[str, float], FaceParameters], None]  # step, energy of each term, face


class Solution(eqx.Module):
    """Where a solver stopped, and how it came there."""

    face: FaceParameters
    energies: Float[Array, "term"]  # of each term at `face`
    history: Float[Array, "row term"]  # energies of the accepted face as it went; NaN where no step was made
    history_steps: Int[Array, " row"]  # how many steps had been made at each row
    steps: Int[Array, ""]
    converged: Bool[Array, ""]  # the relative decrease fell below the tolerance
    finite: Bool[Array, ""]
    hessian: Float[Array, "step step"] | None  # Gauss-Newton Hessian at `face`: the inverse posterior covariance
    names: tuple[str, ...] = eqx.field(static=True, default=())  # of the terms, sorted

    def by_term(self, values: Float[Array, " term"] | Float[np.ndarray, " term"]) -> dict[str, float]:
        """Energies of one row by name."""
        return {name: float(value) for name, value in zip(self.names, values, strict=True)}

    @property
    def result(self) -> str:
        """In words: "converged", "steps exhausted" or "non-finite"."""
        if not bool(self.finite):
            return "non-finite"
        return "converged" if bool(self.converged) else "steps exhausted"


def solve(
    terms: Terms,
    start: FaceParameters,
    free: Iterable[str] | Float[Array, " step"],
    solver: "AbstractSolver | None" = None,
    watch: Watch | None = None,
) -> Solution:
    """Minimise the sum of the terms' energies from `start` over the free unknowns.

    `free` names blocks of the parameters ("identity", "pose", ...), or is a mask of the flat step. `watch` is called
    with every row of the history as it is made. The default solver is `LevenbergMarquardt()`.
    """
    if not terms:
        raise ValueError("solve: got no terms, expected a mapping from names to energy terms; see fitting.energies.")
    if isinstance(free, str):
        raise ValueError(f"solve: got free={free!r}, expected several names, such as ({free!r},).")
    mask = free if isinstance(free, jax.Array | np.ndarray) else start.layout.free(*free)
    mask = jnp.asarray(mask, jnp.float32)
    if mask.shape != (start.layout.size,):
        raise ValueError(
            f"solve: got a mask of {mask.shape}, expected {start.layout.size} unknowns as in `face.layout`."
        )
    solver = LevenbergMarquardt() if solver is None else solver
    return solver.run(dict(terms), start, mask, watch)


class Trace:
    """A `watch` that remembers: when each row of the history was made, and its energies."""

    def __init__(self):
        self.steps: list[int] = []
        self.seconds: list[float] = []  # since the trace was made
        self.energies: list[dict[str, float]] = []
        self._began = time.perf_counter()

    def __call__(self, step: int, energies: dict[str, float], face: FaceParameters) -> None:
        del face
        self.steps.append(step)
        self.seconds.append(time.perf_counter() - self._began)
        self.energies.append(energies)

    @property
    def totals(self) -> list[float]:
        """The sum of the energies at each row."""
        return [sum(row.values()) for row in self.energies]


class AbstractSolver(eqx.Module):
    """A way to minimise a sum of terms; its settings are its fields."""

    @abc.abstractmethod
    def run(self, terms: dict[str, AbstractTerm], start: FaceParameters, free: Array, watch: Watch | None) -> Solution:
        """See `solve`."""


# ------------------------------------------------------------------------------------------------ Levenberg-Marquardt


class LevenbergMarquardt(AbstractSolver):
    """Gauss-Newton with Marquardt's damping on every term's own normal equations: the default.

    Terms assemble JᵀJ in the way that suits their structure, and the bounds on expression weights are kept exactly.
    """

    steps: int = 30
    tolerance: float = 1e-4
    damping: float = 1e-3

    def run(self, terms, start, free, watch):
        settings = (jnp.int32(self.steps), jnp.float32(self.tolerance), jnp.float32(self.damping))
        # Part of the program, so all short runs share one.
        rows = max(HISTORY, self.steps + 1)
        number = None if watch is None else _watched(watch)
        try:
            solution = jax.block_until_ready(_run_levenberg_marquardt(terms, start, free, settings, rows, number))
        finally:
            if number is not None:
                jax.effects_barrier()
                del _WATCHES[int(number)]
        made = int(solution.steps) + 1
        return dataclasses.replace(
            solution,
            history=solution.history[:made],
            history_steps=solution.history_steps[:made],
            names=tuple(sorted(terms)),
        )


# Who watches which run. A callback is part of a compiled program: were it the caller's own function, every watch would
# be compiled anew. So the program calls `tell` with a number, which is data.
_WATCHES: dict[int, Watch] = {}


def _watched(watch: Watch) -> Int[Array, ""]:
    number = max(_WATCHES, default=0) + 1
    _WATCHES[number] = watch
    return jnp.asarray(number)


@eqx.filter_jit
def _run_levenberg_marquardt(terms, start, free, settings, rows, number):
    names = sorted(terms)  # here: the callback outlives the trace, whose terms it must not hold

    def tell(number, step, values, face):
        _WATCHES[int(number)](int(step), dict(zip(names, values.tolist(), strict=True)), face)

    steps, tolerance, damping = settings
    told = None if number is None else lambda *row: jax.debug.callback(tell, number, *row, ordered=True)
    linearise = lambda f: linearise_all(terms, f)  # noqa: E731
    return levenberg_marquardt(linearise, len(terms), start, free, steps, tolerance, damping, told, rows)


def levenberg_marquardt(
    linearise: Callable[[FaceParameters], tuple[Quadratic, Float[Array, " term"]]],
    count: int,
    start: FaceParameters,
    free: Float[Array, " step"],
    steps: Int[Array, ""],
    tolerance: Float[Array, ""] | float = 1e-4,
    damping: Float[Array, ""] | float = 1e-3,
    tell: Callable[[Any, Any, Any], None] | None = None,
    rows: int = HISTORY,
) -> Solution:
    """Minimise a sum of terms over the free entries of the step, expression weights in their limits; to be compiled.

    `linearise` gives the Gauss-Newton model and the energies of `count` terms. The damping follows Marquardt (1963): it
    scales the Hessian's diagonal, falls after success and rises after failure. A step is judged when the next Hessian
    is assembled, so every iteration passes over the data once; that of the last accepted face is kept for retries.
    The history has `rows`: the number of steps is traced and bounded by them, so callers check it where it is known.
    """
    steps = jnp.minimum(steps, rows - 1)

    def iterate(carry):
        k, candidate, best, quadratic, energies, history, damping, _ = carry
        proposal, proposed_energies = linearise(candidate)
        better = (proposal.energy < quadratic.energy) & jnp.isfinite(proposal.energy)
        first = k == 0
        accept = better | first
        decrease = (quadratic.energy - proposal.energy) / jnp.maximum(jnp.abs(quadratic.energy), 1e-12)
        converged = ~first & better & (decrease < tolerance)
        choose = lambda a, b: jax.tree.map(lambda x, y: jnp.where(accept, x, y), a, b)  # noqa: E731
        best, quadratic = choose(candidate, best), choose(proposal, quadratic)
        energies = jnp.where(accept, proposed_energies, energies)
        damping = jnp.where(first, damping, jnp.where(accept, jnp.maximum(damping * 0.3, 1e-6), damping * 8))
        step = bounded_step(quadratic, best, free, damping)
        history = lax.dynamic_update_index_in_dim(history, energies, k, 0)
        if tell is not None:
            tell(k, energies, best)
        stuck = damping > 1e6
        candidate = retract(best, step)
        # The step ends on the bounds up to rounding; clipping makes it exact.
        candidate = within_limits(candidate)
        return k + 1, candidate, best, quadratic, energies, history, damping, converged | stuck

    def running(carry):
        return (carry[0] <= steps) & ~carry[-1]

    size = start.layout.size
    empty = Quadratic(jnp.zeros((size, size)), jnp.zeros(size), jnp.array(jnp.inf))
    carry = (
        jnp.array(0),
        start,
        start,
        empty,
        jnp.zeros(count),
        jnp.full((rows, count), jnp.nan),
        jnp.asarray(damping, jnp.float32),
        jnp.array(False),
    )
    k, _, best, quadratic, energies, history, _, converged = lax.while_loop(running, iterate, carry)
    finite = jnp.isfinite(quadratic.energy)
    return Solution(best, energies, history, jnp.arange(rows), k - 1, converged & finite, finite, quadratic.hessian)


def bounded_step(
    quadratic: Quadratic, face: FaceParameters, free: Float[Array, " step"], damping: Float[Array, ""]
) -> Float[Array, " step"]:
    """Minimiser of the damped quadratic over the free entries, expression weights staying in their limits."""
    hessian = quadratic.hessian + jnp.diag(damping * jnp.diag(quadratic.hessian))
    at = face.layout.block("expression")
    low, high = face.limits - face.expression
    return bounded_minimiser(hessian, quadratic.gradient, free > 0, at, low, high)[0]


def bounded_minimiser(
    hessian: Float[Array, "n n"],
    gradient: Float[Array, " n"],
    free: Bool[Array, " n"],
    bounded: slice,
    low: Float[Array, " b"],
    high: Float[Array, " b"],
) -> tuple[Float[Array, " n"], Bool[Array, " b"]]:
    """Minimiser of gradient · x + ½ x · hessian · x over the free entries, a range of them kept in [low, high].

    Also which entries of the range rest on a bound (or are not free). All other unknowns are eliminated first (Schur
    complement), so the active-set passes over the bounds work on the small bounded block alone.
    """
    size = gradient.shape[0]
    inside = jnp.arange(bounded.start, bounded.stop)
    others = jnp.concatenate([jnp.arange(bounded.start), jnp.arange(bounded.stop, size)])
    hessian = jnp.where(free[:, None] & free[None, :], hessian, 0.0)
    hessian = hessian + jnp.diag(jnp.where(free, 0.0, 1.0))
    gradient = jnp.where(free, gradient, 0.0)
    # Unknowns differ by orders of magnitude (radians, millimetres, light): scale to a unit diagonal.
    scale = lax.rsqrt(jnp.maximum(jnp.diag(hessian), 1e-20))
    hessian = hessian * scale[:, None] * scale[None, :]
    hessian = hessian + 1e-7 * jnp.eye(size)
    gradient = gradient * scale

    factor = jnp.linalg.cholesky(hessian[jnp.ix_(others, others)])
    solve = lambda b: lax.linalg.triangular_solve(factor, b, left_side=True, lower=True)  # noqa: E731
    coupling = solve(hessian[jnp.ix_(others, inside)])
    reduced_gradient = solve(gradient[others][:, None])
    schur = hessian[jnp.ix_(inside, inside)] - coupling.T @ coupling
    right = -(gradient[inside] - coupling.T @ reduced_gradient[:, 0])

    unit = scale[inside]
    low, high = low / unit, high / unit

    def settle(_, carry):
        fixed, value = carry
        loose = ~fixed
        system = jnp.where(loose[:, None] & loose[None, :], schur, 0.0) + jnp.diag(jnp.where(fixed, 1.0, 0.0))
        target = jnp.where(loose, right - schur @ jnp.where(fixed, value, 0.0), value)
        move = jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(system), True), target)
        outside = loose & ((move < low) | (move > high))
        return fixed | outside, jnp.where(outside, jnp.clip(move, low, high), jnp.where(fixed, value, move))

    start = (~free[inside], jnp.zeros_like(right))
    fixed, value = lax.fori_loop(0, 4, settle, start)
    value = jnp.clip(value, low, high)
    rest = lax.linalg.triangular_solve(
        factor,
        -(reduced_gradient + (coupling @ value)[:, None]),
        left_side=True,
        lower=True,
        transpose_a=True,
    )[:, 0]
    return jnp.zeros(size).at[others].set(rest).at[inside].set(value) * scale, fixed


# --------------------------------------------------------------------------------------------------- all other solvers


class AbstractIterative(AbstractSolver):
    """A solver that is driven from outside, some compiled steps at a time.

    Its state is a value; `advance` makes the steps up to the next row of the history.
    """

    steps: eqx.AbstractVar[int]  # at most
    stride: eqx.AbstractVar[int]  # steps of one `advance`, after which there is a row in the history
    # Once the energy has fallen by less than this share of itself ...
    tolerance: eqx.AbstractVar[float]
    patience: eqx.AbstractVar[int]  # ... for so many rows, the solver stops

    @abc.abstractmethod
    def prepare(self, terms: dict[str, AbstractTerm], start: FaceParameters, free: Array) -> dict[str, AbstractTerm]:
        """The terms as this solver wants them."""

    @abc.abstractmethod
    def init(self, terms: dict[str, AbstractTerm], start: FaceParameters, free: Array) -> Any:
        """The state before the first step."""

    @abc.abstractmethod
    def advance(
        self, terms: dict[str, AbstractTerm], start: FaceParameters, free: Array, state: Any
    ) -> tuple[Any, FaceParameters, Float[Array, " term"]]:
        """Some steps: the new state, where it stands, and its energies."""

    def run(self, terms, start, free, watch):
        terms = self.prepare(terms, start, free)
        names = tuple(sorted(terms))
        state = _init(self, terms, start, free)
        best_face, best = start, np.asarray(_energies(terms, start))
        rows, at, stale, done, converged = [best], [0], 0, 0, False
        finite = bool(np.isfinite(best.sum()))
        while finite and not converged and done < self.steps:
            state, face, values = _advance(self, terms, start, free, state)
            done += self.stride
            values = np.asarray(values)
            finite = bool(np.isfinite(values.sum()))
            if not finite:
                break
            rows.append(values)
            at.append(done)
            if watch is not None:
                watch(done, dict(zip(names, values.tolist(), strict=True)), face)
            total, lowest = float(values.sum()), float(best.sum())
            stale = 0 if lowest - total > self.tolerance * abs(lowest) else stale + 1
            if total < lowest:
                best_face, best = face, values
            converged = stale >= self.patience
        best_face = within_limits(best_face)
        return Solution(
            best_face,
            jnp.asarray(_energies(terms, best_face)),
            jnp.asarray(np.stack(rows)),
            jnp.asarray(at),
            jnp.asarray(done),
            jnp.asarray(converged),
            jnp.asarray(finite),
            None,
            names,
        )


@eqx.filter_jit
def _init(solver, terms, start, free):
    return solver.init(terms, start, free)


@eqx.filter_jit
def _advance(solver, terms, start, free, state):
    return solver.advance(terms, start, free, state)


@eqx.filter_jit
def _energies(terms, face):
    return energies(terms, face)


def _with_bounds(terms, start, free):
    """For solvers that know no bounds: leaving them costs."""
    if jnp.any(free[start.layout.block("expression")] > 0) and "bounds" not in terms:
        return {**terms, "bounds": BoundsTerm()}
    return terms


def _moved(start, free, y):
    """The face at a step of natural size `y` from the start."""
    return retract(start, y * free * natural_steps(start.layout))


class FirstOrder(AbstractIterative):
    """Any optax optimiser on the energy's gradient, steps measured in natural sizes of the unknowns.

    The pose is retracted after every step, so rotations never leave their group; expression weights are clipped.
    """

    optimiser: "optax.GradientTransformation | None" = None  # Adam with rate .03
    steps: int = 300
    tolerance: float = 1e-4
    stride: int = 10
    patience: int = 5

    def prepare(self, terms, start, free):
        return terms

    def _optimiser(self):
        import optax  # here and below: a quarter of a second, which only those who ask for these solvers shall wait

        return optax.adam(0.03) if self.optimiser is None else self.optimiser

    def init(self, terms, start, free):
        return self._optimiser().init(jnp.zeros_like(free)), start

    def advance(self, terms, start, free, state):
        optimiser = self._optimiser()

        def step(carry, _):
            inner, face = carry
            gradient = jax.grad(lambda y: jnp.sum(energies(terms, _moved(face, free, y))))(jnp.zeros_like(free))
            update, inner = optimiser.update(gradient, inner, jnp.zeros_like(free))
            return (inner, within_limits(_moved(face, free, update))), None

        state, _ = lax.scan(step, state, length=self.stride)
        return state, state[1], energies(terms, state[1])


class LBFGS(AbstractIterative):
    """Quasi-Newton with limited memory and a zoom line search (Nocedal & Wright 2006), by optax; bounds cost."""

    steps: int = 100
    tolerance: float = 1e-4
    memory: int = 20
    stride: int = 5
    patience: int = 2

    def prepare(self, terms, start, free):
        return _with_bounds(terms, start, free)

    def _optimiser(self):
        import optax

        return optax.lbfgs(memory_size=self.memory)

    def init(self, terms, start, free):
        return self._optimiser().init(jnp.zeros_like(free)), jnp.zeros_like(free)

    def advance(self, terms, start, free, state):
        import optax

        optimiser = self._optimiser()
        objective = lambda y: jnp.sum(energies(terms, _moved(start, free, y)))  # noqa: E731
        value_and_grad = optax.value_and_grad_from_state(objective)

        def step(carry, _):
            inner, y = carry
            value, gradient = value_and_grad(y, state=inner)
            update, inner = optimiser.update(gradient, inner, y, value=value, grad=gradient, value_fn=objective)
            return (inner, optax.apply_updates(y, update)), None

        state, _ = lax.scan(step, state, length=self.stride)
        face = _moved(start, free, state[1])
        return state, face, energies(terms, face)


class GenericLevenbergMarquardt(AbstractIterative):
    """Optimistix's Levenberg-Marquardt on the terms' residual vectors: for terms without structure.

    It differentiates every residual by every unknown in forward mode, so it needs nothing but `flat_residuals`, and
    far more time than `LevenbergMarquardt` where a term has thousands of rows; bounds cost.
    """

    steps: int = 50
    tolerance: float = 1e-4
    stride: int = 1
    # A rejected step leaves the energy where it was: it shows that the trust region was too large, no more.
    patience: int = 4

    def prepare(self, terms, start, free):
        return _with_bounds(terms, start, free)

    def _problem(self, terms, start, free):
        import optimistix

        def residuals(y, _):
            face = _moved(start, free, y)
            # A fixed unknown has no effect; a residual of its own keeps the system regular.
            held = jnp.where(free > 0, 0.0, y)
            return jnp.concatenate([*(terms[name].flat_residuals(face) for name in sorted(terms)), held]), None

        solver = optimistix.LevenbergMarquardt(rtol=1e-8, atol=1e-8)
        return solver, residuals

    def init(self, terms, start, free):
        solver, residuals = self._problem(terms, start, free)
        y = jnp.zeros_like(free)
        out, aux = eqx.filter_eval_shape(residuals, y, None)
        return solver.init(residuals, y, None, {}, out, aux, frozenset()), y

    def advance(self, terms, start, free, state):
        solver, residuals = self._problem(terms, start, free)
        inner, y = state
        y, inner, _ = solver.step(residuals, y, None, {}, inner, frozenset())
        face = _moved(start, free, y)
        return (inner, y), face, energies(terms, face)


class StochasticNewton(AbstractIterative):
    """Blanz & Vetter's optimiser (2003, section 4.2): a diagonal Newton method on a few random samples at a time.

    Every step sees `count` samples of the photometric terms, drawn by their area in the image; what the noise of the
    draw does to the steps helps them out of local minima. The diagonal of the Hessian, that of all samples, is
    refreshed every `stride` steps. Other terms are seen whole. `rate` is the share of the diagonal Newton step that
    is taken, falling to a tenth of it over all steps.
    """

    steps: int = 2000
    tolerance: float = 1e-3
    count: int = 40
    rate: float = 0.05
    seed: int = 0
    stride: int = 100
    patience: int = 5

    def prepare(self, terms, start, free):
        return terms

    def init(self, terms, start, free):
        return jax.random.key(self.seed), jnp.array(0), start

    def advance(self, terms, start, free, state):
        key, done, face = state
        diagonal = jnp.diag(linearise_all(terms, face)[0].hessian)
        scale = free / jnp.maximum(diagonal, 1e-12)

        def step(carry, key):
            face, done = carry
            drawn = {name: term.subset(key, self.count, face) for name, term in terms.items()}
            gradient = jax.grad(lambda s: jnp.sum(energies(drawn, retract(face, s))))(jnp.zeros_like(free))
            rate = self.rate * 0.1 ** (done / self.steps)
            return (within_limits(retract(face, -rate * scale * gradient)), done + 1), None

        keys = jax.random.split(key, self.stride + 1)
        (face, done), _ = lax.scan(step, (face, done), keys[1:])
        return (keys[0], done, face), face, energies(terms, face)
