"""A string stops text, whichever ids spell it; an id stops an id; the text of a special token does both."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny_gguf import write_tiny_llama

from ros2_nanochat import NanoLLM
from ros2_nanochat.backends.utf8_detokenizer import Utf8Detokenizer
from ros2_nanochat.chat.template.chat_template import ChatTemplate
from ros2_nanochat.config import GenerationConfig
from ros2_nanochat.engine.reply_text import ReplyText
from ros2_nanochat.engine.stop_strings import StopStrings

CORPUS = ['The robot drives to the kitchen and says hello, how are you today?'] * 3
PIECES = {
    'user': '<turn>user\n${MESSAGE}<end>\n',
    'bot': '<turn>bot\n${MESSAGE}<end>\n',
    'stop': ['<end>', '\n\n', 'hello'],
}


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    """As Gemma's: line breaks are entries of the vocabulary, which bytes can also spell."""
    path = tmp_path_factory.mktemp('tiny') / 'tiny.gguf'
    write_tiny_llama(path, CORPUS, control=('<end>', '<turn>'), user_defined=('\n', '\n\n', '<b>'))
    with NanoLLM.from_pretrained(str(path), max_context_len=512) as opened:
        yield opened


def say(model, ids, **options):
    """A reply of just these ids."""

    def force(context, logits):
        step = len(context) - 1
        logits[:] = -np.inf
        logits[ids[min(step, len(ids) - 1)]] = 0
        return logits

    return model.generate([1], max_new_tokens=len(ids), logits_processors=[force], **options).wait()


def entry(model, text):
    return next(token.id for token in model.info.special_tokens if token.text == text)


@pytest.mark.parametrize('stop', ['\n', '\n\n', '<b>'])
def test_a_string_stops_its_text_whichever_ids_spell_it(model, stop):
    robot = model.tokenize('robot')
    assert model.detokenize(spelled(stop)) == stop
    for ids in ([entry(model, stop)], spelled(stop)):
        reply = say(model, [*robot, *ids, *robot], stop_tokens=[stop])
        assert reply.finish_reason == 'stop' and reply.text == model.detokenize(robot), ids
    assert say(model, [*robot, *spelled(stop), *robot]).finish_reason == 'length'


def test_a_string_stops_across_and_within_entries_of_the_vocabulary(model):
    robot, line, lines = model.tokenize('robot'), entry(model, '\n'), entry(model, '\n\n')
    for ids, stop in (
        ([line, lines], '\n\n\n'),  # across two
        ([3 + 10, line], '\n\n'),  # a byte and an entry
        ([lines], '\n'),  # within a longer one
        ([line, entry(model, '<b>')], '\n<'),
    ):
        reply = say(model, [*robot, *ids, *robot], stop_tokens=[stop])
        assert reply.finish_reason == 'stop' and reply.text == model.detokenize(robot), stop
    assert say(model, [*robot, *spelled('<en'), *robot], stop_tokens=['<end>']).finish_reason == 'length'


def test_an_id_stops_that_id_only(model):
    robot = model.tokenize('robot')
    newline = entry(model, '\n')
    assert say(model, [*robot, newline], stop_tokens=[newline]).finish_reason == 'stop'
    assert say(model, [*robot, 3 + 10], stop_tokens=[newline]).finish_reason == 'length'


def test_the_text_of_a_special_token_stops_its_id_and_its_text(model):
    robot, end = model.tokenize('robot'), entry(model, '<end>')
    for ids in ([end], spelled('<end>')):
        reply = say(model, [*robot, *ids, *robot], stop_tokens=['<end>'])
        assert reply.finish_reason == 'stop' and reply.text == model.detokenize(robot)


def spelled(text):
    return [3 + byte for byte in text.encode()]  # the vocabulary begins with <unk> <s> </s>, then bytes


@pytest.mark.parametrize(
    'stop, said, text',
    [
        ('<end><turn>', ['<end>', '<turn>'], ''),
        ('<end><turn>', [*'<end>', '<turn>'], ''),
        ('<end><turn>', ['<end>', *'<turn>'], ''),
        ('<end><turn>', [*'<end><turn>'], ''),
        ('<end><turn>', ['<turn>', '<end>'], None),
        ('<end><turn>', ['<end>', '.', '<turn>'], None),
        ('<end><end><turn>', ['<end>', '<end>', '<end>', '<turn>'], ''),
        ('.<end>', ['x', '.', '<end>'], 'x'),
        ('.<end>', ['x', '.', '.', '<end>'], 'x.'),
        ('.<end>', ['x', '<end>', '.'], None),
        ('<end>\n', ['x', '<end>', '\n'], 'x'),
        ('<end>\n', ['x', *'<end>\n'], 'x'),
        ('<turn>user', ['x', '<turn>', *'user'], 'x'),
        ('<turn>user', ['x', '<turn>', *'used', '<turn>', *'user'], 'xused'),
        ('.<turn>bot.', ['.', '<turn>', *'bot', '.'], ''),
        ('nd><turn>', [*'<end>', '<turn>'], '<e'),
        ('nd><turn>', ['<end>', '<turn>'], None),  # the id is no part of its text
        ('<turn><e', ['<turn>', *'<e'], ''),
        ('<turn><e', ['<turn>', '<end>'], None),
        ('xy<end>', ['x', '<turn>', 'y', '<end>'], ''),  # a special token that gives no text is not seen
        ('</s>.', ['x', '</s>'], 'x'),  # the model's own end
        ('.</s>', ['x', '.', '</s>'], 'x'),
        ('.</s>', ['x', '.', '.'], None),
    ],
)
def test_a_special_token_within_a_stop_string_is_its_id_or_its_text(model, stop, said, text):
    ids = [
        i
        for part in said
        for i in ([entry(model, part)] if part in ('<end>', '<turn>', '</s>') else spelled(part))
    ]
    robot = model.tokenize('robot')
    for stops in ([stop], ['never', stop, 'no<turn>ne']):
        reply = say(model, [*robot, *ids, *robot], stop_tokens=stops)
        if text is None:
            assert reply.finish_reason == 'length' and reply.text == model.detokenize([*robot, *ids, *robot])
        else:
            assert (reply.finish_reason, reply.text) == ('stop', model.detokenize(robot) + text)
            assert model.detokenize(reply.tokens) == reply.text, 'the conversation keeps the ids of the text'


CONTROL = {1000: '<a>', 1001: 'bb', 1002: '<a'}
EVENTS = st.lists(st.sampled_from([*'ab<>c', *CONTROL]), max_size=12)
MIXED = st.lists(
    st.lists(st.sampled_from([*'ab<>c', *CONTROL.values()]), min_size=1, max_size=4).map(''.join),
    min_size=1,
    max_size=4,
)


def ways(events, string):
    """How many letters of text the ends of these events that are a string have, the last event included."""

    def before(events, string):
        if not string:
            return {0}
        if not events:
            return set()
        *rest, last = events
        if isinstance(last, str):
            return {n + 1 for n in before(rest, string[:-1])} if string[-1] == last else set()
        found = before(rest, string)  # it gives no text
        text = CONTROL[last]
        return found | (before(rest, string[: -len(text)]) if string.endswith(text) else set())

    return before(events, string) - (before(events[:-1], string) if isinstance(events[-1], int) else set())


@settings(max_examples=400, deadline=None, database=None)
@given(EVENTS, MIXED)
@example([*'ab', 1000], ['ab<a>', 'b<a>'])
@example(['a', 1000, 1000, 'b'], ['a<a>b'])
def test_the_text_ends_before_the_stop_string_that_is_complete_first(events, strings):
    special = {
        string: tokens
        for string in strings
        if (tokens := {i: text for i, text in CONTROL.items() if text in string})
    }
    letters = {letter: n for n, letter in enumerate('ab<>c')}
    stream = ReplyText(
        Utf8Detokenizer(lambda i: b'ab<>c'[i : i + 1] if i < 1000 else b''), StopStrings(strings, special)
    )
    text, deltas = '', []
    for n, event in enumerate(events):
        deltas += stream.add(letters.get(event, event))
        found = {length for string in strings for length in ways(events[: n + 1], string)}
        text += event if isinstance(event, str) else ''
        assert stream.stopped == bool(found)
        if found:
            text = text[: len(text) - max(found)]
            break
    deltas += stream.flush()
    assert ''.join([delta.text for delta in deltas]) == text
    count, exact = stream.given(len(events))
    kept = ''.join([event for event in events[:count] if isinstance(event, str)])
    assert kept == text if exact else text.startswith(kept)


def lines_run(function, *args):
    """How many lines of Python a call runs."""
    count = 0

    def trace(frame, event, _):
        nonlocal count
        count += event == 'line'
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function(*args)
    finally:
        sys.settrace(before)
    return count


def test_the_work_for_a_letter_does_not_grow_with_the_beginnings_that_have_come():
    strings = ['a' * 900 + '<a>' + letter for letter in 'abc']
    stops = StopStrings(strings, dict.fromkeys(strings, {1000: '<a>'}))
    stops.split('aa')
    few = lines_run(stops.split, 'aaa')
    assert stops.split('a' * 1200) == ('a' * 300, False, '')
    assert lines_run(stops.split, 'a' * 901) < 2 * few
    assert stops.take(1000) == ('', False) and stops.pending == 'a' * 900
    assert stops.split('a' * 900 + 'b.') == ('', True, '.')


def test_an_answer_in_a_form_does_not_stop_within_it(model):
    end = entry(model, '<end>')
    reply = say(model, [*spelled('yes'), end], stop_tokens=['s<end>'], response_format='yes | no')
    assert reply.text == 'yes' and reply.valid


def test_a_template_stops_at_text_where_its_token_gives_text(model):
    template = ChatTemplate(model, PIECES)
    assert template.stop[0] == entry(model, '<end>') and template.stop[1:3] == ['\n\n', 'hello']


@pytest.mark.parametrize(
    'stops', [['x' * 5_000_000], ['x' * 1001], [f'stop {i}' for i in range(1001)], ['y' * 900] * 30]
)
def test_stop_strings_are_bounded_because_the_engine_looks_for_them_after_each_token(stops):
    with pytest.raises(ValueError, match='stop') as raised:
        GenerationConfig(stop_tokens=stops)
    assert len(str(raised.value)) < 500 and '\n' not in str(raised.value)
