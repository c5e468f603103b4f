"""Subscriptions that are taken on a thread of their own, without an executor."""

import threading
import time

import pytest
import rclpy
from conftest import wait
from rclpy.exceptions import InvalidHandle
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSProfile, ReliabilityPolicy
from std_msgs.msg import String

from ros2_nanochat.ros.endpoint_events import SubscriptionEventCallbacks
from ros2_nanochat.ros.quick_subscriptions import QuickSubscriptions
from ros2_nanochat.ros.spinning import spin

THREAD = 'quick-test'
BEST_EFFORT = ReliabilityPolicy.BEST_EFFORT


def running():
    return [thread for thread in threading.enumerate() if thread.name == THREAD]


def processor_time(thread):
    return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))


@pytest.fixture
def node():
    node = rclpy.create_node('quick')
    yield node
    node.destroy_node()
    wait(lambda: not running())


def test_messages_reach_their_callbacks_though_nobody_spins_and_one_that_fails_stops_no_other(node):
    heard = {'a': [], 'b': []}
    quick = QuickSubscriptions(node, THREAD)

    def fail_at_first(message):
        heard['a'].append(message.data)
        if len(heard['a']) == 1:
            raise SystemExit('a bug')

    open_now = [
        quick.add(String, 'quick/a', fail_at_first, 1000),
        quick.add(String, 'quick/b', lambda message: heard['b'].append(message.data), 1000),
    ]
    speakers = {name: node.create_publisher(String, f'quick/{name}', 1000) for name in heard}
    wait(lambda: all(speaker.get_subscription_count() for speaker in speakers.values()))
    for n in range(100):
        for speaker in speakers.values():
            speaker.publish(String(data=str(n)))
    wait(lambda: all(len(texts) == 100 for texts in heard.values()))
    assert heard['a'] == heard['b'] == [str(n) for n in range(100)]
    assert len(running()) == 1
    for subscription in open_now:
        quick.remove(subscription)
    wait(lambda: not running())


def test_a_callback_has_returned_when_its_subscription_is_removed_and_is_not_called_again(node):
    quick, begun, go_on, calls = QuickSubscriptions(node, THREAD), threading.Event(), threading.Event(), []

    def slow(message):
        begun.set()
        go_on.wait(20.0)
        calls.append(message.data)

    subscription = quick.add(String, 'quick/slow', slow, 10)
    speaker = node.create_publisher(String, 'quick/slow', 10)
    wait(speaker.get_subscription_count)
    for text in ('first', 'second'):
        speaker.publish(String(data=text))
    assert begun.wait(20.0)
    began = time.monotonic()
    quick.remove(subscription)
    quick.wait(0.2)  # it still runs: no longer than this
    assert 0.1 < time.monotonic() - began < 5.0 and not calls
    waiting = threading.Thread(target=quick.wait, args=(20.0,))
    waiting.start()
    go_on.set()
    waiting.join(20.0)
    assert calls == ['first']
    wait(lambda: not running())

    again = quick.add(String, 'quick/slow', slow, 10)  # after the thread has ended
    wait(speaker.get_subscription_count)
    speaker.publish(String(data='third'))
    wait(lambda: calls == ['first', 'third'])
    quick.remove(again)


def test_nobody_spins_while_a_message_or_an_event_waits_and_both_are_told(node):
    heard, told, begun, go_on = [], [], threading.Event(), threading.Event()

    def slow(message):
        heard.append(message.data)
        begun.set()
        go_on.wait(20.0)

    def fail(event):
        told.append(event)
        raise SystemExit('a bug')

    quick = QuickSubscriptions(node, THREAD)
    events = SubscriptionEventCallbacks(incompatible_qos=fail)
    subscription = quick.add(String, 'quick/events', slow, 10, event_callbacks=events)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    spinning = threading.Thread(target=spin, args=(executor,))
    spinning.start()
    try:
        speaker = node.create_publisher(String, 'quick/events', 10)
        wait(speaker.get_subscription_count)
        speaker.publish(String(data='first'))
        assert begun.wait(20.0)
        speaker.publish(String(data='second'))
        before = processor_time(spinning)
        time.sleep(1.0)  # the second waits until the callback of the first has returned
        assert processor_time(spinning) - before < 0.2
        go_on.set()
        wait(lambda: heard == ['first', 'second'])
        time.sleep(1.5)  # a regular look at the events is just over
        (quick_thread,) = running()
        before = processor_time(quick_thread)
        node.create_publisher(String, 'quick/events', QoSProfile(depth=1, reliability=BEST_EFFORT))
        wait(lambda: told)
        assert processor_time(quick_thread) - before < 0.05
        assert told[0].total_count == 1
        speaker.publish(String(data='third'))
        wait(lambda: heard == ['first', 'second', 'third'])
    finally:
        go_on.set()
        executor.shutdown()
        spinning.join(20.0)
        quick.remove(subscription)


def test_subscriptions_come_and_go_while_messages_arrive(node):
    quick, heard = QuickSubscriptions(node, THREAD), []
    kept = quick.add(String, 'quick/kept', lambda message: heard.append(message.data), 1000)
    speaker = node.create_publisher(String, 'quick/kept', 1000)
    wait(speaker.get_subscription_count)
    for n in range(50):
        other = quick.add(String, f'quick/other{n % 5}', print, 10)
        speaker.publish(String(data=str(n)))
        quick.remove(other)
    wait(lambda: len(heard) == 50)
    assert heard == [str(n) for n in range(50)]
    quick.remove(kept)


def test_without_a_thread_nothing_is_subscribed_and_the_next_one_that_starts_hears(node, monkeypatch):
    quick, heard = QuickSubscriptions(node, THREAD), []

    def fail(thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as none_left:
        none_left.setattr(threading.Thread, 'start', fail)
        for _ in range(2):
            with pytest.raises(RuntimeError, match='new thread'):
                quick.add(String, 'quick/late', print, 10)
    assert not node.count_subscribers('quick/late') and not [*node.subscriptions]
    subscription = quick.add(String, 'quick/late', lambda message: heard.append(message.data), 10)
    speaker = node.create_publisher(String, 'quick/late', 10)
    wait(speaker.get_subscription_count)
    speaker.publish(String(data='hello'))
    wait(lambda: heard == ['hello'])
    quick.remove(subscription)


def test_subscriptions_can_be_removed_and_added_after_somebody_has_shut_the_context_down():
    context = rclpy.Context()
    rclpy.init(context=context)
    node = rclpy.create_node('quick_late', context=context)
    quick = QuickSubscriptions(node, THREAD)
    subscriptions = [quick.add(String, f'quick/n{n}', print, 10) for n in range(3)]
    assert running()
    rclpy.shutdown(context=context)
    wait(lambda: not running())
    for subscription in subscriptions:
        quick.remove(subscription)
        quick.remove(subscription)
    try:
        quick.remove(quick.add(String, 'quick/new', print, 10))
    except (InvalidHandle, RuntimeError):  # the node's own, in some distributions
        pass
    assert not running() and not quick._callbacks
