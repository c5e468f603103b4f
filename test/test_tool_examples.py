"""Examples of calls: the model is shown them, and they are no part of the conversation."""

import pytest

from ros2_nanochat import ChatHistory, NanoLLM
from ros2_nanochat.config import RobotOptions
from ros2_nanochat.robot.conversation import RobotConversation
from ros2_nanochat.robot.output import Nobody
from ros2_nanochat.robot.tool_answering import example_messages
from ros2_nanochat.robot.tool_entries import Example
from ros2_nanochat.robot.tool_policy import ToolPolicy
from ros2_nanochat.robot.tool_record import RobotTool
from ros2_nanochat.robot.toolbox import Toolbox
from ros2_nanochat.robot.turn import Turn
from ros2_nanochat.tools import Tool

EXAMPLES = (
    Example('Make it dark', 'lamp', {'on': False}, '', '', ''),
    Example('How full?', 'battery', {}, '0.4', 'Less than half.', ''),
    Example('Fly', 'fly', {}, '', '', ''),
)
TOOLS = [Tool('lamp', 'Lamp', {'properties': {'on': {'type': 'boolean'}}}), Tool('battery')]


@pytest.fixture(scope='module')
def model():
    with NanoLLM.from_pretrained('context=16384', api='fake', max_context_len=16384) as model:
        yield model


def text_of(history):
    prompt, _ = history.embed_chat(use_cache=False)
    return bytes(int(entry) for entry in prompt.entries if int(entry) < 256).decode()


def test_examples_are_in_the_prompt_after_the_system_prompt_and_not_in_the_history(model):
    history = ChatHistory(model, system_prompt='You are a robot.', tools=TOOLS)
    history.append('user', 'Hello')
    plain = text_of(history)
    history.examples = example_messages(EXAMPLES, TOOLS)
    shown = text_of(history)
    assert 'Make it dark' not in plain and [message.role for message in history] == ['system', 'user']
    order = ['You are a robot.', 'Make it dark', '"lamp"', 'How full?', '0.4', 'Less than half.', 'Hello']
    places = [shown.rindex(text) for text in order]
    assert places == sorted(places) and 'Fly' not in shown  # there is no such tool
    history.examples = []
    assert text_of(history) == plain


def test_a_robot_shows_the_examples_of_its_tools_file(model):
    class Hand:
        acts_on = False

    box = Toolbox(examples=EXAMPLES)
    box.set_tools([RobotTool(tool, ToolPolicy(), Hand()) for tool in TOOLS])
    chat = RobotConversation('r1', model, RobotOptions(), Nobody(), tools=box)
    try:
        turn = chat.ask(Turn('Hello', chat.options))
        assert turn.ended.wait(30) and turn.reply == 'You said: Hello'
        assert 'Make it dark' in text_of(chat.history)
        assert [message.text for message in chat.history if message.role == 'user'] == ['Hello']
    finally:
        chat.close()
