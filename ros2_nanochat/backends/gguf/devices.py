"""The memory of the GPUs that llama.cpp uses."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable
from typing import Any

_GPU = 1  # of ggml_backend_dev_type in ggml-backend.h: a GPU with memory of its own


def gpu_memory(load: Callable[[], Any]) -> int | None:
    """Return the free bytes of all GPUs that have memory of their own.

    Args:
        load: Imports the package `llama_cpp`.

    Returns:
        None if there is no such GPU (a Jetson's shares the memory of the host), or if llama.cpp or the driver
        cannot tell.
    """
    load()
    try:
        ggml = importlib.import_module('llama_cpp._ggml').libggml
        count, get = ggml.ggml_backend_dev_count, ggml.ggml_backend_dev_get
        kind, memory = ggml.ggml_backend_dev_type, ggml.ggml_backend_dev_memory
    except (ImportError, AttributeError):
        return None
    count.restype, get.restype, kind.restype = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int
    get.argtypes, kind.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
    size = ctypes.POINTER(ctypes.c_size_t)
    memory.restype, memory.argtypes = None, [ctypes.c_void_p, size, size]
    found = None
    for index in range(count()):
        device = get(index)
        if kind(device) == _GPU:
            free, total = ctypes.c_size_t(), ctypes.c_size_t()
            memory(device, ctypes.byref(free), ctypes.byref(total))
            if not total.value:
                return None
            found = (found or 0) + free.value
    return found
