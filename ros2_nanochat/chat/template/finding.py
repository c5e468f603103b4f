"""Finds the chat template that a caller names, or that a model has."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ros2_nanochat.chat.template.builtin import BUILTIN, find_name
from ros2_nanochat.chat.template.jinja import JinjaMarkup
from ros2_nanochat.chat.template.nanollm_format import NanoLLMFormat, check_nanollm_format
from ros2_nanochat.errors import shown
from ros2_nanochat.files import read_text
from ros2_nanochat.model_info import ModelInfo


class TemplateFinder:
    """Finds templates for one model.

    Args:
        info: The model.
        variables: Texts that templates may refer to, such as `bos_token`.
        ends: Texts of the tokens that end a turn, the most likely first.
        options: Further variables of a Jinja template.
    """

    def __init__(
        self,
        info: ModelInfo,
        variables: dict[str, str],
        ends: Sequence[str],
        options: Mapping[str, Any],
    ):
        self._info = info
        self._variables = variables
        self._ends = ends
        self._options = options

    def find(self, wanted: Any) -> JinjaMarkup | NanoLLMFormat:
        """Return a template.

        Args:
            wanted: See `ChatTemplate`.

        Raises:
            ValueError: There is no such template, or it is not valid.
        """
        info = self._info
        if wanted is None or wanted == 'auto':
            if info.chat_template:
                return self._jinja(info.chat_template, f'of {info.name}')
            wanted = find_name(info.name, info.architecture) or find_name(os.path.basename(info.path), '')
            if wanted is None and {'<|im_start|>', '<|im_end|>'} <= {
                token.text for token in info.special_tokens
            }:
                wanted = 'chat-ml'
            if wanted is None:
                raise ValueError(
                    f'{info.name} (type {info.architecture}) has no chat template, and none is known for it: '
                    f'set chat_template to one of {", ".join(sorted(BUILTIN))}, or to a JSON or Jinja file'
                )
        if isinstance(wanted, Mapping):
            return self._from_nanollm_format(check_nanollm_format(wanted, 'chat_template'), 'custom')
        if not isinstance(wanted, (str, os.PathLike)):
            raise ValueError(
                f'chat_template of type {type(wanted).__name__} is not valid: a name, a file, Jinja source or'
                ' a dict'
            )
        wanted = os.fspath(wanted)
        if wanted in BUILTIN:
            builtin = BUILTIN[wanted]
            return (
                self._jinja(builtin, wanted)
                if isinstance(builtin, str)
                else self._from_nanollm_format(builtin, wanted)
            )
        if '{%' in wanted or '{{' in wanted:
            return self._jinja(wanted, where='chat_template')
        if os.path.isfile(path := os.path.expanduser(wanted)):
            return self._from_file(path)
        raise ValueError(
            f'there is no chat template {shown(wanted)}: neither a file nor one of'
            f' {", ".join(sorted(BUILTIN))}'
        )

    def _jinja(self, source: str, name: str = 'jinja', where: str | None = None) -> JinjaMarkup:
        return JinjaMarkup(source, self._variables, name, where, self._options)

    def _from_nanollm_format(self, template: Mapping, name: str) -> NanoLLMFormat:
        return NanoLLMFormat(template, self._variables, self._ends, name)

    def _from_file(self, path: str) -> JinjaMarkup | NanoLLMFormat:
        try:
            source = read_text(path)
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f'chat template {path} cannot be read: {error}') from error
        name = os.path.splitext(os.path.basename(path))[0]
        if not path.lower().endswith('.json'):
            return self._jinja(source, name, path)
        try:
            template = json.loads(source)
        except json.JSONDecodeError as error:
            raise ValueError(f'{path}, line {error.lineno}: {error.msg}') from error
        except RecursionError:
            raise ValueError(f'{path} is nested too deep') from None
        if isinstance(template, dict) and isinstance(
            template.get('chat_template'), str
        ):  # as saved by transformers
            return self._jinja(template['chat_template'], name, path)

        def line_of(key):
            at = re.search(rf'"{re.escape(key)}"\s*:', source)
            return f', line {source.count(chr(10), 0, at.start()) + 1}' if at else ''

        return self._from_nanollm_format(check_nanollm_format(template, path, line_of), name)
