"""How messages, help texts and tables write the values of options."""

from __future__ import annotations

from typing import Any

from ros2_nanochat.errors import shorten


def invalid(name: str, value: str | None, allowed: str) -> ValueError:
    """Return the error for a wrong value.

    Args:
        name: Name of the option.
        value: The value as text; None if it must not be shown.
        allowed: What is allowed, in words.
    """
    return ValueError(f'{name}{"" if value is None else "=" + value} is not valid: {allowed}')


def shown(value: Any) -> str:
    """Return a value for a message: on one line, shortened."""
    return shorten(repr(value))


def shown_default(value: Any) -> str:
    """Return a default for help texts and tables."""
    if isinstance(value, bool):
        return 'true' if value else 'false'
    return 'none' if value in (None, ()) else figure(value)


def figure(value: float | str) -> str:
    """Return a number or text as it is shown, without superfluous digits."""
    return f'{value:.12g}' if isinstance(value, float) else str(value)
