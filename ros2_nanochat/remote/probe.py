"""Finds out what a server can do with the way of talking that was chosen.

What a server ignores silently is found by questions whose answer shows it.
"""

from __future__ import annotations

import asyncio
import base64
import io
import logging
import uuid
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ros2_nanochat.errors import MissingDependency
from ros2_nanochat.remote.capabilities import Capabilities, Way
from ros2_nanochat.remote.failures import ServerError
from ros2_nanochat.remote.forms import KINDS, STYLES, follows, probe_form
from ros2_nanochat.remote.kept_pictures import picture_part
from ros2_nanochat.remote.patience import Watch
from ros2_nanochat.remote.questions import PROBE_SECONDS, SAY_A_WORD, Questions, first_choice
from ros2_nanochat.remote.scoring import LogProbabilities

_log = logging.getLogger(__name__)
_FEWEST = 8  # tokens of a picture
# Tokens: more than the largest block that servers reuse (of vLLM: 128 on a CPU, 256 of some models).
_BLOCKS = 300

_STYLES = {
    'vLLM': ('structured_outputs', 'response_format'),
    'llama.cpp': ('grammar',),
    'SGLang': ('ebnf', 'response_format'),
    'transformers': (),
}


class Prober:
    """Asks one server.

    Args:
        questions: Asks the model.
        way: How prompts go there.
        ids: Some ids of the vocabulary; empty for messages.
    """

    def __init__(self, questions: Questions, way: Way, ids: list[int]):
        self._questions, self._way, self._ids = questions, way, ids

    async def explore(self, can: Capabilities) -> Capabilities:
        """Return what a server can do, given what is known of it."""
        can = replace(can, way=self._way, stop_ids=self._way is Way.IDS)
        is_told = bool(can.options)  # the server says what it is
        if not is_told:
            can = replace(can, options=await self._options())
        can = replace(can, forms=await self._forms(can.kind))
        can = replace(can, probabilities=self._way.takes_ids and await self._gives_probabilities(can))
        if self._way is Way.LLAMA_CPP:
            return replace(can, usage=True, reuse=True)
        is_vllm = can.kind == 'vLLM'
        can = replace(
            can,
            usage=await self._streams_usage(),
            reuse=await self._reports_reuse(can.context_length),
            priority=is_vllm
            and await self._accepts({'priority': -1})
            and (is_told or not await self._accepts({'priority': 'x'})),
            salt=is_vllm and await self._accepts({'cache_salt': 'probe'}),
        )
        return replace(can, completes=await self._completes()) if self._way is Way.MESSAGES else can

    async def _answer(self, fields: Mapping[str, Any], num: int) -> str:
        """The text of a short reply."""
        if self._way is Way.LLAMA_CPP:
            answer = await self._questions.native(self._ids, fields, num)
            return str(answer.get('content', '')) if isinstance(answer, dict) else ''
        if self._way is Way.IDS:
            return str(first_choice(await self._questions.after_ids(self._ids, fields, num)).get('text', ''))
        message = first_choice(await self._questions.after_message(fields, num)).get('message')
        return str(message.get('content') or '') if isinstance(message, dict) else ''

    async def _accepts(self, fields: Mapping[str, Any]) -> bool:
        try:
            await self._answer(fields, 1)
        except ServerError:
            return False
        return True

    async def _gives_probabilities(self, can: Capabilities) -> bool:
        """Whether tokens have probabilities, also those that are not likely."""
        wanted = self._ids[:1]
        try:
            found = await LogProbabilities(self._questions.connection, can).after(self._ids, wanted)
        except ServerError:
            return False
        return all(log < 0 for log in found.values())

    async def _streams_usage(self) -> bool:
        """Whether a stream may be asked for usage."""
        connection = self._questions.connection
        body: dict[str, Any] = {'model': self._questions.model, 'max_tokens': 1, 'stream': True}
        body['stream_options'] = {'include_usage': True}
        if self._way is Way.IDS:
            body['prompt'], path = self._ids, '/completions'
        else:
            body['messages'], path = [{'role': 'user', 'content': SAY_A_WORD}], '/chat/completions'
        address = f'{connection.url}{path}'
        seen: list[bytes] = []

        def take(event: bytes) -> bool:
            seen.append(event)
            return False

        try:
            watch = Watch(PROBE_SECONDS, PROBE_SECONDS, address)
            await connection.stream(address, body, {}, take, watch)
        except ServerError:
            return False
        return any(b'"completion_tokens"' in event for event in seen)

    async def _reports_reuse(self, context_length: int | None) -> bool | None:
        """Whether a later, equal question shows reused tokens. The second one may reach another replica."""
        num = min(_BLOCKS, (context_length or _BLOCKS) // 2)
        try:
            for _ in range(4 if self._way is Way.IDS else 2):
                if self._way is Way.IDS:
                    answer = await self._questions.after_ids((self._ids * num)[:num], {})
                else:
                    answer = await self._questions.after_message({}, 1, 'one two ' * (num // 2))
                usage = answer.get('usage') if isinstance(answer, dict) else None
                details = usage.get('prompt_tokens_details') if isinstance(usage, dict) else None
                if isinstance(details, dict) and details.get('cached_tokens'):
                    return True
        except ServerError:
            return None
        return False

    async def _completes(self) -> bool:
        try:
            return 'text' in first_choice(await self._questions.after_text('One, two,'))
        except ServerError:
            return False

    async def _forms(self, kind: str) -> dict[str, str]:
        """For each kind of form, the style that the server follows."""
        styles = _STYLES.get(kind, tuple(STYLES))
        names = await asyncio.gather(*[self._style(each, styles) for each in KINDS])
        return {each: name for each, name in zip(KINDS, names) if name}

    async def _style(self, kind: str, styles: tuple[str, ...]) -> str | None:
        for name in styles:
            try:
                fields = STYLES[name](probe_form(kind))
                if fields is not None and follows(kind, await self._answer(fields, 12)):
                    return name
            except (ServerError, ValueError, MissingDependency) as error:
                _log.debug('form %s in the style %s: %s', kind, name, error)
        return None

    async def _options(self) -> dict[str, str]:
        """The options that have an effect, found by replies that must be greedy, or must not."""

        async def drawn(**fields: Any) -> list[str]:
            try:
                return [await self._answer({'temperature': 2.0, **fields}, 4) for _ in range(3)]
            except ServerError:
                return []

        try:
            greedy = await self._answer({}, 4)
        except ServerError:
            return {}
        found = {}
        if any(text != greedy for text in await drawn()):
            found['temperature'] = 'temperature'
            for name, value in (('top_p', 0.001), ('top_k', 1), ('min_p', 1.0)):
                if (texts := await drawn(**{name: value})) and all(text == greedy for text in texts):
                    found[name] = name
            if len(set(await drawn(seed=7))) == 1:
                found['seed'] = 'seed'
        for name, known, value in (
            ('repetition_penalty', 'repetition_penalty', 1.1),
            ('min_new_tokens', 'min_tokens', 1),
        ):
            # Their effect is not sure to show, but who knows them refuses what is no number.
            if await self._accepts({known: value}) and not await self._accepts({known: 'x'}):
                found[name] = known
        return found


async def takes_pictures(questions: Questions) -> bool:
    """Return whether a picture makes the prompt longer, by as much as a picture has tokens."""
    url = _picture()
    return bool(url) and await _more_tokens(questions, picture_part(url)) >= _FEWEST


async def keeps_pictures(questions: Questions) -> bool:
    """Return whether a server that takes pictures finds one again by its name."""
    name = uuid.uuid4().hex
    sent = await _more_tokens(questions, picture_part(_picture(), name))
    return sent >= _FEWEST and await _more_tokens(questions, picture_part(None, name)) == sent


def _picture() -> str:
    """A picture as a data URL; empty without Pillow."""
    try:
        from PIL import Image
    except ImportError:
        return ''
    file = io.BytesIO()
    Image.new('RGB', (224, 224), (200, 30, 30)).save(file, 'PNG')
    return f'data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}'


async def _more_tokens(questions: Questions, picture: Mapping[str, Any]) -> int:
    """By how many tokens a picture makes a prompt longer; 0 if it is refused."""
    text = {'type': 'text', 'text': SAY_A_WORD}
    try:
        plain = await questions.after_message({}, 1, [text])
        shown = await questions.after_message({}, 1, [picture, text])
        return int(shown['usage']['prompt_tokens']) - int(plain['usage']['prompt_tokens'])
    except (ServerError, LookupError, TypeError, ValueError, OverflowError):
        return 0
