"""`VideoSource` ends where NanoLLM's vision example looks for the end, whatever the source holds."""

import io
import logging
import os
import sys
import types

import numpy as np
import pytest
from PIL import Image
from test_lent_pixels import LentPixels

from ros2_nanochat.compat.plugins import VideoSource
from ros2_nanochat.compat.utils import ArgParser, ImageTypes


def grey(value):
    return Image.new('RGB', (16, 16), (value,) * 3)


def write_video(path, count):
    cv2 = pytest.importorskip('cv2')
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'MJPG'), 5, (16, 16))
    for n in range(count):
        writer.write(np.array(grey(40 * n + 40)))
    writer.release()


def seen(source, limit=20):
    """The grey values of the pictures, asked for in the way of NanoLLM's example."""
    values = []
    for _ in range(limit):
        picture = source.capture()
        if picture is None:
            continue
        values.append(round(float(np.asarray(picture).mean()) / 40))
        if source.eos:
            return values
    raise AssertionError(f'no end after {limit} pictures: {values}')


def test_a_video_file_ends_with_its_last_picture(tmp_path):
    write_video(tmp_path / 'a.avi', 3)
    assert seen(VideoSource(str(tmp_path / 'a.avi'))) == [1, 2, 3]
    assert seen(VideoSource(str(tmp_path / 'a.avi'), loops=1)) == [1, 2, 3, 1, 2, 3]


@pytest.mark.parametrize('broken', [0, 1, 2, 3])
def test_image_files_that_cannot_be_opened_are_skipped(tmp_path, broken, caplog):
    for n in range(3):
        grey(40 * n + 40).save(tmp_path / f'{n}.png')
    (tmp_path / f'{broken}.png').write_bytes(b'no image')
    with caplog.at_level(logging.WARNING):
        source = VideoSource(str(tmp_path))
        assert source.streaming
        assert seen(source) == [n + 1 for n in range(3) if n != broken] and not source.streaming
    assert f'{broken}.png is skipped' in caplog.text


def test_a_source_without_a_picture_is_refused(tmp_path):
    (tmp_path / 'a.png').write_bytes(b'no image')
    (tmp_path / 'b.avi').write_bytes(b'no video')
    for path in (tmp_path, tmp_path / 'b.avi', tmp_path / '*.jpg'):
        with pytest.raises(ValueError) as caught:
            VideoSource(str(path), loops=-1)
        assert '\n' not in str(caught.value)


class Camera:
    """In place of cv2.VideoCapture: shows what is before it now. Counts the pictures that were read."""

    def __init__(self, now):
        self.now, self.read_count = now, 0

    def read(self):
        self.read_count += 1
        return self.now is not None, self.now and np.asarray(grey(self.now))

    def isOpened(self):
        return True


@pytest.mark.parametrize('kind', ['device', 'link to a device', 'pipe', 'address'])
def test_a_picture_of_a_camera_is_of_the_moment_it_is_asked_for(tmp_path, kind, monkeypatch):
    camera = Camera(40)
    monkeypatch.setitem(
        sys.modules,
        'cv2',
        types.SimpleNamespace(
            VideoCapture=lambda name: camera, CAP_PROP_FRAME_WIDTH=3, CAP_PROP_FRAME_HEIGHT=4, CAP_PROP_FPS=5
        ),
    )
    path = {'device': '/dev/zero', 'address': 'rtsp://robot/cam'}.get(kind, str(tmp_path / 'video0'))
    if kind == 'pipe':
        os.mkfifo(path)
    elif kind == 'link to a device':
        os.symlink('/dev/zero', path)
    source = VideoSource(path)
    assert camera.read_count == 0  # opening it does not wait for a picture
    for count, camera.now in enumerate((80, 120, 160), 1):
        assert np.asarray(source.capture()).mean() == camera.now
        assert camera.read_count == count and not source.eos
    camera.now = None
    assert source.capture() is None and source.eos


def test_a_program_that_goes_on_after_the_end_is_told(tmp_path):
    grey(40).save(tmp_path / 'a.png')
    source = VideoSource(str(tmp_path / 'a.png'))
    assert source.capture() is not None and source.capture() is None
    with pytest.raises(ValueError, match='has ended'):
        source.capture()


def test_pictures_come_as_arrays_and_tensors(tmp_path):
    torch = pytest.importorskip('torch')
    grey(40).save(tmp_path / 'a.png')
    source = VideoSource(str(tmp_path / 'a.png'), return_tensors='np', loops=-1)
    assert source.capture().shape == (16, 16, 3)
    tensor = source.capture(return_tensors='pt')
    assert isinstance(tensor, torch.Tensor) and isinstance(tensor, ImageTypes)
    with pytest.raises(ValueError, match='return_tensors'):
        source.capture(return_tensors='tf')


def test_image_types_are_those_of_nanollm_and_what_lends_pixels(tmp_path):
    torch = pytest.importorskip('torch')
    pixels = np.zeros((6, 8, 3), np.uint8)
    grey(40).save(tmp_path / 'a.png')
    for picture in (
        grey(40),
        pixels,
        torch.zeros(3, 6, 8),
        torch.zeros(2, 3, 6, 8),
        torch.nn.Parameter(torch.zeros(3, 6, 8)),
        LentPixels(pixels),
        LentPixels(pixels, mapped=False),
    ):
        assert isinstance(picture, ImageTypes), type(picture)
    data = (tmp_path / 'a.png').read_bytes()
    with open(tmp_path / 'a.png', 'rb') as file:
        for other in (
            file,
            io.BytesIO(data),
            data,
            bytearray(data),
            memoryview(data),
            'a.png',
            tmp_path / 'a.png',
            None,
            3,
            np.float32(3),
            [pixels],
            np.ndarray,
            torch.Tensor,
            LentPixels,
            torch.float32,
        ):
            assert not isinstance(other, ImageTypes), other


def test_options_of_nanollm_without_effect_are_accepted(tmp_path, caplog):
    grey(40).save(tmp_path / 'a.png')
    given = ['--video-input', str(tmp_path), '--video-input-codec', 'h264', '--video-input-save', 'a.mp4']
    args = ArgParser(extras=['video_input']).parse_args(given)
    with caplog.at_level(logging.WARNING):
        assert seen(VideoSource(**vars(args), cuda_stream=0)) == [1]
    assert 'video_input_codec' in caplog.text and 'video_input_save' in caplog.text
