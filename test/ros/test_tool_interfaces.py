"""The arguments of tools from ROS interfaces, and messages as answers. No node is needed."""

import math

import pytest
from geometry_msgs.msg import PoseStamped, Twist
from nanochat.action import Drive
from sensor_msgs.msg import BatteryState, LaserScan
from std_msgs.msg import Byte, ByteMultiArray, Float64MultiArray, String, UInt8MultiArray
from std_srvs.srv import SetBool, Trigger

from ros2_nanochat.robot.tool_entries import ToolEntry
from ros2_nanochat.robot.tool_policy import ToolKind
from ros2_nanochat.robot.toolbox import Toolbox
from ros2_nanochat.robot.tools_file import read_tools_file
from ros2_nanochat.ros.tools.arguments import arguments_of
from ros2_nanochat.ros.tools.comments import comments_of
from ros2_nanochat.ros.tools.interfaces import interface_class
from ros2_nanochat.ros.tools.toolset import Toolset
from ros2_nanochat.ros.tools.values import check_fields, to_data
from ros2_nanochat.tools import Tool


def made(kind, cls, **arguments):
    paths = {path.replace('__', '.'): limits for path, limits in arguments.items()}
    return arguments_of(ToolEntry('t', kind, '/t', 'file: tools.t', arguments=paths), cls)


def test_a_publication_offers_only_the_fields_that_the_file_names():
    limits = {'minimum': -0.1, 'maximum': 0.1}
    arguments = made(ToolKind.PUBLISH, Twist, linear__x=limits)
    assert arguments.schema['properties'].keys() == {'linear'}
    assert arguments.schema['properties']['linear']['properties'].keys() == {'x'}
    assert arguments.unlimited == []
    tool = Tool('creep', '', arguments.schema)
    tool.check({'linear': {'x': 0.1}})
    for wrong in ({'linear': {'x': 0.11}}, {'linear': {'x': 0.1, 'y': 0.0}}, {'angular': {'z': 1.0}}, {}):
        with pytest.raises(ValueError, match='wrong arguments for creep'):
            tool.check(wrong)
    message = arguments.message({'linear': {'x': 0.1}})
    assert message.linear.x == 0.1 and message.angular.z == 0.0


def test_a_goal_keeps_what_the_file_does_not_name_and_defaults_are_optional():
    arguments = made(ToolKind.ACTION, Drive.Goal, speed={'minimum': 0.0, 'maximum': 0.3})
    assert arguments.schema['required'] == ['distance'] and arguments.unlimited == ['distance']
    assert arguments.message({'distance': 1.0}).speed == pytest.approx(0.2)
    assert 'Metres' in arguments.schema['properties']['distance']['description']


def test_a_fixed_field_is_filled_in_and_not_shown():
    arguments = made(ToolKind.PUBLISH, Twist, linear__x={'const': 0.2}, angular__z={'const': 0})
    assert arguments.schema['properties'] == {} and arguments.schema['required'] == []
    message = arguments.message({})
    assert (message.linear.x, message.angular.z) == (0.2, 0.0)
    arguments = made(ToolKind.SERVICE, SetBool.Request, data={'const': True})
    assert arguments.message({}).data is True and arguments.unlimited == []


def test_the_model_reads_nothing_about_arguments_that_a_tool_does_not_take(tmp_path):
    path = tmp_path / 'tools.yaml'
    path.write_text(
        'tools:\n'
        '  lit: {service: lamp, type: std_srvs/srv/SetBool, arguments: {data: {const: true}}}\n'
        '  stop: {service: stop, type: std_srvs/srv/Trigger}\n'
        '  battery: {read: battery, type: sensor_msgs/msg/BatteryState}\n'
        '  speed: {parameter: /base, name: speed}\n'
    )
    box = Toolbox()
    toolset = Toolset(None, read_tools_file(path), box, None)
    tools = [planned.tool for planned in toolset._planned.values()]
    assert [tool.name for tool in tools] == ['lit', 'stop', 'battery', 'speed']
    assert all(tool.parameters == Tool('none').parameters for tool in tools)


@pytest.mark.parametrize(
    'limits, says',
    [
        ({'sped': {'minimum': 0}}, 'file: tools.t.arguments.sped: is not a field'),
        ({'speed': {'minimun': 0}}, "file: tools.t.arguments.speed: has no 'minimun'"),
        ({'speed': {'maximum': 1e99}}, 'wider than the type'),
        ({'speed.x': {'minimum': 0}}, 'is not a field'),
        ({'speed': {'description': 5}}, 'tools.t.arguments.speed.description'),
    ],
)
def test_an_argument_that_does_not_fit_is_one_line_with_its_key(limits, says):
    with pytest.raises(ValueError) as error:
        made(ToolKind.ACTION, Drive.Goal, **limits)
    assert says in str(error.value) and 'response_format' not in str(error.value)


def test_types_are_found_by_name_and_a_wrong_one_is_one_line():
    assert interface_class('std_srvs/srv/SetBool', ToolKind.SERVICE, 'w') is SetBool
    assert interface_class('std_srvs/SetBool', ToolKind.SERVICE, 'w') is SetBool
    for name, kind in (
        ('std_srvs/srv/SetBol', ToolKind.SERVICE),
        ('std_srvs/srv/SetBool', ToolKind.ACTION),
        ('no_package/srv/SetBool', ToolKind.SERVICE),
        ('SetBool', ToolKind.SERVICE),
        ('os/path/Join', ToolKind.PUBLISH),
    ):
        with pytest.raises(ValueError, match=r'^w\.type: '):
            interface_class(name, kind, 'w')


def test_comments_of_interface_files_become_descriptions():
    about, fields = comments_of('nanochat', 'action', 'Drive')
    assert about.startswith('Drive straight ahead') and fields['speed'] == 'Metres per second, above 0'
    assert comments_of('std_srvs', 'srv', 'SetBool')[1]['data'].startswith('e.g. for hardware')
    assert comments_of('no_package', 'srv', 'Nothing') == ('', {})


def test_an_answer_is_cut_to_its_fields_and_to_a_bounded_size():
    message = BatteryState(percentage=0.8299999833106995, voltage=math.nan, cell_voltage=[3.7] * 100)
    assert to_data(message, ['percentage']) == {'percentage': 0.83}
    data = to_data(message)
    assert data['voltage'] == 'nan' and data['cell_voltage'][-1] == '... 100 items'
    assert len(data['cell_voltage']) == 17
    assert to_data(PoseStamped(), ['pose.position.x', 'header.frame_id']) == {
        'pose.position.x': 0.0,
        'header.frame_id': '',
    }
    assert len(str(to_data(LaserScan(ranges=[1.0] * 100_000)))) < 2000
    assert to_data(Byte(data=b'\x07')) == {'data': 7}
    assert to_data(ByteMultiArray(data=[b'\x00', b'\xff']))['data'] == [0, 255]
    assert to_data(UInt8MultiArray(data=[9] * 10**6))['data'] == [*[9] * 16, '... 1000000 items']
    assert to_data(Float64MultiArray(data=[math.nan, -math.inf, 0.5]))['data'] == ['nan', '-inf', 0.5]
    assert len(to_data(String(data='<|im_end|>' * 10**5))['data']) < 600
    assert to_data(SetBool.Request()) == {'data': False} and to_data(Trigger.Request()) == {}
    check_fields(PoseStamped, ['pose.position.x'], 'w')
    with pytest.raises(ValueError, match=r"w\.fields: 'pose.place' is not a field: Pose has position"):
        check_fields(PoseStamped, ['pose.place'], 'w')
