"""Reading scans: units, tables, colours and landmarks; and errors that name the file."""

import json

import numpy as np
import pytest
import trimesh

from morphable.building import BuildError, read_scans


def face(colours=None):
    mesh = trimesh.creation.icosphere(2, 90.0)
    return trimesh.Trimesh(mesh.vertices, mesh.faces, vertex_colors=colours, process=False)


def test_a_folder_of_meshes_is_a_person_each(tmp_path):
    face().export(tmp_path / "anna.ply")
    face().export(tmp_path / "ben.obj")
    (tmp_path / "notes.txt").write_text("not a mesh")
    scans = read_scans([tmp_path])
    assert [scan.subject for scan in scans] == ["anna", "ben"]
    assert {scan.expression for scan in scans} == {"neutral"}
    for scan in scans:
        np.testing.assert_allclose(scan.vertices[scan.triangles], face().triangles, atol=1e-3)
        assert scan.colours is None and scan.landmarks is None and scan.labels == {}


@pytest.mark.parametrize("unit,mm", [("mm", 1), ("cm", 10), ("m", 1000)])
def test_units_hold_for_landmarks_too(tmp_path, unit, mm):
    mesh = face()
    mesh.apply_scale(1 / mm)
    mesh.export(tmp_path / "anna.glb")
    marks = np.random.default_rng(0).normal(size=(68, 3)) * 50
    marks[3] = np.nan
    np.save(tmp_path / "anna.landmarks.npy", marks / mm)
    (scan,) = read_scans([tmp_path / "anna.glb"], unit)
    np.testing.assert_allclose(np.ptp(scan.vertices, axis=0), np.ptp(face().vertices, axis=0), rtol=1e-5)
    np.testing.assert_allclose(scan.landmarks, marks)


def test_landmarks_in_json_may_be_null(tmp_path):
    face().export(tmp_path / "anna.ply")
    (tmp_path / "anna.landmarks.json").write_text(json.dumps([None] * 60 + [[1, 2, None]] + [[1, 2, 3]] * 7))
    (scan,) = read_scans([tmp_path / "anna.ply"])
    assert np.isnan(scan.landmarks[:60]).all()
    np.testing.assert_array_equal(scan.landmarks[61:], np.tile([1.0, 2, 3], (7, 1)))


def test_a_table_names_people_expressions_and_labels(tmp_path):
    for name in ("a", "b", "c"):
        face().export(tmp_path / f"{name}.ply")
    rows = "file,subject,expression,age,height\na.ply,anna,,31,\nb.ply,anna,jawOpen,31,170\nc.ply,,neutral,,\n"
    (tmp_path / "scans.csv").write_text(rows)
    for source in (tmp_path, tmp_path / "scans.csv"):
        scans = read_scans([source])
        assert [(s.subject, s.expression) for s in scans] == [
            ("anna", "neutral"),
            ("anna", "jawOpen"),
            ("c", "neutral"),
        ]
        assert [s.labels for s in scans] == [{"age": 31.0}, {"age": 31.0, "height": 170.0}, {}]


def test_colours_of_vertices_and_textures(tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (len(face().vertices), 3)).astype(np.uint8)
    face(colours).export(tmp_path / "painted.ply")
    (scan,) = read_scans([tmp_path / "painted.ply"])
    np.testing.assert_allclose(scan.colours * 255, colours)
    from PIL import Image

    plain = face()
    uv = np.random.default_rng(1).uniform(0.1, 0.9, (len(plain.vertices), 2))
    image = Image.new("RGB", (8, 8), (51, 102, 204))
    textured = trimesh.Trimesh(
        plain.vertices,
        plain.faces,
        visual=trimesh.visual.TextureVisuals(uv, trimesh.visual.material.PBRMaterial(baseColorTexture=image)),
        process=False,
    )
    textured.export(tmp_path / "textured.glb")
    (scan,) = read_scans([tmp_path / "textured.glb"])
    np.testing.assert_allclose(scan.colours * 255, np.tile([51, 102, 204], (len(scan.vertices), 1)))


def test_errors_name_the_file(tmp_path):
    face().export(tmp_path / "a.ply")
    with pytest.raises(BuildError, match=r"a\.ply.*--unit"):
        read_scans([tmp_path / "a.ply"], "m")
    with pytest.raises(BuildError, match=r"unit: got 'inch'"):
        read_scans([tmp_path / "a.ply"], "inch")
    with pytest.raises(BuildError, match=r"gone\.ply: no such file"):
        read_scans([tmp_path / "gone.ply"])
    with pytest.raises(BuildError, match="twice"):
        read_scans([tmp_path / "a.ply", tmp_path / "a.ply"])
    (tmp_path / "broken.ply").write_bytes(b"ply\nformat ascii 1.0\nelement vertex 9\nend_header\n1 2")
    with pytest.raises(BuildError, match=r"broken\.ply"):
        read_scans([tmp_path / "broken.ply"])
    np.save(tmp_path / "a.landmarks.npy", np.zeros((5, 3)))
    with pytest.raises(BuildError, match=r"a\.landmarks\.npy.*\(68, 3\)"):
        read_scans([tmp_path / "a.ply"])
    (tmp_path / "scans.csv").write_text("file,age\na.ply,old\n")
    with pytest.raises(BuildError, match="line 2.*'old'"):
        read_scans([tmp_path])
    (tmp_path / "scans.csv").write_text("mesh\na.ply\n")
    with pytest.raises(BuildError, match="column 'file'"):
        read_scans([tmp_path])
    (tmp_path / "empty").mkdir()
    with pytest.raises(BuildError, match="without meshes"):
        read_scans([tmp_path / "empty"])
