"""Vision tower and projector of LLaVA-form checkpoints, for any language model that accepts their embeddings.

Runs the modules of transformers, so that towers (CLIP, SigLIP), selected layers, class tokens and the tiles
of LLaVA-NeXT behave as they do there. Loads only the weights of these modules, from safetensors.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

from PIL import Image

from ros2_nanochat.backends.base import VisionPart
from ros2_nanochat.backends.transformers_vision import TransformersVision
from ros2_nanochat.config import ModelConfig
from ros2_nanochat.errors import BackendError, one_line, require
from ros2_nanochat.model_info import ModelInfo
from ros2_nanochat.vision.encoder import VisionEncoder, read_config

FAMILIES = ('llava', 'llava_next', 'vipllava')
"""`model_type` of checkpoints that have this form."""

_MODULES = ('vision_tower', 'multi_modal_projector')
_UNUSED = ('post_layernorm', 'head.')
"""Parts of a tower after the layers that LLaVA reads; checkpoints may omit them."""


class LlavaEncoder(VisionEncoder):
    """The vision encoder of one LLaVA-form checkpoint.

    Args:
        folder: Contains config.json, preprocessor_config.json (or processor_config.json) and safetensors.
        info: The language model.
        config: How the model was opened; its `device` also holds the encoder.
        part: The vision part of the backend, if it has loaded one already.

    Raises:
        BackendError: The folder is not such a checkpoint, or does not fit the language model.
    """

    def __init__(self, folder: Path, info: ModelInfo, config: ModelConfig, part: VisionPart | None = None):
        super().__init__()
        self.folder = folder
        self._device = config.device
        self._part = part
        self._processor: Any = None
        settings = read_config(folder)
        kind = settings.get('model_type')
        if kind not in FAMILIES:
            what = (
                f'its model_type is {kind!r}'
                if settings
                else 'it has no config.json'
                if folder.is_dir()
                else 'it is a file'
                if folder.exists()
                else 'there is no such folder'
            )
            mmproj = 'name the mmproj file of the model, or ' if info.api == 'gguf' else 'name '
            raise BackendError(
                f'vision={str(folder)!r} is not a LLaVA-form checkpoint ({", ".join(FAMILIES)}): {what};'
                f' {mmproj}the folder of such a checkpoint'
            )
        if not info.takes_embeddings:
            raise BackendError(
                f'{info.name} over api={info.api} takes no embeddings, so it cannot be given vision: use'
                ' gguf, mlc or hf'
            )
        width = (settings.get('text_config') or {}).get('hidden_size', 4096)
        if width != info.embedding_size:
            raise BackendError(
                f'vision={str(folder)!r} was made for a language model with embeddings of {width}, '
                f'but those of {info.name} are {info.embedding_size} wide: they do not belong together'
            )
        self._files = sorted(folder.glob('*.safetensors'))
        if not self._files and part is None:
            raise BackendError(f'vision={str(folder)!r} has no .safetensors files')
        self.fingerprint = hashlib.blake2b(
            json.dumps([settings, [f.stat().st_size for f in self._files]]).encode(), digest_size=16
        ).digest()
        self.image_token = '<image>'

    def _load(self) -> None:
        self._torch = require('torch', 'llava')
        transformers = require('transformers', 'llava')
        try:
            self._processor = transformers.AutoImageProcessor.from_pretrained(
                str(self.folder), local_files_only=True
            )
        except (OSError, ValueError) as error:
            raise BackendError(
                f'{self.folder} has no image processor (preprocessor_config.json) that transformers'
                f' {transformers.__version__} can open: {one_line(error)}'
            ) from error
        if self._part is None:
            self._part = TransformersVision(self._load_modules(self._torch, transformers))

    def _load_modules(self, torch, transformers):
        """Return the checkpoint's model with the weights of tower and projector.

        Its language model uses no memory.
        """
        try:
            config = transformers.AutoConfig.from_pretrained(str(self.folder), local_files_only=True)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise BackendError(
                f'{self.folder / "config.json"} is not one that transformers {transformers.__version__} can'
                f' open: {one_line(error)}'
            ) from error
        device = self._device if self._device != 'auto' else 'cuda' if torch.cuda.is_available() else 'cpu'
        dtype = (
            torch.float32
            if device == 'cpu'
            else config.dtype
            if config.dtype in (torch.float16, torch.bfloat16)
            else torch.float16
        )
        with torch.device('meta'):
            model = transformers.AutoModel.from_config(config)
        with _no_init():
            model.vision_tower = transformers.AutoModel.from_config(config.vision_config)
            model.multi_modal_projector = type(model.multi_modal_projector)(config)
        has_newline = getattr(model, 'image_newline', None) is not None
        if has_newline:
            model.image_newline = torch.nn.Parameter(torch.empty(config.text_config.hidden_size))
        model.eval().requires_grad_(False)
        self._fill(
            {
                _plain(name): tensor
                for name, tensor in model.state_dict().items()
                if name.startswith((*_MODULES, 'image_newline'))
            }
        )
        for name in _MODULES:
            getattr(model, name).to(device=device, dtype=dtype)
        if has_newline:
            model.image_newline.data = model.image_newline.data.to(device=device, dtype=dtype)
        return model

    def _fill(self, wanted: dict) -> None:
        """Copy the weights of these tensors, by name, from the checkpoint's files."""
        safetensors = require('safetensors', 'llava')
        missing = dict(wanted)
        for path in self._files:
            try:
                with safetensors.safe_open(path, framework='pt') as file:
                    for name in file.keys():  # noqa: SIM118 (the file itself cannot be iterated)
                        tensor = missing.get(_plain(name))
                        if tensor is None:
                            continue
                        weights = file.get_tensor(name)
                        if weights.shape != tensor.shape:
                            raise BackendError(
                                f'{path}: {name} has the shape {list(weights.shape)}, config.json asks for'
                                f' {list(tensor.shape)}'
                            )
                        tensor.copy_(weights)
                        del missing[_plain(name)]
            except (OSError, safetensors.SafetensorError) as error:
                raise BackendError(f'{path} cannot be read: {one_line(error)}') from error
        lacking = [name for name in missing if not any(part in name for part in _UNUSED)]
        if lacking:
            raise BackendError(
                f'{self.folder} lacks the weights of {lacking[0]} ({len(lacking)} of {len(wanted)} are'
                ' missing)'
            )

    def _encode(self, picture: Image.Image, digest: bytes, stopped: Any = None) -> list:
        assert self._part is not None  # `encode` does not get here before `_load` or after `close`
        with self._torch.inference_mode():
            inputs = self._processor(
                images=self._reduced(picture),
                return_tensors='pt',
                **_on_device(self._processor, self._part.device),
            )
            return [self._span(self._part.features(inputs).rows[0], digest)]

    def _reduced(self, picture: Image.Image) -> Image.Image:
        """Return the picture, at most `reducing_gap` times as large as the size it is resized to.

        The mean of blocks is quicker than resizing a large frame. The option is our own, in
        preprocessor_config.json, for encoders that need not match transformers on large pictures.
        """
        gap, size = getattr(self._processor, 'reducing_gap', None), getattr(self._processor, 'size', None)
        if not gap or not size or not size.get('width') or not size.get('height'):
            return picture
        factors = int(picture.width / (gap * size['width'])), int(picture.height / (gap * size['height']))
        return picture.reduce((max(1, factors[0]), max(1, factors[1]))) if max(factors) > 1 else picture

    def _unload(self) -> None:
        self._part = self._processor = None


def _on_device(processor: Any, device: Any) -> dict:
    """Options that let a processor work on the GPU, if it runs on torchvision."""
    can = any(
        'Torchvision' in base.__name__ or base.__name__ == 'BaseImageProcessorFast'
        for base in type(processor).__mro__
    )
    return {'device': device} if can and device.type != 'cpu' else {}


def _plain(name: str) -> str:
    """Return a weight's name without the prefixes that differ between releases of transformers."""
    return '.'.join(part for part in name.split('.') if part not in ('model', 'vision_model'))


@contextlib.contextmanager
def _no_init():
    """Create modules without filling them with random weights."""
    try:
        from transformers.initialization import no_init_weights
    except ImportError:
        from transformers.modeling_utils import no_init_weights
    with no_init_weights():
        yield
