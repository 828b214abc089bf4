"""Clips whose truth is known: a random person turns, speaks, smiles and blinks before a still camera."""

import dataclasses
import os

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
from jaxtyping import Float

from fitting.clip.frames import ClipWriter
from fitting.synthesis import SynthesisError, SynthesisSettings, draw_scene, expose, render_scene
from morphable.model import MorphableModel

_TURN_DEG = np.array([6.0, 18.0, 4.0])  # nodding, shaking, tilting, to either side
_TURNS_HZ = np.array([0.9, 0.45, 0.6])
_MOVE_MM = np.array([18.0, 6.0, 12.0])  # across, up, in depth
_MOVES_HZ = np.array([0.4, 0.8, 0.5])
_SYLLABLES_HZ, _SMILES_HZ = 2.2, 0.5
_BLINK_EVERY_S, _BLINK_S = 1.1, 0.05  # the second is the deviation of a bell: a tenth of a second from half to half
# How far each movement carries a unit; those of other models are passed over.
_UNITS = {
    "blink": {"eyeBlinkLeft": 1.0, "eyeBlinkRight": 1.0},
    "speech": {"jawOpen": 0.35},
    "smile": {"mouthSmileLeft": 0.5, "mouthSmileRight": 0.5, "browInnerUp": 0.4},
}


@dataclasses.dataclass(frozen=True, eq=False)
class ClipTruth:
    """What a track of the clip should find. Pixels of the clip with centres at +0.5; lengths in mm."""

    times: Float[np.ndarray, " frame"]  # s
    poses: Float[np.ndarray, "frame 4 4"]  # T_camera_head
    expression: Float[np.ndarray, "frame unit"]
    points: Float[np.ndarray, "frame 68 3"]  # the landmarks, in the camera's frame
    pixels: Float[np.ndarray, "frame 68 2"]
    identity: Float[np.ndarray, " identity"]
    albedo: Float[np.ndarray, " albedo"]
    focal_px: float


def synthesize_clip(
    path: str | os.PathLike,
    model: MorphableModel,
    seed: int = 4,
    frames: int = 60,
    rate: float = 25.0,
    size: int = 384,
    motion: float = 1.0,
) -> ClipTruth:
    """Render a clip of a random person into a square MP4, and say what is true in each frame.

    `motion` is a factor on turns, moves and speech: at 0 a still head blinks. The same seed gives the same person and
    background, before and after compression. Raises SynthesisError for a clip that cannot be drawn.
    """
    if frames < 1 or not (np.isfinite([rate, motion]).all() and rate > 0 and 0 <= motion <= 2):
        raise SynthesisError(
            f"synthesize_clip: got {frames} frames at {rate} per second and motion {motion}, expected one or more, a "
            "positive rate and a motion from 0 to 2. Leave them out for the defaults."
        )
    settings = SynthesisSettings(
        size=size, yaw=5.0, pitch=5.0, roll=3.0, expression=0.0, head_share=(0.65, 0.7), lens_mm=(50.0, 60.0)
    )
    scene = draw_scene(model, jax.random.key(seed), settings)
    start = scene.face
    times = np.arange(frames) / rate
    turns = motion * np.radians(_TURN_DEG) * np.sin(2 * np.pi * times[:, None] * _TURNS_HZ)
    moves = motion * _MOVE_MM * np.sin(2 * np.pi * times[:, None] * _MOVES_HZ)
    expression = _expressions(model, times, motion)
    truth: dict[str, list[np.ndarray]] = {"poses": [], "points": [], "pixels": []}
    with ClipWriter(path, rate, quality=16) as writer:
        for k, time in enumerate(times):
            about_x, about_y, about_z = (float(angle) for angle in turns[k])
            turn = (
                jaxlie.SO3.from_y_radians(about_y)
                @ jaxlie.SO3.from_x_radians(about_x)
                @ jaxlie.SO3.from_z_radians(about_z)
            )
            pose = jaxlie.SE3.from_rotation_and_translation(
                start.pose.rotation() @ turn, start.pose.translation() + jnp.asarray(moves[k], jnp.float32)
            )
            face = dataclasses.replace(start, pose=pose, expression=jnp.asarray(expression[k], jnp.float32))
            grain = jax.random.fold_in(scene.grain, k)
            shown = eqx.tree_at(
                lambda s: (s.face, s.grain, s.noise, s.blur_px), scene, (face, grain, jnp.array(0.012), jnp.array(0.7))
            )
            view = render_scene(model, shown)
            writer.write(np.rint(255 * np.asarray(expose(shown, view.linear))).astype(np.uint8), float(time))
            truth["poses"].append(np.asarray(pose.as_matrix(), float))
            points = model.landmarks3d(view.vertices)
            truth["points"].append(np.asarray(shown.camera.to_camera(points), float))
            truth["pixels"].append(np.asarray(shown.camera.project(points), float))
    return ClipTruth(
        times=times,
        expression=expression,
        identity=np.asarray(start.identity, float),
        albedo=np.asarray(start.albedo, float),
        focal_px=float(jnp.exp(start.log_focal)),
        **{name: np.stack(values) for name, values in truth.items()},
    )


def _expressions(
    model: MorphableModel, times: Float[np.ndarray, " frame"], motion: float
) -> Float[np.ndarray, "frame unit"]:
    """Weights over time: a blink every second, syllables, slow smiles."""
    wave = lambda hz: motion * (0.5 - 0.5 * np.cos(2 * np.pi * hz * times))  # noqa: E731
    since = (times - 0.5 + _BLINK_EVERY_S / 2) % _BLINK_EVERY_S - _BLINK_EVERY_S / 2  # the first after half a second
    course = {
        "blink": np.exp(-0.5 * (since / _BLINK_S) ** 2),
        "speech": wave(_SYLLABLES_HZ),
        "smile": wave(_SMILES_HZ),
    }
    weights = np.zeros((len(times), len(model.expression_names)))
    for name, units in _UNITS.items():
        for unit, most in units.items():
            if unit in model.expression_names:
                weights[:, model.expression_names.index(unit)] = most * course[name]
    return np.clip(weights, 0.0, 1.0)
