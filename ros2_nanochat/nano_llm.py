"""`NanoLLM`: an opened model with the interface of NanoLLM's chat. Ties together what finds a model, the
backend that runs it, and the engine.
"""

from __future__ import annotations

import functools
import importlib
import numbers
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from ros2_nanochat import hub, memory
from ros2_nanochat.answer.response_format import ResponseFormat, read_response_format
from ros2_nanochat.answer.vocabulary import AnswerVocabulary
from ros2_nanochat.backends.base import Backend
from ros2_nanochat.config import EngineConfig, GenerationConfig, ModelConfig, names, reject_unknown
from ros2_nanochat.engine import kv_bytes
from ros2_nanochat.engine.answer_form import AnswerForm
from ros2_nanochat.engine.choice_scores import MAX_ALTERNATIVES, ChoiceScores
from ros2_nanochat.engine.kv_cache import KVCache
from ros2_nanochat.engine.loop import Engine
from ros2_nanochat.engine.reply_text import ReplyText
from ros2_nanochat.engine.request import Asked, Request
from ros2_nanochat.engine.sequence import Parked
from ros2_nanochat.engine.stream import StreamingResponse
from ros2_nanochat.errors import BackendError
from ros2_nanochat.prompt import EmbeddingSpan, Preceding, Prompt, concatenate, head, surely_longer
from ros2_nanochat.reasoning import find_reasoning_marks, reasoning_is_open
from ros2_nanochat.vision import open_vision

_BACKENDS = {
    'gguf': ('gguf.backend', 'GGUFBackend'),
    'mlc': ('mlc.backend', 'MLCBackend'),
    'hf': ('hf.backend', 'HFBackend'),
    'awq': ('hf.backend', 'HFBackend'),
    'fake': ('fake', 'FakeBackend'),
}


class NanoLLM:
    """A language model that is ready to generate. Make one with `from_pretrained`; `close()` gives its memory
    back, as does the end of a `with`.
    """

    reply_class = StreamingResponse

    def __init__(
        self, backend: Backend, config: ModelConfig, engine_config: EngineConfig = EngineConfig(), vision=None
    ):
        self.backend = backend
        self.config = config
        self.info = backend.info
        self.engine = Engine(backend, engine_config)
        self.reasoning_marks = find_reasoning_marks(self.info)
        self.vision = vision
        self._speculate = engine_config.speculation
        self._special_ids = {token.text: token.id for token in self.info.special_tokens}
        self._last: weakref.ref | None = None
        self._vocabulary_lock = threading.Lock()
        self._known_vocabulary: AnswerVocabulary | None = None
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
        opening: Callable[[Backend], None] | None = None,
        **options,
    ) -> NanoLLM:
        """Open a model.

        Args:
            model: A file or folder, a hub repository `owner/name` (`owner/name:file.gguf` for one file of
                several), or None for the embedded default.
            api: `gguf`, `mlc`, `hf`, `awq`, `fake`; None infers it from what the model's folder holds.
            quantization, api_token, max_context_len: See `ModelConfig`.
            config: The options of the model as a whole; those that are also given by name replace its.
            engine: The options of the engine as a whole, likewise.
            options: Further fields of `ModelConfig` and `EngineConfig`.
            progress: Called with the share that is loaded, 0 to 1; without it a bar is shown if standard
                error is a terminal.
            opening: Called with the backend before it loads; its `abort()` ends the load.

        Raises:
            ValueError: Options are wrong, or the model is not there. One line, like the others.
            BackendError: The model cannot be run.
            MissingDependency: A package is not installed.
        """
        first = {
            'model': model,
            'api': api,
            'quantization': quantization,
            'api_token': api_token,
            'max_context_len': max_context_len,
        }
        options.update((name, value) for name, value in first.items() if value is not None)
        reject_unknown(options, names(ModelConfig) + names(EngineConfig), 'from_pretrained()')
        of_engine = {name: options.pop(name) for name in names(EngineConfig) if name in options}
        engine = replace(_whole(EngineConfig, engine, 'engine'), **of_engine)
        config = replace(_whole(ModelConfig, config, 'config'), **options)
        path, api = hub.resolve(config)
        module, class_name = _BACKENDS[api]
        home = importlib.import_module(f'ros2_nanochat.backends.{module}')
        backend_class: type[Backend] = getattr(home, class_name)
        path = backend_class.prepare(path, config)
        config = memory.fill_in(config, backend_class.estimate(path, config))
        backend = backend_class(path, config)
        if opening:
            opening(backend)
        with _Bar(path, progress) as report:
            try:
                backend.open(report)
                vision = open_vision(config.vision, backend.info, backend, config)
            except BaseException:
                backend.close()
                raise
        return cls(backend, config, engine, vision)

    def close(self) -> None:
        """End all replies and give the memory back. May be called twice."""
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
        """Whether images can be put into a conversation."""
        return self.vision is not None

    @property
    def stats(self) -> dict:
        """Counters of the engine (`engine.metrics.Metrics`), and as `last` the usage of the latest reply
        (`StreamingResponse.usage`).
        """
        last = self._last() if self._last else None
        return {**self.engine.stats(), 'last': last.usage if last else None}

    def __repr__(self) -> str:
        return f'NanoLLM({self.info.name!r}, api={self.info.api!r}, context={self.info.context_length})'

    # --- text and embeddings ---

    def tokenize(self, text: str, special: bool = False, preceding: Preceding = Preceding.START) -> list[int]:
        """Ids of a text; no begin-of-text is added. special, preceding: see `Backend.tokenize`."""
        if not isinstance(text, str):
            raise ValueError(f'text has to be a string, not {type(text).__name__} {str(text)[:40]!r}')
        return self.backend.tokenize(text, special, preceding)

    def detokenize(self, ids: Sequence[int]) -> str:
        """Text of ids; special tokens give none."""
        detokenizer = self.backend.detokenizer()
        return ''.join([detokenizer.add(i) for i in self._ids(ids)]) + detokenizer.flush()

    def embed_text(self, text: str) -> np.ndarray:
        """Embeddings [1, n, d] float32 of a text."""
        return self.embed_tokens(self.tokenize(text))

    def embed_tokens(self, ids: Sequence[int]) -> np.ndarray:
        """Embeddings [1, n, d] float32 of ids."""
        return self.backend.embed_tokens(self._ids(ids))[None]

    def _ids(self, ids: Sequence[int]) -> list[int]:
        array = np.asarray(ids)
        if array.size and not np.issubdtype(array.dtype, np.integer):
            raise ValueError(f'ids of type {array.dtype} are not valid: whole numbers')
        return [self._checked_id(i) for i in array.reshape(-1)]

    def _checked_id(self, token_id: int) -> int:
        if not 0 <= token_id < self.info.vocab_size:
            raise self._not_in_vocabulary(f'token id {token_id}')
        return int(token_id)

    def _not_in_vocabulary(self, what: str) -> ValueError:
        return ValueError(f'{what} is not in the vocabulary: ids go from 0 to {self.info.vocab_size - 1}')

    # --- images ---

    def open_image(self, image, urls: bool = True):
        """The picture (PIL, RGB, upright) of a path, URL, bytes, PIL image, array or tensor, as it is now;
        what it is called later does not change it.
        urls: whether a string may name a path or address. ValueError where it is no image, in one line.
        """
        return self._eyes().open_image(image, urls)

    def embed_image(self, image):
        """What stands in a prompt for an image: a list of `EmbeddingSpan` and of markup as text. Its
        `seconds` say what it took, 0.0 where the picture was known; its `num_tokens` how many rows it has.
        image: as for `open_image`.
        """
        return self._eyes().encode(image)

    def _eyes(self):
        if self.vision is None:
            raise ValueError(
                f'{self.info.name} has no vision: open it with vision= a LLaVA-form checkpoint made for it,'
                ' or take a model that sees'
                + (
                    ", or run  pip install 'ros2_nanochat[vision]'  for the small one that comes with it"
                    if self.config.model is None
                    else ''
                )
            )
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
        **options,
    ) -> StreamingResponse | str | list[int]:
        """Continue a prompt.

        Args:
            inputs: A string, ids [n] or [1, n], embeddings [n, d] or [1, n, d], or the Prompt of
                `ChatHistory.embed_chat`.
            streaming: Return at once, and give the text as it is produced.
            kv_cache: What the conversation holds so far; a Prompt is put behind its first `position` entries,
                anything else behind all of them.
            stop_tokens: Ids or strings that end the reply, in addition to the model's own end tokens. A
                string ends it at its text, whichever ids spell that; an id at that id; the text of a special
                token at both.
            detokenize: With `streaming=False`: return the text, else the ids.
            priority: Higher goes first, and pauses lower ones.
            deadline: Seconds from now after which the reply ends with what it has.
            config: How to generate, as a whole; options that are also given by name replace its.
            options: Further fields of `GenerationConfig`.

        Returns:
            A StreamingResponse; with `streaming=False` the text or the ids, once all is there.

        Raises:
            ValueError: Options or inputs are wrong.
            BackendError: With `streaming=False`, the reply failed.
        """
        if stop_tokens is not None:
            options['stop_tokens'] = stop_tokens
        reject_unknown(options, names(GenerationConfig), 'generate()')
        config = _whole(GenerationConfig, config, 'config')
        if options:
            config = replace(config, **options)
        if deadline is not None and not (isinstance(deadline, numbers.Real) and deadline >= 0):
            raise ValueError(f'deadline={deadline!r} is not valid: seconds from now, 0 or more')
        if not isinstance(priority, numbers.Integral):
            raise ValueError(f'priority={priority!r} is not valid: a whole number')
        if not isinstance(kv_cache, KVCache | None):
            raise ValueError(
                f'kv_cache of type {type(kv_cache).__name__} is not valid: the kv_cache of an earlier reply,'
                ' or none'
            )
        kv_cache = KVCache() if kv_cache is None else kv_cache
        self.engine.check_process()
        kv_cache.check_idle()
        kv_cache.bind(self.engine)
        alive = self.engine.alive
        goal = (
            self._goal(inputs, kv_cache) if alive else kv_cache.content
        )  # the reply of a closed model says so
        prefix = goal.as_span(self.backend.embed_tokens) if alive and self.info.bidirectional_prompt else None
        end_ids, strings = self._stops(config)
        marks = self.reasoning_marks
        opened = marks is not None and alive and reasoning_is_open(goal.entries, marks, self.detokenize)
        detokenizer = self.backend.detokenizer(self._preceding(inputs, goal))
        form = read_response_format(config.response_format)
        matcher = self._vocabulary().matcher(form.grammar, end_ids) if form is not None and alive else None
        may_stop = None if matcher is None else matcher.matches
        text = ReplyText(detokenizer, strings, marks, opened, may_stop)
        due = None if deadline is None else time.monotonic() + deadline
        asked = Asked(goal, config, end_ids, priority, due, self._speculate, prefix)
        held_to = None
        if form is not None and matcher is not None:
            held_to = AnswerForm(form, matcher, text, end_ids, self._vocabulary().space_ids)
        request = Request(asked, kv_cache.sequence, text, held_to, self._scores(config, form))
        reply = self.reply_class(request, kv_cache, detokenize)
        self._last = weakref.ref(reply)
        self.engine.submit(request)
        if streaming:
            return reply
        reply.wait()
        if reply.finish_reason.failed:
            raise BackendError(reply.error)
        return reply.text if detokenize else reply.tokens

    def save_kv(self, kv_cache: KVCache) -> bytes | None:
        """The keys and values that a conversation has in the model, for `load_kv` in this process or a later
        one that opens the model with the same options; None where there are none, or the backend cannot give
        them. Takes as long as copying them, between two steps of the engine. Raises BackendError where the
        model is closed.
        """
        sequence = kv_cache.sequence

        def take() -> Parked | None:
            if sequence.handle is None or not len(sequence.held):
                return sequence.parked
            data = self.backend.save(sequence.handle)
            return None if data is None else Parked(data, sequence.held.view().copy())

        kv = self.engine.call(take)
        return None if kv is None else kv_bytes.pack(kv, self.info)

    def load_kv(self, data: bytes) -> KVCache:
        """An empty `KVCache` for a conversation whose keys and values `save_kv` gave: what its next prompt
        shares with them is not computed again. Raises ValueError where they are damaged, or were computed by
        another model.
        """
        kv_cache = KVCache()
        kv_cache.sequence.parked = kv_bytes.unpack(data, self.info)
        kv_cache.bind(self.engine)
        return kv_cache

    def _goal(self, inputs, kv_cache: KVCache) -> Prompt:
        """Everything the conversation shall hold before the reply."""
        if isinstance(inputs, Prompt):
            if inputs.position > len(kv_cache):
                raise ValueError(
                    f'the prompt continues at entry {inputs.position}, and the KV cache holds'
                    f' {len(kv_cache)}: pass the kv_cache it was made for'
                )
            goal = concatenate(head(kv_cache.content, inputs.position), inputs)
        else:
            goal = concatenate(
                kv_cache.content,
                Prompt.join([self._part(inputs, kv_cache.entries[-1] if len(kv_cache) else None)]),
            )
        if not len(goal):
            raise ValueError('there is nothing to continue: the prompt is empty')
        if goal.spans and not self.info.takes_embeddings:
            raise ValueError(
                f'{self.info.name} takes no embeddings through {self.info.api}: pass text or ids'
            )
        if any(span.deepstack is not None for _, span in goal.spans) and not self.info.takes_deepstack:
            raise ValueError(
                f'{self.info.name} takes embeddings in its first layer alone: the picture was embedded for'
                ' another model'
            )
        if (ids := goal.token_ids).size and ids.max() >= self.info.vocab_size:
            raise self._not_in_vocabulary(f'token id {ids.max()}')
        width = next(
            (
                span.rows.shape[-1]
                for _, span in goal.spans
                if span.rows.shape[-1] != self.info.embedding_size
            ),
            None,
        )
        if width is not None:
            raise ValueError(
                f'embeddings of width {width} do not fit {self.info.name}, whose width is'
                f' {self.info.embedding_size}'
            )
        return goal

    def _part(self, inputs, before: int | None) -> list[int] | EmbeddingSpan:
        if isinstance(inputs, str):
            start = (
                [self.info.bos_token_id]
                if before is None and self.info.add_bos and self.info.bos_token_id is not None
                else []
            )
            longest = min(self.info.context_length, self.backend.kv_capacity)
            if surely_longer(self.tokenize, inputs, longest):
                raise ValueError(
                    f'a text of {len(inputs)} characters has more than {longest} tokens, and the'
                    f' context holds '
                    'no more: shorten it, or open the model with a larger max_context_len'
                )
            if before is None:
                preceding = Preceding.START
            elif before < 0 or before in self._special_ids.values():
                preceding = Preceding.SPECIAL_TOKEN
            else:
                preceding = Preceding.TEXT
            return start + self.tokenize(inputs, preceding=preceding)
        try:
            array = np.asarray(inputs)
        except ValueError:  # rows of different lengths
            array = np.array(None)
        if array.size == 0:
            return []
        is_ids = np.issubdtype(array.dtype, np.integer)
        if array.ndim == (2 if is_ids else 3) and array.shape[0] == 1:
            array = array[0]
        if array.ndim == 1 and is_ids:
            return [self._checked_id(i) for i in array]
        if array.ndim == 2 and np.issubdtype(array.dtype, np.floating):
            if not np.isfinite(array).all():
                raise ValueError('the embeddings hold values that are not finite')
            rows = np.ascontiguousarray(array, np.float32)
            return EmbeddingSpan(rows, rows.tobytes())
        raise ValueError(
            f'inputs of shape {array.shape} and type {array.dtype if array.ndim else type(inputs).__name__}'
            ' are not valid: text, ids [n] or [1, n], or embeddings [n, d] or [1, n, d]'
        )

    def _preceding(self, inputs, goal: Prompt) -> Preceding:
        """What stands before the reply, as far as its first space is concerned: a reply to a conversation is
        a text of its own, in a template whose markup is text, too.
        """
        if isinstance(inputs, Prompt) or not len(goal):
            return Preceding.START
        last = int(goal.entries[-1])
        if last < 0 or last in self._special_ids.values() or last == self.info.bos_token_id:
            return Preceding.SPECIAL_TOKEN
        return Preceding.TEXT

    def _scores(self, config: GenerationConfig, form: ResponseFormat | None) -> ChoiceScores | None:
        """What computes the probabilities of a choice; None if they are not asked for."""
        if not config.probabilities:
            return None
        if form is None or not form.alternatives:
            raise ValueError('probabilities=True needs a response_format that is a choice, such as yes | no')
        if len(form.alternatives) > MAX_ALTERNATIVES:
            raise ValueError(
                f'probabilities=True is possible for up to {MAX_ALTERNATIVES} alternatives, not'
                f' {len(form.alternatives)}'
            )
        tokenize, end = self._vocabulary().tokenize, self._end_of_turn()
        return ChoiceScores({text: [*tokenize(text), end] for text in form.alternatives})

    def _end_of_turn(self) -> int:
        """The token with which a reply ends, of several that may."""
        named = self._special_ids.get(self.info.named_tokens.get('eos_token', ''))
        return named if named in self.info.eos_token_ids else min(self.info.eos_token_ids)

    def _vocabulary(self) -> AnswerVocabulary:
        """The vocabulary as forms of answers need it; read when the first one is asked for."""
        with self._vocabulary_lock:
            if self._known_vocabulary is None:
                detokenizer = self.backend.detokenizer()
                token_bytes = [detokenizer.token_bytes(i) for i in range(self.info.vocab_size)]
                special = [token.id for token in self.info.special_tokens]
                tokenize = functools.partial(self.backend.tokenize, preceding=Preceding.TEXT)
                ends = self.info.eos_token_ids
                self._known_vocabulary = AnswerVocabulary(token_bytes, special, ends, tokenize)
            return self._known_vocabulary

    def _stops(self, config: GenerationConfig) -> tuple[frozenset[int], list[str]]:
        ids, strings = set(self.info.eos_token_ids), []
        for stop in config.stop_tokens:
            if isinstance(stop, str):
                strings.append(stop)
                special = self._special_ids.get(stop, self._special_ids.get(stop.strip()))
                # one that gives text (Gemma has entries for line breaks) is found as text
                if special is not None and not self.detokenize([special]):
                    ids.add(special)
            elif 0 <= stop < self.info.vocab_size:
                ids.add(stop)
            else:
                raise self._not_in_vocabulary(f'stop_tokens={stop!r}')
        return frozenset(ids), strings


_Config = TypeVar('_Config')


def _whole(kind: type[_Config], config: _Config | None, name: str) -> _Config:
    """The options that were passed as a whole, or the defaults."""
    if config is None:
        return kind()
    if not isinstance(config, kind):
        raise ValueError(f'{name} of type {type(config).__name__} is not valid: a {kind.__name__}')
    return config


class _Bar:
    """Shows how far the load is, where nobody else does and standard error is a terminal."""

    def __init__(self, path: str, progress: Callable[[float], None] | None):
        self._path, self._progress = path, progress
        self._bar: Any = None

    def __enter__(self) -> Callable[[float], None]:
        if self._progress:
            return self._progress
        if not sys.stderr.isatty():
            return lambda share: None
        from tqdm import tqdm

        bar = self._bar = tqdm(
            total=100,
            desc=f'loading {self._path.rpartition("/")[2]}',
            unit='%',
            leave=False,
            bar_format='{desc} {bar} {percentage:3.0f}%',
        )
        return lambda share: bar.update(100 * share - bar.n)

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._bar.close()
