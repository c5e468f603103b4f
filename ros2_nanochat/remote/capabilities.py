"""What a server can do, as its probes found it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ros2_nanochat.states import StrEnum


class Way(StrEnum):
    """How prompts go to a server."""

    IDS = 'ids'
    """Token ids to `/v1/completions` (vLLM and others that take `return_token_ids`)."""
    LLAMA_CPP = 'ids to /completion'
    """Token ids to llama.cpp's own address."""
    MESSAGES = 'messages'
    """Messages to `/v1/chat/completions`; the server applies the template."""

    @property
    def takes_ids(self) -> bool:
        """Whether prompts are token ids."""
        return self is not Way.MESSAGES


OPTIONS = ('temperature', 'top_p', 'top_k', 'min_p', 'repetition_penalty', 'seed', 'min_new_tokens')
"""Options of a reply that a server may or may not have."""


@dataclass(frozen=True)
class Capabilities:
    """What one server can do.

    Attributes:
        model: The name of the model there.
        kind: What runs there, in words.
        listed: It lists the model.
        way: How prompts go there.
        context_length: Tokens of one conversation; None if the server does not say.
        slots: Replies that it runs at once; None if it queues further ones itself.
        options: Options of `OPTIONS` that have an effect, and their names there.
        forms: For each kind of form (`choice`, `regex`, `json`, `schema`, `grammar`), the style of `forms`
            that the server follows.
        usage: It reports tokens at the end of a stream.
        reuse: It reports how many tokens it reused; None if that is not known yet.
        priority: It orders replies by priority; a smaller number first.
        salt: It takes `cache_salt`.
        probabilities: It gives the probabilities of tokens.
        images: It takes pictures.
        keeps_pictures: It finds a picture again by the name with which it was sent.
        continues: It continues a message of the bot; the fields with which it does. None if it does not.
        completes: It continues plain text (way `messages`).
        stop_ids: It stops at ids that it is given.
        max_tokens: The name of the field for the maximum length of a reply.
        notes: What else the user should know, one line each.
    """

    model: str
    kind: str = 'unknown'
    listed: bool = True
    way: Way = Way.MESSAGES
    context_length: int | None = None
    slots: int | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    forms: Mapping[str, str] = field(default_factory=dict)
    usage: bool = False
    reuse: bool | None = None
    priority: bool = False
    salt: bool = False
    probabilities: bool = False
    images: bool = False
    keeps_pictures: bool = False
    continues: Mapping[str, bool] | None = None
    completes: bool = False
    stop_ids: bool = False
    max_tokens: str = 'max_tokens'
    notes: tuple[str, ...] = ()

    def noting(self, note: str) -> Capabilities:
        """Return a copy with a further note."""
        return replace(self, notes=(*self.notes, note))

    @property
    def missing(self) -> list[str]:
        """The options that have no effect."""
        return [name for name in OPTIONS if name not in self.options]

    @property
    def no_probabilities(self) -> str:
        """Why a choice has no probabilities, if it has none."""
        if self.way.takes_ids:
            return f'probabilities=True is not possible: {self.kind} gives no probabilities of tokens'
        return f'probabilities=True is not possible: {self.kind} is talked to in messages, not in ids'

    @property
    def holds_calls(self) -> bool:
        """Whether calls of tools can be held to their form, not only checked."""
        return self.way.takes_ids and {'choice', 'schema'} <= self.forms.keys()

    def described(self) -> str:
        """Return all of it in one line, for the log and the diagnostics."""
        words = [
            f'{self.model} on {self.kind}',
            f'talks in {self.way}',
            f'context {self.context_length or "unknown"}',
            f'forms: {", ".join(sorted(self.forms)) or "none"}',
            f'calls of tools: {"held to their form" if self.holds_calls else "only checked"}',
            f'reuse figures: {_yes(self.reuse)}',
            f'priorities: {_yes(self.priority)}',
            f'probabilities: {_yes(self.probabilities)}',
            f'images: {_yes(self.images)}{", sent once" if self.keeps_pictures else ""}',
        ]
        if self.slots is not None:
            words.append(f'{self.slots} at once')
        if self.missing:
            words.append(f'without effect: {", ".join(self.missing)}')
        return ', '.join(words)


def _yes(value: bool | None) -> str:
    return 'unknown' if value is None else 'yes' if value else 'no'
