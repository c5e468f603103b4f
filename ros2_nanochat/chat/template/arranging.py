"""Finds the form in which a template accepts a conversation: first as given, and rearranged only if the
template rejects that or leaves something out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ros2_nanochat.answer.call_format import CallFormat
from ros2_nanochat.chat.message import ChatMessage
from ros2_nanochat.chat.template.jinja import JinjaMarkup
from ros2_nanochat.chat.template.markup import Placeholders
from ros2_nanochat.chat.template.nanollm_format import NanoLLMFormat
from ros2_nanochat.chat.template.turns import Arrangement, Conversation

_PROBE = '\U0010fff0'  # stands for a content


def arrange(
    messages: Sequence[ChatMessage],
    markup: JinjaMarkup | NanoLLMFormat,
    hide: Callable[[str, Placeholders], str],
    image_token: str | None,
    add_generation_prompt: bool,
    continues: bool = False,
    offered: Mapping[str, Any] | None = None,
    call_format: CallFormat | None = None,
) -> tuple[Conversation, str]:
    """Return the conversation in a form that the template accepts, and its text.

    Args:
        messages: The conversation.
        markup: The template.
        hide: Replaces text of a message that could be read as markup.
        image_token: The text that the template writes for an image, if any.
        add_generation_prompt: Let the model begin a reply.
        continues: The model continues the last message, of the bot; see `Conversation`.
        offered: What may be called, as variables of the template.
        call_format: How the template writes calls, if it does.

    Raises:
        ValueError: The template accepts no form of it. The text is the template's error for the
            conversation as given.
    """
    if isinstance(markup, NanoLLMFormat):
        if not markup.takes_tool and any(message.role == 'tool' for message in messages):
            raise _no_place_for_tools(markup)
        arrangement = Arrangement(joins_neighbours=True, folds_system=not markup.takes_system)
        conversation = Conversation(messages, markup, hide, image_token, arrangement, continues)
        return conversation, conversation.finish(markup.render(conversation.messages, add_generation_prompt))
    refusal: ValueError | None = None
    incomplete: tuple[Conversation, str] | None = None
    for arrangement in _arrangements(messages, markup):
        conversation = Conversation(messages, markup, hide, image_token, arrangement, continues, call_format)
        try:
            options = conversation.hidden({**markup.options, **(offered or {})})
            text = markup.render(conversation.messages, add_generation_prompt, options)
            finished = conversation.finish(text)
        except ValueError as error:
            refusal = refusal or error
            continue
        if not _is_misread(messages, arrangement, markup) and _is_complete(
            conversation, text, markup, add_generation_prompt
        ):
            return conversation, finished
        incomplete = incomplete or (conversation, finished)
    if any(message.role == 'tool' for message in messages) and not markup.takes_tool:
        raise _no_place_for_tools(markup)
    if incomplete is not None:
        return incomplete
    assert refusal is not None
    raise refusal


def _is_misread(messages: Sequence[ChatMessage], arrangement: Arrangement, markup: JinjaMarkup) -> bool:
    """Whether the template takes a message for one of another role."""
    first = messages[0].role
    if first == 'user' and not arrangement.blank_system and markup.reads_first_as_system:
        return True
    joins = _has_neighbours(messages) and not arrangement.joins_neighbours
    folds = first == 'system' and not arrangement.folds_system
    return (joins or folds) and markup.goes_by_places


def _has_neighbours(messages: Sequence[ChatMessage]) -> bool:
    return any(a.role == b.role != 'tool' for a, b in zip(messages, messages[1:]))


def _no_place_for_tools(markup: JinjaMarkup | NanoLLMFormat) -> ValueError:
    return ValueError(f'chat template {markup.name} has no place for the answer of a tool')


def _arrangements(messages: Sequence[ChatMessage], markup: JinjaMarkup) -> Iterator[Arrangement]:
    """The arrangements to try, the conversation as given first."""
    has_system = messages[0].role == 'system'
    ways = [Arrangement(), Arrangement(folds_system=True) if has_system else Arrangement(blank_system=True)]
    if any(message.calls and message.tokens for message in messages):
        ways += [replace(way, drops_call_ids=True) for way in ways]
    for way in ways:
        for joined in (False, True) if _has_neighbours(messages) else (False,):
            for as_parts in (not markup.takes_text,) if markup.is_understood else (False, True):
                yield replace(way, joins_neighbours=joined, as_parts=as_parts)


def _is_complete(
    conversation: Conversation, text: str, markup: JinjaMarkup, add_generation_prompt: bool
) -> bool:
    """Whether a rendering contains all messages.

    Some templates silently drop a system prompt, the first message or parts of a message.
    """
    if not markup.is_understood and any(mark in text for mark in ("'type': 'text'", '"type": "text"')):
        return False  # the list of parts was written out as it is
    position = 0
    for number, contents in conversation.contents:
        for content in contents:
            at = text.find(content, position)
            if at >= 0:
                position = at + len(content)
            elif content not in text and not _has_place(conversation, number, markup, add_generation_prompt):
                return False
    return True


def _has_place(
    conversation: Conversation, number: int, markup: JinjaMarkup, add_generation_prompt: bool
) -> bool:
    """Whether the template renders a message at all, even if it writes the content differently."""
    messages = list(conversation.messages)
    content = messages[number]['content']
    probe = _PROBE if isinstance(content, str) else [{'type': 'text', 'text': _PROBE}]
    messages[number] = {**messages[number], 'content': probe}
    try:
        return _PROBE in markup.render(messages, add_generation_prompt)
    except ValueError:
        return False
