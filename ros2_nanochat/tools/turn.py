"""A turn with tools in one line: `for event in chat(history, 'Switch the lamp on'):`."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from ros2_nanochat.answer.call_form import CallForm
from ros2_nanochat.chat.history import ChatHistory
from ros2_nanochat.config import GenerationConfig, program_defaults
from ros2_nanochat.engine.stream import StreamingResponse
from ros2_nanochat.tools.events import Ended, Event
from ros2_nanochat.tools.loop import Respond, ToolLoop
from ros2_nanochat.tools.reading_ahead import reading_ahead
from ros2_nanochat.tools.runner import FunctionRunner, ToolRunner


def replying(
    history: ChatHistory,
    config: GenerationConfig | None = None,
    *,
    priority: int = 0,
    due: float = math.inf,
    max_tokens: int | None = None,
    wrap_tokens: int | None = None,
) -> Respond:
    """Return the usual `respond` of a `ToolLoop`: embed the history, let its model continue.

    Args:
        history: The conversation.
        config: How to generate; None uses the defaults of programs. The stops of the template are added.
        priority: See `NanoLLM.generate`.
        due: `time.monotonic()` at which replies end with the text that they have.
        max_tokens: See `ChatHistory.embed_chat`.
        wrap_tokens: See `ChatHistory.embed_chat`.
    """
    config = program_defaults(GenerationConfig) if config is None else config

    def respond(tool_choice: str) -> StreamingResponse:
        prompt, _ = history.embed_chat(max_tokens=max_tokens, wrap_tokens=wrap_tokens)
        chosen, calls = form_of_reply(config, history.call_form(tool_choice))
        return history.model.generate(  # type: ignore[attr-defined]
            prompt,
            kv_cache=history.kv_cache,
            config=chosen.stopping_at(history.template.stop),
            priority=priority,
            deadline=None if due == math.inf else max(0.0, due - time.monotonic()),
            calls=calls,
        )

    return respond


def form_of_reply(
    config: GenerationConfig, calls: CallForm | None
) -> tuple[GenerationConfig, CallForm | None]:
    """Return the config and the calls of one reply of a turn. A reply that may call tools has no other form;
    the form of the answer holds for the reply without calls.

    Args:
        config: How the turn's replies are generated.
        calls: What this reply may call, None without tools.
    """
    if config.response_format is None or calls is None:
        return config, calls
    if calls.choice == 'none':
        return config, None
    return replace(config, response_format=None, probabilities=False), calls


def chat(
    history: ChatHistory,
    question: Any = None,
    *,
    runner: ToolRunner | None = None,
    tool_choice: str = 'auto',
    max_tool_rounds: int = 4,
    config: GenerationConfig | None = None,
    deadline: float | None = None,
    pause: float | None = None,
    **options,
) -> Iterator[Event]:
    """Answer a question with the tools of a history.

    `for event in chat(history, 'Switch the lamp on'):` yields the events of a `ToolLoop`. Leaving the loop
    early stops the turn.

    Args:
        history: The conversation. `ChatHistory(model, tools=[...])` sets what may be called.
        question: The question; None if the history ends with it.
        runner: Executes the calls; None runs the functions of the history's tools.
        tool_choice: `auto`, `required`, `none` or the name of a tool; see `ToolLoop`.
        max_tool_rounds: Replies with calls in one turn.
        config: How to generate.
        deadline: Seconds from now after which the turn ends with what it has.
        pause: See `ToolLoop.events`.
        options: Fields of `GenerationConfig`, which override `config`.

    Raises:
        ValueError: The question cannot be answered, or an option is wrong.
    """
    config = program_defaults(GenerationConfig) if config is None else config
    config = replace(config, **options) if options else config
    if question is not None:
        history.append('user', question)
    due = math.inf if deadline is None else time.monotonic() + deadline
    loop = ToolLoop(
        history,
        FunctionRunner(history.tools) if runner is None else runner,
        replying(history, config, due=due),
        tool_choice=tool_choice,
        max_tool_rounds=max_tool_rounds,
        due=due,
        read_ahead=reading_ahead(history),
        formed=config.response_format is not None,
    )
    return loop.events(pause)


def run(events: Iterable[Event]) -> Ended:
    """Iterate events to their end, and return the last one."""
    last = list(events)[-1]
    assert isinstance(last, Ended)
    return last
