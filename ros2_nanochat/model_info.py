"""Facts about an opened model. Knows nothing of how it is run."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from ros2_nanochat.errors import printable

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SpecialToken:
    """A token that only markup may produce. lstrip, rstrip: white space on that side in the text belongs to
    it.
    """

    id: int
    text: str
    lstrip: bool = False
    rstrip: bool = False


@dataclass(frozen=True)
class ModelInfo:
    """Facts about an opened model.

    name: as people call it. architecture: `model_type` of transformers or `general.architecture` of GGUF.
        path: where it lies.
    context_length: tokens one sequence may hold as opened. train_context_length: tokens it was trained for.
    embedding_size: d. eos_token_ids: any of them ends a reply.
    bos_token_id: begin-of-text of the vocabulary, None where it has none. add_bos: the tokenizer puts it
        before a text of its own accord.
    named_tokens: texts of the special tokens that Jinja templates refer to by name (`bos_token`, `eos_token`,
        `unk_token`, `pad_token`).
    special_tokens: every token of the vocabulary that tokenizing with `special=True` finds in a text.
    chat_template: Jinja source, or None. weights_bytes, kv_bytes_per_token: memory.
    has_embed: `embed_tokens` works. takes_embeddings: `forward` takes chunks of embeddings.
    takes_deepstack: such a chunk may say what is added to its rows in later layers.
    bidirectional_prompt: all that stands before a reply attends to one another both ways (a prefix language
    model), so it has to come as one such chunk.
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

    def __post_init__(self) -> None:
        """A model's own files are not trusted: names are made fit for a log, ids have to exist."""
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
