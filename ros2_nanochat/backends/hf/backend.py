"""The backends `hf` and `awq`: any causal or image-text model of transformers, behind the engine's contract.

`loading` opens models, `runner` runs them, `checkpoint` reads files; this module connects them and keeps the
handles.
"""

from __future__ import annotations

import functools
import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ros2_nanochat.backends.base import Backend, Chunk, Detokenizer, VisionPart
from ros2_nanochat.backends.check import check_model
from ros2_nanochat.backends.hf.checkpoint import (
    Checkpoint,
    kv_bytes_per_token,
    open_checkpoint,
    read_gguf,
    sliding_window,
    train_context_length,
)
from ros2_nanochat.backends.hf.device_logits import DeviceLogits
from ros2_nanochat.backends.logits import HostLogits, Logits
from ros2_nanochat.backends.tokenizer import Tokenizer
from ros2_nanochat.backends.transformers_vision import TransformersVision
from ros2_nanochat.config import DEFAULT_CONTEXT, ModelConfig
from ros2_nanochat.errors import BackendError, ForwardError, require
from ros2_nanochat.memory import MemoryEstimate
from ros2_nanochat.model_info import ModelInfo
from ros2_nanochat.processor import threads_wait_briefly
from ros2_nanochat.prompt import Preceding


def _require_runtime() -> None:
    with threads_wait_briefly('torch'):
        for module in ('torch', 'transformers'):
            require(module, 'hf')


class HFBackend(Backend):
    """One model of transformers.

    Attributes:
        model: The whole `PreTrainedModel`, including its vision part.
        tokenizer: Its `Tokenizer`.
        runner: Runs the sequences; `runner.packed` says whether several share a forward.
        device: The torch device.
    """

    max_batch_tokens = 4096  # a picture of Qwen-VL must not be cut, and a camera's takes up to 2,700
    max_chunk_tokens = 512

    def __init__(self, path: str, config: ModelConfig):
        super().__init__(path, config)
        self.model: Any = None  # this and the next are set by `open`
        self.tokenizer: Any = None
        self.runner: Any = None
        self._threads: Any = None
        self._sequences: dict[int, Any] = {}
        self._handles = 0
        self._aborted = threading.Event()

    def open(self, progress: Callable[[float], None] | None = None) -> None:
        _require_runtime()
        from ros2_nanochat.backends.hf import loading as hf_load
        from ros2_nanochat.backends.hf import runner as hf_run
        from ros2_nanochat.backends.hf.model_class import model_class
        from ros2_nanochat.backends.hf.torch_threads import TorchThreads

        report = progress or (lambda share: None)
        self._aborted.clear()
        checkpoint = open_checkpoint(hf_load.read_choice(self.config.quantization).awq or self.path)
        if not checkpoint.gguf_file:
            model_class(checkpoint, self.config)  # what is no language model may lack a tokenizer, too
        self.device = hf_load.choose_device(self.config.device)
        self._threads = TorchThreads(self.config, self.device, self.cpus)
        self.tokenizer = Tokenizer.from_transformers(
            self._tokenizer_folder(checkpoint), checkpoint.gguf_file, self.config.trust_remote_code
        )
        report(0.05)
        self.model, held = hf_load.load(
            checkpoint, self.config, self.device, lambda share: report(0.05 + 0.9 * share), self._aborted
        )
        settings = self.model.config.get_text_config(decoder=True)
        trained = train_context_length(settings.to_dict()) or max(
            self.config.max_context_len or 0, DEFAULT_CONTEXT
        )
        context_length = min(self.config.max_context_len or DEFAULT_CONTEXT, trained)
        self.runner = hf_run.Runner(
            self.model, context_length, min(self.tokenizer.vocab_size, settings.vocab_size), self._aborted
        )
        if self.config.compile:
            self.runner.compile()
        self.info = self._describe(checkpoint, held, settings, context_length, trained)
        self.max_sequences = self.config.max_sequences
        self.kv_capacity = self.config.kv_tokens or self.max_sequences * context_length
        if self.info.bidirectional_prompt:  # an uncut prompt, next to what others decode
            self.max_batch_tokens = max(self.max_batch_tokens, context_length + self.max_sequences)
        check_model(self)
        report(1.0)

    def _tokenizer_folder(self, checkpoint: Checkpoint) -> str:
        """The folder with the tokenizer. A folder of weights named by `quantization` may have none; the
        model's is then used.
        """
        path = os.path.abspath(os.path.expanduser(self.path))
        has_one = any(
            os.path.isfile(os.path.join(path, name)) for name in ('tokenizer.json', 'tokenizer.model')
        )
        return path if has_one else checkpoint.folder

    def _describe(
        self, checkpoint: Checkpoint, held: str, settings, context_length: int, trained: int
    ) -> ModelInfo:
        path = os.path.abspath(os.path.expanduser(self.path))
        eos = set(self.tokenizer.eos_token_ids)
        if checkpoint.gguf_file and (ids := self.model.config.eos_token_id) is not None:
            eos.update(ids if isinstance(ids, list) else [ids])
        return ModelInfo(
            name=os.path.basename(path.rstrip('/')).removesuffix('.gguf'),
            api='awq' if checkpoint.quant_method == 'awq' else 'hf',
            architecture=self.model.config.model_type,
            path=path,
            context_length=context_length,
            train_context_length=trained,
            vocab_size=settings.vocab_size,
            embedding_size=self.runner.embed.weight.shape[-1],
            eos_token_ids=frozenset(eos),
            bos_token_id=self.tokenizer.bos_token_id,
            add_bos=self.tokenizer.add_bos,
            named_tokens=self.tokenizer.named,
            special_tokens=self.tokenizer.special_tokens,
            chat_template=self.tokenizer.chat_template,
            quantization=held,
            weights_bytes=sum(p.numel() * p.element_size() for p in self.model.parameters()),
            kv_bytes_per_token=kv_bytes_per_token(settings.to_dict(), self.model.dtype.itemsize),
            has_embed=self.runner.takes_embeddings,
            takes_embeddings=self.runner.takes_embeddings,
            takes_deepstack=self.runner.takes_embeddings and self.runner.takes_deepstack,
            bidirectional_prompt=self.runner.bidirectional_prompt,
            sliding_window=sliding_window(settings.to_dict()),
        )

    @classmethod
    def estimate(cls, path: str, config: ModelConfig) -> MemoryEstimate:
        _require_runtime()
        import torch

        from ros2_nanochat.backends.hf import loading as hf_load

        choice = hf_load.read_choice(config.quantization)
        checkpoint = open_checkpoint(choice.awq or path)
        if checkpoint.gguf_file:
            read_gguf(checkpoint)
        element = hf_load.choose_dtype(checkpoint, choice).itemsize
        device = hf_load.choose_device(config.device)
        settings = checkpoint.text_config
        available = torch.cuda.mem_get_info(device)[0] if device.type == 'cuda' else None
        overhead = 200_000_000 + 4 * 512 * int(
            settings.get('vocab_size') or 32000
        )  # activations of a chunk of 512, and its logits
        return MemoryEstimate(
            hf_load.weights_bytes(checkpoint, choice, device),
            kv_bytes_per_token(settings, element),
            overhead,
            available,
            train_context_length(settings) or max(config.max_context_len or 0, DEFAULT_CONTEXT),
        )

    def tokenize(self, text: str, special: bool = False, preceding: Preceding = Preceding.START) -> list[int]:
        return self.tokenizer.tokenize(text, special, preceding)

    def detokenizer(self, preceding: Preceding = Preceding.START) -> Detokenizer:
        return self.tokenizer.detokenizer(preceding)

    def embed_tokens(self, ids: Sequence[int]) -> np.ndarray:
        if not self.info.has_embed:
            return super().embed_tokens(ids)
        import torch

        with torch.inference_mode():
            return (
                self.runner.embed(torch.as_tensor(np.asarray(ids, dtype=np.int64)).to(self.device))
                .float()
                .cpu()
                .numpy()
            )

    @functools.cached_property
    def vision_part(self) -> VisionPart | None:
        return TransformersVision.of(self.model)

    def new_sequence(self) -> int:
        return self._keep(self.runner.new())

    def fork(self, seq: int, n: int) -> tuple[int, int]:
        copy = self._sequences[seq].copy(n)
        return self._keep(copy), copy.length

    def trim(self, seq: int, n: int) -> int:
        return self._sequences[seq].trim(n)

    def free(self, seq: int) -> None:
        self._sequences.pop(seq, None)

    def _keep(self, sequence) -> int:
        if len(self._sequences) >= self.max_sequences:
            raise BackendError(
                f'{len(self._sequences)} sequences are open, as many as max_sequences={self.max_sequences}'
                ' allows'
            )
        self._handles += 1
        self._sequences[self._handles] = sequence
        return self._handles

    def save(self, seq: int) -> bytes | None:
        """See `Backend.save`. Only packed sequences can be saved, not the caches of transformers."""
        return self._sequences[seq].to_bytes(self._fingerprint) if self.runner.packed else None

    def load(self, data: bytes) -> int | None:
        if not self.runner.packed:
            return None
        from ros2_nanochat.backends.hf.sequences import PackedSequence

        sequence = PackedSequence.from_bytes(data, self._fingerprint, self.runner.context_length, self.device)
        if sequence is None or sequence.length > self.kv_capacity - self.kv_used:
            return None
        return self._keep(sequence)

    @functools.cached_property
    def _fingerprint(self) -> bytes:
        """Identifies the KV of this model, with its weights held in this form."""
        facts = [
            self.info.path,
            self.info.weights_bytes,
            str(self.runner.dtype),
            self.model.config.to_json_string(),
        ]
        return hashlib.blake2b('\0'.join(map(str, facts)).encode(), digest_size=16).digest()

    def forward(self, chunks: Sequence[Chunk]) -> Logits:
        self._aborted.clear()
        room = self.kv_capacity - self.kv_used
        if sum(map(len, chunks)) > room:
            raise ForwardError(
                f'{sum(map(len, chunks))} tokens do not fit into the KV cache, which has room for {room} of'
                f' {self.kv_capacity}',
                [0] * len(chunks),
            )
        parts = [(self._sequences[chunk.seq], chunk) for chunk in chunks]
        rows = self._threads.run(sum(map(len, chunks)), lambda: self.runner.forward(parts))
        return HostLogits(rows.float().numpy()) if rows.device.type == 'cpu' else DeviceLogits(rows)

    def stats(self) -> dict[str, int | str]:
        return self._threads.stats() if self._threads is not None else {}

    @property
    def kv_used(self) -> int:
        return sum(sequence.length for sequence in self._sequences.values())

    def abort(self) -> None:
        self._aborted.set()

    def close(self) -> None:
        self._sequences.clear()
        self.model = self.runner = None
        if getattr(self, 'device', None) is not None and self.device.type == 'cuda':
            import torch

            torch.cuda.empty_cache()
