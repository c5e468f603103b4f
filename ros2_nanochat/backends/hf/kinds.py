"""Recognizes, from their files, checkpoints of transformers that are not language models."""

from __future__ import annotations

import os
import re

from ros2_nanochat.backends.hf.checkpoint import Checkpoint
from ros2_nanochat.errors import printable

_OTHER_TASK = re.compile(r'For(?!(?:CausalLM|ConditionalGeneration|\w+Text2Text)$)([A-Z]\w*)$')
_TAKE = 'take one (its "architectures" end in ForCausalLM), or an image-text model'


def other_kind(checkpoint: Checkpoint) -> str | None:
    """Return what a checkpoint is and what to use instead; None if it may be a language model."""
    config = checkpoint.config
    name = printable((config.get('architectures') or [''])[0])
    what = None
    if config.get('is_encoder_decoder'):
        what = 'an encoder-decoder (T5, BART and their kin)'
    elif os.path.isdir(os.path.join(checkpoint.folder, '1_Pooling')):
        what = 'an embedding model, which writes no text'
    elif found := _OTHER_TASK.search(name):
        what = f'made for another task ({found[1]})'
    elif name.endswith('Model') and not name.endswith('LMHeadModel'):
        what = 'a model without a language head, such as one for embeddings'
    if what is None:
        return None
    kind = name or printable(config.get('model_type'))
    return f'{checkpoint.folder} ({kind}) is no causal language model but {what}: {_TAKE}'
