"""An asyncio loop on a thread of its own, for callers that have none."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from ros2_nanochat.errors import BackendError
from ros2_nanochat.program import check_process

_Result = TypeVar('_Result')


class Background:
    """Runs coroutines on a thread named `nanochat-remote`.

    Attributes:
        loop: The loop. Only its own thread may use it, except for `call_soon_threadsafe`.
        is_ending: Whether the loop is about to close, or closed: begin nothing more on it.
        at_end: Called on the loop's thread when it ends, to close what is open.
    """

    def __init__(self):
        self.at_end: list[Callable[[], Coroutine[Any, Any, None]]] = []
        self.loop = asyncio.new_event_loop()
        self.is_ending = False
        self._when_ended: list[Callable[[], None]] = []
        self._process = os.getpid()
        self._thread = threading.Thread(target=self._run, name='nanochat-remote', daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            self.is_ending = True
            try:
                self._end_tasks()
            finally:
                self.loop.close()
                while self._when_ended:
                    self._when_ended.pop()()

    def _end_tasks(self) -> None:
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        if tasks:  # closing connections takes a few rounds of the loop
            self.loop.run_until_complete(asyncio.wait(tasks, timeout=1.0))
        for close in self.at_end:
            self.loop.run_until_complete(close())
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())

    def when_ended(self, function: Callable[[], None]) -> None:
        """Call a function once the loop is closed: on its thread, or now if it is closed already."""
        self._when_ended.append(function)
        if self.loop.is_closed():
            with contextlib.suppress(ValueError):  # else it is being called
                self._when_ended.remove(function)
                function()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive() and not self.loop.is_closed()

    def run(self, coroutine: Coroutine[Any, Any, _Result], timeout: float | None = None) -> _Result:
        """Run a coroutine and wait for its result. Do not call this on the loop's own thread.

        Raises:
            BackendError: The loop has ended, is another process's, or the time is up.
        """
        try:
            check_process(self._process)
        except BackendError:
            coroutine.close()
            raise
        try:
            future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        except RuntimeError:
            coroutine.close()
            raise BackendError('the model is closed') from None
        try:
            return future.result(timeout)
        except (concurrent.futures.TimeoutError, TimeoutError):
            future.cancel()
            raise BackendError(f'the server did not answer within {timeout:g} s') from None
        except concurrent.futures.CancelledError:
            raise BackendError('the model is closed') from None

    def soon(self, function, *arguments) -> bool:
        """Call a function on the loop's thread, soon; False if the loop has ended. Takes no lock."""
        try:
            self.loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            return False
        return True

    def close(self) -> None:
        """End the loop and its tasks. Can be called twice."""
        if self.soon(self.loop.stop) and self._thread is not threading.current_thread():
            self._thread.join(5.0)
