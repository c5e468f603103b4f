"""From ids to text: what is given is certain, joined it is the decode of all, and a stop string is cut off
exactly wherever the tokens' borders lie.
"""

from __future__ import annotations

import codecs
import dataclasses
import re
from types import SimpleNamespace

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from ros2_nanochat.backends.utf8_detokenizer import Utf8Detokenizer
from ros2_nanochat.engine.plain_reply_text import PlainReplyText, reply_text
from ros2_nanochat.engine.reply_text import ReplyText, TextDelta
from ros2_nanochat.engine.stop_strings import StopStrings
from ros2_nanochat.model_info import ModelInfo, SpecialToken
from ros2_nanochat.reasoning import ReasoningMarks, find_reasoning_marks, reasoning_is_open

THINK = ReasoningMarks('<think>', '</think>')
THINK_IDS = ReasoningMarks('<think>', '</think>', 1000, 1001)
TEXT = st.text(st.sampled_from('ab \n<>é東🤖👩‍🚀́עא') | st.characters(codec='utf-8'), max_size=40)
MANY = settings(max_examples=300, deadline=None, database=None)


class Vocabulary:
    """Tokens are the byte strings that a test cuts a text into; ids from 1000 on are special and give no
    text.
    """

    def __init__(self, tokens: list[bytes]):
        self.tokens = tokens
        self.ids = list(range(len(tokens)))

    def detokenizer(self) -> Utf8Detokenizer:
        return Utf8Detokenizer(lambda token_id: self.tokens[token_id] if token_id < 1000 else b'')

    def decode(self, ids) -> str:
        return b''.join(self.tokens[i] for i in ids if i < 1000).decode('utf-8', 'replace')


def cut(data: bytes, borders: list[int]) -> list[bytes]:
    """Bytes in pieces, none empty."""
    places = sorted({0, len(data), *(border % (len(data) + 1) for border in borders)})
    return [data[a:b] for a, b in zip(places, places[1:])]


BORDERS = st.lists(st.integers(0, 1000), max_size=60)


def run(vocabulary: Vocabulary, ids=None, **options) -> tuple[list[TextDelta], ReplyText, int]:
    """All pieces of a reply, and how many of its ids were taken."""
    stream = ReplyText(vocabulary.detokenizer(), **options)
    pieces, taken = [], 0
    for token_id in vocabulary.ids if ids is None else ids:
        pieces += stream.add(token_id)
        taken += 1
        if stream.stopped:
            break
    return pieces + stream.flush(), stream, taken


def answer(pieces: list[TextDelta]) -> str:
    return ''.join(piece.text for piece in pieces if not piece.reasoning)


def reasoning(pieces: list[TextDelta]) -> str:
    return ''.join(piece.text for piece in pieces if piece.reasoning)


# --- joined pieces ---


@MANY
@given(TEXT, BORDERS)
def test_joined_pieces_are_the_text_and_none_holds_half_a_character(text, borders):
    vocabulary = Vocabulary(cut(text.encode(), borders))
    pieces, stream, _ = run(vocabulary)
    assert answer(pieces) == text == stream.answer and all(piece.text for piece in pieces)
    assert '\ufffd' not in answer(pieces) or '\ufffd' in text


@MANY
@given(st.binary(max_size=40), BORDERS)
@example(b'\xe2\x82', [1])
@example(b'a\xf0\x9f\xa4b\xff', [1, 2, 3, 4, 5])
def test_broken_bytes_are_replaced_as_python_decodes_them_and_half_a_character_at_the_end_is_none(
    data, borders
):
    vocabulary = Vocabulary(cut(data, borders))
    pieces, _, _ = run(vocabulary)
    assert answer(pieces) == whole_characters(data)


@MANY
@given(TEXT, BORDERS, st.data())
def test_a_reply_that_ends_anywhere_ends_with_a_whole_character_and_keeps_the_ids_of_whole_ones(
    text, borders, data
):
    vocabulary = Vocabulary(cut(text.encode(), borders))
    ids = vocabulary.ids[: data.draw(st.integers(0, len(vocabulary.ids)))]
    pieces, stream, taken = run(vocabulary, ids)
    spelled = b''.join(vocabulary.tokens[: len(ids)])
    assert answer(pieces) == spelled.decode('utf-8', 'ignore') and text.startswith(answer(pieces))
    for piece in pieces:  # where a stop() may leave the conversation
        assert text.startswith(b''.join(vocabulary.tokens[: piece.num_tokens]).decode())
    count, exact = stream.given(taken)
    kept = b''.join(vocabulary.tokens[:count]).decode()  # of whole characters
    assert exact == (kept == answer(pieces)) and answer(pieces).startswith(kept)
    more = b''.join(vocabulary.tokens[: count + 1])
    assert count == len(ids) or not exact or more.decode('utf-8', 'ignore') == kept


@MANY
@given(st.binary(max_size=40) | TEXT.map(str.encode), BORDERS, st.data())
@example(b'a\xf0\x9f\xa4\x96b\xff\xe2\x82', [1, 2, 3, 4, 5, 6, 7], None)
def test_a_reply_with_nothing_to_look_for_gives_the_same_text_with_less_code(data, borders, draw):
    vocabulary = Vocabulary(cut(data, borders))
    count = len(vocabulary.ids) if draw is None else draw.draw(st.integers(0, len(vocabulary.ids)))
    quick, full = PlainReplyText(vocabulary.detokenizer()), ReplyText(vocabulary.detokenizer())
    mixed = None if draw is None else draw.draw(st.integers(0, 40))
    for token_id in vocabulary.ids[:count]:
        if token_id == mixed:  # as a server's reply does
            quick.mixed = full.mixed = True
        assert quick.add(token_id) == full.add(token_id)
        assert quick.detokenizer.pending == full.detokenizer.pending and quick.answer == full.answer
    assert quick.flush() == full.flush() and quick.given(count) == full.given(count)
    assert (quick.answer, quick.num_partial, quick.mixed) == (full.answer, full.num_partial, full.mixed)


@pytest.mark.parametrize(
    'stops, marks, calls, plain',
    [
        ([], None, None, True),
        (['stop'], None, None, False),
        (['<|end|>'], None, None, False),
        ([], THINK_IDS, None, False),
        ([], None, SimpleNamespace(), False),
    ],
)
def test_only_a_reply_with_nothing_to_look_for_takes_the_short_way(stops, marks, calls, plain):
    special = {stop: {1000: stop} for stop in stops if stop.startswith('<')}
    detokenizer = Vocabulary([b'a']).detokenizer()
    text = reply_text(detokenizer, StopStrings(stops, special), marks, False, None, calls)
    assert isinstance(text, PlainReplyText) == plain


def test_a_mark_that_cuts_a_character_leaves_none_of_it():
    vocabulary = Vocabulary([b'a', b'\xf0\x9f', b'b'])
    pieces, stream, taken = run(vocabulary, [1000, 0, 1, 1001, 2], marks=THINK_IDS)
    assert (reasoning(pieces), answer(pieces)) == ('a', 'b') and not stream.given(taken)[1]
    pieces, stream, taken = run(vocabulary, [1, 1000, 0, 1001, 2], marks=THINK_IDS)
    assert (reasoning(pieces), answer(pieces)) == ('a', 'b') and not stream.given(taken)[1]


@MANY
@given(st.binary(max_size=30) | TEXT.map(str.encode), BORDERS, st.lists(TEXT.filter(bool), max_size=3))
def test_the_ids_reported_with_a_piece_spell_exactly_what_was_given_where_they_say_so(data, borders, stops):
    vocabulary = Vocabulary(cut(data, borders))
    pieces, stream, taken = run(vocabulary, stop_strings=stops)
    given_text = ''
    last = 0
    for piece in pieces:
        given_text += piece.text
        spelled = vocabulary.decode(range(piece.num_tokens))
        assert last <= piece.num_tokens <= taken
        last = piece.num_tokens
        if piece.exact:
            assert spelled == given_text
        else:
            assert given_text.startswith(spelled.rstrip('\ufffd'))
    count, exact = stream.given(taken)
    assert count <= taken and (not exact or vocabulary.decode(range(count)) == given_text)


def test_a_token_with_a_word_and_half_a_character_is_not_said_to_spell_the_word():
    vocabulary = Vocabulary([b'ok \xf0\x9f', b'\xa4\x96'])
    stream = ReplyText(vocabulary.detokenizer())
    assert stream.add(0) == [TextDelta('ok ', 0, exact=False)]
    assert stream.add(1) == [TextDelta('🤖', 2)]


# --- stop strings ---


def expected_cut(text: str, stops: list[str]) -> str:
    """Letter by letter: the text before the first stop string that is complete (the longest of those that end
    there).
    """
    for end in range(len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))]
    return text


LETTERS = st.text('abc', min_size=0, max_size=30)
STOPS = st.lists(st.text('abc', min_size=1, max_size=5), min_size=1, max_size=4)


@MANY
@given(LETTERS, BORDERS, STOPS)
@example('xabcde', [], ['bcd', 'abcde'])
@example('aab', [1, 2], ['ab', 'aab'])
@example('abab', [2], ['abb', 'bab'])
def test_the_text_ends_where_the_first_complete_stop_string_begins_wherever_tokens_are_cut(
    text, borders, stops
):
    vocabulary = Vocabulary(cut(text.encode(), borders))
    pieces, stream, taken = run(vocabulary, stop_strings=stops)
    expected = expected_cut(text, stops)
    assert answer(pieces) == expected
    assert stream.stopped == any(stop in text for stop in stops)
    if stream.stopped:
        complete = min(text.find(stop) + len(stop) for stop in stops if stop in text)
        assert len(vocabulary.decode(range(taken - 1))) < complete, (
            'the model is stopped by the token that completes it'
        )


@MANY
@given(LETTERS, BORDERS, STOPS)
def test_only_what_may_begin_a_stop_string_is_held_back(text, borders, stops):
    vocabulary = Vocabulary(cut(text.encode(), borders))
    stream = ReplyText(vocabulary.detokenizer(), stops)
    seen = given_text = ''
    for token_id in vocabulary.ids:
        seen += vocabulary.decode([token_id])
        given_text += ''.join(piece.text for piece in stream.add(token_id))
        if stream.stopped:
            break
        held = seen[len(given_text) :]
        assert seen == given_text + held
        assert held == '' or any(stop.startswith(held) for stop in stops)


def test_a_stop_string_at_the_very_start_leaves_nothing():
    pieces, stream, taken = run(Vocabulary([b'\n', b'\nUser']), stop_strings=['\n\n'])
    assert pieces == [] and stream.given(taken) == (0, True)


def test_a_stop_string_of_many_characters_of_many_bytes_is_found():
    data = '東京は<終わり>日本'.encode()
    for size in range(1, 8):
        vocabulary = Vocabulary([data[i : i + size] for i in range(0, len(data), size)])
        assert answer(run(vocabulary, stop_strings=['<終わり>'])[0]) == '東京は'


# --- reasoning ---


@MANY
@given(TEXT, TEXT, BORDERS)
def test_reasoning_between_spelled_marks_is_told_from_the_answer(thought, said, borders):
    thought = thought.replace('</think>', '')
    assume(not said.lstrip().startswith('<'))
    pieces, _, _ = run(Vocabulary(cut(f'<think>{thought}</think>\n\n{said}'.encode(), borders)), marks=THINK)
    assert (reasoning(pieces), answer(pieces)) == (thought, said.lstrip())


@MANY
@given(TEXT, TEXT, BORDERS, BORDERS, st.booleans())
def test_reasoning_between_marks_that_are_ids_is_told_from_the_answer(thought, said, borders, more, opened):
    a, b = cut(thought.encode(), borders), cut(said.encode(), more)
    vocabulary = Vocabulary(a + b)
    ids = ([] if opened else [1000]) + list(range(len(a))) + [1001] + list(range(len(a), len(a) + len(b)))
    pieces, stream, _ = run(vocabulary, ids, marks=THINK_IDS, reasoning=opened)
    assert reasoning(pieces) == thought
    assert answer(pieces) == said.lstrip() or said.lstrip().startswith('<')
    assert stream.num_reasoning == len(a) + 1 + (not opened)


@MANY
@given(TEXT, BORDERS, st.booleans())
def test_reasoning_that_is_never_closed_is_all_reasoning(thought, borders, by_id):
    thought = thought.replace('</think>', '')
    a = cut(thought.encode(), borders)
    vocabulary = Vocabulary(a if by_id else [b'<thi', b'nk>', *a])
    ids = [1000, *range(len(a))] if by_id else None
    pieces, stream, taken = run(vocabulary, ids, marks=THINK_IDS if by_id else THINK)
    assert (reasoning(pieces), answer(pieces)) == (thought, '')
    assert stream.given(taken) == (taken, True) and stream.num_reasoning == 0


def test_a_prompt_that_opened_the_reasoning_needs_no_opening_mark():
    pieces, _, _ = run(Vocabulary([b'hm', b'm</th', b'ink>', b' \n', b' Yes']), marks=THINK, reasoning=True)
    assert (reasoning(pieces), answer(pieces)) == ('hmm', 'Yes')


def test_a_model_that_does_not_think_answers_at_once():
    pieces, stream, taken = run(Vocabulary([b'Yes', b' <b>']), marks=THINK)
    assert (reasoning(pieces), answer(pieces), stream.num_reasoning) == ('', 'Yes <b>', 0)


@pytest.mark.parametrize('marks', [THINK, THINK_IDS])
@pytest.mark.parametrize('size', [1, 2, 3, 5, 100])
def test_an_answer_about_the_marks_is_an_answer(marks, size):
    data = b'Put it between <think> and </think>, please.'
    pieces, _, _ = run(Vocabulary([data[i : i + size] for i in range(0, len(data), size)]), marks=marks)
    assert answer(pieces) == data.decode() and not reasoning(pieces)


def test_a_stop_string_counts_in_the_answer_alone():
    vocabulary = Vocabulary([b'<think>', b'END? no', b'</think>', b'Yes', b'E', b'ND', b'more'])
    pieces, stream, taken = run(vocabulary, marks=THINK, stop_strings=['END'])
    assert (reasoning(pieces), answer(pieces), stream.stopped, taken) == ('END? no', 'Yes', True, 6)


def test_what_was_held_back_of_the_answer_stays_in_it_when_reasoning_follows():
    pieces, stream, taken = run(
        Vocabulary([b'A', b'E', b'N', b'thought']), [0, 1, 2, 1000, 3], marks=THINK_IDS, stop_strings=['END']
    )
    assert (answer(pieces), reasoning(pieces)) == ('AEN', 'thought')
    assert not stream.given(taken)[1], 'ids of reasoning lie between those of the answer'


THOUGHT = ReasoningMarks('<|channel>', '<channel|>', 1000, 1001, label='thought\n')


@MANY
@given(TEXT, BORDERS)
def test_the_label_of_reasoning_is_no_reasoning(thought, borders):
    """As in Gemma 4."""
    a = cut(f'thought\n{thought}'.encode(), borders)
    pieces, stream, _ = run(Vocabulary([*a, b'Yes']), [1000, *range(len(a)), 1001, len(a)], marks=THOUGHT)
    assert (reasoning(pieces), answer(pieces), stream.num_reasoning) == (thought, 'Yes', len(a) + 2)


def test_reasoning_without_its_label_is_whole():
    pieces, _, _ = run(Vocabulary([b'tho', b'ugh it', b'Yes']), [1000, 0, 1, 1001, 2], marks=THOUGHT)
    assert (reasoning(pieces), answer(pieces)) == ('though it', 'Yes')


HARMONY = ReasoningMarks('', '', label='analysis', header_ids=(1000, 1001, 1002), message_id=1003)
START, CHANNEL, END, MESSAGE = 1000, 1001, 1002, 1003


def test_of_several_messages_those_of_the_analysis_are_reasoning():
    """As in gpt-oss."""
    vocabulary = Vocabulary([b'analysis', b'assistant', b'final', b'hm', b'Yes', b' final'])
    to_final = [CHANNEL, 2, MESSAGE]
    thought = [CHANNEL, 0, MESSAGE, 3, 3, END, START, 1]
    for ids, expected in (
        ([*thought, *to_final, 4, 5], ('hmhm', 'Yes final', 11)),
        ([*to_final, 4, 5], ('', 'Yes final', 3)),
        ([*thought, *thought[:5]], ('hmhmhmhm', '', 0)),
        ([4, 5], ('', 'Yes final', 0)),
    ):
        pieces, stream, taken = run(vocabulary, ids, marks=HARMONY)
        assert (reasoning(pieces), answer(pieces), stream.num_reasoning) == expected
        assert stream.given(taken) == (taken, True)


def info(specials=(), template=None) -> ModelInfo:
    return ModelInfo(
        name='m',
        api='fake',
        architecture='a',
        path='',
        context_length=1,
        train_context_length=1,
        vocab_size=2000,
        embedding_size=1,
        eos_token_ids=frozenset(),
        special_tokens=tuple(SpecialToken(i, text) for i, text in specials),
        chat_template=template,
    )


@pytest.mark.parametrize(
    'given_info, expected',
    [
        (info(), None),
        (info([(1000, '<think>'), (1001, '</think>')]), THINK_IDS),
        (info(template="{% if '</think>' in content %}"), THINK),
        (info([(5, '<think>')]), None),
        (info([(5, '[THINK]'), (6, '[/THINK]')]), ReasoningMarks('[THINK]', '[/THINK]', 5, 6)),
        (info([(1000, '<think>'), (1001, '</think>')], 'no mark'), THINK_IDS),
        (info([(1000, '<|channel>'), (1001, '<channel|>')]), THOUGHT),
        (
            info([(1000, '<|start|>'), (1001, '<|channel|>'), (1002, '<|end|>'), (1003, '<|message|>')]),
            dataclasses.replace(HARMONY, start='<|channel|>analysis<|message|>', end='<|end|>'),
        ),
    ],
)
def test_marks_are_those_the_vocabulary_or_the_template_declares(given_info, expected):
    assert find_reasoning_marks(given_info) == expected


@pytest.mark.parametrize(
    'ids, marks, expected',
    [
        ([5, 1000], THINK_IDS, True),
        ([5, 1000, 7], THINK_IDS, True),
        ([1000, 7, 1001, 8], THINK_IDS, False),
        ([5], THINK_IDS, False),
        ([1000, 1001, 1000], THINK_IDS, True),
        ([1000, *range(20)], THINK_IDS, False),
        (list(b'x<think>\n'), THINK, True),
        (list(b'<think>x'), THINK, False),
        (list(b'<think></think>\n'), THINK, False),
    ],
)
def test_a_prompt_is_seen_to_open_the_reasoning(ids, marks, expected):
    assert reasoning_is_open(ids, marks, lambda some: bytes(i for i in some if i < 256).decode()) == expected


# --- vocabularies of models ---


@pytest.fixture(scope='module')
def backends(model):
    from ros2_nanochat.backends.fake import FakeBackend
    from ros2_nanochat.config import ModelConfig

    fake = FakeBackend('', ModelConfig(api='fake', max_context_len=64, kv_tokens=64))
    fake.open()
    return {'gguf': model.backend, 'fake': fake}


@pytest.mark.parametrize('kind', ['gguf', 'fake'])
@settings(max_examples=100, deadline=None, database=None)
@given(text=st.text('ab \n<>é東🤖👩‍🚀́עא', max_size=40), seed=st.randoms(use_true_random=False))
def test_pieces_of_a_models_own_tokens_joined_are_the_text_and_its_decode(backends, kind, text, seed):
    """Oracle for gguf: llama.cpp's own detokenizing of all ids."""
    backend = backends[kind]
    ids = backend.tokenize(text)
    stream = ReplyText(backend.detokenizer())
    pieces = [piece for token_id in ids for piece in stream.add(token_id)] + stream.flush()
    assert answer(pieces) == text == whole_decode(backend, ids)
    random_ids = [seed.randrange(backend.info.vocab_size) for _ in range(20)]
    stream = ReplyText(backend.detokenizer(), ['zz', ' the '])
    pieces = []
    for token_id in random_ids:
        pieces += stream.add(token_id)
        if stream.stopped:
            break
    pieces += stream.flush()
    assert answer(pieces) == re.split('zz| the ', whole_decode(backend, random_ids), maxsplit=1)[0]
    for n in range(len(ids) + 1):  # ends anywhere
        stream = ReplyText(backend.detokenizer())
        pieces = [piece for token_id in ids[:n] for piece in stream.add(token_id)] + stream.flush()
        assert answer(pieces) == whole_decode(backend, ids[:n])
        count, exact = stream.given(n)
        assert not exact or whole_decode(backend, ids[:count]) == answer(pieces)


def whole_characters(data: bytes) -> str:
    """Decoded, without half a character at the end."""
    return codecs.getincrementaldecoder('utf-8')('replace').decode(data)


def whole_decode(backend, ids: list[int]) -> str:
    if backend.info.api == 'fake':
        return whole_characters(bytes(i for i in ids if i < 256))
    import ctypes

    tokens = (ctypes.c_int32 * len(ids))(*ids)
    buffer = ctypes.create_string_buffer(100 * len(ids))
    size = backend._api.llama_detokenize(
        backend._text._vocab, tokens, len(ids), buffer, len(buffer), False, False
    )
    return whole_characters(buffer.raw[:size])
