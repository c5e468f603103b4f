"""Makes the message nanochat/msg/Turn of an ended turn."""

from __future__ import annotations

from builtin_interfaces.msg import Time
from nanochat.msg import Turn as TurnMessage

from ros2_nanochat.robot.turn import Turn
from ros2_nanochat.ros.message_fields import header_of, usage_fields
from ros2_nanochat.ros.tools.port import call_message


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
        encode_time=turn.encode_time,
        served_by=turn.served_by,
        dropped_turns=turn.dropped_turns,
        queue_time=turn.queue_time,
        time_to_first_token=turn.time_to_first_token,
        tokens_per_second=turn.tokens_per_second,
        **usage_fields(turn.usage),
    )
    message.header.stamp = now
    if turn.picture is not None:
        message.image = header_of(turn.picture.stamp, turn.picture.frame_id)
        message.header.frame_id = turn.picture.frame_id
    return message
