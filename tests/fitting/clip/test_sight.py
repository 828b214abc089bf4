"""Clips are seen by dlib or by the landmark network: what either has to do, and what the network does in addition."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
import pytest
from PIL import Image

import fitting.clip.tracking as tracking
from fitting.clip.follow import FrameFitter, single
from fitting.clip.frames import ClipWriter, Frame
from fitting.clip.key_frames import Identity, candidate
from fitting.clip.sight import DlibSight, NetworkSight, Whereabouts, sight_of
from fitting.clip.tracking import TrackSettings, track
from fitting.detection import UNSURE_SPREAD, DlibProvider
from fitting.fit import GEOMETRY
from fitting.mediapipe_detection import MediaPipeProvider
from fitting.multi_image import alike_in_terms
from fitting.network_detection import NetworkProvider, around, look, look_steadily
from fitting.observation import Photo


@pytest.fixture(scope="module")
def network(head) -> NetworkSight:
    return NetworkSight(NetworkProvider.of(head))


@pytest.fixture(scope="module", params=["dlib", "network"])
def sight(request, network):
    return network if request.param == "network" else DlibSight()


@pytest.fixture(scope="module")
def who(fitted) -> Identity:
    return Identity(fitted.identity, fitted.albedo, float(fitted.camera.focal[0]), fitted.light, (0,))


@pytest.fixture(scope="module")
def frames(fitter, who, network) -> FrameFitter:
    return FrameFitter(fitter, who, network, 512, 1.0)


@pytest.fixture(scope="module")
def found(network, photo):
    return network.largest(photo)


def of_fit(fitted, away=0.0) -> Whereabouts:
    """Where the head of a fit is, or so many px to the right of it."""
    place = np.asarray(fitted.camera.pose.translation(), float)
    focal = float(fitted.camera.focal[0])
    shift = np.array([away, 0.0])
    return Whereabouts(
        np.asarray(fitted.camera.rotation, float),
        place + np.array([away * place[2] / focal, 0.0, 0.0]),
        np.asarray(fitted.landmarks2d, float) + shift,
        focal,
    )


# ----------------------------------------------------------------------------------------------- both of them


def test_the_face_is_found_and_placed_where_the_head_is(sight, photo, face, fitted):
    side = np.ptp(face.landmarks, axis=0).max()
    for seen in (sight.largest(photo), sight.placed(photo, of_fit(fitted))):
        assert seen is not None and seen.sure
        assert np.linalg.norm(seen.landmarks - face.landmarks, axis=1).mean() < 0.06 * side
    assert sight.placed(photo, of_fit(fitted, away=photo.width)) is None


def test_where_there_is_no_face_none_is_found(sight, photo, fitted):
    nothing = Photo(np.zeros_like(photo.pixels))
    assert sight.largest(nothing) is None and sight.largest(nothing, thorough=True) is None
    placed = sight.placed(nothing, of_fit(fitted))
    assert placed is None or not placed.sure


def test_a_kept_face_is_recalled(sight, photo, frames):
    face = sight.largest(photo)
    row, without = sight.kept(face), sight.kept(None)
    assert {k: np.shape(v) for k, v in row.items()} == {k: np.shape(v) for k, v in without.items()}
    assert all(np.isnan(values).all() for values in without.values())
    recalled = sight.recalled(row, photo)
    np.testing.assert_allclose(recalled.landmarks, face.landmarks, rtol=1e-6)
    assert recalled.spread == pytest.approx(face.spread, rel=1e-4) and recalled.noise == face.noise
    one, two = (frames.fitter.problem(photo, f, frames.who.focal_px)[0] for f in (face, recalled))
    for name in ("points_px", "sigma_px", "sigma_along_px"):
        np.testing.assert_allclose(getattr(one, name), getattr(two, name), rtol=1e-4)
    assert set(one.extra) == set(two.extra)
    for name, term in one.extra.items():
        for a, b in zip(*(jax.tree.leaves(eqx.filter(t, eqx.is_array)) for t in (term, two.extra[name])), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_key_frames_are_looked_at_by_the_same_eyes(sight, photo, fitter):
    seen = candidate(Frame(photo, 0.0, 0), np.asarray(fitter.solver_model.landmarks.mean), sight)
    assert seen is not None and (seen.face.sighting is not None) == isinstance(sight, NetworkSight)


def test_sources_that_cannot_follow_a_head_are_refused(network, tmp_path):
    assert sight_of(None) == sight_of(DlibProvider()) == DlibSight()
    assert isinstance(sight_of(network.provider), NetworkSight)
    with pytest.raises(ValueError, match="got MediaPipeProvider, expected a NetworkProvider, or None for dlib"):
        track("none.mp4", tmp_path / "out", landmarks=MediaPipeProvider(tmp_path / "face_landmarker.task"))
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------- the network


def test_points_of_one_person_are_those_of_the_whole_model(frames, network, found, photo, head, who):
    seen, _ = frames.seen(photo, found)
    assert set(seen.problem.extra) == {"dense", "rotation", "lids", "lips"}
    expression = jnp.asarray(np.random.default_rng(0).uniform(0, 1, frames.units), jnp.float32)
    vertices = head.vertices(jnp.asarray(who.identity), expression)
    points = np.asarray(network.provider.network.surface(vertices))
    rest = np.r_[:17, 68 : len(points)]  # the others are iBUG's inner points, which have a term of their own
    dense = seen.problem.extra["dense"]
    counted = np.isfinite(dense.sigma_px)  # eyeballs turn, and do not count
    folded = np.asarray(dense.basis.positions(jnp.zeros(0), expression))
    np.testing.assert_allclose(folded[counted], points[rest][counted], atol=2e-3)  # mm
    np.testing.assert_allclose(
        seen.problem.model.landmarks.positions(jnp.zeros(0), expression), head.landmarks(vertices), atol=2e-3
    )


def test_a_frame_is_held_to_all_points(frames, found, photo):
    seen, start = frames.seen(photo, found)
    motion = frames.solve(seen, start, "landmarks", frames.free("pose", "expression"), 8, 1e-3)
    quiet = single(
        0.0,
        np.r_[np.c_[start.rotation[0], start.place[0]], [[0, 0, 0, 1]]],
        motion.expression[0] * 0,
        start.light[0],
        np.zeros(3),
    )
    before, after = (frames.linearise(seen, at, 0, "landmarks")[2].sum() for at in (quiet, motion))
    assert after < before
    _, _, energies = frames.fit(photo, found, None)
    assert np.isfinite(list(energies.values())).all() and energies["dense"] > 0
    # On the scale on which a good fit to dlib's points costs some 15.
    assert sum(energies.get(name, 0.0) for name in GEOMETRY) < 2 * frames.fitter.settings.usual_energy


def test_several_looks_depend_less_on_where_the_square_lies(network, photo, found):
    square, moves = around(found.landmarks), np.random.default_rng(0).normal(0.0, 0.02, (8, 3))
    moved = [
        square._replace(centre=square.centre + square.side * m[:2], side=square.side * np.exp(m[2])) for m in moves
    ]
    eyes, mirror = network.provider.network, network.provider.mirror
    one, several = (
        np.std([looked(eyes, photo, s, *also).points for s in moved], axis=0).mean()
        for looked, *also in ((look,), (look_steadily, mirror))
    )
    assert several < 0.75 * one


def test_photos_seen_by_dlib_go_with_those_seen_by_the_network(frames, found, photo, face):
    (one, at, _), (other, _, _) = (frames.fitter.problem(photo, f, frames.who.focal_px) for f in (found, face))
    at = dataclasses.replace(at, pose=at.pose @ jaxlie.SE3.exp(jnp.array([0.0, 0.0, 0.0, 0.1, 0.0, 0.0])))
    first, second = alike_in_terms([one, other])
    assert set(first.extra) == set(second.extra) == {"dense", "rotation"}
    for name, silent in second.extra.items():
        assert first.extra[name] is one.extra[name]
        assert float(first.extra[name].energy(at)) > 0 == float(silent.energy(at))
        model = silent.linearise(at)
        assert not model.hessian.any() and not model.gradient.any()
    assert alike_in_terms([other, other])[1].extra == {}


def test_other_weights_are_another_source(network, head):
    assert network.fingerprint() == NetworkSight(NetworkProvider.of(head)).fingerprint()
    moved = jnp.asarray(network.provider.network.mean_points + 1e-3)
    other = eqx.tree_at(lambda n: n.mean_points, network.provider.network, moved)
    other = NetworkSight(dataclasses.replace(network.provider, network=other))
    assert other.fingerprint() != network.fingerprint() and network.fingerprint()["source"] == "network"


BLACK = 4
SIDE = 320


@pytest.fixture(scope="module")
def clip(tmp_path_factory, photo, face):
    """Eight frames of the bundled photo, drifting; one is black."""
    path = tmp_path_factory.mktemp("seen") / "clip.mp4"
    middle = np.nanmean(face.landmarks, axis=0)
    picture = Image.fromarray(photo.pixels)
    with ClipWriter(path, quality=12) as writer:
        for k in range(8):
            x, y = middle + [2.0 * k - SIDE / 2, -SIDE / 2]
            part = np.asarray(picture.transform((SIDE, SIDE), Image.Transform.AFFINE, (1, 0, x, 0, 1, y)))
            writer.write(part * (k != BLACK), k / 25)
    return path


def test_a_clip_seen_by_the_network_goes_on_bit_for_bit(clip, network, who, head, tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "find_identity", lambda *_: who)
    settings = TrackSettings(shard=2, window=4, overlap=1, steps=2, samples=512)
    provider = network.provider

    def stop(phase, at):
        def progress(now, done, of):
            del of
            if (now, done) == (phase, at):
                raise KeyboardInterrupt

        return progress

    def run(out, **others):
        return track(clip, out, model=head, landmarks=provider, settings=settings, pictures=False, **others)

    for phase, at in (("tracking", 3), ("refining", 4)):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "stopped", progress=stop(phase, at))
    with pytest.raises(tracking.TrackError, match="with landmarks from network, expected none, or one to go on with"):
        track(clip, tmp_path / "stopped", model=head, settings=settings)
    resumed, whole = run(tmp_path / "stopped").track, run(tmp_path / "whole").track
    assert np.flatnonzero(whole.lost).tolist() == [BLACK]
    for name in ("poses", "expression", "light", "offset", "detected", "segment"):
        np.testing.assert_array_equal(getattr(resumed, name), getattr(whole, name), err_msg=name)
    shown = whole.project(whole.landmarks(head))[~whole.lost]
    assert np.median(np.linalg.norm(shown - whole.detected[~whole.lost], axis=2)) < 6
    assert np.polyfit(np.flatnonzero(~whole.lost), shown[:, 17:, 0].mean(axis=1), 1)[0] == pytest.approx(-2.0, abs=0.7)
    with np.load(tmp_path / "whole" / "track" / "followed-00000000.npz") as shard:
        assert shard["seen_points"].shape == (2, provider.network.points, 2)
        assert (shard["spread"] < UNSURE_SPREAD).all()
