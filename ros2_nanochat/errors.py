"""Exceptions whose message is one line, and helpers that turn any error into one line."""

from __future__ import annotations

import importlib
from collections.abc import Sequence


class BackendError(RuntimeError):
    """A model cannot be opened or run. The message is one line: what is wrong and what to do."""


class LoadAborted(BackendError):
    """`abort()` ended a load or a forward."""


class EncodingStopped(BackendError):
    """The caller asked to stop while a picture was encoded."""


class ForwardError(BackendError):
    """A forward failed.

    Attributes:
        committed: For each chunk, the number of its entries that its sequence holds now; negative if earlier
            entries were lost as well.
    """

    def __init__(self, message: str, committed: Sequence[int]):
        super().__init__(message)
        self.committed = list(committed)


class MissingDependency(ImportError):
    """A package is missing that one of the extras installs."""


def require(module: str, extra: str):
    """Import a module of an optional dependency.

    Args:
        module: The name of the module.
        extra: The extra of `ros2_nanochat` that installs it.

    Returns:
        The module.

    Raises:
        MissingDependency: The module cannot be imported. The message holds the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as error:  # the last two: its shared libraries do not load
        package = module.partition('.')[0]
        reason = (
            f'{package} is not installed'
            if getattr(error, 'name', None) == package
            else f'{package} cannot be imported ({shorten(str(error), 300)})'
        )
        raise MissingDependency(
            f"{reason}: in the clone of nanochat run  pip install '.[{extra}]'  with the Python that runs"
            ' this'
        ) from error


def one_line(error: object, limit: int = 300) -> str:
    """Return the first line of an error's text that is not blank, cut at `limit` characters and safe in logs
    (see `printable`).

    A line that ends in a colon goes on with the next.
    """
    try:
        text = str(error)
    except Exception:  # of a user's exception
        text = ''
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    count = next((n for n, line in enumerate(lines, 1) if not line.endswith(':')), len(lines))
    text = _plain(' '.join(lines[:count])).strip() or type(error).__name__
    return text if len(text) <= limit else text[:limit] + '...'


def shorten(text: str, limit: int = 200) -> str:
    """Return a text on one line, cut at `limit` characters, to be quoted in an error message. It is safe in
    logs (see `printable`).
    """
    line = _start_of(text, limit)
    return line if len(line) <= limit and len(text) <= 2 * limit else line[:limit] + '...'


def shown(value: object, limit: int = 200) -> str:
    """Return the `repr` of a value on one line, cut at `limit` characters, to be quoted in an error
    message.
    """
    return shorten(repr(value), limit)


def printable(text: object, limit: int = 200) -> str:
    """Return a text from a file in a form that is safe in logs and errors.

    The result is one line, cut at `limit` characters. Characters that control a terminal or change the
    writing direction are replaced by spaces.
    """
    line = _start_of(str(text), limit)
    return line if len(line) <= limit else line[:limit] + '...'


def _start_of(text: str, limit: int) -> str:
    """The beginning of a text on one line, long enough to be cut at `limit` characters."""
    return ' '.join(_plain(text[: 2 * limit]).split())


def _plain(text: str) -> str:
    return text if text.isprintable() else ''.join([c if c.isprintable() else ' ' for c in text])
