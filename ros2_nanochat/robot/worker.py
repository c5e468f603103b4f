"""The thread of one robot: does one thing after another, survives exceptions, and shows its supervisor what
it is doing.

Knows nothing of conversations.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from ros2_nanochat.errors import one_line

_PAUSE = 0.1  # seconds after a failure, so that repeated failures do not use the processor


class Retired(BaseException):
    """Ends the work of a replaced thread. Handlers of ordinary errors must not catch it."""


class Worker:
    """Calls `work(worker)` on its own thread until that returns False.

    After an ordinary exception the thread continues; SystemExit and the like end it.

    Args:
        name: Name of the thread.
        work: Waits for something to do and does it.
        failed: Called with each exception.
    """

    def __init__(self, name: str, work: Callable[[Worker], bool], failed: Callable[[BaseException], None]):
        self._work, self._failed = work, failed
        self._retired = self._finished = False
        self._death = ''  # the exception that ended it
        self._step: tuple[str, float, float] | None = None  # what, its limit, and when that is reached
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread.

        Raises:
            RuntimeError: The system has no thread left; from then on the worker is in trouble.
        """
        try:
            self._thread.start()
        except BaseException as error:
            self._death = _of(error)
            raise

    def _run(self) -> None:
        while not self._retired:
            try:
                if not self._work(self):
                    break
            except Retired:
                break
            except Exception as error:  # a bug of ours; the robot continues
                self._step = None
                if not self._retired:
                    self._failed(error)
                    time.sleep(_PAUSE)
            except BaseException as error:
                self._death = _of(error)
                self._failed(error)
                return
        self._finished = True

    def step(self, what: str, limit: float) -> _Step:
        """Return a context in which to do one thing that should take at most `limit` seconds.

        It raises `Retired` at its beginning, and at its end unless there is another exception, if the thread
        has been replaced.

        Args:
            what: What it is, for `trouble`.
            limit: Seconds after which the thread counts as stuck.
        """
        return _Step(self, (what, limit, time.monotonic() + limit))

    def check(self) -> None:
        """Raise `Retired` if the thread was replaced: its work belongs to another thread."""
        if self._retired:
            raise Retired

    @property
    def retired(self) -> bool:
        """Whether another thread has taken its place."""
        return self._retired

    def retire(self) -> None:
        """Take its work away. The thread ends as soon as it notices."""
        self._retired = True

    @property
    def trouble(self) -> str:
        """What is wrong with the thread, '' if nothing."""
        died = self._thread.ident is not None and not self._thread.is_alive() and not self._finished
        if self._death or died:
            return f'its thread has died{self._death}'
        step = self._step
        if step is not None and time.monotonic() > step[2]:
            return f'its thread is stuck: {step[0]} takes more than {step[1]:g} s'
        return ''

    def join(self, timeout: float) -> None:
        """Wait at most `timeout` seconds for the thread to end. One that could not start has ended."""
        if self._thread.is_alive():
            self._thread.join(timeout)


class _Step:
    """The context that `Worker.step` returns: a class, as each token of a reply is a step."""

    __slots__ = ('_outer', '_step', '_worker')

    def __init__(self, worker: Worker, step: tuple[str, float, float]):
        self._worker, self._step = worker, step

    def __enter__(self) -> None:
        worker = self._worker
        worker.check()
        self._outer, worker._step = worker._step, self._step

    def __exit__(self, kind, error, trace) -> None:
        self._worker._step = self._outer
        if kind is None:
            self._worker.check()


def _of(error: BaseException) -> str:
    return f' of {one_line(repr(error))}'
