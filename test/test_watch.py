"""Standing questions without ROS: what they see, when they ask, what ends them, and what it costs. On the
fake model with an encoder of ours where scheduling matters.
"""

import itertools
import math
import sys
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from watch_scenes import contrast, ground, seen, with_thing

from ros2_nanochat import ChatHistory, NanoLLM
from ros2_nanochat.config import GenerationConfig, RobotOptions
from ros2_nanochat.engine.usage import Usage
from ros2_nanochat.errors import EncodingStopped
from ros2_nanochat.robot import watch_standing
from ros2_nanochat.robot.observations import Observation, Observations
from ros2_nanochat.robot.turn import Picture
from ros2_nanochat.robot.watch import Watch, WatchEnd, WatchSource, WatchState, number_of, read_watch
from ros2_nanochat.robot.watch_asking import Answer, Pending
from ros2_nanochat.robot.watch_budget import WatchBudget
from ros2_nanochat.robot.watch_choice import Choice
from ros2_nanochat.robot.watch_frames import CameraView, Unusable, View
from ros2_nanochat.robot.watch_scene import Scene
from ros2_nanochat.robot.watch_standing import Standing
from ros2_nanochat.robot.watcher import MAX_WATCHES, Watcher
from ros2_nanochat.states import FinishReason
from ros2_nanochat.vision.encoder import VisionEncoder

# --- what changes ---


@pytest.mark.parametrize(
    'camera',
    [
        dict(noise=0.0),
        dict(noise=4.0),
        dict(noise=12.0),
        dict(noise=6.0, shot=True),
        dict(noise=4.0, quality=80),
    ],
    ids=str,
)
def test_noise_and_flicker_are_no_change_and_small_things_are(camera):
    rng = np.random.default_rng(1)
    missed = false = things = stills = 0
    for _ in range(8):
        room = ground(rng)
        first = Scene.of(seen(room, rng, **camera))
        for light in (1.0, 1.0, 0.95, 1.06):
            stills += 1
            false += not Scene.of(seen(room, rng, light=light, **camera)).same_as(first)
        for _ in range(3):
            size = int(rng.integers(12, 40))
            place = int(rng.integers(0, 600)), int(rng.integers(0, 440)), size, tuple(rng.uniform(0, 255, 3))
            if contrast(room, *place) < 60:
                continue
            things += 1
            missed += Scene.of(seen(with_thing(room, *place), rng, **camera)).same_as(first)
    assert things > 12 and missed <= 0.05 * things, (missed, things)
    assert false <= 0.05 * stills, (false, stills)


def test_a_thing_that_moves_or_changes_its_colour_is_a_change_and_so_is_another_size_or_darkness():
    rng = np.random.default_rng(2)
    room = ground(rng)

    def scene(left, color, light=1.0):
        return Scene.of(seen(with_thing(room, left, 200, 30, color), rng, light=light))

    red, green = (200.0, 40.0, 40.0), (40.0, 122.0, 40.0)  # alike in grey
    before = scene(300, red)
    assert scene(300, red).same_as(before)
    assert not scene(330, red).same_as(before)
    assert not scene(300, green).same_as(before)
    assert not scene(300, red, light=0.3).same_as(before)
    half = room.copy()
    half[:, :320] += 20  # much of the picture, by little
    assert not Scene.of(seen(half, rng)).same_as(Scene.of(seen(room, rng)))
    assert not Scene.of(seen(ground(rng), rng)).same_as(before)
    assert not Scene.of(np.zeros((480, 640, 3), np.uint8)).same_as(before)
    assert not Scene.of(seen(ground(rng, 320, 240), rng)).same_as(Scene.of(seen(ground(rng, 320, 320), rng)))
    for shape in ((1, 1), (1, 500), (7, 3), (48, 64)):
        tiny = Scene.of(rng.integers(0, 256, (*shape, 3), dtype=np.uint8))
        assert tiny.same_as(tiny) and not tiny.same_as(None)


@pytest.mark.parametrize(
    'shape', [(480, 640), (1, 1), (1, 500), (7, 3), (333, 517), (1080, 1920), (20000, 20)]
)
def test_a_scene_is_the_mean_of_each_block_however_the_bytes_of_its_picture_lie(shape):
    rng = np.random.default_rng(3)
    pixels = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    blocks = Scene.of(pixels).blocks
    edges = [np.linspace(0, length, count + 1).astype(int) for length, count in zip(shape, blocks.shape)]
    for row, column in rng.integers(0, blocks.shape[:2], (20, 2)):
        (top, bottom), (left, right) = edges[0][row : row + 2], edges[1][column : column + 2]
        assert blocks[row, column] == pytest.approx(
            pixels[top:bottom, left:right].mean(axis=(0, 1)), abs=1e-3
        )
    assert blocks.dtype == np.float32
    assert np.array_equal(Scene.of(pixels[..., ::-1]).blocks, blocks[..., ::-1])
    assert np.array_equal(Scene.of(pixels[::2, ::-1]).blocks, Scene.of(pixels[::2, ::-1].copy()).blocks)
    grey = np.broadcast_to(pixels[..., :1], pixels.shape)
    assert np.array_equal(Scene.of(grey).blocks, Scene.of(grey.copy()).blocks)


# --- what is asked, and what ends it ---


@pytest.mark.parametrize(
    'until, value, ends',
    [
        ('yes', 'yes', True),
        ('yes', 'no', False),
        ('"yes"', 'yes', True),
        ('3', 3, True),
        ('3', '3', True),
        ('3.0', 3, True),
        ('>= 3', 2, False),
        ('>= 3', 3, True),
        ('>= 3', {'count': 4}, True),
        ('< 0.5', '0.25', True),
        ('!= 0', 'none', False),
        ('{"count": 3}', {'count': 3}, True),
        ('true', True, True),
        ('', 'yes', False),
    ],
)
def test_until_compares_texts_json_and_numbers(until, value, ends):
    text = value if isinstance(value, str) else str(value)
    assert Watch(name='x', question='?', until=until).ends_with(value, text, number_of(value)) == ends


def test_a_standing_question_that_cannot_work_is_refused_in_one_line():
    for fields, told in (
        ({}, 'question'),
        ({'question': ' '}, 'question'),
        ({'question': 'a', 'name': 'a b'}, 'name'),
        ({'question': 'a', 'max_rate': -1.0}, 'max_rate'),
        ({'question': 'a', 'max_rate': math.nan}, 'max_rate'),
        ({'question': 'a', 'until_count': 0}, 'until_count'),
        ({'question': 'a', 'frames': 0}, 'frames'),
        ({'question': 'a', 'frames': 9, 'cameras': ['image', 'arm']}, '16 pictures'),
        ({'question': 'a', 'cameras': ['arm', 'arm']}, 'twice'),
        ({'question': 'a', 'cameras': ['leg']}, "no camera 'leg', only image, arm"),
        ({'question': 'a', 'response_format': 'yes | no', 'until': 'maybe'}, 'one of yes | no'),
        ({'question': 'a', 'response_format': 'yes | '}, 'response_format'),
        ({'question': 'a', 'response_format': 'yes | no', 'until': '>= 1'}, 'one of yes | no'),
        ({'question': 'a', 'response_format': '1 | 2 | 3', 'until': '> 3'}, 'one of 1 | 2 | 3'),
        ({'question': 'a', 'until': '>= 1.2.3'}, "until='>= 1.2.3'"),
        ({'question': 'a', 'until': '< many'}, "until='< many'"),
        ({'question': 'a', 'until': '>='}, "until='>='"),
        ({'question': 'a', 'rate': 2}, "no option 'rate'"),
    ):
        with pytest.raises(ValueError, match='.') as caught:
            read_watch(fields, ['arm'])
        assert told in str(caught.value) and '\n' not in str(caught.value), caught.value
    for form, until in (('1 | 2 | 3', '>= 3'), ('1 | 2', '2.0'), ('> 3 | less', '> 3'), ('', '>= -1.5e3')):
        assert read_watch({'question': 'a', 'response_format': form, 'until': until}).until == until
    for text, until in (
        *((text, text) for text in ('<none>', '<b>yes</b>', '>:(', '!', '<3')),
        *((text, f'"{text}"') for text in ('>= two', '< many', '>', '!= 1.2.3')),
    ):
        assert read_watch({'question': 'a', 'until': until}).ends_with(text, text, math.nan), until
    assert read_watch({'question': 'Is the door open?'}).name == 'is_the_door_open'
    assert read_watch({'question': 'Ist offen? 🚪', 'name': ''}).cameras == ('image',)


def test_the_share_of_the_model_is_kept_and_robots_take_turns():
    now, served, spent, end = [0.0], {'a': 0, 'b': 0}, 0.0, 100.0
    budget = WatchBudget(0.25, lambda: now[0])
    while now[0] < end:
        for robot in served:
            if budget.take(robot) == 0.0:
                now[0] += 0.1
                budget.spend(robot, 0.1)
                served[robot], spent = served[robot] + 1, spent + 0.1
        now[0] += 0.01
    assert 0.2 * end <= spent <= 0.26 * end + 0.6
    assert abs(served['a'] - served['b']) <= 2


def test_robots_that_wait_for_a_turn_ask_seldom_while_slow_looks_are_under_way():
    def waits(seconds):
        now = [0.0]
        budget = WatchBudget(1.0, lambda: now[0])
        for _ in range(20):
            assert budget.take('first') == 0.0
            now[0] += 2 * seconds
            budget.spend('first', seconds)
        for robot in 'abcd':
            assert budget.take(robot) == 0.0
        return budget.take('e')

    assert 0.02 <= waits(0.3) <= 0.1  # four such looks take the model over a second
    assert 0.0 < waits(0.005) <= 0.01


class Left(WatchBudget):
    """Keeps who has left the queue."""

    def __init__(self, *args):
        super().__init__(*args)
        self.left = []

    def forgo(self, who):
        self.left.append(who)
        super().forgo(who)


# --- watching ---


class Eyes(VisionEncoder):
    """Encodes each picture as 40 rows.

    Attributes:
        slow: It does not end until it is stopped, or this is False.
        begun: Set while it is slow.
    """

    slow = False

    def __init__(self):
        super().__init__()
        self.begun = threading.Event()

    def at_rest(self):
        """Whether it encodes nothing now."""
        if free := self._lock.acquire(blocking=False):
            self._lock.release()
        return free

    def _load(self): ...

    def _encode(self, picture, digest, stopped=None):
        while self.slow:
            if stopped is not None and stopped():
                raise EncodingStopped('the picture was not encoded')
            self.begun.set()
            time.sleep(0.01)
        rows = np.random.default_rng(list(digest)).standard_normal((40, 8)).astype(np.float32)
        return [self._span(rows, digest)]

    def _unload(self): ...


class Frames:
    """A camera: shows what it was last given."""

    def __init__(self):
        self.present, self.expecting = True, False
        self._frame = None
        self._count = 0

    def show(self, pixels, age=0.0):
        self._count += 1
        at = time.monotonic() - age

        def decode():
            if isinstance(pixels, Exception):
                raise pixels
            return pixels

        self._frame = (Picture(decode, time.time_ns(), 'eye', number=self._count, sequence=self._count), at)

    def newest(self):
        if self._frame is None:
            return None
        picture, at = self._frame
        return Picture(
            picture.decode,
            picture.stamp,
            picture.frame_id,
            time.monotonic() - at,
            number=picture.number,
            sequence=picture.sequence,
        )

    def trouble(self):
        return 'it is dark'


class Heard:
    """A `WatchOutput`: keeps all it hears."""

    def __init__(self):
        self.seen, self.ends, self.news = [], [], threading.Condition()

    def observed(self, standing, observation):
        with self.news:
            self.seen.append(observation)
            self.news.notify_all()

    def ended(self, standing, reason, error):
        with self.news:
            self.ends.append((standing.watch.name, reason))
            self.news.notify_all()

    def changed(self):
        with self.news:
            self.news.notify_all()

    def wait(self, condition, timeout=20.0):
        with self.news:
            end = time.monotonic() + timeout
            while not condition():
                assert time.monotonic() < end, (self.seen[-3:], self.ends)
                self.news.wait(0.05)

    def of(self, name):
        return [each for each in self.seen if each.watch.name == name]


def picture(value, size=64):
    pixels = np.full((size, size, 3), 120, np.uint8)
    pixels[:, : size // 2] = value
    return pixels


class Robot:
    def __init__(self, setup='', share=1.0, sequences=8, budget=None, **options):
        self.model = NanoLLM.from_pretrained(
            setup or None, api='fake', max_context_len=2048, max_sequences=sequences
        )
        self.model.vision = Eyes()
        self.forwards = []  # of each, how many entries of which sequences
        forward = self.model.backend.forward
        self.model.backend.forward = lambda chunks: (
            self.forwards.append([len(chunk) for chunk in chunks]) or forward(chunks)
        )
        self.busy = False
        self.cameras, self.heard = {'image': Frames(), 'arm': Frames()}, Heard()
        self.options = RobotOptions(
            system_prompt='You watch.' * 3, generation=GenerationConfig(max_new_tokens=64), **options
        )
        self.watcher = Watcher(
            'r1',
            self.model,
            lambda: self.options,
            self.cameras.get,
            self.heard,
            budget or WatchBudget(share),
            lambda: self.busy,
        )

    def watch(self, question, **fields):
        return self.watcher.add(read_watch({'question': question, **fields}, ['arm']), WatchSource.SERVICE)

    def show(self, value, camera='image'):
        self.cameras[camera].show(picture(value))

    def wait(self, condition, **options):
        self.heard.wait(condition, **options)

    def close(self):
        self.watcher.close()
        self.model.close()


@pytest.fixture
def robot():
    robots = []

    def robot(*args, **options):
        robots.append(Robot(*args, **options))
        return robots[-1]

    yield robot
    for each in robots:
        each.close()


def test_only_what_is_new_is_asked_and_a_still_frame_costs_no_model_time(robot):
    r1, seen_by = robot(), None
    r1.show(0)
    r1.watch('one?', name='a', max_rate=50.0)
    r1.wait(lambda: len(r1.heard.seen) == 1)
    first = r1.heard.seen[0]
    assert first.changed and not first.unchanged and first.text.endswith('one?') and first.valid
    assert first.frame_id == 'eye' and first.usage.prompt_tokens > 40 and first.usage.image_tokens == 40
    forwards = len(r1.forwards)
    for n in range(2, 6):
        r1.show(1)  # another frame, which shows the same but for the noise
        r1.wait(lambda n=n: len(r1.heard.seen) == n)
        seen_by = r1.heard.seen[-1]
        assert seen_by.unchanged and not seen_by.changed and seen_by.text == first.text
        assert seen_by.usage.prompt_tokens == 0 and seen_by.in_a_row == n
    assert len(r1.forwards) == forwards and r1.model.vision.stats['encoded'] == 1
    r1.show(200)
    r1.wait(lambda: len(r1.heard.seen) == 6)
    again = r1.heard.seen[-1]
    assert not again.unchanged and not again.changed  # the answer is the same
    assert again.usage.reused_tokens > 0 and r1.model.vision.stats['encoded'] == 2


def test_a_thread_that_died_is_replaced_and_shows(robot):
    r1, told = robot(), []
    r1.show(0)

    def end(standing, observation):
        told.append(observation)
        raise SystemExit

    r1.heard.observed = end
    r1.watch('one?', name='a', max_rate=50.0)
    r1.wait(lambda: told)
    del r1.heard.observed
    r1.wait(lambda: r1.watcher.supervise() or r1.watcher.faults.present)
    assert 'died' in r1.watcher.faults.present[0] and 'SystemExit' in r1.watcher.faults.present[0]
    r1.show(200)
    r1.wait(lambda: r1.heard.seen)
    r1.watcher.supervise()
    assert r1.watcher.faults.restarts == 1


def no_thread_left(thread):
    raise RuntimeError("can't start new thread")


def test_a_question_whose_thread_cannot_start_is_not_there_and_can_be_asked_again(robot, monkeypatch):
    r1, r2 = robot(), robot()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, 'start', no_thread_left)
        for each in (r1, r2):
            with pytest.raises(RuntimeError, match='new thread'):
                each.watch('one?', name='a')
            assert not each.watcher.standing
    r2.watcher.close()  # with a thread that never started
    r1.show(0)
    r1.watch('one?', name='a')
    r1.wait(lambda: r1.heard.seen)


def test_a_thread_is_told_to_have_been_restarted_only_if_it_was(robot, monkeypatch, caplog):
    r1 = robot()
    r1.show(0)
    r1.heard.observed = lambda *_: sys.exit()
    r1.watch('one?', name='a', max_rate=50.0)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, 'start', no_thread_left)
        failed = []

        def supervise():
            try:
                r1.watcher.supervise()
            except RuntimeError as error:
                failed.append(error)
            return failed

        r1.wait(supervise)
    (fault,) = r1.watcher.faults.present
    assert 'died' in fault and 'restarted' not in fault + caplog.text and not r1.watcher.faults.restarts
    del r1.heard.observed
    r1.wait(lambda: r1.watcher.supervise() or r1.watcher.faults.restarts)
    assert 'restarted' in r1.watcher.faults.present[0] and 'restarted' in caplog.text
    r1.show(200)
    r1.wait(lambda: r1.heard.seen)


def test_questions_about_one_frame_encode_and_prefill_it_once_and_are_answered_in_one_batch(robot):
    r1 = robot('step_overhead=0.2')  # as a model takes, so that all questions are there for the second step
    r1.busy = True  # until all three are there
    for name in ('a', 'b', 'c'):
        r1.watch(f'{name}?', name=name, max_rate=50.0, response_format='yes | no')
    r1.show(0)
    time.sleep(0.1)
    r1.busy = False
    r1.wait(lambda: len(r1.heard.seen) >= 3)
    seen_by = {each.watch.name: each for each in r1.heard.seen}
    usages = [seen_by[name].usage for name in ('a', 'b', 'c')]
    assert r1.model.vision.stats['encoded'] == 1
    # What is the same is computed once, but for a few tokens at its end, and the others share their steps.
    computed = sum(map(sum, r1.forwards))
    assert computed == sum(usage.prompt_tokens - usage.reused_tokens for usage in usages)
    assert computed <= sum(usage.prompt_tokens for usage in usages) - 2 * 24
    assert any(len(forward) >= 2 for forward in r1.forwards)
    assert all(0 < each.probability <= 1 and each.value in ('yes', 'no') for each in seen_by.values())
    assert all(each.usage.model_time > 0 for each in seen_by.values())


@pytest.mark.parametrize(
    'form, rows',
    [
        ('yes | no', 1),
        ('it is a red box. | it is a blue box. | it is a green box.', 1),
        ('red box | red | blue', 2),  # no single id decides
        ('red box | red ball | blue', 2),
        ('blue | red', 1),
    ],
)
def test_a_choice_takes_one_row_of_logits_where_its_alternatives_part(robot, form, rows):
    alternatives = form.split(' | ')
    r1 = robot(f'reply={alternatives[1]}')
    logits, forward = [], r1.model.backend.forward
    r1.model.backend.forward = lambda chunks: (
        logits.append(sum(chunk.num_logits for chunk in chunks)) or forward(chunks)
    )
    r1.show(0)
    r1.watch('what?', name='a', response_format=form)
    r1.wait(lambda: r1.heard.seen)
    seen_by = r1.heard.seen[0]
    assert seen_by.valid and seen_by.text == seen_by.value == alternatives[1] and seen_by.probability > 0.5
    assert sum(logits) == rows
    assert seen_by.usage.image_tokens == 40


def test_the_choice_is_the_most_likely_path_of_the_tree():
    rng = np.random.default_rng(5)
    for _ in range(200):
        texts = {tuple(rng.integers(0, 3, rng.integers(1, 5))) for _ in range(rng.integers(2, 7))}
        if len(texts) < 2:
            continue
        ids = {str(each): (*map(int, each), 9) for each in texts}
        logits = {}  # of what follows each beginning

        def after(beginning, logits=logits):
            return logits.setdefault(tuple(beginning), rng.standard_normal(10) * 2)

        def share(path, ids=ids, after=after):
            likely = 1.0
            for n, token_id in enumerate(path):
                may = sorted({each[n] for each in ids.values() if each[:n] == path[:n]})
                weights = np.exp(after(path[:n])[may])
                likely *= weights[may.index(token_id)] / weights.sum()
            return likely

        choice, asked = Choice(ids), 1
        while not choice.note(after(choice.beginning)):
            asked += 1
        shares = {text: share(path) for text, path in ids.items()}
        best = max(shares, key=shares.__getitem__)
        assert max(choice.shares, key=choice.shares.__getitem__) == best
        assert all(shares[text] == pytest.approx(value) for text, value in choice.shares.items())
        assert asked <= len({each[:n] for each in ids.values() for n in range(len(each))})
    alike = Choice({'a': (1, 2), 'b': (1, 2), 'c': (1, 3)})
    assert alike.note(np.eye(10)[2] * 9) and set(alike.shares) == {'a', 'c'}
    broken = Choice({'a': (1, 2), 'b': (3, 2)})
    assert broken.note(np.full(10, np.nan)) and not broken.shares


def test_watching_evicts_no_conversation_as_long_as_there_is_one_more_sequence(robot):
    r1 = robot(sequences=2)
    history = ChatHistory(r1.model)

    def ask(text):
        history.append('user', text=text)
        prompt, _ = history.embed_chat()
        reply = r1.model.generate(prompt, kv_cache=history.kv_cache, max_new_tokens=16).wait()
        history.append('bot', reply)
        return reply.usage

    first = ask('hello')
    for name in ('a', 'b', 'c'):
        r1.watch(f'{name}?', name=name, max_rate=50.0)
    for n in range(3):
        r1.show(n * 100)
        newest = r1.cameras['image'].newest().stamp
        r1.wait(
            lambda newest=newest: all(
                r1.heard.of(name) and r1.heard.of(name)[-1].stamp == newest for name in ('a', 'b', 'c')
            )
        )
    assert ask('again').reused_tokens >= first.prompt_tokens


def test_a_persons_question_ends_a_look_and_the_next_one_is_about_the_newest_frame(robot):
    r1 = robot('prefill_per_second=200')  # a look takes a while
    r1.show(0)
    r1.watch('a long question ' * 8, name='a', max_rate=0.0)
    r1.wait(lambda: r1.model.stats['active'])
    r1.busy = True
    r1.wait(lambda: not r1.model.stats['active'], timeout=5.0)
    assert not r1.heard.seen
    r1.show(200)
    newest = r1.cameras['image'].newest().stamp
    r1.busy = False
    r1.wait(lambda: r1.heard.seen)
    assert r1.heard.seen[0].stamp == newest


def test_a_persons_question_or_a_pause_ends_the_encoding_of_a_frame(robot):
    r1 = robot()
    eyes = r1.model.vision
    eyes.slow = True
    r1.watch('one?', name='a', max_rate=0.0)
    for interrupt, go_on in (
        (lambda: setattr(r1, 'busy', True), lambda: setattr(r1, 'busy', False)),
        (lambda: r1.watcher.pause('a', True), lambda: r1.watcher.pause('a', False)),
    ):
        r1.show(0)
        assert eyes.begun.wait(10.0)
        interrupt()
        deadline = time.monotonic() + 10.0
        while not eyes.at_rest():
            assert time.monotonic() < deadline, 'the encoding goes on'
            time.sleep(0.01)
        assert not r1.heard.seen
        eyes.begun.clear()
        go_on()
    r1.show(200)
    newest = r1.cameras['image'].newest().stamp
    eyes.slow = False
    r1.wait(lambda: r1.heard.seen and r1.heard.seen[-1].stamp == newest)
    assert r1.heard.seen[-1].text.endswith('one?')


def test_a_slow_model_never_queues_frames_and_counts_those_it_skips(robot):
    r1 = robot('step_overhead=0.1')
    standing = r1.watch('one?', name='a', max_rate=0.0, response_format='yes | no')
    for n in range(40):
        r1.show((n * 60) % 256)
        time.sleep(0.02)
    r1.wait(lambda: r1.heard.seen[-1].stamp == r1.cameras['image'].newest().stamp)
    seen_by = r1.heard.seen
    assert 2 <= len(seen_by) < 30
    assert sum(each.skipped_frames for each in seen_by[1:]) + len(seen_by[1:]) <= 40
    assert sum(each.skipped_frames for each in seen_by) > 5
    figures = standing.figures()
    assert {'rate', 'age', 'skipped_frames', 'unchanged_frames', 'cost', 'reused_tokens'} == set(figures)


def test_questions_about_two_cameras_that_always_change_take_turns_within_their_share(robot):
    r1 = robot('step_overhead=0.02', share=0.3)
    for camera in r1.cameras.values():
        newest = camera.newest

        def another(camera=camera, newest=newest, shown=itertools.count()):
            camera.show(picture(60 * next(shown) % 256))
            return newest()

        camera.newest = another
    for name, camera in (('a', 'image'), ('b', 'arm'), ('c', 'image')):
        r1.watch(f'{name}?', name=name, cameras=[camera], max_rate=0.0, response_format='yes | no')
    r1.wait(lambda: len(r1.heard.seen) >= 24)
    counts = [len(r1.heard.of(name)) for name in 'abc']
    assert min(counts) >= 6, counts


def test_questions_that_are_due_together_share_a_frame_and_its_comparison(robot, monkeypatch):
    r1, compared = robot(), []
    camera, difference = r1.cameras['image'], Scene.difference
    taken, newest = [], camera.newest
    monkeypatch.setattr(Scene, 'difference', lambda *scenes: compared.append(scenes) or difference(*scenes))

    def another():
        """Each time it is asked, the camera has a new frame."""
        taken.append(camera.show(picture(0)))
        return newest()

    camera.newest = another
    r1.busy = True  # until all are there
    each = [r1.watch(f'{name}?', name=name, max_rate=20.0) for name in 'abc']
    with r1.watcher._changed:  # the thread cannot begin a look of some of them
        together = time.monotonic() + 0.3
        for standing in each:
            standing.due = standing._next_question = together
    r1.busy = False
    r1.wait(lambda: all(len(r1.heard.of(name)) >= 5 for name in 'abc'))
    r1.watcher.close()
    stamps = [{each.stamp for each in r1.heard.of(name)[:5]} for name in 'abc']
    assert stamps[0] == stamps[1] == stamps[2]
    looks = len({each.stamp for each in r1.heard.seen if each.unchanged})
    assert len(compared) <= looks + 1 and len(r1.heard.seen) >= 15


def frozen(monkeypatch):
    """Stop the clock of the standing questions. Return its time, which the caller may change."""
    now = [0.0]
    monkeypatch.setattr(watch_standing, 'time', SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_a_frame_that_has_not_come_is_looked_for_when_the_camera_is_likely_to_send_it(monkeypatch):
    clock = frozen(monkeypatch)
    arrived, pixels = 100.0, picture(0)
    camera = SimpleNamespace(present=True, newest=lambda: frame)
    view = CameraView('image', lambda: camera)
    for number, gap, sent in ((1, 0.0, 1), (2, 0.1, 2), (3, 0.2, 4), (4, 0.11, 5), (5, 0.5, 6)):
        arrived += gap
        frame = Picture(lambda: pixels, number=number, sequence=sent, arrived=arrived)
        seen_by = view.newest(None)
    assert seen_by.followed - arrived == pytest.approx(0.105)  # of 0.1, 0.1, 0.11 and one that paused
    standing = Standing(read_watch({'question': '?', 'max_rate': 0.0}), WatchSource.SERVICE)
    now = clock[0]
    shown = View('image', frame, now, seen_by.scene, pixels, followed=now + 0.08)
    assert standing.take([shown])
    standing.answered(Answer('yes', 'yes', valid=True), 0.0, 0.0)
    for again in range(2):
        assert 0.08 <= standing.due - now <= 0.1, again
        assert not standing.take([shown])
    shown.followed = now - 0.006
    assert not standing.take([shown]) and 0.0 < standing.due - now <= 0.02
    shown.followed = now - 10.0  # a camera that has stopped, or sends now and then
    assert not standing.take([shown]) and standing.due - now <= 0.1
    shown.followed = now + 10.0
    assert not standing.take([shown]) and standing.due - now <= 0.1


@pytest.mark.parametrize('rate', (9.2, 7.0))
def test_a_camera_a_little_slower_than_the_question_costs_one_look_a_frame(monkeypatch, rate):
    clock, pixels, looks = frozen(monkeypatch), picture(0), 0
    scene = Scene.of(pixels)
    standing = Standing(read_watch({'question': '?', 'max_rate': 10.0}), WatchSource.SERVICE)
    for number in range(1, 31):
        arrived, coming = number / rate, (number + 1) / rate
        shown = View('image', Picture(lambda: pixels, number=number), arrived, scene, pixels, followed=coming)
        clock[0] = max(standing.due, arrived)
        while clock[0] < coming:
            looks += 1
            if standing.take([shown]):
                standing.answered(Answer('yes', 'yes', valid=True), 0.0, 0.0)
            clock[0] = standing.due
    assert len(standing._recent) == 30 and looks == 30


def test_a_question_about_several_frames_waits_for_the_one_after_the_newest(monkeypatch):
    clock = frozen(monkeypatch)
    pixels, watch = picture(0), {'question': '?', 'max_rate': 0.0, 'frames': 3, 'spacing': 0.5}
    standing = Standing(read_watch(watch), WatchSource.SERVICE)
    for number in (1, 2, 3):
        clock[0] += 0.5
        frame = Picture(lambda: pixels, number=number, sequence=number)
        shown = View('image', frame, clock[0], Scene.of(pixels), pixels, followed=clock[0] + 0.05)
        assert standing.take([shown]) == (number == 3)
    standing.answered(Answer('yes', 'yes', valid=True), 0.0, 0.0)
    assert 0.05 <= standing.due - clock[0] <= 0.06
    assert not standing.take([shown]) and 0.05 <= standing.due - clock[0] <= 0.06


def test_a_camera_that_nobody_publishes_is_not_asked_for_a_frame():
    asked, pixels = [], picture(0)
    camera = SimpleNamespace(present=False, newest=lambda: asked.append(1) or frame)
    view = CameraView('image', lambda: camera)
    frame = Picture(lambda: pixels, number=1, sequence=1, arrived=time.monotonic() - 5.0)
    for present in (False, True, False):  # before it, with it, and after it has gone
        camera.present = present
        if present:
            assert view.newest(None).picture.number == 1
        else:
            with pytest.raises(Unusable, match='nobody publishes'):
                view.newest(None)
    assert asked == [1]
    frame = Picture(lambda: pixels, number=2, sequence=2, arrived=time.monotonic() + 60.0)
    camera.present = True
    view.newest(None)
    camera.present = False  # is not asked while frames come
    assert view.newest(None).picture.number == 2 and len(asked) == 3
    frame = None
    with pytest.raises(Unusable, match='nobody publishes'):  # a moment after its last frame
        view.newest(None)


def test_until_ends_it_after_so_many_in_a_row_and_only_changes_tells_only_changes(robot):
    r1 = robot('reply=yes')
    r1.watch('one?', name='a', max_rate=50.0, until='yes', until_count=3, only_changes=True)
    for n in range(30):
        r1.show(n)
        time.sleep(0.03)
    r1.wait(lambda: r1.heard.ends)
    assert r1.heard.ends == [('a', WatchEnd.UNTIL)]
    assert len(r1.heard.seen) == 1 and r1.heard.seen[0].changed and not r1.watcher.standing


def test_a_time_limit_ends_it_even_without_a_camera(robot):
    r1 = robot()
    r1.cameras['image'].present = False
    standing = r1.watch('one?', name='a', timeout=0.3)
    r1.wait(lambda: standing.state is WatchState.WAITING or r1.heard.ends)
    r1.wait(lambda: r1.heard.ends)
    assert r1.heard.ends == [('a', WatchEnd.TIMEOUT)] and not r1.heard.seen


def test_a_time_limit_ends_it_while_its_frame_is_encoded_or_its_answer_is_under_way(robot):
    r, going_on = robot(), threading.Event()
    r.show(10)
    r.model.vision.slow = True
    r.watch('a', name='a', timeout=0.2)
    r.wait(lambda: r.heard.ends == [('a', WatchEnd.TIMEOUT)])
    r.model.vision.slow = False
    forward = r.model.backend.forward
    r.model.backend.forward = lambda chunks: going_on.wait(60.0) and forward(chunks)
    r.watch('b', name='b')
    r.watch('c', name='c', timeout=0.2)
    try:
        r.wait(lambda: ('c', WatchEnd.TIMEOUT) in r.heard.ends)
    finally:
        going_on.set()
    r.wait(lambda: r.heard.of('b'))
    assert not r.heard.of('c')


def test_it_waits_for_a_usable_frame_says_why_and_goes_on(robot):
    r1 = robot()
    camera = r1.cameras['image']
    standing = r1.watch('one?', name='a', max_rate=20.0)
    r1.wait(lambda: 'it is dark' in standing.note)
    camera.show(ValueError('the JPEG is broken'))
    r1.wait(lambda: 'the JPEG is broken' in standing.note)
    camera.show(picture(0), age=5.0)
    r1.wait(lambda: 'max_image_age' in standing.note)
    assert standing.state is WatchState.WAITING and not r1.heard.seen
    r1.show(0)
    r1.wait(lambda: r1.heard.seen)
    assert standing.state is WatchState.WATCHING and not standing.note
    camera.show(picture(0, size=100))  # another size
    r1.wait(lambda: len(r1.heard.seen) == 2)
    assert not r1.heard.seen[1].unchanged
    camera.present = False
    r1.wait(lambda: 'nobody publishes' in standing.note)
    camera.present = True
    r1.show(0)
    r1.wait(lambda: len(r1.heard.seen) == 3)


def test_it_can_be_paused_changed_and_removed_while_it_runs(robot):
    r1 = robot()
    r1.show(0)
    standing = r1.watch('one?', name='a', max_rate=50.0)
    r1.wait(lambda: r1.heard.seen)
    r1.watcher.pause('a', True)
    count = len(r1.heard.seen)
    r1.show(200)
    time.sleep(0.2)
    assert len(r1.heard.seen) == count and standing.state is WatchState.PAUSED
    r1.watcher.pause('a', False)
    r1.wait(lambda: len(r1.heard.seen) > count)
    r1.watcher.change('a', lambda watch: read_watch({'name': 'a', 'question': 'two?', 'max_rate': 50.0}))
    r1.wait(lambda: r1.heard.seen[-1].text.endswith('two?'))
    with pytest.raises(ValueError, match="'a' already"):
        r1.watch('one?', name='a')
    r1.watcher.remove('a')
    assert r1.heard.ends == [('a', WatchEnd.REMOVED)] and not r1.watcher.standing
    with pytest.raises(ValueError, match="no standing question 'a'; there are: none"):
        r1.watcher.remove('a')
    for n in range(MAX_WATCHES):
        r1.watch('one?', name=f'w{n}', max_rate=0.01)
    with pytest.raises(ValueError, match=f'{MAX_WATCHES} standing questions'):
        r1.watch('one?', name='more')


def test_the_thread_sleeps_while_all_are_paused(robot, caplog):
    r = robot()
    r.show(1)
    r.watch('a', name='a', max_rate=0.0)
    r.wait(lambda: r.heard.of('a'))
    r.watcher.pause('a', True)
    r.watch('b', name='b', timeout=0.2)  # by its end, the thread has looked at what is paused
    r.wait(lambda: r.heard.ends == [('b', WatchEnd.TIMEOUT)])
    r.watcher.change('a', lambda watch: replace(watch, priority=1))  # wakes it
    r.watcher.pause('a', False)
    r.show(200)
    r.wait(lambda: sum(not each.unchanged for each in r.heard.of('a')) == 2)
    r.watcher.close()
    assert 'internal error' not in caplog.text


def test_a_change_of_other_fields_than_the_question_is_no_event(robot):
    r1 = robot()
    r1.show(0)
    standing = r1.watch('one?', name='a', max_rate=50.0, only_changes=True, timeout=100.0)
    r1.wait(lambda: r1.heard.seen)
    ends = standing.until_time
    r1.watcher.change('a', lambda watch: replace(watch, max_rate=20.0, only_changes=False, priority=1))
    r1.show(0)
    r1.wait(lambda: len(r1.heard.seen) > 1)
    assert [each.changed for each in r1.heard.seen[:2]] == [True, False] and standing.until_time == ends
    r1.watcher.change('a', lambda watch: replace(watch, until=r1.heard.seen[0].text))
    r1.wait(lambda: r1.heard.ends == [('a', WatchEnd.UNTIL)])
    assert sum(each.changed for each in r1.heard.seen) == 1


def test_questions_across_cameras_and_about_several_frames(robot):
    r1 = robot()
    r1.watch('both?', name='both', cameras=['image', 'arm'], max_rate=50.0)
    moved = r1.watch('moved?', name='moved', frames=3, spacing=0.1, max_rate=50.0)
    r1.show(0)
    r1.wait(lambda: 'more frames' in moved.note)
    assert not r1.heard.seen
    r1.show(100, 'arm')
    r1.wait(lambda: r1.heard.of('both'))
    assert r1.heard.of('both')[0].usage.image_tokens == 80
    for n in range(1, 12):
        r1.show(n * 20)
        time.sleep(0.1)
    r1.wait(lambda: len(r1.heard.of('moved')) >= 4)
    usages = [each.usage for each in r1.heard.of('moved') if not each.unchanged]
    assert {usage.image_tokens for usage in usages} <= {120, 160}
    assert any(usage.reused_image_tokens >= 120 for usage in usages)  # frames that stayed


def test_two_questions_of_a_failing_model_say_why_and_the_thread_lives_on(robot):
    r1 = robot()
    r1.show(0)
    long = r1.watch('x' * 3000, name='long')
    r1.wait(lambda: 'context' in long.note)
    r1.watch('one?', name='a')
    r1.wait(lambda: r1.heard.of('a'))


def test_a_choice_whose_next_reply_cannot_begin_leaves_the_others_their_answers(robot):
    r1 = robot()
    generate = r1.model.generate

    def fails(*args, kv_cache=None, **options):
        if kv_cache is not None:
            raise RuntimeError('the queue is full')
        return generate(*args, kv_cache=kv_cache, **options)

    r1.model.generate = fails
    r1.busy = True  # until both are there
    choice = r1.watch('where?', name='choice', response_format='left box | left bag | right box | right bag')
    r1.watch('one?', name='other')
    r1.show(0)
    r1.busy = False
    r1.wait(lambda: r1.heard.of('other') and 'the queue is full' in choice.note)
    r1.model.generate = generate
    r1.show(200)
    r1.wait(lambda: r1.heard.of('choice'))


def test_closing_ends_all_and_refuses_more(robot):
    r1 = robot()
    r1.watch('one?', name='a')
    r1.watcher.close()
    assert r1.heard.ends == [('a', WatchEnd.CANCELLED)]
    with pytest.raises(ValueError, match='deactivated'):
        r1.watch('one?', name='b')


def test_a_model_without_vision_refuses(robot):
    r1 = robot()
    r1.model.vision = None
    with pytest.raises(ValueError, match='has no vision'):
        r1.watch('one?')


def test_the_answer_of_a_choice_is_its_most_likely_alternative():
    watch = read_watch({'question': 'Where?', 'response_format': 'at the top | at the bottom | on the left'})
    shares = {'at the top': 0.004, 'at the bottom': 0.006, 'on the left': 0.99}
    reply = {'text': 'at the top', 'finish_reason': FinishReason.STOP, 'valid': True, 'usage': Usage()}
    answer = Pending(watch, SimpleNamespace(**reply, probabilities=shares)).answer()
    assert (answer.text, answer.value, answer.probability) == ('on the left', 'on the left', 0.99)
    answer = Pending(watch, SimpleNamespace(**reply, probabilities=None)).answer()
    assert (answer.text, answer.probability) == ('at the top', 0.0)


@pytest.mark.parametrize('end', ['paused', 'removed', 'timeout', 'no frame'])
def test_a_robot_that_no_longer_asks_holds_up_no_other(robot, end):
    now = [0.0]
    budget = WatchBudget(1.0, lambda: now[0])
    first, second = (
        robot(budget=budget, max_image_age=0.5 if end == 'no frame' else None),
        robot(budget=budget),
    )
    budget.spend('another', 0.6)  # so that they have to wait
    first.show(200)
    second.show(200)
    standing = first.watch('Is it there?', name='a', timeout=0.5 if end == 'timeout' else 0.0)
    first.wait(lambda: standing.waits_since < math.inf)
    if end == 'paused':
        first.watcher.pause('a', True)
    elif end == 'removed':
        first.watcher.remove('a')
    elif end == 'timeout':
        first.wait(lambda: first.heard.ends)
    else:
        first.wait(lambda: standing.note)
    now[0] = 100.0
    second.watch('Is it there?', name='b')
    second.wait(lambda: second.heard.of('b'))


def test_a_question_that_waits_for_its_turn_keeps_it_while_others_of_its_robot_look(robot):
    now = [0.0]
    budget = Left(1.0, lambda: now[0])
    watching = robot(budget=budget)
    watching.show(100, 'arm')
    watching.watch('Is it still?', name='still', cameras=['arm'], max_rate=50.0)
    watching.wait(lambda: watching.heard.of('still'))
    watching.show(200)
    budget.spend('another', 30.0)
    standing = watching.watch('Is it there?', name='waits')
    watching.wait(lambda: standing.waits_since < math.inf)
    time.sleep(0.05)
    before = len(budget.left)
    watching.show(100, 'arm')
    watching.wait(lambda: watching.heard.seen[-1].unchanged)
    time.sleep(0.05)
    assert len(budget.left) == before


def test_observations_become_text_for_a_conversation():
    kept, watch = Observations(kept=3), Watch(name='door', question='Is it open?')
    assert kept.text() == 'nothing was observed'
    for n, text in enumerate(('no', 'yes', 'no', 'yes', 'no')):
        kept.add(Observation(watch, n, int((1.7e9 + 60 * n) * 1e9), '', text, changed=True))
    kept.add(Observation(watch, 5, int((1.7e9 + 600) * 1e9), '', 'no'))
    lines = kept.text().splitlines()
    assert len(lines) == 4 and lines[0].endswith('door: no') and 'last answer' in lines[-1]
    assert len(kept.text(since=1.7e9 + 150).splitlines()) == 3
    assert kept.text(names=['tray']) == 'nothing was observed'
    span = kept.text(since=1.7e9 + 100, until=1.7e9 + 190)
    assert [line.split(' ')[-1] for line in span.splitlines()] == ['no', 'yes']
