"""Pictures in memory: NumPy arrays, torch tensors, and objects that expose their pixels through the array
interface, such as jetson_utils' cudaImage.
"""

from __future__ import annotations

import re
import sys
from typing import Any

import numpy as np
from PIL import Image

from ros2_nanochat.errors import shown
from ros2_nanochat.image_sources import lends_pixels
from ros2_nanochat.vision.pixels import check_size, to_8_bits

_FORMATS = re.compile(r'(rgb|bgr)a?(8|32f)|gray(8|32f)')
"""Formats of cudaImage in which each pixel has its channels interleaved. The array of any other has a wrong
shape, and may be longer than its memory.
"""


def picture_from_array(source: Any) -> Image.Image:
    """Return a picture of an array; see `images.open_image` for the shapes and types.

    Raises:
        ValueError: It is not an array, or not one of an image.
    """
    array = _array(source)
    shape = array.shape
    while array.ndim > 3 and array.shape[0] == 1:
        array = array[0]
    if array.ndim == 3 and array.shape[-1] not in (1, 2, 3, 4) and array.shape[0] in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (1, 2, 3, 4)):
        raise ValueError(
            f'an array of shape {shape} is not an image: [h, w], [h, w, c] or [c, h, w] with c of 1 to 4 is'
        )
    if array.size == 0:
        raise ValueError(f'the image is empty (an array of shape {shape})')
    check_size(array.shape[1], array.shape[0])
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    return Image.fromarray(np.ascontiguousarray(to_8_bits(array)))


def _array(source: Any) -> np.ndarray:
    torch = sys.modules.get('torch')
    if torch is not None and isinstance(source, torch.Tensor):
        source = source.detach().cpu()
        source = source.float() if str(source.dtype) in ('torch.bfloat16', 'torch.float16') else source
        return source.numpy()
    if isinstance(source, np.ndarray):
        return source
    what = type(source).__name__
    if not lends_pixels(source):
        raise ValueError(
            f'a {what} is not an image: pass a path, URL, bytes, open file, PIL image, array or tensor'
        )
    form = getattr(source, 'format', '')
    if isinstance(form, str) and form and not _FORMATS.fullmatch(form):
        raise ValueError(
            f'a {what} has the format {shown(form)}, which is not supported: convert it to rgb8 first'
        )
    if getattr(source, '__array_interface__', None) is None:
        raise ValueError(
            f"the pixels of this {what} are only in the GPU's memory: pass"
            " torch.as_tensor(image, device='cuda'), or allocate it as mapped memory"
        )
    _wait_for_gpu(source)
    array = np.asarray(source)
    return array[..., [2, 1, 0, 3][: array.shape[-1]]] if str(form).startswith('bgr') else array


def _wait_for_gpu(source: Any) -> None:
    """Wait until the GPU has written the memory that it shares with the host. NumPy does not."""
    module = sys.modules.get(type(source).__module__)
    wait = getattr(module, 'cudaDeviceSynchronize', None)
    if wait is not None:
        wait()
