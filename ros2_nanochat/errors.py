"""What can go wrong, as exceptions whose message is one line, and how any error becomes one line."""

from __future__ import annotations

import importlib
from collections.abc import Sequence


class BackendError(RuntimeError):
    """A model that cannot be opened or run; the message is one line that says what was wrong and what to
    do.
    """


class LoadAborted(BackendError):
    """A load or forward that `abort()` ended."""


class ForwardError(BackendError):
    """A forward that failed. committed: for each chunk, how many of its entries its sequence holds now."""

    def __init__(self, message: str, committed: Sequence[int]):
        super().__init__(message)
        self.committed = list(committed)


class MissingDependency(ImportError):
    """A package that an extra would have installed."""


def require(module: str, extra: str):
    """Import `module` and return it, or raise a `MissingDependency` that names the command which installs
    it.
    """
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:  # OSError: its shared libraries do not load
        package = module.partition('.')[0]
        reason = (
            f'{package} is not installed'
            if getattr(error, 'name', None) == package
            else f'{package} cannot be imported ({shorten(str(error), 300)})'
        )
        raise MissingDependency(
            f"{reason}: run  pip install 'ros2_nanochat[{extra}]'  with the Python that runs this"
        ) from error


def one_line(error: object, limit: int = 300) -> str:
    """The first line of an error's text that says something, shortened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= limit else text[:limit] + '...'


def shorten(text: str, limit: int = 200) -> str:
    """A text of the user as an error shows it: on one line, cut at `limit` characters."""
    line = ' '.join(text[: 2 * limit].split())
    return line if len(line) <= limit and len(text) <= 2 * limit else line[:limit] + '...'


def shown(value: object, limit: int = 200) -> str:
    """Any value as an error shows it: its `repr`, on one line, cut at `limit` characters."""
    return shorten(repr(value), limit)


def printable(text: object, limit: int = 200) -> str:
    """A text of a file as logs and errors show it: on one line, without characters that control a terminal
    or turn the direction of writing, cut at `limit` characters.
    """
    line = ' '.join(''.join([c if c.isprintable() else ' ' for c in str(text)[: 2 * limit]]).split())
    return line if len(line) <= limit else line[:limit] + '...'
