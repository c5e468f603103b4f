"""Stop tokens in NanoLLM's forms."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from ros2_nanochat import nano_llm

Stop = int | str | Sequence[int]


def stops_as_texts(core: nano_llm.NanoLLM, stops: Stop | Iterable[Stop] | None) -> object:
    """Return stop tokens as a `ros2_nanochat.NanoLLM` takes them: with a text in place of each list of ids.

    Args:
        core: The model.
        stops: Ids, texts and lists of ids, or only one id or text.
    """
    if isinstance(stops, str) or not isinstance(stops, Iterable):
        return stops
    return [_as_text(core, stop) if isinstance(stop, (list, tuple)) else stop for stop in stops]


def _as_text(core: nano_llm.NanoLLM, ids: Sequence[int]) -> int | str:
    if len(ids) == 1:
        return ids[0]
    special = {token.id: token.text for token in core.info.special_tokens}
    return ''.join(
        [
            ''.join([special[i] for i in run]) if is_special else core.detokenize(list(run))
            for is_special, run in itertools.groupby(ids, special.__contains__)
        ]
    )
