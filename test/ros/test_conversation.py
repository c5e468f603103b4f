"""A conversation over real DDS with the embedded model: the main job."""

import time

import pytest


@pytest.fixture
def ears(share, listen):
    share(model='')
    return listen()


def test_the_node_is_ready_within_seconds_and_small(share, listen):
    node = share(model='')
    ears = listen()
    ears.turn('Say hello.', timeout=120)
    assert node.memory() < 600e6
    assert (
        time.monotonic() - node.started < 60
    )  # the figure itself is taken by the benchmark, on a machine at rest


def test_tokens_arrive_before_the_reply_is_complete_and_joined_they_equal_it(ears):
    turn = ears.turn('What is the capital of Japan?', timeout=120)
    pieces = ears.pieces(turn.turn_id)
    assert 'Tokyo' in turn.reply
    assert ''.join(piece.text for piece in pieces if not piece.reasoning) == turn.reply
    assert [piece.index for piece in pieces] == list(range(len(pieces)))
    assert [piece.last for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert pieces[-1].finish_reason == turn.finish_reason == 'stop'
    assert sum(piece.num_tokens for piece in pieces) == turn.new_tokens
    ears.wait_for(lambda: ears.replies)
    assert ears.replies[0][2].data == turn.reply
    first, whole = ears.tokens[0][1], ears.replies[0][1]
    assert first < whole and turn.time_to_first_token > 0
    assert ' '.join(sentence.data for _, _, sentence in ears.sentences) == turn.reply.strip()


def test_a_second_question_continues_the_conversation_and_reset_forgets_it(ears, talk):
    first = ears.turn('What is the capital of Japan?', timeout=120)
    second = ears.turn('And of France?', timeout=120)
    assert 'Paris' in second.reply
    assert second.prompt_tokens > first.prompt_tokens + first.new_tokens
    assert second.reused_tokens >= first.prompt_tokens  # what was read is not read again
    assert second.served_by
    chat = talk()
    assert [text for role, text in chat.history() if role != 'system'] == [
        first.query,
        first.reply,
        second.query,
        second.reply,
    ]
    chat.reset()
    assert [role for role, _ in chat.history()] in ([], ['system'])
    again = ears.turn('What is the capital of Japan?', timeout=120)
    assert again.prompt_tokens == first.prompt_tokens and again.reply == first.reply
