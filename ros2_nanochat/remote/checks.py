"""What is refused before it goes to a server, because the server would ignore or misread it."""

from __future__ import annotations

import logging

from ros2_nanochat.config import GenerationConfig
from ros2_nanochat.engine.request import Request
from ros2_nanochat.remote.calling import steps_of
from ros2_nanochat.remote.capabilities import Capabilities
from ros2_nanochat.remote.forms import STYLES
from ros2_nanochat.remote.sampling import without_effect

_log = logging.getLogger(__name__)


class Checks:
    """Checks requests for one kind of server.

    Args:
        can: What the servers can do.
    """

    def __init__(self, can: Capabilities):
        self._can = can
        self._noted: set[str] = set()

    def refusal(self, request: Request) -> str | None:
        """Return why a request cannot be answered as it is meant; None if it can. Options that only have no
        effect are noted once in the log.
        """
        asked, can = request.asked, self._can
        for name in without_effect(asked.config, can):
            if name not in self._noted:
                self._noted.add(name)
                _log.warning('%s has no effect on %s', name, can.kind)
        if can.way.takes_ids and can.context_length and len(asked.goal) >= can.context_length:
            return (
                f'the prompt has {len(asked.goal)} tokens, and the server holds {can.context_length}:'
                ' shorten it'
            )
        if asked.goal.spans and not can.images:
            return 'this server takes no pictures the way it is talked to'
        calls, form = request.calls, request.progress.answer_form
        if calls is not None and calls.begins_with_call and steps_of(calls, can) is None:
            return call_refusal(calls.choice, can)
        return config_refusal(asked.config, can) or (
            form_refusal(form.response_format, can) if form is not None else None
        )


def call_refusal(choice: str, can: Capabilities) -> str:
    """Return that a reply cannot be made to call a tool on a server."""
    return (
        f'tool_choice={choice} is not possible: calls of tools can only be checked with {can.kind} in'
        f' {can.way}, not demanded'
    )


def config_refusal(config: GenerationConfig, can: Capabilities) -> str | None:
    """Return which option is not possible on a server; None if all are."""
    if config.probabilities and not can.probabilities:
        return can.no_probabilities
    for name in ('logits_processors', 'functions'):
        if getattr(config, name):
            return f'{name} is not possible with api=openai: the server chooses the tokens'
    return None


def form_refusal(form, can: Capabilities) -> str | None:
    """Return why an answer cannot have a form on a server; None if it can."""
    if form.kind not in can.forms:
        known = ', '.join(sorted(can.forms)) or 'none'
        return (
            f'response_format: {can.kind} keeps no form of the kind {form.kind} (it keeps: {known}): remove'
            ' response_format, or use another server'
        )
    try:
        if STYLES[can.forms[form.kind]](form) is None:
            return f'response_format: {can.kind} takes no {form.source[0] or form.kind} grammar'
    except ValueError as error:
        return f'response_format: {error}'
    return None
