"""Passes what the library logs to the node's log."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

_LIBRARY = 'ros2_nanochat'


class _ToNode(logging.Handler):
    """Writes records with a node's logger, which wants each severity on a line of its own."""

    def __init__(self, log):
        super().__init__(logging.INFO)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        if record.levelno >= logging.ERROR:
            self._log.error(text)
        elif record.levelno >= logging.WARNING:
            self._log.warning(text)
        else:
            self._log.info(text)


@contextlib.contextmanager
def library_log(log) -> Iterator[None]:
    """Pass the library's messages to a node's logger within the block.

    Args:
        log: The logger.
    """
    library, handler = logging.getLogger(_LIBRARY), _ToNode(log)
    level = library.level
    library.addHandler(handler)
    library.setLevel(logging.INFO)
    try:
        yield
    finally:
        library.removeHandler(handler)
        library.setLevel(level)
