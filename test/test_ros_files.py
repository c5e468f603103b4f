"""What the package ships for ROS agrees with itself: parameters and their files, launch files, the XML profile, interfaces and their documentation."""
import ast
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from ros2_nanochat.ros.parameters import OPTIONS

ROOT = Path(__file__).resolve().parents[1]
yaml = pytest.importorskip('yaml')


def parameters(path):
    return yaml.safe_load(path.read_text())['/**/nanochat']['ros__parameters']


def test_chat_yaml_holds_every_parameter_with_its_default_and_a_comment():
    assert parameters(ROOT / 'config' / 'chat.yaml') == {name: option.default for name, option in OPTIONS.items()}
    for name in OPTIONS:
        assert re.search(rf'^    {name}: .*#.{{10,}}', (ROOT / 'config' / 'chat.yaml').read_text(), re.M), name


@pytest.mark.parametrize('path', sorted((ROOT / 'config').glob('*.yaml')), ids=lambda path: path.name)
def test_presets_name_parameters_that_exist_with_values_that_are_allowed(path):
    for name, value in parameters(path).items():
        OPTIONS[name].check(value)


def test_the_transport_profile_is_xml_with_room_for_camera_frames():
    root = ElementTree.parse(ROOT / 'config' / 'fastdds.xml')
    sizes = [int(element.text) for element in root.iter() if element.tag.endswith('segment_size')]
    assert sizes == [64 * 2 ** 20]


@pytest.mark.parametrize('path', sorted((ROOT / 'launch').glob('*.launch.py')), ids=lambda path: path.name)
def test_launch_files_are_python_with_a_description(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    assert any(isinstance(node, ast.FunctionDef) and node.name == 'generate_launch_description' for node in tree.body)


def test_every_field_of_the_interfaces_stands_under_a_comment():
    for path in [*ROOT.glob('msg/*.msg'), *ROOT.glob('srv/*.srv'), *ROOT.glob('action/*.action')]:
        assert path.read_text().startswith('# ') or path.name == 'Message.msg', path


def test_the_version_is_the_same_everywhere():
    import ros2_nanochat
    assert ElementTree.parse(ROOT / 'package.xml').find('version').text == ros2_nanochat.__version__
