"""The arrays of a `llama_batch`, which are filled again and again: nothing of an earlier batch stays."""

from __future__ import annotations

import numpy as np
import pytest

from ros2_nanochat.backends.base import Chunk
from ros2_nanochat.backends.gguf.batch import Batch
from ros2_nanochat.backends.positions import Positions

api = pytest.importorskip('llama_cpp.llama_cpp')


def contents(batch) -> list[tuple]:
    """(id, position, sequence, wanted) of each entry, as llama.cpp reads them."""
    return [
        (batch.token[i], batch.pos[i], batch.seq_id[i][0], batch.logits[i]) for i in range(batch.n_tokens)
    ]


def ids(*values: int, num_logits: int = 0) -> Chunk:
    return Chunk(0, ids=np.array(values), num_logits=num_logits)


def test_single_entries_and_runs_in_any_order_leave_nothing_behind():
    batch = Batch(api, 16, 4)
    for _ in range(2):
        filled = batch.fill([ids(5, 6, 7, num_logits=2), ids(8, num_logits=1)], [1, 3], [10, 20], None)
        assert contents(filled) == [(5, 10, 1, 0), (6, 11, 1, 1), (7, 12, 1, 1), (8, 20, 3, 1)]
        filled = batch.fill([ids(9), ids(1, 2, 3)], [0, 2], [4, 0], None)
        assert contents(filled) == [(9, 4, 0, 0), (1, 0, 2, 0), (2, 1, 2, 0), (3, 2, 2, 0)]
        assert contents(batch.fill([ids(4, num_logits=1)], [2], [7], None)) == [(4, 7, 2, 1)]
        assert contents(batch.fill([ids(4)], [2], [8], None)) == [(4, 8, 2, 0)]


def test_ids_follow_embeddings_and_the_other_way_round():
    batch, rows = Batch(api, 16, 4), np.arange(6, dtype=np.float32).reshape(2, 3)
    for _ in range(2):
        filled = batch.fill([Chunk(0, embeddings=rows, num_logits=1)], [1], [3], rows)
        assert not filled.token and [filled.embd[i] for i in range(6)] == rows.ravel().tolist()
        assert [(filled.pos[i], filled.logits[i]) for i in range(2)] == [(3, 0), (4, 1)]
        filled = batch.fill([ids(7, num_logits=1)], [1], [5], None)
        assert not filled.embd and contents(filled) == [(7, 5, 1, 1)]


def test_positions_on_several_axes_are_those_of_this_batch():
    batch, rows = Batch(api, 16, 4, axes=4), np.zeros((3, 3), np.float32)
    places = np.array([[0, 0, 0], [0, 0, 1], [0, 1, 0]])
    for _ in range(2):
        filled = batch.fill([Chunk(0, embeddings=rows, positions=places)], [1], [5], rows)
        assert [filled.pos[i] for i in range(12)] == [5, 5, 5, 5, 5, 6, 5, 6, 5, 0, 0, 0]
        filled = batch.fill([Chunk(0, embeddings=rows[:2])], [2], [8], rows[:2])
        assert [filled.pos[i] for i in range(8)] == [8, 9] * 4
        assert contents(batch.fill([ids(4, num_logits=1)], [3], [2], None)) == [(4, 2, 3, 1)]


def test_ids_of_the_same_sequences_follow_one_another_whatever_came_between():
    batch, rows = Batch(api, 16, 4), np.arange(6, dtype=np.float32).reshape(2, 3)
    positions = [Positions(), Positions()]
    slots, others = [1, 2], [0, 3]

    def step(slots, *values):
        starts = [position.next for position in positions]
        filled = batch.fill_ids(values, slots, positions)
        assert not filled.embd and contents(filled) == [
            (value, start, slot, 1) for value, start, slot in zip(values, starts, slots)
        ]
        for position in positions:
            position.append(1)

    step(slots, 5, 6)
    step(slots, 7, 8)
    batch.fill([ids(9, 9, 9)], [3], [0], None)  # no logits
    step(slots, 1, 2)
    step(others, 3, 4)
    step(slots, 5, 6)
    batch.fill([Chunk(0, embeddings=rows)], [1], [3], rows)
    step(slots, 7, 8)
    with pytest.raises(IndexError):
        batch.fill_ids([1] * 17, [0, 1, 2, 3] * 4 + [0], [Positions()] * 17)
    step(slots, 9, 1)
