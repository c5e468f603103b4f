"""The functions of the TVM runtime that `mlc` needs, under one set of names for two generations of TVM.

Since 0.21 arrays are `tvm.runtime.Tensor` and shapes `tvm_ffi.Shape`. Before, as in the Jetson containers of
2024 and 2025, they are `tvm.nd.NDArray` and `tvm.runtime.ShapeTuple`. Knows arrays, devices and libraries;
nothing of models.
"""

from __future__ import annotations

import ctypes
import glob
import os
from collections.abc import Iterable, Sequence

import numpy as np

from ros2_nanochat.backends.mlc.library import DEVICE_KINDS, check_elf, library_kind
from ros2_nanochat.errors import BackendError, MissingDependency, one_line, require

_POOLED = 2  # AllocatorType of tvm/runtime/memory/memory_manager.h
_CPU = 1  # DLDeviceType of DLPack


class Runtime:
    """The installed TVM and one of its devices.

    Attributes:
        device: As in `ModelConfig.device`; `auto` is the kind that the library was compiled for.
        on_cpu: Whether arrays are in host memory.
    """

    def __init__(self, device: str, library: str):
        self.tvm = require('tvm', 'mlc')
        check_elf(library)
        self.library = library
        self._executable = load_library(self.tvm, library)
        kinds = module_kinds(self._executable)
        compiled = next((kind for kind in DEVICE_KINDS if kind in kinds), 'cpu')
        wanted = compiled if device == 'auto' else device
        kind, _, index = wanted.partition(':')
        if kind != compiled:
            raise BackendError(
                f'{library} was compiled for {compiled}, and device={device!r} was asked for: leave device at'
                f' auto, or compile the library for it (nanochat-mlc MODEL --target {kind})'
            )
        self.device = self.tvm.device(kind, int(index or 0))
        self.on_cpu = compiled == 'cpu'
        if not self.on_cpu and not self.device.exist:
            raise LacksDevice(
                f'{library} was compiled for {compiled}, and TVM {self.version} finds no such device'
                f' ({wanted}) here: check the driver and that this TVM was built with {compiled}, or use a'
                ' library compiled for the CPU'
            )
        self._new_shape = _first(self.tvm, 'runtime.ShapeTuple') or require('tvm_ffi', 'mlc').Shape
        self._empty = _first(self.tvm, 'runtime.empty', 'nd.empty')
        self._convert = self.tvm.runtime.convert
        self._reshape = self.required('vm.builtin.reshape')
        self._shapes: dict[tuple, object] = {}

    @property
    def version(self) -> str:
        """The version of TVM."""
        return self.tvm.__version__

    def virtual_machine(self):
        """Return a new virtual machine that runs the library on the device."""
        try:
            machine = self._executable['vm_load_executable']()
            device_type = int(
                self.device.dlpack_device_type()
                if hasattr(self.device, 'dlpack_device_type')
                else self.device.device_type
            )
            index = self.device.index if hasattr(self.device, 'index') else self.device.device_id
            machine['vm_initialization'](device_type, index, _POOLED, _CPU, 0, _POOLED)
            return machine
        except Exception as error:
            raise BackendError(
                f'{self.library} does not start on TVM {self.version}: {_reason(error)}; compile it again'
                ' with the mlc_llm that belongs to this TVM'
            ) from error

    def function(self, machine, name: str, kernel: bool = False):
        """Return a function of the library, or with `kernel` one that its functions call; None for none."""
        if _has(machine, name):
            return machine[name]
        try:
            return machine.get_function(name, query_imports=True) if kernel else None
        except (AttributeError, KeyError):
            return None

    def builtin(self, *names: str):
        """Return the first function of TVM that exists under one of these names; None if there is none."""
        for name in names:
            found = self.tvm.get_global_func(name, True)
            if found is not None:
                return found
        return None

    def required(self, name: str):
        """Return a function of TVM; a BackendError if it does not exist."""
        found = self.builtin(name)
        if found is None:
            raise BackendError(
                f'TVM {self.version} has no {name}: too old, or a build without the Relax runtime; install'
                ' apache-tvm 0.25 or newer'
            )
        return found

    # --- arrays ---

    def shape(self, values: Sequence[int]):
        """Return a shape as functions take it; shapes are cached."""
        key = tuple(values)
        found = self._shapes.get(key)
        if found is None:
            if len(self._shapes) >= 512:
                self._shapes.clear()
            found = self._shapes[key] = self._new_shape([int(value) for value in key])
        return found

    def empty(self, shape: Sequence[int], dtype: str):
        """Return an uninitialized array on the device."""
        return self._empty(tuple(shape), dtype, self.device)

    def from_numpy(self, array: np.ndarray):
        """Copy an array to the device."""
        return self.empty(array.shape, str(array.dtype)).copyfrom(array)

    def from_bytes(self, data: np.ndarray, shape: Sequence[int], dtype: str):
        """Return a device array of any type.

        Args:
            data: Its bytes, [n] uint8.
            shape: Its shape.
            dtype: Its type, as TVM writes it.
        """
        array = self.empty(shape, dtype)
        if data.nbytes:
            array._create_view((data.nbytes,), 'uint8').copyfrom(data)
        return array

    def view(self, array, shape: Sequence[int]):
        """Return the memory of an array in another shape."""
        return self._reshape(array, self.shape(shape))

    def shared(self, array) -> np.ndarray | None:
        """Return a NumPy view of an array's memory; None if it is not on the CPU, or NumPy or this TVM cannot
        do it.
        """
        if not self.on_cpu:
            return None
        try:
            return np.from_dlpack(array)
        except (AttributeError, TypeError, BufferError, RuntimeError):
            return None

    def host(self, array) -> np.ndarray:
        """Return an array in host memory; on the CPU without a copy, if possible."""
        shared = self.shared(array)
        return array.numpy() if shared is None else shared

    def array_of(self, arrays: Iterable):
        """Return many arrays as one argument, converted once."""
        return self._convert(list(arrays))

    def set_threads(self, count: int) -> None:
        """Set the number of CPU threads for this thread's calls."""
        configure = self.builtin('runtime.config_threadpool')
        if configure is not None:
            configure(1, count)  # 1: the fast cores first (threading_backend.h)

    def free_memory(self) -> int | None:
        """Return the free bytes of the device; see the function of this name."""
        return free_memory(self.device)


def free_memory(device) -> int | None:
    """Return the free bytes of a TVM device; None if it shares the host's memory, or if unknown."""
    if os.path.exists('/etc/nv_tegra_release') or os.path.exists('/dev/nvhost-gpu'):
        return None
    try:
        return device.available_global_memory or None
    except Exception:  # missing in older versions and for some devices
        return None


def give_back_memory() -> None:
    """Make glibc return freed memory to the system; else pieces of weights stay in its heap."""
    trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)
    if trim is not None:
        trim(0)


def load_library(tvm, path: str):
    """Load a model library; a BackendError, in one line, if this TVM cannot."""
    try:
        module = tvm.runtime.load_module(path)
    except Exception as error:  # tvm raises its own classes for errors of dlopen and its loaders
        kind = library_kind(path)
        lacking = None if kind == 'cpu' else lacking_part(os.path.dirname(tvm.__file__), kind)
        if lacking:
            raise LacksDevice(
                f'{path} was compiled for {kind}, and TVM {tvm.__version__} has no {kind} here: {lacking}'
            ) from error
        text = str(error)
        if 'loader' in text or 'binary' in text.lower() or 'not enabled' in text:
            what = 'was compiled for a device that this TVM was not built for'
        else:
            what = 'cannot be loaded'
        raise BackendError(
            f'{path} {what} (TVM {tvm.__version__}: {_reason(error)}); use a library compiled for this'
            ' machine and this TVM, or compile it again with nanochat-mlc'
        ) from error
    if not _has(module, 'vm_load_executable'):
        raise BackendError(
            f'{path} is no model library: it has no function vm_load_executable; name the .so that'
            ' mlc_llm compile made'
        )
    return module


class LacksDevice(BackendError):
    """The library is valid, but this TVM or this machine has no such device."""


def lacking_part(folder: str, kind: str) -> str | None:
    """Return why TVM's part for a kind of device (a separate library since 0.25) is missing; None if it loads
    or does not exist in this TVM. `folder` is that of the package.
    """
    parts = glob.glob(os.path.join(glob.escape(folder), '**', 'libtvm_runtime*.so'), recursive=True)
    if not any(os.path.basename(part).count('_') > 1 for part in parts):
        return None
    part = next((part for part in parts if os.path.basename(part) == f'libtvm_runtime_{kind}.so'), None)
    if part is None:
        return f'it was built without {kind}; install one that was built with it'
    try:
        ctypes.CDLL(part)
    except OSError as error:
        return f'{os.path.basename(part)} does not load ({one_line(error)}); install what it needs'
    return None


def why_it_does_not_load(library: str) -> str | None:
    """Return what is wrong with a library on this machine with this TVM; None if it loads and starts, or if
    TVM or the device is missing, so that it cannot be tried.
    """
    try:
        check_elf(library)
        Runtime('auto', library).virtual_machine()
    except (MissingDependency, LacksDevice):
        return None
    except BackendError as error:
        return str(error)
    return None


def module_kinds(module) -> set[str]:
    """Return the kinds of a module and all that it imports, for example `cuda` if it contains such
    kernels.
    """
    kinds, todo = set(), [module]
    while todo:
        module = todo.pop()
        kinds.add(str(getattr(module, 'kind', None) or getattr(module, 'type_key', '')))
        imports = getattr(module, 'imports', None)
        todo += list(
            imports
            if imports is not None and not callable(imports)
            else getattr(module, 'imported_modules', [])
        )
    return kinds


def _has(module, name: str) -> bool:
    try:
        return module[name] is not None
    except (AttributeError, KeyError):
        return False


def _first(root, *paths: str):
    for path in paths:
        found = root
        for name in path.split('.'):
            found = getattr(found, name, None)
        if found is not None:
            return found
    return None


def _reason(error: Exception) -> str:
    """The message of a TVM error, without source locations."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(('File ', 'Traceback', 'Stack trace'))]
    text = (telling or lines or [type(error).__name__])[
        -1 if len(telling) > 1 and 'Check failed' not in telling[0] else 0
    ]
    return text if len(text) <= 240 else text[:240] + '...'
