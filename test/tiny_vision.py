"""Asks the tiny model about pictures it has never seen, and counts."""

from __future__ import annotations

import numpy as np

from ros2_nanochat import ChatHistory
from ros2_nanochat.vision.shapes import LABELS, Scene, random_picture

FACTS = ('color', 'shape', 'place')
QUESTIONS = ('What color is the object?', 'What shape is the object?', 'Where is the object?')
FRESH = 10_000_000
"""Seeds from here on were not used in training."""


def is_right(reply: str, fact: int, scene: Scene) -> bool:
    """Whether a reply names the right label of this fact and no other."""
    named = {label for label in LABELS[fact] if label in reply.lower()}
    return named == {getattr(scene, FACTS[fact])}


def ask(model, image, question: str, **options) -> str:
    """A fresh conversation: the image, then the question."""
    history = ChatHistory(model, **options)
    history.append('user', image=image)
    history.append('user', text=question)
    prompt, _ = history.embed_chat()
    return model.generate(prompt, streaming=False, max_new_tokens=16, stop_tokens=history.template.stop)


def count_right(model, count: int, seed: int = 0, tell=None, **options) -> np.ndarray:
    """[3]: how many of `count` fresh pictures are told right, for colour, shape and place."""
    right = np.zeros(3, int)
    for n in range(count):
        picture, scene = random_picture(np.random.default_rng(FRESH + 1000 * seed + n))
        for fact, question in enumerate(QUESTIONS):
            reply = ask(model, picture, question, **options)
            right[fact] += is_right(reply, fact, scene)
            if tell and not is_right(reply, fact, scene):
                tell(
                    f'{n} {picture.size} {scene} size {scene.size:.2f} at {scene.x:.2f},{scene.y:.2f}:'
                    f' {reply!r}'
                )
    return right
