"""The node: a life cycle around one model, and the robots that share it.

`configure` loads the model on its own thread (model_loader.py) and creates each robot's conversation,
`activate` opens their topics (fleet.py), `deactivate` closes them, `cleanup` frees the memory.

The services of the transitions are reentrant, so that `get_state` answers while a transition waits for the
model. Parameters use the node's default group, which nothing blocks. The timer has its own group and takes no
lock that loading or running a model holds.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rcl_interfaces.msg import SetParametersResult
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNodeMixin, TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.signals import SignalHandlerOptions

from ros2_nanochat.config import ImageMode
from ros2_nanochat.errors import BackendError, MissingDependency, one_line, shorten, shown
from ros2_nanochat.nano_llm import NanoLLM
from ros2_nanochat.robot import health
from ros2_nanochat.robot.answering import check_texts
from ros2_nanochat.robot.options import robot_names
from ros2_nanochat.ros.allocator import give_back_memory, on_own_thread
from ros2_nanochat.ros.fleet import Fleet
from ros2_nanochat.ros.interruption import interrupt_loading
from ros2_nanochat.ros.model_loader import ModelLoader
from ros2_nanochat.ros.node_parameters import NodeParameters
from ros2_nanochat.ros.node_process import run_until
from ros2_nanochat.ros.parameter_files import files_without_effect
from ros2_nanochat.ros.program import init, refuse_words, run_ros_program
from ros2_nanochat.ros.shared_memory import remove_left_segments, shortage
from ros2_nanochat.ros.signals import on_signal
from ros2_nanochat.ros.spinning import MakesMany
from ros2_nanochat.states import NodeState

_SUCCESS, _FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


class ChatNode(MakesMany, LifecycleNodeMixin, Node):
    """The managed node `nanochat`. Call `start()` for `autostart`, and `close()` to end it from any state.

    Args:
        done: Set when the process should end, by a signal or by the node.
    """

    def __init__(self, done: threading.Event):
        # Not LifecycleNode.__init__: it passes the callback group to Node, which has no such argument.
        Node.__init__(self, 'nanochat')
        LifecycleNodeMixin.__init__(self, callback_group=ReentrantCallbackGroup())
        self.failure: str | None = None
        self.exit_code = 0
        self.done = done
        self._model: NanoLLM | None = None
        self._loader = ModelLoader(done, self.get_logger())
        interrupt_loading(self, self._loader.abort)
        self._state = NodeState.UNCONFIGURED
        self._settings = NodeParameters(self)
        self._fleet = Fleet(self, self._settings)
        self.add_on_set_parameters_callback(self._on_set)
        self._diagnostics = self.create_publisher(
            DiagnosticArray,
            '/diagnostics',
            10,
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )
        self._report_at = 0.0
        # Wall time: deadlines and diagnostics continue while a simulation is paused.
        self._timer = self.create_timer(
            self._fleet.tick_seconds,
            self._tick,
            callback_group=MutuallyExclusiveCallbackGroup(),
            clock=Clock(clock_type=ClockType.STEADY_TIME),
        )

    def start(self) -> None:
        """Configure and activate on a thread if `autostart` is set. If that fails, the process ends."""
        if self.get_parameter('autostart').value:
            threading.Thread(target=self._autostart, name='autostart', daemon=True).start()

    def _autostart(self) -> None:
        started = False
        try:
            started = self.trigger_configure() == _SUCCESS and self.trigger_activate() == _SUCCESS
        except Exception as error:
            if not self.done.is_set():  # otherwise rclpy was shut down while the model was loading
                self.get_logger().fatal(f'internal error: {one_line(error)}')
        if not started and not self._loader.was_stopped:  # by a transition
            if not self.done.is_set():
                self.exit_code = 1
            self.done.set()

    def _on_set(self, parameters: list[Parameter]) -> SetParametersResult:
        if not any(self.has_parameter(parameter.name) for parameter in parameters):
            # Just declared, and checked when used: checking all robots for each would take too long.
            return SetParametersResult(successful=True)
        changed = {parameter.name: parameter.value for parameter in parameters}
        try:
            for name, value in changed.items():
                self._settings.check_change(name, value, self._state)
            names = robot_names(list(changed['robots'])) if 'robots' in changed else self._settings.robots()
            options = self._settings.changed_robots(names, changed)
            self._settings.model(changed)
            if (model := self._model) is not None:
                for each in options.values():
                    check_texts(each, model.info.context_length)
            if 'robots' in changed:
                self._want(names)
        except Exception as error:
            return SetParametersResult(successful=False, reason=one_line(error))
        self._fleet.set_options(options)
        return SetParametersResult(successful=True)

    def _want(self, robots: list[str]) -> None:
        """Have these robots soon: on another thread, because the parameters are locked here."""
        self._fleet.wanted, before = robots, self._fleet.wanted
        try:
            threading.Thread(target=self._follow_robots, name='robots', daemon=True).start()
        except RuntimeError:  # the system has no thread left
            self._fleet.wanted = before
            raise

    def _follow_robots(self) -> None:
        try:
            self._update_fleet()
        except Exception as error:
            if not self.done.is_set():
                self.get_logger().error(f'robots: {one_line(error)}')

    def _update_fleet(self, activating: bool = False) -> None:
        self._fleet.update(self._model, lambda: activating or self._state == NodeState.ACTIVE)

    def on_configure(self, _):
        """Load the model and create the robots' conversations."""
        return self._transition(NodeState.CONFIGURING, NodeState.INACTIVE, self._configure)

    def on_activate(self, _):
        """Open the robots' topics."""
        return self._transition(NodeState.ACTIVATING, NodeState.ACTIVE, self._activate)

    def on_deactivate(self, _):
        """Close the robots' topics."""
        return self._transition(NodeState.DEACTIVATING, NodeState.INACTIVE, self._fleet.close_ports)

    def on_cleanup(self, _):
        """End the conversations and free the memory."""
        return self._transition(NodeState.CLEANING_UP, NodeState.UNCONFIGURED, self._unload)

    def on_shutdown(self, _):
        """End everything."""
        return self._transition(NodeState.SHUTTING_DOWN, NodeState.FINALIZED, self._unload)

    def _transition(self, during: NodeState, after: NodeState, action):
        """Run a transition. rclpy silently drops exceptions; here each is logged and fails the transition."""
        before, self._state = self._state, during
        try:
            on_own_thread(action, during)
        except (ValueError, OSError, BackendError, MissingDependency) as error:
            self.failure = shorten(str(error), 600)
        except BaseException as error:
            self.failure = f'internal error: {shown(error, 600)}'
        else:
            self.failure = None
        if self._model is None:
            give_back_memory()
        if self.failure is None:
            self._state = after
            name = f': {self._model.info.name}' if self._model is not None else ''
            self.get_logger().info(f'{after}{name}')
            return _SUCCESS
        self._state = before
        if not self.done.is_set():
            self.get_logger().error(f'{during}: {self.failure}')
        return _FAILURE

    def _configure(self) -> None:
        self._model = self._loader.load(
            self._settings.model(),
            self._settings.engine(),
            lambda: any(
                self._settings.robot(robot).image_mode is not ImageMode.OFF
                for robot in self._settings.robots()
            ),
        )
        try:
            self._update_fleet()
        except BaseException:
            self._unload()
            raise

    def _activate(self) -> None:
        self._update_fleet(activating=True)
        unused = self._settings.unused_qos()
        if unused:
            self.get_logger().warning(
                f'{", ".join(unused)}: no such topic is open, or no such policy (depth, history, reliability)'
            )

    def _unload(self) -> None:
        self._fleet.close()
        if self._model is not None:
            self._model.close()
        self._model = None
        self._loader.forget()

    def _end(self) -> None:
        try:
            self._unload()
        except Exception as error:  # the context may be shut down meanwhile
            if self.context.ok():
                self.get_logger().warning(f'closing: {one_line(repr(error))}')

    def close(self, timeout: float = 1.5) -> bool:
        """End everything, from any state.

        Return whether it ended in time. Do not call this on the executor.
        """
        self.done.set()
        if self._model is None:
            self._loader.abort()
        ending = threading.Thread(target=self._end, name='close', daemon=True)
        ending.start()
        ending.join(timeout)
        return not ending.is_alive() and self._loader.share is None

    def _tick(self) -> None:
        try:
            self._fleet.expire()
            self._loader.load_vision_encoder_later(getattr(self._model, 'vision', None), self._fleet)
            self._timer.timer_period_ns = int(1e9 * self._fleet.tick_seconds)
            if time.monotonic() > self._report_at:
                self._report_at = time.monotonic() + 0.9  # each second, with ticks of a quarter
                self._publish_diagnostics()
        except Exception as error:  # the timer fires again soon
            if not self.done.is_set():
                self.get_logger().error(
                    f'looking after the robots failed: {one_line(repr(error))}', throttle_duration_sec=10.0
                )

    def _publish_diagnostics(self) -> None:
        model = self._model
        statuses = [
            health.engine_status(self._state, model)
            if model is not None
            else health.node_status(self._state, self.failure, self._loader.share),
            *self._fleet.statuses(),
        ]
        name = self.get_fully_qualified_name()
        array = DiagnosticArray(
            status=[
                DiagnosticStatus(
                    level=bytes([status.level]),
                    name=f'{name.lstrip("/")}: {status.name}',
                    message=status.message,
                    hardware_id=name,
                    values=[KeyValue(key=key, value=str(value)) for key, value in status.values.items()],
                )
                for status in statuses
            ]
        )
        array.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(array)


def main(args=None) -> int:
    """Run the node until a signal or a failed start. Return the exit code."""
    arguments = sys.argv if args is None else ['chat_node', *args]
    return run_ros_program('nanochat', arguments, lambda: _run(arguments))


def _run(arguments: Sequence[str]) -> int:
    # We handle signals ourselves: replies end, and turns are announced, before the context is shut down.
    done = threading.Event()
    on_signal(done.set)
    left, short = remove_left_segments(), shortage()  # before this process takes its segment
    words = init(arguments, signal_handler_options=SignalHandlerOptions.NO)
    refuse_words(words, 'model:=/path/to/model.gguf  and so on, config/chat.yaml has them all')
    node = ChatNode(done)
    for warning in (left, *files_without_effect(arguments, node.get_fully_qualified_name()), short):
        if warning:
            node.get_logger().warning(warning)
    return run_until(done, node)


if __name__ == '__main__':
    sys.exit(main())
