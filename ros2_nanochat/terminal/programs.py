"""The programs of the terminal, whose imports Ctrl-C ends without a traceback."""

from __future__ import annotations

from collections.abc import Sequence

from ros2_nanochat.program import interruptible_imports


def chat(args: Sequence[str] | None = None) -> int:
    """Run the terminal chat. Return the exit status."""
    with interruptible_imports():
        from ros2_nanochat.terminal.chat import main
    return main(args)


def completion(args: Sequence[str] | None = None) -> int:
    """Complete plain text. Return the exit status."""
    with interruptible_imports():
        from ros2_nanochat.terminal.completion import main
    return main(args)


def compile_mlc(args: list[str] | None = None) -> int:
    """Compile a model with MLC-LLM. Return the exit status."""
    with interruptible_imports():
        from ros2_nanochat.terminal.compile_mlc import main
    return main(args)
