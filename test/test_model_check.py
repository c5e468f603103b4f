"""The check of an opened model, on backends that compute wrongly."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from ros2_nanochat.backends import check
from ros2_nanochat.backends.check import check_model
from ros2_nanochat.backends.fake import FakeBackend
from ros2_nanochat.backends.logits import HostLogits
from ros2_nanochat.config import ModelConfig
from ros2_nanochat.errors import BackendError


class Wrong(FakeBackend):
    """Its logits are what `fault` makes of the right ones."""

    def __init__(self, fault, context=64):
        super().__init__('', ModelConfig(max_context_len=context, kv_tokens=4 * context))
        self.fault = fault
        self.open()

    def forward(self, chunks):
        return HostLogits(self.fault(np.array(super().forward(chunks)), len(chunks[0])))


def roll(logits, length):
    return np.roll(logits, 7, axis=1) if length == 3 else logits


@pytest.mark.parametrize(
    'fault, said',
    [
        (lambda logits, length: logits * np.nan, 'not numbers'),
        (lambda logits, length: np.where(logits > 0, np.inf, logits), 'infinite'),
        (lambda logits, length: logits * 0, 'all the same'),
        (roll, 'how a text is cut'),
        (lambda logits, length: logits if length != 2 else logits * np.nan, 'not numbers'),
        (lambda logits, length: np.roll(logits, 7, axis=1) if length == 1 else logits, 'how a text is cut'),
        (lambda logits, length: logits if length != 1 else logits * np.nan, 'not numbers'),
    ],
)
def test_a_model_that_computes_wrongly_is_refused_in_one_line(fault, said):
    backend = Wrong(fault)
    with pytest.raises(BackendError, match=said) as caught:
        check_model(backend)
    assert '\n' not in str(caught.value) and 'fake' in str(caught.value)
    assert backend.kv_used == 0


class WrongBehind(Wrong):
    """Its logits are wrong if several tokens follow at least as many as `behind`: libraries of mlc-llm are
    known that run one token, and several behind one, and nothing else.
    """

    def __init__(self, behind, context=64):
        self.behind = behind
        super().__init__(lambda logits, length: logits, context)

    def forward(self, chunks):
        held, several = len(self._kv[chunks[0].seq]), len(chunks[0]) > 1
        logits = super().forward(chunks)
        return (
            HostLogits(np.full_like(np.array(logits), np.nan)) if several and held >= self.behind else logits
        )


@pytest.mark.parametrize('behind', [1, 2])
def test_several_tokens_that_follow_several_are_checked(behind):
    with pytest.raises(BackendError, match='not numbers'):
        check_model(WrongBehind(behind))


def test_a_fault_within_a_context_of_three_tokens_is_seen():
    with pytest.raises(BackendError, match='not numbers'):
        check_model(WrongBehind(1, context=3))


@pytest.mark.parametrize('context', [1, 2, 3, 4])
def test_a_context_of_few_tokens_is_checked_as_far_as_it_goes(context):
    backend = FakeBackend('', ModelConfig(max_context_len=context, kv_tokens=context, max_sequences=1))
    backend.open()
    check_model(backend)
    assert backend.kv_used == 0


def test_rounding_is_no_fault():
    random = np.random.default_rng(0)
    check_model(Wrong(lambda logits, length: logits + random.uniform(-0.3, 0.3, logits.shape)))


def test_a_fault_beyond_the_window_is_seen_where_that_is_quick(monkeypatch):
    """Only a text that is longer than the window comes out otherwise in pieces."""
    backend = Wrong(lambda logits, length: np.roll(logits, 7, axis=1) if length > 16 else logits)
    check_model(backend)
    backend.info = dataclasses.replace(backend.info, sliding_window=16)
    with pytest.raises(BackendError, match='beyond its window of 16 tokens') as caught:
        check_model(backend)
    assert '\n' not in str(caught.value) and backend.kv_used == 0
    monkeypatch.setattr(check, '_SECONDS', 0.0)
    assert not check_model(backend), 'the next start has to try again'
    backend.info = dataclasses.replace(backend.info, sliding_window=60)  # the context ends before
    assert check_model(backend)
