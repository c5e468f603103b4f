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
}


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


def room(module: str) -> str:
    """The part of the layout that a module belongs to."""
    parts = module.split('.')[1:]
    if parts[:2] in (['chat', '__main__'], ['chat', 'start']) or parts[:1] == ['completion']:
        return 'terminal'
    if parts[:1] == ['chat'] and parts[1:2] and parts[1].startswith('terminal'):
        return 'terminal'
    return parts[0] if parts else 'package'


OURS = {
    module: {(room(other), other) for other in found if other.partition('.')[0] == NAME and other != NAME}
    for module, found in IMPORTS.items()
}
ROOMS = {room(module) for module in MODULES}


def members(*rooms: str) -> list[str]:
    return [module for module in MODULES if room(module) in rooms]


def test_the_layout_is_the_one_that_the_rules_are_about():
    assert {
        'config',
        'prompt',
        'nano_llm',
        'hub',
        'memory',
        'chat',
        'engine',
        'backends',
        'vision',
        'ros',
    } <= ROOMS
    assert any(OURS.values()) and 'llama_cpp' in IMPORTS[f'{NAME}.backends.gguf'], 'imports are found'


def test_config_and_prompt_import_nobody():
    assert OURS[f'{NAME}.config'] == OURS[f'{NAME}.prompt'] == set()


@pytest.mark.parametrize('module', members('chat', 'engine', 'vision', 'backends', 'hub', 'memory'))
def test_a_part_imports_config_prompt_and_what_is_below_it(module):
    allowed = {'config', 'prompt', room(module)} | (
        {'backends'} if room(module) in ('engine', 'hub', 'memory') else set()
    )
    if room(module) == 'chat':
        allowed |= {'engine', 'vision'}  # the stream of a reply that is appended, the KV cache; images
        strangers = {other for where, other in OURS[module] if where == 'engine'} - {
            f'{NAME}.engine.stream',
            f'{NAME}.engine.sequence',
            f'{NAME}.engine.text',
        }
        assert not strangers, f'{module} imports {strangers}'
    if room(module) == 'vision':
        allowed |= {'backends', 'hub'}
    assert not {other for where, other in OURS[module] if where not in allowed}
    if room(module) != 'backends':
        backends = {other for where, other in OURS[module] if where == 'backends'}
        assert backends <= {f'{NAME}.backends.base', f'{NAME}.backends'}, (
            'of the backends only their contract is known'
        )


def kind(module: str) -> str:
    """The backend that a module of `backends` belongs to."""
    return module.split('.')[2].split('_')[0] if module.count('.') > 1 else ''


@pytest.mark.parametrize('module', members('backends'))
def test_a_backend_imports_no_other_backend(module):
    shared = {'base', 'tokenizer', 'detokenizer', 'bytes', 'checkpoint'}
    others = (
        {kind(other) for where, other in OURS[module] if where == 'backends'} - shared - {kind(module), ''}
    )
    assert not others


def test_nothing_imports_ros_and_the_library_knows_no_ros():
    for module in MODULES:
        if room(module) != 'ros':
            assert not {other for where, other in OURS[module] if where == 'ros'}, module
            assert not {
                name
                for name in IMPORTS[module]
                if name.partition('.')[0] in ('rclpy', 'nanochat', 'std_msgs', 'sensor_msgs')
            }, module


@pytest.mark.parametrize('module', members('engine', 'chat', 'config', 'prompt', 'memory', 'nano_llm'))
def test_the_engine_and_the_chat_need_no_runtime_of_a_model(module):
    assert not {name.partition('.')[0] for name in IMPORTS[module]} & (RUNTIMES - {'PIL', 'huggingface_hub'})


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
        ros2_nanochat.NanoLM
    assert set(ros2_nanochat.__all__) <= set(dir(ros2_nanochat))
