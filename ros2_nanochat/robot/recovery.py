"""Handles failures around a conversation: listeners that block, a disk that fails, a thread that is replaced.

Each costs at most one turn, is logged, and appears in the diagnostics.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future

from ros2_nanochat.chat.history import ChatHistory
from ros2_nanochat.errors import one_line
from ros2_nanochat.robot.turn import Turn
from ros2_nanochat.robot.worker import Worker

PUBLISH_SECONDS = 10.0
"""A robot's thread that publishes for longer is stuck."""
SAVE_SECONDS = 30.0
"""A robot's thread that writes to disk for longer is stuck."""
_SHOWN_SECONDS = 30.0  # how long the diagnostics show a failure
_QUIET_SECONDS = 10.0  # between two lines of the log about the same failure
_RESTART_SECONDS = 1.0  # between two restarts of a thread; doubles until a turn succeeds
_LONGEST_RESTART = 600.0


class Faults:
    """What recently failed for one robot. Can be used from any thread.

    Attributes:
        restarts: How often the thread was replaced.
    """

    def __init__(self):
        self.restarts = 0
        self._errors: dict[str, tuple[str, float]] = {}
        self._logged: dict[str, float] = {}
        self._restart_after, self._wait = 0.0, _RESTART_SECONDS

    def note(self, kind: str, text: str, shown: bool = True) -> bool:
        """Record a failure.

        Args:
            kind: Failures of one kind share a line in the diagnostics.
            text: The failure.
            shown: Include it in `present`.

        Returns:
            Whether to log it: not if the same kind was logged in the last seconds.
        """
        now = time.monotonic()
        if shown:
            self._errors[kind] = text, now
        if now - self._logged.get(kind, -_QUIET_SECONDS) < _QUIET_SECONDS:
            return False
        self._logged[kind] = now
        return True

    @property
    def present(self) -> list[str]:
        """The failures of the last seconds."""
        now = time.monotonic()
        return [text for text, when in list(self._errors.values()) if now - when < _SHOWN_SECONDS]

    def may_restart(self) -> bool:
        """Whether a thread may be replaced now. The wait grows if threads get stuck repeatedly."""
        return time.monotonic() >= self._restart_after

    def restart(self, trouble: str, start: Callable[[], None]) -> None:
        """Replace a thread, and record why.

        Args:
            trouble: Why.
            start: Starts the new thread. Its exceptions propagate.
        """
        self.note('thread', trouble)
        self._restart_after = time.monotonic() + self._wait
        self._wait = min(2 * self._wait, _LONGEST_RESTART)
        start()
        self.restarts += 1
        self.note('thread', f'{trouble}; it was restarted')

    def went_well(self) -> None:
        """Record that a turn ended normally: the thread works."""
        self._wait = _RESTART_SECONDS


class Guard:
    """Calls code of others, so that its exceptions do not propagate.

    Args:
        faults: Where failures are recorded.
        log: Has `info` and `error`.
        title: The robot's name, for messages.
    """

    def __init__(self, faults: Faults, log, title: str):
        self._faults, self._log, self._title = faults, log, title

    def failed(self, what: str, error: BaseException, lasting: bool = False) -> None:
        """Log an error and show it in the diagnostics.

        Args:
            what: What failed.
            error: The exception.
            lasting: The diagnostics already show it by other means.
        """
        text = f'{what} failed: {type(error).__name__}: {one_line(error)}'
        if self._faults.note(what, text, shown=not lasting):
            self._log.error(f'{self._title}{text}')

    def tell(self, text: str) -> None:
        """Log that something works again."""
        self._log.info(f'{self._title}{text}')

    def publish(self, worker: Worker | None, call: Callable, *arguments) -> None:
        """Call a method of the robot's output.

        Args:
            worker: The robot's thread, None if called on another thread.
            call: The method.
            *arguments: Its arguments.
        """
        try:
            if worker is None:
                call(*arguments)
            else:
                with worker.step('publishing', PUBLISH_SECONDS):
                    call(*arguments)
        except Exception as error:
            self.failed('publishing', error)

    def do_job(self, job: Callable[[], object] | None, done: Future) -> None:
        """Do a job and pass its result or exception to `done`."""
        try:
            done.set_result(job() if job is not None else None)
        except Exception as error:
            done.set_exception(error)
        except BaseException as error:  # it ends the thread, and nobody may wait for the job
            done.set_exception(RuntimeError(one_line(repr(error))))
            raise


class SavedState:
    """Keeps a conversation on disk.

    Use it only on the robot's thread with the history locked; `failure` is an exception.

    Args:
        store: The `ConversationStore`.
        guard: Logs failures.
        saved: Called with a history that is on disk.

    Attributes:
        failure: Why the last turn is not on disk, '' if it is.
    """

    retry_seconds = 5.0
    """Seconds between two attempts to write a conversation that is not on disk."""

    def __init__(self, store, guard: Guard, saved: Callable[[ChatHistory], None]):
        self.failure = ''
        self._keeps_kv = False  # of a conversation that was forgotten
        self._store, self._guard, self._saved = store, guard, saved

    def save(self, memory, worker: Worker, turn: Turn | None = None) -> None:
        """Write the conversation. If that fails, the turn gets a note.

        Args:
            memory: The conversation.
            worker: The robot's thread.
            turn: The turn that has just ended, if any.
        """
        with worker.step('saving the conversation', SAVE_SECONDS):
            self._write(memory)
        if self.failure and turn is not None:
            turn.remark(f'this turn is not on disk ({self.failure}): a restart would not know of it')

    def _write(self, memory) -> None:
        try:
            self._store.save(memory.history, memory.system_prompt)
            if self.failure:
                self._keeps_kv = self._keeps_kv and not self._store.drop_kv()
                self._guard.tell('the conversation is on disk again')
            self.failure = ''
            self._saved(memory.history)
            if self._store.undeleted:
                self._guard.failed('deleting old pictures', OSError(self._store.undeleted))
        except Exception as error:
            self.failure = one_line(error)
            self._guard.failed('saving the conversation', error, lasting=True)

    def forget(self, memory) -> str:
        """Remove a conversation from disk after it was reset.

        Returns:
            What else the caller should know, '' for nothing.

        Raises:
            RuntimeError: The old conversation is still on disk.
        """
        self._keeps_kv = not self._store.drop_kv()
        self._write(memory)
        if not self.failure:
            return self._left_on_disk()
        reason = self.failure
        try:
            self._store.delete()
        except OSError:
            raise RuntimeError(
                f'the conversation is forgotten here but not on disk ({reason}): a restart would continue it.'
                ' Mend the disk, and it is deleted there too'
            ) from None
        deleted = f'its file was deleted, because it could not be written ({reason})'
        return ', '.join(filter(None, [deleted, self._left_on_disk()]))

    def _left_on_disk(self) -> str:
        """What is still on disk of a conversation that was forgotten, '' for nothing."""
        left = []
        if self._keeps_kv:
            left.append('its KV is still on disk and cannot be deleted')
        if self._store.undeleted:
            left.append(f'an old picture is still on disk and cannot be deleted ({self._store.undeleted})')
        return ', '.join(left)

    def save_kv(self, memory, worker: Worker) -> None:
        """Write the conversation's keys and values, if `keep_kv` is set."""
        try:
            with worker.step('saving the KV', 10 * SAVE_SECONDS):
                self._store.save_kv(memory.history)
        except Exception as error:
            self._guard.failed('saving the KV', error)
