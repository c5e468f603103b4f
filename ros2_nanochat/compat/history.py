"""A history with the arguments and attributes of NanoLLM's."""

from __future__ import annotations

import dataclasses
import html as html_module
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ros2_nanochat.chat import history as core
from ros2_nanochat.compat.attributes import warn_ignored
from ros2_nanochat.compat.functions import BotFunctions
from ros2_nanochat.compat.message import ChatMessage
from ros2_nanochat.compat.model import NanoLLM
from ros2_nanochat.compat.templates import ChatTemplates, remove_special_tokens
from ros2_nanochat.prompt import Prompt, common_prefix

IMAGE_ENTRY = -1
"""Stands in `ChatHistory.tokens` for each row of an image."""

_CODE = re.compile(r'`([^`]+)`')


class ChatHistory(core.ChatHistory):
    """Messages of one conversation, as in `ros2_nanochat`.

    After `reset()`, `kv_cache` is None. After messages were removed, it holds the part that is still the
    same.

    Args:
        model: An opened model, from `NanoLLM.from_pretrained`.
        chat_template: A name in `ChatTemplates`, a JSON or Jinja file, or a dict.
        system_prompt: The instruction at the beginning; None uses the template's default.
        **options: `template_options` and `tools`, as in `ros2_nanochat`. `print_stats`, `debug` and other
            options of NanoLLM are accepted and ignored.
    """

    image_embedding = None

    def __init__(
        self,
        model: NanoLLM,
        chat_template: str | Mapping | None = None,
        system_prompt: str | None = None,
        **options,
    ):
        if isinstance(chat_template, str):
            chat_template = ChatTemplates.get(chat_template, chat_template)
        self._ends: tuple[tuple, list[int]] | None = None
        core: Any = getattr(model, 'core', model)
        super().__init__(
            core, chat_template, system_prompt, options.get('template_options'), options.get('tools')
        )
        self.model: Any = model

    def run_tools(self, message: Any, tools: Any = None, append: bool = True) -> str | None:
        """Run the calls in the bot's message; see `BotFunctions.run`.

        Args:
            message: The message, or its text.
            tools: The functions; None for those that are enabled.
            append: Append the results to the conversation, if there are any.
        """
        text = message if isinstance(message, str) else message.text
        results = BotFunctions.run(text or '', functions=tools or None)
        if results and append:
            self.append('tool_response', results)
        return results

    # --- messages ---

    @property  # type: ignore[override]
    def messages(self) -> list[ChatMessage]:
        """The messages, in order."""
        return self._messages

    @messages.setter
    def messages(self, messages: Iterable) -> None:
        self._messages = [ChatMessage.of(message, self) for message in messages]

    def append(self, role: str = 'user', msg: Any = None, **options) -> ChatMessage:
        """Add a message and return it.

        Args:
            role: `system`, `user`, `bot` or `tool`.
            msg: Text, an image, a `ChatMessage`, or the reply of `generate`.
            **options: Options of `ChatMessage`.
        """
        reply = msg if hasattr(msg, 'kv_cache') else None
        if reply is not None:
            calls = self._with_ids(getattr(reply, 'calls', ()))
            message = ChatMessage(role, text=reply.text, reasoning=reply.reasoning, calls=calls, **options)
        elif isinstance(msg, core.ChatMessage):
            message = ChatMessage.of(msg, self)
        else:
            message = ChatMessage(role, msg=msg, **options)
        message.history = self
        super().append(role, message)
        self.kv_cache = self.kv_cache if reply is None else reply.kv_cache
        return message

    def __delitem__(self, key) -> None:
        super().__delitem__(key)
        self._shorten_cache()

    def pop(self, count: int = 1) -> list:
        """Remove the last `count` messages and return them."""
        removed = super().pop(count)
        self._shorten_cache()
        return removed

    def remove(self, start: int, stop: int | None = None) -> list:
        """Remove the messages from `start` to `stop`, exclusive, and return them."""
        removed = super().remove(start, stop)
        self._shorten_cache()
        return removed

    def _shorten_cache(self) -> None:
        """Keep in the KV cache only the part that is still the same."""
        cache = self.kv_cache
        if cache is not None:
            try:
                cache.pop(len(cache) - common_prefix(self.whole.entries, cache.entries))
            except ValueError:  # a reply is using it; the next one compares again
                pass

    def reset(  # type: ignore[override]
        self, system_prompt: bool | str | None = True, use_cache: bool = True, wrap_tokens: int | None = None
    ) -> None:
        """Forget the conversation. `use_cache` is ignored: the system prompt is computed only once anyway."""
        super().reset(system_prompt, wrap_tokens)
        self._kv_cache = None

    def add_system_prompt(self, system_prompt: str | None = None, use_cache: bool = True):
        """Set the system prompt, if one is passed. Return its message, None if there is none."""
        if system_prompt is not None:
            self.system_prompt = system_prompt
        return self.messages[0] if self.system_prompt else None

    def reindex(self) -> None:
        """Do nothing: messages find their position themselves."""

    def to_list(self, messages: Iterable | None = None, html: bool = False) -> list[dict]:
        """Return messages as dicts.

        Args:
            messages: Messages, or dicts of an earlier call; None returns all messages.
            html: Escape the text for HTML, with `<br/>` for line breaks and `<code>` for backquotes. Images
                without a file name are omitted.
        """
        chosen = list(self.messages if messages is None else messages)
        everything = dict(zip(map(id, self.messages), super().to_list()))
        dicts = [
            dict(each) if isinstance(each, Mapping) else everything.get(id(each)) or _as_dict(each)
            for each in chosen
        ]
        return [_as_html(each) for each in dicts] if html else dicts

    def to_html(self, messages: Iterable | None = None) -> list[dict]:
        """Return `to_list(html=True)`."""
        return self.to_list(messages, html=True)

    # --- entries ---

    def embed_chat(
        self,
        use_cache: Any = True,
        max_tokens: int | None = None,
        wrap_tokens: int | None = None,
        return_tokens: bool = False,
        **options,
    ) -> tuple[Prompt, int]:
        """Make the prompt for the next reply.

        Args:
            use_cache: Return only what the KV cache does not hold; a false value returns the whole
                conversation.
            max_tokens: See `ros2_nanochat.ChatHistory.embed_chat`.
            wrap_tokens: See `ros2_nanochat.ChatHistory.embed_chat`.
            return_tokens: Return ids [1, n] even if the model provides embeddings.
            **options: `return_tensors` is ignored: the prompt is an array for NumPy.

        Returns:
            The prompt and its position.
        """
        warn_ignored('embed_chat()', [name for name in options if name != 'return_tensors'])
        prompt, position = super().embed_chat(bool(use_cache), max_tokens, wrap_tokens)
        return (dataclasses.replace(prompt, embed=None) if return_tokens else prompt), position

    @property
    def tokens(self) -> np.ndarray:
        """Ids [1, n] int32 of the whole conversation in its template, `IMAGE_ENTRY` for rows of images."""
        entries = self.whole.entries
        return np.where(entries >= 0, entries, IMAGE_ENTRY).astype(np.int32)[None]

    @property
    def whole(self) -> Prompt:
        """The prompt of the whole conversation."""
        return self._whole() if self.messages else Prompt(np.empty(0, np.int64))

    def span(self, message: ChatMessage) -> tuple[int, int]:
        """Return the first entry of a message, and the one after its last.

        Raises:
            ValueError: The message is not in the history.
        """
        index = message.index
        if index is None:
            raise ValueError('this message is not in the history')
        ends = self._message_ends()
        return ends[index], ends[index + 1]

    def holds(self, message: ChatMessage) -> bool:
        """Whether the KV cache holds a message; for a reply, what the model wrote is enough."""
        cache, (start, end) = self.kv_cache, self.span(message)
        shared = common_prefix(self.whole.entries, cache.entries) if cache is not None else 0
        return shared >= end or (message.role == 'bot' and start < shared == len(cache))

    def _message_ends(self) -> list[int]:
        state = tuple(message.state() for message in self.messages)
        if self._ends is None or self._ends[0] != state:
            ends = [0]
            for n, message in enumerate(self.messages):
                try:
                    prompt = self.template.prompt(self.messages[: n + 1], message.role in ('user', 'tool'))
                    ends.append(max(ends[-1], len(prompt)))
                except ValueError:  # not every template accepts part of a conversation
                    ends.append(ends[-1])
            self._ends = state, ends
        return self._ends[1]


def _as_dict(message: core.ChatMessage) -> dict:
    return {'role': message.role, message.type: message.content}


def _as_html(entry: dict) -> dict:
    if 'text' in entry:
        text = html_module.escape(remove_special_tokens(entry['text']).strip())
        entry['text'] = _CODE.sub(r'<code>\1</code>', text).replace('\n', '<br/>')
    image = entry.pop('image', None)
    name = image if isinstance(image, str) else getattr(image, 'filename', None)
    return {**entry, 'image': name} if name else entry
