"""The check of the room for shared memory, which needs no ROS."""

import fcntl
import importlib.util
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

# By its path: the package `ros` imports ROS in other modules only.
PATH = Path(__file__).parents[1] / 'ros2_nanochat' / 'ros' / 'shared_memory.py'
spec = importlib.util.spec_from_file_location('shared_memory', PATH)
shared_memory = importlib.util.module_from_spec(spec)
spec.loader.exec_module(shared_memory)
PROFILE = str(Path(__file__).parents[1] / 'config' / 'fastdds.xml')


def room(monkeypatch, megabytes, free):
    monkeypatch.setenv('FASTDDS_DEFAULT_PROFILES_FILE', PROFILE)
    sizes = SimpleNamespace(f_blocks=megabytes << 8, f_bavail=free << 8, f_frsize=4096)
    monkeypatch.setattr(os, 'statvfs', lambda _: sizes)


@pytest.mark.parametrize('megabytes, told', [(64, True), (100, True), (128, True), (1024, False)])
def test_a_container_with_little_shared_memory_is_told(monkeypatch, megabytes, told):
    room(monkeypatch, megabytes, free=megabytes)
    line = shared_memory.shortage()
    assert bool(line) == told and (not told or (f'{megabytes} MB' in line and '--ipc=host' in line))


@pytest.mark.parametrize('free, told', [(0, True), (66, True), (70, False)])
def test_shared_memory_that_others_have_filled_is_told(monkeypatch, free, told):
    room(monkeypatch, 1024, free)
    line = shared_memory.shortage()
    assert bool(line) == told and (not told or (f'{free} of 1024 MB free' in line and 'shm clean' in line))


@pytest.mark.parametrize('profile', [None, '', '/no/such/file'])
def test_without_a_profile_or_a_folder_nothing_is_told(monkeypatch, profile):
    for name in ('FASTDDS_DEFAULT_PROFILES_FILE', 'FASTRTPS_DEFAULT_PROFILES_FILE'):
        monkeypatch.delenv(name, raising=False)
    if profile is not None:
        monkeypatch.setenv('FASTDDS_DEFAULT_PROFILES_FILE', profile)
    assert shared_memory.shortage() == ''
    monkeypatch.setenv('FASTDDS_DEFAULT_PROFILES_FILE', PROFILE)
    assert shared_memory.shortage('/no/such/folder') == ''


@pytest.mark.parametrize('family', ['fastdds', 'fastrtps'])
def test_only_segments_whose_owner_is_gone_are_removed(tmp_path, family):
    old = time.time() - 60

    def segment(name, when=old, size=1 << 20):
        lock, data = tmp_path / f'{name}_el', tmp_path / name
        lock.touch()
        data.write_bytes(b'x' * size)
        os.utime(lock, (when, when))
        return lock

    segment(f'{family}_0123456789abcdef')
    alive = segment(f'{family}_1123456789abcdef').open()
    fcntl.flock(alive, fcntl.LOCK_EX)
    segment(f'{family}_2123456789abcdef', when=time.time())
    segment(f'{family}_port7411')
    segment('other_0123456789abcdef')
    (tmp_path / f'{family}_3123456789abcdef_el').touch()  # its segment is gone already
    os.utime(tmp_path / f'{family}_3123456789abcdef_el', (old, old))
    kept = {
        path.name
        for path in tmp_path.iterdir()
        if '_0123456789abcdef' not in path.name or 'other' in path.name
    }
    kept.discard(f'{family}_3123456789abcdef_el')
    line = shared_memory.remove_left_segments(str(tmp_path))
    assert 'removed 1 segment ' in line and '(1 MB)' in line
    assert {path.name for path in tmp_path.iterdir()} == kept
    assert shared_memory.remove_left_segments(str(tmp_path)) == ''
    assert shared_memory.remove_left_segments('/no/such/folder') == ''
    alive.close()
