"""`make demo`: a chat node and a terminal client, two processes that talk over ROS 2. With PROMPT it asks
once; MODEL names another model.

--vision adds a small model that sees and a camera that shows drawn pictures (with IMAGE, that file instead).
--web does the same, and serves the page in place of the terminal.
--watch asks standing questions about a camera that shows a moving object.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIGNALS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP


def program(name: str) -> str:
    """A program of the built package, where `ros2 run` would find it."""
    for prefix in os.environ['AMENT_PREFIX_PATH'].split(':'):
        path = Path(prefix, 'lib', 'nanochat', name)
        if path.exists():
            return str(path)
    sys.exit(f'{name} is not built: run  make setup')


class Programs:
    """The programs that a demo has started: whoever ends the demo ends all of them."""

    def __init__(self):
        self._started: list[subprocess.Popen] = []
        self._starting = False
        self._noted: int | None = None
        for number in SIGNALS:
            signal.signal(number, self._signalled)

    def _signalled(self, number: int, _) -> None:
        self._noted = number
        if not self._starting:
            self._leave()

    def _leave(self) -> None:
        number, self._noted = self._noted, None
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        if number is not None:
            sys.exit(128 + number)

    def start(self, command: list[str], **options) -> subprocess.Popen:
        """Start a program. A signal that comes meanwhile waits: the program would not be known yet."""
        self._starting = True
        try:
            self._started.append(subprocess.Popen(command, **options))
        finally:
            self._starting = False
        self._leave()
        return self._started[-1]

    def end(self) -> None:
        """End all programs, the last one first. Signals are ignored from now on."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        for process in reversed(self._started):
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
        for process in self._started:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--vision', action='store_true')
    parser.add_argument('--watch', action='store_true')
    parser.add_argument('--web', action='store_true')
    options = parser.parse_args()
    options.vision = options.vision or options.web or options.watch
    os.environ.update(
        ROS_AUTOMATIC_DISCOVERY_RANGE='LOCALHOST',
        ROS_DOMAIN_ID=os.environ.get('ROS_DOMAIN_ID') or str(random.randint(1, 100)),
    )
    prompt, model, image = (os.environ.get(name, '') for name in ('PROMPT', 'MODEL', 'IMAGE'))
    log = tempfile.NamedTemporaryFile('w+', prefix='nanochat-demo-', suffix='.log', delete=False)  # noqa: SIM115
    programs = Programs()
    apart = {'start_new_session': True}  # so that Ctrl-C reaches only the client
    parameters = {'model': model, **({'vision': 'tiny'} if options.vision and not model else {})}
    if options.watch and not model:
        parameters['explain_format'] = 'false'  # the tiny vision encoder knows only the questions as they are
    arguments = [part for name, value in parameters.items() if value for part in ('-p', f'{name}:={value}')]
    try:
        print(
            f'[demo] chat node on ROS_DOMAIN_ID={os.environ["ROS_DOMAIN_ID"]}, its log: {log.name}',
            file=sys.stderr,
        )
        node = programs.start(
            [program('chat_node'), '--ros-args', *arguments], stdout=log, stderr=log, **apart
        )
        if options.vision and not image:
            moving = ['--ros-args', '-p', 'moving:=true', '-p', 'hold:=4.0'] if options.watch else []
            programs.start([program('demo_camera'), *moving], stdout=sys.stderr, **apart)
        if options.vision and not image and not options.web:
            while ': active' not in Path(log.name).read_text() and node.poll() is None:
                time.sleep(0.1)
            time.sleep(2.0)  # the node and the camera find each other
        watch = [sys.executable, str(Path(__file__).with_name('demo_watch.py'))]
        client = programs.start(
            [program('web')]
            if options.web
            else watch
            if options.watch
            else [
                program('chat_client'),
                *(['--prompt', prompt] if prompt else []),
                *(['--image', image] if image else []),
            ]
        )
        while True:
            try:
                while client.poll() is None and node.poll() is None:
                    try:
                        client.wait(0.2)
                    except subprocess.TimeoutExpired:
                        pass
                break
            except KeyboardInterrupt:
                pass  # the client's business
        if client.poll() is None:
            client.send_signal(signal.SIGINT)
            client.wait(5)
            log.seek(0)
            print(f'[demo] the node has ended:\n{log.read()[-2000:]}', file=sys.stderr)
            return 1
        return client.returncode
    finally:
        programs.end()


if __name__ == '__main__':
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
