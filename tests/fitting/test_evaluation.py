"""Scores obey their laws: nothing is nothing, a known offset is that offset, and motion does not matter."""

import contextlib
import importlib.util
import io
import json
import sys

import jax.numpy as jnp
import jaxlie
import numpy as np
import pytest
from helpers import uv_sphere
from scipy.spatial.transform import Rotation

import morphable
from fitting import score_report
from fitting.cli import main
from fitting.evaluation import (
    NORMALISERS,
    STIRLING_CROP,
    EvaluationError,
    FaceMesh,
    Scan,
    adapted_labels,
    bootstrap,
    correspondence_error,
    crop,
    cumulative,
    face_regions,
    landmark_errors,
    mean_face,
    psnr,
    region_scores,
    scan_to_mesh,
    ssim,
    visible_skin,
    weighted_median,
)
from fitting.ground_truth import (
    paired,
    read_landmark_predictions,
    read_landmarks3d,
    read_mesh,
    read_prediction,
    read_regions,
    read_scan,
)
from fitting.observation import Photo
from fitting.score_report import image_report, landmark_report, mesh_report, write_json
from morphable.colour import linear_to_srgb
from morphable.landmarks import MIRROR_68
from morphable.mesh import Mesh
from morphable.registration.alignment import similarity
from morphable.registration.closest_points import SurfaceError, SurfaceSearch
from renderer.camera import Pinhole
from renderer.light import ambient_white
from renderer.render import render


@pytest.fixture(scope="module")
def face(head) -> FaceMesh:
    return mean_face(head)


@pytest.fixture(scope="module")
def scan(face) -> Scan:
    """Points of the mean face itself, between its vertices, within Stirling's crop."""
    rng = np.random.default_rng(3)
    shares = rng.dirichlet(np.ones(3), len(face.triangles))
    points = np.einsum("tk,tkc->tc", shares, face.vertices[face.triangles])
    inside = np.flatnonzero(crop(points, face.landmarks, STIRLING_CROP))
    chosen = np.sort(rng.choice(inside, 1500, replace=False))
    return Scan(points[chosen], rng.uniform(0.5, 1.5, 1500), face.landmarks, chosen, "subject")


def moved(mesh: FaceMesh, scale=1.0, seed=0) -> FaceMesh:
    rng = np.random.default_rng(seed)
    rotation = Rotation.random(random_state=rng).as_matrix()
    shift = rng.normal(size=3) * 50
    motion = lambda x: scale * x @ rotation.T + shift  # noqa: E731
    return FaceMesh(motion(mesh.vertices), mesh.triangles, motion(mesh.landmarks), mesh.name)


def dented(face: FaceMesh) -> FaceMesh:
    """Another person: a smooth deformation of some millimetres."""
    x, y, z = face.vertices.T / 40
    bump = 2.5 * np.stack([np.sin(y), np.cos(x + z), np.sin(x * y)], axis=1)
    lx, ly, lz = face.landmarks.T / 40
    marks = 2.5 * np.stack([np.sin(ly), np.cos(lx + lz), np.sin(lx * ly)], axis=1)
    return FaceMesh(face.vertices + bump, face.triangles, face.landmarks + marks)


# ------------------------------------------------------------------------------------------- closest points


def nearest_by_brute_force(points, corners):
    """All pairs, by clamped projections on the plane and the three edges."""
    best = np.full(len(points), np.inf)
    for a, b, c in corners:
        basis = np.stack([b - a, c - a], axis=1)
        uv = np.linalg.lstsq(basis, (points - a).T, rcond=None)[0]
        inside = (uv >= 0).all(axis=0) & (uv.sum(axis=0) <= 1)
        flat = np.linalg.norm(points - (a + (basis @ uv).T), axis=1)
        best = np.where(inside, np.minimum(best, flat), best)
        for p, q in ((a, b), (b, c), (c, a)):
            t = np.clip((points - p) @ (q - p) / ((q - p) @ (q - p)), 0, 1)
            best = np.minimum(best, np.linalg.norm(points - p - t[:, None] * (q - p), axis=1))
    return best


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_closest_points_are_those_of_all_pairs(scale):
    """On triangles whose sizes differ a thousandfold, overlapping and far from each other."""
    rng = np.random.default_rng(0)
    size = np.exp(rng.uniform(-3, 4, 150))
    corners = rng.normal(size=(150, 1, 3)) * 20 + size[:, None, None] * rng.normal(size=(150, 3, 3))
    points = np.concatenate([rng.normal(size=(200, 3)) * 40, corners[:20, 0], corners[:20].mean(axis=1)])
    search = SurfaceSearch(scale * corners.reshape(-1, 3), np.arange(450).reshape(-1, 3))
    found = search.closest(scale * points)
    expected = scale * nearest_by_brute_force(points, corners)
    np.testing.assert_allclose(found.distance, expected, rtol=1e-9, atol=1e-11 * scale)
    np.testing.assert_allclose(np.linalg.norm(scale * points - found.points, axis=1), found.distance, atol=1e-12)
    on_triangle = nearest_by_brute_force(found.points[:5], search.corners[found.triangle[:5]])
    np.testing.assert_allclose(on_triangle, 0, atol=1e-10 * scale)
    assert (search.nearly_closest(scale * points).distance >= found.distance - 1e-12 * scale).all()


def test_distance_to_a_sphere_is_its_radius(scan):
    ball = uv_sphere(60, 40)
    search = SurfaceSearch(np.asarray(ball.vertices, float), np.asarray(ball.triangles))
    direction = np.random.default_rng(0).normal(size=(100, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    found = search.closest(150 * direction)
    np.testing.assert_allclose(found.distance, 50, atol=0.4)  # the facets' sagitta
    outward = np.einsum("ij,ij->i", search.normals[found.triangle], direction)
    assert (outward > 0.99).all()


def test_triangles_without_area_do_not_matter():
    corners = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [5, 5, 5]])
    plain = SurfaceSearch(corners, np.array([[0, 1, 2]]))
    padded = SurfaceSearch(corners, np.array([[3, 3, 3], [0, 1, 2], [0, 1, 1]]))
    points = np.random.default_rng(0).normal(size=(50, 3))
    np.testing.assert_array_equal(plain.closest(points).distance, padded.closest(points).distance)
    with pytest.raises(SurfaceError, match="without area"):
        SurfaceSearch(corners, np.array([[0, 0, 1]]))


# ---------------------------------------------------------------------------------------------- scan to mesh


def test_procrustes_finds_the_motion():
    rng = np.random.default_rng(1)
    points, shift = rng.normal(size=(7, 3)), rng.normal(size=3)
    rotation = Rotation.random(random_state=rng).as_matrix()
    found = similarity(points, 1.7 * points @ rotation.T + shift, scaled=True)
    np.testing.assert_allclose(found.scale, 1.7)
    np.testing.assert_allclose(found.rotation, rotation, atol=1e-12)
    np.testing.assert_allclose(found.back(found(points)), points, atol=1e-12)
    mirrored = similarity(points, points * [-1, 1, 1], scaled=True)
    assert np.linalg.det(mirrored.rotation) > 0.999
    assert similarity(points, 1.7 * points, scaled=False).scale == 1


def test_a_mesh_fits_itself(scan, face):
    for scaled in (True, False):
        score = scan_to_mesh(scan, moved(face), scaled)
        assert score.distance.max() < 1e-8 and score.landmarks51 < 1e-8
        np.testing.assert_allclose(cumulative(score.distance), 100)


def test_motion_and_scale_change_nothing(scan, face):
    """A fit's own unit and pose are no error; but for which of two equal neighbours rounding takes."""
    other = dented(face)
    reference = scan_to_mesh(scan, other, True, refine=False)
    for scale in (0.001, 1.0, 10.0):
        score = scan_to_mesh(scan, moved(other, scale), True, refine=False)
        np.testing.assert_allclose(score.distance, reference.distance, atol=1e-9)
        np.testing.assert_allclose(score.mesh_to_scan.scale * scale, reference.mesh_to_scan.scale)
    refined, again = (scan_to_mesh(scan, m, True) for m in (other, moved(other, 0.01)))
    assert abs(refined.median - again.median) < 0.01 and abs(refined.rms - again.rms) < 0.01
    assert refined.rms < reference.rms
    rigid, again = (scan_to_mesh(scan, m, False, refine=False) for m in (other, moved(other)))
    np.testing.assert_allclose(rigid.distance, again.distance, atol=1e-9)


def test_metrical_knows_the_unit(scan, face):
    large = moved(face, 1.1)
    assert scan_to_mesh(scan, large, True).rms < 1e-6
    score = scan_to_mesh(scan, large, False)
    assert score.mesh_to_scan.scale == 1 and score.rms > 0.5


def test_a_known_offset_is_the_distance(face):
    """A plate before the face's plane: landmarks align it exactly, and every point is 3 mm off."""
    x, y = np.meshgrid(np.linspace(-100, 100, 21), np.linspace(-100, 100, 21))
    plate = np.stack([x.ravel(), y.ravel(), np.zeros(x.size)], axis=1)
    corner = (np.arange(20)[:, None] * 21 + np.arange(20)).ravel()
    triangles = np.concatenate(
        [np.stack(t, 1) for t in ((corner, corner + 1, corner + 22), (corner, corner + 22, corner + 21))]
    )
    points = np.stack([*np.random.default_rng(0).uniform(-80, 80, (2, 400)), np.full(400, 3.0)], axis=1)
    scan = Scan(points, np.ones(400), face.landmarks, np.arange(400))
    score = scan_to_mesh(scan, FaceMesh(plate, triangles, face.landmarks), False, refine=False)
    np.testing.assert_allclose([score.median, score.mean, score.rms, score.p90, score.area_median], 3.0, atol=1e-9)
    np.testing.assert_allclose(score.std, 0, atol=1e-9)
    np.testing.assert_allclose(cumulative(score.distance, (2.9, 3.1)), [0, 100])


def test_seven_landmarks_are_needed_in_part(scan, face):
    few = np.full((68, 3), np.nan)
    few[[36, 45, 33]] = face.landmarks[[36, 45, 33]]
    assert scan_to_mesh(scan, FaceMesh(face.vertices, face.triangles, few)).rms < 1e-6
    few[36] = np.nan
    with pytest.raises(EvaluationError, match="got 2 landmarks.*at least 3.*Mark more"):
        scan_to_mesh(scan, FaceMesh(face.vertices, face.triangles, few))


def test_crop_is_the_ball_of_the_paper(face):
    marks = np.full((68, 3), np.nan)
    marks[[36, 39, 42, 45, 33]] = [[-45, 0, 0], [-15, 0, 0], [15, 0, 0], [45, 0, 0], [0, -50, 0]]
    # centre (0, -35, 0), radius 1.2 (90 + 50) / 2 = 84
    points = np.array([[0, 48.9, 0], [0, 49.1, 0], [83.9, -35, 0], [0, -35, -84.1]])
    np.testing.assert_array_equal(crop(points, marks), [True, False, True, False])
    marks[33] = np.nan
    with pytest.raises(EvaluationError, match="33.*expected all"):
        crop(points, marks)


def test_weighted_median_counts_area():
    values = np.array([3.0, 1.0, 2.0, 5.0, 4.0])
    assert weighted_median(values, np.ones(5)) == np.median(values)
    assert weighted_median(values, np.array([1.0, 1, 1, 9, 1])) == 5.0


def test_only_the_visible_skin_counts(head):
    visible, everything = visible_skin(head), np.asarray(head.triangles)
    assert 0.4 * len(everything) < len(visible) < len(everything)
    corner = np.unique(visible)
    assert set(np.asarray(head.part_of_vertex)[corner]) == {head.part_names.index("skin")}
    assert len(mean_face(head, every_triangle=True).triangles) == len(everything)


# ---------------------------------------------------------------------------------------------------- regions


def test_regions_lie_where_their_names_say(scan, face):
    regions = face_regions(scan)
    middle = {name: scan.points[chosen].mean(axis=0) for name, chosen in regions.items()}
    assert middle["forehead"][1] > middle["nose"][1] > middle["mouth"][1]
    assert middle["nose"][2] > middle["cheek"][2] and middle["mouth"][1] < middle["cheek"][1]
    overlap = sum(chosen.astype(int) for chosen in regions.values())
    assert overlap.max() == 1 and all(chosen.sum() > 10 for chosen in regions.values())
    cheek = scan.points[regions["cheek"], 0]
    assert 0.35 < (cheek > 0).mean() < 0.65


def test_a_long_nose_does_not_spoil_the_cheeks(scan, face):
    tip = face.landmarks[30]
    pull = lambda x: x + 6 * np.exp(-(((x - tip) / [12, 18, 20]) ** 2).sum(1))[:, None] * [0, 0, 1.0]  # noqa: E731
    long = FaceMesh(pull(face.vertices), face.triangles, pull(face.landmarks))
    scores = region_scores(scan, moved(long, 0.5))
    assert scores["nose"].mean > 0.6
    assert max(scores[name].mean for name in ("forehead", "mouth")) < 0.3 * scores["nose"].mean
    exact = region_scores(scan, moved(face, 3.0))
    assert max(score.mean for score in exact.values()) < 1e-3


# --------------------------------------------------------------------------- landmarks and correspondences


def test_landmark_errors_are_per_cent_of_the_named_length():
    rng = np.random.default_rng(0)
    truth = rng.uniform(0, 100, (68, 2))
    truth[:2] = [[0, 0], [100, 64]]
    truth[36], truth[45] = [20.0, 30.0], [60.0, 30.0]
    offset = truth + [3.0, 4.0]
    np.testing.assert_allclose(landmark_errors(offset, truth), 100 * 5 / np.sqrt(100 * np.ptp(truth[:, 1])))
    np.testing.assert_allclose(landmark_errors(offset, truth, "interocular"), 12.5)
    for name in NORMALISERS:
        error = landmark_errors(offset, truth, name)
        np.testing.assert_allclose(landmark_errors(7 * offset + 3, 7 * truth + 3, name), error)
    with pytest.raises(EvaluationError, match="'eyes'.*bbox"):
        landmark_errors(offset, truth, "eyes")


def test_a_sets_own_definition_is_learnt_from_its_other_images(face):
    """A constant offset on the head is found at any pose; errors that images do not share stay as they are."""
    rng = np.random.default_rng(0)
    turns = Rotation.from_euler("yxz", np.c_[np.linspace(-1.2, 1.2, 12), rng.normal(size=(12, 2)) * 0.2])
    looks = 2.0 * (turns * Rotation.from_euler("x", np.pi)).as_matrix()[:, :2]
    shown = lambda points: np.einsum("kci,li->klc", looks, points) + 300.0  # noqa: E731
    offset = rng.normal(size=(68, 3)) * 4
    offset = (offset + offset[MIRROR_68] * [-1, 1, 1]) / 2
    predicted, defined = shown(face.landmarks), shown(face.landmarks + offset)
    error = lambda p, t: np.linalg.norm(p - t, axis=2).mean()  # noqa: E731
    assert error(adapted_labels(predicted, defined, face.landmarks), defined) < 0.15 * error(predicted, defined)
    failed = predicted.copy()
    failed[7] += rng.normal(size=(68, 2)) * 200
    after, before = (np.delete(x, 7, axis=0) for x in (adapted_labels(failed, defined, face.landmarks), defined))
    assert error(after, before) < 0.25 * error(predicted, defined)  # one that failed spoils little
    noisy = predicted + rng.normal(size=predicted.shape) * 6
    own = error(noisy, predicted)
    assert 0.95 * own < error(adapted_labels(noisy, predicted, face.landmarks), predicted) < 1.15 * own
    noisy[3] = np.nan
    partly = adapted_labels(noisy, predicted, face.landmarks)
    assert np.isnan(partly[3]).all() and np.isfinite(np.delete(partly, 3, axis=0)).all()
    changed = defined.copy()
    changed[5] += 10.0  # its own truth does not help an image
    one, two = (adapted_labels(predicted, t, face.landmarks) for t in (defined, changed))
    np.testing.assert_allclose(one[5], two[5])
    assert np.abs(one[4] - two[4]).max() > 0.2


def test_both_averages_are_told_apart(face):
    """Nine frontal images of 2 % and one profile of 8 %: 2.6 over images, 5 over bins."""
    rng = np.random.default_rng(0)
    truth = rng.uniform(0, 100, (11, 68, 2))
    truth[:, :2] = [[0, 0], [100, 100]]
    names = [f"a{k}" for k in range(11)]
    yaw = np.array([5.0] * 9 + [-90.0, 40.0])
    shift = np.where(np.abs(yaw) > 60, 8.0, 2.0)[:, None, None] * [1.0, 0.0]
    predictions = dict(zip(names[:10], truth + shift, strict=False))
    report = landmark_report(predictions, names, truth, yaw, face.landmarks)
    numbers = report.numbers
    assert numbers["answered"] == 10 and numbers["normaliser"] == "bbox" and numbers["a10/nme68_percent"] is not None
    np.testing.assert_allclose(numbers["prediction_mean_over_images_nme68_percent"], 2.6)
    np.testing.assert_allclose(numbers["prediction_mean_of_bins_nme68_percent"], 5.0)
    np.testing.assert_allclose(numbers["prediction_yaw_60-90_nme51_percent"], 8.0)
    assert "sqrt(width x height)" in report.text and "no answer" in report.text and "0 of 1" in report.text
    assert numbers["mean_face_mean_over_images_nme68_percent"] > 2.6


def test_correspondences_forgive_no_sliding(face):
    np.testing.assert_allclose(correspondence_error(moved(face, 2.0).vertices, face.vertices), 0, atol=1e-9)
    assert correspondence_error(moved(face, 1.1).vertices, face.vertices, scaled=False).mean() > 1
    rolled = face.vertices[np.random.default_rng(0).permutation(len(face.vertices))]
    assert correspondence_error(rolled, face.vertices).mean() > 20


# --------------------------------------------------------------------------------------------------- pictures


def test_equal_pictures_are_equal():
    rng = np.random.default_rng(0)
    picture = rng.uniform(size=(40, 50, 3))
    mask = rng.uniform(size=(40, 50)) > 0.3
    assert ssim(picture, picture, mask) == pytest.approx(1, abs=1e-12) and psnr(picture, picture, mask) == np.inf
    noisy = picture + 0.01 * rng.normal(size=picture.shape)
    assert psnr(noisy, picture, mask) == pytest.approx(40, abs=0.2)
    assert ssim(noisy, picture, mask) < 1
    with pytest.raises(EvaluationError, match="empty mask"):
        psnr(picture, picture, np.zeros((40, 50), bool))


def test_what_is_outside_the_mask_does_not_count():
    rng = np.random.default_rng(0)
    truth, picture = rng.uniform(size=(2, 30, 30, 3))
    mask = np.zeros((30, 30), bool)
    mask[8:22, 5:20] = True
    other = np.where(mask[..., None], picture, rng.uniform(size=picture.shape))
    assert ssim(other, truth, mask) == pytest.approx(ssim(picture, truth, mask), abs=1e-12)
    assert psnr(other, truth, mask) == psnr(picture, truth, mask)


def test_ssim_of_few_pixels():
    """In a mask of few pixels every window sees those alone, with weights by their distances."""
    rng = np.random.default_rng(2)
    a, b = rng.uniform(size=(2, 12, 12, 3))
    mask = np.zeros((12, 12), bool)
    pixels = np.array([[2, 3], [3, 3], [4, 5], [3, 6]])
    mask[pixels[:, 0], pixels[:, 1]] = True
    values = []
    for centre in pixels:
        w = np.exp(-((pixels - centre) ** 2).sum(axis=1) / (2 * 1.5**2))[:, None]
        x, y = a[mask.nonzero()], b[mask.nonzero()]
        order = np.lexsort((pixels[:, 1], pixels[:, 0]))
        w = w[order] / w.sum()
        mx, my = (w * x).sum(axis=0), (w * y).sum(axis=0)
        vx, vy, cxy = ((w * p).sum(axis=0) for p in ((x - mx) ** 2, (y - my) ** 2, (x - mx) * (y - my)))
        c1, c2 = 0.01**2, 0.03**2
        values.append((2 * mx * my + c1) * (2 * cxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    assert ssim(a, b, mask) == pytest.approx(np.mean(values), abs=1e-12)


def test_a_fit_resembles_its_own_rendering(tiny, monkeypatch):
    """A photo rendered from a fit: the fit shows it, the mean face under the best light does not."""
    monkeypatch.setattr(score_report, "_PICTURE_SIZE", 64)
    pose = jaxlie.SE3.from_rotation_and_translation(jaxlie.SO3.from_x_radians(jnp.pi), jnp.array([0.0, 0.0, 600.0]))
    camera = Pinhole(jnp.full(2, 125.0), jnp.full(2, 32.0), pose, 64, 64)
    identity, albedo = (jnp.asarray(s * np.resize([1.5, -1.0, 2.0, -0.5], n)) for s, n in ((1.0, 6), (2.0, 4)))
    identity, albedo = identity.astype(jnp.float32), albedo.astype(jnp.float32)
    face = tiny.instance(identity, None, albedo)
    bare = Mesh(face.vertices, face.triangles, albedo=face.albedo)  # as the report renders it: compiled once
    shown = linear_to_srgb(jnp.clip(render(bare, camera, ambient_white()).colour, 0, 1))
    photo = Photo(np.rint(255 * np.asarray(shown)).astype(np.uint8))
    K, R, t = camera.to_opencv()
    fit = {"vertices": face.vertices, "albedo": albedo, "light": ambient_white()[None], "K": K[None]}
    fit = {name: np.asarray(a, np.float32) for name, a in {**fit, "R": R[None], "t": t[None]}.items()}
    numbers = image_report(fit, photo, tiny, textured=photo).numbers
    assert numbers["fit_psnr_db"] > max(20, numbers["mean_face_psnr_db"] + 3)
    assert numbers["fit_ssim"] > numbers["mean_face_ssim"] and numbers["fit_textured_ssim"] == pytest.approx(1)
    covered = np.zeros((64, 64), bool)
    covered[:, :32] = True
    half = image_report(fit, photo, tiny, "skin", usable=covered).numbers
    assert 0.4 < half["fit_pixels"] / numbers["fit_pixels"] < 0.6
    with pytest.raises(EvaluationError, match="not in the photo"):
        image_report({**fit, "t": fit["t"] + [[900, 0, 0]]}, photo, tiny)
    with pytest.raises(EvaluationError, match="'ears'.*all, skin"):
        image_report(fit, photo, tiny, "ears")


# ------------------------------------------------------------------------------------------------- uncertainty


def test_bootstrap_intervals_cover():
    """The 90 % interval of a mean of 40 covers the truth in about 90 % of 200 experiments."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        sample = rng.gamma(4.0, 0.5, 40)
        low, high = bootstrap(lambda i, s=sample: float(s[i].mean()), 40, level=0.9, resamples=200)
        assert low < sample.mean() < high
        covered += low < 2.0 < high
    assert 0.82 * 200 <= covered <= 0.95 * 200
    assert np.isnan(bootstrap(lambda i: 0.0, 1)).all()


def test_strata_keep_their_sizes():
    groups = [np.arange(9), np.array([9])]
    low, high = bootstrap(lambda i: float((i == 9).sum()), 10, strata=groups)
    assert low == high == 1


def test_reports_pool_points_and_subjects(scan, face):
    """Two subjects: pooled figures are those of all their points, whatever is resampled."""
    other = dented(face)
    report = mesh_report([(scan, other), (scan, face)], face, refine=False)
    numbers = report.numbers
    single, zero = (scan_to_mesh(scan, mesh, refine=False) for mesh in (other, face))
    both = np.concatenate([single.distance, zero.distance])
    assert numbers["fit_scaled_median_mm"] == pytest.approx(np.median(both), abs=1e-12)
    assert numbers["fit_scaled_std_mm"] == pytest.approx(both.std(), abs=1e-9)
    assert numbers["fit_scaled_subject_median_mm"] == pytest.approx((single.median + zero.median) / 2, abs=1e-12)
    low, high = (numbers[f"fit_scaled_subject_median_mm_{end}"] for end in ("low", "high"))
    assert isinstance(low, float) and isinstance(high, float) and low <= single.median / 2 <= high
    assert "mean face" in report.text and "2 subjects" in report.text


# ------------------------------------------------------------------------------------------ files and command


def test_a_mesh_survives_its_file(tmp_path, face):
    from fitting.export import write_obj

    write_obj(tmp_path / "a.obj", face.vertices, face.triangles)
    vertices, triangles = read_mesh(tmp_path / "a.obj")
    np.testing.assert_allclose(vertices, face.vertices, atol=1e-5)
    np.testing.assert_array_equal(triangles, face.triangles)
    (tmp_path / "b.obj").write_text(
        "v 0 0 0 0.5 0.5 0.5\nv 1 0 0 1 1 1\nv 1 1 0\nv 0 1 0\nf 1/1 2/2 3/3 4/4\nf -4 -3 -1\n"
    )
    vertices, triangles = read_mesh(tmp_path / "b.obj")
    np.testing.assert_array_equal(triangles, [[0, 1, 2], [0, 2, 3], [0, 1, 3]])
    assert vertices.shape == (4, 3)
    (tmp_path / "c.ply").write_text(
        "ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nproperty float y\nproperty float z\n"
        "element face 1\nproperty list uchar int vertex_indices\nend_header\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n"
    )
    assert read_mesh(tmp_path / "c.ply")[1].tolist() == [[0, 1, 2]]


def test_seven_rows_are_nows_landmarks(tmp_path, face):
    np.savetxt(tmp_path / "seven.txt", face.landmarks[[36, 39, 42, 45, 33, 48, 54]])
    read = read_landmarks3d(tmp_path / "seven.txt")
    np.testing.assert_allclose(read[[33, 54]], face.landmarks[[33, 54]])
    assert np.isnan(read).any(axis=1).sum() == 61


@pytest.fixture
def subject(tmp_path, face, head):
    """A scan and a fit of it on disk, as measurement data and `facefit fit` lay them out."""
    mask = np.zeros(len(face.vertices))
    mask[np.unique(face.triangles)] = 1
    mask *= crop(face.vertices, face.landmarks)
    (tmp_path / "scans" / "ann").mkdir(parents=True)
    np.savez(
        tmp_path / "scans" / "ann" / "gt.npz",
        verts=face.vertices,
        tris=face.triangles,
        landmarks3d=face.landmarks,
        face_mask=mask > 0,
        verts_expr=face.vertices[None] * 1.01,
    )
    (tmp_path / "fits" / "ann").mkdir(parents=True)
    other = dented(face)
    arrays = {"vertices": face.vertices * 1.01, "landmarks3d": face.landmarks * 1.01}
    arrays |= {"neutral_vertices": other.vertices, "neutral_landmarks3d": other.landmarks}
    arrays |= {"landmarks2d": np.zeros((1, 68, 2)), "triangles": np.asarray(head.triangles)}
    np.savez(tmp_path / "fits" / "ann" / "fit.npz", **arrays)
    return tmp_path


def facefit(*arguments) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as end:
        main([str(a) for a in arguments])
    assert isinstance(end.value.code, int)
    return end.value.code, out.getvalue(), err.getvalue()


@pytest.fixture
def loaded(head, monkeypatch):
    monkeypatch.setattr(morphable, "load", lambda path=None: head)


def test_the_command_scores_a_folder(subject, loaded, face):
    arguments = ("evaluate", "mesh", subject / "fits", "--scan", subject / "scans", "--json", subject / "out.json")
    code, printed, said = facefit(*arguments, "--regions", "landmarks")
    assert code == 0, said
    numbers = json.loads((subject / "out.json").read_text())
    expected = scan_to_mesh(read_scan(subject / "scans" / "ann" / "gt.npz"), dented(face))
    assert numbers["fit_scaled_median_mm"] == pytest.approx(expected.median, abs=1e-3)
    assert numbers["ann/fit_scaled_landmarks51_mm"] == pytest.approx(expected.landmarks51, abs=1e-3)
    assert numbers["mean_face_metrical_rms_mm"] == pytest.approx(0, abs=1e-6)
    assert all(not isinstance(value, dict | list) for value in numbers.values())
    assert all(word in printed for word in ("mean face", "metrical", "forehead", "no interval", "in mm", "ann"))


def test_the_command_counts_expressions(subject, loaded, face):
    fit, scan = subject / "fits" / "ann", subject / "scans" / "ann" / "gt.npz"
    command = ("evaluate", "mesh", fit, "--scan", scan, "--expression")
    code, _, said = facefit(*command, 1)
    assert code == 2 and "landmarks of expression 1" in said and "--scan-landmarks" in said
    np.save(subject / "marks.npy", face.landmarks * 1.01)
    assert facefit(*command, 1, "--scan-landmarks", subject / "marks.npy", "--json", subject / "e.json")[0] == 0
    assert json.loads((subject / "e.json").read_text())["fit_metrical_rms_mm"] < 1e-6
    code, _, said = facefit(*command, 2)
    assert code == 2 and "expression 2" in said and "expected 1 to 1" in said


BAD = {
    "no scan": (("mesh", "FIT", "--scan", "none.npz"), "none.npz"),
    "triangles counted from 1": (("mesh", "FIT", "--scan", "FROM1"), "counted from 1"),
    "flat vertices": (("mesh", "FIT", "--scan", "FLAT"), "vertices (30,)"),
    "no mask of that name": (("mesh", "FIT", "--scan", "SCAN", "--mask", "ears"), "'ears'"),
    "a subject without a scan": (("mesh", "FITS", "--scan", "EMPTY"), "no scan of ann"),
    "two scans for one fit": (("mesh", "FIT", "--scan", "SCAN", "SCAN"), "1 prediction(s) and 2 scan(s)"),
    "mesh without landmarks": (("mesh", "MESH", "--scan", "SCAN"), "plain.npy"),
    "not a fit": (("truth", "SCAN", "--truth", "SCAN"), "'neutral_vertices'"),
    "no truth": (("landmarks", "FITS", "--truth", "SCAN"), "'names'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused(subject, loaded, case):
    (subject / "empty").mkdir()
    (subject / "plain.obj").write_text("v 0 0 0\nv 1 0 0\nv 1 1 0\nf 1 2 3\n")
    named = {"FIT": subject / "fits" / "ann", "FITS": subject / "fits", "SCAN": subject / "scans" / "ann" / "gt.npz"}
    np.savez(subject / "from1.npz", vertices=np.zeros((3, 3)), triangles=[[1, 2, 3]])
    np.savez(subject / "flat.npz", vertices=np.zeros(30))
    named |= {"FROM1": subject / "from1.npz", "FLAT": subject / "flat.npz"}
    named |= {"EMPTY": subject / "empty", "MESH": subject / "plain.obj"}
    arguments, part = BAD[case]
    code, _, said = facefit("evaluate", *(named.get(a, a) for a in arguments))
    assert code == 2 and said.startswith("facefit: ") and "expected" in said and part in said, said


def test_a_fit_of_another_model_is_refused(subject, tiny):
    with pytest.raises(EvaluationError, match="another model than tiny.*--model"):
        read_prediction(subject / "fits" / "ann", tiny)


def test_truth_is_paired_by_name(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "fits" / name).mkdir(parents=True)
        (tmp_path / "fits" / name / "fit.npz").touch()
        (tmp_path / f"{name}.npz").touch()
    pairs = paired([tmp_path / "fits"], [tmp_path], "truth")
    assert pairs == [(tmp_path / "fits" / name, tmp_path / f"{name}.npz") for name in ("a", "b")]


def test_the_command_scores_synthetic_truth(subject, loaded, head):
    rank = head.shape.rank
    np.savez(subject / "ann.npz", identity=np.zeros(rank, np.float32), vertices=np.asarray(head.mean) * 1.01)
    fits = subject / "fits"
    code, printed, said = facefit("evaluate", "truth", fits, "--truth", subject, "--json", subject / "t.json")
    assert code == 0, said
    numbers = json.loads((subject / "t.json").read_text())
    assert numbers["with_expression_fit_metrical_mean_mm"] == pytest.approx(0, abs=1e-4)
    assert numbers["neutral_mean_face_scaled_mean_mm"] == pytest.approx(0, abs=1e-4)
    assert numbers["neutral_fit_scaled_mean_mm"] > 0.5 and "with expression" in printed


def test_regions_from_a_file_are_of_the_scans_vertices(subject):
    scan = read_scan(subject / "scans" / "ann" / "gt.npz")
    mask = np.zeros(scan.vertex.max() + 1)
    mask[scan.vertex[:40]] = 1
    np.savez(subject / "regions.npz", nose=mask)
    regions = read_regions(subject / "regions.npz", scan)
    assert np.flatnonzero(regions["nose"]).tolist() == list(range(40))
    np.savez(subject / "regions.npz", nose=mask[:10])
    with pytest.raises(EvaluationError, match="nose.*another scan"):
        read_regions(subject / "regions.npz", scan)


def test_json_has_no_constants(tmp_path):
    write_json(tmp_path / "a.json", {"a": float("nan"), "b": 1.5, "c": "mm"})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": None, "b": 1.5, "c": "mm"}


def test_fits_are_read_with_the_jaw_that_the_truth_has(tmp_path):
    seen, fixed = np.random.default_rng(0).normal(size=(2, 1, 68, 2))
    for name, arrays in (("a", {"landmarks2d": fixed, "matched2d": seen}), ("b", {"landmarks2d": fixed})):
        (tmp_path / name / "x").mkdir(parents=True)
        np.savez(tmp_path / name / "x" / "fit.npz", **arrays)
    np.testing.assert_array_equal(read_landmark_predictions(tmp_path / "a")["x"], fixed[0])
    np.testing.assert_array_equal(read_landmark_predictions(tmp_path / "a", "outline")["x"], seen[0])
    np.testing.assert_array_equal(read_landmark_predictions(tmp_path / "b")["x"], fixed[0])
    with pytest.raises(EvaluationError, match="matched2d"):
        read_landmark_predictions(tmp_path / "b", "outline")


# ------------------------------------------------------------------------------------- the project's own scorers


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("name", "mask"), [("s40", "face_mask_core"), ("s49", "face_mask")])
def test_distances_agree_with_the_shared_scorer(shared, face, name, mask):
    scorer, truth = load(shared / "eval" / "eval_mesh.py"), shared / "data" / "ict_dev" / name / "gt.npz"
    expected = scorer.evaluate(truth, face.vertices, face.triangles, face.landmarks, mask=mask)
    scan = read_scan(truth, mask=mask)
    for alignment, scaled in (("scaled", True), ("rigid", False)):
        numbers = scan_to_mesh(scan, face, scaled).numbers
        for theirs, ours in {"lmk51_mean": "landmarks51_mm", "area_median": "area_median_mm", "rms": "rms_mm"}.items():
            assert numbers[ours] == pytest.approx(expected[alignment][theirs], abs=1e-3)
        for key in ("median", "mean", "std", "p90", "area_mean"):
            assert numbers[f"{key}_mm"] == pytest.approx(expected[alignment][key], abs=1e-3)
        assert numbers["scale"] == pytest.approx(expected[alignment]["scale"], abs=1e-5)


def test_landmark_errors_agree_with_the_shared_scorer(shared, tmp_path, loaded, monkeypatch, capsys):
    truth = shared / "data" / "aflw_dev" / "index.npz"
    rng = np.random.default_rng(0)
    with np.load(truth) as file:
        names = [str(n).rsplit(".", 1)[0] for n in file["names"]]
        predictions = {n: p + rng.normal(size=(68, 2)) * 4 for n, p in zip(names, file["pts68_2d"], strict=True)}
    del predictions[names[3]]
    np.savez(tmp_path / "pred.npz", **predictions)
    monkeypatch.setattr(sys, "argv", ["eval_nme.py", "--gt", str(truth), "--pred", str(tmp_path / "pred.npz")])
    capsys.readouterr()
    load(shared / "eval" / "eval_nme.py")
    lines = capsys.readouterr().out.splitlines()[-4:]
    theirs = [[float(line.split(f"NME{n} ")[1].split()[0]) for n in (68, 49)] for line in lines]
    code, _, said = facefit(
        "evaluate", "landmarks", tmp_path / "pred.npz", "--truth", truth, "--json", tmp_path / "n.json"
    )
    assert code == 0, said
    numbers = json.loads((tmp_path / "n.json").read_text())
    labels = ("yaw_0-30", "yaw_30-60", "yaw_60-90", "mean_over_images")
    ours = [[numbers[f"prediction_{label}_nme{n}_percent"] for n in (68, 49)] for label in labels]
    np.testing.assert_allclose(ours, theirs, atol=1e-3)
    bins = [row[0] for row in ours[:3]]
    assert numbers["prediction_mean_of_bins_nme68_percent"] == pytest.approx(np.mean(bins))
    assert numbers["answered"] == 11 and "answered 11/12" in lines[-1]
