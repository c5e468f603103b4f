"""Finds out how a template treats tools: which variable takes them, and whether it writes calls."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ros2_nanochat.answer.call_format import CallFormat
from ros2_nanochat.chat.template.jinja import JinjaMarkup
from ros2_nanochat.chat.template.plain_tools import PLAIN_CALLS, tagged_calls
from ros2_nanochat.chat.template.tool_format import CannotCall, learn_call_format, tool_dict

_log = logging.getLogger(__name__)
_VARIABLE = re.compile(r'\b(?:\w+_)?tools\b')
_MOST_VARIABLES = 8
_CALL_TAG = re.compile(r'<\|?(?:tool|function)_calls?(?:_start|_begin)?\|?>|\[TOOL_CALLS\]')
_PROBE = 'probe_alpha'


@dataclass(frozen=True)
class ToolStyle:
    """How a template treats tools. By default, it knows none.

    Attributes:
        variable: The variable that takes the tools; '' if the template describes none.
        format: How calls are written.
        writes_calls: Whether the template writes them.
    """

    variable: str = ''
    format: CallFormat = PLAIN_CALLS
    writes_calls: bool = False


def learn_tool_style(markup: JinjaMarkup, ends: Sequence[str]) -> ToolStyle:
    """Return how a template treats tools.

    Args:
        markup: The template.
        ends: Texts that end a reply.
    """
    variable, description = _find_variable(markup)
    if not variable and 'tool_calls' not in markup.source:
        return ToolStyle()
    try:
        return ToolStyle(variable, learn_call_format(markup, variable, ends), True)
    except CannotCall as reason:
        _log.info('chat template %s does not write calls: %s', markup.name, reason)
    match = _CALL_TAG.search(description)
    if match is None:
        return ToolStyle()  # its description does not tell the model how to call: ours does
    opening = match[0]
    closings = (
        opening.replace('<', '</', 1),
        opening.replace('<|', '<|/', 1),
        re.sub('_(start|begin)', '_end', opening),
    )
    closing = next((text for text in closings if text != opening and text in description), '')
    return ToolStyle(variable, tagged_calls(opening, closing))


def _find_variable(markup: JinjaMarkup) -> tuple[str, str]:
    """The variable that takes tools, and a prompt that describes one; ('', '') if there is none."""
    names = dict.fromkeys(['tools', *_VARIABLE.findall(markup.source)])
    as_parts = markup.is_understood and not markup.takes_text
    content = [{'type': 'text', 'text': 'x'}] if as_parts else 'x'
    for name in list(names)[:_MOST_VARIABLES]:
        if name not in markup.source:
            continue
        options = {**markup.options, name: [tool_dict(_PROBE)]}
        for messages in (
            [{'role': 'user', 'content': content}],
            [{'role': 'system', 'content': content}, {'role': 'user', 'content': content}],
        ):
            try:
                text = markup.render(messages, True, options)
            except ValueError:
                continue
            if _PROBE in text:
                return name, text
    return '', ''
