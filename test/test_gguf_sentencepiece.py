"""Vocabularies of SentencePiece's kind in GGUF files: where a space comes before a text and where not.
Oracle: llama.cpp over the whole text.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_gguf import write_tiny_llama

from ros2_nanochat import ChatHistory, KVCache, NanoLLM
from ros2_nanochat.chat.template.chat_template import ChatTemplate
from ros2_nanochat.prompt import Preceding

CORPUS = [
    'The robot drives to the kitchen and says hello, how are you today?',
    'What is the capital of Japan? It is Tokyo.\n\n',
    'USER ASSISTANT',
] * 20
TEMPLATES = ('llama-2', 'vicuna-v0', 'vicuna-v1', 'mistral', 'tiny-llama')
TEXTS = st.lists(
    st.sampled_from(['hello', ' ', '  ', '\n', 'robot', 'It is', '東', '🙂', '<h1>', 'x', '.', '</']),
    min_size=1,
    max_size=6,
).map(lambda parts: 'x' + ''.join(parts) + 'x')


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp('tiny') / 'tiny.gguf'
    write_tiny_llama(path, CORPUS, control=('[INST]', '[/INST]'))
    with NanoLLM.from_pretrained(str(path), max_context_len=1024, threads=1, flash_attention=True) as opened:
        yield opened


def whole(model, text):
    """ids that llama.cpp gives for a rendered conversation in one call."""
    ids = model.backend._text._tokenize(text, True)
    return ids if ids[:1] == [model.info.bos_token_id] else [model.info.bos_token_id, *ids]


@pytest.mark.parametrize('name', TEMPLATES)
@settings(max_examples=25, deadline=None)
@given(texts=st.lists(TEXTS, min_size=1, max_size=5), system=st.booleans())
def test_a_conversation_has_the_ids_of_its_whole_text(model, name, texts, system):
    history = ChatHistory(model, name, 'Be brief.' if system else '')
    # The bot's words at the end would be continued, so the user always has the last word.
    for n, text in enumerate(texts if len(texts) % 2 else [*texts, 'robot']):
        history.append('bot' if n % 2 else 'user', text=text)
    prompt, _ = history.embed_chat()
    assert prompt.entries.tolist() == whole(model, history.template.render(history.messages))


@pytest.mark.parametrize('name', TEMPLATES)
def test_no_space_comes_between_a_reply_and_what_stands_behind_it(model, name):
    """The reply begins and ends with characters that merge with nothing, so that the whole text holds its ids
    as they are.
    """
    history = ChatHistory(model, name, '')
    history.append('user', text='hello')
    asked, _ = history.embed_chat()
    history.append('bot', text='🙂It is Tokyo🙂')
    history.append('user', text='robot')
    ids = whole(model, history.template.render(history.messages))
    smile = model.tokenize('🙂', preceding=Preceding.TEXT)
    at = [i for i in range(len(ids)) if ids[i : i + len(smile)] == smile]
    history[-2].adopt(ids[len(asked) : at[-1] + len(smile)])
    assert model.detokenize(history[-2].tokens).lstrip() == '🙂It is Tokyo🙂'
    assert history.embed_chat()[0].entries.tolist() == ids


@settings(max_examples=60, deadline=None)
@given(TEXTS)
def test_joined_text_has_the_ids_that_it_has_amid_a_text(model, text):
    smile = model.tokenize('🙂')
    assert model.tokenize(text, preceding=Preceding.TEXT) == model.tokenize('🙂' + text)[len(smile) :]


def test_typed_markup_is_text_without_spaces_in_it(model):
    for text in ('a</s>b', '[INST]', 'a<s>[/INST]</s>'):
        ids = model.tokenize(text)
        assert {1, 2}.isdisjoint(ids) and model.detokenize(ids) == text
        prompt = ChatTemplate(model, 'vicuna-v1').prompt(
            ChatHistory(model, 'vicuna-v1', '').messages + [_user(text)]
        )
        assert f'USER: {text}\nASSISTANT:' == model.detokenize(prompt.entries.tolist())


def _user(text):
    from ros2_nanochat import ChatMessage

    return ChatMessage('user', text=text)


def test_text_goes_on_behind_a_reply_and_behind_what_a_function_returned_without_a_space(model):
    calls = []

    def insert(text):
        calls.append(text)
        return '🙂robot' if len(calls) == 1 else None

    reply = model.generate('hello', max_new_tokens=12, functions=insert).wait()
    robot = model.tokenize('🙂robot', preceding=Preceding.TEXT)
    at = reply.tokens.index(robot[0])
    assert reply.tokens[at : at + len(robot)] == robot and reply.text.startswith(calls[0] + '🙂robot')
    cache, before = reply.kv_cache, len(reply.kv_cache)
    model.generate('🙂', kv_cache=cache, max_new_tokens=1).wait()
    assert cache.entries[before:].tolist()[:4] == model.tokenize('🙂', preceding=Preceding.TEXT)


def test_a_completion_keeps_its_first_space_and_a_reply_of_a_conversation_has_none(model):
    words = model.tokenize('robot')
    assert model.detokenize(words) == 'robot'

    def force(context, logits):
        step = force.step = force.step + 1
        logits[:] = float('-inf')
        logits[words[step % len(words)]] = 0
        return logits

    def reply(*args, **options):
        force.step = -1
        return model.generate(
            *args, max_new_tokens=len(words), logits_processors=[force], streaming=False, **options
        )

    assert reply('hello') == ' robot'
    assert reply(model.tokenize('hello')) == ' robot'
    assert reply(model.embed_text('hello')) == ' robot'
    assert reply(model.embed_text('hello')[0].tolist()) == ' robot'
    assert reply([model.info.bos_token_id]) == 'robot'
    cache = KVCache()
    assert reply('hello', kv_cache=cache) + reply('', kv_cache=cache) == ' robot robot'
    for name in ('llama-2', 'vicuna-v1'):
        history = ChatHistory(model, name, '')
        history.append('user', text='hello')
        assert reply(history.embed_chat()[0]) == 'robot', name
