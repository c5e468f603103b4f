"""The comments of interface files: what a type and its fields mean, as far as the files are installed."""

from __future__ import annotations

import functools
import os
import re

from ament_index_python import get_package_share_directory

_FIELD = re.compile(r'\s*[A-Za-z][\w/]*(<=\d+)?(\[(<=)?\d*\])?\s+([a-z]\w*)\b[^=#]*(#(.*))?$')
_CONSTANT = re.compile(r'\s*[a-z]\w*(<=\d+)?\s+[A-Z][A-Z0-9_]*\s*=')
_LONGEST = 200
_MOST_BYTES = 200_000


@functools.lru_cache(maxsize=256)
def comments_of(package: str, kind: str, name: str) -> tuple[str, dict[str, str]]:
    """Return the comments of the first part (message, request or goal) of an interface.

    Args:
        package: Name of the package.
        kind: `msg`, `srv` or `action`.
        name: Name of the type.

    Returns:
        What the file says at its beginning, and the comment of each field. Empty if there is no file.
    """
    try:
        path = os.path.join(get_package_share_directory(package), kind, f'{name}.{kind}')
        with open(path, encoding='utf-8', errors='replace') as file:
            return _read(file.read(_MOST_BYTES))
    except (LookupError, OSError, ValueError):
        return '', {}


def _read(text: str) -> tuple[str, dict[str, str]]:
    about, fields, pending, last = '', {}, [], ''
    begun = False
    for line in text.split('\n---')[0].splitlines():
        stripped = line.strip()
        if stripped.startswith('#'):
            pending.append(stripped.lstrip('# '))
            continue
        if not stripped:
            if pending and not begun and not about:  # a comment with a blank line after it is about the whole
                about = _joined(pending)
            pending = []
            continue
        begun = True
        match = _FIELD.match(line)
        if match and not _CONSTANT.match(line):
            last = match[4]
            comment = _joined([*pending, (match[6] or '').strip()])
            if comment:
                fields[last] = comment
        pending = []
    return about, fields


def _joined(lines: list[str]) -> str:
    text = ' '.join(' '.join(lines).split())
    return text if len(text) <= _LONGEST else text[:_LONGEST] + '...'
