"""What /diagnostics says of chat nodes and their robots, and how it has changed lately.

Plain values, without ROS; used on one thread.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

SILENT = 4.0
"""Seconds without diagnostics after which a node, which sends them each second, counts as silent."""
_FORGOTTEN = 60.0  # seconds after which a silent node is no longer shown
_SAMPLES = 120
_OF = re.compile(r'(\d+) of (\d+)')
_ROBOT, _ALONE = 'robot ', 'chat'
_WATCH = re.compile(r'(?:(\S+) )?(watch \S+)')


class Diagnostics:
    """The latest diagnostics of all chat nodes.

    Args:
        clock: Returns the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._nodes: dict[str, dict[str, Any]] = {}

    def take(self, statuses: Sequence[dict[str, Any]]) -> None:
        """Take over a nanochat node's array; others' are ignored.

        Args:
            statuses: Its statuses, as values.
        """
        now = self._clock()
        engine = next((each for each in statuses if each['name'].endswith(': engine')), None)
        if engine is None or not engine['hardware_id']:
            return
        name = engine['hardware_id']
        samples = self._nodes.get(name, {}).get('samples') or deque(maxlen=_SAMPLES)
        mine = [_status(name, each) for each in statuses if each['hardware_id'] == name]
        robots = {each['robot']: each for each in mine if _is_robot(each['about'])}
        values = next(each['values'] for each in mine if each['about'] == 'engine')
        kv, capacity = _of(values.get('kv_tokens', ''))
        if capacity:
            samples.append(
                {
                    'time': time.time(),
                    'kv': kv,
                    'capacity': capacity,
                    'active': _number(values.get('active', '')),
                    'waiting': _number(values.get('waiting', '')),
                    'queues': {
                        prefix: _of(each['values'].get('queue', ''))[0] for prefix, each in robots.items()
                    },
                }
            )
        self._nodes[name] = {'seen': now, 'statuses': mine, 'robots': robots, 'samples': samples}

    def forget_old(self) -> None:
        """Drop nodes that have been silent for long."""
        now = self._clock()
        self._nodes = {name: node for name, node in self._nodes.items() if now - node['seen'] < _FORGOTTEN}

    def nodes(self) -> list[dict[str, Any]]:
        """Return each node: its name, whether it is silent, and what it says of its engine and robots."""
        now = self._clock()
        return [
            {'name': name, 'silent': now - node['seen'] > SILENT, 'statuses': node['statuses']}
            for name, node in sorted(self._nodes.items())
        ]

    def of_robot(self, prefix: str) -> tuple[str, dict[str, Any]] | None:
        """Return the node and the status of a robot, None if no node has told of it."""
        for name, node in self._nodes.items():
            if prefix in node['robots']:
                return name, node['robots'][prefix]
        return None

    def is_silent(self, name: str) -> bool:
        """Return whether a node has sent nothing for a while."""
        node = self._nodes.get(name)
        return node is not None and self._clock() - node['seen'] > SILENT

    def samples(self, name: str, prefix: str) -> list[dict[str, Any]]:
        """Return the last two minutes of a node's figures, with the queue of one robot."""
        node = self._nodes.get(name)
        return [_sample(each, prefix) for each in node['samples']] if node else []

    def newest(self, name: str, prefix: str) -> dict[str, Any] | None:
        """Return the newest of them."""
        node = self._nodes.get(name)
        return _sample(node['samples'][-1], prefix) if node and node['samples'] else None


def whose(node: str, about: str) -> tuple[str, str]:
    """Return the prefix of the topics of the robot that a status is about, and what it is about.

    Args:
        node: Full name of the node.
        about: What a status of that node is about: `engine`, `chat` or `robot <name>`, and
            `watch <question>`, with a robot's name before it if the node serves several.

    Returns:
        '' for a status of the node itself. A standing question is about `watch <question>`.
    """
    if watch := _WATCH.fullmatch(about):
        name, about = watch[1] or '', watch[2]
    elif _is_robot(about):
        name = about[len(_ROBOT) :] if about != _ALONE else ''
    else:
        return '', about
    space, _, leaf = node.rpartition('/')
    return f'{space}/{name}/{leaf}' if name else node, about


def _is_robot(about: str) -> bool:
    return about == _ALONE or about.startswith(_ROBOT)


def _status(node: str, status: dict[str, Any]) -> dict[str, Any]:
    robot, about = whose(node, status['name'].partition(': ')[2])
    return {
        'robot': robot,
        'about': about,
        'level': status['level'],
        'message': status['message'],
        'values': {pair['key']: pair['value'] for pair in status['values']},
    }


def _sample(sample: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {**{k: v for k, v in sample.items() if k != 'queues'}, 'queue': sample['queues'].get(prefix, 0)}


def _of(text: str) -> tuple[int, int]:
    match = _OF.match(text)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _number(text: str) -> int:
    return int(text) if text.isdigit() else 0
