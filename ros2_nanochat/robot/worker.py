"""The thread of one robot: does one thing after another, whatever they raise, and shows its supervisor what
it is doing. Knows nothing of conversations.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_PAUSE = 0.1  # seconds after work that failed, so that a failure that repeats takes no processor


class Retired(BaseException):
    """Ends the work of a thread that was replaced. No handler of ordinary errors may catch it."""


class Worker:
    """Calls `work(worker)` on a thread of its own until that returns False.

    work: what to do next; waits until there is something. failed: called with what it raised. After an
    ordinary exception the thread goes on; one that asks the thread to end (SystemExit) ends it.
    """

    def __init__(self, name: str, work: Callable[[Worker], bool], failed: Callable[[BaseException], None]):
        self._work, self._failed = work, failed
        self._retired = self._finished = False
        self._step: tuple[str, float, float] | None = None  # what, its limit, and when that is reached
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def _run(self) -> None:
        while not self._retired:
            try:
                if not self._work(self):
                    break
            except Retired:
                break
            except Exception as error:  # ours to mend; the robot goes on
                self._step = None
                if not self._retired:
                    self._failed(error)
                    time.sleep(_PAUSE)
            except BaseException as error:
                self._failed(error)
                return
        self._finished = True

    @contextmanager
    def step(self, what: str, limit: float) -> Iterator[None]:
        """Do one thing that takes at most `limit` seconds when all is well. Raises `Retired` on a thread that
        was replaced meanwhile.
        """
        self.check()
        outer, self._step = self._step, (what, limit, time.monotonic() + limit)
        try:
            yield
        finally:
            self._step = outer
        self.check()

    def check(self) -> None:
        """Raise `Retired` on a thread that was replaced: what it works on belongs to another one."""
        if self._retired:
            raise Retired

    @property
    def retired(self) -> bool:
        """Whether another thread has taken its place."""
        return self._retired

    def retire(self) -> None:
        """Take its work away; it ends when it comes to itself."""
        self._retired = True

    @property
    def trouble(self) -> str:
        """What is wrong with the thread, '' if nothing is."""
        if self._thread.ident is not None and not self._thread.is_alive() and not self._finished:
            return 'its thread has died'
        step = self._step
        if step is not None and time.monotonic() > step[2]:
            return f'its thread is stuck: {step[0]} takes more than {step[1]:g} s'
        return ''

    def join(self, timeout: float) -> None:
        """Wait until the thread has ended, at most `timeout` seconds."""
        self._thread.join(timeout)
