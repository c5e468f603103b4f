"""A message with the attributes that NanoLLM's has: where it stands in its history, and its tokens there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ros2_nanochat.chat import message as core
from ros2_nanochat.prompt import EmbeddingSpan, head, tail

_IGNORED = ('use_cache', 'cached', 'history', 'template')


class ChatMessage(core.ChatMessage):
    """One message.

    Args:
        role: `system`, `user`, `bot` or `tool` (`assistant` and `tool_response` are accepted).
        text: The text.
        image: The image: a path, an address, a PIL image, an array or a tensor.
        msg: Text or an image, found by what it is.
        tokens: Ids of the text, as the model sampled them.
        options: `use_cache`, `cached` and `history` are accepted and ignored: what was read is found by
            comparing the conversation with the KV cache.

    Raises:
        ValueError: For another kind of content, or for embeddings.
    """

    history: Any = None

    def __init__(
        self,
        role: str = 'user',
        text: str | None = None,
        image: Any = None,
        *,
        msg: Any = None,
        tokens: Any = None,
        reasoning: str = '',
        num_reasoning: int = 0,
        **options,
    ):
        if options.pop('embedding', None) is not None:
            raise ValueError(
                'embedding= is not taken by a message: pass text= or image=, or embeddings to generate()'
            )
        unknown = [name for name in options if name not in _IGNORED]
        if unknown:
            raise ValueError(f'a message is text= or image=, not {", ".join(unknown)[:200]}=')
        super().__init__(
            role,
            msg,
            text=text,
            image=image,
            tokens=tokens,
            reasoning=reasoning,
            num_reasoning=num_reasoning,
        )

    @classmethod
    def of(cls, message: core.ChatMessage, history: Any) -> ChatMessage:
        """The message as one of this class in a history; the same object if it is one already."""
        if not isinstance(message, cls):
            other, message = message, cls.__new__(cls)
            vars(message).update({name: value for name, value in vars(other).items() if name != 'tokens'})
            message.tokens = other.tokens
        message.history = history
        return message

    # --- content ---

    @property
    def tokens(self) -> tuple[int, ...] | None:
        """Ids that the model sampled for this message, None if it sampled none."""
        return self._tokens

    @tokens.setter
    def tokens(self, tokens: Any) -> None:
        self._tokens = None if tokens is None else tuple(np.asarray(tokens, np.int64).reshape(-1).tolist())

    def adopt(self, tokens: Iterable[int] | None, reasoning: str = '', num_reasoning: int = 0) -> None:
        """Take over what the model sampled for the text that stands here. tokens: a list or an array."""
        super().adopt(
            None if tokens is None else np.asarray(tokens, np.int64).reshape(-1).tolist(),
            reasoning,
            num_reasoning,
        )

    @property
    def content(self) -> Any:
        """The text, or the image if there is no text. Setting it sets whichever it is."""
        return super().content

    @content.setter
    def content(self, content: Any) -> None:
        if core.is_image(content):
            self.image = content
        else:
            self.text = content

    # --- in the model ---

    def embed(self, model=None, **_) -> Any:
        """What stands for the image in prompts; model: that of the history if not given."""
        return super().embed(self._core(model))

    def is_embedded(self, model=None) -> bool:
        """Whether `embed` has been called since the image was set."""
        return super().is_embedded(self._core(model))

    def _core(self, model):
        if model is None:
            model = self._in_history().model
        return getattr(model, 'core', model)

    @property
    def embedding(self) -> np.ndarray | None:
        """[1, n, d] float32: the image's rows, or the embeddings of the text in its template; None for text
        if the model gives none.
        """
        history = self._in_history()
        if self.image is not None:
            rows = [part.rows for part in self.embed(history.model) if isinstance(part, EmbeddingSpan)]
            return np.concatenate(rows)[None]
        if not history.model.has_embed:
            return None
        start, end = history.span(self)
        return np.asarray(tail(head(history.whole, end), start))

    # --- in the history ---

    def _in_history(self):
        if self.history is None:
            raise ValueError('this message is in no history: append it first')
        return self.history

    @property
    def index(self) -> int | None:
        """Where it stands in its history, None if it does not."""
        messages = self.history.messages if self.history is not None else ()
        return next((n for n, message in enumerate(messages) if message is self), None)

    @property
    def prev(self) -> ChatMessage | None:
        """The message before it."""
        index = self.index
        return self.history.messages[index - 1] if index else None

    @property
    def next(self) -> ChatMessage | None:
        """The message after it."""
        index = self.index
        messages = self.history.messages if index is not None else ()
        return messages[index + 1] if index is not None and index + 1 < len(messages) else None

    @property
    def start_token(self) -> int:
        """At which token of the conversation it begins."""
        return self._in_history().span(self)[0]

    @property
    def num_tokens(self) -> int:
        """Tokens it takes in the conversation with its markup, of a question also what begins the reply."""
        start, end = self._in_history().span(self)
        return end - start

    @property
    def cached(self) -> bool:
        """Whether the KV cache of the history holds it."""
        return self._in_history().holds(self)
