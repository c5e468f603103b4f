"""Reads YAML that users write: no key twice, and one line for each mistake."""

from __future__ import annotations

import re
from typing import Any

from ros2_nanochat.errors import one_line, shown


def load_yaml(text: str, words: bool = False) -> Any:
    """Return what a text holds. Nothing in it can run code.

    Args:
        text: The text.
        words: yes, no, on and off are texts, as in YAML 1.2.

    Raises:
        ValueError: It is not YAML, a key is no text or stands twice, or aliases make it too large. One line.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """Refuses a key that stands twice: the second would silently replace the first."""

    def mapping(loader: Any, node: Any) -> dict:
        seen: dict = {}
        for key_node, _ in node.value:
            key = loader.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise ValueError(f'line {key_node.start_mark.line + 1}: the key {shown(key)} is not text')
            if key in seen:
                raise ValueError(f'line {key_node.start_mark.line + 1}: {shown(key)} stands twice')
            seen[key] = None
        return {
            loader.construct_object(key, deep=True): loader.construct_object(value, deep=True)
            for key, value in node.value
        }

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    if words:
        Loader.yaml_implicit_resolvers = {
            first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOL]
            for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }
        Loader.add_implicit_resolver(_BOOL, re.compile(r'(?:true|false)\Z'), list('tf'))
    try:
        content = yaml.load(text, Loader)  # a SafeLoader
    except Exception as error:  # YAML raises its own, and those of Python
        raise ValueError(_line_of(error)) from error
    if _is_too_large(content):
        raise ValueError(f'it stands for more than {_MOST_VALUES:,} values: its aliases multiply')
    return content


_BOOL = 'tag:yaml.org,2002:bool'
_MOST_VALUES = 100_000


def _is_too_large(content: Any) -> bool:
    """Whether a value has too many parts. A few lines of aliases can stand for billions."""
    left, count = [content], 0
    while left and count <= _MOST_VALUES:
        value = left.pop()
        count += 1
        if isinstance(value, dict):
            left.extend(value.values())
        elif isinstance(value, (list, tuple, set)):
            left.extend(value)
    return count > _MOST_VALUES


def _holds_braces(mark: Any) -> bool:
    """Whether an error is at a brace within a word, such as `/{robot}/lamp`: YAML takes it for a mapping."""
    text, at = mark.buffer or '', mark.pointer
    return text[at : at + 1] == '{' and not text[max(0, at - 1) : at].isspace()


def _line_of(error: Exception) -> str:
    mark, problem = getattr(error, 'problem_mark', None), getattr(error, 'problem', None)
    if isinstance(error, RecursionError):
        return 'it is nested too deeply'
    if mark is not None:
        hint = ' (put a text that holds {...} in quotes)' if _holds_braces(mark) else ''
        return f'line {mark.line + 1}: {one_line(problem or error)}{hint}'
    return one_line(error)
