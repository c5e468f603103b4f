"""Files and texts of users: written whole or not at all, read with any byte-order mark, and JSON with an
error of one line.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import json
import os
import stat
import tempfile
from typing import BinaryIO

from ros2_nanochat.errors import BackendError, one_line

_MARKS = {codecs.BOM_UTF8: 'utf-8-sig', codecs.BOM_UTF16_LE: 'utf-16', codecs.BOM_UTF16_BE: 'utf-16'}


def read_text(path: str) -> str:
    """The text of a file in UTF-8, or in what its byte-order mark says.

    Raises:
        OSError, UnicodeDecodeError: It cannot be read.
    """
    with open(path, 'rb') as file:
        return decode_text(file.read())


def decode_text(data: bytes, errors: str = 'strict') -> str:
    """The text of bytes in UTF-8, or in what their byte-order mark says. errors: as in `bytes.decode`."""
    encoding = next((encoding for mark, encoding in _MARKS.items() if data.startswith(mark)), 'utf-8')
    return data.decode(encoding, errors).replace('\r\n', '\n')


def valid_text(text: str) -> str:
    """A text whose undecodable bytes, which Python keeps as surrogates, are U+FFFD: any encoder takes it."""
    if text.isascii():
        return text
    try:
        return text.encode('utf-8', 'surrogateescape').decode('utf-8', 'replace')
    except UnicodeEncodeError:  # a surrogate that stands for no byte, as JSON can spell one
        return text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """Open a file to read. OSError for what is none, such as a FIFO or a device, which might keep the reader
    waiting for ever.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, 'it is not a regular file', os.fspath(path))
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(handle).st_mode):  # exchanged since
        os.close(handle)
        raise OSError(errno.EINVAL, 'it is not a regular file', os.fspath(path))
    return os.fdopen(handle, 'rb')


TEMPORARY = '.part'
"""The end of the names of files that `write_whole` has not finished. They begin with a dot and the name of
the file that they would have become.
"""


def write_whole(path: str, data: bytes) -> None:
    """Write a private file (mode 0600) through a neighbour that takes its place, so that a crash or a power
    cut leaves the old or the new one. OSError with the name of the file.
    """
    try:
        _write_through_neighbour(path, data)
    except OSError as error:
        raise type(error)(error.errno, error.strerror, path) from error


def _write_through_neighbour(path: str, data: bytes) -> None:
    folder, name = os.path.split(path)
    handle, temporary = tempfile.mkstemp(prefix=f'.{name}.', suffix=TEMPORARY, dir=folder or '.')
    try:
        with os.fdopen(handle, 'wb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync_folder(folder or '.')


def sync_folder(folder: str | os.PathLike) -> None:
    """Bring the names in a folder to disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network shares cannot
            raise
    finally:
        os.close(handle)


def remove_temporary(folder: str | os.PathLike, name: str) -> None:
    """Delete what a crash has left of unfinished writes of one file. Nobody may be writing it."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(os.fspath(folder)):
            if entry.name.startswith(f'.{name}.') and entry.name.endswith(TEMPORARY):
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)


def read_json(path: str, name: str) -> dict:
    """The object in the file `name` of a folder, or {} where there is none. Bytes that are not UTF-8 are
    replaced. A `BackendError` where it is broken.
    """
    file = os.path.join(path, name)
    if not os.path.isfile(file):
        return {}
    try:
        with open(file, 'rb') as stream:
            data = json.loads(decode_text(stream.read(), errors='replace'))
    except OSError as error:
        raise BackendError(f'{file} cannot be read: {error.strerror}') from error
    except (ValueError, RecursionError) as error:
        raise BackendError(f'{file} cannot be read ({one_line(error)}); copy it again') from error
    if not isinstance(data, dict):
        raise BackendError(f'{file} is not a JSON object; copy it again')
    return data
