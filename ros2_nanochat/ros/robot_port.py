"""One robot's topics, services and action, wired to its `RobotConversation`. Which names and types:
docs/interface.md.

Who runs when: queries come one after another, and so do goals (their order is that of the conversation);
services may run beside everything, so that `cancel` is heard while `reset` waits. No callback waits for the
model, but for the one that holds an action's goal open, on a thread of its own.
"""

from __future__ import annotations

import threading
import time

from action_msgs.msg import GoalStatus
from builtin_interfaces.msg import Time
from nanochat.action import Chat
from nanochat.msg import Message, Token
from nanochat.msg import Turn as TurnMessage
from nanochat.srv import GetHistory, Reset
from rclpy.action import ActionServer, CancelResponse
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup
from rclpy.duration import Duration
from rclpy.qos import QoSProfile
from rclpy.qos_overriding_options import QoSOverridingOptions
from std_msgs.msg import String
from std_srvs.srv import Trigger

from ros2_nanochat.config import ImageMode
from ros2_nanochat.robot.camera_formats import compressed_to_rgb, image_to_rgb, stamp_of
from ros2_nanochat.robot.conversation import RobotConversation
from ros2_nanochat.robot.options import goal_options
from ros2_nanochat.robot.turn import Picture, Turn
from ros2_nanochat.ros.camera import Camera
from ros2_nanochat.ros.spinning import close_action

_TOKENS_KEPT = 1000
_LAST_WORDS = Duration(
    seconds=0.1
)  # that listeners get for what they have not acknowledged; one of them may be dead
_CLOSING = 0.5  # seconds that the executor gets at most for what is still on its way
_RESULT_KEPT = 10  # seconds; Jazzy's default is 900, and with each result rclpy keeps the goal's images
_SUCCEEDED = ('stop', 'length', 'deadline')


class RobotPort:
    """Opens the names of a robot on the graph, and is the `Output` of its conversation. `close()` takes them
    off.
    """

    def __init__(self, node, chat: RobotConversation):
        self._node, self._chat = node, chat
        prefix = f'{chat.name}/{node.get_name()}/' if chat.name else '~/'
        in_turn, goals, beside = (
            MutuallyExclusiveCallbackGroup(),
            MutuallyExclusiveCallbackGroup(),
            ReentrantCallbackGroup(),
        )
        override = {'qos_overriding_options': QoSOverridingOptions.with_default_policies()}
        self._tokens = node.create_publisher(
            Token, prefix + 'tokens', QoSProfile(depth=_TOKENS_KEPT), **override
        )
        self._sentences = node.create_publisher(String, prefix + 'sentence', 10, **override)
        self._replies = node.create_publisher(String, prefix + 'reply', 10, **override)
        self._turns = node.create_publisher(TurnMessage, prefix + 'turn', 10, **override)
        self._camera = Camera(node, prefix, *self._camera_use)
        chat.output, chat.sight.camera = self, self._camera
        self._services = [
            node.create_service(kind, prefix + name, callback, callback_group=beside)
            for kind, name, callback in (
                (Reset, 'reset', self._reset),
                (Trigger, 'cancel', self._cancel),
                (GetHistory, 'history', self._history),
            )
        ]
        self._turn_of_goal: dict[bytes, Turn] = {}
        self._cancelled: set[bytes] = set()  # goals whose client cancels them
        self._goals_changed = threading.Condition()
        self._heard = self._muted = self._closed = False
        self._action = ActionServer(
            node,
            Chat,
            prefix + 'chat',
            self._hold,
            callback_group=goals,
            handle_accepted_callback=self._accept,
            cancel_callback=self._cancel_goal,
            feedback_pub_qos_profile=QoSProfile(depth=_TOKENS_KEPT),
            result_timeout=_RESULT_KEPT,
        )
        self._feedback_topic = node.resolve_topic_name(prefix + 'chat/_action/feedback')
        # Last, when all the rest can answer.
        self._queries = node.create_subscription(
            String, prefix + 'query', self._query, 10, callback_group=in_turn, **override
        )

    # --- in ---

    def _query(self, message: String) -> None:
        self._chat.ask(Turn(message.data, self._chat.options))

    def _reset(self, request, response):
        try:
            response.message = self._chat.reset(request.system_prompt)
            response.success = True
        except (RuntimeError, ValueError) as error:
            response.message = str(error)
        return response

    def _cancel(self, _, response):
        response.success = self._chat.cancel()
        response.message = 'the reply was stopped' if response.success else 'no reply was being produced'
        return response

    def _history(self, _, response):
        messages, response.num_tokens = self._chat.messages()
        response.max_tokens = self._chat.model.info.context_length
        response.messages = [
            Message(role=role, text=text, num_images=images) for role, text, images in messages
        ]
        return response

    # --- goals ---

    def _accept(self, goal) -> None:
        request, options, wrong = (
            goal.request,
            self._chat.options,
            'the node is being deactivated: ask again when it is active' if self._muted else '',
        )
        try:
            options = goal_options(request, options)
        except ValueError as error:
            wrong = wrong or str(error)
        pictures = [
            *(_picture(message, image_to_rgb) for message in request.images),
            *(_picture(message, compressed_to_rgb) for message in request.compressed_images),
        ]
        turn = Turn(request.query, options, pictures, goal)
        with self._goals_changed:
            self._turn_of_goal[bytes(goal.goal_id.uuid)] = turn
        if wrong:
            self._chat.refuse(turn, wrong)
        else:
            self._chat.ask(turn)

    def _cancel_goal(self, goal):
        key = bytes(goal.goal_id.uuid)
        with self._goals_changed:
            turn = self._turn_of_goal.get(key)
            if turn is None:
                return CancelResponse.REJECT
            self._cancelled.add(key)
        self._chat.cancel_turn(turn)
        return CancelResponse.ACCEPT

    def _hold(self, goal):
        """Run by the executor from the turn's start to its end; what it returns is the goal's result."""
        key = bytes(goal.goal_id.uuid)
        turn = self._turn_of_goal[key]
        turn.ended.wait()
        if key in self._cancelled:
            # rclpy brings the goal to "canceling" when _cancel_goal has returned, and the turn may have ended
            # before.
            until = time.monotonic() + 1.0
            while not goal.is_cancel_requested and time.monotonic() < until:
                time.sleep(0.001)
        try:
            if goal.is_cancel_requested:
                goal.canceled()
            elif turn.finish_reason in _SUCCEEDED:
                goal.succeed()
            else:
                goal.abort()
        except RuntimeError:
            self._unless_closed(goal.abort)
        with self._goals_changed:
            del self._turn_of_goal[key]
            self._cancelled.discard(key)
            self._goals_changed.notify_all()
        return Chat.Result(turn=self._turn_message(turn))

    @property
    def has_camera(self) -> bool:
        """Whether somebody publishes images that this robot would use."""
        return self._chat.options.image_mode is not ImageMode.OFF and self._camera.present

    @property
    def _camera_use(self) -> tuple[bool, str]:
        """Whether the camera's frames can be used, and over which transport."""
        options = self._chat.options
        return (
            options.image_mode is not ImageMode.OFF and self._chat.model.has_vision,
            options.image_transport,
        )

    def follow_camera(self) -> None:
        """Open the camera's topic that is wanted and published. To be called now and then."""
        self._camera.follow(*self._camera_use)

    def cancel_unheard(self) -> None:
        """Stop the goals of a client that has gone. To be called now and then."""
        listeners = self._node.count_subscribers(self._feedback_topic) if self._turn_of_goal else 0
        if listeners:
            self._heard = True
        elif self._heard:
            self._heard = False
            for turn in list(self._turn_of_goal.values()):
                self._chat.cancel_turn(turn)

    # --- out: the Output of RobotConversation ---

    def started(self, turn: Turn) -> None:
        if turn.goal is not None:
            self._execute(turn.goal)

    def piece(self, turn: Turn, index: int, text: str, num_tokens: int, reasoning: bool) -> None:
        self._publish_token(
            turn,
            Token(
                stamp=self._now(),
                turn_id=turn.id,
                index=index,
                text=text,
                num_tokens=num_tokens,
                reasoning=reasoning,
            ),
        )

    def sentence(self, turn: Turn, text: str) -> None:
        self._publish(self._sentences, String(data=text))

    def ended(self, turn: Turn) -> None:
        self._publish_token(
            turn,
            Token(
                stamp=self._now(),
                turn_id=turn.id,
                index=turn.num_pieces,
                last=True,
                finish_reason=turn.finish_reason,
            ),
        )
        self._publish(self._replies, String(data=turn.reply))
        self._publish(self._turns, self._turn_message(turn))
        if turn.goal is not None and not turn.begun:
            self._execute(turn.goal)  # it never was; its result still has to reach the client

    def _publish_token(self, turn: Turn, token: Token) -> None:
        self._publish(self._tokens, token)
        # Outside the executing state (a goal that waits, is refused or is being cancelled) Lyrical warns of
        # feedback and drops it. The client learns the end from the result.
        if turn.goal is not None and turn.goal.status == GoalStatus.STATUS_EXECUTING:
            self._unless_closed(turn.goal.publish_feedback, Chat.Feedback(token=token))

    def _publish(self, publisher, message) -> None:
        self._unless_closed(publisher.publish, message)

    def _execute(self, goal) -> None:
        try:
            goal.execute()
        except RuntimeError:
            self._unless_closed(
                goal.execute
            )  # its client cancelled it just now: the second time rclpy sees that

    def _unless_closed(self, call, *arguments) -> None:
        """A reply that did not end in time speaks on while its names go off the graph."""
        try:
            call(*arguments)
        except RuntimeError:
            if not self._closed:
                raise

    def _turn_message(self, turn: Turn) -> TurnMessage:
        message = TurnMessage(
            turn_id=turn.id,
            robot=self._chat.name,
            query=turn.query,
            reply=turn.reply,
            reasoning=turn.reasoning,
            finish_reason=turn.finish_reason,
            error=turn.error,
            note=turn.note,
            image_used=turn.picture is not None,
            prompt_tokens=turn.prompt_tokens,
            reused_tokens=turn.reused_tokens,
            image_tokens=turn.image_tokens,
            reused_image_tokens=turn.reused_image_tokens,
            encode_time=turn.encode_time,
            new_tokens=turn.new_tokens,
            dropped_turns=turn.dropped_turns,
            queue_time=turn.queue_time,
            time_to_first_token=turn.time_to_first_token,
            tokens_per_second=turn.tokens_per_second,
        )
        message.header.stamp = self._now()
        if turn.picture is not None:
            message.image.stamp = Time(sec=turn.picture.stamp // 10**9, nanosec=turn.picture.stamp % 10**9)
            message.header.frame_id = message.image.frame_id = turn.picture.frame_id
        return message

    def _now(self) -> Time:
        return self._node.get_clock().now().to_msg()

    def mute(self) -> None:
        """Take no more questions."""
        self._muted = True
        self._node.destroy_subscription(self._queries)

    def close(self) -> None:
        """Take the names off the graph. Turns that are still going on are not heard any more."""
        self.mute()
        with self._goals_changed:  # those whose turn has ended still have a result to send
            self._goals_changed.wait_for(
                lambda: all(not turn.ended.is_set() for turn in self._turn_of_goal.values()), _CLOSING
            )
        self._closed = True
        for service in self._services:
            self._node.destroy_service(service)
        close_action(self._node, self._action, _CLOSING)
        self._camera.close()
        for publisher in (self._tokens, self._sentences, self._replies, self._turns):
            publisher.wait_for_all_acked(
                _LAST_WORDS
            )  # what was published a moment ago would else be dropped with the publisher
            self._node.destroy_publisher(publisher)


def _picture(message, convert) -> Picture:
    return Picture(lambda: convert(message), stamp_of(message), message.header.frame_id)
