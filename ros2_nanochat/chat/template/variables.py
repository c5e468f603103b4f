"""Variables of a chat template that users set, such as `enable_thinking` or `documents`."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from typing import Any

from ros2_nanochat.chat.template.jinja import JinjaMarkup
from ros2_nanochat.chat.template.nanollm_format import NanoLLMFormat
from ros2_nanochat.errors import one_line, shorten

_log = logging.getLogger(__name__)
_GIVEN = ('messages', 'tools', 'add_generation_prompt', 'bos_token', 'eos_token')


def check_template_options(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Check variables of a template and return a copy.

    Args:
        options: Names and values.

    Raises:
        ValueError: A name is not valid or reserved, or JSON cannot represent a value.
    """
    if options is None:
        return {}
    if not isinstance(options, Mapping) or not all(isinstance(name, str) for name in options):
        raise ValueError(
            f'template_options={shorten(repr(options))} is not valid: a dict of names and values'
        )
    for name in options:
        if name in _GIVEN or not name.isidentifier():
            raise ValueError(
                f'template_options: {shorten(name)!r} cannot be set: it is not a variable of templates'
            )
    try:
        return json.loads(json.dumps(dict(options), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f'template_options: JSON cannot represent the values ({one_line(error)})') from None


def warn_of_unread(options: Mapping[str, Any], markup: JinjaMarkup | NanoLLMFormat) -> None:
    """Log which options the template does not read, for example because of a typing error."""
    source = markup.source if isinstance(markup, JinjaMarkup) else ''
    unread = [name for name in options if not re.search(rf'\b{re.escape(name)}\b', source)]
    if unread:
        _log.warning('chat template %s does not read %s of template_options', markup.name, ', '.join(unread))
