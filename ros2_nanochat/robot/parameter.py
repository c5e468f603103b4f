"""A ROS parameter: a declared option with a type and a range that ROS supports, and a value for "not set"."""

from __future__ import annotations

import enum
import sys
from dataclasses import dataclass
from typing import Any

from ros2_nanochat.config import Option
from ros2_nanochat.config.wording import invalid, shown

_TYPES = {
    bool: 'true or false',
    int: 'a whole number',
    float: 'a number',
    str: 'text',
    list: 'a list of strings',
}
_MAX_CHARACTERS = 4 << 20  # of a text, or of all texts of a list: more than fits into the longest contexts
_INT64 = 2**63 - 1
_FLOAT = sys.float_info.max


@dataclass(frozen=True)
class Parameter:
    """One parameter.

    Attributes:
        name: Its name.
        option: The option it sets.
        default: Its default, whose type is the parameter's type.
        low: The smallest number allowed, None if ROS cannot limit it.
        high: The largest number allowed, None if ROS cannot limit it.
        choices: The allowed strings; () allows any.
    """

    name: str
    option: Option
    default: Any
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()

    @classmethod
    def of(cls, option: Option) -> Parameter:
        """Return the parameter of an option.

        If the option may be unset, the default is "not set", unless it is optional and has its own default.
        """
        default = option.program_default
        if default is None or (option.unset is not None and not option.optional):
            default = option.unset
        if isinstance(default, enum.Enum):
            default = default.value
        low, high = option.minimum, option.high
        if low is not None and option.unset is not None:
            low = min(low, option.unset)
        if option.kind is int:
            low, high = -_INT64 if low is None else low, _INT64 if high is None else high
        elif option.kind is float:
            low, high = -_FLOAT if low is None else low, _FLOAT if high is None else high
        choices = (*[''] * (option.unset == ''), *option.choices) if option.choices else ()
        return cls(option.parameter or option.name, option, default, low, high, choices)

    @property
    def live(self) -> bool:
        """Whether it may change while the model is loaded."""
        return self.option.live

    @property
    def text(self) -> str:
        """What it is for, and what its special values mean, without a full stop."""
        return self.option.explained(self.option.unset)

    def check(self, value: Any, name: str | None = None) -> Any:
        """Return a value in the type of the default.

        Args:
            value: The value.
            name: What errors call the parameter; None uses its own name.

        Raises:
            ValueError: It is not valid; the text has the name, the value and what is allowed.
        """
        name, kind, value = name or self.name, type(self.default), self.option.chosen(value)
        if kind is float and type(value) is int:
            value = float(value)
        if kind is list and (isinstance(value, (list, tuple)) or hasattr(value, 'tolist')):
            value = list(value)
        if type(value) is not kind or (kind is list and not all(isinstance(item, str) for item in value)):
            raise invalid(name, shown(value), f'it has to be {_TYPES[kind]}')
        self._check_size(value, name)
        if kind is not list and value != self.option.unset:
            try:
                self.option.check(value)
            except ValueError:
                raise self.option.error(value, name, self.option.unset) from None
        return value

    @staticmethod
    def _check_size(value: Any, name: str) -> None:
        """Refuse a text that nobody can mean, before it is parsed."""
        texts = [value] if isinstance(value, str) else value if isinstance(value, list) else []
        size = max(sum(map(len, texts)), len(texts))
        if size > _MAX_CHARACTERS:
            raise ValueError(
                f'{name} has {size:,} characters, and at most {_MAX_CHARACTERS:,} are taken: shorten it'
            )

    def to_option(self, value: Any) -> Any:
        """Return the value of the option for a checked value of the parameter."""
        if isinstance(value, list):
            return tuple(text for text in value if text)
        return None if value == self.option.unset else value
