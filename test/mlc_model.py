"""Makes a small Llama as MLC-LLM does: written in TVM's `nn`, compiled for the CPU, its weights in shards,
beside a checkpoint of transformers with the same weights. The functions of the library and what they take
follow mlc-llm's convention; none of its code is used.
"""

from __future__ import annotations

import functools
import json
import os

import numpy as np
import tokenizers
import torch
import transformers
import tvm
from made_once import made_once
from tvm import relax
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import op
from tvm.relax.frontend.nn.llm.kv_cache import PagedKVCache, RopeMode, TIRPagedKVCache
from tvm.script import tirx as T

GROUP = 32
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    '{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}'
)
SENTENCES = [
    'the robot sees a red ball and a blue box on the table',
    'please drive to the kitchen and tell me what you see',
    'system user assistant',
]


class Linear(nn.Module):
    """A layer with weights as they are, or in groups of 32 four-bit values with a scale each."""

    def __init__(self, inputs: int, outputs: int, dtype: str, quantized: bool):
        self.dtype, self.quantized, self.size = dtype, quantized, (outputs, inputs)
        if quantized:
            self.q_weight = nn.Parameter((outputs, inputs // 8), 'uint32')
            self.q_scale = nn.Parameter((outputs, inputs // GROUP), dtype)
        else:
            self.weight = nn.Parameter((outputs, inputs), dtype)

    def forward(self, x):
        if self.quantized:
            weight = op.tensor_expr_op(self._dequantize, 'dequantize', [self.q_weight, self.q_scale])
        else:
            weight = self.weight
        return op.matmul(x, op.permute_dims(weight))

    def _dequantize(self, packed, scale):
        def value(i, j):
            nibble = tvm.tirx.bitwise_and(
                tvm.tirx.shift_right(packed[i, j // 8], ((j % 8) * 4).astype('uint32')),
                tvm.tirx.const(15, 'uint32'),
            )
            return (nibble.astype(self.dtype) - tvm.tirx.const(7, self.dtype)) * scale[i, j // GROUP]

        return tvm.te.compute(self.size, value, name='dequantize')


class Layer(nn.Module):
    def __init__(self, c, dtype: str, quantized: bool):
        self.heads, self.kv_heads, self.head_dim = c.num_attention_heads, c.num_key_value_heads, c.head_dim
        self.qkv_proj = Linear(
            c.hidden_size, (self.heads + 2 * self.kv_heads) * self.head_dim, dtype, quantized
        )
        self.o_proj = Linear(self.heads * self.head_dim, c.hidden_size, dtype, quantized)
        self.gate_up_proj = Linear(c.hidden_size, 2 * c.intermediate_size, dtype, quantized)
        self.down_proj = Linear(c.intermediate_size, c.hidden_size, dtype, quantized)
        self.input_norm = nn.RMSNorm(c.hidden_size, -1, c.rms_norm_eps, bias=False, dtype=dtype)
        self.post_norm = nn.RMSNorm(c.hidden_size, -1, c.rms_norm_eps, bias=False, dtype=dtype)

    def forward(self, x, cache, index: int):
        b, s, _ = x.shape
        qkv = op.reshape(
            self.qkv_proj(self.input_norm(x)), (b, s, self.heads + 2 * self.kv_heads, self.head_dim)
        )
        out = cache.attention_with_fused_qkv(index, qkv, self.heads, sm_scale=self.head_dim**-0.5)
        x = x + self.o_proj(op.reshape(out, (b, s, self.heads * self.head_dim)))
        gate, up = op.split(self.gate_up_proj(self.post_norm(x)), 2, axis=-1)
        return x + self.down_proj(op.silu(gate) * up)


class Llama(nn.Module):
    """sees: it has an `image_embed`, as mlc-llm's LLaVA: a picture of any size in bytes in, here four rows
    out, made of four of its pixels.
    """

    def __init__(self, c, dtype: str, quantized: bool, sees: bool = False):
        self.c, self.dtype = c, dtype
        if sees:
            self.image_proj = nn.Parameter((3, c.hidden_size), dtype)
        self.embed_tokens = nn.Embedding('vocab_size', c.hidden_size, dtype=dtype)
        self.layers = nn.ModuleList([Layer(c, dtype, quantized) for _ in range(c.num_hidden_layers)])
        self.norm = nn.RMSNorm(c.hidden_size, -1, c.rms_norm_eps, bias=False, dtype=dtype)

    def _hidden(self, x, cache):
        for index, layer in enumerate(self.layers):
            x = layer(x, cache, index)
        return self.norm(x)

    def _logits(self, x):
        return op.matmul(x, op.permute_dims(self.embed_tokens.weight), out_dtype='float32')

    def embed(self, input_ids):
        return self.embed_tokens(input_ids)

    def image_embed(self, pixel_values):
        def pick(x):
            _, h, w, _ = x.shape
            return tvm.te.compute(
                (4, 3),
                lambda i, c: x[0, (2 * i + 1) * h // 8, (2 * i + 1) * w // 8, c].astype(self.dtype) / 255,
                name='pick',
            )

        return op.matmul(op.tensor_expr_op(pick, 'pick', [pixel_values]), self.image_proj)

    def prefill(self, input_embed, paged_kv_cache):
        hidden = self._hidden(input_embed, paged_kv_cache)
        last = op.reshape(hidden, (input_embed.shape[1], self.c.hidden_size))
        last = op.tensor_expr_op(
            lambda x: tvm.te.compute((1, 1, x.shape[1]), lambda i, j, k: x[x.shape[0] - 1, k], name='last'),
            'last',
            [last],
        )
        return self._logits(last), paged_kv_cache

    def decode(self, input_embed, paged_kv_cache):
        return self._logits(self._hidden(input_embed, paged_kv_cache)), paged_kv_cache

    batch_decode = batch_verify = decode

    def batch_prefill(self, input_embeds, logit_positions, paged_kv_cache):
        return self._logits(
            op.take(self._hidden(input_embeds, paged_kv_cache), logit_positions, axis=1)
        ), paged_kv_cache

    def create_tir_paged_kv_cache(
        self, max_batch_size, max_total_seq_len, prefill_chunk_size, page_size, support_sliding_window
    ):
        c = self.c
        return TIRPagedKVCache(
            'mha',
            max_batch_size,
            max_total_seq_len,
            prefill_chunk_size,
            page_size,
            support_sliding_window,
            relax.ShapeExpr([0, c.num_hidden_layers]),
            c.num_hidden_layers,
            c.num_attention_heads,
            c.num_key_value_heads,
            c.head_dim,
            c.head_dim,
            0,
            0,
            RopeMode.NORMAL,
            1,
            int(c.rope_parameters['rope_theta']),
            {},
            relax.prim_value(0),
            c.head_dim,
            False,
            self.dtype,
            tvm.target.Target('llvm'),
        )

    # what mlc-llm puts into libraries for a GPU, in the same form; the last four of a sampler's calls

    def softmax_with_temperature(self, logits, temperature):
        b, _, v = logits.shape

        def scaled(x, t):
            return tvm.te.compute(
                (b, 1, v),
                lambda i, j, k: x[i, j, k] / tvm.te.max(t[i], tvm.tirx.const(1e-7, 'float32')),
                name='scaled',
            )

        return op.softmax(op.tensor_expr_op(scaled, 'scaled', [logits, temperature]), axis=-1)

    def multinomial_from_uniform(self, probs, uniform_samples, sample_indices):
        n = sample_indices.shape[0]
        ids = op.multinomial_from_uniform(
            probs, op.reshape(uniform_samples, (n, 1)), op.reshape(sample_indices, (n, 1)), 'int32'
        )
        return op.reshape(ids, (n,))

    def argsort_probs(self, probs):
        order = op.argsort(probs, axis=-1, descending=True, dtype='int32')
        b, v = probs.shape
        return op.tensor_expr_op(
            lambda p, o: tvm.te.compute((b, v), lambda i, j: p[i, o[i, j]], name='sorted'),
            'sorted',
            [probs, order],
        ), order

    def sample_with_top_p(self, sorted_probs, sorted_indices, uniform_samples, sample_indices, top_p):
        n, b = sample_indices.shape[0], top_p.shape[0]
        ids = op.sample_top_p_top_k_from_sorted_prob(
            sorted_probs,
            sorted_indices,
            op.reshape(top_p, (b, 1)),
            op.full((b, 1), 1 << 30, 'int32'),
            op.reshape(uniform_samples, (n, 1)),
            op.reshape(sample_indices, (n, 1)),
        )
        return op.reshape(ids, (n,))

    def spec(self, only=None) -> nn.spec.ModuleSpec:
        packed, none = (
            {'param_mode': 'packed', 'effect_mode': 'none'},
            {'param_mode': 'none', 'effect_mode': 'none'},
        )
        cache, d = nn.spec.Object(object_type=PagedKVCache), self.c.hidden_size
        sizes = (
            'max_batch_size',
            'max_total_seq_len',
            'prefill_chunk_size',
            'page_size',
            'support_sliding_window',
        )
        functions = {
            'embed': {'input_ids': nn.spec.Tensor(['seq_len'], 'int32'), '$': packed},
            'prefill': {
                'input_embed': nn.spec.Tensor([1, 'seq_len', d], self.dtype),
                'paged_kv_cache': cache,
                '$': packed,
            },
            'decode': {
                'input_embed': nn.spec.Tensor([1, 1, d], self.dtype),
                'paged_kv_cache': cache,
                '$': packed,
            },
            'batch_prefill': {
                'input_embeds': nn.spec.Tensor([1, 'seq_len', d], self.dtype),
                'logit_positions': nn.spec.Tensor(['batch_size'], 'int32'),
                'paged_kv_cache': cache,
                '$': packed,
            },
            'batch_decode': {
                'input_embed': nn.spec.Tensor(['batch_size', 1, d], self.dtype),
                'paged_kv_cache': cache,
                '$': packed,
            },
            'batch_verify': {
                'input_embed': nn.spec.Tensor([1, 'seq_len', d], self.dtype),
                'paged_kv_cache': cache,
                '$': packed,
            },
            'create_tir_paged_kv_cache': {**dict.fromkeys(sizes, int), '$': none},
        }
        if hasattr(self, 'image_proj'):
            functions['image_embed'] = {
                'pixel_values': nn.spec.Tensor([1, 'image_height', 'image_width', 3], 'uint8'),
                '$': packed,
            }
        probs, picked = (
            nn.spec.Tensor(['batch_size', 'vocab_size'], 'float32'),
            nn.spec.Tensor(['num_samples'], 'int32'),
        )
        uniform, each = nn.spec.Tensor(['num_samples'], 'float32'), nn.spec.Tensor(['batch_size'], 'float32')
        functions |= {
            'softmax_with_temperature': {
                'logits': nn.spec.Tensor(['batch_size', 1, 'vocab_size'], 'float32'),
                'temperature': each,
                '$': none,
            },
            'multinomial_from_uniform': {
                'probs': probs,
                'uniform_samples': uniform,
                'sample_indices': picked,
                '$': none,
            },
            'argsort_probs': {'probs': probs, '$': none},
            'sample_with_top_p': {
                'sorted_probs': probs,
                'sorted_indices': nn.spec.Tensor(['batch_size', 'vocab_size'], 'int32'),
                'uniform_samples': uniform,
                'sample_indices': picked,
                'top_p': each,
                '$': none,
            },
        }
        return nn.spec.ModuleSpec.from_raw(
            {name: f for name, f in functions.items() if only is None or name in only}, self
        )


@T.prim_func
def apply_bitmask_inplace(logits_: T.handle, rows_: T.handle, bits_: T.handle):
    """A kernel, which no function of the model calls: the last one of what mlc-llm puts into libraries."""
    T.func_attr({'global_symbol': 'apply_bitmask_inplace', 'tir.noalias': True})
    batch, width, count = T.int32(), T.int32(), T.int32()
    logits = T.match_buffer(logits_, (batch, width), 'float32')
    rows = T.match_buffer(rows_, (count,), 'int32')
    bits = T.match_buffer(bits_, (batch, (width + 31) // 32), 'int32')
    for i, j in T.grid(count, width):
        if (bits[rows[i], j // 32] >> (j % 32)) & 1 == 0:
            logits[rows[i], j] = T.min_value('float32')


@functools.cache
def tiny() -> tuple[str, transformers.LlamaForCausalLM, str]:
    """A checkpoint's folder, its model, and the folder compiled of it in float32; made once for all tests."""

    def make(root):
        checkpoint = str(root / 'checkpoint')
        make_folder(str(root / 'tiny-q0f32-MLC'), make_checkpoint(checkpoint), checkpoint)

    root = made_once('mlc-tiny', make)
    checkpoint = str(root / 'checkpoint')
    model = transformers.LlamaForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    return checkpoint, model, str(root / 'tiny-q0f32-MLC')


def make_checkpoint(path: str, seed: int = 0, **sizes) -> transformers.LlamaForCausalLM:
    """A Llama with random weights, which bfloat16 can hold, and a small vocabulary, as transformers saves
    them.
    """
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=['<|endoftext|>', '<|im_start|>', '<|im_end|>'],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token='<|im_start|>', eos_token='<|im_end|>'
    )
    fast.chat_template = TEMPLATE
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        **{
            'vocab_size': 320,
            'hidden_size': 64,
            'intermediate_size': 128,
            'num_hidden_layers': 2,
            'num_attention_heads': 4,
            'num_key_value_heads': 2,
            'head_dim': 16,
            'max_position_embeddings': 512,
            'rope_parameters': {'rope_type': 'default', 'rope_theta': 50000.0},
            'tie_word_embeddings': True,
            'bos_token_id': 1,
            'eos_token_id': 2,
            'initializer_range': 0.2,
            **sizes,
        }
    )
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16().float())
    model.save_pretrained(path)
    fast.save_pretrained(path)
    return model


def make_folder(
    path: str,
    model: transformers.LlamaForCausalLM,
    checkpoint: str,
    quantization: str = 'q0f32',
    chunk: int = 32,
    batch: int = 8,
    only=None,
    index: str = 'tensor-cache.json',
    model_type: str = 'llama',
) -> str:
    """Compile a model into a folder as mlc_llm makes it. quantization: q0f32, q0f16, q4f32_2 or q4f16_2.
    only: names of the functions to export.
    model_type: `llava` sees (`image_projection`).
    """
    os.makedirs(path, exist_ok=True)
    dtype, quantized = ('float32' if 'f32' in quantization else 'float16'), quantization.startswith('q4')
    c = model.config
    module = Llama(c, dtype, quantized, model_type == 'llava')
    mod, parameters, _ = module.export_tvm(spec=module.spec(only), allow_extern=True)
    weights = _weights(model, dtype, quantized) | {
        'image_proj': image_projection(c.hidden_size).astype(dtype)
    }
    metadata = {
        'model_type': model_type,
        'quantization': quantization,
        'context_window_size': c.max_position_embeddings,
        'sliding_window_size': -1,
        'attention_sink_size': -1,
        'prefill_chunk_size': chunk,
        'tensor_parallel_shards': 1,
        'pipeline_parallel_stages': 1,
        'kv_state_kind': 'kv_cache',
        'max_batch_size': batch,
        'kv_cache': {
            'num_hidden_layers': c.num_hidden_layers,
            'num_attention_heads': c.num_attention_heads,
            'num_key_value_heads': c.num_key_value_heads,
            'head_dim': c.head_dim,
        },
        'params': [
            {
                'name': name,
                'shape': [s if isinstance(s, int) else s.name for s in p.shape],
                'dtype': str(p.dtype),
                'preprocs': [],
            }
            for name, p in parameters
        ],
    }
    if only is None:
        mod['apply_bitmask_inplace'] = apply_bitmask_inplace
    builder = relax.BlockBuilder()
    with builder.function('_metadata', params=[]):
        builder.emit_func_output(_string(json.dumps(metadata)))
    mod['_metadata'] = builder.finalize()['_metadata']
    # planned as mlc_llm plans: what is larger than these bounds does not fit
    for name, function in list(mod.functions_items()):
        if isinstance(function, relax.Function):
            bounds = {
                'seq_len': chunk,
                'batch_size': batch,
                'num_samples': batch,
                'total_seq_len': c.max_position_embeddings,
            }
            mod[name] = function.with_attr('tir_var_upper_bound', bounds).with_attr(
                'tir_non_negative_var', ['vocab_size']
            )
    target = tvm.target.Target('llvm')
    with target:
        tvm.compile(mod, target=target).export_library(os.path.join(path, f'{quantization}-cpu.so'))
    write_weights(path, [(name, weights[name]) for name, _ in parameters], index)
    config = {
        'version': '0.1.0',
        'model_type': model_type,
        'quantization': quantization,
        'vocab_size': c.vocab_size,
        'context_window_size': c.max_position_embeddings,
        'sliding_window_size': -1,
        'prefill_chunk_size': chunk,
        'attention_sink_size': -1,
        'model_config': {
            'hidden_size': c.hidden_size,
            'intermediate_size': c.intermediate_size,
            'num_hidden_layers': c.num_hidden_layers,
            'num_attention_heads': c.num_attention_heads,
            'num_key_value_heads': c.num_key_value_heads,
            'head_dim': c.head_dim,
            'vocab_size': c.vocab_size,
            'max_batch_size': batch,
        },
        'tokenizer_files': ['tokenizer.json', 'tokenizer_config.json'],
        'conv_template': {'name': 'chatml', 'roles': {}, 'stop_token_ids': [2]},
        'eos_token_id': 2,
        'bos_token_id': 1,
    }
    with open(os.path.join(path, 'mlc-chat-config.json'), 'w') as file:
        json.dump(config, file)
    for name in ('tokenizer.json', 'tokenizer_config.json', 'chat_template.jinja'):
        if os.path.exists(source := os.path.join(checkpoint, name)):
            with open(source) as a, open(os.path.join(path, name), 'w') as b:
                b.write(a.read())
    return path


def _string(text: str):
    """A string in Relax; its class has moved between versions."""
    return (relax.StringImm if hasattr(relax, 'StringImm') else tvm.ir.StringImm)(text)


def _weights(model, dtype: str, quantized: bool) -> dict[str, np.ndarray]:
    state = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    weights = {
        'embed_tokens.weight': state['model.embed_tokens.weight'].astype(dtype),
        'norm.weight': state['model.norm.weight'].astype(dtype),
    }
    for i in range(model.config.num_hidden_layers):
        of = f'model.layers.{i}.'
        linear = {
            'qkv_proj': np.concatenate([state[f'{of}self_attn.{x}_proj.weight'] for x in 'qkv']),
            'o_proj': state[f'{of}self_attn.o_proj.weight'],
            'gate_up_proj': np.concatenate([state[f'{of}mlp.{x}_proj.weight'] for x in ('gate', 'up')]),
            'down_proj': state[f'{of}mlp.down_proj.weight'],
        }
        for name, weight in linear.items():
            if quantized:
                packed, scale, _ = quantize(weight)
                weights[f'layers.{i}.{name}.q_weight'], weights[f'layers.{i}.{name}.q_scale'] = (
                    packed,
                    scale.astype(dtype),
                )
            else:
                weights[f'layers.{i}.{name}.weight'] = weight.astype(dtype)
        for name, source in (('input_norm', 'input_layernorm'), ('post_norm', 'post_attention_layernorm')):
            weights[f'layers.{i}.{name}.weight'] = state[f'{of}{source}.weight'].astype(dtype)
    return weights


def image_projection(width: int) -> np.ndarray:
    """Weights [3, d] of `image_embed`, which bfloat16 can hold."""
    return (np.random.default_rng(11).integers(-8, 9, (3, width)) / 8).astype(np.float32)


def quantize(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Four bits in groups of 32, symmetric: packed [out, in/8] uint32, scale [out, in/32], and the values
    that they stand for.
    """
    groups = weight.reshape(len(weight), -1, GROUP)
    scale = (np.abs(groups).max(axis=2) / 7).astype(np.float16).astype(np.float32)
    levels = (
        np.clip(np.round(groups / np.maximum(scale, 1e-8)[..., None]) + 7, 0, 14)
        .astype(np.uint32)
        .reshape(weight.shape)
    )
    packed = sum(levels[:, k::8] << np.uint32(4 * k) for k in range(8)).astype(np.uint32)
    return (
        packed,
        scale,
        ((levels.reshape(groups.shape) - 7.0) * scale[..., None]).reshape(weight.shape).astype(np.float32),
    )


def write_weights(
    path: str, weights: list[tuple[str, np.ndarray]], index: str = 'tensor-cache.json', per_shard: int = 5
) -> None:
    """Shards and their index; float32 is stored as its upper halves, as mlc_llm does."""
    shards = []
    for at in range(0, len(weights), per_shard):
        records, data = [], b''
        for name, array in weights[at : at + per_shard]:
            raw = (
                (array.view(np.uint32) >> 16).astype(np.uint16).tobytes()
                if array.dtype == np.float32
                else array.tobytes()
            )
            records.append(
                {
                    'name': name,
                    'shape': list(array.shape),
                    'dtype': str(array.dtype),
                    'nbytes': len(raw),
                    'byteOffset': len(data),
                    'format': 'f32-to-bf16' if array.dtype == np.float32 else 'raw',
                }
            )
            data += raw
        name = f'params_shard_{len(shards)}.bin'
        with open(os.path.join(path, name), 'wb') as file:
            file.write(data)
        shards.append({'dataPath': name, 'format': 'raw-shard', 'nbytes': len(data), 'records': records})
    with open(os.path.join(path, index), 'w') as file:
        json.dump({'metadata': {}, 'records': shards}, file)
