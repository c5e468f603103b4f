"""A small simulated robot to try tools on: a lamp (service), a battery (topic) and a drive (action).

It prints its state as a line of the terminal whenever that changes.

Parameters: battery (0 to 1 at the beginning), rate (Hz of the simulation).
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence

import rclpy
from nanochat.action import Drive
from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.executors import MultiThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import BatteryState
from std_srvs.srv import SetBool

from ros2_nanochat.ros.program import init, refuse_words, run_ros_program
from ros2_nanochat.ros.signals import ignore_signals, on_signal
from ros2_nanochat.ros.spinning import spin

_ROOM = 5.0  # metres from the middle to each wall
_WIDTH = 31  # characters of the drawn room
_PER_METRE = 0.01  # of the battery
_DRAWN = 0.5  # seconds between two drawings while it drives


class DemoRobot(Node):
    """The robot.

    Raises:
        ValueError: A parameter is out of range.
    """

    def __init__(self):
        super().__init__('demo_robot')
        self.battery = self.declare_parameter('battery', 0.83).value
        rate = self.declare_parameter('rate', 20.0).value
        if rate <= 0 or not 0 <= self.battery <= 1:
            raise ValueError(f'rate={rate} has to be over 0, battery={self.battery} from 0 to 1')
        self._step = 1 / rate
        self.lamp, self.position, self._doing = False, 0.0, 'stands'
        self._driving, self._leaving = threading.Lock(), False
        beside = ReentrantCallbackGroup()
        self.create_service(SetBool, 'lamp', self._set_lamp, callback_group=beside)
        self._publisher = self.create_publisher(BatteryState, 'battery', 1)
        self.create_timer(0.5, self._publish_battery)
        self._server = ActionServer(
            self,
            Drive,
            'drive',
            self._drive,
            callback_group=beside,
            goal_callback=self._goal,
            cancel_callback=lambda goal: CancelResponse.ACCEPT,
        )
        self.draw()

    def draw(self) -> None:
        """Print the state as one line."""
        place = round((self.position + _ROOM) / (2 * _ROOM) * (_WIDTH - 1))
        room = ''.join('@' if n == place else '.' for n in range(_WIDTH))
        lamp = '(*) lamp on ' if self.lamp else '( ) lamp off'
        print(f'   [robot] {lamp}  |{room}| {self.position:+.1f} m, {self._doing}', flush=True)

    def _set_lamp(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        self.lamp = request.data
        response.success, response.message = True, f'the lamp is {"on" if self.lamp else "off"}'
        self.draw()
        return response

    def _publish_battery(self) -> None:
        message = BatteryState(percentage=self.battery, voltage=11.0 + 1.6 * self.battery, present=True)
        message.header.stamp = self.get_clock().now().to_msg()
        self._publisher.publish(message)

    def _goal(self, goal: Drive.Goal) -> GoalResponse:
        possible = goal.speed > 0 and abs(self.position + goal.distance) <= _ROOM
        return GoalResponse.ACCEPT if possible else GoalResponse.REJECT

    def _drive(self, goal) -> Drive.Result:
        with self._driving:  # one at a time
            driven, drawn = 0.0, 0.0
            direction = 1 if goal.request.distance >= 0 else -1
            self._doing = 'drives'
            while driven < abs(goal.request.distance):
                if goal.is_cancel_requested or self._leaving:
                    break
                time.sleep(self._step)
                way = min(goal.request.speed * self._step, abs(goal.request.distance) - driven)
                driven += way
                self.position += direction * way
                self.battery = max(0.0, self.battery - way * _PER_METRE)
                goal.publish_feedback(Drive.Feedback(driven=driven))
                if time.monotonic() - drawn >= _DRAWN:
                    drawn = time.monotonic()
                    self.draw()
            stopped = goal.is_cancel_requested
            self._doing = 'was stopped' if stopped or self._leaving else 'stands'
            (goal.canceled if stopped else goal.abort if self._leaving else goal.succeed)()
            self.draw()
            return Drive.Result(driven=driven)

    def stop(self) -> None:
        """End a drive, as the program ends. Returns once the robot stands."""
        self._leaving = True
        if self._driving.acquire(timeout=1.0):
            self._driving.release()


def main(args=None) -> int:
    """Run the robot until a signal. Return the exit code."""
    arguments = sys.argv if args is None else ['demo_robot', *args]
    return run_ros_program('demo_robot', arguments, lambda: _run(arguments))


def _run(arguments: Sequence[str]) -> int:
    # rclpy's own handlers would take the topics away from a drive that has not ended
    refuse_words(init(arguments, signal_handler_options=SignalHandlerOptions.NO))
    node = DemoRobot()
    executor = MultiThreadedExecutor(num_threads=4)
    executor.add_node(node)
    leave = threading.Event()
    on_signal(leave.set)

    def run():
        try:
            spin(executor, node.get_logger())
        finally:
            leave.set()

    spinning = threading.Thread(target=run, name='executor', daemon=True)
    spinning.start()
    leave.wait()
    node.stop()
    executor.shutdown(timeout_sec=0.5)
    spinning.join(1.0)
    node.destroy_node()
    rclpy.try_shutdown()
    ignore_signals()
    return 0


if __name__ == '__main__':
    sys.exit(main())
