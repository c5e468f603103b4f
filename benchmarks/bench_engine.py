"""The engine against a raw llama.cpp loop of the same run: decoding alone and in a batch, starting, sharing,
speculating, stopping.

Run with `make bench`, or `python -m benchmarks.bench_engine [--quick] [--plot FILE]`. On a GPU:
`--gpu-layers -1`, with a model of your own (`--model PATH`) or random weights of a known shape
(`--shape llama-7b`).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from typing import NamedTuple

import numpy as np

from benchmarks.common import RawLlama, interleaved, machine, table
from benchmarks.random_gguf import SHAPES, write_random_llama
from ros2_nanochat import ChatHistory, KVCache, NanoLLM
from ros2_nanochat.locate import embedded_model

_STORY = (
    'Once upon a time there was a robot that lived in a warehouse at the edge of a small town, and every'
    ' night it counted the crates. '
)


class Subject(NamedTuple):
    """The model that is measured, and where it runs.

    Attributes:
        path: A GGUF file.
        gpu_layers: Layers on the GPU; -1 for all.
    """

    path: str
    gpu_layers: int = 0

    def open(self, **options) -> NanoLLM:
        """Return the model, opened with these options."""
        return NanoLLM.from_pretrained(self.path, gpu_layers=self.gpu_layers, **options)

    def raw(self, *args) -> RawLlama:
        """Return the raw loop on the same file and device; see `RawLlama`."""
        return RawLlama(self.path, *args, gpu_layers=self.gpu_layers)


def prompt_of(model: NanoLLM, length: int, salt: int = 0) -> list[int]:
    """Ids of a text of just this length."""
    ids = model.tokenize(f'Story {salt}. ' + _STORY * (length // 20 + 2))
    return ids[:length]


def keep_going(model: NanoLLM):
    """A logits processor would cost: end tokens are simply not ends for these replies."""
    model.info.__dict__['eos_token_ids'] = frozenset()


def decode_rate(
    model: NanoLLM, caches: list[KVCache], length: int, steps: int, fairness: list[float]
) -> float:
    """Tokens/s in sum of conversations that go on together behind `length` entries of history each. fairness:
    gets Jain's index of their speeds.
    """
    for cache in caches:
        cache.pop(len(cache) - length)
    replies = [model.generate([500], max_new_tokens=steps, kv_cache=cache) for cache in caches]
    for reply in replies:
        reply.wait()
    rates = [
        (steps - 1) / (reply._request.progress.last_token - reply._request.asked.submitted)
        for reply in replies
    ]
    fairness.append(sum(rates) ** 2 / (len(rates) * sum(rate**2 for rate in rates)))
    first = max(reply._request.progress.first_token for reply in replies)
    return len(replies) * (steps - 1) / (max(reply._request.progress.last_token for reply in replies) - first)


def bench_batches(
    subject: Subject, sizes: list[int], lengths: list[int], steps: int, repeats: int
) -> list[tuple]:
    """Aggregate decode tokens/s by batch size and history, with the ratio to the raw loop in the engine's
    layout and in the better one.
    """
    rows = []
    for length in lengths:
        context = length + steps + 64
        for size in sizes:
            model = subject.open(max_context_len=context, max_sequences=size, speculation=False)
            keep_going(model)
            flash = model.stats['flash_attention'] == 'on'  # both compute attention in the same way
            raws = {
                unified: subject.raw(size, -(-context // 256) * 256, unified, flash)
                for unified in ((False, True) if size > 1 else (False,))
            }
            caches = [KVCache() for _ in range(size)]
            for cache in caches:
                model.generate(prompt_of(model, length), max_new_tokens=0, kv_cache=cache).wait()
            for raw in raws.values():
                raw.prefill(prompt_of(model, length))
            fairness: list[float] = []
            figures = interleaved(
                repeats,
                lambda: decode_rate(model, caches, length, steps, fairness),
                *[lambda raw=raw: raw.decode([500] * size, length, steps) for raw in raws.values()],
            )
            engine, same, best = figures[0], figures[1], max(figures[1:])
            overhead = model.stats['overhead']['p50'] * 1e3
            rows.append(
                (
                    f'{size} x {length}',
                    engine,
                    same,
                    best,
                    engine / same,
                    engine / best,
                    overhead,
                    min(fairness),
                )
            )
            model.close()
            [r.close() for r in raws.values()]
    table(
        'Decoding, tokens/s in sum (conversations x tokens of history)',
        [
            '',
            'engine',
            'raw, same layout',
            'raw, better layout',
            'ratio',
            'ratio to better',
            'overhead ms/step',
            'fairness',
        ],
        rows,
    )
    return rows


def bench_first_token(subject: Subject, repeats: int) -> None:
    """Time to first token: a first turn, and a later turn of the same new length behind 1,000 tokens of
    history; with llama.cpp's flash attention and without.
    """
    new, rows = 40, []
    for flash in (True, False):
        model = subject.open(max_context_len=2048, max_sequences=2, flash_attention=flash)
        raw = subject.raw(1, 2048, False, flash)

        def first() -> float:
            return (
                model.generate(prompt_of(model, new, time.monotonic_ns()), max_new_tokens=1)
                .wait()
                .usage['time_to_first_token']
            )

        cache = KVCache()
        model.generate(prompt_of(model, 1000), max_new_tokens=1, kv_cache=cache).wait()

        def later() -> float:
            cache.pop(len(cache) - 1000)
            return (
                model.generate(prompt_of(model, new, time.monotonic_ns()), max_new_tokens=1, kv_cache=cache)
                .wait()
                .usage['time_to_first_token']
            )

        raw.prefill(prompt_of(model, 1000))
        raw_later = interleaved(repeats, lambda: raw.first_token(1000, prompt_of(model, new)))[0]
        raw.prefill(prompt_of(model, new))
        a, b, raw_first = interleaved(
            repeats, first, later, lambda: raw.first_token(0, prompt_of(model, new))
        )
        rows.append(('on' if flash else 'off', a * 1e3, b * 1e3, b / a, raw_later / raw_first))
        model.close()
        raw.close()
    table(
        f'Time to first token of {new} new tokens',
        ['flash attention', 'first turn ms', 'behind 1,000 tokens ms', 'ratio', 'ratio of the raw loop'],
        rows,
    )


def bench_prefill_beside(subject: Subject, repeats: int) -> None:
    """Step time of a running stream while a prompt of 1,000 tokens is prefilled."""
    ratios, longest = [], []
    model = subject.open(max_context_len=2048, max_sequences=2, speculation=False)
    keep_going(model)
    for repeat in range(repeats + 1):
        stream = model.generate(prompt_of(model, 40), max_new_tokens=-1)
        alone = _intervals(stream, 40)
        long = model.generate(prompt_of(model, 1000, repeat), max_new_tokens=1)
        beside = []
        while not long._request.progress.new_ids:
            beside += _intervals(stream, 5)
        alone += _intervals(stream, 40)
        stream.stop()
        if repeat:  # the first run teaches the engine what a step costs
            ratios.append(statistics.mean(alone) / statistics.mean(beside))
            longest.append(max(beside) / statistics.median(alone))
    table(
        'A stream while 1,000 tokens are prefilled beside it',
        ['', 'median', 'least'],
        [
            ('speed kept', statistics.median(ratios), min(ratios)),
            ('longest step / step alone', statistics.median(longest), max(longest)),
        ],
    )
    model.close()


def _intervals(stream, count: int) -> list[float]:
    times = [time.perf_counter()]
    for _ in range(count):
        next(stream)
        times.append(time.perf_counter())
    return np.diff(times).tolist()


def bench_stop(subject: Subject, repeats: int) -> None:
    """From stop() to idle, over the step under way."""
    model = subject.open(max_context_len=1024, max_sequences=1, speculation=False)
    keep_going(model)
    beyond, steps = [], []
    for repeat in range(repeats):
        stream = model.generate(prompt_of(model, 40), max_new_tokens=-1)
        steps += _intervals(stream, 10)[1:]
        time.sleep(0.003 * repeat)
        began = time.perf_counter()
        stream.stop()
        while model.engine.stats()['active']:
            time.sleep(0.0002)
        beyond.append(time.perf_counter() - began)
    table(
        'stop() to idle, ms',
        ['', 'median', 'longest'],
        [
            ('stop to idle', statistics.median(beyond) * 1e3, max(beyond) * 1e3),
            ('a step', statistics.median(steps) * 1e3, max(steps) * 1e3),
        ],
    )
    model.close()


def bench_sharing(subject: Subject, repeats: int) -> None:
    """16 conversations with a common system prompt of 500 tokens: time to all first tokens, with and without
    sharing.
    """
    system = prompt_of(subject.open(max_context_len=512, max_sequences=1), 500)
    model = subject.open(max_context_len=1024, max_sequences=16)

    def together(shared: bool) -> float:
        salt = time.monotonic_ns() % 40000
        began = time.monotonic()
        prompts = [([salt] if shared else [salt + i]) + system + prompt_of(model, 12, i) for i in range(16)]
        replies = [model.generate(ids, max_new_tokens=1, kv_cache=KVCache()) for ids in prompts]
        return max(reply.wait()._request.progress.first_token for reply in replies) - began

    with_sharing, without = interleaved(repeats, lambda: together(True), lambda: together(False))
    table(
        '16 conversations, system prompt of 500 tokens: all first tokens',
        ['', 's', 'ratio'],
        [('each computes it', without, 1.0), ('shared', with_sharing, with_sharing / without)],
    )
    model.close()


def bench_speculation(subject: Subject, repeats: int) -> None:
    """Replies that repeat their context, and replies that do not, with and without speculation."""
    tasks = {
        'say back': (
            'Repeat this text word for word: The red crate stands in hall B beside the ladder. The drill and'
            ' the saw are in hall C under the table. The keys hang at the door of hall A. Nobody may enter'
            ' hall D before nine in the morning. The red crate stands in hall B beside the ladder. The drill'
            ' and the saw are in hall C under the table.'
        ),
        'list what I told you': (
            'I told you: apples are in box 1, pears are in box 2, plums are in box 3, nails are in box 4,'
            ' screws are in box 5, cables are in box 6. List again everything that I told you, box by box, in'
            ' the same words.'
        ),
        'a story': 'Tell me a story about the sea and a young sailor.',
    }
    models = [
        subject.open(max_context_len=1024, max_sequences=1, speculation=speculation)
        for speculation in (False, True)
    ]
    rows = []
    for name, task in tasks.items():

        def rate(model, task=task) -> float:
            history = ChatHistory(model, system_prompt='')
            history.append('user', task)
            prompt, _ = history.embed_chat()
            return model.generate(prompt, max_new_tokens=150).wait().usage['tokens_per_second']

        plain, fast = interleaved(repeats, lambda: rate(models[0]), lambda: rate(models[1]))
        rows.append((name, plain, fast, fast / plain))
    stats = models[1].stats
    table('Speculation, tokens/s', ['', 'off', 'on', 'ratio'], rows)
    print(f'  {stats.get("accepted_tokens", 0)} of {stats.get("drafted_tokens", 0)} guessed tokens held')
    [model.close() for model in models]


def plot(rows: list[tuple], path: str) -> None:
    """Draw tokens/s by batch size."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    for length in sorted({row[0].split(' x ')[1] for row in rows}, key=int):
        chosen = [row for row in rows if row[0].endswith(f' x {length}')]
        sizes = [int(row[0].split(' x ')[0]) for row in chosen]
        (line,) = axes.plot(
            sizes, [row[1] for row in chosen], 'o-', label=f'engine, {length} tokens of history'
        )
        axes.plot(
            sizes,
            [row[3] for row in chosen],
            's--',
            color=line.get_color(),
            alpha=0.5,
            label=f'raw llama.cpp, {length}',
        )
    axes.set(
        xlabel='conversations at once', ylabel='tokens/s in sum', xscale='log', title='Decoding in one batch'
    )
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.legend()
    figure.savefig(path, dpi=120, bbox_inches='tight')
    print(f'\nplot: {path}')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--quick', action='store_true', help='fewer sizes and repeats')
    parser.add_argument('--plot', metavar='FILE', help='write a plot of the batches as PNG')
    parser.add_argument('--only', choices=['batches', 'first', 'beside', 'stop', 'sharing', 'speculation'])
    parser.add_argument('--model', help='a GGUF file; the embedded one by default')
    parser.add_argument('--shape', choices=sorted(SHAPES), help='random weights of this shape, in Q4_0')
    parser.add_argument('--gpu-layers', type=int, default=0, help='layers on the GPU; -1: all')
    options = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        if options.shape:
            path = write_random_llama(folder, options.shape)
        else:
            path = options.model or embedded_model()
        measure(Subject(path, options.gpu_layers), options)


def measure(subject: Subject, options: argparse.Namespace) -> None:
    """Run the parts that were asked for."""
    repeats = 3 if options.quick else 7
    parts = {
        'batches': lambda: bench_batches(
            subject, [1, 16] if options.quick else [1, 2, 4, 8, 16], [40, 500], 48, repeats
        ),
        'first': lambda: bench_first_token(subject, repeats),
        'beside': lambda: bench_prefill_beside(subject, min(3, repeats)),
        'stop': lambda: bench_stop(subject, 20),
        'sharing': lambda: bench_sharing(subject, 1 if options.quick else 3),
        'speculation': lambda: bench_speculation(subject, repeats),
    }
    for name, part in parts.items():
        if options.only in (None, name):
            rows = part()
            if name == 'batches' and options.plot:
                plot(rows, options.plot)


if __name__ == '__main__':
    main()
