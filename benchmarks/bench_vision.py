"""Figures of vision: from picture to first token beside the raw prefill of as many entries, a follow-up beside a turn without picture, encoding alone.

    python -m benchmarks.bench_vision [--rounds 10] [--accuracy 300]
"""
from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.common import machine
from ros2_nanochat import ChatHistory, NanoLLM
from ros2_nanochat.backends.base import Chunk
from ros2_nanochat.vision.shapes import random_picture

QUESTION, FOLLOW_UP = 'What color is the object?', 'What shape is the object?'


def first_token(model, history) -> tuple[float, int]:
    """Seconds from the question to the first token, and how many entries were computed for it; the reply goes into the history."""
    begin = time.perf_counter()
    prompt, _ = history.embed_chat()
    reply = model.generate(prompt, kv_cache=history.kv_cache, max_new_tokens=16, stop_tokens=history.template.stop)
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
    with NanoLLM.from_pretrained(max_context_len=1024) as model, NanoLLM.from_pretrained(max_context_len=1024) as bare:
        model.vision.load()
        times: dict[str, list[float]] = {name: [] for name in ('frame to first token', 'raw prefill of as many', 'encode alone', 'follow-up', 'text-only turn')}
        entries = 0
        for n in range(rounds + 1):
            frame = np.asarray(random_picture(np.random.default_rng(n), 1920, 1080)[0])
            history, text = ChatHistory(model), ChatHistory(model)
            begin = time.perf_counter()
            history.append('user', image=frame)
            opened = time.perf_counter() - begin
            history.append('user', QUESTION)
            spent = model.vision.stats['seconds']
            asked, entries = first_token(model, history)
            total = opened + asked
            encode = model.vision.stats['seconds'] - spent
            history.append('user', FOLLOW_UP)
            follow, _ = first_token(model, history)
            text.append('user', QUESTION)
            first_token(model, text)
            text.append('user', FOLLOW_UP)
            plain, _ = first_token(model, text)
            raw = raw_prefill(bare, entries)
            if n:  # the first warms up
                for name, value in zip(times, (total, raw, encode, follow, plain)):
                    times[name].append(value)
        print(f'1920x1080, {entries} entries to prefill after the system prompt, median of {rounds} (least, most):')
        for name, values in times.items():
            print(f'  {name:24} {1e3 * statistics.median(values):7.1f} ms  ({1e3 * min(values):.1f}, {1e3 * max(values):.1f})')


def accuracy(count: int) -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'test'))
    from tiny_vision import FACTS, count_right
    with NanoLLM.from_pretrained(max_context_len=1024) as model:
        right = count_right(model, count, seed=3, tell=print)
        print(f'right on {count} fresh pictures: ' + ', '.join(f'{fact} {100 * n / count:.1f} %' for fact, n in zip(FACTS, right)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--rounds', type=int, default=10)
    parser.add_argument('--accuracy', type=int, default=0, metavar='N', help='ask about N fresh pictures instead')
    options = parser.parse_args()
    if options.accuracy:
        accuracy(options.accuracy)
    else:
        print(machine())
        bench(options.rounds)


if __name__ == '__main__':
    main()
