"""Several robots on one node, on the fake model: names, histories and options of their own."""

import threading

from conftest import meet
from rcl_interfaces.msg import Parameter as ParameterMessage
from rcl_interfaces.srv import GetParameters, SetParameters
from rclpy.parameter import Parameter

NAMES = [f'r{i}' for i in range(8)]


def call(ears, kind, name, request, timeout=20.0):
    client = ears.clients.get(name)
    if client is None:
        client = ears.clients[name] = ears.node.create_client(kind, name)
        meet(ears.node, GetParameters, name.rpartition('/')[0] + '/get_parameters', GetParameters.Request())
    assert client.wait_for_service(timeout)
    done = threading.Event()
    future = client.call_async(request)
    future.add_done_callback(lambda _: done.set())
    assert done.wait(timeout), f'{name} did not answer'
    return future.result()


def set_parameter(ears, name, value, node='/nanochat'):
    message: ParameterMessage = Parameter(name, value=value).to_parameter_msg()
    return call(
        ears, SetParameters, f'{node}/set_parameters', SetParameters.Request(parameters=[message])
    ).results[0]


def test_eight_robots_at_once_each_have_their_own_conversation_and_no_reply_is_on_a_wrong_topic(
    start, listen
):
    prefixes = [f'/{name}/nanochat' for name in NAMES]
    start(model='tokens_per_second=200', robots=NAMES, max_sequences=8)
    ears = listen(*prefixes)
    for round in range(3):
        before = len(ears.turns)
        for name, prefix in zip(NAMES, prefixes):
            ears.ask(f'I am {name}, round {round}', prefix)
        ears.wait_for(lambda: len(ears.turns) == before + len(NAMES))
    for prefix, _, turn in ears.turns:
        assert prefix == f'/{turn.robot}/nanochat' and f'I am {turn.robot},' in turn.query
        assert turn.reply == 'You said: ' + turn.query and turn.finish_reason == 'stop'
    for prefix, _, token in ears.tokens:
        assert token.turn_id in {turn.turn_id for where, _, turn in ears.turns if where == prefix}


def test_robots_are_added_and_removed_while_the_node_runs_and_take_options_of_their_own(start, listen):
    start(robots=['r1'], r1__max_new_tokens=3)
    ears = listen('/r1/nanochat')
    assert ears.turn('hello').reply == 'You'
    assert set_parameter(ears, 'robots', ['r1', 'r2']).successful
    more = listen('/r2/nanochat')
    assert more.turn('hello').reply == 'You said: hello'
    assert set_parameter(ears, 'r2.max_new_tokens', 5).successful
    assert more.turn('hello').reply == 'You s'
    assert set_parameter(ears, 'max_new_tokens', 4).successful  # of those that have none of their own
    assert ears.turn('again').reply == 'You'
    assert set_parameter(ears, 'robots', ['r2']).successful
    assert ears.askers['/r1/nanochat'].publish
    assert more.turn('still here').reply == 'You s'
    wait_gone(ears, '/r1/nanochat/query')


def test_a_robot_goes_back_to_what_the_node_does_with_null_as_a_dump_of_parameters_has_it(
    start, listen, talk
):
    start(
        robots=['r1'],
        system_prompt='Of all.',
        r1__system_prompt='None',
        r1__on_new_query='null',
        r1__temperature='null',
    )
    ears = listen('/r1/nanochat')
    assert ears.turn('hello').reply == 'You said: hello'
    assert talk(robot='r1').history()[0] == ('system', 'Of all.')
    assert set_parameter(ears, 'r1.max_new_tokens', 3).successful
    assert ears.turn('hello').reply == 'You'
    deleted = set_parameter(ears, 'r1.max_new_tokens', None)  # ros2 param delete
    assert not deleted.successful and 'null' in deleted.reason
    assert set_parameter(ears, 'r1.max_new_tokens', 'null').successful
    assert ears.turn('hello').reply == 'You said: hello'


def test_robots_that_come_and_go_all_the_time_disturb_nobody(start, listen):
    node = start(robots=['r1'])
    ears = listen('/r1/nanochat')
    for round in range(60):
        assert set_parameter(ears, 'robots', ['r1', 'r2', 'r3'] if round % 2 else ['r1']).successful
        if round % 10 == 0:
            assert ears.turn(f'round {round}').finish_reason == 'stop'
    assert node.process.poll() is None and 'internal error' not in node.output


def wait_gone(ears, topic):
    import time

    until = time.monotonic() + 10
    while ears.node.count_subscribers(topic):
        assert time.monotonic() < until, f'{topic} is still there'
        time.sleep(0.1)


def test_wrong_parameters_are_refused_with_a_reason_and_nothing_changes(start, listen):
    start()
    ears = listen()
    for name, value, told in [
        ('model', 'other.gguf', 'clean'),
        ('temperature', float('nan'), 'temperature'),
        ('temperature', 1e9, 'temperature'),
        ('robots', ['a b'], 'ROS name'),
        ('robots', ['a', 'a'], 'twice'),
        ('on_new_query', 'shout', 'interrupt'),
        ('max_new_tokens', -2, 'max_new_tokens'),
        ('top_p', 0.0, 'top_p'),
        ('repetition_penalty', float('inf'), 'repetition_penalty'),
        ('system_prompt', 'x' * 200_000, 'at most 131072 are read for a context of 4096 tokens'),
        ('template_options', f'{{"a": "{"x" * 200_000}"}}', 'at most 131072 are read'),
        ('system_prompt', 'x' * 5_000_000, 'system_prompt has 5,000,000 characters'),
        ('cameras', ['a' * 1_000_000] * 5, 'cameras has 5,000,000 characters'),
    ]:
        result = set_parameter(ears, name, value)
        assert not result.successful and told in result.reason, (name, value, result)
    assert ears.turn('hello').reply == 'You said: hello'
    values = call(
        ears,
        GetParameters,
        '/nanochat/get_parameters',
        GetParameters.Request(names=['temperature', 'robots']),
    ).values
    assert values[0].double_value == 0.7 and list(values[1].string_array_value) == ['']


def test_a_node_in_a_namespace_and_a_second_node_use_the_same_names_below_theirs(start, listen):
    start(ros_args=['-r', '__ns:=/cell'])
    start(ros_args=['-r', '__node:=other'], robots=['r1'])
    ears = listen('/cell/nanochat', '/r1/other')
    assert ears.turn('one', '/cell/nanochat').reply == 'You said: one'
    assert ears.turn('two', '/r1/other').reply == 'You said: two'
    assert {where for where, _, _ in ears.turns} == {'/cell/nanochat', '/r1/other'}
