"""Guessing where a wrong guess cannot be taken back: not at all, and no context is computed twice."""

from __future__ import annotations

import pytest
from odd_gguf import write_tiny_bpe, write_tiny_mamba

from ros2_nanochat import NanoLLM
from ros2_nanochat.backends.fake import FakeBackend
from ros2_nanochat.config import ModelConfig

TEXT = 'The robot drives to the kitchen. The robot drives to the hall. ' * 4


def counting(model):
    """Lengths of the chunks that the backend computes."""
    lengths, forward = [], model.backend.forward

    def count(chunks):
        lengths.extend(map(len, chunks))
        return forward(chunks)

    model.backend.forward = count
    return lengths


@pytest.mark.parametrize('hybrid', [False, True])
def test_a_recurrent_model_computes_every_entry_once(tmp_path, hybrid):
    write_tiny_mamba(tmp_path / 'a.gguf', hybrid=hybrid)
    with NanoLLM.from_pretrained(str(tmp_path / 'a.gguf'), max_context_len=1024) as model:
        lengths = counting(model)
        reply = model.generate(TEXT, max_new_tokens=100, min_new_tokens=100).wait()
        assert 100 - 3 * hybrid <= len(reply.tokens) <= 100  # a character may be cut off
        assert sum(lengths) <= len(reply.kv_cache)
        assert model.stats.get('drafted_tokens', 0) == 0
        assert not model.backend.trims_exactly


def test_a_model_with_a_kv_cache_guesses(tmp_path):
    write_tiny_bpe(tmp_path / 'a.gguf')
    with NanoLLM.from_pretrained(str(tmp_path / 'a.gguf'), max_context_len=1024) as model:
        assert model.backend.trims_exactly


class Forgetful(FakeBackend):
    """Loses everything if it has to go back, and does not say so beforehand."""

    def trim(self, seq, n):
        return super().trim(seq, 0 if n < len(self._kv[seq]) else n)


@pytest.mark.parametrize('kind', [FakeBackend, Forgetful])
def test_guessing_ends_at_the_first_cut_that_is_not_exact(kind):
    speed = 'tokens_per_second=1000,prefill_per_second=1000000'
    backend = kind(speed, ModelConfig(max_context_len=4096, kv_tokens=4096, max_sequences=1))
    backend.open()
    with NanoLLM(backend, backend.config) as model:
        lengths = counting(model)
        model.generate('abcabd' * 50 + '\0' + 'abcabd' * 20, max_new_tokens=200).wait()  # to know the costs
        del lengths[:]
        drafted = model.stats.get('drafted_tokens', 0)
        reply = model.generate('abcabd' * 20 + 'abcabe' * 20 + '\0', max_new_tokens=230).wait()
        drafted = model.stats['drafted_tokens'] - drafted
        assert drafted or kind is Forgetful
        assert sum(lengths) <= 2 * len(reply.kv_cache) + drafted
