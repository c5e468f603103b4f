"""AWQ checkpoints without AWQ kernels: loading unpacks the 4-bit weights into dense ones.

Source: the GEMM layout of AutoAWQ (`awq/utils/packing_utils.py`, `awq/modules/linear/gemm.py`). A linear
layer of `in` inputs and `out` outputs has `qweight` int32 [in, out/8], `qzeros` int32 [in/group, out/8] and
`scales` float16 [in/group, out]; the weight is `(q - zero) * scale`. Each int32 holds eight 4-bit numbers,
the lowest first, for the columns 0 2 4 6 1 3 5 7 of its eight. Lin et al. 2023, arXiv:2306.00978.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable

import torch
from safetensors import safe_open

from ros2_nanochat.backends.hf.checkpoint import Checkpoint
from ros2_nanochat.errors import BackendError

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
SUFFIXES = ('qweight', 'qzeros', 'scales')


def unpack_nibbles(packed: torch.Tensor) -> torch.Tensor:
    """Unpack int32 [rows, n/8] into int8 [rows, n], with the columns in order."""
    shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=packed.device)
    nibbles = ((packed[..., None] >> shifts) & 0xF).to(torch.int8)
    place = torch.tensor(ORDER, device=packed.device).argsort()
    return nibbles[..., place].reshape(packed.shape[0], -1)


def dequantize(
    qweight: torch.Tensor, qzeros: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """Return the dense weight [out, in] of one layer.

    Args:
        qweight: int32 [in, out/8].
        qzeros: int32 [in/group, out/8].
        scales: float16 [in/group, out].
        dtype: Of the result.

    Raises:
        ValueError: The shapes do not fit.
    """
    weight, zeros = unpack_nibbles(qweight), unpack_nibbles(qzeros)
    group = weight.shape[0] // zeros.shape[0]
    if weight.shape[0] % zeros.shape[0] or scales.shape != zeros.shape or weight.shape[1] != zeros.shape[1]:
        raise ValueError(
            f'shapes do not fit: qweight {list(qweight.shape)}, qzeros {list(qzeros.shape)}, scales'
            f' {list(scales.shape)}'
        )
    weight = weight.reshape(-1, group, weight.shape[1])
    dense = (weight - zeros[:, None]).to(torch.float32) * scales[:, None].to(torch.float32)
    return dense.reshape(-1, dense.shape[-1]).t().contiguous().to(dtype)


def check(checkpoint: Checkpoint) -> None:
    """Check that a checkpoint is AWQ in the layout that is read here.

    Raises:
        BackendError: It is not.
    """
    settings = checkpoint.config.get('quantization_config') or {}
    if settings.get('quant_method') != 'awq':
        raise BackendError(
            f'{checkpoint.folder} is no AWQ checkpoint (quant_method {settings.get("quant_method")!r}); open'
            " it with api='hf'"
        )
    version, bits = (
        str(settings.get('version', 'gemm')).lower(),
        settings.get('bits', settings.get('w_bit', 4)),
    )
    if version != 'gemm' or bits != 4:
        raise BackendError(
            f'{checkpoint.folder}: AWQ version {version!r} with {bits} bits needs its own kernels (gptqmodel'
            " on CUDA); take a checkpoint with version 'gemm' and 4 bits"
        )


def dense_elements(checkpoint: Checkpoint) -> int:
    """Return the number of elements of the unpacked weights."""
    return sum(
        math.prod(shape) * (8 if name.endswith('.qweight') else 1)
        for name, (_, shape) in checkpoint.tensors.items()
        if not name.endswith(('.qzeros', '.scales'))
    )


def unpack(
    checkpoint: Checkpoint, dtype: torch.dtype, step: Callable[[float], None]
) -> dict[str, torch.Tensor]:
    """Return the checkpoint's tensors, with each quantized layer dense, in `dtype`.

    Args:
        checkpoint: The AWQ checkpoint.
        dtype: Of the result.
        step: Called with the share that is done, 0 to 1.

    Raises:
        BackendError: A layer is damaged.
    """
    layers = {name.removesuffix('.qweight') for name in checkpoint.tensors if name.endswith('.qweight')}
    where: dict[str, str] = {}
    dense: dict[str, torch.Tensor] = {}
    files = {
        name: safe_open(os.path.join(checkpoint.folder, name), framework='pt') for name in checkpoint.shards
    }
    for shard, file in files.items():
        where.update(dict.fromkeys(file.keys(), shard))

    def tensor(name: str) -> torch.Tensor:
        return files[where[name]].get_tensor(name)

    for done, name in enumerate(sorted(where)):
        step(done / len(where))
        layer, _, kind = name.rpartition('.')
        if layer not in layers or kind not in SUFFIXES:
            value = tensor(name)
            dense[name] = value.to(dtype) if value.is_floating_point() else value
        elif kind == 'qweight':
            try:
                packed, zeros, scales = (tensor(f'{layer}.{suffix}') for suffix in SUFFIXES)
                dense[f'{layer}.weight'] = dequantize(packed, zeros, scales, dtype)
            except (KeyError, ValueError) as error:
                raise BackendError(
                    f'{checkpoint.folder}: layer {layer} is not an AWQ layer ({error}); download it again'
                ) from error
    return dense
