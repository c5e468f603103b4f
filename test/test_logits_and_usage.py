"""What travels whole: the logits of a forward, wherever they lie, and what a reply took."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from ros2_nanochat import NanoLLM
from ros2_nanochat.backends.base import Chunk
from ros2_nanochat.backends.logits import HostLogits, Logits
from ros2_nanochat.engine.usage import Usage


@pytest.fixture(scope='module')
def model():
    with NanoLLM.from_pretrained('tokens_per_second=5000', api='fake') as model:
        yield model


def test_logits_on_the_host_are_what_numpy_makes_of_them():
    rows = np.array([[0.0, 3.0, 1.0], [2.0, -1.0, 0.5]], np.float32)
    logits = HostLogits(rows)
    assert logits.shape == rows.shape and len(logits) == 2 and not logits.can_sample
    assert logits.argmax().tolist() == [1, 0]
    copied = np.array(logits)
    rows[:] = 0  # the next forward
    assert copied[0, 1] == 3 and not np.asarray(logits).any()


def test_a_backend_returns_logits_of_the_contract(model):
    def forward():
        seq = model.backend.new_sequence()
        try:
            return model.backend.forward([Chunk(seq, ids=np.arange(5), num_logits=2)])
        finally:
            model.backend.free(seq)

    logits = model.engine.call(forward)
    assert isinstance(logits, Logits) and logits.shape == (2, model.info.vocab_size)
    assert logits.numpy().argmax(axis=1).tolist() == logits.argmax().tolist()


def test_usage_is_one_frozen_object_and_its_values_have_names(model):
    reply = model.generate('hello', max_new_tokens=4).wait()
    usage = reply.usage
    assert usage == reply.usage == model.stats['last'] and usage.new_tokens == usage['new_tokens'] == 4
    assert dict(usage) == dataclasses.asdict(usage) and set(usage.keys()) >= {'prompt_tokens', 'queue_time'}
    with pytest.raises(dataclasses.FrozenInstanceError):
        usage.new_tokens = 5
    with pytest.raises(KeyError, match='cost'):
        usage['cost']
    assert Usage().tokens_per_second is None


def test_the_older_name_of_deltas_still_works(model):
    reply = model.generate('hello', max_new_tokens=4)
    assert ''.join(piece.text for piece in reply.pieces()) == reply.text != ''
