"""A standing question: what is asked about a camera's frames again and again, and what ends it.

Knows nothing of models, cameras or ROS; watcher.py asks it.
"""

from __future__ import annotations

import json
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ros2_nanochat.answer.response_format import ResponseFormat, read_response_format
from ros2_nanochat.config import names, reject_unknown
from ros2_nanochat.config.declaration import Options, option
from ros2_nanochat.errors import shorten, shown
from ros2_nanochat.states import StrEnum

IMAGE = 'image'
"""The name of the camera that every robot has: its topic `image`."""

MAX_FRAMES = 16
"""Pictures that one question may have, over all of its cameras."""

_NAME = re.compile(r'[A-Za-z0-9_.-]{1,64}')
_COMPARISON = re.compile(r'(>=|<=|!=|>|<)\s*(-?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)')
_MEANT_AS_COMPARISON = re.compile(r'>=|<=|!=|[<>](?:\s|[-+.]*[0-9]|$)')  # `<none>` is a text
_OPERATORS = {'>=': operator.ge, '<=': operator.le, '!=': operator.ne, '>': operator.gt, '<': operator.lt}
_MAX_QUESTION = 20_000


class WatchState(StrEnum):
    """The state of a standing question."""

    WATCHING = 'watching'
    WAITING = 'waiting'
    """There is no frame that can be used."""
    PAUSED = 'paused'


class WatchEnd(StrEnum):
    """Why a standing question ended."""

    UNTIL = 'until'
    """The answer that it waited for came."""
    TIMEOUT = 'timeout'
    CANCELLED = 'cancelled'
    REMOVED = 'removed'
    ERROR = 'error'


class WatchSource(StrEnum):
    """Where a standing question comes from."""

    FILE = 'file'
    SERVICE = 'service'
    ACTION = 'action'


@dataclass(frozen=True)
class Watch(Options):
    """A standing question. `read_watch` makes one from what a user wrote."""

    name: str = option(
        '',
        'Its name',
        valid=lambda text: bool(_NAME.fullmatch(text)),
        allowed=('letters, digits and _ - . , up to 64 characters'),
    )
    question: str = option(
        '',
        'What is asked about each frame',
        valid=lambda text: bool(text.strip()) and len(text) <= _MAX_QUESTION,
        allowed=f'a text that is not empty, of up to {_MAX_QUESTION:,} characters',
    )
    response_format: Any = option(None, 'Form that each answer must have', python=True)
    cameras: tuple[str, ...] = option(
        (),
        'Cameras whose pictures go into the question, in this order',
        item=lambda name: isinstance(name, str) and bool(name),
        allowed='names of cameras',
    )
    max_rate: float = option(1.0, 'Observations per second at most; 0: no limit', low=0.0, high=100.0)
    until: str = option('', 'The answer that ends it', valid=lambda text: True)
    until_count: int = option(1, 'How many observations in a row must have it', low=1)
    only_changes: bool = option(False, 'Tell only about answers that differ from the one before')
    priority: int = option(0, 'Higher is asked first', low=-1000, high=1000)
    timeout: float = option(0.0, 'Seconds after which it ends; 0: no limit', low=0.0, high=1e9)
    frames: int = option(1, 'Frames of each camera in one question', low=1, high=MAX_FRAMES)
    spacing: float = option(1.0, 'Seconds between these frames', above=0.0, high=3600.0)
    max_new_tokens: int = option(0, "Maximum tokens of an answer; 0: as the robot's", low=0, high=1_000_000)
    form: ResponseFormat | None = field(default=None, repr=False, compare=False)
    """`response_format`, read."""

    @property
    def views(self) -> tuple[tuple[str, ...], int, float]:
        """What two standing questions must share to be asked about the same pictures."""
        return self.cameras, self.frames, self.spacing if self.frames > 1 else 0.0

    def asks_as(self, other: Watch) -> bool:
        """Whether it asks the same as another one, about the same pictures."""
        return (self.question, self.response_format, self.max_new_tokens, self.views) == (
            other.question,
            other.response_format,
            other.max_new_tokens,
            other.views,
        )

    def ends_with(self, value: Any, text: str, number: float) -> bool:
        """Whether an answer is the one that ends the standing question.

        Args:
            value: The answer as JSON gives it.
            text: The same as text.
            number: The same as a number, NaN if it is none.
        """
        wanted = self.until.strip()
        if not wanted:
            return False
        if wanted == text.strip():
            return True
        if match := _COMPARISON.fullmatch(wanted):
            return not math.isnan(number) and _OPERATORS[match[1]](number, float(match[2]))
        try:
            parsed = json.loads(wanted)
        except (ValueError, RecursionError):
            return False
        return bool(parsed == value) or (_is_number(parsed) and parsed == number)


FIELDS = tuple(name for name in names(Watch) if name != 'form')
"""The fields of a standing question that users set."""


def read_watch(
    values: Mapping[str, Any],
    cameras: Iterable[str] | None = None,
    read_form: Callable[[Any], ResponseFormat | None] = read_response_format,
) -> Watch:
    """Return a standing question from what a user wrote.

    Args:
        values: Fields of `Watch`.
        cameras: Names of the robot's cameras, without `image`; None does not check them.
        read_form: Reads `response_format`.

    Raises:
        ValueError: One line with the field, its value and what is allowed.
    """
    reject_unknown(values, FIELDS, 'a standing question')
    if 'question' not in values:
        raise ValueError('question is missing: it is what is asked about each frame')
    given = dict(values)
    for name in ('until', 'question', 'name'):
        if name in given and not isinstance(given[name], str):
            given[name] = _text_of(name, given[name])
    question = given.get('question') or ''
    given['name'] = given.get('name') or name_of(question)
    given['cameras'] = given.get('cameras') or (IMAGE,)
    watch = Watch(**given)
    watch = replace(watch, form=read_form(watch.response_format))
    _check_pictures(watch, cameras)
    _check_until(watch)
    return watch


def name_of(question: str) -> str:
    """Return a name made from a question: its first words."""
    words = re.findall(r'[A-Za-z0-9]+', question.lower())
    return '_'.join(words)[:32].strip('_') or 'watch'


def _text_of(field: str, value: Any) -> str:
    """A value of YAML as the text that it stands for: 3, true, or JSON for `until`."""
    if value is None:
        return ''
    if isinstance(value, (bool, int, float)) or (isinstance(value, (dict, list)) and field == 'until'):
        return json.dumps(value, default=str)
    raise ValueError(f'{field}={shown(value)} is not valid: a text')


def _check_pictures(watch: Watch, cameras: Iterable[str] | None) -> None:
    known = None if cameras is None else [IMAGE, *cameras]
    for camera in watch.cameras:
        if known is not None and camera not in known:
            raise ValueError(
                f'cameras: there is no camera {shorten(repr(camera))}, only {", ".join(known)}: the parameter'
                ' `cameras` gives their topics'
            )
    if len(set(watch.cameras)) < len(watch.cameras):
        raise ValueError(f'cameras={list(watch.cameras)} is not valid: a camera is named twice')
    if watch.frames * len(watch.cameras) > MAX_FRAMES:
        raise ValueError(
            f'frames={watch.frames} of {len(watch.cameras)} cameras are more than {MAX_FRAMES} pictures: take'
            ' fewer'
        )


def _check_until(watch: Watch) -> None:
    """Refuse an `until` that no answer can have: the standing question would never end."""
    wanted, alternatives = watch.until.strip(), () if watch.form is None else watch.form.alternatives
    if not wanted or any(watch.ends_with(text, text, number_of(text)) for text in alternatives):
        return
    if alternatives:
        raise ValueError(f'until={shorten(repr(wanted))} is not valid: one of {" | ".join(alternatives)}')
    if _MEANT_AS_COMPARISON.match(wanted) and not _COMPARISON.fullmatch(wanted):
        raise ValueError(
            f'until={shorten(repr(wanted))} is not valid: a comparison is with a number, such as >= 3; put a'
            ' text that begins like one in double quotes'
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def number_of(value: Any) -> float:
    """Return an answer as a number: itself, its text, or the only number of an object; else NaN."""
    if _is_number(value):
        return float(value)
    if isinstance(value, str):
        try:
            number = float(value.strip())
        except ValueError:
            return math.nan
        return number if math.isfinite(number) else math.nan
    if isinstance(value, Mapping):
        numbers = [each for each in value.values() if _is_number(each)]
        return float(numbers[0]) if len(numbers) == 1 else math.nan
    return math.nan
