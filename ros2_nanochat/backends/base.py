"""The contract between the engine and whatever runs a model. A backend computes logits and keeps KV caches by
sequence; sampling, stopping, streaming, templates and vision stand outside, once.

Shapes: n tokens, d embedding width, v vocabulary, k rows of logits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ros2_nanochat.backends.logits import Logits
from ros2_nanochat.config import ModelConfig
from ros2_nanochat.errors import BackendError
from ros2_nanochat.memory import MemoryEstimate
from ros2_nanochat.model_info import ModelInfo
from ros2_nanochat.prompt import Preceding


@dataclass(eq=False)
class Chunk:
    """Entries to append to one sequence: ids or embeddings, not both.

    seq: handle of the sequence. ids: [n] integers. embeddings: [n, d] float32.
    num_logits: how many rows of logits are wanted, of the last positions (0 amid a prefill, 1 to sample,
        several to verify).
    positions, advance, bidirectional, deepstack: see `prompt.EmbeddingSpan`.
    """

    seq: int
    ids: np.ndarray | None = None
    embeddings: np.ndarray | None = None
    num_logits: int = 0
    positions: np.ndarray | None = None
    advance: int | None = None
    bidirectional: bool = False
    deepstack: np.ndarray | None = None

    def __len__(self) -> int:
        if self.embeddings is not None:
            return len(self.embeddings)
        return 0 if self.ids is None else len(self.ids)


class Detokenizer(ABC):
    """Turns ids into text as they come. What it gives is certain: no half characters, spaces as the tokenizer
    means them.
    """

    @abstractmethod
    def add(self, token_id: int) -> str:
        """Take one id; return the text that has become certain, maybe none. Special tokens give no text."""

    @abstractmethod
    def flush(self) -> str:
        """End; return what was held back, with U+FFFD for what never became a character."""

    @abstractmethod
    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of UTF-8 that an id stands for inside a text, maybe a part of a character; empty for a
        special token. Does not change what `add` gives.

        Raises:
            BackendError: The tokens of this vocabulary have no bytes of their own.
        """

    @property
    def pending(self) -> bool:
        """Whether the ids so far hold a part of a character behind the text that was given."""
        return False


@dataclass(frozen=True, eq=False)
class ImageFeatures:
    """What a vision part makes of pictures, as tensors of torch.

    Attributes:
        rows: for each picture, its embeddings [k, d].
        deepstack: for each of the first layers, what it adds to the rows [k, d] of all pictures; often none.
    """

    rows: list[Any]
    deepstack: list[Any]


class VisionPart(ABC):
    """The vision part of a model that the backend runs, for `vision/`, which makes prompts of pictures.

    Attributes:
        config: the configuration of the whole model, as transformers defines it.
        device: torch's, on which it runs.
    """

    config: Any
    device: Any

    @abstractmethod
    def features(self, inputs: Mapping[str, Any]) -> ImageFeatures:
        """Encode what an image processor of transformers gave; inputs that are not for pictures are
        ignored.
        """

    @abstractmethod
    def positions(self, inputs: Mapping[str, Any], row_id: int) -> np.ndarray | None:
        """Positions [axes, n + 1] of the `input_ids` of a processor and of the entry that follows them, None
        if the model counts in one axis.

        Args:
            inputs: what the processor gave for one picture.
            row_id: the id that stands for each row of a picture.
        """


class Backend(ABC):
    """One model. `tokenize`, `detokenizer`, `embed_tokens` and `embed_image` may be called from any thread,
    `abort` too; all else from one thread at a time, which is the engine's once that runs.

    path: local, a file or folder. config: `max_context_len`, `max_sequences` and `kv_tokens` are filled in,
    the memory was checked. Making one is cheap; `open` loads it.
    """

    def __init__(self, path: str, config: ModelConfig):
        self.path = path
        self.config = config

    @abstractmethod
    def open(self, progress: Callable[[float], None] | None = None) -> None:
        """Load the model, then `info` and the limits below are known. progress: called with the share that is
        done, 0 to 1. A `BackendError` says what is wrong with it; an `abort()` meanwhile ends it with
        `LoadAborted`.
        """

    info: ModelInfo
    max_sequences: int
    """Sequences that may exist at once."""
    kv_capacity: int
    """Tokens of KV over all sequences."""
    max_batch_tokens: int = 512
    """Entries that one forward takes, over all chunks."""
    trims_exactly: bool = True
    """Whether `trim` keeps as many entries as it is asked to. If not, a wrong guess costs a whole prompt, and
    the engine guesses nothing.
    """
    max_chunk_tokens: int | None = None
    """Entries that one chunk should have at most (a span that comes whole may have more); None: as many as
    the forward takes.
    """

    @classmethod
    def prepare(cls, path: str, config: ModelConfig) -> str:
        """Make what the model needs to run that is not there yet, and return the path to open. Called before
        all else, and may take long.
        """
        return path

    @classmethod
    @abstractmethod
    def estimate(cls, path: str, config: ModelConfig) -> MemoryEstimate:
        """Tell the memory a model will take, from its files, without loading it."""

    @abstractmethod
    def tokenize(self, text: str, special: bool = False, preceding: Preceding = Preceding.START) -> list[int]:
        """Turn text into ids; no begin-of-text is added.

        special: find special tokens in the text (markup); otherwise they are plain characters (content).
        preceding: what stands before the text.
        """

    @abstractmethod
    def detokenizer(self, preceding: Preceding = Preceding.START) -> Detokenizer:
        """Make a detokenizer for one reply.

        Args:
            preceding: What stands before the reply. A space before the first word, which some vocabularies
                put there and their decoders strip, belongs to it if that is text.
        """

    def token_text(self, token_id: int) -> str:
        """The text of one id, special tokens shown as they are written."""
        for token in self.info.special_tokens:
            if token.id == token_id:
                return token.text
        detokenizer = self.detokenizer()
        return detokenizer.add(token_id) + detokenizer.flush()

    def embed_tokens(self, ids: Sequence[int]) -> np.ndarray:
        """Embeddings [n, d] float32 of ids, as `forward` would take them. Only where `info.has_embed`."""
        raise BackendError(f'{self.info.api} does not give the embeddings of tokens; pass ids')

    @property
    def embeds_images(self) -> bool:
        """Whether `embed_image` works."""
        return False

    def embed_image(self, pixels: np.ndarray) -> np.ndarray:
        """What stands in a prompt for a picture: rows [k, d] float32 of pixels [h, w, 3] uint8 (RGB). Any
        thread. Only where `embeds_images`.
        """
        raise BackendError(f'{self.info.api} does not embed pictures')

    @property
    def vision_part(self) -> VisionPart | None:
        """The vision part of the opened model, None if it has none or the backend embeds images itself."""
        return None

    @abstractmethod
    def new_sequence(self) -> int:
        """Make an empty sequence and return its handle. The engine never asks for more than
        `max_sequences`.
        """

    @abstractmethod
    def fork(self, seq: int, n: int) -> tuple[int, int]:
        """Make a sequence that holds the first n entries of `seq`; return its handle and how many it really
        holds.
        """

    @abstractmethod
    def trim(self, seq: int, n: int) -> int:
        """Keep the first n entries of a sequence; return how many it really holds now (a sliding window or a
        recurrent state may keep fewer).
        """

    @abstractmethod
    def free(self, seq: int) -> None:
        """End a sequence."""

    def save(self, seq: int) -> bytes | None:
        """The KV of a sequence as bytes that `load` takes in this process or another with the same model;
        None where that is not supported.
        """
        return None

    def load(self, data: bytes) -> int | None:
        """Make a sequence from what `save` gave; None where it does not fit this model."""
        return None

    @abstractmethod
    def forward(self, chunks: Sequence[Chunk]) -> Logits:
        """Append every chunk to its sequence (each sequence at most once a call).

        Returns:
            Logits [k, v] of the last `num_logits` positions of each chunk, in order, valid until the next
            call.

        Raises:
            ForwardError: It failed; says what was committed.
        """

    @property
    @abstractmethod
    def kv_used(self) -> int:
        """Tokens of KV in use (entries that several sequences share count once where they are stored
        once).
        """

    def stats(self) -> dict[str, int | str]:
        """What the backend tells about how it runs, for `NanoLLM.stats`. Any thread."""
        return {}

    def abort(self) -> None:  # noqa: B027 (a backend whose forward is short needs none)
        """End a load or a forward that is under way as soon as can be; it raises `LoadAborted`. Any
        thread.
        """

    @abstractmethod
    def close(self) -> None:
        """Give all memory back. May be called twice."""
