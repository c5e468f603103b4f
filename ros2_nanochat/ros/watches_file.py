"""`watches_file`: the standing questions that start with the node, from YAML.

watches:
  door: {question: 'Is the door open?', response_format: 'yes | no', max_rate: 2.0, only_changes: true}
"""

from __future__ import annotations

import os
from collections.abc import Collection

from ros2_nanochat.errors import one_line, shown
from ros2_nanochat.files import decode_text, open_regular
from ros2_nanochat.robot.watch import Watch, read_watch
from ros2_nanochat.robot.watcher import MAX_WATCHES
from ros2_nanochat.robot.yaml_text import load_yaml
from ros2_nanochat.ros.message_schema import read_format

_MAX_BYTES = 1 << 20


def read_watches(path: str, cameras: Collection[str]) -> list[Watch]:
    """Read the standing questions of a file.

    Args:
        path: The file.
        cameras: Names of the robot's cameras, without `image`.

    Raises:
        ValueError: The file cannot be read, or something in it is not valid. The message is one line.
    """
    path = os.path.expanduser(path)
    try:
        with open_regular(path) as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise ValueError(f'it has more than {_MAX_BYTES:,} bytes')
        content = load_yaml(decode_text(data), words=True)  # yes, no, on and off are answers here
    except OSError as error:
        raise ValueError(f'watches_file={shown(path)} cannot be read: {error.strerror}') from error
    except ValueError as error:
        raise ValueError(f'watches_file={shown(path)} cannot be used: {one_line(error)}') from error
    entries = content.get('watches') if isinstance(content, dict) and set(content) == {'watches'} else 0
    entries = {} if entries is None else entries  # all of them are commented out
    if not isinstance(entries, dict):
        raise ValueError(
            f'watches_file={shown(path)} is not valid: it holds  watches:  and under it a name and the'
            ' fields of each standing question'
        )
    if len(entries) > MAX_WATCHES:
        raise ValueError(f'watches_file={shown(path)} is not valid: more than {MAX_WATCHES} questions')
    return [_watch(path, name, fields, cameras) for name, fields in entries.items()]


def _watch(path: str, name, fields, cameras: Collection[str]) -> Watch:
    try:
        if not isinstance(fields, dict):
            raise ValueError(f'{shown(fields)} is not valid: fields such as  question: Is the door open?')
        if 'name' in fields:
            raise ValueError('the name stands before the fields, not among them')
        return read_watch({**fields, 'name': str(name)}, cameras, lambda form: read_format(form, files=True))
    except Exception as error:
        raise ValueError(f'watches_file={shown(path)}: {shown(name)}: {one_line(error)}') from error
