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


def program(name: str) -> str:
    """A program of the built package, where `ros2 run` would find it."""
    for prefix in os.environ['AMENT_PREFIX_PATH'].split(':'):
        path = Path(prefix, 'lib', 'nanochat', name)
        if path.exists():
            return str(path)
    sys.exit(f'{name} is not built: run  make setup')


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
    started = []

    def start(command, **pipes):
        # In their own session, so that Ctrl-C reaches only the client; they are ended below.
        started.append(subprocess.Popen(command, start_new_session=True, **pipes))
        return started[-1]

    # Whoever ends this program ends all: the others are in sessions of their own.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    parameters = {'model': model, **({'vision': 'tiny'} if options.vision and not model else {})}
    if options.watch and not model:
        parameters['explain_format'] = 'false'  # the tiny vision encoder knows only the questions as they are
    arguments = [part for name, value in parameters.items() if value for part in ('-p', f'{name}:={value}')]
    client = None
    try:
        print(
            f'[demo] chat node on ROS_DOMAIN_ID={os.environ["ROS_DOMAIN_ID"]}, its log: {log.name}',
            file=sys.stderr,
        )
        node = start([program('chat_node'), '--ros-args', *arguments], stdout=log, stderr=log)
        if options.vision and not image:
            moving = ['--ros-args', '-p', 'moving:=true', '-p', 'hold:=4.0'] if options.watch else []
            start([program('demo_camera'), *moving], stdout=sys.stderr)
        if options.vision and not image and not options.web:
            while ': active' not in Path(log.name).read_text() and node.poll() is None:
                time.sleep(0.1)
            time.sleep(2.0)  # the node and the camera find each other
        watch = [sys.executable, str(Path(__file__).with_name('demo_watch.py'))]
        client = subprocess.Popen(
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
        ended = [*started, client] if client is not None else started
        for process in ended:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
        for process in ended:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()


if __name__ == '__main__':
    sys.exit(main())
