"""Rows of pictures beside those of transformers, for families whose processors need torchvision.

The pixels are given to a small transformers model, and its weights are written as an mmproj file under the
names that llama.cpp's own table has for them.
"""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip('llama_cpp')
pytest.importorskip('gguf')
pytest.importorskip('torch')
pytest.importorskip('transformers')

import gguf
import torch
import transformers
import vision_gguf
import vision_models
import vision_words
from vision_projectors import PROJECTORS

from ros2_nanochat import NanoLLM

ROUNDING = 1e-3  # of the largest value; llama.cpp looks GELU up in a table of 16 bits
MEAN, STD = 0.5, 0.5
E, F, PATCH, WIDTH = 32, 48, 8, 64
TOWER = {
    'hidden_size': E,
    'intermediate_size': F,
    'num_hidden_layers': 2,
    'num_attention_heads': 2,
    'patch_size': PATCH,
}
TANH = 'gelu_pytorch_tanh'  # as llama.cpp computes it


def text():
    return transformers.LlamaConfig(**vision_models.text_settings())


def values(picture: np.ndarray) -> torch.Tensor:
    """[1, 3, h, w]."""
    return torch.from_numpy((picture.astype(np.float32) / 255 - MEAN) / STD).permute(2, 0, 1)[None]


def patches(picture: np.ndarray) -> torch.Tensor:
    """[1, patches, p * p * 3]."""
    height, width = (side // PATCH for side in picture.shape[:2])
    cut = values(picture)[0].reshape(3, height, PATCH, width, PATCH).permute(1, 3, 2, 4, 0)
    return cut.reshape(1, height * width, -1)


def interleaved(weights: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of queries and keys in the order in which llama.cpp rotates them."""
    return weights.reshape(heads, 2, -1, *weights.shape[1:]).swapaxes(1, 2).reshape(weights.shape)


def internvl():
    vision = transformers.InternVLVisionConfig(
        **TOWER, image_size=[48, 48], attention_bias=True, hidden_act=TANH, layer_norm_eps=1e-5
    )
    config = transformers.InternVLConfig(
        vision_config=vision, text_config=text(), image_token_id=3, projector_hidden_act=TANH
    )
    model = vision_models._randomized(transformers.InternVLForConditionalGeneration(config))
    names = {'layer_norm': 'mm.model.mlp.0', 'linear_1': 'mm.model.mlp.1', 'linear_2': 'mm.model.mlp.3'}

    def change(name: str, tensor: torch.Tensor):
        if 'position_embeddings' in name:  # llama.cpp puts the class token behind the patches
            tensor = tensor[0].roll(-1, 0)
        if 'cls_token' in name:
            tensor = tensor.flatten()
        return tensor

    return model, names, change, (48, 48), lambda m, p: m.get_image_features(pixel_values=values(p))


def lfm2():
    vision = transformers.Siglip2VisionConfig(
        **TOWER, num_patches=256, hidden_act=TANH, layer_norm_eps=1e-5, vision_use_head=False
    )
    config = transformers.Lfm2VlConfig(
        vision_config=vision,
        text_config=text(),
        image_token_id=3,
        downsample_factor=2,
        projector_hidden_size=F,
        projector_hidden_act=TANH,
    )
    model = vision_models._randomized(transformers.Lfm2VlForConditionalGeneration(config))
    names = {'layer_norm': 'mm.input_norm', 'linear_1': 'mm.1', 'linear_2': 'mm.2'}

    def change(name: str, tensor: torch.Tensor):
        if 'patch_embedding.weight' in name:
            return tensor.reshape(E, PATCH, PATCH, 3).permute(0, 3, 1, 2)
        return tensor

    def features(model, picture):
        shape = torch.tensor([[side // PATCH for side in picture.shape[:2]]])
        cut = patches(picture)
        return model.get_image_features(
            pixel_values=cut, spatial_shapes=shape, pixel_attention_mask=torch.ones(cut.shape[:2]).int()
        )

    return model, names, change, (128, 128), features


def pixtral():
    vision = transformers.PixtralVisionConfig(**TOWER, image_size=64, head_dim=16, hidden_act='silu')
    config = transformers.LlavaConfig(
        vision_config=vision,
        text_config=text(),
        image_token_index=3,
        projector_hidden_act=TANH,
        vision_feature_select_strategy='full',
        vision_feature_layer=-1,
    )
    model = vision_models._randomized(transformers.LlavaForConditionalGeneration(config))
    return model, {'linear_1': 'mm.1', 'linear_2': 'mm.2'}, *_mistral()


def mistral3():
    vision = transformers.PixtralVisionConfig(**TOWER, image_size=64, head_dim=16, hidden_act='silu')
    settings = transformers.MistralConfig(**vision_models.text_settings(rms_norm_eps=1e-5))
    config = transformers.Mistral3Config(
        vision_config=vision,
        text_config=settings,
        image_token_index=3,
        projector_hidden_act=TANH,
        spatial_merge_size=2,
        vision_feature_layer=-1,
    )
    model = vision_models._randomized(transformers.Mistral3ForConditionalGeneration(config))
    names = {
        'linear_1': 'mm.1',
        'linear_2': 'mm.2',
        'norm': 'mm.input_norm',
        'merging_layer': 'mm.patch_merger',
    }
    return model, names, *_mistral()


def _mistral():
    def change(name: str, tensor: torch.Tensor):
        return interleaved(tensor, 2) if 'q_proj' in name or 'k_proj' in name else tensor

    def features(model, picture):
        sizes = torch.tensor([picture.shape[:2]])
        return model.get_image_features(pixel_values=values(picture), image_sizes=sizes)

    return change, (64, 48), features


def glm_4v():
    vision = transformers.models.glm4v.Glm4vVisionConfig(
        depth=2,
        hidden_size=E,
        num_heads=2,
        image_size=64,
        patch_size=PATCH,
        out_hidden_size=WIDTH,
        intermediate_size=F,
        spatial_merge_size=2,
        temporal_patch_size=2,
        rms_norm_eps=1e-5,
        hidden_act='silu',
    )
    rope = {'rope_type': 'default', 'mrope_section': [2, 3, 3], 'rope_theta': 10000.0}
    config = transformers.Glm4vConfig(
        vision_config=vision, text_config=vision_models.text_settings(rope_parameters=rope)
    )
    model = vision_models._randomized(transformers.Glm4vForConditionalGeneration(config))
    processor = transformers.Qwen2VLImageProcessor(
        patch_size=PATCH,
        merge_size=2,
        temporal_patch_size=2,
        min_pixels=32 * 32,
        max_pixels=256 * 256,
        image_mean=[MEAN] * 3,
        image_std=[STD] * 3,
    )
    names = {
        'merger.proj': 'mm.model.fc',
        'merger.post_projection_norm': 'mm.post_norm',
        'merger.up_proj': 'mm.up',
        'merger.gate_proj': 'mm.gate',
        'merger.down_proj': 'mm.down',
        'downsample': 'mm.patch_merger',
    }

    def features(model, picture):
        inputs = processor(images=[picture], return_tensors='pt')
        return model.get_image_features(
            pixel_values=inputs['pixel_values'], image_grid_thw=inputs['image_grid_thw']
        )

    return model, names, lambda name, tensor: tensor, (64, 64), features


FAMILIES = {
    'internvl': (internvl, vision_gguf.FAMILIES['internvl'], {'projector.scale_factor': 2}),
    'lfm2-vl': (lfm2, PROJECTORS['lfm2-vl'].family, {'projector.scale_factor': 2}),
    'pixtral': (pixtral, vision_gguf.FAMILIES['pixtral'], {'spatial_merge_size': 1}),
    'mistral3': (mistral3, PROJECTORS['mistral3'].family, {'spatial_merge_size': 2}),
    'glm-4v': (glm_4v, PROJECTORS['glm-4v'].family, {'spatial_merge_size': 2}),
}


def write_mmproj(path, model, names: dict, change, family, sizes: dict) -> None:
    """Write the vision part of a model as float32; names: those that llama.cpp's own table does not have."""
    writer = vision_gguf._Writer(path, 'clip', 0)
    writer.add_bool('clip.has_vision_encoder', True)
    writer.add_string('clip.projector_type', family.projector)
    is_silu = family.projector in ('pixtral', 'glm4v')
    writer.add_bool('clip.use_silu' if is_silu else 'clip.use_gelu', True)
    common = {
        'image_size': 64 if family.projector != 'internvl' else 48,
        'patch_size': PATCH,
        'embedding_length': E,
        'feed_forward_length': F,
        'projection_dim': WIDTH,
        'block_count': 2,
        'attention.head_count': 2,
    }
    for key, value in (common | sizes).items():
        writer.add_uint32(f'clip.vision.{key}', value)
    writer.add_float32('clip.vision.attention.layer_norm_epsilon', 1e-5)
    writer.add_array('clip.vision.image_mean', [MEAN] * 3)
    writer.add_array('clip.vision.image_std', [STD] * 3)
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, 2)
    for name, tensor in model.state_dict().items():
        module, _, kind = name.removeprefix('model.').rpartition('.')
        if not module.startswith(('vision_tower', 'multi_modal_projector', 'visual')):
            continue
        tensor = change(name, tensor)
        known = next((to for end, to in names.items() if module.endswith('.' + end)), None)
        if 'multi_modal_projector' not in module and 'merger' not in module and 'downsample' not in module:
            known = None
        if known is None:
            own = module if kind in ('weight', 'bias') else f'{module}.{kind}'
            ways = own, f'model.{own}', own.replace('vision_tower.', 'vision_tower.vision_model.')
            known = next((to for to in map(table.get_name, ways) if to), None)
            kind = kind if own == module else 'weight'
        assert known, name
        if tensor.ndim == 5:  # over two frames
            writer.add_tensor(f'{known}.weight', tensor[:, :, 0].contiguous().numpy())
            writer.add_tensor(f'{known}.weight.1', tensor[:, :, 1].contiguous().numpy())
            continue
        full = known if known == 'v.class_embd' else f'{known}.{kind}'
        writer.add_tensor(full, tensor.contiguous().numpy())
    if family.projector == 'pixtral':
        writer.matrix('v.token_embd.img_break', WIDTH)
    writer.finish()


@pytest.mark.parametrize(
    'name',
    [
        pytest.param(name, marks=() if name in ('pixtral', 'glm-4v') else pytest.mark.long)
        for name in FAMILIES
    ],
)
def test_rows_equal_those_of_transformers(tmp_path, name):
    make, family, sizes = FAMILIES[name]
    model, names, change, (width, height), features = make()
    path, mmproj = str(tmp_path / 'model.gguf'), str(tmp_path / 'mmproj.gguf')
    vision_gguf.write_text_model(path, family)
    write_mmproj(mmproj, model, names, change, family, sizes)
    picture = np.asarray(vision_words.picture(5, width, height))
    with torch.inference_mode():
        found = features(model, picture)
    wanted = torch.cat([rows.reshape(-1, WIDTH) for rows in found.pooler_output]).float().numpy()
    with NanoLLM.from_pretrained(
        path, vision=mmproj, max_context_len=512, max_sequences=1, threads=1
    ) as opened:
        parts = opened.embed_image(picture)
    rows = np.concatenate([part.rows for part in parts if hasattr(part, 'rows')])
    if family.projector == 'pixtral':  # a mark ends each line but the last
        across = width // PATCH // sizes['spatial_merge_size'] + 1
        rows = rows[np.arange(len(rows)) % across != across - 1]
    assert rows.shape == wanted.shape
    assert np.abs(rows - wanted).max() <= ROUNDING * np.abs(wanted).max()
