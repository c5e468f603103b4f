"""Robots, clients and the life cycle come and go under a stream of questions: the node stays up, and
everybody who asks hears something.
"""

import os
import random
import sys
import threading
import time

import pytest
import rclpy
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.executors import SingleThreadedExecutor
from sensor_msgs.msg import Image
from test_robots import call, set_parameter

from ros2_nanochat.ros.client import ChatClient, NodeGone
from ros2_nanochat.ros.spinning import spin

SECONDS = float(os.environ.get('NANOCHAT_CHURN_SECONDS', 6))


@pytest.fixture
def churn(listen):
    """Runs functions over and over on threads of their own for some seconds; what they raise fails the
    test.
    """

    def churn(*functions, seconds=SECONDS):
        until, errors = time.monotonic() + seconds, []

        def repeat(function):
            try:
                while time.monotonic() < until and not errors:
                    function()
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=repeat, args=(function,)) for function in functions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(seconds + 120)
            assert not thread.is_alive(), 'somebody waits for ever'
        if errors:
            raise errors[0]

    interval = sys.getswitchinterval()
    yield churn
    sys.setswitchinterval(interval)


@pytest.mark.long
def test_robots_and_activations_come_and_go_under_queries_goals_images_and_clients_that_leave(
    start, listen, churn
):
    node = start(model='tokens_per_second=500', robots=['r1'], on_new_query='queue')
    ears = listen('/r1/nanochat')
    camera = ears.node.create_publisher(Image, '/r1/nanochat/image', 1)
    outcomes = []

    def query():
        ears.ask('hello')
        camera.publish(Image(height=2, width=2, step=6, encoding='rgb8', data=bytes(12)))
        time.sleep(random.uniform(0, 0.02))

    def goals():
        with ChatClient(robot=random.choice(['r1', 'r2'])) as chat:
            if not chat.wait_until_ready(2.0):
                return
            replies = [chat.ask('y' * random.choice([3, 60])) for _ in range(3)]
            random.choice(replies).cancel()
            for reply in replies[random.choice([0, 3]) :]:
                try:
                    outcomes.append(reply.result(60).finish_reason)
                except NodeGone:
                    outcomes.append('gone')

    def robots():
        assert set_parameter(
            ears, 'robots', random.choice([['r1'], ['r1', 'r2'], ['r1', 'r2', 'r3']])
        ).successful
        time.sleep(random.uniform(0, 0.1))

    def activations():
        for transition in (Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_ACTIVATE):
            assert call(
                ears,
                ChangeState,
                '/nanochat/change_state',
                ChangeState.Request(transition=Transition(id=transition)),
                60,
            ).success
            time.sleep(random.uniform(0, 0.3))

    churn(query, goals, goals, robots, activations)
    assert node.process.poll() is None and 'internal' not in node.output, node.output
    assert outcomes and set(outcomes) <= {'stop', 'cancelled', 'refused', 'error', 'gone'}
    assert set_parameter(ears, 'robots', ['r1']).successful
    ears.wait_until_connected()
    assert ears.turn('still there?', timeout=120).reply == 'You said: still there?'


def test_clients_on_many_threads_lose_no_answer(start, talk, churn):
    start(model='tokens_per_second=5000')
    chat = talk()
    sys.setswitchinterval(1e-5)  # threads change places between a request and the note of it

    def ask():
        reply = chat.ask('hi', on_new_query='queue')
        assert reply.result(60).finish_reason in ('stop', 'refused')

    churn(*[ask] * 6, seconds=3.0)


@pytest.mark.long
def test_a_reply_whose_node_is_killed_is_given_up(start, talk):
    node = start(model='tokens_per_second=20')
    chat = talk()
    reply = chat.ask('y' * 400)
    pieces = iter(reply)
    next(pieces)
    node.process.kill()
    list(pieces)
    with pytest.raises(NodeGone, match='not there any more'):
        reply.result(60)


def test_a_reply_does_not_outlive_the_program_that_asked(start):
    start(model='tokens_per_second=2')
    context = rclpy.Context()
    rclpy.init(context=context)
    executor = SingleThreadedExecutor(context=context)
    node = rclpy.create_node('leaver', context=context)
    executor.add_node(node)
    thread = threading.Thread(target=spin, args=(executor,), daemon=True)
    thread.start()
    chat = ChatClient(node=node)
    assert chat.wait_until_ready(30.0)
    reply = chat.ask('z' * 100)
    next(iter(reply))
    rclpy.shutdown(context=context)  # Ctrl-C in a program that spins a node of its own
    with pytest.raises(NodeGone, match='this program has left'):
        for _ in reply:
            pass
        reply.result(10)
    thread.join(10)
