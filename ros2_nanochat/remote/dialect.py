"""How requests and answers are written, for each way of talking to a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ros2_nanochat.engine.request import Asked
from ros2_nanochat.remote.capabilities import Capabilities, Way
from ros2_nanochat.remote.failures import Rejected
from ros2_nanochat.remote.kept_pictures import picture_name, picture_part
from ros2_nanochat.remote.message_vocabulary import Message, PictureSpan, messages
from ros2_nanochat.remote.reading import (
    choice_in,
    count_in,
    finish_in,
    ids_in,
    reasoning_in,
    text_in,
    usage_in,
)
from ros2_nanochat.remote.sampling import sampling


@dataclass(frozen=True)
class Piece:
    """What one event of a stream says.

    Attributes:
        text: Text of the answer.
        reasoning: Text of the reasoning, if the server separates it.
        ids: The ids that spell the text; empty if the server gives none.
        num_ids: Number of ids of the reply so far; None if not known.
        finish: `stop` or `length` if the reply is complete.
        works: The server works on the reply, though there is no text yet.
        prompt_tokens, reused_tokens, new_tokens: Figures, if the event has them.
    """

    text: str = ''
    reasoning: str = ''
    ids: tuple[int, ...] = ()
    num_ids: int | None = None
    finish: str | None = None
    works: bool = False
    prompt_tokens: int | None = None
    reused_tokens: int | None = None
    new_tokens: int | None = None


@dataclass(frozen=True)
class Question:
    """What is sent.

    Attributes:
        asked: What the caller wants.
        ids: The ids of the prompt and of what earlier attempts gave; empty for messages.
        num_delivered: How many of them belong to the reply.
        form: The fields for the form of the answer.
        salt: What the server mixes into the names of cached prefixes; empty for nothing.
        held: Names of pictures that the server holds; None if it keeps none.
    """

    asked: Asked
    ids: Sequence[int] = ()
    num_delivered: int = 0
    form: Mapping[str, Any] | None = None
    salt: str = ''
    held: frozenset[str] | None = None

    def show(self, picture: PictureSpan) -> dict[str, Any]:
        """Return the part of a message that shows a picture."""
        if self.held is None:
            return picture_part(picture.url)
        name = picture_name(picture, self.salt)
        return picture_part(None if name in self.held else picture.url, name)

    def max_tokens(self, context_length: int) -> int:
        """Return how many tokens the reply may have."""
        config, room = self.asked.config, context_length - len(self.ids)
        if config.max_new_tokens < 0:
            return room
        return max(1, min(room, config.max_new_tokens - self.num_delivered))


class Dialect(Protocol):
    """One way of talking."""

    def path_of(self, body: Mapping[str, Any]) -> str:
        """Return where a body goes."""

    def body(self, question: Question, can: Capabilities, context_length: int) -> dict[str, Any]:
        """Return the body of a request."""

    def read(self, event: Any) -> Piece:
        """Read one event."""


class Completions:
    """Token ids to `/v1/completions`."""

    def path_of(self, body: Mapping[str, Any]) -> str:
        """See `Dialect`."""
        return '/completions'

    def body(self, question: Question, can: Capabilities, context_length: int) -> dict[str, Any]:
        """See `Dialect`."""
        asked = question.asked
        body: dict[str, Any] = {
            'model': can.model,
            'prompt': list(question.ids),
            'stream': True,
            can.max_tokens: question.max_tokens(context_length),
            'return_token_ids': True,
            **sampling(asked.config, can),
            **(question.form or {}),
        }
        if can.stop_ids and asked.end_ids:
            body['stop_token_ids'] = sorted(asked.end_ids)
        if can.usage:
            body['stream_options'] = {'include_usage': True}
        return {**body, **_shared(question, can)}

    def read(self, event: Any) -> Piece:
        """See `Dialect`."""
        choice = choice_in(event)
        return Piece(
            text=text_in(choice.get('text')),
            ids=ids_in(choice.get('token_ids')),
            finish=finish_in(choice.get('finish_reason')),
            **usage_in(event.get('usage')),
        )


def _shared(question: Question, can: Capabilities) -> dict[str, Any]:
    """Fields of vLLM that both of its addresses take."""
    fields: dict[str, Any] = {}
    if can.priority and question.asked.priority:
        fields['priority'] = -question.asked.priority
    if can.salt and question.salt:
        fields['cache_salt'] = question.salt
    return fields


class LlamaCompletion:
    """Token ids to llama.cpp's `/completion`."""

    def path_of(self, body: Mapping[str, Any]) -> str:
        """See `Dialect`."""
        return '/completion'

    def body(self, question: Question, can: Capabilities, context_length: int) -> dict[str, Any]:
        """See `Dialect`."""
        asked = question.asked
        return {
            'prompt': list(question.ids),
            'stream': True,
            'n_predict': question.max_tokens(context_length),
            'return_tokens': True,
            # Without it, the server notices a disconnect only after the first token.
            'return_progress': True,
            'cache_prompt': True,
            'repeat_last_n': context_length,
            'samplers': ['penalties', 'temperature', 'top_k', 'top_p', 'min_p'],
            **sampling(asked.config, can),
            **(question.form or {}),
        }

    def read(self, event: Any) -> Piece:
        """See `Dialect`."""
        choice_in(event)
        if 'prompt_progress' in event and not event.get('content'):
            return Piece(works=True)  # it has a token that is none
        figures: dict[str, Any] = {}
        finish = None
        if event.get('stop'):
            finish = 'stop' if event.get('stop_type', 'eos') in ('eos', 'word') else 'length'
            timings = event.get('timings')
            if isinstance(timings, Mapping):
                figures['reused_tokens'] = count_in(timings.get('cache_n'))
            figures['prompt_tokens'] = count_in(event.get('tokens_evaluated'))
        return Piece(
            text=text_in(event.get('content')),
            ids=ids_in(event.get('tokens')),
            num_ids=count_in(event.get('tokens_predicted')),
            finish=finish,
            **figures,
        )


class Chat:
    """Messages to `/v1/chat/completions`; plain text to `/v1/completions`."""

    def path_of(self, body: Mapping[str, Any]) -> str:
        """See `Dialect`."""
        return '/completions' if 'prompt' in body else '/chat/completions'

    def body(self, question: Question, can: Capabilities, context_length: int) -> dict[str, Any]:
        """See `Dialect`.

        Raises:
            Rejected: The server cannot do this.
        """
        asked = question.asked
        try:
            found = messages(asked.goal)
        except ValueError as error:
            raise Rejected(str(error)) from None
        body: dict[str, Any] = {
            'model': can.model,
            'stream': True,
            **self._prompt(found, question, can),
            **sampling(asked.config, can),
            **(question.form or {}),
            **_shared(question, can),
        }
        if asked.config.max_new_tokens >= 0:
            body[can.max_tokens] = max(1, asked.config.max_new_tokens)
        if can.usage:
            body['stream_options'] = {'include_usage': True}
        return body

    @staticmethod
    def _prompt(found: list[Message], question: Question, can: Capabilities) -> dict[str, Any]:
        if any(not message.role for message in found):
            if len(found) > 1 or not can.completes or not all(isinstance(p, str) for p in found[0].parts):
                raise Rejected(
                    'this server takes only conversations: use a ChatHistory without chat_template'
                )
            return {'prompt': ''.join(map(str, found[0].parts))}
        prompt: dict[str, Any] = {'messages': [message.to_dict(question.show) for message in found]}
        if found and found[-1].role == 'assistant' and found[-1].is_open:
            if can.continues is None:
                raise Rejected(
                    'this server cannot continue the beginning of a reply: remove the last message'
                )
            prompt.update(can.continues)
        return prompt

    def read(self, event: Any) -> Piece:
        """See `Dialect`."""
        choice = choice_in(event)
        # A last chunk may have an empty delta, and the whole reply again as its message.
        delta = choice.get('message') if choice.get('delta') is None else choice['delta']
        delta = delta if isinstance(delta, Mapping) else {}
        return Piece(
            text=text_in(delta.get('content')) or text_in(choice.get('text')),
            reasoning=reasoning_in(delta),
            finish=finish_in(choice.get('finish_reason')),
            **usage_in(event.get('usage') or choice.get('usage')),
        )


DIALECTS: dict[Way, Dialect] = {
    Way.IDS: Completions(),
    Way.LLAMA_CPP: LlamaCompletion(),
    Way.MESSAGES: Chat(),
}
