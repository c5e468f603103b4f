"""The part of a history that concerns tools: which there are, the ids of calls, and their answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from ros2_nanochat.answer.call_form import CallForm
from ros2_nanochat.answer.tool import Tool, as_tools
from ros2_nanochat.answer.written_call import WrittenCall
from ros2_nanochat.chat.message import ChatMessage
from ros2_nanochat.chat.template.chat_template import ChatTemplate
from ros2_nanochat.prompt import Prompt, common_prefix, head

_ANSWERS = 'x', '7 yes'
"""Answers of a tool of which no beginning is the same."""


class ToolMessages:
    """Tools, calls and answers in a history."""

    messages: list[ChatMessage]
    template: ChatTemplate
    kv_cache: Any
    _tools: list[Tool] = []
    _examples: tuple[ChatMessage, ...] = ()

    @property
    def tools(self) -> list[Tool]:
        """What the model may call. The prompt describes it, as the chat template does; a template that knows
        no tools gets a text in the system prompt. Setting it keeps the conversation.

        Set a list of `Tool`s, functions (see `Tool.from_function`) or dicts in OpenAI's form; None for none.
        """
        return list(self._tools)

    @tools.setter
    def tools(self, tools: Iterable[Any] | None) -> None:
        self._tools = as_tools(tools)
        self.template.tools = list(self._tools)
        self._forget_prompt()

    @property
    def examples(self) -> list[ChatMessage]:
        """Messages that each prompt shows between the system prompt and the conversation, of which they are
        no part. Small models learn from them which tool to call. Setting them keeps the conversation.
        """
        return list(self._examples)

    @examples.setter
    def examples(self, messages: Iterable[ChatMessage]) -> None:
        self._examples = tuple(messages)
        self._forget_prompt()

    def _with_examples(self, messages: Sequence[ChatMessage]) -> Sequence[ChatMessage]:
        if not self._examples:
            return messages
        begin = int(bool(messages) and messages[0].role == 'system')
        return [*messages[:begin], *self._examples, *messages[begin:]]

    def _forget_prompt(self) -> None:
        raise NotImplementedError

    def _prompt(self, messages: Sequence[ChatMessage]) -> Prompt:
        raise NotImplementedError

    def call_form(self, tool_choice: str = 'auto') -> CallForm | None:
        """Return what the next reply may call, for `generate(calls=...)`; None without tools.

        Args:
            tool_choice: `auto`: the model decides; `required`: it calls a tool; `none`: it calls none; or the
                name of the tool that it calls.

        Raises:
            ValueError: The choice is unknown.
        """
        if not self._tools:
            if tool_choice not in ('auto', 'none'):
                raise ValueError(f'tool_choice={tool_choice!r} needs tools, and the history has none')
            return None
        return CallForm.of(self.template.call_format, self._tools, tool_choice)

    def append_answer(self, call_id: str, name: str, text: str) -> ChatMessage:
        """Add the answer of a tool and return it.

        Args:
            call_id: The id of the call in the bot's message.
            name: Name of the tool.
            text: The answer. It is content: nothing in it is read as markup or as a call.
        """
        message = ChatMessage('tool', text=text, call_id=call_id, name=name)
        return self.append('tool', message)  # type: ignore[attr-defined]

    def open_calls(self) -> list[WrittenCall]:
        """Return the calls of the last reply that have no answer yet, for example because the program died.

        Chat templates need an answer for each call: `append_answer` adds it.
        """
        last = next((n for n in reversed(range(len(self.messages))) if self.messages[n].calls), None)
        if last is None:
            return []
        answered = {message.call_id for message in self.messages[last + 1 :] if message.role == 'tool'}
        return [call for call in self.messages[last].calls if call.id not in answered]

    def embed_before_answer(self) -> Prompt | None:
        """Return what the model reads before the answer of the next open call, as far as the KV cache does
        not hold it; None if it holds all of it.

        With `generate(prompt, kv_cache=history.kv_cache, max_new_tokens=0)`, the model can read it while the
        tool runs.
        """
        call = next(iter(self.open_calls()), None)
        if call is None or self.kv_cache is None:
            return None
        one, other = (
            self._prompt([*self.messages, ChatMessage('tool', text=text, call_id=call.id, name=call.name)])
            for text in _ANSWERS
        )
        until = common_prefix(one.entries, other.entries)
        known = common_prefix(one.entries[:until], self.kv_cache.entries)
        return head(one, until).after(known) if known < until else None

    def _with_ids(self, calls: Iterable[WrittenCall]) -> tuple[WrittenCall, ...]:
        """Calls with ids that no other call of the conversation has.

        Nine letters and digits, which is what the templates of Mistral take.
        """
        taken = {call.id for message in self.messages for call in message.calls}
        made = []
        for call in calls:
            number = len(taken)
            while not call.id or call.id in taken:
                call, number = replace(call, id=f'call{number:05d}'), number + 1
            taken.add(call.id)
            made.append(call)
        return tuple(made)
