"""Anything at all on the topics: the node stays up and answers the next question rightly."""

import random
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sensor_msgs.msg import CompressedImage, Image
from test_robots import set_parameter

ANYTHING = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
TEXT = st.text(st.characters(exclude_categories=['Cs'], exclude_characters='\x00'), max_size=80)


@pytest.fixture(scope='module')
def node():
    from conftest import FAKE, NodeProcess

    node = NodeProcess(**FAKE, max_queue=20)
    node.wait_for_line(': active')
    yield node
    assert node.stop() == 0 and 'Traceback' not in node.output and 'internal error' not in node.output, (
        node.output
    )


@pytest.fixture(scope='module')
def ears(node):
    from conftest import Ears

    ears = Ears()
    ears.wait_until_connected()
    yield ears
    ears.close()


def test_any_text_is_answered_with_itself_or_told_what_is_wrong(ears):
    @ANYTHING
    @given(TEXT)
    def check(text):
        turn = ears.turn(text)
        if text.strip():
            assert turn.finish_reason in ('stop', 'length') and ('You said: ' + text).startswith(
                turn.reply
            ), (text, turn)
        else:
            assert turn.finish_reason == 'error'
        assert ''.join(piece.text for piece in ears.pieces(turn.turn_id)) == turn.reply

    check()


def test_images_that_do_not_fit_themselves_do_not_hurt(ears):
    raw = ears.node.create_publisher(Image, '/nanochat/image', 1)
    compressed = ears.node.create_publisher(CompressedImage, '/nanochat/image/compressed', 1)

    @ANYTHING
    @given(
        st.integers(0, 2**32 - 1),
        st.integers(0, 2**32 - 1),
        st.integers(0, 2**32 - 1),
        TEXT,
        st.binary(max_size=200),
    )
    def check(height, width, step, encoding, data):
        raw.publish(Image(height=height, width=width, step=step, encoding=encoding, data=data))
        compressed.publish(CompressedImage(format=encoding, data=data))

    check()
    assert ears.turn('still there?').reply == 'You said: still there?'


def test_absurd_parameters_are_refused_or_obeyed_and_never_fatal(ears):
    names = [
        'temperature',
        'top_p',
        'min_p',
        'repetition_penalty',
        'deadline',
        'max_image_age',
        'top_k',
        'seed',
        'max_new_tokens',
        'max_queue',
        'wrap_tokens',
        'system_prompt',
        'stop',
        'robots',
    ]
    values = st.one_of(
        st.floats(),
        st.integers(-(2**63), 2**63 - 1),
        TEXT,
        st.lists(TEXT, min_size=1, max_size=3),
        st.booleans(),
    )

    @settings(ANYTHING, max_examples=100)
    @given(st.sampled_from(names), values)
    def check(name, value):
        result = set_parameter(ears, name, value)
        assert result.successful or result.reason

    check()
    for name, value in [
        ('robots', ['']),
        ('max_new_tokens', 256),
        ('stop', ['']),
        ('deadline', 0.0),
        ('max_queue', 20),
        ('do_sample', False),
        ('system_prompt', ''),
        ('wrap_tokens', 0),
        ('repetition_penalty', 1.0),
    ]:
        assert set_parameter(ears, name, value).successful, name
    ears.wait_until_connected()
    assert ears.turn('and now?').reply == 'You said: and now?'


@pytest.mark.long
def test_a_flood_of_ten_thousand_queries_is_answered_or_refused_in_bounded_memory(start, listen):
    node = start(api='fake', model='tokens_per_second=2000', on_new_query='queue', max_queue=10)
    ears = listen()
    ears.turn('first')
    memory = node.memory()
    for i in range(10_000):
        ears.ask(f'query {i} {"x" * random.randrange(50)}')
        if i % 10 == 9:
            ears.wait_for(
                lambda: len(ears.turns) >= i - 60, timeout=120
            )  # what is still on its way is less than the subscription keeps
        time.sleep(0.0005)
    ears.wait_for(lambda: len(ears.turns) >= 9_900, timeout=120)
    assert {turn.finish_reason for _, _, turn in ears.turns} <= {'stop', 'refused'}
    assert len({turn.turn_id for _, _, turn in ears.turns}) == len(ears.turns)
    assert node.memory() < memory + 30e6
    until = time.monotonic() + 60.0
    while (last := ears.turn('last')).finish_reason == 'refused':  # up to ten of the flood still wait
        assert time.monotonic() < until, 'the queue does not empty'
        time.sleep(0.1)
    assert last.finish_reason == 'stop'
