"""Tools of an MCP server in another process, through the official SDK, under a robot's limits."""

import logging
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from ros2_nanochat.robot.mcp_tools import McpServers, McpTools
from ros2_nanochat.robot.tool_entries import ServerEntry
from ros2_nanochat.robot.tool_policy import ToolLimits, ToolPolicy
from ros2_nanochat.robot.toolbox import Toolbox, TurnTools
from ros2_nanochat.tools import CallState, ToolCall

pytest.importorskip('mcp', reason='needs the extra mcp')

SERVER = Path(__file__).with_name('mcp_server.py')
LOG = logging.getLogger('test')


@pytest.fixture(scope='module')
def servers():
    servers = McpServers()
    yield servers
    servers.close()


def entry(tools=None):
    return ServerEntry('wiki', 'tools.yaml: mcp.wiki', (sys.executable, str(SERVER)), tools=tools)


class Case:
    def __init__(self, servers, tools=None, **limits):
        self.mcp = McpTools(entry(tools), servers.client(entry()), LOG)
        self.box = Toolbox(limits=ToolLimits(rate=1000.0, **limits))
        self.box.set_tools(self.mcp.tools(set(), time.monotonic() + 60))
        self.count = 0

    def begin(self, name, **arguments):
        self.count += 1
        turn = SimpleNamespace(id='0123456789', stop_reason=None, finish_reason='')
        call = ToolCall(f'call{self.count}', name, arguments)
        return TurnTools(self.box, turn).start(call, lambda call: None)

    def call(self, name, **arguments):
        return self.begin(name, **arguments).wait(30)


def test_tools_of_a_server_are_called_and_their_failures_are_told(servers):
    case = Case(servers)
    assert {tool.name for tool in case.box.tools} == {'add', 'fail', 'slow', 'end'}
    assert case.call('add', a=2, b=3).result == '5'
    ended = case.call('fail')
    assert ended.state is CallState.FAILED and ended.result and '\n' not in ended.result
    assert 'wrong arguments' in case.call('add', a='two', b=3).result
    assert 'late' not in case.call('add', a=1, b=1).result


def test_only_the_tools_of_the_file_are_offered_with_its_keys(servers):
    case = Case(servers, {'add': ToolPolicy(dry_run=True), 'none': ToolPolicy()})
    assert [tool.name for tool in case.box.tools] == ['add']
    assert case.call('add', a=2, b=3).result.startswith('dry run: ')
    assert 'there is no tool fail' in case.call('fail').result


def test_a_call_of_a_server_can_be_stopped(servers):
    case = Case(servers)
    run = case.begin('slow')
    time.sleep(0.1)
    run.cancel('it was stopped')
    assert run.wait(10).state is CallState.CANCELLED
    assert case.call('add', a=2, b=3).result == '5'


def test_a_server_that_ends_is_started_again(servers):
    case = Case(servers, {'end': ToolPolicy(timeout=30.0), 'add': ToolPolicy(timeout=30.0)})
    assert case.call('end').state is CallState.FAILED
    until = time.monotonic() + 60
    while (ended := case.call('add', a=2, b=3)).state is not CallState.DONE:
        assert time.monotonic() < until, ended
        time.sleep(0.1)
    assert ended.result == '5'


def test_a_server_that_cannot_be_started_is_one_line(servers, caplog):
    absent = ServerEntry('gone', 'tools.yaml: mcp.gone', ('/nowhere/server',))
    mcp = McpTools(absent, servers.client(absent), LOG)
    until = time.monotonic() + 30
    while 'mcp.gone' not in caplog.text:
        assert mcp.tools(set()) == [] and time.monotonic() < until
        time.sleep(0.05)
    assert 'cannot be reached' in caplog.records[-1].message
