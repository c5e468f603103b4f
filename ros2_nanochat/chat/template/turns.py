"""Turns the messages of a history into the messages of a template: decides the order of turns, where the
system prompt, images and reasoning go, and which parts keep the ids that the model sampled.

Contents that must not be read as markup become placeholder characters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ros2_nanochat.answer.call_format import CallFormat
from ros2_nanochat.answer.written_call import WrittenCall
from ros2_nanochat.chat.message import ChatMessage
from ros2_nanochat.chat.template.jinja import IMAGE_PART, JinjaMarkup, reasoning_part
from ros2_nanochat.chat.template.markup import Placeholders
from ros2_nanochat.chat.template.nanollm_format import NanoLLMFormat
from ros2_nanochat.chat.template.written import Written
from ros2_nanochat.reasoning import marks_in_template

BETWEEN = '\n'  # between two messages that share one turn
# between a system prompt and the first message, if these share one turn (as in Gemma 3's template)
AFTER_SYSTEM = '\n\n'


@dataclass(frozen=True)
class Arrangement:
    """How the messages of a history are passed to a template.

    Attributes:
        joins_neighbours: Two messages of one role in a row become one.
        folds_system: The system prompt is put before the first message of the user.
        blank_system: An empty system prompt is added.
        as_parts: A content is a list of parts, even if it is only text.
        drops_call_ids: A reply with calls does not keep its sampled ids: the template writes it.
    """

    joins_neighbours: bool = False
    folds_system: bool = False
    blank_system: bool = False
    as_parts: bool = False
    drops_call_ids: bool = False


class Conversation:
    """Messages prepared for a template.

    Args:
        messages: The conversation.
        markup: The template.
        hide: Replaces text in a content that could be read as markup.
        image_token: The text in a rendering that is replaced with an image, if the template takes images as
            parts of a content.
        arrangement: How the messages are passed to the template.
        continues: The last message, of the bot, is an unfinished reply. `continued` stands for its words in
            the rendering, so that `cut` finds their end.
        call_format: How the template writes calls.
    """

    def __init__(
        self,
        messages: Sequence[ChatMessage],
        markup: JinjaMarkup | NanoLLMFormat,
        hide: Callable[[str, Placeholders], str],
        image_token: str | None,
        arrangement: Arrangement,
        continues: bool = False,
        call_format: CallFormat | None = None,
    ):
        self._call_format = call_format
        self.placeholders = Placeholders()
        self._open = messages[-1] if continues else None
        self.continued = ''
        """The character that stands for the unfinished words."""
        self.contents: list[tuple[int, list[str]]] = []
        """What the rendering has to contain: number and texts of each message that is not the bot's."""
        self._arrangement = arrangement
        self._markup = markup
        self._image_token = image_token
        self._hide = lambda text: hide(text, self.placeholders)
        self._images: list[ChatMessage] = []
        # of each answer that has ids: its character, that of its reasoning, and the text of its calls
        self._written: list[tuple[str, str | None, str]] = []
        self.messages: list[dict] = []
        """The messages in the form of the template."""
        if arrangement.blank_system:
            self.messages.append({'role': 'system', 'content': self._content([''], 'system')})
        for turn in self._turns(messages):
            self.messages.append(self._message(turn))

    def _turns(self, messages: Sequence[ChatMessage]) -> list[list[Any]]:
        """Group messages into turns: an image with the text about it; neighbours of one role if the template
        needs alternating roles; the system prompt with the first message if the template has no place for it.
        """
        turns: list[list] = []
        for message in messages:
            before = turns[-1][-1] if turns else None
            if (
                before is not None
                and before.role == message.role
                and (
                    'image' in (before.type, message.type)
                    or (
                        self._arrangement.joins_neighbours
                        and message.role != 'tool'
                        and not before.calls
                        and not message.calls
                    )
                )
            ):
                turns[-1].append(message)
            else:
                turns.append([message])
        if turns and turns[0][0].role == 'system' and self._arrangement.folds_system:
            system = BETWEEN.join(message.text for message in turns.pop(0) if message.text)
            if turns and turns[0][0].role == 'user':
                turns[0].insert(0, system)
            else:
                turns.insert(0, [ChatMessage('user', text=system)])
        return turns

    def _message(self, turn: list[Any]) -> dict:
        """Return the message of a turn, which may begin with a system prompt as text."""
        role = turn[-1].role
        message: dict[str, Any] = {'role': 'assistant' if role == 'bot' else role}
        items: list[Any] = []  # texts, ready, and messages with images
        if isinstance(turn[0], str):
            items.append(self._hide(turn.pop(0)) + AFTER_SYSTEM)
        for entry in turn:
            if entry.image is not None:
                items.append((entry,))
            if entry.text is not None:
                items.append(self._bot_text(entry, message) if role == 'bot' else self._hide(entry.text))
        if role == 'tool':
            message.update({'name': turn[-1].name} if turn[-1].name else {})
            message.update({'tool_call_id': turn[-1].call_id} if turn[-1].call_id else {})
        if role != 'bot':
            texts = [item.strip() for item in items if isinstance(item, str)]
            self.contents.append((len(self.messages), [text for text in texts if text]))
        content: str | list[dict] | None = self._content(items, message['role'])
        if thoughts := message.pop('parts', None):
            content = thoughts + (
                content if isinstance(content, list) else [{'type': 'text', 'text': content}]
            )
        if not content and 'tool_calls' in message and self._call_format is not None:
            content = None if self._call_format.null_content else ''
        message['content'] = content
        return message

    def _content(self, items: list[Any], role: str) -> str | list[dict]:
        """Return parts if the template takes images that way, else one string with a character for each
        image.
        """
        as_parts = self._image_token is not None and any(isinstance(item, tuple) for item in items)
        parts: list[dict] = []
        for item in items:
            if isinstance(item, tuple) and as_parts:
                self._images.append(item[0])
                parts.append(dict(IMAGE_PART))
                continue
            text = self.placeholders.for_object(item[0]) if isinstance(item, tuple) else item
            if parts and parts[-1]['type'] == 'text':
                between = '' if parts[-1]['text'].endswith(AFTER_SYSTEM) else BETWEEN
                parts[-1]['text'] += between + text
            else:
                parts.append({'type': 'text', 'text': text})
        if as_parts or self._takes_parts(role):
            return parts
        return ''.join(part['text'] for part in parts)

    def _takes_parts(self, role: str) -> bool:
        if isinstance(self._markup, JinjaMarkup) and self._markup.is_understood:
            return self._markup.roles.as_parts(role)
        return self._arrangement.as_parts

    def _bot_text(self, entry: ChatMessage, message: dict) -> str:
        """Return the content of a bot message.

        Its reasoning goes where the template reads it, which may be the content.
        """
        if entry.calls:
            message['tool_calls'] = [self.hidden(self._as_openai(call)) for call in entry.calls]
        marks = marks_in_template(self._markup.source)
        thought = entry.reasoning.strip()
        apart = bool(thought) and (self._markup.takes_reasoning or marks is not None)
        text = self._hide(entry.text)
        if entry is self._open:
            text = self.continued = self.placeholders.for_text(entry.text or '')
        elif entry.tokens and not (entry.calls and self._arrangement.drops_call_ids):
            text = self.placeholders.for_object(Written(entry, whole=not apart))
            calls = self._stand_ins(entry, message)
            self._written.append((text, self.placeholders.for_text(thought) if apart else None, calls))
            text = '' if calls else text
        if not apart:
            return text
        reasoning = self.placeholders.for_text(thought)
        if self._markup.takes_reasoning_part:
            message.setdefault('parts', []).append(reasoning_part(reasoning))
            return text
        if self._markup.takes_reasoning or marks is None:
            message['reasoning_content'] = message['thinking'] = reasoning
            return text
        return f'{marks[0]}\n{reasoning}\n{marks[1]}\n\n{text}'

    def hidden(self, value: Any) -> Any:
        """Return a template variable with texts hidden that could be read as markup."""
        if isinstance(value, str):
            return self._hide(value)
        if isinstance(value, Mapping):
            return {self.hidden(key): self.hidden(each) for key, each in value.items()}
        return [self.hidden(each) for each in value] if isinstance(value, (list, tuple)) else value

    def finish(self, text: str) -> str:
        """Return a rendering of `messages` with placeholder characters for images and sampled replies.

        Raises:
            ValueError: The template does not place every image.
        """
        if self._images:
            pieces = text.split(self._image_token)
            if len(pieces) != len(self._images) + 1:
                raise ValueError(
                    f'chat template {self._markup.name} places {len(pieces) - 1} of {len(self._images)}'
                    ' images'
                )
            objects = [self.placeholders.for_object(image) for image in self._images]
            text = ''.join(piece + character for piece, character in zip(pieces, [*objects, '']))
        for answer, reasoning, calls in self._written:
            if calls:
                text = self._join_calls(text, answer, reasoning, calls)
            else:
                text = self._join_reply(text, answer, reasoning)
        return text

    def _stand_ins(self, entry: ChatMessage, message: dict) -> str:
        """Let a message call its tools with placeholders, and return what the template writes for that; ''
        if the message calls none.
        """
        if not entry.calls or self._call_format is None:
            return ''
        mark = self.placeholders.for_object(None)
        calls = [WrittenCall(call.name, {mark: ''}, call.id) for call in entry.calls]
        message['tool_calls'] = [self._as_openai(call) for call in calls]
        return self._call_format.write(calls)

    def _as_openai(self, call: WrittenCall) -> dict:
        return call.as_openai(self._call_format is not None and self._call_format.text_arguments)

    def _join_calls(self, text: str, answer: str, reasoning: str | None, calls: str) -> str:
        """Move a sampled reply that ends with calls to where the model began to sample it: its ids spell
        everything from there to the end of the calls.
        """
        at = text.find(calls)
        if at < 0:
            raise ValueError(f'chat template {self._markup.name} writes calls in an unknown way')
        begin = self._markup.generation_prompt or self._markup.before_reply
        marks = marks_in_template(self._markup.source)
        # the template may write another beginning of the reasoning than the one that the model continued
        header = begin.partition(marks[0])[0] if marks else begin
        start = text.rfind(header, 0, at) if header else -1
        dropped = reasoning is not None and reasoning not in text[max(start, 0) : at]
        if dropped and marks is None:
            raise ValueError(f'chat template {self._markup.name} drops reasoning before calls')
        self.placeholders.objects[answer] = replace(self.placeholders.objects[answer], whole=not dropped)
        before = text[:at] if dropped or start < 0 else text[:start] + begin
        return before + answer + text[at + len(calls) :]

    def cut(self, text: str) -> str:
        """Return a finished rendering up to the end of the unfinished words.

        Raises:
            ValueError: The template did not write them.
        """
        end = text.rfind(self.continued) if self.continued else -1
        if end < 0:
            raise ValueError(
                f'chat template {self._markup.name} has no place for the words of the bot that go on'
            )
        return text[: end + 1]

    def _join_reply(self, text: str, answer: str, reasoning: str | None) -> str:
        """Move a sampled reply directly to where the model began to sample it: white space that the template
        writes before a reply is not in the KV cache, and the thinking marks are among the sampled ids.
        """
        at = text.find(answer)
        if at < 0:
            return text
        begin = self._markup.generation_prompt or self._markup.before_reply
        start = text.rfind(begin, 0, at) + len(begin)
        if start < len(begin):
            return text
        gap = text[start:at]
        kept = reasoning is not None and reasoning in gap
        if kept or gap.strip():  # the template writes there what the ids also contain
            self.placeholders.objects[answer] = replace(self.placeholders.objects[answer], whole=kept)
        return text[:start] + text[at:] if kept or not gap.strip() else text
