"""A look inside a fit says what refitting would show; the page holds all of it in one file."""

import base64
import dataclasses
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from fitting.diagnostics import sample_report, term_influence
from fitting.heat_map import heat_map, ramp
from fitting.report import write_report
from fitting.schedule import coarse_to_fine


def test_influence_predicts_a_fit_without_the_term(fitter, photo, face, fitted):
    """To first order: the way the face goes, and about how far."""
    moved = term_influence(fitted)
    assert set(moved) == {"landmarks", "jaw", "photometric"}
    last = dataclasses.replace(coarse_to_fine()[-1], without=("jaw",), steps=20, tolerance=1e-5)
    without = fitter.fit(photo, face, (last,), start=fitted.parameters)
    expected, found = -moved["jaw"], without.vertices - fitted.vertices
    cosine = (expected * found).sum() / np.linalg.norm(expected) / np.linalg.norm(found)
    assert cosine > 0.7
    assert 0.3 < np.linalg.norm(found) / np.linalg.norm(expected) < 3.0


def test_samples_are_where_the_face_is(fitted):
    report = sample_report(fitted)
    used = report.belief > 0.5
    low, high = (f(fitted.problem.points_px, axis=0) for f in (np.min, np.max))
    side = np.max(high - low)
    assert (report.pixels[used] > low - 0.5 * side).all() and (report.pixels[used] < high + 0.2 * side).all()
    assert 0.3 < used.mean() <= 1
    size = np.sqrt((report.residual**2).mean(axis=1))
    assert size[used & (report.inlier > 0.5)].max() < size[used & (report.inlier < 0.1)].min()


def test_a_fit_without_the_photo_has_no_samples(fitter, photo, face):
    fit = fitter.fit(photo, face, coarse_to_fine()[:2])
    with pytest.raises(ValueError, match="left out the photometric term, expected one that looks"):
        sample_report(fit)


def test_colours_grow_lighter_with_the_value():
    light = ramp(np.linspace(0, 1, 50), 0.0, 1.0) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(light) > 0).all()
    signed = ramp(np.array([-2.0, -1.0, 0.0, 1.0, 2.0]), -1.0, 1.0, signed=True).astype(int)
    assert (signed[0] == signed[1]).all() and (signed[3] == signed[4]).all()
    assert signed[1, 2] > signed[1, 0] and signed[3, 0] > signed[3, 2] and np.ptp(signed[2]) < 10


def test_a_heat_map_is_hot_where_the_values_are(head):
    left = (np.asarray(head.mean)[:, 0] > 0).astype(np.float32)
    picture = heat_map(head, np.asarray(head.mean), left, 1.0, yaws=(0.0,), size=128).astype(int)
    bright = picture[:, :110].max(axis=2) * (np.abs(picture[:, :110] - [247, 247, 244]).max(axis=2) > 20)
    # The subject's left is on the picture's right.
    assert bright[60:110, 60:90].mean() > 1.5 * bright[60:110, 20:50].mean()


class _Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.sources, self.links = [], [], []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img", "br", "polygon", "rect"):
            self.open.append(tag)
        for name, value in attrs:
            if name == "src":
                self.sources.append(value)
            elif name == "href":
                self.links.append(value)

    def handle_endtag(self, tag):
        if tag not in ("polygon", "rect"):
            assert self.open.pop() == tag


def test_the_page_is_one_file_with_all_its_pictures(fitted, photo, tmp_path):
    named = dataclasses.replace(photo, path="<b>odd & name.jpg")
    write_report(tmp_path / "report.html", fitted, named)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = _Page()
    page.feed(text)
    assert page.open == [] and page.links == []  # every element closed; nothing outside is needed
    assert len(page.sources) >= 8
    for source in page.sources:
        picture = Image.open(io.BytesIO(base64.b64decode(re.sub("^data:image/webp;base64,", "", source))))
        assert min(picture.size) > 100 and np.asarray(picture).std() > 5
    assert "&lt;b&gt;odd &amp; name" in text and "<b>odd" not in text
    for record in fitted.stages:
        assert record["name"] in text
    said = re.sub("data:image/webp;base64,[^']*", "", text)
    assert fitted.result in said and not re.search(r"\bnan\b", said)
