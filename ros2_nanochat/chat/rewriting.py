"""Makes the prompt of a conversation for another model than its own, for example a local one that answers
while no server does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ros2_nanochat.chat.message import ChatMessage, PixelsGone
from ros2_nanochat.chat.model import ChatModel
from ros2_nanochat.prompt import Prompt

_PICTURE = '(a picture)'


def rewritten(
    messages: Sequence[ChatMessage], make_history: Callable[..., Any], model: ChatModel
) -> tuple[Prompt, list[int | str]]:
    """Return the prompt of a conversation for another model, and what ends a reply there.

    Pictures that the model cannot see, or that are no longer held, become words.

    Args:
        messages: The conversation.
        make_history: Makes an empty history for a model.
        model: The other model.
    """
    other = make_history(model, system_prompt='')
    for message in messages:
        image = message.image if message.picture is None else message.picture
        if image is not None and model.has_vision and not isinstance(image, PixelsGone):
            other.append(message.role, text=message.text, image=image)
        else:
            other.append(message.role, text=_PICTURE if message.text is None else message.text)
    return other.embed_chat()[0], list(other.template.stop)
