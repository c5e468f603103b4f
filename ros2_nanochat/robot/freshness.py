"""Computes how old a camera's frame is: from its arrival, and from its stamp if the stamp is plausible.

A stamp comes from another clock. It may be missing, in the future, or from an unrelated clock; the time of
arrival is always known. Knows nothing of ROS: the caller passes all times.
"""

from __future__ import annotations

from dataclasses import dataclass

_IN_STEP = 0.1  # seconds that a stamp may be ahead, if two machines synchronize their clocks over the network
_ANOTHER_CLOCK = 86_400.0  # seconds between stamp and arrival that no transport takes
_JUMP = 0.25  # seconds by which the system clock may drift from the steady one between two looks
_SAME_EPOCH = 0.5  # seconds: a stamp this close to the time after a jump was made after it
_OVERTAKES = 2.0  # seconds by which a frame may arrive before the clock that stamped it


@dataclass(frozen=True)
class Jump:
    """A jump of the node's time.

    Attributes:
        at: When it was noticed, in `time.monotonic()`.
        to: The time after it, in nanoseconds.
    """

    at: float
    to: int

    def outdates(self, stamp: int, arrived: float) -> bool:
        """Whether a frame is from before the jump.

        Frames and clock messages travel separately: a frame stamped after the jump may arrive before it.

        Args:
            stamp: The frame's stamp, in nanoseconds.
            arrived: When it arrived, in `time.monotonic()`.
        """
        if arrived > self.at:
            return False
        return self.at - arrived > _OVERTAKES or abs(stamp - self.to) > _SAME_EPOCH * 1e9


class ArrivalClock:
    """Converts times of arrival, which the transport takes from the system clock, to steady time.

    The system clock may be set while a frame waits in the transport, so call `look()` regularly. When it
    returns True, ask at once for the times of the waiting frames: after a clock is set back, its times
    repeat.

    Args:
        system: The system clock, in seconds.
        steady: `time.monotonic()`.
    """

    def __init__(self, system: float, steady: float):
        self._steady = steady
        self._offset = self._offset_before = system - steady
        self._jumped_at: float | None = None

    def look(self, system: float, steady: float) -> bool:
        """Record both clocks.

        Args:
            system: The system clock, in seconds.
            steady: `time.monotonic()`.

        Returns:
            Whether the system clock was set since the last look.
        """
        offset, self._steady = system - steady, steady
        jumped = abs(offset - self._offset) > _JUMP
        if jumped:
            self._offset_before, self._jumped_at = self._offset, steady
        self._offset = offset
        return jumped

    def steady(self, received: int) -> float:
        """Return when a frame arrived, in `time.monotonic()`.

        Args:
            received: Nanoseconds of the system clock, 0 if unknown.
        """
        if not received:
            return self._steady
        arrived = received / 1e9 - self._offset
        if self._jumped_at is not None and not self._jumped_at <= arrived <= self._steady + _JUMP:
            arrived = received / 1e9 - self._offset_before  # it came before the clock was set
        return min(arrived, self._steady)


def is_too_old(age: float | None, limit: float | None) -> bool:
    """Return whether a frame may not be used any more.

    Args:
        age: Seconds; None if it is not known.
        limit: `max_image_age` in seconds; None for no limit.
    """
    return age is not None and limit is not None and age > limit


def age_of(stamp: int, since_arrival: float, now: int) -> tuple[float, str]:
    """Return the age of a frame in seconds, and why its stamp is not used ('' if it is).

    Args:
        stamp: Nanoseconds of the frame's header, 0 if it has none.
        since_arrival: Seconds since the frame arrived.
        now: Nanoseconds of the node's clock.
    """
    by_stamp = (now - stamp) / 1e9
    doubt = ''
    if stamp == 0:
        doubt = 'it has no stamp'
    elif now == 0:
        doubt = 'this node has no time to compare its stamp with: use_sim_time is set, and no /clock comes'
    elif abs(by_stamp - since_arrival) > _ANOTHER_CLOCK:
        where = f'{-by_stamp:.1f} s ahead' if by_stamp < 0 else f'{by_stamp:.1f} s old'
        doubt = (
            f'its stamp is of another clock ({where}): set use_sim_time alike for the camera and this node'
        )
    elif by_stamp < -_IN_STEP:
        doubt = f"its stamp is {-by_stamp:.1f} s ahead: synchronize the camera's clock with this node's"
    return (since_arrival if doubt else max(since_arrival, by_stamp)), doubt
