"""`mlc` against the same compiled functions called back to back with no engine around them, and its own time
per decode step.

    python -m benchmarks.bench_mlc                       a small Llama that is compiled here for the CPU
    python -m benchmarks.bench_mlc --shape deep          one with the 30 layers and 49,152 words of SmolLM2
    python -m benchmarks.bench_mlc --model FOLDER        weights and a library of MLC-LLM

Own time: the wall time of a step less that of the library's functions and of TVM's KV cache, in the same run.
The bare loop: embed, begin, decode, end, and the likeliest token on the host. Runs of the two take turns, so
that other load on the machine meets both.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import statistics
import sys
import time

import numpy as np

from benchmarks.common import interleaved, machine, table

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'test'))
from ros2_nanochat.backends.base import Chunk
from ros2_nanochat.backends.mlc.backend import MLCBackend
from ros2_nanochat.config import ModelConfig
from ros2_nanochat.nano_llm import NanoLLM


class Clock:
    """Adds up the time spent in functions of the library."""

    def __init__(self, sync):
        self.spent, self.sync = 0.0, sync

    def around(self, function):
        def timed(*arguments):
            began = time.perf_counter()
            result = function(*arguments)
            self.sync()
            self.spent += time.perf_counter() - began
            return result

        return timed


def argmax(rows) -> np.ndarray:
    return rows.argmax() if hasattr(rows, 'numpy') else rows.argmax(axis=1)


def filled(backend: MLCBackend, count: int, length: int) -> list[int]:
    """Sequences that hold a prompt each."""
    ids = np.random.default_rng(0).integers(10, min(300, backend.info.vocab_size), length)
    seqs = [backend.new_sequence() for _ in range(count)]
    for seq in seqs:
        for at in range(0, length, backend.max_batch_tokens):
            backend.forward([Chunk(seq, ids=ids[at : at + backend.max_batch_tokens])])
    return seqs


@contextlib.contextmanager
def clocked(backend: MLCBackend):
    """A `Clock` around all functions of the library and of TVM's KV cache."""
    clock = Clock(backend._runtime.device.sync)
    functions, kv = dict(backend._functions), backend._kv
    begin, end = kv._begin, kv._end
    backend._functions = {name: function and clock.around(function) for name, function in functions.items()}
    kv._begin, kv._end = clock.around(begin), clock.around(end)
    try:
        yield clock
    finally:
        backend._functions, kv._begin, kv._end = functions, begin, end


def medians(name: str, walls: list[float], ours: list[float]) -> list:
    wall, own = statistics.median(walls) * 1e3, statistics.median(ours) * 1e3
    return [name, wall, wall - own, own, float(np.percentile(ours, 10)) * 1e3]


def own_time(backend: MLCBackend, count: int, length: int, steps: int) -> list:
    """Medians of a decode step of the backend: wall, the library, ours, in milliseconds."""
    seqs, walls, ours = filled(backend, count, length), [], []
    with clocked(backend) as clock:
        for _ in range(steps):
            clock.spent, began = 0.0, time.perf_counter()
            backend.forward([Chunk(seq, ids=np.array([11]), num_logits=1) for seq in seqs])
            walls.append(time.perf_counter() - began)
            ours.append(walls[-1] - clock.spent)
    for seq in seqs:
        backend.free(seq)
    return medians(f'{count} sequences', walls, ours)


def own_time_of_engine(model: NanoLLM, count: int, length: int, steps: int, **options) -> list:
    """The same of whole steps of the engine: scheduling, the forward, choosing ids, text and streams, until
    the next step begins.
    """
    marks: list[tuple[int, float, float]] = []
    step, engine = model.engine._step, model.engine
    with clocked(model.backend) as clock:

        def marked():
            marks.append(
                (model.engine.metrics.counters.get('generated_tokens', 0), time.perf_counter(), clock.spent)
            )
            step()

        engine._step = marked
        replies(model, count, length, steps, **options)
        del engine._step
    pairs = [
        (after[1] - before[1], after[2] - before[2])
        for before, after in zip(marks, marks[1:])
        if after[0] - before[0] == count
    ]
    if not pairs:  # with so few steps not all replies ran side by side
        return own_time_of_engine(model, count, length, 2 * steps, **options)
    return medians(
        f'{count} sequences{", sampled" if options else ""}',
        [wall for wall, _ in pairs],
        [wall - library for wall, library in pairs],
    )


def bare(backend: MLCBackend, count: int, length: int, steps: int) -> float:
    """Tokens/s of the compiled functions back to back."""
    runtime, kv, functions, params = backend._runtime, backend._kv, backend._functions, backend._params
    seqs = filled(backend, count, length)
    names, ones = runtime.shape(seqs), runtime.shape([1] * count)
    decode, reshape = (
        functions['decode' if count == 1 else 'batch_decode'],
        runtime.required('vm.builtin.reshape'),
    )
    shape, tokens = runtime.shape([count, 1, backend.info.embedding_size]), np.full(count, 11, np.int32)
    began = time.perf_counter()
    for _ in range(steps):
        kv._begin(kv.state, names, ones)
        logits = decode(
            reshape(functions['embed'](runtime.from_numpy(tokens), params), shape), kv.state, params
        )[0]
        kv._end(kv.state)
        tokens = runtime.host(logits).reshape(count, -1).argmax(axis=1).astype(np.int32)
    took = time.perf_counter() - began
    for seq in seqs:
        kv.lengths[seq] += steps
        backend.free(seq)
    return count * steps / took


def forwards(backend: MLCBackend, count: int, length: int, steps: int) -> float:
    """Tokens/s of the backend's forward."""
    seqs, tokens = filled(backend, count, length), [11] * count
    began = time.perf_counter()
    for _ in range(steps):
        tokens = argmax(
            backend.forward(
                [Chunk(seq, ids=np.array([token]), num_logits=1) for seq, token in zip(seqs, tokens)]
            )
        )
    took = time.perf_counter() - began
    for seq in seqs:
        backend.free(seq)
    return count * steps / took


def replies(model: NanoLLM, count: int, length: int, steps: int, **options) -> float:
    """Tokens/s of whole replies of the engine while all decode."""
    ids = np.random.default_rng(0).integers(10, min(300, model.info.vocab_size), length)
    running = [model.generate(ids, max_new_tokens=steps, **options) for _ in range(count)]
    for reply in running:
        reply.wait()
    spans = [reply._request.progress.last_token - reply._request.progress.first_token for reply in running]
    return sum((steps - 1) / span for span in spans)


SHAPES = {
    'small': {'num_hidden_layers': 4},
    'deep': {'num_hidden_layers': 30, 'vocab_size': 49152},
}
"""What `--shape` takes: Llamas with narrow layers, on which our own time shows: 4 of them, or as many, and
words, as SmolLM2 has.
"""


def compiled(shape: str) -> str:
    """One of `SHAPES` compiled for the CPU."""
    import tempfile

    import mlc_model

    root = tempfile.mkdtemp(prefix='nanochat-bench-')
    model = mlc_model.make_checkpoint(f'{root}/checkpoint', **SHAPES[shape])
    return mlc_model.make_folder(
        f'{root}/{shape}-q0f32-MLC', model, f'{root}/checkpoint', chunk=128, batch=16
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--model', help='a folder of MLC-LLM with its library')
    parser.add_argument('--model-lib')
    parser.add_argument(
        '--shape', default='small', choices=SHAPES, help='what is compiled where no model is named'
    )
    parser.add_argument('--device', default='auto')
    parser.add_argument('--steps', type=int, default=40)
    parser.add_argument(
        '--length', type=int, default=100, help='tokens that each sequence holds at the start'
    )
    parser.add_argument('--repeat', type=int, default=3)
    parser.add_argument('--batches', type=int, nargs='+', default=[1, 4, 16])
    options = parser.parse_args()
    path = options.model or compiled(options.shape)
    print(machine())
    with NanoLLM.from_pretrained(
        path,
        api='mlc',
        device=options.device,
        model_lib=options.model_lib,
        max_sequences=max(options.batches),
        max_context_len=min(512, MLCBackend.estimate(path, ModelConfig()).context_length or 512),
    ) as model:
        backend, length = model.backend, options.length
        steps = max(2, options.steps)  # a reply of one token has no time between two
        model.info = backend.info = dataclasses.replace(
            backend.info, eos_token_ids=frozenset()
        )  # replies have the length that is asked for
        size = model.info.weights_bytes
        print(
            f'{model.info.name}: {model.info.quantization}, weights {size / (1 << 20):,.1f} MiB, on'
            f' {backend._runtime.device}'
        )
        table(
            'A decode step, ms',
            ['', 'wall', 'library', 'own', 'own, best tenth'],
            [own_time(backend, n, length, steps) for n in options.batches],
        )
        sampling = {'do_sample': True, 'temperature': 0.7, 'top_p': 0.95, 'seed': 1}
        table(
            'A step of the engine, ms',
            ['', 'wall', 'library', 'own', 'own, best tenth'],
            [
                own_time_of_engine(model, n, length, steps, **how)
                for n in options.batches
                for how in ({}, sampling)
            ],
        )
        rows = []
        for n in options.batches:
            loop, forward, engine = interleaved(
                options.repeat,
                lambda: bare(backend, n, length, steps),
                lambda: forwards(backend, n, length, steps),
                lambda: replies(model, n, length, steps),
            )
            rows.append(
                [
                    f'{n} sequences',
                    loop,
                    forward,
                    engine,
                    forward / loop,
                    engine / loop,
                    loop / n * size / 1e9,
                ]
            )
        table(
            'Decode, tokens/s',
            ['', 'bare loop', 'backend', 'engine', 'backend / bare', 'engine / bare', 'weights read, GB/s'],
            rows,
        )

        def prefill():
            began = time.perf_counter()
            seqs = filled(backend, 1, min(256, model.info.context_length))
            took = time.perf_counter() - began
            backend.free(seqs[0])
            return min(256, model.info.context_length) / took

        table('Prefill', ['', 'tokens/s'], [['256 tokens', *interleaved(options.repeat, prefill)]])


if __name__ == '__main__':
    main()
