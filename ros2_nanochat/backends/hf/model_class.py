"""Chooses the transformers class of a checkpoint, and checks the packages that it needs."""

from __future__ import annotations

import importlib.util

import transformers

from ros2_nanochat.backends.hf.checkpoint import Checkpoint
from ros2_nanochat.backends.hf.kinds import other_kind
from ros2_nanochat.config import ModelConfig
from ros2_nanochat.errors import BackendError


def model_class(checkpoint: Checkpoint, config: ModelConfig):
    """Return the auto class of a checkpoint.

    Image-text models are opened whole, so that their vision part is available; others as a language model.

    Raises:
        BackendError: It is not a causal or image-text model, or transformers does not know it.
    """
    kind, folder = checkpoint.config.get('model_type'), checkpoint.folder
    if config.trust_remote_code and 'auto_map' in checkpoint.config:
        return transformers.AutoModelForCausalLM
    if 'auto_map' in checkpoint.config and kind not in transformers.CONFIG_MAPPING:
        raise BackendError(
            f'{folder} brings its own code ({kind}); it runs only with trust_remote_code=True, if you trust'
            ' its authors'
        )
    if kind not in transformers.CONFIG_MAPPING:
        raise BackendError(
            f'{folder}: model_type {kind!r} is unknown to transformers {transformers.__version__}; a newer'
            ' one may know it (pip install -U transformers)'
        )
    if problem := other_kind(checkpoint):
        raise BackendError(problem)
    settings = transformers.CONFIG_MAPPING[kind]
    architectures = checkpoint.config.get('architectures') or ['']
    image_text = transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    if settings in image_text and (
        settings not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING
        or architectures[0] == image_text[settings].__name__
    ):
        return transformers.AutoModelForImageTextToText
    if settings in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        return transformers.AutoModelForCausalLM
    raise BackendError(
        f'{folder}: {architectures[0] or kind} is no causal language model; hf runs causal and image-text'
        ' models'
    )


def concrete_class(config, checkpoint: Checkpoint):
    """Return the class of transformers behind the auto class of a language model.

    Raises:
        BackendError: There is none.
    """
    for mapping in (
        transformers.MODEL_FOR_CAUSAL_LM_MAPPING,
        transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    ):
        if type(config) in mapping:
            cls = mapping[type(config)]
            return cls[0] if isinstance(cls, tuple) else cls
    raise BackendError(
        f'{checkpoint.folder}: transformers {transformers.__version__} has no language model for'
        f' {config.model_type}'
    )


def need_packages(packages: tuple[str, ...], what: str) -> None:
    """Check that packages are installed.

    Args:
        packages: Their names.
        what: What needs them, for the message.

    Raises:
        BackendError: Some are not.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise BackendError(
            f'{what} needs {" and ".join(missing)}: run  pip install {" ".join(missing)}  with the Python'
            ' that runs this'
        )
