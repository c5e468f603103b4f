"""A string stops text, whichever ids spell it; an id stops an id; the text of a special token does both."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_gguf import write_tiny_llama

from ros2_nanochat import NanoLLM
from ros2_nanochat.chat.template.chat_template import ChatTemplate
from ros2_nanochat.config import GenerationConfig

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
    spelled = [3 + byte for byte in stop.encode()]  # the vocabulary begins with <unk> <s> </s>, then bytes
    assert model.detokenize(spelled) == stop
    for ids in ([entry(model, stop)], spelled):
        reply = say(model, [*robot, *ids, *robot], stop_tokens=[stop])
        assert reply.finish_reason == 'stop' and reply.text == model.detokenize(robot), ids
    assert say(model, [*robot, *spelled, *robot]).finish_reason == 'length'


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
    half = [3 + byte for byte in b'<en']
    assert say(model, [*robot, *half, *robot], stop_tokens=['<end>']).finish_reason == 'length'


def test_an_id_stops_that_id_only(model):
    robot = model.tokenize('robot')
    newline = entry(model, '\n')
    assert say(model, [*robot, newline], stop_tokens=[newline]).finish_reason == 'stop'
    assert say(model, [*robot, 3 + 10], stop_tokens=[newline]).finish_reason == 'length'


def test_the_text_of_a_special_token_stops_its_id_and_its_text(model):
    robot, end = model.tokenize('robot'), entry(model, '<end>')
    spelled = [3 + byte for byte in b'<end>']
    for ids in ([end], spelled):
        reply = say(model, [*robot, *ids, *robot], stop_tokens=['<end>'])
        assert reply.finish_reason == 'stop' and reply.text == model.detokenize(robot)


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
