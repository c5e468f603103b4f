"""Publishing that cannot hurt whoever publishes: a topic whose listeners block it rests for a while."""

from __future__ import annotations

import time
from collections.abc import Callable

from ros2_nanochat.errors import shorten

_FIRST_REST, _LONGEST_REST = 0.5, 10.0  # seconds


class Speaker:
    """Calls `publish`, of one topic. closed: tells whether the topic is being taken off the graph."""

    def __init__(self, publish: Callable, name: str, closed: Callable[[], bool]):
        self._publish, self._name, self._closed = publish, name, closed
        self._until, self._rest = 0.0, _FIRST_REST
        self.num_dropped = 0
        """Messages that were not published because the topic was blocked."""

    def __call__(self, *message) -> None:
        """Publish, or drop the message while the topic rests. RuntimeError when it cannot be published: a
        reliable listener that keeps all and reads nothing has filled its buffers, for example. Trying that
        for each token would take the middleware's time-out each time.
        """
        if time.monotonic() < self._until:
            self.num_dropped += 1
            return
        try:
            self._publish(*message)
        except Exception as error:
            if self._closed():
                return  # a reply that did not end in time goes on while its names go off the graph
            self.num_dropped += 1
            self._until = time.monotonic() + self._rest
            self._rest = min(2 * self._rest, _LONGEST_REST)
            raise RuntimeError(
                f'{self._name} cannot be published, a listener may not read what it subscribed to '
                f'({shorten(str(error))}); messages are dropped until it can'
            ) from error
        self._rest = _FIRST_REST
