"""The terminal programs take any bytes, any terminal and any way to name a file."""

from __future__ import annotations

import codecs
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ros2_nanochat import ChatHistory, NanoLLM
from ros2_nanochat.config import GenerationConfig
from ros2_nanochat.files import read_text, valid_text
from ros2_nanochat.terminal import chat, compile_mlc, completion
from ros2_nanochat.terminal.arguments import load_prompts
from ros2_nanochat.terminal.chat_loop import ChatLoop
from ros2_nanochat.terminal.screen import Screen

ROOT = Path(__file__).resolve().parents[1]
FAKE = ['--api', 'fake', '--disable-stats']


def run(*args, program='chat', stdin=b'', environment=None, shell=''):
    """Run a program with bytes as its input: its exit status, standard output and standard error."""
    command = [sys.executable, '-m', f'ros2_nanochat.{program}', *FAKE, *args]
    if shell:
        command = ['bash', '-c', f'exec "$@" {shell}', 'bash', *command]
    kept = {key: value for key, value in os.environ.items() if not key.startswith(('LC_', 'LANG', 'PYTHON'))}
    done = subprocess.run(
        command,
        input=stdin,
        capture_output=True,
        timeout=60,
        env={**kept, 'PYTHONPATH': str(ROOT), 'LC_ALL': 'C.UTF-8', **(environment or {})},
    )
    assert b'Traceback' not in done.stderr, done.stderr.decode(errors='replace')
    return done.returncode, done.stdout, done.stderr


BYTES = [b'caf\xe9', b'\xff\xfe\xfd', b'a\xc3', b'\xed\xa0\x80', bytes(range(128, 256))]


def test_bytes_that_are_no_text_are_asked_as_far_as_they_are_and_the_chat_goes_on():
    status, out, _ = run(stdin=b'\n'.join([b'one', *BYTES, b'two\n']))
    first, *replies, last, end = out.decode().split('\n')
    assert status == 0 and (first, last, end) == ('You said: one', 'You said: two', '')
    assert len(replies) == len(BYTES) and all('\ufffd' in reply for reply in replies)
    for line, reply in zip(BYTES[:2], replies):
        assert run('--prompt', '-', stdin=line)[:2] == (0, f'{reply}\n'.encode())


def test_an_argument_that_is_no_text_is_a_prompt_all_the_same():
    status, out, _ = run('--prompt', b'caf\xe9', '--system-prompt', b'\xff')
    assert (status, out.decode()) == (0, 'You said: caf\ufffd\n')


@pytest.mark.parametrize('program', ['chat', 'completion'])
@pytest.mark.parametrize('shell', ['<&-', '>&-', '2>&-', '<&- >&- 2>&-'])
def test_a_stream_that_is_closed_is_empty(program, shell):
    assert run(program=program, shell=shell)[0] == 0
    assert run('--prompt', 'hello', program=program, shell=shell)[0] == 0


def test_a_reader_that_has_left_ends_the_program_quietly():
    status, _, err = run('--prompt', *['hello'] * 50, shell='| head -1')
    assert b'BrokenPipe' not in err


@pytest.mark.parametrize('encoding', ['latin-1', 'ascii'])
def test_a_terminal_that_lacks_characters_shows_the_rest_of_the_reply(encoding):
    status, out, _ = run('--prompt', 'né 日本 🙂 end', environment={'PYTHONIOENCODING': encoding})
    assert status == 0 and out.startswith(b'You said: n') and out.endswith(b' end\n') and b'?' in out


MARKS = {'utf-8-sig': 'utf-8-sig', 'utf-16': 'utf-16', 'utf-8': 'utf-8'}


@pytest.mark.parametrize('encoding', MARKS)
def test_a_byte_order_mark_is_no_part_of_a_file(encoding, tmp_path):
    for name, text in (('q.txt', 'né\r\ntwo\r\n'), ('q.json', '["né", {"text": "two"}]')):
        (tmp_path / name).write_bytes(text.encode(encoding))
        assert load_prompts([[str(tmp_path / name)]]) == ['né', 'two']
    (tmp_path / 'be.txt').write_bytes(codecs.BOM_UTF16_BE + 'né'.encode('utf-16-be'))
    assert read_text(str(tmp_path / 'be.txt')) == 'né'


def test_a_byte_order_mark_on_standard_input_is_no_part_of_the_question():
    assert run(stdin=codecs.BOM_UTF8 + b'hello\n')[1] == b'You said: hello\n'
    assert run('--prompt', '-', stdin=codecs.BOM_UTF8 + b'hello\n')[1] == b'You said: hello\n'


@pytest.mark.parametrize(
    'text, valid',
    [
        ('plain', 'plain'),
        ('né 🙂', 'né 🙂'),
        ('a\udcffb', 'a\ufffdb'),
        ('\udcc3\udca9', 'é'),
        ('\ud800', '\ufffd'),
    ],
)
def test_surrogates_become_the_character_they_were_or_the_replacement(text, valid):
    assert valid_text(text) == valid
    valid_text(text).encode()


@pytest.fixture
def loop():
    with NanoLLM.from_pretrained(api='fake', max_context_len=2000) as model:
        yield ChatLoop(model, ChatHistory(model), Screen(), GenerationConfig(), stats=False)


def test_the_home_folder_and_quotes_stand_in_names_of_files(loop, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    loop.line('hello')
    for name in ('~/talk.json', '"~/two words.json"', "'~/three.json'"):
        loop.line(f'/save {name}')
    assert {path.name for path in tmp_path.iterdir()} == {'talk.json', 'two words.json', 'three.json'}
    loop.line('/reset')
    saved = (tmp_path / 'talk.json').read_bytes()
    (tmp_path / 'talk.json').write_bytes(codecs.BOM_UTF8 + saved)
    loop.line('/load ~/talk.json')
    assert not loop.failed and [message.text for message in loop.history] == ['hello', 'You said: hello']
    (tmp_path / 'q.json').write_text(json.dumps(['from home']))
    assert load_prompts([['~/q.json']]) == ['from home']


def test_images_in_the_home_folder_are_found(loop, tmp_path, monkeypatch, capsys):
    from ros2_nanochat.terminal.chat_loop import _split_images

    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path / 'my cat.png').write_bytes(b'')
    assert _split_images('~/cat.png "~/my cat.png" what is it?') == (
        [f'{tmp_path}/cat.png', f'{tmp_path}/my cat.png'],
        'what is it?',
    )


def test_whatever_goes_wrong_with_a_question_the_conversation_goes_on(loop, monkeypatch, capsys):
    loop.line('one')

    def fail(*_, **__):
        raise TypeError('odd')

    with monkeypatch.context() as patch:
        patch.setattr(loop.model, 'generate', fail)
        loop.line('two')
    loop.line('three')
    assert loop.failed and [message.text for message in loop.history if message.role == 'user'] == [
        'one',
        'three',
    ]
    assert 'internal error: TypeError: odd' in capsys.readouterr().err


@pytest.mark.parametrize(
    'program, words, told',
    [
        (chat, ['--temperature', 'hot'], "--temperature: .*'hot'"),
        (completion, ['--nonsense'], '--nonsense'),
        (chat, ['--max-new-tokens'], '--max-new-tokens: expected one argument'),
        (compile_mlc, [], 'required: model'),
        (compile_mlc, ['m', '--max-sequences', 'x' * 5000], "--max-sequences: .*'x+"),
    ],
)
def test_a_wrong_option_is_one_line(capsys, program, words, told):
    with pytest.raises(SystemExit, match='2'):
        program.main(words)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and re.search(f'{told}.*--help', lines[0]) and len(lines[0]) < 800, lines


@pytest.mark.parametrize('command', ['/save', '/load'])
def test_a_name_with_a_null_byte_is_told_with_the_command(loop, capsys, command):
    loop.line(f'{command} a\0b')
    said = capsys.readouterr()
    assert loop.failed and rf"{command} 'a\x00b' is not valid" in said.out + said.err
