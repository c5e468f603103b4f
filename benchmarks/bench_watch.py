"""Figures of standing questions without ROS: three questions about a frame beside one, the question before and
after the picture, how far frames are compared rightly, and what that costs. bench_watch_ros.py has the rest.

    python -m benchmarks.bench_watch [--frames 24] [--rooms 30]
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.common import machine, table
from ros2_nanochat import NanoLLM
from ros2_nanochat.config import RobotOptions
from ros2_nanochat.robot.turn import Picture
from ros2_nanochat.robot.watch import Watch, read_watch
from ros2_nanochat.robot.watch_asking import Asking
from ros2_nanochat.robot.watch_frames import View
from ros2_nanochat.robot.watch_scene import Scene
from ros2_nanochat.vision.shapes import LABELS, random_picture

sys.path.insert(0, str(Path(__file__).parents[1] / 'test'))
from watch_scenes import contrast, ground, seen, with_thing

QUESTIONS = ('What color is the object?', 'What shape is the object?', 'Where is the object?')
FACTS = ('color', 'shape', 'place')
SENTENCES = (
    [f'The object is {color}.' for color in LABELS[0]],
    [f'The object is a {shape}.' for shape in LABELS[1]],
    [
        f'The object is {place}.'
        for place in ('on the left', 'on the right', 'at the top', 'at the bottom', 'in the center')
    ],
)
"""The answers that the tiny vision encoder was trained to give."""

WATCHES = [
    read_watch({'name': fact, 'question': question, 'response_format': ' | '.join(answers)})
    for fact, question, answers in zip(FACTS, QUESTIONS, SENTENCES)
]


class QuestionFirst(Asking):
    """The other order, for comparison: the question stands before the picture."""

    def _arrange(self, history, watch: Watch, views, question: str) -> None:
        history.append('user', text=question)
        super()._arrange(history, watch, views, '')


def frames(count: int) -> list[tuple[View, object]]:
    """Fresh frames of drawn scenes, with what they show."""
    out = []
    for n in range(count):
        picture, scene = random_picture(np.random.default_rng(10_000_000 + n), 320, 240)
        pixels = np.asarray(picture)
        out.append((View('image', Picture(lambda: pixels), 0.0, Scene.of(pixels), pixels), scene))
    return out


def ask(
    asking: Asking, watches: list[Watch], view: View, options: RobotOptions
) -> tuple[tuple[float, float, float, float], list[str]]:
    """Ask questions about a frame. Return the seconds of the model, those in all, the tokens of the prompts
    and those of them that were reused; and the answers.
    """
    began = time.perf_counter()
    spent = asking.encode([view], lambda: False)
    pending = [asking.begin(watch, [view], options) for watch in watches]
    while not all(each.ended(1.0) for each in pending):
        pass
    seconds = time.perf_counter() - began
    usages = [each.stream.usage for each in pending]
    spent += sum(usage.model_time for usage in usages)
    prompt = sum(usage.prompt_tokens for usage in usages)
    reused = sum(usage.reused_tokens or 0 for usage in usages)
    return (spent, seconds, prompt, reused), [each.answer().text for each in pending]


def cost(count: int) -> float:
    """One question and three about frames, in both orders, with the form in the prompt and without it: all of
    them take turns. Return how much longer three questions take the model than one.
    """
    with NanoLLM.from_pretrained(vision='tiny', max_context_len=1024, max_sequences=6) as model:
        orders = {'picture first': Asking(model), 'question first': QuestionFirst(model)}
        forms = {'form explained': RobotOptions(), 'not explained': RobotOptions(explain_format=False)}
        kinds = {
            (order, form, len(watches)): (asking, watches, options)
            for (form, options), (order, asking), watches in itertools.product(
                forms.items(), orders.items(), (WATCHES[:1], WATCHES)
            )
        }
        figures: dict[tuple, list] = {name: [] for name in kinds}
        right = dict.fromkeys(kinds, 0)
        for n, (view, scene) in enumerate(frames((count + 1) * len(kinds))):
            name = list(kinds)[n % len(kinds)]
            asking, watches, options = kinds[name]
            taken, answers = ask(asking, watches, view, options)
            if n >= len(kinds):  # the first round warms up
                figures[name].append(taken)
                right[name] += sum(
                    getattr(scene, watch.name) in answer for answer, watch in zip(answers, watches)
                )
    rows, factors = [], {}
    for name, taken in figures.items():
        model_time, seconds, prompt, reused = (statistics.median(each) for each in zip(*taken))
        share = right[name] / (count * name[2])
        factors[name] = model_time / statistics.median(each[0] for each in figures[(*name[:2], 1)])
        rows.append(
            (
                f'{name[0]}, {name[1]}, {name[2]}',
                f'{1000 * model_time:.1f}',
                f'{1000 * seconds:.1f}',
                f'{factors[name]:.2f}',
                f'{reused:.0f} of {prompt:.0f}',
                f'{share:.0%}',
            )
        )
    head = ('order, form, questions', 'model ms', 'all ms', 'x one question', 'reused tokens', 'right')
    table('Questions about a frame', head, rows)
    return factors['picture first', 'form explained', 3]


def comparing(rooms: int) -> None:
    """Misses and false alarms of the comparison of frames, and what it costs."""
    cameras = {
        'no noise': dict(noise=0.0),
        'noise 4': dict(noise=4.0),
        'noise 12': dict(noise=12.0),
        'shot noise 6': dict(noise=6.0, shot=True),
        'noise 4, JPEG 80': dict(noise=4.0, quality=80),
    }
    rows = []
    for name, camera in cameras.items():
        rng = np.random.default_rng(0)
        false, flicker, missed = 0, 0, {8: [], 12: [], 20: [], 40: []}
        times = []
        for _ in range(rooms):
            room = ground(rng)
            first = Scene.of(seen(room, rng, **camera))
            false += not Scene.of(seen(room, rng, **camera)).same_as(first)
            flicker += not Scene.of(seen(room, rng, light=rng.uniform(0.9, 1.1), **camera)).same_as(first)
            for size, hits in missed.items():
                place = (
                    int(rng.integers(0, 600)),
                    int(rng.integers(0, 440)),
                    size,
                    tuple(rng.uniform(0, 255, 3)),
                )
                if contrast(room, *place) >= 60:
                    frame = seen(with_thing(room, *place), rng, **camera)
                    began = time.perf_counter()
                    hits.append(Scene.of(frame).same_as(first))
                    times.append(time.perf_counter() - began)
        rows.append(
            (
                name,
                f'{false / rooms:.1%}',
                f'{flicker / rooms:.1%}',
                *(f'{np.mean(hits):.0%}' for hits in missed.values()),
                f'{1000 * statistics.median(times):.2f}',
            )
        )
    head = ('640 x 480', 'false alarms', 'flicker 10 %', *(f'missed {n} px' for n in (8, 12, 20, 40)), 'ms')
    table('Comparing frames', head, rows)


def main() -> int:
    """Print the figures. The exit code is 1 if three questions take more than 1.3 times what one takes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--frames', type=int, default=24)
    parser.add_argument('--rooms', type=int, default=30)
    options = parser.parse_args()
    print(machine())
    if options.rooms:
        comparing(options.rooms)
    return int(bool(options.frames) and cost(options.frames) > 1.3)


if __name__ == '__main__':
    sys.exit(main())
