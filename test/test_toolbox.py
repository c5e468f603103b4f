"""The limits on a robot's tools, without ROS and without a model: performers that only note what happens."""

import json
import threading
import time
from types import SimpleNamespace

import pytest

from ros2_nanochat.robot.observations import Observation, Observations
from ros2_nanochat.robot.observing import Observing, last_time, observing_tool
from ros2_nanochat.robot.tool_entries import ToolEntry
from ros2_nanochat.robot.tool_journal import UNKNOWN, ToolJournal
from ros2_nanochat.robot.tool_policy import OnInterrupt, ToolKind, ToolLimits, ToolPolicy
from ros2_nanochat.robot.tool_record import CallRecord, RobotTool
from ros2_nanochat.robot.toolbox import Toolbox, TurnTools
from ros2_nanochat.robot.watch import Watch
from ros2_nanochat.states import FinishReason
from ros2_nanochat.tools import CallState, Tool, ToolCall

SPEED = {
    'type': 'object',
    'properties': {'speed': {'type': 'number', 'minimum': 0.0, 'maximum': 0.3}},
    'required': ['speed'],
}


class Hand:
    """Performs nothing, and notes it. `answers`: at once; else when the test says so."""

    def __init__(self, answers=True, acts_on=False, confirms_stop=True):
        self.answers, self.acts_on, self.confirms_stop = answers, acts_on, confirms_stop
        self.started, self.stopped, self.undone, self.gone = [], 0, 0, ''

    def start(self, arguments, run):
        self.started.append(dict(arguments))
        self.run = run
        run.taken()
        if self.answers:
            run.succeed('ok')

    def lost(self, run):
        return self.gone

    def stop(self, run):
        self.stopped += 1
        if self.confirms_stop:
            run.was_cancelled('stopped')

    def undo(self, again=False):
        self.undone += not again

    def preview(self, arguments):
        return f'it would drive {json.dumps(dict(arguments))}'

    def close(self): ...


class Case:
    """A box with one tool, and all that was said about its calls."""

    def __init__(self, hand=None, limits=None, journal=None, **policy):
        self.hand = hand or Hand()
        self.box = Toolbox('r1', ToolLimits(**{'rate': 1000.0, **(limits or {})}), journal=journal)
        self.box.set_tools([RobotTool(Tool('drive', 'Drive', SPEED), ToolPolicy(**policy), self.hand)])
        self.heard, self.changed = [], threading.Condition()
        self.box.listen(self._hear)
        self.turn = SimpleNamespace(id='0123456789abcdef', stop_reason=None, finish_reason='')
        self.tools = TurnTools(self.box, self.turn)
        self.count = 0

    def _hear(self, record):
        with self.changed:
            self.heard.append(record)
            self.changed.notify_all()

    def begin(self, name='drive', **arguments):
        self.count += 1
        call = ToolCall(f'call{self.count}', name, arguments or {'speed': 0.1})
        return self.tools.start(call, lambda call: None)

    def call(self, name='drive', **arguments):
        ended = self.begin(name, **arguments).wait(10)
        assert ended is not None
        return ended

    def wait_for(self, state):
        with self.changed:
            assert self.changed.wait_for(lambda: any(r.call.state == state for r in self.heard), 10), (
                self.heard
            )
            return next(r for r in reversed(self.heard) if r.call.state == state)

    @property
    def states(self):
        return [str(record.call.state) for record in self.heard]


def test_a_call_runs_and_is_told_with_its_states_and_duration():
    case = Case()
    ended = case.call(speed=0.2)
    assert (ended.state, ended.result) == (CallState.DONE, 'ok') and case.hand.started == [{'speed': 0.2}]
    assert case.states == ['running', 'done']
    record = case.heard[-1]
    assert record.turn_id == case.turn.id and record.call.id.endswith('call1') and record.call.id != 'call1'
    assert case.tools.records == [record]


@pytest.mark.parametrize(
    'name, arguments',
    [
        ('fly', {'speed': 0.1}),
        ('drive', {'speed': 0.31}),
        ('drive', {'speed': -1}),
        ('drive', {'speed': 'fast'}),
        ('drive', {'speed': 0.1, 'force': True}),
        ('drive', {'spead': 0.1}),
        ('__class__', {}),
        ('', {}),
    ],
)
def test_what_is_not_allowed_is_not_called_whoever_wrote_it(name, arguments):
    case = Case()
    ended = case.call(name, **arguments)
    assert ended.state is CallState.FAILED and 'not called' in ended.result and '\n' not in ended.result
    assert case.hand.started == [] and case.states == ['failed']


def test_half_a_character_in_an_answer_does_no_harm():
    class Half(Hand):
        def start(self, arguments, run):
            run.succeed('a\udcff')

    case = Case(Half())
    assert case.call(speed=0.2).result.encode() == 'a\ufffd'.encode()


def test_approval_is_given_refused_and_expires():
    case = Case(confirm=True, limits={'approval_timeout': 0.2})
    run = case.begin()
    asked = case.wait_for('waiting').call.id
    assert case.hand.started == [] and not case.box.approve('another', True)
    assert case.box.approve(asked, True) and run.wait(10).state is CallState.DONE
    assert not case.box.approve(asked, True)

    case = Case(confirm=True)
    run = case.begin()
    case.box.approve(case.wait_for('waiting').call.id, False, 'there is a child')
    assert run.wait(10).result == 'not called: it was refused: there is a child'

    case = Case(confirm=True, limits={'approval_timeout': 0.1})
    assert 'nobody approved it within 0.1 s' in case.call().result
    assert not case.box.approve(case.heard[0].call.id, True) and case.hand.started == []


def test_a_call_that_waits_for_approval_ends_with_its_turn():
    case = Case(confirm=True)
    run = case.begin()
    case.wait_for('waiting')
    run.cancel('the user spoke again')
    assert run.wait(10).result == 'not called: the user spoke again' and case.hand.started == []


def test_calls_per_turn_and_rate_are_limits():
    case = Case(limits={'calls_per_turn': 2})
    assert [str(case.call().state) for _ in range(3)] == ['done', 'done', 'failed']
    case = Case(calls_per_turn=1)
    assert [str(case.call().state) for _ in range(2)] == ['done', 'failed']
    case = Case(rate=0.1)
    assert case.call().state is CallState.DONE
    assert 'too often' in case.call().result and len(case.hand.started) == 1
    case = Case(rate=10.0)
    begin = time.monotonic()
    assert [str(case.call().state) for _ in range(3)] == ['done'] * 3  # held back, not refused
    assert time.monotonic() - begin >= 0.2


def test_a_rate_holds_from_the_approval_on():
    case = Case(rate=2.0, confirm=True)
    begun = []
    case.hand.start = lambda arguments, run: (begun.append(time.monotonic()), run.succeed('ok'))
    first = case.begin()
    waiting = case.wait_for('waiting')
    time.sleep(0.6)  # a person takes longer than the pause between two calls
    assert case.box.approve(waiting.call.id, True) and first.wait(10).state is CallState.DONE
    second = case.begin()
    with case.changed:
        assert case.changed.wait_for(lambda: case.states.count('waiting') == 2, 10)
    assert case.box.approve(case.heard[-1].call.id, True) and second.wait(10).state is CallState.DONE
    assert begun[1] - begun[0] >= 0.49


def test_nobody_is_asked_about_a_call_that_comes_too_early():
    case = Case(rate=0.1, confirm=True)
    first = case.begin()
    assert case.box.approve(case.wait_for('waiting').call.id, True) and first.wait(10).state is CallState.DONE
    assert 'too often' in case.call().result and case.states.count('waiting') == 1


def test_refused_calls_count_against_the_turn():
    case = Case(limits={'calls_per_turn': 2})
    for speed in (1.0, 0.1, 0.1, 0.1):
        case.call(speed=speed)
    assert len(case.hand.started) <= 2


@pytest.mark.parametrize('where', ['limits', 'policy'])
def test_a_dry_run_says_what_would_be_called_and_calls_nothing(where):
    case = Case(limits={'dry_run': True}) if where == 'limits' else Case(dry_run=True, confirm=True)
    ended = case.call(speed=0.2)
    assert ended.result == 'dry run: it would drive {"speed": 0.2}' and case.hand.started == []
    assert case.heard[-1].dry_run and case.states == ['done']


def test_a_cancelled_call_is_stopped_and_undone_before_the_turn_goes_on():
    case = Case(Hand(answers=False))
    run = case.begin()
    case.wait_for('running')
    case.turn.stop_reason = FinishReason.CANCELLED
    run.cancel('it was stopped')
    assert run.wait(10).state is CallState.CANCELLED
    assert case.hand.stopped == case.hand.undone == 1 and case.states[-1] == 'cancelled'


def test_a_tool_that_does_not_stop_is_unknown_after_a_bounded_time():
    case = Case(Hand(answers=False, confirms_stop=False), limits={'stop_timeout': 0.1})
    run = case.begin()
    case.wait_for('running')
    run.cancel()
    ended = run.wait(10)
    assert ended.state is CallState.UNKNOWN and 'has not confirmed' in ended.result and case.hand.undone == 1


def test_a_call_without_an_answer_is_stopped_when_its_time_is_up():
    case = Case(Hand(answers=False), timeout=0.1)
    ended = case.call()
    assert ended.state is CallState.FAILED and 'no answer within 0.1 s' in ended.result
    assert case.hand.stopped == 1


def test_a_server_that_goes_away_fails_the_call():
    case = Case(Hand(answers=False))
    case.hand.gone = 'the service has gone'
    assert case.call().result == 'the service has gone'


@pytest.mark.parametrize('error', [ValueError, SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize('place', ['start', 'lost', 'preview'])
def test_whatever_a_performer_raises_its_call_ends_with_the_reason(error, place):
    case = Case(Hand(answers=False), dry_run=place == 'preview')

    def fail(*_):
        raise error('the arm is gone')

    setattr(case.hand, place, fail)
    ended = case.call()
    assert ended.state is CallState.FAILED and 'the arm is gone' in ended.result
    assert case.heard[-1].call.ended


def test_what_the_performer_knows_is_told_also_if_the_time_is_up():
    case = Case(Hand(answers=False), timeout=0.05)
    case.hand.lost = lambda run: (
        time.sleep(0.1) or 'nobody publishes it'
    )  # a busy computer: it looks too late
    assert case.call().result == 'nobody publishes it'


def test_feedback_is_told_while_a_call_runs():
    case = Case(Hand(answers=False))
    run = case.begin()
    case.wait_for('running')
    case.hand.run.tell('{"driven": 0.1}')
    with case.changed:
        assert case.changed.wait_for(lambda: case.heard[-1].call.feedback, 10)
    case.hand.run.succeed('there')
    assert run.wait(10).state is CallState.DONE and case.heard[-1].call.feedback == '{"driven": 0.1}'


@pytest.mark.parametrize('keep', [False, True])
def test_an_interruption_cancels_a_call_or_leaves_it_running_as_the_file_says(keep):
    case = Case(Hand(answers=False), on_interrupt=OnInterrupt.KEEP if keep else OnInterrupt.CANCEL)
    run = case.begin()
    case.wait_for('running')
    case.turn.stop_reason = FinishReason.INTERRUPTED
    run.cancel('the user spoke again')
    case.box.interrupt(case.box.open_runs())
    ended = run.wait(10)
    assert ended.state is (CallState.DONE if keep else CallState.CANCELLED)
    assert bool(case.hand.stopped) is not keep and bool(case.box.open_runs()) is keep
    if keep:
        assert 'it goes on' in ended.result and case.tools.records[0].call.state is CallState.RUNNING
        assert case.box.stop() and case.box.wait() and case.hand.stopped == 1  # `cancel` reaches it


def test_a_kept_call_is_still_cancelled_with_its_turn():
    case = Case(Hand(answers=False), on_interrupt=OnInterrupt.KEEP)
    run = case.begin()
    case.wait_for('running')
    case.turn.stop_reason = FinishReason.CANCELLED
    run.cancel('it was stopped')
    assert run.wait(10).state is CallState.CANCELLED


def test_a_call_in_the_background_goes_on_and_its_result_comes_later():
    case = Case(Hand(answers=False), background=True)
    ended = case.call()
    assert ended.state is CallState.DONE and 'started' in ended.result
    assert case.tools.records[0].call.state is CallState.RUNNING and case.box.take_news() == []
    case.hand.run.succeed('arrived')
    case.wait_for('done')
    assert case.box.wait()
    assert [call.result for call in case.box.take_news()] == ['arrived'] and case.box.take_news() == []


def test_what_goes_on_acting_is_undone_by_cancel_also_after_its_turn():
    case = Case(Hand(acts_on=True))
    assert case.call().state is CallState.DONE and case.hand.undone == 0
    assert case.box.stop() and case.box.wait() and case.hand.undone == 1 and case.hand.stopped == 0
    assert case.states == ['running', 'done', 'cancelled'] and not case.box.stop()


def test_a_later_call_replaces_what_goes_on_acting():
    case = Case(Hand(acts_on=True))
    case.call(speed=0.1)
    case.call(speed=0.2)
    case.box.stop()
    assert case.box.wait() and case.hand.undone == 1


@pytest.mark.parametrize('reason', [FinishReason.CANCELLED, FinishReason.DEADLINE, FinishReason.INTERRUPTED])
def test_a_turn_that_is_stopped_after_its_call_undoes_what_goes_on_acting(reason):
    case = Case(Hand(acts_on=True))
    case.call()
    case.turn.stop_reason = reason
    case.tools.finish()
    assert case.box.wait() and case.hand.undone == 1


def test_a_turn_that_ends_well_leaves_what_it_did():
    case = Case(Hand(acts_on=True))
    case.call()
    case.tools.finish()
    assert case.hand.undone == 0 and len(case.box.open_runs()) == 1
    case.box.stop()


def test_each_call_is_a_line_of_the_audit_file(tmp_path):
    path = tmp_path / 'audit.jsonl'
    case = Case(limits={'audit': str(path)})
    case.call(speed=0.2)
    case.call('fly')
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line['state'] for line in lines] == ['running', 'done', 'failed']
    assert lines[0]['arguments'] == {'speed': 0.2} and lines[0]['robot'] == 'r1'
    assert path.stat().st_mode & 0o077 == 0


def test_nothing_is_called_that_cannot_be_written_to_the_audit_file(tmp_path):
    path = tmp_path / 'folder' / 'audit.jsonl'
    path.parent.mkdir()
    case = Case(limits={'audit': str(path)})
    path.unlink()
    path.parent.rmdir()
    ended = case.call()
    assert ended.state is CallState.FAILED and 'audit.jsonl' in ended.result and case.hand.started == []
    with pytest.raises(ValueError, match='limits.audit'):
        Toolbox(limits=ToolLimits(audit=str(path)))


def test_a_crash_leaves_in_the_journal_what_was_under_way(tmp_path):
    path = tmp_path / 'r1.calls'
    case = Case(Hand(answers=False), journal=ToolJournal(path))
    run = case.begin()
    case.wait_for('running')
    (lost,) = ToolJournal(path).lost  # what a new process would find
    assert lost.call.state is CallState.UNKNOWN and lost.call.result == UNKNOWN
    assert lost.call.id == case.heard[0].call.id and lost.turn_id == case.turn.id
    case.hand.run.succeed('there')
    assert run.wait(10)
    (ended,) = ToolJournal(path).ended  # the history with the answer is not on disk yet
    assert ended.call.state is CallState.DONE and ended.call.result == 'there'
    case.box.saved(['another call'])
    assert not path.exists()
    path.write_text('{')
    assert ToolJournal(path).lost == ToolJournal(path).ended == []


@pytest.mark.parametrize('background', [False, True])
def test_a_call_that_ended_stays_in_the_journal_until_the_model_was_told(tmp_path, background):
    path = tmp_path / 'r1.calls'
    case = Case(Hand(answers=False), journal=ToolJournal(path), background=background)
    run = case.begin()
    case.wait_for('running')
    if background:
        assert run.wait(10).result.startswith('started')
    case.hand.run.succeed('there')
    case.wait_for('done')
    case.box.saved([] if background else ['call1'])  # the history on disk does not hold the answer
    (ended,) = ToolJournal(path).ended
    assert (ended.call.state, ended.call.result, ended.background) == ('done', 'there', background)
    case.box.saved([], [ended.call])
    assert ToolJournal(path).ended == [ended]
    case.box.take_news()
    case.box.saved([])
    assert not path.exists()


def test_a_listener_that_comes_later_hears_of_calls_that_a_crash_cut_off():
    box, heard = Toolbox(), []
    record = CallRecord(ToolCall('a.b', 'drive', {}, CallState.UNKNOWN, UNKNOWN), background=True)
    box.recovered([record], [record.call])
    box.listen(heard.append)
    assert heard == [record] and box.take_news() == [record.call]


def test_stop_words_are_whole_questions():
    box = Case().box
    assert all(map(box.is_stop_word, ('stop', 'Stop!', ' STOP. ', 'please, stop', 'Halt!!!')))
    assert not any(map(box.is_stop_word, ('', '!', 'stop at the door', 'do not stop', 'When do you stop?')))
    assert not Toolbox().is_stop_word('stop')  # without tools it is a question like any other


@pytest.mark.parametrize(
    'word, said',
    [
        ('Halt', 'halt'),
        ('Stopp!', 'stopp'),
        ('HÖR AUF', 'Hör auf!'),
        ("DON'T", 'Don’t!'),
        ('止まれ', '止まれ！'),
        ('para', '¡Para!'),
        ('stop', 'Stop… 🛑'),
        *(('stop', said) for said in ('Stop‼️', 'Stop ❗️', '⏹️ stop', '*️⃣ stop', 'stop ¨')),
        *(('stop', said) for said in ('stop\u200b', '\ufeffstop', 'st\u00adop', 'stop\ufe0f')),
        *(('stop', said) for said in ("'stop'", '‘Stop’', '`stop`', "''Stop!'' ")),
        ("'stop'", 'stop'),
        ("don't", 'DON´T'),
        *(('iptal', said) for said in ('İPTAL', 'I\u0307ptal', 'IPTAL')),
        ('hayır', 'HAYIR!'),
    ],
)
def test_stop_words_of_a_file_are_found_however_they_are_written(word, said):
    limits = ToolLimits(stop_words=[word])
    assert limits.stops(said) and not limits.stops('') and not limits.stops(f'{said} x')


@pytest.mark.parametrize('word', [' !? ', "'", '’', '🛑', '⏹️', '\u200b', '\u0301'])
def test_a_stop_word_without_a_letter_is_refused(word):
    with pytest.raises(ValueError, match='stop_words.*a letter or digit'):
        ToolLimits(stop_words=['stop', word])


def observing(seen, watches=()):
    entry = ToolEntry('seen', ToolKind.OBSERVATIONS, '', 'here', watches=watches)
    box = Toolbox('r1', ToolLimits(rate=1000.0))
    box.set_tools([RobotTool(observing_tool(entry), ToolPolicy(), Observing(entry, lambda: seen))])
    turn = SimpleNamespace(id='0123456789abcdef', stop_reason=None, finish_reason='')
    tools = TurnTools(box, turn)

    def ask(**arguments):
        return tools.start(ToolCall(f'call{len(tools.records)}', 'seen', arguments), lambda call: None).wait(
            10
        )

    return ask


def test_what_was_seen_is_told_since_a_time_of_day():
    seen = Observations()
    for name, ago, text in (('door', 7200, 'open'), ('tray', 60, 'full'), ('door', 30, 'shut')):
        watch = Watch(name, f'How is the {name}?')
        seen.add(Observation(watch, 0, int((time.time() - ago) * 1e9), 'camera', text, changed=True))
    everything = observing(seen)().result
    assert all(f': {text}' in everything for text in ('open', 'full', 'shut'))
    hour_ago = time.strftime('%H:%M', time.localtime(time.time() - 3600))
    recent = observing(seen)(since=hour_ago).result
    assert ': open' not in recent and 'door: shut' in recent and 'tray: full' in recent
    assert 'tray' not in observing(seen, ('door',))().result
    assert observing(seen)(since='25:00').state is CallState.FAILED  # also if a server wrote it
    assert 'no vision' in observing(None)().result
    assert observing(Observations())().result == 'nothing was observed'


@pytest.mark.parametrize(
    'clock, minutes', [('10:00', 120), ('11:59', 1), ('12:00', 0), ('12:01', 1439), ('23:00', 780)]
)
def test_a_time_of_day_is_the_last_one(clock, minutes):
    now = time.mktime((2026, 7, 10, 12, 0, 0, 0, 0, -1))
    assert now - last_time(clock, now) == 60 * minutes


def test_a_simulation_has_no_time_of_day_so_all_is_told():
    seen = Observations()
    seen.add(Observation(Watch('door', 'How?'), 0, 5_000_000_000, '', 'open', changed=True))
    assert '5.0 s door: open' in observing(seen)(since='00:00').result
