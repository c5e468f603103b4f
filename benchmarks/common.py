"""What the benchmarks share: the machine in words, a table, a raw llama.cpp loop as the ceiling, and medians
of interleaved runs.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np


def machine() -> str:
    """The machine and the versions a figure was measured with, on a few lines."""
    with open('/proc/cpuinfo') as file:
        cpu = next(
            (line.partition(':')[2].strip() for line in file if line.startswith('model name')),
            platform.processor(),
        )
    packages = []
    for name in (
        'ros2_nanochat',
        'llama_cpp_python',
        'numpy',
        'torch',
        'transformers',
        'apache-tvm',
        'ros-rclpy',
    ):
        try:
            packages.append(f'{name} {importlib.metadata.version(name)}')
        except importlib.metadata.PackageNotFoundError:
            pass
    mode = (
        _read('/etc/nvpmodel.conf') and os.popen('nvpmodel -q 2>/dev/null').read().replace('\n', ' ').strip()
    )
    load = os.getloadavg()[0]
    return (
        f'{cpu}, {len(os.sched_getaffinity(0))} cores, {platform.system()} {platform.machine()}, load'
        f' {load:.1f} at the start'
        + (f', {mode}' if mode else '')
        + f'\nPython {platform.python_version()}, '
        + ', '.join(packages)
    )


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ''


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table."""
    cells = [
        [
            cell if isinstance(cell, str) else f'{cell:.3g}' if isinstance(cell, float) else str(cell)
            for cell in row
        ]
        for row in rows
    ]
    widths = [max(len(row[i]) for row in [list(head), *cells]) for i in range(len(head))]
    print(f'\n{title}')
    for row in [list(head), *cells]:
        print(
            '  '
            + '  '.join(
                cell.ljust(width) if i == 0 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths))
            )
        )


def interleaved(repeats: int, *measures: Callable[[], float]) -> list[float]:
    """Medians of several measurements whose runs take turns, so that a busy machine slows them alike."""
    results: list[list[float]] = [[] for _ in measures]
    for _ in range(repeats):
        for measure, values in zip(measures, results):
            values.append(measure())
    return [statistics.median(values) for values in results]


class RawLlama:
    """The ceiling: llama.cpp's own calls with nothing around them, a batch of sequences decoded greedily."""

    def __init__(
        self,
        path: str,
        sequences: int,
        context: int,
        unified: bool,
        flash_attention: bool = True,
        gpu_layers: int = 0,
    ):
        import llama_cpp.llama_cpp as api

        self.api = api
        self._quiet = api.llama_log_callback(lambda level, text, data: None)
        api.llama_log_set(self._quiet, None)
        api.llama_backend_init()
        model_params = api.llama_model_default_params()
        model_params.n_gpu_layers = gpu_layers if gpu_layers >= 0 else 0x7FFFFFFF
        self.model = api.llama_model_load_from_file(os.fsencode(path), model_params)
        params = api.llama_context_default_params()
        params.n_ctx = context * sequences
        params.n_batch = params.n_ubatch = 512
        params.n_seq_max = sequences
        params.n_outputs_max = 64
        params.n_threads = params.n_threads_batch = len(os.sched_getaffinity(0))
        params.kv_unified = unified
        params.flash_attn_type = (
            api.LLAMA_FLASH_ATTN_TYPE_AUTO if flash_attention else api.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
        params.no_perf = True
        self.context = api.llama_init_from_model(self.model, params)
        self.memory = api.llama_get_memory(self.context)
        self.vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.model))
        self.batch = api.llama_batch_init(512, 0, 1)
        self.sequences, self.unified = sequences, unified

    def prefill(self, ids: Sequence[int]) -> None:
        """Put the same prompt into every sequence anew."""
        self.api.llama_memory_clear(self.memory, False)
        for seq in range(self.sequences):
            if (
                seq and not self.unified
            ):  # in one stream for all, a copy would share cells and spare attention its work
                self.api.llama_memory_seq_cp(self.memory, 0, seq, -1, -1)
                continue
            for start in range(0, len(ids), 512):
                part = ids[start : start + 512]
                self._decode([(token, start + i, seq, False) for i, token in enumerate(part)])

    def decode(self, first: Sequence[int], position: int, steps: int) -> float:
        """Decode greedily from one id each, behind `position` entries; return tokens/s over all sequences."""
        for seq in range(self.sequences):
            self.api.llama_memory_seq_rm(self.memory, seq, position, -1)
        tokens = list(first)
        began = time.perf_counter()
        for step in range(steps):
            self._decode([(token, position + step, seq, True) for seq, token in enumerate(tokens)])
            pointer = self.api.llama_get_logits(self.context)
            tokens = np.ctypeslib.as_array(pointer, (len(tokens), self.vocabulary)).argmax(axis=1).tolist()
        return steps * len(tokens) / (time.perf_counter() - began)

    def first_token(self, position: int, ids: Sequence[int]) -> float:
        """Seconds that a prompt takes behind the first `position` entries of a sequence."""
        self.api.llama_memory_seq_rm(self.memory, 0, position, -1)
        began = time.perf_counter()
        self._decode([(token, position + i, 0, i == len(ids) - 1) for i, token in enumerate(ids)])
        return time.perf_counter() - began

    def _decode(self, entries: list[tuple[int, int, int, bool]]) -> None:
        batch = self.batch
        batch.n_tokens = len(entries)
        for i, (token, position, seq, wanted) in enumerate(entries):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = (
                token,
                position,
                1,
                seq,
                wanted,
            )
        if self.api.llama_decode(self.context, batch):
            raise RuntimeError('llama_decode failed')

    def close(self) -> None:
        self.api.llama_batch_free(self.batch)
        self.api.llama_free(self.context)
        self.api.llama_model_free(self.model)
