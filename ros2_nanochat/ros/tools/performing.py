"""What performers of calls share: a request that waits for the other side, and `on_cancel`."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

from ros2_nanochat.robot.tool_record import Reports
from ros2_nanochat.ros.tools.attempt import Attempt
from ros2_nanochat.ros.tools.undoing import Undoing


class Performing:
    """Performs the calls of one tool: the frame of a `Performer`. A subclass fills in what is sent to whom.

    Args:
        other: The other side, for messages, such as 'the service /lamp'.
        undo: What undoes a call, None if nothing does.
    """

    acts_on = False
    unsent = 'it was not sent'
    """What a call is told that is stopped before its request went out."""

    def __init__(self, other: str, undo: Undoing | None = None):
        self.other, self._undo = other, undo

    def start(self, arguments: Mapping[str, Any], run: Reports) -> None:
        """Send the request as soon as the other side is there."""
        message = self.message(arguments)
        send = functools.partial(self.send, message, run)
        run.handle = Attempt(send, self.is_there, self.other, run.timeout, self.knows_us)

    def lost(self, run: Reports) -> str:
        """Return why no answer will come, '' if it may."""
        return run.handle.lost()

    def stop(self, run: Reports) -> None:
        """End the request."""
        if run.handle.sent is None:
            run.was_cancelled(self.unsent)
        else:
            self.stop_sent(run.handle.sent, run)

    def undo(self, again: bool = False) -> None:
        """Do what the file names as `on_cancel`; nothing without it."""
        if self._undo is not None:
            self._undo(again)

    def follow(self) -> None:
        """Get known to the other side before the first call. Called now and then."""
        if self.is_there():
            self.knows_us()

    def preview(self, arguments: Mapping[str, Any]) -> str:
        """Return what would be called."""
        return self.would(json.dumps(dict(arguments), ensure_ascii=False))

    def close(self) -> None:
        """Close what was opened."""
        if self._undo is not None:
            self._undo.close()
        self.close_request()

    # --- what a subclass fills in ---

    def message(self, arguments: Mapping[str, Any]) -> Any:
        """Return the request of a call."""
        raise NotImplementedError

    def is_there(self) -> bool:
        """Return whether the other side is there."""
        raise NotImplementedError

    def knows_us(self) -> bool:
        """Return whether the other side, which is there, has found this one, too."""
        return True

    def send(self, message: Any, run: Reports) -> Any:
        """Send the request; return what belongs to it, not None."""
        raise NotImplementedError

    def stop_sent(self, sent: Any, run: Reports) -> None:
        """End a request that was sent."""

    def would(self, arguments: str) -> str:
        """Return what a call with these arguments would do."""
        raise NotImplementedError

    def close_request(self) -> None:
        """Close the client or publisher."""
