"""What registration needs of a model: the surface that is drawn, what only goes along, and how it may deform."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

from morphable.model import MorphableModel
from morphable.registration.alignment import AlignmentError, similarity
from morphable.registration.gaussian_process import (
    DeformationProcess,
    Gaussian,
    kernel_fields,
    mesh_samples,
)
from morphable.registration.target import outward_normals

# Heads of one another: broad differences, features, details. With a model's own modes the kernels are what these leave.
FREE = (Gaussian(4.0, 70.0), Gaussian(2.5, 40.0), Gaussian(1.2, 20.0), Gaussian(1.0, 10.0))
BESIDE_MODES = (Gaussian(0.7, 40.0), Gaussian(0.5, 20.0), Gaussian(0.3, 10.0))
ASYMMETRY = 0.2  # of the deviations: faces are symmetric but for some hundredths of their variance
STRAIN = 0.05  # one standard deviation of width, length and depth, for a template without modes
_SAMPLES = 900  # of Nystroem's formula
_CAVITY_MM = 25.0  # walls that face each other within this distance enclose a cavity


@dataclass(frozen=True, eq=False)
class Template:
    """A model, ready to be registered to many targets."""

    process: DeformationProcess  # of all vertices; its first modes are the identity's
    identity_rank: int
    triangles: Int[np.ndarray, "triangle 3"]  # of the surface that bends, the skin
    pull: Float[np.ndarray, " vertex"]  # in [0, 1]: how much the target draws; 0 for cavities and other parts
    corners: Int[np.ndarray, "68 3"]  # of the landmarks
    weights: Float[np.ndarray, "68 3"]
    carried: tuple[Int[np.ndarray, " _"], ...]  # other pieces: eyeballs, teeth, ...
    rigid: tuple[bool, ...]  # which of these keep their form

    @classmethod
    def of(
        cls,
        model: MorphableModel,
        prior: Literal["model", "kernel"] = "model",
        modes: int | None = None,
        expressions: float = 0.0,
        fields: int = 400,
    ) -> "Template":
        """The model's mean as a template.

        prior: "model" deforms as its identity modes do, of which the first `modes`, and a little smoothly besides;
            "kernel" is smooth only, for a template whose modes should not be believed or that has none.
        expressions: standard deviation of the expression units' weights; 0 for neutral targets.
        fields: number of smooth scalar modes, each for x, y and z; 0 for the model's own space.
        """
        mean = np.asarray(model.mean, float)
        skin = _skin_triangles(model)
        on_skin = np.unique(skin)
        identity = np.asarray(model.shape.modes, float)[..., : model.shape.rank if modes is None else modes]
        if prior == "kernel":
            identity = identity[..., :0]
        smile = expressions * np.asarray(model.expression, float)
        space = np.concatenate([identity, smile], axis=2) if expressions > 0 else identity
        alone = identity.shape[2] == 0
        samples = mean[on_skin[mesh_samples(len(on_skin), _SAMPLES)]]
        smooth, spread = _symmetric_fields(mean, samples, FREE if alone else BESIDE_MODES, fields, alone)
        carried = _other_pieces(model, on_skin)
        names = [model.part_names[int(np.asarray(model.part_of_vertex)[ids[0]])] for ids in carried]
        return cls(
            process=DeformationProcess(mean, space, smooth, spread),
            identity_rank=identity.shape[2],
            triangles=skin,
            pull=_pull(model, mean, skin),
            corners=np.asarray(model.landmarks.vertices),
            weights=np.asarray(model.landmarks.weights, float),
            carried=carried,
            rigid=tuple("lash" not in name and "brow" not in name for name in names),
        )

    def carry(
        self, before: Float[np.ndarray, "vertex 3"], after: Float[np.ndarray, "vertex 3"]
    ) -> Float[np.ndarray, "vertex 3"]:
        """`after`, in which the skin alone has moved, with the other pieces moved along: by the mean of the skin's
        displacement near them, eyeballs and teeth as wholes that keep the mean's form.
        """
        out = after.copy()
        skin = np.unique(self.triangles)
        tree = KDTree(before[skin])
        for ids, rigid in zip(self.carried, self.rigid, strict=True):
            apart, near = tree.query(before[ids], k=min(30, len(skin)))
            weight = np.exp(-((apart - apart.min(axis=1, keepdims=True)) ** 2) / (2 * 6.0**2))
            weight /= weight.sum(axis=1, keepdims=True)
            shift = np.einsum("vk,vkc->vc", weight, (after - before)[skin[near]])
            out[ids] = before[ids] + (shift.mean(axis=0) if rigid else shift)
            if rigid:
                out[ids] = _keep_form(self.process.mean[ids], out[ids])
        return out


def _symmetric_fields(mean, samples, scales, count, strained):
    """Scalar fields, and their deviations along x, y and z, such that displacements are mostly the face's mirror images
    of themselves: odd in x along x, even along y and z. `strained` adds a linear kernel's fields: a head may be wider,
    longer, deeper or sheared.
    """
    even, odd = (kernel_fields(mean, samples, scales, count // 2, sign) for sign in (1, -1))
    if strained:
        linear = STRAIN * (mean - mean.mean(axis=0))
        even, odd = np.concatenate([linear[:, 1:], even], axis=1), np.concatenate([linear[:, :1], odd], axis=1)
    along_x = np.r_[np.full(even.shape[1], ASYMMETRY), np.ones(odd.shape[1])]
    along_yz = np.r_[np.ones(even.shape[1]), np.full(odd.shape[1], ASYMMETRY)]
    return np.concatenate([even, odd], axis=1), np.stack([along_x, along_yz, along_yz])


def _keep_form(rest: Float[np.ndarray, "vertex 3"], moved: Float[np.ndarray, "vertex 3"]) -> Float[np.ndarray, "v 3"]:
    try:
        return similarity(rest, moved)(rest)
    except AlignmentError:  # one or two vertices, or a line, have no form to keep
        return moved


def _pieces(model: MorphableModel) -> Int[np.ndarray, " vertex"]:
    """The connected piece that each vertex belongs to; vertices in one place are one."""
    mean, triangles = np.asarray(model.mean, float), np.asarray(model.triangles)
    welded = np.unique(mean, axis=0, return_inverse=True)[1].ravel()
    edges = welded[np.concatenate([triangles[:, :2], triangles[:, 1:]])]
    count = int(welded.max()) + 1
    graph = sp.csr_matrix((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(count, count))
    return connected_components(graph, directed=False)[1][welded]


def _skin_triangles(model: MorphableModel) -> Int[np.ndarray, "triangle 3"]:
    """The part called skin, or the pieces with a landmark: what a scan shows and what bends."""
    triangles = np.asarray(model.triangles)
    if "skin" in model.part_names:
        return triangles[model.part("skin").triangles]
    piece = _pieces(model)
    marked = np.unique(piece[np.asarray(model.landmarks.vertices)])
    return triangles[np.isin(piece[triangles[:, 0]], marked)]


def _other_pieces(model: MorphableModel, skin: Int[np.ndarray, " v"]) -> tuple[Int[np.ndarray, " vertex"], ...]:
    """The vertices off the skin: by part where the model names parts, by connected piece where it does not."""
    count = len(np.asarray(model.mean))
    off = np.setdiff1d(np.arange(count), skin)
    label = np.asarray(model.part_of_vertex) if len(model.part_names) > 1 else _pieces(model)
    return tuple(off[label[off] == k] for k in np.unique(label[off]))


def _pull(
    model: MorphableModel, mean: Float[np.ndarray, "vertex 3"], skin: Int[np.ndarray, "triangle 3"]
) -> Float[np.ndarray, " vertex"]:
    """1 on visible skin, less on the ears, whose folds scans miss and neighbours' folds attract; 0 in cavities."""
    pull = np.zeros(len(mean))
    pull[np.unique(skin)] = 1
    if "interior" in model.masks:
        pull *= 1 - np.asarray(model.masks["interior"], float)
    else:
        pull *= ~_in_cavity(mean, skin)
    if "ears" in model.masks:
        pull *= 1 - 0.7 * np.asarray(model.masks["ears"], float)
    return np.clip(pull, 0, 1)


def _in_cavity(vertices: Float[np.ndarray, "vertex 3"], triangles: Int[np.ndarray, "triangle 3"]):
    """Vertices in front of which another wall of the surface faces them: of mouths, nostrils and eye sockets."""
    on = np.unique(triangles)
    normals = outward_normals(vertices, triangles)[on]
    points = vertices[on]
    walls = mesh_samples(len(points), 3000)
    tree = KDTree(points[walls])
    out = np.zeros(len(vertices), bool)
    for k, near in enumerate(tree.query_ball_point(points, _CAVITY_MM)):
        if near:
            other = walls[near]
            towards = points[other] - points[k]
            ahead = towards @ normals[k] > 0.9 * np.linalg.norm(towards, axis=1)
            # An ahead wall is not the vertex itself nor its surroundings on a crease.
            facing = (normals[other] @ normals[k] < -0.5) & (np.einsum("wc,wc->w", towards, towards) > 1.0)
            out[on[k]] = (ahead & facing).any()
    return out
