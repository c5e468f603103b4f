"""What a conversation needs from a model, a reply and a KV cache.

`NanoLLM`, `StreamingResponse` and `KVCache` satisfy these protocols; so does anything with the same members.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ros2_nanochat.answer.written_call import WrittenCall
from ros2_nanochat.model_info import ModelInfo
from ros2_nanochat.prompt import Preceding


class OpenedImage(Protocol):
    """A PIL image that `NanoLLM.open_image` returned.

    Attributes:
        opened_digest: Digest of its pixels.
    """

    opened_digest: bytes

    def save(self, file: Any, form: str, /, **options: Any) -> None: ...


class ImageParts(Protocol):
    """What represents one picture in a prompt: spans of embeddings, and the markup around them as text or
    as a tuple of ids.

    Attributes:
        seconds: Time spent on encoding, 0.0 if the picture was cached.
    """

    seconds: float

    def __iter__(self) -> Iterator[Any]: ...


class ImageEncoder(Protocol):
    """The vision encoder of a model.

    Attributes:
        image_token: The text that chat templates of the model write for a picture, None if unknown.
        image_markup: Markup before and after a picture that its parts contain.
    """

    image_token: str | None
    image_markup: tuple[str, str]


class ChatModel(Protocol):
    """A model that can hold conversations; `nano_llm.NanoLLM` documents the members."""

    info: ModelInfo

    @property
    def has_embed(self) -> bool: ...

    @property
    def has_vision(self) -> bool: ...

    @property
    def vision(self) -> ImageEncoder | None: ...

    def tokenize(self, text: str, special: bool = ..., preceding: Preceding = ...) -> list[int]: ...

    def detokenize(self, ids: Sequence[int]) -> str: ...

    def embed_tokens(self, ids: Sequence[int]) -> np.ndarray: ...

    def open_image(self, image: Any) -> OpenedImage: ...

    def embed_image(self, image: Any, stopped: Callable[[], bool] | None = ...) -> ImageParts: ...


class SampledReply(Protocol):
    """The reply that the model last sampled into a KV cache; see `engine.kv_cache.Reply`."""

    @property
    def text(self) -> str: ...

    @property
    def reasoning(self) -> str: ...

    @property
    def tokens(self) -> tuple[int, ...]: ...

    @property
    def num_reasoning(self) -> int: ...

    @property
    def calls(self) -> Sequence[WrittenCall]: ...


class ConversationCache(Protocol):
    """What the model has read of one conversation; see `engine.kv_cache.KVCache`."""

    @property
    def entries(self) -> np.ndarray: ...

    @property
    def reply(self) -> SampledReply | None: ...


@runtime_checkable
class ModelReply(Protocol):
    """A reply that can be appended to a history; see `engine.stream.StreamingResponse`."""

    @property
    def text(self) -> str: ...

    @property
    def reasoning(self) -> str | None: ...

    @property
    def kv_cache(self) -> Any: ...
