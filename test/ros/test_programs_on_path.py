"""What pages and errors tell people to type is there after `source env.sh`."""

from __future__ import annotations

import shutil
import subprocess

import pytest

pytestmark = pytest.mark.ros


@pytest.mark.parametrize('program', ['nanochat-chat', 'nanochat-mlc'])
def test_a_program_is_on_the_path(program):
    found = shutil.which(program)
    assert found
    done = subprocess.run([found, '--help'], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.startswith(f'usage: {program}')
