"""What was found out about a GGUF file on this machine, so that only a new or changed file takes that time.

A finding is a short text in `$XDG_CACHE_HOME/nanochat/gguf`, named by a digest of all that it depends on. If
it cannot be read or written, it is found out again at the next start.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Iterable

from ros2_nanochat.files import write_whole

_log = logging.getLogger(__name__)


def folder() -> str:
    """Return the folder of the findings."""
    cache = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
    return os.path.join(cache, 'nanochat', 'gguf')


def name_of(files: Iterable[str], *facts: object) -> str:
    """Return the name of a finding.

    Args:
        files: The files that it depends on: it holds until one of them has another path, size or time.
        *facts: What else it depends on.

    Raises:
        OSError: A file cannot be examined.
    """
    parts = list(facts)
    for file in files:
        status = os.stat(file)
        parts += [os.path.realpath(file), status.st_size, status.st_mtime_ns]
    text = '\0'.join(map(str, parts))
    return hashlib.blake2b(text.encode('utf-8', 'replace'), digest_size=16).hexdigest()


def recall(name: str) -> str | None:
    """Return a finding; None if there is none that can be read."""
    with contextlib.suppress(OSError, UnicodeDecodeError), open(os.path.join(folder(), name)) as file:
        return file.read()
    return None


def remember(name: str, finding: str) -> None:
    """Keep a finding, if the disk permits."""
    path = os.path.join(folder(), name)
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        write_whole(path, finding.encode())
    except OSError as error:
        _log.debug('%s cannot be written: %s', path, error)
