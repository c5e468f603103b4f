"""The check that every opened model must pass: its logits are finite, and do not depend on how a text is cut.

A runtime that does not know a model's form often runs it all the same, and produces nonsense (an ignored
window, positions counted from the wrong end, a rope base that is not a number). Three tokens reveal most such
faults.
"""

from __future__ import annotations

import numpy as np

from ros2_nanochat.backends.base import Backend, Chunk
from ros2_nanochat.errors import BackendError

_TOLERANCE = 0.25  # of the logits' range; quantized models round by up to a tenth


def check_model(backend: Backend) -> None:
    """Compare the logits of one token extended by two with those of all three at once.

    Raises:
        BackendError: The model's logits are wrong. The message is one line.
    """
    info = backend.info
    if min(info.context_length, backend.kv_capacity, backend.max_batch_tokens) < 3 or info.vocab_size < 4:
        return
    ids = _ordinary_ids(backend)
    whole = _logits(backend, [ids])
    _finite(backend, whole)
    if info.bidirectional_prompt:  # later tokens affect earlier ones
        return
    extended = _logits(backend, [ids[:1], ids[1:]])
    _finite(backend, extended)
    difference = float(np.abs(whole - extended).max())
    if difference > _TOLERANCE * float(np.ptp(whole)):
        raise BackendError(
            f'{info.name} ({info.architecture}) does not run right with api={info.api!r}: its logits depend'
            f' on how a text is cut (by {difference:.3g} in a range of {float(np.ptp(whole)):.3g}).'
            ' Take another file or quantization of the model, or another api'
        )


def _ordinary_ids(backend: Backend) -> np.ndarray:
    info = backend.info
    avoided = {token.id for token in info.special_tokens} | info.eos_token_ids
    ordinary = [i for i in range(info.vocab_size // 2, info.vocab_size) if i not in avoided][:3]
    ids = ordinary if len(ordinary) == 3 else [1, 2, 3]
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


def _finite(backend: Backend, row: np.ndarray) -> None:
    if not np.isfinite(row).all():
        raise BackendError(
            f'{backend.info.name} ({backend.info.architecture}) does not run with api={backend.info.api!r}:'
            f' its logits are {"not numbers" if np.isnan(row).any() else "infinite"}. The file is damaged, or'
            ' the runtime does not know this model: take another file of it, or another api'
        )
