"""Runs the `mlc_llm` command, reports its progress, and turns a failure into one line."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

from ros2_nanochat.backends.mlc import guard
from ros2_nanochat.backends.mlc.making import Aside, larger_files, more_room, stop_if_set
from ros2_nanochat.errors import BackendError, printable

INSTALL = (
    'mlc_llm is not installed, which quantizing and compiling need: on a Jetson run in a container that has'
    ' it (jetson-containers run $(autotag mlc)), elsewhere see'
    ' https://llm.mlc.ai/docs/install/mlc_llm.html; or name a model that is ready: a folder or hub repository'
    ' of MLC weights (its names end in -MLC), and its library with model_lib'
)
_HEARTBEAT = 20  # seconds between lines about the progress
_LOOK = 0.2  # seconds between two looks at whether to stop
_KEPT = 1 << 18  # bytes of the output that are examined
_NOISE = re.compile(r'\x1b\[[0-9;]*m')
_FULL = re.compile(r'No space left on device|Disk quota exceeded|\[Errno (?:28|122)\]|errno 28')
_TOO_LARGE = re.compile(r'File too large|File size limit exceeded|\[Errno 27\]|errno 27')
_FEW = 4 << 20  # a disk with fewer free bytes counts as full


def command() -> list[str]:
    """Return the command that runs mlc_llm.

    Raises:
        BackendError: It is not installed. The message says how to install it.
    """
    if program := shutil.which('mlc_llm'):
        return [program]
    if importlib.util.find_spec('mlc_llm') is not None:
        return [sys.executable, '-m', 'mlc_llm']
    raise BackendError(INSTALL)


class Steps:
    """Runs commands of mlc_llm in turn. They end with this process.

    Args:
        count: How many there will be.
        aside: Where the work is done.
        notify: Called with a line of text as the work proceeds.
        stop: Set it to end the command.
    """

    def __init__(
        self,
        count: int,
        aside: Aside,
        notify: Callable[[str], None],
        stop: threading.Event | None = None,
    ):
        self._count, self._aside, self._notify, self._stop = count, aside, notify, stop
        self._done = 0

    def __call__(self, doing: str, *arguments: str) -> None:
        """Run one. Raises BackendError, one line, if it fails."""
        self._done += 1
        label = f'mlc_llm {self._done}/{self._count}'
        self._notify(f'{label}: {doing} (this may take minutes)')
        began = time.monotonic()
        scratch = os.path.join(
            self._aside.folder, 'tmp'
        )  # compilers write large files: use the disk with enough room
        os.makedirs(scratch, exist_ok=True)
        process = subprocess.Popen(
            [sys.executable, '-I', '-S', guard.__file__, str(os.getpid()), self._aside.folder]
            + [*command(), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(self._aside.lock,),
            start_new_session=True,
            env={**os.environ, 'PYTHONUNBUFFERED': '1', 'TMPDIR': scratch},
        )
        output = _Output(process)
        try:
            while (code := self._wait(process)) is None:
                self._notify(f'{label}: {time.monotonic() - began:.0f} s: {output.last_line()}')
        except BaseException:
            _end(process)
            raise
        finally:
            assert process.stdin is not None
            process.stdin.close()
        if code:
            signal_ = f' on signal {code - 128}' if code > 128 else ''
            if code == 128 + signal.SIGKILL:
                signal_ += ', which the system sends if memory runs out'
            raise BackendError(
                f'mlc_llm {arguments[0]} failed{signal_}: {telling(output.text(), self._aside.folder)}'
            )
        self._notify(f'{label}: done in {time.monotonic() - began:.0f} s')

    def _wait(self, process: subprocess.Popen) -> int | None:
        until = time.monotonic() + _HEARTBEAT
        while time.monotonic() < until:
            stop_if_set(self._stop)
            try:
                return process.wait(_LOOK)
            except subprocess.TimeoutExpired:
                continue
        return None


def _end(process: subprocess.Popen) -> None:
    """Make the guard end the command, by closing its standard input."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class _Output:
    """The end of a process's output. It is kept in memory, because the disk may be full."""

    def __init__(self, process: subprocess.Popen):
        self._bytes = bytearray()
        self._stream = process.stdout
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._stream is not None
        with contextlib.suppress(OSError, ValueError), self._stream:
            while data := os.read(self._stream.fileno(), 1 << 16):
                self._bytes += data
                del self._bytes[:-_KEPT]

    def text(self) -> str:
        """Return all of it; call this after the process has ended."""
        self._reader.join(5)
        return _NOISE.sub('', bytes(self._bytes).decode('utf-8', 'replace'))

    def last_line(self) -> str:
        """Return the current last line."""
        text = _NOISE.sub('', bytes(self._bytes).decode('utf-8', 'replace'))
        return next(
            (line.strip()[-120:] for line in reversed(re.split(r'[\r\n]+', text)) if line.strip()), '...'
        )


def telling(text: str, folder: str) -> str:
    """Return the line of a program's output that says why it failed.

    A full disk is reported as such, also if it cut the program's output off.

    Args:
        text: The output.
        folder: Where the program was writing.
    """
    if _TOO_LARGE.search(text):
        return larger_files(os.path.dirname(folder))
    full = _full_disk(text, folder)
    if full:
        return f'the disk is full; {full}'
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    known = [
        line
        for line in lines
        if re.match(r'(\w+\.)*\w*(Error|Exception|error)\b.*:', line) or 'error:' in line
    ]
    return printable((known or lines or ['it said nothing'])[-1], 300) or 'it said nothing'


def _full_disk(text: str, folder: str) -> str | None:
    """What to do about a full disk; None if none is full."""
    if not _FULL.search(text):
        return more_room(os.path.dirname(folder)) if _free(folder) < _FEW else None
    named = re.findall(r"(?:No space left on device|Disk quota exceeded)[^'\n]{0,20}'([^'\n]+)'", text)
    places = [os.path.dirname(path) for path in named if os.path.isabs(path)]
    for place in places:
        if not _same_disk(place, folder):
            return f'free some room on the disk of {place}'
    return more_room(os.path.dirname(folder))


def _existing(path: str) -> str:
    while not os.path.exists(path) and os.path.dirname(path) != path:
        path = os.path.dirname(path)
    return path


def _same_disk(a: str, b: str) -> bool:
    return os.stat(_existing(a)).st_dev == os.stat(_existing(b)).st_dev


def _free(folder: str) -> int:
    return shutil.disk_usage(_existing(folder)).free
