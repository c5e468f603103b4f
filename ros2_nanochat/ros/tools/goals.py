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
from ros2_nanochat.ros.tools.attempt import Attempt
from ros2_nanochat.ros.tools.undoing import Undoing
from ros2_nanochat.ros.tools.values import to_data

_CLOSING = 1.0  # seconds to wait for the executor when the client is closed
_INTRODUCED = 1.0  # seconds after which a server that answers no question about a goal gets one


class _Goal:
    """A goal that was sent.

    Attributes:
        handle: The client's handle, once the goal is accepted.
    """

    def __init__(self):
        self.handle: Any = None


class _Introduction:
    """Finds out whether a server knows its client: a client may see a server before the server sees it, and
    what is sent in between is lost.

    Asks for the result of a goal that does not exist. A server that answers knows the client.

    Args:
        client: The client.
        cls: Type of the action.
    """

    def __init__(self, client: AnyThreadActionClient, cls: Any):
        self._client, self._cls = client, cls
        self._asked: float | None = None
        self._answered = False

    def begin(self) -> None:
        """Ask, unless that was done. Call this when the server is there."""
        if self._asked is not None:
            return
        self._asked = time.monotonic()
        nobody = UUID(uuid=np.frombuffer(uuid4().bytes, np.uint8))
        goal = ClientGoalHandle(self._client, nobody, self._cls.Impl.SendGoalService.Response())
        with self._client.sending:
            answer = goal.get_result_async()
        answer.add_done_callback(self._heard)

    def _heard(self, _: Any) -> None:
        self._answered = True

    def forget(self) -> None:
        """Another server may come in place of the one that was asked."""
        self._asked, self._answered = None, False

    def is_done(self) -> bool:
        """Whether the server knows the client, as far as can be found out."""
        self.begin()
        assert self._asked is not None
        return self._answered or time.monotonic() - self._asked > _INTRODUCED


class ActionGoals:
    """Performs the calls of a tool that is an action.

    Args:
        node: The node.
        entry: The tool.
        cls: Type of the action.
        arguments: Its arguments.
    """

    acts_on = False

    def __init__(self, node: Any, entry: ToolEntry, cls: Any, arguments: Arguments):
        self._node, self._entry, self._arguments = node, entry, arguments
        self._name = node.resolve_service_name(f'{entry.target}/_action/x').removesuffix('/_action/x')
        self._client = AnyThreadActionClient(node, cls, entry.target, callback_group=ReentrantCallbackGroup())
        self._introduction = _Introduction(self._client, cls)
        self._undo = Undoing(node, entry, cls)

    def _is_there(self) -> bool:
        there = self._client.server_is_ready()
        if not there:
            self._introduction.forget()
        return there

    def follow(self) -> None:
        """Get known to the server before the first goal. Call this now and then."""
        if self._is_there():
            self._introduction.begin()

    def start(self, arguments: Mapping[str, Any], run: Reports) -> None:
        """Send the goal as soon as the action is there."""
        message = self._arguments.message(arguments)
        run.handle = Attempt(
            lambda: self._send(message, run),
            self._is_there,
            f'the action {self._name}',
            self._introduction.is_done,
        )

    def _send(self, message: Any, run: Reports) -> _Goal:
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
            run.fail(f'the action {self._name} rejected the goal')
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
            run.fail(f'the action {self._name} has gone before it answered')
            return
        data = to_data(response.result)
        text = json.dumps(data, ensure_ascii=False) if data else 'done'
        if response.status == GoalStatus.STATUS_SUCCEEDED:
            run.succeed(text)
        elif response.status == GoalStatus.STATUS_CANCELED:
            run.was_cancelled(f'the goal was canceled: {text}')
        elif response.status == GoalStatus.STATUS_ABORTED:
            run.fail(f'the action {self._name} aborted the goal: {text}')
        else:
            run.fail(f'the action {self._name} does not know the goal any more')

    def lost(self, run: Reports) -> str:
        """Return why no answer will come, '' if it may."""
        return run.handle.lost()

    def stop(self, run: Reports) -> None:
        """Cancel the goal."""
        goal = run.handle.sent
        if goal is None:
            run.was_cancelled('the goal was not sent')
        elif goal.handle is not None:  # otherwise it is cancelled as soon as it is accepted
            self._cancel(goal)

    def _cancel(self, goal: _Goal) -> None:
        with self._client.sending:
            goal.handle.cancel_goal_async()

    def undo(self, again: bool = False) -> None:
        """Do what the file names as `on_cancel`."""
        self._undo(again)

    def preview(self, arguments: Mapping[str, Any]) -> str:
        """Return what would be called."""
        return f'the action {self._name} would get the goal {json.dumps(dict(arguments))}'

    def close(self) -> None:
        """Close the client."""
        self._undo.close()
        close_action(self._node, self._client, _CLOSING)
