"""Eight robots on one node for half an hour: goals, queries, barge-in, cancels, resets, camera images. Memory
must stay constant, and no turn may be lost. First, all robots fill their contexts.

Run in the built workspace: `python -m benchmarks soak --minutes 30`; `--api fake --model
tokens_per_second=100` is the same at next to no load. The exit code is 1 if a turn was lost, the node
ended, or its own memory grew by a hundredth or more after `--settle` minutes (10 by default). Beside it
stands what the node shares: pages of the model, and the segments of Fast DDS (68 MB for each process), which
fill up slowly.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.bench_ros import resident
from benchmarks.common import machine, table

QUESTIONS = (
    'What is the capital of Japan?',
    'And of France?',
    'Tell me a story about a robot.',
    'Count to ten.',
    'What do you see?',
    'Why is the sky blue?',
)
GROWTH = 0.01


class Robot:
    """Asks one robot of the node in every way there is, and keeps account. name: of the robot. node: spun by
    somebody. pause: seconds at most between questions.
    """

    def __init__(self, name: str, node, pause: float, seed: int):
        from nanochat.msg import Turn
        from rclpy.qos import QoSProfile
        from std_msgs.msg import String

        from ros2_nanochat.ros.client import ChatClient

        self.name, self.pause, self._string = name, pause, String
        self.chat = ChatClient(robot=name, node=node)
        self._asker = node.create_publisher(String, f'{self.chat.prefix}/query', 100)
        self._turns = node.create_subscription(
            Turn, f'{self.chat.prefix}/turn', self._note, QoSProfile(depth=1000)
        )
        self._random = random.Random(seed)
        self._asked = 0
        self.open: set[str] = set()  # queries that no turn has answered yet
        self.ended, self.lost, self.resets = Counter(), 0, 0

    def _note(self, turn) -> None:
        if turn.query in self.open:
            self.open.discard(turn.query)
            self.ended[turn.finish_reason] += 1

    def fill(self) -> None:
        """Fill the context with long turns. Then llama.cpp has touched its buffers nearly as far
        as it ever will; otherwise they go on growing, with each batch that is larger than before.

        Raises:
            RuntimeError: A question is refused, and the context stays empty.
        """
        for count in range(8):
            question = f'{count} {self.name}: ' + 'Tell me more. ' * (20 + 11 * count)
            turn = self.chat.ask(question, max_new_tokens=100, on_new_query='queue').result(600)
            if turn.finish_reason == 'error':
                raise RuntimeError(f'the context cannot be filled: {turn.error}')
        self.chat.reset()

    def _question(self) -> str:
        self._asked += 1
        return f'{self._asked}. {self._random.choice(QUESTIONS)}'

    def run(self, until: float) -> None:
        """Ask until `until` (of time.monotonic)."""
        while time.monotonic() < until:
            getattr(
                self,
                self._random.choices(('goal', 'query', 'barge_in', 'cancel', 'reset'), (5, 3, 1, 1, 0.5))[0],
            )()
            time.sleep(self._random.uniform(0, self.pause))

    def goal(self, cancel: bool = False) -> None:
        reply = self.chat.ask(
            self._question(), max_new_tokens=self._random.randint(5, 80), on_new_query='queue'
        )
        if cancel:
            time.sleep(self._random.uniform(0, 0.5))
            reply.cancel()
        try:
            self.ended[reply.result(120).finish_reason] += 1
        except Exception as error:
            self.lost += 1
            print(f'{self.name}: {error!r}', file=sys.stderr, flush=True)

    def cancel(self) -> None:
        self.goal(cancel=True)

    def query(self) -> None:
        question = self._question()
        self.open.add(question)
        self._asker.publish(self._string(data=question))
        self._drain(60.0)

    def barge_in(self) -> None:
        for _ in range(3):
            question = self._question()
            self.open.add(question)
            self._asker.publish(self._string(data=question))
            time.sleep(self._random.uniform(0, 0.3))
        self._drain(60.0)

    def reset(self) -> None:
        try:
            self.chat.reset()
            self.resets += 1
        except Exception as error:
            self.lost += 1
            print(f'{self.name}: {error!r}', file=sys.stderr, flush=True)

    def _drain(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while self.open and time.monotonic() < until:
            time.sleep(0.02)
        if self.open:
            print(f'{self.name}: no turn for {sorted(self.open)}', file=sys.stderr, flush=True)
            self.lost += len(self.open)
            self.open.clear()


def start(function: Callable, *arguments) -> threading.Thread:
    """Call a function on a thread."""
    thread = threading.Thread(target=function, args=arguments, daemon=True)
    thread.start()
    return thread


def growth_of(samples: Sequence[tuple[float, float]], settle: float, minutes: float) -> tuple[float, float]:
    """Megabytes after the first minutes, and at the end; medians of a tenth of the run each.

    samples: (minutes since the beginning, megabytes).
    """
    window = max(0.5, minutes / 10)
    early = [size for minute, size in samples if settle <= minute < settle + window]
    late = [size for minute, size in samples if minute >= minutes - window]
    last = [samples[-1][1]] if samples else [1]
    return statistics.median(early or last), statistics.median(late or last)


def line_of(samples: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The line through the samples by least squares: megabytes an hour, and megabytes after 24 hours."""
    if len(samples) < 2:
        return 0.0, samples[-1][1] if samples else 0.0
    slope, start = statistics.linear_regression(*zip(*samples))
    return 60 * slope, start + 24 * 60 * slope


def main() -> int:
    parser = argparse.ArgumentParser(prog='python -m benchmarks soak', description=__doc__.splitlines()[0])
    parser.add_argument('--minutes', type=float, default=30.0)
    parser.add_argument(
        '--settle',
        type=float,
        default=10.0,
        help='minutes before memory must stay constant (at most half the run)',
    )
    parser.add_argument('--robots', type=int, default=8)
    parser.add_argument(
        '--pause', type=float, default=1.0, help='seconds at most between two questions of a robot'
    )
    parser.add_argument('--api', default='')
    parser.add_argument('--model', default='', help='as the parameter; the embedded one by default')
    options = parser.parse_args()
    os.environ.update(ROS_AUTOMATIC_DISCOVERY_RANGE='LOCALHOST', ROS_DOMAIN_ID=str(random.randint(1, 100)))
    import rclpy
    from rclpy.executors import SingleThreadedExecutor
    from rclpy.qos import QoSProfile, ReliabilityPolicy
    from sensor_msgs.msg import Image

    from ros2_nanochat.ros.spinning import spin

    print(machine(), flush=True)
    rclpy.init()
    node = rclpy.create_node('soak')
    names = [f'r{i}' for i in range(options.robots)]
    program = next(
        path
        for prefix in os.environ['AMENT_PREFIX_PATH'].split(':')
        if (path := Path(prefix, 'lib/nanochat/chat_node')).exists()
    )
    parameters = {
        'robots': f'[{", ".join(names)}]',
        'max_context_len': 1024,
        'max_sequences': options.robots,
        'image_mode': 'latest',
    }
    parameters.update(
        {name: value for name, value in (('api', options.api), ('model', options.model)) if value}
    )
    log = tempfile.TemporaryFile()  # noqa: SIM115  what the node says, shown where it ends
    chat_node = subprocess.Popen(
        [
            str(program),
            '--ros-args',
            *(part for name, value in parameters.items() for part in ('-p', f'{name}:={value}')),
            '--log-level',
            'error',
        ],
        stderr=log,
    )
    robots = [Robot(name, node, options.pause, seed) for seed, name in enumerate(names)]
    camera = node.create_publisher(
        Image,
        f'{robots[0].chat.prefix}/image',
        QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT),
    )
    frame = Image(height=480, width=640, step=1920, encoding='rgb8', data=bytes(480 * 1920))
    node.create_timer(
        0.2, lambda: (setattr(frame.header, 'stamp', node.get_clock().now().to_msg()), camera.publish(frame))
    )
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    spinning = threading.Thread(target=spin, args=(executor, node.get_logger()), daemon=True)
    spinning.start()
    samples, shares = [], []
    try:
        if not all(robot.chat.wait_until_ready(120) for robot in robots):
            raise SystemExit('the node did not start')
        time.sleep(2.0)
        with ThreadPoolExecutor(len(robots)) as together:
            list(together.map(Robot.fill, robots))
        began = time.monotonic()
        threads = [start(robot.run, began + 60 * options.minutes) for robot in robots]
        while any(thread.is_alive() for thread in threads) and chat_node.poll() is None:
            own = resident(chat_node, shared=False)
            samples.append(((time.monotonic() - began) / 60, own))
            shares.append((samples[-1][0], resident(chat_node) - own))
            if len(samples) % 12 == 1:
                print(
                    f'  {samples[-1][0]:5.1f} min  {own:7.2f} MB, and {shares[-1][1]:7.2f} MB shared'
                    f'  {sum(sum(robot.ended.values()) for robot in robots)} turns',
                    flush=True,
                )
            time.sleep(5.0)
        alive = chat_node.poll() is None
        if not alive:
            log.seek(0)
            print(log.read().decode(errors='replace')[-4000:], file=sys.stderr)
    finally:
        chat_node.terminate()
        chat_node.wait(10)
        executor.shutdown(timeout_sec=1.0)
        spinning.join(2.0)
        rclpy.try_shutdown()
    settle = min(options.settle, options.minutes / 2)
    before, after = growth_of(samples, settle, options.minutes)
    shared_before, shared_after = growth_of(shares, settle, options.minutes)
    slope, in_a_day = line_of([sample for sample in samples if sample[0] >= settle])
    ended = sum((robot.ended for robot in robots), Counter())
    lost = sum(robot.lost for robot in robots)
    table(
        f'{options.robots} robots, {options.minutes:g} minutes',
        ('', ''),
        [
            *((f'turns that ended with {reason}', count) for reason, count in sorted(ended.items())),
            ('resets', sum(robot.resets for robot in robots)),
            ('lost', lost),
            (f'own memory after {settle:g} min, MB', before),
            ('at the end, MB', after),
            ('growth, %', 100 * (after / before - 1)),
            ('slope of a line through all samples since, by least squares, MB an hour', slope),
            ('own memory after 24 hours on that line, MB', in_a_day),
            (f'shared memory after {settle:g} min, MB', shared_before),
            ('at the end, MB', shared_after),
            ('the node', 'up' if alive else 'ended'),
        ],
    )
    return int(lost > 0 or not alive or after / before - 1 >= GROWTH)


if __name__ == '__main__':
    sys.exit(main())
