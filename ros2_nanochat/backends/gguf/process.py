"""What llama.cpp shares with the whole process: its log, and Ctrl-C."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable

from ros2_nanochat.errors import printable


class LogLines:
    """Collects llama.cpp's log while a model is opened, without printing it, so that an error can quote
    it.

    A thread that writes to a log while another one stops collecting it may still hold the callback: what is
    used while a model runs is kept as long as the model, and collects only a log that no other thread writes.

    Args:
        api: `llama_cpp.llama_cpp`.
        set_logs: The functions that set where a log goes; by default that of llama.cpp.
    """

    def __init__(self, api, *set_logs: Callable):
        self._api = api
        self._set = set_logs or (api.llama_log_set,)
        self.lines: list[str] = []
        self._callback = api.llama_log_callback(self._take)

    def _take(self, level, text, _):
        if level >= 3 and len(self.lines) < 100:  # GGML_LOG_LEVEL_WARN and up
            self.lines.append(text.decode('utf-8', 'replace').strip())

    def __enter__(self):
        self.lines.clear()
        for set_log in self._set:
            set_log(self._callback, None)

    def __exit__(self, *_):
        for set_log in self._set:
            set_log(_silence(self._api), None)

    def reason(self) -> str:
        """Return the line of the log that best explains a failure."""
        known = [
            line
            for line in self.lines
            if 'error' in line.lower() or 'fail' in line.lower() or 'unknown' in line.lower()
        ]
        return printable((known or self.lines or ['llama.cpp gives no reason'])[0].split(': ', 1)[-1])


_silent = None


def _silence(api):
    global _silent  # llama.cpp keeps the pointer as long as the process runs
    if _silent is None:
        _silent = api.llama_log_callback(lambda level, text, data: None)
    return _silent


@contextlib.contextmanager
def interruptible(abort: Callable[[], None]):
    """Let Ctrl-C call `abort`, and raise KeyboardInterrupt after the block.

    During a long call of llama.cpp, Python runs only in callbacks, which no exception leaves:
    KeyboardInterrupt would be printed and lost there.
    """
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield  # not the main thread, or the program handles Ctrl-C itself
        return
    interrupted = False

    def interrupt(*_):
        nonlocal interrupted
        interrupted = True
        abort()

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if interrupted:
            raise KeyboardInterrupt from None
