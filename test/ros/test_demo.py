"""`make demo`: whoever ends it ends all of it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.ros
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize('program', ['demo.py', 'demo_tools.py'])
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGHUP])
def test_a_demo_that_is_ended_while_it_starts_programs_leaves_none(program, number):
    demo = subprocess.Popen(
        [sys.executable, ROOT / 'tools' / program],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    children = []
    until = time.monotonic() + 60.0
    while len(children) < 2:  # the second has just been forked
        assert time.monotonic() < until and demo.poll() is None
        children = Path(f'/proc/{demo.pid}/task/{demo.pid}/children').read_text().split()
    demo.send_signal(number)
    assert demo.wait(30.0) == 128 + number
    assert not [child for child in children if Path(f'/proc/{child}').exists()]
