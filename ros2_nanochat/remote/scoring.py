"""The probability of each alternative of a choice, from the log probabilities that a server gives.

Needs token ids: in messages, the server decides where an alternative is cut.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ros2_nanochat.engine.choice_scores import ChoiceScores
from ros2_nanochat.remote.capabilities import Capabilities, Way
from ros2_nanochat.remote.connection import Connection
from ros2_nanochat.remote.failures import Unavailable

_MOST_VLLM = 20  # vLLM's default limit (max_logprobs)
_MOST_LLAMA_CPP = 1000
_WHOLE_VOCABULARY = 1 << 20
_AT_ONCE = 16
_SECONDS = 60.0
_IMPOSSIBLE = -9999.0  # as vLLM writes it


class LogProbabilities:
    """Asks a server how likely tokens are after ids, at temperature 1 and before penalties.

    Args:
        connection: The server.
        can: What it can do.
        salt: See `Question.salt`.
    """

    def __init__(self, connection: Connection, can: Capabilities, salt: str = ''):
        self._connection, self._can = connection, can
        self._shared = {'cache_salt': salt} if salt and can.salt else {}

    async def after(self, ids: Sequence[int], wanted: Iterable[int]) -> dict[int, float]:
        """Return the log probabilities of the wanted tokens after ids.

        Raises:
            ServerError: The server does not give them.
        """
        wanted = set(wanted)
        ask = self._from_llama_cpp if self._can.way is Way.LLAMA_CPP else self._from_vllm
        found = await ask(list(ids), wanted)
        if missing := wanted - found.keys():
            raise Unavailable(
                f'{self._connection.url} gives no probability of the tokens {sorted(missing)[:9]}'
            )
        return {token_id: found[token_id] for token_id in wanted}

    async def _from_vllm(self, ids: list[int], wanted: set[int]) -> dict[int, float]:
        found = await self._completion(ids, {'logprobs': _MOST_VLLM})
        for token_id in wanted - found.keys():  # not among the likeliest: make it the chosen one
            found.update(await self._completion(ids, {'logprobs': 1, 'allowed_token_ids': [token_id]}))
        return found

    async def _completion(self, ids: list[int], fields: Mapping[str, Any]) -> dict[int, float]:
        body = {
            'model': self._can.model,
            'prompt': ids,
            'max_tokens': 1,
            'temperature': 0,
            'return_tokens_as_token_ids': True,
            **fields,
            **self._shared,
        }
        answer = await self._connection.post(f'{self._connection.url}/completions', body, _SECONDS)
        try:
            logs = answer['choices'][0]['logprobs']
            likeliest = {**logs['top_logprobs'][0], logs['tokens'][0]: logs['token_logprobs'][0]}
            return {int(name.removeprefix('token_id:')): _log(log) for name, log in likeliest.items()}
        except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError):
            raise Unavailable(f'{self._connection.url} gives no probabilities of tokens') from None

    async def _from_llama_cpp(self, ids: list[int], wanted: set[int]) -> dict[int, float]:
        found = await self._native(ids, _MOST_LLAMA_CPP)
        return found if wanted <= found.keys() else await self._native(ids, _WHOLE_VOCABULARY)

    async def _native(self, ids: list[int], most: int) -> dict[int, float]:
        body = {'prompt': ids, 'n_predict': 1, 'temperature': 0, 'n_probs': most, 'cache_prompt': True}
        answer = await self._connection.post(f'{self._connection.root}/completion', body, _SECONDS)
        try:
            likeliest = answer['completion_probabilities'][0]['top_logprobs']
            return {int(each['id']): _log(each['logprob']) for each in likeliest}
        except (LookupError, TypeError, ValueError, ArithmeticError):  # the last: of 1e999, of 10**400
            raise Unavailable(f'{self._connection.root} gives no probabilities of tokens') from None


def _log(value: Any) -> float:
    """A log probability; ValueError if it is none."""
    log = float(value)
    if not log < 0.01:  # also if it is not a number
        raise ValueError(value)
    return max(log, _IMPOSSIBLE)


async def score(
    scores: ChoiceScores, ids: Sequence[int], server: LogProbabilities, at_once: int | None
) -> None:
    """Fill in the probabilities of the alternatives of a choice.

    Args:
        scores: The alternatives.
        ids: What is before the answer.
        server: Gives log probabilities.
        at_once: Questions that the server works on at once; None if it queues them itself.

    Raises:
        ServerError: The server does not give them.
    """
    places = asyncio.Semaphore(min(at_once or _AT_ONCE, _AT_ONCE))

    async def take(beginning: tuple[int, ...], following: set[int]) -> None:
        async with places:
            found = await server.after([*ids, *beginning], following)
        for token_id, log in found.items():
            scores.note(beginning, token_id, log)

    await asyncio.gather(*[take(*each) for each in scores.beginnings.items()])
    scores.started = True
