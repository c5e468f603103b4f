"""The logits of a GGUF file are checked when it is opened first on a machine, and again if anything changed
that they depend on.
"""

from __future__ import annotations

import dataclasses
import os
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip('gguf')
pytest.importorskip('llama_cpp')
import gguf
from odd_gguf import copy_with, write_tiny_bpe

from ros2_nanochat import NanoLLM
from ros2_nanochat.backends.check import check_model
from ros2_nanochat.backends.gguf import findings, first_check
from ros2_nanochat.backends.gguf.backend import GGUFBackend
from ros2_nanochat.config import ModelConfig
from ros2_nanochat.errors import BackendError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))


@pytest.fixture
def path(tmp_path):
    write_tiny_bpe(tmp_path / 'a.gguf')
    return str(tmp_path / 'a.gguf')


@pytest.fixture
def checks(monkeypatch):
    """The contexts of the models that were checked."""
    checked = []

    def counting(backend):
        checked.append(backend.info.context_length)
        return check_model(backend)

    monkeypatch.setattr(first_check, 'check_model', counting)
    return checked


def opened(path, **options):
    options = {'max_context_len': 256, 'max_sequences': 1, 'threads': 1, **options}
    backend = GGUFBackend(path, ModelConfig(model=path, **options))
    backend.open()
    return backend


def test_a_file_that_passed_is_not_checked_at_the_next_start(path, checks):
    for _ in range(3):
        opened(path).close()
    assert checks == [256]


def test_a_file_that_changed_is_checked_again(path, checks):
    opened(path).close()
    os.utime(path, ns=(1, 1))
    opened(path).close()
    with open(path, 'ab') as file:
        file.write(bytes(32))
    os.utime(path, ns=(1, 1))
    opened(path).close()
    assert len(checks) == 3


@pytest.mark.parametrize(
    'options', [{'max_context_len': 512}, {'max_sequences': 2}, {'flash_attention': False}]
)
def test_a_context_of_another_form_is_checked(path, checks, options):
    opened(path, flash_attention=True).close()
    opened(path, **{'flash_attention': True, **options}).close()
    assert len(checks) == 2


def test_another_processor_and_another_library_are_checked(path, checks, monkeypatch):
    backend = opened(path)
    monkeypatch.setattr(first_check, 'processor_name', lambda: 'another')
    first_check.FirstCheck(path, backend._api, backend._version).run(backend)
    first_check.FirstCheck(path, backend._api, '0.0.1').run(backend)
    assert len(checks) == 3
    for _ in range(2):  # nothing by which it could be known again
        first_check.FirstCheck(path, None, backend._version).run(backend)
    backend.config = dataclasses.replace(backend.config, gpu_layers=1)
    for _ in range(2):
        first_check.FirstCheck(path, backend._api, backend._version).run(backend)
    backend.close()
    assert len(checks) == 7


def test_each_library_that_computes_is_one_of_what_the_logits_depend_on(path, checks, tmp_path):
    folder = tmp_path / 'lib [1]'
    folder.mkdir()
    for name in ('libllama.so', 'libggml-cpu.so'):
        (folder / name).write_bytes(b'1')
    api = SimpleNamespace(_lib=SimpleNamespace(_name=str(folder / 'libllama.so')))
    backend = opened(path)
    del checks[:]
    for count, changed in enumerate(('libllama.so', 'libggml-cpu.so', 'libggml-cuda.so'), start=1):
        with open(folder / changed, 'ab') as library:
            library.write(b'2')
        for _ in range(2):
            first_check.FirstCheck(path, api, backend._version).run(backend)
        assert len(checks) == count
    backend.close()


def test_a_failure_and_a_check_that_was_cut_short_are_not_kept(path, monkeypatch):
    results = [BackendError('its logits are not numbers'), BackendError('again'), False, True]

    def check(backend):
        result = results.pop(0)
        if isinstance(result, BackendError):
            raise result
        return result

    monkeypatch.setattr(first_check, 'check_model', check)
    for message in ('not numbers', 'again'):
        with pytest.raises(BackendError, match=message):
            opened(path)
    for _ in range(3):
        opened(path).close()
    assert not results


@pytest.mark.parametrize('left', [b'', b'pass', b'\xff'])
def test_a_broken_store_costs_time_only(path, checks, left):
    opened(path).close()
    for name in os.listdir(findings.folder()):
        with open(os.path.join(findings.folder(), name), 'wb') as file:
            file.write(left)
    opened(path).close()
    opened(path).close()
    assert len(checks) == 2


def test_a_store_that_cannot_be_written_costs_time_only(path, checks, monkeypatch, tmp_path):
    (tmp_path / 'file').write_text('')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
    for _ in range(2):
        opened(path).close()
    assert len(checks) == 2


def test_tensors_of_zeros_are_refused(path, tmp_path):
    """A download that reserved its space and broke off leaves zeros."""
    tensors = gguf.GGUFReader(path).tensors
    zeros = {tensor.name: np.zeros(tensor.data.shape, np.float32) for tensor in tensors[5:]}
    copy_with(path, tmp_path / 'zeros.gguf', tensors=zeros)
    with pytest.raises(BackendError, match='all the same'):
        opened(str(tmp_path / 'zeros.gguf'))


def test_a_context_of_one_token_opens_and_its_prompts_are_refused_in_one_line(path):
    with (
        NanoLLM.from_pretrained(path, max_context_len=1, max_sequences=1, threads=1) as model,
        pytest.raises(BackendError, match='the context holds 1, .* larger max_context_len'),
    ):
        model.generate('hello', streaming=False)
