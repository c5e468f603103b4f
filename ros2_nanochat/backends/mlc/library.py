"""Reads facts from a model library without loading it: its processor and kind of device, whether it is
complete, and its metadata.
"""

from __future__ import annotations

import json
import mmap
import os
import struct

from ros2_nanochat.errors import BackendError, shown

DEVICE_KINDS = ('cuda', 'vulkan', 'rocm', 'metal', 'opencl')
"""Kinds of devices, other than the CPU, for which a library may contain kernels."""

_ELF_MACHINES = {0x03: 'x86', 0x28: 'arm', 0x3E: 'x86_64', 0xB7: 'aarch64', 0xF3: 'riscv'}

_ONE = ('tensor_parallel_shards', 'pipeline_parallel_stages', 'seqlen_padding_factor')
_NUMBERS = (*_ONE, 'context_window_size', 'prefill_chunk_size', 'max_batch_size')


def library_kind(path: str) -> str:
    """Return the kind of device that a library was compiled for.

    TVM packs modules into a library, and writes the kind of each as a string after its length.
    """
    try:
        with open(path, 'rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for kind in DEVICE_KINDS:
                if data.find(struct.pack('<Q', len(kind)) + kind.encode()) >= 0:
                    return kind
    except (OSError, ValueError):  # ValueError: it is empty
        pass
    return 'cpu'


def other_processor(path: str) -> str | None:
    """Return the processor that a library was compiled for, if it is not this machine's; else None."""
    try:
        with open(path, 'rb') as file:
            head = file.read(20)
    except OSError:
        return None
    machine = _ELF_MACHINES.get(struct.unpack_from('<H', head, 18)[0]) if len(head) == 20 else None
    return machine if head[:4] == b'\x7fELF' and machine not in (None, os.uname().machine) else None


def unfit_for(library: str, device: str) -> str | None:
    """Return why a library cannot run on this machine and the requested device; None if its file does not
    show it.
    """
    if machine := other_processor(library):
        return f'{library} was compiled for {machine}, and this machine is {os.uname().machine}'
    if device != 'auto' and (kind := library_kind(library)) != target_of(device):
        return f'{library} was compiled for {kind}, and device={device!r} was asked for'
    return None


def target_of(device: str) -> str:
    """Return the kind of a requested device; for `auto` an NVIDIA GPU if there is one, else the CPU."""
    if device != 'auto':
        return device.partition(':')[0]
    return 'cuda' if any(map(os.path.exists, ('/dev/nvidia0', '/dev/nvhost-gpu', '/dev/nvgpu'))) else 'cpu'


def check_elf(path: str) -> None:
    """Check that a file is a complete library for this processor, because dlopen crashes on others or
    explains them badly.

    Raises:
        BackendError: It is not.
    """
    try:
        size = os.path.getsize(path)
        with open(path, 'rb') as file:
            head = file.read(64)
    except OSError as error:
        raise BackendError(f'the model library {path} cannot be read: {error.strerror}') from error
    if head[:4] != b'\x7fELF':
        if head[:4] in (b'\xcf\xfa\xed\xfe', b'MZ\x90\x00'):
            raise BackendError(
                f'{path} is a library for another operating system; compile it here with nanochat-mlc'
            )
        raise BackendError(
            f'{path} is no shared library (it has {size} bytes and does not begin as one); copy it again'
        )
    if len(head) < 64 or head[4] != 2:
        raise BackendError(f'{path} is no 64-bit library, or is cut off at {size} bytes; copy it again')
    (machine,) = struct.unpack_from('<H', head, 18)
    here = os.uname().machine
    if _ELF_MACHINES.get(machine, '') != here and machine in _ELF_MACHINES:
        raise BackendError(
            f'{path} was compiled for {_ELF_MACHINES[machine]}, and this machine is {here}; compile it here'
            ' with nanochat-mlc'
        )
    (sections,) = struct.unpack_from('<Q', head, 40)
    entry_size, count = struct.unpack_from('<HH', head, 58)
    if size < sections + entry_size * count:
        raise BackendError(
            f'{path} is cut off: it has {size} bytes and should have {sections + entry_size * count} or more;'
            ' copy it again'
        )


def parse_metadata(text: str, library: str) -> dict:
    """Return a library's description of itself.

    Args:
        text: The JSON that its `_metadata` returned.
        library: Its path, for messages.

    Raises:
        BackendError: It is of a kind that cannot be run here.
    """
    try:
        metadata = {name: value for name, value in json.loads(text).items() if value is not None}
        for name in _NUMBERS:
            if name in metadata:
                metadata[name] = int(metadata[name])
        metadata['params'] = [
            (param['name'], tuple(param['shape']), param['dtype']) for param in metadata.get('params', [])
        ]
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise BackendError(
            f'{library} describes itself in a way that is not understood ({error}); compile it with a newer'
            ' mlc_llm'
        ) from error
    task = metadata.get('model_task', 'chat')
    if task != 'chat':
        raise BackendError(
            f'{library} is of a model for {shown(task, 40)} ({metadata.get("model_type")}), which writes no'
            ' text: take one of a language model'
        )
    kind = metadata.get('kv_state_kind', 'kv_cache')
    if kind != 'kv_cache':
        raise BackendError(
            f'{library} keeps a state of kind {kind!r} ({metadata.get("model_type")}); a paged KV cache is'
            ' needed: run this model with api=hf'
        )
    for name in _ONE:
        if metadata.get(name, 1) > 1:
            raise BackendError(
                f'{library} was compiled with {name}={metadata[name]}; compile it for one GPU, with {name}=1'
            )
    return metadata
