"""All surfaces of an option agree: its declaration, the node's parameter, the terminal's argument, the goal
of the `Chat` action, config/chat.yaml and the documentation.
"""

from __future__ import annotations

import argparse
import enum
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from launch_stand_in import chat_launch

from ros2_nanochat.config import (
    EngineConfig,
    GenerationConfig,
    ModelConfig,
    NodeConfig,
    RobotOptions,
    option,
    options_of,
    program_defaults,
)
from ros2_nanochat.robot import options as parameters
from ros2_nanochat.robot.parameter import Parameter
from ros2_nanochat.terminal import arguments

ROOT = Path(__file__).resolve().parents[1]
CLASSES = (NodeConfig, ModelConfig, EngineConfig, RobotOptions, GenerationConfig)
OPTIONS = [each for kind in CLASSES for each in options_of(kind)]
NUMBERS = [each for each in OPTIONS if each.kind in (int, float)]


def name_of(each) -> str:
    return each.name


def writer():
    spec = importlib.util.spec_from_file_location('write_options', ROOT / 'tools' / 'write_options.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize('path, make', writer().FILES.items(), ids=lambda value: getattr(value, 'name', ''))
def test_files_that_are_made_of_the_declarations_are_up_to_date(path, make):
    assert path.read_text() == make(), 'run  python tools/write_options.py'


@pytest.mark.parametrize('declared', OPTIONS, ids=name_of)
def test_a_declaration_says_what_the_option_is_for_and_its_default_is_valid(declared):
    assert len(declared.text) > 15 and not declared.text.endswith('.')
    assert declared.check(declared.default) == declared.default
    assert declared.program is None or declared.check(declared.program) == declared.program
    assert not declared.optional or declared.default is not None or declared.otherwise


@pytest.mark.parametrize('declared', [each for each in OPTIONS if each.parameter is not None], ids=name_of)
def test_a_parameter_and_its_option_say_the_same(declared):
    parameter = parameters.PARAMETERS[declared.parameter or declared.name]
    assert type(parameter.default) is {tuple: list}.get(declared.kind, declared.kind) or isinstance(
        declared.default, enum.Enum
    )
    assert parameter.check(parameter.default) == parameter.default
    back = parameter.to_option(parameter.default)
    assert back == declared.program_default or back is None and declared.unset is not None
    assert parameter.text.startswith(declared.text) and parameter.live == declared.live
    assert set(parameter.choices) - {''} == set(declared.choices)


@pytest.mark.parametrize(
    'parameter',
    [each for each in parameters.PARAMETERS.values() if isinstance(each.default, (str, list))],
    ids=name_of,
)
def test_a_text_that_nobody_can_mean_is_refused_in_one_short_line(parameter):
    text = 'x' * 5_000_000
    with pytest.raises(ValueError, match=f'{parameter.name} has 5,000,000 characters') as error:
        parameter.check(text if isinstance(parameter.default, str) else [text[:1_000_000]] * 5)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize('declared', NUMBERS, ids=name_of)
def test_a_number_has_one_range_everywhere(declared):
    step = 1 if declared.kind is int else 1e-3
    outside = [declared.low - step] if declared.low is not None else []
    outside += [declared.above] if declared.above is not None else []
    outside += [declared.high + step] if declared.high is not None else []
    parameter = (
        parameters.PARAMETERS.get(declared.parameter or declared.name)
        if declared.parameter is not None
        else None
    )
    for value in outside:
        with pytest.raises(ValueError, match=f'{declared.name}=.* is not valid'):
            declared.check(value)
        if parameter is not None and value != declared.unset:
            with pytest.raises(ValueError, match=f'^r1.x={re.escape(repr(value))} is not valid: '):
                parameter.check(value, 'r1.x')
    inside = [end for end in (declared.low, declared.high) if end is not None]
    for value in inside:
        declared.check(value)
        assert parameter is None or parameter.check(declared.kind(value)) == value
        assert parameter is None or parameter.low <= value <= parameter.high


def arguments_of(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """The arguments that stand for options, not those of the program itself or of old command lines."""
    titles = ('the model', 'the reply', 'the conversation')
    groups = [group for group in parser._action_groups if group.title in titles]
    return {action.dest: action for group in groups for action in group._group_actions}


def test_the_terminal_has_the_options_that_say_so_with_type_and_choices():
    found = arguments_of(arguments.make_parser('test', '', conversation=True))
    declared = {each.name: each for each in OPTIONS if each.argument}
    assert found.pop('template_option').option_strings == [
        '--template-option'
    ]  # one part of template_options
    assert found.pop('tools').option_strings == ['--tools']  # Python functions: only the terminal takes them
    assert set(found) == set(declared)
    for name, action in found.items():
        assert action.option_strings[0] == '--' + name.replace('_', '-')
        assert action.help.replace('%%', '%').startswith(declared[name].text)
        assert action.default is None and tuple(action.choices or ()) == tuple(declared[name].choices)
    args = arguments.make_parser('test', '', conversation=True).parse_args([])
    assert (
        arguments.generation_config(args) == program_defaults(GenerationConfig) == RobotOptions().generation
    )
    assert arguments.model_config(args) == ModelConfig() and arguments.robot_options(args) == RobotOptions()


def goal_fields() -> dict[str, tuple[str, str, str]]:
    """Type, default and comment of the fields that a Chat goal has."""
    fields, comment = {}, ''
    for line in (ROOT / 'action' / 'Chat.action').read_text().partition('\n---')[0].splitlines():
        if line.startswith('#'):
            comment += line
        elif match := re.fullmatch(r'(\S+) (\w+) ?(.*)', line):
            fields[match[2]] = (match[1], match[3], comment)
            comment = ''
    return fields


GOAL_TYPES = {
    bool: ('bool',),
    int: {'int32', 'int64'},
    float: {'float32', 'float64'},
    str: {'string'},
    tuple: {'string[]'},
}


def test_a_goal_has_the_options_that_say_so_with_the_default_that_leaves_the_robots_own():
    fields = goal_fields()
    declared = {each.parameter or each.name: each for each in OPTIONS if each.goal is not None}
    assert set(fields) - {'query', 'images', 'compressed_images', 'cameras'} == set(declared)
    for name, each in declared.items():
        kind, default, comment = fields[name]
        assert kind in GOAL_TYPES[str if each.choices else each.kind], name
        assert (str(each.goal).lower() == default) if default else (each.goal in ('', [])), name
        assert len(comment) > 20, name
        assert all(str(choice) in comment for choice in each.choices), name
    goal = SimpleNamespace(**{name: each.goal for name, each in declared.items()})
    assert parameters.goal_options(goal, RobotOptions(deadline=5, priority=3)) == RobotOptions(
        deadline=5, priority=3
    )


def test_the_launch_file_takes_its_texts_from_the_declarations():
    described, _ = chat_launch(ROOT)
    shared = set(described) & set(parameters.PARAMETERS) - {'robots'}
    assert {'model', 'system_prompt', 'gpu_layers'} <= shared
    assert all(described[name].startswith(parameters.PARAMETERS[name].text) for name in shared)


def test_tables_of_the_documentation_have_the_defaults_of_the_declarations():
    declared = {each.name: each for each in OPTIONS}
    seen = 0
    for name, default in re.findall(
        r'^\| `(\w+)` \| ([^|]+) \|', (ROOT / 'docs' / 'engine.md').read_text(), re.M
    ):
        value = {'on': True, 'off': False}.get(default.strip(), default.strip().strip('`'))
        assert (
            str(value) == str(declared[name].default) or ' ' in str(value) and declared[name].default is None
        )
        seen += 1
    assert seen >= 6
    library = (ROOT / 'docs' / 'library.md').read_text()
    assert all(f'`{name}`' in library for name in ('max_new_tokens', 'temperature', 'seed'))


def test_a_new_option_of_generation_reaches_every_surface_from_its_declaration(monkeypatch):
    @dataclass(frozen=True)
    class Extended(GenerationConfig):
        """With one more."""

        typical_p: float = option(0.5, 'Sample from typical tokens', above=0.0, high=1.0, goal=0.0, live=True)

    declared = options_of(Extended)[-1]
    assert declared.name == 'typical_p' and Parameter.of(declared).default == 0.5
    monkeypatch.setitem(parameters.PARAMETERS, 'typical_p', Parameter.of(declared))
    values = {name: parameter.default for name, parameter in parameters.PARAMETERS.items()}
    assert parameters._config(Extended, {**values, 'typical_p': 0.25}).typical_p == 0.25
    goal = SimpleNamespace(
        **{each.parameter or each.name: each.goal for each in options_of(Extended)} | {'typical_p': 0.75}
    )
    assert parameters._goal_values(goal, Extended) == {'typical_p': 0.75}
    parser = argparse.ArgumentParser()
    arguments._add_options(parser.add_argument_group('x'), Extended)
    assert arguments.given(parser.parse_args(['--typical-p', '0.125']), Extended) == {'typical_p': 0.125}
    with pytest.raises(ValueError, match='typical_p=2 is not valid: a number over 0 and up to 1'):
        Extended(typical_p=2)
    assert 'typical_p: Sample from typical tokens.' in Extended.__doc__


def test_a_configuration_travels_whole_and_options_by_name_replace_its_own():
    from ros2_nanochat import NanoLLM

    model = ModelConfig(api='fake', max_context_len=512)
    with NanoLLM.from_pretrained(config=model, engine=EngineConfig(max_step=0.5), max_sequences=2) as opened:
        assert (opened.config.max_context_len, opened.config.max_sequences) == (512, 2)
        config = GenerationConfig(max_new_tokens=3, stop_tokens=['x'])
        reply = opened.generate('hello', config=config)
        reply.wait()
        assert reply.finish_reason == 'length' and len(reply.tokens) == 3
        assert len(opened.generate('hello', config=config, max_new_tokens=2, streaming=False)) == 2
        for wrong in ({'config': {'max_new_tokens': 3}}, {'config': config, 'max_tokens': 3}):
            with pytest.raises(ValueError, match='config|max_tokens'):
                opened.generate('hello', **wrong)
    with pytest.raises(ValueError, match='config of type dict is not valid: a ModelConfig'):
        NanoLLM.from_pretrained(config={'api': 'fake'})
