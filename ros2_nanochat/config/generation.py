"""The options of one reply."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ros2_nanochat.config.declaration import Options, option

MAX_STOPS = 1000
"""Number of stop strings of a reply: the engine looks for each of them after each token."""

MAX_STOP_LENGTH = 1000
"""Characters of a stop string."""

MAX_STOP_CHARACTERS = 20_000
"""Characters of all stop strings of a reply together."""


def _is_stop(value: Any) -> bool:
    if isinstance(value, str):
        return 0 < len(value) <= MAX_STOP_LENGTH
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= 0


@dataclass(frozen=True)
class GenerationConfig(Options):
    """How one reply is generated. Greedy unless `do_sample`.

    Temperature, top-k, top-p and min-p are applied in this order, as in transformers.
    """

    max_new_tokens: int = option(
        128,
        'Maximum number of tokens in a reply',
        low=-1,
        special={-1: 'as many as the context allows'},
        program=256,
        goal=0,
        live=True,
        metavar='N',
    )
    # In NanoLLM, -1 means none.
    min_new_tokens: int = option(
        0,
        'Minimum number of tokens before the model may end its reply',
        low=-1,
        allowed='a whole number of 0 or more, or -1 for none',
        live=True,
        metavar='N',
    )
    do_sample: bool = option(
        False, 'Sample with the options below; otherwise take the likeliest token (greedy)', live=True
    )
    temperature: float = option(
        0.7,
        'Sampling temperature: higher is more random, lower is more predictable',
        low=0.0,
        high=100.0,
        special={0: 'greedy'},
        goal=-1.0,
        live=True,
        metavar='X',
    )
    top_p: float = option(
        0.95,
        'Sample from the likeliest tokens that make up this share of the probability',
        above=0.0,
        high=1.0,
        goal=0.0,
        live=True,
        metavar='X',
    )
    top_k: int = option(
        0,
        'Sample from this many of the likeliest tokens',
        low=0,
        special={0: 'all'},
        goal=-1,
        live=True,
        metavar='N',
    )
    min_p: float = option(
        0.0,
        'Drop tokens whose probability is below this share of the likeliest token',
        low=0.0,
        high=1.0,
        special={0: 'none'},
        goal=-1.0,
        live=True,
        metavar='X',
    )
    # As in transformers (Keskar et al. 2019, arXiv:1909.05858).
    repetition_penalty: float = option(
        1.0,
        'Above 1, tokens that are already in the prompt or reply become less likely',
        above=0.0,
        high=100.0,
        special={1: 'off'},
        goal=0.0,
        live=True,
        metavar='X',
    )
    seed: int | None = option(
        None,
        'The same seed gives the same reply, whatever else runs in the batch',
        otherwise='a new one each time',
        low=0,
        unset=-1,
        goal=-1,
        live=True,
        metavar='N',
    )
    stop_tokens: tuple[int | str, ...] = option(
        (),
        'Strings (or token ids, but not in parameters and goals) that end a reply, in addition to'
        " the template's own and the model's end tokens; the string is not part of the reply",
        item=_is_stop,
        allowed=f'token ids, or strings of 1 to {MAX_STOP_LENGTH} characters',
        parameter='stop',
        unset=[''],
        goal=[],
        live=True,
        metavar='TEXT|ID',
    )
    response_format: Any = option(
        None,
        'Form that the answer must have: a choice (yes | no), a regular expression (/[0-9]+/), json, a JSON'
        ' Schema, a ROS message type, or a file .schema.json, .lark or .gbnf; see docs/answers.md',
        otherwise='free text',
        python=True,
        unset='',
        goal='',
        live=True,
        metavar='FORM',
    )
    probabilities: bool = option(
        False, 'Also compute the probability of each alternative of a choice', goal=False, live=True
    )
    logits_processors: tuple[Callable, ...] = option(
        (),
        'Callables (token_ids [n], logits [v]) -> logits [v], applied before sampling, in order',
        item=callable,
        allowed='callables',
        parameter=None,
        argument=False,
    )
    functions: tuple[Callable, ...] = option(
        (),
        'Callables (text so far) -> str | None, called after each piece; the text they return goes into'
        ' the reply, and the model reads it',
        item=callable,
        allowed='callables',
        parameter=None,
        argument=False,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, 'min_new_tokens', max(0, self.min_new_tokens))
        stops = tuple(stop if isinstance(stop, str) else int(stop) for stop in self.stop_tokens)
        lengths = [len(stop) for stop in stops if isinstance(stop, str)]
        if len(lengths) > MAX_STOPS or sum(lengths) > MAX_STOP_CHARACTERS:
            raise ValueError(
                f'stop_tokens has {len(lengths)} strings of {sum(lengths):,} characters together, and at most'
                f' {MAX_STOPS} of {MAX_STOP_CHARACTERS:,} are taken: pass fewer or shorter ones'
            )
        object.__setattr__(self, 'stop_tokens', stops)

    def stopping_at(self, stops: Sequence[int | str]) -> GenerationConfig:
        """Return a copy with further `stop_tokens`."""
        return replace(self, stop_tokens=(*stops, *self.stop_tokens)) if stops else self

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return not self.do_sample or self.temperature == 0
