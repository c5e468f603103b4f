"""`ChatClient`: ask a chat node from Python through its action and services.

with ChatClient() as chat:
    for piece in chat.ask('What is the capital of Japan?'):
        print(piece, end='', flush=True)
"""

from __future__ import annotations

import math
import threading
import time
from typing import Any
from uuid import uuid4

import numpy as np
import rclpy
from action_msgs.msg import GoalStatus
from nanochat.action import Chat
from nanochat.srv import GetHistory, Reset
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.exceptions import InvalidHandle, InvalidTopicNameException
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.validate_full_topic_name import validate_full_topic_name
from sensor_msgs.msg import CompressedImage, Image
from std_srvs.srv import Trigger
from unique_identifier_msgs.msg import UUID

from ros2_nanochat.at_exit import close_at_exit
from ros2_nanochat.errors import shorten
from ros2_nanochat.ros.action_ends import CLIENT_BYTES, StreamingActionClient, chat_goal, service_qos
from ros2_nanochat.ros.message_schema import read_format
from ros2_nanochat.ros.quiet_client import QuietActionClient
from ros2_nanochat.ros.reply import NodeGone, Reply
from ros2_nanochat.ros.spinning import spin
from ros2_nanochat.ros.typed_reply import form_text

__all__ = ['ChatClient', 'NodeGone', 'Reply', 'to_message']

_ACCEPT = 10.0  # seconds that a node has to accept a question
_ASK_AGAIN = 5.0  # seconds between requests for a result that has not arrived


class ChatClient:
    """A client of one robot's conversation.

    Args:
        name: Name of the chat node, with its namespace.
        robot: One of the robots that the node serves, '' if it serves only itself.
        node: An rclpy node that you spin outside of callbacks that wait. None creates and spins one.
        pieces: Whether replies stream. Without, you get all of a reply at its end, and nothing wakes the
            node's executor for each piece.

    Raises:
        ValueError: The name is not valid in ROS.
    """

    def __init__(self, name: str = '/nanochat', robot: str = '', node=None, pieces: bool = True):
        space, _, leaf = ('/' + name.strip('/')).rpartition('/')
        self._space, self._leaf = space, leaf
        self.prefix = (
            '/'.join([space, robot.strip('/'), leaf]).replace('//', '/') if robot else f'{space}/{leaf}'
        )
        try:
            validate_full_topic_name(self.prefix)
        except InvalidTopicNameException as error:
            reason = ' '.join(str(error).split()).rstrip('^ ')
            raise ValueError(f'{shorten(self.prefix)} cannot be the name of a chat node: {reason}') from None
        self._own = node is None
        if self._own:
            if not rclpy.ok():
                rclpy.init()
            # rclpy destroys the type description service twice, which can crash a process on close
            node = rclpy.create_node(
                f'chat_client_{uuid4().hex[:8]}',
                parameter_overrides=[Parameter('start_type_description_service', value=False)],
            )
            self._executor = SingleThreadedExecutor()
            self._executor.add_node(node)
            self._thread = threading.Thread(target=self._spin, name='chat_client', daemon=True)
        self.node = node
        group = ReentrantCallbackGroup()
        kind = StreamingActionClient if pieces else QuietActionClient
        self._action = kind(node, Chat, f'{self.prefix}/chat', group)
        self._feedback_topic = node.resolve_topic_name(self.prefix + '/chat/_action/feedback')
        beside: dict[str, Any] = {'qos_profile': service_qos(), 'callback_group': group}
        self._reset = node.create_client(Reset, self.prefix + '/reset', **beside)
        self._cancel = node.create_client(Trigger, self.prefix + '/cancel', **beside)
        self._history = node.create_client(GetHistory, self.prefix + '/history', **beside)
        self._replies: set[Reply] = set()
        self._closed = False
        if self._own:
            self._thread.start()
            close_at_exit(self)

    def _spin(self) -> None:
        spin(self._executor, self.node.get_logger())

    def wait_until_ready(self, timeout: float | None = None) -> bool:
        """Wait until the node answers. Return False after `timeout` seconds."""
        until = math.inf if timeout is None else time.monotonic() + timeout
        if not self._action.wait_for_server(timeout):
            return False
        # We may see the node before it sees us, and its answers are lost until then. It knows all our
        # endpoints once it answers the newest one.
        while self._own:
            try:
                self._call(self._history, GetHistory.Request(), max(0.0, min(1.0, until - time.monotonic())))
                break
            except NodeGone:
                if time.monotonic() >= until:
                    return False
        return True

    def robots(self) -> list[str]:
        """Return the robots that nodes of this name serve, according to the graph."""
        beginning, end = f'{self._space}/', f'/{self._leaf}/turn'
        return sorted(
            topic[len(beginning) : -len(end)]
            for topic, _ in self.node.get_topic_names_and_types()
            if topic.startswith(beginning)
            and topic.endswith(end)
            and len(topic) > len(beginning) + len(end)
            and self.node.count_publishers(topic)
        )

    def ask(self, text: str, image=None, **options) -> Reply:
        """Ask a question.

        Args:
            text: The question.
            image: A sensor_msgs Image or CompressedImage, an RGB array [h, w, 3] uint8, bytes of a JPEG or
                PNG, or a list of these.
            **options: Fields of a nanochat/action/Chat goal. `response_format` may also be a list of texts, a
                dict, a dataclass, a pydantic model or a message class; `result().parsed` has its value.

        Raises:
            ValueError: An image, the form or another field is not valid.
        """
        form = options.pop('response_format', None)
        goal = chat_goal(query=text, response_format=form_text(form), **options)
        for item in image if isinstance(image, (list, tuple)) else [] if image is None else [image]:
            message = to_message(item)
            (goal.images if isinstance(message, Image) else goal.compressed_images).append(message)
        goal_id = self._goal_id()
        reply = Reply(self._look_after, self._cancel_goal, read_format(form), bytes(goal_id.uuid).hex())
        self._replies.add(reply)
        reply.future.add_done_callback(lambda _: self._replies.discard(reply))
        with self._action.sending:
            sent = self._action.send_goal_async(goal, feedback_callback=reply._feedback, goal_uuid=goal_id)
        sent.add_done_callback(lambda future: self._sent(future, reply))
        return reply

    def _goal_id(self) -> UUID:
        """Return an id that begins like our feedback subscription's GID: the goal ends with this process."""
        own = next(
            (
                bytes(end.endpoint_gid[:CLIENT_BYTES])
                for end in self.node.get_subscriptions_info_by_topic(self._feedback_topic)
                if (end.node_name, end.node_namespace) == (self.node.get_name(), self.node.get_namespace())
            ),
            uuid4().bytes[:CLIENT_BYTES],
        )
        return UUID(uuid=np.frombuffer(own + uuid4().bytes[: 16 - CLIENT_BYTES], np.uint8))

    def _sent(self, future, reply: Reply) -> None:
        goal = future.result()
        if goal is None or not goal.accepted:
            reply._failed(f'{self.prefix} did not take the question')
            return
        reply._accepted(goal)
        self._ask_result(reply)

    def _ask_result(self, reply: Reply) -> None:
        reply._looked = time.monotonic()
        with self._action.sending:
            result = reply._goal.get_result_async()
        result.add_done_callback(lambda result: self._ended(result, reply))

    def _cancel_goal(self, goal) -> None:
        with self._action.sending:
            goal.cancel_goal_async()

    def _look_after(self, reply: Reply) -> None:
        """Fail a reply if its node left the graph or no longer knows it, so that nobody waits forever."""
        silent = time.monotonic() - reply._looked
        if self._closed or reply.future.done():
            return
        try:
            if not self._action.server_is_ready():
                reply._failed(
                    f'{self.prefix} is not there any more: its process has ended, or it was deactivated'
                )
            elif reply._goal is None and silent > _ACCEPT:
                reply._failed(f'{self.prefix} did not take the question within {_ACCEPT:g} s')
            elif reply._goal is not None and silent > _ASK_AGAIN:
                self._ask_result(reply)
        except (RuntimeError, InvalidHandle):
            reply._failed(
                'this program has left the graph itself: rclpy was shut down, or its node was destroyed'
            )

    def _ended(self, future, reply: Reply) -> None:
        response = future.result()
        if response is None or response.status == GoalStatus.STATUS_UNKNOWN:
            reply._failed(f'{self.prefix} has no such turn any more')
        else:
            reply._finished(response.result.turn)

    def cancel(self, timeout: float = 5.0) -> bool:
        """Stop the reply that is being generated, whoever asked. Return whether there was one."""
        return self._call(self._cancel, Trigger.Request(), timeout).success

    def reset(self, system_prompt: str = '', timeout: float = 15.0) -> str:
        """Forget the conversation. Return what was done; RuntimeError if it fails."""
        response = self._call(self._reset, Reset.Request(system_prompt=system_prompt), timeout)
        if not response.success:
            raise RuntimeError(response.message)
        return response.message

    def history(self, timeout: float = 5.0) -> list[tuple[str, str]]:
        """Return the conversation as (role, text)."""
        return [
            (message.role, message.text)
            for message in self._call(self._history, GetHistory.Request(), timeout).messages
        ]

    def _call(self, client, request, timeout: float):
        done = threading.Event()
        if not client.wait_for_service(timeout):
            raise NodeGone(f'{client.srv_name} is not there: does the node run, and is it active?')
        future = client.call_async(request)
        future.add_done_callback(lambda _: done.set())
        if not done.wait(timeout):
            raise NodeGone(f'{client.srv_name} has not answered within {timeout} s')
        return future.result()

    def close(self) -> None:
        """Cancel running replies and leave the graph. You may call this twice."""
        if self._closed:
            return
        self._closed = True
        for reply in list(self._replies):
            reply.cancel()
            if self._own:
                try:
                    reply.result(1.0)
                except (TimeoutError, NodeGone):
                    reply._failed('the client was closed')
        if self._own:
            self._executor.shutdown(timeout_sec=1.0)
            self._thread.join(1.0)
        self._action.close()
        for client in (self._reset, self._cancel, self._history):
            self.node.destroy_client(client)
        if self._own:
            self.node.destroy_node()

    def __enter__(self) -> ChatClient:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def to_message(image):
    """Convert an image that `ask` accepts to a sensor_msgs Image or CompressedImage."""
    if isinstance(image, (Image, CompressedImage)):
        return image
    if isinstance(image, (bytes, bytearray)):
        return CompressedImage(format='png' if image[:4] == b'\x89PNG' else 'jpeg', data=bytes(image))
    pixels = np.ascontiguousarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(
            f'an image is [h, w, 3] uint8 RGB, a message, or bytes of a JPEG or PNG; not {pixels.dtype}'
            f' {list(pixels.shape)}'
        )
    message = Image(height=pixels.shape[0], width=pixels.shape[1], encoding='rgb8', step=3 * pixels.shape[1])
    message.data.frombytes(pixels.tobytes())
    return message
