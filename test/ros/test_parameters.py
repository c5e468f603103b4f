"""The parameters of a real node: what is declared, and what a file of parameters sets."""

from __future__ import annotations

import logging
import os

import pytest
import rclpy
from conftest import ROOT
from rcl_interfaces.msg import ParameterType
from rclpy.node import Node
from rclpy.parameter import parameter_dict_from_yaml_file

from ros2_nanochat.robot.options import PARAMETERS, ROBOT_PARAMETERS
from ros2_nanochat.ros.library_log import library_log
from ros2_nanochat.ros.node_parameters import NodeParameters

TYPES = {
    bool: ParameterType.PARAMETER_BOOL,
    int: ParameterType.PARAMETER_INTEGER,
    float: ParameterType.PARAMETER_DOUBLE,
    str: ParameterType.PARAMETER_STRING,
    list: ParameterType.PARAMETER_STRING_ARRAY,
}


@pytest.fixture(scope='module')
def node():
    node = rclpy.create_node('parameters_test', cli_args=['--ros-args', '-p', 'robots:=[r1]'])
    NodeParameters(node)
    yield node
    node.destroy_node()


@pytest.mark.parametrize('parameter', PARAMETERS.values(), ids=list(PARAMETERS))
def test_a_node_declares_type_range_and_meaning_of_every_parameter(node, parameter):
    described = node.describe_parameter(parameter.name)
    assert described.type == TYPES[type(parameter.default)] and not described.read_only
    assert described.description.startswith(parameter.text)
    assert ('Read when the model is loaded' in described.description) == (not parameter.live)
    ranges = [*described.integer_range, *described.floating_point_range]
    assert [(each.from_value, each.to_value) for each in ranges] == (
        [(parameter.low, parameter.high)] if type(parameter.default) in (int, float) else []
    )
    assert all(choice in described.description for choice in parameter.choices)


def test_each_robot_has_parameters_of_its_own(node):
    assert all(node.has_parameter(f'r1.{name}') for name in ROBOT_PARAMETERS)
    assert not node.has_parameter('r1.model')


@pytest.mark.parametrize('path', sorted((ROOT / 'config').glob('*.yaml')), ids=lambda path: path.name)
def test_the_shipped_files_load_into_a_node_of_any_name(path):
    """As `ros2 param load` reads them."""
    # Up to Jazzy this function takes `/**` for a node only if it is not asked for one by name.
    target = {} if os.environ.get('ROS_DISTRO') in ('humble', 'jazzy') else {'target_nodes': ['/a/my_chat']}
    loaded = parameter_dict_from_yaml_file(str(path), use_wildcard=True, **target)
    assert loaded and set(loaded) <= set(PARAMETERS)


@pytest.mark.parametrize(
    'word, expected', [('false', 'off'), ('off', 'off'), ('true', 'on'), ('auto', 'auto')]
)
def test_a_switch_may_also_be_true_or_false(word, expected):
    node = rclpy.create_node('switch_test', cli_args=['--ros-args', '-p', f'flash_attention:={word}'])
    try:
        assert NodeParameters(node).model().flash_attention == expected
    finally:
        node.destroy_node()


def opened_with(*words):
    """A node's parameters, given these on the command line."""
    given = [part for word in words for part in ('-p', word)]
    node = rclpy.create_node('given_test', cli_args=['--ros-args', *given], use_global_arguments=False)
    try:
        return NodeParameters(node).values()
    finally:
        node.destroy_node()


def test_a_whole_number_is_a_number():
    values = opened_with('temperature:=1', 'max_image_age:=3', 'top_p:=0.5')
    assert (values['temperature'], values['max_image_age'], values['top_p']) == (1.0, 3.0, 0.5)


@pytest.mark.skipif(
    not hasattr(Node, 'add_pre_set_parameters_callback'), reason='this rclpy cannot change what is set'
)
def test_what_ros2_param_set_reads_as_another_type_is_set_all_the_same(node):
    given = [('image_mode', False), ('temperature', 1), ('r1.image_mode', False), ('r1.top_p', 1)]
    results = node.set_parameters([rclpy.Parameter(name, value=value) for name, value in given])
    assert all(result.successful for result in results), results
    assert [node.get_parameter(name).value for name, _ in given] == ['off', 1.0, 'off', 1.0]
    assert not node.set_parameters([rclpy.Parameter('temperature', value='hot')])[0].successful


@pytest.mark.parametrize(
    'word, told',
    [
        ('temperature:=hot', "temperature='hot' is not valid: it has to be a number"),
        ('max_context_len:=2.5', 'max_context_len=2.5 is not valid: it has to be a whole number'),
        ('robots:=r1', "robots='r1' is not valid: it has to be a list of strings"),
        ('system_prompt:=12', 'system_prompt=12 is not valid: it has to be text'),
        ('autostart:=perhaps', "autostart='perhaps' is not valid: it has to be true or false"),
    ],
)
def test_a_value_of_another_type_is_refused_with_the_value_and_what_is_needed(word, told):
    with pytest.raises(ValueError) as caught:
        opened_with(word)
    assert told in str(caught.value) and '\n' not in str(caught.value)


def test_what_the_library_logs_is_in_the_nodes_log(capfd):
    library = logging.getLogger('ros2_nanochat.backends')
    with library_log(rclpy.logging.get_logger('log_test')):
        for severity in (logging.INFO, logging.WARNING, logging.ERROR, logging.INFO):
            library.log(severity, 'decoding with %d threads', severity)
    library.warning('after the node')
    said = capfd.readouterr().err
    for severity, name in ((logging.INFO, 'INFO'), (logging.WARNING, 'WARN'), (logging.ERROR, 'ERROR')):
        assert any(
            f'[{name}]' in line and f'[log_test]: decoding with {severity} threads' in line
            for line in said.splitlines()
        ), said
    assert '[log_test]: after the node' not in said
