"""What rendering costs: `python benchmarks/render.py [--repeats 15] [--json FILE]`.

Medians of wall and process CPU time in milliseconds over interleaved repeats, compile time apart, and each figure as a
ratio to the visibility of 8 000 triangles at 256 px in the same run: the ratios travel between machines, the times do
not. The mesh is a bumpy ball that covers about half of the picture, as a head does.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxlie
import numpy as np

from morphable.mesh import Mesh
from renderer import Pinhole, barycentrics, frontal, interpolate, render, unwrap, visibility


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


def cases() -> dict:
    """Name -> function without arguments that starts the work and returns its arrays."""
    light = frontal()
    found = {}

    def visible(name, triangle_count, size, zoom=1.0):
        mesh, camera = ball(triangle_count), camera_of(size, zoom)
        run = jax.jit(lambda v: visibility(camera, v, mesh.triangles))
        found[f"visibility_{name}"] = lambda: run(mesh.vertices)

    visible("8k_256", 8_000, 256)
    visible("25k_256", 25_000, 256)
    visible("8k_256_close", 8_000, 256, zoom=4.0)
    visible("25k_512", 25_000, 512)
    visible("45k_1024", 45_000, 1024)

    mesh, camera = ball(25_000), camera_of(256)
    ids = visibility(camera, mesh.vertices, mesh.triangles)

    def deferred(vertices, albedo):
        weights = barycentrics(camera.project(vertices), camera.to_camera(vertices)[:, 2], mesh.triangles, ids)
        return interpolate(albedo, mesh.triangles, ids, weights)

    def energy(vertices, albedo):
        return jnp.sum(deferred(vertices, albedo) ** 2)

    forward, backward = jax.jit(deferred), jax.jit(jax.grad(energy, (0, 1)))
    found["interpolate_25k_256"] = lambda: forward(mesh.vertices, mesh.albedo)
    found["interpolate_gradient_25k_256"] = lambda: backward(mesh.vertices, mesh.albedo)
    found["render_25k_256"] = lambda: render(mesh, camera, light)

    large, large_camera = ball(45_000), camera_of(1024)
    texture = jnp.asarray(np.random.default_rng(1).uniform(size=(1024, 1024, 3)), jnp.float32)
    found["render_45k_1024"] = lambda: render(large, large_camera, light)
    found["render_textured_2x2_45k_1024"] = lambda: render(large, large_camera, light, texture, samples=2)
    found["unwrap_45k_1024"] = lambda: unwrap(texture, large, large_camera, 1024)
    return found


def measure(repeats: int) -> dict[str, dict[str, float]]:
    """Medians of wall and CPU time per case, and the seconds that its first call took."""
    runs, first = cases(), {}
    wall, cpu = {name: [] for name in runs}, {name: [] for name in runs}
    for name, run in runs.items():
        start = time.perf_counter()
        jax.block_until_ready(eqx.filter(run(), eqx.is_array))
        first[name] = time.perf_counter() - start
    for _ in range(repeats):
        for name, run in runs.items():
            start, start_cpu = time.perf_counter(), time.process_time()
            jax.block_until_ready(eqx.filter(run(), eqx.is_array))
            wall[name].append(1e3 * (time.perf_counter() - start))
            cpu[name].append(1e3 * (time.process_time() - start_cpu))
    return {
        name: {
            "wall_ms": statistics.median(wall[name]),
            "cpu_ms": statistics.median(cpu[name]),
            "first_call_s": first[name],
        }
        for name in runs
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=Path, help="also write one flat object of numbers to this file")
    options = parser.parse_args(arguments)
    results = measure(options.repeats)
    unit = results["visibility_8k_256"]["cpu_ms"]
    print(f"{'':32s} {'wall ms':>9s} {'cpu ms':>9s} {'ratio':>7s} {'first call s':>13s}   on {jax.devices()[0]}")
    for name, figures in results.items():
        wall, cpu, first = figures["wall_ms"], figures["cpu_ms"], figures["first_call_s"]
        print(f"{name:32s} {wall:9.2f} {cpu:9.2f} {cpu / unit:7.1f} {first:13.2f}")
    if options.json:
        flat = {f"{name}_{key}": value for name, figures in results.items() for key, value in figures.items()}
        options.json.write_text(json.dumps(flat, indent=1) + "\n")


if __name__ == "__main__":
    main()
