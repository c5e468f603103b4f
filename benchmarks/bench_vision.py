"""Figures of vision: from frame to first token beside the raw prefill of as many entries, a follow-up beside
a turn without picture; a node with a camera of 1080p at 30 Hz (in the built workspace).

    python -m benchmarks.bench_vision [--rounds 20] [--seconds 60] [--accuracy 300]
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.common import machine, table
from ros2_nanochat import ChatHistory, NanoLLM
from ros2_nanochat.backends.base import Chunk
from ros2_nanochat.vision.shapes import random_picture

QUESTION, FOLLOW_UP = 'What color is the object?', 'What shape is the object?'


def first_token(model, history) -> tuple[float, int]:
    """Seconds from the question to the first token, and how many entries were computed for it; the reply goes
    into the history.
    """
    begin = time.perf_counter()
    prompt, _ = history.embed_chat()
    reply = model.generate(
        prompt, kv_cache=history.kv_cache, max_new_tokens=4, stop_tokens=history.template.stop
    )
    next(iter(reply), None)
    seconds = time.perf_counter() - begin
    history.append('bot', reply.wait())
    return seconds, reply.usage['prompt_tokens'] - reply.usage['reused_tokens']


def raw_prefill(model, n: int) -> float:
    """Seconds of one forward over n ids, without engine or scheduling."""
    backend = model.backend
    seq = backend.new_sequence()
    ids = np.arange(n) % 1000 + 300
    begin = time.perf_counter()
    backend.forward([Chunk(seq, ids=ids, num_logits=1)])
    seconds = time.perf_counter() - begin
    backend.free(seq)
    return seconds


def bench(rounds: int) -> None:
    """Through the library: a first question about a frame, a follow-up about it, the same follow-up in a
    conversation without picture.
    """
    with (
        NanoLLM.from_pretrained(max_context_len=1024) as model,
        NanoLLM.from_pretrained(max_context_len=1024) as bare,
    ):
        model.vision.load()
        names = ('frame to first token', 'raw prefill of as many', 'encoding', 'follow-up', 'text-only turn')
        times: dict[str, list[float]] = {name: [] for name in names}
        entries, follow_entries = 0, set()

        def follow_up(history) -> float:
            history.append('user', FOLLOW_UP)
            seconds, computed = first_token(model, history)
            follow_entries.add(computed)
            return seconds

        for n in range(rounds + 1):
            frame = np.asarray(random_picture(np.random.default_rng(n), 1920, 1080)[0])
            history, text = ChatHistory(model), ChatHistory(model)
            spent = model.vision.stats['seconds']
            begin = time.perf_counter()
            history.append('user', image=frame)
            opened = time.perf_counter() - begin
            history.append('user', QUESTION)
            asked, entries = first_token(model, history)
            encode = model.vision.stats['seconds'] - spent
            raw = raw_prefill(bare, entries)
            text.append('user', f'{n}: {QUESTION}')  # or what an earlier round has read would be reused
            first_token(model, text)
            # in turn the one and the other first, so that what else the machine does slows them alike
            follow, plain = (
                (follow_up(each) for each in (history, text))
                if n % 2
                else reversed([follow_up(each) for each in (text, history)])
            )
            if n:  # the first warms up
                for name, value in zip(times, (opened + asked, raw, encode, follow, plain)):
                    times[name].append(value)
        table(
            f'1920x1080 through the library, {entries} entries to prefill, then'
            f' {"/".join(map(str, sorted(follow_entries)))}; {rounds} rounds',
            ('', 'ms median', 'least', 'most'),
            [
                (name, *(1e3 * f(values) for f in (statistics.median, min, max)))
                for name, values in times.items()
            ],
        )
        beyond = statistics.median(
            a - b for a, b in zip(times['frame to first token'], times['raw prefill of as many'])
        )
        ratio = statistics.median(a / b for a, b in zip(times['follow-up'], times['text-only turn']))
        table(
            'against the limits',
            ('', 'measured', 'limit'),
            [
                ('frame to first token beyond the raw prefill, ms', 1e3 * beyond, 15),
                ('follow-up / text-only turn', ratio, 1.1),
            ],
        )


def bench_node(seconds: float) -> None:
    """A node, a camera of 1920x1080 at 30 Hz and a question every two seconds, each a process of its own (the
    questions come from this one).
    """
    os.environ.update(ROS_AUTOMATIC_DISCOVERY_RANGE='LOCALHOST', ROS_DOMAIN_ID=str(random.randint(1, 100)))
    from ros2_nanochat.ros.client import ChatClient

    folder = next(
        path
        for prefix in os.environ['AMENT_PREFIX_PATH'].split(':')
        if (path := Path(prefix, 'lib/nanochat')).is_dir()
    )
    node = subprocess.Popen(
        [
            str(folder / 'chat_node'),
            '--ros-args',
            '-p',
            'vision:=tiny',
            '-p',
            'max_context_len:=1024',
            '--log-level',
            'warn',
        ]
    )
    camera = subprocess.Popen(
        [
            str(folder / 'demo_camera'),
            '--ros-args',
            '-p',
            'rate:=30.0',
            '-p',
            'hold:=1.0',
            '-p',
            'width:=1920',
            '-p',
            'height:=1080',
        ],
        stdout=subprocess.DEVNULL,
    )
    turns, memory, refused = [], [], 0
    try:
        with ChatClient() as chat:
            chat.wait_until_ready(60)
            until = time.monotonic() + 60
            while not chat.ask(QUESTION).result(60).image_used and time.monotonic() < until:
                pass
            begin = time.monotonic()
            for n in range(int(seconds / 2)):
                time.sleep(max(0.0, begin + 2.0 * n - time.monotonic()))
                turn = chat.ask(QUESTION if n % 2 else FOLLOW_UP).result(60)
                refused += turn.finish_reason not in ('stop', 'length')
                turns.append(turn)
                memory.append(
                    int(Path(f'/proc/{node.pid}/statm').read_text().split()[1])
                    * os.sysconf('SC_PAGE_SIZE')
                    / 1e6
                )
    finally:
        for process in (camera, node):
            process.send_signal(signal.SIGINT)
        for process in (camera, node):
            process.wait(20)
    third = len(turns) // 3
    ages = [_seconds(turn.header.stamp) - _seconds(turn.image.stamp) for turn in turns]
    frames = {(t.image.stamp.sec, t.image.stamp.nanosec) for t in turns if t.image_used}
    rows = [
        ('answered', len(turns) - refused, len(turns)),
        ('with a frame of their own', len(frames), ''),
        (
            'first token, ms (median, most)',
            *(1e3 * f(t.time_to_first_token for t in turns) for f in (statistics.median, max)),
        ),
        ('of it waiting, ms', *(1e3 * f(t.queue_time for t in turns) for f in (statistics.median, max))),
        ('of it encoding, ms', *(1e3 * f(t.encode_time for t in turns) for f in (statistics.median, max))),
        ('age of the frame at the end of the turn, s', statistics.median(ages), max(ages)),
        ('turns dropped from the context', sum(t.dropped_turns for t in turns), ''),
        (
            'memory, MB: second third, last third',
            statistics.median(memory[third : 2 * third]),
            statistics.median(memory[2 * third :]),
        ),
        ('memory, MB: first turn, most', memory[0], max(memory)),
    ]
    table(
        f'a node, a camera of 1920x1080 at 30 Hz and a question every 2 s for {seconds:.0f} s',
        ('', '', ''),
        rows,
    )


def _seconds(stamp) -> float:
    return stamp.sec + 1e-9 * stamp.nanosec


def accuracy(count: int, vision: str) -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'test'))
    from tiny_vision import FACTS, count_right

    with NanoLLM.from_pretrained(max_context_len=1024, vision=vision) as model:
        right = count_right(model, count, seed=3, tell=print)
        print(
            f'right on {count} fresh pictures: '
            + ', '.join(f'{fact} {100 * n / count:.1f} %' for fact, n in zip(FACTS, right))
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--rounds', type=int, default=20)
    parser.add_argument(
        '--seconds', type=float, default=60.0, help='how long the node is asked; 0: not at all'
    )
    parser.add_argument('--quick', action='store_true', help='5 rounds, 20 seconds')
    parser.add_argument(
        '--accuracy', type=int, default=0, metavar='N', help='ask about N fresh pictures instead'
    )
    parser.add_argument(
        '--vision',
        default='tiny',
        help=(
            'eyes to ask about: a folder that tools/train_tiny_vision.py has written, say (default:'
            ' %(default)s)'
        ),
    )
    options = parser.parse_args()
    if options.accuracy:
        accuracy(options.accuracy, options.vision)
    else:
        print(machine())
        bench(5 if options.quick else options.rounds)
        if options.seconds and 'AMENT_PREFIX_PATH' in os.environ:
            bench_node(20.0 if options.quick else options.seconds)


if __name__ == '__main__':
    main()
