"""How models write calls, learned from their templates: prompts, grammars, reading, streaming."""

from __future__ import annotations

import json
import random
from types import SimpleNamespace

import numpy as np
import pytest
from random_forms import random_schema, random_value
from tool_templates import DESCRIBING, ENDS, MARKS, ONE_CALL, PLAIN, WRITING

from ros2_nanochat.answer.call_form import CallForm
from ros2_nanochat.answer.call_format import CallFormat, Slot
from ros2_nanochat.answer.keyed_arguments import KeyedArguments
from ros2_nanochat.answer.tool import Tool
from ros2_nanochat.answer.vocabulary import AnswerVocabulary
from ros2_nanochat.answer.written_call import WrittenCall
from ros2_nanochat.chat.message import ChatMessage
from ros2_nanochat.chat.template.chat_template import ChatTemplate
from ros2_nanochat.chat.template.plain_tools import PLAIN_CALLS
from ros2_nanochat.engine.call_text import CallText
from ros2_nanochat.engine.calling import CallingForm
from ros2_nanochat.engine.reply_text import ReplyText
from ros2_nanochat.model_info import ModelInfo, SpecialToken
from ros2_nanochat.reasoning import ReasoningMarks

SPECIAL = {text: n for n, text in enumerate(['<s>', '</s>', *MARKS])}
FIRST = len(SPECIAL)  # ids of bytes begin here
KEYED = CallFormat(
    '<call>', ('<call>', Slot.NAME, '(', Slot.ARGUMENTS), ')</call>', KeyedArguments('', '=', ', ', '')
)


def tokenize(text, special=False, preceding=None):
    return [FIRST + byte for byte in text.encode()]


def with_marks(text) -> list[int]:
    """The ids of a text in which marks are special tokens."""
    ids, at = [], 0
    while at < len(text):
        mark = max((m for m in SPECIAL if text.startswith(m, at)), key=len, default='')
        ids += [SPECIAL[mark]] if mark else tokenize(text[at])
        at += len(mark) or 1
    return ids


def text_of(ids) -> str:
    marks = {n: text.encode() for text, n in SPECIAL.items()}
    return b''.join(marks[i] if i < FIRST else bytes([i - FIRST]) for i in ids).decode()


def template(source) -> ChatTemplate:
    info = ModelInfo(
        name='small',
        api='none',
        architecture='none',
        path='/small',
        context_length=100_000,
        train_context_length=100_000,
        vocab_size=FIRST + 256,
        embedding_size=1,
        eos_token_ids=frozenset(SPECIAL[text] for text in ('</s>', *ENDS)),
        bos_token_id=0,
        named_tokens={'bos_token': '<s>', 'eos_token': '</s>'},
        special_tokens=tuple(SpecialToken(n, text) for text, n in SPECIAL.items()),
        chat_template=source,
    )
    model = SimpleNamespace(
        info=info,
        has_vision=False,
        vision=None,
        has_embed=False,
        tokenize=tokenize,
        detokenize=lambda ids: '',
    )
    return ChatTemplate(model)


@pytest.fixture(scope='module')
def templates():
    return {name: template(source) for name, source in {**WRITING, **DESCRIBING, 'plain': PLAIN}.items()}


SET_LAMP = Tool(
    'set_lamp',
    'Switch the lamp',
    {
        'type': 'object',
        'properties': {'on': {'type': 'boolean'}, 'colour': {'enum': ['red', 'blue']}},
        'required': ['on'],
    },
)
DRIVE = Tool(
    'drive',
    'Drive',
    {
        'type': 'object',
        'properties': {
            'speed': {'type': 'number', 'minimum': 0, 'maximum': 0.3},
            'place': {'type': 'string', 'maxLength': 20},
        },
        'required': ['speed', 'place'],
    },
)
BATTERY = Tool('battery', 'How full the battery is')
TOOLS = [SET_LAMP, DRIVE, BATTERY]
SCHEMAS = {tool.name: tool.schema for tool in TOOLS}
CALLS = (
    WrittenCall('set_lamp', {'on': True, 'colour': 'red'}, 'abcdefgh1'),
    WrittenCall('drive', {'speed': 0.25, 'place': 'the "door", ü'}, 'abcdefgh2'),
    WrittenCall('battery', {}, 'abcdefgh3'),
)


def conversation(calls) -> tuple[list[ChatMessage], list[dict]]:
    """A conversation with calls, as ours and as transformers takes it."""
    ours = [ChatMessage('user', 'Hello'), ChatMessage('bot', text='', calls=calls)]
    theirs = [
        {'role': 'user', 'content': 'Hello'},
        {'role': 'assistant', 'content': '', 'tool_calls': [call.as_openai() for call in calls]},
    ]
    for call in calls:
        ours.append(ChatMessage('tool', text=f'answer of {call.name}', call_id=call.id, name=call.name))
        answer = {'role': 'tool', 'content': f'answer of {call.name}'}
        theirs.append({**answer, 'name': call.name, 'tool_call_id': call.id})
    return (
        [*ours, ChatMessage('bot', 'Done.'), ChatMessage('user', 'Thanks')],
        [*theirs, {'role': 'assistant', 'content': 'Done.'}, {'role': 'user', 'content': 'Thanks'}],
    )


def some_calls(name):
    return [[call] for call in CALLS] + ([] if name in ONE_CALL else [list(CALLS), list(CALLS[1:])])


@pytest.mark.parametrize('name', WRITING)
def test_prompts_are_those_of_transformers(templates, name):
    render = pytest.importorskip('transformers.utils.chat_template_utils').render_jinja_template
    known = templates[name]
    known.tools = TOOLS
    offered = [tool.as_openai() for tool in TOOLS]
    for calls in some_calls(name):
        ours, theirs = conversation(calls)
        for stop in (1, 2 + len(calls), len(ours)):
            want = render(
                [theirs[:stop]],
                tools=offered,
                chat_template=WRITING[name],
                add_generation_prompt=True,
                bos_token='<s>',
                eos_token='</s>',
            )[0][0]
            assert known.render(ours[:stop], True) == want
            assert text_of(known.prompt(ours[:stop], True).token_ids) == want


@pytest.mark.parametrize('name', [*WRITING, *DESCRIBING, 'plain'])
def test_a_written_call_is_read_back(templates, name):
    form = templates[name].call_format
    for calls in some_calls(name):
        read = form.read(form.write(calls), SCHEMAS)
        assert [(call.name, call.arguments) for call in read] == [(c.name, c.arguments) for c in calls]
        if form.has_ids:
            assert [call.id for call in read] == [call.id for call in calls]


@pytest.mark.parametrize('name', [*WRITING, *DESCRIBING])
def test_the_calls_of_a_family_are_learned(templates, name):
    style = templates[name]._tool_style
    assert style.writes_calls == (name in WRITING)
    assert style.variable == ('xml_tools' if name == 'smollm-3' else 'tools')
    assert (style.format.between is None) == (name in ONE_CALL)


def vocabulary() -> AnswerVocabulary:
    token_bytes = [b''] * FIRST + [bytes([n]) for n in range(256)]
    return AnswerVocabulary(token_bytes, range(FIRST), [SPECIAL['</s>']], with_marks)


@pytest.fixture(scope='module')
def small():
    return vocabulary()


def matcher(small, form: CallForm):
    return small.matcher(form.grammar(SPECIAL), (), form.special_ids(SPECIAL))


@pytest.mark.parametrize('name', [*WRITING, *DESCRIBING, 'plain'])
def test_only_calls_that_are_allowed_can_be_written(templates, small, name):
    form = CallForm.of(templates[name].call_format, TOOLS)
    match = matcher(small, form).matches
    write = form.format.write
    for calls in some_calls(name):
        assert match(write(calls))
        if not form.format.only_at_start:
            assert match('Certainly.\n' + write(calls))
    assert match('') and match('Just talk: <tool, [x] {1} to=me')
    wrong = [
        WrittenCall('set_lamps', {'on': True}, 'abcdefgh1'),
        WrittenCall('set_lamp', {}, 'abcdefgh1'),
        WrittenCall('set_lamp', {'on': True, 'colour': 'green'}, 'abcdefgh1'),
        WrittenCall('set_lamp', {'on': True, 'more': 1}, 'abcdefgh1'),
        WrittenCall('drive', {'speed': 0.31, 'place': 'x'}, 'abcdefgh1'),
        WrittenCall('drive', {'speed': -1, 'place': 'x'}, 'abcdefgh1'),
        WrittenCall('drive', {'speed': 0.1, 'place': 'x' * 21}, 'abcdefgh1'),
        WrittenCall('battery', {'x': 1}, 'abcdefgh1'),
    ]
    for call in wrong:
        assert not match(write([call])), call
    assert not match(write([CALLS[0]])[:-2] if form.format.end else write([CALLS[0]])[:-1])


@pytest.mark.parametrize('name', [*WRITING, 'plain'])
def test_a_choice_of_tool_holds(templates, small, name):
    call_format = templates[name].call_format
    required = matcher(small, CallForm.of(call_format, TOOLS, 'required')).matches
    none = matcher(small, CallForm.of(call_format, TOOLS, 'none')).matches
    drive = matcher(small, CallForm.of(call_format, TOOLS, 'drive')).matches
    lamp, driving = (call_format.write([call]) for call in CALLS[:2])
    assert required(lamp) and required(driving) and not required('No.') and not required('')
    assert none('No.') and not none(lamp)
    assert drive(driving) and not drive(lamp) and not drive('No.')
    with pytest.raises(ValueError, match="tool_choice='fly'.*set_lamp"):
        CallForm.of(call_format, TOOLS, 'fly')


def plain_schema(rng):
    """A schema whose values are written in one way, whatever they are."""
    kinds = ['string', 'integer', 'number', 'boolean']
    names = rng.sample(['x', 'y', 'open', 'speed', 'name_of_it'], rng.randint(0, 4))
    return {
        'type': 'object',
        'properties': {
            name: rng.choice(
                [
                    {'type': rng.choice(kinds)},
                    {'enum': ['a', 'b b']},
                    {'type': 'array', 'items': {'type': 'integer'}},
                ]
            )
            for name in names
        },
        'required': [name for name in names if rng.random() < 0.6],
    }


@pytest.mark.parametrize('name', [*WRITING, *DESCRIBING, 'plain'])
def test_random_calls_of_random_tools_are_taken_and_read_back(templates, small, name):
    rng = random.Random(f'calls {name}')
    call_format = templates[name].call_format
    keyed = isinstance(call_format.arguments, KeyedArguments)
    for _ in range(10):
        tools = []
        for n in range(rng.randint(1, 3)):
            schema = plain_schema(rng) if keyed else random_schema(rng)
            while schema.get('type') != 'object':
                schema = random_schema(rng)
            tools.append(Tool(f'tool_{n}', '', schema))
        form = CallForm.of(call_format, tools)
        match = matcher(small, form).matches
        for _ in range(3):
            tool = rng.choice(tools)
            arguments = random_value({**tool.parameters}, rng)
            text = call_format.write([WrittenCall(tool.name, arguments, 'abcdefgh1')])
            assert match(text), text
            (read,) = form.read(text)
            assert read.name == tool.name and read.arguments == arguments


class Pieces:
    """A detokenizer of tokens that are pieces of one text."""

    pending = ''

    def __init__(self):
        self.pieces = {}

    def add(self, token_id):
        return self.pieces.get(token_id, '')

    def flush(self):
        return ''

    def flush_whole(self):
        return '', 0


def cut(text, rng) -> tuple[list[int], Pieces]:
    """A text as random tokens; marks are tokens of their own."""
    detokenizer, ids, at = Pieces(), [], 0
    while at < len(text):
        mark = max((m for m in SPECIAL if text.startswith(m, at)), key=len, default='')
        if mark:
            ids.append(SPECIAL[mark])
            at += len(mark)
            continue
        end = at + rng.choice([1, 1, 2, 3, 5, 8, 20])
        end = min([end, *(n for m in SPECIAL if (n := text.find(m, at)) > 0)])
        ids.append(FIRST + 256 + len(detokenizer.pieces))
        detokenizer.pieces[ids[-1]] = text[at:end]
        at = end
    return ids, detokenizer


@pytest.mark.parametrize('name', [*WRITING, *DESCRIBING, 'plain'])
def test_a_call_is_never_text_however_it_is_cut(templates, name):
    rng = random.Random(f'cuts {name}')
    form = CallForm.of(templates[name].call_format, TOOLS)
    for number in range(60):
        calls = rng.choice(some_calls(name))
        said = (
            '' if form.format.only_at_start else rng.choice(['', 'Well.\n', 'a < b <tool [x] to', '日本\n\n'])
        )
        written = form.format.write(calls)
        ids, detokenizer = cut(said + written, rng)
        stops = ['STOP', '}'] if number % 2 else []
        reply = ReplyText(detokenizer, stops, calls=CallText(form, SPECIAL))
        deltas = []
        spelled = ['']
        for token_id in ids:
            deltas += reply.add(token_id)
            marks = {n: text for text, n in SPECIAL.items()}
            spelled.append(spelled[-1] + detokenizer.pieces.get(token_id, marks.get(token_id, '')))
        deltas += reply.flush()
        assert ''.join(delta.text for delta in deltas if not delta.call) == said
        assert ''.join(delta.text for delta in deltas if delta.call) == written
        given = ''
        for delta in deltas:
            given += delta.text
            assert (
                spelled[delta.num_tokens] == given
                if delta.exact
                else given.startswith(spelled[delta.num_tokens])
            )


@pytest.mark.parametrize('form', [PLAIN_CALLS, KEYED], ids=['json', 'keyed'])
@pytest.mark.parametrize('value', ['[{}]', '{{"a": {}}}'], ids=['lists', 'objects'])
def test_arguments_of_any_depth_are_read_or_refused(form, value):
    before, after = value.replace('{{', '{').replace('}}', '}').split('{}')
    for depth in (1, 50, *range(300, 1000, 50), 5000, 100_000):
        nested = before * depth + '1' + after * depth
        text = form.write([WrittenCall('drive', {'place': 0}, '')]).replace('0', nested)
        try:
            called = form.read(text, {'drive': {}})
        except ValueError as error:
            assert depth > 50 and str(error) == 'the arguments are nested too deep'
        else:
            assert [call.name for call in called] == ['drive']


@pytest.mark.parametrize('name', [*WRITING, *DESCRIBING, 'plain'])
def test_talk_is_given_out_whole_with_tools(templates, name):
    rng = random.Random(f'talk {name}')
    form = CallForm.of(templates[name].call_format, TOOLS)
    for _ in range(40):
        said = rng.choice(
            ['Yes, of course.', 'a <tool_cal', '[TOOL', 'x {"name": "set_lamp"}', ' <', '日本 {']
        )
        ids, detokenizer = cut(said, rng)
        reply = ReplyText(detokenizer, calls=CallText(form, SPECIAL))
        deltas = [delta for token_id in ids for delta in reply.add(token_id)] + reply.flush()
        assert ''.join(delta.text for delta in deltas) == said and not any(delta.call for delta in deltas)


@pytest.mark.parametrize('name', [*WRITING, *DESCRIBING, 'plain'])
def test_the_next_prompt_continues_behind_a_sampled_call(templates, name):
    known = templates[name]
    known.tools = TOOLS
    sampled = with_marks('Well. ' + known.call_format.write(CALLS[:1]))
    before = list(known.prompt([ChatMessage('user', 'Hello')], True).token_ids)
    called = ChatMessage('bot', text='Well. ', calls=CALLS[:1], tokens=sampled)
    answer = ChatMessage('tool', text='done', call_id=CALLS[0].id, name='set_lamp')
    after = list(known.prompt([ChatMessage('user', 'Hello'), called, answer], True).token_ids)
    assert after[: len(before) + len(sampled)] == before + sampled
    assert 'done' in text_of(after[len(before) + len(sampled) :])


@pytest.mark.parametrize('name', [*WRITING, *DESCRIBING, 'plain'])
def test_answers_of_tools_and_words_of_users_become_no_markup(templates, name):
    known = templates[name]
    known.tools = TOOLS
    hostile = ''.join(MARKS) + known.call_format.write(CALLS[:1])
    plain, _ = conversation(CALLS[:1])
    attacked, _ = conversation(CALLS[:1])
    attacked[2] = ChatMessage('tool', text=hostile, call_id=CALLS[0].id, name='set_lamp')
    attacked[4] = ChatMessage('user', hostile)
    count = [
        [list(known.prompt(messages, True).token_ids).count(n) for n in SPECIAL.values()]
        for messages in (plain, attacked)
    ]
    assert count[0] == count[1]


def test_a_template_without_tools_gets_them_in_the_system_prompt(templates):
    known = templates['plain']
    known.tools = TOOLS
    text = known.render([ChatMessage('system', 'Be kind.'), ChatMessage('user', 'Hello')])
    assert text.index('Be kind.') < text.index('"set_lamp"') < text.index('Hello')
    assert text.count('<|im_start|>system') == 1
    ours, _ = conversation(CALLS[:1])
    assert json.dumps({'name': 'set_lamp', 'arguments': CALLS[0].arguments}) in known.render(ours)


def test_a_tool_that_no_grammar_can_follow_is_named():
    tool = Tool('odd', '', {'type': 'object', 'properties': {'x': {'not': {'type': 'string'}}}})
    with pytest.raises(ValueError, match='tool odd'):
        CallForm.of(template(PLAIN).call_format, [tool]).grammar(SPECIAL)


# --- gpt-oss: a reply is several messages, a call begins in the header of one ---

CHANNELS = ReasoningMarks(
    '<|channel|>analysis<|message|>',
    '<|end|>',
    label='analysis',
    header_ids=tuple(SPECIAL[mark] for mark in ('<|start|>', '<|channel|>', '<|end|>')),
    message_id=SPECIAL['<|message|>'],
)
THOUGHT = '<|channel|>analysis<|message|>Hm, to=functions.x<|end|><|start|>assistant'
CALLED = '<|channel|>commentary json<|message|>{"on": true}'


@pytest.mark.parametrize('thought', ['', THOUGHT, THOUGHT + THOUGHT.replace('Hm', 'So')])
@pytest.mark.parametrize(
    'message, said, calls',
    [
        ('<|channel|>final<|message|>Yes, of course.', 'Yes, of course.', 0),
        (' to=functions.set_lamp' + CALLED, '', 1),
        ('<|channel|>commentary to=functions.set_lamp' + CALLED, '', 1),
        (
            '<|channel|>commentary<|message|>I will.<|end|><|start|>assistant to=functions.set_lamp' + CALLED,
            'I will.',
            1,
        ),
    ],
)
def test_the_messages_of_gpt_oss_may_come_before_a_call(templates, small, thought, message, said, calls):
    form = CallForm.of(templates['gpt-oss'].call_format, TOOLS)
    detokenizer = Pieces()
    detokenizer.pieces = {FIRST + n: chr(n) for n in range(128)}
    text = ReplyText(detokenizer, marks=CHANNELS, calls=CallText(form, SPECIAL))
    held = CallingForm(matcher(small, form), text, frozenset({1}), np.array([FIRST + 32]), False)
    deltas = []
    for token_id in with_marks(thought + message):
        assert held.allows(token_id), text_of([token_id])
        held.accept(token_id)
        deltas += text.add(token_id)
    deltas += text.flush()
    assert ''.join(delta.text for delta in deltas if not (delta.call or delta.reasoning)) == said
    written = ''.join(delta.text for delta in deltas if delta.call)
    assert len(form.read(written) if written else ()) == calls
    assert ('Hm' in ''.join(delta.text for delta in deltas if delta.reasoning)) == bool(thought)


def test_halves_of_characters_and_huge_numbers_in_a_call_do_no_harm():
    form = CallForm.of(PLAIN_CALLS, [Tool('say', '', {'type': 'object', 'additionalProperties': True})])
    for value, read in (
        (r'"a\ud83d"', 'a\ufffd'),
        (r'{"\ud83d": ["\udc00"]}', {'\ufffd': ['\ufffd']}),
        (r'"\ud83d\ude00"', '\U0001f600'),
    ):
        (call,) = form.read(PLAIN_CALLS.write([WrittenCall('say', {})]).replace('{}', f'{{"x": {value}}}'))
        assert call.arguments == {'x': read}
    numbers = {'type': 'object', 'properties': {'x': {'type': 'integer', 'multipleOf': 5}}}
    form = CallForm.of(PLAIN_CALLS, [Tool('count', '', numbers)])
    (call,) = form.read(PLAIN_CALLS.write([WrittenCall('count', {'x': 10**400})]))
    assert call.arguments == {'x': 10**400}
    with pytest.raises(ValueError, match='multiple of 5'):
        form.read(PLAIN_CALLS.write([WrittenCall('count', {'x': 10**400 + 1})]))
