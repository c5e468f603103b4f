"""Connects one robot's topics, services and action to its `RobotConversation`. docs/interface.md lists them.

Queries are processed one after another, on a thread of their own, and so are goals (their order is that of
the conversation). Services run concurrently with everything, so that `cancel` works while `reset` waits. No
callback waits for the model, and every service call gets a response, even if something fails.
"""

from __future__ import annotations

from builtin_interfaces.msg import Time
from nanochat.msg import Message, Token
from nanochat.msg import Turn as TurnMessage
from nanochat.srv import GetHistory, Reset
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.duration import Duration
from rclpy.qos import QoSProfile
from rclpy.qos_overriding_options import QoSOverridingOptions
from std_msgs.msg import String
from std_srvs.srv import Trigger

from ros2_nanochat.config import ImageMode
from ros2_nanochat.errors import one_line
from ros2_nanochat.robot.answering import too_long
from ros2_nanochat.robot.conversation import RobotConversation
from ros2_nanochat.robot.lane import Lane
from ros2_nanochat.robot.turn import Turn
from ros2_nanochat.ros.action_ends import service_qos
from ros2_nanochat.ros.camera import Camera
from ros2_nanochat.ros.chat_goals import ChatGoals
from ros2_nanochat.ros.endpoint_events import PublisherEventCallbacks, SubscriptionEventCallbacks
from ros2_nanochat.ros.message_fields import set_to_now
from ros2_nanochat.ros.named_cameras import NamedCameras
from ros2_nanochat.ros.quick_subscriptions import QuickSubscriptions
from ros2_nanochat.ros.speaker import Speaker
from ros2_nanochat.ros.spinning import Seldom
from ros2_nanochat.ros.tools.robot_tools import RobotTools
from ros2_nanochat.ros.turn_message import turn_message
from ros2_nanochat.ros.typed_reply import TypedReply

DEPTH = 1000
"""Depth of the topics: enough for a burst of a few hundred queries and turns, and for a whole reply."""
_DEACTIVATED = 'the node is being deactivated: ask again when it is active'
_ANNOUNCING = 5.0  # seconds to wait at the end for turns that are being announced
_OWN_TOPICS = (
    *('turn', 'reply', 'sentence', 'tokens'),
    *('typed_reply', 'observations', 'watches', 'tool_calls'),
)
_LAST_WORDS = Duration(seconds=0.1)  # for listeners to acknowledge messages; one of them may be dead


class RobotTopics:
    """Opens a robot's topics, services and action, and is the `Output` of its conversation.

    Args:
        node: The node.
        chat: The robot's conversation.
        quick: Receives the robot's queries.
        tools: The robot's tools, or None.
        warns: Whether the topics warn of listeners with incompatible QoS.
    """

    def __init__(
        self, node, chat: RobotConversation, quick: QuickSubscriptions, tools: RobotTools | None, warns=True
    ):
        self._node, self._chat, self._quick, self._tools = node, chat, quick, tools
        self._clock = node.get_clock()
        prefix = f'{chat.name}/{node.get_name()}/' if chat.name else '~/'
        beside = {'callback_group': ReentrantCallbackGroup(), 'qos_profile': service_qos()}
        override = {'qos_overriding_options': QoSOverridingOptions.with_default_policies()}
        events = {'event_callbacks': PublisherEventCallbacks(use_default_callbacks=warns)}
        events['callback_group'] = self._event_group = Seldom()  # its warnings may be a moment late
        self._closed = self._muted = False
        self._own_topics = [node.resolve_topic_name(prefix + name) for name in _OWN_TOPICS]
        self._warnings = dict.fromkeys(self._own_topics, '')  # about those that others publish, too
        self._twin = ''
        self._next = -1  # the topic that the graph was asked about last
        self._publishers = [
            node.create_publisher(kind, prefix + name, QoSProfile(depth=DEPTH), **events, **override)
            for kind, name in (
                (Token, 'tokens'),
                (String, 'sentence'),
                (String, 'reply'),
                (TurnMessage, 'turn'),
            )
        ]
        self._token, self._sentence, self._reply, self._turn = (
            Speaker(publisher.publish, publisher.topic_name, lambda: self._closed)
            for publisher in self._publishers
        )
        self._piece = Token()  # filled again for each piece of a turn: creating one is slow
        self._typed = TypedReply(node, prefix + 'typed_reply')
        self._typed.follow(chat.options)
        self._camera = Camera(node, prefix, *self._camera_use)
        self.cameras = NamedCameras(node, chat.name, self._camera)
        chat.output, chat.sight.camera, chat.sight.named = self, self._camera, self.cameras.get
        self._services = [
            node.create_service(kind, prefix + name, self._guarded(callback, name), **beside)
            for kind, name, callback in (
                (Reset, 'reset', self._reset),
                (Trigger, 'cancel', self._cancel),
                (GetHistory, 'history', self._history),
            )
        ]
        self._goals = ChatGoals(node, prefix, chat, self._turn_message)
        self._feedback = Speaker(self._goals.feedback, f'{prefix}chat feedback', lambda: self._closed)
        if tools is not None:
            tools.open(prefix)
        self._announcing = Lane(f'announcing-{chat.name or "chat"}', node.get_logger())
        heard = SubscriptionEventCallbacks(use_default_callbacks=warns)
        # Last, once everything else can answer.
        self._queries = quick.add(
            String, prefix + 'query', self._query, DEPTH, event_callbacks=heard, **override
        )

    # --- in ---

    def _query(self, message: String) -> None:
        """Admit a question. A listener may block what is announced: other robots do not wait for that."""
        turn = Turn(message.data, self._chat.options)
        if self._muted:
            self._chat.refuse(turn, _DEACTIVATED, self._announcing)
        else:
            self._chat.ask(turn, self._announcing)

    def _guarded(self, callback, name: str):
        """Wrap a service callback so that it always responds: without a response, the client would wait
        forever, and an exception would leave the executor.
        """

        def answer(request, response):
            try:
                callback(request, response)
            except BaseException as error:
                text = one_line(error)
                self._node.get_logger().error(f'{self._chat.name or "chat"}: {name} failed: {text}')
                if 'message' in response.get_fields_and_field_types():
                    response.success, response.message = False, text
            return response

        return answer

    def _reset(self, request, response) -> None:
        context = self._chat.model.info.context_length
        if unread := too_long(request.system_prompt, context, 'system prompt'):
            raise ValueError(unread)
        response.message = self._chat.reset(request.system_prompt)
        response.success = True

    def _cancel(self, _, response) -> None:
        response.success = self._chat.cancel()
        response.message = (
            'what ran was stopped' if response.success else 'no reply was being produced, and no tool ran'
        )

    def _history(self, _, response) -> None:
        messages, response.num_tokens = self._chat.messages()
        response.max_tokens = self._chat.model.info.context_length
        response.messages = [Message(role=role, text=text, num_images=n) for role, text, n in messages]

    @property
    def has_camera(self) -> bool:
        """Whether anyone publishes images that this robot would use."""
        return self._chat.options.image_mode is not ImageMode.OFF and self._camera.present

    @property
    def _camera_use(self) -> tuple[bool, str]:
        """Whether the camera's frames can be used, and over which transport."""
        options = self._chat.options
        return (
            options.image_mode is not ImageMode.OFF and self._chat.model.has_vision,
            options.image_transport,
        )

    def follow_options(self) -> None:
        """Open or close `typed_reply` according to the robot's options, and look at the topics' events. Call
        this regularly.
        """
        self._event_group.look()
        self._typed.follow(self._chat.options)

    def look_at_graph(self) -> None:
        """Update the camera's subscription, cancel the goals of clients that have left, and look for new
        tools and for a node of the same name. Call this regularly.
        """
        self._goals.cancel_unheard()
        self._camera.follow(*self._camera_use)
        if self._tools is not None:
            self._tools.follow()
        if not self._closed:
            self._look_for_twins()

    def _look_for_twins(self) -> None:
        """Ask the graph about one of the topics: asking about all of them takes too long with many robots."""
        self._next = (self._next + 1) % len(self._own_topics)
        topic, warning = self._own_topics[self._next], ''
        if self._node.count_publishers(topic) > 1:
            ends = self._node.get_publishers_info_by_topic(topic)
            names = {f'{end.node_namespace.rstrip("/")}/{end.node_name}' for end in ends}
            others = sorted(names - {self._node.get_fully_qualified_name()})
            who, hint = f' ({", ".join(others)})', 'end it, or remap its topic'
            if not others or 'UNKNOWN' in others[0]:
                who, hint = '', 'do two nodes have one name?'
            warning = f'another node{who} publishes {topic}: {hint}'
        self._warnings[topic] = warning
        if topic == self._own_topics[-1]:
            # after a round, so that twins always give the same warning
            self._twin = next(filter(None, self._warnings.values()), '')

    @property
    def twin(self) -> str:
        """A warning if another node uses this robot's names, '' if none does."""
        return '' if self._closed else self._twin

    # --- out: the Output of RobotConversation ---

    def started(self, turn: Turn) -> None:
        """Mark the goal of the turn as executing."""
        if turn.goal is not None:
            self._goals.started(turn)

    def token(self, turn: Turn, index: int, text: str, num_tokens: int, reasoning: bool) -> None:
        """Publish a piece of the reply, and send it as feedback."""
        token = self._piece
        if token.turn_id != turn.id:
            token = self._piece = Token(turn_id=turn.id)
        set_to_now(token.stamp, self._clock)
        token.index, token.text, token.num_tokens, token.reasoning = index, text, num_tokens, reasoning
        self._publish_token(turn, token)

    def called(self, turn: Turn, index: int, call_id: str, num_tokens: int) -> None:
        """Mark in the pieces where the model has called a tool."""
        token = Token(
            stamp=self._now(), turn_id=turn.id, index=index, num_tokens=num_tokens, tool_call_id=call_id
        )
        self._publish_token(turn, token)

    def sentence(self, turn: Turn, text: str) -> None:
        """Publish a sentence."""
        self._sentence(String(data=text))

    def ended(self, turn: Turn) -> None:
        """Publish the last token, the reply and the turn, and send the result."""
        last = Token(
            stamp=self._now(),
            turn_id=turn.id,
            index=turn.num_pieces,
            last=True,
            finish_reason=turn.finish_reason,
        )
        failed = []
        # Each one even if others fail.
        for tell in (
            lambda: self._publish_token(turn, last),
            lambda: self._reply(String(data=turn.reply)),
            lambda: self._typed.publish(turn),
            lambda: self._turn(self._turn_message(turn)),
            lambda: self._goals.ended(turn) if turn.goal is not None else None,
        ):
            try:
                tell()
            except Exception as error:
                failed.append(error)
        if failed:
            raise failed[0]

    def _publish_token(self, turn: Turn, token: Token) -> None:
        try:
            self._token(token)
        finally:
            if turn.goal is not None:
                self._feedback(turn, token)

    def _turn_message(self, turn: Turn) -> TurnMessage:
        return turn_message(turn, self._chat.name, self._now())

    def _now(self) -> Time:
        return self._clock.now().to_msg()

    def mute(self) -> None:
        """Accept no more questions. Messages already taken from a topic are refused."""
        self._muted = self._goals.muted = True
        self._quick.remove(self._queries)

    def close(self) -> None:
        """Close all that is open, after `mute`. Turns that are still running are no longer published."""
        self._announcing.wait(_ANNOUNCING)
        self._goals.close()
        self._closed = True
        for service in self._services:
            self._node.destroy_service(service)
        if self._tools is not None:
            self._tools.close()
        self._camera.close()
        self._typed.close()
        for publisher in self._publishers:
            publisher.wait_for_all_acked(_LAST_WORDS)  # else the latest messages are lost with the publisher
            self._node.destroy_publisher(publisher)
