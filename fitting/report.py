"""The page that `facefit fit --report` writes: one HTML file, pictures included, that opens anywhere."""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from fitting.diagnostics import crop_picture, sample_report, term_influence
from fitting.fit import Fit
from fitting.heat_map import heat_map, ramp, scale_bar
from fitting.observation import Photo
from fitting.pictures import overlay, turntable
from fitting.texture_map import face_texture
from fitting.uncertainty import posterior
from morphable.colour import linear_to_srgb
from renderer.camera import Pinhole
from renderer.render import render

Picture = UInt8[np.ndarray, "_ _ 3"]

_COLOURS = (
    "#3b5b92",
    "#c8663f",
    "#4e9a6b",
    "#8a6bb0",
    "#b59b3a",
    "#5aa6b8",
    "#b0557a",
    "#7a7a7a",
    "#94a35c",
    "#5f6f8f",
)
_STYLE = """
:root { color-scheme: light dark; --ink: #1e1e22; --soft: #6b6b73; --paper: #f7f7f4; --card: #fff; --line: #dcdcd6; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ececea; --soft: #a2a2aa; --paper: #17171a; --card: #212125; --line: #3a3a40; } }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 26px; margin: 0 0 2px; } h2 { font-size: 19px; margin: 36px 0 6px; }
p { margin: 6px 0 12px; max-width: 76ch; } .soft { color: var(--soft); }
figure { margin: 12px 0; } figcaption { color: var(--soft); font-size: 13px; }
img { max-width: 100%; border-radius: 6px; border: 1px solid var(--line); background: #f7f7f4; }
.row { display: flex; flex-wrap: wrap; gap: 14px; } .row figure { margin: 0; flex: 1 1 300px; }
table { border-collapse: collapse; background: var(--card); font-variant-numeric: tabular-nums; font-size: 14px; }
.wide { overflow-x: auto; } th, td { padding: 4px 10px; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; } thead th { color: var(--soft); font-weight: 500; }
pre { overflow-x: auto; font-size: 13px; background: var(--card); padding: 10px; }
.badge { display: inline-block; padding: 2px 10px; border-radius: 10px; color: #fff; background: #3d7a4d; }
.badge.failed { background: #a33a32; } svg text { fill: var(--ink); font-size: 12px; }
"""


def write_report(path: str | Path, fit: Fit, photo: Photo, drawn: tuple[Picture, Picture] | None = None) -> None:
    """Write what a fit found, how it came there and how sure it is, as one self-contained HTML page.

    `drawn` are the fit's `overlay` and `turntable` where they exist already; without, they are drawn here.
    """
    if drawn is None:
        texture = face_texture(fit, photo)
        drawn = overlay(fit, photo, texture), turntable(fit, texture)
    body = [
        _head(fit, photo),
        _figure(drawn[0], "Photo; landmarks given and fitted; the fit; its shape."),
        _figure(drawn[1], "The neutral head."),
        _energy_section(fit),
        _residual_section(fit),
        _influence_section(fit),
        _certainty_section(fit),
        _parameter_section(fit),
    ]
    page = (
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>facefit: {html.escape(Path(photo.path).name)}</title><style>{_STYLE}</style>"
        f"<main>{''.join(body)}</main></html>\n"
    )
    Path(path).write_text(page, encoding="utf-8")


# --------------------------------------------------------------------------------------------------------- sections


def _head(fit: Fit, photo: Photo) -> str:
    seconds = sum(fit.timings.values())
    depth = float(fit.camera.pose.translation()[2])
    source = fit.model.provenance
    reason = f"<p>{html.escape(fit.reason)}.</p>" if fit.reason else ""
    badge = "badge failed" if fit.result == "failed" else "badge"
    return (
        f"<h1>{html.escape(Path(photo.path).name)}</h1>"
        f"<p><span class='{badge}'>{html.escape(fit.result)}</span> &nbsp;<span class=soft>{photo.width} × "
        f"{photo.height} px; landmarks from {html.escape(fit.source)}; {html.escape(source.name)} "
        f"({html.escape(source.licence)}); fitted in {1e3 * seconds:.0f} ms; {depth / 10:.0f} cm from the camera, "
        f"focal length {float(fit.camera.focal[0]):.0f} px</span></p>{reason}"
    )


def _energy_section(fit: Fit) -> str:
    names = [n for n in fit.energies if any(r["energies"].get(n, 0.0) > 0.005 for r in fit.stages)]
    names.sort(key=lambda n: -fit.energies[n])
    rows = [
        [f"{r['name']} <span class=soft>({r['steps']} steps, {r['result']})</span>"]
        + [f"{r['energies'].get(n, float('nan')):.2f}" for n in names]
        + [f"{sum(v for v in r['energies'].values()):.2f}"]
        for r in fit.stages
    ]
    return (
        "<h2>Energy</h2><p>Half the squared residuals in standard deviations, term by term, at the end of each stage. "
        "Stages see different observations, so only rows of one stage can be compared in sum.</p>"
        + _table(["stage", *names, "sum"], rows)
        + _energy_chart(fit, names)
    )


def _energy_chart(fit: Fit, names: Sequence[str]) -> str:
    """The terms' energies step by step, stacked, each stage on a scale of its own."""
    width, height, gap, left = 1000, 210, 26, 8
    stages = [r for r in fit.stages if r["history"]]
    if not stages or not names:
        return ""
    steps = [max(len(r["history"]), 2) for r in stages]
    unit = (width - left - gap * len(stages)) / sum(steps)
    parts, x0 = [], float(left)
    for record, count in zip(stages, steps, strict=True):
        rows = np.array([[row.get(n, 0.0) for n in names] for row in record["history"]])
        rows = np.repeat(rows, 2, axis=0) if len(rows) == 1 else rows
        top = max(float(rows.sum(axis=1).max()), 1e-9)
        x = x0 + np.linspace(0, unit * count, len(rows))
        level = np.zeros(len(rows))
        for k in range(len(names)):
            upper = level + rows[:, k]
            to = lambda v: 26 + height * (1 - v / top)  # noqa: B023, E731
            points = [*zip(x, to(upper), strict=True), *zip(x[::-1], to(level)[::-1], strict=True)]
            outline = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
            parts.append(f"<polygon points='{outline}' fill='{_COLOURS[k % len(_COLOURS)]}'/>")
            level = upper
        parts.append(f"<text x='{x0:.0f}' y='16'>{html.escape(record['name'])}: {top:.1f}</text>")
        x0 += unit * count + gap
    legend, at = [], 8
    for k, name in enumerate(names):
        legend.append(
            f"<rect x='{at}' y='{height + 36}' width='11' height='11' fill='{_COLOURS[k % len(_COLOURS)]}'/>"
            f"<text x='{at + 16}' y='{height + 46}'>{html.escape(name)}</text>"
        )
        at += 30 + 7 * len(name)
    return (
        f"<figure><svg viewBox='0 0 {width} {height + 56}' role=img>{''.join(parts)}{''.join(legend)}</svg>"
        "<figcaption>Energy step by step; the number is each stage's highest sum.</figcaption></figure>"
    )


def _residual_section(fit: Fit) -> str:
    if fit.stage is None or not fit.stage.photometric:
        return ""
    report = sample_report(fit)
    used = report.belief * report.inlier
    seen = report.belief > 0.5
    difference = _difference(fit)
    twice = lambda picture: np.repeat(np.repeat(picture, 2, axis=0), 2, axis=1)  # noqa: E731
    pieces = [
        _figure(twice(crop_picture(fit)), "The crop as the last stage saw it."),
        _figure(difference, "Rendered minus photographed brightness, sRGB."),
        _figure(_samples(fit, report.pixels, report.belief, report.inlier), "Samples of the skin."),
    ]
    return (
        "<h2>What the photo says, and where it is not explained</h2>"
        f"<p>Of {len(seen)} samples {seen.sum()} are seen; {100 * np.mean(report.inlier[seen] > 0.25):.0f} % of these "
        "are explained within the robust kernel (green), the others count as outliers (red): shadows, highlights, "
        "hair, whatever the model does not have. Hollow ones are turned away, hidden, saturated or masked. The root "
        "mean square of the explained residuals is "
        f"{np.sqrt(np.average((report.residual**2).mean(axis=1), weights=used + 1e-9)):.3f}.</p>"
        f"<div class=row>{''.join(pieces)}</div>"
    )


def _influence_section(fit: Fit) -> str:
    influence = term_influence(fit)
    if not influence:
        return ""
    sizes = {name: np.linalg.norm(moved, axis=1) for name, moved in influence.items()}
    face = np.asarray(fit.model.masks.get("face", np.ones(len(fit.vertices)))) > 0.5
    limit = max(float(np.quantile(size[face], 0.98)) for size in sizes.values())
    figures = [
        _figure(
            heat_map(fit.model, fit.vertices, size, limit, size=320),
            f"{name}: {size[face].mean():.2f} mm in the mean over the face, at most {size[face].max():.1f}.",
        )
        for name, size in sorted(sizes.items(), key=lambda item: -float(item[1][face].mean()))
    ]
    return (
        "<h2>Which term moved which vertex</h2><p>How far each observation has moved the face from where the others "
        "and the priors would have left it, to first order.</p><div class=row>" + "".join(figures) + "</div>"
    )


def _certainty_section(fit: Fit) -> str:
    sure = posterior(fit)
    return (
        "<h2>How sure it is</h2><p>Root mean squared distance of each vertex from its true place, after the best rigid "
        "alignment of the face: from the landmarks' noise and the photo's own residuals, and the prior where neither "
        "says anything. What no term models is not in it.</p>"
        + _figure(sure.picture(fit.model, alignment="rigid"), "Standard deviations, mm; the face with its expression.")
        + f"<details><summary>What the photo says about each coefficient</summary><pre>"
        f"{html.escape(sure.conditioning().table())}</pre></details>"
    )


def _parameter_section(fit: Fit) -> str:
    units = sorted(zip(fit.model.expression_names, fit.expression.tolist(), strict=True), key=lambda item: -item[1])
    shown = [[html.escape(name), f"{weight:.2f}"] for name, weight in units[:10] if weight > 0.02]
    first = [[f"{k + 1}", f"{c:+.2f}"] for k, c in enumerate(fit.identity[:10].tolist())]
    return (
        "<h2>Coefficients</h2><div class=row><div>"
        + _table(["expression unit", "weight"], shown or [["none above .02", ""]])
        + "</div><div>"
        + _table(["identity", "standard deviations"], first)
        + f"<p class=soft>rms of all {len(fit.identity)}: {np.sqrt(np.mean(fit.identity**2)):.2f}</p></div></div>"
    )


# ---------------------------------------------------------------------------------------------------------- pieces


def _difference(fit: Fit) -> Picture:
    """Rendered minus photographed brightness in the crop, where the head is drawn."""
    problem, face, stage = fit.inside
    seen = np.asarray(problem.pyramid[stage.level])
    height, width = seen.shape[:2]
    focal = jnp.exp(face.log_focal)
    camera = Pinhole(jnp.stack([focal, focal]), problem.centre, face.pose, height, width)
    drawn = render(fit.mesh, camera, face.light, samples=2)
    colour = np.asarray(linear_to_srgb(jnp.clip(drawn.colour + face.offset, 0.0, 1.0)))
    error = (colour - seen).mean(axis=2)
    inside = (np.asarray(drawn.coverage) > 0.99) & (np.asarray(problem.valid) > 0.5)
    grey = np.repeat(np.rint(200 * seen.mean(axis=2, keepdims=True) + 30).astype(np.uint8), 3, axis=2)
    picture = np.where(inside[..., None], ramp(error, -0.25, 0.25, signed=True), grey)
    picture = np.repeat(np.repeat(picture, 2, axis=0), 2, axis=1)
    return np.concatenate([picture, scale_bar(2 * height, -0.25, 0.25, "", signed=True)], axis=1)


def _samples(fit: Fit, pixels: Float[np.ndarray, "sample 2"], belief, inlier) -> Picture:
    image = Image.fromarray(crop_picture(fit))
    scale = 3
    image = image.resize((scale * image.width, scale * image.height), Image.Resampling.BICUBIC)
    image = Image.blend(image, Image.new("RGB", image.size, (20, 20, 24)), 0.35)
    draw = ImageDraw.Draw(image)
    for (u, v), b, i in zip(scale * pixels, belief, inlier, strict=True):
        if b > 0.5:
            mix = np.array([196, 60, 52]) * (1 - i) + np.array([96, 214, 120]) * i
            draw.ellipse((u - 3, v - 3, u + 3, v + 3), fill=tuple(int(c) for c in mix))
        else:
            draw.ellipse((u - 2, v - 2, u + 2, v + 2), outline=(170, 170, 176))
    return np.asarray(image)


def _figure(picture: Picture, caption: str) -> str:
    return f"<figure><img src='{_data_uri(picture)}' alt=''><figcaption>{html.escape(caption)}</figcaption></figure>"


def _data_uri(picture: Picture) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "WEBP", quality=88, method=3)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells are HTML already."""
    cells = lambda tag, row: "".join(f"<{tag}>{cell}</{tag}>" for cell in row)  # noqa: E731
    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<div class=wide><table><thead><tr>{cells('th', head)}</tr></thead><tbody>{body}</tbody></table></div>"
