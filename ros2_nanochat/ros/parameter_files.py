"""Finds parameter files on the command line that have no effect on a node. rcl ignores them silently."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from ros2_nanochat.errors import shorten
from ros2_nanochat.ros.program import split_arguments


def files_without_effect(arguments: Sequence[str], node: str) -> list[str]:
    """Return a warning for each `--params-file` that sets no parameter of a node.

    Args:
        arguments: The command line; rcl has read its files, so they are valid.
        node: Name of the node, with its namespace.
    """
    warnings = []
    for path in _params_files(arguments):
        try:
            with open(path, 'rb') as file:  # as UTF-8 or UTF-16, like rcl
                # BaseLoader accepts any tag, as rcl does: launch writes Python tuples into its files.
                sections = dict(_sections(yaml.load(file, yaml.BaseLoader)))
        except (OSError, ValueError, yaml.YAMLError):
            continue  # rcl could read it, so it has an effect
        if not any(parameters and matches(key, node) for key, parameters in sections.items()):
            found = ', '.join(key for key, parameters in sections.items() if parameters)
            holds = f'holds parameters of {shorten(found)}' if found else 'holds no parameters'
            warnings.append(
                f'{path} sets nothing here: it {holds}, and this node is {node} (/** stands for any node)'
            )
    return warnings


def matches(key: str, node: str) -> bool:
    """Whether a key of a parameter file matches a node: `*` matches one name, `**` any number of names."""
    pattern = ''
    for name in key.strip('/').split('/'):
        pattern += '(/[^/]+)*' if name == '**' else '/' + re.escape(name).replace(r'\*', '[^/]+')
    return re.fullmatch(pattern, node) is not None


def _params_files(arguments: Sequence[str]) -> Iterator[str]:
    for_ros, _ = split_arguments(arguments)
    for option, value in zip(for_ros, for_ros[1:]):
        if option == '--params-file':
            yield value


def _sections(data: Any, space: str = '') -> Iterator[tuple[str, Any]]:
    """Yield the node names of a file with their `ros__parameters`."""
    for name, below in data.items() if isinstance(data, dict) else ():
        if name == 'ros__parameters':
            yield space, below
        else:
            yield from _sections(below, f'{space}/{str(name).strip("/")}')
