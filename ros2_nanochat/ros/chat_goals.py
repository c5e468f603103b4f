"""The action `chat` of one robot: each goal is a turn.

A goal ends with its turn, and is cancelled when its client leaves the graph. The goal of a `ChatClient` names
its client. Any other goal came from one of those that listened to its feedback at that time, and is cancelled
when all of them have left.
"""

from __future__ import annotations

import threading
import time

from action_msgs.msg import GoalStatus
from nanochat.action import Chat

from ros2_nanochat.errors import one_line, shorten
from ros2_nanochat.robot.camera_formats import compressed_to_rgb, image_to_rgb, stamp_of
from ros2_nanochat.robot.conversation import RobotConversation
from ros2_nanochat.robot.frames import MAX_PICTURES
from ros2_nanochat.robot.options import goal_options
from ros2_nanochat.robot.turn import Picture, Turn
from ros2_nanochat.ros.action_ends import CLIENT_BYTES
from ros2_nanochat.ros.goal_server import GoalServer
from ros2_nanochat.ros.spinning import close_action
from ros2_nanochat.ros.typed_reply import with_form
from ros2_nanochat.states import FinishReason

_SUCCEEDED = (FinishReason.STOP, FinishReason.LENGTH, FinishReason.DEADLINE)
_DISCOVERY = 2.0  # seconds after a goal in which its client may still appear on the graph
_CLOSING = 5.0  # seconds to wait for pending results when the action is closed


class ChatGoals:
    """The action server of one robot.

    Args:
        node: The node.
        prefix: Prefix of the action's name.
        chat: The conversation that answers the turns.
        message: Makes the nanochat/msg/Turn of a turn.
    """

    def __init__(self, node, prefix: str, chat: RobotConversation, message):
        self._node, self._chat, self._message = node, chat, message
        self._open: dict[bytes, Turn] = {}
        self._seen: set[bytes] = set()  # goals whose client was seen on the graph
        self._among: dict[bytes, set[bytes]] = {}  # who may be the client of a goal that does not name it
        self._lock = threading.Lock()
        self._heard = self.muted = False
        self._server = GoalServer(node, Chat, prefix + 'chat', self._accept, self._cancel)
        self._feedback_topic = node.resolve_topic_name(prefix + 'chat/_action/feedback')

    # --- in ---

    def _accept(self, goal) -> None:
        key = bytes(goal.goal_id.uuid)
        # The goal's id, so that its client knows its pieces on the topics from the first one on.
        turn = Turn(goal.request.query, self._chat.options, (), goal, id=key.hex())
        with self._lock:
            self._open[key] = turn
        try:
            if self.muted:
                raise ValueError('the node is being deactivated: ask again when it is active')
            turn.options = with_form(goal_options(goal.request, turn.options), files=False)
            turn.own_form = bool(goal.request.response_format)
            turn.pictures = [
                *(_picture(message, image_to_rgb) for message in goal.request.images),
                *(_picture(message, compressed_to_rgb) for message in goal.request.compressed_images),
            ]
            turn.cameras = _cameras(goal.request.cameras, turn.options, self._chat.name)
            goal.request.images = (
                goal.request.compressed_images
            ) = []  # a goal is kept for longer than its turn
        except Exception as error:
            self._chat.refuse(turn, one_line(error))
        else:
            self._chat.ask(turn)

    def _cancel(self, goal) -> bool:
        with self._lock:
            turn = self._open.get(bytes(goal.goal_id.uuid))
        if turn is not None:
            self._chat.cancel_turn(turn)
        return turn is not None

    def cancel_unheard(self) -> None:
        """Cancel the goals of clients that have left the graph. Call this regularly."""
        with self._lock:
            goals = list(self._open.items())
        if not goals:
            self._heard = False
            return
        ends = self._node.get_subscriptions_info_by_topic(self._feedback_topic)
        clients = {bytes(end.endpoint_gid[:CLIENT_BYTES]) for end in ends}
        for key, turn in goals:
            if key[:CLIENT_BYTES] in clients:
                self._seen.add(key)
            elif key in self._seen or (self._heard and not ends) or self._have_left(key, turn, clients):
                self._chat.cancel_turn(turn)
        self._heard = bool(ends)

    def _have_left(self, key: bytes, turn: Turn, clients: set[bytes]) -> bool:
        """Whether all that may be the client of a goal have left the graph."""
        if key not in self._among or time.monotonic() - turn.arrived < _DISCOVERY:
            self._among[key] = self._among.get(key, set()) | clients
        return bool(self._among[key]) and self._among[key].isdisjoint(clients)

    # --- out ---

    def started(self, turn: Turn) -> None:
        """Mark the goal of a turn as executing."""
        try:
            turn.goal.execute()
        except RuntimeError:
            if not turn.goal.is_cancel_requested:  # its client cancelled it just now
                raise

    def feedback(self, turn: Turn, token) -> None:
        """Send a token to the client of an executing goal.

        In other states, Lyrical drops feedback with a warning. The client then gets the end from the result.
        """
        if turn.goal.status == GoalStatus.STATUS_EXECUTING:
            turn.goal.publish_feedback(Chat.Feedback(token=token))

    def ended(self, turn: Turn) -> None:
        """Send the result of a turn to its client."""
        key = bytes(turn.goal.goal_id.uuid)
        with self._lock:
            self._open.pop(key, None)
            self._seen.discard(key)
            self._among.pop(key, None)
        result = Chat.Result(turn=self._message(turn))
        self._server.finish(turn.goal, turn.finish_reason in _SUCCEEDED, result)

    def close(self) -> None:
        """Close the action once its clients have their results. All turns must have ended."""
        self._server.wait_until_fetched(_CLOSING)
        close_action(self._node, self._server, _CLOSING)


def _picture(message, convert) -> Picture:
    return Picture(
        lambda: convert(message), stamp_of(message), message.header.frame_id, num_bytes=len(message.data)
    )


def _cameras(names, options, robot: str) -> tuple[str, ...]:
    known = ['image', *options.camera_topics(robot)]
    for name in names:
        if name not in known:
            raise ValueError(
                f'cameras: there is no camera {shorten(repr(name))}, only {", ".join(known)}: the parameter'
                ' `cameras` gives their topics'
            )
    if len(names) > MAX_PICTURES:
        raise ValueError(f'cameras: {len(names)} are named, and at most {MAX_PICTURES} are taken: name fewer')
    return tuple(dict.fromkeys(names))
