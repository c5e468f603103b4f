"""The KV cache of a model library: sequences in pages, which forks share, through `vm.builtin.kv_state_*`.

Knows lengths and pages; nothing of tokens or logits. Source of the cache's behavior:
src/runtime/vm/paged_kv_cache.cc of TVM.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ros2_nanochat.backends.mlc.tvm_runtime import Runtime
from ros2_nanochat.errors import BackendError, one_line

PAGE = 16
"""Tokens of a page, as in mlc-llm's engine; FlashInfer and the TIR kernels support it."""


class PagedKV:
    """All sequences of one model.

    Attributes:
        tokens: Maximum number of tokens over all sequences.
        lengths: Tokens of each sequence that exists.
        state: The cache, as the library's functions take it.
    """

    def __init__(self, runtime: Runtime, machine, max_sequences: int, tokens: int, chunk: int):
        self._runtime = runtime
        self.tokens = tokens
        self.lengths: dict[int, int] = {}
        self._next = 0
        names = ('add_sequence', 'remove_sequence', 'fork_sequence', 'popn', 'begin_forward', 'end_forward')
        self._add, self._remove, self._fork, self._popn, self._begin, self._end = [
            runtime.required(f'vm.builtin.kv_state_{n}') for n in names
        ]
        self._free_pages = runtime.required('vm.builtin.attention_kv_cache_get_num_available_pages')
        # Each sequence may leave its last page partly empty, and a trim across a fork briefly needs one page.
        pages = -(-tokens // PAGE) + 2 * max_sequences
        self.state = self._create(machine, max_sequences, pages * PAGE, chunk)
        self._pages = self._free_pages(self.state)

    def _create(self, machine, max_sequences: int, tokens: int, chunk: int):
        shape = self._runtime.shape
        # the last argument is 0: the context never exceeds a sliding window, so the window need not slide
        arguments = [shape([n]) for n in (max_sequences, tokens, chunk, PAGE, 0)]
        makers = [
            self._runtime.function(machine, f'create_{kind}_paged_kv_cache') for kind in ('flashinfer', 'tir')
        ]
        error = None
        for create in filter(None, makers):
            try:
                return create(*arguments)
            # FlashInfer's cache needs kernels that may be missing; those of the other are in the library
            except Exception as failure:
                error = failure
        if error is None:
            raise BackendError(
                f'{self._runtime.library} has no function that makes a KV cache; compile the model with a'
                ' newer mlc_llm'
            )
        said = one_line(error, 200)
        if not re.search(r'alloc|memory', said, re.IGNORECASE):
            raise BackendError(
                f'{self._runtime.library} cannot make its KV cache with TVM {self._runtime.version} ({said});'
                ' it was compiled for another TVM: install that one, or compile it again with nanochat-mlc'
            ) from error
        raise BackendError(
            f'no memory for a KV cache of {tokens} tokens on {self._runtime.device} ({said}): ask for less'
            ' with max_context_len, max_sequences or kv_tokens'
        ) from error

    def new(self) -> int:
        """See `Backend.new_sequence`."""
        seq, self._next = self._next, self._next + 1
        self._add(self.state, seq)
        self.lengths[seq] = 0
        return seq

    def fork(self, seq: int, n: int) -> int:
        """Create a sequence with the first n tokens of another; they share whole pages."""
        if n == 0:
            return self.new()
        child, self._next = self._next, self._next + 1
        self._fork(self.state, seq, child, n)
        self.lengths[child] = n
        return child

    def trim(self, seq: int, n: int) -> int:
        """See `Backend.trim`."""
        if n < self.lengths[seq]:
            if n:
                self._popn(self.state, seq, self.lengths[seq] - n)
            else:  # frees the pages; popping everything off a shared block does not
                self._remove(self.state, seq)
                self._add(self.state, seq)
            self.lengths[seq] = n
        return self.lengths[seq]

    def free(self, seq: int) -> None:
        """See `Backend.free`."""
        del self.lengths[seq]
        self._remove(self.state, seq)

    @property
    def used(self) -> int:
        """Number of stored tokens; shared ones count once."""
        pages = self._pages - self._free_pages(self.state)
        return pages * PAGE - sum(-length % PAGE for length in self.lengths.values())

    # --- a forward ---

    def appending(self, seqs: Sequence[int], counts: Sequence[int]) -> _Appending:
        """Return a context manager that appends to some sequences, and undoes that if its block fails.

        Args:
            seqs: The sequences.
            counts: Number of tokens for each.

        Raises:
            BackendError: There is not enough room.
        """
        total = sum(counts)
        # the sum of all lengths is an upper bound of what is stored, and usually decides
        if sum(self.lengths.values()) + total > self.tokens and (free := self.tokens - self.used) < total:
            raise BackendError(
                f'the KV cache has no room: {total} tokens are to go in, and {max(0, free)} of {self.tokens}'
                ' are free; raise kv_tokens, or lower max_sequences or max_context_len'
            )
        return _Appending(self, seqs, counts)

    def begin(self, seqs: Sequence[int], counts: Sequence[int]) -> None:
        """Tell the cache what the next call of the library appends."""
        self._begin(self.state, self._runtime.shape(seqs), self._runtime.shape(counts))
        for seq, count in zip(seqs, counts):
            self.lengths[seq] += count

    def end(self) -> None:
        """Tell the cache that the call has ended."""
        self._end(self.state)


class _Appending:
    def __init__(self, kv: PagedKV, seqs: Sequence[int], counts: Sequence[int]):
        self._kv, self._seqs, self._counts = kv, seqs, counts

    def __enter__(self):
        self._kv.begin(self._seqs, self._counts)

    def __exit__(self, kind, error, trace):
        kv = self._kv
        kv.end()
        if kind is not None:
            for seq, count in zip(self._seqs, self._counts):
                kv.trim(seq, kv.lengths[seq] - count)
