"""Laws of the embedded head model, read from its file alone, and of the functions that build it."""

import json

import numpy as np
import pytest

from morphable.default_model import albedo, details, expressions, identity, landmarks, mandible, residual, surface, uv
from morphable.default_model.build import HEAD_FILE, MASKS, MAX_BYTES
from morphable.mesh import catmull_clark, triangulate
from morphable.symmetry import mirrored_name

# ---------------------------------------------------------------------------------------------- the file


class Head:
    """The arrays of head.npz in double precision, and their subdivision."""

    def __init__(self):
        with np.load(HEAD_FILE, allow_pickle=False) as file:
            self.arrays = {name: file[name] for name in file.files}
        self.manifest = json.loads(str(self.arrays["manifest"]))
        self.mean = self.arrays["mean"].astype(float)
        self.stencil, self.subquads = catmull_clark(self.arrays["quads"], len(self.mean))
        self.triangles = triangulate(self.subquads)
        self.fine = self.stencil @ self.mean
        self.mirror = self.arrays["mirror"]
        self.joints = dict(zip(self.manifest["joints"], self.arrays["joints_mean"].astype(float), strict=True))

    def rows(self, part: str) -> slice:
        return next(slice(*p["vertices"]) for p in self.manifest["parts"] if p["name"] == part)

    def fine_of(self, part: str) -> np.ndarray:
        span = next(slice(*p["quads"]) for p in self.manifest["parts"] if p["name"] == part)
        return np.unique(self.subquads.reshape(4, -1, 4)[:, span])

    def mask(self, name: str) -> np.ndarray:
        return self.arrays["masks"][:, self.manifest["masks"].index(name)] / 255

    def points(self, name: str) -> np.ndarray:
        vertices, weights = self.arrays[f"{name}_vertices"], self.arrays[f"{name}_weights"]
        return (self.fine[vertices] * weights[..., None]).sum(axis=-2)

    def unit(self, name: str) -> np.ndarray:
        return self.arrays["expression"][:, :, self.manifest["expression"].index(name)].astype(float)


@pytest.fixture(scope="module")
def file():
    return Head()


def reflected(values: np.ndarray, mirror: np.ndarray) -> np.ndarray:
    return values[mirror] * [-1, 1, 1]


def test_file_is_small_and_its_counts_agree(file):
    assert HEAD_FILE.stat().st_size <= MAX_BYTES
    a, coarse, fine = file.arrays, len(file.mean), len(file.fine)
    joints = len(file.manifest["joints"])
    assert a["identity"].shape == (coarse, 3, 100)
    assert a["expression"].shape == (coarse, 3, 52) and len(file.manifest["expression"]) == 52
    assert a["joints_identity"].shape == (joints, 3, 100) and a["skin_weights"].shape == (coarse, joints)
    assert a["albedo_mean"].shape == (fine, 3) and a["albedo_modes"].shape == (fine, 3, len(a["albedo_scale"]))
    assert 40 <= len(a["albedo_scale"]) <= 60
    assert a["masks"].shape == (fine, len(MASKS)) and tuple(file.manifest["masks"]) == MASKS
    assert a["mirror"].shape == (fine,) and a["gp_modes"].shape == (coarse, 33) and a["uv"].shape == (coarse, 2)
    assert a["landmarks_vertices"].shape == (68, 3) and a["contour_weights"].shape == (17, 24, 3)
    for name, values in a.items():
        assert name == "manifest" or np.isfinite(values.astype(float)).all(), name


def test_parts_share_out_rows_and_quads(file):
    for kind, count in (("vertices", len(file.mean)), ("quads", len(file.arrays["quads"]))):
        ends = [p[kind] for p in file.manifest["parts"]]
        assert ends[0][0] == 0 and ends[-1][1] == count
        assert all(a[1] == b[0] for a, b in zip(ends[:-1], ends[1:], strict=True))
    for part in file.manifest["parts"]:
        quads = file.arrays["quads"][slice(*part["quads"])]
        assert np.array_equal(np.unique(quads), np.arange(*part["vertices"]))


def test_skin_is_a_disc_with_a_clean_collar(file):
    span = next(p for p in file.manifest["parts"] if p["name"] == "skin")
    quads = file.arrays["quads"][slice(*span["quads"])]
    edges = np.unique(np.sort(np.concatenate([quads[:, [i, (i + 1) % 4]] for i in range(4)]), axis=1), axis=0)
    assert span["vertices"][1] - len(edges) + len(quads) == 1
    collar = surface.boundary_loop(quads)
    assert len(collar) == 42
    assert np.ptp(file.mean[collar, 1]) < 75  # front lower than nape, but no teeth
    steps = np.abs(np.diff(np.r_[file.mean[collar, 1], file.mean[collar[0], 1]], n=2))
    assert steps.max() < 8


def test_head_and_every_mode_are_mirror_symmetric(file):
    mirror = file.mirror
    assert np.array_equal(mirror[mirror], np.arange(len(mirror)))
    assert np.abs(reflected(file.fine, mirror) - file.fine).max() < 1e-3
    coarse = mirror[: len(file.mean)]
    modes = file.arrays["identity"].astype(float)
    odd = np.abs(modes[coarse] * [[-1], [1], [1]] - modes).max(axis=(0, 1))
    even = np.abs(modes[coarse] * [[-1], [1], [1]] + modes).max(axis=(0, 1))
    assert (np.minimum(odd, even) < 0.02).all() and (np.maximum(odd, even) > 0.1).all()
    for name in MASKS:
        assert np.array_equal(file.mask(name)[mirror], file.mask(name))


def test_components_are_sorted_by_size(file):
    rows = file.rows("skin")
    size = np.sqrt((file.arrays["identity"][rows].astype(float) ** 2).sum(axis=1).mean(axis=0))
    assert size[0] > 2 and size[99] < 0.5
    assert (size[1:] < 1.35 * size[:-1]).all()  # cavities count less in the order than in this size
    total = np.sqrt((size**2).sum())
    assert 5 < total < 11


def test_origin_and_size_are_those_of_a_human_head(file):
    eyes = np.stack([file.joints["eye_left"], file.joints["eye_right"]])
    assert np.allclose(eyes.mean(axis=0), 0, atol=1e-3) and eyes[0, 0] > 0
    marks = file.points("landmarks")
    assert 55 < np.ptp(eyes[:, 0]) < 70
    assert 85 < np.linalg.norm(marks[36] - marks[45]) < 95
    assert 110 < np.linalg.norm(marks[27] - marks[8]) < 130
    skull = file.fine[file.fine_of("skin")]
    skull = skull[skull[:, 1] > 10]
    assert 185 < np.ptp(skull[:, 2]) < 210
    assert 140 < np.ptp(skull[np.abs(skull[:, 1] - 60) < 20, 0]) < 165


def test_eyeballs_are_round_and_centred_on_their_joints_for_everybody(file):
    rng = np.random.default_rng(0)
    c = rng.normal(size=100)
    shape = file.mean + file.arrays["identity"].astype(float) @ c
    joints = file.arrays["joints_mean"] + file.arrays["joints_identity"] @ c
    for part in ("eye_left", "eye_right"):
        ball = file.fine_of(part)
        radius = np.linalg.norm(file.fine[ball] - file.joints[part], axis=1)
        assert np.ptp(radius) < 0.2
        joint = joints[file.manifest["joints"].index(part)]
        radius = np.linalg.norm((file.stencil @ shape)[ball] - joint, axis=1)
        assert np.ptp(radius) < 0.02 * radius.mean() and abs(radius.mean() - 16.5) < 3


def test_iris_looks_straight_ahead(file):
    for part in ("eye_left", "eye_right"):
        ball = file.fine_of(part)
        weight = file.mask("iris")[ball]
        pupil = (file.fine[ball] * weight[:, None]).sum(axis=0) / weight.sum() - file.joints[part]
        assert pupil[2] / np.linalg.norm(pupil) > np.cos(np.radians(0.2))


def test_units_mirror_and_move_what_they_name(file):
    assert file.manifest["expression"] == list(expressions.ARKIT_NAMES) and len(set(expressions.ARKIT_NAMES)) == 52
    mirror = file.mirror[: len(file.mean)]
    for name in expressions.ARKIT_NAMES:
        unit = file.unit(name)
        assert np.abs(unit).max() > 0.5, name
        assert not unit[file.rows("eye_left")].any() and not unit[file.rows("eye_right")].any(), name
        assert np.abs(reflected(unit, mirror) - file.unit(mirrored_name(name))).max() < 0.05, name
    jaw = file.unit("jawOpen")
    assert jaw[file.rows("teeth_lower"), 1].max() < -8
    assert np.abs(jaw[file.rows("teeth_upper")]).max() < 0.05
    assert jaw[file.rows("tongue"), 1].mean() < -8
    blink = np.linalg.norm(file.unit("eyeBlinkLeft"), axis=1)
    assert blink[file.mean[:, 0] < -10].max() < 0.6 and blink[file.mean[:, 0] > 20].max() > 10


def test_gaze_turns_the_eye_the_way_its_name_says(file):
    toward = {
        "Up": (1, 1),
        "Down": (1, -1),
        "InLeft": (0, -1),
        "OutLeft": (0, 1),
        "InRight": (0, 1),
        "OutRight": (0, -1),
    }
    assert len(file.manifest["gaze"]) == 8
    for entry in file.manifest["gaze"]:
        side = "Left" if entry["unit"].endswith("Left") else "Right"
        assert entry["joint"] == f"eye_{side.lower()}"
        word = entry["unit"].removeprefix("eyeLook")
        axis, sign = toward.get(word) or toward[word.removesuffix(side)]
        moved = np.cross(entry["rotation"], [0, 0, 1])  # of the pupil, to first order
        assert sign * moved[axis] > 0.2 and abs(moved[1 - axis]) < 1e-9


def test_skin_weights(file):
    weights = file.arrays["skin_weights"].astype(float)
    assert (weights >= 0).all() and np.allclose(weights.sum(axis=1), 1, atol=2e-3)
    joints = file.manifest["joints"]
    for part, joint in (("eye_left", "eye_left"), ("eye_right", "eye_right"), ("teeth_upper", "head")):
        assert (weights[file.rows(part), joints.index(joint)] == 1).all()
    assert (weights[file.rows("teeth_lower"), joints.index("jaw")] == 1).all()
    parents = file.manifest["joint_parents"]
    assert [joints[p] if p >= 0 else None for p in parents] == [None, "neck", "head", "head", "head"]


def test_no_triangle_is_flipped_in_the_chart_and_charts_do_not_overlap(file):
    coarse = file.arrays["uv"].astype(float)
    for coordinates, quads in ((coarse, file.arrays["quads"]), (file.stencil @ coarse, file.subquads)):
        assert coordinates.min() >= 0 and coordinates.max() <= 1
        assert (uv.signed_areas(coordinates * [1, -1], triangulate(quads)) > 0).all()
    # Inside its rim a chart without flips is one-to-one; the small charts lie outside the skin's superellipse.
    centred = 2 * coarse - 1
    outside = (np.abs(centred) ** uv.SUPERELLIPSE).sum(axis=1)
    skin = file.rows("skin")
    assert outside[skin].max() < 1 + 1e-5
    assert outside[skin.stop :].min() > 1


def test_most_texels_are_on_the_face(file):
    coordinates = file.stencil @ file.arrays["uv"].astype(float)
    on_face = file.mask("face")[file.triangles].mean(axis=1) > 0.5
    share = uv.signed_areas(coordinates * [1, -1], file.triangles[on_face]).sum()
    assert share > 0.4


def test_landmarks_border_and_fans_lie_on_triangles_and_mirror(file):
    triangles = {frozenset(t) for t in file.triangles.tolist()}
    for name in ("landmarks", "contour", "mandible"):
        vertices, weights = file.arrays[f"{name}_vertices"], file.arrays[f"{name}_weights"]
        assert all(frozenset(t) in triangles for t in vertices.reshape(-1, 3).tolist())
        assert (weights >= -1e-6).all() and np.allclose(weights.sum(axis=-1), 1, atol=1e-5)
    marks = file.points("landmarks")
    assert np.abs(marks[landmarks.MIRROR68] * [-1, 1, 1] - marks).max() < 0.2
    assert marks[54, 0] > 0 > marks[48, 0]  # 48 to 54 run from the subject's right to the left
    assert marks[30, 2] == marks[:, 2].max() and marks[8, 1] == marks[:, 1].min()
    fans = file.points("contour")
    assert np.abs(fans[::-1] * [-1, 1, 1] - fans).max() < 1e-2
    nearest = np.linalg.norm(fans - marks[:17, None], axis=2).min(axis=1)
    assert nearest.max() < 5.0  # a ray every 4 degrees
    assert np.linalg.norm(np.diff(fans, axis=1), axis=2).max() < 40


def test_the_mandible_runs_behind_the_jaw_that_is_seen_from_the_front(file):
    seen, border = file.points("landmarks")[:17], file.points("mandible")
    assert np.abs(border[::-1] * [-1, 1, 1] - border).max() < 1e-2
    assert (border[8] == pytest.approx(seen[8], abs=0.01)) and border[:9, 0] == pytest.approx(np.sort(border[:9, 0]))
    steps = np.linalg.norm(np.diff(border, axis=0), axis=1)
    assert 0.7 < steps.min() / np.median(steps) and steps.max() / np.median(steps) < 1.1
    # From the front the lines of both are one, to within the width of the line; from the side they lie far apart.
    from_front = np.linalg.norm(border[:, None, :2] - _along(seen)[None, :, :2], axis=2).min(axis=1)
    from_side = np.linalg.norm(border[:, None, 1:] - _along(seen)[None, :, 1:], axis=2).min(axis=1)
    assert from_front.max() < 6 and from_side[3:6].min() > 10
    assert (border[3:6, 2] < seen[3:6, 2] - 8).all()


def _along(line):
    """A line of points, filled up to 32 times as many."""
    at = np.linspace(0, len(line) - 1, 32 * len(line))
    return np.column_stack([np.interp(at, range(len(line)), line[:, k]) for k in range(3)])


def test_the_border_is_found_again_on_the_built_surface(file):
    marks, ears = file.points("landmarks"), file.mask("ears") >= 0.3
    skin = np.zeros(len(file.fine), bool)
    skin[file.fine_of("skin")] = True
    corners, weights = mandible.mandible_border(
        file.fine, file.triangles, file.arrays["mirror"], marks[8], skin & (file.mask("interior") < 0.5), ears
    )
    again = (file.fine[corners] * weights[..., None]).sum(axis=1)
    assert np.abs(again - file.points("mandible")).max() < 0.5


def test_albedo_is_a_colour_and_regions_look_like_what_they_are(file):
    mean = file.arrays["albedo_mean"].astype(float)
    modes = file.arrays["albedo_modes"].astype(float) * file.arrays["albedo_scale"]
    sample = mean[:, :, None] + modes @ np.random.default_rng(0).normal(size=(modes.shape[2], 8))
    assert 0 < mean.min() and mean.max() < 1
    assert ((sample < 0) | (sample > 1)).mean() < 0.01
    assert (np.diff(np.abs(modes).max(axis=(0, 1))) < 0.2).all()

    def colour(name):
        weight = file.mask(name)
        return (mean * weight[:, None]).sum(axis=0) / weight.sum()

    face, lips, brows, iris, sclera = map(colour, ("face", "lips", "brows", "iris", "sclera"))
    assert lips[0] / lips[1] > face[0] / face[1] > 1
    assert brows.mean() < face.mean() - 0.08 and iris.mean() < sclera.mean() - 0.2
    tone = np.abs(modes[file.mask("face") > 0.5]).mean(axis=(0, 1))
    assert tone[0] == tone.max()


def test_masks_sit_on_their_parts(file):
    eyes = np.zeros(len(file.fine), bool)
    eyes[np.r_[file.fine_of("eye_left"), file.fine_of("eye_right")]] = True
    assert (file.mask("sclera") + file.mask("iris"))[~eyes].max() == 0
    assert np.allclose((file.mask("sclera") + file.mask("iris"))[eyes], 1, atol=0.01)
    assert file.mask("face")[eyes].max() == 0
    for name in MASKS:
        assert file.mask(name).max() > 0.9, name
    assert (file.mask("face") * file.mask("interior")).max() < 0.3
    brows = file.fine[file.mask("brows") > 0.5]
    marks = file.points("landmarks")
    assert marks[36:48, 1].max() < brows[:, 1].min() and brows[:, 1].max() < marks[17:27, 1].max() + 6


def test_residual_modes_are_smooth_and_rigid_on_rigid_parts(file):
    modes = file.arrays["gp_modes"].astype(float)
    for part in ("eye_left", "eye_right", "teeth_upper", "tongue"):
        assert np.ptp(modes[file.rows(part)], axis=0).max() == 0
    variance = (modes**2).sum(axis=1)
    whole = sum(sigma**2 for sigma, _ in residual.KERNELS)
    assert variance.max() <= 1.01 * whole
    nose = file.arrays["landmarks_vertices"][30, 0]
    assert nose < len(modes) and variance[nose] > 0.8 * whole


# ---------------------------------------------------------------------------------------------- the builder's laws


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def grid_quads(rows: int, columns: int, wrap: bool = False) -> np.ndarray:
    """Quads of a grid of vertices; `wrap` closes the columns into a tube."""
    last = columns if wrap else columns - 1
    return np.array(
        [
            [
                i * columns + j,
                i * columns + (j + 1) % columns,
                (i + 1) * columns + (j + 1) % columns,
                (i + 1) * columns + j,
            ]
            for i in range(rows - 1)
            for j in range(last)
        ]
    )


def test_edge_loop_goes_round_a_tube_and_refuses_an_end():
    quads = grid_quads(4, 6, wrap=True)
    assert surface.edge_loop(quads, 6, 7) == [6, 7, 8, 9, 10, 11]
    with pytest.raises(ValueError, match="stopped at vertex"):
        surface.edge_loop(quads, 6, 12)


def test_boundary_loop_runs_with_the_quads():
    loop = surface.boundary_loop(grid_quads(3, 3)).tolist()
    assert loop == [0, 1, 2, 5, 8, 7, 6, 3]
    with pytest.raises(ValueError, match="found more"):
        surface.boundary_loop(grid_quads(3, 6, wrap=True))


def test_openness_is_one_outside_a_ball_and_zero_inside():
    directions = surface.sphere_directions(32)
    assert np.allclose(directions.sum(axis=0)[0], 0) and np.allclose(np.linalg.norm(directions, axis=1), 1)
    angle, height = np.linspace(0, 2 * np.pi, 25)[:-1], np.linspace(-0.98, 0.98, 15)
    ring = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    ball = 20 * np.concatenate([np.c_[ring * np.sqrt(1 - h * h), np.full(24, h)] for h in height])
    triangles = triangulate(grid_quads(15, 24, wrap=True))
    assert surface.openness(ball, triangles, directions).min() > 0.9
    inside_out = surface.openness(ball, triangles[:, ::-1], directions)
    assert np.median(inside_out) < 0.05


def test_sliders_pair_opposites_and_keep_singles():
    sliders = identity.pair_sliders(
        ["nose/nose-hump-decr", "nose/nose-hump-incr", "nose/nose-trans-in", "nose/nose-trans-out", "head/head-oval"]
    )
    assert [s.name for s in sliders] == ["nose/nose-hump decr|incr", "nose/nose-trans in|out", "head/head-oval"]
    assert sliders[0].sigma == 0.40 and sliders[1].sigma == 0.07 and sliders[2].sigma == identity.SIGMA["head"]
    assert sliders[2].negative is None


def test_rigid_alignment_undoes_rigid_motion(rng):
    shape = rng.normal(size=(30, 3)) * 50
    q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    q *= np.linalg.det(q)
    moved = shape @ q + [3.0, -2.0, 9.0]
    assert np.allclose(identity.align_rigidly(moved[None], shape, np.ones(30))[0], shape)
    scale, rotation, translation = identity.similarity(shape, 1.3 * moved)
    assert np.isclose(scale, 1.3) and np.allclose(scale * shape @ rotation.T + translation, 1.3 * moved)


def symmetric_points(rng, pairs: int = 12):
    left = rng.normal(size=(pairs, 3)) * 30 + [40, 0, 0]
    points = np.concatenate([left, left * [-1, 1, 1]])
    return points, np.r_[np.arange(pairs, 2 * pairs), np.arange(pairs)]


def test_components_reproduce_the_covariance_of_shapes_and_their_mirror_images(rng):
    points, mirror = symmetric_points(rng, 4)
    shapes = points + rng.normal(size=(200, 8, 3))
    basis, variances = identity.principal_components(shapes, mirror, np.ones(8), 24)
    both = np.concatenate([shapes, identity.reflect(shapes, mirror)]).reshape(400, -1)
    flat = basis.modes.reshape(24, -1)
    assert np.allclose(flat.T @ flat, np.cov(both.T, bias=True))
    assert np.allclose(basis.mean, identity.reflect(basis.mean, mirror))
    for mode, parity in zip(basis.modes, basis.parity, strict=True):
        assert np.allclose(identity.reflect(mode, mirror), parity * mode)
    assert np.isclose(variances.sum(), np.trace(flat.T @ flat))


def test_calibration_leaves_a_calibrated_model_alone_and_finds_a_moved_one(rng):
    points, _ = symmetric_points(rng)
    modes = rng.normal(size=(6, 24, 3)) * 4
    loadings = modes.reshape(6, -1)
    scale, m, s = identity.calibrate(points, modes, points, loadings.T @ loadings)
    assert np.isclose(scale, 1) and np.abs(m).max() < 1e-9 and np.abs(s - np.eye(6)).max() < 0.05

    true_m, true_s = rng.normal(size=6) * 0.5, np.diag(rng.uniform(0.3, 2.0, 6))
    target = 1.1 * (points + np.tensordot(true_m, modes, 1)) + [5, 0, -3]
    covariance = 1.1**2 * loadings.T @ true_s @ loadings
    _, m, s = identity.calibrate(points, modes, target, covariance, steps=12)
    grown = identity.true_scale(points, modes, m, target)
    placed = points + np.tensordot(m, modes, 1)
    _, rotation, translation = identity.similarity(placed, target)
    error = np.linalg.norm(grown * placed @ rotation.T + translation - target, axis=1).mean()
    before = identity.similarity(points, target)
    start = np.linalg.norm(before[0] * points @ before[1].T + before[2] - target, axis=1).mean()
    assert error < 0.25 * start
    assert np.corrcoef(np.diag(s), np.diag(true_s))[0, 1] > 0.9


def test_whitening_keeps_the_distribution(rng):
    points, mirror = symmetric_points(rng, 4)
    shapes = points + rng.normal(size=(100, 8, 3))
    basis, _ = identity.principal_components(shapes, mirror, np.ones(8), 10)
    root = rng.normal(size=(10, 10))
    s = root @ root.T * (basis.parity[:, None] == basis.parity)
    m = rng.normal(size=10) * (basis.parity == 1)
    white = identity.whiten(basis, 1.2, m, s, np.ones(8))
    before, after = basis.modes.reshape(10, -1), white.modes.reshape(10, -1)
    assert np.allclose(after.T @ after, 1.2**2 * before.T @ s @ before)
    assert np.allclose(white.mean, 1.2 * (basis.mean + np.tensordot(m, basis.modes, 1)))
    sizes = (after**2).sum(axis=1)
    assert (np.diff(sizes) <= 1e-9).all()
    for mode, parity in zip(white.modes, white.parity, strict=True):
        assert np.allclose(identity.reflect(mode, mirror), parity * mode)


def test_shortening_the_skull_is_its_own_linearisation(rng):
    points, _ = symmetric_points(rng)
    modes = rng.normal(size=(2, 24, 3))
    basis = identity.ShapeBasis(points, modes, np.ones(2, int))
    short = identity.shorten_skull(basis, -5.0)
    front = points[:, 2] > -5
    assert np.array_equal(short.mean[front], points[front]) and np.array_equal(short.modes[:, front], modes[:, front])
    step = 1e-5
    moved = identity.ShapeBasis(points + step * modes[0], modes, basis.parity)
    slope = (identity.shorten_skull(moved, -5.0).mean - short.mean) / step
    assert np.allclose(slope, short.modes[0], atol=1e-4)


def plane_topology() -> surface.HeadTopology:
    quads = grid_quads(5, 5)
    stencil, subquads = catmull_clark(quads, 25)
    mirror = np.array([5 * i + 4 - j for i in range(5) for j in range(5)])
    return surface.HeadTopology(
        np.arange(25), quads, {"skin": slice(0, 25)}, {"skin": slice(0, 16)}, mirror, stencil, subquads
    )


def test_subdivided_points_stay_in_place_inside_a_flat_grid(rng):
    topology = plane_topology()
    flat = np.array([[j - 2.0, i - 2.0, 0.0] for i in range(5) for j in range(5)])
    fine = topology.stencil @ flat
    inner = np.array([topology.quads[q] for q in (5, 6, 9, 10)])  # Catmull-Clark moves the border
    corners = np.array([q[rng.permutation(4)[:3]] for q in inner.repeat(10, axis=0)])
    weights = rng.dirichlet(np.ones(3), size=len(corners))
    vertices, fine_weights = landmarks.subdivide_points(topology, corners, weights)
    assert np.allclose(fine_weights.sum(axis=1), 1) and fine_weights.min() > -1e-12
    before = (flat[corners] * weights[..., None]).sum(axis=1)
    assert np.allclose((fine[vertices] * fine_weights[..., None]).sum(axis=1), before)


def test_submirror_mirrors_the_subdivided_surface():
    topology = plane_topology()
    flat = np.array([[j - 2.0, i - 2.0, 0.1 * i * i] for i in range(5) for j in range(5)])
    fine = topology.stencil @ flat
    assert np.allclose(fine[topology.submirror()] * [-1, 1, 1], fine)


def test_rays_hit_the_first_triangle_they_meet():
    vertices = np.array([[-9.0, -9, 2], [9, -9, 2], [0, 9, 2], [-9, -9, 5], [9, -9, 5], [0, 9, 5]])
    triangles = np.array([[3, 4, 5], [0, 1, 2]])
    directions = np.array([[0.0, 0, 1], [0.2, 0.1, 1], [0, 0, -1]])
    hit, weights = landmarks.first_hits(np.zeros(3), directions, vertices, triangles)
    assert hit.tolist() == [1, 1, -1]
    assert np.allclose((vertices[triangles[1]] * weights[1][:, None]).sum(axis=0), [0.4, 0.2, 2])


def test_landmark_table_names_each_of_the_68_once():
    vertices, weights = landmarks.read_table()
    assert vertices.shape == (68, 3) and np.allclose(weights.sum(axis=1), 1)
    assert np.array_equal(np.sort(landmarks.MIRROR68), np.arange(68))
    assert np.array_equal(landmarks.MIRROR68[landmarks.MIRROR68], np.arange(68))


def test_tutte_keeps_the_side_of_every_triangle():
    quads = grid_quads(9, 9)
    x, y = np.meshgrid(np.linspace(-1, 1, 9), np.linspace(-1, 1, 9))
    bump = np.stack([x, y, 1.5 * np.exp(-3 * (x**2 + y**2))], axis=-1).reshape(-1, 3)
    rim = surface.boundary_loop(quads)
    circle = uv.rim_on_superellipse(bump[rim], exponent=2.0)
    assert np.allclose(np.linalg.norm(circle, axis=1), 1)
    triangles = uv.corner_triangles(quads)
    chart = uv.tutte(len(bump), triangles, rim, circle, bump)
    assert uv.signed_areas(chart, triangles)[:-4].min() > -1e-12  # the square's corners lie flat on the circle
    assert uv.signed_areas(chart, triangulate(quads)).sum() == pytest.approx(np.pi, rel=0.02)


def test_polishing_flattens_a_flat_sheet_back_into_itself(rng):
    quads = grid_quads(7, 7)
    triangles = uv.corner_triangles(quads)
    x, y = np.meshgrid(np.linspace(-1, 1, 7), np.linspace(-1, 1, 7))
    sheet = np.stack([x, y], axis=-1).reshape(-1, 2)
    rim = surface.boundary_loop(quads)
    start = sheet + rng.uniform(-0.08, 0.08, size=sheet.shape)
    start[rim] = sheet[rim]
    ones = np.ones(len(triangles))
    tilted = np.c_[sheet[:, 0], 0.6 * sheet[:, 1], 0.8 * sheet[:, 1]]
    assert np.allclose(uv.polish(start, tilted, triangles, ones, ones, rim), sheet, atol=2e-3)
    with pytest.raises(ValueError, match="flipped"):
        uv.polish(start[:, ::-1], tilted, triangles, ones, ones, rim)


def test_melanin_darkens_and_blood_reddens():
    melanin = np.linspace(*albedo.MELANIN_RANGE, 12)
    skin = albedo.skin_colour(melanin, np.full(12, albedo.BLOOD))
    assert (np.diff(skin, axis=0) < 0).all() and skin.max() < 1 and skin.min() > 0
    assert (skin[:, 0] > skin[:, 1]).all() and (skin[:, 1] > skin[:, 2]).all()
    flushed = albedo.skin_colour(melanin, np.full(12, 3 * albedo.BLOOD))
    assert (flushed[:, 0] / flushed[:, 1] > skin[:, 0] / skin[:, 1]).all()
    table = albedo.SkinTable()(np.log(melanin), np.full(12, np.log(albedo.BLOOD)))
    assert np.abs(table - skin).max() < 2e-3


def test_light_and_dark_skin_have_the_colours_the_constants_were_fitted_to():
    def lab(linear):
        xyz = linear @ np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]).T
        f = np.cbrt(xyz / [0.9505, 1.0, 1.089])
        return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)

    ramp = lab(albedo.skin_colour(np.geomspace(*albedo.MELANIN_RANGE, 200), np.full(200, albedo.BLOOD)))
    for target in ((62.5, 10.5, 17.0), (55, 12, 19), (45, 12, 17.5), (37, 10.5, 14)):
        nearest = np.linalg.norm(ramp - target, axis=1).min()
        assert nearest < 4.0, (target, nearest)


def test_srgb_coding_is_its_own_inverse():
    x = np.linspace(0, 1, 101)
    assert np.allclose(albedo.decode_srgb(albedo.encode_srgb(x)), x, atol=1e-6)


def test_albedo_basis_reproduces_its_samples_up_to_rounding(rng):
    mirror = np.array([1, 0, 3, 2])
    samples = rng.uniform(0.2, 0.8, size=(6, 4, 3))
    basis = albedo.albedo_basis(samples.astype(np.float32), np.ones(4), mirror, count=12)
    encoded = albedo.encode_srgb(samples)
    modes = basis.modes * basis.scale[:, None, None]
    flat, deviation = modes.reshape(12, -1), (encoded - basis.mean).reshape(6, -1)
    reached = np.linalg.lstsq(flat.T, deviation.T, rcond=None)[0]
    assert np.abs(flat.T @ reached - deviation.T).max() < 0.02
    assert basis.modes.dtype == np.int8 and np.isclose(basis.explained[-1], 1)


def test_lashes_form_a_grid_and_shrink_to_their_roots():
    quads = grid_quads(3, 5)
    points = np.array([[j, 0.2 * i, 1.0 + i] for i in range(3) for j in range(5)], float)
    grid = details.lash_grid(quads, points, np.array([2.0, 0, 0]))
    assert grid.shape == (3, 5) and set(grid[0]) == {0, 1, 2, 3, 4}
    matrix = details.lash_matrix([grid], 15)
    short = matrix @ points
    assert np.allclose(matrix.sum(axis=1), 1)
    assert np.allclose(short[grid] - points[grid[0]], details.LASH_LENGTH * (points[grid] - points[grid[0]]))
    assert np.allclose(details.lash_tips([grid], 15)[grid], [[0.0] * 5, [0.5] * 5, [1.0] * 5])


def test_residual_modes_reproduce_the_kernel(rng):
    points = rng.normal(size=(60, 3)) * 25
    modes = residual.residual_modes(points, {"skin": slice(0, 60)}, np.zeros(3), count=40)
    weight = residual.face_weight(points, np.zeros(3))
    kernel = residual.kernel(points, points, weight, weight)
    assert np.abs(modes @ modes.T - kernel).max() < 0.35 * kernel.max()
    assert np.trace(modes @ modes.T) > 0.95 * np.trace(kernel)
