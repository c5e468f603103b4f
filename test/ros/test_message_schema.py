"""ROS types as forms of answers: what obeys the schema of a type becomes a message of that type."""

from __future__ import annotations

import json
import math
import random

import jsonschema
import pytest

pytest.importorskip('rclpy')
pytest.importorskip('llguidance')
from random_forms import random_value

from ros2_nanochat.config import GenerationConfig, RobotOptions
from ros2_nanochat.ros.message_schema import message_type, read_format
from ros2_nanochat.ros.typed_reply import with_form

pytestmark = pytest.mark.ros
TYPES = (
    'geometry_msgs/msg/Twist',
    'geometry_msgs/msg/PoseWithCovarianceStamped',
    'sensor_msgs/msg/BatteryState',
    'sensor_msgs/msg/Imu',
    'sensor_msgs/msg/Image',
    'diagnostic_msgs/msg/DiagnosticArray',
    'rcl_interfaces/msg/ParameterValue',
    'rcl_interfaces/msg/ParameterDescriptor',
    'std_msgs/msg/Int64MultiArray',
    'std_msgs/msg/ByteMultiArray',
    'std_msgs/msg/Empty',
    'builtin_interfaces/msg/Duration',
    'nanochat/msg/Turn',
)


@pytest.mark.parametrize('name', TYPES)
def test_whatever_obeys_the_schema_becomes_a_message_with_those_values(name):
    form = read_format(name)

    rng = random.Random(name)
    for _ in range(25):
        data = random_value(form.schema, rng)
        jsonschema.validate(data, form.schema)
        message = form.parse(json.dumps(data))
        assert type(message) is message_type(name)
        for field, value in data.items():
            held = getattr(message, field)
            if isinstance(value, (bool, int, str)):
                assert (held[0] if isinstance(held, bytes) else held) == value
            if isinstance(value, float):
                assert math.isfinite(held) and math.isclose(held, value, rel_tol=1e-6, abs_tol=1e-6)


def test_limits_narrow_single_fields():
    fields = {'linear.x': {'minimum': -0.3, 'maximum': 0.3}, 'angular.z': {'const': 0.0}}
    schema = read_format({'ros_type': 'geometry_msgs/msg/Twist', 'fields': fields}).schema['properties']
    assert schema['linear']['properties']['x'] == {'type': 'number', 'minimum': -0.3, 'maximum': 0.3}
    assert schema['angular']['properties']['z'] == {'const': 0.0}
    assert schema['linear']['properties']['y'] == schema['angular']['properties']['x']
    same = json.dumps({'ros_type': 'geometry_msgs/msg/Twist', 'fields': fields})
    assert read_format(same).schema['properties'] == schema


def test_constants_of_a_field_are_its_choices():
    fields = {'level': {'constants': True}, 'values[].key': {'maxLength': 5}}
    schema = read_format({'ros_type': 'diagnostic_msgs/msg/DiagnosticStatus', 'fields': fields}).schema
    assert schema['properties']['level'] == {'enum': [0, 1, 2, 3]}
    assert schema['properties']['values']['items']['properties']['key']['maxLength'] == 5
    battery = {
        'ros_type': 'sensor_msgs/msg/BatteryState',
        'fields': {'power_supply_health': {'constants': True}},
    }
    health = read_format(battery).schema['properties']['power_supply_health']
    assert health == {'enum': [0, 1, 2, 3, 4, 5, 6, 7, 8]}


def test_a_header_may_be_left_out_and_fields_with_defaults_too():
    schema = read_format('geometry_msgs/msg/PoseStamped').schema
    assert schema['required'] == ['pose']
    orientation = schema['properties']['pose']['properties']['orientation']
    assert orientation['required'] == ['x', 'y', 'z'], 'w has a default of 1'


@pytest.mark.parametrize(
    'value, message',
    [
        ('nope_msgs/msg/Thing', "no package 'nope_msgs'"),
        ('geometry_msgs/msg/Thing', "no msg type 'Thing'"),
        ('os/msg/Path', "no package 'os'"),
        ({'ros_type': 'geometry_msgs/msg/Twist', 'limits': {}}, "'limits'"),
        ({'ros_type': 'yes | no', 'fields': {}}, 'no message type'),
        ({'ros_type': 'geometry_msgs/msg/Twist', 'fields': 3}, 'object of paths'),
        ({'ros_type': 'geometry_msgs/msg/Twist', 'fields': {'linear.q': {}}}, 'Vector3 has x, y, z'),
        ({'ros_type': 'geometry_msgs/msg/Twist', 'fields': {'linear.x': 3}}, 'not valid: an object'),
        ({'ros_type': 'geometry_msgs/msg/Twist', 'fields': {'linear.x': {'max': 1}}}, "no 'max'"),
        ({'ros_type': 'geometry_msgs/msg/Twist', 'fields': {'linear.x': {'maximum': 'a'}}}, 'no number'),
        ({'ros_type': 'geometry_msgs/msg/Twist', 'fields': {'linear.x': {'maximum': 1e30}}}, 'wider'),
        ({'ros_type': 'std_msgs/msg/UInt8', 'fields': {'data': {'enum': [1, 256]}}}, 'wider'),
        ({'ros_type': 'std_msgs/msg/UInt8', 'fields': {'data': {'const': 1.5}}}, 'wider'),
        (
            {'ros_type': 'std_msgs/msg/UInt8', 'fields': {'data': {'minimum': 300}}},
            'greater than maximum=255',
        ),
        (
            {'ros_type': 'std_msgs/msg/Int8', 'fields': {'data': {'minimum': 3, 'maximum': 1}}},
            'minimum=3 is greater than maximum=1',
        ),
        ({'ros_type': 'std_msgs/msg/UInt8', 'fields': {'data': {'constants': True}}}, 'no constants'),
        ({'ros_type': 'std_msgs/msg/String', 'fields': {'data[]': {}}}, 'no array'),
        ('{"ros_type": ', 'no JSON'),
    ],
)
def test_what_is_no_type_or_limit_is_one_line(value, message):
    with pytest.raises(ValueError, match='(?s).*' + message.replace('[', '\\[')) as raised:
        read_format(value)
    assert '\n' not in str(raised.value)


def test_a_form_is_read_once_until_its_file_changes(tmp_path):
    def read(text):
        options = RobotOptions(generation=GenerationConfig(response_format=text))
        return with_form(options, files=True).generation.response_format

    twist = '{"ros_type": "geometry_msgs/msg/Twist"}'
    assert read(twist) is read(twist) and read('yes | no') is read('yes | no')
    file = tmp_path / 'a.schema.json'
    file.write_text('{"type": "integer"}')
    first = read(str(file))
    assert read(str(file)) is first
    file.write_text('{"type": "string"}')
    assert read(str(file)).schema == {'type': 'string'} != first.schema
    with pytest.raises(ValueError, match='only as a parameter'):
        with_form(RobotOptions(generation=GenerationConfig(response_format=str(file))), files=False)
