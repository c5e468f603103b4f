"""Restores a saved conversation for a model: opens its images and checks its token ids."""

from __future__ import annotations

import os

from ros2_nanochat.chat import storage
from ros2_nanochat.chat.message import ChatMessage
from ros2_nanochat.chat.model import ChatModel
from ros2_nanochat.files import open_regular
from ros2_nanochat.image_sources import is_url


def restore(
    path: str | os.PathLike, model: ChatModel, without_images: bool
) -> tuple[list[ChatMessage], list[str]]:
    """Read the messages of a file that `storage.save` wrote; see `ChatHistory.load`.

    Args:
        path: The JSON file.
        model: The model that continues the conversation.
        without_images: Replace images that cannot be used with texts.

    Returns:
        The messages, and the texts that replaced images.

    Raises:
        ValueError: The file or an image in it is not valid for this model.
        OSError: An image exists but cannot be read.
    """
    replaced: list[str] = []

    def stand_in(image: str) -> str:
        replaced.append(f'(an image was shown here; its file {os.path.basename(image)} is missing)')
        return replaced[-1]

    messages = storage.load(path, model.info.name, stand_in if without_images else None)
    with_images = [message for message in messages if message.image is not None]
    if with_images and not model.has_vision and not without_images:
        raise ValueError(f'{path} holds images, and {model.info.name} has no vision')
    unknown = next(
        (t for message in messages for t in message.tokens or () if t >= model.info.vocab_size), None
    )
    if unknown is not None:
        raise ValueError(
            f'{path} holds the token id {unknown}, and the vocabulary of {model.info.name} ends at'
            f' {model.info.vocab_size - 1}'
        )
    for message in with_images:
        reason = _open_picture(model, message) if model.has_vision else 'the model has no vision'
        if reason and not without_images:
            raise ValueError(reason)
        if reason:
            replaced.append(f'(an image was shown here; {reason})')
            text = message.text or replaced[-1]
            messages[messages.index(message)] = ChatMessage(message.role, text=text)
    return messages, replaced


def _open_picture(model: ChatModel, message: ChatMessage) -> str:
    """Open the image of a message. Return what is wrong with it, '' if nothing is."""
    if isinstance(message.image, str) and not is_url(message.image):
        open_regular(message.image).close()
    try:
        message.picture = model.open_image(message.image)
    except ValueError as error:
        return str(error)
    return ''
