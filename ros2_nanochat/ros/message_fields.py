"""What messages of turns and observations share: times, the header of a picture, the tokens of an answer."""

from __future__ import annotations

import time
from typing import Any

from builtin_interfaces.msg import Time
from rclpy.clock import ROSClock
from std_msgs.msg import Header

from ros2_nanochat.engine.usage import Usage

UNKNOWN = -1
"""`reused_tokens`, if a server does not report it."""

_MOST_SECONDS, _MOST_NANOSECONDS = 2**31 - 1, 10**9 - 1


def usage_fields(usage: Usage) -> dict[str, Any]:
    """Return the tokens of an answer, as fields of the messages."""
    return {
        'prompt_tokens': usage.prompt_tokens,
        'reused_tokens': UNKNOWN if usage.reused_tokens is None else usage.reused_tokens,
        'image_tokens': usage.image_tokens,
        'reused_image_tokens': usage.reused_image_tokens,
        'new_tokens': usage.new_tokens,
    }


def header_of(stamp: int, frame_id: str) -> Header:
    """Return the header of a picture that was taken at a time in nanoseconds."""
    return Header(stamp=time_of(stamp), frame_id=frame_id)


def time_of(nanoseconds: int) -> Time:
    """Convert nanoseconds to a message, or to the nearest time that a message can hold."""
    seconds, rest = divmod(nanoseconds, 10**9)
    if not -_MOST_SECONDS - 1 <= seconds <= _MOST_SECONDS:
        seconds, rest = (_MOST_SECONDS, _MOST_NANOSECONDS) if seconds > 0 else (-_MOST_SECONDS - 1, 0)
    return Time(sec=seconds, nanosec=rest)


def set_to_now(stamp: Time, clock: ROSClock) -> None:
    """Set a stamp to the time of a node's clock, faster than `now().to_msg()`, since each token has one."""
    # without a simulation, the node's time is that of the system
    now = clock.now().nanoseconds if clock.ros_time_is_active else time.time_ns()
    stamp.sec, stamp.nanosec = divmod(now, 10**9)
