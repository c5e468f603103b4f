"""What an option is. Each is declared once, as a dataclass field made by `option()`.

The node's parameters, the arguments of the terminal programs, the `Chat` action, `config/chat.yaml` and
docs/options.md are made from these declarations or tested against them. No option is known here by name.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import math
import numbers
import os
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ros2_nanochat.config.wording import figure, invalid, shown

_KINDS = {bool: 'true or false', int: 'a whole number', float: 'a number', str: 'text'}


@dataclass(frozen=True)
class Option:
    """The declaration of one option.

    Args:
        text: What the option is for, without a full stop.
        otherwise: What happens without a value; for an option that may be None.
        low, high: Range of a number, both included.
        above: Lower bound of a number, itself not included.
        special: Values with a meaning of their own, and what they mean.
        choices: The allowed values of a string. true and false stand for `on` and `off` among them.
        item: Checks one value of an option that takes several.
        valid: Checks a value, for rules that the other fields cannot express.
        allowed: The allowed values, in words; derived from the other fields if empty.
        python: In Python the value may also be something other than text; its user checks it.
        secret: The value is never shown.
        live: The option may change while the model is loaded.
        parameter: Name of the node's parameter if it differs; None if the node has none.
        unset: Value of the parameter that stands for None, since a parameter always has a value.
        program: Default of the programs; None for the library's default.
        argument: Whether the terminal programs have an argument for it.
        metavar: Placeholder for the value in their help.
        goal: Value of the `Chat` action's field that keeps the robot's own; None if the action has no such
            field. If it is below 0, every value below 0 does.
    """

    text: str = ''
    otherwise: str = ''
    low: float | None = None
    above: float | None = None
    high: float | None = None
    special: Mapping[Any, str] = dataclasses.field(default_factory=dict)
    choices: Sequence[str] = ()
    item: Callable[[Any], bool] | None = None
    valid: Callable[[Any], bool] | None = None
    allowed: str = ''
    python: bool = False
    secret: bool = False
    live: bool = False
    parameter: str | None = ''
    unset: Any = None
    program: Any = None
    argument: bool = True
    metavar: str = ''
    goal: Any = None
    # Taken from the dataclass field; do not pass these to `option()`:
    name: str = ''
    kind: type = str
    optional: bool = False
    default: Any = None

    def check(self, value: Any) -> Any:
        """Check a value and return it in the form that the dataclass keeps.

        Raises:
            ValueError: One line with the option, the value and what is allowed.
        """
        value = self.chosen(_native(value))
        if self.kind is tuple:
            return self._several(value)
        if (value is None and self.optional) or (self.python and not isinstance(value, str)):
            return value
        if not self._is_valid(value):
            raise self.error(value)
        return self.kind(value) if issubclass(self.kind, enum.Enum) else value

    def chosen(self, value: Any) -> Any:
        """Return the choice that true or false stands for; other values as they are."""
        word = 'on' if value is True else 'off' if value is False else None
        return word if word in self.choices else value

    def error(self, value: Any, name: str = '', unset: Any = None) -> ValueError:
        """Return the error for a wrong value of the option, or of a parameter `name` whose `unset` stands for
        None.
        """
        return invalid(name or self.name, None if self.secret else shown(value), self.allowed_values(unset))

    def allowed_values(self, unset: Any = None) -> str:
        """Return what a value may be, in words: `a whole number from 1 to 512, or none`; `unset`, if given,
        for `none`.
        """
        text = self.allowed or self.range_text
        text += ''.join(f', {figure(value)} ({meaning})' for value, meaning in self.special.items())
        if unset is not None and self.otherwise:
            return f'{text}, or {figure(unset) or "empty"} ({self.otherwise})'
        return f'{text}, or none' if self.optional else text

    def explained(self, unset: Any = None) -> str:
        """Return what the option and its special values mean. `unset` is the parameter's value that stands
        for None.
        """
        meanings = dict(self.special)
        if unset is not None and self.otherwise:
            meanings[unset] = self.otherwise
        return '; '.join(
            [self.text, *(f'{figure(each) or "empty"}: {text}' for each, text in meanings.items())]
        )

    @property
    def minimum(self) -> float | None:
        """The lower end of the range, included or not."""
        return self.low if self.above is None else self.above

    @property
    def program_default(self) -> Any:
        """The default of the programs; None if they need not set it."""
        return self.default if self.program is None else self.program

    def keeps(self, value: Any) -> bool:
        """Return whether a value of the goal's field keeps the robot's own value."""
        if isinstance(self.goal, (int, float)) and self.goal < 0:
            return bool(value < 0)
        return not value if isinstance(self.goal, (list, str)) else bool(value == self.goal)

    @property
    def range_text(self) -> str:
        """The type and the range in words, without special values."""
        if self.choices:
            return f'one of {", ".join(self.choices)}'
        text = _KINDS[self.kind]
        if self.above is not None:
            limit = '' if self.high is None else f' and up to {figure(self.high)}'
            return f'{text} over {figure(self.above)}{limit}'
        if self.low is not None and self.high is not None:
            return f'{text} from {figure(self.low)} to {figure(self.high)}'
        return f'{text} of at least {figure(self.low)}' if self.low is not None else text

    def _is_valid(self, value: Any) -> bool:
        if self.kind is bool:
            return isinstance(value, bool)
        if self.kind in (int, float):
            return self._is_number(value)
        if not isinstance(value, str):
            return False
        return value in self.choices if self.choices else self.valid is None or self.valid(value)

    def _is_number(self, value: Any) -> bool:
        of_kind = numbers.Integral if self.kind is int else numbers.Real
        if isinstance(value, bool) or not isinstance(value, of_kind):
            return False
        number: Any = value
        if not math.isfinite(number):
            return False
        return (
            (self.low is None or number >= self.low)
            and (self.above is None or number > self.above)
            and (self.high is None or number <= self.high)
        )

    def _several(self, value: Any) -> tuple:
        """The values of an option that takes one, none, or several in a list, NumPy array or the like."""
        if value is None:
            return ()
        if isinstance(value, (str, numbers.Integral)) or callable(value):
            items = [value]
        elif isinstance(value, Iterable) and not isinstance(value, (bytes, bytearray, Mapping)):
            items = list(value.reshape(-1).tolist() if hasattr(value, 'reshape') else value)
        else:
            raise self.error(value)
        items = [_native(item) for item in items]
        if self.item is not None and not all(map(self.item, items)):
            raise self.error(value)
        return tuple(items)


def option(default: Any, text: str, **declaration: Any) -> Any:
    """Return a dataclass field that declares an option; `declaration` holds fields of `Option`."""
    declared = Option(text, **declaration)
    return dataclasses.field(default=default, repr=not declared.secret, metadata={'option': declared})


class Options:
    """Base class of the dataclasses of options: checks the values, and lists the options in the docstring."""

    def __init_subclass__(cls) -> None:
        lines = [
            f'        {name}: {field.metadata["option"].text}.'
            for name, field in vars(cls).items()
            if isinstance(field, dataclasses.Field) and 'option' in field.metadata
        ]
        cls.__doc__ = '\n'.join([(cls.__doc__ or '').rstrip(), '', '    Args:', *lines, '    '])

    def __post_init__(self) -> None:
        for declared in options_of(type(self)):
            object.__setattr__(self, declared.name, declared.check(getattr(self, declared.name)))


def _options_of(config_class: Any) -> tuple[Option, ...]:
    types = typing.get_type_hints(config_class)
    return tuple(
        dataclasses.replace(
            field.metadata['option'],
            name=field.name,
            default=field.default,
            **_of_type(types[field.name]),
            **_choices(types[field.name]),
        )
        for field in dataclasses.fields(config_class)
        if 'option' in field.metadata
    )


options_of: Callable[[type], tuple[Option, ...]] = functools.cache(_options_of)
"""The options that a dataclass declares, in order."""


def _of_type(annotation: Any) -> dict[str, Any]:
    if annotation is Any:
        return {'kind': str, 'optional': True}
    parts = typing.get_args(annotation) if typing.get_origin(annotation) is not tuple else ()
    kinds = [part for part in parts if part is not type(None)]
    if typing.get_origin(annotation) is tuple:
        return {'kind': tuple}
    return {'kind': kinds[0] if kinds else annotation, 'optional': len(kinds) < len(parts)}


def _choices(annotation: Any) -> dict[str, Any]:
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return {'choices': tuple(map(str, annotation))}
    return {}


def program_defaults(config_class: type) -> Any:
    """Return an instance with the defaults of the programs: the node and the terminal."""
    options = options_of(config_class)
    return config_class(**{each.name: each.program_default for each in options})


def names(config_class: type) -> list[str]:
    """Return the names of a dataclass's fields."""
    return [field.name for field in dataclasses.fields(config_class)]


def reject_unknown(options: Iterable[str], allowed: Sequence[str], where: str) -> None:
    """Raise a ValueError that names unknown options of `where`, a similar name, and all that are allowed."""
    unknown = [name for name in options if name not in allowed]
    if unknown:
        import difflib  # takes 5 ms, so only for a wrong name

        near = difflib.get_close_matches(unknown[0], allowed, n=1)
        hint = f' (did you mean {near[0]!r}?)' if near else ''
        raise ValueError(
            f'{where} has no option {", ".join(map(repr, unknown))}{hint}. Options:'
            f' {", ".join(sorted(allowed))}'
        )


def _native(value: Any) -> Any:
    """A plain number, bool or string, from a NumPy scalar or a path."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, 'dtype') and getattr(value, 'ndim', None) == 0:
        return value.item()
    return value


Config = TypeVar('Config')


def whole(kind: type[Config], config: Config | None, name: str) -> Config:
    """Return the options that were passed as one object, or the defaults.

    Raises:
        ValueError: The object passed as the argument `name` is of another class.
    """
    if config is None:
        return kind()
    if not isinstance(config, kind):
        raise ValueError(f'{name} of type {type(config).__name__} is not valid: a {kind.__name__}')
    return config
