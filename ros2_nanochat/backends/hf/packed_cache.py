"""KV caches of `hf`: several conversations in one forward of a transformers model, without padding.

The chunks of a batch form one row. Linear layers are not affected; attention is replaced by one that lets
each chunk attend to the KV of its own sequence. Masks follow the model's own rules (causal, sliding window,
chunked), evaluated for each chunk. So a batch has no padding, no KV moves when conversations come and go, and
a prefill shares a forward with others' decode steps. Models whose attention cannot be replaced run through
`StockSequence`, one sequence per forward. Knows nothing of checkpoints, devices or the engine.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from transformers import AttentionInterface, AttentionMaskInterface, Cache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import causal_mask_function, sdpa_mask

from ros2_nanochat.backends.hf.sequences import PackedSequence

NAME = 'nanochat_packed'
"""The name of our attention in transformers."""

_active = threading.local()


@dataclass(eq=False)
class Part:
    """One chunk of a packed forward: `n` entries from column `start` of the row, which follow the `past`
    entries of `seq`.
    """

    seq: PackedSequence
    start: int
    n: int
    bidirectional: bool = False
    past: int = field(init=False)

    def __post_init__(self):
        self.past = self.seq.length


class PackedCache(Cache):
    """The `past_key_values` of a packed forward.

    Args:
        parts: The chunks of the forward.
    """

    def __init__(self, parts: Sequence[Part]):
        super().__init__(layers=[])
        self.parts = list(parts)
        self._last: tuple[torch.Tensor | None, int] = (None, -1)

    def __enter__(self) -> PackedCache:
        _active.cache = self
        return self

    def __exit__(self, *_) -> None:
        _active.cache = None

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args, **kwargs):
        """Store the keys and values of a layer; called by the model's attention."""
        for part in self.parts:
            key, value = part.seq.room(layer_idx, part.past + part.n, key_states, value_states)
            here, there = slice(part.start, part.start + part.n), slice(part.past, part.past + part.n)
            key[:, :, there] = key_states[:, :, here]
            value[:, :, there] = value_states[:, :, here]
        self._last = (key_states, layer_idx)
        return key_states, value_states

    def layer_of(self, key: torch.Tensor) -> int:
        """Return the index of the layer whose keys were stored last; `key` must be these keys.

        Raises:
            RuntimeError: The model changed them.
        """
        if key is not self._last[0]:
            raise RuntimeError('the model changes keys between its cache and its attention')
        return self._last[1]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the longest past of the parts, as transformers expects."""
        return max(part.past for part in self.parts)

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Return `(length, offset)` of the KV, as transformers expects."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """Return -1: there is no limit."""
        return -1


@dataclass
class Rule:
    """What a part's entries attend to in their sequence.

    Attributes:
        first: The first entry.
        mask: [n, k], added to the scores; None for all entries.
        causal: Whether a plain causal mask applies.
    """

    first: int = 0
    mask: torch.Tensor | None = None
    causal: bool = False


def _rule(part: Part, function, dtype: torch.dtype, device) -> Rule:
    if function is causal_mask_function and not part.bidirectional:
        if part.n == 1:
            return Rule()
        if not part.past:
            return Rule(causal=True)
    end = part.past + part.n
    rows = torch.arange(part.past, end, device=device)
    columns = torch.arange(end, device=device)
    zero = torch.zeros(1, 1, 1, 1, dtype=torch.long, device=device)
    allowed = function(zero, zero, rows[None, None, :, None], columns[None, None, None, :]).expand(
        1, 1, part.n, end
    )[0, 0]
    if part.bidirectional:
        allowed = allowed | (columns[None] >= part.past)
    first = int(allowed.any(0).int().argmax())
    allowed = allowed[:, first:]
    if bool(allowed.all()):
        return Rule(first)
    return Rule(
        first, torch.zeros(allowed.shape, dtype=dtype, device=device).masked_fill_(~allowed, -torch.inf)
    )


def packed_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function=causal_mask_function,
    attention_mask=None,
    dtype: torch.dtype = torch.float32,
    device='cpu',
    **options,
):
    """Build the mask of a packed forward; registered as a mask function of transformers.

    The rules of the parts are attached to a tensor that goes through the model untouched.
    """
    cache = getattr(_active, 'cache', None)
    if cache is None:
        return sdpa_mask(
            batch_size,
            q_length,
            kv_length,
            q_offset,
            kv_offset,
            mask_function,
            attention_mask,
            dtype=dtype,
            device=device,
            **options,
        )
    carrier = torch.empty(0)
    carrier.rules = [_rule(part, mask_function, dtype, device) for part in cache.parts]
    return carrier


def packed_attention(
    module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **options,
):
    """Attend from each part to the KV of its own sequence; registered as an attention function of
    transformers.

    Args:
        query: [1, heads, n, width]. The other arguments are those of transformers.

    Returns:
        [1, n, heads, width], and None for the weights.
    """
    cache = getattr(_active, 'cache', None)
    if cache is None:
        if softcap is not None or s_aux is not None:
            raise RuntimeError('attention with caps or sinks runs only through the packed cache')
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    if options.get('position_bias') is not None:
        raise RuntimeError('position biases are not packed')
    layer, rules = cache.layer_of(key), attention_mask.rules
    outputs = []
    for part, rule in zip(cache.parts, rules):
        keys, values = part.seq.layers[layer]
        end = part.past + part.n
        outputs.append(
            _attend(
                query[:, :, part.start : part.start + part.n],
                keys[:, :, rule.first : end],
                values[:, :, rule.first : end],
                rule,
                scaling,
                softcap,
                s_aux,
            )
        )
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1)), None


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rule: Rule, scaling, softcap, sinks
) -> torch.Tensor:
    """Attention [1, n, heads, width] of one part. Heads that share keys are folded into the rows, so no key
    is copied.
    """
    _, heads, n, width = query.shape
    groups = heads // key.shape[1]
    if rule.causal and softcap is None and sinks is None:
        if groups > 1:
            key, value = (states.repeat_interleave(groups, 1) for states in (key, value))
        return torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling
        ).transpose(1, 2)
    folded = query.reshape(1, key.shape[1], groups * n, width)
    mask = rule.mask
    if rule.causal:
        mask = torch.full((n, n), -torch.inf, dtype=query.dtype, device=query.device).triu_(1)
    if mask is not None and groups > 1:
        mask = mask.repeat(groups, 1)
    if softcap is None and sinks is None:
        output = torch.nn.functional.scaled_dot_product_attention(
            folded, key, value, attn_mask=mask, scale=scaling
        )
    else:
        scores = folded @ key.transpose(2, 3) * (scaling if scaling is not None else width**-0.5)
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        if mask is not None:
            scores = scores + mask
        if sinks is not None:  # one more score for each head, which takes its share of the weights
            sink = sinks.reshape(1, key.shape[1], groups, 1).repeat_interleave(n, 2).to(scores.dtype)
            scores = torch.cat([scores, sink], -1)
        weights = torch.softmax(scores, -1, dtype=torch.float32).to(query.dtype)
        output = weights[..., : key.shape[2]] @ value
    return output.reshape(1, heads, n, -1).transpose(1, 2)


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, packed_mask)
