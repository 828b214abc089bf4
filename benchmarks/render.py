"""What rendering costs, and how exact it is: `python -m benchmarks render [--repeats 15] [--json FILE]`.

Needs the extra `benchmarks` (numba; open3d, which needs the system package libusb-1.0-0). Times are medians of process
CPU time over interleaved repeats; the table's ratios travel between machines, times do not. The mesh is a bumpy ball
that covers 44 % of the picture, as a head does. `baseline_render.json` beside this file is a run to compare with.

Visibility is measured first, beside two z-buffers in numba (`zbuffer.py`: one as fast as we can write it, one as most
face code has it), then open3d's; all on one thread: threads that keep spinning after other work would be counted with
it. Each is called twice and the second call counts, so that caches hold its own data.

The flat object that --json writes holds, for every case, `NAME_cpu_ms`, `NAME_wall_ms` and `NAME_first_call_s` (which
includes compilation), and the ratios and errors that are explained where they are computed.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxlie
import numpy as np

import morphable
from benchmarks.zbuffer import textbook_zbuffer, zbuffer
from morphable.mesh import Mesh
from renderer import (
    Pinhole,
    barycentrics,
    edge_table,
    frontal,
    interpolate,
    rasterize,
    render,
    soft_render,
    unwrap,
)

BASELINE = Path(__file__).with_name("baseline_render.json")
SIZES = {"5k": 5_000, "10k": 10_000, "25k": 25_000, "50k": 50_000}


def ball(triangle_count: int) -> Mesh:
    """A closed ball with bumps, radius about 100 mm, in nearly equal triangles, with uv and colours."""
    rows = round((triangle_count / 4) ** 0.5)
    columns = 2 * rows
    u, v = np.meshgrid(np.linspace(0, 1, columns + 1), np.linspace(0, 1, rows + 1))
    around, down = (u - 0.5) * 2 * np.pi, v * np.pi
    radius = 100 + 5 * np.sin(3 * around + 1) * np.sin(4 * down) * np.sin(down)
    points = [np.sin(around) * np.sin(down), np.cos(down), np.cos(around) * np.sin(down)]
    i = np.arange(rows * (columns + 1)).reshape(rows, columns + 1)[:, :-1].ravel()
    below = i + columns + 1
    triangles = np.concatenate([np.stack([i, below, below + 1], 1), np.stack([i, below + 1, i + 1], 1)])
    vertices = (radius[..., None] * np.stack(points, -1)).reshape(-1, 3)
    return Mesh(
        vertices=jnp.asarray(vertices, jnp.float32),
        triangles=jnp.asarray(np.random.default_rng(0).permutation(triangles), jnp.int32),
        uv=jnp.asarray(np.stack([u.ravel(), v.ravel()], 1), jnp.float32),
        albedo=jnp.asarray(0.5 + 0.3 * np.sin(vertices / 20), jnp.float32),
    )


def camera_of(size: int, zoom: float = 1.0) -> Pinhole:
    """A camera in which the ball covers about half of a square picture."""
    turn = jaxlie.SO3.from_x_radians(np.pi) @ jaxlie.SO3.from_y_radians(0.3)
    return Pinhole(
        focal=jnp.full(2, 2.2 * size * zoom),
        centre=jnp.full(2, size / 2),
        pose=jaxlie.SE3.from_rotation_and_translation(turn, jnp.array([0.0, 0.0, 600.0])),
        height=size,
        width=size,
    )


class Scene:
    """A mesh as a camera sees it: the arguments of `rasterize` on the device, and as NumPy for the others."""

    def __init__(self, mesh: Mesh, camera: Pinhole):
        self.mesh, self.camera = mesh, camera
        self.pixels, self.depth = camera.project(mesh.vertices), camera.to_camera(mesh.vertices)[:, 2]
        self.arrays = [np.asarray(a) for a in (self.pixels, self.depth, mesh.triangles)]
        height, width, near = camera.height, camera.width, camera.near
        one_thread = {"xla_cpu_multi_thread_eigen": False} if jax.default_backend() == "cpu" else None
        draw = jax.jit(lambda p, d, t: rasterize(p, d, t, height, width, near=near), compiler_options=one_thread)
        self.ours = lambda: draw(self.pixels, self.depth, mesh.triangles)
        self.numba = lambda: zbuffer(*self.arrays, height, width)
        self.textbook = lambda: textbook_zbuffer(*self.arrays, height, width)

    def open3d(self):
        """Builds the ray caster's tree and casts a ray through each pixel, as a mesh that changes needs it."""
        import open3d

        K, R, t = (np.asarray(a, np.float64) for a in self.camera.to_opencv())
        extrinsic = np.eye(4)
        extrinsic[:3, :3], extrinsic[:3, 3] = R, t
        vertices = open3d.core.Tensor(np.asarray(self.mesh.vertices, np.float32))
        triangles = open3d.core.Tensor(np.asarray(self.mesh.triangles).astype(np.uint32))

        def run():
            scene = open3d.t.geometry.RaycastingScene(nthreads=1)
            scene.add_triangles(vertices, triangles)
            rays = scene.create_rays_pinhole(K, extrinsic, self.camera.width, self.camera.height)
            return scene.cast_rays(rays)["primitive_ids"].numpy()

        return run


def visibility_scenes() -> dict[str, Scene]:
    scenes = {f"{n}_{size}": Scene(ball(SIZES[n]), camera_of(size)) for n in SIZES for size in (256, 512)}
    scenes["10k_256_close"] = Scene(ball(10_000), camera_of(256, zoom=4.0))
    return scenes


def cases(scenes: dict[str, Scene]) -> dict:
    """Name -> function without arguments that starts the work and returns its arrays."""
    light, found = frontal(), {}
    scene = scenes["25k_256"]
    mesh, camera, edges = scene.mesh, scene.camera, edge_table(scene.mesh.triangles, scene.mesh.vertices)
    target = jnp.asarray(np.random.default_rng(0).uniform(size=(256, 256, 3)), jnp.float32)

    def energy(vertices, albedo, edges):
        moved = eqx.tree_at(lambda m: (m.vertices, m.albedo), mesh, (vertices, albedo))
        return jnp.sum((render(moved, camera, light, edges=edges).colour - target) ** 2)

    both_ways = eqx.filter_jit(jax.value_and_grad(energy, (0, 1)))
    found["deferred_25k_256"] = lambda: render(mesh, camera, light)
    found["deferred_both_ways_25k_256"] = lambda: both_ways(mesh.vertices, mesh.albedo, None)
    found["antialias_25k_256"] = lambda: render(mesh, camera, light, edges=edges)
    found["antialias_both_ways_25k_256"] = lambda: both_ways(mesh.vertices, mesh.albedo, edges)

    ids = scene.ours()

    def given_ids(vertices, albedo):
        weights = barycentrics(camera.project(vertices), camera.to_camera(vertices)[:, 2], mesh.triangles, ids)
        return jnp.sum((interpolate(albedo, mesh.triangles, ids, weights) - target) ** 2)

    attributes = jax.jit(jax.value_and_grad(given_ids, (0, 1)))
    found["interpolate_both_ways_25k_256"] = lambda: attributes(mesh.vertices, mesh.albedo)

    small, small_camera, small_target = ball(10_000), camera_of(224), target[:224, :224]
    # PyTorch3D's and SoftRas' usual sigma, 1e-4 of squared NDC units.
    sigma = 1e-4 * (224 / 2) ** 2

    def soft_energy(vertices, albedo):
        moved = eqx.tree_at(lambda m: (m.vertices, m.albedo), small, (vertices, albedo))
        picture = soft_render(moved, small_camera, light, sigma=sigma, gamma=1e-4, count=10)
        return jnp.sum((picture.colour - small_target) ** 2)

    soft = jax.jit(jax.value_and_grad(soft_energy, (0, 1)))
    found["soft_10k_224_k10"] = lambda: soft_render(small, small_camera, light, sigma=sigma, gamma=1e-4, count=10)
    found["soft_both_ways_10k_224_k10"] = lambda: soft(small.vertices, small.albedo)

    batch = jnp.stack([mesh.vertices * (1 + 0.01 * k) for k in range(16)])
    one = lambda v: render(eqx.tree_at(lambda m: m.vertices, mesh, v), camera, light).colour  # noqa: E731
    mapped, batched = jax.jit(lambda b: jax.lax.map(one, b)), jax.jit(jax.vmap(one))
    found["deferred_map_of_16_25k_256"] = lambda: mapped(batch)
    found["deferred_vmap_of_16_25k_256"] = lambda: batched(batch)

    texture = jnp.asarray(np.random.default_rng(1).uniform(size=(1024, 1024, 3)), jnp.float32)
    large, large_camera = scenes["50k_512"].mesh, camera_of(1024)
    found["textured_50k_1024"] = lambda: render(large, large_camera, light, texture)
    found["unwrap_50k_1024"] = lambda: unwrap(texture, large, large_camera, 1024)
    return found


def measure(runs: dict, repeats: int) -> dict[str, dict[str, float]]:
    """Medians of wall and CPU time per case, and the seconds that its first call took."""
    first, wall, cpu = {}, {name: [] for name in runs}, {name: [] for name in runs}
    for name, run in runs.items():
        start = time.perf_counter()
        jax.block_until_ready(eqx.filter(run(), eqx.is_array))
        first[name] = time.perf_counter() - start
    for _ in range(repeats):
        for name, run in runs.items():
            jax.block_until_ready(eqx.filter(run(), eqx.is_array))
            start, start_cpu = time.perf_counter(), time.process_time()
            jax.block_until_ready(eqx.filter(run(), eqx.is_array))
            wall[name].append(1e3 * (time.perf_counter() - start))
            cpu[name].append(1e3 * (time.process_time() - start_cpu))
    return {
        name: {
            "cpu_ms": statistics.median(cpu[name]),
            "wall_ms": statistics.median(wall[name]),
            "first_call_s": first[name],
        }
        for name in runs
    }


def id_mismatches(scenes: dict[str, Scene]) -> dict[str, int]:
    """Pixels at which ours and the numba z-buffer see different triangles, over all scenes and these besides."""
    others = dict(scenes)
    # 40 px triangles; a real head, whose lids, lips and lashes lie closely behind each other.
    others["500_256"] = Scene(ball(500), camera_of(256, zoom=1.5))
    head = morphable.load()
    turn = jaxlie.SO3.from_x_radians(np.pi) @ jaxlie.SO3.from_y_radians(0.3)
    pose = jaxlie.SE3.from_rotation_and_translation(turn, jnp.array([0.0, 0.0, 700.0]))
    camera = Pinhole(jnp.full(2, 1200.0), jnp.full(2, 256.0), pose, 512, 512)
    others["head_512"] = Scene(head.instance(jnp.zeros(head.shape.rank)), camera)
    counts = {name: int(np.sum(np.asarray(s.ours()) != s.numba())) for name, s in others.items()}
    # A vmapped batch of meshes that differ.
    scene = scenes["10k_256"]
    camera = scene.camera
    rng = np.random.default_rng(0)
    batch = scene.mesh.vertices[None] * jnp.asarray(rng.uniform(0.3, 2.0, (8, 1, 3)), jnp.float32)
    pixels, depth = jax.vmap(camera.project)(batch), jax.vmap(lambda v: camera.to_camera(v)[:, 2])(batch)
    draw = lambda p, d: rasterize(p, d, scene.mesh.triangles, 256, 256, near=camera.near)  # noqa: E731
    for k, ids in enumerate(np.asarray(jax.jit(jax.vmap(draw))(pixels, depth))):
        alone = zbuffer(np.asarray(pixels[k]), np.asarray(depth[k]), scene.arrays[2], 256, 256)
        counts[f"batch_{k}"] = int(np.sum(ids != alone))
    return counts


def silhouette_gradient_errors(poses: int, size: int = 48, finer: int = 8) -> np.ndarray:
    """Relative errors of the gradient of an image loss in six motions of a coloured body before a blue wall.

    The truth is the central difference, over a step of half a unit (2 mm, or the like), of the loss of a picture that
    is rendered `finer` times as fine and averaged.
    """
    mesh = ball(2_000)
    mesh = eqx.tree_at(lambda m: m.vertices, mesh, mesh.vertices * jnp.array([[1.0, 1.25, 0.9]]))
    edges, light = edge_table(mesh.triangles, mesh.vertices), frontal()
    background = jnp.array([0.1, 0.3, 0.6])

    def camera_at(motion, turn, shift, size):
        turn = jaxlie.SO3.exp(0.03 * motion[3:]) @ turn
        pose = jaxlie.SE3.from_rotation_and_translation(turn, shift + 4 * jnp.append(motion[:2], 0.0))
        return Pinhole(jnp.full(2, 2.0 * size) * jnp.exp(0.02 * motion[2]), jnp.full(2, size / 2), pose, size, size)

    def loss(motion, turn, shift, target):
        picture = render(mesh, camera_at(motion, turn, shift, size), light, edges=edges)
        return jnp.sum((picture.over(jnp.broadcast_to(background, target.shape)) - target) ** 2)

    @jax.jit
    def averaged(motion, turn, shift):
        fine = render(mesh, camera_at(motion, turn, shift, finer * size), light)
        picture = fine.over(jnp.broadcast_to(background, fine.colour.shape))
        return jnp.mean(picture.reshape(size, finer, size, finer, 3), axis=(1, 3))

    gradient, rng, errors = jax.jit(jax.grad(loss)), np.random.default_rng(0), []
    for _ in range(poses):
        turn = jaxlie.SO3.exp(jnp.asarray(0.6 * rng.normal(size=3))) @ jaxlie.SO3.from_x_radians(np.pi)
        shift = jnp.asarray([*(15 * rng.normal(size=2)), 600.0])
        target = averaged(jnp.asarray(3 * rng.normal(size=6)), turn, shift)
        steps = 0.5 * np.eye(6)
        ends = [jnp.sum((averaged(jnp.asarray(s), turn, shift) - target) ** 2) for s in [*steps, *-steps]]
        true = np.subtract(np.asarray(ends[:6], float), np.asarray(ends[6:], float))
        found = np.asarray(gradient(jnp.zeros(6), turn, shift, target))
        errors.append(np.linalg.norm(found - true) / np.linalg.norm(true))
    return np.array(errors)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--poses", type=int, default=50, help="random poses for the silhouette's gradient")
    parser.add_argument("--json", type=Path, help="also write one flat object of numbers to this file")
    options = parser.parse_args(arguments)
    scenes = visibility_scenes()
    visibility = {f"visibility_{name}": scene.ours for name, scene in scenes.items()}
    visibility |= {f"numba_{name}": scene.numba for name, scene in scenes.items()}
    visibility |= {f"textbook_{name}": scene.textbook for name, scene in scenes.items()}
    open3d = {f"open3d_{name}": scenes[name].open3d for name in ("10k_256", "25k_256", "50k_512")}
    results = measure(visibility, options.repeats)
    results |= measure({name: prepare() for name, prepare in open3d.items()}, options.repeats)
    results |= measure(cases(scenes), options.repeats)
    flat = {f"{name}_{key}": value for name, figures in results.items() for key, value in figures.items()}

    def ratio(name: str, to: str) -> float:
        return flat[f"{name}_cpu_ms"] / flat[f"{to}_cpu_ms"]

    for name in scenes:
        flat[f"visibility_vs_numba_cpu_{name}"] = ratio(f"visibility_{name}", f"numba_{name}")
        flat[f"visibility_vs_textbook_cpu_{name}"] = ratio(f"visibility_{name}", f"textbook_{name}")
    for name in ("10k_256", "25k_256", "50k_512"):
        flat[f"visibility_vs_open3d_cpu_{name}"] = ratio(f"visibility_{name}", f"open3d_{name}")
    # Value and gradient of an image loss through all of `render`, with and without outlines.
    flat["antialias_vs_deferred_cpu_25k_256"] = ratio("antialias_both_ways_25k_256", "deferred_both_ways_25k_256")
    flat["soft_224_10k_k10_cpu_s"] = flat["soft_both_ways_10k_224_k10_cpu_ms"] / 1e3
    mismatches = id_mismatches(scenes)
    flat["id_mismatches"] = sum(mismatches.values())
    errors = silhouette_gradient_errors(options.poses)
    flat["silhouette_gradient_error_median"] = float(np.median(errors))
    flat["silhouette_gradient_error_90_percent"] = float(np.quantile(errors, 0.9))

    baseline = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    columns = f"{'cpu ms':>9s} {'wall ms':>9s} {'first call s':>13s} {'baseline':>9s}"
    print(f"{'on ' + str(jax.devices()[0]):36s} {columns}")
    for name, figures in results.items():
        before = baseline.get(f"{name}_cpu_ms", float("nan"))
        times = f"{figures['cpu_ms']:9.2f} {figures['wall_ms']:9.2f} {figures['first_call_s']:13.2f}"
        print(f"{name:36s} {times} {before:9.2f}")
    print(f"\n{'':44s} {'now':>9s} {'baseline':>9s}")
    for name, value in flat.items():
        if not name.endswith(("_cpu_ms", "_wall_ms", "_first_call_s")):
            print(f"{name:44s} {value:9.3f} {baseline.get(name, float('nan')):9.3f}")
    if any(mismatches.values()):
        print("mismatches:", {name: n for name, n in mismatches.items() if n})
    if options.json:
        options.json.write_text(json.dumps(flat, indent=1) + "\n")


if __name__ == "__main__":
    main()
