"""Conversations on `mlc` through the library and the engine: reuse, edits, several at once, and a context
that overflows.
"""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip('tvm')
torch = pytest.importorskip('torch')
import mlc_model  # noqa: E402
from nano_llm_way import ask  # noqa: E402

from ros2_nanochat.chat.history import ChatHistory  # noqa: E402
from ros2_nanochat.nano_llm import NanoLLM  # noqa: E402


@pytest.fixture(scope='module')
def model():
    with NanoLLM.from_pretrained(mlc_model.tiny()[2], max_context_len=256, max_sequences=3) as model:
        yield model


def by_transformers(ids, n):
    tensor = torch.as_tensor(np.asarray(ids))[None]
    with torch.no_grad():
        out = mlc_model.tiny()[1].generate(
            tensor,
            attention_mask=torch.ones_like(tensor),
            max_new_tokens=n,
            min_new_tokens=n,
            do_sample=False,
        )
    return out[0, len(ids) :].tolist()


def prompt_of(reply):
    """All that the KV cache held when the reply began."""
    return reply.kv_cache.entries[: len(reply.kv_cache) - len(reply.tokens)].tolist()


def test_a_folder_is_known_as_mlc_and_turns_reuse_what_the_kv_cache_holds(model):
    assert model.info.api == 'mlc' and model.has_embed
    history = ChatHistory(model, system_prompt='the robot sees')
    first = ask(model, history, 'a red ball')
    assert first.tokens == by_transformers(prompt_of(first), len(first.tokens))
    second = ask(model, history, 'a blue box')
    assert second.tokens == by_transformers(prompt_of(second), len(second.tokens))
    assert second.usage['reused_tokens'] >= first.usage['prompt_tokens']


def test_after_edits_and_removals_the_ids_are_those_of_a_fresh_prefill(model):
    history = ChatHistory(model, system_prompt='the robot sees')
    for text in ('a red ball', 'on the table', 'drive to the kitchen'):
        ask(model, history, text)
    history.messages[1].text = 'a green ball'
    edited = ask(model, history, 'tell me')
    assert 0 < edited.usage['reused_tokens'] < edited.usage['prompt_tokens']
    assert edited.tokens == by_transformers(prompt_of(edited), len(edited.tokens))


def test_more_conversations_than_sequences_at_once_each_get_what_they_get_alone(model):
    prompts = [
        f'please tell me what {word} sees'
        for word in ('the robot', 'a ball', 'the box', 'you', 'the table', 'a kitchen', 'blue')
    ]
    alone = [
        model.generate(p, max_new_tokens=15, min_new_tokens=15, detokenize=False).wait(60).tokens
        for p in prompts
    ]
    together = [model.generate(p, max_new_tokens=15, min_new_tokens=15, detokenize=False) for p in prompts]
    assert [reply.wait(60).tokens for reply in together] == alone
    assert alone[0] == by_transformers(model.tokenize(prompts[0]), 15)


def test_a_conversation_longer_than_the_context_goes_on(model):
    history = ChatHistory(model, system_prompt='the robot sees')
    for turn in range(14):
        reply = ask(model, history, f'turn {turn}: please drive to the kitchen', n=16)
        assert reply.usage.new_tokens == 16 and len(reply.kv_cache) <= 256
    # Half a character at its end is no part of a reply.
    count = len(reply.tokens)
    assert count > 12 and reply.tokens == by_transformers(prompt_of(reply), 16)[:count]


def test_embeddings_in_place_of_a_prompt_give_the_same_ids(model):
    ids = model.tokenize('the robot sees a red ball')
    from_ids = model.generate(ids, max_new_tokens=10, min_new_tokens=10, detokenize=False).wait(60).tokens
    from_rows = (
        model.generate(model.embed_tokens(ids), max_new_tokens=10, min_new_tokens=10, detokenize=False)
        .wait(60)
        .tokens
    )
    assert from_rows == from_ids == by_transformers(ids, 10)
