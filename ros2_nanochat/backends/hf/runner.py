"""Runs chunks of sequences through a transformers model: packed into one forward if that gives the model's
own logits, else one forward per sequence.

Which of the two is determined by a test on the opened model. Knows nothing of checkpoints, tokenizers or the
engine's handles.
"""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from ros2_nanochat.backends.base import Chunk
from ros2_nanochat.backends.hf import packed_cache as hf_cache
from ros2_nanochat.backends.hf.model_inputs import model_inputs
from ros2_nanochat.backends.hf.packed_cache import PackedCache, Part
from ros2_nanochat.backends.hf.positions import commit, join_positions, layer_lists
from ros2_nanochat.backends.hf.sequences import PackedSequence, Positions, StockSequence
from ros2_nanochat.errors import BackendError, ForwardError, LoadAborted, one_line

log = logging.getLogger(__name__)

_DEEPSTACK = {'visual_pos_masks', 'deepstack_visual_embeds'}
"""Arguments of a language model that adds the picture in several layers (Qwen3-VL)."""

_PREFIX_MODELS = ('paligemma',)
"""`model_type` of models with bidirectional attention in the prompt; the positions of this one start at 1."""


class Runner:
    """A model and how its sequences are run.

    Attributes:
        packed: Several sequences share one forward.
        takes_embeddings: Rows of embeddings give the same logits as their ids.
        takes_deepstack: The language model can add to rows after its first layers.
        bidirectional_prompt: A prompt must be one chunk of embeddings with bidirectional attention.
        aborted: Set from any thread to end a forward between two layers.
    """

    def __init__(self, model, context_length: int, vocab_size: int, aborted: threading.Event):
        self.model = model
        self.context_length = context_length
        self.aborted = aborted
        self.embed = model.get_input_embeddings()
        self.device, self.dtype = self.embed.weight.device, model.dtype
        self.settings = model.config.get_text_config(decoder=True)
        accepts = inspect.signature(model.forward).parameters
        self._cache_name = 'cache_params' if 'cache_params' in accepts else 'past_key_values'
        self._takes_positions, self._takes_rows = 'position_ids' in accepts, 'logits_to_keep' in accepts
        for layers in layer_lists(model):
            for layer in layers:
                layer.register_forward_pre_hook(self._stop_if_aborted)
        stacked = next(
            (
                part
                for part in model.modules()
                if inspect.signature(part.forward).parameters.keys() >= _DEEPSTACK
            ),
            None,
        )
        self.takes_deepstack = stacked is not None
        self._deepstack: torch.Tensor | None = None
        if stacked is not None:  # the outer model passes on only what it computes from pixels
            stacked.register_forward_pre_hook(self._add_deepstack, with_kwargs=True)
        self.bidirectional_prompt = model.config.model_type in _PREFIX_MODELS
        self._first_position = int(self.bidirectional_prompt)
        self.packed = True
        self.takes_embeddings = True
        self._step = 0  # maximum number of entries in a forward of one sequence, 0 for no limit
        with torch.inference_mode():
            self._choose(vocab_size)
        if self.bidirectional_prompt and not (self.packed and self.takes_embeddings):
            raise BackendError(
                f'{type(model).__name__}: its prompt needs bidirectional attention, and its attention cannot'
                ' be replaced by one that allows it; another version of transformers may work'
            )

    def new(self) -> PackedSequence | StockSequence:
        """Create an empty sequence."""
        return PackedSequence(self.context_length) if self.packed else StockSequence(self.model.config)

    def forward(self, chunks: Sequence[tuple[Positions, Chunk]]) -> torch.Tensor:
        """Append each chunk to its sequence; return the requested rows of logits, [k, v] in the model's
        dtype.
        """
        for sequence, chunk in chunks:
            if sequence.length + len(chunk) > self.context_length:
                raise ForwardError(
                    f'{sequence.length} + {len(chunk)} tokens are more than the context of'
                    f' {self.context_length}',
                    [0] * len(chunks),
                )
        filled: list[Any] = [(sequence, chunk) for sequence, chunk in chunks if len(chunk)]
        with torch.inference_mode():
            if self.packed:
                return self._forward_packed(filled)
            return self._forward_each(filled)

    # ---- packed

    def _forward_packed(self, chunks: Sequence[tuple[PackedSequence, Chunk]]) -> torch.Tensor:
        parts: list[Part] = []
        wanted: list[int] = []
        start = 0
        for sequence, chunk in chunks:
            n = len(chunk)
            parts.append(Part(sequence, start, n, chunk.bidirectional))
            wanted += range(start + n - chunk.num_logits, start + n)
            start += n
        try:
            with PackedCache(parts) as cache:
                rows = self._call(
                    model_inputs([chunk for _, chunk in chunks], self.embed, self.dtype, self.device),
                    join_positions(chunks),
                    cache,
                    wanted or [start - 1],
                )
        except LoadAborted:
            raise
        except Exception as error:  # out of memory, or any error of the model's code; nothing was committed
            raise ForwardError(f'the model failed: {one_line(error)}', [0] * len(chunks)) from error
        for sequence, chunk in chunks:
            commit(sequence, chunk)
        return rows[: len(wanted)]

    # ---- one sequence a forward

    def _forward_each(self, chunks: Sequence[tuple[StockSequence, Chunk]]) -> torch.Tensor:
        rows: list[torch.Tensor] = []
        committed: list[int] = []
        for index, (sequence, chunk) in enumerate(chunks):
            before = sequence.state()
            if chunk.num_logits > 1:  # guesses, some of which may be trimmed again
                sequence.checkpoint()
            try:
                rows.append(self._forward_stock(sequence, chunk))
            except LoadAborted:
                sequence.restore(before)
                raise
            except Exception as error:
                sequence.restore(before)
                raise ForwardError(
                    f'the model failed: {one_line(error)}', committed + [0] * (len(chunks) - index)
                ) from error
            committed.append(len(chunk))
        return torch.cat(rows) if rows else torch.empty(0, self.settings.vocab_size)

    def _forward_stock(self, sequence: StockSequence, chunk: Chunk) -> torch.Tensor:
        if chunk.bidirectional:
            raise ValueError(
                f'{type(self.model).__name__} runs one sequence at a time here, which does not allow'
                ' bidirectional attention within a chunk'
            )
        positions = join_positions([(sequence, chunk)])
        inputs, n, rows = model_inputs([chunk], self.embed, self.dtype, self.device), len(chunk), []
        step = self._step or n
        for start in range(0, n, step):
            end = min(start + step, n)
            cut = {name: value[:, start:end] for name, value in inputs.items()}
            wanted = range(max(n - chunk.num_logits, start) - start, end - start)
            got = self._call(
                cut, positions[..., start:end], sequence.cache, list(wanted) or [end - start - 1]
            )
            rows.append(got[: len(wanted)])
        commit(sequence, chunk)
        if n > 1 and chunk.num_logits:
            sequence.checkpoint()
        return torch.cat(rows)

    # ---- the model

    def _call(self, inputs: dict, positions: torch.Tensor, cache, wanted: list[int]) -> torch.Tensor:
        rows = torch.tensor(wanted, device=self.device)
        options = {self._cache_name: cache, 'use_cache': True}
        if self._takes_positions:
            options['position_ids'] = positions.to(self.device) + self._first_position
        if self._takes_rows:
            options['logits_to_keep'] = rows
        self._deepstack = inputs.pop('deepstack', None)
        logits = self.model(**inputs, **options).logits[0]
        return logits if self._takes_rows else logits[rows]

    def _add_deepstack(self, module, args, options: dict) -> tuple | None:
        """Pass the language model what to add to each row, if anything."""
        rows, self._deepstack = self._deepstack, None
        if rows is None:
            return None
        return args, {
            **options,
            'visual_pos_masks': torch.ones(1, rows.shape[1], dtype=torch.bool, device=rows.device),
            'deepstack_visual_embeds': list(rows),
        }

    def _stop_if_aborted(self, *_) -> None:
        if self.aborted.is_set():
            raise LoadAborted('the forward was aborted')

    # ---- which way

    def _choose(self, vocab_size: int) -> None:
        """Compare the logits of seven ids at once without a cache with those in chunks, in a batch, and as
        embeddings.
        """
        ids = torch.randint(0, vocab_size, (7,), generator=torch.Generator().manual_seed(0)).numpy()
        inputs = {'input_ids': torch.as_tensor(ids)[None].to(self.device)}
        if self.bidirectional_prompt:  # type 1 marks a reply, which is causal
            inputs['token_type_ids'] = torch.ones_like(inputs['input_ids'])
        expected = self.model(**inputs).logits[0].float().cpu().numpy()
        exact = (
            self.dtype == torch.float32 and getattr(self.model, 'hf_quantizer', None) is None
        )  # kernels of quantizers round internally
        tolerance = (1e-3 if exact else 0.1) * max(float(np.abs(expected).max()), 1e-6)

        def agrees(**first) -> bool:
            a, b = self.new(), self.new()
            try:
                self.forward([(a, Chunk(0, **(first or {'ids': ids[:4]})))])
                rows = (
                    self.forward(
                        [(a, Chunk(0, ids=ids[4:], num_logits=3)), (b, Chunk(1, ids=ids, num_logits=2))]
                    )
                    .float()
                    .cpu()
                    .numpy()
                )
            except (ForwardError, AttributeError, NotImplementedError) as error:
                log.debug('%s: %s', type(self.model).__name__, error)
                return False
            return (
                bool((np.abs(rows - expected[[4, 5, 6, 5, 6]]) <= tolerance).all())
                or not np.isfinite(expected).all()
            )

        before = self.settings._attn_implementation
        recurrent = any(
            isinstance(layer, LinearAttentionCacheLayerMixin)
            for layer in StockSequence(self.model.config).cache.layers
        )
        self.packed = (
            bool(self.model._supports_attention_backend)
            and not recurrent
            and self._set_attention(hf_cache.NAME)
            and agrees()
        )
        if not self.packed:
            self._set_attention(before)
            for self._step in (0, 1):
                if agrees():
                    break
            else:
                raise BackendError(
                    f'{type(self.model).__name__} does not give the same logits with its cache as without;'
                    ' another version of transformers may'
                )
        self.takes_embeddings = agrees(
            embeddings=self.embed(torch.as_tensor(ids[:4]).to(self.device)).float().cpu().numpy()
        )

    def _set_attention(self, name: str) -> bool:
        """Replace the attention of the language model, but not of a vision part. False if that is not
        possible.
        """
        config = self.model.config
        if self.settings._attn_implementation == name:
            return True
        if self.settings is config:
            self.model.set_attn_implementation(name)
        else:
            key = next(
                (key for key in config.sub_configs if getattr(config, key, None) is self.settings), None
            )
            if key is not None:
                self.model.set_attn_implementation({key: name})
        return self.settings._attn_implementation == name

    def compile(self) -> None:
        """Compile the layers, and run a chunk and a step now so that no reply waits. Our own attention is not
        compiled.
        """
        for layers in layer_lists(self.model):
            for layer in layers:
                layer.compile(dynamic=True)
        sequence = self.new()
        for n in (7, 5, 1, 1):
            self.forward([(sequence, Chunk(0, ids=np.zeros(n, np.int64), num_logits=1))])
