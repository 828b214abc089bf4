"""dlib's recogniser: the same numbers as dlib's own, the same alignment, and derivatives that are true."""

import dlib
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dlib_writer import write_network
from PIL import Image

from fitting.detection import DetectorError, dlib_model_folder, face_descriptor
from fitting.dlib_file import DlibFileError
from fitting.identity_network import (
    ALIGNED,
    FILE,
    MEAN_FACE,
    IdentityNetwork,
    chip_matrix,
    chip_taps,
    cut_chip,
    load_identity_network,
    moved_chip,
)

CORNERS = np.array([[0, 0, 1], [150, 0, 1], [0, 150, 1], [150, 150, 1]]).T
describe = jax.jit(lambda network, chip: network.descriptor(chip[None])[0])
cut = jax.jit(cut_chip, static_argnames="taps")


@pytest.fixture(scope="module")
def network():
    return load_identity_network()


@pytest.fixture(scope="module")
def recogniser():
    return dlib.face_recognition_model_v1(str(dlib_model_folder() / FILE))  # pyright: ignore


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The same plan with few channels."""
    path = tmp_path_factory.mktemp("network") / "small.dat"
    write_network(path)
    return load_identity_network(path)


def _agree(network: IdentityNetwork, recogniser, picture: np.ndarray) -> float:
    ours = describe(network, jnp.asarray(picture, jnp.float32))
    return float(np.abs(np.asarray(ours) - recogniser.compute_face_descriptor(picture)).max())


def test_the_bundled_face_is_described_as_by_dlib(network, recogniser, photo, face):
    matrix = chip_matrix(face.landmarks)
    chip = cut(jnp.asarray(photo.pixels, jnp.float32), matrix)
    picture = np.asarray(jnp.clip(jnp.round(chip), 0, 255), np.uint8)
    assert _agree(network, recogniser, picture) < 1e-5
    # dlib's rounding and resampling move the descriptor by 0.01 to 0.1; other people are 0.6 away.
    distance = np.linalg.norm(describe(network, chip) - face_descriptor(photo, face.landmarks))
    assert distance < 0.15


def test_other_photos_are_described_as_by_dlib(network, recogniser, shared):
    paths = sorted((shared / "data" / "photos_dev").glob("*.jpg"))[:10]
    assert len(paths) == 10
    for path in paths:
        picture = np.asarray(Image.open(path).convert("RGB").resize((150, 150)))
        assert _agree(network, recogniser, picture) < 1e-5


def test_a_chip_lies_where_dlib_puts_it(face):
    rng = np.random.default_rng(0)
    for growth, angle in ((1.0, 0.0), (0.5, 0.4), (4.0, -0.7)):
        turn = growth * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        landmarks = (face.landmarks + rng.normal(size=(68, 2))) @ turn.T + [900.0, 700.0]
        points = [dlib.point(*(int(v) for v in np.round(p - 0.5))) for p in landmarks]  # pyright: ignore
        shape = dlib.full_object_detection(dlib.rectangle(0, 0, 9, 9), points)  # pyright: ignore
        details = dlib.get_face_chip_details(shape, 150, 0.25)  # pyright: ignore
        rect = details.rect
        cos, sin = np.cos(details.angle), np.sin(details.angle)
        pixel = (rect.right() - rect.left()) / 149 * np.array([[cos, -sin], [sin, cos]])
        centre = np.array([rect.left() + rect.right(), rect.top() + rect.bottom()]) / 2 + 0.5
        theirs = pixel @ (CORNERS[:2] - 75) + centre[:, None]
        ours = np.asarray(chip_matrix(landmarks)) @ CORNERS
        # A pixel for dlib's rounding, and half a pixel of the chip for the one that it takes from the width.
        assert np.abs(ours - theirs).max() < 1 + 0.5 * np.linalg.norm(pixel[0])


def test_a_chip_moves_with_the_landmarks_and_needs_few(face):
    matrix = np.asarray(chip_matrix(face.landmarks), float)
    turn = 3 * np.array([[np.cos(1), -np.sin(1)], [np.sin(1), np.cos(1)]])
    moved = chip_matrix(face.landmarks @ turn.T + [5.0, -7.0])
    np.testing.assert_allclose(moved, turn @ matrix + [[0, 0, 5.0], [0, 0, -7.0]], rtol=1e-4, atol=2e-2)
    # Landmarks that are a similar picture of the mean face say the same whichever of them are seen.
    ideal = np.full((68, 2), np.nan)
    ideal[ALIGNED] = MEAN_FACE @ turn.T * 40 + 300
    whole = chip_matrix(ideal)
    ideal[30:48] = np.nan
    np.testing.assert_allclose(chip_matrix(ideal), whole, rtol=1e-4, atol=1e-2)
    assert np.isnan(chip_matrix(np.full((68, 2), np.nan))).all()


def test_cutting_is_bilinear_and_black_outside():
    rng = np.random.default_rng(0)
    image = jnp.asarray(rng.uniform(size=(150, 150, 3)), jnp.float32)
    same = jnp.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    np.testing.assert_allclose(cut(image, same), image, atol=1e-6)
    np.testing.assert_allclose(cut(image, same + jnp.array([0, 0, 40.0]))[:, :-40][:-40], image[40:, 40:], atol=1e-6)
    for far in (150.0, 1e9, -1e9):
        assert not cut(image, same + jnp.array([0, 0, far])).any()

    # A plane is the same however it is cut, and the mean of samples that fill a pixel is that of the pixel.
    y, x = np.mgrid[:400, :300] + 0.5
    plane = jnp.asarray(np.stack([x, y], axis=2), jnp.float32)
    matrix = jnp.array([[1.2, -0.5, 80.0], [0.5, 1.2, 30.0]])
    columns, rows = np.meshgrid(np.arange(150) + 0.5, np.arange(150) + 0.5)
    wanted = np.einsum("ij,jrc->rci", np.asarray(matrix), np.stack([columns, rows, np.ones_like(rows)]))
    for taps in (1, 2):
        np.testing.assert_allclose(cut(plane, matrix, taps=taps), wanted, atol=1e-3)
    assert chip_taps(matrix) == 1 and chip_taps(2 * matrix) == 3 and chip_taps(0.1 * matrix) == 1


def test_a_chip_nearby_is_similar(key):
    matrix = jnp.array([[1.2, -0.5, 80.0], [0.5, 1.2, 30.0]])
    np.testing.assert_allclose(moved_chip(matrix, key, 0.0, 0.0, 0.0), matrix, rtol=1e-5)
    moved = jax.vmap(lambda k: moved_chip(matrix, k, shift=0.0))(jax.random.split(key, 8))
    centre = jnp.array([75.0, 75.0, 1.0])
    np.testing.assert_allclose(moved @ centre, jnp.broadcast_to(matrix @ centre, (8, 2)), rtol=1e-5)
    linear = np.asarray(moved)[:, :, :2]
    size = np.linalg.det(linear)[:, None, None]
    np.testing.assert_allclose(linear @ linear.transpose(0, 2, 1), size * np.eye(2), atol=1e-5)
    assert np.std(np.sqrt(size)) > 0.01


def test_stages_are_those_of_the_paper(network):
    shapes = jax.eval_shape(network.features, jax.ShapeDtypeStruct((2, 150, 150, 3), jnp.float32))
    sizes = {name: stage.shape[1:] for name, stage in shapes.items()}
    assert sizes["stem"] == sizes["block3"] == (35, 35, 32) and sizes["block4"] == sizes["block7"] == (17, 17, 64)
    assert sizes["block8"] == (8, 8, 128) and sizes["block11"] == (4, 4, 256) and sizes["block14"] == (2, 2, 256)
    assert sizes["descriptor"] == (128,) and len(sizes) == 16


def test_derivatives_are_true(small):
    """By the picture and by the place it is cut from, in float64, along a direction."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        rows, columns = np.mgrid[:60, :50] / 7.0
        image = jnp.asarray(128 + 60 * np.stack([np.sin(rows), np.cos(columns), np.sin(rows + columns)], axis=2))
        matrix = jnp.array([[0.3, 0.02, 1.0], [-0.02, 0.35, 2.0]], jnp.float64)
        weights = jnp.asarray(rng.normal(size=6))

        def value(image, matrix):
            return small.descriptor(cut_chip(image, matrix)[None])[0] @ weights

        steps = jnp.asarray(rng.normal(size=image.shape)), jnp.asarray(rng.normal(size=(2, 3)) * [0.001, 0.001, 0.1])
        value_of = jax.jit(lambda t: value(image + t * steps[0], matrix + t * steps[1]))
        by_image, by_matrix = jax.jit(jax.grad(value, argnums=(0, 1)))(image, matrix)
        along = jnp.vdot(by_image, steps[0]) + jnp.vdot(by_matrix, steps[1])
        h = 1e-6  # relu and bilinear cells have kinks
        assert by_image.dtype == jnp.float64
        np.testing.assert_allclose((value_of(h) - value_of(-h)) / (2 * h), along, rtol=1e-4)


def test_pictures_of_a_batch_do_not_see_each_other(small):
    chips = jnp.asarray(np.random.default_rng(0).uniform(0, 255, (3, 150, 150, 3)), jnp.float32)
    together = jax.jit(lambda network, chips: network.descriptor(chips))(small, chips)
    for chip, descriptor in zip(chips, together, strict=True):
        np.testing.assert_allclose(describe(small, chip), descriptor, rtol=1e-4, atol=1e-5)


def test_a_network_of_another_plan_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "other.dat"
    monkeypatch.setattr("dlib_writer.HALVING", (3, 7, 11, 13))
    write_network(path)
    with pytest.raises(DlibFileError, match=r"got a convolution .*expected .*pip install"):
        load_identity_network(path)


def test_a_missing_file_says_where_it_comes_from(tmp_path, monkeypatch):
    monkeypatch.setenv("FACEFIT_DLIB_MODELS", str(tmp_path))
    with pytest.raises(DetectorError, match=f"{FILE} in {tmp_path}.*face_recognition_models"):
        load_identity_network()
