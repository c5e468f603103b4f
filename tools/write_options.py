"""Write what is made of the declarations of the options: config/chat.yaml and the tables of docs/options.md.

`python tools/write_options.py` after an option was added or changed; a test compares.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ros2_nanochat.config import (  # noqa: E402
    EngineConfig,
    GenerationConfig,
    ModelConfig,
    NodeConfig,
    Option,
    RobotOptions,
    WebConfig,
    options_of,
)
from ros2_nanochat.config.wording import shown_default  # noqa: E402
from ros2_nanochat.robot.parameter import Parameter  # noqa: E402

YAML_HEAD = """\
# Every parameter of the chat node, with its default. Copy this file, change what you need, and start with
#   ros2 launch nanochat chat.launch.py params_file:=/path/to/yours.yaml
# Those marked "live" can be changed while the node runs (ros2 param set), the others when no model is loaded.
# The values are valid for every node that is given this file. Made by tools/write_options.py.

/**:
  ros__parameters:
"""
SECTIONS = {
    NodeConfig: 'The node',
    ModelConfig: 'The model',
    EngineConfig: 'How robots share it',
    RobotOptions: 'Each robot. r1.system_prompt and so on sets it for the robot r1 only',
    GenerationConfig: 'The reply, likewise',
}

DOCS_HEAD = """\
# Options

Every option, where you can set it, and what it may be. In Python all of them are fields of the dataclass that
the heading names, and keywords of `NanoLLM.from_pretrained` (the model, the engine) or `generate` (the
reply).

- **parameter**: a parameter of the node (see [interface](interface.md)). You can change a live one while the
  node runs.
- **terminal**: an argument of the [terminal programs](terminal.md): `--max-new-tokens` for `max_new_tokens`.
- **goal**: a field of the `Chat` action.
- **web**: an argument of `ros2 run nanochat web`, the [page](web.md).

A wrong value is refused in one line, with the value and what is allowed. This page is written by
`tools/write_options.py` from the declarations in `ros2_nanochat/config/`.
"""
TITLES = {
    ModelConfig: 'The model',
    EngineConfig: 'The engine',
    GenerationConfig: 'The reply',
    RobotOptions: 'A conversation',
    NodeConfig: 'The node',
    WebConfig: 'The page',
}


def chat_yaml() -> str:
    """The text of config/chat.yaml."""
    text = YAML_HEAD
    for kind, title in SECTIONS.items():
        text += f'    # --- {title} ---\n'
        for option in options_of(kind):
            if option.parameter is not None:
                parameter = Parameter.of(option)
                entry = f'{parameter.name}: {yaml_value(parameter.default)}'
                live = 'live. ' if parameter.live else ''
                text += f'    {entry:<24} # {live}{parameter.text}{yaml_range(parameter)}\n'
        text += '\n'
    return text.rstrip('\n') + '\n'


def yaml_value(value) -> str:
    """A default, as YAML reads it back."""
    if isinstance(value, list):
        return f'[{", ".join(map(yaml_value, value))}]'
    return str(value).lower() if isinstance(value, bool) else str(value) or "''"


def yaml_range(parameter: Parameter) -> str:
    """The range or the choices of a parameter."""
    if parameter.choices:
        return '; one of ' + ', '.join(each for each in parameter.choices if each)
    return '; ' + bounds(parameter.option) if bounds(parameter.option) else ''


def bounds(option: Option) -> str:
    """The range of a number that has two ends, else nothing."""
    return (
        option.range_text.removeprefix('a whole number ').removeprefix('a number ')
        if option.high is not None
        else ''
    )


def options_page() -> str:
    """The text of docs/options.md."""
    text = DOCS_HEAD
    for kind, title in TITLES.items():
        text += f'\n## {title}: `{kind.__name__}`\n\n'
        text += '| option | values | default | what it is for | where |\n|---|---|---|---|---|\n'
        for option in options_of(kind):
            cells = [
                f'`{option.name}`',
                option.allowed or option.range_text,
                default(option),
                purpose(option),
                'web' if kind is WebConfig else places(option),
            ]
            text += '| ' + ' | '.join(cell.replace('|', '\\|') for cell in cells) + ' |\n'
    return text


def default(option: Option) -> str:
    """The default, and that of the programs where it differs."""
    text = option.otherwise if option.default is None else shown_default(option.default)
    return text if option.program is None else f'{text} ({option.program} in programs)'


def purpose(option: Option) -> str:
    """What an option is for, with the values that mean something of their own."""
    unset = option.unset if option.unset not in (None, [''], '') else None
    return option.explained() + (
        f'; {unset:g} as a parameter: {option.otherwise}' if unset is not None else ''
    )


def places(option: Option) -> str:
    """Where an option can be set but in Python."""
    found = []
    if option.parameter is not None:
        found.append(
            'parameter' + (f' `{option.parameter}`' if option.parameter else '') + ', live' * option.live
        )
    if option.argument:
        found.append('terminal')
    if option.goal is not None:
        found.append('goal')
    return '; '.join(found) or 'Python'


FILES = {ROOT / 'config' / 'chat.yaml': chat_yaml, ROOT / 'docs' / 'options.md': options_page}

if __name__ == '__main__':
    for path, make in FILES.items():
        path.write_text(make(), encoding='utf-8')
