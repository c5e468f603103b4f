"""What is made of the ways in which the separate process that opens a GGUF file can end."""

from __future__ import annotations

import os

import numpy as np
import pytest

from ros2_nanochat.backends.gguf import findings, images, trial
from ros2_nanochat.backends.gguf.mmproj import Mmproj
from ros2_nanochat.config import ModelConfig
from ros2_nanochat.errors import BackendError
from ros2_nanochat.locate import tiny_mmproj

HEAD = """
import os, resource, signal, sys, time
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
open('runs', 'a').write('x')
"""
OK = "print('ok', flush=True)\n"


@pytest.fixture
def attempt(tmp_path, monkeypatch):
    """Try a file in a process that does what is given; return the result and how often it has run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    monkeypatch.setattr(trial, '_PROCESS', 'process_on_trial')
    monkeypatch.setenv('PYTHONDONTWRITEBYTECODE', '1')  # the script changes within a second
    (tmp_path / 'okapi.gguf').write_bytes(b'GGUF')

    def attempt(script: str) -> tuple[bool, int]:
        (tmp_path / 'process_on_trial.py').write_text(HEAD + script)
        crashes = trial.try_apart('okapi.gguf', None, ModelConfig(), '1', lambda: False)
        return crashes, os.path.getsize('runs')

    return attempt


@pytest.mark.parametrize('path', ['okapi.gguf', 'ok', 'ok\\nnarrow'])
def test_an_error_is_none_the_less_one_if_its_path_begins_as_a_success_does(attempt, path):
    for _ in range(2):
        with pytest.raises(BackendError, match='cannot be loaded: it is odd'):
            attempt(f"print('{path} cannot be loaded: it is odd')")
    assert os.path.getsize('runs') == 2


@pytest.mark.parametrize('name', ['SIGABRT', 'SIGSEGV', 'SIGFPE', 'SIGILL', 'SIGBUS'])
def test_a_crash_on_narrow_pictures_is_remembered(attempt, name):
    for _ in range(2):
        assert attempt(OK + f'os.kill(os.getpid(), signal.{name})') == (True, 1)


@pytest.mark.parametrize(
    'end',
    ['raise MemoryError', 'raise OSError', 'os._exit(3)', 'os.kill(os.getpid(), signal.SIGKILL)', ''],
)
def test_another_end_shows_nothing_about_narrow_pictures(attempt, end):
    assert attempt(OK + end) == (False, 1)
    assert attempt(OK + 'os.kill(os.getpid(), signal.SIGSEGV)') == (True, 2)


def test_narrow_pictures_without_end_do_not_refuse_the_model(attempt, monkeypatch):
    monkeypatch.setattr(trial, '_PATIENCE', 3.0)
    assert attempt(OK + 'time.sleep(600)') == (False, 1)
    assert attempt(OK + "print('narrow too')") == (False, 2)
    assert attempt('raise AssertionError') == (False, 2)


@pytest.mark.parametrize('left', [b'', b'o', b'ok\nnarr', b'\xff'])
def test_a_result_that_was_not_wholly_written_is_tried_again(attempt, left):
    assert attempt(OK + "print('narrow too')") == (False, 1)
    folder = findings.folder()
    (name,) = os.listdir(folder)
    with open(os.path.join(folder, name), 'wb') as file:
        file.write(left)
    assert attempt(OK + 'os.abort()') == (True, 2)


def test_a_picture_that_is_stretched_to_a_square_is_never_narrow(monkeypatch):
    pytest.importorskip('PIL')
    pytest.importorskip('llama_cpp')
    seen = []

    class Mtmd:
        def __init__(self, *args):
            pass

        def pieces(self, pixels):
            seen.append(pixels.shape)
            return []

        def close(self):
            pass

    monkeypatch.setattr(images, 'Mtmd', Mtmd)
    vision = Mmproj(tiny_mmproj(), True, refuses_narrow=True)
    embedder = images.GGUFImages(None, None, vision, ModelConfig(threads=1), lambda: 64)
    embedder.embed(np.zeros((40, 3000, 3), np.uint8))
    embedder.close()
    assert seen[0][0] == seen[0][1]
