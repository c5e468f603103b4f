"""Tools whose calls are requests to a service: the robot's services, and parameters of other nodes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rcl_interfaces.srv import GetParameters, SetParameters
from rclpy.callback_groups import ReentrantCallbackGroup

from ros2_nanochat.robot.tool_entries import ToolEntry
from ros2_nanochat.robot.tool_record import Reports
from ros2_nanochat.ros.tools.arguments import Arguments
from ros2_nanochat.ros.tools.attempt import Sighting
from ros2_nanochat.ros.tools.parameter_values import parameter_of, value_of
from ros2_nanochat.ros.tools.performing import Performing
from ros2_nanochat.ros.tools.undoing import Undoing
from ros2_nanochat.ros.tools.values import to_data


class Requests(Performing):
    """Performs the calls of a tool by requests to one service.

    Args:
        node: The node.
        entry: The tool.
        cls: Type of the service.
        name: Name of the service.
        other: The other side, for messages; '' for the service itself.
    """

    dropped = 'its answer is no longer awaited, the service may still do it'
    """What a call is told that is stopped before its answer."""

    def __init__(self, node: Any, entry: ToolEntry, cls: Any, name: str, other: str = ''):
        self._node, self._entry = node, entry
        self._client = node.create_client(cls, name, callback_group=ReentrantCallbackGroup())
        self._sighting = Sighting(self._client.service_is_ready)
        super().__init__(other or f'the service {self._client.srv_name}')

    def is_there(self) -> bool:
        """Return whether the service is there."""
        return self._sighting.look()

    def knows_us(self) -> bool:
        """Return whether the service knows the client, as far as time tells."""
        return self._sighting.is_settled()

    def send(self, message: Any, run: Reports) -> Any:
        """Send the request."""
        future = self._client.call_async(message)
        future.add_done_callback(lambda future: self._answered(future, run))
        run.taken()
        return future

    def _answered(self, future: Any, run: Reports) -> None:
        if future.cancelled():
            return
        try:
            self.read(future.result(), run)
        except Exception as error:  # of the middleware
            run.fail(f'{self._client.srv_name} failed: {error}')

    def read(self, response: Any, run: Reports) -> None:
        """Report the answer."""
        raise NotImplementedError

    def stop_sent(self, sent: Any, run: Reports) -> None:
        """Forget the request: a service cannot be cancelled. With `on_cancel`, its answer is awaited."""
        if not self._undo:
            self._client.remove_pending_request(sent)
            run.was_cancelled(self.dropped)

    def close_request(self) -> None:
        """Close the client."""
        self._node.destroy_client(self._client)


class ServiceCalls(Requests):
    """Performs the calls of a tool that is a service.

    Args:
        node: The node.
        entry: The tool.
        cls: Type of the service.
        arguments: Its arguments.
    """

    def __init__(self, node: Any, entry: ToolEntry, cls: Any, arguments: Arguments):
        super().__init__(node, entry, cls, entry.target)
        self._arguments = arguments
        self._undo = Undoing(node, entry, cls, client=self._client)
        self.acts_on = bool(self._undo)

    def message(self, arguments: Mapping[str, Any]) -> Any:
        """Return the request of a call."""
        return self._arguments.message(arguments)

    def read(self, response: Any, run: Reports) -> None:
        """Report the response. `success: false` is a failure."""
        data = to_data(response)
        text = json.dumps(data, ensure_ascii=False)
        if data.get('success') is False:
            run.fail(f'{self._client.srv_name} answered: {text}')
        else:
            run.succeed(text if data else 'done')

    def would(self, arguments: str) -> str:
        """Return what a call with these arguments would do."""
        return f'{self.other} would be called with {arguments}'


class ParameterReads(Requests):
    """Performs the calls of a tool that reads a parameter of another node.

    Args:
        node: The node.
        entry: The tool.
    """

    dropped = 'its answer is no longer awaited'

    def __init__(self, node: Any, entry: ToolEntry):
        super().__init__(
            node, entry, GetParameters, f'{entry.target}/get_parameters', f'the node {entry.target}'
        )

    def message(self, arguments: Mapping[str, Any]) -> Any:
        """Return the request of a call."""
        return GetParameters.Request(names=[self._entry.parameter])

    def read(self, response: Any, run: Reports) -> None:
        """Report the value."""
        try:
            value = value_of(response.values[0])
        except LookupError:
            run.fail(f'{self._entry.target} has no parameter {self._entry.parameter}')
            return
        run.succeed(json.dumps({self._entry.parameter: value}, ensure_ascii=False))

    def would(self, arguments: str) -> str:
        """Return what a call would do."""
        return f'the parameter {self._entry.parameter} of {self._entry.target} would be read'


class ParameterSets(Requests):
    """Performs the calls of a tool that sets a parameter of another node.

    Args:
        node: The node.
        entry: The tool.
    """

    dropped = 'its answer is no longer awaited, the node may still set it'

    def __init__(self, node: Any, entry: ToolEntry):
        super().__init__(
            node, entry, SetParameters, f'{entry.target}/set_parameters', f'the node {entry.target}'
        )

    def message(self, arguments: Mapping[str, Any]) -> Any:
        """Return the request of a call."""
        kind = self._entry.arguments['value']['type']
        value = parameter_of(self._entry.parameter, kind, arguments['value'])
        return SetParameters.Request(parameters=[value])

    def read(self, response: Any, run: Reports) -> None:
        """Report whether the node has set it."""
        result = response.results[0]
        if result.successful:
            run.succeed('done')
        else:
            reason = f': {result.reason}' if result.reason else ''
            run.fail(f'{self._entry.target} did not set {self._entry.parameter}{reason}')

    def would(self, arguments: str) -> str:
        """Return what a call with these arguments would do."""
        return f'the parameter {self._entry.parameter} of {self._entry.target} would be set to {arguments}'
