"""What other threads tell a running call: an approval, a stop, and what its performer reports."""

from __future__ import annotations

import threading
from typing import Any

from ros2_nanochat.errors import one_line
from ros2_nanochat.tools import CallState

_LONGEST = 2000  # characters of feedback


class CallSignals:
    """The signals of one call. Setting one wakes the call's thread.

    Attributes:
        handle: For the performer.
    """

    def __init__(self) -> None:
        self.handle: Any = None
        self._changed = threading.Condition()
        self._asking = self._taken = self._superseded = self._left = False
        self._approval: tuple[bool, str] | None = None
        self._answer: tuple[CallState, str] | None = None
        self._stop_reason = self._feedback = ''

    # --- any thread ---

    @property
    def waiting(self) -> bool:
        """Whether it waits for approval."""
        return self._asking and self._approval is None and not self._stop_reason

    def approve(self, approved: bool, reason: str = '') -> bool:
        """Answer for a call that waits for approval. Return whether it did."""
        with self._changed:
            if not self.waiting:
                return False
            self._approval = approved, reason
            self._changed.notify_all()
            return True

    def stop(self, reason: str) -> None:
        """Ask the call to end, and its effect. Never blocks.

        Args:
            reason: Why, for the model.
        """
        with self._changed:
            self._stop_reason = self._stop_reason or reason or 'it was stopped'
            self._changed.notify_all()

    def leave(self) -> None:
        """Let the call go on without its turn."""
        with self._changed:
            self._left = True
            self._changed.notify_all()

    def supersede(self) -> None:
        """Close a call that has ended and whose effect a later call has replaced."""
        with self._changed:
            self._superseded = True
            self._changed.notify_all()

    # --- the performer, any thread ---

    @property
    def stopping(self) -> bool:
        """Whether the call was asked to end."""
        return bool(self._stop_reason)

    def taken(self) -> None:
        """Report that the other side has begun."""
        with self._changed:
            self._taken = True
            self._changed.notify_all()

    def tell(self, feedback: str) -> None:
        """Report how far the call is."""
        with self._changed:
            self._feedback = feedback[:_LONGEST]
            self._changed.notify_all()

    def succeed(self, text: str) -> None:
        """Report the answer."""
        self._report(CallState.DONE, text)

    def fail(self, text: str) -> None:
        """Report in one line why there is no answer."""
        self._report(CallState.FAILED, one_line(text))

    def was_cancelled(self, text: str) -> None:
        """Report that the other side has stopped."""
        self._report(CallState.CANCELLED, one_line(text))

    def _report(self, state: CallState, text: str) -> None:
        with self._changed:
            if self._answer is None:
                self._answer = state, text
                self._changed.notify_all()
