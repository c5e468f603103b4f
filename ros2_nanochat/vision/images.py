"""Opens images safely: whatever comes in, an upright RGB picture of a sane size comes out, or one
`ValueError` line.

Knows nothing of models. An address on the web is opened only where the caller says so; see `fetch`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import os
import stat
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_to_bytes, urlsplit

import numpy as np
from PIL import ExifTags, Image, ImageOps

from ros2_nanochat.vision.fetch import fetch

MAX_BYTES = 64 << 20
"""An encoded image may be this large, in bytes."""

MAX_PIXELS = 64 << 20
"""A picture may have this many pixels: the largest cameras' fit, and an RGB copy takes 200 MB."""

MAX_ASPECT = 100
"""The longer side over the shorter one. A processor that scales the shorter side to 336 pixels makes 34,000
of the other with this.
"""

FORMATS = ('PNG', 'JPEG', 'WEBP', 'BMP', 'GIF', 'TIFF', 'PPM', 'MPO')
"""Formats of Pillow that are tried. Others (EPS, say, which starts another program) are not."""

EXTENSIONS = ('.png', '.jpg', '.jpeg', '.bmp', '.gif', '.webp', '.tif', '.tiff', '.ppm', '.pgm')
"""Endings by which a text is taken for the name of an image."""


def is_image_reference(text: Any) -> bool:
    """Whether a text is nothing but the name of an image: a path or web address with an image's ending, or a
    `data:image/` URL. A sentence that ends in such a name is text, unless a file is called just so.
    """
    if not isinstance(text, str) or not text or '\n' in text or '\0' in text:
        return False
    blank = any(c.isspace() for c in text)
    if text[:11].lower() == 'data:image/':
        return not blank
    scheme = text.partition('://')[0].lower()
    if scheme in ('http', 'https', 'file'):
        try:
            return not blank and urlsplit(text).path.lower().endswith(EXTENSIONS)
        except ValueError:
            return False
    return text.lower().endswith(EXTENSIONS) and (not blank or os.path.isfile(text))


def open_image(source: Any, urls: bool = True) -> Image.Image:
    """Open an image and return it as upright RGB, loaded.

    source: a path, `http(s)://`, `file://` or `data:image/` URL; encoded bytes; a PIL image; an array or
    torch tensor of [h, w], [h, w, c] or [c, h, w] with c of 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGBA),
    as integers of 8 or 16 bits, or floats from 0 to 1 or to 255.
    urls: whether strings may name something outside: addresses and paths. False for what comes from a
    stranger. Transparent parts become white; 16 bits are scaled to 8; of several frames the first is taken.
    ValueError: not an image, truncated, empty, or larger than `MAX_BYTES`, `MAX_PIXELS` or `MAX_ASPECT`.
    """
    if getattr(source, 'opened_digest', None):
        return source
    if isinstance(source, Image.Image):
        picture, name = source, 'the image'
    elif isinstance(source, (str, os.PathLike)):
        if not urls:
            raise ValueError(
                f'the name of an image ({_short(source)}) is not followed here: pass the image itself'
            )
        source = os.fspath(source)
        data, name = _read(source), _short(source)
        picture = _identify(data, name)
    elif isinstance(source, (bytes, bytearray, memoryview)):
        name = f'the image of {len(source)} bytes'
        picture = _identify(bytes(source), name)
    else:
        picture, name = _from_array(source), 'the image'
    _check_size(picture.size, name)
    try:
        opened = _upright_rgb(picture, picture is source)
    except Exception as error:  # Pillow's decoders raise a dozen different ones on broken data
        raise ValueError(f'{name} cannot be decoded: {_reason(error)}') from error
    opened.opened_digest = image_digest(
        opened
    )  # it is ours alone: what was opened once is taken as it is from then on
    if isinstance(source, str) and os.path.isfile(source):
        opened.filename = source
    return opened


def image_digest(picture: Image.Image) -> bytes:
    """16 bytes that name the pixels of a picture."""
    if getattr(picture, 'opened_digest', None):
        return picture.opened_digest
    digest = hashlib.sha256(
        repr((picture.mode, picture.size)).encode()
    )  # most processors have instructions for it: 3 ms for a frame of 1080p
    digest.update(np.ascontiguousarray(picture))
    return digest.digest()[:16]


def _short(name: Any) -> str:
    text = repr(os.fspath(name))
    return text if len(text) <= 100 else f'{text[:80]}…{text[-10:]}'


def _reason(error: Exception) -> str:
    return ' '.join(str(error).split())[:200] or type(error).__name__


def _check_size(size: tuple[int, int], name: str) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise ValueError(f'{name} is empty ({width}x{height} pixels)')
    if width * height > MAX_PIXELS:
        raise ValueError(
            f'{name} is too large: {width}x{height} pixels, at most {MAX_PIXELS:,} in all; scale it down'
            ' first'
        )
    if max(size) > MAX_ASPECT * min(size):
        raise ValueError(
            f'{name} is too narrow: {width}x{height} pixels, at most {MAX_ASPECT} times as long as wide; crop'
            ' it first'
        )


def _read(name: str) -> bytes:
    """The bytes that a path or URL names."""
    scheme = name.partition(':')[0].lower() if ':' in name else ''
    if scheme == 'data':
        return _from_data_url(name)
    if '://' in name and scheme != 'file':
        return fetch(name, MAX_BYTES)
    if not name:
        raise ValueError('there is no image file with an empty name')
    path = Path(unquote(urlsplit(name).path) if scheme == 'file' and '://' in name else name).expanduser()
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, 'O_NONBLOCK', 0))  # a pipe would block otherwise
        with open(descriptor, 'rb') as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ValueError(f'{_short(name)} is not a file')
            if status.st_size > MAX_BYTES:
                raise ValueError(
                    f'{_short(name)} is too large: {status.st_size:,} bytes, at most {MAX_BYTES:,}'
                )
            return file.read(MAX_BYTES)
    except FileNotFoundError:
        raise ValueError(f'there is no image file {_short(name)}') from None
    except OSError as error:
        raise ValueError(f'{_short(name)} cannot be read: {error.strerror}') from error
    except ValueError as error:
        raise ValueError(
            f'{_short(name)} is not a path: null byte' if 'null' in str(error) else str(error)
        ) from None


def _from_data_url(name: str) -> bytes:
    head, comma, body = name.partition(',')
    if not comma or not head.lower().startswith('data:image/') or len(body) > 2 * MAX_BYTES:
        raise ValueError(f'{_short(name)} is not a data URL of an image (data:image/png;base64,...)')
    try:
        return (
            base64.b64decode(unquote(body), validate=True)
            if head.lower().endswith(';base64')
            else unquote_to_bytes(body)
        )
    except (binascii.Error, ValueError) as error:
        raise ValueError(f'{_short(name)} is not valid base64: {_reason(error)}') from error


def _identify(data: bytes, name: str) -> Image.Image:
    """Read the header; the pixels are not decoded yet."""
    if not data:
        raise ValueError(f'{name} is empty (0 bytes)')
    if len(data) > MAX_BYTES:
        raise ValueError(f'{name} is too large: at most {MAX_BYTES:,} bytes')
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f'{name} is too large: {_reason(error)}') from error
    except Exception as error:
        known = ', '.join(FORMATS)
        raise ValueError(
            f'{name} is not an image that can be opened ({known}), or its beginning is broken'
        ) from error


def _upright_rgb(picture: Image.Image, borrowed: bool) -> Image.Image:
    picture.load()
    orientation = _orientation(picture)
    if picture.mode.startswith('I;16'):
        picture = Image.fromarray((np.asarray(picture).astype(np.uint32) // 257).astype(np.uint8))
    elif picture.mode == 'I':
        picture = Image.fromarray(_to_8_bits(np.asarray(picture).astype(np.int64)))
    elif picture.mode == 'F':
        picture = Image.fromarray(_to_8_bits(np.asarray(picture)))
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
        orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a broken EXIF block does not spoil the pixels
        return 1
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def _from_array(source: Any) -> Image.Image:
    if hasattr(source, 'detach'):  # torch
        source = source.detach().cpu()
        source = source.float() if str(source.dtype) in ('torch.bfloat16', 'torch.float16') else source
        source = source.numpy()
    if not isinstance(source, np.ndarray) and not hasattr(source, '__array_interface__'):
        raise ValueError(
            f'a {type(source).__name__} is not an image: pass a path, URL, bytes, PIL image, array or tensor'
        )
    array = np.asarray(source)
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
    _check_size((array.shape[1], array.shape[0]), 'the image')
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    return Image.fromarray(np.ascontiguousarray(_to_8_bits(array)))


def _to_8_bits(array: np.ndarray) -> np.ndarray:
    """Values as uint8. Integers over 255 are 16 bits; floats are from 0 to 1 where none is larger."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if array.dtype.kind not in 'iuf':
        raise ValueError(f'an array of {array.dtype} is not an image: 8 or 16 bit integers and floats are')
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
    return (
        (array // 257).astype(np.uint8) if array.dtype == np.uint16 or high > 255 else array.astype(np.uint8)
    )
