"""The action `chat` of one robot: each goal is a turn.

A goal ends with its turn, and is cancelled when its client leaves the graph (goal_clients.py).
"""

from __future__ import annotations

import threading

from action_msgs.msg import GoalStatus
from nanochat.action import Chat
from sensor_msgs.msg import CompressedImage, Image

from ros2_nanochat.errors import one_line, shorten
from ros2_nanochat.robot.camera_formats import compressed_to_rgb, image_to_rgb, stamp_of
from ros2_nanochat.robot.conversation import RobotConversation
from ros2_nanochat.robot.frames import MAX_PICTURES
from ros2_nanochat.robot.options import goal_options
from ros2_nanochat.robot.turn import Picture, Turn
from ros2_nanochat.ros.goal_clients import GoalClients
from ros2_nanochat.ros.goal_server import GoalServer
from ros2_nanochat.ros.spinning import close_action
from ros2_nanochat.ros.typed_reply import with_form
from ros2_nanochat.states import FinishReason
from ros2_nanochat.vision.pixels import num_pixels

_SUCCEEDED = (FinishReason.STOP, FinishReason.LENGTH, FinishReason.DEADLINE)
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
        self._lock = threading.Lock()
        self.muted = False
        self._server = GoalServer(node, Chat, prefix + 'chat', self._accept, self._cancel)
        self._clients = GoalClients(node, prefix + 'chat')

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
            self._clients.met(key)

    def _cancel(self, goal) -> bool:
        with self._lock:
            turn = self._open.get(bytes(goal.goal_id.uuid))
        if turn is not None:
            self._chat.cancel_turn(turn)
        return turn is not None

    def cancel_unheard(self) -> None:
        """Cancel the goals of clients that have left the graph. Call this regularly."""
        for turn in self._clients.gone(self._open_turns):
            self._chat.cancel_turn(turn)

    def _open_turns(self) -> dict[bytes, Turn]:
        with self._lock:
            return dict(self._open)

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
        result = Chat.Result(turn=self._message(turn))
        self._server.finish(turn.goal, turn.finish_reason in _SUCCEEDED, result)

    def close(self) -> None:
        """Close the action once its clients have their results. All turns must have ended."""
        self._server.wait_until_fetched(_CLOSING)
        close_action(self._node, self._server, _CLOSING)


def _picture(message, convert) -> Picture:
    return Picture(
        lambda: convert(message),
        stamp_of(message),
        message.header.frame_id,
        num_bytes=len(message.data),
        count_pixels=lambda: _num_pixels(message),
    )


def _num_pixels(message: Image | CompressedImage) -> int:
    if isinstance(message, Image):
        return message.width * message.height
    return num_pixels(bytes(message.data))


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
