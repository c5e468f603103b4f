"""Writes the tiny vision encoder as an mmproj file of llama.cpp: tools/make_tiny_mmproj.py [FOLDER] [OUT]

Reads `config.json`, `preprocessor_config.json` and `model.safetensors` of a checkpoint of LLaVA form with a
CLIP tower and a projector of two layers; without torch. Needs the packages gguf and safetensors.
"""

import json
import sys
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import load_file

TINY = Path(__file__).parent.parent / 'ros2_nanochat' / 'vision' / 'tiny'
FIXED = {
    'vision_tower.embeddings.patch_embedding.weight': 'v.patch_embd.weight',
    'vision_tower.embeddings.position_embedding.weight': 'v.position_embd.weight',
    'vision_tower.pre_layrnorm.weight': 'v.pre_ln.weight',
    'vision_tower.pre_layrnorm.bias': 'v.pre_ln.bias',
    'multi_modal_projector.linear_1.weight': 'mm.0.weight',
    'multi_modal_projector.linear_1.bias': 'mm.0.bias',
    'multi_modal_projector.linear_2.weight': 'mm.2.weight',
    'multi_modal_projector.linear_2.bias': 'mm.2.bias',
}
IN_LAYERS = {
    'layer_norm1': 'ln1',
    'layer_norm2': 'ln2',
    'mlp.fc1': 'ffn_up',
    'mlp.fc2': 'ffn_down',
    'self_attn.q_proj': 'attn_q',
    'self_attn.k_proj': 'attn_k',
    'self_attn.v_proj': 'attn_v',
    'self_attn.out_proj': 'attn_out',
}
LAYERS = 'vision_tower.encoder.layers.'
CLASS = 'vision_tower.embeddings.class_embedding'
UNUSED = (
    'vision_tower.post_layernorm',  # LLaVA reads the layer before it
    # With a class token, llama.cpp gives the rows of all patches but the first, and that of the token.
    # Nothing reads the token's row, and without it the others hardly change (correlation 0.999).
    CLASS,
)


def name_in_gguf(name: str) -> str:
    if name in FIXED:
        return FIXED[name]
    layer, _, part = name.removeprefix(LAYERS).partition('.')
    module, _, kind = part.rpartition('.')
    return f'v.blk.{layer}.{IN_LAYERS[module]}.{kind}'


def main(folder: Path, out: Path) -> None:
    config = json.loads((folder / 'config.json').read_text())
    processor = json.loads((folder / 'preprocessor_config.json').read_text())
    vision = config['vision_config']
    writer = gguf.GGUFWriter(out, 'clip')
    writer.add_string('general.type', 'mmproj')
    writer.add_name('The tiny vision encoder of nanochat')
    writer.add_bool('clip.has_vision_encoder', True)
    writer.add_string('clip.projector_type', 'mlp')
    for name, value in (
        ('image_size', vision['image_size']),
        ('patch_size', vision['patch_size']),
        ('embedding_length', vision['hidden_size']),
        ('feed_forward_length', vision['intermediate_size']),
        ('projection_dim', config['text_config']['hidden_size']),
        ('block_count', vision['num_hidden_layers']),
        ('attention.head_count', vision['num_attention_heads']),
    ):
        writer.add_uint32(f'clip.vision.{name}', value)
    writer.add_float32('clip.vision.attention.layer_norm_epsilon', vision.get('layer_norm_eps', 1e-5))
    writer.add_array('clip.vision.image_mean', processor['image_mean'])
    writer.add_array('clip.vision.image_std', processor['image_std'])
    writer.add_array('clip.vision.feature_layer', [vision['num_hidden_layers']])
    # Ours: pictures are stretched to this size, as the checkpoint was trained; llama.cpp would add borders.
    writer.add_uint32('nanochat.stretch', vision['image_size'])
    for source, tensor in load_file(folder / 'model.safetensors').items():
        if source.startswith(UNUSED):
            continue
        name = name_in_gguf(source)
        if name == 'v.position_embd.weight':
            tensor = tensor[1:]  # the first is that of the class token
        is_small = tensor.ndim < 2 or 'position' in name
        writer.add_tensor(name, tensor.astype(np.float32 if is_small else np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == '__main__':
    arguments = [Path(argument) for argument in sys.argv[1:3]]
    folder = arguments[0] if arguments else TINY
    main(folder, arguments[1] if len(arguments) > 1 else folder / 'mmproj-tiny-f16.gguf')
