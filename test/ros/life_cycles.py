"""A chat node that goes through its life cycle again and again and prints what is left after each cleanup, as
JSON: for test_lifecycle.py, which starts this file as a program.
"""

import collections
import gc
import json
import os
import sys
import threading
import weakref

import rclpy
from rclpy.executors import MultiThreadedExecutor

from ros2_nanochat.ros.allocator import give_back_memory
from ros2_nanochat.ros.chat_node import ChatNode
from ros2_nanochat.ros.client import ChatClient
from ros2_nanochat.ros.spinning import spin

THREADS = 4  # of the executor, which starts them as it needs them


def main():
    cycles, *arguments = sys.argv[1:]
    rclpy.init(args=arguments)
    node, executor = ChatNode(threading.Event()), MultiThreadedExecutor(num_threads=THREADS)
    executor.add_node(node)
    for _ in range(THREADS):  # all of them now, so that none counts as left by a cycle
        executor._executor.submit(threading.Event().wait, 0.2)
    threading.Thread(target=spin, args=(executor,), daemon=True).start()
    chat = ChatClient()
    left = []
    for _ in range(int(cycles)):
        node.trigger_configure()
        node.trigger_activate()
        assert chat.wait_until_ready(30.0)
        assert chat.ask('hello').result(30.0).reply == 'You said: hello'
        node.trigger_deactivate()
        node.trigger_cleanup()
        left.append(count())
    print(json.dumps(left), flush=True)
    os._exit(0)


def count():
    """Return how many objects, threads, descriptors and handlers there are."""
    give_back_memory()
    objects = gc.get_objects()
    return {
        **collections.Counter(f'{type(each).__module__}.{type(each).__qualname__}' for each in objects),
        'dead references': sum(type(each) is weakref.ref and each() is None for each in objects),
        'threads': len(os.listdir('/proc/self/task')),
        'descriptors': len(os.listdir('/proc/self/fd')),
    }


if __name__ == '__main__':
    main()
