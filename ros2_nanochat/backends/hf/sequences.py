"""The KV of one sequence: our own packed rows, or a cache of transformers."""

from __future__ import annotations

import copy

import safetensors.torch
import torch
from transformers import Cache, DynamicCache
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from ros2_nanochat.backends.positions import Positions


class PackedSequence(Positions):
    """KV of one sequence: for each layer keys and values [1, heads, room, width], of which the first `length`
    entries are used.

    Args:
        limit: Maximum number of entries.
    """

    GRAIN = 64

    def __init__(self, limit: int):
        super().__init__()
        self.limit = limit
        self.layers: dict[int, list[torch.Tensor]] = {}

    def room(self, layer: int, n: int, key: torch.Tensor, value: torch.Tensor) -> list[torch.Tensor]:
        """Return the tensors of a layer, with room for n entries.

        Args:
            layer: Index of the layer.
            n: Number of entries.
            key, value: Keys and values of the layer, for their shape and type.
        """
        kv = self.layers.get(layer)
        if kv is None or kv[0].shape[2] < n:
            size = max(n, min(2 * (kv[0].shape[2] if kv else 0), self.limit))
            size = -(-size // self.GRAIN) * self.GRAIN
            grown = [states.new_empty(1, states.shape[1], size, states.shape[3]) for states in (key, value)]
            if kv is not None:
                for old, new in zip(kv, grown):
                    new[:, :, : self.length] = old[:, :, : self.length]
            kv = self.layers[layer] = grown
        return kv

    def copy(self, n: int) -> PackedSequence:
        """Return an independent sequence with the first n entries, or fewer if n is inside a span."""
        other = copy.copy(self)
        other.spans = list(self.spans)
        n = other.trim(n)
        size = -(-max(n, 1) // self.GRAIN) * self.GRAIN
        other.layers = {
            layer: [states[:, :, :size].clone() for states in kv] for layer, kv in self.layers.items()
        }
        return other

    def to_bytes(self, model: bytes) -> bytes:
        """Return all that it holds, in safetensors format.

        Args:
            model: Identifies the model.
        """
        tensors = {
            'model': torch.frombuffer(bytearray(model), dtype=torch.uint8),
            'at': torch.tensor([self.length, self.next]),
            'spans': torch.tensor(self.spans, dtype=torch.long).reshape(-1, 4),
        }
        for layer, kv in self.layers.items():
            for name, states in zip('kv', kv):
                tensors[f'{layer}.{name}'] = states[:, :, : self.length].contiguous().cpu()
        return safetensors.torch.save(tensors)

    @classmethod
    def from_bytes(cls, data: bytes, model: bytes, limit: int, device: torch.device) -> PackedSequence | None:
        """Restore what `to_bytes` returned.

        Args:
            data: The bytes.
            model: Identifies the model.
            limit: Maximum number of entries.
            device: Where to put the tensors.

        Returns:
            The sequence; None if it is from another model, or longer than the limit.
        """
        tensors = safetensors.torch.load(data)
        if bytes(tensors.pop('model').tolist()) != model:
            return None
        sequence = cls(limit)
        sequence.length, sequence.next = tensors.pop('at').tolist()
        sequence.spans = [tuple(span) for span in tensors.pop('spans').tolist()]
        if sequence.length > limit:
            return None
        for name in tensors:
            layer, _, which = name.rpartition('.')
            if which == 'k':
                sequence.layers[int(layer)] = [tensors[f'{layer}.{each}'].to(device) for each in 'kv']
        return sequence


class StockSequence(Positions):
    """One sequence in a transformers cache, for recurrent and hybrid models and those whose attention cannot
    be replaced.

    A recurrent state cannot go back: copies are kept from the ends of the last prompts, and `trim` returns to
    one of them.
    """

    CHECKPOINTS = 3

    def __init__(self, config):
        super().__init__()
        self._config = config
        self.cache = DynamicCache(config=config)
        self._checkpoints: list[tuple[int, int, list, Cache]] = []

    def state(self) -> tuple[int, int, list, Cache]:
        """Return a state for `restore`. Cheap: transformers does not overwrite keys and values, and recurrent
        states are small.
        """
        return self.length, self.next, list(self.spans), _snapshot(self.cache)

    def restore(self, state: tuple[int, int, list, Cache]) -> None:
        """Return to a state."""
        self.length, self.next, spans, cache = state
        self.spans, self.cache = list(spans), _snapshot(cache)

    def checkpoint(self) -> None:
        """Keep a copy of this point, if the cache cannot be cropped back to it."""
        if any(
            isinstance(layer, LinearAttentionCacheLayerMixin) or getattr(layer, 'is_sliding', False)
            for layer in self.cache.layers
        ):
            self._checkpoints = [*self._checkpoints, self.state()][-self.CHECKPOINTS :]

    def trim(self, n: int) -> int:
        """See `Positions.trim`; also goes back further if the cache must."""
        if n >= self.length:
            return self.length
        before = self.length
        kept = super().trim(n)
        self._checkpoints = [point for point in self._checkpoints if point[0] <= kept]
        if kept and self._crop(before, before - kept):
            return kept
        self.restore(
            self._checkpoints[-1] if self._checkpoints else (0, 0, [], DynamicCache(config=self._config))
        )
        return self.length

    def copy(self, n: int) -> StockSequence:
        """Return an independent sequence with the first n entries, or fewer if the cache cannot go back."""
        other = copy.copy(self)
        other.restore(self.state())
        other.trim(n)
        return other

    def _crop(self, length: int, n: int) -> bool:
        for layer in self.cache.layers:
            if isinstance(layer, LinearAttentionCacheLayerMixin) or not layer.is_croppable:
                return False
            if getattr(layer, 'is_sliding', False) and length >= layer.sliding_window:
                return False
        self.cache.crop(-n)
        return True


def _snapshot(cache: Cache) -> Cache:
    other = copy.copy(cache)
    other.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in other.layers:
        for name, value in vars(layer).items():
            if isinstance(value, dict):  # a recurrent layer overwrites its states and its flags about them
                setattr(
                    layer,
                    name,
                    {
                        key: state.clone() if isinstance(state, torch.Tensor) else state
                        for key, state in value.items()
                    },
                )
    return other
