"""What a robot knows of its calls of tools after the process was killed, and what is told once only."""

import logging
import time
from dataclasses import replace

import pytest

from ros2_nanochat import ChatHistory, NanoLLM, Tool
from ros2_nanochat.answer.written_call import WrittenCall
from ros2_nanochat.config import RobotOptions
from ros2_nanochat.robot.conversation import RobotConversation
from ros2_nanochat.robot.output import Nobody
from ros2_nanochat.robot.store import ConversationStore
from ros2_nanochat.robot.tool_journal import NOT_CALLED, UNKNOWN, ToolJournal
from ros2_nanochat.robot.tool_policy import ToolLimits, ToolPolicy
from ros2_nanochat.robot.tool_record import CallRecord, RobotTool
from ros2_nanochat.robot.toolbox import Toolbox
from ros2_nanochat.robot.turn import Turn
from ros2_nanochat.tools import CallState, ToolCall

NEWS = '(drive, which went on in the background, has ended: done: there)'


class Hand:
    acts_on = False


@pytest.fixture(scope='module')
def model():
    with NanoLLM.from_pretrained('prefill_per_second=300,context=4096', api='fake') as model:
        yield model


@pytest.fixture
def robot(model, tmp_path):
    """Starts the robot as a new process would; `close` ends the one before."""
    open_now = []

    def close():
        while open_now:
            chat, store = open_now.pop()
            chat.close()
            store.close()

    def start():
        close()
        store = ConversationStore(tmp_path, 'r1', logging.getLogger())
        limits = ToolLimits(audit=str(tmp_path / 'audit'))
        box = Toolbox('r1', limits, journal=ToolJournal(store.path.with_suffix('.calls')))
        box.set_tools([RobotTool(Tool('drive'), ToolPolicy(), Hand())])
        chat = RobotConversation('r1', model, RobotOptions(), Nobody(), store=store, tools=box)
        open_now.append((chat, store))
        return chat

    yield start
    close()


def note(path, *states, call_id='01234567.call00000', background=False):
    """Write into the journal what a run leaves that ends after these states of a call."""
    journal = ToolJournal(path)
    call = ToolCall(call_id, 'drive', {}, CallState.RUNNING)
    for state in states:
        result = 'there' if state is CallState.DONE else ''
        journal.note(CallRecord(replace(call, state=state, result=result), '0123456789', background))


def ask(chat, text):
    turn = chat.ask(Turn(text, chat.options))
    assert turn.ended.wait(30)
    return turn


def questions(chat):
    return [message.text for message in chat.history if message.role == 'user']


def test_news_of_a_call_stays_until_a_question_with_it_is_kept(robot, tmp_path):
    path = tmp_path / 'r1.calls'
    note(path, CallState.RUNNING, CallState.DONE, background=True)
    chat = robot()
    stopped = chat.ask(Turn('one ' * 100, chat.options))
    while not stopped.begun:
        time.sleep(0.01)
    time.sleep(0.3)  # the model reads the question for 2 s
    assert chat.cancel()  # before its first token: as if it had not been asked
    assert stopped.ended.wait(30) and not stopped.reply and questions(chat) == []
    assert path.exists()
    assert NEWS in ask(chat, 'two').reply
    assert not path.exists()
    ask(chat, 'three')
    assert [text.count(NEWS) for text in questions(chat)] == [1, 0]


def test_a_call_that_stays_in_the_journal_is_told_once(robot, tmp_path):
    path = tmp_path / 'r1.calls'
    note(path, CallState.RUNNING, CallState.DONE, background=True)
    entry = path.read_bytes()
    ask(robot(), 'one')
    path.write_bytes(entry)  # the disk was full when it should have gone, say
    chat = robot()
    ask(chat, 'two')
    assert [text.count(NEWS) for text in questions(chat)] == [1, 0]


@pytest.mark.parametrize(
    'states, answer, num_told',
    [
        ((CallState.RUNNING, CallState.DONE), 'there', 0),  # its listeners heard of it before the kill
        ((CallState.RUNNING,), UNKNOWN, 1),
        ((), NOT_CALLED, 1),
    ],
)
def test_a_call_without_an_answer_is_answered_as_far_as_is_known(
    robot, model, tmp_path, states, answer, num_told
):
    history = ChatHistory(model, tools=[Tool('drive')])
    history.append('user', 'Drive')
    history.append('bot', '', calls=[WrittenCall('drive', {}, 'call00000')])
    history.save(tmp_path / 'r1.json')
    note(tmp_path / 'r1.calls', *states)
    chat, heard = robot(), []
    chat.tools.listen(heard.append)
    assert [message.text for message in chat.history if message.role == 'tool'] == [answer]
    assert len(heard) == num_told and len((tmp_path / 'audit').read_text().splitlines()) == num_told
    assert not (tmp_path / 'r1.calls').exists()
    assert [message.text for message in robot().history if message.role == 'tool'] == [answer]
