"""What a tools file may set about a tool and about all of them: limits, approval, what an interruption does.

The declarations check the values. Knows no ROS and no files.
"""

from __future__ import annotations

import functools
import unicodedata
from dataclasses import dataclass

from ros2_nanochat.config import Options, option
from ros2_nanochat.states import StrEnum

_APOSTROPHES = str.maketrans(dict.fromkeys('\u2018\u2019\u02bc\u00b4`', "'"))
_TURKISH_I = str.maketrans('\u0130\u0131', 'ii')  # with and without a dot: case folding keeps them apart
_SELECTORS = frozenset(map(chr, (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))))  # of variants, unseen


def _words(text: str) -> str:
    """The words of a text in one case, with one space between them, and without all other characters."""
    text = unicodedata.normalize('NFKC', text.translate(_APOSTROPHES)).translate(_TURKISH_I).casefold()
    words = (word.strip("'") for word in ''.join(map(_letter, text)).split())
    return ' '.join(word for word in words if any(map(str.isalnum, word)))


@functools.lru_cache(maxsize=4096)
def _letter(char: str) -> str:
    """A character of a word as it is, a space for punctuation, and nothing for what cannot be seen."""
    category = unicodedata.category(char)
    if category == 'Cf' or char in _SELECTORS:
        return ''
    return ' ' if category[0] in 'PS' and char != "'" else char


class ToolKind(StrEnum):
    """What a tool of the file does."""

    SERVICE = 'service'
    """Calls a service."""
    ACTION = 'action'
    """Sends a goal to an action."""
    PUBLISH = 'publish'
    """Publishes a message."""
    READ = 'read'
    """Reads the newest message of a topic."""
    PARAMETER = 'parameter'
    """Reads or sets a parameter of a node."""
    OBSERVATIONS = 'observations'
    """Tells what the robot's standing questions saw."""
    MCP = 'mcp'
    """Calls a tool of an MCP server."""

    @property
    def confirms(self) -> bool:
        """Whether its calls wait for approval, unless the file sets `confirm`."""
        return self in (ToolKind.ACTION, ToolKind.PUBLISH)

    @property
    def timeout(self) -> float:
        """Seconds that a call may take, unless the file sets `timeout`."""
        return {ToolKind.ACTION: 60.0, ToolKind.READ: 2.0, ToolKind.MCP: 30.0}.get(self, 5.0)


class OnInterrupt(StrEnum):
    """What happens to a running call when its turn is interrupted by a new question."""

    CANCEL = 'cancel'
    KEEP = 'keep'


@dataclass(frozen=True)
class ToolPolicy(Options):
    """How one tool may be used."""

    confirm: bool = option(False, 'Each call waits for the service approve')
    timeout: float = option(5.0, 'Seconds that a call may take', above=0.0, high=86400.0)
    rate: float | None = option(
        None, 'Calls per second', otherwise="the limits' rate", above=0.0, high=1000.0
    )
    calls_per_turn: int | None = option(
        None, 'Calls of this tool in one turn', otherwise="the limits' number", low=1, high=1000
    )
    on_interrupt: OnInterrupt = option(
        OnInterrupt.CANCEL, 'What a new question does to a running call: cancel or keep'
    )
    background: bool = option(
        False, 'The model is told that the call has started, and its answer comes later as a message'
    )
    dry_run: bool = option(False, 'Call nothing, and answer what would be called')


class ToolChoice(StrEnum):
    """Whether the first reply of a turn has to be a call."""

    AUTO = 'auto'
    REQUIRED = 'required'


@dataclass(frozen=True)
class ToolLimits(Options):
    """Limits that all tools of a file share."""

    rounds: int = option(4, 'Replies with calls in one turn', low=1, high=100)
    calls_per_turn: int = option(8, 'Calls in one turn', low=1, high=1000)
    rate: float = option(1.0, 'Calls per second of each tool', above=0.0, high=1000.0)
    tool_choice: ToolChoice = option(
        ToolChoice.AUTO,
        'Whether the first reply of a turn may be a call (auto) or has to be one (required)',
    )
    parallel_calls: bool = option(True, 'A reply may hold several calls')
    approval_timeout: float = option(
        30.0,
        'Seconds that a call waits for approval; without an answer it is refused',
        above=0.0,
        high=86400.0,
    )
    stop_timeout: float = option(
        2.0, 'Seconds that a stopped turn waits for its calls to end', above=0.0, high=60.0
    )
    max_result: int = option(2000, "Characters of a tool's answer that the model reads", low=50, high=100_000)
    dry_run: bool = option(False, 'Call nothing, and answer what would be called')
    audit: str | None = option(
        None, 'File to which each call is added as a line of JSON', otherwise='no file'
    )
    stop_words: tuple[str, ...] = option(
        ('stop', 'halt', 'cancel', 'abort', 'stop now', 'please stop', 'stop please', 'stop it'),
        'Questions that stop the reply and all calls, and are answered without tools',
        item=lambda word: isinstance(word, str) and bool(_words(word)),
        allowed='texts with a letter or digit',
    )

    def stops(self, text: str) -> bool:
        """Whether a text is one of the stop words, and nothing else. Case and punctuation do not matter."""
        return _words(text) in map(_words, self.stop_words)
