"""Many goals, queries and robots at once, and what must answer meanwhile, on the fake model."""

import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import rclpy
from conftest import meet, wait
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from nanochat.action import Chat
from nanochat.msg import Token
from nanochat.srv import GetHistory, Reset
from rcl_interfaces.srv import GetParameters, ListParameters
from rclpy.action import ActionClient
from rclpy.qos import QoSProfile
from std_msgs.msg import String
from std_srvs.srv import Trigger
from test_robots import call, set_parameter

FAST = 'tokens_per_second=2000'


def client_of(ears, name='/nanochat/chat', depth=1000):
    qos = QoSProfile(depth=depth)
    client = ActionClient(ears.node, Chat, name, goal_service_qos_profile=qos, result_service_qos_profile=qos)
    assert client.wait_for_server(20)
    return client


def results_of(client, goals):
    """Send goals; a list that fills with their results."""
    results = []

    def accepted(future):
        handle = future.result()
        assert handle.accepted
        handle.get_result_async().add_done_callback(lambda future: results.append(future.result()))

    for goal in goals:
        client.send_goal_async(goal).add_done_callback(accepted)
    return results


def test_three_hundred_goals_at_once_each_get_a_result(share, listen):
    share({'on_new_query': 'queue', 'max_queue': 10_000}, model=FAST)
    ears = listen()
    results = results_of(client_of(ears), [Chat.Goal(query=f'goal {i}') for i in range(300)])
    wait(lambda: len(results) == 300, 60.0)
    assert {result.result.turn.reply for result in results} == {f'You said: goal {i}' for i in range(300)}


def test_two_hundred_calls_of_each_service_at_once_are_answered(share, listen):
    share({}, model=FAST)
    ears = listen()
    kinds = ((GetHistory, 'history'), (Trigger, 'cancel'), (Reset, 'reset'))
    clients = [
        ears.node.create_client(kind, f'/nanochat/{name}', qos_profile=QoSProfile(depth=1000))
        for kind, name in kinds
    ]
    for client, (kind, name) in zip(clients, kinds, strict=True):
        assert client.wait_for_service(20)
        meet(ears.node, kind, f'/nanochat/{name}', kind.Request())
    answers = [client.call_async(client.srv_type.Request()) for _ in range(200) for client in clients]
    wait(lambda: all(answer.done() for answer in answers), 60.0)
    assert all(answer.result().success for answer in answers[2::3])


def test_calls_that_wait_for_a_reply_start_no_thread(start, listen):
    """Each thread of the executor keeps memory: if they started one by one, the node would grow for hours."""
    node = start(model='tokens_per_second=2')
    ears = listen()
    reset = ears.node.create_client(Reset, '/nanochat/reset', qos_profile=QoSProfile(depth=1000))
    meet(ears.node, Reset, '/nanochat/reset', Reset.Request())
    before = node.num_threads()
    ears.ask('hello')
    ears.wait_for(lambda: ears.tokens)
    answers = [reset.call_async(Reset.Request()) for _ in range(20)]  # each holds a thread
    wait(lambda: all(answer.done() for answer in answers), 60.0)
    assert node.num_threads() <= before + 5  # the middleware starts and ends some, too


def test_a_burst_of_two_hundred_queries_is_taken_whole(share, listen):
    share({'on_new_query': 'queue', 'max_queue': 10}, model=FAST)
    ears = listen()
    for i in range(200):
        ears.ask(f'query {i}')
    ears.wait_for(lambda: len(ears.turns) == 200)
    assert {turn.query for _, _, turn in ears.turns} == {f'query {i}' for i in range(200)}
    assert {turn.finish_reason for _, _, turn in ears.turns} == {'stop', 'refused'}


def test_a_huge_query_is_refused_and_nobody_waits_for_it(share, listen, talk):
    share(model=FAST)
    ears = listen()
    ears.ask('x' * 10_000_000)
    ears.wait_for(lambda: ears.turns, 20)
    turn = ears.turns[0][2]
    assert turn.finish_reason == 'error' and 'bytes' in turn.error and len(turn.query) < 300
    with pytest.raises(RuntimeError, match='the system prompt has 10000000 bytes'):
        talk().reset('x' * 10_000_000)
    assert ears.turn('hello').reply == 'You said: hello'


def test_at_deactivation_every_goal_gets_a_result_and_every_query_a_turn(start, listen):
    start(model='tokens_per_second=100', on_new_query='queue', max_queue=10_000)
    ears = listen()
    results = results_of(client_of(ears), [Chat.Goal(query='x' * 50) for _ in range(100)])
    for i in range(20):
        ears.ask(f'query {i}')
    ears.wait_for(lambda: len(ears.tokens) > 5)
    time.sleep(0.5)
    request = ChangeState.Request(transition=Transition(id=Transition.TRANSITION_DEACTIVATE))
    assert call(ears, ChangeState, '/nanochat/change_state', request, 60.0).success
    wait(lambda: len(results) == 100, 10)
    assert {result.result.turn.finish_reason for result in results} <= {'stop', 'cancelled', 'error'}
    ears.wait_for(lambda: len(ears.turns) == 120, 5)


def test_robots_that_all_hold_a_goal_leave_everything_else_responsive(start, listen, talk):
    names = [f'r{i}' for i in range(80)]
    start(model='tokens_per_second=8', robots=names)
    ears = listen('/r0/nanochat')
    clients = [client_of(ears, f'/{name}/nanochat/chat') for name in names]
    goals = [Chat.Goal(query='x' * 400)]
    results = [results_of(clients[0], goals)]
    ears.wait_for(lambda: len(ears.tokens) > 3)  # r0 has one of the places in the model
    results += [results_of(client, goals) for client in clients[1:]]
    time.sleep(2.0)
    statuses = []
    ears.node.create_subscription(DiagnosticArray, '/diagnostics', statuses.append, 10)
    began = time.monotonic()
    request = GetParameters.Request(names=['temperature'])
    assert call(ears, GetParameters, '/nanochat/get_parameters', request).values
    assert talk(robot='r0').cancel()
    wait(lambda: results[0], 10)
    wait(lambda: statuses, 10)
    assert not any(results[1:]), 'the others go on'
    assert time.monotonic() - began < 20


def test_robots_that_go_take_their_parameters_with_them(start, listen):
    start(robots=['r1'])
    ears = listen('/r1/nanochat')

    def names():
        request = ListParameters.Request(depth=0)
        return set(call(ears, ListParameters, '/nanochat/list_parameters', request).result.names)

    before = names()
    assert set_parameter(ears, 'robots', ['r1', 'r2', 'r3']).successful
    wait(lambda: len(names()) > len(before) + 2 * 20, 60.0)
    assert set_parameter(ears, 'robots', ['r1']).successful
    wait(lambda: names() == before, 60.0)
    assert set_parameter(ears, 'robots', ['r1', 'r2']).successful
    wait(lambda: 'r2.temperature' in names(), 60.0)
    assert listen('/r2/nanochat').turn('hello').reply == 'You said: hello'


ASKER = """
import rclpy, sys, time
from ros2_nanochat.ros.client import ChatClient
chat = ChatClient()
assert chat.wait_until_ready(30)
reply = chat.ask('y' * 2000, max_new_tokens=-1)
next(iter(reply))
print('streams', flush=True)
time.sleep(100)
"""


@pytest.mark.long
def test_a_client_that_is_killed_while_another_one_listens_stops_its_turn(start, listen, talk):
    start(model='tokens_per_second=20', on_new_query='queue')
    ears, other = listen(), talk()
    asker = subprocess.Popen([sys.executable, '-c', ASKER], stdout=subprocess.PIPE, text=True)
    try:
        assert asker.stdout.readline() == 'streams\n'
        mine = other.ask('mine')
    finally:
        asker.send_signal(signal.SIGKILL)
        asker.wait()
    ears.wait_for(lambda: ears.turns, 40)
    assert ears.turns[0][2].finish_reason == 'cancelled' and ears.turns[0][2].query == 'y' * 2000
    assert mine.result(30).reply == 'You said: mine'


PLAIN_ASKER = """
import rclpy, sys
from nanochat.action import Chat
from rclpy.action import ActionClient
rclpy.init()
node = rclpy.create_node('plain')
client = ActionClient(node, Chat, '/nanochat/chat')
assert client.wait_for_server(30)
heard = []
goal = Chat.Goal(query='y' * 2000, max_new_tokens=-1)
future = client.send_goal_async(goal, feedback_callback=heard.append)
while not heard:
    rclpy.spin_once(node, timeout_sec=1.0)
print('streams', flush=True)
rclpy.spin(node)
"""


@pytest.mark.long
def test_a_plain_client_that_is_killed_stops_its_turn_although_others_came_later(start, listen, talk):
    start(model='tokens_per_second=20', on_new_query='queue')
    ears = listen()
    asker = subprocess.Popen([sys.executable, '-c', PLAIN_ASKER], stdout=subprocess.PIPE, text=True)
    try:
        assert asker.stdout.readline() == 'streams\n'
        time.sleep(3.0)  # from now on nobody new can be its client
        mine = talk().ask('mine')
        time.sleep(1.0)
    finally:
        asker.send_signal(signal.SIGKILL)
        asker.wait()
    ears.wait_for(lambda: ears.turns, 40)
    assert ears.turns[0][2].finish_reason == 'cancelled' and ears.turns[0][2].query == 'y' * 2000
    assert mine.result(30).reply == 'You said: mine'


@pytest.mark.long
def test_five_hundred_goals_and_queries_at_200_hz_are_all_answered(start, listen):
    start(model='tokens_per_second=5000', on_new_query='queue', max_queue=10_000)
    ears = listen()
    client, results = client_of(ears), []

    def accepted(future):
        future.result().get_result_async().add_done_callback(lambda future: results.append(future.result()))

    due = time.monotonic()
    for i in range(500):
        client.send_goal_async(Chat.Goal(query=f'goal {i}')).add_done_callback(accepted)
        ears.ask(f'query {i}')
        due += 0.005
        time.sleep(max(0.0, due - time.monotonic()))
    wait(lambda: len(results) == 500, 120)
    ears.wait_for(lambda: len(ears.turns) == 1000, 120)
    assert {result.result.turn.reply for result in results} == {f'You said: goal {i}' for i in range(500)}
    asked = [turn.query for _, _, turn in ears.turns]
    assert len(set(asked)) == 1000 and {turn.finish_reason for _, _, turn in ears.turns} == {'stop'}


@pytest.mark.long
def test_cleanup_and_configure_again_and_again_take_no_more_memory(start, listen):
    node = start(model='')
    ears = listen()

    def transit(name):
        request = ChangeState.Request(transition=Transition(id=getattr(Transition, f'TRANSITION_{name}')))
        assert call(ears, ChangeState, '/nanochat/change_state', request, 60.0).success

    memory = []
    for _ in range(12):
        for name in ('DEACTIVATE', 'CLEANUP', 'CONFIGURE', 'ACTIVATE'):
            transit(name)
        memory.append(node.memory(shared=False))
    assert max(memory[1:]) < 1.05 * memory[0], memory


def test_the_images_of_a_goal_are_let_go_with_its_turn(start, talk):
    node, chat = start(), talk()
    image = np.zeros((1000, 2000, 3), np.uint8)  # 6 MB; a goal stays with its result for another ten seconds
    chat.ask('warm up', image=image).result(60)  # an error: this model has no vision
    before = node.memory(shared=False)
    for _ in range(16):
        chat.ask('look', image=image).result(60)
    assert node.memory(shared=False) < before + 8 * image.nbytes


def test_a_fleet_client_without_a_robot_is_told_which_there_are(start, run_program):
    start(robots=['left', 'right'])
    for arguments in ((), ('--robot', 'middle')):
        code, _, told = run_program('chat_client', *arguments, '--wait', '10', '--prompt', 'hello')
        assert code == 1 and '--robot  left, right' in told and 'DOMAIN' not in told


def test_history_answers_for_a_template_that_refuses_the_conversation(start, listen, talk, tmp_path):
    template = tmp_path / 'strict.jinja'
    template.write_text(
        "{% for m in messages %}{% if m['role'] == 'user' and m['content'] == 'bad' and not loop.last %}"
        "{{ raise_exception('no') }}{% endif %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
        '{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}'
    )
    node = start(chat_template=str(template))
    chat = talk()
    assert chat.ask('bad').result(20).finish_reason == 'stop'
    for _ in range(230):
        assert chat.history()[0][1] == 'bad'
    assert node.process.poll() is None
    assert listen().turn('again').finish_reason == 'error'


def test_a_listener_that_blocks_a_topic_does_not_touch_the_conversation(start, listen):
    node = start(
        max_new_tokens=1600,
        ros_args=[
            '-p',
            'qos_overrides./nanochat/tokens.publisher.history:=keep_all',
        ],
    )
    code = """
import rclpy, time
from nanochat.msg import Token
from nanochat.srv import GetHistory, Reset
from rclpy.qos import HistoryPolicy, QoSProfile
rclpy.init()
node = rclpy.create_node('never_reads')
qos = QoSProfile(depth=1, history=HistoryPolicy.KEEP_ALL)
node.create_subscription(Token, '/nanochat/tokens', lambda _: None, qos)
while not node.count_publishers('/nanochat/tokens'): time.sleep(0.05)
print('subscribed', flush=True)
time.sleep(100)
"""
    blocker = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True)
    try:
        assert blocker.stdout.readline() == 'subscribed\n'
        ears = listen()
        for i in range(9):  # Fast DDS keeps 5,000 messages at each end
            turn = ears_turn(ears, f'{i}' + 'x' * 1500)
            assert turn.finish_reason == 'stop' and turn.reply == f'You said: {turn.query}'
        node.wait_for_line('tokens cannot be published', 20.0)
    finally:
        blocker.kill()
        blocker.wait()


def ears_turn(ears, text):
    before = len(ears.turns)
    ears.ask(text)
    ears.wait_for(lambda: len(ears.turns) > before)
    return ears.turns[before][2]


def test_a_second_node_of_one_name_and_state_does_not_start_and_without_state_there_is_a_warning(
    start, listen, tmp_path
):
    first = start(state_dir=str(tmp_path))
    (tmp_path / 'link').symlink_to(tmp_path)
    second = start(wait=False, state_dir=f'{tmp_path}/link/')
    assert second.process.wait(60) == 1 and 'another process' in second.output
    start(wait=False)
    first.wait_for_line('do two nodes have one name?', 30)


@pytest.mark.parametrize('name, kind', [('tokens', Token), ('sentence', String)])
def test_another_publisher_of_any_topic_of_a_robot_is_named(share, name, kind):
    """As a player of a recording."""
    node = share()
    player = rclpy.create_node('player')
    try:
        player.create_publisher(kind, f'/nanochat/{name}', 10)
        node.wait_for_line(f'another node (/player) publishes /nanochat/{name}', 30)
    finally:
        player.destroy_node()


def test_a_client_is_told_that_the_node_is_there_but_not_active(start, run_program):
    """As while it loads or compiles its model."""
    start(wait=False, autostart=False)
    code, _, told = run_program('chat_client', '--wait', '8', '--prompt', 'hello')
    assert code == 1 and 'not active yet' in told and 'DOMAIN' not in told
