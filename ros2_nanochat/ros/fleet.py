"""The robots of a node: each has a conversation while a model is loaded, and topics while the node is
active.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial

from ros2_nanochat.errors import one_line
from ros2_nanochat.robot.answering import check_texts
from ros2_nanochat.robot.conversation import RobotConversation
from ros2_nanochat.robot.health import WARN, Status, robot_status
from ros2_nanochat.robot.mcp_tools import McpServers
from ros2_nanochat.robot.observations import Observations
from ros2_nanochat.robot.output import Nobody
from ros2_nanochat.robot.store import ConversationStore
from ros2_nanochat.robot.tool_policy import ToolChoice
from ros2_nanochat.robot.watch_budget import WatchBudget
from ros2_nanochat.ros.node_parameters import NodeParameters
from ros2_nanochat.ros.quick_subscriptions import QuickSubscriptions
from ros2_nanochat.ros.robot_topics import RobotTopics
from ros2_nanochat.ros.spinning import pass_through
from ros2_nanochat.ros.tools.robot_tools import RobotTools
from ros2_nanochat.ros.watch_topics import WatchTopics

_LOOKING_SECONDS = 0.01
"""For asking the graph about robots, each time. One question takes longer the more robots there are: with
many, not all are asked about each time."""

_WARNED_ROBOTS = 32
"""With more robots, their topics have no events that warn of listeners with incompatible QoS (the listeners
still warn): each robot has a dozen, and rclpy's executor takes time quadratic in their number."""

_TICK, _FEW_ROBOTS = 0.25, 200
"""Seconds between two looks at the deadlines of robots, with up to this many. Each wakes rclpy's executor,
which then examines every entity: with more robots, there are fewer looks."""

_CLOSING = 0.5  # seconds to wait for questions that were already taken

_BUSY_KNOWN = 0.005  # seconds: many robots ask whether the model is busy

_GRAPH_SECONDS = 2.0
"""In this time, a node that has just joined the graph should know the services and topics of others."""


class Fleet:
    """The robots of one node.

    Args:
        node: The node.
        settings: Its parameters.

    Attributes:
        wanted: Names of the robots, as last set.
    """

    def __init__(self, node, settings: NodeParameters):
        self.wanted = settings.robots()
        self._node, self._settings, self._log = node, settings, node.get_logger()
        self._chats: dict[str, RobotConversation] = {}
        self._ports: dict[str, RobotTopics] = {}
        self._tools: dict[str, RobotTools] = {}
        self._changing = threading.RLock()  # held while conversations and ports are made or closed
        self._busy = (0.0, False)  # when that was last known, and whether the model answers a person
        self._watching: dict[str, WatchTopics] = {}
        self._budget = WatchBudget()
        self._twins: dict[str, str] = {}  # the last warning about each robot's topics
        self._next = 0  # the robot that the graph is asked about next
        self._graph_known = 0.0
        self._servers = McpServers()
        self._queries = QuickSubscriptions(node, 'queries')

    @property
    def tick_seconds(self) -> float:
        """Seconds between two calls of `expire`."""
        return _TICK * max(1.0, len(self.wanted) / _FEW_ROBOTS)

    def update(self, model, open_ports: Callable[[], bool]) -> None:
        """Create what is missing and close what is no longer wanted: parameters, conversations and topics.

        Args:
            model: The `NanoLLM`, None while there is none.
            open_ports: Whether topics should be open.
        """
        with self._changing:
            names = self.wanted
            self._graph_known = time.monotonic() + _GRAPH_SECONDS
            self._settings.declare_robots(names)
            gone = [robot for robot in self._chats if robot not in names]
            self._mute(gone)
            for robot in gone:
                self._look_after(partial(self._close, robot))
            self._settings.forget_robots(names)
            with self._node.executor_left_alone():
                for robot in names if model is not None else ():
                    if self._node.done.is_set():
                        return  # the process must not wait for hundreds of robots before it ends
                    if robot not in self._chats:
                        self._chats[robot] = self._conversation(robot, model)
                    if robot not in self._ports and open_ports():
                        self._ports[robot] = RobotTopics(
                            self._node,
                            self._chats[robot],
                            self._queries,
                            self._tools.get(robot),
                            warns=len(names) <= _WARNED_ROBOTS,
                        )
                        if model.has_vision:
                            self._watching[robot] = self._watch_topics(robot)
                        elif self._chats[robot].options.watches_file:
                            self._log.error(
                                f'{robot or "chat"}: watches_file has no effect: {model.info.name} has no'
                                ' vision'
                            )

    def _conversation(self, robot: str, model) -> RobotConversation:
        kept, store = self._settings.node(), None
        if kept.state_dir:
            place = f'{self._node.get_namespace()}/{robot}/{self._node.get_name()}'.replace('//', '/')
            store = ConversationStore(kept.state_dir, place, self._log, kept.state_kv)
        try:
            options = self._settings.robot(robot)
            check_texts(options, model.info.context_length)
            if refusal := model.engine.refusal(options.generation):
                raise ValueError(f'{robot}: {refusal}' if robot else refusal)
            tools = None
            if options.tools_file:
                tools = RobotTools(
                    self._node,
                    options.tools_file,
                    robot,
                    store,
                    self._log,
                    self._servers,
                    self._graph_known,
                    lambda: self._observations(robot),
                )
                demands_call = tools.box.limits.tool_choice is ToolChoice.REQUIRED
                if refusal := model.engine.refusal(options.generation, demands_call):
                    tools.close()
                    raise ValueError(f'{options.tools_file}: {refusal}')
            chat = RobotConversation(
                robot,
                model,
                options,
                Nobody(),
                None,
                store,
                self._log,
                kept.chat_template,
                None if tools is None else tools.box,
            )
            if tools is not None:
                self._tools[robot] = tools
            return chat
        except BaseException:
            if store is not None:
                store.close()
            raise

    def _watch_topics(self, robot: str) -> WatchTopics:
        return WatchTopics(
            self._node,
            self._chats[robot],
            self._ports[robot].cameras,
            self._budget,
            self._is_busy,
            self._settings.node().chat_template,
        )

    def _observations(self, robot: str) -> Observations | None:
        """Return what a robot's standing questions saw, None if it cannot have any."""
        watching = self._watching.get(robot)
        return None if watching is None else watching.watcher.observations

    def _close_watching(self, robot: str) -> None:
        watching = self._watching.pop(robot, None)
        if watching is not None:
            watching.close()

    def _is_busy(self) -> bool:
        """Whether the model is answering a person: standing questions wait."""
        now = time.monotonic()
        if now - self._busy[0] > _BUSY_KNOWN:
            chats = list(self._chats.values())
            self._busy = now, any(chat.state != 'idle' or chat.num_waiting for chat in chats)
        return self._busy[1]

    def set_options(self, options: dict) -> None:
        """Replace the options of the robots that are in `options`."""
        for robot, chat in list(self._chats.items()):
            if robot in options:
                chat.options = options[robot]

    def _mute(self, robots: Iterable[str]) -> None:
        """Let robots accept no more questions, and wait for those that were already taken; once for all
        robots, because something may be stuck.
        """
        ports = [self._ports[robot] for robot in robots if robot in self._ports]
        for port in ports:
            port.mute()
        if ports:
            self._queries.wait(_CLOSING)
            pass_through(self._node, _CLOSING)

    def _close(self, robot: str) -> None:
        """Close a robot that was muted."""
        chat = self._chats.pop(robot)
        self._tools.pop(robot, None)
        with ExitStack() as closing:  # each one, even if others fail
            closing.callback(self._close_port, robot, chat)
            closing.callback(chat.close)
            self._close_watching(robot)

    def _close_port(self, robot: str, chat: RobotConversation) -> None:
        port = self._ports.pop(robot, None)
        if port is not None:
            port.close()
            chat.output, chat.sight.camera = Nobody(), None

    def close_ports(self) -> None:
        """Close all topics. The conversations stay."""
        with self._changing, self._node.executor_left_alone():
            self._mute(self._ports)
            for robot in list(self._ports):
                self._look_after(partial(self._silence, robot, self._chats[robot]))

    def _silence(self, robot: str, chat: RobotConversation) -> None:
        with ExitStack() as closing:
            closing.callback(self._close_port, robot, chat)
            try:
                chat.stop_all()
            except RuntimeError as error:
                self._log.warning(str(error))
            self._close_watching(robot)

    def close(self) -> None:
        """End all conversations."""
        with self._changing:
            self._mute(self._ports)
            for chat in self._chats.values():
                chat.cancel()  # all first: there may not be enough time to close them one by one
            for robot in list(self._chats):
                self._look_after(partial(self._close, robot))
            self._servers.close()

    # --- now and then: no lock that making or closing robots, or a model, holds ---

    def expire(self) -> None:
        """End turns whose deadline has passed or whose client has left. Call this regularly."""
        for chat in list(self._chats.values()):
            self._look_after(chat.expire)
        self._budget.share = self._settings.watch_share
        for watching in list(self._watching.values()):
            self._look_after(watching.follow)
        ports = list(self._ports.values())
        for port in ports:
            self._look_after(port.follow_options)
        until = time.monotonic() + _LOOKING_SECONDS
        for _ in ports:
            self._next = (self._next + 1) % len(ports)
            self._look_after(ports[self._next].look_at_graph)
            if time.monotonic() > until:
                break

    def _look_after(self, step: Callable[[], None]) -> None:
        """Run a step of one robot; what fails there does not touch the other robots."""
        try:
            step()
        except Exception as error:  # the step is run again soon
            if self._node.context.ok():
                self._log.error(
                    f'looking after a robot failed: {one_line(repr(error))}', throttle_duration_sec=10.0
                )

    @property
    def has_camera(self) -> bool:
        """Whether anyone publishes images for one of the robots. Asks the graph about each."""
        return any(port.has_camera for port in list(self._ports.values()))

    def statuses(self) -> list[Status]:
        """Return the diagnostics of each robot."""
        statuses = []
        for robot, chat in list(self._chats.items()):
            status = robot_status(chat)
            port = self._ports.get(robot)
            twin = port.twin if port is not None else ''
            if twin:
                status.raise_to(WARN, twin)
                if twin != self._twins.get(robot):
                    self._log.warning(twin)
            self._twins[robot] = twin
            statuses.append(status)
            watching = self._watching.get(robot)
            statuses += watching.statuses() if watching is not None else []
        return statuses
