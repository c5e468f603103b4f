"""What the open web page costs the node, over ROS 2 in the built workspace: the node's processor time for
each token, and its tokens per second, with the page open (a robot that answers, and its camera) and without
any page. Both take turns; each answers the same question with the same tokens. The model leaves one core to
the other programs, so that the figures show what the page costs the node; with `--threads` as many as there
are cores, page, browser and model share them.

How much of a core each of the other programs takes is printed too.

    python -m benchmarks.bench_web [--rounds 12] [--tokens 200] [--threads 1]
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.common import machine, table

_CLOSED = 4.5  # seconds until the page's server has closed its subscriptions
sys.path.insert(0, str(Path(__file__).parents[1] / 'test' / 'ros'))


class OpenPage:
    """What a browser does with the page, in a process of its own: shows a robot and its camera, and takes all
    that comes. Its low priority stands for another machine, on which people have the page open.
    """

    def __init__(self, address: str, robot: str):
        spawn = multiprocessing.get_context('spawn')
        self._events, self._pictures = spawn.Value('i', 0), spawn.Value('i', 0)
        counts = self._events, self._pictures
        self._process = spawn.Process(target=browse, args=(address, robot, *counts), daemon=True)
        self._process.start()

    @property
    def events(self) -> int:
        return self._events.value

    @property
    def pictures(self) -> int:
        return self._pictures.value

    @property
    def pid(self) -> int:
        return self._process.pid or 0

    def close(self) -> None:
        self._process.terminate()
        self._process.join(5.0)


def browse(address: str, robot: str, events, pictures) -> None:
    """Show a robot and its camera, and count what comes."""
    os.nice(19)
    asyncio.run(_browse(address.rstrip('/'), robot, events, pictures))


async def _browse(address: str, robot: str, events, pictures) -> None:
    import aiohttp

    show = {'do': 'show', 'robot': robot, 'camera': 'image'}
    async with aiohttp.ClientSession() as session:
        async with session.ws_connect(f'{address}/socket', headers={'Origin': address}) as socket:
            asked = False
            async for message in socket:
                if message.type is aiohttp.WSMsgType.BINARY:
                    pictures.value += 1
                    continue
                events.value += 1
                if not asked and robot in message.data:
                    asked = True
                    await socket.send_json(show)


def wait(condition: Callable[[], object]) -> None:
    until = time.monotonic() + 60.0
    while not condition():
        assert time.monotonic() < until, 'it does not happen'
        time.sleep(0.05)


def main() -> int:
    """Print the figures. The exit code is 1 if the node takes over a hundredth more for each token."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--rounds', type=int, default=12)
    parser.add_argument('--tokens', type=int, default=200)
    parser.add_argument('--threads', type=int, default=max(1, len(os.sched_getaffinity(0)) - 1))
    options = parser.parse_args()
    from conftest import NodeProcess
    from web_site import Program

    from benchmarks.bench_watch_ros import cpu_seconds
    from ros2_nanochat.ros.client import ChatClient

    print(machine())
    node = NodeProcess(model='', max_context_len=1024, speculation=False, threads=options.threads)
    camera = Program('demo_camera')
    web = Program('web', '--port', '0')
    spent: dict[str, list[tuple[float, float]]] = {'none': [], 'open': []}
    pictures = 0
    shares: dict[str, list[float]] = {'server': [], 'browser': [], 'camera': [], 'camera without': []}
    try:
        node.wait_for_line(': active')
        address = web.wait_for('the page: ').split('the page: ')[1].strip()
        with ChatClient() as chat:
            assert chat.wait_until_ready(30.0)
            for n in range(2 * options.rounds + 2):
                kind = ('open', 'none')[n % 2]
                page = OpenPage(address, '/nanochat') if kind == 'open' else None
                if page is None:
                    time.sleep(_CLOSED)
                else:
                    wait(lambda page=page: page.pictures and page.events > 3)
                    time.sleep(1.0)
                chat.reset()
                others = {'camera' if page else 'camera without': camera.process.pid}
                others |= {'server': web.process.pid, 'browser': page.pid} if page else {}
                used = {name: cpu_seconds(pid) for name, pid in others.items()}
                before, began = cpu_seconds(node.process.pid), time.monotonic()
                turn = chat.ask('Tell me a long story about a robot.', max_new_tokens=options.tokens)
                done = turn.result(120.0)
                taken, seconds = cpu_seconds(node.process.pid) - before, time.monotonic() - began
                for name, pid in others.items():
                    shares[name].append((cpu_seconds(pid) - used[name]) / seconds)
                if page is not None:
                    pictures += page.pictures
                    page.close()
                if n > 1:
                    spent[kind].append((taken / done.new_tokens, done.new_tokens / seconds))
    finally:
        for program in (web, camera, node):
            program.stop()
    ratio = statistics.median(a[0] / b[0] for a, b in zip(spent['none'], spent['open']))
    speed = statistics.median(b[1] / a[1] for a, b in zip(spent['none'], spent['open']))
    rows = [
        (
            kind,
            *(f'{statistics.median(each):.4g}' for each in zip(*((1000 * cpu, rate) for cpu, rate in taken))),
        )
        for kind, taken in spent.items()
    ]
    table('The page', ('page', 'CPU ms of the node a token', 'tokens/s'), rows)
    print(
        f'  without the page, the node takes {ratio:.3f} of the time for each token; tokens/s with the page:'
    )
    print(f'  {speed:.3f} of those without; the page showed {pictures} camera pictures')
    cores = ', '.join(f'{name} {statistics.median(each):.3f}' for name, each in shares.items())
    print(f'  threads of the model: {options.threads}; cores of the others: {cores}')
    return int(ratio < 0.99)


if __name__ == '__main__':
    sys.exit(main())
