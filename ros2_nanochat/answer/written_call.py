"""`WrittenCall`: a call as a model wrote it, before anyone runs it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class WrittenCall:
    """A call in a message of the bot.

    Attributes:
        name: Name of the tool.
        arguments: The arguments, as parsed JSON.
        id: Identifies the call within its conversation, '' if it has none yet.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    id: str = ''

    def as_openai(self, arguments_as_text: bool = False) -> dict[str, Any]:
        """Return the call in OpenAI's form, as transformers passes it to chat templates.

        Args:
            arguments_as_text: The arguments are JSON in a string.
        """
        arguments: Any = dict(self.arguments)
        if arguments_as_text:
            arguments = json.dumps(arguments, ensure_ascii=False)
        return {
            'type': 'function',
            'id': self.id,
            'function': {'name': self.name, 'arguments': arguments},
        }

    def as_dict(self) -> dict[str, Any]:
        """Return the call for a JSON file."""
        return {'id': self.id, 'name': self.name, 'arguments': dict(self.arguments)}
