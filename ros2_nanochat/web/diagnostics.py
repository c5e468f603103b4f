"""What /diagnostics says of chat nodes and their robots, and how it has changed lately.

Plain values, without ROS; used on one thread.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

SILENT = 4.0
"""Seconds without diagnostics after which a node, which sends them each second, counts as silent."""
_FORGOTTEN = 60.0  # seconds after which a silent node is no longer shown
_SAMPLES = 120
_MOST_NODES, _MOST_VALUES = 100, 80
_LONG = 1000  # characters of a text; the rest is cut off, as every page gets all of them
_OF = re.compile(r'([0-9]{1,15}) of ([0-9]{1,15})\b')
_NUMBER = re.compile(r'[0-9]{1,15}')
_NODE = re.compile(r'(?:/[A-Za-z_][A-Za-z0-9_]*)+')
_ENGINE = 'engine'
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
        name = node_of((each['name'], each['hardware_id']) for each in statuses)
        if name is None or (name not in self._nodes and len(self._nodes) >= _MOST_NODES):
            return
        samples = self._nodes.get(name, {}).get('samples') or deque(maxlen=_SAMPLES)
        mine = [_status(name, each) for each in statuses if _is_of(name, each['name'], each['hardware_id'])]
        robots = {each['robot']: each for each in mine if _is_robot(each['about'])}
        values = next(each['values'] for each in mine if each['about'] == _ENGINE)
        kv, capacity = _of(values.get('kv_tokens', ''))
        if capacity:
            samples.append(
                {
                    'time': time.time(),
                    'kv': kv,
                    'capacity': capacity,
                    'active': whole_number(values.get('active', '')),
                    'waiting': whole_number(values.get('waiting', '')),
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

    def of_robot(self, prefix: str, owner: str = '') -> tuple[str, dict[str, Any]] | None:
        """Return the node and the status of a robot, None if no node has told of it.

        Args:
            prefix: Prefix of the robot's topics.
            owner: The node that has these topics, '' if it is not known. No other node may tell of the robot.
        """
        nodes = {owner: self._nodes[owner]} if owner in self._nodes else self._nodes
        for name, node in nodes.items():
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


def node_of(statuses: Iterable[tuple[str, str]]) -> str | None:
    """Return the full name of the chat node whose array this is, None if it is of something else.

    Anything may have an engine: a chat node's status has the node's full name, also as `hardware_id`.

    Args:
        statuses: The `name` and the `hardware_id` of each.
    """
    for name, hardware in statuses:
        if _is_of(hardware, name, hardware) and name.endswith(f': {_ENGINE}') and name.count(': ') == 1:
            return hardware
    return None


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


def _is_of(node: str, name: str, hardware: str) -> bool:
    """Whether a status is one of a chat node."""
    return hardware == node and name.startswith(f'{node[1:]}: ') and _NODE.fullmatch(node[:_LONG]) is not None


def _status(node: str, status: dict[str, Any]) -> dict[str, Any]:
    robot, about = whose(node, status['name'].partition(': ')[2][:_LONG])
    return {
        'robot': robot,
        'about': about,
        'level': status['level'],
        'message': status['message'][:_LONG],
        'values': {pair['key'][:_LONG]: pair['value'][:_LONG] for pair in status['values'][:_MOST_VALUES]},
    }


def _sample(sample: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {**{k: v for k, v in sample.items() if k != 'queues'}, 'queue': sample['queues'].get(prefix, 0)}


def _of(text: str) -> tuple[int, int]:
    match = _OF.match(text)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def whole_number(text: str, otherwise: int = 0) -> int:
    """Return the number that a text is, or something else if it is none or huge."""
    return int(text) if _NUMBER.fullmatch(text) else otherwise
