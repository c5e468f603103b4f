"""Runs a command that ends when whoever started this program ends, however that happens.

    python guard.py PARENT FOLDER COMMAND...

PARENT is the process that starts it, and standard input is a pipe from there, which ends with that process.
When it does, the command and what it started are ended and FOLDER is removed. A lock whose file was passed on
stays locked until then. Needs only the standard library.
"""

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PATIENCE = 3.0  # seconds that a command has to end by itself


def die_with_parent(number: int) -> None:
    """Have the kernel send a signal to this process when its parent ends; does nothing if it cannot."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def end_group(child: subprocess.Popen) -> None:
    """End a process and those of its group."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, number)
        until = time.monotonic() + _PATIENCE
        while child.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


def main() -> int:
    """Run the command; return its exit code, 128 and the number of the signal that ended it."""
    parent, folder, command = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
    ended = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: ended.append(True))
    die_with_parent(signal.SIGTERM)
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: die_with_parent(signal.SIGKILL),  # if this program itself is killed
    )
    while child.poll() is None:
        if ended or os.getppid() != parent or select.select([0], [], [], 0.05)[0]:
            end_group(child)
            shutil.rmtree(folder, ignore_errors=True)
            return 128 + signal.SIGTERM
    end_group(child)  # what it started and left running
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


if __name__ == '__main__':
    sys.exit(main())
