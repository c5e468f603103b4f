"""Runs a command that ends when the program that started it ends, for whatever reason.

    python guard.py PARENT FOLDER COMMAND...

PARENT is the starting process. Standard input is a pipe from it, which closes when that process ends. The
command and its children are then ended, and FOLDER is removed. A lock whose file descriptor was passed on
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
_PATIENCE = 3.0  # seconds that a command gets to end by itself


def die_with_parent(number: int) -> None:
    """Make the kernel send a signal to this process when its parent ends; does nothing if that is not
    possible.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def end_group(child: subprocess.Popen) -> None:
    """End a process and the others in its group."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, number)
        until = time.monotonic() + _PATIENCE
        while child.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


def main() -> int:
    """Run the command; return its exit code, or 128 plus the number of the signal that ended it."""
    parent, folder, command = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
    ended = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: ended.append(True))
    die_with_parent(signal.SIGTERM)
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: die_with_parent(signal.SIGKILL),  # in case this program itself is killed
    )
    while child.poll() is None:
        if ended or os.getppid() != parent or select.select([0], [], [], 0.05)[0]:
            end_group(child)
            shutil.rmtree(folder, ignore_errors=True)
            return 128 + signal.SIGTERM
    end_group(child)  # the children that it left running
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


if __name__ == '__main__':
    sys.exit(main())
