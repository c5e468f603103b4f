"""A file that gets a line of JSON for each state of each call of a tool. Lines are only ever added."""

from __future__ import annotations

import json
import os
import threading
import time

from ros2_nanochat.errors import one_line
from ros2_nanochat.robot.tool_record import CallRecord

_LONGEST = 2000


class AuditFile:
    """One audit file. Several robots, and several nodes, may share it.

    Args:
        path: The file; it is created if it does not exist, readable only for the node's user.

    Raises:
        ValueError: It cannot be written to.
    """

    def __init__(self, path: str):
        self.path = os.path.abspath(os.path.expanduser(path))
        self._lock = threading.Lock()
        try:
            self._write(b'')
        except OSError as error:
            raise ValueError(f'limits.audit={self.path} cannot be written to: {error.strerror}') from error

    def add(self, robot: str, record: CallRecord) -> None:
        """Add a line.

        Raises:
            OSError: It cannot be written.
        """
        call = record.call
        line = {
            'time': f'{time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())}Z',
            'robot': robot,
            'turn_id': record.turn_id,
            'id': call.id,
            'name': call.name,
            'arguments': dict(call.arguments),
            'state': str(call.state),
            'result': call.result[:_LONGEST],
            'duration': round(call.duration, 3),
            'background': record.background,
            'dry_run': record.dry_run,
        }
        self._write(json.dumps(line, ensure_ascii=False, default=str).encode('utf-8', 'replace') + b'\n')

    def _write(self, data: bytes) -> None:
        """Add bytes in one call, so that the lines of several processes do not mix."""
        with self._lock:
            handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o600)
            try:
                if data and os.write(handle, data) != len(data):
                    raise OSError(28, 'the line was cut')
                if data:
                    os.fsync(handle)
            except OSError as error:
                raise OSError(error.errno, f'{self.path}: {one_line(error.strerror)}') from error
            finally:
                os.close(handle)
