"""A message with the attributes of NanoLLM's: its position in the history, and its tokens there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ros2_nanochat.chat import message as core
from ros2_nanochat.prompt import EmbeddingSpan, head, tail

_OF_CALLS = ('calls', 'call_id', 'name')
_IGNORED = ('use_cache', 'cached', 'history', 'template')


class ChatMessage(core.ChatMessage):
    """One message.

    Args:
        role: `system`, `user`, `bot` or `tool` (`assistant` and `tool_response` are accepted).
        text: The text.
        image: The image: a path, a URL, a PIL image, an array or a tensor.
        msg: Text or an image; its type decides.
        tokens: Ids of the text that the model sampled.
        reasoning: What the model wrote between its thinking marks.
        num_reasoning: How many of the first `tokens` belong to the reasoning.
        **options: `calls`, `call_id` and `name`, as in `ros2_nanochat`. `use_cache`, `cached` and `history`
            are accepted and ignored: the conversation is compared with the KV cache instead.

    Raises:
        ValueError: The content is neither text nor an image.
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
        of_calls = {name: options.pop(name) for name in _OF_CALLS if name in options}
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
            **of_calls,
        )

    @classmethod
    def of(cls, message: core.ChatMessage, history: Any) -> ChatMessage:
        """Return a message as one of this class in a history; the same object if it is one already."""
        if not isinstance(message, cls):
            other, message = message, cls.__new__(cls)
            vars(message).update({name: value for name, value in vars(other).items() if name != 'tokens'})
            message.tokens = other.tokens
        message.history = history
        return message

    # --- content ---

    @property
    def tokens(self) -> tuple[int, ...] | None:
        """Ids that the model sampled for this message, None if there are none."""
        return self._tokens

    @tokens.setter
    def tokens(self, tokens: Any) -> None:
        self._tokens = None if tokens is None else tuple(np.asarray(tokens, np.int64).reshape(-1).tolist())

    def adopt(self, tokens: Iterable[int] | None, reasoning: str = '', num_reasoning: int = 0) -> None:
        """Take over the ids, a list or an array, and the reasoning that the model sampled for the current
        text.
        """
        super().adopt(
            None if tokens is None else np.asarray(tokens, np.int64).reshape(-1).tolist(),
            reasoning,
            num_reasoning,
        )

    @property
    def content(self) -> Any:
        """The text, or the image if there is no text. You can set either."""
        return super().content

    @content.setter
    def content(self, content: Any) -> None:
        if core.is_image(content):
            self.image = content
        else:
            self.text = content

    # --- in the model ---

    def embed(self, model=None, stopped=None, **_) -> Any:
        """Return what represents the image in prompts of a model, by default that of the history; of a text,
        its embedding.
        """
        if self.image is None:
            return self.embedding
        return super().embed(self._core(model), stopped)

    def is_embedded(self, model=None) -> bool:
        """Whether `embed` was called since the image was set."""
        return super().is_embedded(self._core(model))

    def _core(self, model):
        if model is None:
            model = self._in_history().model
        return getattr(model, 'core', model)

    @property
    def embedding(self) -> np.ndarray | None:
        """Embeddings [1, n, d] float32 of the image, or of the text in its template; None for text if the
        model provides none.
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
        """Its position in its history, None if it is not in one."""
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
        """The token of the conversation at which it begins."""
        return self._in_history().span(self)[0]

    @property
    def num_tokens(self) -> int:
        """Its tokens in the conversation, including markup; for a question, also the generation prompt."""
        start, end = self._in_history().span(self)
        return end - start

    @property
    def cached(self) -> bool:
        """Whether the KV cache of the history holds it."""
        return self._in_history().holds(self)
