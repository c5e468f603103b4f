"""What the package ships for ROS agrees with itself: parameters and their files, launch files, the XML
profile, interfaces and their documentation.
"""

import ast
import os
import re
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from launch_stand_in import chat_launch

from ros2_nanochat.robot.options import PARAMETERS

ROOT = Path(__file__).resolve().parents[1]
yaml = pytest.importorskip('yaml')


def parameters(path):
    return yaml.safe_load(path.read_text())['/**']['ros__parameters']


def test_chat_yaml_holds_every_parameter_with_its_default_and_a_comment():
    assert parameters(ROOT / 'config' / 'chat.yaml') == {
        name: parameter.default for name, parameter in PARAMETERS.items()
    }
    for name in PARAMETERS:
        assert re.search(rf'^    {name}: .*#.{{10,}}', (ROOT / 'config' / 'chat.yaml').read_text(), re.M), (
            name
        )


@pytest.mark.parametrize('path', sorted((ROOT / 'config').glob('*.yaml')), ids=lambda path: path.name)
def test_presets_name_parameters_that_exist_with_values_that_are_allowed(path):
    for name, value in parameters(path).items():
        PARAMETERS[name].check(value)


def test_the_transport_profile_is_xml_with_room_for_camera_frames():
    root = ElementTree.parse(ROOT / 'config' / 'fastdds.xml')
    sizes = [int(element.text) for element in root.iter() if element.tag.endswith('segment_size')]
    assert sizes == [64 * 2**20]


@pytest.mark.parametrize('path', sorted((ROOT / 'launch').glob('*.launch.py')), ids=lambda path: path.name)
def test_launch_files_are_python_with_a_description(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    assert any(
        isinstance(node, ast.FunctionDef) and node.name == 'generate_launch_description' for node in tree.body
    )


def test_arguments_of_the_launch_file_that_set_parameters_name_some_that_exist():
    tree = ast.parse((ROOT / 'launch' / 'chat.launch.py').read_text())
    names = next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == '_PARAMETERS'
    )
    assert {'model', 'state_dir', 'gpu_layers', 'vision'} <= set(names) <= set(PARAMETERS)


def given(node) -> dict:
    """The parameters that a launch file gives a node beside files."""
    return {
        name: value
        for each in node.named['parameters']
        if isinstance(each, dict)
        for name, value in each.items()
    }


def test_the_launch_file_gives_each_robot_its_camera_by_a_pattern_or_all_of_them_one():
    def cameras(**arguments):
        return dict(chat_launch(ROOT, **arguments)[1].named['remappings'])

    assert cameras(robots='r1, r2', image_topic='{robot}/camera/image_raw') == {
        'r1/nanochat/image': 'r1/camera/image_raw',
        'r1/nanochat/image/compressed': 'r1/camera/image_raw/compressed',
        'r2/nanochat/image': 'r2/camera/image_raw',
        'r2/nanochat/image/compressed': 'r2/camera/image_raw/compressed',
    }
    assert set(cameras(robots='r1 r2', image_topic='/cam').values()) == {'/cam', '/cam/compressed'}
    assert cameras(image_topic='/cam') == {'~/image': '/cam', '~/image/compressed': '/cam/compressed'}
    assert cameras() == {}
    with pytest.raises(ValueError, match='names {robot}, and robots is empty'):
        cameras(image_topic='{robot}/camera/image_raw')
    assert cameras(robots='[r1]', image_topic='/{robot}/cam/compressed/') == {
        'r1/nanochat/image': '/r1/cam/compressed'
    }


@pytest.mark.parametrize('topic', ['{Robot}/cam', '{robots}/cam', '{}', '{robot', 'a//b', '/a b', '/1', '%s'])
def test_a_topic_that_no_camera_can_have_ends_the_launch_and_is_named(topic):
    with pytest.raises(ValueError, match=f'^image_topic:={re.escape(topic)} is not valid'):
        chat_launch(ROOT, robots='r1', image_topic=topic)


@pytest.mark.parametrize('robots', ['[r1, r2]', "['r1', 'r2']", '/r1/\nr2', ' r1 ,, r2 '])
def test_the_launch_file_takes_robots_as_they_are_written_in_a_file_of_parameters(robots):
    assert given(chat_launch(ROOT, robots=robots)[1]) == {'robots': ['r1', 'r2']}
    with pytest.raises(ValueError, match="robots: '2bot' is not valid"):
        chat_launch(ROOT, robots='2bot', image_topic='{robot}/cam')


def test_the_launch_file_sets_the_clock_only_if_told_to():
    assert given(chat_launch(ROOT, use_sim_time='true')[1]) == {'use_sim_time': True}
    assert given(chat_launch(ROOT, use_sim_time='False')[1]) == {'use_sim_time': False}
    assert given(chat_launch(ROOT, use_sim_time=' off')[1]) == {'use_sim_time': False}
    assert given(chat_launch(ROOT)[1]) == {}
    with pytest.raises(ValueError, match='use_sim_time:=maybe is not valid: it has to be true or false'):
        chat_launch(ROOT, use_sim_time='maybe')


def test_the_launch_file_starts_the_page_only_if_told_to_and_with_the_same_cameras():
    def page(**arguments):
        _, node = chat_launch(ROOT, **arguments)
        return next((each for each in node.before if each.named.get('executable') == 'web'), None)

    assert page() is None and page(web='false') is None
    assert page(web='true').named['arguments'][:4] == ['--host', '127.0.0.1', '--port', '8080']
    assert '9000' in page(web='true', web_port='9000').named['arguments']
    camera = page(web='true', image_topic='/cam').named['remappings']
    assert camera == [('nanochat/image', '/cam'), ('nanochat/image/compressed', '/cam/compressed')]
    with pytest.raises(ValueError, match='web:=maybe is not valid'):
        page(web='maybe')


def test_every_field_of_the_interfaces_stands_under_a_comment():
    for path in [*ROOT.glob('msg/*.msg'), *ROOT.glob('srv/*.srv'), *ROOT.glob('action/*.action')]:
        assert path.read_text().startswith('# ') or path.name == 'Message.msg', path


def test_the_version_is_the_same_everywhere():
    import ros2_nanochat

    assert ElementTree.parse(ROOT / 'package.xml').find('version').text == ros2_nanochat.__version__


def test_what_the_distribution_requires_is_a_rosdep_key_or_named_as_coming_by_pip():
    import configparser

    setup = configparser.ConfigParser()
    setup.read(ROOT / 'setup.cfg')
    text = (ROOT / 'package.xml').read_text()
    keys = {
        element.text
        for element in ElementTree.fromstring(text.encode()).iter()
        if element.tag.endswith('depend')
    }
    by_pip = ' '.join(re.findall(r'<!--.*?-->', text, re.S))
    for name in re.findall(r'^[A-Za-z0-9_-]+', setup['options']['install_requires'].strip(), re.M):
        assert 'python3-' + name.replace('_', '-') in keys or re.search(rf'\b{name}\b', by_pip), name


def test_every_ros_package_that_is_imported_is_a_dependency():
    text = (ROOT / 'package.xml').read_text()
    keys = {
        element.text
        for element in ElementTree.fromstring(text.encode()).iter()
        if element.tag.endswith('depend')
    }
    sources = ''.join(
        path.read_text()
        for path in [*(ROOT / 'ros2_nanochat').rglob('*.py'), *(ROOT / 'launch').glob('*.py')]
    )
    imported = set(
        re.findall(
            r'^\s*(?:from|import) '
            r'(\w+_msgs|\w+_srvs|rcl\w+|launch\w*|cv_bridge|ament_\w+|builtin_interfaces)\b',
            sources,
            re.M,
        )
    )
    assert imported <= keys, imported - keys


def test_env_sh_can_be_sourced_under_set_u_and_leaves_it_set():
    if 'COLCON_PREFIX_PATH' not in os.environ and 'AMENT_PREFIX_PATH' not in os.environ:
        pytest.skip('needs the built workspace: make test')
    script = 'set -eu; source env.sh; echo "at $ROS_DISTRO"; echo "$NOT_SET_ANYWHERE"'
    done = subprocess.run(['bash', '-c', script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.startswith('at ') and 'NOT_SET_ANYWHERE: unbound variable' in done.stderr


def test_the_distribution_says_that_it_is_typed():
    import configparser

    setup = configparser.ConfigParser()
    setup.read(ROOT / 'setup.cfg')
    assert 'py.typed' in setup['options.package_data']['ros2_nanochat']
    assert (ROOT / 'ros2_nanochat' / 'py.typed').exists()


def test_the_versions_of_python_are_the_same_everywhere():
    import configparser

    setup = configparser.ConfigParser()
    setup.read(ROOT / 'setup.cfg')
    minors = [int(minor) for minor in re.findall(r':: 3\.(\d+)$', setup['metadata']['classifiers'], re.M)]
    assert minors == list(range(minors[0], minors[-1] + 1))
    assert setup['options']['python_requires'] == f'>=3.{minors[0]}'
    script = (ROOT / 'tools' / 'setup.sh').read_text()
    assert f'(3, {minors[0]}) <= sys.version_info < (3, {minors[-1] + 1})' in script
    for page in ('README.md', 'docs/install.md', 'CONTRIBUTING.md'):
        assert f'3.{minors[0]} to 3.{minors[-1]}' in (ROOT / page).read_text(), page


def test_an_installed_ros_of_any_distro_is_taken_with_the_python_of_the_system(tmp_path):
    (tmp_path / 'setup.bash').touch()
    for distro in ('humble', 'jazzy', 'kilted', 'lyrical'):
        script = '. tools/places.sh; echo "$ROS_DISTRO $ROS_HERE $PYTHON $VENV"'
        environment = {'PATH': os.environ['PATH'], 'ROS_DISTRO': distro, 'ROS_PREFIX': str(tmp_path)}
        done = subprocess.run(
            ['bash', '-c', script], cwd=ROOT, capture_output=True, text=True, env=environment, check=True
        )
        suffix = '' if distro == 'kilted' else f'-{distro}'
        assert done.stdout.split() == [distro, 'yes', '/usr/bin/python3', f'{ROOT}/.venv{suffix}']
