"""The history of a conversation: its messages, the template that makes a prompt of them, and the KV cache.

After any edit, the next prompt reuses the KV cache up to the first entry that changed.
"""

from __future__ import annotations

import functools
import logging
import numbers
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ros2_nanochat.chat import storage
from ros2_nanochat.chat.message import ChatMessage
from ros2_nanochat.chat.message_list import MessageList, is_continued
from ros2_nanochat.chat.model import ChatModel, ConversationCache, ModelReply
from ros2_nanochat.chat.restoring import restore
from ros2_nanochat.chat.rewriting import rewritten
from ros2_nanochat.chat.template.chat_template import ChatTemplate
from ros2_nanochat.chat.tool_messages import ToolMessages
from ros2_nanochat.chat.wrapping import latest_turns, refuse_too_long
from ros2_nanochat.errors import shown
from ros2_nanochat.prompt import Prompt, common_prefix

_log = logging.getLogger(__name__)
_REPLY_ROOM = 256  # tokens of the context left for the reply, unless the caller sets a limit


class ChatHistory(ToolMessages, MessageList):
    """Messages of one conversation, indexed like a list.

    A call that fails raises ValueError and leaves the history as it was.

    Args:
        model: A `NanoLLM`.
        chat_template: See `ChatTemplate`.
        system_prompt: The instruction at the beginning; None uses the template's default, '' uses none.
        template_options: Variables of the template, for example `{'enable_thinking': False}`.
        tools: What the model may call; see `tools`.

    Attributes:
        kv_cache: What the model has read. Set it to `reply.kv_cache` after each reply.
        num_dropped: Messages that the last `embed_chat` dropped because the context was full.
        encode_seconds: Time that the last `embed_chat` spent on encoding images; 0.0 if all were cached.
    """

    def __init__(
        self,
        model: ChatModel,
        chat_template: str | Mapping | None = None,
        system_prompt: str | None = None,
        template_options: Mapping[str, Any] | None = None,
        tools: Iterable[Any] | None = None,
    ):
        self.model = model
        self._chat_template = chat_template
        self.template = ChatTemplate(model, chat_template, template_options)
        self.tools = tools
        self.messages: list[ChatMessage] = []
        self.num_dropped = 0
        self.encode_seconds = 0.0
        self._kv_cache: ConversationCache | None = None
        self._default_prompt = self.template.system_prompt if system_prompt is None else system_prompt
        self._last: tuple[tuple, Prompt] | None = None
        self.reset()

    # --- a list of messages; see also `MessageList` ---

    def append(
        self, role: str = 'user', msg: Any = None, *, text: str | None = None, image: Any = None, **options
    ) -> ChatMessage:
        """Add a message and return it.

        If the history ends with words of the bot, the next reply continues them and is merged into that
        message.

        Args:
            role: `system`, `user`, `bot` or `tool`.
            msg: Text or an image (`is_image` decides), a `ChatMessage`, or the model's `StreamingResponse`,
                whose text, ids and KV cache are taken over as far as they were delivered.
            text: The text, if you pass it by name.
            image: The image, if you pass it by name.

        Raises:
            ValueError: The role is unknown, or the model cannot see images.
        """
        # isinstance() with a Protocol is slow: skip it for None.
        reply = msg if msg is not None and isinstance(msg, ModelReply) else None
        if isinstance(msg, ChatMessage):
            message = msg
        elif reply is not None and role == 'bot' and is_continued(self.messages):
            message = self.messages.pop()  # what the reply continued
            message.text = (message.text or '') + reply.text
            message.calls = self._with_ids(getattr(reply, 'calls', ()))
        elif reply is not None:
            calls = self._with_ids(getattr(reply, 'calls', ()))
            thoughts = reply.reasoning or ''
            message = ChatMessage(role, text=reply.text, reasoning=thoughts, calls=calls, **options)
        else:
            message = ChatMessage(role, msg, text=text, image=image, **options)
        if message.image is not None and not self.model.has_vision:
            raise ValueError(f'{self.model.info.name} has no vision: it cannot be shown images')
        if message.image is not None and not message.is_embedded(self.model):
            message.picture = self.model.open_image(message.image)  # the file may change later
        self.messages.append(message)
        if reply is not None:
            self.kv_cache = reply.kv_cache
        return message

    # --- the system prompt ---

    @property
    def system_prompt(self) -> str:
        """The instruction at the beginning, '' if there is none. Setting it keeps the conversation."""
        first = self.messages[0] if self.messages else None
        return first.text or '' if first is not None and first.role == 'system' else ''

    @system_prompt.setter
    def system_prompt(self, instruction: str | None) -> None:
        messages = [ChatMessage('system', text=instruction)] if instruction else []
        self.messages = messages + self.messages[int(bool(self.system_prompt)) :]
        self._default_prompt = instruction

    def reset(self, system_prompt: bool | str | None = True, wrap_tokens: int | None = None) -> None:
        """Forget the conversation.

        Args:
            system_prompt: True keeps it, a string replaces it, False or None removes it.
            wrap_tokens: Keep the latest turns that fit into this many tokens, including the system prompt.
        """
        prompt = (
            system_prompt
            if isinstance(system_prompt, str)
            else (self.system_prompt or self._default_prompt)
            if system_prompt
            else ''
        )
        messages = [ChatMessage('system', text=prompt)] if prompt else []
        if wrap_tokens is not None:
            rest = self.messages[int(bool(self.system_prompt)) :]
            kept = latest_turns(self._length, messages, rest, wrap_tokens, at_least_one=False)
            messages += kept
        self.messages = messages
        if isinstance(system_prompt, str):
            self._default_prompt = system_prompt

    @property
    def template_options(self) -> dict[str, Any]:
        """Variables of the template. Setting them keeps the conversation."""
        return self.template.options

    @template_options.setter
    def template_options(self, options: Mapping[str, Any] | None) -> None:
        self.template = ChatTemplate(self.model, self._chat_template, options)
        self.template.tools = self.tools
        self._last = None

    # --- entries and KV ---

    @property
    def kv_cache(self) -> Any:
        """The `KVCache` of the conversation, None before the first reply.

        When you set it to a reply's cache, the bot message with the reply's text takes over the token ids
        that the model sampled.
        """
        return self._kv_cache

    @kv_cache.setter
    def kv_cache(self, kv_cache: ConversationCache | None) -> None:
        self._kv_cache = kv_cache
        reply = None if kv_cache is None else kv_cache.reply
        message = next((m for m in reversed(self.messages) if m.role == 'bot'), None)
        if (
            reply is not None
            and message is not None
            and message.tokens in (None, reply.tokens)
            and message.text == reply.text
        ):
            message.adopt(reply.tokens, reply.reasoning, reply.num_reasoning)
            message.calls = message.calls or self._with_ids(reply.calls)

    @property
    def num_tokens(self) -> int:
        """Tokens of the whole conversation in the template.

        Includes the generation prompt if the bot is next.
        """
        return len(self._whole())

    def _whole(self) -> Prompt:
        state = tuple(message.state() for message in self.messages)
        if self._last is None or self._last[0] != state:
            self._last = state, self._prompt(self.messages)
        return self._last[1]

    def _prompt(self, messages: Sequence[ChatMessage]) -> Prompt:
        shown, continues = self._with_examples(messages), is_continued(messages)
        if continues and len(shown) > 1 and not shown[-1].text:  # there are no words yet to continue
            return self.template.prompt(shown[:-1], add_generation_prompt=True)
        return self.template.prompt(shown, continues=continues)

    def _forget_prompt(self) -> None:
        self._last = None

    def _length(self, messages: Sequence[ChatMessage]) -> int:
        return len(self._prompt(messages))

    def embed_chat(
        self, use_cache: bool = True, max_tokens: int | None = None, wrap_tokens: int | None = None
    ) -> tuple[Prompt, int]:
        """Make the prompt for the next reply.

        Args:
            use_cache: Return only what the KV cache does not hold; False returns the whole conversation.
            max_tokens: Limit for the conversation. None leaves room for a reply in the context.
            wrap_tokens: If the limit is exceeded, the oldest turns are dropped until the rest fits into this
                many tokens (None: half of max_tokens). The system prompt and the last turn stay.

        Returns:
            The prompt and its position. The prompt behaves like an array: embeddings [1, n, d] if the model
            provides them, else ids [1, n].

        Raises:
            ValueError: The system prompt and the last turn are too long, or a limit is not valid.
        """
        for name, value in (('max_tokens', max_tokens), ('wrap_tokens', wrap_tokens)):
            if not isinstance(value, numbers.Integral | None):
                raise ValueError(f'{name}={shown(value)} is not valid: a whole number of tokens, or none')
        context = self.model.info.context_length
        limit = context - min(_REPLY_ROOM, context // 4) if max_tokens is None else min(max_tokens, context)
        wrap = limit // 2 if wrap_tokens is None else min(wrap_tokens, limit)
        if limit < 1 or wrap < 1:
            raise ValueError(
                f'max_tokens={max_tokens}, wrap_tokens={wrap_tokens} leave no room for a conversation'
            )
        new = [each for each in self.messages if each.image is not None and not each.is_embedded(self.model)]
        refuse_too_long(self.model, self.messages, limit)
        whole, dropped = self._whole(), 0
        self.encode_seconds = sum(message.embed(self.model).seconds for message in new)
        if len(whole) > limit:
            system = self.messages[: int(bool(self.system_prompt))]
            kept = [*system, *latest_turns(self._length, system, self.messages[len(system) :], wrap)]
            shorter = self._prompt(kept)
            if len(shorter) > limit:
                raise ValueError(
                    f'the last message takes {len(shorter)} tokens with the system prompt, and at most'
                    f' {limit} fit (a context of {context}): shorten it,'
                    f'{" lower image_max_tokens," if shorter.spans else ""} or raise max_context_len'
                )
            dropped = len(self.messages) - len(kept)
            _log.warning(
                'the context is full: %d of %d tokens; dropped the oldest %d messages, %d tokens are left',
                len(whole),
                limit,
                dropped,
                len(shorter),
            )
            self.messages, whole, self._last = kept, shorter, None
        self.num_dropped = dropped
        rewrite = functools.partial(rewritten, tuple(self.messages), ChatHistory)
        if not use_cache or self._kv_cache is None:
            return replace(whole, rewrite=rewrite), 0
        # at least one entry has to be computed, or there are no logits to sample from
        position = min(common_prefix(whole.entries, self._kv_cache.entries), max(len(whole) - 1, 0))
        rest = whole.after(position)
        return replace(rest, rewrite=rewrite), rest.position

    # --- files ---

    def save(self, path: str | os.PathLike) -> None:
        """Write the conversation to a JSON file, atomically.

        Images are saved by path or URL; an image that has neither is written next to the file. Raises OSError
        if writing fails.
        """
        storage.save(path, self.messages, self.template.name, self.model)

    def load(self, path: str | os.PathLike, *, without_images: bool = False) -> list[str]:
        """Replace this conversation with one that `save` wrote.

        The sampled ids are kept if the model is the same.

        Args:
            path: The JSON file.
            without_images: Replace an image that is missing or damaged, or that the model cannot see, with a
                text that says so. Otherwise such an image is an error.

        Returns:
            The texts that replaced images.

        Raises:
            ValueError: The file or an image in it is not valid.
            OSError: An image exists but cannot be read.
        """
        self.messages, replaced = restore(path, self.model, without_images)
        return replaced
