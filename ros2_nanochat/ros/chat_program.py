"""The program `chat_node`. Importing rclpy starts threads, so the allocator is tuned before."""

from __future__ import annotations

from ros2_nanochat.ros.allocator import tune_allocator
from ros2_nanochat.ros.quick_imports import quick_imports


def main(args=None) -> int:
    """Run the node until a signal or a failed start. Return the exit code."""
    tune_allocator()
    with quick_imports():
        from ros2_nanochat.ros.chat_node import main

    return main(args)
