"""Tools: what a model may call, how its calls are executed, and the loop of a turn.

`Tool` says what may be called, a `ToolRunner` executes calls, and a `ToolLoop` (or `chat`) runs a turn: a
reply, its calls, their answers, the next reply. How a model writes calls is learned from its chat template,
in `chat/template/tool_format.py`. That calls are well-formed and in range is ensured while they are written,
in `answer/call_form.py`.
"""

from ros2_nanochat.answer.tool import Tool, as_tools
from ros2_nanochat.tools.call import CallState, ToolCall
from ros2_nanochat.tools.events import Answered, CallChanged, Called, Ended, Event, Paused, TextPiece
from ros2_nanochat.tools.loop import ToolLoop
from ros2_nanochat.tools.reading_ahead import reading_ahead
from ros2_nanochat.tools.runner import (
    CallHandle,
    FunctionRunner,
    RunningCall,
    ToolRunner,
    failed,
    is_cancelled,
)
from ros2_nanochat.tools.turn import chat, form_of_reply, replying, run

__all__ = [
    'Answered',
    'CallChanged',
    'CallHandle',
    'CallState',
    'Called',
    'Ended',
    'Event',
    'FunctionRunner',
    'Paused',
    'RunningCall',
    'TextPiece',
    'Tool',
    'ToolCall',
    'ToolLoop',
    'ToolRunner',
    'as_tools',
    'chat',
    'failed',
    'form_of_reply',
    'is_cancelled',
    'reading_ahead',
    'replying',
    'run',
]
