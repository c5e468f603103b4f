"""A node that several tests of a file share, because a start takes seconds."""

from __future__ import annotations

from conftest import Ears, NodeProcess
from test_robots import set_parameter

from ros2_nanochat.robot.options import PARAMETERS
from ros2_nanochat.ros.client import ChatClient


class SharedNode:
    """A node for one test after another: each finds an empty conversation, and parameters as at the start.

    Only one runs at a time, since all have the name /nanochat.
    """

    def __init__(self):
        self._node, self._parameters, self._changed = None, None, {}

    def get(self, parameters, live):
        """Return a running node: the one that is there if it was started with the same parameters.

        Args:
            parameters: Those of the start.
            live: Those of one test, which are set while the node runs.
        """
        if self._node is not None and (
            self._parameters != parameters or self._node.process.poll() is not None
        ):
            self.stop()
        if self._node is None:
            self._start(parameters)
        elif self._used:
            self._chat.cancel()
            self._chat.reset()
        self._used = True
        for name, value in live.items():
            self._set(name, value)
        self._changed = live
        return self._node

    def _start(self, parameters):
        self._node, self._parameters, self._used = NodeProcess(**parameters), parameters, False
        self._ears = self._chat = None
        try:
            self._node.wait_for_line(': active')
            self._ears, self._chat = Ears('/unused'), ChatClient()
            assert self._chat.wait_until_ready(60.0)
        except BaseException:
            self.stop()
            raise

    def _set(self, name, value):
        result = set_parameter(self._ears, name, value)
        assert result.successful, result

    def restore(self):
        """Set the parameters of the last test back."""
        changed, self._changed = self._changed, {}
        if self._node is not None and self._node.process.poll() is None:
            for name in changed:
                self._set(name, self._parameters.get(name, PARAMETERS[name].default))

    def stop(self):
        """End the node, which must not have shown a traceback."""
        node, self._node, self._changed = self._node, None, {}
        if node is None:
            return
        for each in (self._ears, self._chat):
            if each is not None:
                each.close()
        try:
            code = node.stop()
        except BaseException:
            node.process.kill()
            raise
        assert code == 0 and 'Traceback' not in node.output, node.output
