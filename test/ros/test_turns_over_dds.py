"""How turns end over DDS, on the fake model, whose speed and replies are known: barge-in, queue, reject,
cancel, deadline, refusals, bad input.
"""

import time

import pytest
from nanochat.action import Chat
from std_msgs.msg import String

SLOW = 'tokens_per_second=100'
LONG = 'x' * 150  # the fake model says it back: some 1.6 s at 100 tokens a second


def streaming(ears, count=5):
    before = len(ears.tokens)
    ears.wait_for(lambda: len(ears.tokens) >= before + count)


def test_a_new_query_interrupts_and_the_history_keeps_what_was_delivered(share, listen, talk):
    share(model=SLOW)
    ears, chat = listen(), talk()
    ears.ask(LONG)
    streaming(ears)
    second = ears.turn('short')
    first = next(turn for _, _, turn in ears.turns if turn.query == LONG)
    ears.wait_for(lambda: ears.pieces(first.turn_id)[-1].last)
    assert (
        first.finish_reason == 'interrupted'
        and second.finish_reason == 'stop'
        and second.reply == 'You said: short'
    )
    assert 0 < len(first.reply) < len(LONG)
    assert ''.join(piece.text for piece in ears.pieces(first.turn_id)) == first.reply
    assert [text for role, text in chat.history() if role != 'system'] == [
        LONG,
        first.reply,
        'short',
        second.reply,
    ]


def test_queued_queries_are_answered_in_turn_and_those_too_many_are_refused(share, listen):
    share({'on_new_query': 'queue', 'max_queue': 2}, model=SLOW)
    ears = listen()
    ears.ask('one' * 20)
    streaming(ears)
    for text in ('two', 'three', 'four'):
        ears.ask(text)
    ears.wait_for(lambda: len(ears.turns) == 4)
    ended = {turn.query: turn for _, _, turn in ears.turns}
    assert [ended[text].finish_reason for text in ('one' * 20, 'two', 'three', 'four')] == [
        'stop',
        'stop',
        'stop',
        'refused',
    ]
    assert 'max_queue' in ended['four'].error and ended['four'].reply == ''
    assert [turn.query for _, _, turn in ears.turns if turn.finish_reason == 'stop'] == [
        'one' * 20,
        'two',
        'three',
    ]


def test_with_reject_the_reply_that_streams_goes_on(share, listen):
    share({'on_new_query': 'reject'}, model=SLOW)
    ears = listen()
    ears.ask(LONG)
    streaming(ears)
    assert ears.turn('short').finish_reason == 'refused'
    ears.wait_for(lambda: len(ears.turns) == 2)
    assert ears.turns[-1][2].reply == 'You said: ' + LONG


def test_cancel_stops_the_reply_and_says_whether_there_was_one(share, listen, talk):
    share(model=SLOW)
    ears, chat = listen(), talk()
    assert chat.cancel() is False
    ears.ask(LONG)
    streaming(ears)
    assert chat.cancel() is True
    called = time.monotonic()
    ears.wait_for(lambda: ears.turns)
    assert ears.turns[0][2].finish_reason == 'cancelled'
    assert ears.tokens[-1][1] - called < 0.5


def test_a_turn_that_misses_its_deadline_ends_with_what_it_has(share, talk):
    share(model=SLOW)
    turn = talk().ask(LONG, deadline=0.5).result(20)
    assert turn.finish_reason == 'deadline' and 0 < len(turn.reply) < len(LONG)


def test_a_queued_turn_whose_deadline_passes_is_told_at_once_and_never_runs(share, talk):
    share(model=SLOW)
    chat = talk()
    first = chat.ask(LONG + 'y' * 80)
    next(iter(first))
    late = chat.ask('late', on_new_query='queue', deadline=0.3)
    turn = late.result(20)
    assert turn.finish_reason == 'deadline' and turn.reply == '' and not first.future.done()
    assert first.result(20).finish_reason == 'stop'


def test_an_action_streams_its_tokens_takes_options_and_is_cancelled_by_its_client(share, talk):
    share(model=SLOW)
    chat = talk()
    reply = chat.ask('hello', max_new_tokens=8)
    assert ''.join(reply) == reply.turn.reply == 'You said'
    assert reply.turn.finish_reason == 'length'
    long = chat.ask(LONG)
    pieces = iter(long)
    next(pieces)
    long.cancel()
    assert long.result(10).finish_reason == 'cancelled'
    assert chat.ask('next').result(20).reply == 'You said: next'


def test_of_queued_goals_the_higher_priority_runs_first(share, talk):
    share({'on_new_query': 'queue'}, model=SLOW)
    chat = talk()
    order = []
    first = chat.ask('first' * 10)
    next(iter(first))  # it runs; the others wait for it
    replies = [first, chat.ask('low'), chat.ask('low, too'), chat.ask('high', priority=5)]
    for reply in replies:
        reply.future.add_done_callback(lambda future: order.append(future.result().query))
    for reply in replies:
        reply.result(20)
    assert order == ['first' * 10, 'high', 'low', 'low, too']


def test_a_client_that_leaves_stops_its_reply(share, listen, talk):
    share(model=SLOW)
    ears = listen()
    client = talk()
    client.ask('y' * 400)
    streaming(ears)
    client.close()
    ears.wait_for(lambda: ears.turns, timeout=5)
    assert ears.turns[0][2].finish_reason == 'cancelled'


@pytest.mark.parametrize(
    'goal, told',
    [
        (Chat.Goal(query=''), 'empty'),
        (Chat.Goal(query='   \n'), 'empty'),
        (Chat.Goal(query='a' * 20_000), 'tokens'),
        (Chat.Goal(query='hi', top_p=1.5), 'top_p'),
        (Chat.Goal(query='hi', temperature=float('nan')), 'temperature'),
        (Chat.Goal(query='hi', image_mode='sometimes'), 'image_mode'),
        (Chat.Goal(query='hi', deadline=-1.0), 'deadline'),
        (Chat.Goal(query='hi', max_new_tokens=-7), 'max_new_tokens'),
    ],
)
def test_a_wrong_goal_is_told_what_is_wrong_and_the_history_stays_whole(share, talk, goal, told):
    share(model=SLOW)
    chat = talk()
    chat.ask('before').result(20)
    turn = chat.ask(
        goal.query,
        **{
            name: getattr(goal, name)
            for name in ('top_p', 'temperature', 'image_mode', 'deadline', 'max_new_tokens')
        },
    ).result(20)
    assert (
        turn.finish_reason == 'error' and told in turn.error and '\n' not in turn.error and turn.reply == ''
    )
    assert chat.ask('after').result(20).reply == 'You said: after'
    assert [text for role, text in chat.history() if role == 'user'] == ['before', 'after']


def test_a_late_subscriber_hears_the_next_turn(share, listen):
    share(model=SLOW)
    ears = listen()
    assert ears.turn('hello').reply == 'You said: hello'


def test_an_image_for_a_model_without_vision_is_an_error_of_that_turn(share, talk):
    share(model=SLOW)
    import numpy as np

    turn = talk().ask('what is this?', np.zeros((8, 8, 3), np.uint8)).result(20)
    assert turn.finish_reason == 'error' and 'vision' in turn.error


def test_names_can_be_remapped(start, listen):
    start(ros_args=['-r', '~/query:=/speech', '-r', '~/reply:=/say'])
    ears = listen_to(listen)
    asker = ears.node.create_publisher(String, '/speech', 10)
    heard = []
    ears.node.create_subscription(String, '/say', heard.append, 10)
    until = time.monotonic() + 20
    while not heard and time.monotonic() < until:
        if asker.get_subscription_count():
            asker.publish(
                String(data='hello')
            )  # may come before the node hears; a later one would interrupt it
            patience = time.monotonic() + 5
            while not heard and time.monotonic() < patience:
                time.sleep(0.05)
        time.sleep(0.1)
    assert heard and heard[0].data == 'You said: hello'


def listen_to(listen):
    from conftest import Ears

    return Ears('/unused')
