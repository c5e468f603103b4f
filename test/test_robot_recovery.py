"""What goes wrong around a robot's conversation ends at most one turn: listeners, disks, jobs, the thread
itself.
"""

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from ros2_nanochat import NanoLLM
from ros2_nanochat.config import RobotOptions
from ros2_nanochat.robot import recovery
from ros2_nanochat.robot.conversation import RobotConversation
from ros2_nanochat.robot.health import ERROR, OK, robot_status
from ros2_nanochat.robot.store import ConversationStore
from ros2_nanochat.robot.turn import Picture, Turn
from ros2_nanochat.robot.worker import Worker


class Log:
    def __init__(self):
        self.lines = []
        self.info = self.warning = self.error = self.lines.append


class Output:
    """Does something bad when it is called by one of these names."""

    def __init__(self, *names, act):
        self.names, self.act, self.ended_turns = names, act, []

    def __getattr__(self, name):
        def call(turn, *_):
            if name in self.names:
                self.act()
            if name == 'ended':
                self.ended_turns.append(turn)

        return call


class Quiet:
    def __getattr__(self, name):
        return lambda *_: None


@pytest.fixture
def robot():
    closing = []

    def robot(output=None, store=None, setup='', **options):
        model = NanoLLM.from_pretrained(setup or None, api='fake', max_context_len=4096)
        log = Log()
        chat = RobotConversation('r1', model, RobotOptions(**options), output or Quiet(), None, store, log)
        closing.extend([chat, model])
        return chat, log

    yield robot
    for thing in closing:
        thing.close()


def ask(chat, text='hello', pictures=()):
    turn = chat.ask(Turn(text, chat.options, pictures))
    until = time.monotonic() + 30
    while not turn.ended.wait(0.05):
        chat.expire()
        assert time.monotonic() < until, 'the turn never ended'
    return turn


def raise_error():
    raise RuntimeError('no')


@pytest.mark.parametrize('name', ['started', 'token', 'sentence', 'ended'])
def test_an_output_that_raises_costs_nothing_of_the_conversation_and_shows(robot, name):
    chat, log = robot(Output(name, act=raise_error))
    for text in ('one', 'two'):
        assert ask(chat, text).reply == f'You said: {text}'
    assert [message.text for message in chat.history if message.role == 'bot'] == [
        'You said: one',
        'You said: two',
    ]
    status = robot_status(chat)
    assert status.level == ERROR and 'publishing failed' in status.message
    assert sum('publishing failed' in line for line in log.lines) == 1, 'one line, not one for each token'


@pytest.mark.parametrize('name', ['started', 'token', 'ended'])
def test_a_thread_that_sticks_is_replaced_and_its_turn_ends_with_the_reason(robot, name, monkeypatch):
    monkeypatch.setattr(recovery, 'PUBLISH_SECONDS', 0.3)
    stuck = threading.Event()
    output = Output(name, act=lambda: stuck.wait(30))
    chat, log = robot(output)
    turn = ask(chat, 'one')
    chat.output = Quiet()
    if name != 'ended':
        assert turn.finish_reason == 'error' and 'stuck' in turn.error
    until = time.monotonic() + 10
    while not chat.num_restarts and time.monotonic() < until:
        chat.expire()
        time.sleep(0.02)
    status = robot_status(chat)
    assert status.level == ERROR and 'it was restarted' in status.message
    before = [message.text for message in chat.history]
    assert before == (['one', 'You said: one'] if name == 'ended' else [])
    assert ask(chat, 'two').reply == 'You said: two'
    stuck.set()  # the old thread comes to itself, and has nothing to say any more
    time.sleep(0.2)
    assert [message.text for message in chat.history] == [*before, 'two', 'You said: two']
    assert ask(chat, 'three').reply == 'You said: three'


@pytest.mark.parametrize('name', ['started', 'token'])
def test_a_thread_that_died_is_replaced_and_its_turn_ends(robot, name):
    chat, _ = robot(Output(name, act=sys.exit))
    turn = ask(chat, 'one')
    assert turn.finish_reason == 'error' and 'died' in turn.error
    assert robot_status(chat).level == ERROR
    chat.output = Quiet()
    assert ask(chat, 'two').reply == 'You said: two'
    assert [message.text for message in chat.history] == ['two', 'You said: two']


def test_a_thread_that_sticks_again_and_again_is_not_replaced_all_the_time(robot, monkeypatch):
    monkeypatch.setattr(recovery, 'PUBLISH_SECONDS', 0.01)
    stuck = threading.Event()
    chat, _ = robot(Output('started', act=lambda: stuck.wait(30)))
    until = time.monotonic() + 3
    while time.monotonic() < until:
        chat.ask(Turn('x', chat.options))
        chat.expire()
        time.sleep(0.01)
    stuck.set()
    assert 1 <= chat.num_restarts <= 3


@pytest.mark.parametrize('broken', ['the start', 'the log'])
def test_a_supervisor_that_fails_tries_again(robot, monkeypatch, broken):
    """As if the system had no thread left."""
    monkeypatch.setattr(recovery, '_RESTART_SECONDS', 0.05)
    chat, log = robot(Output('started', act=sys.exit))
    failures = []

    def fails(call, concerned):
        def wrapped(first, *rest):
            if concerned(first) and len(failures) < 2:
                failures.append(first)
                raise RuntimeError("can't start new thread")
            return call(first, *rest)

        return wrapped

    if broken == 'the start':
        start = fails(threading.Thread.start, lambda thread: thread.name == 'robot-r1')
        monkeypatch.setattr(threading.Thread, 'start', start)
    else:
        log.error = fails(log.error, lambda text: 'it was restarted' in text)
    turn = chat.ask(Turn('one', chat.options))
    wait(lambda: tick(chat) or (failures and turn.ended.is_set()))
    chat.output = Quiet()
    status = robot_status(chat)
    assert turn.finish_reason == 'error' and status.level == ERROR and 'died' in status.message
    turn = chat.ask(Turn('two', chat.options))
    wait(lambda: tick(chat) or turn.ended.is_set())
    assert turn.reply == 'You said: two'


def test_a_robot_whose_thread_could_not_start_again_closes(robot, tmp_path, monkeypatch):
    chat, log = robot(Output('started', act=sys.exit), ConversationStore(tmp_path, '/r1', Log()))
    turn = chat.ask(Turn('one', chat.options))
    failures = []

    def fail(_):
        failures.append('start')
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, 'start', fail)
        wait(lambda: tick(chat) or failures)
        assert not any('it was restarted' in line for line in log.lines) and not chat.num_restarts
        assert robot_status(chat).level == ERROR and turn.finish_reason == 'error'
        chat.close(0.1)
    ConversationStore(tmp_path, '/r1', Log()).close()  # the file can be used again


def tick(chat):
    """As the node's timer calls it."""
    with contextlib.suppress(RuntimeError):
        chat.expire()


@pytest.mark.parametrize('job, error', [(raise_error, '^no$'), (sys.exit, 'SystemExit')])
def test_a_job_that_fails_is_an_error_for_its_caller_and_the_robot_goes_on(robot, job, error):
    chat, _ = robot()
    with pytest.raises(RuntimeError, match=error):
        chat.stop_all(then=job)
    assert ask(chat).reply == 'You said: hello' and chat.num_restarts == (job is sys.exit)


def test_a_thread_goes_on_after_any_exception_and_one_that_ended_is_in_trouble():
    threads, failures = [], []

    def work(worker):
        threads.append(threading.get_ident())
        if len(threads) in (1, 2):
            raise (KeyError, RecursionError)[len(threads) - 1]
        if len(threads) == 4:
            raise SystemExit
        return True

    worker = Worker('test', work, failures.append)
    worker.start()
    worker.join(10)
    assert len(threads) == 4 and len(set(threads)) == 1
    assert [type(error) for error in failures] == [KeyError, RecursionError, SystemExit]
    assert worker.trouble == 'its thread has died of SystemExit()'


def test_a_picture_that_cannot_be_decoded_for_any_reason_ends_its_turn_only(robot):
    chat, _ = robot()
    chat.model.vision = object()  # so that pictures are looked at
    turn = ask(chat, 'what is it?', [Picture(lambda: 1 / 0)])
    chat.model.vision = None
    assert turn.finish_reason == 'error' and 'ZeroDivisionError' in turn.error
    assert ask(chat).reply == 'You said: hello'
    assert [message.text for message in chat.history] == ['hello', 'You said: hello']


def test_the_deadline_of_a_turn_whose_picture_is_encoded_needs_no_model(robot):
    encoding = threading.Event()

    class Slow:
        load_seconds = 0.0

        def close(self):
            pass

    chat, _ = robot(deadline=0.2)
    chat.model.vision = Slow()
    began = time.monotonic()
    turn = ask(chat, 'what is it?', [Picture(lambda: encoding.wait(20))])
    assert turn.finish_reason == 'deadline' and time.monotonic() - began < 2
    encoding.set()
    chat.model.vision = None
    chat.options = RobotOptions()
    assert ask(chat).reply == 'You said: hello'


@pytest.mark.parametrize('text', ['x' * 10_000_000, '\u20ac' * 100_000])
def test_a_query_that_cannot_fit_is_refused_unread_and_at_once(robot, text):
    chat, _ = robot()
    began = time.monotonic()
    turn = ask(chat, text)
    assert turn.finish_reason == 'error' and 'bytes' in turn.error and str(32 * 4096) in turn.error
    assert len(turn.query) < 300 and time.monotonic() - began < 1
    assert ask(chat).reply == 'You said: hello'


# --- disks ---


class Disk:
    """A disk of which the writes of this process fail while `error` is set."""

    def __init__(self, monkeypatch, folder):
        self.error, folder = None, str(folder)
        real = os.open

        def open(path, flags, *arguments, **options):
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if self.error and writes and str(path).startswith(folder):
                raise OSError(self.error, os.strerror(self.error), path)
            return real(path, flags, *arguments, **options)

        monkeypatch.setattr(os, 'open', open)
        for name in ('unlink', 'replace', 'rename'):
            self._wrap(monkeypatch, name, folder)

    def _wrap(self, monkeypatch, name, folder):
        call = getattr(os, name)

        def wrapped(path, *arguments, **options):
            if self.error == errno.EROFS and str(path).startswith(folder):
                raise OSError(self.error, os.strerror(self.error), path)
            return call(path, *arguments, **options)

        monkeypatch.setattr(os, name, wrapped)


@pytest.mark.parametrize('error', [errno.ENOSPC, errno.EROFS, errno.EIO])
@pytest.mark.parametrize('keep_kv', [False, True])
def test_a_disk_that_takes_nothing_is_told_and_heals(robot, tmp_path, monkeypatch, error, keep_kv):
    monkeypatch.setattr(recovery.SavedState, 'retry_seconds', 0.1)
    chat, log = robot(store=ConversationStore(tmp_path, '/r1', Log(), keep_kv))
    ask(chat, 'one')
    disk = Disk(monkeypatch, tmp_path)
    disk.error = error
    turn = ask(chat, 'two')
    assert turn.reply == 'You said: two' and 'not on disk' in turn.note and os.strerror(error) in turn.note
    status = robot_status(chat)
    assert status.level == ERROR and 'not on disk' in status.message
    assert saved(tmp_path) == ['one', 'You said: one']
    disk.error = None
    wait(lambda: saved(tmp_path)[-1] == 'You said: two')
    wait(lambda: robot_status(chat).level == OK)
    assert ask(chat, 'three').note == ''


@pytest.mark.parametrize('error', [errno.ENOSPC, errno.EROFS])
def test_a_reset_that_does_not_reach_the_disk_fails_or_deletes_what_is_there(
    robot, tmp_path, monkeypatch, error
):
    monkeypatch.setattr(recovery.SavedState, 'retry_seconds', 0.1)
    chat, _ = robot(store=ConversationStore(tmp_path, '/r1', Log()))
    ask(chat, 'one')
    disk = Disk(monkeypatch, tmp_path)
    disk.error = error
    if error == errno.EROFS:
        with pytest.raises(RuntimeError, match='not on disk'):
            chat.reset()
    else:
        assert 'deleted' in chat.reset() and not list(tmp_path.glob('*.json'))
    assert len(chat.history) == 0
    disk.error = None
    wait(lambda: saved(tmp_path) == [])


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, of 128 kB; the test is skipped where mounting is not allowed."""
    place = tmp_path / 'disk'
    place.mkdir()
    mount = shutil.which('mount')
    asked = [mount, '-t', 'tmpfs', '-o', 'size=128k', 'tmpfs', str(place)]
    if mount is None or subprocess.run(asked, capture_output=True).returncode:
        pytest.skip('mounting is not allowed')
    yield place
    subprocess.run(['umount', '-l', str(place)], check=True)


def fill(folder) -> Path:
    """Write a file until the disk is full."""
    filler = folder / 'filler'
    with pytest.raises(OSError, match='No space left'), open(filler, 'wb', buffering=0) as file:
        while True:
            file.write(b'x' * 4096)
    return filler


def test_a_disk_that_is_really_full_is_told_and_heals(robot, small_disk, monkeypatch):
    monkeypatch.setattr(recovery.SavedState, 'retry_seconds', 0.1)
    # without keys and values: deleting those would make room
    chat, _ = robot(store=ConversationStore(small_disk, '/r1', Log()))
    ask(chat, 'one')
    filler = fill(small_disk)
    turn = ask(chat, 'two')
    assert turn.reply == 'You said: two' and 'No space left' in turn.note
    assert robot_status(chat).level == ERROR and 'not on disk' in robot_status(chat).message
    assert saved(small_disk) == ['one', 'You said: one']
    assert 'deleted' in chat.reset() and saved(small_disk) is None
    ask(chat, 'three')
    filler.unlink()
    wait(lambda: saved(small_disk) == ['three', 'You said: three'])
    wait(lambda: robot_status(chat).level == OK)
    assert ask(chat, 'four').note == ''


def remount(folder, how):
    subprocess.run(['mount', '-o', f'remount,{how}', str(folder)], check=True)


def with_a_read_only_disk(robot, small_disk, monkeypatch):
    """A robot that has saved one turn, with its keys and values, on a disk that is read-only now."""
    monkeypatch.setattr(recovery.SavedState, 'retry_seconds', 0.1)
    chat, log = robot(store=ConversationStore(small_disk, '/r1', Log(), True))
    ask(chat, 'one')
    wait(lambda: (small_disk / 'r1.kv').exists())
    remount(small_disk, 'ro')
    return chat, log


def test_a_disk_that_goes_read_only_is_told_and_heals(robot, small_disk, monkeypatch):
    """As the kernel does after an error of the disk, with keys and values on it."""
    chat, log = with_a_read_only_disk(robot, small_disk, monkeypatch)
    turn = ask(chat, 'two')
    assert turn.reply == 'You said: two' and 'Read-only' in turn.note
    assert robot_status(chat).level == ERROR and 'Read-only' in robot_status(chat).message
    assert not any('Traceback' in line for line in log.lines)
    remount(small_disk, 'rw')
    wait(lambda: saved(small_disk)[-1] == 'You said: two')
    wait(lambda: robot_status(chat).level == OK)
    assert ask(chat, 'three').note == ''


def test_what_a_reset_could_not_delete_is_deleted_when_the_disk_heals(robot, small_disk, monkeypatch):
    chat, log = with_a_read_only_disk(robot, small_disk, monkeypatch)
    with pytest.raises(RuntimeError, match='not on disk'):
        chat.reset()
    remount(small_disk, 'rw')
    wait(lambda: saved(small_disk) == [] and not (small_disk / 'r1.kv').exists())
    wait(lambda: robot_status(chat).level == OK)


def test_a_reset_with_nothing_on_a_read_only_disk_succeeds(robot, small_disk):
    chat, log = robot(store=ConversationStore(small_disk, '/r1', Log()))
    remount(small_disk, 'ro')
    assert 'forgotten' in chat.reset()
    assert not any('cannot be deleted' in line for line in log.lines)


def saved(folder):
    files = list(Path(folder).glob('*.json'))
    return [m['text'] for m in json.loads(files[0].read_text())['messages']] if files else None


def wait(condition):
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.parametrize('content', [b'\xff\xfe', b'[1, 2]', b'{"a": 1}', b'[' * 100_000, b'1e999', b''])
def test_a_garbled_prompt_file_is_as_none(robot, tmp_path, content):
    chat, _ = robot(store=ConversationStore(tmp_path, '/r1', Log()))
    ask(chat, 'one')
    chat.close()
    (tmp_path / 'r1.prompt').write_bytes(content)
    chat, _ = robot(store=ConversationStore(tmp_path, '/r1', Log()))
    assert ask(chat, 'two').note == '' and saved(tmp_path)[0] == 'one'


@pytest.mark.parametrize('name', ['r1.json', 'r1.prompt', 'r1.kv', 'r1.kv-part'])
@pytest.mark.parametrize('kind', ['fifo', 'device', 'folder'])
def test_a_state_file_that_is_no_file_keeps_nobody_waiting(robot, tmp_path, name, kind):
    path = tmp_path / name
    if kind == 'fifo':
        os.mkfifo(path)
    elif kind == 'device':
        path.symlink_to('/dev/zero')
    else:
        path.mkdir()
    store = ConversationStore(tmp_path, '/r1', Log(), keep_kv=True)
    if name == 'r1.json':
        with pytest.raises(ValueError, match='not a regular file'):
            robot(store=store)
        return
    chat, _ = robot(store=store)
    assert ask(chat).reply == 'You said: hello'


def test_a_file_that_may_not_be_read_is_not_damaged(robot, tmp_path, monkeypatch):
    chat, _ = robot(store=ConversationStore(tmp_path, '/r1', Log()))
    ask(chat, 'one')
    chat.close()
    real = os.open

    def refuse(path, *arguments, **options):
        if str(path).endswith('r1.json'):
            raise PermissionError(errno.EACCES, 'Permission denied', path)
        return real(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, 'open', refuse)
        with pytest.raises(ValueError, match='cannot be read: Permission denied'):
            robot(store=ConversationStore(tmp_path, '/r1', Log()))
    assert saved(tmp_path) == ['one', 'You said: one'] and not list(tmp_path.glob('*damaged*'))


@pytest.mark.parametrize('error', [errno.EACCES, errno.EIO])
def test_a_picture_that_cannot_be_looked_at_is_not_missing(robot, tmp_path, monkeypatch, error):
    """Else the next turn would delete it."""
    chat, _ = robot(store=ConversationStore(tmp_path, '/r1', Log()))
    ask(chat, 'one')
    chat.close()
    path, picture = tmp_path / 'r1.json', tmp_path / 'r1.json.images' / 'a.png'
    picture.parent.mkdir()
    picture.write_bytes(b'a picture')
    data = json.loads(path.read_text())
    data['messages'].insert(0, {'role': 'user', 'image': 'r1.json.images/a.png'})
    path.write_text(json.dumps(data))
    real = os.stat

    def refuse(path, *arguments, **options):
        if str(path).endswith('a.png'):
            raise OSError(error, os.strerror(error), path)
        return real(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, 'stat', refuse)
        with pytest.raises(ValueError, match=f'a.png cannot be read: {os.strerror(error)}'):
            robot(store=ConversationStore(tmp_path, '/r1', Log()))
    assert picture.exists() and json.loads(path.read_text()) == data
    picture.unlink()
    log = Log()
    robot(store=ConversationStore(tmp_path, '/r1', log))
    assert any('is missing' in line for line in log.lines) and not list(tmp_path.glob('*damaged*'))


def test_two_processes_do_not_share_a_robots_state(tmp_path):
    store = ConversationStore(tmp_path, '/r1', Log())
    code = (
        'import sys\nfrom ros2_nanochat.robot.store import ConversationStore\n'
        'try: ConversationStore(sys.argv[1], "/r1", None)\nexcept ValueError as error: print(error)'
    )

    def other():
        return subprocess.run(
            [sys.executable, '-c', code, str(tmp_path)], capture_output=True, text=True, check=True
        ).stdout

    assert f'another process ({os.getpid()})' in other()
    store.close()
    assert other() == ''


def test_without_faults_a_robot_is_well(robot):
    chat, _ = robot()
    ask(chat)
    assert robot_status(chat).level == OK


def test_a_picture_that_the_disk_does_not_take_is_kept_and_written_later(tmp_path, monkeypatch):
    from ros2_nanochat.chat.message import ChatMessage
    from ros2_nanochat.vision.images import open_image

    store = ConversationStore(tmp_path, '/r1', Log())
    message = ChatMessage('user', image=open_image(np.zeros((4, 4, 3), np.uint8)))

    class History(list):
        def save(self, path):
            Path(path).write_text('{}')

    store.save(History([message]), None)
    assert os.path.isfile(message.image) and list((tmp_path / 'r1.json.images').iterdir())


def test_a_folder_among_the_pictures_does_not_keep_the_pictures_of_a_reset_conversation(robot, tmp_path):
    """File managers and network storage put thumbnails there."""
    chat, _ = robot(store=ConversationStore(tmp_path, '/r1', Log()))
    pictures = tmp_path / 'r1.json.images'
    (pictures / '@eaDir').mkdir(parents=True)
    (pictures / 'thumbnails').symlink_to(tmp_path)
    for name in range(9):
        (pictures / f'{name}.png').write_bytes(b'a picture')
    assert chat.reset() == 'the conversation is forgotten'
    assert sorted(entry.name for entry in pictures.iterdir()) == ['@eaDir', 'thumbnails']


def test_a_reset_says_which_pictures_stay_on_disk_until_they_can_be_deleted(robot, tmp_path, monkeypatch):
    chat, log = robot(store=ConversationStore(tmp_path, '/r1', Log()))
    pictures = tmp_path / 'r1.json.images'
    pictures.mkdir()
    for name in 'abc':
        (pictures / f'{name}.png').write_bytes(b'a picture')
    real = os.unlink

    def refuse(path, *arguments, **options):
        if str(path).endswith('b.png'):
            raise OSError(errno.EPERM, os.strerror(errno.EPERM), path)
        real(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, 'unlink', refuse)
        said = chat.reset()
    assert 'b.png' in said and os.strerror(errno.EPERM) in said and '\n' not in said
    assert [entry.name for entry in pictures.iterdir()] == ['b.png']
    status = robot_status(chat)
    assert status.level == ERROR and 'b.png' in status.message
    assert chat.reset() == 'the conversation is forgotten' and not list(pictures.iterdir())


@pytest.mark.parametrize('name', ['r1.json', 'r1.prompt'])
def test_a_file_of_the_state_that_is_far_too_large_is_not_read(robot, tmp_path, name):
    chat, _ = robot(store=ConversationStore(tmp_path, '/r1', Log()))
    ask(chat, 'one')
    chat.close()
    os.truncate(tmp_path / name, 1 << 40)
    log = Log()
    chat, own = robot(store=ConversationStore(tmp_path, '/r1', log))
    assert ask(chat, 'two').note == ''
    assert name == 'r1.prompt' or 'bytes, and at most' in ' '.join(log.lines)
    assert (tmp_path / name).stat().st_size < 10_000


def test_an_old_message_that_does_not_fit_a_smaller_context_is_dropped(robot, tmp_path):
    chat, _ = robot(store=ConversationStore(tmp_path, '/r1', Log()))
    ask(chat, 'one')
    chat.close()
    path = tmp_path / 'r1.json'
    data = json.loads(path.read_text())
    assert data['messages'][0]['role'] == 'user', 'no system prompt'
    data['messages'][0]['text'] = 'x' * 1_000_000  # of a node with a longer context
    path.write_text(json.dumps(data))
    chat, _ = robot(store=ConversationStore(tmp_path, '/r1', Log()))
    assert ask(chat, 'two').reply == 'You said: two'
