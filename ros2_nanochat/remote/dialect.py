"""How requests and answers are written, for each way of talking to a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ros2_nanochat.engine.request import Asked
from ros2_nanochat.remote.capabilities import Capabilities, Way
from ros2_nanochat.remote.failures import Rejected, Unavailable, message_in
from ros2_nanochat.remote.message_vocabulary import Message, messages
from ros2_nanochat.remote.sampling import sampling

_FINISHED = {'stop': 'stop', 'eos': 'stop', 'tool_calls': 'stop', 'function_call': 'stop', 'length': 'length'}


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
    """

    asked: Asked
    ids: Sequence[int] = ()
    num_delivered: int = 0
    form: Mapping[str, Any] | None = None
    salt: str = ''

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


def _usage(data: Any) -> dict[str, Any]:
    """Figures of OpenAI's `usage`, those that are there."""
    if not isinstance(data, Mapping):
        return {}
    details = data.get('prompt_tokens_details')
    found = {
        'prompt_tokens': data.get('prompt_tokens'),
        'new_tokens': data.get('completion_tokens'),
        'reused_tokens': details.get('cached_tokens') if isinstance(details, Mapping) else None,
    }
    return {name: value for name, value in found.items() if type(value) is int and value >= 0}


def _choice(event: Any) -> Mapping[str, Any]:
    if not isinstance(event, Mapping):
        raise Unavailable(f'the server sent {str(event)[:80]!r}, which is no event of a reply')
    if event.get('error'):
        raise Unavailable(f'the server broke off: {message_in(event)}')
    choices = event.get('choices')
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, Mapping) and not choice.get('index'):  # others were not asked for
            return choice
    return {}


def _finish(reason: Any) -> str | None:
    if reason is None:
        return None
    if reason not in _FINISHED:
        raise Unavailable(f'the server ended the reply with {str(reason)[:40]!r}')
    return _FINISHED[reason]


def _ids(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list):
        return ()
    if not all(type(each) is int and each >= 0 for each in value):
        raise Unavailable(f'the server sent {str(value)[:80]!r}, which are no token ids')
    return tuple(value)


def _text(value: Any) -> str:
    if isinstance(value, list):  # some servers send parts
        return ''.join(_text(part.get('text')) for part in value if isinstance(part, Mapping))
    return value if isinstance(value, str) else ''


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
        choice = _choice(event)
        return Piece(
            text=_text(choice.get('text')),
            ids=_ids(choice.get('token_ids')),
            finish=_finish(choice.get('finish_reason')),
            **_usage(event.get('usage')),
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
        _choice(event)
        if 'prompt_progress' in event and not event.get('content'):
            return Piece(works=True)  # it has a token that is none
        figures: dict[str, Any] = {}
        finish = None
        if event.get('stop'):
            finish = 'stop' if event.get('stop_type', 'eos') in ('eos', 'word') else 'length'
            timings = event.get('timings')
            if isinstance(timings, Mapping) and isinstance(timings.get('cache_n'), int):
                figures['reused_tokens'] = timings['cache_n']
            figures['prompt_tokens'] = event.get('tokens_evaluated')
        return Piece(
            text=_text(event.get('content')),
            ids=_ids(event.get('tokens')),
            num_ids=event.get('tokens_predicted'),
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
            **self._prompt(found, can),
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
    def _prompt(found: list[Message], can: Capabilities) -> dict[str, Any]:
        if any(not message.role for message in found):
            if len(found) > 1 or not can.completes or not all(isinstance(p, str) for p in found[0].parts):
                raise Rejected(
                    'this server takes only conversations: use a ChatHistory without chat_template'
                )
            return {'prompt': ''.join(map(str, found[0].parts))}
        prompt: dict[str, Any] = {'messages': [message.to_dict() for message in found]}
        if found and found[-1].role == 'assistant' and found[-1].is_open:
            if can.continues is None:
                raise Rejected(
                    'this server cannot continue the beginning of a reply: remove the last message'
                )
            prompt.update(can.continues)
        return prompt

    def read(self, event: Any) -> Piece:
        """See `Dialect`."""
        choice = _choice(event)
        delta = choice.get('delta') or choice.get('message')
        delta = delta if isinstance(delta, Mapping) else {}
        return Piece(
            text=_text(delta.get('content')) or _text(choice.get('text')),
            reasoning=_text(delta.get('reasoning_content')) or _text(delta.get('reasoning')),
            finish=_finish(choice.get('finish_reason')),
            **_usage(event.get('usage') or choice.get('usage')),
        )


DIALECTS: dict[Way, Dialect] = {
    Way.IDS: Completions(),
    Way.LLAMA_CPP: LlamaCompletion(),
    Way.MESSAGES: Chat(),
}
