"""The node's diagnostics: what they report, and when it is a warning.

Plain values; the node turns them into messages.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from ros2_nanochat.config import ImageMode
from ros2_nanochat.robot.freshness import is_too_old

OK, WARN, ERROR = 0, 1, 2
"""Levels of diagnostic_msgs/DiagnosticStatus."""

_KV_FULL = 0.95
_QUEUE_FULL = 0.8


@dataclass
class Status:
    """One entry of the diagnostics.

    Attributes:
        name: What it is about.
        level: The level of its worst problem.
        messages: The problems, or the state if there are none.
        values: All figures.
    """

    name: str
    level: int = OK
    messages: list[str] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)

    def raise_to(self, level: int, message: str) -> None:
        """Add a problem, and raise the level if it is worse than the others."""
        self.level = max(self.level, level)
        self.messages.append(message)

    @property
    def message(self) -> str:
        """The messages in one line."""
        return '; '.join(self.messages)


def node_status(state: str, failure: str | None, loaded: float | None) -> Status:
    """Return the status of a node that has no model.

    Args:
        state: Its life cycle state.
        failure: Why the last transition failed, None if it did not.
        loaded: Fraction of the model that is loaded, None if nothing loads.
    """
    status = Status('engine', values={'state': state})
    if loaded is not None:
        status.values['loaded'] = f'{100 * loaded:.0f} %'
        status.messages.append(f'loading the model: {100 * loaded:.0f} %')
    elif failure:
        status.raise_to(ERROR, failure)
    else:
        status.messages.append(state)
    return status


def engine_status(state: str, model) -> Status:
    """Return the status of the engine of a `NanoLLM`."""
    stats, engine, info = model.stats, model.engine, model.info
    status = Status(
        'engine',
        values={
            'state': state,
            'model': info.name,
            'api': info.api,
            'context_length': info.context_length,
            'sequences': f'{stats["sequences"]} of {stats["max_sequences"]}',
            **(
                {'server': stats['server'], **stats['servers']}
                if 'servers' in stats
                else {'kv_tokens': f'{stats["kv_tokens"]} of {stats["kv_capacity"]}'}
            ),
            'active': stats['active'],
            'waiting': stats['waiting'],
            'generated_tokens': stats.get('generated_tokens', 0),
            'prefilled_tokens': stats.get('prefilled_tokens', 0),
            'reused_tokens': stats.get('reused_tokens', 0),
            'evictions': stats.get('evictions', 0),
            'time_per_token_p50': _seconds(stats['time_per_token']['p50']),
            'time_to_first_token_p50': _seconds(stats['time_to_first_token']['p50']),
            **({'threads': _threads(stats)} if 'threads' in stats else {}),
            'memory': f'{resident_bytes() / 2**20:.0f} MiB',
        },
    )
    if model.vision is not None:
        seen = model.vision.stats
        status.values.update(
            {
                'images_encoded': seen['encoded'],
                'images_reused': seen['reused'],
                'encode_time_mean': _seconds(seen['seconds'] / seen['encoded'] if seen['encoded'] else None),
            }
        )
    if not engine.alive:
        status.raise_to(ERROR, 'the loop of the engine has stopped')
    if stats['kv_tokens'] > _KV_FULL * stats['kv_capacity']:
        status.raise_to(
            WARN,
            f'the KV cache is nearly full: {stats["kv_tokens"]} of {stats["kv_capacity"]} tokens (kv_tokens,'
            ' max_sequences)',
        )
    for url, server in stats.get('servers', {}).items():
        if server.startswith('down'):
            status.raise_to(WARN, f'{url} is {server}')
    if not status.messages:
        status.messages.append(f'{info.name}, {state}')
    return status


def robot_status(chat) -> Status:
    """Return the status of one robot's `RobotConversation`."""
    last, options = chat.last, chat.options
    status = Status(
        f'robot {chat.name}' if chat.name else 'chat',
        values={
            'state': chat.state,
            'queue': f'{chat.num_waiting} of {options.max_queue}',
            'messages': len(chat.history),
        },
    )
    if last is not None:
        status.values.update(
            {
                'finish_reason': last.finish_reason,
                'tokens_per_second': f'{last.tokens_per_second:.1f}',
                'time_to_first_token': _seconds(last.time_to_first_token),
                'prompt_tokens': last.usage.prompt_tokens,
                'reused_tokens': 'unknown' if last.usage.reused_tokens is None else last.usage.reused_tokens,
                'served_by': last.served_by,
            }
        )
        if last.usage.image_tokens:
            status.values.update(
                {
                    'image_tokens': last.usage.image_tokens,
                    'reused_image_tokens': last.usage.reused_image_tokens,
                    'encode_time': _seconds(last.encode_time),
                }
            )
    if chat.sight.age is not None:
        status.values['image_age'] = _seconds(chat.sight.age)
        if is_too_old(chat.sight.age, options.max_image_age) and options.image_mode is not ImageMode.OFF:
            status.raise_to(
                WARN,
                f'the camera image is stale: {chat.sight.age:.1f} s (max_image_age:'
                f' {options.max_image_age:g})',
            )
    if chat.num_restarts:
        status.values['restarts'] = chat.num_restarts
    for fault in chat.faults:
        status.raise_to(ERROR, fault)
    if options.max_queue and chat.num_waiting >= _QUEUE_FULL * options.max_queue:
        status.raise_to(WARN, f'the queue is nearly full: {chat.num_waiting} of {options.max_queue} turns')
    if chat.slow:
        status.raise_to(
            WARN,
            f'slower than its own record: {last.tokens_per_second:.1f} of {chat.record:.1f} tokens a second',
        )
    if not status.messages:
        status.messages.append(chat.state)
    return status


def resident_bytes() -> int:
    """Return how much RAM this process uses."""
    with open('/proc/self/statm') as file:
        return int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE')


def _threads(stats: dict) -> str:
    decode, prefill = stats['threads'], stats['threads_prefill']
    both = f'{decode}' if decode == prefill else f'{decode} to decode, {prefill} to prefill'
    return f'{both} ({stats["threads_reason"]})'


def _seconds(value: float | None) -> str:
    return '' if value is None else f'{value:.4g} s'
