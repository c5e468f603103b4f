"""Opens a checkpoint with transformers: chooses class, dtype, device and quantizer; reports progress and can
be aborted.

Knows nothing of sequences or forwards. Safetensors and GGUF only: nothing is unpickled.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass

import torch
import transformers

from ros2_nanochat.backends.hf import awq as hf_awq
from ros2_nanochat.backends.hf.checkpoint import DTYPES, Checkpoint
from ros2_nanochat.backends.hf.load_progress import report_progress
from ros2_nanochat.backends.hf.model_class import concrete_class, model_class, need_packages
from ros2_nanochat.config import ModelConfig
from ros2_nanochat.errors import BackendError, LoadAborted, one_line

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Quantizer:
    """A quantization that transformers applies while loading.

    Attributes:
        packages: The packages that it needs.
        bits: Bits per weight, for the memory estimate.
        make: Creates its configuration.
        needs_cuda: Whether it runs only on CUDA devices.
    """

    packages: tuple[str, ...]
    bits: float
    make: Callable
    needs_cuda: bool = False


def _torchao(name: str, **options):
    import torchao.quantization

    return transformers.TorchAoConfig(getattr(torchao.quantization, name)(**options))


QUANTIZERS = {
    'bitsandbytes-4bit': Quantizer(
        ('bitsandbytes', 'accelerate'),
        4.5,
        lambda dtype: transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type='nf4', bnb_4bit_compute_dtype=dtype
        ),
    ),
    'bitsandbytes-8bit': Quantizer(
        ('bitsandbytes', 'accelerate'), 8, lambda dtype: transformers.BitsAndBytesConfig(load_in_8bit=True)
    ),
    'torchao-int4': Quantizer(
        ('torchao', 'accelerate'),
        4.5,
        lambda dtype: _torchao(
            'Int4WeightOnlyConfig', group_size=128, int4_packing_format='tile_packed_to_4d'
        ),
        needs_cuda=True,
    ),
    'torchao-int8': Quantizer(('torchao', 'accelerate'), 8, lambda dtype: _torchao('Int8WeightOnlyConfig')),
    'fp8': Quantizer(('torchao', 'accelerate'), 8, lambda dtype: _torchao('Float8WeightOnlyConfig')),
}


@dataclass(frozen=True)
class Choice:
    """What `quantization` asks for.

    Attributes:
        dtype: None for the checkpoint's own.
        quantizer: Name of a quantizer, or None.
        awq: Folder of AWQ weights for the model, or None.
    """

    dtype: str | None = None
    quantizer: str | None = None
    awq: str | None = None


def read_choice(quantization: str | None) -> Choice:
    """Parse the option `quantization`.

    Raises:
        BackendError: It is unknown. The message lists the valid values.
    """
    if quantization in (None, '', 'auto'):
        return Choice()
    if quantization in DTYPES:
        return Choice(dtype=quantization)
    if quantization in QUANTIZERS:
        return Choice(quantizer=quantization)
    if os.path.isdir(os.path.expanduser(quantization)):
        return Choice(awq=os.path.abspath(os.path.expanduser(quantization)))
    raise BackendError(
        f'quantization={quantization!r} is unknown to hf. There are: auto,'
        f' {", ".join((*DTYPES, *QUANTIZERS))}, or a folder of AWQ weights'
    )


def choose_device(name: str) -> torch.device:
    """Return the device that `ModelConfig.device` names.

    Raises:
        BackendError: It is not valid, or not there.
    """
    if name == 'auto':
        return torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        device = torch.device(name)
    except RuntimeError:
        raise BackendError(f"device={name!r} is not valid: 'auto', 'cpu', 'cuda' or 'cuda:1'") from None
    if device.type == 'cuda' and (
        not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()
    ):
        raise BackendError(
            f'device={name!r}: torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices here; '
            "set device='cpu', or install a torch built for this machine's CUDA"
        )
    if device.type not in ('cpu', 'cuda'):
        raise BackendError(f"device={name!r} is not valid: 'auto', 'cpu', 'cuda' or 'cuda:1'")
    return device


def choose_dtype(checkpoint: Checkpoint, choice: Choice) -> torch.dtype:
    """Return the dtype that was asked for, else the checkpoint's (float32 for GGUF, whose values are exact in
    it).
    """
    if choice.dtype:
        return getattr(torch, choice.dtype)
    for config in (checkpoint.config, checkpoint.text_config):
        name = str(config.get('dtype') or config.get('torch_dtype') or '').removeprefix('torch.')
        if name in DTYPES:
            return getattr(torch, name)
    types = {dtype for dtype, shape in checkpoint.tensors.values() if len(shape) == 2}
    return torch.bfloat16 if types == {'BF16'} else torch.float16 if types == {'F16'} else torch.float32


def weights_bytes(checkpoint: Checkpoint, choice: Choice, device: torch.device) -> int:
    """Return the bytes of the loaded weights."""
    if checkpoint.quant_method == 'awq' and not _has_awq_kernels(device):
        return hf_awq.dense_elements(checkpoint) * choose_dtype(checkpoint, choice).itemsize
    if checkpoint.quant_method:
        return checkpoint.file_bytes
    bits = (
        QUANTIZERS[choice.quantizer].bits
        if choice.quantizer
        else 8 * choose_dtype(checkpoint, choice).itemsize
    )
    return int(checkpoint.num_elements * bits / 8)


def _has_awq_kernels(device: torch.device) -> bool:
    return device.type in ('cuda', 'cpu') and importlib.util.find_spec('gptqmodel') is not None


def load(
    checkpoint: Checkpoint,
    config: ModelConfig,
    device: torch.device,
    progress: Callable[[float], None],
    aborted: threading.Event,
):
    """Load a model in `eval` on `device`; also return the form of its weights (a dtype or a quantizer's
    name).

    Raises:
        BackendError: It cannot be loaded.
        LoadAborted: `aborted` was set.
    """
    choice = read_choice(config.quantization)
    dtype = choose_dtype(checkpoint, choice)
    options = {'dtype': dtype, 'local_files_only': True, 'trust_remote_code': config.trust_remote_code}
    if device.type == 'cuda':
        options['device_map'] = {'': str(device)}

    best = 0.0

    def step(share: float) -> None:  # transformers may show several bars in turn
        nonlocal best
        best = max(best, share)
        if aborted.is_set():
            raise LoadAborted(f'loading {checkpoint.folder} was aborted')
        progress(best)

    with report_progress(step):
        if checkpoint.gguf_file:
            need_packages(('gguf', 'accelerate'), f'opening {checkpoint.gguf_file} with hf')
            model, held = (
                _from_pretrained(
                    transformers.AutoModelForCausalLM, checkpoint, gguf_file=checkpoint.gguf_file, **options
                ),
                str(dtype)[6:],
            )
        elif checkpoint.quant_method == 'awq' or config.api == 'awq':
            model, held = _load_awq(checkpoint, dtype, device, options, step)
        else:
            if choice.quantizer:
                quantizer = QUANTIZERS[choice.quantizer]
                need_packages(quantizer.packages, f'quantization={choice.quantizer!r}')
                if quantizer.needs_cuda and device.type != 'cuda':
                    raise BackendError(
                        f'quantization={choice.quantizer!r} runs only on CUDA devices, not on {device.type};'
                        ' take bitsandbytes-8bit or a dtype'
                    )
                options['quantization_config'] = quantizer.make(dtype)
            model = _from_pretrained(model_class(checkpoint, config), checkpoint, **options)
            held = choice.quantizer or checkpoint.quant_method or str(dtype)[6:]
    step(1.0)
    if device.type == 'cpu' and not choice.quantizer:
        model.to(device)
    return model.eval(), held


def _load_awq(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    device: torch.device,
    options: dict,
    step: Callable[[float], None],
):
    """Load AWQ with transformers' own kernels if gptqmodel is installed, else unpack it; on a CPU also if the
    kernels do not support it.
    """
    if checkpoint.quant_method != 'awq':
        hf_awq.check(checkpoint)
    if _has_awq_kernels(device):
        try:
            model = _from_pretrained(
                transformers.AutoModelForCausalLM, checkpoint, **{'device_map': {'': str(device)}, **options}
            )
            with torch.inference_mode():
                model(input_ids=torch.zeros(1, 2, dtype=torch.long, device=device))  # creates the kernels
            log.info('AWQ runs through gptqmodel: the weights stay at 4 bits')
            return model, 'awq'
        except Exception as error:
            if device.type == 'cuda' or isinstance(error, LoadAborted):
                raise
            why = f'gptqmodel does not run it here ({one_line(error, 150)})'
    else:
        why = 'gptqmodel is not installed'
    hf_awq.check(checkpoint)
    dense_bytes = dtype.itemsize * hf_awq.dense_elements(checkpoint)
    log.warning(
        'AWQ is unpacked to dense %s weights, because %s: about %.1f GB of memory in place of %.1f GB, and'
        ' the speed of a dense model',
        str(dtype)[6:],
        why,
        dense_bytes / 1e9,
        checkpoint.file_bytes / 1e9,
    )
    tensors = hf_awq.unpack(checkpoint, dtype, lambda share: step(0.9 * share))
    config = transformers.AutoConfig.from_pretrained(
        checkpoint.folder, local_files_only=True, trust_remote_code=options['trust_remote_code']
    )
    if hasattr(config, 'quantization_config'):
        del config.quantization_config
    cls = concrete_class(config, checkpoint)
    options = {name: value for name, value in options.items() if name in ('dtype', 'device_map')}
    return _from_pretrained(
        cls, checkpoint, path=None, config=config, state_dict=tensors, **options
    ), f'awq as {str(dtype)[6:]}'


def _from_pretrained(cls, checkpoint: Checkpoint, path: str | None = '', **options):
    """`cls.from_pretrained`, with one-line errors for a checkpoint that does not fit."""
    path = checkpoint.folder if path == '' else path
    try:
        if 'state_dict' not in options and not checkpoint.gguf_file:
            options['use_safetensors'] = True
        model, report = cls.from_pretrained(path, output_loading_info=True, **options)
    except (BackendError, MemoryError):
        raise
    except torch.OutOfMemoryError as error:
        raise BackendError(
            f'{checkpoint.folder} does not fit into the memory of the GPU: {one_line(error)}; take a smaller'
            ' model or quantization'
        ) from error
    except Exception as error:  # a bad checkpoint can cause any error in transformers
        raise BackendError(
            f'transformers {transformers.__version__} cannot open {checkpoint.folder}: {one_line(error)}'
        ) from error
    missing = sorted(report.get('missing_keys') or ())
    if missing:
        raise BackendError(
            f'{checkpoint.folder} lacks {len(missing)} tensors of its architecture, {missing[0]} for one; '
            'it is incomplete, or its config.json belongs to another model'
        )
    return model
