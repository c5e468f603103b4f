"""States are strings: they print, compare and serialize as the words that ROS messages and users have."""

from __future__ import annotations

import json

import pytest

from ros2_nanochat.states import FinishReason, StrEnum


def test_a_state_is_its_word_wherever_a_string_goes():
    reason = FinishReason.STOP
    assert reason == 'stop' and reason == 'stop' and {'stop': 1}[reason] == 1
    assert str(reason) == f'{reason}' == format(reason) == '%s' % reason == 'stop'  # noqa: UP031
    assert json.dumps({'reason': reason}) == '{"reason": "stop"}'
    assert FinishReason('stop') is reason


def test_a_word_that_is_no_state_is_refused():
    with pytest.raises(ValueError, match='gone'):
        FinishReason('gone')


def test_what_failed_is_told_from_what_was_ended():
    assert [reason for reason in FinishReason if reason.failed] == ['refused', 'error']
    assert [reason for reason in FinishReason if reason.complete] == ['stop', 'length']


def test_auto_gives_the_name_in_small_letters():
    from enum import auto

    class Colour(StrEnum):
        DEEP_RED = auto()

    assert Colour.DEEP_RED == 'deep_red'
