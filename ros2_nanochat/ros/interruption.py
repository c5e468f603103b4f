"""Lets a transition end the one that loads a model.

The life cycle of ROS has no way out of `configuring`: it would take as long as the model is being compiled.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from lifecycle_msgs.msg import State, Transition

_ENDING = 20.0  # seconds until a load that was stopped must have ended
_SHUTDOWN = (
    Transition.TRANSITION_UNCONFIGURED_SHUTDOWN,
    Transition.TRANSITION_INACTIVE_SHUTDOWN,
    Transition.TRANSITION_ACTIVE_SHUTDOWN,
)


def interrupt_loading(node, stop: Callable[[], bool]) -> None:
    """Make `cleanup` and `shutdown` end a `configure` that is running.

    Args:
        node: A lifecycle node whose service `change_state` is reentrant.
        stop: Ends the load soon; returns whether there was one.
    """
    service = next(service for service in node.services if service.srv_name.endswith('change_state'))
    change_state = service.callback

    def answer(request, response):
        wanted = request.transition
        shuts_down = wanted.id in _SHUTDOWN or wanted.label == 'shutdown'
        cleans_up = wanted.id == Transition.TRANSITION_CLEANUP or wanted.label == 'cleanup'
        if (shuts_down or cleans_up) and _is_configuring(node) and stop():
            until = time.monotonic() + _ENDING
            while _is_configuring(node) and time.monotonic() < until:
                time.sleep(0.02)
            if cleans_up:  # there is nothing to clean up now
                response.success = not _is_configuring(node)
                return response
            wanted.id, wanted.label = Transition.TRANSITION_UNCONFIGURED_SHUTDOWN, ''
        return change_state(request, response)

    service.callback = answer


def _is_configuring(node) -> bool:
    return node._state_machine.current_state[0] == State.TRANSITION_STATE_CONFIGURING
