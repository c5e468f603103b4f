"""How old a camera's frame is: by when it came, and by its stamp where the stamp can be believed.

A stamp is a claim of another clock. It may be missing, ahead, or of a clock that has nothing to do with ours;
when the frame came is known in any case. Knows nothing of ROS: all times are handed in.
"""

from __future__ import annotations

from dataclasses import dataclass

_IN_STEP = 0.1  # seconds that a stamp may be ahead: clocks of two machines, kept in step over the network
_ANOTHER_CLOCK = 86_400.0  # seconds between stamp and arrival that no transport takes
_JUMP = 0.25  # seconds by which the system clock may run off the steady one between two looks
_SAME_EPOCH = 0.5  # seconds: a stamp so near the time after a jump was made after it
_OVERTAKES = 2.0  # seconds that a frame may come before the clock that stamped it


@dataclass(frozen=True)
class Jump:
    """A jump of the node's time. at: when it was noticed (`time.monotonic()`). to: the time after it, ns."""

    at: float
    to: int

    def outdates(self, stamp: int, arrived: float) -> bool:
        """Whether a frame is of the time before the jump.

        Frames and clock travel apart, so one that was stamped after the jump may come before it is noticed.
        """
        if arrived > self.at:
            return False
        return self.at - arrived > _OVERTAKES or abs(stamp - self.to) > _SAME_EPOCH * 1e9


class ArrivalClock:
    """Turns times of arrival, which the transport takes from the system clock, into steady time.

    The system clock may be set while a frame waits in the transport. `look()` has to be called now and then.
    When it finds that, ask at once for the times of what waits: a clock that was set back shows them again.
    """

    def __init__(self, system: float, steady: float):
        self._steady = steady
        self._offset = self._offset_before = system - steady
        self._jumped_at: float | None = None

    def look(self, system: float, steady: float) -> bool:
        """Note both clocks, in seconds; return whether the system clock was set since the last look."""
        offset, self._steady = system - steady, steady
        jumped = abs(offset - self._offset) > _JUMP
        if jumped:
            self._offset_before, self._jumped_at = self._offset, steady
        self._offset = offset
        return jumped

    def steady(self, received: int) -> float:
        """When something came, as `time.monotonic()`. received: ns of the system clock, 0 if unknown."""
        if not received:
            return self._steady
        arrived = received / 1e9 - self._offset
        if self._jumped_at is not None and not self._jumped_at <= arrived <= self._steady + _JUMP:
            arrived = received / 1e9 - self._offset_before  # it came before the clock was set
        return min(arrived, self._steady)


def age_of(stamp: int, since_arrival: float, now: int) -> tuple[float, str]:
    """Return the age of a frame in seconds, and why its stamp is not believed ('' if it is).

    Args:
        stamp: nanoseconds of the frame's header, 0 if it has none.
        since_arrival: seconds since the frame came.
        now: nanoseconds of the node's clock.
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
