"""From the start of `chat_node` to the first token of its first reply, in parts.

Run in the built workspace: `python -m benchmarks start`. Each part is the median of several starts on a warm
disk. The floors below them are what a bare program needs for the same.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import statistics
import subprocess
import sys
import threading
import time

from benchmarks.common import machine, table

_LINE = re.compile(r'\[(\d+\.\d+)\] \[nanochat\]: (loading|inactive|active)')


def starts(repeats: int) -> list[tuple[str, float]]:
    """Seconds of each part."""
    from benchmarks.bench_ros import chat_program
    from ros2_nanochat.ros.client import ChatClient

    parts: dict[str, list[float]] = {}
    with ChatClient() as chat:
        for _ in range(repeats):
            imports = seconds_of('import ros2_nanochat.ros.chat_node')
            began = time.time()
            process = subprocess.Popen(
                [chat_program(), '--ros-args', '-p', 'max_context_len:=1024'],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            stamps: dict[str, float] = {}
            listening = threading.Thread(target=note, args=(process.stderr, stamps), daemon=True)
            listening.start()
            try:
                if not chat.wait_until_ready(60):
                    raise SystemExit('the node did not start')
                ready = time.time()
                next(iter(chat.ask('Hello', max_new_tokens=4)))
                answered = time.time()
            finally:
                process.terminate()
                process.wait(10)
                listening.join(5)
            for part, seconds in (
                ('Python and imports', imports),
                ('ROS: context, node, parameters', stamps['loading'] - began - imports),
                ('the model: opening and warming up', stamps['inactive'] - stamps['loading']),
                ('robots, topics, activation', stamps['active'] - stamps['inactive']),
                ('a client sees that it is ready', max(0.0, ready - stamps['active'])),
                ('question to first token', answered - max(ready, stamps['active'])),
                ('all', answered - began),
            ):
                parts.setdefault(part, []).append(seconds)
    return [(part, statistics.median(values)) for part, values in parts.items()]


def note(lines, stamps: dict[str, float]) -> None:
    """Note when the node first logged each state."""
    for line in lines:
        if found := _LINE.search(line):
            stamps.setdefault(found[2], float(found[1]))


def seconds_of(code: str) -> float:
    """The time of a Python program of its own."""
    began = time.perf_counter()
    subprocess.run([sys.executable, '-c', code], check=True)
    return time.perf_counter() - began


def floors(repeats: int) -> list[tuple[str, float]]:
    """The same parts without nanochat."""
    programs = (
        ('Python', 'pass'),
        ('Python and rclpy', 'import rclpy, rclpy.action, rclpy.lifecycle'),
        ('the same and a bare node', 'import rclpy; rclpy.init(); rclpy.create_node("bare")'),
        ('Python, llama_cpp', 'import llama_cpp'),
    )
    return [(name, statistics.median(seconds_of(code) for _ in range(repeats))) for name, code in programs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--quick', action='store_true', help='three starts')
    options = parser.parse_args()
    os.environ.update(ROS_AUTOMATIC_DISCOVERY_RANGE='LOCALHOST', ROS_DOMAIN_ID=str(random.randint(1, 100)))
    import rclpy

    print(machine())
    rclpy.init()
    repeats = 3 if options.quick else 7
    try:
        table(f'chat_node, medians of {repeats} starts', ('', 's'), starts(repeats))
    finally:
        rclpy.try_shutdown()
    table('without nanochat', ('', 's'), floors(repeats))


if __name__ == '__main__':
    main()
