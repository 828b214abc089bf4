"""Live Link Face's CSV: its column order, its timecode, and that what is written is read back."""

import csv

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from fitting.live_link import (
    LIVE_LINK_COLUMNS,
    LIVE_LINK_UNITS,
    LiveLinkTake,
    live_link_take,
    read_live_link_csv,
    write_live_link_csv,
)
from renderer.camera import Pinhole


@pytest.fixture
def take():
    rng = np.random.default_rng(0)
    times = np.array([3599.98, 3600.0, 3600.017, 3601.5])
    turns = rng.normal(size=(3, 4, 3)) * 0.3
    return LiveLinkTake(times, rng.uniform(0, 1, (4, 52)), *turns)


def test_columns_are_the_apps_in_the_apps_order(tmp_path, take):
    write_live_link_csv(tmp_path / "take.csv", take)
    with (tmp_path / "take.csv").open() as file:
        header, *rows = csv.reader(file)
    assert tuple(header) == LIVE_LINK_COLUMNS and len(header) == 63
    # The app's order, which is not alphabetical and has right before left for jaw and mouth.
    assert header[:4] == ["Timecode", "BlendShapeCount", "EyeBlinkLeft", "EyeLookDownLeft"]
    assert header[16:21] == ["JawForward", "JawRight", "JawLeft", "JawOpen", "MouthClose"]
    assert header[23:25] == ["MouthRight", "MouthLeft"]
    assert header[53:57] == ["TongueOut", "HeadYaw", "HeadPitch", "HeadRoll"]
    assert header[57:] == [f"{e}Eye{a}" for e in ("Left", "Right") for a in ("Yaw", "Pitch", "Roll")]
    assert [row[1] for row in rows] == ["61"] * 4
    assert [row[0] for row in rows] == ["00:59:59:58.800", "01:00:00:00.000", "01:00:00:01.020", "01:00:01:30.000"]


@pytest.mark.parametrize("fps", [24.0, 29.97, 60.0])
def test_what_is_written_is_read_back(tmp_path, take, fps):
    write_live_link_csv(tmp_path / "take.csv", take, fps)
    read = read_live_link_csv(tmp_path / "take.csv", fps)
    assert np.allclose(read.times, take.times, atol=0.5e-3 / 24)
    assert np.allclose(read.weights, take.weights, atol=1e-8)
    for name in ("head", "left_eye", "right_eye"):
        assert np.allclose(getattr(read, name), getattr(take, name), atol=1e-6)
    names = ("jawOpen", "wrinkle", "tongueOut")
    assert np.array_equal(read.expression(names)[:, ::2], read.weights[:, [17, 51]])
    assert np.all(read.expression(names)[:, 1] == 0)


def test_the_head_model_has_all_units_and_its_gaze_gives_the_eyes_angles(head, tmp_path):
    assert set(head.expression_names) == set(LIVE_LINK_UNITS)
    expression = np.zeros((2, 52))
    expression[1, head.unit("eyeLookOutLeft")] = 1.0
    expression[1, head.unit("jawLeft")] = 0.25
    faces, turned = np.diag([1.0, -1, -1]), Rotation.from_euler("y", 0.4).as_matrix()
    K = np.array([[800.0, 0, 150], [0, 800, 200], [0, 0, 1]])
    cameras = [Pinhole.from_opencv(K, R, np.array([0, 0, 600.0]), 400, 300) for R in (faces, faces @ turned)]
    write_live_link_csv(tmp_path / "a.csv", live_link_take(head, np.array([0.0, 0.04]), expression, cameras), 25.0)
    with (tmp_path / "a.csv").open() as file:
        first, second = csv.DictReader(file)
    assert all(abs(float(first[name])) < 1e-6 for name in LIVE_LINK_COLUMNS[2:])
    assert second["Timecode"] == "00:00:00:01.000" and float(second["JawLeft"]) == 0.25
    assert abs(float(second["HeadYaw"]) - 0.4) < 1e-6  # towards the subject's left
    assert abs(float(second["LeftEyeYaw"]) - np.radians(30)) < 1e-4  # out is the subject's left


def test_recordings_with_another_case_without_angles_and_with_lost_frames_are_read(tmp_path):
    names = [unit.upper() for unit in LIVE_LINK_UNITS]
    lines = [",".join(["Timecode", "BlendshapeCount", *names])]
    lines += [",".join(["10:00:00:01.500", "52", *["0.5"] * 52]), "10:00:00:02.500,0", ""]
    (tmp_path / "old.csv").write_text("\n".join(lines))
    take = read_live_link_csv(tmp_path / "old.csv", 60.0)
    assert np.allclose(take.times, 36000 + 1.5 / 60) and np.all(take.weights == 0.5) and np.all(take.head == 0)


def test_bad_files_and_rates_are_named(tmp_path, take, tiny):
    (tmp_path / "other.csv").write_text("frame,JawOpen\n0,1\n")
    with pytest.raises(ValueError, match="other.csv: not a Live Link Face CSV"):
        read_live_link_csv(tmp_path / "other.csv")
    write_live_link_csv(tmp_path / "take.csv", take)
    broken = (tmp_path / "take.csv").read_text().replace("01:00:00:00.000", "later")
    (tmp_path / "take.csv").write_text(broken)
    with pytest.raises(ValueError, match="take.csv, line 3"):
        read_live_link_csv(tmp_path / "take.csv")
    with pytest.raises(ValueError, match="at least 1"):
        write_live_link_csv(tmp_path / "take.csv", take, fps=0.0)
    late = LiveLinkTake(take.times + 86400, take.weights, take.head, take.left_eye, take.right_eye)
    with pytest.raises(ValueError, match="24 hours"):
        write_live_link_csv(tmp_path / "take.csv", late)
