"""The node: a life cycle around one model, and the robots that share it.

`configure` loads the model on a thread of its own and makes each robot's conversation, `activate` opens their
topics, `deactivate` closes them and keeps model and conversations, `cleanup` gives the memory back.

Who runs when: the transitions' services are reentrant, so that `get_state` answers while a transition waits
for the model; parameters are in the node's own group, which nothing here blocks; the timer runs beside all.
Each robot's callbacks: robot_port.py.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Sequence

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rcl_interfaces.msg import SetParametersResult
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.executors import MultiThreadedExecutor
from rclpy.lifecycle import LifecycleNodeMixin, TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.signals import SignalHandlerOptions

from ros2_nanochat.config import ImageMode
from ros2_nanochat.errors import BackendError, MissingDependency
from ros2_nanochat.nano_llm import NanoLLM
from ros2_nanochat.robot import health as diagnostics
from ros2_nanochat.robot.conversation import RobotConversation
from ros2_nanochat.robot.options import PARAMETERS, robot_names
from ros2_nanochat.robot.store import ConversationStore
from ros2_nanochat.ros.node_parameters import NodeParameters
from ros2_nanochat.ros.parameter_files import files_without_effect
from ros2_nanochat.ros.program import init, run_ros_program
from ros2_nanochat.ros.robot_port import RobotPort
from ros2_nanochat.ros.signals import ignore_signals, on_signal
from ros2_nanochat.ros.spinning import spin

# of the executor, at least: a goal that runs holds one. Its pool loses count of the idle ones and so grows to
# this in time
_THREADS = 64
_SUCCESS, _FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


class ChatNode(LifecycleNodeMixin, Node):
    """The managed node `nanochat`. `start()` brings it up by itself where `autostart` says so; `close()` ends
    everything, from any state.
    done: is set when the process shall end, here or by a signal.
    """

    def __init__(self, done: threading.Event):
        # Not through LifecycleNode, which hands the callback group to Node as well, where there is no such
        # argument.
        Node.__init__(self, 'nanochat')
        LifecycleNodeMixin.__init__(self, callback_group=ReentrantCallbackGroup())
        self.failure: str | None = None
        self.exit_code = 0
        self.done = done
        self._model: NanoLLM | None = None
        self._backend = None  # of a model that is being loaded
        self._loaded: float | None = None
        self._opening_eyes = False
        self._chats: dict[str, RobotConversation] = {}
        self._ports: dict[str, RobotPort] = {}
        self._changing = threading.RLock()  # held while conversations and ports are made or closed
        self._state = 'unconfigured'
        self._settings = NodeParameters(self)
        self._wanted = self._settings.robots()  # as last set
        self.add_on_set_parameters_callback(self._on_set)
        self._diagnostics = self.create_publisher(
            DiagnosticArray,
            '/diagnostics',
            10,
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )
        self._ticks = 0
        # Of the wall: deadlines and diagnostics go on while a simulation stands still.
        self._timer = self.create_timer(
            0.25,
            self._tick,
            callback_group=MutuallyExclusiveCallbackGroup(),
            clock=Clock(clock_type=ClockType.STEADY_TIME),
        )

    def start(self) -> None:
        """Configure and activate where `autostart` is set, on a thread of its own; a failure ends the
        process.
        """
        if self.get_parameter('autostart').value:
            threading.Thread(target=self._autostart, name='autostart', daemon=True).start()

    def _autostart(self) -> None:
        if self.trigger_configure() != _SUCCESS or self.trigger_activate() != _SUCCESS:
            if not self.done.is_set():
                self.exit_code = 1
            self.done.set()

    # --- parameters ---

    def _on_set(self, parameters: list[Parameter]) -> SetParametersResult:
        changed = {parameter.name: parameter.value for parameter in parameters}
        try:
            for name, value in changed.items():
                if value is None and self.has_parameter(name):
                    raise ValueError(
                        f'{name} cannot be deleted, it could not be set again: set it to null, and the robot'
                        ' does as the node'
                    )
                known = PARAMETERS.get(name)
                if (
                    known is not None
                    and not known.live
                    and self._state != 'unconfigured'
                    and value != self.get_parameter(name).value
                ):
                    raise ValueError(
                        f'{name} takes effect when the model is loaded, and the node is {self._state}:'
                        ' deactivate it and clean it up first (ros2 lifecycle set), then set it and'
                        ' configure again'
                    )
            names = robot_names(list(changed['robots'])) if 'robots' in changed else self._settings.robots()
            options = {robot: self._settings.robot(robot, changed) for robot in names}
            self._settings.model(changed)
        except (ValueError, TypeError) as error:
            return SetParametersResult(successful=False, reason=str(error))
        for robot, chat in list(self._chats.items()):
            if robot in options:
                chat.options = options[robot]
        if 'robots' in changed:
            # Names are declared and topics opened on another thread: the parameters are locked here.
            self._wanted = names
            threading.Thread(target=self._follow_robots, name='robots', daemon=True).start()
        return SetParametersResult(successful=True)

    def _follow_robots(self) -> None:
        try:
            self._set_robots()
        except Exception as error:
            if not self.done.is_set():
                self.get_logger().error(f'robots: {" ".join(str(error).split())}')

    # --- the life cycle ---

    def on_configure(self, _):
        return self._transition('configuring', 'inactive', self._configure)

    def on_activate(self, _):
        return self._transition('activating', 'active', self._activate)

    def on_deactivate(self, _):
        return self._transition('deactivating', 'inactive', self._close_ports)

    def on_cleanup(self, _):
        return self._transition('cleaning up', 'unconfigured', self._unload)

    def on_shutdown(self, _):
        return self._transition('shutting down', 'finalized', self._unload)

    def _transition(self, during: str, after: str, action):
        """rclpy drops exceptions of transitions without a word; here each becomes a line of the log, a
        reason, and a transition that failed.
        """
        before, self._state = self._state, during
        try:
            action()
        except (ValueError, OSError, BackendError, MissingDependency) as error:
            self.failure = ' '.join(str(error).split())
        except Exception as error:
            self.failure = f'internal error: {error!r}'
        else:
            self.failure, self._state = None, after
            self.get_logger().info(
                f'{after}' + (f': {self._model.info.name}' if self._model is not None else '')
            )
            return _SUCCESS
        self._state = before
        if not self.done.is_set():
            self.get_logger().error(f'{during}: {self.failure}')
        return _FAILURE

    def _configure(self) -> None:
        config, engine = self._settings.model(), self._settings.engine()
        outcome: list[NanoLLM | BaseException] = []

        def load():
            try:
                model = NanoLLM.from_pretrained(
                    config=config,
                    engine=engine,
                    progress=self._show_progress,
                    opening=self._opening,
                )
                try:
                    self._open_eyes(model, config)
                except BaseException:
                    model.close()
                    raise
                outcome.append(model)
            except BaseException as error:
                outcome.append(error)

        self._loaded, self._shown, self._opening_eyes = 0.0, time.monotonic(), False
        self.get_logger().info(f'loading {config.model or "the embedded model"}')
        thread = threading.Thread(target=load, name='load', daemon=True)
        thread.start()
        while thread.is_alive() and not self.done.is_set():
            thread.join(0.05)
        self._loaded = None
        if not outcome:
            raise BackendError('loading was stopped')
        if isinstance(outcome[0], BaseException):
            raise outcome[0]
        self._model = outcome[0]
        try:
            self._set_robots()
        except BaseException:
            self._unload()
            raise

    def _opening(self, backend) -> None:
        self._backend = backend
        if self.done.is_set():
            backend.abort()

    def _open_eyes(self, model: NanoLLM, config) -> None:
        """Load what encodes images now, not with the first one, unless no robot is to use a camera. The small
        eyes that come with the embedded model wait for one to be there: a robot that only talks needs no
        torch.
        """
        vision = model.vision
        if (
            vision is None
            or (config.model is None and config.vision is None)
            or all(
                self._settings.robot(robot).image_mode is ImageMode.OFF for robot in self._settings.robots()
            )
        ):
            return
        if vision.load_seconds is None:
            self.get_logger().info('loading the vision encoder')
            vision.load()
        self.get_logger().info(f'the vision encoder is ready: {vision.load_seconds:.1f} s')

    def _open_small_eyes(self, vision) -> None:
        try:
            vision.load()
            self.get_logger().info(
                f'there is a camera: the vision encoder is ready, {vision.load_seconds:.1f} s'
            )
        except Exception as error:  # the node talks all the same; a question with an image tells it again
            self.get_logger().warning(f'the vision encoder cannot be loaded: {" ".join(str(error).split())}')

    def _show_progress(self, share: float) -> None:
        self._loaded = share
        if time.monotonic() - self._shown > 2.0:
            self._shown = time.monotonic()
            self.get_logger().info(f'loading: {100 * share:.0f} %')

    def _set_robots(self, activating: bool = False) -> None:
        """Make what is missing, close what is not wanted any more: parameters, conversations, and where the
        node is active, topics.
        """
        with self._changing:
            names = self._wanted
            self._settings.declare_robots(names)
            if self._model is None:
                return
            for robot in [robot for robot in self._chats if robot not in names]:
                self._close_robot(robot)
            kept = self._settings.node()
            for robot in names:
                if robot not in self._chats:
                    place = f'{self.get_namespace()}/{robot}/{self.get_name()}'.replace('//', '/')
                    log = self.get_logger()
                    store = (
                        ConversationStore(kept.state_dir, place, log, kept.state_kv)
                        if kept.state_dir
                        else None
                    )
                    self._chats[robot] = RobotConversation(
                        robot,
                        self._model,
                        self._settings.robot(robot),
                        _Nobody(),
                        None,
                        store,
                        log,
                        kept.chat_template,
                    )
                if robot not in self._ports and (activating or self._state == 'active'):
                    self._ports[robot] = RobotPort(self, self._chats[robot])

    def _activate(self) -> None:
        self._set_robots(activating=True)
        unused = self._settings.unused_qos()
        if unused:
            self.get_logger().warning(
                f'{", ".join(unused)}: no such topic is open, or no such policy (depth, history, reliability)'
            )

    def _close_robot(self, robot: str) -> None:
        port = self._ports.pop(robot, None)
        if port is not None:
            port.mute()
        chat = self._chats.pop(robot)
        chat.close()
        if port is not None:
            port.close()
            chat.output, chat.sight.camera = _Nobody(), None

    def _close_ports(self) -> None:
        with self._changing:
            for port in self._ports.values():
                port.mute()
            for robot in list(self._ports):
                chat = self._chats[robot]
                try:
                    chat.stop_all()
                except RuntimeError as error:
                    self.get_logger().warning(str(error))
                self._ports.pop(robot).close()
                chat.output, chat.sight.camera = _Nobody(), None

    def _unload(self) -> None:
        with self._changing:
            for robot in list(self._chats):
                self._close_robot(robot)
            if self._model is not None:
                self._model.close()
            self._model = self._backend = None

    def close(self, timeout: float = 1.5) -> bool:
        """End everything; whether it ended within `timeout` seconds. From any state, any thread but the
        executor's.
        """
        self.done.set()
        if self._backend is not None and self._model is None:
            self._backend.abort()
        ending = threading.Thread(target=self._unload, name='close', daemon=True)
        ending.start()
        ending.join(timeout)
        return not ending.is_alive() and self._loaded is None

    # --- now and then ---

    def _tick(self) -> None:
        for chat in list(self._chats.values()):
            chat.expire()
        for port in list(self._ports.values()):
            port.cancel_unheard()
            port.follow_camera()
        vision = getattr(self._model, 'vision', None)
        if (
            vision is not None
            and vision.load_seconds is None
            and not self._opening_eyes
            and any(port.has_camera for port in list(self._ports.values()))
        ):
            self._opening_eyes = True
            threading.Thread(target=self._open_small_eyes, args=(vision,), name='eyes', daemon=True).start()
        self._ticks += 1
        if self._ticks % 4 == 0:
            self._publish_diagnostics()

    def _publish_diagnostics(self) -> None:
        model = self._model
        statuses = [
            diagnostics.engine_status(self._state, model)
            if model is not None
            else diagnostics.node_status(self._state, self.failure, self._loaded),
            *(diagnostics.robot_status(chat) for chat in list(self._chats.values())),
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


class _Nobody:
    """Where a conversation goes while its topics are closed."""

    def __getattr__(self, name):
        return lambda *_: None


def main(args=None) -> int:
    """Run the node until a signal or a failed start; returns the exit code."""
    arguments = sys.argv if args is None else ['chat_node', *args]
    return run_ros_program('nanochat', arguments, lambda: _run(arguments))


def _run(arguments: Sequence[str]) -> int:
    # We end the replies that stream and announce their turns before the context goes down, so the signals are
    # ours.
    done = threading.Event()
    on_signal(done.set)
    words = init(arguments, signal_handler_options=SignalHandlerOptions.NO)
    unknown = [word for word in words if word != '--debug']
    if unknown:
        raise ValueError(
            f'{" ".join(unknown)!r} is not understood: parameters are given as  --ros-args -p'
            ' model:=/path/to/model.gguf  and so on, config/chat.yaml has them all'
        )
    node = ChatNode(done)
    for warning in files_without_effect(arguments, node.get_fully_qualified_name()):
        node.get_logger().warning(warning)
    executor = MultiThreadedExecutor(
        num_threads=max(_THREADS, 16 + 2 * len(node.get_parameter('robots').value or []))
    )
    executor.add_node(node)

    def run():
        try:
            spin(executor, node.get_logger())
        except Exception as error:
            node.exit_code = 1
            node.get_logger().fatal(f'internal error: {error!r}')
        finally:
            done.set()

    spinning = threading.Thread(target=run, name='executor', daemon=True)
    spinning.start()
    node.start()
    done.wait()
    clean = node.close()
    ending = threading.Thread(
        target=executor.shutdown, kwargs={'timeout_sec': 0.3}, name='shutdown', daemon=True
    )  # Kilted's waits for every callback
    ending.start()
    ending.join(0.3)
    spinning.join(0.3)
    rclpy.try_shutdown()
    ignore_signals()
    sys.stdout.flush()
    sys.stderr.flush()
    if not clean or spinning.is_alive() or ending.is_alive():
        os._exit(node.exit_code)  # a runtime that does not hear abort() must not keep the process
    return node.exit_code


if __name__ == '__main__':
    sys.exit(main())
