"""How values of options are written in messages, help texts and tables."""

from __future__ import annotations

from typing import Any

from ros2_nanochat.errors import shorten


def invalid(name: str, value: str | None, allowed: str) -> ValueError:
    """The error about a wrong value; value: as it is shown, None if it must not be."""
    return ValueError(f'{name}{"" if value is None else "=" + value} is not valid: {allowed}')


def shown(value: Any) -> str:
    """A value as messages show it: one line, shortened."""
    return shorten(repr(value))


def shown_default(value: Any) -> str:
    """A default as help texts and tables show it."""
    if isinstance(value, bool):
        return 'true' if value else 'false'
    return 'none' if value in (None, ()) else figure(value)


def figure(value: float | str) -> str:
    return f'{value:.12g}' if isinstance(value, float) else str(value)
