"""What arrives over DDS in another process: tokens/s and the way of a token, beside a raw llama.cpp loop with
a bare publisher behind it.

Both sides publish nanochat/msg/Token to the same subscriber (this process), taking turns, at one robot and at
eight. Then what a 1080p camera costs that nobody asks about, and how soon a reply ends that is cancelled. Run
in the built workspace: `python -m benchmarks ros`.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

from benchmarks.common import machine, table

STORY = (
    'Write a long story about a robot who learns to cook, with every detail of what it did in the kitchen.'
)
FLEET = 8


# --- children ---


def bare(steps: int, gpu_layers: int) -> None:
    """A raw loop, and publishers, nothing else. A line on standard input, the number of sequences, starts a
    run; the end of the input ends it.
    """
    import numpy as np
    import rclpy
    from nanochat.msg import Token
    from rclpy.qos import QoSProfile

    from benchmarks.common import RawLlama
    from ros2_nanochat import ChatHistory, NanoLLM

    with NanoLLM.from_pretrained(max_context_len=1024, max_sequences=1, gpu_layers=gpu_layers) as model:
        history = ChatHistory(model)
        history.append('user', text=STORY)
        ids = history.embed_chat()[0].token_ids.tolist()
        path, pieces = (
            model.info.path,
            [model.backend.token_text(i) for i in range(min(1000, model.info.vocab_size))],
        )
        flash = model.stats['flash_attention'] == 'on'  # both sides compute attention in the same way
    raws = {count: RawLlama(path, count, 1024, False, flash, gpu_layers) for count in (1, FLEET)}
    rclpy.init()
    node = rclpy.create_node('bare')
    publishers = [
        node.create_publisher(Token, f'/bare/r{i}/tokens', QoSProfile(depth=1000)) for i in range(FLEET)
    ]
    print('ready', flush=True)
    for line in sys.stdin:
        count = int(line)
        raw = raws[count]
        raw.prefill(ids[:-1])
        tokens, position = [ids[-1]] * count, len(ids) - 1
        for index in range(steps):
            raw._decode([(token, position + index, seq, True) for seq, token in enumerate(tokens)])
            tokens = (
                np.ctypeslib.as_array(raw.api.llama_get_logits(raw.context), (count, raw.vocabulary))
                .argmax(axis=1)
                .tolist()
            )
            for publisher, token in zip(publishers, tokens):
                publisher.publish(
                    Token(
                        stamp=node.get_clock().now().to_msg(),
                        turn_id=line.strip(),
                        index=index,
                        text=pieces[token % len(pieces)],
                        num_tokens=1,
                        last=index == steps - 1,
                    )
                )


def camera(topic: str) -> None:
    """30 frames a second of 1080p, until the input ends."""
    import numpy as np
    import rclpy
    from rclpy.qos import QoSProfile, ReliabilityPolicy
    from sensor_msgs.msg import Image

    rclpy.init()
    node = rclpy.create_node('bench_camera')
    publisher = node.create_publisher(
        Image, topic, QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
    )
    frame = Image(height=1080, width=1920, encoding='rgb8', step=5760)
    frame.data.frombytes(np.random.default_rng(0).integers(0, 256, 1080 * 5760, dtype=np.uint8).tobytes())
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    began = time.monotonic()
    for count in range(1_000_000):
        frame.header.stamp = node.get_clock().now().to_msg()
        publisher.publish(frame)
        time.sleep(max(0.0, began + (count + 1) / 30 - time.monotonic()))


@contextmanager
def child(*arguments: str):
    process = subprocess.Popen(
        [sys.executable, '-m', 'benchmarks.bench_ros', *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.stdin.close()
        process.wait(10)


def chat_program() -> str:
    """The path of `chat_node` in the workspace."""
    return next(
        str(path)
        for prefix in os.environ['AMENT_PREFIX_PATH'].split(':')
        if (path := Path(prefix, 'lib/nanochat/chat_node')).exists()
    )


@contextmanager
def chat_node(**parameters):
    parameters = {'speculation': 'false', 'max_context_len': 1024, **parameters}
    process = subprocess.Popen(
        [
            chat_program(),
            '--ros-args',
            *(part for name, value in parameters.items() for part in ('-p', f'{name}:={value}')),
            '--log-level',
            'warn',
        ]
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(10)


def resident(process, shared: bool = True) -> float:
    """Megabytes; not shared: without mapped files and the segments of other programs' transports."""
    pages, of_it_shared = map(int, Path(f'/proc/{process.pid}/statm').read_text().split()[1:3])
    return (pages - (0 if shared else of_it_shared)) * os.sysconf('SC_PAGE_SIZE') / 1e6


# --- the subscriber ---


class Listener:
    """Hears the tokens of several robots; notes when each came, and how old it was (ms)."""

    def __init__(self, node, topics):
        from nanochat.msg import Token
        from rclpy.qos import QoSProfile

        self.node, self.times, self.ages, self.last = node, [[] for _ in topics], [], 0.0
        self._ended, self._done = set(), threading.Event()
        self._subscriptions = [
            node.create_subscription(
                Token, topic, lambda token, i=i: self._note(i, token), QoSProfile(depth=1000)
            )
            for i, topic in enumerate(topics)
        ]

    def _note(self, robot: int, token) -> None:
        now = self.node.get_clock().now().nanoseconds
        self.times[robot] += [time.perf_counter()] * token.num_tokens
        if token.num_tokens:
            self.ages.append((now - token.stamp.sec * 10**9 - token.stamp.nanosec) / 1e6)
        if token.last:
            self.last = time.perf_counter()
            self._ended.add(robot)
            if len(self._ended) == len(self.times):
                self._done.set()

    def start(self) -> None:
        self.times, self._ended = [[] for _ in self.times], set()
        self._done.clear()

    def wait(self) -> None:
        if not self._done.wait(180):
            raise TimeoutError('no end of the run came')

    def run(self, begin) -> float:
        """Tokens/s over all robots, while all of them stream."""
        self.start()
        begin()
        self.wait()
        since, until = max(times[0] for times in self.times), min(times[-1] for times in self.times)
        return sum(since < at <= until for times in self.times for at in times) / (until - since)


def beside_bare(title: str, repeats: int, listeners, begins) -> None:
    """Print bare pair and node from runs that take turns. listeners, begins: of the two."""
    rates = [[], []]
    for listener in listeners:
        listener.ages.clear()
    for _ in range(repeats):
        for i in range(2):
            rates[i].append(listeners[i].run(begins[i]))
    medians = [statistics.median(values) for values in rates]
    ratio = statistics.median(ours / theirs for theirs, ours in zip(*rates))
    table(
        title,
        ('', 'tokens/s', 'of bare', 'token to callback ms p50', 'p99'),
        [
            (name, rate, share, *_quantiles(listener.ages))
            for name, rate, share, listener in zip(
                ('raw loop + bare publisher', 'chat node'), medians, (1.0, ratio), listeners
            )
        ],
    )


# --- the measurements ---


def one_robot(node, options, raw) -> None:
    from std_msgs.msg import String

    from ros2_nanochat.ros.client import ChatClient

    began = time.perf_counter()
    with (
        chat_node(
            max_new_tokens=options.tokens, gpu_layers=options.gpu_layers, image_mode="'off'"
        ) as process,
        ChatClient(node=node) as chat,
    ):
        ours = Listener(node, ['/nanochat/tokens'])
        if not chat.wait_until_ready(60):
            raise SystemExit('the node did not start')
        ours.run(lambda: chat.ask('Hello', max_new_tokens=4))
        start = time.perf_counter() - began
        theirs = Listener(node, ['/bare/r0/tokens'])
        asker = node.create_publisher(String, '/nanochat/query', 10)
        time.sleep(1.0)
        number, firsts = [0], []

        def ask():
            number[0] += 1
            asker.publish(String(data=f'{number[0]}: {STORY}'))

        def ask_anew():
            chat.reset()
            asked = time.perf_counter()
            ask()
            while not ours.times[0]:
                time.sleep(0.001)
            firsts.append(time.perf_counter() - asked)

        beside_bare(
            f'one robot, {options.tokens} tokens, medians of {options.repeats} runs that take turns',
            options.repeats,
            (theirs, ours),
            (lambda: raw(1), ask_anew),
        )
        table(
            'the node',
            ('', ''),
            [
                ('process start to first token, s', start),
                ('first token of a turn, s', statistics.median(firsts)),
                ('resident memory, MB', resident(process)),
            ],
        )
        cancelled(ours, chat, ask)


def cancelled(ours: Listener, chat, ask) -> None:
    """From the call of `cancel` in this process to the message in this process that says the reply has
    ended.
    """
    waits, steps = [], []
    for _ in range(10):
        chat.reset()
        ours.start()
        ask()
        while len(ours.times[0]) < 30:
            time.sleep(0.001)
        called = time.perf_counter()
        chat.cancel()
        ours.wait()
        waits.append(1000 * (ours.last - called))
        steps.append(1000 * statistics.median(b - a for a, b in zip(ours.times[0][5:], ours.times[0][6:])))
    table(
        'cancel called to end of the reply heard',
        ('', 'ms p50', 'ms max'),
        [
            ('cancel', statistics.median(waits), max(waits)),
            ('a step, for comparison', statistics.median(steps), max(steps)),
        ],
    )


def camera_beside(node, options) -> None:
    """A camera that a node takes, while no question uses it, beside one of the same kind that no node takes:
    publishing 190 MB a second costs the machine something whoever listens.
    """
    from ros2_nanochat.ros.client import ChatClient

    with (
        chat_node(max_new_tokens=options.tokens, gpu_layers=options.gpu_layers) as process,
        ChatClient(node=node) as chat,
    ):
        ours = Listener(node, ['/nanochat/tokens'])
        if not chat.wait_until_ready(60):
            raise SystemExit('the node did not start')

        def ask() -> None:
            chat.reset()
            chat.ask(STORY, max_new_tokens=options.tokens, image_mode='off')

        ours.run(ask)
        before = resident(process, shared=False)
        with child('--camera', '/nanochat/image'):  # the first camera makes the node load its eyes
            time.sleep(5.0)
            ours.run(ask)
        rates: dict[str, list[float]] = {'': [], '/elsewhere/image': [], '/nanochat/image': []}
        memory = resident(process, shared=False)
        for _ in range(options.repeats):
            for topic, values in rates.items():
                if not topic:
                    values.append(ours.run(ask))
                    continue
                with child('--camera', topic):
                    while not node.count_publishers(topic):
                        time.sleep(0.1)
                    time.sleep(1.0)
                    values.append(ours.run(ask))
        growth = resident(process, shared=False) - memory
    none, elsewhere, taken = rates.values()
    stamps, ages = frames_seen(node)
    table(
        'a 1080p camera at 30 Hz in another process, that no question uses',
        ('', ''),
        [
            ('tokens/s without a camera', statistics.median(none)),
            ('beside a camera that no node takes', statistics.median(elsewhere)),
            ('beside a camera that the node takes', statistics.median(taken)),
            ('taken, of not taken', statistics.median(b / a for a, b in zip(elsewhere, taken))),
            ('taken, of no camera', statistics.median(b / a for a, b in zip(none, taken))),
            ('memory of the node: growth with the first camera, eyes included, MB', memory - before),
            ('growth after that, MB', growth),
            ('frames a second that arrive', len(stamps) / 4.0),
            ('age of a frame when taken, ms p50', _quantiles(ages)[0]),
            ('p99', _quantiles(ages)[1]),
        ],
    )


def frames_seen(node) -> tuple[set[int], list[float]]:
    """Stamps of the frames that arrive in four seconds, and how old (ms) each was when it was taken."""
    from ros2_nanochat.ros.camera import Camera

    camera, stamps, ages = Camera(node, '/nanochat/image'), set(), []
    with child('--camera', '/nanochat/image'):
        while camera.newest() is None:
            time.sleep(0.1)
        until = time.monotonic() + 4.0
        while time.monotonic() < until:
            picture = camera.newest()
            if picture.stamp not in stamps:
                stamps.add(picture.stamp)
                ages.append(1000 * picture.age)
            time.sleep(0.005)
    camera.close()
    return stamps, ages


def fleet(node, options, raw) -> None:
    from std_msgs.msg import String

    from ros2_nanochat.ros.client import ChatClient

    names = [f'r{i}' for i in range(FLEET)]
    with chat_node(
        max_new_tokens=options.tokens,
        gpu_layers=options.gpu_layers,
        robots=f'[{", ".join(names)}]',
        max_sequences=FLEET,
    ):
        chats = [ChatClient(robot=name, node=node) for name in names]
        ours, theirs = (
            Listener(node, [f'/{name}/nanochat/tokens' for name in names]),
            Listener(node, [f'/bare/{name}/tokens' for name in names]),
        )
        askers = [node.create_publisher(String, f'/{name}/nanochat/query', 10) for name in names]
        for chat in chats:
            chat.wait_until_ready(60)
        time.sleep(1.0)

        def ask():
            for chat in chats:
                chat.reset()
            for name, asker in zip(names, askers):
                asker.publish(String(data=f'{name}: {STORY}'))

        beside_bare(
            f'{FLEET} robots, {options.tokens} tokens each, tokens/s of all while all stream',
            max(2, options.repeats - 2),
            (theirs, ours),
            (lambda: raw(FLEET), ask),
        )
        for chat in chats:
            chat.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--tokens', type=int, default=200)
    parser.add_argument('--quick', action='store_true', help='two repeats of 100 tokens')
    parser.add_argument('--gpu-layers', type=int, default=0, help='layers on the GPU; -1: all')
    parser.add_argument('--only', choices=['one', 'camera', 'fleet'], help='one part of it')
    parser.add_argument('--bare', action='store_true', help=argparse.SUPPRESS)
    parser.add_argument('--camera', help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        return bare(options.tokens, options.gpu_layers)
    if options.camera:
        return camera(options.camera)
    if options.quick:
        options.repeats, options.tokens = 2, 100
    os.environ.update(ROS_AUTOMATIC_DISCOVERY_RANGE='LOCALHOST', ROS_DOMAIN_ID=str(random.randint(1, 100)))
    import rclpy
    from rclpy.executors import SingleThreadedExecutor

    from ros2_nanochat.ros.spinning import spin

    print(machine())
    rclpy.init()
    node = rclpy.create_node('bench')
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    spinning = threading.Thread(target=spin, args=(executor, node.get_logger()), daemon=True)
    spinning.start()
    try:
        with child(
            '--bare', '--tokens', str(options.tokens), '--gpu-layers', str(options.gpu_layers)
        ) as process:
            process.stdout.readline()

            def raw(count: int) -> None:
                process.stdin.write(f'{count}\n')
                process.stdin.flush()

            parts = {
                'one': lambda: one_robot(node, options, raw),
                'camera': lambda: camera_beside(node, options),
                'fleet': lambda: fleet(node, options, raw),
            }
            for name, part in parts.items():
                if options.only in (None, name):
                    part()
    finally:
        executor.shutdown()
        spinning.join(2.0)
        rclpy.try_shutdown()


def _quantiles(values: list[float]) -> tuple[float, float]:
    values = sorted(values)
    return values[len(values) // 2], values[int(0.99 * (len(values) - 1))]


if __name__ == '__main__':
    main()
