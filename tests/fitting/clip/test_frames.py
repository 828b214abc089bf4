"""Clips are read as players show them, whatever their files look like."""

import logging
import struct

import numpy as np
import pytest

from fitting.clip.frames import ClipWriter, VideoError, describe_video, read_frames

av = pytest.importorskip("av")

RED, GREEN, BLUE, GREY = (200, 40, 30), (40, 180, 60), (30, 60, 190), (128, 128, 128)


def quadrants(width=64, height=48):
    """A picture whose corners differ: red, green, below them blue, grey."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[: height // 2, : width // 2], picture[: height // 2, width // 2 :] = RED, GREEN
    picture[height // 2 :, : width // 2], picture[height // 2 :, width // 2 :] = BLUE, GREY
    return picture


def write(path, times, picture=None):
    with ClipWriter(path, quality=5) as writer:
        for time in times:
            writer.write(quadrants() if picture is None else picture, time)
    return path


def corners(pixels):
    h, w = pixels.shape[:2]
    return [
        pixels[y, x].astype(int) for y, x in ((h // 4, w // 4), (h // 4, 3 * w // 4), (3 * h // 4, w // 4), (-9, -9))
    ]


def near(pixels, colours, tolerance=6):
    assert np.abs(np.array(corners(pixels)) - np.array(colours)).max() <= tolerance, corners(pixels)


def test_a_written_clip_is_read_back(tmp_path):
    times = [0.0, 0.04, 0.08, 0.12]
    path = write(tmp_path / "clip.mp4", times)
    frames = list(read_frames(path))
    assert [f.index for f in frames] == [0, 1, 2, 3]
    np.testing.assert_allclose([f.time_s for f in frames], times, atol=1e-4)
    near(frames[0].photo.pixels, (RED, GREEN, BLUE, GREY))
    assert describe_video(path).width == 64


def test_uneven_times_stay_uneven(tmp_path):
    times = [0.0, 0.02, 0.1, 0.13, 0.5, 0.51]
    path = write(tmp_path / "clip.mp4", times)
    np.testing.assert_allclose([f.time_s for f in read_frames(path)], times, atol=1e-4)


def test_odd_sizes_are_made_even(tmp_path):
    path = write(tmp_path / "clip.mp4", [0.0, 0.1], quadrants(65, 47))
    assert next(read_frames(path)).photo.pixels.shape == (48, 66, 3)


def test_frames_are_picked_without_shifting_their_times(tmp_path):
    path = write(tmp_path / "clip.mp4", np.arange(8) / 10)
    assert [(f.index, round(f.time_s, 3)) for f in read_frames(path, start=2, every=3)] == [(2, 0.2), (5, 0.5)]
    assert [f.index for f in read_frames(path, wanted={1, 6})] == [1, 6]


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_rotation_is_honoured(tmp_path, turns):
    """A phone writes the sensor's rows and how to turn them, in the track header's matrix."""
    stored = np.rot90(quadrants(), -turns)
    path = write(tmp_path / "clip.mp4", [0.0, 0.1], np.ascontiguousarray(stored))
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # version 0: 40 bytes before the matrix
    # Counter-clockwise by `turns` quarters: the matrix acts on row vectors with v downwards.
    c, s = [(1, 0), (0, -1), (-1, 0), (0, 1)][turns]
    data[at : at + 36] = struct.pack(">9i", c << 16, s << 16, 0, -s << 16, c << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    frame = next(read_frames(path))
    assert frame.photo.pixels.shape == (48, 64, 3)
    near(frame.photo.pixels, (RED, GREEN, BLUE, GREY))
    clip = describe_video(path)
    assert (clip.width, clip.height) == (64, 48)


@pytest.mark.parametrize("matrix,full", [(1, False), (5, False), (1, True), (5, True)])
def test_colour_matrix_and_range_are_honoured(tmp_path, matrix, full):
    path = tmp_path / "clip.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.options = 64, 48, "yuv420p", {"crf": "4"}
        stream.codec_context.colorspace = matrix
        stream.codec_context.color_range = 2 if full else 1
        frame = av.VideoFrame.from_ndarray(quadrants(), format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace=matrix, dst_color_range=2 if full else 1)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    near(next(read_frames(path)).photo.pixels, (RED, GREEN, BLUE, GREY))


def test_what_is_no_video_is_refused(tmp_path):
    with pytest.raises(VideoError, match="no such file"):
        next(read_frames(tmp_path / "missing.mp4"))
    with pytest.raises(VideoError, match="folder"):
        next(read_frames(tmp_path))
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(VideoError, match="0 bytes"):
        next(read_frames(tmp_path / "empty.mp4"))
    (tmp_path / "text.mp4").write_text("this is no video at all, but some words\n" * 50)
    with pytest.raises(VideoError, match="cannot be opened|no frame can be decoded"):
        next(read_frames(tmp_path / "text.mp4"))


def test_sound_alone_is_refused(tmp_path):
    path = tmp_path / "sound.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
    with pytest.raises(VideoError, match="no video stream"):
        next(read_frames(path))


def test_a_file_cut_short_gives_the_frames_it_has(tmp_path, caplog):
    noise = np.random.default_rng(0).integers(0, 255, (24, 96, 128, 3)).astype(np.uint8)
    path = tmp_path / "clip.mp4"
    with ClipWriter(path, quality=10) as writer:
        for number, picture in enumerate(noise):
            writer.write(picture, number / 25)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    with caplog.at_level(logging.WARNING, "facefit"):
        count = sum(1 for _ in read_frames(path))
    assert 4 < count < 24
    assert "cut short" in caplog.text or "damaged" in caplog.text


def test_a_failed_clip_leaves_no_file(tmp_path):
    with pytest.raises(RuntimeError), ClipWriter(tmp_path / "clip.mp4") as writer:
        writer.write(quadrants(), 0.0)
        raise RuntimeError
    assert not list(tmp_path.iterdir())
