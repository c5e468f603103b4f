"""The programs of the node, its clients and demos. Importing what they need takes up to a second, in which
Ctrl-C ends them without a traceback.
"""

from __future__ import annotations

from ros2_nanochat.program import interruptible_imports


def chat_node(args=None) -> int:
    """Run the node until a signal or a failed start. Return the exit code."""
    with interruptible_imports():
        from ros2_nanochat.ros.allocator import tune_allocator
        from ros2_nanochat.ros.quick_imports import quick_imports

        tune_allocator()  # before rclpy, whose import starts threads
        with quick_imports():
            from ros2_nanochat.ros.chat_node import main
    return main(args)


def chat_client(args=None) -> int:
    """Run the terminal. Return the exit code."""
    with interruptible_imports():
        from ros2_nanochat.ros.terminal_client import main
    return main(args)


def demo_camera(args=None) -> int:
    """Run the camera that shows drawn pictures until a signal. Return the exit code."""
    with interruptible_imports():
        from ros2_nanochat.ros.demo_camera import main
    return main(args)


def demo_robot(args=None) -> int:
    """Run the simulated robot until a signal. Return the exit code."""
    with interruptible_imports():
        from ros2_nanochat.ros.demo_robot import main
    return main(args)
