"""A checkpoint of transformers as mlc_llm reads it: a folder of links to its files, with a `config.json` of
the older form.

transformers 5 writes `rope_parameters` and `dtype` where mlc_llm (as of 2026) looks for `rope_theta`,
`rope_scaling` and `torch_dtype`, and would take the default rope base without a word. It leaves out or
renames more that mlc_llm wants. Knows files; runs nothing.
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
"""What transformers 5 no longer writes, with the only value that its models have."""
_BESIDE = ('chat_template.jinja', 'chat_template.json', 'generation_config.json', 'special_tokens_map.json')


def check_checkpoint(path: str) -> dict:
    """The `config.json` of a folder with a checkpoint; a BackendError says what it lacks."""
    if not os.path.isdir(path):
        raise BackendError(
            f'{path} is no folder: quantizing for MLC takes the folder of a checkpoint in the form of'
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
    """Fill the empty folder `target` with links to the files of a checkpoint, and a configuration that
    mlc_llm understands.
    """
    for name in os.listdir(path):
        if name != 'config.json' and os.path.isfile(os.path.join(path, name)):
            os.symlink(os.path.realpath(os.path.join(path, name)), os.path.join(target, name))
    with open(os.path.join(target, 'config.json'), 'w', encoding='utf-8') as file:
        json.dump(older_config(read_json(path, 'config.json')), file, indent=2)


def older_config(config: dict) -> dict:
    """The configuration with what transformers 5 has renamed under both names, its text part likewise."""
    config = dict(config)
    if isinstance(config.get('text_config'), dict):
        config['text_config'] = older_config(config['text_config'])
    for new, old in _RENAMED:
        if config.get(new) is not None:
            config.setdefault(old, config[new])
    for name, value in _DROPPED.get(str(config.get('model_type')), {}).items():
        config.setdefault(name, value)
    if config.get('model_type') == 'llava':
        _share_vocabulary(config)
    rope = config.get('rope_parameters')
    if isinstance(rope, dict):
        local, whole = rope.get('sliding_attention'), rope.get('full_attention')
        if isinstance(local, dict):  # one for each kind of attention, as Gemma 3 has it
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
    """Give a LLaVA and its parts the `vocab_size` that mlc_llm wants of each; transformers writes one."""
    parts = {name: dict(config[name]) for name in ('text_config', 'vision_config') if name in config}
    sizes = [part.get('vocab_size') for part in (config, *parts.values())]
    size = next((size for size in sizes if size), None)
    if size is not None:
        for part in (config, *parts.values()):
            part.setdefault('vocab_size', size)
    config.update(parts)


def beside_tokenizer(path: str) -> list[str]:
    """Files that mlc_llm leaves behind and that tell of templates and end tokens."""
    return [os.path.join(path, name) for name in _BESIDE if os.path.isfile(os.path.join(path, name))]


def conversation_name(path: str) -> str:
    """The name under which mlc_llm knows the model's conversations. (It must be given one; here the
    tokenizer's own template counts.)
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
    """Bytes of the checkpoint's weights."""
    for pattern in WEIGHTS:
        if files := glob.glob(os.path.join(glob.escape(path), pattern)):
            return sum(os.path.getsize(file) for file in files)
    return 0
