"""The tools file: what it may hold, and what an error in it says."""

import textwrap

import pytest

from ros2_nanochat.errors import one_line
from ros2_nanochat.program import error_line
from ros2_nanochat.robot.tool_policy import OnInterrupt, ToolKind
from ros2_nanochat.robot.tools_file import read_tools_file

WHOLE = """
tools:
  set_lamp:  {service: '/{robot}/lamp/set', type: std_srvs/srv/SetBool, description: Switch the lamp}
  drive:     {action: /drive, arguments: {speed: {minimum: 0.0, maximum: 0.3}}, confirm: false, timeout: 20.0}
  say:       {publish: /tts/text, type: std_msgs/msg/String}
  battery:   {read: /battery, fields: [percentage], max_age: 5.0}
  creep:     {publish: /cmd_vel, type: geometry_msgs/msg/Twist, on_cancel: {}, on_interrupt: keep}
  get_speed: {parameter: /controller, name: max_speed, rate: 2}
limits: {rounds: 2, calls_per_turn: 5, rate: 0.5, dry_run: true, audit: /tmp/audit.jsonl}
mcp: {wiki: {command: [python3, -m, wiki], tools: [search]}, office: {url: 'http://127.0.0.1:9000/mcp'}}
"""


@pytest.fixture
def read(tmp_path):
    def read(text, robot='r1'):
        path = tmp_path / 'tools.yaml'
        path.write_text(textwrap.dedent(text))
        return read_tools_file(path, robot)

    return read


def test_a_whole_file_is_read_with_its_defaults(read):
    file = read(WHOLE)
    tools = {tool.name: tool for tool in file.tools}
    assert [tool.kind for tool in file.tools] == [
        ToolKind.SERVICE,
        ToolKind.ACTION,
        ToolKind.PUBLISH,
        ToolKind.READ,
        ToolKind.PUBLISH,
        ToolKind.PARAMETER,
    ]
    assert tools['set_lamp'].target == '/r1/lamp/set' and tools['set_lamp'].policy.confirm is False
    assert tools['drive'].policy.confirm is False and tools['drive'].policy.timeout == 20.0
    assert tools['say'].policy.confirm is True and tools['say'].on_cancel is None
    assert tools['creep'].on_cancel == {} and tools['creep'].policy.on_interrupt is OnInterrupt.KEEP
    assert tools['battery'].fields == ('percentage',) and tools['get_speed'].parameter == 'max_speed'
    assert file.limits.rounds == 2 and file.limits.rate == 0.5 and file.limits.dry_run
    wiki, office = file.servers
    assert wiki.command == ('python3', '-m', 'wiki') and set(wiki.tools) == {'search'}
    assert office.url == 'http://127.0.0.1:9000/mcp' and office.tools is None


def test_a_parameter_is_set_only_with_approval_unless_the_file_says_so(read):
    text = """
    tools:
      look: {parameter: /x, name: y}
      turn: {parameter: '/{robot}/x', name: y, set: {type: number, minimum: 0, maximum: 1}}
      free: {parameter: /x, name: y, set: {type: string, enum: [a, b]}, confirm: false}
      seen: {observations: [door, tray]}
      all:  {observations: all}
    """
    look, turn, free, seen, everything = read(text).tools
    assert [tool.policy.confirm for tool in (look, turn, free, seen)] == [False, True, False, False]
    assert not look.arguments and turn.arguments['value']['maximum'] == 1 and turn.target == '/r1/x'
    assert seen.watches == ('door', 'tray') and everything.watches == () and seen.kind == 'observations'


def test_an_empty_file_has_no_tools(read):
    assert read('').tools == ()
    assert read('', robot='').limits.calls_per_turn == 8


@pytest.mark.parametrize(
    'text, says',
    [
        ('tols: {}', "tols is not known (did you mean 'tools'?)"),
        ('tools: [1]', 'tools is not valid'),
        (
            'tools: {a: {service: /x, confrim: true}}',
            "tools.a.confrim is not known (did you mean 'confirm'?)",
        ),
        ('tools: {a: {service: /x, fields: [y]}}', 'tools.a.fields is not known'),
        ('tools: {a: {}}', 'tools.a needs exactly one of service, action'),
        ('tools: {a: {service: /x, action: /y}}', 'tools.a needs exactly one of'),
        ('tools: {a: {service: 5}}', 'tools.a.service is not valid: text, not 5'),
        ("tools: {a: {service: ''}}", 'tools.a.service is not valid'),
        ('tools: {a b: {service: /x}}', 'tools.a b is not a valid name'),
        ('tools: {a: {service: /x, timeout: 0}}', 'tools.a.timeout=0 is not valid'),
        ('tools: {a: {service: /x, timeout: soon}}', "tools.a.timeout='soon' is not valid"),
        ('tools: {a: {service: /x, confirm: 1}}', 'tools.a.confirm=1 is not valid'),
        ('tools: {a: {service: /x, on_interrupt: stop}}', "tools.a.on_interrupt='stop' is not valid"),
        ('tools: {a: {service: /x, arguments: [y]}}', 'tools.a.arguments is not valid'),
        ('tools: {a: {service: /x, arguments: {y: 3}}}', 'tools.a.arguments.y is not valid'),
        ('tools: {a: {publish: /x, on_cancel: 0}}', 'tools.a.on_cancel is not valid'),
        ('tools: {a: {action: /x, on_cancel: {}}}', 'tools.a.on_cancel needs publish or service'),
        (
            'tools: {a: {action: /x, on_cancel: {publish: /c, message: {}}}}',
            'tools.a.on_cancel.message is not',
        ),
        ('tools: {a: {read: /x, max_age: -1}}', 'tools.a.max_age is not valid'),
        ('tools: {a: {read: /x, fields: y}}', 'tools.a.fields is not valid'),
        ('tools: {a: {parameter: /x}}', 'tools.a.name is missing'),
        ('tools: {a: {parameter: /x, name: y, set: 3}}', 'tools.a.set is not valid'),
        ('tools: {a: {parameter: /x, name: y, set: {}}}', 'tools.a.set.type is not valid: boolean, integer'),
        ('tools: {a: {parameter: /x, name: y, set: {type: array}}}', 'tools.a.set.type is not valid'),
        (
            'tools: {a: {parameter: /x, name: y, set: {type: number, minimum: low}}}',
            'tools.a.set.minimum is not valid',
        ),
        (
            'tools: {a: {parameter: /x, name: y, set: {type: number, minimun: 0}}}',
            "tools.a.set.minimun is not known (did you mean 'minimum'?)",
        ),
        ('tools: {a: {service: /x, set: {type: number}}}', 'tools.a.set is not known'),
        ('tools: {a: {observations: some}}', 'tools.a.observations is not valid: all, or a list'),
        ('tools: {a: {observations: []}}', 'tools.a.observations is not valid'),
        ('tools: {a: {observations: all, fields: [x]}}', 'tools.a.fields is not known'),
        ('tools: {a: {service: /x}}\nexamples: [{say: hello, call: b}]', 'examples[0].call is no tool'),
        ('tools: {a: {service: /x}}\nexamples: [{say: hello}]', 'examples[0].call is missing'),
        ('examples: [{sai: hello}]', "examples[0].sai is not known (did you mean 'say'?)"),
        ('examples: {say: hello}', 'examples is not valid: a list'),
        ('tools: {a: {service: /x}, a: {service: /y}}', "'a' stands twice"),
        ('limits: {round: 3}', "limits.round is not known (did you mean 'rounds'?)"),
        ('limits: {rounds: 0}', 'limits.rounds=0 is not valid'),
        ('limits: {rate: -1}', 'limits.rate=-1 is not valid'),
        ('mcp: {a: {}}', 'mcp.a needs command or url'),
        ('mcp: {a: {url: ftp://x}}', 'mcp.a.url is not valid'),
        ('mcp: {a: {command: [x], tools: 3}}', 'mcp.a.tools is not valid'),
        ('mcp: {a: {command: [x], tools: {y: {confrim: true}}}}', 'mcp.a.tools.y.confrim is not known'),
        ('tools: {a: {service: /x', 'line '),
        ('tools: {a: {service: /{robot}/x}}', 'put a text that holds {...} in quotes'),
        ('tools: {a: {publish: /a/{robot}, description: b}}', 'put a text that holds {...} in quotes'),
        ('- 1', 'is not valid: a mapping'),
        ('tools: {1: {service: /x}}', 'is not text'),
        ('!!python/object/apply:os.system [echo]', 'line '),
    ],
)
def test_an_error_is_one_line_with_the_file_and_the_key(read, text, says):
    with pytest.raises(ValueError) as error:
        read(text)
    assert says in str(error.value) and 'tools.yaml' in str(error.value) and '\n' not in str(error.value)


def test_a_file_that_cannot_be_read_is_one_line(tmp_path):
    for path in (tmp_path / 'none.yaml', tmp_path):
        with pytest.raises(ValueError, match='tools_file=.* cannot be read'):
            read_tools_file(path)
    (tmp_path / 'binary.yaml').write_bytes(b'\xff\xfe\x00\x01\x02')
    with pytest.raises(ValueError, match='tools_file='):
        read_tools_file(tmp_path / 'binary.yaml')


def test_control_characters_of_a_file_do_not_reach_a_terminal(read):
    for text in ('"\\e[31m\\nforged": 1', 'tools: {a: {"\\u202e\\e]0;x\\a": 1}}'):
        with pytest.raises(ValueError, match='is not known') as caught:
            read(text)
        assert one_line(caught.value).isprintable() and error_line(caught.value).isprintable()
