"""Laws of the folder that results go to."""

import os

import pytest

from fitting import output


def _entries(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def test_output_folder_appears_whole_with_its_parents(tmp_path):
    out = tmp_path / "a" / "b"
    with output.output_folder(out) as temporary:
        (temporary / "fit.npz").write_text("x")
        (temporary / "deep").mkdir()
        (temporary / "deep" / "more.txt").write_text("y")
        assert not out.exists()
    assert _entries(tmp_path) == ["a", "a/b", "a/b/deep", "a/b/deep/more.txt", "a/b/fit.npz"]
    plain = tmp_path / "plain"
    plain.mkdir()
    assert out.stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_output_folder_leaves_nothing_when_the_work_fails(tmp_path, error):
    with pytest.raises(error), output.output_folder(tmp_path / "a" / "b") as temporary:
        (temporary / "fit.npz").write_text("half")
        raise error
    assert _entries(tmp_path) == []


def test_output_folder_keeps_other_files_and_replaces_its_own(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "fit.npz").write_text("old")
    with output.output_folder(tmp_path) as temporary:
        (temporary / "fit.npz").write_text("new")
    assert _entries(tmp_path) == ["fit.npz", "notes.txt"]
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "fit.npz").read_text() == "new"


def test_output_folder_restores_everything_when_one_file_cannot_move(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    (tmp_path / "z.txt").mkdir()  # a folder in the way of the last file
    (tmp_path / "z.txt" / "keep").write_text("mine")
    before = _entries(tmp_path)
    with pytest.raises(output.OutputError, match=r"z.txt|folder bears the name"), output.output_folder(tmp_path) as t:
        (t / "a.txt").write_text("new")
        (t / "z.txt").write_text("new")
    assert _entries(tmp_path) == before
    assert (tmp_path / "a.txt").read_text() == "old"


def test_check_writable_says_what_is_in_the_way_and_leaves_nothing(tmp_path):
    output.check_writable(tmp_path / "new" / "folder")
    output.check_writable(tmp_path)
    assert _entries(tmp_path) == []
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(output.OutputError, match="got the file.*Choose another"):
            output.check_writable(out)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a folder that nobody can write: Linux's /proc")
def test_check_writable_asks_the_file_system_not_the_permission_bits():
    with pytest.raises(output.OutputError, match="can be created or written.*permissions"):
        output.check_writable("/proc/self/results")
