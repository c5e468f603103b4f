"""Handles Ctrl-C, SIGTERM and SIGHUP (a terminal or SSH connection was closed) in a program with threads that
has to shut down cleanly.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def on_signal(act: Callable[[], None]) -> None:
    """Call `act` on its own thread at the first of these signals; later ones have no effect.

    Call this on the main thread. Python runs signal handlers in the middle of the main thread's code: a
    handler that sets an Event would deadlock if a second signal arrives while the first holds the Event's
    lock (`ros2 launch` and the terminal each send one). So the handlers do nothing, and a thread reads from a
    pipe that a signal arrived.
    """
    heard, told = os.pipe()
    os.set_blocking(told, False)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    for number in _NUMBERS:
        if signal.getsignal(number) != signal.SIG_IGN or number != signal.SIGHUP:  # ignored under nohup
            signal.signal(number, lambda *_: None)

    def wait():
        os.read(heard, 1)
        act()

    threading.Thread(target=wait, name='signals', daemon=True).start()


def ignore_signals() -> None:
    """Ignore these signals at the very end of a process: Python restores their defaults before it exits, and
    another signal would then change the exit code to that of a crash.
    """
    for number in _NUMBERS:
        signal.signal(number, signal.SIG_IGN)
