"""What a ROS program makes of a wrong command line, and of a file of parameters that sets nothing."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import rclpy
from rclpy.context import Context

from ros2_nanochat.ros import chat_node, demo_camera, demo_robot, terminal_client
from ros2_nanochat.ros.client import ChatClient
from ros2_nanochat.ros.parameter_files import files_without_effect
from ros2_nanochat.ros.program import init, is_debug, refuse_words, run_ros_program
from ros2_nanochat.web import program as web_program

WRONG = {
    'a text that is no YAML': (['-p', 'system_prompt:=You are r1: be brief'], 'put a text in quotes'),
    'a parameter without a value': (['-p', 'model:='], "'-p model:='"),
    'a file that is not there': (['--params-file', '/nowhere.yaml'], '/nowhere.yaml.*is it there'),
    'a file nested wrongly': (['--params-file', 'misnested.yaml'], 'misnested.yaml.*ros__parameters'),
    'a file that is no YAML': (['--params-file', 'broken.yaml'], 'broken.yaml'),
    'a file with a list': (['--params-file', 'list.yaml'], 'list.yaml'),
    'a remapping of no names': (['-r', 'a b:=c'], "'-r a b:=c'.*old:=new"),
    'a name of a node': (['-r', '__node:=2bad'], "'-r __node:=2bad'"),
    'a namespace': (['-r', '__ns:=bad-ns'], "'-r __ns:=bad-ns'"),
    'a namespace without a slash': (['-r', '__ns:=r1'], "'-r __ns:=r1'.*starts with /"),
    'a rule that is missing': (['-r'], 'No remap rule found: it has to be'),
    'a log level': (['--log-level', 'verbose'], 'debug, info, warn, error or fatal'),
    'an argument that ROS does not know': (['--nonsense'], "'--nonsense'.*not understood"),
}


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'misnested.yaml').write_text('nanochat:\n  model: x\n')
    (tmp_path / 'broken.yaml').write_text('a: [\n')
    (tmp_path / 'list.yaml').write_text('- 1\n')
    return tmp_path


@pytest.mark.parametrize('wrong, told', WRONG.values(), ids=list(WRONG))
def test_a_wrong_command_line_is_one_line_that_says_what_to_do(wrong, told, files, capfd):
    arguments = ['prog', '--ros-args', *wrong]
    assert run_ros_program('prog', arguments, lambda: init(arguments, context=Context())) == 1
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith('prog: '), lines
    assert re.search(told, lines[0]) and '.c:' not in lines[0], lines[0]


@pytest.mark.parametrize('word', ['model:=x', '__ns:=/r1', '/a:=/b', 'hello', '--model', '-p'])
def test_a_word_that_is_not_for_ros_is_never_dropped(word):
    arguments = ['prog', word, '--ros-args', '-p', 'a:=1', '--', 'more']
    assert init(arguments, context=Context()) == [word, 'more']
    with pytest.raises(ValueError, match=f"'{word} more' is not understood.*--ros-args -p"):
        refuse_words([word, 'more'])


@pytest.mark.parametrize('program', [chat_node, demo_camera, demo_robot], ids=lambda each: each.__name__)
def test_a_parameter_that_is_not_given_to_ros_is_refused(program):
    command = [sys.executable, '-m', program.__name__, 'model:=x']
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "'model:=x' is not understood" in done.stderr and '--ros-args -p' in done.stderr


def test_the_node_the_client_and_the_page_import_where_the_events_have_humbles_name():
    code = (
        'import sys, rclpy.action, rclpy.lifecycle, rclpy.event_handler as events\n'
        "sys.modules['rclpy.qos_event'], sys.modules['rclpy.event_handler'] = events, None\n"
        'import ros2_nanochat.ros.chat_node, ros2_nanochat.ros.client, ros2_nanochat.web.program'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('program', [terminal_client, web_program], ids=lambda each: each.__name__)
@pytest.mark.parametrize('word', ['model:=x', '--nonsense'])
def test_a_program_with_options_refuses_other_words(program, word):
    command = [sys.executable, '-m', program.__name__, word, 'more']
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    assert re.search(f"'{word} more' is not understood: .* --help .*--ros-args", done.stderr), done.stderr


@pytest.mark.parametrize('program, option', [(terminal_client, '--wait'), (web_program, '--port')])
def test_a_wrong_option_is_one_line(program, option):
    command = [sys.executable, '-m', program.__name__, option, 'soon']
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert re.search(f"{option}: .*'soon'.*--help", done.stderr), done.stderr


@pytest.mark.parametrize(
    'error', [ValueError('a\nb'), KeyError('x'), TypeError('odd'), Exception(), OSError(5, 'no')]
)
def test_any_exception_is_one_line_and_its_traceback_comes_at_the_level_debug(error, capfd):
    def body():
        raise error

    assert run_ros_program('prog', ['prog'], body) == 1
    shown = capfd.readouterr().err
    assert len(shown.splitlines()) == 1 and 'Traceback' not in shown
    assert run_ros_program('prog', ['prog', '--ros-args', '--log-level', 'debug'], body) == 1
    assert 'Traceback' in capfd.readouterr().err


@pytest.mark.parametrize(
    'arguments, debug',
    [
        (['--log-level', 'info'], False),
        (['--log-level', 'nanochat:=debug'], True),
        (['--debug'], True),
        ([], False),
    ],
)
def test_debug_is_a_flag_or_a_log_level(arguments, debug):
    assert is_debug(['prog', *arguments]) == debug


@pytest.mark.parametrize(
    'program', [chat_node, demo_camera, terminal_client, web_program], ids=lambda each: each.__name__
)
def test_every_program_goes_through_the_outermost_caller(program):
    command = [sys.executable, '-m', program.__name__, '--ros-args', '-p', 'model:=']
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.parametrize(
    'name, robot', [('/bad-name', ''), ('/nanochat', '2bot'), ('two words', ''), ('/a//b', '')]
)
def test_a_client_refuses_a_name_that_no_node_can_have(name, robot):
    with pytest.raises(ValueError, match='cannot be the name of a chat node') as caught:
        ChatClient(name, robot)
    assert '\n' not in str(caught.value)


KEYS = [
    '/**',
    '/**/nanochat',
    'nanochat',
    '/nanochat',
    '/robot1/nanochat',
    'robot1/nanochat',
    '/*/nanochat',
    '/robot1/*',
    'nano_chat',
    '/robot1/**',
    '/*',
    'robot1:\n  nanochat',
    '/a/b/nanochat',
]


@pytest.mark.parametrize('key', KEYS)
@pytest.mark.parametrize('name, space', [('nanochat', '/'), ('nanochat', '/robot1'), ('my_chat', '/')])
def test_a_file_is_warned_about_exactly_if_the_node_takes_nothing_from_it(key, name, space, tmp_path):
    """rclpy itself says what a node takes."""
    path = tmp_path / 'mine.yaml'
    *outer, inner = key.split('\n  ')
    deeper = '  ' * len(outer)
    path.write_text(f'{key}:\n{deeper}  ros__parameters: {{max_queue: 3}}\n')
    arguments = ['--ros-args', '--params-file', str(path)]
    node = rclpy.create_node(
        name, namespace=space, cli_args=arguments, use_global_arguments=False, enable_rosout=False
    )
    try:
        warned = files_without_effect(['prog', *arguments], node.get_fully_qualified_name())
        assert bool(warned) == ('max_queue' not in node._parameter_overrides)
        assert all(str(path) in each and inner.strip('/') in each for each in warned)
    finally:
        node.destroy_node()


@pytest.mark.parametrize('value', ["!!python/tuple ['']", '&a [b]', '1e3', '"\u2713"'])
def test_a_file_is_read_as_rcl_reads_it_whatever_its_values_are(value, tmp_path):
    (tmp_path / 'mine.yaml').write_text(
        f'/nanochat:\n  ros__parameters:\n    robots: {value}\n', encoding='utf-8'
    )
    arguments = ['prog', '--ros-args', '--params-file', str(tmp_path / 'mine.yaml')]
    assert not files_without_effect(arguments, '/nanochat') and files_without_effect(arguments, '/other')


def test_a_file_that_sets_nothing_is_named_and_the_node_starts(start, tmp_path):
    (tmp_path / 'mine.yaml').write_text('nano_chat:\n  ros__parameters: {max_queue: 3}\n')
    node = start(ros_args=['--params-file', str(tmp_path / 'mine.yaml')])
    assert any('mine.yaml sets nothing here' in line and '/nano_chat' in line for line in node.lines)


def test_no_robots_in_a_file_is_the_node_itself(start, listen, tmp_path):
    (tmp_path / 'mine.yaml').write_text('/**:\n  ros__parameters: {robots: []}\n')
    start(model='', api='fake', ros_args=['--params-file', str(tmp_path / 'mine.yaml')])
    assert listen().turn('hello').reply == 'You said: hello'


ENDS = {
    'at its end': ('', 0, ''),
    'after a shutdown': ('rclpy.shutdown()', 0, ''),
    'while it waits for a reply': ("reply = chat.ask('hello')", 0, ''),
    'without a reference': ('del chat', 0, ''),
    'with several': ('others = [ChatClient() for _ in range(3)]', 0, ''),
    'with an exit code': ('sys.exit(3)', 3, ''),
    'with an error': ("raise ValueError('its own')", 1, 'ValueError: its own'),
}


@pytest.mark.parametrize('how, code, last', ENDS.values(), ids=list(ENDS))
def test_a_program_that_does_not_close_its_client_ends_like_any_other(how, code, last):
    lines = 'import sys, rclpy', 'from ros2_nanochat.ros.client import ChatClient', 'chat = ChatClient()', how
    ended = subprocess.run(
        [sys.executable, '-c', '\n'.join(lines)], stderr=subprocess.PIPE, text=True, timeout=60
    )
    assert (ended.returncode, ended.stderr.splitlines()[-1:]) == (code, [last] if last else []), ended.stderr
