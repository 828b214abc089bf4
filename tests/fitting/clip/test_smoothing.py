"""The prior on how heads move, by itself: derivatives, and motion with known truth."""

import jax.numpy as jnp
import jaxlie
import numpy as np
from scipy.spatial.transform import Rotation

from fitting.clip.banded import Chain, chain_least_squares
from fitting.clip.smoothing import (
    Blocks,
    Motion,
    MotionPrior,
    added,
    bounds,
    exponential,
    logarithm,
    motion_chain,
    moved,
)

SIGMA = np.linspace(1, 2, 27)


def random_motion(count=5, units=3, seed=0):
    rng = np.random.default_rng(seed)
    return Motion(
        times=np.cumsum(rng.uniform(0.02, 0.1, count)),
        rotation=Rotation.from_rotvec(0.2 * rng.normal(size=(count, 3)) + [np.pi, 0, 0]).as_matrix(),
        place=rng.normal(size=(count, 3)) * 5 + [0, 0, 1000],
        velocity=rng.normal(size=(count, 6)),
        expression=rng.uniform(0.2, 0.8, (count, units)),
        light=rng.normal(size=(count, 27)),
        offset=0.1 * rng.normal(size=(count, 3)),
    )


def test_exponential_and_logarithm_are_those_of_the_solver():
    twist = np.random.default_rng(0).normal(size=(6, 6)) * [30, 30, 30, 0.5, 0.5, 0.5]
    turn, shift = exponential(twist)
    np.testing.assert_allclose(logarithm(turn, shift), twist, atol=1e-8)
    matrices = np.stack([np.asarray(jaxlie.SE3.exp(jnp.asarray(t, jnp.float32)).as_matrix()) for t in twist])
    np.testing.assert_allclose(turn, matrices[:, :3, :3], atol=1e-5)
    np.testing.assert_allclose(shift, matrices[:, :3, 3], atol=1e-3)


def test_the_gradient_is_that_of_the_energy():
    motion, prior = random_motion(), MotionPrior()
    chain = motion_chain(motion, prior, SIGMA, True)
    rng = np.random.default_rng(1)
    step = rng.normal(size=chain.gradient.shape)
    at = Blocks(3)
    step[:, at.pose] *= 0.02
    step[:, at.expression] *= 0.1
    h = 1e-4
    up, down = (motion_chain(moved(motion, s * step), prior, SIGMA, True).energy for s in (h, -h))
    np.testing.assert_allclose((up - down) / (2 * h), np.sum(chain.gradient * step), rtol=2e-3)


def test_steady_motion_costs_nothing_at_uneven_times():
    motion = random_motion(6)
    twist = np.array([20.0, -10, 5, 0.3, 0.8, -0.2])
    turn, shift = exponential((motion.times - motion.times[0])[:, None] * twist)
    first = motion.rotation[0]
    steady = Motion(
        times=motion.times,
        rotation=first @ turn,
        place=motion.place[0] + shift @ first.T,
        velocity=np.repeat(twist[None], 6, 0),
        expression=np.repeat(motion.expression[:1], 6, 0),
        light=np.repeat(motion.light[:1], 6, 0),
        offset=np.repeat(motion.offset[:1], 6, 0),
    )
    assert motion_chain(steady, MotionPrior(), SIGMA, False).energy < 1e-9


def noisy_problem(seed=0, count=60):
    """A turning head whose place is measured with noise at uneven times: truth, start and observation."""
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.uniform(0.02, 0.06, count))
    rotation = Rotation.from_rotvec(np.stack([0 * times + np.pi, 0 * times, 0 * times], 1))
    rotation = (
        rotation * Rotation.from_rotvec(np.stack([0 * times, 0.3 * np.sin(3 * times), 0 * times], 1))
    ).as_matrix()
    place = np.stack([20 * np.sin(2.5 * times), 5 * np.cos(2 * times), 1000 + 10 * np.sin(2 * times)], 1)
    zero = np.zeros((count, 2))
    truth = Motion(times, rotation, place, np.zeros((count, 6)), zero, np.zeros((count, 27)), np.zeros((count, 3)))
    sigma = np.array([1.0, 1.0, 5.0, 0.03, 0.03, 0.03])
    noise = sigma * rng.normal(size=(count, 6))
    turn, shift = exponential(noise)
    seen = Motion(
        times,
        rotation @ turn,
        place + np.einsum("tij,tj->ti", rotation, shift),
        *(np.zeros((count, k)) for k in (6, 2, 27, 3)),
    )

    def observe(motion):
        at = Blocks(2)
        relative = seen.rotation.transpose(0, 2, 1)
        error = logarithm(relative @ motion.rotation, np.einsum("tij,tj->ti", relative, motion.place - seen.place))
        diagonal, gradient = np.zeros((len(motion), at.size, at.size)), np.zeros((len(motion), at.size))
        index = np.arange(at.pose.start, at.pose.stop)
        diagonal[:, index, index], gradient[:, index] = sigma**-2, error / sigma**2
        return Chain(
            diagonal, np.zeros((len(motion) - 1, at.size, at.size)), gradient, 0.5 * np.sum((error / sigma) ** 2)
        )

    return truth, seen, observe


def smoothed(observe, seen):
    free = np.zeros(Blocks(2).size, bool)
    free[Blocks(2).pose] = free[Blocks(2).velocity] = True
    linearise = lambda m: added([observe(m), motion_chain(m, MotionPrior(), SIGMA, True)])  # noqa: E731
    return chain_least_squares(linearise, moved, bounds, seen, free, 10).state


def test_smoothed_motion_is_nearer_to_the_truth_and_does_not_lag():
    rms = lambda x: np.sqrt(np.mean(np.square(x), axis=(0, 1)))  # noqa: E731
    errors, raw, delays = [], [], []
    for seed in range(6):
        truth, seen, observe = noisy_problem(seed)
        smooth = smoothed(observe, seen)
        errors.append(smooth.place - truth.place)
        raw.append(seen.place - truth.place)
        # A filter that lags is off by velocity times delay: its error goes with the velocity.
        velocity = np.gradient(truth.place[:, 0], truth.times)
        delays.append(-np.polyfit(velocity, errors[-1][:, 0], 1)[0])
    assert (rms(errors) < 0.5 * rms(raw)).all()
    assert (rms(np.diff(errors, 2, axis=1)) < 0.25 * rms(np.diff(raw, 2, axis=1))).all()
    assert abs(np.mean(delays)) < 0.004  # seconds; a tenth of a frame
    np.testing.assert_allclose(smooth.velocity[5:-5, 4], 0.9 * np.cos(3 * truth.times[5:-5]), atol=0.35)
