"""Conversations on `hf` through the library and the engine, on small random models: a packed one, one with a
sliding window, a recurrent one and a hybrid. Oracle: `generate` of transformers on all that the KV cache
held.
"""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip('torch')
pytest.importorskip('transformers')
from nano_llm_way import ask  # noqa: E402
from test_hf_architectures import make_model, save_model  # noqa: E402
from tokenizers.decoders import ByteLevel as ByteLevelDecoder  # noqa: E402
from tokenizers.pre_tokenizers import ByteLevel  # noqa: E402

from ros2_nanochat.backends.base import Chunk  # noqa: E402
from ros2_nanochat.backends.hf.backend import HFBackend  # noqa: E402
from ros2_nanochat.chat.history import ChatHistory  # noqa: E402
from ros2_nanochat.config import ModelConfig  # noqa: E402
from ros2_nanochat.nano_llm import NanoLLM  # noqa: E402

TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}</s>{% endfor %}"
    '{% if add_generation_prompt %}[assistant]{% endif %}'
)
CONTEXT = 160


@pytest.fixture(scope='module', params=['llama', 'gemma3', 'mamba', 'lfm2'])
def opened(request, tmp_path_factory):
    """(an opened model, the same in transformers)"""
    reference = make_model(request.param)
    with torch.no_grad():  # ids of half characters are unlikely: a reply has all the ids that were asked for
        reference.get_output_embeddings().weight[half_characters()] *= 0.01
    folder = tmp_path_factory.mktemp(request.param)
    save_model(folder, reference)
    (folder / 'chat_template.jinja').write_text(TEMPLATE)
    with NanoLLM.from_pretrained(
        str(folder), api='hf', max_context_len=CONTEXT, max_sequences=3, park_bytes=1 << 26
    ) as model:
        yield model, reference


def half_characters() -> list[int]:
    """Ids of the bytes of which several make a character, in the vocabulary of `save_model`."""
    alphabet = sorted(ByteLevel.alphabet())
    return [3 + i for i, char in enumerate(alphabet) if ByteLevelDecoder().decode([char]) == '\ufffd']


def by_transformers(reference, reply) -> list[int]:
    """What transformers says after all that the KV cache held when the reply began."""
    ids = torch.as_tensor(reply.kv_cache.entries[: len(reply.kv_cache) - len(reply.tokens)])[None]
    n = len(reply.tokens)
    out = reference.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=n,
        min_new_tokens=n,
        do_sample=False,
        eos_token_id=1,
    )
    return out[0, ids.shape[1] :].tolist()


def test_turns_and_edits_give_what_a_fresh_prefill_gives(opened):
    model, reference = opened
    history = ChatHistory(model, system_prompt='a robot')
    for text in ('red ball', 'blue box', 'the table'):
        reply = ask(model, history, text)
        assert reply.tokens == by_transformers(reference, reply)
    assert reply.usage['reused_tokens'] > 30
    history.messages[3].text = 'green box'
    reply = ask(model, history, 'tell me')
    assert reply.tokens == by_transformers(reference, reply)


def test_a_conversation_longer_than_the_context_goes_on(opened):
    model, reference = opened
    history = ChatHistory(model, system_prompt='a robot')
    for turn in range(9):
        reply = ask(model, history, f'turn {turn}: drive to the door', n=6)
        assert len(reply.tokens) == 6 and len(reply.kv_cache) <= CONTEXT
        assert reply.tokens == by_transformers(reference, reply)
    held = model.detokenize(reply.kv_cache.entries)
    assert 'a robot' in held and 'turn 8' in held and 'turn 0' not in held


def test_eight_conversations_at_once_each_get_what_they_get_alone(opened):
    model, _ = opened
    prompts = [np.random.default_rng(i).integers(3, 300, 6 + 5 * i) for i in range(8)]
    alone = [
        model.generate(ids, max_new_tokens=7, min_new_tokens=7, detokenize=False).wait(60).tokens
        for ids in prompts
    ]
    together = [model.generate(ids, max_new_tokens=7, min_new_tokens=7, detokenize=False) for ids in prompts]
    assert [reply.wait(60).tokens for reply in together] == alone


def test_what_is_saved_goes_on_as_if_it_had_never_been_away(opened):
    model, _ = opened
    if not model.backend.runner.packed:
        assert model.engine.call(lambda: model.backend.save(next(iter(model.backend._sequences)))) is None
        return
    assert model.stats['parked'] > 0, 'eight conversations had three sequences'
    backend = HFBackend(model.backend.path, ModelConfig(max_context_len=CONTEXT))
    backend.open()
    ids, seq = np.random.default_rng(9).integers(3, 300, 40), backend.new_sequence()
    backend.forward([Chunk(seq, ids=ids[:30])])
    data = backend.save(seq)
    wanted = backend.forward([Chunk(seq, ids=ids[30:], num_logits=10)]).numpy()
    backend.free(seq)
    again = backend.load(data)
    assert backend.kv_used == 30
    np.testing.assert_allclose(
        backend.forward([Chunk(again, ids=ids[30:33], num_logits=3)]).numpy(), wanted[:3], atol=1e-5
    )
    assert backend.trim(again, 20) == 20
    np.testing.assert_allclose(
        backend.forward([Chunk(again, ids=ids[20:], num_logits=10)]).numpy(),
        wanted,
        atol=1e-3 * np.abs(wanted).max(),
    )
    assert backend.load(data.replace(backend._fingerprint, bytes(16))) is None, 'it is of another model'
    backend.close()
