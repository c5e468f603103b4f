"""Holds a call of a tool to its form on servers that take ids: what is certain is written here, the name is a
choice, and the arguments follow their schema, each in a request of its own.

While the model talks, it is free, as with local models. A reply has one call; further ones come in the
replies after its answer.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from ros2_nanochat.answer.call_form import CallForm
from ros2_nanochat.answer.call_format import CallFormat, Slot
from ros2_nanochat.answer.json_arguments import JsonArguments
from ros2_nanochat.answer.response_format import ResponseFormat
from ros2_nanochat.remote.capabilities import Capabilities
from ros2_nanochat.states import StrEnum


def steps_of(calls: CallForm | None, can: Capabilities) -> CallSteps | None:
    """Return the steps of a reply; None if nothing is called, or if calls can only be checked."""
    if calls is None or calls.choice == 'none' or not calls.schemas:
        return None
    return CallSteps(calls) if can.holds_calls and _is_simple(calls.format) else None


def _is_simple(call_format: CallFormat) -> bool:
    kinds = [part if isinstance(part, Slot) else '' for part in call_format.slots]
    has_slots = any(isinstance(part, Slot) for part in call_format.head)
    return (
        kinds == [Slot.NAME, '', Slot.ARGUMENTS]
        and not has_slots
        and isinstance(call_format.arguments, JsonArguments)
    )


class _State(StrEnum):
    TALK = 'talk'
    NAME = 'name'
    ARGUMENTS = 'arguments'
    LOOSE = 'loose'  # the model wrote something else after the opening
    DONE = 'done'


@dataclass(frozen=True)
class Step:
    """What comes next in a reply.

    Attributes:
        certain: Text that follows in any case.
        form: The form of what the model writes after that; None if it is free.
        is_last: Nothing follows the certain text.
    """

    certain: str = ''
    form: ResponseFormat | None = None
    is_last: bool = False


class CallSteps:
    """The steps of one reply.

    Args:
        calls: What may be called.
    """

    def __init__(self, calls: CallForm):
        call_format, self._schemas = calls.format, calls.schemas
        names = [calls.choice] if calls.choice in calls.schemas else [*calls.schemas]
        head, separator = ''.join(call_format.head), str(call_format.slots[1])
        self._heads = {f'{head}{name}{separator}': name for name in names}
        self._end = call_format.end
        self._state = _State.NAME if calls.begins_with_call else _State.TALK

    @property
    def talks(self) -> bool:
        """Whether the model is free, until a call begins."""
        return self._state is _State.TALK

    def resumable(self, call: str) -> bool:
        """Whether another server can continue here, after this text of the call."""
        return self.talks or any(head.startswith(call) for head in self._heads)

    def next(self, call: str) -> Step | None:
        """Return the next step; None if the reply is complete.

        Args:
            call: The text of the call so far, from its opening on.
        """
        if self._state is _State.TALK and call:
            self._state = _State.NAME
        if self._state is _State.NAME:
            return self._after(call)
        if self._state is _State.ARGUMENTS:
            self._state = _State.DONE
            return Step(self._end, is_last=True)
        return None

    def here(self, call: str) -> Step:
        """Return the step at which a reply begins, or begins again on another server."""
        return Step() if self.talks else self._after(call)

    def _after(self, call: str) -> Step:
        rests = {head[len(call) :]: name for head, name in self._heads.items() if head.startswith(call)}
        if not rests:
            self._state = _State.LOOSE
            return Step()
        certain = os.path.commonprefix([*rests])
        if len(rests) > 1:
            return Step(
                certain, ResponseFormat('choice', '', alternatives=tuple(r[len(certain) :] for r in rests))
            )
        schema = self._schemas[rests[certain]]
        if not schema.get('properties'):
            self._state = _State.DONE
            return Step(f'{certain}{{}}{self._end}', is_last=True)
        self._state = _State.ARGUMENTS
        return Step(certain, ResponseFormat('schema', '', schema=dict(schema)))
