"""Skin colour from tissue optics, the regions of a face it varies with, and the linear albedo model made of samples.

Colour of skin is a function of two pigments: melanin in the epidermis and haemoglobin in the dermis. Absorption follows
Jacques ("Skin optics", 1998, and Phys. Med. Biol. 58, 2013), haemoglobin the table compiled by Prahl (OMLC, 1999), the
dermis' diffuse reflectance Farrell, Patterson & Wilson (Med. Phys. 19, 1992). Brows, beard, scalp hair, lips, eyes and
teeth are painted over it. Nothing is measured on people: no photograph enters.
"""

from dataclasses import dataclass

import numpy as np
import scipy.linalg
from jaxtyping import Float, Int
from scipy.interpolate import PchipInterpolator

from morphable.default_model.assets import Assets, BaseMesh
from morphable.default_model.surface import HeadTopology
from morphable.mesh import smoothstep

SAMPLES = 600
COMPONENTS = 50
SEED = 11

# ---------------------------------------------------------------------------------------------- skin optics

# Wavelength (nm), molar extinction of oxy- and deoxyhaemoglobin (1/(cm M)), Prahl's table.
_HAEMOGLOBIN = np.array(
    [
        [440, 102580, 413280],
        [450, 62816, 103292],
        [460, 44480, 23389],
        [470, 33209, 16156],
        [480, 26629, 14550],
        [490, 23684, 16684],
        [500, 20932, 20862],
        [510, 20035, 25774],
        [520, 24202, 31590],
        [530, 39957, 39036],
        [540, 53236, 46592],
        [550, 43016, 53412],
        [560, 32613, 53788],
        [570, 44496, 45072],
        [580, 50104, 37020],
        [590, 14401, 28325],
        [600, 3200, 14677],
        [610, 1506, 9444],
        [620, 942, 6510],
        [630, 610, 5149],
        [640, 442, 4345],
        [650, 368, 3750],
    ],
    float,
)
_BANDS_NM = ((595, 650), (510, 590), (440, 490))  # red, green, blue
_OXYGENATION = 0.75
_EPIDERMIS_CM = 0.006
# Five constants that the literature leaves open, fitted once to typical CIELAB values of light to dark facial skin,
# (65, 11.5, 15.5) to (37, 10.5, 14), to within 1.6 units; without them light skin comes out violet.
_CAROTENE, _DERMIS_GAIN, _HAZE, _EPIDERMIS_GAIN, _SCATTER_GAIN = 0.77, 1.05, 0.053, 1.24, 2.15

MELANIN_RANGE = (0.04, 0.48)  # volume fraction in the epidermis, lightest to darkest
BLOOD = 0.0113  # typical volume fraction in the dermis


def skin_colour(melanin: Float[np.ndarray, "*any"], blood: Float[np.ndarray, "*any"]) -> Float[np.ndarray, "*any 3"]:
    """Linear RGB reflectance of skin for volume fractions of melanin and blood."""
    nm, oxy, deoxy = _HAEMOGLOBIN.T
    melanin, blood = np.asarray(melanin)[..., None], np.asarray(blood)[..., None]
    # Absorption, 1/cm: baseline and melanosomes (Jacques 1998), whole blood of 150 g/l haemoglobin at 64500 g/mol.
    baseline = 0.244 + 85.3 * np.exp(-(nm - 154) / 66.2)
    epidermis = melanin * 6.6e11 * nm**-3.33 + (1 - melanin) * baseline
    whole_blood = 2.303 * 150 / 64500 * (_OXYGENATION * oxy + (1 - _OXYGENATION) * deoxy)
    carotene = _CAROTENE * np.exp(-0.5 * ((nm - 465) / 30) ** 2)
    absorption = blood * whole_blood + (1 - blood) * baseline + carotene
    # Reduced scattering, 1/cm: Mie and Rayleigh parts (Jacques 1998).
    scattering = _SCATTER_GAIN * (0.23 * 2e5 * nm**-1.5 + 2e12 * nm**-4)
    albedo = scattering / (absorption + scattering)
    mismatch = (1 + 0.47) / (1 - 0.47)  # internal reflection at a skin-air boundary of index 1.4
    dermis = albedo / (1 + 2 * mismatch * (1 - albedo) + (1 + 2 * mismatch / 3) * np.sqrt(3 * (1 - albedo)))
    reflectance = _DERMIS_GAIN * np.exp(-2 * _EPIDERMIS_GAIN * epidermis * _EPIDERMIS_CM) * dermis + _HAZE
    return np.stack([reflectance[..., (nm >= a) & (nm <= b)].mean(axis=-1) for a, b in _BANDS_NM], axis=-1)


class SkinTable:
    """`skin_colour` tabulated over the logarithms of both fractions, read bilinearly."""

    def __init__(self, steps: int = 96):
        self._melanin = np.linspace(np.log(0.015), np.log(0.8), steps)
        self._blood = np.linspace(np.log(0.001), np.log(0.15), steps)
        grid = np.meshgrid(np.exp(self._melanin), np.exp(self._blood), indexing="ij")
        self._colours = skin_colour(*grid)

    def __call__(self, log_melanin, log_blood):
        i, s = self._place(self._melanin, log_melanin)
        j, t = self._place(self._blood, log_blood)
        c, s, t = self._colours, s[..., None], t[..., None]
        low = (1 - t) * c[i, j] + t * c[i, j + 1]
        high = (1 - t) * c[i + 1, j] + t * c[i + 1, j + 1]
        return (1 - s) * low + s * high

    @staticmethod
    def _place(axis, value):
        at = np.clip((value - axis[0]) / (axis[1] - axis[0]), 0, len(axis) - 1.001)
        return at.astype(int), at - at.astype(int)


def encode_srgb(linear):
    linear = np.clip(linear, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def decode_srgb(encoded):
    encoded = np.clip(encoded, 0, 1)
    return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)


# ---------------------------------------------------------------------------------------------- regions


def texture_regions(
    assets: Assets, base: BaseMesh, topology: HeadTopology, names: tuple[str, ...]
) -> dict[str, Float[np.ndarray, "subvertex"]]:
    """MPFB's mask pictures at the subdivided vertices of the skin, zero elsewhere.

    The picture is read where each quad's corners, edge middles and centre lie in the quad's own chart, and averaged
    over the quads that share a vertex, so that seams of the original charts leave no trace.
    """
    span = topology.part_quads["skin"]
    quad_index = {frozenset(q): i for i, q in enumerate(base.quads.tolist())}
    own = [quad_index[frozenset(q)] for q in topology.base_ids[topology.quads[span]].tolist()]
    corner_uv = base.uv[base.uv_quads[own]]
    centre = corner_uv.mean(axis=1)
    subquads = topology.subquads.reshape(4, len(topology.quads), 4)[:, span]
    count = topology.subvertices
    out = {}
    for name in names:
        picture = assets.mask_texture(name)
        total, uses = np.zeros(count), np.zeros(count)
        for corner in range(4):
            here, ahead, behind = (corner_uv[:, (corner + k) % 4] for k in (0, 1, -1))
            for k, uv in enumerate((here, (here + ahead) / 2, centre, (here + behind) / 2)):
                np.add.at(total, subquads[corner, :, k], _bilinear(picture, uv))
                np.add.at(uses, subquads[corner, :, k], 1)
        out[name] = total / np.maximum(uses, 1)
    return out


def _bilinear(picture, uv):
    height, width = picture.shape
    x = np.clip(uv[:, 0] * width - 0.5, 0, width - 1.001)
    y = np.clip((1 - uv[:, 1]) * height - 0.5, 0, height - 1.001)
    i, j = y.astype(int), x.astype(int)
    s, t = y - i, x - j
    return (1 - s) * ((1 - t) * picture[i, j] + t * picture[i, j + 1]) + s * (
        (1 - t) * picture[i + 1, j] + t * picture[i + 1, j + 1]
    )


def _curve_distance(points, curve):
    """Distance in the frontal (x, y) plane to a polyline, and the place along it from 0 to 1."""
    best, place = np.full(len(points), np.inf), np.zeros(len(points))
    for i, (a, b) in enumerate(zip(curve[:-1], curve[1:], strict=True)):
        ab = (b - a)[:2]
        t = np.clip((points[:, :2] - a[:2]) @ ab / (ab @ ab), 0, 1)
        d = np.linalg.norm(points[:, :2] - (a[:2] + t[:, None] * ab), axis=1)
        place = np.where(d < best, i + t, place)
        best = np.minimum(best, d)
    return best, place / (len(curve) - 1)


def _blob(points, centre, radius, stretch=(1, 1, 1)):
    return np.exp(-((np.linalg.norm((points - centre) / stretch, axis=1) / radius) ** 2))


@dataclass(frozen=True)
class Regions:
    """Soft regions of the subdivided head, 0 to 1 at each vertex, and the two coordinates hair is drawn with."""

    skin: Float[np.ndarray, "subvertex"]
    lips: Float[np.ndarray, "subvertex"]
    brows: Float[np.ndarray, "subvertex"]
    lids: Float[np.ndarray, "subvertex"]
    lid_line: Float[np.ndarray, "subvertex"]
    sockets: Float[np.ndarray, "subvertex"]
    cheeks: Float[np.ndarray, "subvertex"]
    nose: Float[np.ndarray, "subvertex"]
    forehead: Float[np.ndarray, "subvertex"]
    beard: Float[np.ndarray, "subvertex"]
    moustache: Float[np.ndarray, "subvertex"]
    goatee: Float[np.ndarray, "subvertex"]
    scalp: Float[np.ndarray, "subvertex"]
    ears: Float[np.ndarray, "subvertex"]
    interior: Float[np.ndarray, "subvertex"]
    face: Float[np.ndarray, "subvertex"]
    sclera: Float[np.ndarray, "subvertex"]
    iris: Float[np.ndarray, "subvertex"]
    pupil: Float[np.ndarray, "subvertex"]
    teeth: Float[np.ndarray, "subvertex"]
    tongue: Float[np.ndarray, "subvertex"]
    lashes: Float[np.ndarray, "subvertex"]
    shade: Float[np.ndarray, "subvertex"]  # light that reaches eyeballs, teeth and tongue behind lids and lips
    above_hairline: Float[np.ndarray, "subvertex"]  # mm, signed; very negative where no scalp hair grows
    crown: Float[np.ndarray, "subvertex"]  # where baldness starts


# Height (mm above the bridge of the nose) of the edge of the scalp's hair at angles around the vertical axis of the
# skull, from the middle of the forehead over temple, sideburn and ear to the nape.
_HAIRLINE_DEG = (0, 20, 34, 46, 56, 64, 71, 77, 84, 96, 108, 120, 140, 180)
_HAIRLINE_MM = (74, 73, 67, 52, 34, 14, -6, -14, -10, -14, -34, -62, -74, -78)
# Half width (mm) of a brow from its outer to its inner end.
_BROW_WIDTH_MM = (1.3, 2.6, 3.6, 4.1, 3.9, 3.0)


def brow_region(
    vertices: Float[np.ndarray, "subvertex 3"],
    landmarks: Float[np.ndarray, "68 3"],
    width: float = 1.0,
    lift: float = 0.0,
    tilt: float = 0.0,
) -> Float[np.ndarray, "subvertex"]:
    """Both brows along the landmarks' curve, `lift` mm above it, outer ends `tilt` mm up and inner ends down."""
    out = np.zeros(len(vertices))
    for curve in (landmarks[17:22], landmarks[[26, 25, 24, 23, 22]]):
        raised = np.zeros((5, 3))
        raised[:, 1] = lift - 3.0 + tilt * np.linspace(1, -1, 5)
        curve = curve + raised
        near = np.flatnonzero(
            (np.abs(vertices[:, :2] - curve[:, :2].mean(axis=0)) < [45, 30]).all(axis=1)
            & (vertices[:, 2] > curve[:, 2].min() - 12)
        )
        distance, place = _curve_distance(vertices[near], curve)
        half = width * np.interp(place, np.linspace(0, 1, len(_BROW_WIDTH_MM)), _BROW_WIDTH_MM)
        out[near] = np.maximum(out[near], smoothstep(distance / half, 1.5, 0.5))
    return out


def head_regions(
    vertices: Float[np.ndarray, "subvertex 3"],
    topology: HeadTopology,
    landmarks: Float[np.ndarray, "68 3"],
    textures: dict[str, Float[np.ndarray, "subvertex"]],
    interior: Float[np.ndarray, "subvertex"],
    eye_centre: Float[np.ndarray, "3"],
    lash_tips: Float[np.ndarray, "subvertex"],
) -> Regions:
    """Regions of the mean head (mm, head space) from its landmarks, MPFB's mask pictures and openness."""
    v, l = vertices, landmarks
    x, y, z = np.abs(v[:, 0]), v[:, 1], v[:, 2]
    bridge, ear_z = l[27, 1], l[2, 2]
    part = {name: topology.subvertices_of(name) for name in topology.part_rows}
    skin = part["skin"].astype(float)
    on_face = skin * (1 - interior)
    lips, lids, ears = (textures[k] * skin for k in ("lips", "eyelids", "ears"))

    eyes = [(l[36] + l[39]) / 2, (l[42] + l[45]) / 2]
    eye_distance = np.min([np.linalg.norm((v - c) / [1.25, 1, 1.2], axis=1) for c in eyes], axis=0)
    sides = np.array([[-1.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    cheek, alar = np.array([42.0, l[30, 1] + 4, l[30, 2] - 37]), np.array([44.0, l[33, 1] - 4, l[33, 2] - 32])

    jaw = (
        smoothstep(y, l[33, 1] - 2, l[33, 1] - 10)
        * smoothstep(y, l[8, 1] - 45, l[8, 1] - 10)
        * smoothstep(z, l[4, 2] - 30, l[4, 2])
    )
    sideburns = smoothstep(x, 54, 66) * smoothstep(y, bridge, l[31, 1]) * smoothstep(z, ear_z - 20, ear_z - 5)
    bare_cheek = np.max([_blob(v, alar * s, 19) for s in sides], axis=0)
    beard = np.maximum(jaw, 0.8 * sideburns) * (1 - lips) * (1 - bare_cheek) * (1 - ears)
    mouth = smoothstep(y, l[48, 1] - 3, l[48, 1] + 3)
    moustache = beard * mouth * smoothstep(x, 38, 26)
    goatee = beard * (1 - mouth) * smoothstep(x, 34, 24) * smoothstep(z, l[6, 2] - 25, l[6, 2])

    around = np.degrees(np.arctan2(x, z - (ear_z - 12)))
    hairline = bridge + PchipInterpolator(_HAIRLINE_DEG, _HAIRLINE_MM)(around)
    above = np.where(skin * (1 - ears) > 0.5, y - hairline, -1e3)
    top = np.array([0.0, y.max(), ear_z - 30])

    face = (
        smoothstep(z, ear_z - 5, ear_z + 5)
        * smoothstep(y, l[8, 1] - 15, l[8, 1] - 5)
        * smoothstep(y, bridge + 85, bridge + 75)
        * (1 - ears)
    )

    eyeballs = part["eye_left"] | part["eye_right"]
    towards = v * np.where(v[:, :1] > 0, 1, [-1, 1, 1]) - eye_centre
    angle = np.degrees(np.arccos(np.clip(towards[:, 2] / np.maximum(np.linalg.norm(towards, axis=1), 1e-9), -1, 1)))
    iris = eyeballs * smoothstep(angle, 25, 18.5)
    teeth = part["teeth_upper"] | part["teeth_lower"]
    # Light falls off from the middle of the ball outwards, and from the front of the mouth inwards.
    shade = np.ones(len(v))
    shade[eyeballs] = 1 - 0.45 * smoothstep(angle[eyeballs], 25, 70)
    for inside, depth in ((teeth, 16), (part["tongue"], 45)):
        shade[inside] = 0.15 + 0.85 * smoothstep(z[inside], z[inside].max() - depth, z[inside].max())
    masks = {
        "skin": skin,
        "lips": lips * on_face,
        "brows": brow_region(v, l, tilt=0.7) * on_face,
        "lids": lids * on_face,
        "lid_line": lids * np.exp(-((eye_distance / 20) ** 2)) * on_face,
        "sockets": np.exp(-((eye_distance / 18) ** 2)) * on_face,
        "cheeks": np.max([_blob(v, cheek * s, 23) for s in sides], axis=0) * on_face,
        "nose": _blob(v, l[30] - [0, 0, 8], 17) * on_face,
        "forehead": np.clip((y - bridge) / 80, 0, 1) * on_face,
        "beard": beard * on_face,
        "moustache": moustache * on_face,
        "goatee": goatee * on_face,
        "scalp": smoothstep(above, -10, 12) * (1 - ears) * on_face,
        "ears": ears,
        "interior": interior * skin,
        "face": face * on_face,
        "sclera": eyeballs * (1 - iris),
        "iris": iris,
        "pupil": eyeballs * smoothstep(angle, 12, 7),
        "teeth": teeth.astype(float),
        "tongue": part["tongue"].astype(float),
        "lashes": (part["lashes_left"] | part["lashes_right"]) * (1 - 0.6 * lash_tips),
        "shade": shade,
        "crown": _blob(v, top, 75) * on_face,
    }
    mirror = topology.submirror()
    symmetric = {name: np.clip((m + m[mirror]) / 2, 0, 1) for name, m in masks.items()}
    return Regions(above_hairline=(above + above[mirror]) / 2, **symmetric)


# ---------------------------------------------------------------------------------------------- samples and model


def smooth_fields(
    points: Float[np.ndarray, "point 3"], length_mm: float, count: int = 60, anchors: int = 700
) -> Float[np.ndarray, "point count"]:
    """Leading eigenfunctions of a Gaussian kernel of unit variance over the points (Nystroem from random anchors)."""
    rng = np.random.default_rng(0)
    chosen = points[rng.choice(len(points), anchors, replace=False)]

    def kernel(a, b):
        d2 = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T
        return np.exp(-np.maximum(d2, 0) / (2 * length_mm**2))

    variance, vectors = scipy.linalg.eigh(
        kernel(chosen, chosen) + 1e-6 * np.eye(anchors), subset_by_index=[anchors - count, anchors - 1]
    )
    return kernel(points, chosen) @ (vectors / np.sqrt(variance))


def sample_albedo(
    regions: Regions,
    vertices: Float[np.ndarray, "subvertex 3"],
    landmarks: Float[np.ndarray, "68 3"],
    count: int,
    seed: int,
) -> Float[np.ndarray, "count subvertex 3"]:
    """Random people's linear albedo."""
    rng = np.random.default_rng(seed)
    table = SkinTable()
    r = regions
    broad, fine = smooth_fields(vertices, 35.0), smooth_fields(vertices, 14.0)
    out = np.empty((count, len(vertices), 3), np.float32)

    def normal(mean=0.0, sigma=1.0):
        return mean + sigma * rng.normal()

    def field(modes, sigma):
        return modes @ rng.normal(size=modes.shape[1]) * sigma

    for i in range(count):
        tone = rng.beta(1.0, 1.35)  # 0 lightest, 1 darkest
        melanin = np.log(MELANIN_RANGE[0]) + tone * np.log(MELANIN_RANGE[1] / MELANIN_RANGE[0])
        blood = np.log(BLOOD * (1 - 0.3 * tone)) + 0.22 * rng.normal()
        melanin = melanin + field(broad, 0.10) + field(fine, 0.06)
        blood = blood + field(broad, 0.14) + field(fine, 0.13)
        melanin += r.sockets * normal(0.18, 0.15) + r.ears * normal(0, 0.05)
        melanin += r.lips * (normal(-0.35, 0.15) + 0.35 * tone) + r.forehead * normal(0.06, 0.06)
        blood += r.cheeks * normal(0.28, 0.2) + r.nose * normal(0.25, 0.2) + r.ears * normal(0.4, 0.2)
        blood += r.lips * normal(1.35, 0.3) * (1 - 0.25 * tone) + r.sockets * normal(0.15, 0.15) + 0.3 * r.lid_line
        colour = table(melanin, blood)

        blond = rng.beta(0.8, 1.6) * (1 - tone)
        hair = np.array([0.018, 0.014, 0.011]) * (1 - blond) + np.array([0.20, 0.125, 0.055]) * blond
        if rng.random() < 0.08:
            hair = np.full(3, 0.12 + 0.2 * rng.random())
        stubble = 0.7 * np.array([0.035, 0.033, 0.035]) + 0.3 * hair
        brows = brow_region(vertices, landmarks, np.exp(normal(0, 0.18)), normal(0, 1.0), normal(0.7, 0.8))
        brow = np.clip(normal(0.7, 0.2), 0.15, 0.98)
        bearded = (rng.random() < 0.5) * rng.beta(0.8, 2.2) * 0.85
        moustache, goatee = np.clip(bearded * np.array([normal(1.0, 0.5), normal(1.1, 0.4)]), 0, 0.9)
        beard = bearded * r.beard * (1 - r.moustache - r.goatee) + moustache * r.moustache + goatee * r.goatee
        scalp = smoothstep(r.above_hairline + normal(0, 2.5), -10, 12)
        bald = (rng.random() < 0.2) * rng.random()
        scalp = scalp * (1 - bald * r.crown) * np.clip(rng.beta(1.4, 1.0), 0, 0.97) * (rng.random() < 0.9)
        lashes = np.array([0.02, 0.015, 0.012]) + 0.1 * hair
        white = np.array([0.60, 0.54, 0.50]) * (1 - 0.15 * tone) * np.exp(0.06 * rng.normal(size=3))
        eye = _eye_colour(rng, tone)
        ivory = np.array([0.62, 0.54, 0.42]) * np.exp(0.08 * rng.normal(size=3))
        tongue = np.array([0.36, 0.13, 0.12]) * np.exp(0.10 * rng.normal(size=3))
        for where, what in (
            (beard, stubble),
            (scalp, 1.2 * hair),
            (brows * brow, 0.6 * hair + 0.006),
            (r.lid_line * 0.25, np.zeros(3)),
            (r.interior, np.array([0.09, 0.025, 0.02])),
            (r.sclera + r.iris, white),
            (r.iris, eye),
            (r.pupil, np.full(3, 0.008)),
            (r.teeth, ivory),
            (r.tongue, tongue),
            (r.lashes, lashes),
        ):
            colour = colour * (1 - where[:, None]) + where[:, None] * what
        out[i] = colour * r.shade[:, None]
    return out


# Linear RGB of irises: blue, grey-green, hazel, brown, dark brown.
_IRISES = np.array(
    [[0.10, 0.17, 0.25], [0.13, 0.16, 0.13], [0.15, 0.10, 0.045], [0.085, 0.042, 0.018], [0.035, 0.018, 0.010]]
)


def _eye_colour(rng, tone):
    """Darker skin goes with darker eyes on average; light skin with any."""
    place = np.clip(rng.beta(1.2, 1.2) + 1.2 * tone, 0, 1) * (len(_IRISES) - 1)
    i = min(int(place), len(_IRISES) - 2)
    return _IRISES[i] + (place - i) * (_IRISES[i + 1] - _IRISES[i])


@dataclass(frozen=True)
class AlbedoBasis:
    """mean + sum_k c_k scale[k] modes[k], sRGB-encoded, c ~ N(0, I); modes are 8-bit integers."""

    mean: Float[np.ndarray, "subvertex 3"]
    modes: Int[np.ndarray, "mode subvertex 3"]
    scale: Float[np.ndarray, "mode"]
    explained: Float[np.ndarray, "all"]


def importance(regions: Regions, area: Float[np.ndarray, "subvertex"]) -> Float[np.ndarray, "subvertex"]:
    """Weights of the albedo components' inner product: visible area, with small telling regions counted up."""
    gain = 1 + 3 * regions.face + 4 * np.maximum(regions.brows, regions.lips) + 15 * regions.iris + 8 * regions.sclera
    hidden = np.maximum.reduce([regions.interior, regions.teeth, regions.tongue])
    return area * gain * (1 - 0.9 * hidden)


def albedo_basis(
    samples: Float[np.ndarray, "count subvertex 3"],
    weights: Float[np.ndarray, "subvertex"],
    mirror: Int[np.ndarray, "subvertex"],
    count: int = COMPONENTS,
) -> AlbedoBasis:
    """Principal components of sRGB-encoded samples and their mirror images, each largest value positive.

    `weights` is the inner product: small regions that matter (eyes, brows, lips) count for more than their area.
    """
    encoded = encode_srgb(samples).astype(np.float32)
    n = len(encoded)
    mean = encoded.mean(axis=0, dtype=float)
    mean = (mean + mean[mirror]) / 2
    variances, modes = [], []
    for parity in (1, -1):
        half = (encoded + parity * encoded[:, mirror]) / 2
        if parity == 1:
            half = half - mean.astype(np.float32)
        flat = (half * np.sqrt(weights).astype(np.float32)[:, None]).reshape(n, -1)
        variance, scores = np.linalg.eigh((flat @ flat.T).astype(float) / n)
        top = np.argsort(-variance)[:count]
        variances.append(variance)
        modes.append(np.tensordot(scores[:, top].T.astype(np.float32) / np.sqrt(n), half, 1))
    every = np.concatenate([np.sort(v)[::-1][:count] for v in variances])
    modes = np.concatenate(modes)[np.argsort(-every, kind="stable")[:count]].astype(float)
    flat = modes.reshape(count, -1)
    peak = np.take_along_axis(flat, np.abs(flat).argmax(axis=1)[:, None], axis=1)[:, 0]
    scale = np.abs(peak) / 127
    integers = np.round(modes / (np.sign(peak) * scale)[:, None, None]).astype(np.int8)
    total = np.sort(np.concatenate(variances))[::-1]
    return AlbedoBasis(mean, integers, scale, np.cumsum(total) / total.sum())
