"""Mitsuba 3 as the oracle of shading: one diffuse ball under an environment map, path-traced and by `render`."""

import jax.numpy as jnp
import jaxlie
import numpy as np
import pytest
import trimesh

from morphable.mesh import Mesh
from renderer import Pinhole, ambient_white, render
from renderer.light import DirectionalLight, direction_from_angles, radiance, to_environment

mi = pytest.importorskip("mitsuba", reason="the oracle needs Mitsuba 3: pip install mitsuba", exc_type=ImportError)

ALBEDO = (0.7, 0.45, 0.2)
SIDE = 24  # px
TO_MITSUBA = np.diag([-1.0, -1.0, 1.0])  # from camera axes to x left, y up, z forward


@pytest.fixture(scope="module")
def ball():
    """An uneven, convex ball of 100 mm: what its surface reflects does not fall on it again."""
    unit_ball = trimesh.creation.icosphere(subdivisions=4)
    x, y, z = np.asarray(unit_ball.vertices).T
    radius = 100 * (1 + 0.15 * x + 0.1 * y**2 + 0.03 * x * y * z)
    return Mesh(
        vertices=jnp.asarray(radius[:, None] * unit_ball.vertices, jnp.float32),
        triangles=jnp.asarray(unit_ball.faces, jnp.int32),
        albedo=jnp.broadcast_to(jnp.asarray(ALBEDO, jnp.float32), (len(x), 3)),
    )


@pytest.fixture(scope="module")
def light():
    """Of a different bright direction in each channel, and nowhere negative."""
    angles = ((0.6, 0.4), (-0.9, -0.5), (2.4, 0.3))  # right and above, left and below, from behind
    lamps = [DirectionalLight(direction_from_angles(*a), jnp.eye(3)[k]) for k, a in enumerate(angles)]
    return 0.25 * ambient_white() + 0.5 * jnp.sum(jnp.stack([lamp.harmonics() for lamp in lamps]), axis=0)


@pytest.fixture(scope="module")
def camera():
    """Half a profile, and not from the middle: all axes differ."""
    turned = jaxlie.SO3.from_y_radians(0.4) @ jaxlie.SO3.from_x_radians(np.pi + 0.2)
    pose = jaxlie.SE3.from_rotation_and_translation(turned, jnp.array([12.0, -8.0, 700.0]))
    return Pinhole(
        focal=jnp.array([70.0, 70.0]), centre=jnp.array([SIDE / 2, SIDE / 2]), pose=pose, height=SIDE, width=SIDE
    )


def rendered(mesh, camera, light):
    """Colour, coverage and normals of `render`, averaged over 4 x 4 samples of each pixel."""
    picture = render(mesh, camera.resize(4 * SIDE, 4 * SIDE), light)
    samples = [picture.colour, picture.coverage[..., None], picture.normals]
    return [np.asarray(v).reshape(SIDE, 4, SIDE, 4, -1).mean((1, 3)) for v in samples]


def path_traced(mesh, camera, environment, samples):
    """Mitsuba's picture of a mesh of one albedo, in a world whose axes are the camera's."""
    mi.set_variant("scalar_rgb")  # the only one without LLVM or a GPU
    points = np.asarray(camera.to_camera(mesh.vertices)) @ TO_MITSUBA
    normals = np.asarray(mesh.normals @ camera.rotation.T) @ TO_MITSUBA
    properties = mi.Properties()
    properties["bsdf"] = mi.load_dict({"type": "diffuse", "reflectance": {"type": "rgb", "value": list(ALBEDO)}})
    shape = mi.Mesh("ball", len(points), len(mesh.triangles), properties, has_vertex_normals=True)
    parameters = mi.traverse(shape)
    parameters["vertex_positions"] = points.ravel().astype(np.float32)
    parameters["vertex_normals"] = normals.ravel().astype(np.float32)
    parameters["faces"] = np.asarray(mesh.triangles).ravel().astype(np.uint32)
    parameters.update()
    film = {"type": "hdrfilm", "width": camera.width, "height": camera.height, "pixel_format": "rgb"}
    field_of_view = 2 * np.degrees(np.arctan(camera.width / 2 / float(camera.focal[0])))
    scene = mi.load_dict(
        {
            "type": "scene",
            "integrator": {"type": "direct", "emitter_samples": 1, "bsdf_samples": 0},
            "sensor": {
                "type": "perspective",
                "fov": field_of_view,
                "fov_axis": "x",
                "near_clip": 1.0,
                "film": film | {"rfilter": {"type": "box"}},
                "sampler": {"type": "multijitter", "sample_count": samples},
            },
            "ball": shape,
            "environment": {"type": "envmap", "bitmap": mi.Bitmap(np.array(environment, np.float32))},
        }
    )
    return np.array(mi.render(scene, seed=1))


def test_a_diffuse_ball_is_shaded_as_mitsuba_shades_it(ball, camera, light):
    """The whole chain against an integration over the map: axes of map, camera and normals, bands, and albedo."""
    environment = to_environment(light, 512, 1024)
    expected = path_traced(ball, camera, environment, samples=2070)
    colour, coverage, _ = rendered(ball, camera, light)

    def all_around(condition):  # of a pixel and its neighbours
        padded = np.pad(condition, 1, constant_values=False)
        return np.min([padded[1 + j : SIDE + 1 + j, 1 + i : SIDE + 1 + i] for j in (-1, 0, 1) for i in (-1, 0, 1)], 0)

    inside = all_around(coverage[..., 0] == 1)
    assert np.count_nonzero(inside) > 200
    error = np.abs(colour / expected - 1)[inside]
    assert np.median(error) < 2.5e-3 and np.percentile(error, 99) < 1.5e-2  # what is left is Mitsuba's noise
    # As seen past the ball, the map is the light: x to the right, y down.
    outside = all_around(coverage[..., 0] == 0)
    assert np.count_nonzero(outside) > 20
    row, column = np.mgrid[:SIDE, :SIDE] + 0.5
    rays = np.stack([(column - SIDE / 2) / 70, (row - SIDE / 2) / 70, np.ones_like(row)], -1)
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    error = np.abs(np.asarray(radiance(light, jnp.asarray(rays, jnp.float32))) / expected - 1)[outside]
    assert np.max(error) < 2e-2  # Mitsuba puts the map's first and last rows on the poles: half a row off there


def test_a_patch_of_the_map_lights_what_faces_it(ball, camera):
    """A map that is bright around one direction only makes the normals that point there the brightest."""
    for azimuth, elevation in ((0.7, 0.5), (-0.6, -0.4)):
        towards = direction_from_angles(jnp.asarray(azimuth), jnp.asarray(elevation))
        lobe = to_environment(DirectionalLight(towards, jnp.ones(3)).harmonics(), 64, 128)
        picture = path_traced(ball, camera, jnp.maximum(lobe, 0.0) ** 8, samples=64)
        _, coverage, normals = rendered(ball, camera, ambient_white())
        on_ball = np.where(coverage[..., 0] == 1, picture[..., 0], 0.0)
        brightest = np.argsort(-on_ball.ravel())[:5]
        assert np.min(normals.reshape(-1, 3)[brightest] @ np.asarray(towards)) > 0.9
