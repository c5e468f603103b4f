"""Tools in the terminal chat: from `--tools module:object`, and a turn that shows calls and their answers."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Iterable

from ros2_nanochat.answer.tool import Tool, as_tools
from ros2_nanochat.errors import one_line, shorten
from ros2_nanochat.terminal.screen import Screen
from ros2_nanochat.tools import Answered, Called, Ended, Event, TextPiece, ToolCall


def load_tools(name: str | None) -> list[Tool]:
    """Return the tools that the user named.

    Args:
        name: `module:object`; the object is a function, a `Tool`, or a list of them. The module may lie in
            the current folder. None for no tools.

    Raises:
        ValueError: There is no such object, or it is no tool.
    """
    if name is None:
        return []
    module, separator, path = name.partition(':')
    if not separator or not module or not path:
        raise ValueError(f'--tools {shorten(name)} is not valid: module:object, such as my_tools:TOOLS')
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    try:
        found = importlib.import_module(module)
        for part in path.split('.'):
            found = getattr(found, part)
    except Exception as error:  # whatever the user's module raises
        raise ValueError(f'--tools {shorten(name)} cannot be loaded: {one_line(error)}') from error
    return as_tools(found if isinstance(found, (list, tuple)) else [found])


def show_turn(events: Iterable[Event], screen: Screen) -> Ended:
    """Show a turn with tools as it runs, calls and answers dim. Return its end."""
    ended = None
    in_line = reasoning = False
    for event in events:
        if isinstance(event, TextPiece):
            if reasoning and not event.reasoning:
                screen.piece('\n\n', reasoning=True)
            reasoning, in_line = event.reasoning, True
            screen.piece(event.text, event.reasoning)
        elif isinstance(event, (Called, Answered)):
            if in_line:
                screen.end()
            in_line = reasoning = False
            if isinstance(event, Called):
                screen.note(f'-> {as_text(event.call)}')
            else:
                screen.note(f'<- {event.call.name}: {event.call.result}')
        elif isinstance(event, Ended):
            ended = event
    assert ended is not None
    screen.end()
    return ended


def as_text(call: ToolCall) -> str:
    """Return a call on one line, for people."""
    arguments = [f'{name}={json.dumps(value, ensure_ascii=False)}' for name, value in call.arguments.items()]
    return f'{call.name}({", ".join(arguments)})'
