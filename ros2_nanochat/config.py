"""What a model is opened with and how a reply is generated: two frozen dataclasses, checked once, here.

Knows nothing of backends, templates or ROS. A wrong value is a `ValueError` that names the option, the value
and what is allowed.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import numbers
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

APIS = ('gguf', 'mlc', 'hf', 'awq', 'fake')
"""Values of `ModelConfig.api`; None infers it from what the model path holds."""

DEFAULT_CONTEXT = 4096
"""Context in tokens where none is asked for (less where the model has less): what fits beside a robot's other
programs.
"""

MAX_THREADS = 512
"""Threads that llama.cpp can use at most (`GGML_MAX_N_THREADS`); it ends the process over more."""

_STOP_TOKENS = 'token ids or strings that are not empty'
_CALLABLES = 'callables'


def _check(config, name: str, valid: bool, allowed: str) -> None:
    if not valid:
        value = ' '.join(repr(getattr(config, name)).split())
        raise ValueError(
            f'{name}={value if len(value) <= 200 else value[:200] + "..."} is not valid: {allowed}'
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and value >= least


def _to_native(config) -> None:
    """Make plain numbers, switches and strings of NumPy's numbers and of paths, which users compute their
    options with.
    """
    for field_ in dataclasses.fields(config):
        value = getattr(config, field_.name)
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        elif hasattr(value, 'dtype') and getattr(value, 'ndim', None) == 0:
            value = value.item()
        object.__setattr__(config, field_.name, value)


def _check_types(config, switches: Sequence[str] = (), texts: Sequence[str] = ()) -> None:
    for name in switches:
        _check(config, name, isinstance(getattr(config, name), bool), 'true or false')
    for name in texts:
        _check(
            config,
            name,
            getattr(config, name) is None or isinstance(getattr(config, name), str),
            'text, or none',
        )


def _as_tuple(config, name: str, allowed: str) -> tuple:
    """An option that may be one thing, none, or several in a list, an array of NumPy or the like."""
    value = getattr(config, name)
    if value is None:
        return ()
    if isinstance(value, (str, numbers.Integral)) or callable(value):
        return (value,)
    _check(
        config, name, isinstance(value, Iterable) and not isinstance(value, (bytes, bytearray, dict)), allowed
    )
    return tuple(value.reshape(-1).tolist() if hasattr(value, 'reshape') else value)


def names(config_class: type) -> list[str]:
    """Names of the options of one of the dataclasses here."""
    return [f.name for f in dataclasses.fields(config_class)]


def reject_unknown(options: dict, allowed: Sequence[str], where: str) -> None:
    """Raise a ValueError that names the options of `where` which do not exist, and the nearest ones that
    do.
    """
    unknown = [name for name in options if name not in allowed]
    if unknown:
        near = difflib.get_close_matches(unknown[0], allowed, n=1)
        hint = f' (did you mean {near[0]!r}?)' if near else ''
        raise ValueError(
            f'{where} has no option {", ".join(map(repr, unknown))}{hint}. Options:'
            f' {", ".join(sorted(allowed))}'
        )


@dataclass(frozen=True)
class ModelConfig:
    """Which model to open, and the room it may take.

    model: a path, `owner/name` of a hub repository (`owner/name:file.gguf` picks one file), or None: the
        embedded default.
    api: one of `APIS`, or None to infer it from what the path holds.
    quantization: a method of the backend (MLC: `q4f16_1`; hf: a dtype or quantizer), or a path to quantized
        weights.
    api_token: token of a hub account; None takes it from `$HUGGINGFACE_TOKEN` or `$HF_TOKEN`. Never shown.
    max_context_len: tokens one conversation may hold; None takes the model's own length, at most
        `DEFAULT_CONTEXT`.
    max_sequences: conversations whose KV cache is kept at once; others are prefilled again on use.
    kv_tokens: tokens of KV cache over all conversations; None gives `max_sequences * max_context_len`.
    flash_attention: of llama.cpp (gguf), which is its own default. Off, a CPU is several times quicker behind
        long histories, but rounds a token that was decoded otherwise than one that was prefilled; see
        docs/engine.md.
    gpu_layers: layers of a GGUF model on the GPU, -1 for all (needs a GPU build of llama-cpp-python).
    threads: CPU threads of the model; None takes the physical cores.
    device: `cuda`, `cuda:1`, `cpu`, `auto` (hf, mlc). dtype of hf comes with `quantization`.
    model_lib: compiled library of an MLC model, where it does not lie beside its weights.
    compile: compile the decode step where the backend can (hf); off by default.
    trust_remote_code: run Python code that comes with a checkpoint (hf). Off unless asked for by name.
    vision: a LLaVA-form checkpoint (folder or hub repository) whose vision tower and projector stand beside
        the model, or `tiny` for the one that comes with the package; None for what the model's own checkpoint
        holds, which for the embedded default is the tiny one.
    """

    model: str | None = None
    api: str | None = None
    quantization: str | None = None
    api_token: str | None = field(default=None, repr=False)
    max_context_len: int | None = None
    max_sequences: int = 4
    kv_tokens: int | None = None
    flash_attention: bool = True
    gpu_layers: int = 0
    threads: int | None = None
    device: str = 'auto'
    model_lib: str | None = None
    compile: bool = False
    trust_remote_code: bool = False
    vision: str | None = None

    def __post_init__(self):
        _to_native(self)
        if not (self.api_token is None or isinstance(self.api_token, str)):
            raise ValueError('api_token is not valid: text, or none')  # its value is never shown
        _check_types(
            self,
            switches=('flash_attention', 'compile', 'trust_remote_code'),
            texts=('model', 'api', 'quantization', 'model_lib', 'vision'),
        )
        _check(
            self, 'device', isinstance(self.device, str) and self.device != '', 'auto, cpu, cuda or cuda:N'
        )
        _check(
            self,
            'api',
            self.api in (*APIS, None),
            f'one of {", ".join(APIS)}, or none to infer it from the model',
        )
        for name in ('max_context_len', 'kv_tokens'):
            _check(
                self,
                name,
                getattr(self, name) is None or _is_count(getattr(self, name), 1),
                'a whole number of at least 1',
            )
        _check(
            self,
            'threads',
            self.threads is None or _is_count(self.threads, 1) and self.threads <= MAX_THREADS,
            f'a whole number from 1 to {MAX_THREADS}',
        )
        _check(self, 'max_sequences', _is_count(self.max_sequences, 1), 'a whole number of at least 1')
        _check(self, 'gpu_layers', _is_count(self.gpu_layers, -1), 'a whole number of layers, or -1 for all')


@dataclass(frozen=True)
class EngineConfig:
    """How conversations share the model.

    running_share: share of their speed that running replies keep while a long prompt is prefilled beside
        them, over 0 and up to 1.
    max_step: seconds that one step should take at most while a prompt is prefilled and nothing else runs; a
        stop waits no longer than this.
    max_queue: requests that may wait; one more is refused.
    speculation: guess the next tokens from what stands in the context, several a step, where that pays; the
        reply stays the same.
    park_bytes: host memory for KV that idle conversations gave up; used where bringing it back is quicker
    than prefilling. 0 is off.
    """

    running_share: float = 0.5
    max_step: float = 0.2
    max_queue: int = 256
    speculation: bool = True
    park_bytes: int = 0

    def __post_init__(self):
        _to_native(self)
        _check_types(self, switches=('speculation',))
        _check(
            self,
            'running_share',
            _is_number(self.running_share) and 0 < self.running_share <= 1,
            'a number over 0 and up to 1',
        )
        _check(self, 'max_step', _is_number(self.max_step) and self.max_step > 0, 'seconds, more than 0')
        for name in ('max_queue', 'park_bytes'):
            _check(self, name, _is_count(getattr(self, name), 0), 'a whole number of 0 or more')


@dataclass(frozen=True)
class GenerationConfig:
    """How one reply is generated. Greedy unless `do_sample`.

    max_new_tokens: length of the reply at most, in tokens; -1 for as long as the context allows.
    min_new_tokens: end tokens are not sampled before this many; 0, or -1 as in NanoLLM, for any time.
    temperature, top_p, top_k, min_p: as in transformers, in its order (temperature, top-k, top-p, min-p);
        top_k 0 and min_p 0 are off.
    repetition_penalty: as in transformers (Keskar et al. 2019, arXiv:1909.05858), over prompt and reply; 1.0
        is off.
    seed: None draws one. The same seed gives the same reply whatever else runs in the batch.
    stop_tokens: ids or strings that end the reply, besides the model's own end tokens; a string is cut off
        the text.
    logits_processors: callables `(token_ids [n], logits [v]) -> logits [v]`, applied before sampling, in
        order.
    functions: callables `(text so far) -> str | None`, seen after each piece; text returned is put into the
    reply and read by the model.
    """

    max_new_tokens: int = 128
    min_new_tokens: int = 0
    do_sample: bool = False
    temperature: float = 0.7
    top_p: float = 0.95
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop_tokens: tuple[int | str, ...] = ()
    logits_processors: tuple[Callable, ...] = ()
    functions: tuple[Callable, ...] = ()

    def __post_init__(self):
        _to_native(self)
        _check_types(self, switches=('do_sample',))
        _check(
            self,
            'max_new_tokens',
            _is_count(self.max_new_tokens, -1),
            'a whole number of tokens, or -1 for no limit',
        )
        _check(
            self,
            'min_new_tokens',
            _is_count(self.min_new_tokens, -1),
            'a whole number of tokens, 0 or more, or -1 for none',
        )
        object.__setattr__(self, 'min_new_tokens', max(0, self.min_new_tokens))
        _check(
            self,
            'temperature',
            _is_number(self.temperature) and 0 <= self.temperature <= 100,
            'a number from 0 (greedy) to 100',
        )
        _check(self, 'top_p', _is_number(self.top_p) and 0 < self.top_p <= 1, 'a number over 0 and up to 1')
        _check(self, 'top_k', _is_count(self.top_k, 0), 'a whole number, 0 for off')
        _check(self, 'min_p', _is_number(self.min_p) and 0 <= self.min_p <= 1, 'a number from 0 to 1')
        _check(
            self,
            'repetition_penalty',
            _is_number(self.repetition_penalty) and 0 < self.repetition_penalty <= 100,
            'a number over 0 and up to 100',
        )
        _check(
            self, 'seed', self.seed is None or _is_count(self.seed, 0), 'a whole number of 0 or more, or none'
        )
        object.__setattr__(self, 'stop_tokens', _as_tuple(self, 'stop_tokens', _STOP_TOKENS))
        _check(
            self,
            'stop_tokens',
            all(t != '' if isinstance(t, str) else _is_count(t, 0) for t in self.stop_tokens),
            _STOP_TOKENS,
        )
        object.__setattr__(
            self, 'stop_tokens', tuple(t if isinstance(t, str) else int(t) for t in self.stop_tokens)
        )
        for name in ('logits_processors', 'functions'):
            object.__setattr__(self, name, _as_tuple(self, name, _CALLABLES))
            _check(self, name, all(callable(f) for f in getattr(self, name)), _CALLABLES)

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return not self.do_sample or self.temperature == 0
