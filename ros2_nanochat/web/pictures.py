"""Pictures that pages show: uploads, which are checked, and small copies of what went with questions."""

from __future__ import annotations

import io
import secrets
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ros2_nanochat.vision.images import open_image

MAX_UPLOAD = 16 << 20
"""Bytes of an upload."""
_KEPT = 200  # small copies, of 30 kB each
_QUALITY = 80


@dataclass(frozen=True)
class Upload:
    """A picture that a page has sent.

    Attributes:
        data: The file as it came.
        small: Name of its small copy.
    """

    data: bytes
    small: str


def check(data: bytes, side: int = 320) -> bytes:
    """Open an uploaded picture like any other image.

    Args:
        data: A file.
        side: Longer side of the copy in pixels.

    Returns:
        A small copy as JPEG.

    Raises:
        ValueError: It is no image, truncated, or too large.
    """
    if len(data) > MAX_UPLOAD:
        raise ValueError(
            f'the picture is too large: {len(data):,} bytes, at most {MAX_UPLOAD:,}; scale it down first'
        )
    return _jpeg(open_image(data, urls=False), side)


def small_jpeg(pixels: np.ndarray, side: int) -> bytes:
    """Return RGB pixels as JPEG, scaled down to `side` pixels.

    Args:
        pixels: [h, w, 3] uint8.
        side: Longer side of the result at most.
    """
    # A whole step first: halving a large frame in NumPy costs a tenth of what resampling all of it does.
    step = max(1, max(pixels.shape[:2]) // (2 * side))
    return _jpeg(Image.fromarray(np.ascontiguousarray(pixels[::step, ::step])), side)


def _jpeg(picture: Image.Image, side: int) -> bytes:
    scale = side / max(picture.size)
    if scale < 1:
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture = picture.resize(size, Image.Resampling.BILINEAR)
    out = io.BytesIO()
    picture.convert('RGB').save(out, 'JPEG', quality=_QUALITY)
    return out.getvalue()


class Album:
    """The latest small copies, by names that nobody can guess."""

    def __init__(self, kept: int = _KEPT):
        self._kept = kept
        self._pictures: OrderedDict[str, bytes] = OrderedDict()

    def add(self, jpeg: bytes) -> str:
        """Keep a picture, and return its name."""
        name = secrets.token_urlsafe(12)
        self._pictures[name] = jpeg
        while len(self._pictures) > self._kept:
            self._pictures.popitem(last=False)
        return name

    def get(self, name: str) -> bytes | None:
        """Return a picture, None if it is not kept (any more)."""
        return self._pictures.get(name)
