"""Makes the message nanochat/msg/Turn of an ended turn."""

from __future__ import annotations

from builtin_interfaces.msg import Time
from nanochat.msg import Turn as TurnMessage

from ros2_nanochat.robot.turn import Turn
from ros2_nanochat.ros.tools.port import call_message

UNKNOWN = -1  # Turn.reused_tokens, if a server does not report it
_MOST_SECONDS, _MOST_NANOSECONDS = 2**31 - 1, 10**9 - 1


def turn_message(turn: Turn, robot: str, now: Time) -> TurnMessage:
    """Return the message of an ended turn.

    Args:
        turn: The turn.
        robot: The robot's name.
        now: The node's time.
    """
    message = TurnMessage(
        turn_id=turn.id,
        robot=robot,
        query=turn.query,
        reply=turn.reply,
        reasoning=turn.reasoning,
        finish_reason=turn.finish_reason,
        error=turn.error,
        note=turn.note,
        valid=turn.valid,
        choice=turn.choice,
        probability=turn.probability,
        tool_calls=[call_message(record, robot, now) for record in turn.tool_calls],
        image_used=turn.picture is not None,
        prompt_tokens=turn.usage.prompt_tokens,
        reused_tokens=UNKNOWN if turn.usage.reused_tokens is None else turn.usage.reused_tokens,
        image_tokens=turn.usage.image_tokens,
        reused_image_tokens=turn.usage.reused_image_tokens,
        encode_time=turn.encode_time,
        new_tokens=turn.usage.new_tokens,
        served_by=turn.served_by,
        dropped_turns=turn.dropped_turns,
        queue_time=turn.queue_time,
        time_to_first_token=turn.time_to_first_token,
        tokens_per_second=turn.tokens_per_second,
    )
    message.header.stamp = now
    if turn.picture is not None:
        message.image.stamp = time_of(turn.picture.stamp)
        message.header.frame_id = message.image.frame_id = turn.picture.frame_id
    return message


def time_of(nanoseconds: int) -> Time:
    """Convert nanoseconds to a message, or to the nearest time that a message can hold."""
    seconds, rest = divmod(nanoseconds, 10**9)
    if not -_MOST_SECONDS - 1 <= seconds <= _MOST_SECONDS:
        seconds, rest = (_MOST_SECONDS, _MOST_NANOSECONDS) if seconds > 0 else (-_MOST_SECONDS - 1, 0)
    return Time(sec=seconds, nanosec=rest)
