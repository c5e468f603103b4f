"""Reads a checkpoint's files without loading it: its configuration, its tensors, the memory it will take.
Needs neither torch nor transformers.

Sources: the safetensors format (eight bytes of length, then a JSON header), config.json as transformers
writes it, the GGUF reader of the package gguf.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from ros2_nanochat.errors import BackendError, one_line, require
from ros2_nanochat.files import read_json

LENGTHS = (
    'max_position_embeddings',
    'n_positions',
    'max_sequence_length',
    'max_seq_len',
    'seq_length',
    'n_ctx',
)
MAX_HEADER = 100_000_000
DTYPES = {'float32': 4, 'float16': 2, 'bfloat16': 2}


@dataclass
class Checkpoint:
    """A folder with safetensors, or a GGUF file.

    Attributes:
        folder: The folder.
        gguf_file: Name of the GGUF file in it; None for safetensors.
        config: The contents of config.json ({} for GGUF).
        shards: Names of the safetensors files.
        tensors: By name: (dtype as safetensors writes it, shape).
        file_bytes: Size of the weights on disk.
    """

    folder: str
    gguf_file: str | None = None
    config: dict = field(default_factory=dict)
    shards: list[str] = field(default_factory=list)
    tensors: dict[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    file_bytes: int = 0

    @property
    def text_config(self) -> dict:
        """The part of the configuration that describes the language model."""
        for name in ('text_config', 'llm_config', 'language_config'):
            if isinstance(self.config.get(name), dict):
                return self.config[name]
        return self.config

    @property
    def quant_method(self) -> str | None:
        """The quantization method of the weights; None if they are not quantized."""
        return (self.config.get('quantization_config') or {}).get('quant_method')

    @property
    def num_elements(self) -> int:
        """Number of elements in all tensors."""
        return sum(math.prod(shape) for _, shape in self.tensors.values())


def sliding_window(settings: Mapping) -> int | None:
    """Return how many entries the layers with a window of their own attend to; None if there are none."""
    window = settings.get('sliding_window')
    used = settings.get('use_sliding_window', True) is not False
    if kinds := settings.get('layer_types'):
        used = any('sliding' in str(kind) for kind in kinds)
    return window if used and isinstance(window, int) and window > 0 else None


def open_checkpoint(path: str) -> Checkpoint:
    """Read a model's files, without its weights.

    Raises:
        BackendError: A file is missing or damaged. The message is one line.
    """
    path = os.path.abspath(os.path.expanduser(path))
    if os.path.isfile(path):
        if path.endswith('.gguf'):
            return _open_gguf(path)
        raise BackendError(
            f'{path} is neither a folder with a checkpoint nor a .gguf file; give the folder with config.json'
        )
    if not os.path.isdir(path):
        raise BackendError(f'{path} does not exist; give a folder with config.json and *.safetensors')
    names = sorted(os.listdir(path))
    if 'config.json' not in names:
        ggufs = [name for name in names if name.endswith('.gguf')]
        if len(ggufs) == 1:
            return _open_gguf(os.path.join(path, ggufs[0]))
        raise BackendError(f'{path} has no config.json; give the folder of a transformers checkpoint')
    checkpoint = Checkpoint(path, config=read_json(path, 'config.json'))
    index = read_json(path, 'model.safetensors.index.json')
    if index:
        wanted = sorted({str(name) for name in (index.get('weight_map') or {}).values()})
        missing = [name for name in wanted if name not in names]
        if missing:
            raise BackendError(
                f'{path} lacks {missing[0]} ({len(missing)} of {len(wanted)} weight files missing); download'
                ' it again'
            )
        checkpoint.shards = wanted
    else:
        checkpoint.shards = (
            ['model.safetensors']
            if 'model.safetensors' in names
            else [name for name in names if name.endswith('.safetensors')]
        )
    if not checkpoint.shards:
        pickled = [name for name in names if name.endswith(('.bin', '.pt', '.pth'))]
        if pickled:
            raise BackendError(
                f'{path} has its weights only as {pickled[0]}: such files can run code and are not opened. '
                'Convert them to safetensors, or take a repository that has them'
            )
        raise BackendError(f'{path} has no *.safetensors; download the weights as well')
    for name in checkpoint.shards:
        file = os.path.join(path, name)
        checkpoint.tensors.update(read_safetensors_header(file))
        checkpoint.file_bytes += os.path.getsize(file)
    return checkpoint


def read_safetensors_header(file: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return the names, types and shapes of the tensors in a safetensors file.

    Raises:
        BackendError: The file is cut short or damaged.
    """
    size = os.path.getsize(file)
    try:
        with open(file, 'rb') as stream:
            length = int.from_bytes(stream.read(8), 'little')
            if not 0 < length <= min(MAX_HEADER, size - 8):
                raise ValueError('its header is cut short')
            header = json.loads(stream.read(length))
        header.pop('__metadata__', None)
        tensors = {name: (entry['dtype'], tuple(entry['shape'])) for name, entry in header.items()}
        end = max((entry['data_offsets'][1] for entry in header.values()), default=0)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BackendError(
            f'{file} is no valid safetensors file ({one_line(error)}); download it again'
        ) from error
    if 8 + length + end > size:
        raise BackendError(f'{file} is cut short: {size} of {8 + length + end} bytes; download it again')
    return tensors


def _open_gguf(path: str) -> Checkpoint:
    checkpoint = Checkpoint(os.path.dirname(path), os.path.basename(path), file_bytes=os.path.getsize(path))
    with open(path, 'rb') as stream:
        if stream.read(4) != b'GGUF':
            raise BackendError(f'{path} is not a GGUF file; download it again')
    return checkpoint


def read_gguf(checkpoint: Checkpoint) -> None:
    """Fill in the tensors and the configuration of a GGUF file, with the names of config.json.

    Raises:
        BackendError: The file cannot be read.
    """
    gguf = require('gguf', 'hf')
    file = os.path.join(checkpoint.folder, checkpoint.gguf_file or '')
    try:
        reader = gguf.GGUFReader(file)
        fields = {name: value for name, value in reader.fields.items() if not name.startswith('tokenizer.')}
        values = {name: value.contents() for name, value in fields.items()}
        checkpoint.tensors = {
            tensor.name: ('F32', tuple(int(n) for n in tensor.shape)) for tensor in reader.tensors
        }
    except Exception as error:  # on a damaged file the reader raises any error of NumPy
        raise BackendError(f'{file} cannot be read ({one_line(error)}); download it again') from error
    kind = values.get('general.architecture', '')
    names = {
        'context_length': 'max_position_embeddings',
        'embedding_length': 'hidden_size',
        'block_count': 'num_hidden_layers',
        'attention.head_count': 'num_attention_heads',
        'attention.head_count_kv': 'num_key_value_heads',
        'attention.key_length': 'head_dim',
    }
    checkpoint.config = {'model_type': kind} | {
        ours: values[f'{kind}.{theirs}'] for theirs, ours in names.items() if f'{kind}.{theirs}' in values
    }


def train_context_length(config: dict) -> int | None:
    """Return the context that a model was trained for, in tokens; None if nothing limits it (recurrent
    models).
    """
    for name in LENGTHS:
        if isinstance(config.get(name), int) and config[name] > 0:
            return config[name]
    return None


def kv_bytes_per_token(config: dict, element_bytes: int) -> int:
    """Return the bytes of keys and values of one token over all layers; layers without attention have
    none.
    """

    def count(*names: str) -> int:
        return next((config[name] for name in names if isinstance(config.get(name), int)), 0)

    layers = count('num_hidden_layers', 'n_layer', 'n_layers', 'num_layers')
    kinds = config.get('layer_types') or config.get('layers_block_type')
    if isinstance(kinds, list):
        layers = sum('attention' in str(kind) and 'linear' not in str(kind) for kind in kinds)
    heads = count('num_attention_heads', 'n_head', 'n_heads')
    if not heads:
        return 0
    width = count('head_dim') or count('hidden_size', 'n_embd', 'd_model') // heads
    if count('kv_lora_rank'):  # DeepSeek's latent attention
        return layers * (count('kv_lora_rank') + count('qk_rope_head_dim')) * element_bytes
    return 2 * layers * (count('num_key_value_heads', 'num_kv_heads') or heads) * width * element_bytes
