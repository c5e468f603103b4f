"""Short questions to a server, for finding out what it can do."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from ros2_nanochat.remote.connection import Connection
from ros2_nanochat.remote.failures import Overloaded, ServerError

PROBE_SECONDS = 60.0
"""Seconds that a short question may take."""
SAY_A_WORD = 'Say a word.'
_PAUSE = 0.5


class Questions:
    """Asks one model of one server for a few tokens.

    Args:
        connection: The connection to the server.
        model: The model's name there.
    """

    def __init__(self, connection: Connection, model: str):
        self.connection = connection
        self.model = model

    async def after_ids(self, ids: list[int], fields: Mapping[str, Any], num: int = 1) -> Any:
        """Return the answer to token ids."""
        body = {'model': self.model, 'prompt': ids, 'max_tokens': num, 'temperature': 0}
        return await self._post('/completions', {**body, 'return_token_ids': True, **fields})

    async def after_text(self, text: str) -> Any:
        """Return the answer to a text without a template."""
        body = {'model': self.model, 'prompt': text, 'max_tokens': 1, 'temperature': 0}
        return await self._post('/completions', body)

    async def after_message(self, fields: Mapping[str, Any], num: int = 1, content: Any = SAY_A_WORD) -> Any:
        """Return the answer to a message."""
        message = {'role': 'user', 'content': content}
        body = {'model': self.model, 'messages': [message], 'max_tokens': num, 'temperature': 0}
        return await self._post('/chat/completions', {**body, **fields})

    async def native(self, ids: list[int], fields: Mapping[str, Any], num: int = 1) -> Any:
        """Return llama.cpp's answer to token ids, from its own address."""
        body = {'prompt': ids, 'n_predict': num, 'temperature': 0, 'return_tokens': True, **fields}
        return await self._ask(f'{self.connection.root}/completion', body)

    async def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        return await self._ask(f'{self.connection.url}{path}', body)

    async def _ask(self, address: str, body: Mapping[str, Any]) -> Any:
        """Ask again while the server is overloaded or loads its model: that is no answer to a probe."""
        loop = asyncio.get_running_loop()
        until = loop.time() + PROBE_SECONDS
        while True:
            try:
                return await self.connection.post(address, body, PROBE_SECONDS)
            except ServerError as error:
                pause = error.retry_after if isinstance(error, Overloaded) else _PAUSE
                is_busy = isinstance(error, Overloaded) or getattr(error, 'status', None) == 503
                if not is_busy or loop.time() + pause > until:
                    raise
                await asyncio.sleep(pause)


def first_choice(answer: Any) -> dict:
    """Return the first choice of an answer, {} if there is none."""
    choices = answer.get('choices') if isinstance(answer, dict) else None
    return choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
