"""The check of the room for shared memory, which needs no ROS."""

import importlib.util
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

# By its path: the package `ros` imports ROS in other modules only.
PATH = Path(__file__).parents[1] / 'ros2_nanochat' / 'ros' / 'shared_memory.py'
spec = importlib.util.spec_from_file_location('shared_memory', PATH)
shared_memory = importlib.util.module_from_spec(spec)
spec.loader.exec_module(shared_memory)
PROFILE = str(Path(__file__).parents[1] / 'config' / 'fastdds.xml')


@pytest.mark.parametrize('megabytes, told', [(64, True), (100, True), (1024, False)])
def test_a_container_with_little_shared_memory_is_told(monkeypatch, megabytes, told):
    monkeypatch.setenv('FASTDDS_DEFAULT_PROFILES_FILE', PROFILE)
    monkeypatch.setattr(os, 'statvfs', lambda _: SimpleNamespace(f_blocks=megabytes << 8, f_frsize=4096))
    line = shared_memory.shortage()
    assert bool(line) == told and (not told or (f'{megabytes} MB' in line and '--ipc=host' in line))


@pytest.mark.parametrize('profile', [None, '', '/no/such/file'])
def test_without_a_profile_or_a_folder_nothing_is_told(monkeypatch, profile):
    for name in ('FASTDDS_DEFAULT_PROFILES_FILE', 'FASTRTPS_DEFAULT_PROFILES_FILE'):
        monkeypatch.delenv(name, raising=False)
    if profile is not None:
        monkeypatch.setenv('FASTDDS_DEFAULT_PROFILES_FILE', profile)
    assert shared_memory.shortage() == ''
    monkeypatch.setenv('FASTDDS_DEFAULT_PROFILES_FILE', PROFILE)
    assert shared_memory.shortage('/no/such/folder') == ''
