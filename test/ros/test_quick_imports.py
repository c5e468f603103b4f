"""What the program `chat_node` imports, and what it leaves out until somebody needs it."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip('rclpy')

NODE = """
import gc, sys
from ros2_nanochat.ros.quick_imports import quick_imports
with quick_imports():
    assert not gc.isenabled()
    import ros2_nanochat.ros.chat_node
assert gc.isenabled()
from nanochat.msg import Token
Token.__class__.__import_type_support__()  # needs rosidl_generator_py
from rclpy.serialization import deserialize_message, serialize_message
assert deserialize_message(serialize_message(Token(text='a')), Token).text == 'a'
"""


def output_of(code: str) -> str:
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_a_node_does_not_load_what_only_servers_tools_and_builds_need():
    by_ros = output_of('import sys, rclpy.action, rclpy.lifecycle\nprint(*sys.modules)').split()
    loaded = set(output_of(f'{NODE}print(*sys.modules)').split()).difference(by_ros)
    assert 'ros2_nanochat.nano_llm' in loaded
    assert not loaded & {'asyncio', 'lark', 'regex', 'ros2_nanochat.remote.opening', 'torch', 'llama_cpp'}


def test_the_generator_can_still_be_imported():
    pytest.importorskip('rosidl_generator_py.generate_py_impl')
    assert 'generate_py' in output_of(
        f'{NODE}from rosidl_generator_py.generate_py_impl import generate_py\nprint(generate_py.__name__)'
    )


@pytest.mark.parametrize('before', ['', 'import rosidl_generator_py\n', 'gc.disable()\n'])
def test_a_failed_import_leaves_all_as_it_was(before):
    assert (
        output_of(
            f"""
import gc, sys
{before}collects = gc.isenabled()
from ros2_nanochat.ros.quick_imports import quick_imports
try:
    with quick_imports():
        import no_such_module
except ImportError as error:
    print(error.name, gc.isenabled() == collects, None in sys.modules.values())
"""
        )
        == 'no_such_module True False\n'
    )
