"""The contract between the engine and a model runtime. A backend computes logits and keeps KV caches by
sequence. Sampling, stopping, streaming, templates and vision live elsewhere, once for all backends.

Shapes: n tokens, d embedding width, v vocabulary, k rows of logits.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ros2_nanochat.backends.image_embedder import ImageEmbedder
from ros2_nanochat.backends.logits import Logits
from ros2_nanochat.config import ModelConfig
from ros2_nanochat.errors import BackendError
from ros2_nanochat.memory import MemoryEstimate
from ros2_nanochat.model_info import ModelInfo
from ros2_nanochat.processor import cpus_of
from ros2_nanochat.prompt import Preceding


@dataclass(eq=False, slots=True)
class Chunk:
    """Entries to append to one sequence: ids or embeddings, not both.

    Attributes:
        seq: Handle of the sequence.
        ids: [n] integers.
        embeddings: [n, d] float32.
        num_logits: How many of the last positions need logits (0 within a prefill, 1 to sample, several to
            verify).
        positions, advance, bidirectional, deepstack: See `prompt.EmbeddingSpan`.
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
    """Turns ids into text as they arrive. Its output is final: no partial characters, and spaces as the
    tokenizer defines them.
    """

    @abstractmethod
    def add(self, token_id: int) -> str:
        """Take one id; return the text that became final, maybe none. Special tokens give no text."""

    @abstractmethod
    def flush(self) -> str:
        """End the text; return what was held back, with U+FFFD for bytes that form no character."""

    def flush_whole(self) -> tuple[str, int | None]:
        """End the text, without a last character that is not whole.

        Returns:
            The whole characters that were held back, and how many of the last ids spell only part of a
            character; None if that is not known: then it is all ids since `pending` became true.
        """
        pending = self.pending
        text = self.flush()
        return (text.rstrip('\ufffd'), None) if pending else (text, 0)

    def whole_characters(self) -> str:
        """Return what was held back although it is whole characters, as more of them may have followed; the
        text goes on.
        """
        return ''

    @abstractmethod
    def token_bytes(self, token_id: int) -> bytes:
        """Return the UTF-8 bytes of an id inside a text, maybe part of a character; empty for a special
        token. Does not affect `add`.

        Raises:
            BackendError: The tokens of this vocabulary have no bytes of their own.
        """

    @property
    def pending(self) -> bool:
        """Whether the ids so far hold part of a character that has not been given."""
        return False


@dataclass(frozen=True, eq=False)
class ImageFeatures:
    """What a vision part computes from pictures, as torch tensors.

    Attributes:
        rows: For each picture, its embeddings [k, d].
        deepstack: For each of the first layers, what to add to the rows [k, d] of all pictures; often empty.
    """

    rows: list[Any]
    deepstack: list[Any]


class VisionPart(ABC):
    """The vision part of a model that the backend runs, for `vision/`, which turns pictures into prompts.

    Attributes:
        config: The configuration of the whole model, as transformers defines it.
        device: The torch device on which it runs.
    """

    config: Any
    device: Any

    @abstractmethod
    def features(self, inputs: Mapping[str, Any]) -> ImageFeatures:
        """Encode the output of a transformers image processor; inputs that are not for pictures are
        ignored.
        """

    @abstractmethod
    def positions(self, inputs: Mapping[str, Any], row_id: int) -> np.ndarray | None:
        """Return the positions [axes, n + 1] of a processor's `input_ids` and of the next entry; None if the
        model counts on one axis.

        Args:
            inputs: The processor's output for one picture.
            row_id: The id that represents each row of a picture.
        """


class Backend(ABC):
    """One model. `tokenize`, `detokenizer`, `embed_tokens`, `image_embedder` and `abort` are thread-safe.
    Call all else from one thread at a time; once the engine runs, from its thread.

    Args:
        path: A local file or folder.
        config: `max_context_len`, `max_sequences` and `kv_tokens` are set, and the memory was checked.
            Creating a backend is cheap; `open` loads the model.
    """

    def __init__(self, path: str, config: ModelConfig):
        self.path = path
        self.config = config
        self.cpus = cpus_of(config.cpu_affinity)

    @abstractmethod
    def open(self, progress: Callable[[float], None] | None = None) -> None:
        """Load the model; then `info` and the limits below are known.

        Args:
            progress: Called with the share that is loaded, 0 to 1.

        Raises:
            BackendError: The model cannot be run.
            LoadAborted: `abort()` was called.
        """

    cpus: frozenset[int] | None
    """CPUs that the model's threads may use; None for all of the process."""
    info: ModelInfo
    max_sequences: int
    """Maximum number of sequences."""
    kv_capacity: int
    """Tokens of KV over all sequences."""
    max_batch_tokens: int = 512
    """Maximum number of entries in one forward, over all chunks."""
    trims_exactly: bool = True
    """Whether `trim` keeps exactly as many entries as asked. If not, a wrong guess costs a whole prompt, so
    the engine makes none.
    """
    max_chunk_tokens: int | None = None
    """Entries that one chunk should not exceed (an uncuttable span may); None for the forward's own limit."""

    @classmethod
    def prepare(cls, path: str, config: ModelConfig, stop: threading.Event | None = None) -> str:
        """Make what the model still needs to run, for example compile it, and return the path to open. Called
        first; may take long, and ends with a BackendError soon after `stop` is set.
        """
        return path

    @classmethod
    @abstractmethod
    def estimate(cls, path: str, config: ModelConfig) -> MemoryEstimate:
        """Estimate the memory of a model from its files, without loading it."""

    @abstractmethod
    def tokenize(self, text: str, special: bool = False, preceding: Preceding = Preceding.START) -> list[int]:
        """Turn text into ids, without begin-of-text.

        Args:
            text: The text.
            special: Whether to find special tokens in it (markup); else they are plain characters (content).
            preceding: What comes before the text.
        """

    @abstractmethod
    def detokenizer(self, preceding: Preceding = Preceding.START) -> Detokenizer:
        """Make a detokenizer for one reply.

        Args:
            preceding: What comes before the reply. After text, the space before the first word, which some
                decoders strip, is kept.
        """

    def token_text(self, token_id: int) -> str:
        """Return the text of one id; special tokens as they are written."""
        for token in self.info.special_tokens:
            if token.id == token_id:
                return token.text
        detokenizer = self.detokenizer()
        return detokenizer.add(token_id) + detokenizer.flush()

    def embed_tokens(self, ids: Sequence[int]) -> np.ndarray:
        """Return the embeddings [n, d] float32 of ids, as `forward` takes them. Requires `info.has_embed`."""
        raise BackendError(f'{self.info.api} does not give the embeddings of tokens; pass ids')

    @property
    def image_embedder(self) -> ImageEmbedder | None:
        """What embeds pictures for the opened model, if the backend does that itself."""
        return None

    @property
    def vision_part(self) -> VisionPart | None:
        """The vision part of the opened model; None if it has none or the backend embeds images itself."""
        return None

    @abstractmethod
    def new_sequence(self) -> int:
        """Create an empty sequence and return its handle. The engine never has more than `max_sequences`."""

    @abstractmethod
    def fork(self, seq: int, n: int) -> tuple[int, int]:
        """Create a sequence with the first n entries of `seq`; return its handle and how many it really
        holds.
        """

    @abstractmethod
    def trim(self, seq: int, n: int) -> int:
        """Keep the first n entries of a sequence; return how many it really holds (fewer with a sliding
        window or a recurrent state).
        """

    @abstractmethod
    def free(self, seq: int) -> None:
        """End a sequence and free its KV."""

    def save(self, seq: int) -> bytes | None:
        """Return the KV of a sequence as bytes for `load`, in any process with the same model; None if not
        supported.
        """
        return None

    def load(self, data: bytes) -> int | None:
        """Create a sequence from the bytes of `save`; None if they do not fit this model."""
        return None

    @abstractmethod
    def forward(self, chunks: Sequence[Chunk]) -> Logits:
        """Append each chunk to its sequence (each sequence at most once per call).

        Returns:
            Logits [k, v] of the last `num_logits` positions of each chunk, in order, valid until the next
            call.

        Raises:
            ForwardError: It failed; the error says what was committed.
        """

    @property
    @abstractmethod
    def kv_used(self) -> int:
        """Tokens of KV in use (shared entries count once if they are stored once)."""

    def stats(self) -> dict[str, int | str]:
        """Return what the backend reports about how it runs, for `NanoLLM.stats`. Thread-safe."""
        return {}

    def abort(self) -> None:  # noqa: B027 (a backend whose forward is short needs none)
        """End a running load or forward as soon as possible; it raises `LoadAborted`. Thread-safe."""

    @abstractmethod
    def close(self) -> None:
        """Free all memory. Can be called twice."""
