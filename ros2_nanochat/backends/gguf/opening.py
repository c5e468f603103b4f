"""Calls llama.cpp to load a model, set up its context and describe it."""

from __future__ import annotations

import ctypes
import importlib.util
import os
from collections.abc import Callable
from typing import Any

from ros2_nanochat.backends.gguf.kinds import UNKNOWN
from ros2_nanochat.backends.gguf.process import LogLines
from ros2_nanochat.backends.gguf.vocabulary import GGUFText
from ros2_nanochat.config import FlashAttention, ModelConfig
from ros2_nanochat.errors import BackendError
from ros2_nanochat.model_info import ModelInfo
from ros2_nanochat.processor import cpus_of, physical_cores

_KV_PADDING = 256  # llama.cpp rounds a stream's cells up to this
_DRAFT_ROWS = 24  # rows of logits that a sequence may ask for in one forward, plus the one to sample


def load_model(
    api,
    path: str,
    gpu_layers: int,
    progress: Callable[[float], None] | None,
    is_aborted: Callable[[], bool],
    as_it_lies: bool = False,
):
    """Load the weights; return the `llama_model`.

    Args:
        api: `llama_cpp.llama_cpp`.
        path: The GGUF file.
        gpu_layers: Layers on the GPU; -1 for all.
        progress: Called with the share that is loaded, 0 to 1.
        is_aborted: Whether to stop.
        as_it_lies: Use the weights as they are in the file. Repacking them for the CPU takes their memory
            twice.

    Raises:
        BackendError: It cannot be loaded, or `is_aborted` returned true.
    """
    log = LogLines(api)
    api.llama_backend_init()
    if gpu_layers and not api.llama_supports_gpu_offload():
        raise BackendError(
            f'gpu_layers={gpu_layers} needs a GPU build of llama-cpp-python, and this one has none: set it to'
            ' 0 for the CPU, or reinstall with  CMAKE_ARGS=-DGGML_CUDA=on pip install --no-binary'
            ' llama-cpp-python --force-reinstall llama-cpp-python'
        )

    @api.llama_progress_callback
    def report(share, _):
        if progress:
            progress(share)
        return not is_aborted()

    params = api.llama_model_default_params()
    params.n_gpu_layers = gpu_layers if gpu_layers >= 0 else 0x7FFFFFFF
    params.progress_callback = report
    if as_it_lies:
        params.use_extra_bufts = False
    with log:
        model = api.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        reason = log.reason()
        hint = f'; {UNKNOWN}' if 'unknown model architecture' in reason else ''
        raise BackendError(f'{path} cannot be loaded: {reason}{hint}')
    return model


def context_params(api, config: ModelConfig, length: int, max_sequences: int, batch: int):
    """Return the `llama_context_params` of a model.

    Args:
        api: `llama_cpp.llama_cpp`.
        config: The options of the model.
        length: Tokens of each sequence.
        max_sequences: Number of sequences.
        batch: Entries of the largest batch.
    """
    params = api.llama_context_default_params()
    params.n_ctx = -(-length // _KV_PADDING) * _KV_PADDING * max_sequences
    params.n_batch = params.n_ubatch = batch
    params.n_seq_max = max_sequences
    params.n_outputs_max = min(batch, max(64, max_sequences * (1 + _DRAFT_ROWS)))
    params.n_threads = params.n_threads_batch = config.threads or physical_cores(cpus_of(config.cpu_affinity))
    params.kv_unified = False
    params.flash_attn_type = (
        api.LLAMA_FLASH_ATTN_TYPE_DISABLED
        if config.flash_attention is FlashAttention.OFF
        else api.LLAMA_FLASH_ATTN_TYPE_AUTO
    )
    params.swa_full = True  # with a window that forgets, an edited conversation could not be trimmed
    params.no_perf = True
    return params


def describe(
    api,
    model,
    path: str,
    metadata: dict[str, Any],
    text: GGUFText,
    context_length: int,
    kv_bytes_per_token: int,
) -> ModelInfo:
    """Return the facts about a loaded model.

    Args:
        api: `llama_cpp.llama_cpp`.
        model: Its `llama_model`.
        path: The GGUF file.
        metadata: See `header.read_metadata`.
        text: Its vocabulary.
        context_length: Tokens that one sequence may hold.
        kv_bytes_per_token: Memory of the KV cache for each token.
    """
    buffer = ctypes.create_string_buffer(128)
    api.llama_model_desc(model, buffer, len(buffer))
    return ModelInfo(
        name=metadata.get('general.name') or os.path.splitext(os.path.basename(path))[0],
        api='gguf',
        architecture=metadata.get('general.architecture', 'unknown'),
        path=path,
        context_length=context_length,
        train_context_length=api.llama_model_n_ctx_train(model),
        vocab_size=text.size,
        embedding_size=api.llama_model_n_embd(model),
        eos_token_ids=text.eos_token_ids,
        bos_token_id=text.bos_token_id,
        add_bos=text.add_bos,
        named_tokens=text.named_tokens,
        special_tokens=tuple(text.special_tokens),
        chat_template=text.chat_template,
        quantization=buffer.value.decode('utf-8', 'replace'),
        weights_bytes=api.llama_model_size(model),
        kv_bytes_per_token=kv_bytes_per_token,
        has_embed=importlib.util.find_spec('gguf') is not None,
        takes_embeddings=True,
        takes_deepstack=getattr(api, 'llama_model_n_embd_inp', api.llama_model_n_embd)(model)
        > api.llama_model_n_embd(model),
        sliding_window=api.llama_model_n_swa(model) or None,
    )
