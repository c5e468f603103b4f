"""What the server knows of one robot."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from typing import TYPE_CHECKING, Any

from ros2_nanochat.web.diagnostics import whole_number
from ros2_nanochat.web.turn_log import TurnLog

if TYPE_CHECKING:
    from ros2_nanochat.web.robot_link import RobotLink

_CALLS = 100  # tool calls that are kept
_WATCHES, _OBSERVATIONS = 50, 60  # standing questions, and what each of them saw
_LONG = 4000  # characters of an answer; the rest is cut off, as many are kept
_SEEN = (
    'name',
    'index',
    'text',
    'value',
    'number',
    'probability',
    'valid',
    'changed',
    'unchanged',
    'in_a_row',
    'age',
)
_PENDING = ('waiting', 'running')


class RobotView:
    """One robot.

    Args:
        prefix: Prefix of its topics.

    Attributes:
        log: Its conversation.
        present: Whether its topics are on the graph.
        known: Whether its history has been read.
        learning: The task that reads it.
        node: Name of its node.
        cameras_due: When to ask its node for its cameras again.
        cameras: Its cameras that somebody publishes: the topic of each, by name.
        asking: How many questions of pages have not been answered yet.
        link: The topics and services that were open when it was read.
        outdated: Whether it has changed while it was being read.
        ends: Ids of its node's ends of the topics, which a node that is started again has new.
        has_watches: Whether it takes standing questions.
        looking: How many of these may take a picture of a camera with them, for each camera.
    """

    def __init__(self, prefix: str):
        self.prefix = prefix
        self.log = TurnLog()
        self.node = ''
        self.cameras: dict[str, str] = {}
        self.cameras_due = 0.0
        self.present = self.known = self.has_watches = False
        self.learning: asyncio.Task | None = None
        self.outdated = False
        self.ends: frozenset[bytes] = frozenset()
        self.asking = self._messages = 0
        self.looking: Counter[str] = Counter()
        self._calls: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._watches: list[dict[str, Any]] = []
        self._observations: OrderedDict[str, deque[dict[str, Any]]] = OrderedDict()
        self.link: RobotLink | None = None

    @property
    def name(self) -> str:
        """Its name: `r1` for /r1/nanochat, else that of its node."""
        parts = self.prefix.strip('/').split('/')
        return '/'.join(parts[:-1]) or parts[-1]

    def shrank(self, messages: str) -> bool:
        """Take over the number of its messages. Return whether there were more before."""
        before, self._messages = self._messages, whole_number(messages, self._messages)
        return self._messages < before

    def tagged(self, event: dict[str, Any]) -> dict[str, Any]:
        """Return an event with the robot's prefix."""
        return {'robot': self.prefix, **event}

    def snapshot(self) -> list[dict[str, Any]]:
        """Return the events that show everything to a new page."""
        return [self.log.conversation(), *self.others()]

    def others(self) -> list[dict[str, Any]]:
        """Return those beside the conversation."""
        seen = [each for observations in self._observations.values() for each in observations]
        return [
            self.calls(),
            {'type': 'watches', 'watches': self._watches},
            {'type': 'observations', 'observations': seen, 'all': True},
        ]

    def calls(self) -> dict[str, Any]:
        """Return the event with the tool calls that are known."""
        return {'type': 'calls', 'calls': list(self._calls.values())}

    def called(self, call: dict[str, Any]) -> dict[str, Any]:
        """Take over the state of a tool call, and return the event for it."""
        self._calls[call['id']] = call
        while len(self._calls) > _CALLS:
            self._calls.popitem(last=False)
        return {'type': 'calls', 'calls': [call]}

    def pending_turns(self) -> set[str]:
        """Return the turns whose tools wait for an answer or run."""
        calls = self._calls.values()
        return {call['turn_id'] for call in calls if call['state'] in _PENDING and not call['background']}

    def watched(self, watches: dict[str, Any]) -> dict[str, Any]:
        """Take over the robot's standing questions, and return the event for them."""
        self._watches = watches['watches'][:_WATCHES]
        names = {watch['name'] for watch in self._watches}
        for name in [name for name in self._observations if name not in names]:
            del self._observations[name]
        return {'type': 'watches', 'watches': self._watches}

    def observed(self, observation: dict[str, Any]) -> dict[str, Any]:
        """Take over what a standing question saw, and return the event for it.

        A subscription that is opened again brings what we have; it is left out.
        """
        seen = {name: observation[name] for name in _SEEN} | {'time': observation['header']['stamp']}
        seen |= {'text': seen['text'][:_LONG], 'value': seen['value'][:_LONG]}
        known = self._observations.setdefault(seen['name'], deque(maxlen=_OBSERVATIONS))
        if any((each['index'], each['time']) == (seen['index'], seen['time']) for each in known):
            return {'type': 'observations', 'observations': []}
        known.append(seen)
        while len(self._observations) > _WATCHES:
            self._observations.popitem(last=False)
        return {'type': 'observations', 'observations': [seen]}
