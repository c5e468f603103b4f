"""Every callback answers, whatever is raised behind it: a client would wait for ever otherwise, and the
executor of the node would fail.
"""

import threading
import time

import pytest
import rclpy
from action_msgs.msg import GoalStatus
from conftest import wait
from nanochat.action import Chat
from nanochat.srv import GetHistory, Reset
from rclpy.action import ActionClient, ActionServer
from rclpy.executors import MultiThreadedExecutor
from std_srvs.srv import Trigger

from ros2_nanochat import NanoLLM
from ros2_nanochat.config import RobotOptions
from ros2_nanochat.robot.conversation import RobotConversation
from ros2_nanochat.ros import goal_server
from ros2_nanochat.ros.action_ends import CLIENT_BYTES
from ros2_nanochat.ros.fleet import Nobody
from ros2_nanochat.ros.goal_clients import GoalClients
from ros2_nanochat.ros.goal_server import GoalServer
from ros2_nanochat.ros.quick_subscriptions import QuickSubscriptions
from ros2_nanochat.ros.robot_topics import RobotTopics
from ros2_nanochat.ros.spinning import close_action, spin


class Failing(RobotConversation):
    """A conversation of which everything that services call raises `error`."""

    error: type[BaseException] = RuntimeError

    def _fail(self, *_, **__):
        raise self.error('the disk is gone')

    reset = cancel = messages = cancel_turn = _fail


@pytest.fixture(scope='module')
def spun():
    """A node that spins, and the exceptions that have left its executor."""

    class Log:
        lines: list[str] = []

        def warning(self, text):
            self.lines.append(text)

        error = warning

    node, executor, log = rclpy.create_node('failing'), MultiThreadedExecutor(num_threads=4), Log()
    executor.add_node(node)
    thread = threading.Thread(target=spin, args=(executor, log), daemon=True)
    thread.start()
    yield node, log.lines
    executor.shutdown(timeout_sec=2.0)
    thread.join(5.0)
    node.destroy_node()


@pytest.fixture(scope='module')
def chat(spun):
    model = NanoLLM.from_pretrained(api='fake', max_context_len=4096)
    chat = Failing('', model, RobotOptions(), Nobody())
    topics = RobotTopics(spun[0], chat, QuickSubscriptions(spun[0], 'queries'), None)
    yield chat
    chat.stop_all()
    RobotConversation.close(chat)
    topics.mute()
    topics.close()
    model.close()


def result_of(future):
    done = threading.Event()
    future.add_done_callback(lambda _: done.set())
    assert done.wait(20.0), 'no answer'
    return future.result()


@pytest.mark.parametrize('error', [RuntimeError, KeyError, SystemExit])
@pytest.mark.parametrize('kind, name', [(Reset, 'reset'), (Trigger, 'cancel'), (GetHistory, 'history')])
def test_a_service_answers_whatever_fails_behind_it(spun, chat, kind, name, error):
    node, left = spun
    chat.error = error
    client = node.create_client(kind, f'/failing/{name}')
    try:
        assert client.wait_for_service(20.0)
        answer = result_of(client.call_async(kind.Request()))
    finally:
        node.destroy_client(client)
    if kind is GetHistory:
        assert answer == GetHistory.Response()
    else:
        assert not answer.success and 'the disk is gone' in answer.message
    assert not left


def test_a_goal_that_arrives_while_the_graph_is_looked_at_ends_with_its_client(spun):
    class Graph(GoalClients):
        there: set[bytes] = set()

        def _there(self):
            return set(self.there)

    clients, goals, arriving = Graph(spun[0], 'try_clients'), {}, []
    client = b'c' * CLIENT_BYTES

    def arrive():
        before, key = dict(goals), client.ljust(16, b'1')
        goals[key] = 'a goal'
        arriving.append(threading.Thread(target=clients.met, args=(key,)))
        arriving[0].start()
        arriving[0].join(0.1)  # as far as it gets
        return before

    clients.there = {client}
    assert clients.gone(arrive) == []
    arriving[0].join(20.0)
    clients.there = set()
    assert clients.gone(lambda: goals) == ['a goal']


@pytest.mark.parametrize('error', [RuntimeError, SystemExit])
def test_a_goal_ends_and_a_cancellation_is_answered_whatever_fails_behind_them(spun, error):
    node, left = spun
    goals, bad = [], True

    def fail_or(act):
        def callback(goal):
            if bad:
                raise error('the disk is gone')
            return act(goal)

        return callback

    server = GoalServer(node, Chat, f'try_{error.__name__}', fail_or(goals.append), fail_or(lambda _: True))
    client = ActionClient(node, Chat, f'try_{error.__name__}')
    try:
        assert client.wait_for_server(20.0)
        goal = result_of(client.send_goal_async(Chat.Goal(query='one')))
        assert goal.accepted and result_of(goal.get_result_async()).status == GoalStatus.STATUS_ABORTED
        bad = False
        goal = result_of(client.send_goal_async(Chat.Goal(query='two')))
        bad = True
        assert not result_of(goal.cancel_goal_async()).goals_canceling
        server.finish(goals[0], True, Chat.Result())
        assert result_of(goal.get_result_async()).status == GoalStatus.STATUS_SUCCEEDED
    finally:
        client.destroy()
        server.destroy()
    assert not left


def test_nothing_of_a_goal_stays_with_the_server_whatever_its_client_asks_for(spun, monkeypatch):
    """Else a node that runs for months grows with each goal of such a client."""
    monkeypatch.setattr(goal_server, '_RESULT_KEPT', 1)
    node, goals = spun[0], []
    server = GoalServer(node, Chat, 'try_forgetting', goals.append, lambda _: True)
    client = ActionClient(node, Chat, 'try_forgetting')
    kept = [name for name, value in vars(server).items() if isinstance(value, (dict, set, list))]
    try:
        assert client.wait_for_server(20.0)
        for times in (0, 1, 2, 3):  # that the client asks for the result: before the end, and after it
            goal = result_of(client.send_goal_async(Chat.Goal(query='one')))
            early = goal.get_result_async() if times > 2 else None
            server.finish(goals.pop(), True, Chat.Result())
            for _ in range(min(times, 2)):
                assert result_of(goal.get_result_async()).status == GoalStatus.STATUS_SUCCEEDED
            assert early is None or result_of(early)
        until = time.monotonic() + 20.0
        while server._goal_handles and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(0.2)
        assert {name: list(value) for name in kept if (value := vars(server)[name])} == {}
    finally:
        client.destroy()
        server.destroy()


def test_a_server_is_not_closed_before_late_answers_have_left(spun, monkeypatch):
    """rclpy answers a request for a result in a task of its own, which a busy executor starts late."""
    send, sent, late = ActionServer._send_result_response, [], threading.Event()

    def send_late(*args):
        late.wait(20.0)
        time.sleep(0.3)
        send(*args)
        sent.append(args)

    monkeypatch.setattr(ActionServer, '_send_result_response', send_late)
    node, goals = spun[0], []
    server = GoalServer(node, Chat, 'try_closing', goals.append, lambda _: True)
    client = ActionClient(node, Chat, 'try_closing')
    try:
        assert client.wait_for_server(20.0)
        results = []
        for count in (1, 2):
            goal = result_of(client.send_goal_async(Chat.Goal(query='one')))
            wait(lambda count=count: len(goals) == count)
            if count == 2:
                server.finish(goals[1], True, Chat.Result())
                time.sleep(0.1)
            results.append(goal.get_result_async())
        wait(lambda: server._unsent == 2)
        server.finish(goals[0], True, Chat.Result())
        late.set()
        server.wait_until_fetched(20.0)
        assert len(sent) == 2
        close_action(node, server, 5.0)
        assert all(result_of(each).status == GoalStatus.STATUS_SUCCEEDED for each in results)
    finally:
        client.destroy()
        close_action(node, server, 5.0)
