"""What counts as an image: names with an image's file extension, addresses, data URLs, open files, and
objects that expose their pixels. Decodes nothing.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable
from urllib.parse import urlsplit

MAX_BYTES = 64 << 20
"""Largest size of an encoded image, in bytes."""

EXTENSIONS = (
    *('.png', '.jpg', '.jpeg', '.jpe', '.jfif', '.bmp', '.dib', '.gif', '.webp', '.tif', '.tiff', '.mpo'),
    *('.ppm', '.pgm', '.pbm', '.pnm', '.tga', '.avif', '.avifs', '.heic', '.heics', '.heif', '.hif'),
    *('.apng', '.ico', '.icns', '.jp2', '.j2k', '.jxl', '.svg', '.pcx', '.psd', '.qoi', '.exr', '.dng'),
)
"""File extensions of images, including formats that only some installations can open."""

_URL = re.compile(r'(https?|file)://\S+\Z', re.IGNORECASE)
_DATA_URL = re.compile(r'data:image/\S*\Z', re.IGNORECASE)
_BASE64 = r'[A-Za-z0-9+/=_%-]*'
_BASE64_URL = re.compile(
    rf'data:image/[^,\s]*;base64,{_BASE64}(?:[ \t]*\r?\n[ \t]*{_BASE64})*\Z', re.IGNORECASE
)


@runtime_checkable
class FileObject(Protocol):
    """An object to read bytes from, such as `open(path, 'rb')`."""

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes."""


def read_file_object(file: FileObject) -> bytes:
    """Read an open file, which stays open: from its beginning, as Pillow does, unless it cannot be rewound.

    Raises:
        ValueError: It cannot be read, was opened as text, or holds more than `MAX_BYTES`.
    """
    try:
        with contextlib.suppress(OSError, AttributeError):  # a pipe, or an object that only reads
            file.seek(0)  # type: ignore[attr-defined]  # often it was just written
        data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: it is closed
        raise ValueError(f'the image file cannot be read: {error}') from error
    if not isinstance(data, (bytes, bytearray)):
        raise ValueError(
            f"the image file gives {type(data).__name__}, not bytes: open it with mode 'rb', not as text"
        )
    if len(data) > MAX_BYTES:
        raise ValueError(f'the image file is too large: at most {MAX_BYTES:,} bytes')
    return bytes(data)


def lends_pixels(source: Any) -> bool:
    """Whether an object exposes pixels through the array interface, in the memory of the host or of a GPU."""
    return any(
        isinstance(getattr(source, name, None), Mapping)  # of the class of such an object, it is none
        for name in ('__array_interface__', '__cuda_array_interface__')
    )


def is_url(text: str) -> bool:
    """Return whether a text is exactly one web address, file URL or data URL of an image. Base64 may have
    line breaks.
    """
    return any(form.match(text) for form in (_URL, _DATA_URL, _BASE64_URL))


def is_image_name(text: Any) -> bool:
    """Return whether a text is only the name of an image: a path or address with an image's extension, or a
    data URL.

    A sentence that ends in such a name is text, unless a file of exactly that name exists.
    """
    if not isinstance(text, str) or not text or '\0' in text:
        return False
    if text[:11].lower() == 'data:image/':
        return is_url(text)
    if '\n' in text:
        return False
    try:
        path = urlsplit(text).path if is_url(text) else text
    except ValueError:
        return False
    return path.lower().endswith(EXTENSIONS) and (not any(c.isspace() for c in text) or os.path.isfile(text))
