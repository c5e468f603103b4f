"""Speed beside other programs: the engine with nothing set, llama.cpp's raw loop at every fixed number of
threads, and a server that ships as a wheel (xllamacpp, as it comes), with 0, 1, 2 and 4 busy processes.

Then behind long histories, in an engine that has been running, and a run of 2,048 + 128 tokens. Run with
`python -m benchmarks busy [--quick]`. Figures of a row come from runs that take turns; compare within a row.
It writes `busy.json`, which you can send in from your board, and a plot.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from benchmarks.bench_engine import decode_rate, keep_going, prompt_of
from benchmarks.common import RawLlama, interleaved, machine, table
from ros2_nanochat import KVCache, NanoLLM
from ros2_nanochat.locate import embedded_model
from ros2_nanochat.processor import physical_cores

HERE = Path(__file__).parent
LOADS = (0, 1, 2, 4)
BUSY_SECONDS = 600  # a busy process ends by itself after this, whatever happens
ADAPT = 2.5  # seconds that the engine has to notice a change of load
PREFILL = 192  # tokens
TURN = 40  # tokens of a turn behind a history
PATIENCE = 1.5  # seconds of one run of the raw loop
WORK = 'import time\nend = time.monotonic() + {}\nwhile time.monotonic() < end: sum(range(10000))'


@contextlib.contextmanager
def busy(count: int, seconds: int = BUSY_SECONDS):
    """Keep `count` processes busy, for at most `seconds` seconds."""
    processes = [subprocess.Popen([sys.executable, '-c', WORK.format(seconds)]) for _ in range(count)]
    try:
        yield
        if any(process.poll() is not None for process in processes):
            raise SystemExit(f'a busy process ended before the figures beside it were taken: {seconds} s')
    finally:
        for process in processes:
            process.kill()
            process.wait()


def threads_of(most: int) -> list[int]:
    """The fixed numbers of threads to compare with: all up to 4, then powers of 2, and `most`."""
    return sorted({n for n in (1, 2, 3, 4, 8, 16, 32, 64) if n <= most} | {most})


class Raw(RawLlama):
    """The raw loop at a fixed number of threads."""

    def at(self, threads: int) -> Raw:
        """Use this number from now on."""
        self.api.llama_set_n_threads(self.context, threads, threads)
        return self

    def decode_rate(self, position: int, steps: int) -> float:
        """Tokens/s of up to `steps` tokens: a number of threads that stalls is not waited for."""
        began, done = time.perf_counter(), 0
        while done < steps and time.perf_counter() - began < PATIENCE:
            self.decode([500], position + done, 4)
            done += 4
        return done / (time.perf_counter() - began)

    def prefill_rate(self, ids: list[int]) -> float:
        """Tokens/s of up to all of these ids."""
        began, done = time.perf_counter(), 0
        while done < len(ids) and time.perf_counter() - began < PATIENCE:
            self.first_token(done, ids[done : done + 32])
            done += 32
        return min(done, len(ids)) / (time.perf_counter() - began)


class Peer:
    """xllamacpp's server in a process of its own, as it comes."""

    def __init__(self, model: str, context: int, parallel: int):
        self._process = subprocess.Popen(
            [sys.executable, '-m', 'benchmarks.bench_busy', '--peer', model, str(context), str(parallel)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._address = self._process.stdout.readline().strip()

    @classmethod
    def open(cls, model: str, context: int, parallel: int) -> Peer | None:
        """Start it; None if it is not installed or does not start."""
        try:
            import importlib.util

            if importlib.util.find_spec('xllamacpp') is None:
                return None
            peer = cls(model, context, parallel)
            if not peer._address:
                peer.close()
                return None
            return peer
        except OSError:
            return None

    def complete(self, ids: list[int], count: int, cache: bool = False) -> dict:
        """The timings of a reply, as the server reports them."""
        body = {
            'prompt': ids,
            'n_predict': count,
            'ignore_eos': True,
            'temperature': 0,
            'cache_prompt': cache,
        }
        request = urllib.request.Request(
            f'{self._address}/completion', json.dumps(body).encode(), {'Content-Type': 'application/json'}
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)['timings']

    def close(self) -> None:
        """End the process."""
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def serve(model: str, context: int, parallel: int) -> None:
    """The process of `Peer`: prints its address, and ends with its input."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = model
    params.n_ctx, params.n_parallel, params.port = context * parallel, parallel, 0
    params.warmup = False
    out = os.dup(1)
    os.dup2(2, 1)
    server = xllamacpp.Server(params)
    os.write(out, f'{server.listening_address}\n'.encode())
    sys.stdin.read()
    os._exit(0)


# --- beside busy processes ---


def bench_loads(loads, steps: int, repeats: int) -> list[dict]:
    """Decode and prefill of one conversation with each number of busy processes."""
    model = NanoLLM.from_pretrained(max_context_len=1024, max_sequences=1, speculation=False)
    keep_going(model)
    flash = model.stats['flash_attention'] == 'on'
    counts = threads_of(physical_cores())
    raw = Raw(embedded_model(), 1, 1024, False, flash)
    peer = Peer.open(embedded_model(), 1024, 1)
    history, cache = prompt_of(model, 40), KVCache()
    model.generate(history, max_new_tokens=1, kv_cache=cache).wait()
    raw.at(1).prefill(history)
    salt = [0]

    def ours_decode() -> float:
        return decode_rate(model, [cache], 40, steps, [])

    def ours_prefill() -> float:
        salt[0] += 1
        reply = model.generate(prompt_of(model, PREFILL, salt[0]), max_new_tokens=1).wait()
        return PREFILL / reply.usage.time_to_first_token

    def raw_decode(threads: int) -> float:
        return raw.at(threads).decode_rate(40, steps)

    def raw_prefill(threads: int) -> float:
        return raw.at(threads).prefill_rate(prompt_of(model, PREFILL, 7))

    found = []
    for load in loads:
        with busy(load):
            until = time.monotonic() + ADAPT
            while time.monotonic() < until:
                ours_decode()
                ours_prefill()
            decodes = interleaved(
                repeats,
                ours_decode,
                *[lambda n=n: raw_decode(n) for n in counts],
                *([lambda: peer.complete(history, 8)['predicted_per_second']] if peer else []),
            )
            prefills = interleaved(
                max(2, repeats - 1),
                ours_prefill,
                *[lambda n=n: raw_prefill(n) for n in counts],
                *(
                    [lambda: peer.complete(prompt_of(model, PREFILL // 3, 9), 1)['prompt_per_second']]
                    if peer
                    else []
                ),
            )
            raw.at(1).prefill(history)
            stats = model.stats
            found.append(
                {
                    'busy': load,
                    'threads': (stats['threads'], stats['threads_prefill']),
                    **{
                        name: {
                            'nanochat': values[0],
                            'raw': dict(zip(map(str, counts), values[1:])),
                            'xllamacpp': values[1 + len(counts)] if peer else None,
                            'of best raw': values[0] / max(values[1 : 1 + len(counts)]),
                        }
                        for name, values in (('decode', decodes), ('prefill', prefills))
                    },
                }
            )
    for name in ('decode', 'prefill'):
        table(
            f'{name}, tokens/s beside busy processes (flash attention {"on" if flash else "off"})',
            ['busy', 'nanochat', 'threads', *[f'raw, {n}' for n in counts], 'xllamacpp', 'of best raw'],
            [
                (
                    str(row['busy']),
                    row[name]['nanochat'],
                    str(row['threads'][name == 'prefill']),
                    *row[name]['raw'].values(),
                    '-' if row[name]['xllamacpp'] is None else row[name]['xllamacpp'],
                    row[name]['of best raw'],
                )
                for row in found
            ],
        )
    model.close()
    raw.close()
    if peer:
        peer.close()
    return found


# --- behind histories ---


def bench_histories(lengths, steps: int, repeats: int) -> list[dict]:
    """Decode behind a history, and how much longer a later turn takes than a first one; the same for the raw
    loop, where attention to a long history takes time, too.
    """
    found = []
    for length in lengths:
        context = length + steps + 64
        model = NanoLLM.from_pretrained(max_context_len=context, max_sequences=2, speculation=False)
        keep_going(model)
        flash = model.stats['flash_attention'] == 'on'
        raw, fresh = (
            Raw(embedded_model(), 1, -(-size // 256) * 256, False, flash) for size in (context, TURN)
        )
        history, cache = prompt_of(model, length), KVCache()
        model.generate(history, max_new_tokens=0, kv_cache=cache).wait()
        raw.at(1).prefill(history)

        def first() -> float:
            reply = model.generate(prompt_of(model, TURN, time.monotonic_ns()), max_new_tokens=1).wait()
            return reply.usage.time_to_first_token

        def later() -> float:
            cache.pop(len(cache) - length)
            new = prompt_of(model, TURN, time.monotonic_ns())
            reply = model.generate(new, max_new_tokens=1, kv_cache=cache).wait()
            return reply.usage.time_to_first_token

        counts = threads_of(physical_cores())
        ours, *theirs = interleaved(
            repeats,
            lambda: decode_rate(model, [cache], length, steps, []),
            *[lambda n=n: raw.at(n).decode_rate(length, steps) for n in counts],
        )
        most, ids = max(counts), prompt_of(model, TURN, 3)
        a, b, raw_a, raw_b = interleaved(
            repeats,
            first,
            later,
            lambda: fresh.at(most).first_token(0, ids),
            lambda: raw.at(most).first_token(length, ids),
        )
        found.append(
            {
                'history': length,
                'decode': ours,
                'of best raw': ours / max(theirs),
                'later turn': b / a,
                'later turn, raw': raw_b / raw_a,
            }
        )
        model.close()
        raw.close()
        fresh.close()
    table(
        'behind a history',
        ['tokens', 'decode, tokens/s', 'of best raw', f'turn of {TURN} tokens: later / first', 'raw'],
        [(str(row['history']), *list(row.values())[1:]) for row in found],
    )
    return found


# --- an engine that has been running ---


def bench_running(speaking, steps: int, repeats: int) -> list[dict]:
    """Some of 16 conversations speak, in any order, after others have come and gone."""
    rng, length = random.Random(5), 64
    context = length + steps + 64
    model = NanoLLM.from_pretrained(max_context_len=context, max_sequences=16, speculation=False)
    keep_going(model)
    flash = model.stats['flash_attention'] == 'on'
    for _ in range(3):
        gone = [
            model.generate(prompt_of(model, rng.randint(20, length), rng.random()), max_new_tokens=4)
            for _ in range(8)
        ]
        [reply.wait() for reply in gone]
    del gone
    caches = [KVCache() for _ in range(16)]
    rng.shuffle(caches)
    for i, cache in enumerate(caches):
        model.generate(prompt_of(model, length, i), max_new_tokens=0, kv_cache=cache).wait()
    found = []
    for count in speaking:
        raw = Raw(embedded_model(), count, -(-context // 256) * 256, False, flash)
        raw.at(1).prefill(prompt_of(model, length))

        def ours() -> float:
            return decode_rate(model, rng.sample(caches, count), length, steps, [])

        rates, *theirs = interleaved(
            repeats,
            ours,
            *[
                lambda n=n: raw.at(n).decode([500] * count, length, steps)
                for n in threads_of(physical_cores())
            ],
        )
        raw.close()
        found.append({'speaking': count, 'decode': rates, 'of best raw': rates / max(theirs)})
    model.close()
    table(
        'some of 16 conversations in an engine that has been running, another set in each run',
        ['speaking', 'tokens/s in sum', 'of best raw'],
        [(str(row['speaking']), row['decode'], row['of best raw']) for row in found],
    )
    return found


# --- the run that is sent in ---


def bench_served(prompt: int, output: int, together) -> list[dict]:
    """Requests of one size, one and several at once: the figures that published tables have."""
    found = []
    for count in together:
        with NanoLLM.from_pretrained(
            max_context_len=prompt + output + 8, max_sequences=count, speculation=False
        ) as model:
            keep_going(model)
            began = time.monotonic()
            replies = [
                model.generate(prompt_of(model, prompt, i), max_new_tokens=output, kv_cache=KVCache())
                for i in range(count)
            ]
            for reply in replies:
                reply.wait()
            firsts = [reply.usage.time_to_first_token for reply in replies]
            lasts = [reply._request.progress.last_token - began for reply in replies]
            found.append(
                {
                    'prompt_tokens': prompt,
                    'output_tokens': output,
                    'concurrency': count,
                    'time_to_first_token_s': statistics.median(firsts),
                    'time_per_output_token_s': statistics.median(
                        (last - first) / (output - 1) for first, last in zip(firsts, lasts)
                    ),
                    'output_tokens_per_s': count * output / max(lasts),
                    'total_tokens_per_s': count * (prompt + output) / max(lasts),
                    'threads': model.stats['threads'],
                    'flash_attention': model.stats['flash_attention'],
                }
            )
    table(
        f'requests of {prompt} + {output} tokens',
        ['at once', 'first token, s', 's per token', 'output tokens/s'],
        [
            (
                str(row['concurrency']),
                row['time_to_first_token_s'],
                row['time_per_output_token_s'],
                row['output_tokens_per_s'],
            )
            for row in found
        ],
    )
    return found


def plot(rows: list[dict], path: str) -> None:
    """Draw decode and prefill by load."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    figure, both = pyplot.subplots(1, 2, figsize=(10, 4.5))
    for axes, name in zip(both, ('decode', 'prefill')):
        loads = [row['busy'] for row in rows]
        axes.plot(loads, [row[name]['nanochat'] for row in rows], 'o-', linewidth=2.5, label='nanochat')
        for threads in rows[0][name]['raw']:
            axes.plot(
                loads,
                [row[name]['raw'][threads] for row in rows],
                's--',
                alpha=0.6,
                label=f'raw loop, {threads} thread(s)',
            )
        if rows[0][name]['xllamacpp'] is not None:
            axes.plot(loads, [row[name]['xllamacpp'] for row in rows], '^:', label='xllamacpp')
        axes.set(xlabel='busy processes', ylabel='tokens/s', title=name, ylim=(0, None))
        axes.set_xticks(loads)
    both[0].legend()
    figure.savefig(path, dpi=120, bbox_inches='tight')
    print(f'\nplot: {path}')


def main() -> None:
    """Run the parts and write the file."""
    if sys.argv[1:2] == ['--peer']:
        return serve(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--quick', action='store_true', help='fewer sizes and repeats: under three minutes')
    parser.add_argument('--plot', metavar='FILE', default=str(HERE / 'busy.png'))
    parser.add_argument('--json', metavar='FILE', default=str(HERE / 'busy.json'))
    parser.add_argument('--only', choices=['loads', 'histories', 'running', 'served'])
    options = parser.parse_args()
    words = machine()
    print(words)
    quick = options.quick
    parts = {
        'loads': lambda: bench_loads((0, 2) if quick else LOADS, 24 if quick else 48, 5),
        'histories': lambda: bench_histories(
            (40, 1000) if quick else (40, 1000, 3000), 16 if quick else 32, 3 if quick else 5
        ),
        'running': lambda: bench_running(
            (1, 8) if quick else (1, 2, 4, 8, 16), 24 if quick else 48, 3 if quick else 7
        ),
        'served': lambda: bench_served(*((256, 32) if quick else (2048, 128)), (1, 8)),
    }
    result = {'machine': words, 'date': time.strftime('%Y-%m-%d'), 'model': 'SmolLM2-135M-Instruct Q4_1'}
    for name, part in parts.items():
        if options.only in (None, name):
            result[name] = part()
    if 'loads' in result:
        with contextlib.suppress(ImportError):
            plot(result['loads'], options.plot)
    Path(options.json).write_text(json.dumps(result, indent=1))
    print(f'figures: {options.json}')


if __name__ == '__main__':
    main()
