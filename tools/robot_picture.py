"""Makes the picture in README.md: what a robot's topics carry while it is asked about its camera. The frame,
the pieces and the sentence are those of a real reply, by the embedded model with its tiny vision encoder.

python3 tools/robot_picture.py docs/images/robot.svg
"""

from __future__ import annotations

import base64
import io
import sys
from html import escape

import numpy as np

from ros2_nanochat import ChatHistory, NanoLLM
from ros2_nanochat.robot.sentences import SentenceSplitter
from ros2_nanochat.vision.shapes import random_picture

QUESTION = 'What do you see?'
WIDTH, HEIGHT = 880, 330
INK, QUIET, PAPER, ACCENT = '#1f2933', '#6b7785', '#f7f9fb', '#0b7285'


def ask(picture) -> list[str]:
    """The pieces of the model's reply about a picture."""
    with NanoLLM.from_pretrained(vision='tiny', max_context_len=512) as model:
        history = ChatHistory(model)
        history.append('user', picture)
        history.append('user', QUESTION)
        prompt, _ = history.embed_chat()
        return list(model.generate(prompt, kv_cache=history.kv_cache, max_new_tokens=48, do_sample=False))


def draw(picture, pieces: list[str]) -> str:
    """The picture as SVG."""
    splitter = SentenceSplitter()
    sentences = [sentence for piece in pieces for sentence in splitter.add(piece)] + splitter.flush()
    data = io.BytesIO()
    picture.save(data, 'PNG')
    frame = base64.b64encode(data.getvalue()).decode()
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
        ' font-family="DejaVu Sans, Helvetica, Arial, sans-serif">',
        f'<title>{escape(QUESTION)} {escape("".join(pieces))}</title>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="12" fill="{PAPER}" stroke="#d5dde5"/>',
        topic(28, 40, '/camera/image_raw', 'what the camera shows'),
        f'<image x="28" y="62" width="320" height="240" href="data:image/png;base64,{frame}"/>',
        f'<rect x="28" y="62" width="320" height="240" fill="none" stroke="{QUIET}"/>',
        topic(384, 40, '/nanochat/query', 'what somebody asks'),
        bubble(384, 62, 250, QUESTION, '#ffffff', INK),
        topic(384, 150, '/nanochat/tokens', 'the reply, as the model writes it'),
    ]
    x = 384.0
    for piece in pieces:
        width = 8.2 * len(piece) + 8
        parts.append(
            f'<rect x="{x:.0f}" y="166" width="{width:.0f}" height="30" rx="5" fill="#e3f4f6"/>'
            f'<text x="{x + width / 2:.0f}" y="186" font-size="14" text-anchor="middle" fill="{INK}">'
            f'{escape(piece.strip())}</text>'
        )
        x += width + 4
    parts.append(topic(384, 246, '/nanochat/sentence', 'for the speech synthesizer'))
    parts.append(bubble(384, 262, 430, ' '.join(sentences), ACCENT, '#ffffff'))
    return '\n'.join([*parts, '</svg>\n'])


def topic(x: int, y: int, name: str, text: str) -> str:
    """The name of a topic, and what it carries."""
    return (
        f'<text x="{x}" y="{y}" font-size="14" fill="{QUIET}">'
        f'<tspan font-family="DejaVu Sans Mono, monospace" fill="{ACCENT}">{name}</tspan>'
        f'<tspan dx="10">{escape(text)}</tspan></text>'
    )


def bubble(x: int, y: int, width: int, text: str, fill: str, ink: str) -> str:
    """A text in a box."""
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="42" rx="10" fill="{fill}" stroke="#d5dde5"/>'
        f'<text x="{x + 16}" y="{y + 27}" font-size="17" fill="{ink}">{escape(text)}</text>'
    )


if __name__ == '__main__':
    scene_picture, _ = random_picture(
        np.random.default_rng(5), 320, 240, color='green', shape='circle', place='left'
    )
    with open(sys.argv[1], 'w', encoding='utf-8') as file:
        file.write(draw(scene_picture, ask(scene_picture)))
