"""Real nodes in processes of their own, and an observer in this one that hears all they say, over real
DDS.
"""

import os
import random
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

rclpy = pytest.importorskip('rclpy', reason='needs ROS 2: make test, or source env.sh')
pytest.importorskip('nanochat.msg', reason='needs the built workspace: make test, or source env.sh')

from nanochat.msg import Token, Turn  # noqa: E402
from nanochat.srv import GetHistory  # noqa: E402
from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from rclpy.qos import QoSProfile  # noqa: E402
from std_msgs.msg import String  # noqa: E402

from ros2_nanochat.ros.client import ChatClient  # noqa: E402
from ros2_nanochat.ros.spinning import spin  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
FAKE = {'api': 'fake', 'max_context_len': 4096}


def program(name):
    for prefix in os.environ['AMENT_PREFIX_PATH'].split(':'):
        path = Path(prefix, 'lib', 'nanochat', name)
        if path.exists():
            return str(path)
    raise FileNotFoundError(f'{name} is not built')


def literal(value):
    if isinstance(value, (list, tuple)):
        return '[' + ', '.join(literal(item) for item in value) + ']'
    return (
        f"'{value}'"
        if isinstance(value, str)
        else str(value).lower()
        if isinstance(value, bool)
        else str(value)
    )


def hear_sighup():
    """Tests may run under nohup, whose programs ignore the signal."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


class NodeProcess:
    """A chat node in a process of its own; its output is kept. `command` runs it in another way."""

    def __init__(self, *, ros_args=(), command=None, **parameters):
        self.lines = []
        arguments = [
            part
            for name, value in parameters.items()
            for part in ('-p', f'{name.replace("__", ".")}:={literal(value)}')
        ]
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [*(command or [program('chat_node')]), '--ros-args', *ros_args, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors='replace',
            preexec_fn=hear_sighup,
        )
        self._reader = threading.Thread(
            target=lambda: self.lines.extend(iter(self.process.stdout.readline, '')), daemon=True
        )
        self._reader.start()

    def wait_for_line(self, text, timeout=120.0):
        until = time.monotonic() + timeout
        while not any(text in line for line in self.lines):
            assert time.monotonic() < until and self.process.poll() is None, f'no {text!r} in:\n{self.output}'
            time.sleep(0.02)

    @property
    def output(self):
        return ''.join(self.lines)

    def memory(self, shared=True):
        """Resident bytes; not shared: without files that are mapped and what the transport of others maps
        here.
        """
        resident, of_it_shared = map(int, Path(f'/proc/{self.process.pid}/statm').read_text().split()[1:3])
        return (resident - (0 if shared else of_it_shared)) * os.sysconf('SC_PAGE_SIZE')

    def num_threads(self):
        return len(os.listdir(f'/proc/{self.process.pid}/task'))

    def stop(self, number=signal.SIGINT, timeout=20.0):
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(timeout)
        self._reader.join(5.0)
        return code


def wait(condition, timeout=20.0):
    """Wait until a condition is true; the test fails after `timeout` seconds."""
    until = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < until, 'it does not happen'
        time.sleep(0.01)


def meet(node, kind, name, request, timeout=30.0):
    """Wait until the node that serves `name` knows all that our node has opened before: it can answer a
    client that is younger than these, and a participant announces its ends in order. (A client that sees a
    service is not seen by it yet, and an answer to one that is not seen is dropped.)
    """
    client, until = node.create_client(kind, name), time.monotonic() + timeout
    answers = []
    while not any(answer.done() for answer in answers):
        assert time.monotonic() < until, f'{name} does not answer: {node.get_topic_names_and_types()}'
        if client.service_is_ready():
            answers.append(client.call_async(request))
        next_try = time.monotonic() + 1.0
        while (
            time.monotonic() < next_try
            and not any(answer.done() for answer in answers)
            and (answers or not client.service_is_ready())
        ):
            time.sleep(0.01)


class Ears:
    """Subscribes to what robots say; everything is kept in the order it came."""

    def __init__(self, *prefixes):
        self.node = rclpy.create_node(
            f'ears_{random.randrange(10**9)}',  # see ChatClient
            parameter_overrides=[Parameter('start_type_description_service', value=False)],
        )
        self.tokens, self.turns, self.replies, self.sentences = [], [], [], []
        self.changed = threading.Condition()
        self.askers, self.clients = {}, {}
        for prefix in prefixes or ('/nanochat',):
            for kind, name, into in (
                (Token, 'tokens', self.tokens),
                (Turn, 'turn', self.turns),
                (String, 'reply', self.replies),
                (String, 'sentence', self.sentences),
            ):
                self.node.create_subscription(
                    kind,
                    f'{prefix}/{name}',
                    lambda message, into=into, prefix=prefix: self._note(into, prefix, message),
                    QoSProfile(depth=1000),
                )
            self.askers[prefix] = self.node.create_publisher(
                String, f'{prefix}/query', QoSProfile(depth=1000)
            )
        self.executor = SingleThreadedExecutor()
        self.executor.add_node(self.node)
        self.thread = threading.Thread(target=spin, args=(self.executor,), daemon=True)
        self.thread.start()

    def _note(self, into, prefix, message):
        with self.changed:
            into.append((prefix, time.monotonic(), message))
            self.changed.notify_all()

    def wait_until_connected(self, timeout=60.0):
        until = time.monotonic() + timeout
        while not all(
            asker.get_subscription_count()
            and self.node.count_publishers(f'{prefix}/turn')
            and self.node.count_publishers(f'{prefix}/tokens')
            for prefix, asker in self.askers.items()
        ):
            assert time.monotonic() < until, (
                f'the node does not listen: {self.node.get_topic_names_and_types()}'
            )
            time.sleep(0.02)
        for prefix in self.askers:
            meet(self.node, GetHistory, f'{prefix}/history', GetHistory.Request())

    def ask(self, text, prefix=None):
        self.askers[prefix or next(iter(self.askers))].publish(String(data=text))

    def wait_for(self, condition, timeout=60.0):
        with self.changed:
            assert self.changed.wait_for(condition, timeout), (
                f'{len(self.tokens)} tokens, turns: {[turn for _, _, turn in self.turns][-3:]}'
            )

    def turn(self, text, prefix=None, timeout=60.0):
        """Ask, and wait for the turn and the last of its tokens (topics have no order among each other)."""
        before = len(self.turns)
        self.ask(text, prefix)
        self.wait_for(lambda: any(turn.query == text for _, _, turn in self.turns[before:]), timeout)
        turn = next(turn for _, _, turn in self.turns[before:] if turn.query == text)
        self.wait_for(lambda: any(token.last for token in self.pieces(turn.turn_id)))
        return turn

    def pieces(self, turn_id):
        return [token for _, _, token in self.tokens if token.turn_id == turn_id]

    def close(self):
        self.executor.shutdown(timeout_sec=2.0)
        self.thread.join(2.0)
        self.node.destroy_node()


def domain_of_this_worker():
    """Files that run at the same time (pytest -n 4) must not meet: each worker has a domain of its own."""
    domain = int(os.environ.get('ROS_DOMAIN_ID') or random.randint(1, 50))
    worker = int(os.environ.get('PYTEST_XDIST_WORKER', 'gw0').removeprefix('gw'))
    return 1 + (domain - 1 + 33 * worker) % 101  # 101 is the last domain whose ports are free on every Linux


@pytest.fixture(scope='session', autouse=True)
def ros():
    os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    os.environ['ROS_DOMAIN_ID'] = str(domain_of_this_worker())
    variable = (
        'FASTRTPS_DEFAULT_PROFILES_FILE'
        if os.environ.get('ROS_DISTRO') in ('humble', 'iron', 'jazzy')
        else 'FASTDDS_DEFAULT_PROFILES_FILE'
    )
    os.environ.setdefault(variable, str(ROOT / 'config' / 'fastdds.xml'))
    rclpy.init()
    yield
    rclpy.try_shutdown()


FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    return report


def on_fake_model(parameters):
    """These parameters, on the fake model unless they name another."""
    if parameters.get('model') != '' and 'api' not in parameters:
        return {**FAKE, **parameters}
    return parameters


@pytest.fixture(scope='module')
def shared_node():
    from shared_node import SharedNode

    shared = SharedNode()
    yield shared
    shared.stop()


@pytest.fixture
def share(shared_node, request):
    """Like `start`, but tests of a file that name the same parameters share the node. It comes with an empty
    conversation; `live` are parameters that are set for this test.
    """
    yield lambda live=(), **parameters: shared_node.get(on_fake_model(parameters), dict(live))
    if request.node.stash.get(FAILED, False):
        shared_node.stop()
    else:
        shared_node.restore()


@pytest.fixture
def start(shared_node):
    """Starts nodes, on the fake model unless another is named; they are stopped afterwards, and must not have
    shown a traceback.
    """
    nodes = []
    shared_node.stop()

    def start(*, wait=True, **parameters):
        ros_args = parameters.pop('ros_args', ())
        parameters = on_fake_model(parameters)
        node = NodeProcess(ros_args=ros_args, **parameters)
        nodes.append(node)
        if wait:
            node.wait_for_line(': active')
        return node

    yield start
    for node in nodes:
        try:
            node.stop()
        except subprocess.TimeoutExpired:
            node.process.kill()
            raise
        assert 'Traceback' not in node.output, node.output


@pytest.fixture
def listen():
    all_ears = []

    def listen(*prefixes):
        ears = Ears(*prefixes)
        all_ears.append(ears)
        ears.wait_until_connected()
        return ears

    yield listen
    for ears in all_ears:
        ears.close()


@pytest.fixture
def talk():
    clients = []

    def talk(name='/nanochat', robot=''):
        client = ChatClient(name, robot)
        clients.append(client)
        assert client.wait_until_ready(30.0), f'{client.prefix} is not there'
        return client

    yield talk
    for client in clients:
        client.close()


@pytest.fixture
def run_program():
    """Runs a program of the package to its end: (exit code, standard output, standard error)."""

    def run(name, *arguments, timeout=60.0, input=None):
        done = subprocess.run(
            [program(name), *arguments], capture_output=True, text=True, timeout=timeout, input=input
        )
        return done.returncode, done.stdout, done.stderr

    return run
