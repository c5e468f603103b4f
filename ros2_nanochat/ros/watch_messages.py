"""Standing questions and observations as messages, and back."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from nanochat.msg import Observation as ObservationMessage
from nanochat.msg import Watch as WatchMessage
from nanochat.srv import SetWatch

from ros2_nanochat.robot.observations import Observation
from ros2_nanochat.robot.watch import FIELDS, Watch, read_watch
from ros2_nanochat.robot.watch_standing import Standing
from ros2_nanochat.ros.message_fields import header_of, usage_fields
from ros2_nanochat.ros.message_schema import read_format
from ros2_nanochat.ros.typed_reply import form_text

_FORM_ERROR = 'a form from a file'


def fields_of(message: Any, names: Sequence[str] = FIELDS) -> dict[str, Any]:
    """Return the fields of a standing question in a message or goal."""
    values = {name: getattr(message, name) for name in names}
    for name in ('max_rate', 'timeout', 'spacing'):
        if name in values:
            values[name] = round(values[name], 6)  # float32 in the message: 0.1 arrives as 0.10000000149
    return values


def watch_of(message: Any, cameras: Collection[str]) -> Watch:
    """Return the standing question of a message or goal.

    Raises:
        ValueError: A field is not valid; one line.
    """
    return read_watch(fields_of(message), cameras, read_format)


def changed_watch(watch: Watch, request: SetWatch.Request, cameras: Collection[str]) -> Watch:
    """Return a standing question with the changes of a request.

    Raises:
        ValueError: A field is unknown or not valid; one line.
    """
    given, default = fields_of(request.watch), fields_of(WatchMessage())
    unknown = [name for name in request.fields if name not in FIELDS or name == 'name']
    if unknown:
        allowed = ', '.join(name for name in FIELDS if name != 'name')
        raise ValueError(f'fields: {unknown[0][:200]!r} is not valid: of {allowed}')
    wanted = request.fields or [name for name in FIELDS if name != 'name' and given[name] != default[name]]
    if not wanted:
        raise ValueError('nothing is to be changed: set fields of `watch`, or name them in `fields`')
    values = {name: getattr(watch, name) for name in FIELDS}
    values.update({name: given[name] for name in wanted})
    changed = read_watch(values, cameras, read_format)
    return replace(changed, name=watch.name)


def watch_message(standing: Standing) -> WatchMessage:
    """Return the message of a standing question and its state."""
    watch = standing.watch
    values = {name: getattr(watch, name) for name in FIELDS}
    values['response_format'] = _form(watch)
    values['cameras'] = list(watch.cameras)
    return WatchMessage(**values, state=standing.state, source=standing.source, note=standing.note)


def _form(watch: Watch) -> str:
    try:
        return form_text(watch.response_format)
    except ValueError:
        return _FORM_ERROR


def observation_message(robot: str, observation: Observation) -> ObservationMessage:
    """Return the message of an observation."""
    watch, usage = observation.watch, observation.usage
    return ObservationMessage(
        header=header_of(observation.stamp, observation.frame_id),
        robot=robot,
        name=watch.name,
        question=watch.question,
        cameras=list(watch.cameras),
        index=observation.index,
        text=observation.text,
        value=json.dumps(observation.value, ensure_ascii=False) if observation.valid else '',
        number=observation.number,
        probability=observation.probability,
        valid=observation.valid,
        changed=observation.changed,
        unchanged=observation.unchanged,
        in_a_row=observation.in_a_row,
        age=observation.age,
        skipped_frames=min(observation.skipped_frames, 2**32 - 1),
        encode_time=observation.encode_time,
        model_time=usage.model_time,
        answer_time=observation.answer_time,
        **usage_fields(usage),
    )
