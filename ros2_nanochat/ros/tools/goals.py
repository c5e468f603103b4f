"""Actions as tools: each call is a goal, its answer the result."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

import numpy as np
from action_msgs.msg import GoalStatus
from rclpy.action.client import ClientGoalHandle
from rclpy.callback_groups import ReentrantCallbackGroup
from unique_identifier_msgs.msg import UUID

from ros2_nanochat.robot.tool_entries import ToolEntry
from ros2_nanochat.robot.tool_record import Reports
from ros2_nanochat.ros.action_ends import AnyThreadActionClient
from ros2_nanochat.ros.spinning import close_action
from ros2_nanochat.ros.tools.arguments import Arguments
from ros2_nanochat.ros.tools.performing import Performing
from ros2_nanochat.ros.tools.undoing import Undoing
from ros2_nanochat.ros.tools.values import to_data

_CLOSING = 1.0  # seconds to wait for the executor when the client is closed
_ASK_AGAIN = 0.3  # seconds between two questions to a server that has not answered
_INTRODUCED = 5.0  # seconds after which a server that has not answered gets goals, too


class _Introduction:
    """Finds out whether a server knows its client: a client may see a server before the server sees it, and
    what is sent in between is lost.

    Asks the server to cancel a goal that does not exist, which every server answers at once and without a
    warning. A server that answers knows the client.

    Args:
        client: The client.
        cls: Type of the action.
    """

    def __init__(self, client: AnyThreadActionClient, cls: Any):
        self._client, self._cls = client, cls
        self._began = self._asked = 0.0
        self._answered = False

    def is_done(self) -> bool:
        """Whether the server knows the client, as far as can be found out. Call this now and then while the
        server is there.
        """
        now = time.monotonic()
        self._began = self._began or now
        if not self._answered and now - self._asked >= _ASK_AGAIN:
            self._asked = now
            self._ask()
        return self._answered or now - self._began >= _INTRODUCED

    def forget(self) -> None:
        """Another server may come in place of the one that was asked."""
        self._began, self._answered = 0.0, False

    def _ask(self) -> None:
        nobody = UUID(uuid=np.frombuffer(uuid4().bytes, np.uint8))
        with self._client.sending:
            goal = ClientGoalHandle(self._client, nobody, self._cls.Impl.SendGoalService.Response())
            answer = goal.cancel_goal_async()
        answer.add_done_callback(self._heard)

    def _heard(self, _: Any) -> None:
        self._answered = True


class _Goal:
    """A goal that was sent.

    Attributes:
        handle: The client's handle, once the goal is accepted.
    """

    def __init__(self):
        self.handle: Any = None


class ActionGoals(Performing):
    """Performs the calls of a tool that is an action.

    Args:
        node: The node.
        entry: The tool.
        cls: Type of the action.
        arguments: Its arguments.
    """

    unsent = 'the goal was not sent'

    def __init__(self, node: Any, entry: ToolEntry, cls: Any, arguments: Arguments):
        name = node.resolve_service_name(f'{entry.target}/_action/x').removesuffix('/_action/x')
        super().__init__(f'the action {name}', Undoing(node, entry, cls))
        self._node, self._arguments = node, arguments
        self._client = AnyThreadActionClient(node, cls, entry.target, callback_group=ReentrantCallbackGroup())
        self._introduction = _Introduction(self._client, cls)

    def message(self, arguments: Mapping[str, Any]) -> Any:
        """Return the goal of a call."""
        return self._arguments.message(arguments)

    def is_there(self) -> bool:
        """Return whether the action is there."""
        there = self._client.server_is_ready()
        if not there:
            self._introduction.forget()
        return there

    def knows_us(self) -> bool:
        """Return whether the server knows the client."""
        return self._introduction.is_done()

    def send(self, message: Any, run: Reports) -> _Goal:
        """Send the goal."""
        goal = _Goal()
        with self._client.sending:
            future = self._client.send_goal_async(
                message,
                feedback_callback=lambda news: run.tell(
                    json.dumps(to_data(news.feedback), ensure_ascii=False)
                ),
            )
        future.add_done_callback(lambda future: self._accepted(future, goal, run))
        return goal

    def _accepted(self, future: Any, goal: _Goal, run: Reports) -> None:
        handle = future.result()
        if handle is None or not handle.accepted:
            run.fail(f'{self.other} rejected the goal')
            return
        goal.handle = handle
        run.taken()
        if run.stopping:
            self._cancel(goal)
        with self._client.sending:
            result = handle.get_result_async()
        result.add_done_callback(lambda future: self._ended(future, run))

    def _ended(self, future: Any, run: Reports) -> None:
        response = future.result()
        if response is None:
            run.fail(f'{self.other} has gone before it answered')
            return
        data = to_data(response.result)
        text = json.dumps(data, ensure_ascii=False) if data else 'done'
        if response.status == GoalStatus.STATUS_SUCCEEDED:
            run.succeed(text)
        elif response.status == GoalStatus.STATUS_CANCELED:
            run.was_cancelled(f'the goal was canceled: {text}')
        elif response.status == GoalStatus.STATUS_ABORTED:
            run.fail(f'{self.other} aborted the goal: {text}')
        else:
            run.fail(f'{self.other} does not know the goal any more')

    def stop_sent(self, sent: _Goal, run: Reports) -> None:
        """Cancel the goal, as soon as it is accepted."""
        if sent.handle is not None:
            self._cancel(sent)

    def _cancel(self, goal: _Goal) -> None:
        with self._client.sending:
            goal.handle.cancel_goal_async()

    def would(self, arguments: str) -> str:
        """Return what a call with these arguments would do."""
        return f'{self.other} would get the goal {arguments}'

    def close_request(self) -> None:
        """Close the client."""
        close_action(self._node, self._client, _CLOSING)
