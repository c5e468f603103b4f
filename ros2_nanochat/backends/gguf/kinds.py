"""Recognizes GGUF files that are not causal language models, and figures that would make llama.cpp end the
process. Each error is one line that says what the file is and what to do.
"""

from __future__ import annotations

import math
from typing import Any

from ros2_nanochat.backends.gguf.header import Head, parts_of
from ros2_nanochat.errors import BackendError, printable, shown

_TAKE = 'take a GGUF file of a causal language model (Llama, Qwen, Gemma, Mistral, SmolLM, ...)'
_BY_TYPE = {
    'adapter': 'a LoRA adapter, which changes another model: merge it into its model',
    'mmproj': 'the vision part of a model: name the file of the language model next to it',
    'imatrix': 'an importance matrix for quantizing: name the file of the model',
    'vocab': f'a vocabulary without a model: {_TAKE}',
}
_BY_ARCHITECTURE = {
    'clip': _BY_TYPE['mmproj'],
    'imatrix': _BY_TYPE['imatrix'],
    'controlvector': f'a control vector, which changes another model: {_TAKE}',
}
UNKNOWN = (
    'if it is a language model, a newer llama.cpp may run it (pip install -U llama-cpp-python); if it makes'
    f' or reads pictures or sound, {_TAKE}'
)
"""What to do about an architecture that llama.cpp does not have."""
_RANK = 4  # LLAMA_POOLING_TYPE_RANK
_MOST = {'block_count': 512, 'expert_count': 1 << 14, 'expert_used_count': 1 << 14}
"""Upper limits that no real model exceeds; llama.cpp's tables end at 512 layers."""
_AT_LEAST_ONE = ('block_count', 'embedding_length', 'context_length')


def check_metadata(path: str, metadata: dict[str, Any]) -> None:
    """Check a file's metadata.

    Args:
        path: The file.
        metadata: See `header.read_metadata`.

    Raises:
        BackendError: It is not a causal language model, or its figures make no sense.
    """
    kind = str(metadata.get('general.type', 'model'))
    architecture = str(metadata.get('general.architecture', ''))
    if 'adapter.type' in metadata:
        kind = 'adapter'
    if reason := _BY_TYPE.get(kind) or _BY_ARCHITECTURE.get(architecture):
        raise BackendError(f'{path} is {reason}')
    if kind not in ('model', ''):
        raise BackendError(f'{path} says that it is no model but of the type {shown(kind, 40)}: {_TAKE}')
    pooling = metadata.get(f'{architecture}.pooling_type', 0)
    if pooling == _RANK or f'{architecture}.classifier.output_labels' in metadata:
        raise BackendError(f'{path} ({printable(architecture)}) is a reranker or classifier: {_TAKE}')
    if pooling or metadata.get(f'{architecture}.attention.causal') is False:
        what = 'an embedding model' if pooling else 'an encoder'
        raise BackendError(f'{path} ({printable(architecture)}) is {what}, which writes no text: {_TAKE}')
    if metadata.get('tokenizer.ggml.model') in ('none', 'no_vocab'):
        raise BackendError(f'{path} has no vocabulary: {_TAKE}')
    for key, value in metadata.items():
        name = key.removeprefix(f'{architecture}.')
        if name != key and (fault := _fault(name, value)):
            raise BackendError(
                f'{path} is damaged: {printable(key)} is {printable(value, 60)}, {fault}; download it again'
            )


def check_tensors(path: str, head: Head) -> None:
    """Check that a file holds weights, or is named as the first part of a split model.

    Raises:
        BackendError: It holds none, or the other parts cannot be found by its name.
    """
    count = head.metadata.get('split.count', 1)
    is_split = isinstance(count, int) and count > 1
    if is_split and len(parts_of(path)) != count:
        raise BackendError(
            f'{path} is one part of {count}: name the first part NAME-00001-of-{count:05d}.gguf and keep the'
            ' others in the same folder'
        )
    if not head.tensors and not is_split:
        raise BackendError(f'{path} is {_BY_TYPE["vocab"]}')


def _fault(name: str, value: Any) -> str | None:
    """What is wrong with a figure of the architecture; None if nothing is."""
    numbers = [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, (int, float))]
    if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
        return 'which is no number'
    if name.endswith('epsilon') and min(numbers, default=0) < 0:
        return 'and cannot be negative'
    if name == 'rope.freq_base' and min(numbers, default=1) <= 0:
        return 'and has to be more than 0'
    if name in _AT_LEAST_ONE and max(numbers, default=1) < 1:
        return 'and has to be at least 1'
    if max(numbers, default=0) > _MOST.get(name, math.inf):
        return f'and no model has more than {_MOST[name]}'
    return None


def check_loaded(api, model, path: str, architecture: str) -> None:
    """Check a loaded model.

    Args:
        api: `llama_cpp.llama_cpp`.
        model: Its `llama_model`.
        path: The file, for messages.
        architecture: `general.architecture`, for messages.

    Raises:
        BackendError: llama.cpp reports that it is not a causal language model.
    """
    what = None
    if api.llama_model_has_encoder(model):
        what = 'an encoder-decoder (T5 and its kin)' if api.llama_model_has_decoder(model) else 'an encoder'
    elif not api.llama_model_has_decoder(model):
        what = 'a model without a decoder'
    elif hasattr(api, 'llama_model_is_diffusion') and api.llama_model_is_diffusion(model):
        what = 'a diffusion model, which writes no text from left to right'
    elif api.llama_vocab_type(api.llama_model_get_vocab(model)) == api.LLAMA_VOCAB_TYPE_NONE:
        what = 'a model without a vocabulary'
    if what:
        raise BackendError(f'{path} ({architecture}) is {what}: {_TAKE}')


def no_memory_of_text(path: str, architecture: str) -> BackendError:
    """Return the error for a model that has neither a KV cache nor a recurrent state in llama.cpp."""
    return BackendError(
        f'{path} ({architecture}) is an encoder, which writes no text (llama.cpp keeps nothing from one token'
        f' to the next): {_TAKE}'
    )
