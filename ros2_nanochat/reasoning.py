"""The marks around a model's reasoning: which marks a model declares, and whether a prompt ends inside
them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ros2_nanochat.model_info import ModelInfo

REASONING_MARKS = (
    ('<think>', '</think>'),
    ('[THINK]', '[/THINK]'),
    ('<|START_THINKING|>', '<|END_THINKING|>'),
    ('<seed:think>', '</seed:think>'),
    ('<|channel>', '<channel|>'),
    ('◁think▷', '◁/think▷'),
    ('<thinking>', '</thinking>'),
    ('<thought>', '</thought>'),
    ('<reasoning>', '</reasoning>'),
)
"""Marks around reasoning that models in use declare, in their vocabulary or their chat template (Qwen 3 and
DeepSeek R1, Magistral, Command A, Seed-OSS, Gemma 4, Kimi-VL, and fine-tunes).
"""

_LABELS = {'<|channel>': 'thought\n'}
"""What stands between a mark and the reasoning
(https://ai.google.dev/gemma/docs/core/prompt-formatting-gemma4).
"""

_HARMONY = ('<|start|>', '<|channel|>', '<|end|>', '<|message|>')
"""Around messages in the format of gpt-oss (https://cookbook.openai.com/articles/openai-harmony), of which
one reply has several.
"""


@dataclass(frozen=True)
class ReasoningMarks:
    """The texts around the reasoning, and their ids.

    Attributes:
        start: The text that begins the reasoning.
        end: The text that ends it.
        start_id: The id of `start`, if it is one token of the vocabulary.
        end_id: The id of `end`, if it is one token of the vocabulary.
        label: Text after the start that is not part of the reasoning.
        header_ids: For a model that writes several messages per reply (gpt-oss): each of these begins a
            header.
        message_id: For such a model: ends the header and begins its message, which is reasoning if the header
            ends with the label.
    """

    start: str
    end: str
    start_id: int | None = None
    end_id: int | None = None
    label: str = ''
    header_ids: tuple[int, ...] = ()
    message_id: int | None = None

    def in_header(self, token_id: int) -> bool:
        """Return whether an id begins or ends the header of a message."""
        return bool(self.header_ids) and token_id in (*self.header_ids, self.message_id)


def marks_in_template(source: str) -> tuple[str, str] | None:
    """Return the texts around reasoning that the source of a chat template contains; None if it has none."""
    return next((pair for pair in REASONING_MARKS if pair[1] in source), None)


def is_marked(thought: str, text: str) -> bool:
    """Return whether a text holds a thought between reasoning marks."""
    return any(f'{start}{thought}{end}' in text for start, end in REASONING_MARKS)


def find_reasoning_marks(info: ModelInfo) -> ReasoningMarks | None:
    """Return the marks that a model declares in its vocabulary or template; None if it declares none."""
    ids = {token.text: token.id for token in info.special_tokens}
    if all(text in ids for text in _HARMONY):
        *headers, message = (ids[text] for text in _HARMONY)
        return ReasoningMarks(
            '<|channel|>analysis<|message|>',
            '<|end|>',
            label='analysis',
            header_ids=tuple(headers),
            message_id=message,
        )
    for start, end in REASONING_MARKS:
        if (start in ids and end in ids) or (info.chat_template and end in info.chat_template):
            return ReasoningMarks(start, end, ids.get(start), ids.get(end), _LABELS.get(start, ''))
    return None


def reasoning_is_open(
    prompt_ids: Sequence[int], marks: ReasoningMarks, text_of: Callable[[Sequence[int]], str]
) -> bool:
    """Return whether a prompt ends inside the reasoning, which some templates open for the model.

    Args:
        prompt_ids: The ids of the prompt; negative numbers are rows of images.
        marks: The model's marks.
        text_of: Turns ids into text.
    """
    tail = [int(i) for i in prompt_ids[-8:]]
    if marks.start_id is not None:
        return next(
            (i == marks.start_id for i in reversed(tail) if i in (marks.start_id, marks.end_id)), False
        )
    return text_of([i for i in tail if i >= 0]).rstrip().endswith(marks.start)
