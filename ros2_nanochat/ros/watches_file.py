"""`watches_file`: the standing questions that start with the node, from YAML.

watches:
  door: {question: 'Is the door open?', response_format: 'yes | no', max_rate: 2.0, only_changes: true}
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection

import yaml

from ros2_nanochat.errors import one_line, shown
from ros2_nanochat.files import decode_text, open_regular
from ros2_nanochat.robot.watch import Watch, read_watch
from ros2_nanochat.robot.watcher import MAX_WATCHES
from ros2_nanochat.ros.message_schema import read_format

_MAX_BYTES = 1 << 20


class _Loader(yaml.SafeLoader):
    """Reads yes, no, on and off as texts, as YAML 1.2 does: they are answers here."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != 'tag:yaml.org,2002:bool']
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver('tag:yaml.org,2002:bool', re.compile(r'(?:true|false)\Z'), list('tf'))


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
        content = yaml.load(decode_text(data), _Loader)  # a SafeLoader
    except OSError as error:
        raise ValueError(f'watches_file={shown(path)} cannot be read: {error.strerror}') from error
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise ValueError(
            f'watches_file={shown(path)} is not YAML: {" ".join(str(error).split())[:200]}'
        ) from error
    entries = content.get('watches') if isinstance(content, dict) and set(content) == {'watches'} else None
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
        if not isinstance(fields, dict) or not all(isinstance(each, str) for each in fields):
            raise ValueError(f'{shown(fields)} is not valid: fields such as  question: Is the door open?')
        if 'name' in fields:
            raise ValueError('the name stands before the fields, not among them')
        return read_watch({**fields, 'name': str(name)}, cameras, lambda form: read_format(form, files=True))
    except Exception as error:
        raise ValueError(f'watches_file={shown(path)}: {shown(name)}: {one_line(error)}') from error
