"""Starts the program `web`, whose imports Ctrl-C ends without a traceback."""

from __future__ import annotations

from ros2_nanochat.program import interruptible_imports


def main(args=None) -> int:
    """Run the server until a signal. Return the exit code."""
    with interruptible_imports():
        from ros2_nanochat.web.program import main
    return main(args)
