"""Objects that lend their pixels as an array, as jetson_utils' cudaImage does, are pictures or refused."""

import sys

import numpy as np
import pytest

from ros2_nanochat.chat.message import is_image
from ros2_nanochat.vision.images import open_image


class LentPixels:
    """Has what jetson_utils' cudaImage has (python/bindings/PyCUDA.cpp), with its pixels on the host."""

    def __init__(self, pixels, format='rgb8', mapped=True):
        self.pixels, self.format, self.mapped = pixels, format, mapped
        self.shape = pixels.shape

    @property
    def __cuda_array_interface__(self):
        pointer = (self.pixels.ctypes.data, False)
        return {'shape': self.shape, 'typestr': self.pixels.dtype.str, 'data': pointer, 'version': 3}

    @property
    def __array_interface__(self):
        return self.__cuda_array_interface__ if self.mapped else None


@pytest.mark.parametrize('type_', [np.uint8, np.float32])
@pytest.mark.parametrize('order', ['rgb', 'rgba', 'bgr', 'bgra', 'gray'])
def test_lent_pixels_have_the_colours_that_their_format_names(order, type_):
    rgba = np.random.default_rng(0).integers(0, 256, (6, 8, 4)).astype(np.uint8)
    rgba[..., 3] = 255
    columns = ['rgba'.index(name) for name in order] if order != 'gray' else [0]
    lent = LentPixels(
        np.ascontiguousarray(rgba[..., columns]).astype(type_), f'{order}{8 if type_ is np.uint8 else "32f"}'
    )
    wanted = rgba[..., [0, 0, 0]] if order == 'gray' else rgba[..., :3]
    assert is_image(lent) and np.array_equal(np.asarray(open_image(lent)), wanted)


@pytest.mark.parametrize(
    'format, mapped, says', [('nv12', True, 'rgb8'), ('yuyv', True, 'rgb8'), ('rgb8', False, 'GPU')]
)
def test_lent_pixels_that_cannot_be_read_are_refused_in_one_line(format, mapped, says):
    lent = LentPixels(np.zeros((6, 8, 3), np.uint8), format, mapped)
    assert is_image(lent)
    with pytest.raises(ValueError, match=says) as caught:
        open_image(lent)
    assert '\n' not in str(caught.value)


def test_the_gpu_has_written_lent_pixels_before_they_are_read(monkeypatch):
    pixels = np.zeros((6, 8, 3), np.uint8)
    monkeypatch.setattr(sys.modules[__name__], 'cudaDeviceSynchronize', lambda: pixels.fill(7), raising=False)
    assert np.asarray(open_image(LentPixels(pixels))).min() == 7
