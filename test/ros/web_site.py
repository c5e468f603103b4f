"""A chat node, a camera and the web page's server in processes of their own, for the tests of the page."""

from __future__ import annotations

import shutil
import signal
import subprocess
import threading
import time

from conftest import FAKE, NodeProcess, hear_sighup, program

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser')


class Program:
    """A program of the package; its output is kept."""

    def __init__(self, name: str, *arguments: str):
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [program(name), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=hear_sighup,
        )
        threading.Thread(
            target=lambda: self.lines.extend(iter(self.process.stdout.readline, '')), daemon=True
        ).start()

    def wait_for(self, text: str, timeout: float = 60.0) -> str:
        """The first line with a text."""
        until = time.monotonic() + timeout
        while True:
            for line in list(self.lines):
                if text in line:
                    return line
            assert time.monotonic() < until and self.process.poll() is None, (
                f'no {text!r} in:\n{"".join(self.lines)}'
            )
            time.sleep(0.02)

    def stop(self, number: int = signal.SIGINT) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(20.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


class Site:
    """The robots r1, which has a camera, and r2 on one node, and the page."""

    def __init__(self, *web_arguments: str):
        self.start_node()
        self.camera = Program(
            'demo_camera', '--ros-args', '-r', 'nanochat/image:=/r1/nanochat/image', '-p', 'seed:=7'
        )
        self.web = Program('web', '--port', '0', *web_arguments)
        self.address = self.web.wait_for('the page: ').split('the page: ')[1].strip()
        self.node.wait_for_line(': active')

    def start_node(self, **parameters) -> None:
        self.node = NodeProcess(
            robots=['r1', 'r2'], speculation=False, **{**FAKE, 'model': 'tokens_per_second=60', **parameters}
        )

    def close(self) -> None:
        codes = [self.web.stop(), self.camera.stop(), self.node.stop()]
        output = ''.join(self.web.lines)
        assert codes[0] == 0 and 'Traceback' not in output and 'error' not in output.lower(), output
