"""Who may import whom, read from the sources; and what `import ros2_nanochat` does not pull in."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ros2_nanochat

PACKAGE = Path(ros2_nanochat.__file__).parent
NAME = 'ros2_nanochat'
MODULES = {
    '.'.join((NAME, *path.relative_to(PACKAGE).with_suffix('').parts)).removesuffix('.__init__'): path
    for path in sorted(PACKAGE.rglob('*.py'))
    if '__pycache__' not in path.parts
}
RUNTIMES = {
    'torch',
    'tvm',
    'llama_cpp',
    'transformers',
    'tokenizers',
    'safetensors',
    'cv2',
    'PIL',
    'rclpy',
    'nanochat',
    'gguf',
    'huggingface_hub',
    'aiohttp',
    'yarl',
}

# The modules of rclpy 3.3.
HUMBLE = """
    action callback_groups client clock constants context duration exceptions executors
    expand_topic_name guard_condition impl lifecycle logging node parameter parameter_service publisher
    qos qos_event qos_overriding_options serialization service signals subscription task time
    time_source timer topic_endpoint_info topic_or_service_is_hidden type_support utilities
    validate_full_topic_name validate_namespace validate_node_name validate_parameter_name
    validate_topic_name wait_for_message waitable
"""


def imports(path: Path, module: str) -> set[str]:
    """Full names of the modules that a file imports, anywhere in it but under `if TYPE_CHECKING`."""
    found = set()

    def visit(node):
        if isinstance(node, ast.If) and 'TYPE_CHECKING' in ast.dump(node.test):
            node = ast.Module(node.orelse, [])
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module.split('.') if path.name == '__init__.py' else module.split('.')[:-1]
            base = (
                '.'.join(package[: len(package) - node.level + 1] + [node.module] * bool(node.module))
                if node.level
                else node.module
            )
            found.update(
                f'{base}.{alias.name}' if f'{base}.{alias.name}' in MODULES else base for alias in node.names
            )
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition('.')[2] in (
            'import_module',
            'require',
            '__import__',
        ):
            found.update(argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant))
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return found


IMPORTS = {module: imports(path, module) for module, path in MODULES.items()}


FLOORS = (
    (
        'config',
        'errors',
        'files',
        'hub',
        'hub_transfer',
        'image_sources',
        'loading_bar',
        'locate',
        'at_exit',
        'memory',
        'processor',
        'model_info',
        'program',
        'prompt',
        'reasoning',
        'states',
    ),
    ('backends', 'answer'),
    ('engine', 'vision', 'chat'),
    ('remote',),
    ('nano_llm',),
    ('tools',),
    ('robot', 'terminal', 'compat'),
    ('ros',),
    ('web',),
)
"""The rooms of the house, from the ground up. A room imports from the floors below it, never from a
neighbour. The ground floor has no rooms: its modules may import each other, but not in a circle."""

SHIMS = {'chat.__main__', 'completion', 'ros.sentences'}
"""Old public names: each only passes on what stands elsewhere."""


def room(module: str) -> str:
    """The package or top-level module of ours that a module belongs to."""
    return module.split('.')[1] if '.' in module else ''


def floor(module: str) -> int:
    return next((n for n, rooms in enumerate(FLOORS) if room(module) in rooms), -1)


OURS = {
    module: {other for other in found if other.startswith(f'{NAME}.')} for module, found in IMPORTS.items()
}
HOUSE = [module for module in MODULES if module != NAME and module.removeprefix(f'{NAME}.') not in SHIMS]


def members(*rooms: str) -> list[str]:
    return [module for module in HOUSE if room(module) in rooms]


def test_every_module_has_a_floor_and_imports_are_found():
    assert not [module for module in HOUSE if floor(module) < 0]
    assert {'backends', 'engine', 'chat', 'vision', 'robot', 'terminal', 'ros'} <= set(map(room, MODULES))
    assert 'llama_cpp' in IMPORTS[f'{NAME}.backends.gguf.backend']
    assert f'{NAME}.config' in OURS[f'{NAME}.engine.scheduler']


@pytest.mark.parametrize('module', HOUSE)
def test_a_module_imports_its_own_room_and_lower_floors(module):
    ground = floor(module) == 0
    strangers = {
        other
        for other in OURS[module]
        if not (room(other) == room(module) or floor(other) < floor(module) or (ground and floor(other) == 0))
    }
    assert not strangers


def test_nothing_imports_in_a_circle():
    finished: set[str] = set()
    path: list[str] = []

    def visit(module):
        assert module not in path, ' -> '.join([*path[path.index(module) :], module])
        if module in finished or module not in OURS:
            return
        path.append(module)
        for other in sorted(OURS[module]):
            visit(other)
        path.pop()
        finished.add(module)

    for module in HOUSE:
        visit(module)
    assert len(finished) > 50


def test_config_and_errors_import_nobody():
    assert OURS[f'{NAME}.errors'] == OURS[f'{NAME}.states'] == set()
    assert {room(other) for module in members('config') for other in OURS[module]} <= {
        'config',
        'errors',
        'states',
    }


def backend(module: str) -> str | None:
    """The backend whose package a module lies in."""
    parts = module.split('.')
    return parts[2] if len(parts) > 3 and parts[1] == 'backends' else None


@pytest.mark.parametrize('module', HOUSE)
def test_a_backend_is_known_only_in_its_own_package(module):
    others = {other for other in OURS[module] if backend(other) not in (None, backend(module))}
    if room(module) == 'terminal':
        others -= set(members('backends')) if module.endswith('.compile_mlc') else set()
    assert not others


def test_what_a_shim_passes_on_is_there():
    for shim in SHIMS:
        assert len(OURS[f'{NAME}.{shim}']) == 1, shim


@pytest.mark.parametrize('module', [module for module in HOUSE if room(module) not in ('ros', 'web')])
def test_only_ros_knows_ros(module):
    names = {name.partition('.')[0] for name in IMPORTS[module]}
    assert not names & {'rclpy', 'nanochat', 'std_msgs', 'sensor_msgs', 'diagnostic_msgs', 'rcl_interfaces'}


def test_every_module_of_rclpy_is_there_in_humble():
    """Except in endpoint_events.py, which has both names."""
    used = {
        name.split('.')[1]
        for module in members('ros', 'web')
        for name in IMPORTS[module]
        if name.startswith('rclpy.') and not module.endswith('.endpoint_events')
    }
    assert 'node' in used and used <= set(HUMBLE.split())


@pytest.mark.parametrize('module', members('engine', 'chat', 'answer', 'nano_llm', *FLOORS[0]))
def test_the_engine_and_the_chat_need_no_runtime_of_a_model(module):
    runtimes = RUNTIMES - {'PIL', 'huggingface_hub'}
    assert not {name.partition('.')[0] for name in IMPORTS[module]} & runtimes


def import_seconds(code: str) -> float:
    timed = f'import time; start = time.perf_counter(); {code}; print(time.perf_counter() - start)'
    command = [sys.executable, '-c', timed]
    environment = {'PYTHONPATH': str(PACKAGE.parent), 'PATH': '/usr/bin:/bin'}
    return float(subprocess.run(command, capture_output=True, check=True, timeout=60, env=environment).stdout)


def test_import_is_quick():
    assert min(import_seconds('import ros2_nanochat') for _ in range(3)) < 0.3


def loaded_by(code: str) -> set[str]:
    listing = f'{code}\nimport sys; print(*(name.partition(".")[0] for name in sys.modules))'
    return set(
        subprocess.run(
            [sys.executable, '-c', listing],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
            env={'PYTHONPATH': str(PACKAGE.parent), 'PATH': '/usr/bin:/bin'},
        ).stdout.split()
    )


def test_import_pulls_in_nothing_but_the_standard_library():
    base = loaded_by('import importlib')
    assert (
        not loaded_by('import ros2_nanochat; dir(ros2_nanochat); ros2_nanochat.__version__') - base - {NAME}
    )


def test_the_public_names_need_no_runtime_and_no_ros():
    loaded = loaded_by(
        'import ros2_nanochat; [getattr(ros2_nanochat, name) for name in ros2_nanochat.__all__]'
    )
    assert NAME in loaded and not loaded & (RUNTIMES - {'PIL'})


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match='NanoLM'):
        ros2_nanochat.NanoLM  # noqa: B018
    assert set(ros2_nanochat.__all__) <= set(dir(ros2_nanochat))


@pytest.mark.parametrize('path', sorted(PACKAGE.rglob('*.py')), ids=lambda p: p.name)
def test_a_file_has_at_most_300_lines(path):
    assert len(path.read_text().splitlines()) <= 300, f'{path}: split it by idea'
