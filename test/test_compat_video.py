"""`VideoSource` ends where NanoLLM's vision example looks for the end, whatever the source holds."""

import logging

import numpy as np
import pytest
from PIL import Image

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
    assert not isinstance('a.png', ImageTypes)
    with pytest.raises(ValueError, match='return_tensors'):
        source.capture(return_tensors='tf')


def test_options_of_nanollm_without_effect_are_accepted(tmp_path, caplog):
    grey(40).save(tmp_path / 'a.png')
    given = ['--video-input', str(tmp_path), '--video-input-codec', 'h264', '--video-input-save', 'a.mp4']
    args = ArgParser(extras=['video_input']).parse_args(given)
    with caplog.at_level(logging.WARNING):
        assert seen(VideoSource(**vars(args), cuda_stream=0)) == [1]
    assert 'video_input_codec' in caplog.text and 'video_input_save' in caplog.text
