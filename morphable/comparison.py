"""How two models differ: their meshes, their mean faces, and how well each says what the other can."""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from morphable.model import MorphableModel
from morphable.registration import similarity
from morphable.transfer import correspond, transfer


class Comparison(NamedTuple):
    """Two models, `first` and `second`, in mm of the first one's surface."""

    same_topology: bool
    matched: float  # share of the second's vertices that have a counterpart on the first
    mean_distance: Float[np.ndarray, " vertex"]  # of matched vertices, between the means after a rigid motion
    scale: float  # second's mean face over the first's
    spread: tuple[float, float]  # rms displacement of a matched vertex in a random person, first and second
    explained: Float[np.ndarray, " person"]  # of random people of the first: median error as the second says them
    baseline: Float[np.ndarray, " person"]  # ... as the second's mean says them
    shared_units: tuple[str, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]

    def __str__(self) -> str:
        names = lambda units: ", ".join(units) if units else "none"  # noqa: E731
        rows = (
            ("topology", "the same" if self.same_topology else "different"),
            ("vertices of the second with a counterpart", f"{self.matched:.0%}"),
            ("mean faces apart", f"{np.median(self.mean_distance):.2f} mm, median after a rigid motion"),
            ("size of the second's mean", f"{self.scale:.3f} of the first's"),
            ("people spread by", f"{self.spread[0]:.2f} and {self.spread[1]:.2f} mm rms"),
            (
                "random people of the first, in the second",
                f"{self.explained.mean():.2f} mm off, its mean face {self.baseline.mean():.2f} (median over vertices, "
                f"mean of {len(self.explained)})",
            ),
            ("units of both", names(self.shared_units)),
            ("units of the first alone", names(self.only_first)),
            ("units of the second alone", names(self.only_second)),
        )
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name.ljust(width)}  {value}" for name, value in rows)


def compare(first: MorphableModel, second: MorphableModel, people: int = 10, seed: int = 0) -> Comparison:
    """The two models in dense correspondence. Raises RegistrationError where they cannot be brought into one."""
    between = correspond(first, second)
    there, here = np.asarray(second.mean, float), between.places(np.asarray(first.mean, float))
    use = between.matched
    motion = similarity(there[use], here[use], scaled=False)
    apart = np.linalg.norm(motion(there[use]) - here[use], axis=1)
    size = similarity(there[use], here[use], scaled=True).scale
    explained, baseline = [], []
    for key in jax.random.split(jax.random.key(seed), people):
        face = np.asarray(first.neutral(jax.random.normal(key, (first.shape.rank,))), float)
        wanted = between.places(face)[use]
        rigid = similarity(there[use], wanted, scaled=False)
        baseline.append(np.median(np.linalg.norm(rigid(there[use]) - wanted, axis=1)))
        explained.append(np.median(transfer(between, face).model_error))
    same = np.array_equal(np.asarray(first.triangles), np.asarray(second.triangles))
    spread = lambda modes: float(np.sqrt((modes[use] ** 2).sum(axis=(1, 2)).mean()))  # noqa: E731
    one, two = first.expression_names, second.expression_names
    return Comparison(
        same_topology=same,
        matched=float(use.mean()),
        mean_distance=apart,
        scale=1 / size,
        spread=(spread(between.places(np.asarray(first.shape.modes, float))), spread(np.asarray(second.shape.modes))),
        explained=np.array(explained),
        baseline=np.array(baseline),
        shared_units=tuple(name for name in one if name in two),
        only_first=tuple(name for name in one if name not in two),
        only_second=tuple(name for name in two if name not in one),
    )
