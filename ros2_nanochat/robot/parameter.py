"""A parameter of ROS: a declared option with a type and a range that ROS knows, and a value for "not set"."""

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
_INT64 = 2**63 - 1
_FLOAT = sys.float_info.max


@dataclass(frozen=True)
class Parameter:
    """One parameter.

    Args:
        name: Its name.
        option: What it sets.
        default: Its type is the parameter's.
        low, high: The range of a number, both included; None for what ROS cannot bound.
        choices: The values of a string; () for any.
    """

    name: str
    option: Option
    default: Any
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()

    @classmethod
    def of(cls, option: Option) -> Parameter:
        """The parameter of an option. One that need not be set is not set by default, unless the option is
        optional and has a default of its own.
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
        """What it is for, and what its special values mean; no full stop."""
        return self.option.explained(self.option.unset)

    def check(self, value: Any, name: str | None = None) -> Any:
        """Return a value as the type of the default.

        Raises:
            ValueError: One line with the name, the value and what is allowed.
        """
        name, kind = name or self.name, type(self.default)
        if kind is float and type(value) is int:
            value = float(value)
        if kind is list and (isinstance(value, (list, tuple)) or hasattr(value, 'tolist')):
            value = list(value)
        if type(value) is not kind or (kind is list and not all(isinstance(item, str) for item in value)):
            raise invalid(name, shown(value), f'it has to be {_TYPES[kind]}')
        if kind is not list and value != self.option.unset:
            try:
                self.option.check(value)
            except ValueError:
                raise self.option.error(value, name, self.option.unset) from None
        return value

    def to_option(self, value: Any) -> Any:
        """The value of the option that a checked value of the parameter stands for."""
        if isinstance(value, list):
            return tuple(text for text in value if text)
        return None if value == self.option.unset else value
