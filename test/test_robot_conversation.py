"""One robot's conversation without ROS, on the fake model."""

import threading
import time

import numpy as np
import pytest

from ros2_nanochat import NanoLLM
from ros2_nanochat.errors import MissingDependency
from ros2_nanochat.robot.conversation import RobotConversation
from ros2_nanochat.robot.frames import CameraFrames, thumbnail
from ros2_nanochat.robot.options import (
    ROBOT_PARAMETERS,
    RobotOptions,
    goal_options,
    robot_names,
    robot_options,
)
from ros2_nanochat.robot.sentences import SentenceSplitter
from ros2_nanochat.robot.store import ConversationStore
from ros2_nanochat.robot.turn import Picture, Turn


class Notes:
    def __init__(self):
        self.events, self.changed = [], threading.Condition()

    def _note(self, *event):
        with self.changed:
            self.events.append(event)
            self.changed.notify_all()

    def started(self, turn):
        self._note('started', turn)

    def piece(self, turn, index, text, num_tokens, reasoning):
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
        first.reused_tokens == 0
        and second.reused_tokens >= first.prompt_tokens + first.new_tokens - 1
        and second.reply == 'You said: two'
    )
    file.write_bytes(kept[:-1])
    chat = start()
    third = ask(chat, 'three')
    chat.close()
    assert third.reused_tokens == 0 and third.reply == 'You said: three' and 'damaged' in Log.lines[-1]
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
    assert CameraFrames(Camera()).pictures(turn, [], None) == []
    assert turn.picture is None and 'the camera image was not used' in turn.note


def test_an_image_of_the_question_itself_is_mandatory():
    def broken():
        raise ValueError('no pixels')

    with pytest.raises(ValueError, match='no pixels'):
        CameraFrames(None).pictures(Turn('What?', RobotOptions(), [Picture(broken)]), [], None)


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
        pictures = sight.pictures(turn, history, None)
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
            'image_mode': '',
            'max_new_tokens': 0,
            'temperature': -1.0,
            'top_p': 0.0,
            'top_k': -1,
            'min_p': -1.0,
            'repetition_penalty': 0.0,
            'seed': -1,
            'stop': [],
            'priority': 0,
            'deadline': 0.0,
            'on_new_query': '',
            'response_format': '',
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


def test_the_deadline_of_a_waiting_turn_needs_no_model(robot):
    chat, notes = robot('tokens_per_second=20', on_new_query='queue')
    chat.ask(Turn('x' * 60, chat.options))
    late = chat.ask(Turn('late', goal_options(goal(deadline=0.05), chat.options)))
    time.sleep(0.1)
    chat.expire()
    assert late.ended.is_set() and late.finish_reason == 'deadline'
