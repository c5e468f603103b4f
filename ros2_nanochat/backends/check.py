"""The check that a model must pass when it is opened (a GGUF file on a CPU: the first time).

Its logits must be finite and differ, and must not depend on how a text is cut.

A runtime that does not know a model's form often runs it all the same, and produces nonsense (an ignored
window, positions counted from the wrong end, a rope base that is not a number). Four tokens reveal most such
faults. Those of a sliding window show only beyond it: that is checked if it takes less than a second.
"""

from __future__ import annotations

import time

import numpy as np

from ros2_nanochat.backends.base import Backend, Chunk
from ros2_nanochat.errors import BackendError

VERSION = 2  # raise it when the check examines more
_TOKENS = 4  # the fewest that split into two parts of at least two
_BEYOND = 9  # tokens beyond the window
_SAMPLE = 64  # tokens by which the time of more is judged
_SECONDS = 1.0
_TOLERANCE = 0.25  # of the logits' range; quantized models round by up to a tenth


def check_model(backend: Backend) -> bool:
    """Compare the logits of a few tokens at once with those of the same in two parts.

    Returns:
        Whether all was checked, and not only what takes little time.

    Raises:
        BackendError: The model's logits are wrong. The message is one line.
    """
    info = backend.info
    count = min(_TOKENS, info.context_length, backend.kv_capacity, backend.max_batch_tokens)
    if count < 3 or info.vocab_size < 4:
        return True
    ids = _ordinary_ids(backend, count)
    whole = _logits(backend, [ids])
    _usable(backend, whole)
    if info.bidirectional_prompt:  # later tokens affect earlier ones
        return True
    for at in range(1, count):  # runtimes compute a single token, first or last, in another way than several
        _compare(backend, whole, [ids[:at], ids[at:]], 'how a text is cut')
    return _check_beyond_window(backend)


def _check_beyond_window(backend: Backend) -> bool:
    """Compare the logits of a text that is longer than the model's window, passed in two ways.

    Returns False if that would take too long.
    """
    window = backend.info.sliding_window
    length = (window or 0) + _BEYOND
    if not window or length > min(backend.info.context_length, backend.kv_capacity):
        return True
    ids = _ordinary_ids(backend, length)
    largest = min(backend.max_chunk_tokens or backend.max_batch_tokens, backend.max_batch_tokens)
    sample = ids[: min(_SAMPLE, largest)]
    began = time.perf_counter()
    _logits(backend, [sample])
    if 2 * length / len(sample) * (time.perf_counter() - began) > _SECONDS:
        return False
    whole = _logits(backend, _parts(ids, largest))
    _usable(backend, whole)
    smaller = max(1, min(largest, length) // 2 - 1)
    _compare(backend, whole, _parts(ids, smaller), f'how a text is cut beyond its window of {window} tokens')
    return True


def _parts(ids: np.ndarray, size: int) -> list[np.ndarray]:
    return [ids[at : at + size] for at in range(0, len(ids), size)]


def _compare(backend: Backend, whole: np.ndarray, parts: list[np.ndarray], what: str) -> None:
    info = backend.info
    extended = _logits(backend, parts)
    _usable(backend, extended)
    difference = float(np.abs(whole - extended).max())
    if difference > _TOLERANCE * float(np.ptp(whole)):
        raise BackendError(
            f'{info.name} ({info.architecture}) does not run right with api={info.api!r}: its logits depend'
            f' on {what} (by {difference:.3g} in a range of {float(np.ptp(whole)):.3g}).'
            ' Take another file or quantization of the model, or another api'
        )


def _ordinary_ids(backend: Backend, count: int) -> np.ndarray:
    info = backend.info
    avoided = {token.id for token in info.special_tokens} | info.eos_token_ids
    ordinary = [i for i in range(info.vocab_size // 2, info.vocab_size) if i not in avoided][:count]
    ids = list(np.resize(ordinary if len(ordinary) >= 3 else [1, 2, 3], count))
    if info.bos_token_id is not None:
        ids[0] = info.bos_token_id
    return np.array(ids)


def _logits(backend: Backend, parts: list[np.ndarray]) -> np.ndarray:
    """The last row of logits of a text that is passed in parts."""
    seq = backend.new_sequence()
    try:
        for part in parts:
            logits = backend.forward([Chunk(seq, ids=part, num_logits=1)])
        return np.array(logits.numpy()[-1], np.float32)
    finally:
        backend.free(seq)


def _usable(backend: Backend, row: np.ndarray) -> None:
    if not np.isfinite(row).all():
        fault = 'not numbers' if np.isnan(row).any() else 'infinite'
    elif not np.ptp(row):  # tensors of zeros, from a download that reserved its space and did not end
        fault = 'all the same'
    else:
        return
    raise BackendError(
        f'{backend.info.name} ({backend.info.architecture}) does not run with api={backend.info.api!r}: its'
        f' logits are {fault}. The file is damaged, or the runtime does not know this model: take another'
        ' file of it, or another api'
    )
