"""What a tool does when a call is stopped (`on_cancel`): publish a message, or call a service."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ros2_nanochat.errors import one_line
from ros2_nanochat.robot.tool_entries import NO_UNDOING, ToolEntry
from ros2_nanochat.robot.tool_policy import ToolKind
from ros2_nanochat.ros.message_schema import message_schema, to_message
from ros2_nanochat.ros.tools.interfaces import declared_type, interface_class

_DEPTH = 10


class Undoing:
    """What undoes the calls of one tool. Opens its publisher or client at once, so that it is connected when
    it is needed.

    Args:
        node: The node.
        entry: The tool.
        cls: Interface of the tool itself.
        publisher: The tool's own publisher, for a message on its own topic.
        client: The tool's own client, for a request to its own service.

    Raises:
        ValueError: The values do not fit the type, or the type is not known.
    """

    def __init__(self, node: Any, entry: ToolEntry, cls: Any, publisher: Any = None, client: Any = None):
        self._node = node
        self._publisher, self._client, self._message, self._close = publisher, client, None, _nothing
        given, where = entry.on_cancel, f'{entry.where}.on_cancel'
        if given is None or given == NO_UNDOING:
            self._publisher = self._client = None
            return
        kind = next((kind for kind in (ToolKind.PUBLISH, ToolKind.SERVICE) if kind in given), None)
        if kind is None:
            self._message = message_of(cls.Request if entry.kind is ToolKind.SERVICE else cls, given, where)
            return
        target, type_name = given[kind], given.get('type', '')
        type_name = type_name or declared_type(node, target, kind, where)
        if not type_name:
            raise ValueError(f'{where}: nobody has {target} yet, so name its type')
        other = interface_class(type_name, kind, where)
        values = given.get('values') or {}
        if kind is ToolKind.PUBLISH:
            self._message = message_of(other, values, where)
            self._publisher, self._client = node.create_publisher(other, target, _DEPTH), None
            self._close = lambda: node.destroy_publisher(self._publisher)
        else:
            self._message = message_of(other.Request, values, where)
            self._publisher, self._client = None, node.create_client(other, target)
            self._close = lambda: node.destroy_client(self._client)

    def __bool__(self) -> bool:
        return self._message is not None

    def __call__(self, again: bool = False) -> None:
        """Undo. A message goes out `again` when the call has ended: what it did meanwhile counts no more."""
        if self._message is None:
            return
        if self._publisher is not None:
            stamp(self._message, self._node)
            self._publisher.publish(self._message)
        elif not again:
            self._client.call_async(self._message)

    def close(self) -> None:
        """Close what was opened for it."""
        self._close()


def message_of(cls: Any, values: Mapping[str, Any], where: str) -> Any:
    """Return a message with some values, the others at their defaults.

    Raises:
        ValueError: A field is not there, or a value does not fit it.
    """
    known = message_schema(cls)
    try:
        _check_names(known, values)
        return to_message(cls, values)
    except Exception as error:  # the setters of generated messages assert
        raise ValueError(f'{where} does not fit {cls.__name__}: {one_line(error)}') from None


def _check_names(schema: dict, values: Any) -> None:
    if 'properties' not in schema:
        return
    if not isinstance(values, Mapping):
        raise ValueError(f'{values!r} is no mapping')
    for name, value in values.items():
        if name not in schema['properties']:
            raise ValueError(f'there is no field {name!r}: {", ".join(schema["properties"])}')
        _check_names(schema['properties'][name], value)


def stamp(message: Any, node: Any) -> None:
    """Set the stamp of a message that has a header."""
    if message.get_fields_and_field_types().get('header') == 'std_msgs/Header':
        message.header.stamp = node.get_clock().now().to_msg()


_nothing: Callable[[], None] = lambda: None  # noqa: E731
