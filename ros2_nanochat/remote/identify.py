"""Finds out what runs at an address: which model, which kind of server, and whether it takes token ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ros2_nanochat.errors import BackendError, printable, shown
from ros2_nanochat.remote.capabilities import Capabilities, Way
from ros2_nanochat.remote.connection import Connection
from ros2_nanochat.remote.failures import Rejected, ServerError
from ros2_nanochat.remote.questions import Questions, first_choice
from ros2_nanochat.remote.reading import count_in, models_in

_ALL = {name: name for name in ('temperature', 'top_p', 'top_k', 'min_p', 'repetition_penalty', 'seed')}
_OPTIONS = {
    'vLLM': {**_ALL, 'min_new_tokens': 'min_tokens'},
    'llama.cpp': {**_ALL, 'repetition_penalty': 'repeat_penalty'},
    'transformers': {name: name for name in ('temperature', 'top_p', 'seed')},
}
_CONTINUES: dict[str, dict[str, bool]] = {
    'vLLM': {'continue_final_message': True, 'add_generation_prompt': False},
    'llama.cpp': {},
}
_SOME_ID = 1
_SHOWN = 20  # names of models in a message
ANSWER_SECONDS = 30.0
"""Seconds that a server which can be reached may take to answer at all when it is opened. One that loads its
model, or whose machine is busy, takes a while.
"""


@dataclass
class Found:
    """What was found out about a server.

    Attributes:
        can: What it can do, as far as it is known.
        entry: What it says about the model.
        props: What llama.cpp says about itself; empty for others.
        id_way: The way with ids that it knows, or None.
    """

    can: Capabilities
    entry: dict = field(default_factory=dict)
    props: dict = field(default_factory=dict)
    id_way: Way | None = None


async def identify(connection: Connection, served_model: str | None) -> Found:
    """Find out what runs at an address.

    Args:
        connection: The connection to it.
        served_model: The model to use there; None if it has only one.

    Raises:
        ServerError: It does not answer, or refuses the key.
        BackendError: It does not have the model.
    """
    entry = await _model_entry(connection, served_model)
    questions = Questions(connection, entry['id'])
    props = await _try_get(connection, '/props')
    props = props if 'default_generation_settings' in props else {}
    told, id_way = await _kind(questions, entry, props), await _id_way(questions)
    # Behind Ray Serve LLM and other routers. Its options are probed: others may write `token_ids`, too.
    kind = 'vLLM' if told == 'unknown' and id_way is Way.IDS else told
    slots = props.get('total_slots')
    can = Capabilities(
        entry['id'],
        kind,
        context_length=_context_length(entry, props),
        slots=count_in(slots) or None,
        options=_OPTIONS.get(told, {}),
        continues=_CONTINUES.get(told),
        listed=len(entry) > 1,
    )
    return Found(can, entry, props, id_way)


async def _model_entry(connection: Connection, served_model: str | None) -> dict:
    try:
        listing = await connection.get(f'{connection.url}/models', ANSWER_SECONDS)
    except ServerError as error:
        # transformers serve lists what the hub's cache holds, and fails without one.
        if getattr(error, 'status', None) not in (404, 405, 500, 501) or served_model is None:
            raise
        listing = {}
    if served_model is not None and isinstance(listing, Mapping) and not listing.get('data'):
        return {'id': served_model}
    return _entry(listing, connection.url, served_model)


def _entry(listing: Any, url: str, served_model: str | None) -> dict:
    # Some list a model twice.
    entries = [*{entry['id']: entry for entry in models_in(listing)}.values()]
    names = ', '.join(printable(entry['id']) for entry in entries[:_SHOWN]) or 'none'
    if len(entries) > _SHOWN:
        names += f' and {len(entries) - _SHOWN:,} more'
    if served_model is not None:
        for entry in entries:
            if entry['id'] == served_model:
                return entry
        raise BackendError(f'served_model={shown(served_model)} is not valid: {url} has {names}')
    if not entries:
        raise BackendError(f'{url} lists no models: load one there, or set served_model to its name')
    if len(entries) != 1:
        raise BackendError(f'{url} has {len(entries)} models: set served_model to one of {names}')
    return entries[0]


async def _try_get(connection: Connection, path: str) -> dict:
    try:
        data = await connection.get(f'{connection.root}{path}')
    except ServerError:
        return {}
    return data if isinstance(data, dict) else {}


async def _kind(questions: Questions, entry: dict, props: dict) -> str:
    owner = str(entry.get('owned_by', '')).lower()
    if props or owner == 'llamacpp':
        return 'llama.cpp'
    if owner in ('vllm', 'sglang'):
        return {'vllm': 'vLLM', 'sglang': 'SGLang'}[owner]
    if 'version' in await _try_get(questions.connection, '/version'):
        return 'vLLM'
    try:
        answer = await questions.after_message({'nanochat_probe': 1})
    except Rejected as error:  # transformers refuses unknown fields, and names them
        return 'transformers' if error.status == 422 and 'nanochat_probe' in str(error) else 'unknown'
    except ServerError:
        return 'unknown'
    if not first_choice(answer):  # something that answers everything
        raise Rejected(
            f'{questions.connection.url} answers a question with {shown(answer, 80)}: is it a server with'
            " OpenAI's API?"
        )
    return 'unknown'


def _context_length(entry: dict, props: dict) -> int | None:
    settings, meta = props.get('default_generation_settings'), entry.get('meta')
    found = [
        entry.get('max_model_len'),
        settings.get('n_ctx') if isinstance(settings, dict) else None,
        meta.get('n_ctx') if isinstance(meta, dict) else None,
    ]
    return next((value for value in found if count_in(value)), None)


async def _id_way(questions: Questions) -> Way | None:
    try:
        if first_choice(await questions.after_ids([_SOME_ID], {})).get('token_ids'):
            return Way.IDS
    except ServerError:
        pass
    try:
        if isinstance((await questions.native([_SOME_ID], {})).get('tokens'), list):
            return Way.LLAMA_CPP
    except (ServerError, AttributeError):
        pass
    return None
