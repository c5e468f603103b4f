"""The options of a robot's conversation, and of the node that serves robots."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from ros2_nanochat.config.declaration import Options, option, program_defaults
from ros2_nanochat.config.generation import GenerationConfig
from ros2_nanochat.states import StrEnum


class OnNewQuery(StrEnum):
    """What happens to a query that arrives while a reply streams."""

    INTERRUPT = 'interrupt'
    QUEUE = 'queue'
    REJECT = 'reject'


class ImageMode(StrEnum):
    """Which camera image is sent with a query."""

    LATEST = 'latest'
    CHANGED = 'changed'
    OFF = 'off'


class ImageTransport(StrEnum):
    """Which camera topic the node subscribes to."""

    AUTO = 'auto'
    RAW = 'raw'
    COMPRESSED = 'compressed'


_CAMERA = re.compile(r'[A-Za-z]\w*:=[^\s:=]+', re.ASCII)


def _is_camera(text: str) -> bool:
    return isinstance(text, str) and bool(_CAMERA.fullmatch(text)) and not text.startswith('image:=')


def _is_json_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


@dataclass(frozen=True)
class NodeConfig(Options):
    """What the node serves and stores."""

    autostart: bool = option(
        True,
        'Configure and activate at startup; otherwise a lifecycle manager or `ros2 lifecycle set` does it',
        argument=False,
    )
    robots: tuple[str, ...] = option(
        (),
        "Robots that this node serves, each under /<robot>/<node name>/...; [''] for one, under the"
        " node's own name",
        item=lambda name: isinstance(name, str),
        allowed='names',
        unset=[''],
        live=True,
        argument=False,
    )
    state_dir: str | None = option(
        None,
        'Folder where each finished turn is written before it is announced; a restarted node continues'
        ' from it',
        otherwise='nothing is kept',
        unset='',
        argument=False,
    )
    state_kv: bool = option(
        False,
        'Also keep the KV of each conversation in state_dir, so that a restart needs no prefill (gguf and'
        ' hf); tens of kB per token for small models, 0.5 MB for 8 B',
        argument=False,
    )
    watch_share: float = option(
        0.5,
        "Share of the model's time that the standing questions of all robots may take (docs/watch.md)",
        above=0.0,
        high=1.0,
        live=True,
        argument=False,
    )
    chat_template: str | None = option(
        None,
        'Chat template: a name, or a JSON or Jinja file',
        otherwise="the model's own",
        unset='',
        metavar='NAME|FILE',
    )


@dataclass(frozen=True)
class RobotOptions(Options):
    """Options of one robot's conversation."""

    system_prompt: str | None = option(
        None,
        'Instruction at the beginning of each conversation',
        otherwise="the template's own",
        unset='',
        live=True,
        metavar='TEXT',
    )
    explain_format: bool = option(
        True, 'Tell the model in the prompt which form its answer must have', live=True, argument=False
    )
    template_options: str | None = option(
        None,
        'Variables of the chat template, as a JSON object: {"enable_thinking": false}, or documents,'
        ' date_string'
        ' and others that it reads',
        otherwise="the template's own",
        valid=_is_json_object,
        allowed='a JSON object, such as {"enable_thinking": false}',
        unset='',
        live=True,
        argument=False,
    )
    on_new_query: OnNewQuery = option(
        OnNewQuery.INTERRUPT,
        'What to do with a query that arrives while a reply streams: interrupt the reply, queue the query,'
        ' or reject it',
        goal='',
        live=True,
        argument=False,
    )
    max_queue: int = option(
        10, 'Turns that may wait for one robot; further ones are refused', low=0, live=True, argument=False
    )
    priority: int = option(
        0,
        'Priority of a turn; a higher one runs first when turns wait for the model',
        low=-1000,
        high=1000,
        goal=0,
        live=True,
        argument=False,
    )
    deadline: float | None = option(
        None,
        'Seconds after which a turn ends with the text it has',
        otherwise='no deadline',
        above=0.0,
        high=1e6,
        unset=0.0,
        goal=0.0,
        live=True,
        argument=False,
    )
    wrap_tokens: int | None = option(
        None,
        'Tokens of the latest turns that are kept when the context is full',
        otherwise='half of what fits',
        low=1,
        unset=0,
        live=True,
        metavar='TOKENS',
    )
    image_mode: ImageMode = option(
        ImageMode.LATEST,
        'Camera image to send with a query: the latest, the latest if the scene has changed, or none (off)',
        goal='',
        live=True,
        argument=False,
    )
    image_transport: ImageTransport = option(
        ImageTransport.AUTO,
        'Camera topic to subscribe to: raw images, compressed ones, or whichever is published (raw if both'
        ' are)',
        live=True,
        argument=False,
    )
    max_image_age: float | None = option(
        2.0,
        'Seconds; an older image is not used, and the turn says so',
        otherwise='any age',
        above=0.0,
        high=1e6,
        unset=0.0,
        live=True,
        argument=False,
    )
    cameras: tuple[str, ...] = option(
        (),
        'Further cameras beside the topic image, each as name:=topic (front:=/camera/front/image_raw);'
        ' {robot} in a topic is the name of the robot',
        item=_is_camera,
        allowed='name:=topic for each camera, with a name other than image',
        unset=[''],
        live=True,
        argument=False,
    )
    watches_file: str | None = option(
        None,
        'YAML file with standing questions that start with the node (docs/watch.md)',
        otherwise='none',
        unset='',
        live=True,
        argument=False,
    )
    raw_sentences: bool = option(
        False,
        'Publish sentences as the model writes them; otherwise without Markdown, code blocks and emoji',
        live=True,
        argument=False,
    )
    tools_file: str | None = option(
        None,
        'YAML file that lists what the model may call: services, actions, topics, parameters, MCP servers',
        otherwise='no tools',
        unset='',
        argument=False,
    )
    generation: GenerationConfig = program_defaults(GenerationConfig)

    def camera_topics(self, robot: str) -> dict[str, str]:
        """Return the topics of `cameras` by name, for one robot."""
        pairs = (text.split(':=', 1) for text in self.cameras)
        return {name: topic.replace('{robot}', robot) for name, topic in pairs}

    @property
    def template_variables(self) -> dict[str, Any]:
        """`template_options`, parsed."""
        return json.loads(self.template_options) if self.template_options else {}
