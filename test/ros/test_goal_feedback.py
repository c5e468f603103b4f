"""Feedback of the action, as ROS 2 Lyrical asks for it: only while a goal executes, so that a client learns
from the result how its turn ended.
"""

import threading

import pytest
import rclpy
from action_msgs.msg import GoalStatus
from nanochat.action import Chat
from rclpy.action import ActionClient
from rclpy.executors import SingleThreadedExecutor

from ros2_nanochat.ros.action_ends import CLIENT_BYTES
from ros2_nanochat.ros.client import ChatClient
from ros2_nanochat.ros.spinning import spin

SLOW = 'tokens_per_second=100'
LONG = 'x' * 150


class Client:
    """An action client as a user would write it; keeps what it hears of each goal."""

    def __init__(self):
        self._node = rclpy.create_node('a_client')
        self._client = ActionClient(self._node, Chat, '/nanochat/chat')
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self._node)
        self._thread = threading.Thread(target=spin, args=(self._executor,), daemon=True)
        self._thread.start()
        assert self._client.wait_for_server(30.0)

    def ask(self, **goal):
        heard, accepted, ended = [], threading.Event(), threading.Event()
        sent = self._client.send_goal_async(
            Chat.Goal(**goal), feedback_callback=lambda message: heard.append(message.feedback.token)
        )
        sent.add_done_callback(lambda _: accepted.set())
        assert accepted.wait(20.0) and sent.result().accepted
        result = sent.result().get_result_async()
        result.add_done_callback(lambda _: ended.set())
        return sent.result(), heard, lambda: ended.wait(20.0) and result.result()

    def close(self):
        self._executor.shutdown()
        self._thread.join(5.0)
        self._client.destroy()
        self._node.destroy_node()


@pytest.fixture
def client(share, talk):
    share({'on_new_query': 'queue'}, model=SLOW)
    talk()  # the node answers
    client = Client()
    yield client
    client.close()


def test_a_refused_goal_gives_no_feedback_and_a_result_that_says_why(client):
    _, heard, result = client.ask(query='hello', temperature=1000.0)
    response = result()
    assert response.status == GoalStatus.STATUS_ABORTED
    assert 'temperature' in response.result.turn.error and not heard


def test_a_cancelled_goal_gives_no_feedback_after_the_cancel_and_a_result_with_all_of_its_text(client):
    goal, heard, result = client.ask(query=LONG)
    while len(heard) < 5:
        threading.Event().wait(0.01)
    goal.cancel_goal_async()
    response = result()
    turn = response.result.turn
    assert response.status == GoalStatus.STATUS_CANCELED and turn.finish_reason == 'cancelled'
    assert not any(token.last for token in heard)
    assert turn.reply.startswith(''.join(token.text for token in heard))


def test_a_goal_that_is_cancelled_while_it_waits_gives_no_feedback_and_a_result(client):
    first, _, first_result = client.ask(query=LONG)
    goal, heard, result = client.ask(query='waits')
    goal.cancel_goal_async()
    response = result()
    assert response.status == GoalStatus.STATUS_CANCELED
    assert response.result.turn.finish_reason == 'cancelled' and not heard
    assert first_result().result.turn.finish_reason == 'stop'


def test_a_goal_that_ends_by_itself_ends_its_feedback(client):
    _, heard, result = client.ask(query='hello')
    assert result().result.turn.finish_reason == 'stop'
    assert heard[-1].last and ''.join(token.text for token in heard) == 'You said: hello'


def test_the_client_learns_how_a_refused_and_a_waiting_turn_ended(share, talk):
    share({'on_new_query': 'queue'}, model=SLOW)
    chat = talk()
    refused = chat.ask('hello', temperature=1000.0)
    assert list(refused) == [] and 'temperature' in refused.turn.error
    first = chat.ask(LONG)
    waiting = chat.ask('waits')
    waiting.cancel()
    assert list(waiting) == [] and waiting.result(20).finish_reason == 'cancelled'
    assert ''.join(first) == first.turn.reply


@pytest.mark.parametrize(
    'fields, expected',
    [
        ({'max_tokens': 5}, "no field 'max_tokens', only query, .*max_new_tokens"),
        ({'max_new_tokens': 'five'}, "'max_new_tokens' field must be of type 'int'"),
        ({'max_new_tokens': 2**40}, "'max_new_tokens' field must be an integer in"),
        ({'stop': 3}, "'stop' field"),
        ({'text': 5}, "'query' field must be of type 'str'"),
    ],
)
def test_what_no_goal_can_have_is_refused_in_one_line_before_it_is_sent(share, talk, fields, expected):
    share({'on_new_query': 'queue'}, model=SLOW)
    chat = talk()
    with pytest.raises(ValueError, match=expected) as caught:
        chat.ask(**{'text': 'hello', **fields})
    assert '\n' not in str(caught.value)
    assert chat.ask('hello', temperature=0, max_new_tokens=4).result(20).finish_reason == 'length'


def test_a_client_without_pieces_gets_whole_replies_and_no_feedback_reaches_it(share):
    share({'on_new_query': 'queue'}, model=SLOW)
    topic = '/nanochat/chat/_action/feedback'
    with ChatClient(pieces=False) as chat:
        assert chat.wait_until_ready(30.0)
        reply = chat.ask('hello')
        assert ''.join(reply) == 'You said: hello' == reply.turn.reply
        cancelled = chat.ask(LONG)
        cancelled.cancel()
        assert cancelled.result(20).finish_reason == 'cancelled'
        own = [
            bytes(end.endpoint_gid)
            for end in chat.node.get_subscriptions_info_by_topic(topic)
            if end.node_name == chat.node.get_name()
        ]
        assert (
            own[0][:CLIENT_BYTES] == bytes.fromhex(reply.turn_id)[:CLIENT_BYTES]
        )  # the node knows whose it is
        (presence,) = (each for each in chat.node.subscriptions if each.topic_name == topic)
        with presence.handle:
            assert presence.handle.take_message(Chat.Impl.FeedbackMessage, False) is None
