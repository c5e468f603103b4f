"""Who executes calls: the protocol that the loop asks for, and `FunctionRunner` for Python functions.

The loop knows no tool and no transport. It starts one call at a time, waits for it, and may cancel it.
"""

from __future__ import annotations

import inspect
import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Protocol

from ros2_nanochat.answer.tool import Tool, as_tools
from ros2_nanochat.errors import one_line, shorten
from ros2_nanochat.files import valid_text
from ros2_nanochat.tools.call import CallState, ToolCall

MAX_RESULT = 4000
"""Characters of a result that the model is told, unless the runner has its own limit."""

OnChange = Callable[[ToolCall], None]


class RunningCall(Protocol):
    """A call that was started. All members may be used from any thread."""

    @property
    def call(self) -> ToolCall:
        """The call as it stands now."""
        ...

    def wait(self, timeout: float | None = None) -> ToolCall | None:
        """Wait for the end.

        Args:
            timeout: Seconds to wait; None for no limit.

        Returns:
            The ended call, None if it has not ended in that time.
        """
        ...

    def cancel(self, reason: str = '') -> None:
        """Ask the call to end. Returns at once; can be called any number of times, also after the end.

        The runner decides what it takes: it ends the call as `cancelled` (or as `done`, if it had just
        succeeded) when the tool has stopped or after a bounded time, in which case the state is `unknown`. A
        tool that is meant to go on may end the call as `done` with a text that says so.

        Args:
            reason: Why, for the model: 'the user spoke again'.
        """
        ...


class ToolRunner(Protocol):
    """Executes calls. One runner may serve several conversations; its methods are called from any thread."""

    def start(self, call: ToolCall, on_change: OnChange) -> RunningCall:
        """Start a call and return at once.

        Whatever is wrong with the call or the tool is not an exception: the call then ends as `failed`, and
        `result` says in one line what the model should know. Names that are not allowed, arguments that do
        not follow the schema, limits and approvals are checked here again, because a remote model may write
        anything.

        Args:
            call: The call, `waiting`.
            on_change: Called with the call each time that it has changed (its state, its feedback), from any
                thread, one call after the other. The last one has ended; none comes after that. It must not
                block.
        """
        ...


class CallHandle:
    """A `RunningCall` for runners to use: keeps the newest state, wakes who waits, tells each change once.

    Args:
        call: The call, `waiting`.
        on_change: See `ToolRunner.start`.
        on_cancel: Called once, with the reason, when the call is cancelled before its end. None ends it as
            `cancelled` at once.
    """

    def __init__(self, call: ToolCall, on_change: OnChange, on_cancel: Callable[[str], None] | None = None):
        self._call = call
        self._on_change = on_change
        self._on_cancel = on_cancel
        self._started = time.monotonic()
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self.cancelled: str | None = None
        """Why it was asked to end; None if it was not."""

    @property
    def call(self) -> ToolCall:
        """The call as it stands now."""
        return self._call

    def wait(self, timeout: float | None = None) -> ToolCall | None:
        """Wait for the end; see `RunningCall.wait`."""
        return self._call if self._ended.wait(timeout) else None

    def cancel(self, reason: str = '') -> None:
        """Ask the call to end; see `RunningCall.cancel`."""
        with self._lock:
            if self.cancelled is not None or self._call.ended:
                return
            self.cancelled = reason or 'it was stopped'
        if self._on_cancel is None:
            self.change(CallState.CANCELLED, f'cancelled: {self.cancelled}')
        else:
            self._on_cancel(self.cancelled)

    def change(
        self, state: CallState | None = None, result: str = '', *, feedback: str | None = None
    ) -> ToolCall:
        """Note and tell a change. Has no effect after the end. Any thread.

        Args:
            state: The new state; None leaves it.
            result: The text that the model is told, at the end.
            feedback: News for people.

        Returns:
            The call as it stands now.
        """
        with self._lock:
            if self._call.ended:
                return self._call
            seconds = time.monotonic() - self._started
            changed = self._call if state is None else self._call.moved(state, result)
            if feedback is not None:
                changed = replace(changed, feedback=feedback)
            self._call = replace(changed, duration=seconds)
            try:
                self._on_change(self._call)
            finally:
                if self._call.ended:
                    self._ended.set()
            return self._call


def failed(call: ToolCall, on_change: OnChange, why: str) -> CallHandle:
    """Return the handle of a call that could not begin.

    Args:
        call: The call.
        on_change: See `ToolRunner.start`.
        why: What the model is told.
    """
    handle = CallHandle(call, on_change)
    handle.change(CallState.FAILED, why)
    return handle


class FunctionRunner:
    """Runs the functions of tools, each call in a thread of its own.

    What a function returns is the answer: a string as it is, anything else as JSON. An exception becomes
    `failed` with its text, a time-out `failed`, and cancelling ends the call at once. Python cannot end a
    thread: a function that takes long should look at `is_cancelled()` now and then, and return.

    Args:
        tools: The tools that may be called.
        timeout: Seconds that a call may take, if its tool has no limit of its own.
        max_result: Characters of an answer that the model is told; the rest is cut.
    """

    def __init__(self, tools: Iterable[Any], timeout: float = 30.0, max_result: int = MAX_RESULT):
        self.tools: Mapping[str, Tool] = {tool.name: tool for tool in as_tools(tools)}
        self._timeout = timeout
        self._max_result = max_result

    def start(self, call: ToolCall, on_change: OnChange) -> CallHandle:
        """Start a call in a thread; see `ToolRunner.start`."""
        tool = self.tools.get(call.name)
        if tool is None:
            allowed = ', '.join(self.tools) or 'none'
            return failed(call, on_change, f'there is no tool {shorten(call.name)}; there is: {allowed}')
        if tool.function is None:
            return failed(call, on_change, f'the tool {call.name} has no function to run')
        try:
            tool.check(call.arguments)
        except ValueError as error:
            return failed(call, on_change, str(error))
        handle = CallHandle(call, on_change)
        limit = self._timeout if tool.timeout is None else tool.timeout
        watch = threading.Timer(limit, self._time_out, (handle, limit))
        watch.daemon = True
        thread = threading.Thread(
            target=self._run, args=(tool, handle, watch), name=f'tool-{tool.name}', daemon=True
        )
        try:
            watch.start()
            thread.start()
        except (RuntimeError, MemoryError) as error:  # the system has no thread left
            watch.cancel()
            handle.change(CallState.FAILED, f'error: the tool could not be started: {one_line(error)}')
        return handle

    @staticmethod
    def _time_out(handle: CallHandle, limit: float) -> None:
        if not handle.call.ended:
            handle.cancelled = 'its time was up'
            handle.change(CallState.FAILED, f'error: no answer within {limit:g} s')

    def _run(self, tool: Tool, handle: CallHandle, watch: threading.Timer) -> None:
        assert tool.function is not None
        _current.handle = handle
        handle.change(CallState.RUNNING)
        try:
            value = tool.function(**handle.call.arguments)
            if inspect.iscoroutine(value):
                import asyncio  # takes 0.02 s

                value = asyncio.run(value)
            text = as_answer(value, self._max_result)
        except BaseException as error:  # of the user's function: the model is told
            handle.change(CallState.FAILED, f'error: {shorten(one_line(error))}')
        else:
            handle.change(CallState.DONE, text)
        finally:
            watch.cancel()


_current = threading.local()


def is_cancelled() -> bool:
    """Whether the call that runs in this thread was cancelled or ran out of time. For functions of tools."""
    handle = getattr(_current, 'handle', None)
    return handle is not None and (handle.cancelled is not None or handle.call.ended)


def as_answer(value: Any, max_characters: int = MAX_RESULT) -> str:
    """Return what a function returned as a text for the model.

    Args:
        value: A string is taken as it is, None is 'done', anything else becomes JSON.
        max_characters: More are cut, and the text says so.
    """
    if isinstance(value, str):
        text = value
    elif value is None:
        text = 'done'
    else:
        try:
            text = json.dumps(value, ensure_ascii=False, default=str)
        except (TypeError, ValueError, RecursionError):
            text = str(value)
    text = valid_text(text)
    if len(text) > max_characters:
        text = f'{text[:max_characters]}... ({len(text) - max_characters} more characters)'
    return text
