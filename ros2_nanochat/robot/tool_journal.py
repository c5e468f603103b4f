"""The calls that run at this moment, on disk: after a crash the robot knows which ones were under way.

A call is written down before it begins and removed when it has ended. None of them is ever repeated.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from pathlib import Path
from typing import Any

from ros2_nanochat.files import open_regular, write_whole
from ros2_nanochat.robot.tool_record import CallRecord
from ros2_nanochat.tools import CallState, ToolCall

UNKNOWN = 'unknown: the node ended while it ran. It may have had its effect; it is not repeated'
NOT_CALLED = 'not called: the node ended before'


class ToolJournal:
    """The journal of one robot.

    Args:
        path: The file.

    Attributes:
        lost: The calls that were under way when the node ended last, as `unknown`.
    """

    def __init__(self, path: str | os.PathLike):
        self._path = Path(path)
        self._lock = threading.Lock()
        self._running: dict[str, dict[str, Any]] = {}
        self.lost = self._read()

    def _read(self) -> list[CallRecord]:
        try:
            with open_regular(self._path) as file:
                entries = json.loads(file.read())
            return [
                CallRecord(
                    ToolCall(entry['id'], entry['name'], entry['arguments'], CallState.UNKNOWN, UNKNOWN),
                    entry['turn_id'],
                    entry['background'],
                )
                for entry in entries
            ]
        except FileNotFoundError:
            return []
        except Exception:  # damaged: the history still knows which calls have no answer
            return []

    def forget(self) -> None:
        """Forget the calls of before: everybody knows of them."""
        self.lost = []
        with self._lock, contextlib.suppress(OSError):
            if not self._running:
                self._path.unlink()

    def note(self, record: CallRecord) -> None:
        """Write down a call that is about to run, or that goes on in the background; remove one that has
        ended.

        Raises:
            OSError: The file cannot be written.
        """
        call = record.call
        with self._lock:
            before = dict(self._running)
            if call.state is CallState.RUNNING:
                self._running[call.id] = {
                    'id': call.id,
                    'name': call.name,
                    'arguments': dict(call.arguments),
                    'turn_id': record.turn_id,
                    'background': record.background,
                }
            elif call.ended:
                self._running.pop(call.id, None)
            if self._running != before:
                if self._running:
                    text = json.dumps(list(self._running.values()), ensure_ascii=False, default=str)
                    write_whole(str(self._path), text.encode('utf-8', 'replace'))
                else:
                    self._path.unlink(missing_ok=True)
