"""tools/llama_cpp.py: what is installed is kept, and nothing is compiled twice."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[1] / 'tools' / 'llama_cpp.py'
WHEEL = 'llama_cpp_python-1-py3-none-any.whl'


@pytest.fixture
def tool(monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location('llama_cpp_setup', TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    monkeypatch.delenv('CMAKE_ARGS', raising=False)
    monkeypatch.setattr(sys, 'argv', ['llama_cpp.py', str(tmp_path / 'log'), '-c', 'pins.txt'])
    module.calls, module.works = [], [None, '0.3.36']

    def pip(log, *arguments, **environment):
        module.calls.append((arguments, environment))
        if arguments[0] == 'wheel':
            folder = next(each.partition('=')[2] for each in arguments if each.startswith('--wheel-dir='))
            Path(folder, WHEEL).write_bytes(b'wheel')
        return True

    monkeypatch.setattr(module, 'pip', pip)
    monkeypatch.setattr(module, 'installed', lambda: module.works.pop(0))
    return module


def commands(tool):
    return [arguments[0] for arguments, _ in tool.calls]


def test_what_works_is_kept_whatever_its_version(tool, capsys):
    tool.works = ['0.9.0']
    assert tool.main() == 0 and not tool.calls
    assert 'keeping the installed llama-cpp-python 0.9.0' in capsys.readouterr().err


def test_the_second_set_up_takes_the_wheel_of_the_first(tool, capsys):
    assert tool.main() == 0 and commands(tool) == ['wheel', 'install', 'install']
    arguments, environment = tool.calls[0]
    assert f'llama-cpp-python=={tool.wanted()}' in arguments
    assert environment['SKBUILD_BUILD_TARGETS'] == 'llama;ggml;mtmd'
    said = capsys.readouterr().err
    assert 'minute' in said and 'nanochat/wheels' in said
    tool.calls, tool.works = [], [None, '0.3.36']
    assert tool.main() == 0 and commands(tool) == ['install', 'install']
    assert tool.calls[1][0][1:3] == ('-c', 'pins.txt')


@pytest.mark.parametrize('change', ['version', 'processor', 'compiler', 'flags'])
def test_a_wheel_for_another_machine_or_other_flags_is_not_taken(tool, monkeypatch, change):
    tool.main()
    tool.calls, tool.works = [], [None, '0.3.36']
    if change == 'flags':
        monkeypatch.setenv('CMAKE_ARGS', '-DGGML_CUDA=on')
    else:
        monkeypatch.setattr(tool, {'version': 'wanted'}.get(change, change), lambda: 'another')
    assert tool.main() == 0 and commands(tool)[0] == 'wheel'
    assert change != 'flags' or tool.calls[0][1]['CMAKE_ARGS'].endswith('-DGGML_CUDA=on')


def test_a_wheel_that_does_not_work_is_compiled_again(tool):
    tool.main()
    tool.calls, tool.works = [], [None, None, '0.3.36']
    assert tool.main() == 0 and commands(tool) == ['install', 'install', 'wheel', 'install', 'install']


def test_a_failed_compilation_ends_the_set_up_and_leaves_nothing_behind(tool, monkeypatch, tmp_path):
    monkeypatch.setattr(tool, 'pip', lambda log, *arguments, **_: False)
    assert tool.main() == 1
    assert not list((tmp_path / 'cache' / 'nanochat' / 'wheels').iterdir())


def test_an_installed_library_is_tried_in_a_process_of_its_own(monkeypatch):
    pytest.importorskip('llama_cpp')
    spec = importlib.util.spec_from_file_location('llama_cpp_setup', TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.installed() is not None
    for broken in ('import os; os.abort()', 'print("0.2.90")', 'raise ImportError'):
        monkeypatch.setattr(module, 'CHECK', broken)
        assert module.installed() is None
