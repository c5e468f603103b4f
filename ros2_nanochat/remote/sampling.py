"""The options of a reply as fields of a request, under the names that the server has for them."""

from __future__ import annotations

from typing import Any

from ros2_nanochat.config import GenerationConfig
from ros2_nanochat.remote.capabilities import Capabilities


def sampling(config: GenerationConfig, can: Capabilities) -> dict[str, Any]:
    """Return the fields that say how ids are chosen. Those for which servers have defaults of their own are
    always sent.
    """
    wanted: dict[str, Any] = {'temperature': 0.0 if config.greedy else config.temperature}
    if not config.greedy:
        wanted.update(top_p=config.top_p, top_k=config.top_k, min_p=config.min_p)
        if config.seed is not None:
            wanted['seed'] = config.seed
    wanted['repetition_penalty'] = config.repetition_penalty
    if config.min_new_tokens:
        wanted['min_new_tokens'] = config.min_new_tokens
    return {can.options[name]: value for name, value in wanted.items() if name in can.options}


def without_effect(config: GenerationConfig, can: Capabilities) -> list[str]:
    """Return the options that are set and that the server does not have."""
    is_set = {
        'temperature': config.do_sample,
        'top_p': not config.greedy and config.top_p < 1,
        'top_k': not config.greedy and config.top_k > 0,
        'min_p': not config.greedy and config.min_p > 0,
        'seed': not config.greedy and config.seed is not None,
        'repetition_penalty': config.repetition_penalty != 1,
        'min_new_tokens': config.min_new_tokens > 0,
    }
    return [name for name in can.missing if is_set[name]]
