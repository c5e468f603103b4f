"""Ctrl-C, SIGTERM and SIGHUP (a terminal or ssh connection that is gone) for a program that has threads and
something to bring to an end.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def on_signal(act: Callable[[], None]) -> None:
    """Have `act` called, on a thread of its own, at the first of these signals; later ones change nothing.
    To be called on the main thread.

    Python runs a handler in the midst of what its main thread does. One that sets an Event would wait for
    ever where a second signal (`ros2 launch` and the terminal each send one) comes while the first holds the
    Event's lock. So the handlers do nothing, and a thread reads from a pipe that a signal came.
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
    """For the last moments of a process: Python gives signals their default back before it ends, and one more
    would make the exit code that of a crash.
    """
    for number in _NUMBERS:
        signal.signal(number, signal.SIG_IGN)
