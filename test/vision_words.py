"""What small models that see have in common, whatever their form: special tokens, a vocabulary, a chat
template, and drawn pictures.
"""

from __future__ import annotations

import numpy as np

SPECIAL = [
    '<pad>',
    '<s>',
    '</s>',
    '<image>',
    '<|im_start|>',
    '<|im_end|>',
    '<fake_token_around_image>',
    '<global-img>',
    '<start_of_image>',
    '<end_of_image>',
    '<image_soft_token>',
    '<|vision_start|>',
    '<|vision_end|>',
    '<|image_pad|>',
    '<|video_pad|>',
    '<img>',
    '</img>',
    '<IMG_CONTEXT>',
    '[IMG]',
    '[IMG_BREAK]',
    '[IMG_END]',
    '[INST]',
    '[/INST]',
    '<start_of_turn>',
    '<end_of_turn>',
    '<end_of_utterance>',
    *(f'<row_{r}_col_{c}>' for r in range(1, 5) for c in range(1, 5)),
]
MERGES = [('Ċ', 'Ċ'), ('ĊĊ', 'Ċ'), ('t', 'h'), ('th', 'e'), ('Ġ', 'the')]
"""A few, so that neighbours join."""

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}IMAGE{% else %}{{ p['text'] }}{% endif %}{% endfor %}"
    '{% endif %}<|im_end|>\n{% endfor %}'
    '{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}'
)
"""IMAGE stands for what a model writes for a picture."""


def ordinary_tokens() -> list[str]:
    """The tokens of byte-level BPE in the order of their ids, without the special ones."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = [chr(b) for b in printable] + [chr(256 + n) for n in range(256 - len(printable))]
    return sorted(alphabet) + [a + b for a, b in MERGES]


def picture(seed: int = 0, width: int = 200, height: int = 130):
    """A drawn picture."""
    from ros2_nanochat.vision.shapes import random_picture

    return random_picture(np.random.default_rng(seed), width, height)[0]
