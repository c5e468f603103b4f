"""Calls that are not in the saved conversation yet. After a crash, the robot knows which were running and how
the others ended.

A call is written before it begins and again when it ends. It is removed once the conversation with its answer
is saved. None of them is ever repeated.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable
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
        lost: Calls that were running when the previous run ended, as `unknown`.
        ended: Calls that had ended before, but may not be in the saved conversation.
    """

    def __init__(self, path: str | os.PathLike):
        self._path = Path(path)
        self._lock = threading.Lock()
        self.lost, self.ended = self._read()
        self._entries = {record.call.id: _entry(record) for record in [*self.lost, *self.ended]}

    def _read(self) -> tuple[list[CallRecord], list[CallRecord]]:
        try:
            with open_regular(self._path) as file:
                entries = json.loads(file.read())
            return (
                [_record(entry) for entry in entries if not entry.get('state')],
                [_record(entry) for entry in entries if entry.get('state')],
            )
        except FileNotFoundError:
            return [], []
        except Exception:  # damaged: the history still knows which calls have no answer
            return [], []

    def settle(self, kept: Callable[[str], bool]) -> None:
        """Forget calls that have ended: the conversation on disk holds their answers.

        Args:
            kept: Returns whether a call, by its id, must still be kept.
        """
        with self._lock:
            entries = {key: entry for key, entry in self._entries.items() if not entry['state'] or kept(key)}
            if len(entries) < len(self._entries):
                self._entries = entries
                with contextlib.suppress(OSError):  # `recover` sees that the conversation has its answer
                    self._write()

    def note(self, record: CallRecord) -> None:
        """Write down a call that is about to run, or that goes on in the background, or how it has ended.

        Raises:
            OSError: The file cannot be written.
        """
        call, entry = record.call, _entry(record)
        with self._lock:
            before = self._entries.get(call.id)
            if entry != before and (call.state is CallState.RUNNING or (call.ended and before is not None)):
                self._entries[call.id] = entry
                self._write()

    def _write(self) -> None:
        if self._entries:
            text = json.dumps(list(self._entries.values()), ensure_ascii=False, default=str)
            write_whole(str(self._path), text.encode('utf-8', 'replace'))
        else:
            self._path.unlink(missing_ok=True)


def _entry(record: CallRecord) -> dict[str, Any]:
    call = record.call
    return {
        'id': call.id,
        'name': call.name,
        'arguments': dict(call.arguments),
        'turn_id': record.turn_id,
        'background': record.background,
        'state': str(call.state) if call.ended else '',
        'result': call.result if call.ended else '',
    }


def _record(entry: dict[str, Any]) -> CallRecord:
    state, result = CallState.UNKNOWN, UNKNOWN
    if entry.get('state'):
        state, result = CallState(entry['state']), str(entry['result'])
    call = ToolCall(entry['id'], entry['name'], entry['arguments'], state, result)
    return CallRecord(call, entry['turn_id'], entry['background'])
