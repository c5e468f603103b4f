"""Chat templates compute within bounds of time and memory, and the process goes on."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from ros2_nanochat import ChatHistory, NanoLLM
from ros2_nanochat.chat.template import render_process
from ros2_nanochat.chat.template.bounded_rendering import renderer

PLAIN = '{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}'
ONE_BY_ONE = '{% for i in range(100000) %}{% for j in range(100000) %}{{ i }}{% endfor %}{% endfor %}'
SIXTY = (
    '{{% set ns = namespace(s={start}) %}}{{% for i in range(60) %}}{{% set ns.s = {more} %}}{{% endfor %}}'
    '{{{{ ns.s }}}}'
)
HOSTILE = {
    'a power': '{% set n = 9999 %}{{ (n ** n) ** (n ** n) }}',
    'a constant power': '{{ 9 ** (9 ** (9 ** 9)) }}',
    'a wide number': "{{ '%2000000000d' % 1 }}",
    'a wide format': "{{ '{:2000000000d}'.format(1) }}",
    'a wide center': "{{ 'a'.center(2000000000) }}",
    'a filter': "{{ 'a' | center(2000000000) }}",
    'nested loops': ONE_BY_ONE,
    'repetition': "{{ 'a' * 2000000000 }}",
    'a list': '{{ [0] * 2000000000 }}',
    'doubling': SIXTY.format(start="'ab'", more='ns.s ~ ns.s'),
    'nesting': SIXTY.format(start='[]', more='[ns.s, ns.s]'),
    'filters': "{{ ([range(100000)] * 100000) | map('list') | list | length }}",
    'macros': '{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}',
    'recursion': '{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}',
    'much text': "{{ 'ab ' * 1000000 }}",
    'words': '{{ lipsum(n=100000000) }}',
}


@pytest.fixture(scope='module')
def model():
    with NanoLLM.from_pretrained(api='fake') as opened:
        yield opened


@pytest.fixture(autouse=True)
def little_time(monkeypatch):
    """The process that is started next allows half a second."""
    renderer.close()
    code = 'from ros2_nanochat.chat.template import render_process as p; p.SECONDS = 0.5; p.main()'
    monkeypatch.setattr('ros2_nanochat.chat.template.bounded_rendering._COMMAND', ['-c', code])
    yield
    renderer.close()


def asked(model, source, text='hello'):
    history = ChatHistory(model, source, '')
    history.append('user', text=text)
    return history.embed_chat()[0]


@pytest.mark.parametrize('name', HOSTILE)
def test_a_template_that_computes_without_end_is_refused_in_one_line(model, name):
    began = time.monotonic()
    with pytest.raises(ValueError) as caught:
        asked(model, HOSTILE[name] + PLAIN)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 400
    assert time.monotonic() - began < 30
    assert len(asked(model, PLAIN)) == len('hello') + 2


@pytest.mark.parametrize('name', ['a power', 'nested loops', 'a list'])
def test_it_may_begin_with_any_conversation(model, name):
    source = "{% if 'boom' in messages[-1].content %}" + HOSTILE[name] + '{% endif %}' + PLAIN
    assert len(asked(model, source)) == len('hello') + 2
    with pytest.raises(ValueError, match='was stopped|cannot render'):
        asked(model, source, 'boom')
    assert len(asked(model, PLAIN)) == len('hello') + 2


def test_a_long_conversation_is_not_much_text_of_the_template(model):
    text = 'wörd ' * 400_000  # 2 MB
    rendered = renderer.render(PLAIN, {'messages': [{'role': 'user', 'content': text}]})
    assert rendered == f'<|im_start|>{text}<|im_end|>'


@pytest.mark.parametrize(
    'source, expected',
    [
        ('{#' + 'x' * 500_000 + "#}{{ 'ab ' * 500000 }}" + PLAIN, 'wrote more than 1 MB of its own'),
        ('x' * 20_000_000 + PLAIN, r'has \d+ characters, and at most 1048576 are read'),
        ('{#' + 'x' * 2_000_000 + '#}' + PLAIN, r'has \d+ characters, and at most 1048576 are read'),
    ],
)
def test_a_long_template_is_no_excuse_for_much_text(model, source, expected):
    with pytest.raises(ValueError, match=expected) as caught:
        asked(model, source)
    assert len(str(caught.value)) < 300
    assert len(asked(model, PLAIN)) == len('hello') + 2


def test_a_template_that_was_stopped_is_not_tried_again(model):
    for _ in range(2):
        began = time.monotonic()
        with pytest.raises(ValueError, match='5 s of processor time or 512 MB'):
            asked(model, ONE_BY_ONE + PLAIN + '{# again #}')
    assert time.monotonic() - began < 0.2


def test_a_process_that_was_killed_is_started_anew(model):
    assert len(asked(model, PLAIN)) == len('hello') + 2
    process = renderer._process
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert len(asked(model, PLAIN)) == len('hello') + 2 and renderer._process is not process


def test_several_threads_share_it(model):
    replies = []
    threads = [
        threading.Thread(target=lambda n=n: replies.append((n, len(asked(model, PLAIN, 'a' * n)) - 2)))
        for n in range(1, 9)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(replies) == [(n, n) for n in range(1, 9)]


def test_models_that_come_along_need_no_process():
    with (
        NanoLLM.from_pretrained(max_context_len=512, max_sequences=1) as embedded,
        NanoLLM.from_pretrained(api='fake') as fake,
    ):
        for model in (embedded, fake):
            for name in (None, 'chat-ml', 'llama-3', 'paligemma'):
                assert len(asked(model, name))
    assert renderer._process is None


def test_a_mistake_is_reported_with_its_line(model):
    for source in ('a\n{% if %}', 'a\n{{ x | no_such_filter }}'):
        with pytest.raises(ValueError, match='line 2'):
            ChatHistory(model, source + '{{ messages }}')


def test_the_bounds_are_those_that_the_error_names():
    assert (render_process.SECONDS, render_process.MEMORY) == (5, 512 << 20)
