"""What goes wrong around a conversation, and what becomes of it: listeners that cannot be told, a disk that
takes nothing, a thread that was replaced. Each costs at most one turn, is logged, and shows in the
diagnostics.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future

from ros2_nanochat.errors import one_line
from ros2_nanochat.robot.turn import Turn
from ros2_nanochat.robot.worker import Worker

PUBLISH_SECONDS = 10.0
"""A listener that keeps a robot's thread for longer has stuck it."""
SAVE_SECONDS = 30.0
"""A disk that keeps a robot's thread for longer has stuck it."""
_SHOWN_SECONDS = 30.0  # how long diagnostics show what is over
_QUIET_SECONDS = 10.0  # between two lines of the log about the same
_RESTART_SECONDS = 1.0  # between two restarts of a thread; doubles while no turn succeeds
_LONGEST_RESTART = 600.0


class Faults:
    """What has gone wrong with one robot lately. Any thread."""

    def __init__(self):
        self.restarts = 0
        self._errors: dict[str, tuple[str, float]] = {}
        self._logged: dict[str, float] = {}
        self._restart_after, self._wait = 0.0, _RESTART_SECONDS

    def note(self, kind: str, text: str, shown: bool = True) -> bool:
        """Note what went wrong; whether the log has not had that kind for some seconds. shown: in
        `present`.
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
        """What went wrong in the last seconds."""
        now = time.monotonic()
        return [text for text, when in list(self._errors.values()) if now - when < _SHOWN_SECONDS]

    def may_restart(self) -> bool:
        """Whether a thread may be replaced now: one that sticks again and again is left for longer."""
        return time.monotonic() >= self._restart_after

    def restarted(self, trouble: str) -> None:
        """Note that a thread was replaced, and why."""
        self.restarts += 1
        self.note('thread', f'{trouble}; it was started anew')
        self._restart_after = time.monotonic() + self._wait
        self._wait = min(2 * self._wait, _LONGEST_RESTART)

    def went_well(self) -> None:
        """A turn has ended as it should: the thread works."""
        self._wait = _RESTART_SECONDS


class Guard:
    """Runs what others gave us, so that nothing it raises goes further. title: of the robot, for messages."""

    def __init__(self, faults: Faults, log, title: str):
        self._faults, self._log, self._title = faults, log, title

    def failed(self, what: str, error: BaseException, lasting: bool = False) -> None:
        """Log an error and show it in the diagnostics for a while. lasting: they show it by other means."""
        text = f'{what} failed: {type(error).__name__}: {one_line(error)}'
        if self._faults.note(what, text, shown=not lasting):
            self._log.error(f'{self._title}{text}')

    def tell(self, text: str) -> None:
        """Log something that went well again."""
        self._log.info(f'{self._title}{text}')

    def publish(self, worker: Worker | None, call: Callable, *arguments) -> None:
        """Tell the robot's output something, on the robot's thread or (None) on another one."""
        try:
            if worker is None:
                call(*arguments)
            else:
                with worker.step('publishing', PUBLISH_SECONDS):
                    call(*arguments)
        except Exception as error:
            self.failed('publishing', error)

    def do_job(self, job: Callable[[], object] | None, done: Future) -> None:
        """Do a job; what it raises is for whoever waits for it."""
        try:
            done.set_result(job() if job is not None else None)
        except Exception as error:
            done.set_exception(error)


class SavedState:
    """What of a conversation is on disk. failure: why the last turn is not, '' if it is. All but `failure` on
    the robot's thread, with the history's lock held.
    """

    retry_seconds = 5.0
    """Between two attempts to write what is not on disk."""

    def __init__(self, store, guard: Guard):
        self.failure = ''
        self._store, self._guard = store, guard

    def save(self, memory, worker: Worker, turn: Turn | None = None) -> None:
        """Write the conversation; a turn that is not on disk then has a note that says so."""
        with worker.step('saving the conversation', SAVE_SECONDS):
            self._write(memory)
        if self.failure and turn is not None:
            turn.remark(f'this turn is not on disk ({self.failure}): a restart would not know of it')

    def _write(self, memory) -> None:
        try:
            self._store.save(memory.history, memory.system_prompt)
            if self.failure:
                self._guard.tell('the conversation is on disk again')
            self.failure = ''
        except Exception as error:
            self.failure = one_line(error)
            self._guard.failed('saving the conversation', error, lasting=True)

    def forget(self, memory) -> str:
        """Bring a conversation that was just forgotten to disk. Returns what else there is to tell.
        RuntimeError if a restart would find the old one.
        """
        self._store.drop_kv()
        self._write(memory)
        if not self.failure:
            return ''
        reason = self.failure
        try:
            self._store.delete()
        except OSError:
            raise RuntimeError(
                f'the conversation is forgotten here but not on disk ({reason}): a restart would continue it.'
                ' Mend the disk, and it is deleted there too'
            ) from None
        return f'its file was deleted, because it could not be written ({reason})'

    def save_kv(self, memory, worker: Worker) -> None:
        """Write the keys and values of the conversation, if they are kept."""
        try:
            with worker.step('saving the KV', 10 * SAVE_SECONDS):
                self._store.save_kv(memory.history)
        except Exception as error:
            self._guard.failed('saving the KV', error)
