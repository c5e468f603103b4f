"""Whose time it is, and who says how topics are delivered."""

import time

from builtin_interfaces.msg import Time
from conftest import Ears


def test_stamps_are_of_the_simulation_and_deadlines_of_the_wall(start, listen, talk):
    from rosgraph_msgs.msg import Clock

    start(model='tokens_per_second=100', use_sim_time=True)
    ears = listen()
    clock = ears.node.create_publisher(Clock, '/clock', 10)
    until = time.monotonic() + 30
    while True:  # the node may not have found the clock yet
        clock.publish(Clock(clock=Time(sec=1234)))
        turn = ears.turn('hello')
        if turn.header.stamp.sec == 1234:
            break
        assert turn.header.stamp.sec == 0 and time.monotonic() < until
    assert {token.stamp.sec for token in ears.pieces(turn.turn_id)} == {1234}
    chat = talk()
    first = chat.ask('y' * 230)  # the simulation stands still
    next(iter(first))
    late = chat.ask('late', on_new_query='queue', deadline=0.3)
    assert late.result(20).finish_reason == 'deadline' and not first.future.done()


def test_tokens_are_stamped_with_the_time_at_which_they_came(start, listen):
    start(model='tokens_per_second=20')
    ears = listen()
    began = time.time_ns()
    turn = ears.turn('hello')
    stamps = [token.stamp.sec * 10**9 + token.stamp.nanosec for token in ears.pieces(turn.turn_id)]
    assert stamps == sorted(stamps) and began < stamps[0] and stamps[-1] < time.time_ns()
    assert stamps[-1] - stamps[0] > 0.25 * 10**9  # seven tokens and more, 50 ms apart


def test_qos_can_be_overridden_by_parameter(start):
    start(
        ros_args=[
            '-p',
            'qos_overrides./nanochat/tokens.publisher.depth:=7',
            '-p',
            'qos_overrides./nanochat/reply.publisher.reliability:=best_effort',
        ]
    )
    ears = Ears('/unused')
    until = time.monotonic() + 20

    def reliabilities(topic):
        ends = ears.node.get_publishers_info_by_topic(topic)
        return {end.qos_profile.reliability.name for end in ends}

    # The node of the test before may be on the graph for a moment.
    while reliabilities('/nanochat/reply') != {'BEST_EFFORT'}:
        assert time.monotonic() < until
        time.sleep(0.05)
    assert reliabilities('/nanochat/turn') == {'RELIABLE'}
    ears.close()


def test_a_listener_that_asks_for_more_than_a_topic_gives_is_told(start):
    from nanochat.msg import Token
    from rclpy.qos import DurabilityPolicy, QoSProfile

    node = start()
    ears = Ears('/unused')
    wanted = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    ears.node.create_subscription(Token, '/nanochat/tokens', print, wanted)
    node.wait_for_line('incompatible QoS', 30)
    ears.close()


def test_an_override_of_qos_that_has_no_use_is_told_and_a_wrong_one_ends_the_start(start):
    node = start(
        ros_args=[
            '-p',
            'qos_overrides./nanochat/tokens.publisher.dept:=7',
            '-p',
            'qos_overrides./nanochat/token.publisher.depth:=7',
            '-p',
            'qos_overrides./nanochat/turn.publisher.depth:=7',
        ]
    )
    # Another test's killed node may have left shared memory, which is told in a line of its own.
    told = [line for line in node.lines if 'WARN' in line and 'qos_overrides' in line]
    assert (
        len(told) == 1
        and 'tokens.publisher.dept,' in told[0]
        and '/nanochat/token.publisher.depth:' in told[0]
        and 'turn' not in told[0]
    )
    for override in ('reliability:=sometimes', 'depth:=0', 'depth:=many', 'depth:=9999999999'):
        node = start(wait=False, ros_args=['-p', f'qos_overrides./nanochat/tokens.publisher.{override}'])
        assert node.process.wait(60) == 1
        node.stop()
        assert (
            len(node.lines) == 1
            and f'nanochat: qos_overrides./nanochat/tokens.publisher.{override.partition(":")[0]}='
            in node.lines[0]
        ), node.output
