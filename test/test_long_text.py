"""Text of any length and kind is tokenized, or refused in one line; it never ends the process."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import numpy as np
import pytest
from odd_gguf import write_tiny_bpe

from ros2_nanochat import ChatHistory, NanoLLM
from ros2_nanochat.backends.gguf import deep_stack, digit_runs
from ros2_nanochat.prompt import surely_longer

RUNS = ['A', 'é', 'aB', ' ', '\n', '\t', '1', '=', '東', '\u0301', '🙂', 'ab ', 'x1', '=/\n', "'s", '\u200b']
KINDS = ['gpt-4o', 'tekken', 'llama4', 'deepseek-llm', 'gpt-2', 'llama-bpe']
TOKENIZE = """
import sys, threading
from ros2_nanochat import NanoLLM
from ros2_nanochat.backends.gguf import deep_stack
path, length, *units = sys.argv[1:]
with NanoLLM.from_pretrained(path, max_context_len=512, max_sequences=1) as model:
    for unit in units:
        text = unit * (int(length) // len(unit.encode()))
        ids = model.tokenize(text)
        assert model.detokenize(ids) == text, unit
print('done')
"""


def in_a_process(source, *arguments, timeout=300):
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(p for p in sys.path if p)}
    return subprocess.run(
        [sys.executable, '-c', source, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment,
    )


@pytest.mark.parametrize('kind', KINDS)
def test_a_run_of_sixty_thousand_of_any_class_is_tokenized(tmp_path, kind):
    write_tiny_bpe(tmp_path / 'a.gguf', kind)
    done = in_a_process(TOKENIZE, tmp_path / 'a.gguf', 60_000, *RUNS)
    assert done.returncode == 0 and done.stdout == 'done\n', done.stderr[-1000:]


MIXED = ['\n ', '/\n', '🙂!', 'e\u0301', '\u3000\n']
"""Different characters that one match of a tokenizer's expression may hold in any number."""


def test_long_runs_of_characters_that_match_together_are_tokenized(tmp_path):
    write_tiny_bpe(tmp_path / 'a.gguf', 'gpt-4o')
    bytes_for = 3 * deep_stack._ROUGH  # of more characters than are reserved for without a look
    done = in_a_process(TOKENIZE, tmp_path / 'a.gguf', bytes_for, *MIXED)
    assert done.returncode == 0 and done.stdout == 'done\n', (done.returncode, done.stderr[-1000:])


@pytest.mark.parametrize(
    'kind, units',
    [('exaone-moe', ['ab cd ']), ('bloom', ['a1', 'e-é@1']), ('viking', ['x1東'])],
)
def test_a_match_over_several_classes_is_tokenized(tmp_path, kind, units):
    write_tiny_bpe(tmp_path / 'a.gguf', kind)
    bytes_for = 5 * deep_stack._ROUGH
    done = in_a_process(TOKENIZE, tmp_path / 'a.gguf', bytes_for, *units)
    assert done.returncode == 0 and done.stdout == 'done\n', (done.returncode, done.stderr[-1000:])


def test_a_pre_tokenizer_that_is_not_known_may_match_a_whole_text():
    prose = 'The robot drives. ' * 10_000
    assert deep_stack.longest_match(prose, 'of-next-year') == len(prose)
    assert deep_stack.longest_match(prose, 'gpt-4o') == deep_stack.longest_match(prose) < 100


@pytest.mark.parametrize(
    'kind, text',
    [
        ('deepseek-llm', ' ' * 30_000 + '1'),
        ('deepseek-llm', 'a\n' + '\t\u3000' * 20_000 + '🙂'),
        ('jais-2', ' ' * 2_000_000),
    ],
)
def test_spaces_that_are_split_too_slowly_are_refused_in_one_line(tmp_path, kind, text):
    write_tiny_bpe(tmp_path / 'a.gguf', kind)
    with NanoLLM.from_pretrained(str(tmp_path / 'a.gguf'), max_context_len=512) as model:
        began = time.monotonic()
        with pytest.raises(ValueError, match='spaces or tabs in a row') as caught:
            model.tokenize(text)
        assert time.monotonic() - began < 2 and '\n' not in str(caught.value)


@pytest.mark.parametrize('end', ['', 'a', 'é', '!', '\n1'])
def test_spaces_that_are_split_quickly_are_not_refused(tmp_path, end):
    write_tiny_bpe(tmp_path / 'a.gguf', 'deepseek-llm')
    with NanoLLM.from_pretrained(str(tmp_path / 'a.gguf'), max_context_len=512) as model:
        text = 'The robot' + ' ' * 100_000 + end
        began = time.monotonic()
        assert model.detokenize(model.tokenize(text)) == text and time.monotonic() - began < 10


@pytest.mark.long
@pytest.mark.parametrize('unit', ['A', '東', ' ', '\n', '=', 'The robot drives. '])
def test_ten_megabytes_of_one_kind_are_tokenized(tmp_path, unit):
    write_tiny_bpe(tmp_path / 'a.gguf', 'gpt-4o')
    done = in_a_process(TOKENIZE, tmp_path / 'a.gguf', 10_000_000, unit, timeout=600)
    assert done.returncode == 0 and done.stdout == 'done\n', done.stderr[-1000:]


def test_a_long_run_has_the_ids_of_the_same_call_on_an_ordinary_stack(tmp_path, monkeypatch):
    write_tiny_bpe(tmp_path / 'a.gguf', 'gpt-4o')
    texts = [unit * 5000 for unit in RUNS]
    with NanoLLM.from_pretrained(str(tmp_path / 'a.gguf'), max_context_len=512) as model:
        there = [model.tokenize(text) for text in texts]
        monkeypatch.setattr(deep_stack, '_ALWAYS_SAFE', 1 << 30)
        assert [model.tokenize(text) for text in texts] == there


def test_a_run_for_which_no_memory_is_free_is_refused_in_one_line(tmp_path, monkeypatch):
    write_tiny_bpe(tmp_path / 'a.gguf', 'gpt-4o')
    monkeypatch.setattr(deep_stack, 'available_memory', lambda: 100 << 20)
    with NanoLLM.from_pretrained(str(tmp_path / 'a.gguf'), max_context_len=512) as model:
        with pytest.raises(ValueError, match='may need .* GB of memory') as caught:
            model.tokenize('A' * 1_000_000)
        assert '\n' not in str(caught.value)
        prose = 'The robot drives to the kitchen. ' * 30_000
        assert model.detokenize(model.tokenize(prose)) == prose


def test_text_that_cannot_fit_is_refused_before_all_of_it_is_tokenized(tmp_path):
    write_tiny_bpe(tmp_path / 'a.gguf', 'tekken')
    with NanoLLM.from_pretrained(str(tmp_path / 'a.gguf'), max_context_len=512) as model:
        asked = []
        tokenize = model.backend.tokenize

        def counting(text, *args, **kwargs):
            asked.append(len(text))
            return tokenize(text, *args, **kwargs)

        model.backend.tokenize = counting
        history = ChatHistory(model, 'chat-ml')
        history.append('user', 'A' * 3_000_000)
        for ask in (history.embed_chat, lambda: model.generate('A' * 3_000_000)):
            with pytest.raises(ValueError, match='context') as caught:
                ask()
            assert '\n' not in str(caught.value) and '3000000' in str(caught.value)
        assert sum(asked) < 100_000
        history.pop()
        history.append('user', 'hello')
        assert len(history.embed_chat()[0])


def test_a_text_counts_as_too_long_only_if_it_is():
    def tokenize(text):  # a hundred characters a token
        return range(len(text) // 100)

    assert surely_longer(list, 'a' * 100_000, 1000)
    assert not surely_longer(list, 'a' * 1000, 1000)
    assert not surely_longer(tokenize, 'a' * 99_000, 1000)
    assert surely_longer(tokenize, 'a' * 10_000_000, 1000)


def test_a_million_digits_take_seconds_and_have_the_ids_of_a_text_that_is_not_cut(tmp_path, monkeypatch):
    write_tiny_bpe(tmp_path / 'a.gguf', 'superbpe')
    with NanoLLM.from_pretrained(str(tmp_path / 'a.gguf'), max_context_len=512) as model:
        random = np.random.default_rng(1)
        texts = [
            before + ''.join(map(str, random.integers(0, 10, count))) + after
            for count in (119, 120, 121, 182, 1001)
            for before, after in (('', ''), ('The 1 robot', ' drives 22'), ('=', '1 3' * 200))
        ] + ['1' * 701 + '.' + '2' * 650 + ' a']
        cut = [model.tokenize(text) for text in texts]
        began = time.monotonic()
        count = len(model.tokenize('7' * 1_000_000))
        assert count > 100_000 and time.monotonic() - began < 60
        monkeypatch.setattr(digit_runs, 'SHORT', 10**9)
        assert [model.tokenize(text) for text in texts] == cut
