"""Calls functions one after another on a thread of their own, which exists while there are any.

For what may take long, and must not hold up the thread that it comes from.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from ros2_nanochat.errors import one_line

Later = Callable[[Callable[[], None]], None]
"""Calls a function, at once or later."""


def at_once(function: Callable[[], None]) -> None:
    """Call a function: the `Later` that does not wait."""
    function()


class Lane:
    """Calls functions in the order in which they come. Can be used from any thread.

    Args:
        name: Name of the thread.
        log: Has `error`.
    """

    def __init__(self, name: str, log):
        self._name, self._log = name, log
        self._left: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._runs = False

    def __call__(self, function: Callable[[], None]) -> None:
        """Call a function after those that came before it."""
        with self._changed:
            self._left.append(function)
            if self._runs:
                return
            self._runs = True
        try:
            threading.Thread(target=self._run, name=self._name, daemon=True).start()
        except RuntimeError:  # the system has no thread left
            self._run()

    def wait(self, timeout: float) -> bool:
        """Wait at most `timeout` seconds until all functions have returned. Return whether they have."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._runs, timeout)

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._left:
                    self._runs = False
                    self._changed.notify_all()
                    return
                function = self._left.popleft()
            try:
                function()
            except BaseException as error:  # the others go on
                self._log.error(f'{self._name}: internal error: {one_line(repr(error))}')
            del function  # else the last one stays until the next comes
