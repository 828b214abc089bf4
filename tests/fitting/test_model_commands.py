"""`facefit model ...` as a user types it, on small models."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

import morphable
from fitting.cli import main
from fitting.mesh_landmarks import find_landmarks
from morphable.io.embedding import read_embedding, with_landmarks, write_embedding
from morphable.landmarks import INNER


def run(*arguments) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["model", *map(str, arguments)])
    return int(ended.value.code or 0)


@pytest.fixture
def small(tiny, tmp_path):
    path = tmp_path / "tiny.npz"
    morphable.save(path, tiny)
    return path


def test_info_says_what_a_model_holds(small, capsys):
    assert run("info", small) == 0
    said = capsys.readouterr().out
    assert "CC0-1.0 (free)" in said and "identity: 6 components" in said and "mouthSmileLeft" in said


def test_validate_lists_findings_and_tells_by_its_code(small, tiny, capsys, tmp_path):
    from morphable.default_model.build import HEAD_FILE

    assert run("validate", HEAD_FILE) == 0
    assert "0 error(s), 0 warning(s)" in capsys.readouterr().out
    assert run("validate", small) == 1  # the tiny model's landmarks lie anywhere
    assert "error: landmarks" in capsys.readouterr().out


def test_convert_writes_our_format_with_edited_landmarks(small, tiny, tmp_path, capsys):
    places = tmp_path / "places.json"
    write_embedding(places, tiny)
    content = json.loads(places.read_text())
    content["landmarks"][30] |= {"vertices": [84, 84, 84], "weights": [1, 0, 0]}
    places.write_text(json.dumps(content))
    assert run("convert", small, "-o", tmp_path / "out.npz", "--landmarks", places) == 0
    again = morphable.load(tmp_path / "out.npz")
    np.testing.assert_allclose(again.landmarks(again.mean)[30], tiny.mean[84], atol=1e-4)
    np.testing.assert_allclose(again.landmarks(again.mean)[31:], tiny.landmarks(tiny.mean)[31:], atol=1e-3)
    assert run("convert", small, "-o", tmp_path / "out.obj") == 2 and "ends in .npz" in capsys.readouterr().err


def test_damaged_landmark_files_are_refused(tiny, tmp_path):
    path = tmp_path / "places.json"
    for text in ("{", "[]", '{"landmarks": []}', '{"landmarks": [{"ibug": 0, "vertices": [0], "weights": "x"}]}'):
        path.write_text(text)
        with pytest.raises(morphable.ModelFileError, match="facefit model landmarks"):
            read_embedding(path, tiny)
    write_embedding(path, tiny)
    path.write_text(path.read_text().replace('"vertices": [', '"vertices": [1000', 1))
    with pytest.raises(morphable.ModelFileError, match="another model"):
        read_embedding(path, tiny)


def test_transfer_writes_the_other_topology_and_its_cameras(small, tiny, tmp_path, capsys):
    fit = tmp_path / "fit"
    fit.mkdir()
    identity = jnp.array([1.0, 0, 0, 0.5, 0, 0])
    neutral = np.asarray(tiny.neutral(identity))
    turn = np.array([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]])
    np.savez(
        fit / "fit.npz",
        vertices=neutral,
        neutral_vertices=neutral,
        triangles=tiny.triangles,
        K=np.eye(3)[None],
        R=turn[None],
        t=np.array([[1.0, 2, 900]]),
    )
    assert run("transfer", fit, "--to", small, "--model", small, "-o", tmp_path / "out") == 0
    assert "counterpart" in capsys.readouterr().out
    moved = np.load(tmp_path / "out" / "transfer.npz")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        *("mesh.obj", "neutral.obj", "transfer.json", "transfer.npz"),
    ]
    # The other model's face, seen by its cameras, is where the fit was.
    seen = np.asarray(tiny.neutral(jnp.asarray(moved["identity"], jnp.float32))) @ moved["R"][0].T + moved["t"][0]
    wanted = neutral @ turn.T + [1.0, 2, 900]
    assert np.median(np.linalg.norm(seen - wanted, axis=1)) < 0.5
    assert run("transfer", fit, "--to", small, "-o", tmp_path / "no") == 2  # a fit of another model than the default
    assert "--model" in capsys.readouterr().err


def test_compare_prints_a_table(small, capsys):
    assert run("compare", small, small, "--people", 1) == 0
    said = capsys.readouterr().out
    assert "the same" in said and "1.000 of the first's" in said
    assert run("compare", small, small, "--people", 0) == 2


def test_landmarks_found_in_pictures_lie_where_the_model_has_them(head):
    found = find_landmarks(head, ((0.0, 0.0), (-15.0, 0.0), (15.0, 0.0)))
    apart = np.linalg.norm(found.positions - np.asarray(head.landmarks(head.mean)), axis=1)
    assert found.views == 3 and np.median(apart[INNER]) < 3.5 and np.median(found.spread_mm) < 3
    placed = with_landmarks(head, found.points)
    np.testing.assert_allclose(placed.landmarks(placed.mean), found.positions, atol=0.01)


def test_build_makes_a_model_of_scans_and_reports(small, tiny, tmp_path, capsys):
    import trimesh

    folder = tmp_path / "scans"
    folder.mkdir()
    for k in range(3):
        vertices = np.asarray(tiny.neutral(jnp.zeros(6).at[k].set(1.5)))
        trimesh.Trimesh(vertices, np.asarray(tiny.triangles), process=False).export(folder / f"person_{k}.ply")
        np.save(folder / f"person_{k}.landmarks.npy", np.asarray(tiny.landmarks(jnp.asarray(vertices))))
    out = tmp_path / "built.npz"
    assert run("build", folder, "-o", out, "--template", small, "--name", "mine", "--no-detect") == 0
    said = capsys.readouterr().out
    assert "mine:" in said and "compactness" in said.lower() and "generalisation" in said.lower()
    built = morphable.load(out)
    assert built.provenance.name == "mine" and built.shape.rank >= 2
    np.testing.assert_array_equal(built.triangles, tiny.triangles)
    assert run("build", tmp_path / "nothing.ply", "-o", out) == 2
