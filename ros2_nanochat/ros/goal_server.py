"""An action server whose goals occupy no thread of the executor while they wait for their results."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from action_msgs.msg import GoalStatus
from rclpy.action import ActionServer, CancelResponse
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.qos import QoSProfile

from ros2_nanochat.errors import one_line
from ros2_nanochat.ros.action_ends import FEEDBACK_DEPTH, service_qos

_RESULT_KEPT = 10  # seconds; Jazzy's default is 900, and rclpy keeps the goal's images with each result
_FETCH_SECONDS = 1.0  # that a client has to request a result before the action is closed


class GoalServer(ActionServer):
    """An action server whose goals end when someone calls `finish`.

    A callback that fails is logged; its goal is aborted, or its cancellation refused.

    Args:
        node: The node.
        action_type: Type of the action.
        name: Name of the action.
        accept: Called with each new goal.
        cancel: Whether a client may cancel a goal. If so, the goal must be finished soon. Neither this nor
            `accept` is called concurrently.
    """

    def __init__(self, node, action_type, name: str, accept: Callable, cancel: Callable):
        self._moving = threading.Condition()
        self._cancelling: set[bytes] = set()  # goals that rclpy is moving to "canceling"
        self._held: list[tuple[Any, bool, Any]] = []  # goals that were finished meanwhile
        self._unfetched: dict[bytes, float] = {}  # when goals ended whose results nobody requested
        self._asked: set[bytes] = set()  # goals whose client waits for the result
        self._unsent = 0  # requests for results of known goals that are taken and not answered
        self._ending: set[bytes] = set()
        self._take, self._may_cancel = accept, cancel
        self._log, self._name, self._result = node.get_logger(), name, action_type.Result
        super().__init__(
            node,
            action_type,
            name,
            self._never,
            callback_group=MutuallyExclusiveCallbackGroup(),
            handle_accepted_callback=self._accept,
            cancel_callback=self._cancel,
            goal_service_qos_profile=service_qos(),
            result_service_qos_profile=service_qos(),
            cancel_service_qos_profile=service_qos(),
            feedback_pub_qos_profile=QoSProfile(depth=FEEDBACK_DEPTH),
            result_timeout=_RESULT_KEPT,
        )

    def _never(self, goal):
        """Never called, but rclpy needs an execute callback."""

    def notify_execute(self, goal_handle, execute_callback) -> None:
        """Called by `goal.execute()`, which moves the goal to "executing". Nothing needs to run."""

    def _accept(self, goal) -> None:
        try:
            self._take(goal)
        except BaseException as error:  # else the client would wait for ever
            self._failed('accepting a goal', error)
            self.finish(goal, False, self._result())

    def _failed(self, what: str, error: BaseException) -> None:
        self._log.error(f'{self._name}: {what} failed: {one_line(repr(error))}')

    def finish(self, goal, succeeded: bool, result) -> None:
        """End a goal: canceled if its client cancels it, else succeeded or aborted.

        Can be called from any thread.

        Args:
            goal: The goal.
            succeeded: Whether it succeeded.
            result: Its result.
        """
        key = bytes(goal.goal_id.uuid)
        with self._moving:
            self._ending.add(key)
            if key in self._cancelling:
                self._held.append((goal, succeeded, result))
                return
        super().notify_execute(goal, lambda goal: self._conclude(goal, succeeded, result))

    def _conclude(self, goal, succeeded: bool, result):
        """Called by the executor; returns the goal's result."""
        try:
            if not goal.is_active:
                return result
            try:
                if goal.status == GoalStatus.STATUS_ACCEPTED:
                    goal.execute()  # only an executing goal can succeed
                if goal.is_cancel_requested:
                    goal.canceled()
                elif succeeded:
                    goal.succeed()
                else:
                    goal.abort()
            except RuntimeError:
                goal.canceled()  # its client cancelled it just now
            return result
        finally:
            key = bytes(goal.goal_id.uuid)
            with self._moving:
                self._ending.discard(key)
                if key not in self._asked:
                    self._unfetched[key] = time.monotonic()
                self._asked.discard(key)
                self._moving.notify_all()

    def _cancel(self, goal) -> CancelResponse:
        key = bytes(goal.goal_id.uuid)
        with self._moving:
            self._cancelling.add(key)
        try:
            may = self._may_cancel(goal)
        except BaseException as error:
            self._failed('cancelling a goal', error)
            may = False
        return CancelResponse.ACCEPT if may else CancelResponse.REJECT

    async def execute(self, taken_data) -> None:
        """Process what the executor took for this action. The executor calls this, never concurrently."""
        if 'expired' in taken_data:
            with self._moving:
                for info in taken_data['expired']:
                    key = bytes(info.goal_id.uuid)
                    # The client may never request the result, or request it twice.
                    self._unfetched.pop(key, None)
                    self._asked.discard(key)
        try:
            await super().execute(taken_data)
        finally:
            # By now rclpy has moved the cancelled goals to "canceling".
            with self._moving:
                held, self._held = self._held, []
                self._cancelling.clear()
            for goal, succeeded, result in held:
                self.finish(goal, succeeded, result)

    async def _execute_get_result_request(self, request) -> None:
        """Called by rclpy for each request for a result."""
        key = bytes(request[1].goal_id.uuid)
        with self._moving:
            if key in self._goal_handles:
                self._unsent += 1
                if self._unfetched.pop(key, None) is None:
                    self._asked.add(key)
            self._moving.notify_all()
        await super()._execute_get_result_request(request)

    def _send_result_response(self, *args) -> None:
        """Called by rclpy for each of them whose goal is known, in a task some time after the goal's end."""
        try:
            super()._send_result_response(*args)
        finally:
            with self._moving:
                self._unsent -= 1
                self._moving.notify_all()

    def wait_until_fetched(self, timeout: float) -> None:
        """Wait at most `timeout` seconds until clients have the results that they want or may soon want."""
        until = time.monotonic() + timeout

        def open_goals() -> bool:
            now = time.monotonic()
            for key in [k for k, ended in self._unfetched.items() if now - ended > _FETCH_SECONDS]:
                del self._unfetched[key]
            return bool(self._ending or self._unfetched or self._unsent)

        with self._moving:
            while open_goals() and time.monotonic() < until:
                self._moving.wait(0.05)
