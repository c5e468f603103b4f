"""`NanoLLM`: an opened model with the interface of NanoLLM's chat."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ros2_nanochat import hub, memory
from ros2_nanochat.answer.call_form import CallForm
from ros2_nanochat.answer.response_format import read_response_format
from ros2_nanochat.backends.registry import backend_class
from ros2_nanochat.config import EngineConfig, GenerationConfig, ModelConfig, names, reject_unknown, whole
from ros2_nanochat.engine import kv_bytes
from ros2_nanochat.engine.answer_vocabulary import ModelVocabulary
from ros2_nanochat.engine.inputs import Inputs, check_call
from ros2_nanochat.engine.kv_cache import KVCache
from ros2_nanochat.engine.loop import Engine
from ros2_nanochat.engine.plain_reply_text import reply_text
from ros2_nanochat.engine.request import Asked, Request
from ros2_nanochat.engine.stream import StreamingResponse
from ros2_nanochat.errors import BackendError
from ros2_nanochat.loading_bar import LoadingBar
from ros2_nanochat.prompt import Preceding, Prompt
from ros2_nanochat.reasoning import find_reasoning_marks, reasoning_is_open
from ros2_nanochat.vision import no_vision, open_vision


class NanoLLM:
    """A language model that is ready to generate, made by `from_pretrained`. `close()` or `with` frees it."""

    reply_class = StreamingResponse

    def __init__(
        self, backend: Any, config: ModelConfig, engine_config=EngineConfig(), vision=None, engine=None
    ):
        self.backend = backend
        self.config = config
        self.info = backend.info
        self.engine: Any = Engine(self.backend, engine_config) if engine is None else engine
        self.reasoning_marks = find_reasoning_marks(self.info)
        self.vision = vision
        self._speculate = engine_config.speculation
        self._inputs = Inputs(self.backend)
        self._vocabulary: Any = ModelVocabulary(self.backend) if engine is None else engine.vocabulary
        self._last: weakref.ref | None = None
        weakref.finalize(self, self.engine.close).atexit = False

    @classmethod
    def from_pretrained(
        cls,
        model: str | None = None,
        api: str | None = None,
        quantization: str | None = None,
        api_token: str | None = None,
        max_context_len: int | None = None,
        *,
        config: ModelConfig | None = None,
        engine: EngineConfig | None = None,
        progress: Callable[[float], None] | None = None,
        opening: Callable[[Any], None] | None = None,
        stop: threading.Event | None = None,
        **options,
    ) -> NanoLLM:
        """Open a model.

        Args:
            model: A file or folder, a hub repository `owner/name` (`owner/name:file.gguf` for one of several
                files), the address of a server (api `openai`), or None for the embedded default.
            api: `gguf`, `mlc`, `hf`, `awq`, `openai` or `fake`; None infers it from the model's files.
            quantization, api_token, max_context_len: See `ModelConfig`.
            config: The options of the model; options that are also given by name override it.
            engine: The options of the engine, likewise.
            options: Further fields of `ModelConfig` and `EngineConfig`.
            progress: Called with the share that is loaded, 0 to 1. Without it, a terminal shows a bar.
            opening: Called with an object whose `abort()` ends the load, before it begins.
            stop: Set it to end a download or compilation, which come before that.

        Raises:
            ValueError: An option is wrong, or the model does not exist. All messages are one line.
            BackendError: The model cannot be run.
            MissingDependency: A package is not installed.
        """
        first = ('model', 'api', 'quantization', 'api_token', 'max_context_len')
        given = zip(first, (model, api, quantization, api_token, max_context_len))
        options.update((name, value) for name, value in given if value is not None)
        reject_unknown(options, names(ModelConfig) + names(EngineConfig), 'from_pretrained()')
        of_engine = {name: options.pop(name) for name in names(EngineConfig) if name in options}
        engine = replace(whole(EngineConfig, engine, 'engine'), **of_engine)
        config = replace(whole(ModelConfig, config, 'config'), **options)
        path, api = hub.resolve(config, stop)
        if api == 'openai':
            from ros2_nanochat.remote.opening import Opening  # takes 0.03 s, with asyncio

            servers = Opening(config, engine, NanoLLM.from_pretrained, stop)
            if opening:
                opening(servers)
            opened = servers.open(progress)
            return cls(opened.text, config, engine, opened.vision, opened.engine)
        config = hub.resolve_vision(config, api, stop)
        chosen = backend_class(api)
        estimate = chosen.estimate(path := chosen.prepare(path, config, stop), config)
        config = memory.fill_in(config, estimate)
        backend = chosen(path, replace(config, **estimate.decided))
        if opening:
            opening(backend)
        with LoadingBar(path, progress) as report:
            try:
                backend.open(report)
                vision = open_vision(config.vision, backend.info, backend, config)
            except BaseException:
                backend.close()
                raise
        return cls(backend, config, engine, vision)

    def close(self) -> None:
        """End all replies and free the memory. Can be called twice."""
        self.engine.close()
        if self.vision is not None:
            self.vision.close()

    def __enter__(self) -> NanoLLM:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    # --- facts ---

    @property
    def has_embed(self) -> bool:
        """Whether `embed_text` and `embed_tokens` give embeddings."""
        return self.info.has_embed

    @property
    def has_vision(self) -> bool:
        """Whether a conversation can contain images."""
        return self.vision is not None

    @property
    def stats(self) -> dict:
        """Counters of the engine (`engine.metrics.Metrics`), and as `last` the usage of the latest reply."""
        last = self._last() if self._last else None
        return {**self.engine.stats(), 'last': last.usage if last else None}

    def __repr__(self) -> str:
        return f'NanoLLM({self.info.name!r}, api={self.info.api!r}, context={self.info.context_length})'

    # --- text and embeddings ---

    def tokenize(self, text: str, special: bool = False, preceding: Preceding = Preceding.START) -> list[int]:
        """Turn a text into ids, without begin-of-text. See `Backend.tokenize`."""
        if not isinstance(text, str):
            raise ValueError(f'text has to be a string, not {type(text).__name__} {str(text)[:40]!r}')
        return self.backend.tokenize(text, special, preceding)

    def detokenize(self, ids: Sequence[int]) -> str:
        """Turn ids into text, without special tokens."""
        return self._inputs.detokenize(ids)

    def embed_text(self, text: str | np.ndarray) -> np.ndarray:
        """Return the embeddings [1, n, d] float32 of a text, or of the array of its ids."""
        ids = text if isinstance(text, np.ndarray) else self.tokenize(text)
        return self._inputs.remember(ids, self.embed_tokens(ids))

    def embed_tokens(self, ids: Sequence[int]) -> np.ndarray:
        """Return the embeddings [1, n, d] float32 of ids."""
        return self.backend.embed_tokens(self._inputs.ids(ids))[None]

    # --- images ---

    def open_image(self, image, urls: bool = True):
        """Return a picture (PIL, RGB, upright), which later changes to the image do not affect.

        Args:
            image: A path, URL, bytes, PIL image, array or tensor. Text is a path or address only if `urls`.

        Raises:
            ValueError: It is not an image; the message is one line.
        """
        return self._opened_vision().open_image(image, urls)

    def embed_image(self, image, stopped: Callable[[], bool] | None = None):
        """Encode an image (see `open_image`) as a list of `EmbeddingSpan` and markup.

        Args:
            image: See `open_image`.
            stopped: Asked now and then whether to stop.
        """
        return self._opened_vision().encode(image, stopped=stopped)

    def _opened_vision(self):
        if self.vision is None:
            raise no_vision(self.info.name, self.config.model is None)
        return self.vision

    # --- generating ---

    def generate(
        self,
        inputs,
        streaming: bool = True,
        kv_cache: KVCache | None = None,
        stop_tokens=None,
        detokenize: bool = True,
        priority: int = 0,
        deadline: float | None = None,
        config: GenerationConfig | None = None,
        calls: CallForm | None = None,
        **options,
    ) -> StreamingResponse | str | list[int]:
        """Continue a prompt.

        Args:
            inputs: A string, ids [n] or [1, n], embeddings [n, d] or [1, n, d], or the Prompt of
                `ChatHistory.embed_chat`.
            streaming: Return at once, and give the text as it is produced.
            kv_cache: What the conversation holds so far. A Prompt goes after its first `position` entries,
                anything else after all of them.
            stop_tokens: Ids or strings that end the reply, in addition to the model's end tokens. A string
                ends it before that text, whichever ids spell it; a special token in it is its text or its id.
            detokenize: With `streaming=False`: return the text, else the ids.
            priority: Higher runs first, and pauses lower ones.
            deadline: Seconds from now after which the reply ends with the text it has.
            calls: What tools the reply may call, from `ChatHistory.call_form`; None for none.
            config: How to generate; options that are also given by name override it.
            options: Further fields of `GenerationConfig`.

        Returns:
            A StreamingResponse; with `streaming=False` the complete text or ids.

        Raises:
            ValueError: An option or the input is wrong.
            BackendError: With `streaming=False`, the reply failed.
        """
        if stop_tokens is not None:
            options['stop_tokens'] = stop_tokens
        reject_unknown(options, names(GenerationConfig), 'generate()')
        config = whole(GenerationConfig, config, 'config')
        if options:
            config = replace(config, **options)
        check_call(kv_cache, priority, deadline)
        kv_cache = KVCache() if kv_cache is None else kv_cache
        self.engine.check_process()
        kv_cache.check_idle()
        kv_cache.bind(self.engine)
        alive = self.engine.alive
        goal = self._inputs.goal(inputs, kv_cache) if alive else kv_cache.content
        prefix = goal.as_span(self.backend.embed_tokens) if alive and self.info.bidirectional_prompt else None
        end_ids, stops = self._inputs.stops(config)
        marks = self.reasoning_marks
        opened = marks is not None and alive and reasoning_is_open(goal.entries, marks, self.detokenize)
        detokenizer = self.backend.detokenizer(self._inputs.preceding(inputs, goal))
        form = read_response_format(config.response_format)
        matcher = self._vocabulary.matcher(form, calls, end_ids) if alive else None
        may_stop = None if matcher is None or form is None else matcher.matches
        text = reply_text(detokenizer, stops, marks, opened, may_stop, self._vocabulary.call_text(calls))
        due = None if deadline is None else time.monotonic() + deadline
        rewrite = inputs.rewrite if isinstance(inputs, Prompt) else None
        asked = Asked(goal, config, end_ids, priority, due, self._speculate, prefix, rewrite)
        held_to = self._vocabulary.held_to(form, calls, matcher, text, end_ids)
        scores = self._vocabulary.scores(config, form)
        request = Request(asked, kv_cache.sequence, text, held_to, scores, calls)
        reply = self.reply_class(request, kv_cache, detokenize)
        self._last = weakref.ref(reply)
        self.engine.submit(request)
        if streaming:
            return reply
        reply.wait()
        if reply.finish_reason is not None and reply.finish_reason.failed:
            raise BackendError(reply.error)
        return reply.text if detokenize else reply.tokens

    def save_kv(self, kv_cache: KVCache) -> bytes | None:
        """Return a conversation's keys and values for `load_kv`, in this process or a later one with the same
        model and options. None if there are none, or the backend cannot give them.

        Raises:
            BackendError: The model is closed.
        """
        kv = self.engine.call(lambda: kv_cache.sequence.saved(self.backend))
        return None if kv is None else kv_bytes.pack(kv, self.info)

    def load_kv(self, data: bytes) -> KVCache:
        """Return an empty `KVCache` for what `save_kv` gave: what the next prompt shares with it is not
        recomputed.

        Raises:
            ValueError: The data is damaged, or from another model.
        """
        kv_cache = KVCache()
        kv_cache.sequence.parked = kv_bytes.unpack(data, self.info)
        kv_cache.bind(self.engine)
        return kv_cache
