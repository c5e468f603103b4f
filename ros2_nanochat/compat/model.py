"""`NanoLLM` with the arguments, results and attributes of NanoLLM's."""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from ros2_nanochat import nano_llm
from ros2_nanochat.compat.attributes import AttributeDict, to_tensor, warn_ignored
from ros2_nanochat.compat.stops import stops_as_texts
from ros2_nanochat.compat.stream import StreamingResponse
from ros2_nanochat.compat.tokenizer import Tokenizer
from ros2_nanochat.config import EngineConfig, GenerationConfig, ModelConfig, names
from ros2_nanochat.engine.kv_cache import KVCache
from ros2_nanochat.engine.request import Request
from ros2_nanochat.errors import BackendError
from ros2_nanochat.files import read_json
from ros2_nanochat.prompt import EmbeddingSpan, Prompt

VISION_SCALINGS = ('crop', 'resize')
CACHED_TEXTS = 64
"""Texts whose embeddings `embed_text(use_cache=True)` keeps."""


class _Model(nano_llm.NanoLLM):
    reply_class = StreamingResponse


class NanoLLM:
    """An opened model. Create it with `from_pretrained`.

    Attributes:
        core: The `ros2_nanochat.NanoLLM`; this object has all of its attributes, too.
        config: Facts about the model: `name`, `api`, `type`, `max_length`, `vocab_size`, and the contents of
            config.json.
        vla: None: actions for robot arms are not offered.
    """

    ModelCache: dict[frozenset, NanoLLM] = {}
    vla = None

    def __init__(self, core: nano_llm.NanoLLM, vision_scaling: str | None = None, load_time: float = 0.0):
        if not isinstance(core, nano_llm.NanoLLM):
            raise ValueError('open a model with NanoLLM.from_pretrained(model)')
        self.core = core
        self.vision_scaling = vision_scaling
        self.tokenizer = Tokenizer(core)
        self.model_path = core.info.path
        self.config_path = os.path.join(core.info.path, 'config.json')
        self.config = _describe(core, load_time)
        self._embedded: dict[str, tuple] = {}
        self._last: Request | None = None  # not the reply, which stops when its user drops it

    @staticmethod
    def from_pretrained(
        model: str | None = None, api: str | None = None, use_cache: bool = False, **options
    ) -> NanoLLM:
        """Open a model.

        Args:
            model: A path or a Hugging Face repository; None for the small embedded model.
            api: `gguf`, `mlc`, `hf` or `awq`; None infers it.
            use_cache: Return the model that an earlier call with the same options opened, if it is still
                open.
            **options: `quantization`, `api_token`, `max_context_len` and other options of
                `ros2_nanochat.NanoLLM.from_pretrained`. `vision_model`: a LLaVA-form checkpoint with a vision
                encoder for the model. `vision_scaling`: `crop` cuts pictures to a square, `resize` stretches
                them, None leaves it to the model. `vision_api` has no effect: PyTorch or the model's backend
                runs the encoder. Others are ignored with a warning.

        Raises:
            ValueError: An option is not valid, or the model does not exist.
            BackendError: The model cannot be run.
        """
        key = frozenset({'model': model, 'api': api, **{k: repr(v) for k, v in options.items()}}.items())
        if use_cache and key in NanoLLM.ModelCache and NanoLLM.ModelCache[key].engine.alive:
            return NanoLLM.ModelCache[key]
        if api == 'auto_gptq':
            raise ValueError(
                "api='auto_gptq' is not offered: open the checkpoint with api='hf', which reads GPTQ"
            )
        vision_api, vision_model = options.pop('vision_api', 'auto'), options.pop('vision_model', None)
        scaling = options.pop('vision_scaling', None)
        if scaling not in (None, *VISION_SCALINGS):
            raise ValueError(f'vision_scaling={str(scaling)[:200]!r} is not valid: crop, resize, or none')
        if vision_api not in (None, 'auto', 'hf'):
            warn_ignored(
                'from_pretrained()', [f'vision_api={vision_api!r}'], 'TensorRT does not run the encoder'
            )
        if vision_model is not None:
            options.setdefault('vision', vision_model)
        known = {*names(ModelConfig), *names(EngineConfig), *_parameters(_Model.from_pretrained)}
        ignored = [name for name in options if name not in known]
        warn_ignored('from_pretrained()', ignored)
        begin = time.perf_counter()
        core = _Model.from_pretrained(
            model,
            api.lower() if isinstance(api, str) else api,
            **{k: options[k] for k in options.keys() - ignored},
        )
        opened = NanoLLM(core, scaling, time.perf_counter() - begin)
        if use_cache:
            NanoLLM.ModelCache[key] = opened
        return opened

    def __getattr__(self, name: str) -> Any:
        if name == 'core' or name.startswith('_'):
            raise AttributeError(name)
        return getattr(self.core, name)

    def __enter__(self) -> NanoLLM:
        return self

    def __exit__(self, *_) -> None:
        self.core.close()

    def is_type(self, architectures: str | list[str]) -> str | None:
        """Return the first of these texts that is part of a name in `config.architectures`, None if
        none is.
        """
        wanted = [architectures] if isinstance(architectures, str) else architectures
        have = [str(name).lower() for name in self.config.get('architectures') or [self.config.type]]
        return next((text for name in have for text in wanted if text.lower() in name), None)

    @property
    def stats(self) -> AttributeDict:
        """Times (seconds), rates (tokens per second) and tokens of the latest reply, empty before the
        first.
        """
        if self._last is None:
            return AttributeDict()
        usage = self._last.usage
        new, computed = usage.new_tokens, usage.prompt_tokens - (usage.reused_tokens or 0)
        prefill = (usage.time_to_first_token or 0.0) - (usage.queue_time or 0.0)
        rate = usage.tokens_per_second or 0.0
        return AttributeDict(
            input_tokens=computed,
            output_tokens=new,
            prefill_time=prefill,
            prefill_rate=computed / prefill if prefill > 0 else 0.0,
            decode_time=(new - 1) / rate if rate else 0.0,
            decode_rate=rate,
        )

    @property
    def vision(self) -> list[AttributeDict]:
        """The vision encoder as a list of one, empty if there is none. Its `stats` have counts and speed."""
        encoder = self.core.vision
        if encoder is None:
            return []
        counts = encoder.stats
        seconds = counts['seconds'] / counts['encoded'] if counts['encoded'] else 0.0
        figures = AttributeDict(time=seconds, rate=1 / seconds if seconds else 0.0, **counts)
        return [AttributeDict(stats=figures, config=AttributeDict(name=type(encoder).__name__))]

    def tokenize(
        self,
        text: str,
        add_special_tokens: bool = False,
        dtype: Any = np.int32,
        return_tensors: str = 'np',
        **_,
    ):
        """Return the ids [1, n] of a text. Special tokens in it are recognized."""
        ids = np.array(self.tokenizer.encode(text, add_special_tokens), np.int64)[None]
        return to_tensor(ids, return_tensors, dtype)

    def detokenize(self, tokens, skip_special_tokens: bool = False, **_) -> str:
        """Return the text of ids."""
        return self.tokenizer.decode(tokens, skip_special_tokens)

    def embed_text(
        self,
        text: str,
        add_special_tokens: bool = False,
        use_cache: bool = False,
        return_tensors: str = 'np',
        return_tokens: bool = False,
        **_,
    ):
        """Return the embeddings [1, n, d] of a text, None if the model provides none (`has_embed`).

        Args:
            text: The text.
            add_special_tokens: Begin with begin-of-text, if the model uses it.
            use_cache: Cache the result for this text.
            return_tensors: `np` or `pt`.
            return_tokens: Return `(embeddings, ids)`.
        """
        result = self._embedded.get(text) if use_cache else None
        if result is None:
            ids = self.tokenize(text, add_special_tokens)
            result = (self.core.embed_text(ids[0]) if self.has_embed else None), ids
            if use_cache:
                self._embedded[text] = result
                if len(self._embedded) > CACHED_TEXTS:
                    del self._embedded[next(iter(self._embedded))]
        embedding, ids = result
        embedding = None if embedding is None else to_tensor(embedding, return_tensors)
        return (embedding, to_tensor(ids, return_tensors)) if return_tokens else embedding

    def embed_tokens(self, tokens, return_tensors: str = 'np', **_):
        """Return the embeddings [1, n, d] float32 of ids."""
        return to_tensor(self.core.embed_tokens(tokens), return_tensors)

    def open_image(self, image, urls: bool = True):
        """Return the picture of a path, URL, PIL image, array or tensor, scaled according to
        `vision_scaling`.
        """
        picture = self.core.open_image(image, urls)
        side = min(picture.size) if self.vision_scaling == 'crop' else max(picture.size)
        if self.vision_scaling is None or picture.size == (side, side):
            return picture
        if self.vision_scaling == 'resize':
            return picture.resize((side, side))
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        return picture.crop((left, top, left + side, top + side))

    def embed_image(self, image, return_tensors: str = 'np', **_):
        """Return the embeddings [1, n, d] of an image; ValueError if the model adds positions or markup to
        it.
        """
        parts = self.core.embed_image(self.open_image(image))
        spans = [part for part in parts if isinstance(part, EmbeddingSpan)]
        if len(spans) != len(parts) or any(
            span.deepstack is not None or span.positions is not None for span in spans
        ):
            raise ValueError(
                f'an image of {self.config.name} is more than embeddings: append it to a ChatHistory'
            )
        return to_tensor(np.concatenate([span.rows for span in spans])[None], return_tensors)

    def generate(self, inputs, streaming: bool = True, **options) -> StreamingResponse | str | list[int]:
        """Continue a prompt; see `ros2_nanochat.NanoLLM.generate`.

        Args:
            inputs: A prompt of `embed_chat`, a text, ids, or embeddings.
            streaming: False returns the whole text at the end, and raises `BackendError` if the reply failed.
            **options: Options of `ros2_nanochat`. `cache_position`: entries of `kv_cache` to keep before an
                array; a prompt of `embed_chat` has its own. `stop_tokens` may contain lists of ids. Others
                are ignored with a warning.
        """
        known = {*names(GenerationConfig), *_parameters(_Model.generate)}
        given = {name: value for name, value in options.items() if name in known}
        warn_ignored('generate()', options.keys() - known - {'cache_position'})
        if 'stop_tokens' in given:
            given['stop_tokens'] = stops_as_texts(self.core, given['stop_tokens'])
        position, cache = options.get('cache_position'), given.get('kv_cache')
        if position is not None and not isinstance(inputs, Prompt) and isinstance(cache, KVCache):
            cache.pop(max(0, len(cache) - int(position)))
        reply = self.core.generate(inputs, True, **given)
        assert isinstance(reply, StreamingResponse)
        reply.model, reply.input, reply.kwargs = self, inputs, options
        self._last = reply.request
        if streaming:
            return reply
        reply.wait()
        if reply.finish_reason in ('error', 'refused'):
            raise BackendError(reply.error)
        return reply.text if reply.detokenize else reply.tokens


def _parameters(function: Callable) -> set[str]:
    return set(inspect.signature(function).parameters)


def _describe(core: nano_llm.NanoLLM, load_time: float) -> AttributeDict:
    """Return the contents of NanoLLM's `model.config`, and the options the model was opened with."""
    info = core.info
    return AttributeDict(
        {
            **read_json(info.path, 'config.json'),
            **{name: getattr(core.config, name) for name in names(ModelConfig) if name != 'api_token'},
            'name': info.name,
            'api': info.api,
            'type': info.architecture,
            'model_type': info.architecture,
            'max_length': info.context_length,
            'max_position_embeddings': info.train_context_length,
            'vocab_size': info.vocab_size,
            'quant': info.quantization,
            'params_size': info.weights_bytes / (1 << 20),
            'load_time': load_time,
        }
    )
