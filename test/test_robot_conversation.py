"""One robot's conversation without ROS, on the fake model."""

import gc
import logging
import os
import subprocess
import sys
import threading
import time
import weakref

import numpy as np
import pytest

from ros2_nanochat import NanoLLM
from ros2_nanochat.chat import storage
from ros2_nanochat.chat.message import PixelsGone
from ros2_nanochat.config import GenerationConfig, RobotOptions, options_of
from ros2_nanochat.errors import BackendError, MissingDependency
from ros2_nanochat.robot.conversation import RobotConversation
from ros2_nanochat.robot.frames import CameraFrames, thumbnail
from ros2_nanochat.robot.options import (
    ROBOT_PARAMETERS,
    goal_options,
    robot_names,
    robot_options,
)
from ros2_nanochat.robot.sentences import SentenceSplitter
from ros2_nanochat.robot.state_lock import StateLock
from ros2_nanochat.robot.store import ConversationStore
from ros2_nanochat.robot.turn import Picture, Turn
from ros2_nanochat.vision import images
from ros2_nanochat.vision.images import open_image


class Notes:
    def __init__(self):
        self.events, self.changed = [], threading.Condition()

    def _note(self, *event):
        with self.changed:
            self.events.append(event)
            self.changed.notify_all()

    def started(self, turn):
        self._note('started', turn)

    def token(self, turn, index, text, num_tokens, reasoning):
        self._note('piece', turn, text)

    def sentence(self, turn, text):
        self._note('sentence', turn, text)

    def ended(self, turn):
        self._note('ended', turn)

    def wait(self, kind, count=1):
        with self.changed:
            assert self.changed.wait_for(lambda: sum(event[0] == kind for event in self.events) >= count, 20)


@pytest.fixture
def robot():
    closing = []

    def robot(setup='', store=None, camera=None, **options):
        model = NanoLLM.from_pretrained(setup or None, api='fake', max_context_len=4096)
        notes = Notes()
        chat = RobotConversation('r1', model, RobotOptions(**options), notes, camera, store)
        closing.extend([chat, model])
        return chat, notes

    yield robot
    for thing in closing:
        thing.close()


def ask(chat, text, **options):
    turn = chat.ask(Turn(text, chat.options, **options))
    assert turn.ended.wait(20)
    return turn


def test_an_interrupted_reply_leaves_history_at_what_was_delivered(robot):
    chat, notes = robot('tokens_per_second=100')
    first = chat.ask(Turn('x' * 100, chat.options))
    notes.wait('piece', 5)
    second = ask(chat, 'stop')
    said = ''.join(event[2] for event in notes.events if event[0] == 'piece' and event[1] is first)
    assert first.finish_reason == 'interrupted' and first.reply == said
    assert [message.text for message in chat.history if message.role == 'bot'] == [said, second.reply]


def test_a_turn_that_fails_leaves_the_history_as_it_was(robot):
    chat, _ = robot()
    ask(chat, 'one')
    before = list(chat.history.messages)
    for text in ('', ' ', 'x' * 10_000):
        turn = ask(chat, text)
        assert turn.finish_reason == 'error' and turn.error
        assert chat.history.messages == before


def test_every_turn_of_a_flood_is_answered_or_refused_and_the_queue_is_bounded(robot):
    chat, notes = robot('tokens_per_second=2000', on_new_query='queue', max_queue=5)
    turns = [chat.ask(Turn(f'q{i}', chat.options)) for i in range(2000)]
    assert chat.num_waiting <= 5
    assert all(turn.ended.wait(20) for turn in turns)
    assert {turn.finish_reason for turn in turns} == {'stop', 'refused'}
    assert sum(event[0] == 'ended' for event in notes.events) == len(turns)


def test_an_interrupting_flood_ends_with_the_last_question(robot):
    chat, _ = robot('tokens_per_second=500')
    turns = [chat.ask(Turn(f'question {i}', chat.options)) for i in range(500)]
    assert all(turn.ended.wait(20) for turn in turns)
    assert turns[-1].reply == 'You said: question 499'
    assert {turn.finish_reason for turn in turns[:-1]} <= {'interrupted', 'stop'}


def test_small_talk_does_not_interrupt_what_has_a_higher_priority(robot):
    chat, notes = robot('tokens_per_second=200')
    urgent = chat.ask(Turn('x' * 50, goal_options(goal(priority=5), chat.options)))
    notes.wait('piece', 3)
    small = ask(chat, 'hello')
    assert urgent.finish_reason == small.finish_reason == 'stop' and urgent.reply == 'You said: ' + 'x' * 50


def test_reset_stops_drops_forgets_and_keeps_the_prompt_or_replaces_it(robot):
    chat, notes = robot('tokens_per_second=50', on_new_query='queue', system_prompt='You are a robot.')
    turns = [chat.ask(Turn('x' * 100, chat.options)), chat.ask(Turn('y', chat.options))]
    notes.wait('piece', 3)
    assert 'stopped' in chat.reset() and [turn.finish_reason for turn in turns] == ['cancelled'] * 2
    assert [message.text for message in chat.history] == ['You are a robot.']
    chat.reset('You are a cat.')
    assert [message.text for message in chat.history] == ['You are a cat.']


def test_what_is_on_disk_is_what_a_new_process_would_continue(robot, tmp_path):
    class Log:
        info = warning = error = staticmethod(lambda text: None)

    chat, _ = robot(store=ConversationStore(tmp_path, '/r1/nanochat', Log))
    ask(chat, 'one')
    again, _ = robot(store=ConversationStore(tmp_path, '/r1/nanochat', Log))
    assert [message.text for message in again.history] == ['one', 'You said: one']


def test_a_changed_system_prompt_wins_over_the_one_on_disk_and_an_unchanged_one_leaves_what_a_reset_gave(
    robot, tmp_path
):
    class Log:
        lines = []
        info = warning = error = staticmethod(lines.append)

    def start(**options):
        return robot(store=ConversationStore(tmp_path, '/r1/nanochat', Log), **options)[0]

    def prompt(chat):
        return [message.text for message in chat.history if message.role == 'system']

    chat = start(system_prompt='You are a robot.')
    ask(chat, 'one')
    chat.reset('You are a cat.')
    ask(chat, 'two')
    assert (
        prompt(start(system_prompt='You are a robot.')) == ['You are a cat.']
        and 'keeps its system prompt' in Log.lines[-1]
    )
    chat = start(system_prompt='You are a dog.')
    assert (
        prompt(chat) == ['You are a dog.'] and 'has changed since' in Log.lines[-1] and 'dog' in Log.lines[-1]
    )
    assert [message.text for message in chat.history][1:] == ['two', 'You said: two']
    ask(chat, 'three')
    assert (
        prompt(start(system_prompt='You are a dog.')) == ['You are a dog.'] and 'continuing' in Log.lines[-1]
    )
    assert prompt(start()) == prompt(robot()[0])  # not set any more: the template's own


def test_a_robot_that_keeps_its_kv_reads_nothing_again_after_a_restart_and_forgets_it_with_a_reset(
    robot, tmp_path
):
    class Log:
        lines = []
        info = warning = error = staticmethod(lines.append)

    def start(keep_kv=True):
        return robot(store=ConversationStore(tmp_path, '/r1/nanochat', Log, keep_kv))[0]

    def saved():  # it is written behind the announcement of the turn
        until = time.monotonic() + 10
        while not list(tmp_path.glob('*.kv')) and time.monotonic() < until:
            time.sleep(0.005)
        return list(tmp_path.glob('*.kv'))

    first = ask(start(), 'one')
    (file,) = saved()
    kept = file.read_bytes()
    assert file.stat().st_mode & 0o077 == 0
    chat = start()
    second = ask(chat, 'two')
    chat.close()
    assert (
        first.usage.reused_tokens == 0
        and second.usage.reused_tokens >= first.usage.prompt_tokens + first.usage.new_tokens - 1
        and second.reply == 'You said: two'
    )
    file.write_bytes(kept[:-1])
    chat = start()
    third = ask(chat, 'three')
    chat.close()
    assert third.usage.reused_tokens == 0 and third.reply == 'You said: three' and 'damaged' in Log.lines[-1]
    chat = start()
    ask(chat, 'four')
    chat.reset()
    assert not list(tmp_path.glob('*.kv*'))
    ask(chat, '')
    chat.stop_all()  # behind what follows a turn
    assert not list(tmp_path.glob('*.kv*')), 'a turn that did not run brings nothing back'
    ask(chat, 'five')
    assert saved()
    start(keep_kv=False)
    assert not list(tmp_path.glob('*.kv*'))


def test_a_kv_file_that_cannot_be_deleted_is_said_and_the_robot_goes_on(robot, tmp_path):
    class Log:
        lines = []
        info = warning = error = staticmethod(lines.append)

    chat, _ = robot(store=ConversationStore(tmp_path, '/r1/nanochat', Log, True))
    (tmp_path / 'r1.nanochat.kv').mkdir()
    assert 'forgotten' in chat.reset() and any('cannot be deleted' in line for line in Log.lines)
    assert ask(chat, 'one').reply == 'You said: one'


class Camera:
    present = True

    def __init__(self, age=0.0):
        self.age = age

    def newest(self):
        return Picture(lambda: np.zeros((4, 4, 3), np.uint8), 1, 'camera', self.age)


def test_a_model_without_vision_says_so_once_and_answers_the_text(robot):
    chat, _ = robot(camera=Camera())
    turn = ask(chat, 'hello')
    assert turn.reply == 'You said: hello' and 'no vision' in turn.note and turn.picture is None


@pytest.mark.parametrize(
    'error', [ValueError('no pixels'), MissingDependency('cv2'), MemoryError(), KeyError(3)]
)
def test_a_frame_that_cannot_be_decoded_costs_a_note_and_not_the_question(error):
    def broken():
        raise error

    class Camera:
        present = expecting = True

        def newest(self):
            return Picture(broken, 7, 'camera', 0.1)

        def trouble(self):
            return ''

    turn = Turn('What is it?', RobotOptions())
    assert CameraFrames(Camera()).pictures(turn, [], None, open_image) == []
    assert turn.picture is None and 'the camera image was not used' in turn.note


def test_an_image_of_the_question_itself_is_mandatory():
    def broken():
        raise ValueError('no pixels')

    with pytest.raises(ValueError, match='no pixels'):
        CameraFrames(None).pictures(Turn('What?', RobotOptions(), [Picture(broken)]), [], None, open_image)


class SeeingModel:
    """The fake model with eyes that remember what they were shown."""

    has_vision = True

    def __init__(self, model, error=None):
        self._model, self._error, self.seen = model, error, []

    def __getattr__(self, name):
        return getattr(self._model, name)

    def open_image(self, image):
        return open_image(image)

    def embed_image(self, image, stopped=None):
        if self._error is not None:
            raise self._error
        self.seen.append(np.asarray(open_image(image)))
        return Rows([' [picture] '])


class Rows(list):
    seconds = 0.5


class FrontCamera(Camera):
    expecting = False

    def __init__(self, *frames):
        self.frames = list(frames)

    def newest(self):
        pixels = self.frames.pop(0)
        return Picture(lambda: pixels, 7, 'front', 0.1, number=7 + len(self.frames))

    def trouble(self):
        return ''


def noise(seed, height=30, width=40):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def seeing(robot, tmp_path):
    def make(frames=(), error=None, store=True):
        model = SeeingModel(NanoLLM.from_pretrained(api='fake'), error)
        made.append(model)
        kept = ConversationStore(tmp_path / 'state', 'r1', logging.getLogger()) if store else None
        chat = RobotConversation('r1', model, RobotOptions(), Notes(), FrontCamera(*frames), kept)
        made.append(chat)
        return chat, model

    made = []
    yield make
    for each in reversed(made):
        each.close()


@pytest.mark.parametrize('error', [BackendError('the encoder has no memory'), RuntimeError('out of memory')])
def test_a_frame_that_cannot_be_encoded_costs_a_note_and_not_the_question(seeing, error):
    chat, _ = seeing([noise(1)], error)
    turn = ask(chat, 'hello')
    assert turn.finish_reason == 'stop' and turn.picture is None
    assert f'the camera image was not used: {error}' in turn.note
    given = ask(chat, 'hello', pictures=[Picture(lambda: noise(2))])
    assert given.finish_reason == 'error' and str(error) in given.error


def test_a_frame_is_hashed_once_and_encoded_before_it_is_on_disk(seeing, tmp_path, monkeypatch):
    hashed = []
    digest = images.image_digest
    monkeypatch.setattr(images, 'image_digest', lambda picture: hashed.append(1) or digest(picture))
    monkeypatch.setattr(images, 'decode', None)  # nothing is read back
    chat, model = seeing([noise(1), noise(1), noise(2)])
    monkeypatch.setattr(
        model,
        'embed_image',
        lambda image, stopped=None, embed=model.embed_image: check_unwritten() or embed(image),
    )
    folder = tmp_path / 'state' / 'r1.json.images'

    def check_unwritten():
        assert len(list(folder.glob('*.png'))) == len(model.seen)

    assert ask(chat, 'hello').picture is not None and len(hashed) == 1
    assert ask(chat, 'and now?').picture is not None and len(hashed) == 2
    assert ask(chat, 'and now?').note == '' and len(hashed) == 3 and len(model.seen) == 2
    assert np.array_equal(model.seen[0], noise(1)) and np.array_equal(model.seen[1], noise(2))
    assert len(list(folder.iterdir())) == 2
    assert all(message.image is None or isinstance(message.image, str) for message in chat.history)


def test_what_is_on_disk_is_private_and_a_restart_cleans_up(seeing, tmp_path):
    chat, _ = seeing([noise(1)])
    ask(chat, 'hello')
    chat.close()
    folder = tmp_path / 'state'
    for path in [folder, *folder.rglob('*')]:
        assert path.stat().st_mode & 0o077 == 0, path
    pictures = folder / 'r1.json.images'
    kept = sorted(pictures.iterdir())
    pictures.chmod(0o755)
    left = [folder / '.r1.json.abc.part', folder / '.r1.prompt.x.part', folder / 'r1.kv-part']
    left += [pictures / '.y.png.x.part', pictures / 'orphan.png']
    others = [folder / '.r10.json.abc.part', folder / '.other.part']
    for path in left + others:
        path.write_bytes(b'x')
    again, _ = seeing()
    assert sorted(pictures.iterdir()) == kept and pictures.stat().st_mode & 0o077 == 0
    assert not any(path.exists() for path in left) and all(path.exists() for path in others)
    assert len(again.history) == len(chat.history)
    again.close()
    part = folder / 'r1.kv-part'
    part.write_bytes(b'x')
    ConversationStore(folder, 'r1', logging.getLogger(), keep_kv=True).close()
    assert not part.exists()


@pytest.mark.parametrize(
    ('pictures', 'says'),
    [
        ([Picture(lambda: noise(1))] * 3000, 'carries 3000 images, and at most 16'),
        ([Picture(lambda: noise(1), num_bytes=100 << 20)] * 3, 'bytes'),
        ([Picture(lambda: np.broadcast_to(np.uint8(0), (6000, 6000, 3)))] * 2, 'pixels together'),
        ([Picture(lambda: 1 / 0, count_pixels=lambda: 40_000_000)] * 2, 'pixels together'),  # not decoded
    ],
)
def test_the_images_of_a_question_are_bounded(seeing, pictures, says):
    chat, _ = seeing()
    turn = ask(chat, 'What is it?', pictures=pictures)
    assert turn.finish_reason == 'error' and says in turn.error and '\n' not in turn.error
    assert ask(chat, 'hello', pictures=[Picture(lambda: noise(1))] * 2).finish_reason == 'stop'


def test_images_are_let_go_with_their_turn(seeing):
    chat, _ = seeing([noise(5)], store=False)
    alive = []

    def picture(seed):
        pixels = noise(seed).view(Pixels)
        alive.append(weakref.ref(pixels))
        return Picture(lambda: pixels)

    turns = [ask(chat, f'{n}?', pictures=[picture(n), picture(10 + n)]) for n in range(3)]
    turns.append(ask(chat, 'too many', pictures=[picture(n) for n in range(20)]))
    gc.collect()
    assert not any(ref() is not None for ref in alive)
    assert [turn.picture is not None for turn in turns] == [True, True, True, False]


class Pixels(np.ndarray):
    """An array that can be watched."""


def test_while_the_disk_takes_nothing_few_pictures_are_kept(seeing, monkeypatch):
    chat, _ = seeing([noise(n) for n in range(12)])
    monkeypatch.setattr(storage, 'write_whole', full)
    for _ in range(12):
        assert 'not on disk' in ask(chat, 'and now?').note
    held = [m.image for m in chat.history if m.image is not None]
    assert sum(not isinstance(image, PixelsGone) for image in held) <= 9
    monkeypatch.undo()
    chat.sight.camera = None
    ask(chat, 'and now?')
    held = [m.image for m in chat.history if m.image is not None]
    assert sum(isinstance(image, str) for image in held) >= 8
    chat.close()
    again, _ = seeing()
    assert len(again.history) == len(chat.history)


def full(*_):
    raise OSError(28, 'No space left on device')


def test_a_picture_that_the_conversation_shows_already_does_not_go_in_again_whatever_its_stamp():
    def frame(stamp, value):
        return Picture(lambda: np.full((4, 4, 3), value, np.uint8), stamp, 'camera', 0.0)

    class Frames:
        present = True

        def newest(self):
            return self.frame

    sight, history = CameraFrames(Frames()), [object()]

    def shown(*of):
        sight.camera.frame = frame(*of)
        turn = Turn('what is it?', RobotOptions())
        pictures = sight.pictures(turn, history, None, open_image)
        for picture, pixels in pictures:
            sight.shown(history[0], picture, pixels)
        return len(pictures), turn.picture.stamp

    assert [shown(1, 7), shown(2, 7), shown(3, 8), shown(3, 8), shown(4, 7)] == [
        (1, 1),
        (0, 2),
        (1, 3),
        (0, 3),
        (1, 4),
    ]
    history.clear()
    history.append(object())
    assert shown(5, 7) == (1, 5)  # the message that showed it is gone


def test_a_view_is_the_same_under_noise_and_another_where_something_moved():
    rng = np.random.default_rng(0)
    view = np.full((480, 640, 3), 128, np.uint8)
    noisy = np.clip(view + rng.normal(0, 8, view.shape), 0, 255).astype(np.uint8)
    moved = view.copy()
    moved[100:300, 200:400] = 255
    assert np.abs(thumbnail(view) - thumbnail(noisy)).mean() < 2
    assert np.abs(thumbnail(view) - thumbnail(moved)).mean() > 10


def goal(**fields):
    from types import SimpleNamespace

    return SimpleNamespace(
        **{
            'query': 'q',
            **{
                each.parameter or each.name: each.goal
                for kind in (RobotOptions, GenerationConfig)
                for each in options_of(kind)
                if each.goal is not None
            },
            **fields,
        }
    )


def test_a_goal_without_options_takes_the_robots_and_with_them_its_own():
    base = robot_options({name: parameter.default for name, parameter in ROBOT_PARAMETERS.items()})
    assert goal_options(goal(), base) == base
    own = goal_options(
        goal(temperature=0.5, max_new_tokens=-1, seed=3, stop=['.', ''], deadline=2.0, on_new_query='queue'),
        base,
    )
    assert (
        own.generation.do_sample
        and own.generation.temperature == 0.5
        and own.generation.max_new_tokens == -1
        and own.generation.seed == 3
    )
    assert own.generation.stop_tokens == ('.',) and own.deadline == 2.0 and own.on_new_query == 'queue'
    assert goal_options(goal(temperature=0.0), base).generation.greedy


@pytest.mark.parametrize(
    'names, told',
    [(['a b'], 'ROS name'), (['1a'], 'ROS name'), (['a', 'a'], 'twice'), (['temperature'], 'parameter')],
)
def test_robot_names_are_names_of_ros(names, told):
    with pytest.raises(ValueError, match=told):
        robot_names(names)


def test_no_robots_is_the_node_itself():
    assert robot_names(['']) == robot_names([]) == ['']


@pytest.mark.parametrize(
    'text, sentences',
    [
        ('Hello. How are you? Fine!', ['Hello.', 'How are you?', 'Fine!']),
        ('It is 3.14 m, e.g. here. Yes.', ['It is 3.14 m, e.g. here.', 'Yes.']),
        ('Dr. Who said "Go." Then left', ['Dr. Who said "Go."', 'Then left']),
        ('\u4f60\u597d\u3002\u518d\u89c1\uff01', ['\u4f60\u597d\u3002', '\u518d\u89c1\uff01']),
        ('Two:\n\nparagraphs', ['Two:', 'paragraphs']),
        ('List\n- one\n- two', ['List', '- one', '- two']),
        ('', []),
    ],
)
def test_sentences_come_out_whole_however_the_text_is_cut(text, sentences):
    for size in (1, 2, 5, 100):
        splitter = SentenceSplitter()
        got = [
            s for i in range(0, len(text), size) for s in splitter.add(text[i : i + size])
        ] + splitter.flush()
        assert got == sentences


def test_a_reply_that_is_cut_in_half_a_character_says_and_keeps_whole_ones(robot):
    text = 'Hi é🙂. So 🙂'
    for n in range(1, len(text.encode()) + 1):
        chat, notes = robot(f'reply={text}', generation=GenerationConfig(max_new_tokens=n))
        turn = ask(chat, 'hello')
        whole = text.encode()[:n].decode('utf-8', 'ignore')
        assert (
            turn.reply == whole
            and turn.finish_reason == 'length'
            and turn.usage.new_tokens == len(whole.encode())
        )
        assert ''.join(event[2] for event in notes.events if event[0] == 'piece') == whole
        assert not any('\ufffd' in event[2] for event in notes.events if event[0] == 'sentence')
        if whole:
            assert chat.history[-1].text == whole
            before = chat.history.num_tokens
            second = ask(chat, 'again')
            assert second.usage.reused_tokens >= before - 3, second  # the ids that were said are still held


def test_the_deadline_of_a_waiting_turn_needs_no_model(robot):
    chat, notes = robot('tokens_per_second=20', on_new_query='queue')
    chat.ask(Turn('x' * 60, chat.options))
    late = chat.ask(Turn('late', goal_options(goal(deadline=0.05), chat.options)))
    time.sleep(0.1)
    chat.expire()
    assert late.ended.is_set() and late.finish_reason == 'deadline'


def test_the_lock_of_a_state_file_is_shared_within_a_process_and_kept_until_its_last_holder(tmp_path):
    path = tmp_path / 'r1.lock'
    code = (
        'import sys; from pathlib import Path; from ros2_nanochat.robot.state_lock import StateLock\n'
        'try: StateLock(Path(sys.argv[1]))\n'
        'except ValueError as error: sys.exit(3)'
    )

    def another_process():
        return subprocess.run([sys.executable, '-c', code, str(path)], timeout=60).returncode

    os.mkfifo(tmp_path / 'fifo')
    with pytest.raises(OSError, match='Not a regular file.*fifo'):
        StateLock(tmp_path / 'fifo')
    first, second = StateLock(path), StateLock(path)
    first.release()
    first.release()
    assert another_process() == 3
    second.release()
    assert another_process() == 0
