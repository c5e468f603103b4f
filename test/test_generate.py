"""Generating with the embedded model: what may go in, what comes out, and what a reply leaves behind however
it ends.
"""

from __future__ import annotations

import gc
import threading
import time

import numpy as np
import pytest

from ros2_nanochat import KVCache, NanoLLM
from ros2_nanochat.errors import BackendError
from ros2_nanochat.prompt import Preceding, Prompt

TEXT = 'The capital of Japan is'


@pytest.fixture(scope='module')
def greedy(model):
    """The ids that the text goes on with, and the ids of the text."""
    return model.generate(TEXT, max_new_tokens=12).wait().tokens, model.tokenize(TEXT)


def wait_for_idle(model):
    until = time.monotonic() + 10
    while model.stats['active'] and time.monotonic() < until:
        time.sleep(0.01)
    assert not model.stats['active']


# --- what goes in ---


def test_text_ids_embeddings_and_prompts_go_on_alike(model, greedy):
    tokens, ids = greedy
    assert 'Tokyo' in model.detokenize(tokens)
    embeddings = model.embed_text(TEXT)
    assert embeddings.shape == (1, len(ids), model.info.embedding_size) and embeddings.dtype == np.float32
    inputs = [
        ids,
        np.array(ids),
        np.array([ids]),
        np.array(ids, np.int32),
        tuple(ids),
        Prompt.join([ids]),
        embeddings,
        embeddings[0],
        embeddings.astype(np.float64),
    ]
    for given in inputs:
        assert model.generate(given, max_new_tokens=6).wait().tokens == tokens[:6], type(given)


def test_ids_and_embeddings_may_be_mixed_and_one_row_is_one_entry(model, greedy):
    tokens, ids = greedy
    cache = KVCache()
    model.generate(model.embed_tokens(ids[:1])[0], kv_cache=cache, max_new_tokens=1).wait()
    cache.pop(len(cache) - 1)
    assert (cache.entries < 0).tolist() == [True]
    assert model.generate(ids[1:], kv_cache=cache, max_new_tokens=6).wait().tokens == tokens[:6]


def test_embeddings_that_were_computed_are_not_computed_again(model):
    embeddings = model.embed_text(
        'A picture of a robot in a kitchen, taken by another robot that came through the door'
    )
    first = model.generate(embeddings, max_new_tokens=2).wait()
    first.kv_cache.pop(2)
    again = model.generate(
        Prompt.join([model.tokenize(' says')]), kv_cache=KVCache(), max_new_tokens=1
    ).wait()
    assert again.usage['reused_tokens'] <= 1
    more = model.generate(model.tokenize(' says'), kv_cache=first.kv_cache, max_new_tokens=1).wait()
    assert more.usage['reused_tokens'] >= embeddings.shape[1]


@pytest.mark.parametrize(
    'inputs, expected',
    [
        ('', 'nothing to continue'),
        ([], 'nothing to continue'),
        (None, 'NoneType are not valid'),
        (5, 'are not valid'),
        ([1.0, 2.0], 'are not valid'),
        ([[1], [2]], 'are not valid'),
        ({'a': 1}, 'are not valid'),
        ([-1], 'not in the vocabulary'),
        ([49152], 'not in the vocabulary'),
        (['a'], 'of type list of str are not valid'),
        ([{'role': 'user', 'content': 'hi'}], 'of type list of dict are not valid: .*embed_chat'),
        ([[1, 2], [3]], 'of type list of list are not valid'),
        ((Prompt.join([[5]]), 0), 'of type tuple of Prompt are not valid: .*embed_chat'),
        (object(), 'of type object are not valid: .*embed_chat'),
        (Prompt.join([[60000]]), 'not in the vocabulary'),
        (np.zeros((1, 3, 7), np.float32), 'embeddings of width 7 do not fit'),
        (np.full((2, 576), np.nan), 'not finite'),
        (Prompt(np.array([5]), position=3), 'pass the kv_cache it was made for'),
    ],
)
def test_inputs_that_make_no_sense_are_one_line(model, inputs, expected):
    cache = KVCache()
    with pytest.raises(ValueError, match=expected) as caught:
        model.generate(inputs, kv_cache=cache)
    assert '\n' not in str(caught.value) and len(cache) == 0


@pytest.mark.parametrize(
    'options, expected',
    [
        ({'top_p': 1.7}, 'top_p=1.7'),
        ({'temprature': 1}, "no option 'temprature' .did you mean 'temperature'"),
        ({'stop_tokens': 60000}, 'stop_tokens=60000 is not in the vocabulary'),
        ({'stop_tokens': -1}, 'stop_tokens'),
        ({'kv_cache': 'x'}, 'kv_cache of type str'),
        ({'deadline': -1}, 'deadline=-1'),
        ({'deadline': float('nan')}, 'deadline=nan'),
        ({'priority': 'high'}, "priority='high'"),
    ],
)
def test_options_that_make_no_sense_are_one_line(model, options, expected):
    with pytest.raises(ValueError, match=expected) as caught:
        model.generate(TEXT, **options)
    assert '\n' not in str(caught.value)


def test_numbers_of_numpy_serve_as_options(model, greedy):
    stop = np.array([greedy[0][5]])
    reply = model.generate(
        TEXT, max_new_tokens=np.int64(8), stop_tokens=stop, priority=np.int32(1), deadline=np.float32(60)
    ).wait()
    assert reply.tokens == greedy[0][:5] and reply.finish_reason == 'stop'


# --- what comes out ---


def test_streaming_and_waiting_give_the_same_as_text_and_as_ids(model, greedy):
    tokens, _ = greedy
    text = model.detokenize(tokens)
    assert ''.join(model.generate(TEXT, max_new_tokens=12)) == text
    assert model.generate(TEXT, max_new_tokens=12, streaming=False) == text
    assert list(model.generate(TEXT, max_new_tokens=12, detokenize=False)) == tokens
    assert model.generate(TEXT, max_new_tokens=12, detokenize=False, streaming=False) == tokens
    reply = model.generate(TEXT, max_new_tokens=12)
    assert ''.join(piece.text for piece in reply.pieces()) == text == reply.text == str(reply)
    assert (reply.tokens, reply.finish_reason, reply.eos, reply.error) == (tokens, 'length', True, None)
    assert (
        reply.kv_cache.entries.tolist() == model.tokenize(TEXT) + tokens and reply.kv_cache.reply.text == text
    )


def test_usage_counts_what_was_given_and_made(model, greedy):
    reply = model.generate(TEXT, max_new_tokens=5).wait()
    usage = reply.usage
    assert (
        usage['prompt_tokens'] == len(greedy[1])
        and usage['new_tokens'] == 5
        and 0 < usage['time_to_first_token'] < 60
    )
    assert 0 <= usage['reused_tokens'] < usage['prompt_tokens'] and model.stats['last'] == usage
    assert reply.served_by == model.info.name


def test_a_stop_string_is_cut_off_exactly_and_may_span_tokens(model, greedy):
    text = model.detokenize(greedy[0])
    stop = text[4:9]  # amid one token, over the border of the next
    reply = model.generate(TEXT, max_new_tokens=12, stop_tokens=[stop, 'never said']).wait()
    assert (reply.text, reply.finish_reason) == (text[: text.index(stop)], 'stop')
    assert text.startswith(model.detokenize(reply.tokens)) and len(reply.tokens) < 12
    assert reply.kv_cache.entries.tolist() == greedy[1] + reply.tokens


def test_the_text_of_a_special_token_stands_for_its_id_and_for_its_text(model):
    def add(text):
        return '<|im_start|> more' if text and '<' not in text else ''

    reply = model.generate('Hello', max_new_tokens=30, stop_tokens=['<|im_start|>'], functions=[add]).wait()
    assert 1 in reply._request.asked.end_ids
    assert reply.finish_reason == 'stop' and reply.text and '<' not in reply.text


def test_end_tokens_wait_for_min_new_tokens(model):
    prompt = model.tokenize('<|im_start|>user\nSay hi.<|im_end|>\n<|im_start|>assistant\nHi.', special=True)
    ended = model.generate(prompt, max_new_tokens=30).wait()
    held = model.generate(prompt, max_new_tokens=30, min_new_tokens=len(ended.tokens) + 4).wait()
    assert ended.finish_reason == 'stop' and len(held.tokens) >= len(ended.tokens) + 4
    assert held.tokens[: len(ended.tokens)] == ended.tokens


def test_functions_put_text_into_the_reply_that_the_model_reads(model):
    calls = []

    def weather(text):
        calls.append(text)
        return ' [it rains in Kyoto]' if len(calls) == 3 else None

    reply = model.generate(TEXT, max_new_tokens=20, functions=weather).wait()
    assert reply.text.startswith(calls[2] + ' [it rains in Kyoto]') and calls == sorted(calls, key=len)
    assert reply.kv_cache.entries.tolist() == model.tokenize(TEXT) + reply.tokens
    assert model.detokenize(reply.tokens) == reply.text


def test_a_function_that_fails_ends_its_reply_with_its_error(model):
    def broken(text):
        raise KeyError('sensor 7')

    reply = model.generate(TEXT, functions=[broken]).wait()
    assert reply.finish_reason == 'error' and 'broken' in reply.error and 'sensor 7' in reply.error
    with pytest.raises(BackendError, match='sensor 7'):
        model.generate(TEXT, functions=[broken], streaming=False)


def test_the_same_seed_gives_the_same_reply(model):
    options = {'do_sample': True, 'temperature': 1.2, 'max_new_tokens': 8}
    one, two, other = (model.generate(TEXT, seed=seed, **options).wait().tokens for seed in (3, 3, 4))
    assert one == two != other


def test_logits_processors_have_the_last_word(model):
    def always(ids, logits):
        logits[:] = -np.inf
        logits[1234] = 0
        return logits

    assert model.generate(TEXT, max_new_tokens=3, logits_processors=always).wait().tokens == [1234] * 3


# --- however it ends ---


def test_a_stopped_reply_is_what_was_handed_out(model, greedy):
    reply = model.generate(TEXT, max_new_tokens=500)
    pieces = [next(reply) for _ in range(4)]
    reply.stop()
    assert list(reply) == [] and reply.finish_reason == 'cancelled' and reply.text == ''.join(pieces)
    assert reply.tokens == greedy[0][: len(reply.tokens)] and model.detokenize(reply.tokens) == reply.text
    assert reply.kv_cache.entries.tolist() == greedy[1] + reply.tokens
    continued = model.generate([], kv_cache=reply.kv_cache, max_new_tokens=4).wait()
    assert continued.tokens == greedy[0][4:8] and continued.usage['reused_tokens'] >= len(greedy[1]) + 3


def test_a_reply_stopped_while_read_as_ids_holds_the_ids_that_were_handed_out(model, greedy):
    held = 'zz' if not model.detokenize(greedy[0][2:3]) else model.detokenize(greedy[0][2:3])[:1] + '\0'
    reply = model.generate(TEXT, max_new_tokens=500, detokenize=False, stop_tokens=[held])
    ids = [next(reply) for _ in range(3)]
    reply.stop('interrupted')
    assert reply.tokens == ids == greedy[0][:3] and reply.finish_reason == 'interrupted'
    assert reply.kv_cache.entries.tolist() == greedy[1] + ids


def test_a_stop_from_another_thread_wakes_whoever_reads(model):
    reply = model.generate(TEXT, max_new_tokens=-1, min_new_tokens=1900)
    seen = []
    reader = threading.Thread(target=lambda: seen.extend(reply))
    waiters = [threading.Thread(target=reply.wait) for _ in range(2)]
    for thread in (reader, *waiters):
        thread.start()
    time.sleep(0.3)
    reply.stop()
    reply.stop('interrupted')
    for thread in (reader, *waiters):
        thread.join(10)
        assert not thread.is_alive()
    assert reply.finish_reason == 'cancelled'
    with pytest.raises(ValueError, match="reason='bored'"):
        reply.stop('bored')


def test_several_threads_may_wait_for_the_end(model):
    reply = model.generate(TEXT, max_new_tokens=5)
    threads = [threading.Thread(target=reply.wait) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert reply.finish_reason == 'length'


def test_waiting_has_a_limit_and_the_reply_goes_on(model):
    reply = model.generate(TEXT, max_new_tokens=-1, min_new_tokens=1900)
    with pytest.raises(TimeoutError, match='0.2 s'):
        reply.wait(timeout=0.2)
    assert not reply.eos
    reply.stop()
    assert reply.wait(timeout=0) is reply


def test_dropping_a_reply_ends_it_where_it_was_read(model, greedy):
    cache = KVCache()
    said = []
    for piece in model.generate(TEXT, max_new_tokens=-1, min_new_tokens=1900, kv_cache=cache):
        said.append(piece)
        if len(said) == 3:
            break
    gc.collect()
    wait_for_idle(model)
    assert cache.reply.text == ''.join(said) and list(cache.reply.tokens) == greedy[0][:3]
    assert cache.entries.tolist() == greedy[1] + greedy[0][:3]
    assert model.generate([], kv_cache=cache, max_new_tokens=3).wait().tokens == greedy[0][3:6]


def test_a_deadline_ends_a_reply_with_what_it_has(model):
    reply = model.generate(TEXT, max_new_tokens=-1, min_new_tokens=1900, deadline=0.3).wait()
    assert reply.finish_reason == 'deadline' and reply.error is None
    assert model.detokenize(reply.tokens) == reply.text


def test_a_prompt_that_does_not_fit_is_refused_and_the_conversation_is_as_it_was(model, greedy):
    cache = model.generate(TEXT, max_new_tokens=3).wait().kv_cache
    before, reply_before = cache.entries.tolist(), cache.reply
    refused = model.generate([500] * 3000, kv_cache=cache).wait()
    assert (
        refused.finish_reason == 'refused'
        and str(3000 + len(before)) in refused.error
        and '2048' in refused.error
        and '\n' not in refused.error
    )
    assert cache.entries.tolist() == before and cache.reply is reply_before
    assert model.generate([], kv_cache=cache, max_new_tokens=3).wait().tokens == greedy[0][3:6]


def test_a_reply_ends_where_the_context_does():
    with NanoLLM.from_pretrained(max_context_len=64, max_sequences=1) as small:
        reply = small.generate([500] * 56, max_new_tokens=-1, min_new_tokens=100).wait()
        assert reply.finish_reason == 'length' and len(reply.kv_cache) == 64 and len(reply.tokens) == 8


# --- the KV cache ---


def test_a_cache_that_was_cut_goes_on_like_a_fresh_prefill(model):
    ids = model.tokenize(
        'One, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve, thirteen,'
    )
    cache = model.generate(ids, max_new_tokens=4).wait().kv_cache
    assert len(cache) == len(ids) + 4
    assert cache.pop(6) == len(ids) - 2
    assert cache.remove(3, 9) == len(cache) == len(ids) - 8
    left = ids[:3] + ids[9:-2]
    assert cache.entries.tolist() == left and cache.reply is None
    assert (
        model.generate([30], kv_cache=cache, max_new_tokens=8).wait().tokens
        == model.generate(left + [30], max_new_tokens=8).wait().tokens
    )
    cache.free()
    assert cache.entries.tolist()[: len(left)] == left
    for wrong in (
        lambda: cache.pop(999),
        lambda: cache.pop(-1),
        lambda: cache.remove(3, 2),
        lambda: cache.remove(0, 999),
    ):
        with pytest.raises(ValueError, match='is not possible: the KV cache holds'):
            wrong()


def test_a_cache_that_was_given_up_goes_on_the_same(model, greedy):
    cache = model.generate(TEXT, max_new_tokens=3).wait().kv_cache
    cache.free()
    assert model.generate([], kv_cache=cache, max_new_tokens=3).wait().tokens == greedy[0][3:6]


def test_a_cache_in_use_is_not_touched(model):
    reply = model.generate(TEXT, max_new_tokens=-1, min_new_tokens=1900)
    next(reply)
    for touch in (
        lambda: model.generate('x', kv_cache=reply.kv_cache),
        lambda: reply.kv_cache.pop(1),
        reply.kv_cache.free,
    ):
        with pytest.raises(ValueError, match='has not ended'):
            touch()
    reply.stop()
    reply.kv_cache.pop(1)


# --- closing ---


def test_a_closed_model_ends_its_replies_says_so_and_another_takes_the_conversation_over(model, greedy):
    tokens, ids = greedy
    other = NanoLLM.from_pretrained(max_context_len=256, max_sequences=2, threads=1, flash_attention=True)
    cache = other.generate(TEXT, max_new_tokens=3).wait().kv_cache
    running = other.generate(TEXT, max_new_tokens=-1, min_new_tokens=240)
    next(running)
    errors = []

    def tokenize():
        try:
            while True:
                other.detokenize(other.tokenize('Text on any thread'))
        except BackendError as error:
            errors.append(str(error))

    thread = threading.Thread(target=tokenize)
    thread.start()
    other.close()
    other.close()
    thread.join(20)
    assert errors == ['the model is closed']
    assert (
        running.wait(5).finish_reason == 'cancelled'
        and running.text
        and running.kv_cache.entries.tolist() == ids + running.tokens
    )
    reply = other.generate('x', kv_cache=cache).wait(5)
    assert (reply.finish_reason, reply.text) == ('error', '') and 'closed' in reply.error
    assert cache.entries.tolist() == ids + tokens[:3]
    with pytest.raises(BackendError, match='closed'):
        other.generate([1], streaming=False)
    for use in (lambda: other.tokenize('x'), lambda: other.embed_text('x')):
        with pytest.raises(BackendError, match='closed'):
            use()
    assert isinstance(other.stats, dict)
    assert model.generate([], kv_cache=cache, max_new_tokens=3).wait().tokens == tokens[3:6]


def test_tokenizing_and_back(model):
    assert model.detokenize(model.tokenize('naïve café 🤖')) == 'naïve café 🤖' and model.detokenize([]) == ''
    assert model.detokenize(np.array([model.tokenize('a b')])) == 'a b'
    assert model.embed_tokens([]).shape == (1, 0, model.info.embedding_size)
    for wrong in (
        lambda: model.detokenize([1.5]),
        lambda: model.detokenize([50000]),
        lambda: model.embed_tokens([-1]),
        lambda: model.detokenize(['a']),
    ):
        with pytest.raises(ValueError):
            wrong()
    assert model.has_embed and 'NanoLLM' in repr(model)


def test_kv_that_was_saved_lets_another_process_go_on_without_prefilling(model):
    first = model.generate('The capital of Japan is', max_new_tokens=12).wait()
    data = model.save_kv(first.kv_cache)
    ids = first.kv_cache.entries.tolist() + model.tokenize(
        ' And the capital of France is', preceding=Preceding.TEXT
    )
    expected = model.generate(ids, max_new_tokens=12).wait()
    with NanoLLM.from_pretrained(max_context_len=1024, threads=1, flash_attention=True) as other:
        reply = other.generate(ids, kv_cache=other.load_kv(data), max_new_tokens=12).wait()
        assert (
            reply.tokens == expected.tokens and reply.usage['reused_tokens'] == len(first.kv_cache) - 1
        )  # the last id was sampled, not read
        assert other.save_kv(KVCache()) is None
    for damaged in (b'', data[:100], data[:-1], data[:200] + bytes([data[200] ^ 1]) + data[201:]):
        with pytest.raises(ValueError, match='damaged'):
            model.load_kv(damaged)
    with (
        NanoLLM.from_pretrained(api='fake') as stranger,
        pytest.raises(ValueError, match='another model than fake'),
    ):
        stranger.load_kv(data)
