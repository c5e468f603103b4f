"""A transformers checkpoint in the form that mlc_llm reads: a folder of links to its files, with a
`config.json` in the older form.

transformers 5 writes `rope_parameters` and `dtype`, but mlc_llm (as of 2026) reads `rope_theta`,
`rope_scaling` and `torch_dtype`, and would silently use the default rope base. It also omits or renames other
values that mlc_llm needs. Knows files; runs nothing.
"""

from __future__ import annotations

import glob
import json
import os

from ros2_nanochat.errors import BackendError
from ros2_nanochat.files import read_json

WEIGHTS = ('*.safetensors', 'pytorch_model*.bin')
_RENAMED = (
    ('dtype', 'torch_dtype'),
    ('num_local_experts', 'num_experts'),  # Qwen 3 MoE
    ('num_experts', 'num_local_experts'),
)
_DROPPED: dict[str, dict] = {
    'deepseek_v2': {'moe_layer_freq': 1, 'scoring_func': 'softmax'},
    'deepseek_v3': {'moe_layer_freq': 1, 'scoring_func': 'sigmoid', 'topk_method': 'noaux_tc'},
}
"""Settings that transformers 5 no longer writes, with the only value that its models use."""
_FLAT = ('qwen2_5_vl',)
"""Models whose language settings transformers 5 moved into a part, where mlc_llm does not look."""
_BESIDE = ('chat_template.jinja', 'chat_template.json', 'generation_config.json', 'special_tokens_map.json')


def check_checkpoint(path: str) -> dict:
    """Return the `config.json` of a folder with a checkpoint.

    Raises:
        BackendError: The folder is not a complete checkpoint.
    """
    if not os.path.isdir(path):
        raise BackendError(
            f'{path} is not a folder: quantizing for MLC takes the folder of a checkpoint in the form of'
            ' transformers'
        )
    config = read_json(path, 'config.json')
    if not config:
        raise BackendError(
            f'{path} holds neither a model of MLC-LLM (mlc-chat-config.json) nor a checkpoint of transformers'
            ' (config.json)'
        )
    if not any(glob.glob(os.path.join(glob.escape(path), pattern)) for pattern in WEIGHTS):
        raise BackendError(
            f'{path} has no weights: no file like {" or ".join(WEIGHTS)}; download the checkpoint whole'
        )
    return config


def make_view(path: str, target: str) -> None:
    """Fill an empty folder with links to the files of a checkpoint, and a configuration that mlc_llm
    understands.

    Args:
        path: The checkpoint.
        target: The empty folder.
    """
    for name in os.listdir(path):
        if name != 'config.json' and os.path.isfile(os.path.join(path, name)):
            os.symlink(os.path.realpath(os.path.join(path, name)), os.path.join(target, name))
    with open(os.path.join(target, 'config.json'), 'w', encoding='utf-8') as file:
        json.dump(older_config(read_json(path, 'config.json')), file, indent=2)


def older_config(config: dict) -> dict:
    """Return the configuration with the settings that transformers 5 renamed under both names, also in its
    text part.
    """
    config = dict(config)
    if isinstance(config.get('text_config'), dict):
        config['text_config'] = older_config(config['text_config'])
    for new, old in _RENAMED:
        if config.get(new) is not None:
            config.setdefault(old, config[new])
    for name, value in _DROPPED.get(str(config.get('model_type')), {}).items():
        config.setdefault(name, value)
    text = config.get('text_config')
    if isinstance(text, dict):
        # mlc_llm reads some models' language part from the top, and the vocabulary of others
        flat = text if config.get('model_type') in _FLAT else {'vocab_size': text.get('vocab_size')}
        for name, value in flat.items():
            if value is not None and name not in ('model_type', 'architectures'):
                config.setdefault(name, value)
    if config.get('model_type') == 'llava':
        _share_vocabulary(config)
    rope = config.get('rope_parameters')
    if isinstance(rope, dict):
        local, whole = rope.get('sliding_attention'), rope.get('full_attention')
        if isinstance(local, dict):  # one for each kind of attention, as in Gemma 3
            config.setdefault('rope_local_base_freq', local.get('rope_theta', 10000.0))
        if isinstance(whole, dict):
            rope = whole
        for name in ('rope_theta', 'partial_rotary_factor'):
            if rope.get(name) is not None:
                config.setdefault(name, rope[name])
        if config.get('partial_rotary_factor') is not None:
            config.setdefault('rotary_pct', config['partial_rotary_factor'])  # GPT-NeoX
        if rope.get('rope_type', 'default') != 'default' and not config.get('rope_scaling'):
            config['rope_scaling'] = {
                name: value
                for name, value in rope.items()
                if name not in ('rope_theta', 'partial_rotary_factor')
            }
    return config


def _share_vocabulary(config: dict) -> None:
    """Give a LLaVA and its parts the `vocab_size` that mlc_llm needs in each; transformers writes it once."""
    parts = {name: dict(config[name]) for name in ('text_config', 'vision_config') if name in config}
    sizes = [part.get('vocab_size') for part in (config, *parts.values())]
    size = next((size for size in sizes if size), None)
    if size is not None:
        for part in (config, *parts.values()):
            part.setdefault('vocab_size', size)
    config.update(parts)


def beside_tokenizer(path: str) -> list[str]:
    """Return the files about templates and end tokens that mlc_llm does not copy."""
    return [os.path.join(path, name) for name in _BESIDE if os.path.isfile(os.path.join(path, name))]


def conversation_name(path: str) -> str:
    """Return mlc_llm's name for the model's conversation template. (mlc_llm requires one; we use the
    tokenizer's own template.)
    """
    words = ''
    for name in ('tokenizer_config.json', 'tokenizer.json'):
        file = os.path.join(path, name)
        if os.path.isfile(file):
            with open(file, encoding='utf-8', errors='replace') as stream:
                words += stream.read()
    for mark, name in (
        ('<|im_start|>', 'chatml'),
        ('<|eot_id|>', 'llama-3'),
        ('<start_of_turn>', 'gemma_instruction'),
    ):
        if mark in words:
            return name
    return 'LM'


def size_of_weights(path: str) -> int:
    """Return the bytes of the checkpoint's weights."""
    for pattern in WEIGHTS:
        if files := glob.glob(os.path.join(glob.escape(path), pattern)):
            return sum(os.path.getsize(file) for file in files)
    return 0
