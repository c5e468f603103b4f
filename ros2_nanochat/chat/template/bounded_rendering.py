"""Renders chat templates in a separate process, which is killed if a template uses too much time or memory.

Templates come with models and can compute anything. Jinja's sandbox keeps them away from files and the
network, but it does not stop an endless loop, and nothing within one process can.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import json
import logging
import os
import select
import subprocess
import sys
import threading
import time
from typing import Any

from ros2_nanochat.chat.template import jinja_environment
from ros2_nanochat.chat.template.jinja_environment import Refused
from ros2_nanochat.model_info import LONGEST_TEMPLATE

_log = logging.getLogger(__name__)
_COMMAND = ['-m', 'ros2_nanochat.chat.template.render_process']
_PATIENCE = 60.0  # seconds of wall-clock time, in case a busy machine gives the process no CPU time
_PIPE = 1 << 20
_BOUNDS = 'more than 5 s of processor time or 512 MB of memory, or wrote more than 1 MB of its own'


class Mistake(ValueError):
    """A template that does not compile.

    Attributes:
        line: Line number of the error.
    """

    def __init__(self, line: int, message: str):
        super().__init__(message)
        self.line = line


class TooCostly(Refused):
    """A template that is too long, or was stopped because it used too much time or memory."""


class BoundedRenderer:
    """One process that renders all templates; started on first use and restarted after it was killed.

    Can be used from any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None
        self._owner = 0
        self._stopped: dict[str, str] = {}  # templates that were stopped: they are not tried again

    def check(self, source: str) -> None:
        """Compile a template.

        Raises:
            Mistake: It does not compile.
            TooCostly: It is too long, or used too much time or memory.
        """
        self._ask(source, None)

    def render(self, source: str, context: dict[str, Any]) -> str:
        """Render a template.

        Args:
            source: The template.
            context: Its variables, which JSON has to be able to represent.

        Raises:
            Refused: It raises an error or cannot render this; `TooCostly` if it was stopped.
        """
        return self._ask(source, context)

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._end()

    def _ask(self, source: str, context: dict[str, Any] | None) -> str:
        if len(source) > LONGEST_TEMPLATE:
            raise TooCostly(
                f'has {len(source)} characters, and at most {LONGEST_TEMPLATE} are read. Set chat_template to'
                ' another one'
            )
        try:
            request = json.dumps({'source': source, 'context': context}).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise Refused(
                f'cannot render this conversation: JSON cannot represent a value ({error})'
            ) from error
        with self._lock:
            if source in self._stopped:
                raise TooCostly(self._stopped[source])
            try:
                process = self._running()
            except OSError as error:
                _log.warning('chat templates are rendered without bounds, as no process can start: %s', error)
                return jinja_environment.render(source, context) if context is not None else ''
            answer = self._exchange(process, request)
            if answer is None or 'exceeded' in answer:
                self._end()
                self._stopped[source] = f'was stopped: it took {_BOUNDS}. Set chat_template to another one'
                raise TooCostly(self._stopped[source])
        if 'mistake' in answer:
            raise Mistake(*answer['mistake'])
        if 'refused' in answer:
            raise Refused(answer['refused'])
        return answer['text']

    def _running(self) -> subprocess.Popen:
        if self._process is not None and self._owner == os.getpid() and self._process.poll() is None:
            return self._process
        if not sys.executable:
            raise OSError('sys.executable is empty')
        self._process = subprocess.Popen(
            [sys.executable, *_COMMAND],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, 'PYTHONPATH': os.pathsep.join(path for path in sys.path if path)},
            start_new_session=True,
        )
        self._owner = os.getpid()
        for pipe in filter(None, (self._process.stdin, self._process.stdout)):
            with contextlib.suppress(OSError):  # a long conversation fits into the pipe at once
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE)
        return self._process

    def _exchange(self, process: subprocess.Popen, request: bytes) -> dict[str, Any] | None:
        """The answer to a request; None if the process ended or does not answer."""
        until = time.monotonic() + _PATIENCE
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(len(request).to_bytes(8, 'little') + request)
            process.stdin.flush()
            length = _read(process.stdout.fileno(), 8, until)
            if length is None:
                return None
            answer = _read(process.stdout.fileno(), int.from_bytes(length, 'little'), until)
        except OSError:
            return None
        return None if answer is None else json.loads(answer)

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            try:
                pipe.close()  # type: ignore[union-attr]
            except OSError:  # what was not written yet
                pass


def _read(handle: int, size: int, until: float) -> bytes | None:
    """Read `size` bytes; None if the stream ends first or they do not come in time."""
    pieces = []
    waiter = select.poll()
    waiter.register(handle, select.POLLIN)
    while size:
        if not waiter.poll(1000 * max(0.0, until - time.monotonic())):
            return None
        piece = os.read(handle, min(size, 1 << 20))
        if not piece:
            return None
        pieces.append(piece)
        size -= len(piece)
    return b''.join(pieces)


renderer = BoundedRenderer()
"""The renderer of this process."""
atexit.register(renderer.close)
