"""A chat node, a camera and the web page's server in processes of their own, for the tests of the page."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from conftest import FAKE, NodeProcess, hear_sighup, program

from ros2_nanochat import ChatHistory, NanoLLM
from ros2_nanochat.answer.written_call import WrittenCall
from ros2_nanochat.tools import Tool

TOOLS = 'tools: {set_lamp: {service: /lamp, type: std_srvs/srv/SetBool, confirm: true}}\n'
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


def call_text(name: str, arguments: dict) -> str:
    """What the fake model has to write to call a tool."""
    with NanoLLM.from_pretrained('', api='fake') as model:
        history = ChatHistory(model, tools=[Tool('any')])
        return history.template.call_format.write([WrittenCall(name, arguments)])


class Site:
    """The robots r1, which has a camera, and r2 on one node, and the page."""

    def __init__(self, *web_arguments: str):
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        (folder / 'tools.yaml').write_text(TOOLS)
        (folder / 'script.json').write_text(json.dumps([['<lamp>', call_text('set_lamp', {'data': True})]]))
        self._parameters = {
            'model': f'script={folder / "script.json"},tokens_per_second=60',
            'tools_file': str(folder / 'tools.yaml'),
            'cameras': ['arm:=/{robot}/arm'],
        }
        self.start_node()
        self.camera = Program(
            'demo_camera', '--ros-args', '-r', 'nanochat/image:=/r1/nanochat/image', '-p', 'seed:=7'
        )
        self.web = Program('web', '--port', '0', *web_arguments)
        self.address = self.web.wait_for('the page: ').split('the page: ')[1].strip()
        self.node.wait_for_line(': active')

    def start_node(self) -> None:
        self.node = NodeProcess(robots=['r1', 'r2'], speculation=False, **{**FAKE, **self._parameters})

    def close(self) -> None:
        codes = [self.web.stop(), self.camera.stop(), self.node.stop()]
        self._folder.cleanup()
        output = ''.join(self.web.lines)
        assert codes[0] == 0 and 'Traceback' not in output and 'error' not in output.lower(), output
