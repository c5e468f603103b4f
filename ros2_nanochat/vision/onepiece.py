"""The vision encoder of models that transformers runs in one piece (Qwen2-VL, Idefics3 and SmolVLM, Gemma 3,
LLaVA itself).

The model's own processor decides what represents a picture in a prompt. The backend's `vision_part` computes
the embeddings and, if the model counts positions in more than one axis (M-RoPE, arXiv:2409.12191, section
2.1), the positions.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from typing import Any

from PIL import Image

from ros2_nanochat.backends.base import VisionPart
from ros2_nanochat.errors import BackendError, one_line, require
from ros2_nanochat.model_info import ModelInfo
from ros2_nanochat.vision.encoder import VisionEncoder, read_config, to_array

_BOTH_WAYS = ('gemma3', 'gemma3n', 'gemma4')
"""`model_type` of models whose rows of one picture attend to one another."""

_WRITES_PROMPT = ('paligemma',)
"""`model_type` of models whose processor adds the prompt's markup; here the template does."""


class OnePieceEncoder(VisionEncoder):
    """Encodes pictures with the vision part of the model that the backend runs.

    Args:
        part: The vision part of the backend.
        info: The model.
    """

    def __init__(self, part: VisionPart, info: ModelInfo):
        super().__init__()
        self._part: VisionPart | None = part
        self._name, self._path = info.name, info.path
        self._takes_deepstack = info.takes_deepstack
        config = part.config
        self._kind = config.model_type
        self._row_id = _first(config, 'image_token_id', 'image_token_index')
        marker = _first(config, 'boi_token_index', 'boi_token_id') if self._kind in _BOTH_WAYS else None
        self.image_token = next(
            (
                token.text
                for token in info.special_tokens
                if token.id == (self._row_id if marker is None else marker)
            ),
            None,
        )
        self.fingerprint = hashlib.blake2b(
            json.dumps([info.name, read_config(info.path)]).encode(), digest_size=16
        ).digest()

    def _load(self) -> None:
        """The backend has loaded the model; only the processor is missing."""
        config = self._opened.config
        if not self._takes_deepstack and (
            getattr(config.vision_config, 'deepstack_visual_indexes', None)
            or getattr(config, 'deepstack_layer_map', None)
        ):
            raise BackendError(
                f'{self._name} ({self._kind}) adds the picture in several layers in a way of its own: use'
                ' another model'
            )
        self._processor = open_processor(self._path, self._row_id)
        self.image_token = self.image_token or self._processor.image_token

    def _encode(self, picture: Image.Image, digest: bytes, stopped: Any = None) -> list:
        torch = require('torch', 'hf')
        inputs = self._processor(text=[self.image_token], images=[picture], return_tensors='pt')
        ids = inputs['input_ids'][0].tolist()
        with torch.inference_mode():
            features = self._opened.features(inputs)
            rows = torch.cat(features.rows)
            deeper = [torch.cat(list(layer)) for layer in features.deepstack]
        if ids.count(self._row_id) != len(rows):
            raise BackendError(
                f'{self._kind}: the processor makes room for {ids.count(self._row_id)} rows, the model gives'
                f' {len(rows)}: {self._path} does not hold what belongs together'
            )
        positions = None if self._row_id is None else self._opened.positions(inputs, self._row_id)
        parts: list = []
        begin = used = 0
        for is_rows, group in itertools.groupby(ids, key=lambda i: i == self._row_id):
            n = len(list(group))
            if is_rows:
                options = {} if positions is None else self._relative(positions, begin, n)
                if deeper:
                    options['deepstack'] = to_array(torch.stack([layer[used : used + n] for layer in deeper]))
                parts.append(
                    self._span(
                        rows[used : used + n],
                        digest,
                        len(parts),
                        bidirectional=self._kind in _BOTH_WAYS,
                        **options,
                    )
                )
                used += n
            else:
                markup = [
                    i
                    for i in ids[begin : begin + n]
                    if i != getattr(self._processor.tokenizer, 'bos_token_id', None)
                ]
                if markup and self._kind not in _WRITES_PROMPT:
                    parts.append(
                        self._processor.tokenizer.decode(
                            markup, skip_special_tokens=False, clean_up_tokenization_spaces=False
                        )
                    )
            begin += n
        return parts

    @staticmethod
    def _relative(positions, begin: int, n: int) -> dict:
        start = positions[:, begin].min()
        return {
            'positions': positions[:, begin : begin + n] - start,
            'advance': int(positions[0, begin + n] - start),
        }

    @property
    def _opened(self) -> VisionPart:
        assert self._part is not None  # `encode` does not get here after `close`
        return self._part

    def _unload(self) -> None:
        self._part = self._processor = None


def _first(config: Any, *names: str) -> int | None:
    return next(
        (value for value in (getattr(config, name, None) for name in names) if value is not None), None
    )


def open_processor(path: str, row_id: int | None):
    """Return the processor of a checkpoint.

    Some have a part for videos that needs torchvision and more; pictures do not need it.

    Args:
        path: The folder of the checkpoint.
        row_id: Id of the token that stands for one row of embeddings, if known.

    Raises:
        BackendError: transformers cannot open it.
    """
    transformers = require('transformers', 'hf')
    try:
        return transformers.AutoProcessor.from_pretrained(path, local_files_only=True)
    except (ImportError, OSError, ValueError, TypeError) as error:
        problem = error
    try:
        images = transformers.AutoImageProcessor.from_pretrained(path, local_files_only=True)
        words = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
        if row_id is not None and getattr(images, 'merge_size', None):
            return _GridProcessor(images, words, row_id)
        if (settings := read_config(path)).get(
            'model_type'
        ) == 'smolvlm':  # its prompts represent a picture like those of Idefics3
            side = settings['vision_config']['image_size'] // settings['vision_config']['patch_size']
            return transformers.Idefics3Processor(
                images, words, image_seq_len=side**2 // settings['scale_factor'] ** 2
            )
    except (ImportError, OSError, ValueError, TypeError, KeyError):
        pass
    raise BackendError(
        f'{path}: its processor cannot be opened, so it sees no pictures: {one_line(problem)}'
    ) from problem


class _GridProcessor:
    """Does what the processors of Qwen-VL do for a picture: one placeholder for each square of `merge_size`
    patches.
    """

    def __init__(self, images: Any, tokenizer: Any, row_id: int):
        self.image_processor, self.tokenizer, self._row_id = images, tokenizer, row_id
        self.image_token = tokenizer.convert_ids_to_tokens(row_id)

    def __call__(self, text: list[str], images: list[Image.Image], return_tensors: str):
        torch = require('torch', 'hf')
        inputs = self.image_processor(images=images, return_tensors=return_tensors)
        inputs['input_ids'] = torch.full(
            (1, int(inputs['image_grid_thw'].prod()) // self.image_processor.merge_size**2), self._row_id
        )
        return inputs
