"""The parameters of the node: name, default, range and meaning of each, and what they become: a `ModelConfig`
and, for each robot, `RobotOptions`.

Knows nothing of rclpy; chat_node.py declares what stands here. Where a ROS parameter cannot be "not set", 0
or '' says so, and the description tells.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ros2_nanochat.config import APIS, GenerationConfig, ModelConfig

ON_NEW_QUERY = ('interrupt', 'queue', 'reject')
IMAGE_MODES = ('latest', 'changed', 'off')
_ROBOT_NAME = re.compile(r'[A-Za-z][A-Za-z0-9_]*(/[A-Za-z][A-Za-z0-9_]*)*\Z')


@dataclass(frozen=True)
class Option:
    """One parameter. live: it may change while the model is loaded. low, high: the range of a number, both
    included. choices: of a string.
    """

    name: str
    default: Any
    text: str
    live: bool = False
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()

    def check(self, value: Any, name: str | None = None) -> Any:
        """Return the value as the type of the default; ValueError with name, value and what is allowed."""
        name = name or self.name
        kind = type(self.default)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if kind is list:
            value = list(value) if isinstance(value, (list, tuple)) or hasattr(value, 'tolist') else value
            if not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
                raise ValueError(f'{name}={value!r} is not valid: a list of strings')
        elif type(value) is not kind:
            raise ValueError(f'{name}={value!r} is not valid: it has to be a {_KINDS[kind]}')
        if kind is float and not math.isfinite(value):
            raise ValueError(f'{name}={value!r} is not valid: it has to be a finite number')
        if self.choices and value not in self.choices:
            raise ValueError(f'{name}={value!r} is not valid: one of {", ".join(map(repr, self.choices))}')
        if self.low is not None and value < self.low:
            raise ValueError(f'{name}={value!r} is not valid: at least {self.low}')
        if self.high is not None and value > self.high:
            raise ValueError(f'{name}={value!r} is not valid: at most {self.high}')
        return value


_KINDS = {bool: 'bool', int: 'whole number', float: 'number', str: 'string'}
_MANY = 2**31 - 1

NODE = (
    Option(
        'autostart', True, 'Configure and activate at once; with false somebody else manages the life cycle'
    ),
    Option(
        'robots',
        [''],
        "Names of the robots that this node serves, each under /<robot>/<node name>/...; [''] for one, under"
        " the node's own name",
        live=True,
    ),
    Option(
        'state_dir',
        '',
        'Folder where each finished turn is written before it is announced, so that a restarted node goes on;'
        ' empty: nowhere',
    ),
    Option(
        'state_kv',
        False,
        'Keep the KV of each conversation in state_dir as well, written after each turn, so that a restarted'
        ' node reads nothing again (gguf and hf)',
    ),
)

MODEL = (
    Option(
        'model',
        '',
        'Path, or owner/name on the hub (owner/name:file.gguf for one file); empty: the embedded'
        ' SmolLM2-135M-Instruct',
    ),
    Option(
        'api', '', 'What runs the model; empty: found from what the model path holds', choices=('', *APIS)
    ),
    Option(
        'quantization',
        '',
        'Method of the api (mlc: q4f16_1 and others; hf: a dtype or quantizer) or a path; empty: as the'
        ' model is',
    ),
    Option('chat_template', '', "Name of a template, or a JSON or Jinja file; empty: the model's own"),
    Option(
        'max_context_len',
        0,
        'Tokens that one conversation may hold; 0: as the model has, at most 4096',
        low=0,
        high=_MANY,
    ),
    Option(
        'max_sequences',
        0,
        'Conversations whose KV cache is kept at once; others are prefilled again on use. 0: one for each'
        ' robot, from 2 to 8',
        low=0,
        high=4096,
    ),
    Option(
        'kv_tokens',
        0,
        'Tokens of KV cache over all conversations; 0: max_sequences times the context',
        low=0,
        high=_MANY,
    ),
    Option(
        'flash_attention',
        True,
        "llama.cpp's own default; off, a CPU is several times quicker behind long histories, and rounds"
        ' otherwise (gguf)',
    ),
    Option(
        'gpu_layers',
        0,
        'Layers of a GGUF model on the GPU, -1 for all (needs a GPU build of llama-cpp-python)',
        low=-1,
        high=100_000,
    ),
    Option('threads', 0, 'CPU threads of the model; 0: the physical cores', low=0, high=4096),
    Option('device', 'auto', 'cuda, cuda:1, cpu or auto (hf, mlc)'),
    Option('model_lib', '', 'Compiled library of an MLC model where it does not lie beside its weights'),
    Option(
        'vision',
        '',
        'LLaVA-form checkpoint whose vision tower stands beside the model, or tiny for the one of the'
        " embedded model; empty: the model's own",
    ),
    Option('compile', False, 'Compile the decode step where the api can (hf)'),
)

ENGINE = (
    Option(
        'running_share',
        0.5,
        'Share of their speed that running replies keep while a long prompt is read beside them; over 0',
        low=0.0,
        high=1.0,
    ),
    Option(
        'speculation',
        True,
        'Guess the next tokens from what stands in the context, where that pays; the reply stays the same',
    ),
    Option('park_bytes', 0, 'Host memory for KV that idle conversations gave up; 0: none', low=0, high=2**62),
)

ROBOT = (
    Option(
        'system_prompt',
        '',
        "Instruction at the beginning of each conversation; empty: the template's own",
        live=True,
    ),
    Option(
        'on_new_query',
        'interrupt',
        'What a query does that arrives while a reply streams',
        live=True,
        choices=ON_NEW_QUERY,
    ),
    Option(
        'max_queue', 10, 'Turns that may wait for one robot; more are refused', live=True, low=0, high=10_000
    ),
    Option(
        'priority',
        0,
        'Priority of queries; higher runs first when turns wait for the model',
        live=True,
        low=-1000,
        high=1000,
    ),
    Option(
        'deadline',
        0.0,
        'Seconds after which a turn ends with what it has; 0: none',
        live=True,
        low=0.0,
        high=1e6,
    ),
    Option(
        'wrap_tokens',
        0,
        'Tokens that are kept of a conversation that overflows the context; 0: half of what fits',
        live=True,
        low=0,
        high=_MANY,
    ),
    Option(
        'image_mode',
        'latest',
        'Which camera image goes with a query: the newest one, only one that shows something else than the'
        ' last one used, none',
        live=True,
        choices=IMAGE_MODES,
    ),
    Option(
        'max_image_age', 2.0, 'Seconds; an older image is not used. 0: any age', live=True, low=0.0, high=1e6
    ),
    Option(
        'max_new_tokens',
        256,
        'Tokens of a reply at most; -1: as many as the context allows',
        live=True,
        low=-1,
        high=_MANY,
    ),
    Option(
        'min_new_tokens',
        0,
        'The model may not end its reply before this many tokens',
        live=True,
        low=0,
        high=_MANY,
    ),
    Option(
        'do_sample',
        False,
        'Sample with the options below; false: always the likeliest token (greedy)',
        live=True,
    ),
    Option(
        'temperature', 0.7, 'Above 1 evens out, below 1 sharpens; 0 is greedy', live=True, low=0.0, high=100.0
    ),
    Option(
        'top_p',
        0.95,
        'Sample from the likeliest tokens that make up this share; over 0',
        live=True,
        low=0.0,
        high=1.0,
    ),
    Option('top_k', 0, 'Sample from this many likeliest tokens; 0: all', live=True, low=0, high=_MANY),
    Option(
        'min_p',
        0.0,
        'Leave out tokens less likely than this share of the likeliest; 0: none',
        live=True,
        low=0.0,
        high=1.0,
    ),
    Option(
        'repetition_penalty',
        1.0,
        'Above 1 makes what was said less likely; 1: off',
        live=True,
        low=0.0,
        high=100.0,
    ),
    Option(
        'seed',
        -1,
        'The same seed gives the same reply; -1: another one each time',
        live=True,
        low=-1,
        high=2**63 - 1,
    ),
    Option('stop', [''], 'Strings that end a reply, besides those of the template', live=True),
)

QOS = (
    Option('depth', 10, 'Messages kept', low=1, high=_MANY),
    Option(
        'history', 'keep_last', 'Which messages are kept', choices=('keep_last', 'keep_all', 'system_default')
    ),
    Option(
        'reliability',
        'reliable',
        'Whether what is lost is sent again',
        choices=('reliable', 'best_effort', 'system_default'),
    ),
)
"""What `qos_overrides.<topic>.publisher.<name>` (or `.subscription.`) takes; rclpy declares these with the
topic.
"""

OPTIONS = {option.name: option for option in (*NODE, *MODEL, *ENGINE, *ROBOT)}
ROBOT_OPTIONS = {option.name: option for option in ROBOT}
QOS_OPTIONS = {option.name: option for option in QOS}


@dataclass(frozen=True)
class RobotOptions:
    """How one robot converses. Fields as in `ROBOT`; None where the parameter says "not set". deadline:
    seconds.
    """

    system_prompt: str | None = None
    on_new_query: str = 'interrupt'
    max_queue: int = 10
    priority: int = 0
    deadline: float | None = None
    wrap_tokens: int | None = None
    image_mode: str = 'latest'
    max_image_age: float | None = 2.0
    generation: GenerationConfig = GenerationConfig(max_new_tokens=256)


def robot_names(values: list[str]) -> list[str]:
    """The names in the parameter `robots`, `['']` for the node itself; ValueError for one that is no ROS
    name, or stands twice.
    """
    names = [name.strip('/') for name in values if name.strip('/')]
    for name in names:
        if not _ROBOT_NAME.match(name):
            raise ValueError(
                f'robots: {name!r} is not valid: a ROS name of letters, digits and _ that starts with a'
                ' letter'
            )
        if name in OPTIONS:
            raise ValueError(f'robots: {name!r} is not valid: a parameter has this name')
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f'robots: {min(twice)!r} stands there twice')
    return names or ['']


def model_config(values: Mapping[str, Any]) -> ModelConfig:
    """The `ModelConfig` of checked parameter values; ValueError as it says."""
    chosen = {option.name: values[option.name] for option in MODEL if option.name != 'chat_template'}
    for name in (
        'model',
        'api',
        'quantization',
        'model_lib',
        'vision',
        'max_context_len',
        'kv_tokens',
        'threads',
    ):
        chosen[name] = chosen[name] or None
    chosen['max_sequences'] = chosen['max_sequences'] or min(max(2, len(robot_names(values['robots']))), 8)
    return ModelConfig(**chosen)


def engine_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `EngineConfig` among checked parameter values."""
    return {option.name: values[option.name] for option in ENGINE}


def robot_options(values: Mapping[str, Any]) -> RobotOptions:
    """The `RobotOptions` of checked parameter values; ValueError with the name, the value and what is
    allowed.
    """
    generation = GenerationConfig(
        max_new_tokens=values['max_new_tokens'],
        min_new_tokens=values['min_new_tokens'],
        do_sample=values['do_sample'],
        temperature=values['temperature'],
        top_p=values['top_p'],
        top_k=values['top_k'],
        min_p=values['min_p'],
        repetition_penalty=values['repetition_penalty'],
        seed=None if values['seed'] < 0 else values['seed'],
        stop_tokens=tuple(text for text in values['stop'] if text),
    )
    return RobotOptions(
        system_prompt=values['system_prompt'] or None,
        on_new_query=values['on_new_query'],
        max_queue=values['max_queue'],
        priority=values['priority'],
        deadline=values['deadline'] or None,
        wrap_tokens=values['wrap_tokens'] or None,
        image_mode=values['image_mode'],
        max_image_age=values['max_image_age'] or None,
        generation=generation,
    )


def goal_options(goal: Any, base: RobotOptions) -> RobotOptions:
    """The options of one turn: those of a nanochat/action/Chat goal where it sets them, the robot's
    elsewhere. ValueError for a wrong one.
    """
    changes: dict[str, Any] = {}
    if goal.max_new_tokens != 0:
        changes['max_new_tokens'] = goal.max_new_tokens
    if not goal.temperature < 0:
        changes.update(temperature=round(goal.temperature, 6), do_sample=goal.temperature != 0)
    for name in ('top_p', 'repetition_penalty'):
        if getattr(goal, name) != 0:
            changes[name] = round(getattr(goal, name), 6)
    for name in ('top_k', 'min_p', 'seed'):
        if not getattr(goal, name) < 0:
            changes[name] = getattr(goal, name)
    if goal.stop:
        changes['stop_tokens'] = (*base.generation.stop_tokens, *(text for text in goal.stop if text))
    options = replace(
        base, generation=replace(base.generation, **changes), priority=goal.priority or base.priority
    )
    for name in ('image_mode', 'on_new_query'):
        value = getattr(goal, name)
        if value:
            options = replace(options, **{name: ROBOT_OPTIONS[name].check(value)})
    if goal.deadline != 0:
        if not (math.isfinite(goal.deadline) and goal.deadline > 0):
            raise ValueError(f'deadline={goal.deadline!r} is not valid: seconds over 0, or 0 for none')
        options = replace(options, deadline=goal.deadline)
    return options
