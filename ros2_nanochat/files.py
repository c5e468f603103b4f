"""Reads and writes users' files: atomic writes, text with any byte-order mark, JSON with one-line errors."""

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

_UNKNOWN = (errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ETIMEDOUT)
_MARKS = {codecs.BOM_UTF8: 'utf-8-sig', codecs.BOM_UTF16_LE: 'utf-16', codecs.BOM_UTF16_BE: 'utf-16'}


class NotText(UnicodeDecodeError):
    """Bytes that are not text, said in the words of users."""

    def __str__(self) -> str:
        byte = self.object[self.start]
        return f'it is not text in {self.encoding.upper()}: byte 0x{byte:02x} at position {self.start:,}'


def read_text(path: str) -> str:
    """Read a text file, as UTF-8 or in the encoding of its byte-order mark.

    Raises:
        OSError: The file cannot be read.
        NotText: The bytes do not fit the encoding.
    """
    with open(path, 'rb') as file:
        return decode_text(file.read())


def decode_text(data: bytes, errors: str = 'strict') -> str:
    r"""Decode bytes as UTF-8, or in the encoding of their byte-order mark.

    Args:
        data: The bytes.
        errors: How to handle undecodable bytes, as in `bytes.decode`.

    Returns:
        The text, with line breaks as `\n`.

    Raises:
        NotText: The bytes do not fit the encoding.
    """
    encoding = next((encoding for mark, encoding in _MARKS.items() if data.startswith(mark)), 'utf-8')
    try:
        return data.decode(encoding, errors).replace('\r\n', '\n')
    except UnicodeDecodeError as error:
        raise NotText(*error.args) from None


def valid_text(text: str) -> str:
    """Replace undecodable bytes, which Python keeps as surrogates, by U+FFFD, so that any encoder accepts the
    text.
    """
    if text.isascii():
        return text
    try:
        return text.encode('utf-8', 'surrogateescape').decode('utf-8', 'replace')
    except UnicodeEncodeError:  # a surrogate that stands for no byte: JSON can contain such
        return text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """Open a regular file for reading, in binary mode.

    Raises:
        OSError: It cannot be opened, or it is a FIFO, a device or the like, on which reading could block
            forever.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, 'it is not a regular file', os.fspath(path))
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(handle).st_mode):  # replaced since the first check
        os.close(handle)
        raise OSError(errno.EINVAL, 'it is not a regular file', os.fspath(path))
    return os.fdopen(handle, 'rb')


def read_bounded(path: str | os.PathLike, limit: int) -> bytes:
    """Read a regular file of at most `limit` bytes.

    Raises:
        ValueError: It is larger. The rest of it was not read.
        OSError: It cannot be read, see `open_regular`.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(limit + 1) if size <= limit else b''
    if size > limit or len(data) > limit:
        raise ValueError(
            f'{os.fspath(path)} has {max(size, len(data)):,} bytes, and at most {limit:,} are read: move it'
            ' away'
        )
    return data


def is_file(path: str | os.PathLike) -> bool:
    """Return whether a regular file is there.

    Unlike `os.path.isfile`, this does not take a file for missing if it cannot know.

    Raises:
        OSError: This user may not look, or the disk fails.
    """
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except ValueError:  # a null character
        return False
    except OSError as error:
        if error.errno in _UNKNOWN:
            raise
        return False


TEMPORARY = '.part'
"""Suffix of the files that `write_whole` has not finished. Their names start with a dot and the name of the
target file.
"""


def write_whole(path: str, data: bytes) -> None:
    """Write a private file (mode 0600) atomically: after a crash or a power cut it holds the old or the new
    data.

    Raises:
        OSError: The file cannot be written. The error holds the name of the target file.
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
    """Flush the directory entries of a folder to disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network shares cannot sync
            raise
    finally:
        os.close(handle)


def remove_temporary(folder: str | os.PathLike, name: str) -> None:
    """Delete unfinished writes of one file that a crash left behind. No one may be writing the file.

    Args:
        folder: The folder of the file.
        name: The name of the file.
    """
    with contextlib.suppress(OSError):
        for entry in os.scandir(os.fspath(folder)):
            if entry.name.startswith(f'.{name}.') and entry.name.endswith(TEMPORARY):
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)


def read_json(path: str, name: str) -> dict:
    """Read a JSON object from a file of a folder. Bytes that are not UTF-8 are replaced.

    Args:
        path: The folder.
        name: The name of the file.

    Returns:
        The object, or {} if the file does not exist.

    Raises:
        BackendError: The file cannot be read, or is not a JSON object.
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
