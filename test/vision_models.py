"""Small random checkpoints of models that see, and the tokenizer they share."""

from __future__ import annotations

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from vision_words import CHAT, MERGES, SPECIAL, ordinary_tokens

SIZE = 48


def tokenizer(image_text: str = '<image>') -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with a few merges, so that neighbours join, and every special token that a
    family needs.
    """
    made = Tokenizer(models.BPE({token: i for i, token in enumerate(ordinary_tokens())}, MERGES))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token='<s>',
        eos_token='<|im_end|>',
        pad_token='<pad>',
        chat_template=CHAT.replace('IMAGE', image_text),
        extra_special_tokens={
            'boi_token': '<start_of_image>',
            'eoi_token': '<end_of_image>',
            'image_token': image_text,
        },
    )


def text_settings(**more) -> dict:
    return {
        'hidden_size': 64,
        'intermediate_size': 96,
        'num_hidden_layers': 2,
        'num_attention_heads': 4,
        'num_key_value_heads': 2,
        'max_position_embeddings': 2048,
        'vocab_size': len(tokenizer()),
        'pad_token_id': None,
        'bos_token_id': None,
        'eos_token_id': None,
        **more,
    }


def tower(kind: str):
    settings = {
        'hidden_size': 32,
        'intermediate_size': 64,
        'num_hidden_layers': 4,
        'num_attention_heads': 4,
        'image_size': SIZE,
        'patch_size': 8,
    }
    return (
        transformers.CLIPVisionConfig(**settings)
        if kind == 'clip'
        else transformers.SiglipVisionConfig(**settings)
    )


def llava(folder, kind: str = 'clip', **options):
    """A LLaVA checkpoint with its tokenizer and processor; returns the model. kind: tower, clip or siglip;
    options: of its config.
    """
    words = tokenizer()
    options = {'text_config': transformers.LlamaConfig(**text_settings()), **options}
    config = transformers.LlavaConfig(
        vision_config=tower(kind), image_token_index=words.convert_tokens_to_ids('<image>'), **options
    )
    square = {'height': SIZE, 'width': SIZE}
    images = (
        transformers.CLIPImageProcessor(size={'shortest_edge': SIZE}, crop_size=square)
        if kind == 'clip'
        else transformers.SiglipImageProcessor(size=square)
    )
    extra = 1 if kind == 'clip' else 0
    return _save(
        folder,
        transformers.LlavaForConditionalGeneration(config),
        transformers.LlavaProcessor(
            images,
            words,
            patch_size=8,
            vision_feature_select_strategy=config.vision_feature_select_strategy,
            num_additional_image_tokens=extra,
        ),
    )


def llava_next(folder):
    """A LLaVA-NeXT checkpoint: tiles of three shapes."""
    words, grid = tokenizer(), [[SIZE, 2 * SIZE], [2 * SIZE, SIZE], [2 * SIZE, 2 * SIZE]]
    config = transformers.LlavaNextConfig(
        vision_config=tower('clip'),
        text_config=transformers.LlamaConfig(**text_settings()),
        image_grid_pinpoints=grid,
        image_token_index=words.convert_tokens_to_ids('<image>'),
    )
    images = transformers.LlavaNextImageProcessor(
        size={'shortest_edge': SIZE}, crop_size={'height': SIZE, 'width': SIZE}, image_grid_pinpoints=grid
    )
    return _save(
        folder,
        transformers.LlavaNextForConditionalGeneration(config),
        transformers.LlavaNextProcessor(
            images,
            words,
            patch_size=8,
            vision_feature_select_strategy='default',
            num_additional_image_tokens=1,
        ),
    )


def _save(folder, model, processor):
    torch.manual_seed(0)
    with torch.no_grad():  # large enough for the answers to depend on the picture
        for parameter in model.parameters():
            parameter.copy_(
                torch.randn_like(parameter) * (0.15 if parameter.ndim > 1 else 0.02)
                + (0 if parameter.ndim > 1 else 1)
            )
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)
    return model


def qwen2_vl(folder, release: str = '2'):
    """A Qwen2-VL checkpoint: positions on three axes. release: 2, 2_5 (whose tower looks through windows), 3
    (which adds the picture in several layers) or 3_moe.
    """
    words = tokenizer('<|vision_start|><|image_pad|><|vision_end|>')
    number = words.convert_tokens_to_ids
    text = text_settings(
        rope_parameters={'rope_type': 'default', 'mrope_section': [2, 3, 3], 'rope_theta': 10000.0}
    )
    vision = {'depth': 2, 'num_heads': 2, 'patch_size': 8, 'spatial_merge_size': 2, 'temporal_patch_size': 2}
    vision |= {
        '2': dict(embed_dim=32, hidden_size=64, mlp_ratio=2),
        '2_5': dict(
            hidden_size=32,
            out_hidden_size=64,
            intermediate_size=48,
            window_size=32,
            fullatt_block_indexes=[1],
            tokens_per_second=2,
        ),
        '3': dict(
            hidden_size=32,
            out_hidden_size=64,
            intermediate_size=48,
            num_position_embeddings=64,
            deepstack_visual_indexes=[0, 1],
        ),
    }[release.removesuffix('_moe')]
    if release == '3_moe':
        text |= {'num_experts': 4, 'num_experts_per_tok': 2, 'moe_intermediate_size': 48}
    name = {'2_5': 'Qwen2_5_VLConfig', '3_moe': 'Qwen3VLMoeConfig'}.get(release, f'Qwen{release}VLConfig')
    config = getattr(transformers, name)(
        text_config=text,
        vision_config=vision,
        image_token_id=number('<|image_pad|>'),
        video_token_id=number('<|video_pad|>'),
        vision_start_token_id=number('<|vision_start|>'),
        vision_end_token_id=number('<|vision_end|>'),
    )
    images = transformers.Qwen2VLImageProcessor(
        patch_size=8, merge_size=2, temporal_patch_size=2, min_pixels=16 * 16, max_pixels=96 * 96
    )
    model = _randomized(transformers.AutoModelForImageTextToText.from_config(config))
    model.save_pretrained(folder)
    images.save_pretrained(folder)
    words.init_kwargs.pop('image_token', None)
    words.save_pretrained(folder)
    return model, images, words


def _tiled(kind, words):
    """A configuration of Idefics3's form."""
    return kind(
        text_config=transformers.LlamaConfig(**text_settings()),
        scale_factor=2,
        image_token_id=words.convert_tokens_to_ids('<image>'),
        vision_config=dict(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
        ),
    )


def idefics3(folder):
    """An Idefics3 checkpoint: a picture in tiles, with markup between them."""
    words = tokenizer()
    config = _tiled(transformers.Idefics3Config, words)
    images = transformers.Idefics3ImageProcessor(
        size={'longest_edge': 64}, max_image_size={'longest_edge': 32}
    )
    return _save(
        folder,
        transformers.Idefics3ForConditionalGeneration(config),
        transformers.Idefics3Processor(images, words, image_seq_len=4),
    )


def smolvlm(folder):
    """A SmolVLM checkpoint. Its own processor wants packages for videos, so that of its pictures is saved, as
    its checkpoints hold it.
    """
    words = tokenizer()
    config = _tiled(transformers.SmolVLMConfig, words)
    images = transformers.SmolVLMImageProcessor(
        size={'longest_edge': 64}, max_image_size={'longest_edge': 32}
    )
    model = _randomized(transformers.SmolVLMForConditionalGeneration(config))
    model.save_pretrained(folder)
    images.save_pretrained(folder)
    words.save_pretrained(folder)
    return model, images, words


def paligemma(folder, release: int = 1):
    """A PaliGemma checkpoint: picture and question attend to one another. release: 1, or 2 (capped scores,
    and every other layer looks through a window).
    """
    words = tokenizer()
    words.chat_template = None
    config = transformers.PaliGemmaConfig(
        text_config=text_settings(
            head_dim=16,
            **{
                1: dict(model_type='gemma'),
                2: dict(model_type='gemma2', query_pre_attn_scalar=16, sliding_window=24),
            }[release],
        ),
        image_token_index=words.convert_tokens_to_ids('<image>'),
        projection_dim=64,
        vision_config=dict(
            model_type='siglip_vision_model',
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
            projection_dim=64,
        ),
    )
    images = transformers.SiglipImageProcessor(size={'height': 32, 'width': 32})
    images.image_seq_length = 16
    return _save(
        folder,
        transformers.PaliGemmaForConditionalGeneration(config),
        transformers.PaliGemmaProcessor(images, words),
    )


def gemma3(folder):
    """A Gemma 3 checkpoint: the rows of a picture attend to one another."""
    words = tokenizer('<start_of_image>')
    words.init_kwargs['extra_special_tokens'] = {
        'boi_token': '<start_of_image>',
        'eoi_token': '<end_of_image>',
        'image_token': '<image_soft_token>',
    }
    for name, value in words.init_kwargs['extra_special_tokens'].items():
        setattr(words, name, value)
    config = transformers.Gemma3Config(
        text_config=text_settings(head_dim=16, sliding_window=512),
        mm_tokens_per_image=4,
        image_token_id=words.convert_tokens_to_ids('<image_soft_token>'),
        boi_token_index=words.convert_tokens_to_ids('<start_of_image>'),
        eoi_token_index=words.convert_tokens_to_ids('<end_of_image>'),
        vision_config=dict(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
        ),
    )
    images = transformers.Gemma3ImageProcessor(size={'height': 32, 'width': 32})
    return _save(
        folder,
        transformers.Gemma3ForConditionalGeneration(config),
        transformers.Gemma3Processor(images, words, image_seq_length=4),
    )


def _randomized(model):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(
                torch.randn_like(parameter) * (0.15 if parameter.ndim > 1 else 0.02)
                + (0 if parameter.ndim > 1 else 1)
            )
    return model.eval()
