"""Loads weights from an MLC-LLM folder onto a device, in the order that its library expects."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np

from ros2_nanochat.backends.mlc.arrays import from_bfloat16
from ros2_nanochat.backends.mlc.folder import MLCFolder, Record, Shard
from ros2_nanochat.backends.mlc.tvm_runtime import Runtime
from ros2_nanochat.errors import BackendError, LoadAborted


def match_parameters(
    folder: MLCFolder, shards: list[Shard], parameters: list[tuple], library: str
) -> int | None:
    """Check that the weights are those that a library expects.

    Args:
        folder: The folder.
        shards: Its shards.
        parameters: `(name, shape, dtype)` from the library's `_metadata`. A size that it leaves open (the
            vocabulary) is a name or -1.
        library: Path of the library, for messages.

    Returns:
        The size of the vocabulary if the library leaves it open, else None.

    Raises:
        BackendError: They differ. The message says where.
    """
    records = {record.name: record for shard in shards for record in shard.records}
    missing = [name for name, _, _ in parameters if name not in records]
    if missing:
        raise BackendError(
            f'the weights in {folder.path} ({folder.quantization}) do not fit {library}: {len(missing)} of'
            f' {len(parameters)} parameters are missing, {missing[0]!r} first; use the library compiled for'
            ' this model and quantization'
        )
    rows = []
    for name, shape, dtype in parameters:
        record = records[name]
        fits = len(shape) == len(record.shape) and all(
            not isinstance(a, int) or a < 0 or a == b for a, b in zip(shape, record.shape)
        )
        if not fits or dtype != record.dtype:
            raise BackendError(
                f'the weights in {folder.path} ({folder.quantization}) do not fit {library}: {name!r} is'
                f' {record.dtype}{list(record.shape)}, and the library takes {dtype}{list(shape)}; use the'
                ' library compiled for this model'
            )
        if shape and (not isinstance(shape[0], int) or shape[0] < 0):
            rows.append(record.shape[0])
    return min(rows, default=None)


def load_parameters(
    runtime: Runtime,
    shards: list[Shard],
    names: list[str],
    progress: Callable[[float], None] | None,
    aborted: Callable[[], bool],
):
    """Copy the tensors onto the device and return them as one argument.

    Args:
        runtime: TVM and the device.
        shards: The shards.
        names: The order of the tensors; empty for `param_0`, `param_1`, ...
        progress: Called with the share that is done, 0 to 1.
        aborted: Called before each tensor, to ask whether to stop.

    Raises:
        LoadAborted: `aborted` returned true.
        BackendError: There is not enough memory, or a tensor has an unknown format.
    """
    if not names:
        names = sorted(
            (record.name for shard in shards for record in shard.records),
            key=lambda name: int(name.rpartition('_')[2]),
        )
    wanted, arrays = set(names), {}
    total = sum(shard.nbytes for shard in shards) or 1
    done = 0
    for shard in shards:
        data = np.memmap(shard.path, np.uint8, 'r') if shard.nbytes else np.empty(0, np.uint8)
        for record in shard.records:
            if aborted():
                raise LoadAborted(f'loading {os.path.dirname(shard.path)} was stopped')
            if record.name in wanted:
                arrays[record.name] = _load(
                    runtime, record, data[record.offset : record.offset + record.nbytes], shard.path
                )
            done += record.nbytes
            if progress:
                progress(min(1.0, done / total))
    return runtime.array_of(arrays[name] for name in names)


def _load(runtime: Runtime, record: Record, data: np.ndarray, path: str):
    if record.format == 'f32-to-bf16' and record.dtype == 'float32':
        data = from_bfloat16(data).view(np.uint8)
    elif record.format not in ('raw', 'f32-to-bf16'):
        raise BackendError(
            f'{path}: {record.name} is stored as {record.format!r}, which is not known; convert the model'
            ' with a current mlc_llm'
        )
    try:
        return runtime.from_bytes(np.ascontiguousarray(data), record.shape, record.dtype)
    except Exception as error:  # tvm's allocators raise their own classes
        raise BackendError(
            f'no memory for {record.name} ({record.size / (1 << 20):,.1f} MiB) of {path} on {runtime.device}:'
            ' end other programs or use a smaller model'
        ) from error
