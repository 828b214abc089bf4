"""Expressions and rig: 52 ARKit face units, joints, skin weights, and the eyeballs' gaze rotations."""

import numpy as np
from jaxtyping import Bool, Float

from morphable.default_model.assets import Assets
from morphable.default_model.surface import HeadTopology
from morphable.symmetry import mirrored_units

# Order of Apple's ARFaceAnchor.BlendShapeLocation. left and right are the subject's.
ARKIT_NAMES = tuple(
    """
    eyeBlinkLeft eyeLookDownLeft eyeLookInLeft eyeLookOutLeft eyeLookUpLeft eyeSquintLeft eyeWideLeft
    eyeBlinkRight eyeLookDownRight eyeLookInRight eyeLookOutRight eyeLookUpRight eyeSquintRight eyeWideRight
    jawForward jawLeft jawRight jawOpen
    mouthClose mouthFunnel mouthPucker mouthLeft mouthRight mouthSmileLeft mouthSmileRight mouthFrownLeft
    mouthFrownRight mouthDimpleLeft mouthDimpleRight mouthStretchLeft mouthStretchRight mouthRollLower
    mouthRollUpper mouthShrugLower mouthShrugUpper mouthPressLeft mouthPressRight mouthLowerDownLeft
    mouthLowerDownRight mouthUpperUpLeft mouthUpperUpRight
    browDownLeft browDownRight browInnerUp browOuterUpLeft browOuterUpRight
    cheekPuff cheekSquintLeft cheekSquintRight noseSneerLeft noseSneerRight tongueOut
    """.split()
)

JOINTS = ("neck", "head", "jaw", "eye_left", "eye_right")
JOINT_PARENTS = (-1, 0, 1, 1, 1)
JOINT_MIRROR = (0, 1, 2, 4, 3)
# Helper geometry of the base mesh whose mean is the joint. The eyes turn about the centres of their balls.
_JOINT_GROUPS = ("joint-neck", "joint-head", "joint-mouth", "helper-l-eye", "helper-r-eye")
# Bones of MPFB's default rig whose descendants a joint carries; the neck takes what is left.
_JOINT_BONES = {"head": "head", "jaw": "jaw", "eye_left": "eye.L", "eye_right": "eye.R"}

# Rotation of the eyeball at weight 1. The face units' own lids follow a ball turned by about this much.
GAZE_DEGREES = {"Up": 20.0, "Down": 25.0, "In": 30.0, "Out": 30.0}


def joint_regressor(assets: Assets, vertex_count: int) -> Float[np.ndarray, "joint vertex"]:
    """Joint positions as means of base mesh vertices."""
    groups = assets.vertex_groups()
    out = np.zeros((len(JOINTS), vertex_count))
    for row, group in zip(out, _JOINT_GROUPS, strict=True):
        row[groups[group]] = 1 / len(groups[group])
    return out


def skin_weights(assets: Assets, topology: HeadTopology, vertex_count: int) -> Float[np.ndarray, "row joint"]:
    """Linear blend skinning weights of the five joints; every row sums to one.

    A joint takes the weights of its bone and all that bone's descendants except those of a joint below it.
    Eyeballs and teeth are rigid: eyes turn alone, upper teeth sit in the head and lower teeth in the jaw.
    """
    bones, parents = assets.bone_weights(), assets.bone_parents()
    carrier = {bone: joint for joint, bone in _JOINT_BONES.items()}

    def joint_of(bone: str) -> str:
        while bone and bone not in carrier:
            bone = parents[bone]
        return carrier.get(bone, "neck")

    weights = np.zeros((len(JOINTS), vertex_count))
    for bone, entries in bones.items():
        if len(entries):
            weights[JOINTS.index(joint_of(bone)), entries[:, 0].astype(int)] += entries[:, 1]
    out = weights[:, topology.base_ids].T.copy()
    for part, joint in (
        ("eye_left", "eye_left"),
        ("eye_right", "eye_right"),
        ("teeth_upper", "head"),
        ("teeth_lower", "jaw"),
    ):
        out[topology.part_rows[part]] = np.eye(len(JOINTS))[JOINTS.index(joint)]
    # The lids must not follow a turning ball through skinning: the eyeLook units already move them.
    skin = topology.part_rows["skin"]
    eyes = [JOINTS.index("eye_left"), JOINTS.index("eye_right")]
    out[skin, JOINTS.index("head")] += out[skin][:, eyes].sum(axis=1)
    out[skin.start : skin.stop, eyes] = 0.0
    return out / out.sum(axis=1, keepdims=True)


def expression_units(
    assets: Assets,
    topology: HeadTopology,
    template: Float[np.ndarray, "row 3"],
    hidden: Bool[np.ndarray, "row"],
    vertex_count: int,
) -> Float[np.ndarray, "unit row 3"]:
    """Displacements (mm, before the model's scale) at weight 1; eyeballs never move, they are rotated instead.

    Units of the two sides are made exact mirror images: two of them differ by 0.15 mm. As drawn, blinking also stirs
    the inside of the nose and the other eye's socket by up to 10 mm: units of an eye leave other cavities alone.
    """
    found = set(assets.face_unit_names())
    if found != set(ARKIT_NAMES):
        raise ValueError(f"face units: expected ARKit's 52, differing in {sorted(found ^ set(ARKIT_NAMES))}")
    units = np.stack([assets.face_unit(name, vertex_count)[topology.base_ids] for name in ARKIT_NAMES])
    twin = mirrored_units(ARKIT_NAMES)
    units = (units + units[twin][:, topology.mirror] * [-1, 1, 1]) / 2
    eyes = np.concatenate([np.arange(topology.rows)[topology.part_rows[part]] for part in ("eye_left", "eye_right")])
    units[:, eyes] = 0.0
    cavity = hidden & (np.arange(topology.rows) < topology.part_rows["skin"].stop)
    below = template[:, 1] < template[eyes, 1].min()
    for name, unit in zip(ARKIT_NAMES, units, strict=True):
        if name.startswith("eye"):
            left = template[:, 0] > 0
            unit[cavity & (below | (left != name.endswith("Left")))] = 0.0
    return units


def gaze_rotations() -> list[dict]:
    """For each eyeLook unit, the eye joint's rotation vector (rad) at weight 1 in head space."""
    out = []
    for side, joint, inward in (("Left", "eye_left", -1.0), ("Right", "eye_right", 1.0)):
        # Turning about +x lowers the gaze; turning about +y moves it towards the subject's left.
        for word, axis in (("Down", (1, 0, 0)), ("In", (0, inward, 0)), ("Out", (0, -inward, 0)), ("Up", (-1, 0, 0))):
            angle = np.radians(GAZE_DEGREES[word])
            rotation = [round(float(angle * a), 6) + 0.0 for a in axis]
            out.append({"unit": f"eyeLook{word}{side}", "joint": joint, "rotation": rotation})
    return out
