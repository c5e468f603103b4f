"""How old a frame is: what is believed of its stamp, of when it came, and after a clock was set."""

import pytest

from ros2_nanochat.robot.frames import CameraFrames
from ros2_nanochat.robot.freshness import ArrivalClock, Jump, age_of
from ros2_nanochat.robot.options import RobotOptions
from ros2_nanochat.robot.turn import Picture, Turn

NOW = 1_795_622_600 * 10**9  # of a wall clock, nanoseconds
SECOND = 10**9


@pytest.mark.parametrize('now', [NOW, 300 * SECOND], ids=['wall', 'simulation'])
@pytest.mark.parametrize('since', [0.0, 0.5, 30.0])
def test_an_age_is_by_arrival_as_well_as_by_stamp(now, since):
    sent = now - round(since * SECOND)
    for delay in (0.0, 0.04, 5.0, 200.0):
        age, doubt = age_of(max(1, sent - round(delay * SECOND)), since, now)
        assert age == pytest.approx(since + delay) and not doubt
    age, doubt = age_of(now, since, now)  # a simulation that stands still
    assert age == since and not doubt


@pytest.mark.parametrize('since', [0.0, 0.5, 30.0])
@pytest.mark.parametrize(
    'stamp, now, told',
    [
        (0, NOW, 'no stamp'),
        (NOW + 3600 * SECOND, NOW, '3600.0 s ahead'),
        (NOW + SECOND, NOW, '1.0 s ahead'),
        (5 * SECOND, NOW, 'use_sim_time'),  # of a simulation, or since the camera's start
        (NOW, 5 * SECOND, 'use_sim_time'),
        (NOW, 0, 'use_sim_time'),  # no /clock
        (NOW - 40 * 86_400 * SECOND, NOW, 'use_sim_time'),  # a recording
    ],
)
def test_a_stamp_that_cannot_be_believed_leaves_the_age_to_arrival(stamp, now, told, since):
    age, doubt = age_of(stamp, since, now)
    assert age == since and told in doubt


def test_clocks_of_two_machines_may_differ_a_little():
    assert age_of(NOW + SECOND // 50, 0.0, NOW) == (0.0, '')


@pytest.mark.parametrize('step', [-3600.0, -1.0, 1.0, 50 * 365 * 86_400.0])
def test_when_a_frame_came_is_known_although_the_system_clock_was_set_meanwhile(step):
    system, steady = 1e9, 500.0
    clock = ArrivalClock(system, steady)
    assert not clock.look(system + 1.0, steady + 1.0)
    before = round((system + 1.5) * SECOND)  # came, then the clock was set, which was noticed at 502
    assert clock.look(system + 2.0 + step, steady + 2.0)
    assert clock.steady(before) == pytest.approx(steady + 1.5, abs=1e-3)
    after = round((system + 2.5 + step) * SECOND)
    assert not clock.look(system + 3.0 + step, steady + 3.0)
    assert clock.steady(after) == pytest.approx(steady + 2.5, abs=1e-3)
    assert clock.steady(0) == steady + 3.0  # a transport that does not tell


def test_a_clock_that_is_slewed_has_not_jumped():
    clock = ArrivalClock(1e9, 500.0)
    assert not any(clock.look(1e9 + 1.0005 * n / 4, 500.0 + n / 4) for n in range(10_000))


@pytest.mark.parametrize('before, to', [(300.0, 1.0), (1.0, 300.0), (300.0, 299.0)])
def test_a_jump_outdates_what_came_before_but_not_what_was_stamped_after_it(before, to):
    jump = Jump(at=50.0, to=round(to * SECOND))
    assert jump.outdates(round(before * SECOND), 49.9)
    assert jump.outdates(0, 49.9)
    assert not jump.outdates(round((to + 0.02) * SECOND), 49.9)  # overtook the clock
    assert jump.outdates(round((to + 0.02) * SECOND), 40.0)
    assert not jump.outdates(round(before * SECOND), 50.1)


class Frames:
    """A source of one frame."""

    present, expecting = True, False

    def __init__(self, picture=None, trouble=''):
        self.picture, self._trouble = picture, trouble

    def newest(self):
        return self.picture

    def trouble(self):
        return self._trouble


def frame(number, value=0, **fields):
    import numpy as np

    return Picture(lambda: np.full((4, 4, 3), value, np.uint8), number=number, **fields)


class Opened:
    def __init__(self, pixels):
        self.pixels, self.opened_digest = pixels, bytes(pixels)

    def __array__(self, *_, **__):
        return self.pixels


def ask(frames, history=(), **options):
    turn = Turn('what is it?', RobotOptions(**options))
    return frames.pictures(turn, history, None, Opened), turn


def test_the_note_says_why_an_age_is_that_of_arrival_and_why_a_frame_is_not_used():
    frames = CameraFrames(Frames(frame(1, age=0.5, doubt='it has no stamp')))
    pictures, turn = ask(frames)
    assert len(pictures) == 1 and 'no stamp' in turn.note and '0.5 s' in turn.note
    frames.camera.picture = frame(2, age=9.0, doubt='it has no stamp')
    pictures, turn = ask(frames)
    assert not pictures and turn.picture is None
    assert '9.0 s old' in turn.note and 'no stamp' in turn.note and 'max_image_age: 2' in turn.note
    pictures, turn = ask(frames, max_image_age=None)
    assert len(pictures) == 1


def test_another_frame_with_the_same_stamp_is_another_frame():
    """A camera whose stamp stands still."""
    history = [object()]
    frames = CameraFrames(Frames(frame(1, 10, stamp=5)))
    [(picture, pixels)], _ = ask(frames, history)
    frames.shown(history[0], picture, pixels)
    assert ask(frames, history)[0] == []  # the same frame
    frames.camera.picture = frame(2, 200, stamp=5)
    assert len(ask(frames, history)[0]) == 1


@pytest.mark.parametrize('old', [None, frame(1, age=9.0)], ids=['no frame', 'an old frame'])
def test_the_note_names_the_trouble_and_the_question_does_not_wait(old):
    import time

    began = time.monotonic()
    pictures, turn = ask(CameraFrames(Frames(old, '/cam publishes std_msgs/msg/String')))
    assert not pictures and '/cam publishes std_msgs/msg/String' in turn.note
    assert time.monotonic() - began < 0.5
