"""Which clients of an action have left the graph."""

from __future__ import annotations

from collections.abc import Collection

from ros2_nanochat.ros.action_ends import CLIENT_BYTES


class GoalClients:
    """The clients of one action server, as far as the graph shows them.

    Args:
        node: The node.
        action: Name of the action.
    """

    def __init__(self, node, action: str):
        self._node = node
        self._topic = node.resolve_topic_name(f'{action}/_action/feedback')
        self._seen: set[bytes] = set()  # goals whose client was seen on the graph
        self._heard = False

    def gone(self, goals: Collection[bytes]) -> list[bytes]:
        """Return those of these goals whose clients have left the graph. Call this regularly.

        Args:
            goals: The ids of all goals that are open.
        """
        self._seen.intersection_update(goals)
        if not goals:
            self._heard = False
            return []
        ends = self._node.get_subscriptions_info_by_topic(self._topic)
        clients = {bytes(end.endpoint_gid[:CLIENT_BYTES]) for end in ends}
        gone = []
        for key in goals:
            if key[:CLIENT_BYTES] in clients:
                self._seen.add(key)
            elif key in self._seen or (self._heard and not ends):
                gone.append(key)
        self._heard = bool(ends)
        return gone
