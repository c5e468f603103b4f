"""Connects a robot's `Watcher` to ROS: the topics `observations` and `watches`, the service `set_watch` and
the action `watch`. docs/watch.md describes them.
"""

from __future__ import annotations

import itertools
import threading
from dataclasses import replace

from action_msgs.msg import GoalStatus
from nanochat.action import Watch as WatchAction
from nanochat.msg import Observation as ObservationMessage
from nanochat.msg import Watches
from nanochat.srv import SetWatch
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.qos_overriding_options import QoSOverridingOptions

from ros2_nanochat.errors import one_line
from ros2_nanochat.robot.conversation import RobotConversation
from ros2_nanochat.robot.health import ERROR, WARN, Status
from ros2_nanochat.robot.observations import Observation
from ros2_nanochat.robot.watch import Watch, WatchEnd, WatchSource
from ros2_nanochat.robot.watch_standing import Standing
from ros2_nanochat.robot.watcher import Watcher
from ros2_nanochat.ros.action_ends import service_qos
from ros2_nanochat.ros.goal_clients import GoalClients
from ros2_nanochat.ros.goal_server import GoalServer
from ros2_nanochat.ros.named_cameras import NamedCameras
from ros2_nanochat.ros.speaker import Speaker
from ros2_nanochat.ros.spinning import close_action
from ros2_nanochat.ros.watch_messages import changed_watch, observation_message, watch_message, watch_of
from ros2_nanochat.ros.watches_file import read_watches

OBSERVATIONS_KEPT = 50
"""Observations that a listener gets that comes later."""

_CLOSING = 5.0  # seconds to wait for pending results when the action is closed
_COMMANDS = 'add, change, pause, resume, remove'
_SUCCEEDED = (WatchEnd.UNTIL, WatchEnd.TIMEOUT)


class WatchTopics:
    """The standing questions of one robot in ROS; the `WatchOutput` of its `Watcher`.

    Args:
        node: The node.
        chat: The robot's conversation.
        cameras: The robot's cameras.
        budget: The share of the model's time.
        busy: Whether a person's question is being answered.
        chat_template: See `ChatTemplate`.
    """

    def __init__(
        self, node, chat: RobotConversation, cameras: NamedCameras, budget, busy, chat_template: str | None
    ):
        self._node, self._chat, self._cameras = node, chat, cameras
        self._closed = False
        self._file = ''
        self._goals: dict[bytes, Standing] = {}
        self._lock = threading.Lock()
        prefix = f'{chat.name}/{node.get_name()}/' if chat.name else '~/'
        self.watcher = Watcher(
            chat.name,
            chat.model,
            lambda: chat.options,
            cameras.get,
            self,
            budget,
            busy,
            node.get_logger(),
            chat_template,
        )
        override = {'qos_overriding_options': QoSOverridingOptions.with_default_policies()}
        self._publishers = [
            node.create_publisher(
                kind,
                prefix + name,
                QoSProfile(depth=depth, durability=DurabilityPolicy.TRANSIENT_LOCAL),
                **override,
            )
            for kind, name, depth in (
                (ObservationMessage, 'observations', OBSERVATIONS_KEPT),
                (Watches, 'watches', 1),
            )
        ]
        self._observation, self._watches = (
            Speaker(publisher.publish, publisher.topic_name, lambda: self._closed)
            for publisher in self._publishers
        )
        self._service = node.create_service(
            SetWatch,
            prefix + 'set_watch',
            self._set_watch,
            qos_profile=service_qos(),
            callback_group=ReentrantCallbackGroup(),
        )
        self._server = GoalServer(node, WatchAction, prefix + 'watch', self._accept, self._cancel)
        self._clients = GoalClients(node, prefix + 'watch')
        self.changed()
        self.follow()

    # --- in ---

    def _known(self) -> list[str]:
        return list(self._chat.options.camera_topics(self._chat.name))

    def _set_watch(self, request: SetWatch.Request, response: SetWatch.Response) -> SetWatch.Response:
        response.name = name = request.watch.name
        try:
            if request.command == 'add':
                response.name = self._add(request.watch, WatchSource.SERVICE).watch.name
                response.message = f'{response.name!r} is being watched'
            elif request.command == 'change':
                self.watcher.change(name, lambda watch: changed_watch(watch, request, self._known()))
                response.message = f'{name!r} was changed'
            elif request.command in ('pause', 'resume'):
                self.watcher.pause(name, request.command == 'pause')
                response.message = (
                    f'{name!r} is {"paused" if request.command == "pause" else "being watched"}'
                )
            elif request.command == 'remove':
                self.watcher.remove(name)
                response.message = f'{name!r} was removed'
            else:
                raise ValueError(f'command={request.command[:200]!r} is not valid: one of {_COMMANDS}')
            response.success = True
        except BaseException as error:  # without a response, the client would wait forever
            response.success, response.message = False, one_line(error)
        return response

    def _add(self, message, source: WatchSource, goal=None) -> Standing:
        watch = watch_of(message, self._known())
        return self.watcher.add(watch if message.name else self._unique(watch), source, goal)

    def _unique(self, watch: Watch) -> Watch:
        """Return a standing question with a name that no other has."""
        names = {each.watch.name for each in self.watcher.standing}
        candidates = itertools.chain([watch.name], (f'{watch.name}_{n}' for n in itertools.count(2)))
        return replace(watch, name=next(name for name in candidates if name not in names))

    def _accept(self, goal) -> None:
        goal.execute()
        key = bytes(goal.goal_id.uuid)
        try:
            standing = self._add(goal.request, WatchSource.ACTION, goal)
        except Exception as error:
            result = WatchAction.Result(reason=WatchEnd.ERROR, error=one_line(error))
            self._node.get_logger().warning(f'{self._chat.name or "chat"}: watch: {result.error}')
            self._server.finish(goal, False, result)
            return
        with self._lock:
            self._goals[key] = standing
        self._clients.met(key)
        if standing.ended:  # it has ended already
            with self._lock:
                self._goals.pop(key, None)

    def _cancel(self, goal) -> bool:
        with self._lock:
            standing = self._goals.get(bytes(goal.goal_id.uuid))
        return standing is not None and self.watcher.end(standing, WatchEnd.CANCELLED)

    def follow(self) -> None:
        """Update cameras, `watches_file`, the clients of goals and the thread. Call this regularly.

        Raises:
            RuntimeError: The system has no thread left. Calling this again tries again.
        """
        options, standing = self._chat.options, self.watcher.standing
        self._cameras.follow(options, {name for each in standing for name in each.watch.cameras})
        for each in self._clients.gone(self._open_goals):
            self.watcher.end(each, WatchEnd.CANCELLED)
        if (options.watches_file or '') != self._file:
            self._file = options.watches_file or ''
            self._load_file()
        self.watcher.supervise()

    def _open_goals(self) -> dict[bytes, Standing]:
        with self._lock:
            return dict(self._goals)

    def _load_file(self) -> None:
        for each in self.watcher.standing:
            if each.source is WatchSource.FILE:
                self.watcher.end(each, WatchEnd.REMOVED)
        try:
            for watch in read_watches(self._file, self._known()) if self._file else ():
                self.watcher.add(watch, WatchSource.FILE)
        except ValueError as error:
            self._node.get_logger().error(f'{self._chat.name or "chat"}: {error}')
        except RuntimeError:
            self._file = ''  # no thread was left: it is read again
            raise

    # --- out: the WatchOutput of the Watcher ---

    def observed(self, standing: Standing, observation: Observation) -> None:
        """Publish an observation, and send it as feedback."""
        message = observation_message(self._chat.name, observation)
        self._observation(message)
        goal = standing.goal
        if goal is not None and goal.status == GoalStatus.STATUS_EXECUTING:
            goal.publish_feedback(WatchAction.Feedback(observation=message))

    def ended(self, standing: Standing, reason: WatchEnd, error: str) -> None:
        """Send the result to the client."""
        goal = standing.goal
        if goal is None:
            return
        with self._lock:
            self._goals.pop(bytes(goal.goal_id.uuid), None)
        result = WatchAction.Result(reason=reason, error=error)
        if standing.last is not None:
            result.observation = observation_message(self._chat.name, standing.last)
        self._server.finish(goal, reason in _SUCCEEDED, result)

    def changed(self) -> None:
        """Publish which standing questions there are."""
        if not self._closed:
            self._watches(
                Watches(
                    stamp=self._node.get_clock().now().to_msg(),
                    robot=self._chat.name,
                    watches=[watch_message(each) for each in self.watcher.standing],
                )
            )

    def statuses(self) -> list[Status]:
        """Return the diagnostics of each standing question."""
        found = []
        for each in self.watcher.standing:
            owner = f'{self._chat.name} ' if self._chat.name else ''
            status = Status(f'{owner}watch {each.watch.name}', values={'state': each.state, **each.figures()})
            for fault in self.watcher.faults.present:
                status.raise_to(ERROR, fault)
            if each.note:
                status.raise_to(WARN, each.note)
            if not status.messages:
                status.messages.append(each.state)
            found.append(status)
        return found

    def close(self) -> None:
        """End all standing questions and close the topics, once clients have their results."""
        self.watcher.close()
        self._server.wait_until_fetched(_CLOSING)
        self._closed = True
        close_action(self._node, self._server, _CLOSING)
        self._node.destroy_service(self._service)
        self._cameras.close()
        for publisher in self._publishers:
            self._node.destroy_publisher(publisher)
