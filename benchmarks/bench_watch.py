"""Figures of standing questions: three questions about a frame beside one, the question before and after the
picture, how far frames are compared rightly, and what a person's question waits; with `--minutes 10`, a still
noisy scene over ROS 2 (in the built workspace), in which nothing may be told.

    python -m benchmarks.bench_watch [--frames 40] [--rooms 100] [--minutes 0]
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.common import machine, table
from ros2_nanochat import NanoLLM
from ros2_nanochat.config import RobotOptions
from ros2_nanochat.robot.turn import Picture
from ros2_nanochat.robot.watch import Watch, WatchSource, read_watch
from ros2_nanochat.robot.watch_asking import Asking
from ros2_nanochat.robot.watch_budget import WatchBudget
from ros2_nanochat.robot.watch_frames import View
from ros2_nanochat.robot.watch_scene import Scene
from ros2_nanochat.robot.watcher import Watcher
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
) -> tuple[float, float, int, list[str]]:
    """Ask questions about a frame: seconds of the model, seconds in all, tokens computed, the answers."""
    began = time.perf_counter()
    spent = asking.encode([view])
    pending = [asking.begin(watch, [view], options) for watch in watches]
    while not all(each.ended(1.0) for each in pending):
        pass
    seconds = time.perf_counter() - began
    usages = [each.stream.usage for each in pending]
    computed = sum(usage.prompt_tokens - (usage.reused_tokens or 0) for usage in usages)
    spent += sum(usage.model_time for usage in usages)
    return spent, seconds, computed, [each.answer().text for each in pending]


def cost(count: int) -> None:
    """One question and three about frames, in both orders, with the form in the prompt and without it."""
    with NanoLLM.from_pretrained(vision='tiny', max_context_len=1024, max_sequences=6) as model:
        orders = {'picture first': Asking(model), 'question first': QuestionFirst(model)}
        forms = {'form explained': RobotOptions(), 'not explained': RobotOptions(explain_format=False)}
        kinds = {
            f'{order}, {form}, {len(watches)}': (asking, watches, options)
            for (form, options), (order, asking), watches in itertools.product(
                forms.items(), orders.items(), (WATCHES[:1], WATCHES)
            )
        }
        figures: dict[str, list] = {name: [] for name in kinds}
        right = dict.fromkeys(kinds, 0)
        everything = frames((count + 1) * len(kinds))
        for n, (view, scene) in enumerate(everything):
            name = list(kinds)[n % len(kinds)]
            asking, watches, options = kinds[name]
            *taken, answers = ask(asking, watches, view, options)
            if n >= len(kinds):  # the first round warms up
                figures[name].append(taken)
                right[name] += sum(
                    getattr(scene, watch.name) in answer for answer, watch in zip(answers, watches)
                )
        rows = []
        for name, taken in figures.items():
            model_time, seconds, computed = (statistics.median(each) for each in zip(*taken))
            share = right[name] / (count * len(kinds[name][1]))
            rows.append(
                (name, f'{1000 * model_time:.1f}', f'{1000 * seconds:.1f}', f'{computed:.0f}', f'{share:.0%}')
            )
        table(
            'Questions about a frame',
            ('order, form, questions', 'model ms', 'all ms', 'tokens computed', 'right'),
            rows,
        )


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


class MovingPictures:
    """A camera whose every frame shows something else."""

    present, expecting = True, False

    def __init__(self):
        self._count = 0
        self._pictures = [
            np.asarray(random_picture(np.random.default_rng(n), 320, 240)[0]) for n in range(50)
        ]

    def newest(self) -> Picture:
        self._count += 1
        pixels = self._pictures[self._count % len(self._pictures)]
        return Picture(lambda: pixels, stamp=time.time_ns(), age=0.0, number=self._count)

    def trouble(self) -> str:
        return ''


class Nobody:
    """Hears what the standing questions see."""

    def observed(self, standing, observation): ...
    def ended(self, standing, reason, error): ...
    def changed(self): ...


def person(count: int) -> None:
    """What a person's question waits while three standing questions are asked as often as possible. The node
    also keeps them from being asked while it answers; here only the engine's priorities do.
    """
    with NanoLLM.from_pretrained(vision='tiny', max_context_len=1024, max_sequences=6) as model:
        camera, budget = MovingPictures(), WatchBudget(1.0)
        waits: dict[str, list[float]] = {'alone': [], 'watching': []}
        for n in range(2 * count + 2):
            kind = ('alone', 'watching')[n % 2]
            watcher = Watcher('', model, RobotOptions, lambda name: camera, Nobody(), budget)
            for watch in WATCHES if kind == 'watching' else ():
                watcher.add(replace(watch, max_rate=0.0), WatchSource.SERVICE)
            time.sleep(0.5)
            began = time.perf_counter()
            reply = model.generate('What is the capital of Japan?', max_new_tokens=1)
            next(iter(reply), None)
            if n > 1:
                waits[kind].append(time.perf_counter() - began)
            reply.wait()
            watcher.close()
        step = model.stats['step']
        rows = [
            (kind, f'{1000 * statistics.median(each):.1f}', f'{1000 * max(each):.1f}')
            for kind, each in waits.items()
        ]
        table("A person's first token", ('standing questions', 'median ms', 'most ms'), rows)
        print('steps of the engine:', step)


def still(minutes: float) -> bool:
    """A still noisy scene over ROS 2. Return whether nothing was told."""
    import rclpy
    from ros.test_watch import COLOR, COLORS, NodeProcess, Watcher, drawn

    rclpy.init()
    node, watcher = NodeProcess(model='', vision='tiny', max_context_len=1024), None
    try:
        node.wait_for_line(': active')
        watcher = Watcher().connect()
        watcher.camera().show(drawn('red'), noise=5.0)
        watcher.set('add', name='color', question=COLOR, response_format=COLORS, max_rate=10.0)
        watcher.wait(lambda: watcher.of('color'))
        before = node.memory(shared=False)
        time.sleep(60 * minutes)
        grown = node.memory(shared=False) - before
        events = [each for each in watcher.of('color') if each.changed]
        unchanged = sum(each.unchanged for each in watcher.of('color'))
        table(
            f'{minutes:g} minutes of a still noisy scene',
            ('observations', 'without the model', 'events', 'memory grown'),
            [(len(watcher.of('color')), unchanged, len(events) - 1, f'{grown >> 20} MiB')],
        )
        return len(events) == 1
    finally:
        if watcher is not None:
            watcher.close()
        node.stop()
        rclpy.try_shutdown()


def main() -> int:
    """Print the figures. The exit code is 1 if something was told of a still scene."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--frames', type=int, default=40)
    parser.add_argument('--rooms', type=int, default=100)
    parser.add_argument('--minutes', type=float, default=0.0)
    options = parser.parse_args()
    print(machine())
    if options.rooms:
        comparing(options.rooms)
    if options.frames:
        cost(options.frames)
        person(options.frames)
    return int(bool(options.minutes) and not still(options.minutes))


if __name__ == '__main__':
    sys.exit(main())
