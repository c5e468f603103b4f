"""Services and parameters as tools: each call is a request, its answer the response."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rcl_interfaces.msg import ParameterType
from rcl_interfaces.srv import GetParameters
from rclpy.callback_groups import ReentrantCallbackGroup

from ros2_nanochat.robot.tool_entries import ToolEntry
from ros2_nanochat.robot.tool_record import Reports
from ros2_nanochat.ros.tools.arguments import Arguments
from ros2_nanochat.ros.tools.attempt import Attempt, Sighting
from ros2_nanochat.ros.tools.undoing import Undoing
from ros2_nanochat.ros.tools.values import to_data


class ServiceCalls:
    """Performs the calls of a tool that is a service.

    Args:
        node: The node.
        entry: The tool.
        cls: Type of the service.
        arguments: Its arguments.
    """

    def __init__(self, node: Any, entry: ToolEntry, cls: Any, arguments: Arguments):
        self._node, self._entry, self._arguments = node, entry, arguments
        self._client = node.create_client(cls, entry.target, callback_group=ReentrantCallbackGroup())
        self._sighting = Sighting(self._client.service_is_ready)
        self._undo = Undoing(node, entry, cls, client=self._client)
        self.acts_on = bool(self._undo)

    def follow(self) -> None:
        """Look for the service. Call this now and then."""
        self._sighting.look()

    def start(self, arguments: Mapping[str, Any], run: Reports) -> None:
        """Send the request as soon as the service is there."""
        request = self._arguments.message(arguments)
        run.handle = Attempt(
            lambda: self._send(request, run),
            self._sighting.look,
            f'the service {self._client.srv_name}',
            self._sighting.is_settled,
        )

    def _send(self, request: Any, run: Reports) -> Any:
        future = self._client.call_async(request)
        future.add_done_callback(lambda future: self._answered(future, run))
        run.taken()
        return future

    def _answered(self, future: Any, run: Reports) -> None:
        if future.cancelled():
            return
        try:
            response = future.result()
            data = to_data(response)
        except Exception as error:  # of the middleware
            run.fail(f'{self._client.srv_name} failed: {error}')
            return
        text = json.dumps(data, ensure_ascii=False)
        if data.get('success') is False:
            run.fail(f'{self._client.srv_name} answered: {text}')
        else:
            run.succeed(text if data else 'done')

    def lost(self, run: Reports) -> str:
        """Return why no answer will come, '' if it may."""
        return run.handle.lost()

    def stop(self, run: Reports) -> None:
        """Forget the request: a service cannot be cancelled."""
        if run.handle.sent is None:
            run.was_cancelled('it was not sent')
        elif not self._undo:
            self._client.remove_pending_request(run.handle.sent)
            run.was_cancelled('its answer is no longer awaited, the service may still do it')

    def undo(self, again: bool = False) -> None:
        """Do what the file names as `on_cancel`."""
        self._undo(again)

    def preview(self, arguments: Mapping[str, Any]) -> str:
        """Return what would be called."""
        return f'the service {self._client.srv_name} would be called with {json.dumps(dict(arguments))}'

    def close(self) -> None:
        """Close the client."""
        self._undo.close()
        self._node.destroy_client(self._client)


class ParameterReads:
    """Performs the calls of a tool that reads a parameter of another node.

    Args:
        node: The node.
        entry: The tool.
    """

    acts_on = False

    def __init__(self, node: Any, entry: ToolEntry):
        self._node, self._entry = node, entry
        self._client = node.create_client(
            GetParameters, f'{entry.target}/get_parameters', callback_group=ReentrantCallbackGroup()
        )
        self._sighting = Sighting(self._client.service_is_ready)

    def follow(self) -> None:
        """Look for the node. Call this now and then."""
        self._sighting.look()

    def start(self, arguments: Mapping[str, Any], run: Reports) -> None:
        """Ask for the parameter as soon as the node is there."""
        run.handle = Attempt(
            lambda: self._send(run),
            self._sighting.look,
            f'the node {self._entry.target}',
            self._sighting.is_settled,
        )

    def _send(self, run: Reports) -> Any:
        future = self._client.call_async(GetParameters.Request(names=[self._entry.parameter]))
        future.add_done_callback(lambda future: self._answered(future, run))
        run.taken()
        return future

    def _answered(self, future: Any, run: Reports) -> None:
        if future.cancelled():
            return
        values = future.result().values
        value = values[0] if values else None
        name = _FIELDS.get(value.type) if value is not None else None
        if name is None:
            run.fail(f'{self._entry.target} has no parameter {self._entry.parameter}')
            return
        shown = to_data(value, [name])[name]
        run.succeed(json.dumps({self._entry.parameter: shown}, ensure_ascii=False))

    def lost(self, run: Reports) -> str:
        """Return why no answer will come, '' if it may."""
        return run.handle.lost()

    def stop(self, run: Reports) -> None:
        """Forget the request."""
        if run.handle.sent is not None:
            self._client.remove_pending_request(run.handle.sent)
        run.was_cancelled('its answer is no longer awaited')

    def undo(self, again: bool = False) -> None:
        """Do nothing: reading changes nothing."""

    def preview(self, arguments: Mapping[str, Any]) -> str:
        """Return what would be called."""
        return f'the parameter {self._entry.parameter} of {self._entry.target} would be read'

    def close(self) -> None:
        """Close the client."""
        self._node.destroy_client(self._client)


_FIELDS = {
    ParameterType.PARAMETER_BOOL: 'bool_value',
    ParameterType.PARAMETER_INTEGER: 'integer_value',
    ParameterType.PARAMETER_DOUBLE: 'double_value',
    ParameterType.PARAMETER_STRING: 'string_value',
    ParameterType.PARAMETER_BYTE_ARRAY: 'byte_array_value',
    ParameterType.PARAMETER_BOOL_ARRAY: 'bool_array_value',
    ParameterType.PARAMETER_INTEGER_ARRAY: 'integer_array_value',
    ParameterType.PARAMETER_DOUBLE_ARRAY: 'double_array_value',
    ParameterType.PARAMETER_STRING_ARRAY: 'string_array_value',
}
