"""A process that was forked from the one with the model is told so; it neither waits nor closes the model."""

from __future__ import annotations

import subprocess
import sys

SOURCE = """
import os, sys, warnings
warnings.simplefilter('ignore')
from ros2_nanochat import KVCache, NanoLLM
from ros2_nanochat.errors import BackendError
model = NanoLLM.from_pretrained(api='fake')
assert model.generate('hello', max_new_tokens=3, streaming=False)
running = model.generate('hello', max_new_tokens=3)
child = os.fork()
if child == 0:
    said = []
    for ask in (model.generate, model.engine.call, model.save_kv):
        try:
            ask(KVCache() if ask == model.save_kv else "hello")
        except BackendError as error:
            said.append(str(error))
    for ask in (running.wait, running.__next__, lambda: list(running.deltas())):
        try:
            ask()
        except BackendError as error:
            said.append(str(error))
    model.close()
    print(len(said), said[0], flush=True)
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
assert model.generate('hello', max_new_tokens=3, streaming=False)
assert running.wait().finish_reason
print('parent', os.getpid(), flush=True)
"""

IDS = """
import os, sys
from ros2_nanochat.config import RobotOptions
from ros2_nanochat.robot.turn import Turn
Turn('first', RobotOptions())
children = [os.fork()]
if children[0]:
    children.append(os.fork())
os.write(1, b''.join(Turn('next', RobotOptions()).id.encode() + bytes([10]) for _ in range(3)))
if 0 not in children:
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
"""


def test_turns_of_forked_processes_have_ids_of_their_own():
    done = subprocess.run([sys.executable, '-c', IDS], capture_output=True, text=True, timeout=60)
    ids = done.stdout.split()
    assert len(ids) == 9 == len(set(ids)), done.stderr


def test_a_forked_child_is_told_that_the_model_belongs_to_another_process():
    done = subprocess.run([sys.executable, '-c', SOURCE], capture_output=True, text=True, timeout=60)
    child, parent = done.stdout.splitlines()
    assert child.startswith('6 the model belongs to process ') and 'spawn' in child
    assert parent.split()[1] in child
