"""The programs that the package installs."""

from __future__ import annotations

import configparser
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / 'setup.cfg')
PROGRAMS = dict(
    line.split(' = ') for line in SETUP['options.entry_points']['console_scripts'].strip().splitlines()
)
HANG = """
import runpy, sys, time

is_program_here = False

class Hang:
    def find_spec(self, name, path=None, target=None):
        if is_program_here and name.startswith('ros2_nanochat.') or name == {last!r}:
            print('importing', name, flush=True)
            time.sleep(60)

sys.meta_path.insert(0, Hang())
"""


def interrupted(code: str) -> tuple[int, str]:
    """Send SIGINT to a process that has begun to import; return its exit status and what it said."""
    process = subprocess.Popen(
        [sys.executable, '-c', code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None and process.stdout.readline().startswith('importing')
        process.send_signal(signal.SIGINT)
        return process.wait(10), process.communicate()[1]
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize('name', PROGRAMS)
def test_ctrl_c_ends_a_program_that_still_imports_without_a_traceback(name):
    module, function = PROGRAMS[name].split(':')
    code = f'{HANG.format(last="")}\nfrom {module} import {function}\nis_program_here = True\n{function}([])'
    assert interrupted(code) == (-signal.SIGINT, '')


@pytest.mark.parametrize('name', ['chat', 'completion'])
def test_ctrl_c_ends_a_module_that_still_imports_without_a_traceback(name):
    code = HANG.format(last=f'ros2_nanochat.terminal.{name}')
    code += f'runpy.run_module("ros2_nanochat.{name}", run_name="__main__")'
    assert interrupted(code) == (-signal.SIGINT, '')


@pytest.mark.parametrize('handler', ['SIG_IGN', 'default_int_handler'])
def test_ctrl_c_is_handled_afterwards_as_before(handler):
    code = (
        'import signal\n'
        'from ros2_nanochat.program import interruptible_imports\n'
        f'signal.signal(signal.SIGINT, signal.{handler})\n'
        'with interruptible_imports():\n'
        '    pass\n'
        f'assert signal.getsignal(signal.SIGINT) is signal.{handler}\n'
    )
    subprocess.run([sys.executable, '-c', code], check=True, timeout=60)
