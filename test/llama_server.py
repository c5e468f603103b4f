"""llama.cpp's own HTTP server with the embedded model, in a process of its own: `LlamaServer()` starts it.

One thread: with more, servers that run beside other tests are slower than with one.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(('127.0.0.1', 0))
        return sock.getsockname()[1]


class LlamaServer:
    """A server in a child process.

    Args:
        slots: Replies that it runs at once.
        context: Tokens of each.
        port: Where it listens; None chooses a free port.
        template: The chat template; empty for the model's own.
    """

    def __init__(self, slots=2, context=1024, port=None, template=''):
        self.port = port or free_port()
        self.root = f'http://127.0.0.1:{self.port}'
        self.url = f'{self.root}/v1'
        self._arguments = [str(slots), str(context), str(self.port), template]
        self.start()

    def start(self):
        """Start it (again) and wait until it answers."""
        self._process = subprocess.Popen(
            [sys.executable, __file__, *self._arguments, str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until = time.monotonic() + 120
        while time.monotonic() < until:
            try:
                with urllib.request.urlopen(f'{self.root}/health', timeout=5) as answer:
                    if answer.status == 200:
                        return
            except OSError:
                assert self._process.poll() is None, 'the server ended'
            time.sleep(0.05)
        raise AssertionError('the server does not answer')

    def get(self, path):
        """Return the JSON at a path."""
        with urllib.request.urlopen(f'{self.root}{path}', timeout=10) as answer:
            return json.load(answer)

    def busy(self) -> int:
        """Return how many replies it works on."""
        return sum(bool(slot['is_processing']) for slot in self.get('/slots'))

    def kill(self):
        """End it at once."""
        self._process.kill()
        self._process.wait(10)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()


def _serve(slots: int, context: int, port: int, template: str, parent: int) -> None:
    import xllamacpp

    from ros2_nanochat.locate import embedded_model

    params = xllamacpp.CommonParams()
    params.model.path = embedded_model()
    params.hostnames, params.port = ['127.0.0.1'], port
    params.n_parallel, params.n_ctx = slots, slots * context
    params.kv_unified = False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.n_threads_http = 16
    params.n_batch = params.n_ubatch = 64
    params.endpoint_slots = params.endpoint_props = True
    params.warmup = False
    params.chat_template = template
    server = xllamacpp.Server(params)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert server.listening_address.endswith(str(port)), server.listening_address
    while os.getppid() == parent:  # end with the test, however that ends
        time.sleep(0.2)


if __name__ == '__main__':
    *numbers, template, parent = sys.argv[1:]
    _serve(*map(int, numbers), template, int(parent))
