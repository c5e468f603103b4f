"""Compares the memory that a model needs with what is free before the model is loaded, and reduces what was
not asked for.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ros2_nanochat.config import DEFAULT_CONTEXT, ModelConfig
from ros2_nanochat.errors import BackendError

_log = logging.getLogger(__name__)
LARGE_BLOCK = 4 << 20
"""Bytes. In the node (ros/allocator.py), blocks of this size or more get their own pages, and NumPy asks for
huge ones.
"""
_LEAST_CONTEXT = 512
_SPARE = 64 << 20  # bytes left for the rest of the process


@dataclass(frozen=True)
class MemoryEstimate:
    """The memory that a model needs, in bytes.

    Attributes:
        weights: Bytes of the weights.
        kv_per_token: Bytes of KV cache for each token.
        overhead: Bytes of compute buffers and the rest.
        available: Free bytes on the device that the model will use; None if unknown.
        context_length: The context that the model was trained for, in tokens.
        decided: Options that were decided for the estimate. The backend opens with them: decided again
            later, they would depend on the context, which may be cut to the memory that is free.
    """

    weights: int
    kv_per_token: int
    overhead: int
    available: int | None
    context_length: int
    decided: Mapping[str, Any] = field(default_factory=dict)


def available_memory(proc: str = '/proc', groups: str = '/sys/fs/cgroup') -> int | None:
    """Return the bytes of host memory that this process can still allocate; None if unknown.

    This is what Linux calls available, or less if a control group limits the process. Formats: proc(5), and
    Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst of the Linux kernel.
    """
    try:
        with open(f'{proc}/meminfo') as file:
            free = next(int(line.split()[1]) * 1024 for line in file if line.startswith('MemAvailable'))
    except (OSError, StopIteration):
        return None
    return max(0, min([free, *_left_by_groups(proc, groups)]))


def _left_by_groups(proc: str, groups: str) -> Iterator[int]:
    try:
        lines = _read(f'{proc}/self/cgroup').splitlines()
    except OSError:
        return
    for number, controllers, group in (line.split(':', 2) for line in lines if line.count(':') >= 2):
        if number == '0':
            limit, usage, prefix, base = 'memory.max', 'memory.current', '', groups
        elif 'memory' in controllers.split(','):
            limit, usage, prefix, base = (
                'memory.limit_in_bytes',
                'memory.usage_in_bytes',
                'total_',
                f'{groups}/memory',
            )
        else:
            continue
        # inside a container, its own group is the root, whatever its name is outside
        for folder in {base + group[:i] for i in range(len(group) + 1) if group[i : i + 1] in ('', '/')}:
            try:
                most = _read(f'{folder}/{limit}')
                if most.isdigit():
                    stat = dict(pair.split()[:2] for pair in _read(f'{folder}/memory.stat').splitlines())
                    files = sum(
                        int(stat.get(f'{prefix}{kind}_file', 0)) for kind in ('active', 'inactive')
                    )  # file cache, which the kernel can drop
                    yield int(most) - int(_read(f'{folder}/{usage}')) + files
            except (OSError, ValueError):
                continue


def _read(path: str) -> str:
    with open(path) as file:
        return file.read().strip()


def fill_in(config: ModelConfig, estimate: MemoryEstimate) -> ModelConfig:
    """Fill in the context, the sequences and the KV tokens so that the model fits.

    What the user did not ask for is reduced first: additional sequences, then the context.

    Args:
        config: The options that the user asked for.
        estimate: What the model needs.

    Returns:
        The config with `max_context_len`, `max_sequences` and `kv_tokens` set.

    Raises:
        ValueError: The context is longer than the model was trained for.
        BackendError: What the user asked for does not fit. The message holds the figures.
    """
    trained = estimate.context_length or DEFAULT_CONTEXT
    asked = config.max_context_len
    if asked is not None and estimate.context_length and asked > estimate.context_length:
        raise ValueError(
            f'max_context_len={asked} is not valid: the model was trained for {estimate.context_length}'
            ' tokens'
        )
    context = asked or min(trained, DEFAULT_CONTEXT)
    sequences = config.max_sequences
    if config.kv_tokens is not None and config.kv_tokens < context:
        if asked is not None:
            raise ValueError(
                f'kv_tokens={config.kv_tokens} is not valid: a single conversation may take'
                f' max_context_len={asked}'
            )
        context = config.kv_tokens
    tokens = config.kv_tokens or context * sequences
    free = estimate.available if estimate.available is not None else available_memory()
    if free is not None:
        rest = free - estimate.weights - estimate.overhead - _SPARE
        fits = max(0, rest) // max(1, estimate.kv_per_token)
        cut = tokens > fits and config.kv_tokens is None
        if cut:
            sequences = min(sequences, max(1, fits // context))
            if context > fits >= _LEAST_CONTEXT and asked is None:
                context = fits // _LEAST_CONTEXT * _LEAST_CONTEXT
            tokens = context * sequences
        if tokens > fits:
            option = 'max_context_len' if config.kv_tokens is None else 'kv_tokens'
            raise BackendError(
                f'the model does not fit: weights take {_mib(estimate.weights)}, buffers'
                f' {_mib(estimate.overhead)}, {tokens} tokens of KV cache'
                f' {_mib(estimate.kv_per_token * tokens)}, and {_mib(free)} are free: '
                + (
                    f'ask for {option}={fits} or less'
                    if fits >= _LEAST_CONTEXT
                    else 'free memory or use a smaller model'
                )
            )
        if cut:
            _log.warning(
                'memory is short (%s free): the context is cut to %d tokens, for %d conversation(s) at once',
                _mib(free),
                context,
                sequences,
            )
    return dataclasses.replace(config, max_context_len=context, max_sequences=sequences, kv_tokens=tokens)


def _mib(count: int) -> str:
    return f'{count / (1 << 20):,.0f} MiB'
