"""Arguments of a call written as a JSON object."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class JsonArguments:
    """Arguments as a JSON object, without white space but that of its separators.

    Attributes:
        between: Separates two members.
        colon: Separates a name and its value.
        ascii: Other characters are escaped.
    """

    between: str = ', '
    colon: str = ': '
    ascii: bool = False

    def write(self, arguments: Mapping[str, Any]) -> str:
        """Return the text of arguments."""
        return json.dumps(dict(arguments), ensure_ascii=self.ascii, separators=(self.between, self.colon))

    def read(self, text: str, at: int, schema: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
        """Read arguments; see `ArgumentSyntax`."""
        try:
            value, end = _DECODER.raw_decode(text, at)
        except RecursionError:
            raise ValueError('the arguments are nested too deep') from None
        if not isinstance(value, dict):
            raise ValueError('the arguments are no JSON object')
        return value, end

    def lark(self, rule: str, schema: Mapping[str, Any], literal: Any) -> list[str]:
        """Return the rules of arguments; see `ArgumentSyntax`."""
        return [f'{rule}: {self.lark_json(schema)}']

    def lark_json(self, schema: Any) -> str:
        """Return JSON that follows a schema, in Lark's syntax."""
        spacing = {
            'whitespace_flexible': False,
            'item_separator': self.between,
            'key_separator': self.colon,
        }
        return '%json ' + json.dumps({**dict(schema), 'x-guidance': spacing}, ensure_ascii=False)
