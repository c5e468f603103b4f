"""One message of a conversation: its role, and its text or image.

Tells images from text. Knows no template.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from ros2_nanochat.answer.written_call import WrittenCall
from ros2_nanochat.chat.model import ChatModel, ImageParts, OpenedImage
from ros2_nanochat.errors import shown
from ros2_nanochat.image_sources import (
    FileObject,
    is_image_name,
    is_url,
    lends_pixels,
    read_file_object,
)

ROLES = ('system', 'user', 'bot', 'tool')
_OTHER_NAMES = {'assistant': 'bot', 'model': 'bot', 'tool_response': 'tool'}


def check_role(role: str) -> str:
    """Return the role as one of `ROLES`. `assistant`, `model` and `tool_response` are accepted.

    Raises:
        ValueError: The role is unknown.
    """
    role = _OTHER_NAMES.get(role, role) if isinstance(role, str) else role
    if not isinstance(role, str) or role not in ROLES:
        raise ValueError(
            f'role={shown(role)} is not valid: one of {", ".join(ROLES)} (assistant is accepted for bot)'
        )
    return role


def is_image(content: Any) -> bool:
    """Whether this is an image.

    Images are PIL images, encoded bytes, files open for reading, arrays or tensors of [h, w] or [h, w, c]
    (also in a batch of one), and strings for which `is_image_name` holds.
    """
    if isinstance(content, (str, os.PathLike)):
        return is_image_name(os.fspath(content))
    if isinstance(content, (bytes, bytearray, memoryview)):
        return True
    if (
        isinstance(content, np.ndarray)
        or type(content).__module__.partition('.')[0] == 'torch'
        or lends_pixels(content)
    ):
        shape = tuple(getattr(content, 'shape', (1, 1)))
        while len(shape) > 3 and shape[0] == 1:
            shape = shape[1:]
        return len(shape) in (2, 3)
    return type(content).__module__.startswith('PIL.') or isinstance(content, FileObject)


def clean_text(text: Any, what: str = 'text') -> str:
    """Return the text with lone surrogates replaced, because no tokenizer accepts them.

    Args:
        text: The text.
        what: What the error message calls it.

    Raises:
        ValueError: It is not a string.
    """
    if not isinstance(text, str):
        raise ValueError(f'{what} has to be a string, not {type(text).__name__} {shown(text, 40)}')
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')
    return text


class PixelsGone:
    """Stands for an image whose pixels are no longer needed."""


class ChatMessage:
    """One message.

    Args:
        role: `system`, `user`, `bot` (`assistant` is accepted) or `tool`.
        msg: Text or an image; `is_image` decides.
        text: The text, if you pass it by name.
        image: The image, if you pass it by name. It comes before the text.
        tokens: Ids that the model sampled for this message. Later prompts contain them unchanged. Setting
            another text drops them.
        reasoning: What the model wrote between its thinking marks.
        num_reasoning: How many of the first `tokens` belong to the reasoning.
        calls: Calls of tools, which a message of the bot ends with.
        call_id: In a message of the role `tool`: the id of the call that it answers.
        name: In such a message: the name of the tool.

    Raises:
        ValueError: The role is unknown, or there is neither text nor an image.
    """

    def __init__(
        self,
        role: str = 'user',
        msg: Any = None,
        *,
        text: str | None = None,
        image: Any = None,
        tokens=None,
        reasoning: str = '',
        num_reasoning: int = 0,
        calls: Iterable[WrittenCall] = (),
        call_id: str = '',
        name: str = '',
    ):
        self.role = check_role(role)
        self.calls = tuple(calls)
        self.call_id, self.name = call_id, name
        if self.calls and text is None and msg is None:
            text = ''
        if msg is not None:
            if text is not None or image is not None:
                raise ValueError('pass msg, or text and image, not both')
            if is_image(msg):
                image = msg
            elif isinstance(msg, str):
                text = msg
            else:
                raise ValueError(
                    'a message is text (str), or an image (path, URL, bytes, open file, PIL image, array),'
                    f' not {type(msg).__name__}'
                )
        if text is None and image is None:
            raise ValueError('a message needs text or an image')
        if isinstance(image, os.PathLike):
            image = os.fspath(image)
        if isinstance(image, str) and not is_url(image) and not os.path.isfile(image):
            raise ValueError(f'there is no image file {shown(image)}')
        if not isinstance(image, np.ndarray) and isinstance(image, FileObject):
            image = read_file_object(image)  # now: the caller may close it or read on
        self._image = image
        self.picture: OpenedImage | None = None
        self._parts: tuple[ChatModel, ImageParts] | None = None
        self._text = None if text is None else clean_text(text)
        self.adopt(tokens, reasoning, num_reasoning)

    @property
    def text(self) -> str | None:
        """The text, None if there is only an image.

        Setting another text drops the sampled ids and reasoning.
        """
        return self._text

    @text.setter
    def text(self, value: str) -> None:
        value = clean_text(value)
        if value != self._text:
            self._text = value
            self.adopt(None)

    @property
    def image(self) -> Any:
        """The image as you passed it, None if there is only text.

        `picture` is the same image, opened when the message was appended, until the model has encoded it.
        """
        return self._image

    @image.setter
    def image(self, image: Any) -> None:
        self._image, self.picture, self._parts = image, None, None

    def embed(self, model: ChatModel, stopped: Callable[[], bool] | None = None) -> ImageParts:
        """Return what represents the image in prompts of this model; see `NanoLLM.embed_image`.

        The image is encoded once: a file that changes later has no effect.
        """
        if self._parts is None or self._parts[0] is not model:
            image = self._image if self.picture is None else self.picture
            parts = model.embed_image(image) if stopped is None else model.embed_image(image, stopped)
            self._parts = model, parts
            self.picture = None
        return self._parts[1]

    def keep_as(self, path: str) -> None:
        """Refer to the image by a file that now holds it. The encoded image stays in the prompts."""
        self._image = path

    def let_go(self) -> None:
        """Free the memory of the pixels.

        The encoded image stays in the prompts. Do not call this if the message is still to be saved or
        encoded by another model.
        """
        self._image, self.picture = PixelsGone(), None

    def is_embedded(self, model: ChatModel) -> bool:
        """Whether `embed` has been called for this model since the image was set."""
        return self._parts is not None and self._parts[0] is model

    @property
    def type(self) -> str:
        """`image` if the message has no text, else `text`."""
        return 'image' if self._text is None else 'text'

    @property
    def content(self) -> Any:
        """The text, or the image if there is no text."""
        return self.image if self._text is None else self._text

    def is_type(self, type: str) -> bool:
        """Whether the message has this type, `text` or `image`."""
        return self.type == type

    def adopt(self, tokens: Iterable[int] | None, reasoning: str = '', num_reasoning: int = 0) -> None:
        """Take over the ids and reasoning that the model sampled for the current text."""
        self.tokens: tuple[int, ...] | None = None if tokens is None else tuple(int(t) for t in tokens)
        self.reasoning = clean_text(reasoning, 'reasoning')
        self.num_reasoning = num_reasoning

    def state(self) -> tuple:
        """Everything that affects how the message is rendered. Equal states give equal prompt entries."""
        return (
            self.role,
            self._text,
            self.reasoning,
            self.tokens,
            id(self._image) if self._image is not None else None,
            self.call_id,
            self.name,
            *(json.dumps(call.as_dict(), sort_keys=True, default=str) for call in self.calls),
        )

    def __repr__(self) -> str:
        content = repr(self._text) if self._text is not None else '<image>'
        return f'ChatMessage({self.role!r}, {content if len(content) <= 60 else content[:57] + "..."})'
