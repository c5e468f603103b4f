"""A drawn scene that changes in front of a camera, and what standing questions tell of each change.

The scenes are those that the tiny eyes know: one object on a plain ground.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ros2_nanochat.vision.shapes import STANDING_QUESTIONS, Scene, draw

_CENTERS = dict(zip(STANDING_QUESTIONS['place'][2], ((0.24, 0.5), (0.76, 0.5), (0.5, 0.25), (0.5, 0.75))))
_FRAMES = 2  # that were looked at, by which a change is to be told
_PATIENCE = 60.0  # seconds
_ALL = tuple(STANDING_QUESTIONS)


@dataclass
class Change:
    """One question about one scene, and what was seen of it.

    Attributes:
        fact: The name of the question.
        before: The right answer before.
        now: The right answer now.
        since: The stamp of the first frame of the scene, in nanoseconds.
        seen: The observations of its frames that came before the next change.
    """

    fact: str
    before: str
    now: str
    since: int
    seen: list = field(default_factory=list)

    @property
    def told(self) -> bool:
        """Whether it was told by the second frame that was looked at since."""
        return any(each.text == self.now for each in self.seen[:_FRAMES])

    @property
    def delay(self) -> float:
        """Seconds from its first frame until it was told; infinity if it never was."""
        for each in self.seen:
            if each.text == self.now:
                return (stamp_of(each) - self.since) / 1e9 + each.age
        return math.inf

    @property
    def fault(self) -> str:
        """Why it was not told in time: what compares the frames, or the answer of the model."""
        if self.told:
            return ''
        if not self.seen:
            return 'nobody looked'
        asked = [each for each in self.seen[:_FRAMES] if not each.unchanged]
        return 'wrong answer' if asked else 'compared as still'

    def __str__(self) -> str:
        looks = ', '.join(
            f'{"kept" if each.unchanged else "asked"}: {each.text} {each.probability:.0%}'
            f' {(stamp_of(each) - self.since) / 1e9:+.2f} s'
            for each in self.seen[:4]
        )
        return f'{self.fact}: {self.before} -> {self.now} ({self.fault}): {looks}'


def stamp_of(observation) -> int:
    """The stamp of an observation's frame, in nanoseconds."""
    return observation.header.stamp.sec * 10**9 + observation.header.stamp.nanosec


def add_all(watcher, max_rate: float, facts: Sequence[str] = _ALL) -> None:
    """Add one standing question for each fact, by its name."""
    for fact in facts:
        question, sentence, words = STANDING_QUESTIONS[fact]
        form = ' | '.join(map(sentence.format, words))
        watcher.set('add', name=fact, question=question, response_format=form)
        watcher.set('change', ['max_rate'], name=fact, max_rate=max_rate)  # 0.0, too


def answers(scene: Scene) -> dict[str, str]:
    """What is right to say of a scene, for each question."""
    return {
        fact: sentence.format(getattr(scene, fact)) for fact, (_, sentence, _) in STANDING_QUESTIONS.items()
    }


def another(scene: Scene | None, rng: np.random.Generator) -> Scene:
    """A scene that differs in one to three facts."""
    while True:
        facts = {
            fact: str(words[rng.integers(len(words))])
            if scene is None or rng.random() < 0.6
            else getattr(scene, fact)
            for fact, (_, _, words) in STANDING_QUESTIONS.items()
        }
        x, y = np.array(_CENTERS[facts['place']]) + rng.uniform(-0.02, 0.02, 2)
        found = Scene(**facts, size=float(rng.uniform(0.32, 0.4)), x=float(x), y=float(y))
        if scene is None or answers(found) != answers(scene):
            stays = scene is not None and found.place == scene.place
            return replace(found, x=scene.x, y=scene.y) if stays else found


def tell(
    watcher,
    camera,
    count: int,
    rng: np.random.Generator,
    facts: Sequence[str] = _ALL,
    width: int = 320,
    height: int = 240,
    **flaws,
) -> list[Change]:
    """Show one scene after another, each until two of its frames were looked at for each question, and
    a moment longer. Return all changes.

    Args:
        watcher: The client, with one standing question for each fact, by its name.
        camera: The camera.
        count: How many changes of the scene there are.
        rng: Chooses the scenes, and the moments at which they change.
        facts: What is asked; the scenes differ in other facts, too.
        width: Of the frames.
        height: Likewise.
        **flaws: Of the camera, see `watch_scenes.seen`.
    """
    scene, changes = None, []
    for _ in range(count + 1):
        before, scene = scene, another(scene, rng)
        start = len(watcher.observations)
        number = camera.show(np.asarray(draw(scene, width, height)).astype(np.float32), **flaws)
        watcher.wait(lambda number=number: number in camera.since)
        since = camera.since[number]

        def of(fact, start=start, since=since):
            seen = watcher.observations[start:]
            return [each for each in seen if each.name == fact and stamp_of(each) >= since]

        watcher.wait(lambda of=of: all(len(of(fact)) >= _FRAMES for fact in facts), _PATIENCE)
        time.sleep(rng.uniform(0.0, 0.3))  # at any moment between two looks
        for fact in facts if before is not None else ():
            was, now = answers(before)[fact], answers(scene)[fact]
            if was != now:
                changes.append(Change(fact, was, now, since, of(fact)))
    return changes
