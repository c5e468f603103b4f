"""An HTTP server of somebody else's, in a process of its own while a test needs it."""

from __future__ import annotations

import subprocess
import time
import urllib.request
from collections.abc import Sequence
from contextlib import contextmanager


@contextmanager
def serving(command: Sequence[str], address: str, seconds: float, env: dict[str, str] | None = None):
    """Run a server in the block, from when the address answers on.

    Args:
        command: What starts it.
        address: A URL of it that answers once it is ready.
        seconds: How long that may take.
        env: Its environment; None for that of this process.
    """
    silent = subprocess.DEVNULL
    process = subprocess.Popen(command, stdin=silent, stdout=silent, stderr=silent, env=env)
    try:
        until = time.monotonic() + seconds
        while True:
            try:
                with urllib.request.urlopen(address, timeout=5):
                    break
            except OSError:
                assert process.poll() is None and time.monotonic() < until
                time.sleep(0.1)
        yield
    finally:
        process.kill()
        process.wait(10)
