"""Converts encoded bytes, and pixel values of other widths, to 8-bit RGB.

All images of the library and all camera frames pass through here.

Knows neither files nor messages. Imports Pillow only to decode.
"""

from __future__ import annotations

import io
import re
import struct
from typing import TYPE_CHECKING

import numpy as np

from ros2_nanochat.errors import one_line, require
from ros2_nanochat.image_sources import MAX_BYTES

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 64 << 20
"""Pixels that a picture may have. An RGB copy of such a picture takes 200 MB."""

MAX_ASPECT = 100
"""Largest ratio of the longer side to the shorter one. A processor that scales the shorter side to 336 pixels
then makes the other one 34,000 pixels long.
"""

FORMATS = ('PNG', 'JPEG', 'WEBP', 'BMP', 'GIF', 'TIFF', 'PPM', 'MPO', 'AVIF')
"""Formats that Pillow may try, if it supports them. No others: EPS, for example, starts a program."""

_JPEG, _END_OF_JPEG = b'\xff\xd8\xff', b'\xff\xd9'
_SIGNATURES = (
    (4, b'ftypavi', 'AVIF, which this Pillow cannot decode'),
    (4, b'ftyphe', 'HEIC'),
    (4, b'ftypmif1', 'HEIF'),
    (4, b'ftypmsf1', 'HEIF'),
    (4, b'ftyp', 'a video'),
    (0, b'\0\0\0\1', 'H.264 or H.265 video'),
    (0, b'\0\0\1\0', 'an icon (ICO)'),
    (0, b'\0\0\1', 'H.264 or H.265 video'),
    (0, b'\x1aE\xdf\xa3', 'a video'),
    (0, b'%PDF', 'a PDF'),
    (0, b'<svg', 'SVG'),
    (0, b'<?xml', 'XML'),
    (0, b'<!DOCTYPE', 'a web page'),
    (0, b'<html', 'a web page'),
    (0, b'\0\0\0\x0cjP  ', 'JPEG 2000'),
    (0, b'\xff\x0a', 'JPEG XL'),
)


def check_size(width: int, height: int, name: str = 'the image') -> None:
    """Check the size of a picture in pixels.

    Raises:
        ValueError: It is empty, or larger than `MAX_PIXELS` or `MAX_ASPECT` allow.
    """
    if width < 1 or height < 1:
        raise ValueError(f'{name} is empty: it has no pixels ({width}x{height})')
    if width * height > MAX_PIXELS:
        raise ValueError(
            f'{name} is too large: {width}x{height} pixels, at most {MAX_PIXELS:,} in all;'
            ' scale it down first'
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ValueError(
            f'{name} is too narrow: {width}x{height} pixels, at most {MAX_ASPECT} times as long as wide; '
            'crop it first'
        )


def decode(data: bytes, name: str, *, cut: bool = False, targa: bool = False) -> Image.Image:
    """Decode an image file. The mode stays; `upright_rgb` converts it to RGB.

    Args:
        data: The file.
        name: What errors call it.
        cut: Accept a JPEG that is truncated; the missing part is grey.
        targa: Also try TGA, which only a file name can identify.

    Raises:
        ValueError: It is not an image, empty, too large, or broken.
    """
    if not data:
        raise ValueError(f'{name} is empty (0 bytes)')
    if len(data) > MAX_BYTES:
        raise ValueError(f'{name} is too large: {len(data):,} bytes, at most {MAX_BYTES:,}')
    picture = _identify(data, name, targa)
    width, height = picture.size
    check_size(width, height, name)
    try:
        picture.load()
        return picture
    except Exception as error:  # Pillow's decoders raise a dozen kinds on broken data
        if not (cut and data.startswith(_JPEG)):
            raise _undecodable(name, error) from error
    picture = _identify(data + _END_OF_JPEG, name, targa)
    try:
        picture.load()
    except Exception as error:
        raise _undecodable(name, error) from error
    return picture


def num_pixels(data: bytes) -> int:
    """Return how many pixels an image file has according to its header, 0 if that cannot be read. Decodes
    nothing.
    """
    try:
        width, height = _identify(data, 'the image', False).size
    except ValueError:
        return 0
    return width * height


def _undecodable(name: str, error: Exception) -> ValueError:
    return ValueError(f'{name} cannot be decoded: {one_line(error, 200)}')


def _identify(data: bytes, name: str, targa: bool) -> Image.Image:
    """Read only the header; the pixels are not decoded yet."""
    image_class = require('PIL.Image', 'vision')
    image_class.init()
    formats = [form for form in (*FORMATS, *['TGA'] * targa) if form in image_class.OPEN]
    try:
        return image_class.open(io.BytesIO(data), formats=formats)
    except (image_class.DecompressionBombError, image_class.DecompressionBombWarning) as error:
        size = re.search(r'\d+', str(error))  # Pillow's own bound is higher than ours
        said = f'{int(size[0]):,} pixels' if size else one_line(error, 200)
        raise ValueError(
            f'{name} is too large: {said}, at most {MAX_PIXELS:,} in all; scale it down first'
        ) from error
    except Exception as error:
        what = next((what for at, mark, what in _SIGNATURES if data[at:].startswith(mark)), None)
        unsupported = what and what.partition(',')[0] not in formats
        reason = f'it is {what}' if unsupported else 'or its beginning is broken'
        raise ValueError(
            f'{name} is not an image that can be opened ({", ".join(formats)}), {reason}'
        ) from error


def upright_rgb(picture: Image.Image, borrowed: bool = False) -> Image.Image:
    """Return a picture as RGB, rotated according to its EXIF block, without metadata.

    Transparent parts become white; 16 bits are scaled to 8.

    Args:
        picture: The picture.
        borrowed: Leave the picture that was passed unchanged.
    """
    from PIL import ExifTags, Image, ImageOps

    picture.load()
    orientation = _orientation(picture)
    if is_deep(picture):
        picture = Image.fromarray(to_8_bits(deep_pixels(picture)))
    elif picture.mode in ('LA', 'PA', 'La', 'RGBa', 'RGBA') or 'transparency' in picture.info:
        picture = picture.convert('RGBA')
        white = Image.new('RGBA', picture.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(white, picture)
    if picture.mode != 'RGB' or borrowed:
        picture = picture.convert('RGB')
    if orientation != 1:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        picture.info['exif'] = exif.tobytes()
        picture = ImageOps.exif_transpose(picture)
    picture.info.clear()
    return picture


def _orientation(picture: Image.Image) -> int:
    try:
        orientation = picture.getexif().get(0x0112, 1)
    except (OSError, ValueError, KeyError, TypeError, SyntaxError, IndexError, AttributeError, struct.error):
        return 1  # the pixels are fine without the EXIF block
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def is_deep(picture: Image.Image) -> bool:
    """Whether a picture is greyscale with more than 8 bits."""
    return picture.mode in ('I', 'F') or picture.mode.startswith('I;16')


def deep_pixels(picture: Image.Image) -> np.ndarray:
    """Return the values [h, w] of such a picture: uint16 if they fit, else int64 or float32."""
    values = np.asarray(picture)
    if picture.mode == 'I':
        values = values.astype(np.int64)
        return values.astype(np.uint16) if values.min() >= 0 and 255 < values.max() <= 65535 else values
    return values if picture.mode == 'F' else values.astype(np.uint16)


def to_8_bits(array: np.ndarray) -> np.ndarray:
    """Return pixel values as uint8.

    Integers above 255 are treated as 16 bits, scaled and rounded as OpenCV does. Floats range from 0 to 1 if
    none is larger.

    Raises:
        ValueError: The values are not pixels.
    """
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.kind not in 'iuf':
        raise ValueError(f'an array of {array.dtype} is not an image: 8 or 16 bit integers and floats are')
    if array.dtype == np.uint16:
        return _scaled(array)
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= (65535 if array.dtype.kind in 'iu' else 255)):
        allowed = (
            'floats from 0 to 1 or to 255'
            if array.dtype.kind == 'f'
            else 'integers from 0 to 255 or to 65535'
        )
        raise ValueError(f'values from {low} to {high} are not an image: {allowed} are')
    if array.dtype.kind == 'f':
        return np.rint(array * 255 if high <= 1 else array).astype(np.uint8)
    return _scaled(array) if high > 255 else array.astype(np.uint8)


def _scaled(array: np.ndarray) -> np.ndarray:
    """Scale 0..65535 to 0..255, rounded, in integers, which is quicker than dividing floats."""
    return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
