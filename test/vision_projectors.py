"""Small random mmproj files for the projectors of libmtmd beyond those of `vision_gguf`.

Shapes and names are what llama.cpp reads (tools/mtmd/clip.cpp and tools/mtmd/models).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from vision_gguf import EYE, EYE_HEADS, EYE_HIDDEN, EYE_LAYERS, PATCH, SIZE, WIDTH, Family, write_text_model
from vision_gguf import _Writer as Writer

E, F, W = EYE, EYE_HIDDEN, WIDTH
PATCHES = (SIZE // PATCH) ** 2
PIXELS = {'image_min_pixels': 32 * 32, 'image_max_pixels': 96 * 96}


@dataclass(frozen=True)
class Projector:
    """How the file of one projector is written.

    Attributes:
        family: The language model beside it.
        write: Writes the tensors.
        activation: `use_gelu`, `use_silu` or nothing.
        sizes: Keys below `clip.vision`.
        seed: Of the random values; another one where a reply would end at once.
    """

    family: Family
    write: Callable[[Writer], None]
    activation: str
    sizes: dict = field(default_factory=dict)
    seed: int = 1


PROJECTORS: dict[str, Projector] = {}


def _projector(
    name: str,
    kind: str = '',
    marker: str = '<image>',
    special: tuple[str, ...] = (),
    text: str = 'llama',
    width: int = W,
    activation: str = 'use_gelu',
    seed: int = 1,
    **sizes,
):
    def keep(write):
        family = Family(text, kind or name, marker, special, width)
        PROJECTORS[name] = Projector(family, write, activation, sizes, seed)
        return write

    return keep


def write_projector(path, name: str, **changed) -> None:
    """Write the vision part of a family. changed: keys below `clip.vision`."""
    made = PROJECTORS[name]
    writer = Writer(path, 'clip', made.seed)
    writer.add_string('general.type', 'mmproj')
    writer.add_bool('clip.has_vision_encoder', True)
    writer.add_string('clip.projector_type', made.family.projector)
    sizes = {
        'image_size': SIZE,
        'patch_size': PATCH,
        'embedding_length': E,
        'feed_forward_length': F,
        'projection_dim': made.family.width,
        'block_count': EYE_LAYERS,
        'attention.head_count': EYE_HEADS,
        **made.sizes,
        **changed,
    }
    for key, value in sizes.items():
        add = {int: writer.add_uint32, float: writer.add_float32, list: writer.add_array}[type(value)]
        add(f'clip.vision.{key}', value)
    writer.add_float32('clip.vision.attention.layer_norm_epsilon', 1e-5)
    writer.add_array('clip.vision.image_mean', [0.5, 0.5, 0.5])
    writer.add_array('clip.vision.image_std', [0.5, 0.5, 0.5])
    if made.activation:
        writer.add_bool(f'clip.{made.activation}', True)
    made.write(writer)
    writer.finish()


def write_files(folder, name: str) -> tuple[str, str]:
    """Write a language model and its vision part; return their paths."""
    model, mmproj = (os.path.join(folder, each) for each in (f'{name}.gguf', f'mmproj-{name}-f16.gguf'))
    write_text_model(model, PROJECTORS[name].family)
    write_projector(mmproj, name)
    return model, mmproj


# --- parts ---


def _patches(w: Writer, second: bool = False, bias: bool = False, patch: int = PATCH, embed: int = E) -> None:
    w.matrix('v.patch_embd.weight', embed, 3, patch, patch, scale=0.1)
    if second:
        w.matrix('v.patch_embd.weight.1', embed, 3, patch, patch, scale=0.1)
    if bias:
        w.matrix('v.patch_embd.bias', embed, scale=0.1)


def _two_layers(w: Writer, hidden: int, inputs: int, bias: bool = True) -> None:
    """The usual projection to the language model."""
    w.linear('mm.0', hidden, inputs, bias)
    w.linear('mm.2', W, hidden, bias)


def _places(w: Writer, count: int = PATCHES, embed: int = E) -> None:
    w.matrix('v.position_embd.weight', count, embed)


def _layers(
    w: Writer,
    bias: bool = True,
    norm_bias: bool = True,
    gate: bool = False,
    fused: bool = False,
    kv_heads: int = EYE_HEADS,
    embed: int = E,
    count: int = EYE_LAYERS,
) -> None:
    head = embed // EYE_HEADS
    for n in range(count):
        block = f'v.blk.{n}'
        w.norm(f'{block}.ln1', embed, norm_bias)
        w.norm(f'{block}.ln2', embed, norm_bias)
        if fused:
            w.linear(f'{block}.attn_qkv', embed + 2 * kv_heads * head, embed, bias)
        else:
            for part, heads in (('q', EYE_HEADS), ('k', kv_heads), ('v', kv_heads)):
                w.linear(f'{block}.attn_{part}', heads * head, embed, bias)
        w.linear(f'{block}.attn_out', embed, embed, bias)
        w.linear(f'{block}.ffn_up', F, embed, bias)
        w.linear(f'{block}.ffn_down', embed, F, bias)
        if gate:
            w.linear(f'{block}.ffn_gate', F, embed, bias)


def _kernel(w: Writer, name: str, channels: int, side: int = 3) -> None:
    """Of a convolution of each channel, which llama.cpp reads only in 16 bits."""
    weights = w.random.standard_normal((channels, 1, side, side)) * 0.2
    w.add_tensor(name, weights.astype(np.float16))


# --- LLaVA and its kin ---


@_projector('moondream', 'mlp', text='phi2')
def _moondream(w: Writer) -> None:
    """SigLIP without a class token."""
    _patches(w, bias=True)
    _places(w)
    _layers(w)
    w.norm('v.post_ln', E)
    _two_layers(w, 2 * F, E)


@_projector('yi-vl', 'mlp', marker='<image>\n', seed=2)
def _yi(w: Writer) -> None:
    """With norms in the projector."""
    _patches(w)
    w.matrix('v.class_embd', E)
    _places(w, PATCHES + 1)
    w.norm('v.pre_ln', E)
    _layers(w)
    for n, is_norm in ((0, False), (1, True), (3, False), (4, True)):
        w.norm(f'mm.{n}', W) if is_norm else w.linear(f'mm.{n}', W, E if n == 0 else W)


@_projector('llava-next', 'mlp', image_grid_pinpoints=[48, 96, 96, 48, 96, 96])
def _llava_next(w: Writer) -> None:
    """A picture in tiles."""
    _patches(w)
    w.matrix('v.class_embd', E)
    _places(w, PATCHES + 1)
    w.norm('v.pre_ln', E)
    _layers(w)
    _two_layers(w, W, E)


@_projector('mobilevlm', 'ldp', patch_size=2)
def _mobilevlm(w: Writer) -> None:
    """Of 24 x 24 patches, as written into llama.cpp."""
    _patches(w, patch=2)
    _places(w, 24 * 24)
    _layers(w)
    w.linear('mm.model.mlp.1', W, E)
    w.linear('mm.model.mlp.3', W, W)
    for n in (1, 2):
        block = f'mm.model.mb_block.{n}.block'
        _kernel(w, f'{block}.0.0.weight', W)
        w.norm(f'{block}.0.1', W)
        w.linear(f'{block}.1.fc1', 16, W)
        w.linear(f'{block}.1.fc2', W, 16)
        w.linear(f'{block}.2.0', W, W, False)
        w.norm(f'{block}.2.1', W)


@_projector('mobilevlm-2', 'ldpv2', patch_size=2)
def _mobilevlm_2(w: Writer) -> None:
    _patches(w, patch=2)
    _places(w, 24 * 24)
    _layers(w)
    w.linear('mm.model.mlp.0', W, E)
    w.linear('mm.model.mlp.2', W, W)
    _kernel(w, 'mm.model.peg.0.weight', W)
    w.matrix('mm.model.peg.0.bias', W)


@_projector('glm-edge', 'adapter')
def _glm_edge(w: Writer) -> None:
    _patches(w, bias=True)
    _places(w)
    _layers(w)
    w.matrix('adapter.conv.weight', W, E, 2, 2)
    w.matrix('adapter.conv.bias', W)
    w.linear('adapter.linear.linear', W, W, False)
    w.norm('adapter.linear.norm1', W)
    w.linear('adapter.linear.dense_h_to_4h', F, W, False)
    w.linear('adapter.linear.gate', F, W, False)
    w.linear('adapter.linear.dense_4h_to_h', W, F, False)
    w.matrix('adapter.boi', W)
    w.matrix('adapter.eoi', W)


@_projector('cogvlm')
def _cogvlm(w: Writer) -> None:
    _patches(w, bias=True)
    w.matrix('v.class_embd', E)
    _places(w, PATCHES + 1)
    _layers(w, fused=True)
    w.linear('mm.model.fc', W, E, False)
    w.norm('mm.post_fc_norm', W)
    w.linear('mm.up', F, W, False)
    w.linear('mm.gate', F, W, False)
    w.linear('mm.down', W, F, False)
    w.matrix('v.boi', W)
    w.matrix('v.eoi', W)


# --- MiniCPM-V ---

_MINICPM = ('</image>', '<slice>', '</slice>')
_WIDE = 128  # the resampler has heads of 128


def _resampler(w: Writer, version: int) -> None:
    w.add_int32('clip.minicpmv_version', version)
    w.add_uint32('clip.minicpmv_query_num', 10)
    _patches(w, bias=True)
    _places(w, 70 * 70)
    _layers(w)
    w.norm('v.post_ln', E)
    w.matrix('resampler.pos_embed_k', 4, _WIDE)
    w.matrix('resampler.query', 10, _WIDE)
    w.linear('resampler.proj', _WIDE, _WIDE, False)
    w.linear('resampler.kv', _WIDE, E, False)
    for part in ('q', 'k', 'v', 'out'):
        w.linear(f'resampler.attn.{part}', _WIDE, _WIDE)
    for part in ('q', 'kv', 'post'):
        w.norm(f'resampler.ln_{part}', _WIDE)


@_projector('minicpm-v-2.5', 'resampler', special=_MINICPM, width=_WIDE)
def _minicpm_2_5(w: Writer) -> None:
    _resampler(w, 2)


@_projector('minicpm-v-2.6', 'resampler', '(<image>./</image>)', special=_MINICPM, width=_WIDE)
def _minicpm_2_6(w: Writer) -> None:
    _resampler(w, 3)


@_projector(
    'minicpm-v-4.6',
    'minicpmv4_6',
    special=_MINICPM,
    text='qwen2vl',
    image_size=64,
    wa_layer_indexes=[0],
    **{'projector.scale_factor': 4},
)
def _minicpm_4_6(w: Writer) -> None:
    """Merged by four twice, so that a picture is a multiple of four patches. Its language model counts on
    several axes, and its tiles count on by one.
    """
    _patches(w, bias=True)
    _places(w, 70 * 70)
    _layers(w)
    w.norm('v.post_ln', E)
    w.norm('v.vit_merger.ln1', E)
    for part in ('q', 'k', 'v', 'out'):
        w.linear(f'v.vit_merger.attn_{part}', E, E)
    w.norm('v.vit_merger.ds_ln', 4 * E)
    w.linear('v.vit_merger.ds_ffn_up', F, 4 * E)
    w.linear('v.vit_merger.ds_ffn_down', E, F)
    w.norm('mm.input_norm', 4 * E)
    w.linear('mm.up', F, 4 * E)
    w.linear('mm.down', W, F)


# --- SigLIP with a projector of two layers ---


@_projector('janus-pro', 'janus_pro')
def _janus(w: Writer) -> None:
    _patches(w, bias=True)
    _places(w)
    _layers(w)
    w.norm('v.post_ln', E)
    w.linear('mm.0', W, E)
    w.linear('mm.1', W, W)


@_projector('phi-4', 'phi4', seed=2, **PIXELS)
def _phi_4(w: Writer) -> None:
    _patches(w, bias=True)
    _places(w)
    _layers(w)
    _two_layers(w, W, E)


@_projector(
    'lfm2-vl',
    'lfm2',
    special=(
        '<|image_start|>',
        '<|image_end|>',
        '<|img_thumbnail|>',
        *(f'<|img_row_{r}_col_{c}|>' for r in range(1, 4) for c in range(1, 4)),
    ),
    **{'projector.scale_factor': 2},
)
def _lfm2(w: Writer) -> None:
    _patches(w, bias=True)
    _places(w)
    _layers(w)
    w.norm('v.post_ln', E)
    w.norm('mm.input_norm', 4 * E)
    w.linear('mm.1', F, 4 * E)
    w.linear('mm.2', W, F)


@_projector('gemma3n', 'gemma3nv', '<start_of_image>', image_size=256, patch_size=1, embedding_length=W)
def _gemma3n(w: Writer) -> None:
    """MobileNet, cut down to the stem and one block; 256 rows for any picture."""
    w.matrix('v.conv_stem.conv.weight', W, 3, 3, 3, scale=0.1)
    w.matrix('v.blk.0.0.conv_exp.weight', F, W, 3, 3, scale=0.1)
    w.matrix('v.blk.0.0.conv_pwl.weight', W, F, 1, 1)
    w.linear('mm.input_projection', W, W, False)
    w.ones('mm.soft_emb_norm.weight', W)


_GEMMA_4 = ('<|image>', '<image|>', '<|image|>')


@_projector('gemma4', 'gemma4v', '<|image|>', _GEMMA_4, **{'projector.scale_factor': 2})
def _gemma4(w: Writer) -> None:
    _patches(w)
    w.matrix('v.position_embd.weight', 2, 256, E)
    _layers(w, bias=False, norm_bias=False, gate=True)
    w.linear('mm.input_projection', W, E, False)


@_projector(
    'gemma4-unified',
    'gemma4uv',
    '<|image|>',
    _GEMMA_4,
    block_count=0,
    feed_forward_length=0,
    **{'projector.scale_factor': 2, 'attention.head_count': 0},
)
def _gemma4_unified(w: Writer) -> None:
    """Without an encoder: the rows are made of the pixels."""
    pixels = 3 * (2 * PATCH) ** 2
    w.norm('v.patch_norm.1', pixels)
    w.linear('v.patch_embd', E, pixels)
    w.norm('v.patch_norm.2', E)
    w.matrix('v.position_embd.weight', 2, 256, E)
    w.norm('v.patch_norm.3', E)
    w.linear('mm.input_projection', W, E, False)


@_projector('llama4', special=('<|image_start|>', '<|image_end|>'), **{'projector.scale_factor': 2})
def _llama4(w: Writer) -> None:
    w.linear('v.patch_embd', E, 3 * PATCH**2, False)
    w.matrix('v.class_embd', E)
    _places(w, PATCHES + 1)
    w.norm('v.pre_ln', E)
    w.norm('v.post_ln', E)
    _layers(w)
    w.linear('mm.model.mlp.1', F, 4 * E, False)
    w.linear('mm.model.mlp.2', F, F, False)
    w.linear('mm.model.fc', W, F, False)


# --- Pixtral ---


@_projector('mistral3', 'pixtral', '[IMG]', activation='use_silu', spatial_merge_size=2)
def _mistral3(w: Writer) -> None:
    _patches(w)
    w.norm('v.pre_ln', E, False)
    _layers(w, bias=False, norm_bias=False, gate=True)
    w.ones('mm.input_norm.weight', E)
    w.linear('mm.patch_merger', E, 4 * E, False)
    w.linear('mm.1', W, E)
    w.linear('mm.2', W, W)
    w.matrix('v.token_embd.img_break', W)


@_projector('lighton-ocr', 'lightonocr', activation='use_silu', spatial_merge_size=2, preproc_image_size=96)
def _lighton(w: Writer) -> None:
    _patches(w)
    w.norm('v.pre_ln', E, False)
    _layers(w, bias=False, norm_bias=False, gate=True)
    w.ones('mm.input_norm.weight', E)
    w.linear('mm.patch_merger', E, 4 * E, False)
    w.linear('mm.1', W, E)
    w.linear('mm.2', W, W)


# --- Kimi ---


def _kimi(w: Writer) -> None:
    _layers(w)
    w.norm('v.post_ln', E)
    w.norm('mm.input_norm', E)
    w.linear('mm.1', F, 4 * E)
    w.linear('mm.2', W, F)


@_projector(
    'kimi-vl', 'kimivl', special=('<|media_start|>', '<|media_end|>'), **{'projector.scale_factor': 2}
)
def _kimi_vl(w: Writer) -> None:
    _patches(w, bias=True)
    _places(w)
    _kimi(w)


@_projector(
    'kimi-k2.5',
    'kimik25',
    special=('<|media_begin|>', '<|media_end|>'),
    **{'projector.scale_factor': 2, **PIXELS},
)
def _kimi_k25(w: Writer) -> None:
    _patches(w, bias=True)
    w.matrix('v.position_embd.weight', 6, 6, E)
    _kimi(w)


# --- towers with positions on two axes, and models that have them too ---

_QWEN = '<|vision_start|><|image_pad|><|vision_end|>'
_GLM = '<|begin_of_image|><|image|><|end_of_image|>'
_GLM_SPECIAL = ('<|begin_of_image|>', '<|end_of_image|>', '<|image|>')


def _glm(w: Writer, norm_of_patches: bool) -> None:
    _patches(w, second=True, bias=True)
    if norm_of_patches:
        w.norm('v.norm_embd', E, False)
        _places(w)
    _layers(w, bias=False, norm_bias=False, gate=True, fused=True)
    w.norm('v.post_ln', E, False)
    w.matrix('mm.patch_merger.weight', W, E, 2, 2)
    w.matrix('mm.patch_merger.bias', W)
    w.linear('mm.model.fc', W, W, False)
    w.norm('mm.post_norm', W)
    w.linear('mm.up', F, W, False)
    w.linear('mm.gate', F, W, False)
    w.linear('mm.down', W, F, False)


@_projector('glm-4v', 'glm4v', _GLM, _GLM_SPECIAL, 'qwen2vl', activation='use_silu', spatial_merge_size=2)
def _glm_4v(w: Writer) -> None:
    _glm(w, True)


@_projector(
    'glm-5v',
    'glm5v',
    _GLM,
    _GLM_SPECIAL,
    'qwen2vl',
    activation='use_silu',
    spatial_merge_size=2,
    swiglu_clamp=7.0,
    **PIXELS,
)
def _glm_5v(w: Writer) -> None:
    _glm(w, False)


@_projector('ling3-vl', 'ling3vl', _QWEN, text='qwen2vl', spatial_merge_size=2)
def _ling3(w: Writer) -> None:
    _patches(w, second=True, bias=True)
    _places(w)
    _layers(w)
    w.norm('mm.input_norm', E)
    _two_layers(w, 4 * E, 4 * E)


@_projector(
    'mimo-vl',
    'mimovl',
    _QWEN,
    text='qwen2vl',
    activation='use_silu',
    spatial_merge_size=2,
    window_size=8,
    wa_pattern_mode=[-1, 1],
    **{'attention.head_count_kv': 1, **PIXELS},
)
def _mimo(w: Writer) -> None:
    """Windows of rows and columns, with attention sinks."""
    _patches(w, second=True)
    _layers(w, norm_bias=False, gate=True, fused=True, kv_heads=1)
    w.matrix('v.blk.1.attn_sinks', EYE_HEADS)
    w.norm('v.post_ln', E)
    _two_layers(w, 4 * E, 4 * E, bias=False)


@_projector(
    'exaone-4.5',
    'exaone4_5',
    text='qwen2vl',
    special=('<vision>', '</vision>'),
    activation='use_silu',
    spatial_merge_size=2,
    n_wa_pattern=2,
    **{'attention.head_count_kv': 1, **PIXELS},
)
def _exaone(w: Writer) -> None:
    _patches(w, second=True)
    _layers(w, norm_bias=False, gate=True, fused=True, kv_heads=1)
    w.norm('v.post_ln', E, False)
    _two_layers(w, 4 * E, 4 * E)


@_projector('paddle-ocr', 'paddleocr', text='qwen2vl', special=('<|IMAGE_START|>', '<|IMAGE_END|>'), **PIXELS)
def _paddle(w: Writer) -> None:
    _patches(w, bias=True)
    _places(w)
    _layers(w)
    w.norm('v.post_ln', E)
    w.norm('mm.input_norm', E)
    w.linear('mm.1', F, 4 * E)
    w.linear('mm.2', W, F)


@_projector(
    'youtu-vl',
    'youtuvl',
    _QWEN,
    text='qwen2vl',
    spatial_merge_size=2,
    window_size=32,
    wa_layer_indexes=[1],
    image_size=64,
)
def _youtu(w: Writer) -> None:
    w.linear('v.patch_embd', E, 3 * PATCH**2)
    _layers(w)
    w.norm('v.post_ln', E)
    w.ones('mm.input_norm.weight', E)
    _two_layers(w, 4 * E, 4 * E)


# --- others ---


def _dots(w: Writer) -> None:
    _patches(w, bias=True)
    _layers(w, bias=False, norm_bias=False, gate=True)
    w.norm('mm.input_norm', E)
    w.ones('mm.post_norm.weight', E)
    _two_layers(w, F, 4 * E)


@_projector(
    'dots-ocr',
    'dots_ocr',
    special=('<|img|>', '<|endofimg|>'),
    activation='use_silu',
    **{'projector.scale_factor': 2, **PIXELS},
)
def _dots_ocr(w: Writer) -> None:
    _dots(w)


@_projector(
    'dots3-note',
    'dots3note_v',
    special=('<|img|>', '<|endofimg|>'),
    activation='use_silu',
    spatial_merge_size=2,
    expert_used_count=1,
    **PIXELS,
)
def _dots3_note(w: Writer) -> None:
    _dots(w)


@_projector('nemotron-vl', 'nemotron_v2_vl', **{'projector.scale_factor': 2})
def _nemotron(w: Writer) -> None:
    """With registers in front of the patches."""
    _patches(w)
    w.matrix('v.class_embd', 3, E)
    _places(w)
    _layers(w)
    w.ones('mm.model.mlp.0.weight', 4 * E)
    w.linear('mm.model.mlp.1', F, 4 * E, False)
    w.linear('mm.model.mlp.3', W, F, False)


@_projector(
    'minimax-m3', 'minimax_m3', special=(']<]start of image[>[', ']<]end of image[>['), spatial_merge_size=2
)
def _minimax(w: Writer) -> None:
    _patches(w, second=True)
    w.norm('v.pre_ln', E)
    _layers(w)
    w.linear('mm.1', F, E)
    w.linear('mm.2', E, F)
    w.linear('mm.merger.fc1', F, 4 * E)
    w.linear('mm.merger.fc2', W, F)


@_projector('muse-glimmer', special=('<|image_start|>', '<|image_end|>'), spatial_merge_size=2)
def _muse(w: Writer) -> None:
    _patches(w)
    _places(w)
    w.norm('v.pre_ln', E)
    w.norm('v.post_ln', E)
    _layers(w)
    w.linear('mm.0', F, 4 * E, False)
    w.linear('mm.1', F, F, False)
    w.linear('mm.2', W, F, False)


@_projector(
    'step3-vl',
    'step3vl',
    image_size=112,
    patch_size=14,
    special=('<im_start>', '<im_end>', '<patch_start>', '<patch_end>', '<patch_newline>'),
    **{'projector.scale_factor': 4},
)
def _step3(w: Writer) -> None:
    """Tiles of 504 pixels, as written into llama.cpp."""
    _patches(w, patch=14)
    _places(w, 64)
    _layers(w)
    w.matrix('mm.0.weight', 2 * E, E, 3, 3, scale=0.1)
    w.matrix('mm.0.bias', 2 * E)
    w.matrix('mm.1.weight', 4 * E, 2 * E, 3, 3, scale=0.1)
    w.matrix('mm.1.bias', 4 * E)
    w.linear('mm.model.fc', W, 4 * E, False)


@_projector('yasa2', marker='<image>', special=('</image>',), image_size=64, patch_size=4, block_count=0)
def _yasa(w: Writer) -> None:
    """ConvNeXt: 64 rows for any picture."""
    _patches(w, bias=True, patch=4)
    w.norm('v.patch_ln', E)
    w.norm('v.backbone_ln', E)
    w.matrix('v.vision_pos_embed', 64, E)
    w.norm('v.stage.0.down.ln', E)
    w.matrix('v.stage.0.down.conv.weight', E, E, 2, 2)
    w.matrix('v.stage.0.down.conv.bias', E)
    block = 'v.stage.0.blk.0'
    _kernel(w, f'{block}.dw.weight', E, 7)
    w.matrix(f'{block}.dw.bias', E)
    w.norm(f'{block}.ln', E)
    w.linear(f'{block}.pw1', 2 * E, E)
    w.norm(f'{block}.grn', 2 * E)
    w.linear(f'{block}.pw2', E, 2 * E)
    _two_layers(w, F, E)


@_projector(
    'granite4-vision',
    'granite4_vision',
    image_size=48,
    embedding_length=64,
    patch_size=8,
    image_grid_pinpoints=[48, 96, 96, 48],
    feature_layer=[1],
    **{'projector.spatial_offsets': [-1], 'projector.query_side': 1, 'projector.window_side': 2},
)
def _granite4(w: Writer) -> None:
    """A projector that looks through windows; heads of 64."""
    size = 64
    _patches(w, bias=True, embed=size)
    _places(w, embed=size)
    _layers(w, embed=size)
    w.matrix('v.image_newline', W)
    block = 'v.proj_blk.0'
    w.matrix(f'{block}.img_pos', 4, size)
    w.matrix(f'{block}.query', 1, size)
    w.linear(f'{block}.linear', W, size)
    for part in ('norm', 'post_norm', 'self_attn_norm', 'cross_attn_norm', 'ffn_norm'):
        w.norm(f'{block}.{part}', size)
    for kind in ('self', 'cross'):
        for part in ('q', 'k', 'v', 'out'):
            w.linear(f'{block}.{kind}_attn_{part}', size, size)
    w.linear(f'{block}.ffn_up', F, size)
    w.linear(f'{block}.ffn_down', size, F)


_SAM = {
    'image_size': 1024,
    'patch_size': 16,
    'window_size': 14,
    'sam.head_count': 2,
    'sam.block_count': 3,
    'sam.embedding_length': E,
}


def _sam(w: Writer) -> None:
    """Of 64 x 64 patches; the third layer attends to all of them."""
    w.matrix('v.sam.pos_embd.weight', 64, 64, E)
    w.matrix('v.sam.patch_embd.weight', E, 3, 16, 16, scale=0.05)
    w.matrix('v.sam.patch_embd.bias', E)
    for n in range(3):
        block = f'v.sam.blk.{n}'
        w.norm(f'{block}.pre_ln', E)
        w.norm(f'{block}.post_ln', E)
        w.linear(f'{block}.attn.qkv', 3 * E, E)
        w.linear(f'{block}.attn.out', E, E)
        for axis in 'hw':
            w.matrix(f'{block}.attn.pos_{axis}.weight', 127 if n == 2 else 27, E // 2)
        w.linear(f'{block}.mlp.lin1', F, E)
        w.linear(f'{block}.mlp.lin2', E, F)
    w.matrix('v.sam.neck.0.weight', E, E, 1, 1)
    w.norm('v.sam.neck.1', E)
    w.matrix('v.sam.neck.2.weight', E, E, 3, 3, scale=0.1)
    w.norm('v.sam.neck.3', E)
    w.matrix('v.sam.net_2.weight', E, E, 3, 3, scale=0.1)
    w.matrix('v.sam.net_3.weight', E, E, 3, 3, scale=0.1)
    w.matrix('v.view_seperator', W)


@_projector('deepseek-ocr', 'deepseekocr', **_SAM)
def _deepseek_ocr(w: Writer) -> None:
    _sam(w)
    w.matrix('v.class_embd', E)
    _places(w, 16 * 16 + 1)
    w.norm('v.pre_ln', E)
    _layers(w, fused=True)
    w.matrix('v.image_newline', W)
    w.linear('mm.model.fc', W, 2 * E)


@_projector('deepseek-ocr-2', 'deepseekocr2', activation='use_silu', **_SAM, **{'attention.head_count_kv': 1})
def _deepseek_ocr_2(w: Writer) -> None:
    _sam(w)
    _layers(w, norm_bias=False, gate=True, kv_heads=1)
    w.norm('v.post_ln', E, False)
    for side, count in ((768, 144), (1024, 256)):
        w.matrix(f'v.resample_query_{side}.weight', count, E)
    w.linear('mm.model.fc', W, E)


# --- whose pictures depend on where they stand ---


@_projector(
    'deepseek4-vision',
    'deepseek4v',
    activation='use_silu',
    image_min_pixels=32 * 32,
    **{'projector.scale_factor': 2},
)
def _deepseek4(w: Writer) -> None:
    _patches(w)
    w.norm('v.pre_ln', E, False)
    _layers(w, bias=False, norm_bias=False, gate=True)
    w.linear('mm.1', F, 4 * E)
    w.linear('mm.2', W, F)
    for name in ('v.image_newline', 'v.token_embd.img_start', 'v.token_embd.img_end', 'v.token_embd.img_pad'):
        w.matrix(name, W)


@_projector(
    'hunyuan-vl',
    'hunyuanvl',
    text='qwen2vl',
    spatial_merge_size=2,
    special=('<｜hy_place▁holder▁no▁100｜>', '<｜hy_place▁holder▁no▁101｜>'),
    **PIXELS,
)
def _hunyuan(w: Writer) -> None:
    _patches(w, bias=True)
    _places(w)
    _layers(w)
    w.matrix('mm.0.weight', F, E, 2, 2)
    w.matrix('mm.0.bias', F)
    w.matrix('mm.2.weight', F, F, 1, 1)
    w.matrix('mm.2.bias', F)
    w.linear('mm.model.fc', W, F)
    w.ones('mm.pre_norm.weight', E)
    w.ones('mm.post_norm.weight', W)
    w.matrix('mm.image_begin', W)
    w.matrix('mm.image_end', W)
    w.matrix('v.image_newline', F)
