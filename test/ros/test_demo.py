"""`make demo`: whoever ends it ends all of it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.ros
ROOT = Path(__file__).resolve().parents[2]


def test_a_demo_that_is_ended_leaves_no_process():
    demo = subprocess.Popen(
        [sys.executable, ROOT / 'tools' / 'demo.py'], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    children = []
    until = time.monotonic() + 60.0
    while len(children) < 2:
        assert time.monotonic() < until and demo.poll() is None
        children = Path(f'/proc/{demo.pid}/task/{demo.pid}/children').read_text().split()
        time.sleep(0.02)
    demo.terminate()
    assert demo.wait(30.0) == 143
    assert not [child for child in children if Path(f'/proc/{child}').exists()]
