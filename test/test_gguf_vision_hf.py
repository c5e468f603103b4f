"""The vision parts of small transformers models, written as mmproj files: llama.cpp embeds pictures as
transformers does.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip('llama_cpp')
pytest.importorskip('torch')
pytest.importorskip('transformers')

import vision_gguf
import vision_models
import vision_words
from safetensors.numpy import load_file

from ros2_nanochat import NanoLLM

ROUNDING = 1e-3  # of the largest value; llama.cpp looks GELU up in a table of 16 bits
NAMES = {
    'embeddings.patch_embedding': 'v.patch_embd',
    'embeddings.position_embedding': 'v.position_embd',
    'post_layernorm': 'v.post_ln',
    'layer_norm1': 'ln1',
    'layer_norm2': 'ln2',
    'self_attn.q_proj': 'attn_q',
    'self_attn.k_proj': 'attn_k',
    'self_attn.v_proj': 'attn_v',
    'self_attn.out_proj': 'attn_out',
    'mlp.fc1': 'ffn_up',
    'mlp.fc2': 'ffn_down',
    'connector.modality_projection.proj': 'mm.model.fc',
}


def gguf_name(name: str) -> str | None:
    """The name of a tensor of a SigLIP tower and its projector in an mmproj file; None if it is not there."""
    if name == 'multi_modal_projector.mm_input_projection_weight':
        return 'mm.input_projection.weight'
    if name == 'multi_modal_projector.mm_soft_emb_norm.weight':
        return 'mm.soft_emb_norm.weight'
    module, _, kind = name.rpartition('.')
    for prefix in ('vision_tower.', 'model.vision_model.', 'model.'):
        module = module.removeprefix(prefix)
    if module.startswith('encoder.layers.'):
        number, _, part = module.removeprefix('encoder.layers.').partition('.')
        return f'v.blk.{number}.{NAMES[part]}.{kind}'
    return f'{NAMES[module]}.{kind}' if module in NAMES else None


def write_mmproj(folder, path, projector: str) -> None:
    """Write the vision part of a checkpoint as float32."""
    config = json.loads((folder / 'config.json').read_text())
    processor = next(folder.glob('*processor_config.json'))
    processor = json.loads(processor.read_text())
    processor = processor.get('image_processor', processor)
    vision = config['vision_config']
    writer = vision_gguf._Writer(path, 'clip', 0)
    writer.add_bool('clip.has_vision_encoder', True)
    writer.add_string('clip.projector_type', projector)
    writer.add_bool('clip.use_gelu', True)
    for key, value in {
        'image_size': vision['image_size'],
        'patch_size': vision['patch_size'],
        'embedding_length': vision['hidden_size'],
        'feed_forward_length': vision['intermediate_size'],
        'projection_dim': config['text_config']['hidden_size'],
        'block_count': vision['num_hidden_layers'],
        'attention.head_count': vision['num_attention_heads'],
        'projector.scale_factor': 2,
        'preproc_image_size': 2 * vision['image_size'],
    }.items():
        writer.add_uint32(f'clip.vision.{key}', value)
    writer.add_float32('clip.vision.attention.layer_norm_epsilon', vision.get('layer_norm_eps', 1e-6))
    writer.add_array('clip.vision.image_mean', processor['image_mean'])
    writer.add_array('clip.vision.image_std', processor['image_std'])
    for name, tensor in load_file(folder / 'model.safetensors').items():
        if (known := gguf_name(name)) is not None:
            is_norm_of_gemma = known == 'mm.soft_emb_norm.weight'  # whose weights are counted from one
            writer.add_tensor(known, tensor.astype(np.float32) + is_norm_of_gemma)
    writer.finish()


@pytest.mark.parametrize(
    'family, make', [('gemma3', vision_models.gemma3), ('smolvlm', vision_models.idefics3)]
)
def test_rows_equal_those_over_hf(tmp_path, family, make):
    folder, model, mmproj = tmp_path / 'hf', str(tmp_path / 'model.gguf'), str(tmp_path / 'mmproj.gguf')
    make(folder)
    vision_gguf.write_text_model(model, family)
    write_mmproj(folder, mmproj, vision_gguf.FAMILIES[family].projector)
    picture = vision_words.picture(5, 32, 32)
    rows = []
    for path, options in ((model, {'vision': mmproj}), (str(folder), {'api': 'hf', 'device': 'cpu'})):
        with NanoLLM.from_pretrained(
            path, max_context_len=512, max_sequences=1, threads=1, **options
        ) as opened:
            rows.append(
                np.concatenate([part.rows for part in opened.embed_image(picture) if hasattr(part, 'rows')])
            )
    assert rows[0].shape == rows[1].shape
    assert np.abs(rows[0] - rows[1]).max() <= ROUNDING * np.abs(rows[1]).max()
