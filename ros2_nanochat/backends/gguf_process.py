"""What llama.cpp shares with the whole process: its log, and the cores it computes on."""
from __future__ import annotations

import os


class LogLines:
    """Keeps what llama.cpp logs while a model is opened, quietly, so that a failure can say why."""

    def __init__(self, api):
        self._api = api
        self._lines: list[str] = []
        self._callback = api.llama_log_callback(self._take)

    def _take(self, level, text, _):
        if level >= 3 and len(self._lines) < 100:  # GGML_LOG_LEVEL_WARN and up
            self._lines.append(text.decode('utf-8', 'replace').strip())

    def __enter__(self):
        self._api.llama_log_set(self._callback, None)

    def __exit__(self, *_):
        self._api.llama_log_set(_silence(self._api), None)

    def reason(self) -> str:
        known = [line for line in self._lines if 'error' in line.lower() or 'fail' in line.lower() or 'unknown' in line.lower()]
        return (known or self._lines or ['llama.cpp gives no reason'])[0].split(': ', 1)[-1]


_silent = None


def _silence(api):
    global _silent  # llama.cpp keeps the pointer for as long as the process lives
    if _silent is None:
        _silent = api.llama_log_callback(lambda level, text, data: None)
    return _silent


def physical_cores() -> int:
    """Cores this process may run on, hyper-threads of one core counted once."""
    cores = set()
    for cpu in os.sched_getaffinity(0):
        try:
            with open(f'/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list') as siblings:
                cores.add(siblings.read().strip())
        except OSError:
            cores.add(str(cpu))
    return max(1, len(cores))
