"""Opens images safely: any input becomes an upright RGB picture of a reasonable size, or a `ValueError` of
one line.

Knows nothing of models. URLs are opened only if the caller allows it; see `fetch`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import stat
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_to_bytes, urlsplit

import numpy as np
from PIL import Image

from ros2_nanochat.errors import one_line, shorten
from ros2_nanochat.image_sources import MAX_BYTES, FileObject, read_file_object
from ros2_nanochat.vision.arrays import picture_from_array
from ros2_nanochat.vision.fetch import fetch
from ros2_nanochat.vision.pixels import check_size, decode, upright_rgb

_FROM_URL_SAFE = str.maketrans('-_', '+/')


def open_image(source: Any, urls: bool = True) -> Image.Image:
    """Open an image and return it as upright RGB, loaded.

    Transparent parts become white; 16 bits are scaled to 8; of several frames the first is used.

    Args:
        source: A path; an `http(s)://`, `file://` or `data:image/` URL; encoded bytes, or a file open for
            reading them, which stays open; a PIL image; an array, torch tensor, or object with
            `__array_interface__`, of [h, w], [h, w, c] or [c, h, w], also in a batch of one, with c of 1
            (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGBA), as integers of 8 or 16 bits, or floats from 0 to 1
            or to 255.
        urls: Strings may be paths and URLs. Pass False for input that you do not trust.

    Raises:
        ValueError: It is not an image, truncated, empty, or larger than `MAX_BYTES`, `pixels.MAX_PIXELS` or
            `pixels.MAX_ASPECT`.
    """
    if getattr(source, 'opened_digest', None):
        return source
    name = 'the image'
    if isinstance(source, Image.Image):
        width, height = source.size
        check_size(width, height, name)
        picture = source
    elif isinstance(source, (str, os.PathLike)):
        if not urls:
            raise ValueError(
                f'the name of an image ({_short(source)}) is not followed here: pass the image itself'
            )
        source = os.fspath(source)
        name = _short(source)
        picture = decode(_read(source), name, targa=source.lower().endswith('.tga'))
    elif isinstance(source, (bytes, bytearray, memoryview)):
        name = f'the image of {len(source)} bytes'
        picture = decode(bytes(source), name)
    elif isinstance(source, FileObject) and not isinstance(source, np.ndarray):
        picture = decode(read_file_object(source), name)
    else:
        picture = picture_from_array(source)
    try:
        opened = upright_rgb(picture, borrowed=picture is source)
    except Exception as error:  # Pillow's decoders raise a dozen different ones on broken data
        raise ValueError(f'{name} cannot be decoded: {one_line(error, 200)}') from error
    # nobody else holds this picture: it is not opened again
    opened.opened_digest = image_digest(opened)
    if isinstance(source, str) and os.path.isfile(source):
        opened.filename = source
    return opened


def image_digest(picture: Image.Image) -> bytes:
    """Return 16 bytes that identify the pixels of a picture."""
    if known := getattr(picture, 'opened_digest', None):
        return known
    digest = hashlib.sha256(
        repr((picture.mode, picture.size)).encode()
    )  # most processors have instructions for SHA-256
    digest.update(np.ascontiguousarray(picture).data)
    return digest.digest()[:16]


def _short(name: Any) -> str:
    return repr(shorten(os.fspath(name)))


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
        if not head.lower().endswith(';base64'):
            return unquote_to_bytes(body)
        # Also as in addresses (RFC 4648, section 5), and without padding.
        digits = ''.join(unquote(body).split()).translate(_FROM_URL_SAFE).rstrip('=')
        return base64.b64decode(digits + '=' * (-len(digits) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f'{_short(name)} is not valid base64: {one_line(error, 200)}') from error
