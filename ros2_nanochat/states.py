"""The states and reasons that the rooms share. Each is a string: it prints, compares and goes into a ROS
message as it is.
"""

from __future__ import annotations

import sys

if sys.version_info >= (3, 11):
    from enum import StrEnum
else:
    from enum import Enum

    class StrEnum(str, Enum):
        """`enum.StrEnum` of Python 3.11."""

        __str__ = str.__str__

        @staticmethod
        def _generate_next_value_(name, start, count, last_values):
            return name.lower()


class FinishReason(StrEnum):
    """Why a reply ended."""

    STOP = 'stop'
    """The model ended it, or a stop string was found."""
    LENGTH = 'length'
    """`max_new_tokens` or the context length was reached."""
    CANCELLED = 'cancelled'
    """The caller stopped it, or the model was closed."""
    INTERRUPTED = 'interrupted'
    """The user spoke again."""
    DEADLINE = 'deadline'
    """The time was up; the text so far stays."""
    REFUSED = 'refused'
    """It never started: the prompt does not fit, or too many requests wait."""
    ERROR = 'error'
    """Something failed; the reply's `error` says what."""

    @property
    def failed(self) -> bool:
        """Whether something went wrong; the reply's `error` explains it."""
        return self in (FinishReason.REFUSED, FinishReason.ERROR)

    @property
    def complete(self) -> bool:
        """Whether the model wrote its whole reply: nothing failed and no one ended it early."""
        return self in (FinishReason.STOP, FinishReason.LENGTH)


class NodeState(StrEnum):
    """The ROS node's state in its life cycle."""

    UNCONFIGURED = 'unconfigured'
    """No model is loaded."""
    CONFIGURING = 'configuring'
    INACTIVE = 'inactive'
    """The model is loaded; no topic is open."""
    ACTIVATING = 'activating'
    ACTIVE = 'active'
    DEACTIVATING = 'deactivating'
    CLEANING_UP = 'cleaning up'
    SHUTTING_DOWN = 'shutting down'
    FINALIZED = 'finalized'


__all__ = ['FinishReason', 'NodeState', 'StrEnum']
