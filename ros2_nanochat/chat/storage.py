"""Conversations as JSON files.

Images are saved as references: a path relative to the file, or a URL. Knows no template and no model.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Sequence
from typing import Any

from ros2_nanochat.answer.written_call import WrittenCall
from ros2_nanochat.chat.message import ChatMessage, PixelsGone, clean_text
from ros2_nanochat.chat.model import ChatModel, OpenedImage
from ros2_nanochat.errors import shown
from ros2_nanochat.files import decode_text, is_file, read_bounded, write_whole
from ros2_nanochat.image_sources import is_url

FORMAT = 'nanochat-history'
VERSION = 1
MAX_BYTES = 256 << 20
"""Maximum size of a file that is read. A conversation of a million tokens takes about 10 MB."""
_GONE = '(an image was shown here; its pixels were not kept)'


def save(path: str | os.PathLike, messages: Sequence[ChatMessage], template: str, model: ChatModel) -> None:
    """Write messages to a JSON file, atomically.

    Images without a name are written as PNG to `<path>.images/`.

    Args:
        path: The JSON file.
        messages: The messages.
        template: Name of the chat template, for the reader's information.
        model: The model, whose name says later whether the sampled ids still apply.

    Raises:
        OSError: A file cannot be written.
    """
    path = os.path.abspath(os.fspath(path))
    entries = []
    for message in messages:
        entry: dict[str, Any] = {'role': message.role}
        if isinstance(message.image, PixelsGone):
            entry['text'] = _GONE
        elif message.image is not None:
            entry['image'] = _reference(message.image, path, model)
        if message.text is not None:
            entry['text'] = message.text
        if message.reasoning:
            entry['reasoning'] = message.reasoning
        if message.tokens is not None:
            entry['tokens'] = list(message.tokens)
            entry['num_reasoning'] = message.num_reasoning
        if message.calls:
            entry['calls'] = [call.as_dict() for call in message.calls]
        for name, value in (('call_id', message.call_id), ('name', message.name)):
            if value:
                entry[name] = value
        entries.append(entry)
    data = json.dumps(
        {
            'format': FORMAT,
            'version': VERSION,
            'model': model.info.name,
            'template': template,
            'messages': entries,
        },
        ensure_ascii=False,
        indent=1,
    )
    write_whole(path, data.encode())


def _reference(image: Any, path: str, model: ChatModel) -> str:
    if not isinstance(image, str):
        name = getattr(image, 'filename', '')  # a PIL image that was opened from a file
        known = isinstance(name, str) and name and os.path.isfile(name)
        image = name if known else write_image(model.open_image(image), path)
    return image if is_url(image) else os.path.relpath(os.path.abspath(image), os.path.dirname(path))


def write_image(picture: OpenedImage, path: str | os.PathLike) -> str:
    """Write a picture as PNG to `<path>.images/`, unless it is there already.

    Only the current user may read the folder.

    Args:
        picture: The picture.
        path: The JSON file of the conversation.

    Returns:
        The path of the PNG file.

    Raises:
        OSError: It cannot be written.
    """
    folder = os.fspath(path) + '.images'
    os.makedirs(folder, mode=0o700, exist_ok=True)
    name = os.path.join(folder, picture.opened_digest.hex() + '.png')
    if not os.path.exists(name):
        buffer = io.BytesIO()
        picture.save(buffer, 'PNG', compress_level=1)
        write_whole(name, buffer.getvalue())
    return name


def load(
    path: str | os.PathLike, model: str, stand_in: Callable[[str], str] | None = None
) -> list[ChatMessage]:
    """Read messages from a JSON file that `save` wrote.

    Args:
        path: The JSON file.
        model: Name of the model. Ids that another model sampled are dropped.
        stand_in: Returns the text that replaces an image whose file is missing. Without it, a missing image
            is an error.

    Raises:
        ValueError: The file or a message in it is not valid. The text names the file and the message.
        OSError: An image may be there, but this user may not look, or its disk fails.
    """
    path = os.path.abspath(os.fspath(path))
    try:
        data = json.loads(decode_text(read_bounded(path, MAX_BYTES)))
    except json.JSONDecodeError as error:
        raise ValueError(f'{path}, line {error.lineno}: {error.msg}') from error
    except RecursionError:
        raise ValueError(f'{path} is nested too deep') from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f'{path} cannot be read: {error}') from error
    if (
        not isinstance(data, dict)
        or data.get('format') != FORMAT
        or not isinstance(data.get('messages'), list)
    ):
        raise ValueError(
            f'{path} is not a saved conversation: it has no "format": "{FORMAT}" with "messages"'
        )
    if data.get('version') != VERSION:
        raise ValueError(
            f'{path} has version {shown(data.get("version"))} of the format; this program reads {VERSION}'
        )
    same = data.get('model') == model
    return [_message(entry, path, n, same, stand_in) for n, entry in enumerate(data['messages'])]


def _message(
    entry: Any, path: str, n: int, same_model: bool, stand_in: Callable[[str], str] | None
) -> ChatMessage:
    try:
        if not isinstance(entry, dict):
            raise ValueError(f'{shown(entry)} is not an object')
        image: Any = entry.get('image')
        tokens = entry.get('tokens')
        if image is not None and not isinstance(image, str):
            raise ValueError(f'image is a path or address, not {shown(image)}')
        if image is not None and not is_url(image):
            image = os.path.join(os.path.dirname(path), image)
            if stand_in is not None and not is_file(image):
                image, entry = None, {**entry, 'text': entry.get('text') or stand_in(image)}
        if tokens is not None and not (
            isinstance(tokens, list) and all(type(t) is int and t >= 0 for t in tokens)
        ):
            raise ValueError('tokens is a list of ids')
        num_reasoning = entry.get('num_reasoning', 0)
        if not isinstance(num_reasoning, int) or not 0 <= num_reasoning <= len(tokens or ()):
            raise ValueError(f'num_reasoning={shown(num_reasoning)} is not a number of ids')
        return ChatMessage(
            entry.get('role', ''),
            text=entry.get('text'),
            image=image,
            reasoning=entry.get('reasoning', ''),
            tokens=tokens if same_model else None,
            num_reasoning=num_reasoning if same_model else 0,
            calls=_calls(entry.get('calls', [])),
            call_id=_text(entry, 'call_id'),
            name=_text(entry, 'name'),
        )
    except ValueError as error:
        raise ValueError(f'{path}, message {n}: {error}') from error


def _calls(entries: Any) -> list[WrittenCall]:
    if not isinstance(entries, list):
        raise ValueError(f'calls is a list, not {shown(entries)}')
    calls = []
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get('arguments', {}), dict):
            raise ValueError(f'{shown(entry)} is no call: it has "name", "arguments" and "id"')
        calls.append(WrittenCall(_text(entry, 'name'), entry.get('arguments', {}), _text(entry, 'id')))
    return calls


def _text(entry: dict, name: str) -> str:
    value = entry.get(name, '')
    if not isinstance(value, str):
        raise ValueError(f'{name} is a text, not {shown(value)}')
    return clean_text(value, name)
