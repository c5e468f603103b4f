"""Small random GGUF models that see, each with its mmproj file, and what libmtmd's own evaluation says."""

from __future__ import annotations

import ctypes
import os
from contextlib import contextmanager
from dataclasses import dataclass

import gguf
import numpy as np
from vision_words import CHAT, MERGES, SPECIAL, ordinary_tokens

WIDTH, HIDDEN, HEADS, KV_HEADS, HEAD = 64, 96, 4, 2, 16
EYE, EYE_HIDDEN, EYE_HEADS, EYE_LAYERS, PATCH, SIZE = 32, 48, 2, 2, 8, 48


def vocabulary(more: tuple[str, ...] = ()) -> tuple[list[str], list[str], list[int]]:
    """Tokens, merges and types. more: further special tokens."""
    known, special = ordinary_tokens(), [*SPECIAL, *more]
    types = [int(gguf.TokenType.NORMAL)] * len(known) + [int(gguf.TokenType.CONTROL)] * len(special)
    return [*known, *special], [' '.join(merge) for merge in MERGES], types


@dataclass(frozen=True)
class Family:
    """A kind of model.

    Attributes:
        text: `general.architecture` of the language model.
        projector: `clip.projector_type`.
        marker: What its chat template writes for an image.
        special: Special tokens that this family adds to the common ones.
        width: Width of the embeddings.
    """

    text: str
    projector: str
    marker: str
    special: tuple[str, ...] = ()
    width: int = WIDTH


FAMILIES = {
    'llava': Family('llama', 'mlp', '<image>\n'),
    'gemma3': Family('gemma3', 'gemma3', '<start_of_image>'),
    'qwen2-vl': Family('qwen2vl', 'qwen2vl_merger', '<|vision_start|><|image_pad|><|vision_end|>'),
    'qwen2.5-vl': Family('qwen2vl', 'qwen2.5vl_merger', '<|vision_start|><|image_pad|><|vision_end|>'),
    'qwen3-vl': Family('qwen3vl', 'qwen3vl_merger', '<|vision_start|><|image_pad|><|vision_end|>'),
    'smolvlm': Family('llama', 'idefics3', '<image>'),
    'internvl': Family('llama', 'internvl', '<image>\n'),
    'pixtral': Family('llama', 'pixtral', '[IMG]'),
}


class _Writer(gguf.GGUFWriter):
    def __init__(self, path, architecture: str, seed: int):
        super().__init__(path, architecture)
        self.random = np.random.default_rng(seed)

    def matrix(self, name: str, *shape: int, scale: float = 0.2) -> None:
        self.add_tensor(name, self.random.standard_normal(shape).astype(np.float32) * np.float32(scale))

    def ones(self, name: str, n: int) -> None:
        self.add_tensor(name, 1 + self.random.standard_normal(n).astype(np.float32) * np.float32(0.05))

    def linear(self, name: str, out: int, into: int, bias: bool = True) -> None:
        self.matrix(f'{name}.weight', out, into)
        if bias:
            self.matrix(f'{name}.bias', out, scale=0.05)

    def norm(self, name: str, n: int, bias: bool = True) -> None:
        self.ones(f'{name}.weight', n)
        if bias:
            self.matrix(f'{name}.bias', n, scale=0.05)

    def finish(self) -> None:
        self.write_header_to_file()
        self.write_kv_data_to_file()
        self.write_tensors_to_file()
        self.close()


def write_text_model(
    path,
    family: str | Family,
    seed: int = 0,
    chat: str | None = None,
    add_bos: bool = False,
    without: str = '',
) -> None:
    """The language model of a family.

    chat: its chat template, if it is not CHAT; without: a special token that its vocabulary lacks.
    """
    kind = family if isinstance(family, Family) else FAMILIES[family]
    architecture, layers, width = kind.text, 3, kind.width
    is_phi = architecture == 'phi2'
    kv_heads = HEADS if is_phi else KV_HEADS
    texts, merges, types = vocabulary(kind.special)
    texts = ['<unused>' if text == without else text for text in texts]
    writer = _Writer(path, architecture, seed)
    writer.add_name(f'small {architecture}')
    writer.add_context_length(2048)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_layer_norm_eps(1e-5)
    writer.add_rope_dimension_count(HEAD)
    writer.add_rope_freq_base(10000.0)
    if architecture == 'gemma3':
        writer.add_sliding_window(512)
    if architecture in ('qwen2vl', 'qwen3vl'):
        writer.add_array(f'{architecture}.rope.dimension_sections', [2, 3, 3, 0])
    if architecture == 'qwen3vl':
        writer.add_uint32('qwen3vl.n_deepstack_layers', EYE_LAYERS)
    writer.add_vocab_size(len(texts))
    writer.add_tokenizer_model('gpt2')
    writer.add_tokenizer_pre('gpt-2')
    writer.add_token_list(texts)
    writer.add_token_merges(merges)
    writer.add_token_types(types)
    writer.add_bos_token_id(texts.index('<s>'))
    writer.add_eos_token_id(texts.index('<|im_end|>'))
    writer.add_add_bos_token(add_bos)
    writer.add_chat_template(chat or CHAT.replace('IMAGE', kind.marker))
    writer.matrix('token_embd.weight', len(texts), width, scale=0.5)
    output = writer.random.standard_normal((len(texts), width)).astype(np.float32) * np.float32(0.5)
    # never half a character: a reply that ends there does not keep its ids
    output[[not text.translate({ord('Ġ'): None, ord('Ċ'): None}).isascii() for text in texts]] = 0
    writer.add_tensor('output.weight', output)
    if is_phi:
        writer.matrix('output.bias', len(texts), scale=0.01)
    writer.norm('output_norm', width, is_phi)
    for n in range(layers):
        block = f'blk.{n}'
        bias = architecture in ('qwen2vl', 'phi2')
        for name in ('attn_norm', *(() if is_phi else ('ffn_norm',))):
            writer.norm(f'{block}.{name}', width, is_phi)
        for name, heads in (('attn_q', HEADS), ('attn_k', kv_heads), ('attn_v', kv_heads)):
            writer.linear(f'{block}.{name}', heads * HEAD, width, bias)
        writer.linear(f'{block}.attn_output', width, HEADS * HEAD, is_phi)
        if architecture in ('gemma3', 'qwen3vl'):
            writer.ones(f'{block}.attn_q_norm.weight', HEAD)
            writer.ones(f'{block}.attn_k_norm.weight', HEAD)
        if architecture == 'gemma3':
            writer.ones(f'{block}.post_attention_norm.weight', width)
            writer.ones(f'{block}.post_ffw_norm.weight', width)
        if not is_phi:
            writer.linear(f'{block}.ffn_gate', HIDDEN, width, False)
        writer.linear(f'{block}.ffn_up', HIDDEN, width, is_phi)
        writer.linear(f'{block}.ffn_down', width, HIDDEN, is_phi)
    writer.finish()


def write_mmproj(path, family: str, width: int = WIDTH, seed: int = 1, projector: str = '') -> None:
    """The vision part of a family, for a language model of that width."""
    name = FAMILIES[family].projector
    writer = _Writer(path, 'clip', seed)
    writer.add_string('general.type', 'mmproj')
    writer.add_bool('clip.has_vision_encoder', True)
    writer.add_string('clip.projector_type', projector or name)
    sizes = {
        'image_size': SIZE,
        'patch_size': PATCH,
        'embedding_length': EYE,
        'feed_forward_length': EYE_HIDDEN,
        'projection_dim': width,
        'block_count': EYE_LAYERS,
        'attention.head_count': EYE_HEADS,
    }
    if name in ('gemma3', 'idefics3', 'internvl'):
        sizes['projector.scale_factor'] = 2
    if name == 'idefics3':
        sizes['preproc_image_size'] = 2 * SIZE
    if name == 'qwen2.5vl_merger':
        sizes['n_wa_pattern'] = 2
    if name == 'pixtral':
        sizes['spatial_merge_size'] = 1
    for key, value in sizes.items():
        writer.add_uint32(f'clip.vision.{key}', value)
    writer.add_float32('clip.vision.attention.layer_norm_epsilon', 1e-5)
    writer.add_array('clip.vision.image_mean', [0.5, 0.5, 0.5])
    writer.add_array('clip.vision.image_std', [0.5, 0.5, 0.5])
    if name in ('pixtral', 'qwen2.5vl_merger'):
        writer.add_bool('clip.use_silu', True)
    elif name != 'mlp':
        writer.add_bool('clip.use_gelu', True)
    is_qwen = name.startswith('qwen')
    bias = name != 'pixtral'
    norm_bias = name not in ('pixtral', 'qwen2.5vl_merger')
    patches = (SIZE // PATCH) ** 2
    writer.matrix('v.patch_embd.weight', EYE, 3, PATCH, PATCH, scale=0.1)
    if is_qwen:
        writer.matrix('v.patch_embd.weight.1', EYE, 3, PATCH, PATCH, scale=0.1)
    if name in ('gemma3', 'idefics3', 'internvl', 'qwen3vl_merger'):
        writer.matrix('v.patch_embd.bias', EYE, scale=0.1)
    has_class = name in ('mlp', 'internvl')
    if has_class:
        writer.matrix('v.class_embd', EYE)
    if name in ('mlp', 'gemma3', 'idefics3', 'internvl', 'qwen3vl_merger'):
        writer.matrix('v.position_embd.weight', patches + has_class, EYE)
    if name in ('mlp', 'pixtral'):
        writer.norm('v.pre_ln', EYE, norm_bias)
    if name in ('gemma3', 'idefics3') or is_qwen:
        writer.norm('v.post_ln', EYE, norm_bias)
    for n in range(EYE_LAYERS):
        block = f'v.blk.{n}'
        writer.norm(f'{block}.ln1', EYE, norm_bias)
        writer.norm(f'{block}.ln2', EYE, norm_bias)
        if name == 'qwen3vl_merger':
            writer.linear(f'{block}.attn_qkv', 3 * EYE, EYE)
            writer.norm(f'v.deepstack.{n}.norm', 4 * EYE)
            writer.linear(f'v.deepstack.{n}.fc1', 4 * EYE, 4 * EYE)
            writer.linear(f'v.deepstack.{n}.fc2', width, 4 * EYE)
        else:
            for part in 'qkv':
                writer.linear(f'{block}.attn_{part}', EYE, EYE, bias)
        writer.linear(f'{block}.attn_out', EYE, EYE, bias)
        writer.linear(f'{block}.ffn_up', EYE_HIDDEN, EYE, bias)
        writer.linear(f'{block}.ffn_down', EYE, EYE_HIDDEN, bias)
        if name in ('pixtral', 'qwen2.5vl_merger'):
            writer.linear(f'{block}.ffn_gate', EYE_HIDDEN, EYE, bias)
    if name == 'mlp':
        writer.linear('mm.0', width, EYE)
        writer.linear('mm.2', width, width)
    elif name == 'gemma3':
        writer.matrix('mm.input_projection.weight', EYE, width)
        writer.ones('mm.soft_emb_norm.weight', EYE)
    elif name == 'idefics3':
        writer.linear('mm.model.fc', width, 4 * EYE, False)
    elif name == 'internvl':
        writer.norm('mm.model.mlp.0', 4 * EYE)
        writer.linear('mm.model.mlp.1', width, 4 * EYE)
        writer.linear('mm.model.mlp.3', width, width)
    elif name == 'pixtral':
        writer.linear('mm.1', width, EYE)
        writer.linear('mm.2', width, width)
        writer.matrix('v.token_embd.img_break', width)
    else:
        writer.linear('mm.0', 4 * EYE, 4 * EYE)
        writer.linear('mm.2', width, 4 * EYE)
    writer.finish()


def write_family(folder, family: str) -> tuple[str, str]:
    """Both files, as they lie in a repository; return their paths."""
    model, mmproj = os.path.join(folder, f'{family}.gguf'), os.path.join(folder, f'mmproj-{family}-f16.gguf')
    write_text_model(model, family)
    write_mmproj(mmproj, family)
    return model, mmproj


_M_MMAP_THRESHOLD = -3  # malloc.h
_kept: list = []  # llama.cpp keeps the pointer as long as the process runs


def _silence(api, lib) -> None:
    if not _kept:
        _kept.append(api.llama_log_callback(lambda level, text, data: None))
    lib.mtmd_helper_log_set(_kept[0], None)
    api.llama_log_set(_kept[0], None)


class Reference:
    """The same two files in a context of their own, evaluated by `mtmd_helper_eval_chunks`."""

    def __init__(self, model: str, mmproj: str, batch: int = 63):
        import llama_cpp.llama_cpp as api
        import llama_cpp.mtmd_cpp as lib

        self._api, self._lib, self._batch = api, lib, batch
        _silence(api, lib)
        # Memory from mmap is zero: libmtmd reads some of a Pixtral picture that nothing has written.
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 4096)
        self._model = api.llama_model_load_from_file(model.encode(), api.llama_model_default_params())
        params = api.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch, params.n_threads = 2048, 512, 512, 1
        params.swa_full = True
        self._context = api.llama_init_from_model(self._model, params)
        options = lib.mtmd_context_params_default()
        options.use_gpu, options.print_timings, options.n_threads = False, False, 1
        self._mtmd = lib.mtmd_init_from_file(mmproj.encode(), self._model, options)
        assert self._mtmd, 'libmtmd does not open the mmproj'
        self._past = 0

    def pieces(self, text: str, pictures=()) -> list:
        """Return the ids of a text in which `<__media__>` stands for each picture, and `('rows', n)` for each
        piece of n embeddings.
        """
        lib, pieces = self._lib, []
        with self._chunks(text, pictures) as chunks:
            for i in range(lib.mtmd_input_chunks_size(chunks)):
                chunk, count = lib.mtmd_input_chunks_get(chunks, i), ctypes.c_size_t()
                if lib.mtmd_input_chunk_get_type(chunk) == lib.MTMD_INPUT_CHUNK_TYPE_TEXT:
                    ids = lib.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(count))
                    pieces += ids[: count.value]
                else:
                    pieces.append(('rows', lib.mtmd_input_chunk_get_n_tokens(chunk)))
        return pieces

    @contextmanager
    def _chunks(self, text: str, pictures):
        lib, bitmaps = self._lib, []
        for picture in pictures:
            pixels = np.ascontiguousarray(picture, np.uint8)
            data = pixels.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
            bitmaps.append(lib.mtmd_bitmap_init(pixels.shape[1], pixels.shape[0], data))
        chunks, data = lib.mtmd_input_chunks_init(), text.encode()
        given = lib.mtmd_input_text(data, len(data), False, True)
        array = (lib.mtmd_bitmap_p_ctypes * max(1, len(bitmaps)))(*bitmaps)
        assert lib.mtmd_tokenize(self._mtmd, chunks, ctypes.byref(given), array, len(bitmaps)) == 0
        yield chunks
        lib.mtmd_input_chunks_free(chunks)
        for bitmap in bitmaps:
            lib.mtmd_bitmap_free(bitmap)

    def evaluate(self, text: str, pictures=(), new: int = 8) -> list[int]:
        """Append a text, in which `<__media__>` stands for each picture, and `new` greedy ids."""
        with self._chunks(text, pictures) as chunks:
            return self._evaluate(chunks, new)

    def _evaluate(self, chunks, new: int) -> list[int]:
        api, lib = self._api, self._lib
        past = api.llama_pos(self._past)
        assert (
            lib.mtmd_helper_eval_chunks(
                self._mtmd, self._context, chunks, self._past, 0, self._batch, True, ctypes.byref(past)
            )
            == 0
        )
        self._past = past.value
        vocabulary_size = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._model))
        ids = []
        for _ in range(new):
            row = np.ctypeslib.as_array(api.llama_get_logits_ith(self._context, -1), (vocabulary_size,))
            ids.append(int(row.argmax()))
            token = (api.llama_token * 1)(ids[-1])
            batch = api.llama_batch_get_one(token, 1)
            position = (api.llama_pos * 1)(self._past)
            batch.pos = position
            assert api.llama_decode(self._context, batch) == 0
            self._past += 1
        return ids

    def close(self) -> None:
        self._lib.mtmd_free(self._mtmd)
        self._api.llama_free(self._context)
        self._api.llama_model_free(self._model)
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 128 * 1024)
