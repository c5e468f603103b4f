"""Facts about an opened model, independent of how it is run."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from ros2_nanochat.errors import printable

_log = logging.getLogger(__name__)
LONGEST_TEMPLATE = 1 << 20
"""Characters of a chat template that is read; usual ones have less than 50,000."""


@dataclass(frozen=True)
class SpecialToken:
    """A token that only markup may produce.

    Attributes:
        id: The token id.
        text: How it is written.
        lstrip: White space on its left in the text belongs to it.
        rstrip: White space on its right in the text belongs to it.
    """

    id: int
    text: str
    lstrip: bool = False
    rstrip: bool = False


@dataclass(frozen=True)
class ModelInfo:
    """Facts about an opened model.

    Attributes:
        name: The model's usual name.
        api: What runs it.
        architecture: `model_type` of transformers or `general.architecture` of GGUF.
        path: The local file or folder.
        context_length: Tokens that one sequence may hold, as opened.
        train_context_length: Tokens that the model was trained for.
        vocab_size: Number of token ids.
        embedding_size: Width d of an embedding.
        eos_token_ids: Tokens that end a reply.
        bos_token_id: The begin-of-text token; None if the vocabulary has none.
        add_bos: The tokenizer puts begin-of-text before a text by itself.
        named_tokens: Texts of the special tokens that Jinja templates use by name (`bos_token`, `eos_token`,
            `unk_token`, `pad_token`).
        special_tokens: All tokens that tokenizing with `special=True` finds in a text.
        chat_template: Jinja source, or None.
        quantization: How the weights are quantized; None if they are not, or it is unknown.
        weights_bytes: Memory of the weights.
        kv_bytes_per_token: Memory of the KV cache for each token.
        has_embed: `embed_tokens` works.
        takes_embeddings: `forward` takes chunks of embeddings.
        takes_deepstack: Such a chunk may also hold what later layers add to its rows.
        bidirectional_prompt: The whole prompt attends to itself in both directions (a prefix language model),
            so it must come as one chunk of embeddings.
        sliding_window: Entries that the layers with a window of their own attend to; None if there are none.
    """

    name: str
    api: str
    architecture: str
    path: str
    context_length: int
    train_context_length: int
    vocab_size: int
    embedding_size: int
    eos_token_ids: frozenset[int]
    bos_token_id: int | None = None
    add_bos: bool = False
    named_tokens: Mapping[str, str] = field(default_factory=dict, repr=False)
    special_tokens: tuple[SpecialToken, ...] = ()
    chat_template: str | None = field(default=None, repr=False)
    quantization: str | None = None
    weights_bytes: int = 0
    kv_bytes_per_token: int = 0
    has_embed: bool = False
    takes_embeddings: bool = False
    takes_deepstack: bool = False
    bidirectional_prompt: bool = False
    sliding_window: int | None = None

    def __post_init__(self) -> None:
        """A model's own files are not trusted: names are made safe for logs, and ids must exist."""
        for name in ('name', 'architecture', 'quantization'):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, printable(value))
        ids = frozenset(i for i in self.eos_token_ids if 0 <= i < self.vocab_size)
        if ids != self.eos_token_ids:
            _log.warning(
                '%s: its end tokens %s are ignored: the vocabulary ends at %d',
                self.name,
                sorted(self.eos_token_ids - ids),
                self.vocab_size - 1,
            )
            object.__setattr__(self, 'eos_token_ids', ids)
