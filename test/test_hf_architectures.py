"""The backend `hf` on small random models of many architectures. Oracle: the same model in transformers,
untouched, without a cache of ours.
"""

from __future__ import annotations

import dataclasses
import inspect

import numpy as np
import pytest

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
import tokenizers  # noqa: E402

from ros2_nanochat.backends.base import Chunk  # noqa: E402
from ros2_nanochat.backends.hf.backend import HFBackend  # noqa: E402
from ros2_nanochat.config import ModelConfig  # noqa: E402
from ros2_nanochat.errors import ForwardError  # noqa: E402

VOCAB = 300
SMALL = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    bos_token_id=0,
    eos_token_id=1,
    pad_token_id=2,
)
KINDS = {
    'llama': ('LlamaConfig', {}),
    'qwen3': ('Qwen3Config', {'head_dim': 16}),
    'gemma3': (
        'Gemma3TextConfig',
        {
            'head_dim': 16,
            'sliding_window': 8,
            'layer_types': ['sliding_attention', 'full_attention', 'sliding_attention'],
        },
    ),
    'phi3': ('Phi3Config', {}),
    'gpt_neox': ('GPTNeoXConfig', {}),
    'mistral': ('MistralConfig', {'sliding_window': 8, 'head_dim': 8}),
    'gemma2': ('Gemma2Config', {'head_dim': 16, 'sliding_window': 8, 'attn_logit_softcapping': 5.0}),
    'gpt_oss': (
        'GptOssConfig',
        {
            'head_dim': 16,
            'sliding_window': 8,
            'num_local_experts': 2,
            'num_experts_per_tok': 1,
            'layer_types': ['sliding_attention', 'full_attention', 'sliding_attention'],
        },
    ),
    'deepseek': (
        'DeepseekV3Config',
        {
            'num_key_value_heads': 4,
            'n_routed_experts': 4,
            'num_experts_per_tok': 2,
            'n_group': 2,
            'topk_group': 1,
            'moe_intermediate_size': 16,
            'kv_lora_rank': 8,
            'q_lora_rank': 8,
            'qk_rope_head_dim': 8,
            'qk_nope_head_dim': 8,
            'v_head_dim': 8,
        },
    ),
    'gpt2': ('GPT2Config', {'n_embd': 32, 'n_layer': 3, 'n_head': 4, 'n_positions': 512}),
    'bloom': ('BloomConfig', {'n_layer': 3, 'n_head': 4}),
    'mamba': ('MambaConfig', {'state_size': 4}),
    'lfm2': (
        'Lfm2Config',
        {'layer_types': ['conv', 'full_attention', 'conv'], 'block_multiple_of': 16, 'head_dim': 8},
    ),
    'qwen3_next': (
        'Qwen3NextConfig',
        {
            'head_dim': 16,
            'layer_types': ['linear_attention', 'full_attention', 'linear_attention'],
            'linear_num_value_heads': 4,
            'linear_num_key_heads': 2,
            'linear_key_head_dim': 8,
            'linear_value_head_dim': 8,
            'num_experts': 4,
            'num_experts_per_tok': 2,
            'moe_intermediate_size': 16,
            'shared_expert_intermediate_size': 16,
        },
    ),
}
ONE_BY_ONE = {'deepseek', 'bloom', 'mamba', 'lfm2', 'qwen3_next'}


def save_model(folder, model) -> str:
    """Save a model with a tokenizer of single bytes beside it."""
    model.save_pretrained(folder)
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocab = {'<s>': 0, '</s>': 1, '<pad>': 2} | {char: 3 + i for i, char in enumerate(alphabet)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(['<s>', '</s>', '<pad>'])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token='<s>', eos_token='</s>', pad_token='<pad>'
    ).save_pretrained(folder)
    return str(folder)


def make_model(kind: str, **sizes):
    """A random model whose logits differ well."""
    name, options = KINDS[kind]
    torch.manual_seed(1)
    known = inspect.signature(getattr(transformers, name).__init__).parameters
    config = getattr(transformers, name)(
        **{key: value for key, value in SMALL.items() if key in known}
        | options
        | {'dtype': 'float32'}
        | sizes
    )
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(3)
    return model


@pytest.fixture(scope='module', params=list(KINDS))
def opened(request, tmp_path_factory):
    """(backend, the model that transformers opens from the same folder)."""
    model = make_model(request.param)
    backend = HFBackend(
        save_model(tmp_path_factory.mktemp(request.param), model),
        ModelConfig(max_sequences=8, max_context_len=256),
    )
    backend.open()
    assert backend.runner.packed == (request.param not in ONE_BY_ONE)
    yield backend, model
    backend.close()


def rng(seed: int = 0):
    return np.random.default_rng(seed)


def expected(model, ids) -> np.ndarray:
    with torch.inference_mode():
        return model(input_ids=torch.as_tensor(np.asarray(ids))[None]).logits[0].numpy()


def close(rows, wanted) -> bool:
    return np.allclose(rows, wanted, atol=2e-3 * np.abs(wanted).max())


def feed(backend, seq, ids, num_logits=1):
    return backend.forward([Chunk(seq, ids=np.asarray(ids), num_logits=num_logits)]).numpy()


def test_chunks_of_any_size_give_the_logits_of_the_whole(opened):
    backend, model = opened
    ids = rng().integers(3, VOCAB, 40)
    wanted, seq, at = expected(model, ids), backend.new_sequence(), 0
    for n in (1, 7, 13, 1, 2, 16):
        rows = feed(backend, seq, ids[at : at + n], num_logits=min(n, 2))
        at += n
        assert close(rows, wanted[at - len(rows) : at])
    backend.free(seq)


def test_a_mixed_batch_gives_what_each_gives_alone(opened):
    backend, model = opened
    texts = [rng(i).integers(3, VOCAB, 5 + 6 * i) for i in range(5)]
    seqs = [backend.new_sequence() for _ in texts]
    backend.forward([Chunk(seq, ids=ids[:-4]) for seq, ids in zip(seqs, texts)])
    sizes = [1, 3, 1, 4, 1]
    for _ in range(1):
        rows = backend.forward(
            [Chunk(seq, ids=ids[len(ids) - 4 :][:n], num_logits=1) for seq, ids, n in zip(seqs, texts, sizes)]
        ).numpy()
    for row, ids, n in zip(rows, texts, sizes):
        assert close(row, expected(model, ids)[len(ids) - 5 + n])
    assert backend.kv_used == sum(len(ids) - 4 + n for ids, n in zip(texts, sizes))
    for seq in seqs:
        backend.free(seq)
    assert backend.kv_used == 0


def test_trim_says_what_it_kept_and_the_rest_can_be_computed_again(opened):
    backend, model = opened
    ids, other = rng(1).integers(3, VOCAB, 30), rng(2).integers(3, VOCAB, 30)
    seq = backend.new_sequence()
    feed(backend, seq, ids[:20])
    for i in range(20, 24):
        feed(backend, seq, ids[i : i + 1])
    for n in (24, 21, 11, 3, 0):
        kept = backend.trim(seq, n)
        assert 0 <= kept <= n and (kept == n or not backend.runner.packed)
        now = np.concatenate([ids[:n], other[:5]])
        assert close(feed(backend, seq, now[kept:])[0], expected(model, now)[-1])
        backend.trim(seq, n)
        kept = backend.trim(seq, 0)
        feed(backend, seq, ids[:24])
    backend.free(seq)


def test_guesses_that_were_wrong_cost_little(opened):
    backend, model = opened
    ids, guesses = rng(8).integers(3, VOCAB, 20), rng(9).integers(3, VOCAB, 3)
    seq = backend.new_sequence()
    feed(backend, seq, ids[:18])
    feed(backend, seq, np.concatenate([ids[18:19], guesses]), 4)
    kept = backend.trim(seq, 19)
    assert kept >= 18
    assert close(feed(backend, seq, ids[kept:])[0], expected(model, ids)[-1])
    backend.free(seq)


def test_a_forward_that_fails_leaves_every_sequence_as_it_was(opened):
    backend, model = opened
    ids = rng(8).integers(3, VOCAB, 12)
    good, bad = backend.new_sequence(), backend.new_sequence()
    feed(backend, bad, ids[:8])
    with pytest.raises(ForwardError) as error:
        backend.forward(
            [
                Chunk(good, ids=ids, num_logits=1),
                Chunk(bad, embeddings=np.zeros((2, 5), np.float32), num_logits=1),
            ]
        )
    assert error.value.committed in ([0, 0], [12, 0]) and '\n' not in str(error.value)
    assert backend.kv_used == 8 + error.value.committed[0]
    assert close(feed(backend, bad, ids[8:])[0], expected(model, ids)[-1])
    backend.free(good)
    backend.free(bad)


def test_a_fork_goes_its_own_way(opened):
    backend, model = opened
    ids, a, b = (rng(i).integers(3, VOCAB, 20) for i in (3, 4, 5))
    seq = backend.new_sequence()
    feed(backend, seq, ids)
    for n in (20, 12):
        copy, kept = backend.fork(seq, n)
        assert kept == n or not backend.runner.packed
        theirs = np.concatenate([ids[:n], a])
        rows = backend.forward([Chunk(copy, ids=theirs[kept:], num_logits=1)]).numpy()
        assert close(rows[0], expected(model, theirs)[-1])
        backend.free(copy)
    assert close(feed(backend, seq, b)[0], expected(model, np.concatenate([ids, b]))[-1])
    backend.free(seq)


def test_embeddings_give_what_their_ids_give(opened):
    backend, model = opened
    ids = rng(6).integers(3, VOCAB, 12)
    assert backend.info.takes_embeddings
    seq, plain = backend.new_sequence(), backend.new_sequence()
    feed(backend, seq, ids[:4])
    rows = backend.forward(
        [
            Chunk(seq, embeddings=backend.embed_tokens(ids[4:]), num_logits=1),
            Chunk(plain, ids=ids[:5], num_logits=1),
        ]
    ).numpy()
    wanted = expected(model, ids)
    assert close(rows[0], wanted[-1]) and close(rows[1], wanted[4])
    for each in (seq, plain):
        backend.free(each)


def test_greedy_ids_equal_generate(opened):
    backend, model = opened
    ids = rng(7).integers(3, VOCAB, 9)
    wanted = model.generate(
        torch.as_tensor(ids)[None],
        attention_mask=torch.ones(1, 9, dtype=torch.long),
        max_new_tokens=12,
        do_sample=False,
        eos_token_id=None,
    )[0, 9:]
    seq, got = backend.new_sequence(), []
    row = feed(backend, seq, ids)
    for _ in range(12):
        got.append(int(row[0].argmax()))
        row = feed(backend, seq, got[-1:])
    assert got == wanted.tolist()
    backend.free(seq)


def test_facts_and_memory_are_those_of_the_model(opened):
    backend, model = opened
    assert (
        backend.info.vocab_size == VOCAB
        and backend.info.context_length == 256
        and backend.info.embedding_size == 32
    )
    assert backend.info.weights_bytes == sum(p.numel() * 4 for p in model.parameters())
    estimate = HFBackend.estimate(backend.path, ModelConfig())
    assert estimate.weights >= backend.info.weights_bytes * 0.99
    seq = backend.new_sequence()
    feed(backend, seq, rng().integers(3, VOCAB, 64))
    if backend.runner.packed:
        held = sum(states.nbytes for kv in backend._sequences[seq].layers.values() for states in kv)
        assert held == 64 * backend.info.kv_bytes_per_token == 64 * estimate.kv_per_token
    backend.free(seq)
    assert dataclasses.asdict(backend.info)['eos_token_ids'] == frozenset({1})
