"""Figures of standing questions over ROS 2, in the built workspace: what a still scene costs, which changes
of drawn scenes are told, what a person's question waits while three standing questions are asked as often as
possible, beside the steps of the model that these take; with `--soak 30`, minutes of questions that start and
end, people who ask in between, and cameras that stop and change; and with `--noise 10`, minutes of a still
noisy scene in which nothing may be told.

    python -m benchmarks.bench_watch_ros [--seconds 40] [--changes 15] [--questions 20] [--soak 0] [--noise 0]
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.common import machine, table
from benchmarks.timed_node import read_steps

_SLICE = 4.0  # seconds
_SETTLE = 0.5
_GROWTH = 0.02
_PATIENCE = 30.0  # seconds for an end
_WORK = 15.0  # seconds of processor time; a node that had less in that time is starved by other programs
_LONGEST = 600.0
sys.path.insert(0, str(Path(__file__).parents[1] / 'test' / 'ros'))


def cpu_seconds(pid: int) -> float:
    """The processor time that a process has taken."""
    fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def receiving(node, topic: str, rate: float, seconds: float) -> float:
    """The share of a core that it takes only to receive the newest frames of a topic at a rate."""
    from sensor_msgs.msg import Image
    from test_watch import BEST_EFFORT

    from ros2_nanochat.ros.spinning import Untouched

    frames = node.create_subscription(Image, topic, lambda _: None, BEST_EFFORT, callback_group=Untouched())
    began, spent, until = time.monotonic(), 0.0, time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(1 / rate)
        before = time.thread_time()
        with frames.handle:
            frames.handle.take_message(Image, False)
        spent += time.thread_time() - before
    taken = time.monotonic() - began
    node.destroy_subscription(frames)
    return spent / taken


def still(node, watcher, seconds: float) -> float:
    """What looking at a still noisy scene costs beside receiving it: its question is watching and paused in
    turns, and in between its frames are only received. Return the share of a core.
    """
    from test_watch import COLOR, COLORS, drawn

    watcher.camera(rate=10.0).show(drawn('red', width=640, height=480))
    watcher.set('add', name='still', question=COLOR, response_format=COLORS, max_rate=10.0)
    watcher.wait(lambda: watcher.of('still'))
    shares: dict[str, list[float]] = {'pause': [], 'resume': []}
    received = []
    for n in range(2 * max(1, round(seconds / (2 * _SLICE)))):
        command = ('resume', 'pause')[n % 2]
        watcher.set(command, name='still')
        time.sleep(_SETTLE)
        before, began = cpu_seconds(node.process.pid), time.monotonic()
        time.sleep(_SLICE)
        shares[command].append((cpu_seconds(node.process.pid) - before) / (time.monotonic() - began))
        if command == 'pause':
            received.append(receiving(watcher.node, '/nanochat/image', 10.0, _SLICE / 2))
    watching, paused = statistics.median(shares['resume']), statistics.median(shares['pause'])
    looking = watching - paused - statistics.median(received)
    seen = watcher.of('still')
    table(
        'A still noisy scene, 640 x 480 at 10 Hz',
        ('question', 'share of a core'),
        [
            ('paused', f'{paused:.2%}'),
            ('watching', f'{watching:.2%}'),
            ('what receiving the frames takes', f'{statistics.median(received):.2%}'),
            ('what looking at them takes', f'{looking:.2%}'),
            ('observations without the model', f'{np.mean([each.unchanged for each in seen[1:]]):.1%}'),
        ],
    )
    watcher.set('remove', name='still')
    watcher.cameras.pop().close()
    return looking


def changes(watcher, count: int, seed: int) -> bool:
    """How many changes of drawn scenes are told by the second frame that was looked at since, while light
    flickers and the camera is noisy and shakes. Return whether it is 95 %.
    """
    from watch_story import add_all, tell

    from ros2_nanochat.vision.shapes import STANDING_QUESTIONS

    camera = watcher.camera(rate=10.0)
    add_all(watcher, max_rate=10.0)
    found = []
    for flaws in (dict(noise=2.0), dict(noise=5.0), dict(noise=4.0, flicker=0.06, shake=2)):
        told = tell(watcher, camera, count, np.random.default_rng(seed), **flaws)
        found.append((flaws, told))
    rows = []
    for flaws, told in found:
        delays = sorted(each.delay for each in told)
        faults = [each.fault for each in told if each.fault]
        rows.append(
            (
                ', '.join(f'{name} {value:g}' for name, value in flaws.items()),
                len(told),
                f'{1 - len(faults) / len(told):.1%}',
                ', '.join(f'{faults.count(fault)} {fault}' for fault in sorted(set(faults))) or 'none',
                f'{1000 * statistics.median(delays):.0f} and {1000 * delays[-1]:.0f}',
            )
        )
    head = ('camera', 'changes', 'told by the second frame', 'missed', 'median and most ms')
    table(f'Changes of drawn scenes, seed {seed}', head, rows)
    for each in (each for _, told in found for each in told if each.fault):
        print(f'  {each}')
    for fact in STANDING_QUESTIONS:
        watcher.set('remove', name=fact)
    watcher.cameras.pop().close()
    every = [each for _, told in found for each in told]
    return sum(not each.fault for each in every) >= 0.95 * len(every)


def person(watcher, steps: str, count: int) -> bool:
    """What a person's question waits for its first token, without and with standing questions that are asked
    as often as possible about a camera whose every frame is new, in turns. Return whether the questions make
    it longer by one step of theirs and 20 ms at most: their median step for the median, their longest step
    for nine in ten.

    Args:
        watcher: The client.
        steps: The file to which the node writes its steps.
        count: How many questions a person asks in either state.
    """
    from watch_story import add_all, another

    from ros2_nanochat.ros.client import ChatClient
    from ros2_nanochat.vision.shapes import STANDING_QUESTIONS, draw

    camera, rng, scene, scenes = watcher.camera(rate=20.0), np.random.default_rng(0), None, []
    for _ in range(16):
        scene = another(scene, rng)
        scenes.append(np.asarray(draw(scene, 320, 240)).astype(np.float32))
    add_all(watcher, max_rate=0.0)
    waits: dict[str, list[float]] = {'pause': [], 'resume': []}
    heard: dict[str, list[float]] = {'pause': [], 'resume': []}
    spans: list[tuple[float, float, float]] = []
    asked = 0
    with ChatClient() as chat:
        assert chat.wait_until_ready(30.0)
        for n in range(2 * count + 2):
            command = ('resume', 'pause')[n % 2]
            for name in STANDING_QUESTIONS:
                watcher.set(command, name=name)
            chat.reset()
            before, resumed = len(watcher.observations), time.monotonic()
            until = resumed + _SETTLE + 0.013 * (n % 8)  # at different moments of their answers
            while time.monotonic() < until or (command == 'resume' and len(watcher.observations) == before):
                camera.show(scenes[asked % len(scenes)])
                asked += 1
                time.sleep(0.02)
            began = time.monotonic()
            reply = chat.ask('What is the capital of Japan?', image_mode='off', max_new_tokens=1)
            next(iter(reply))
            first = time.monotonic()
            if n > 1:
                waits[command].append(reply.result(60.0).time_to_first_token)
                heard[command].append(first - began)
                spans += [(resumed, began, first)] if command == 'resume' else []
    for name in STANDING_QUESTIONS:
        watcher.set('remove', name=name)
    watcher.cameras.pop().close()
    theirs = [step for step in read_steps(steps) if step.watching]
    watching = sorted(
        step.seconds for step in theirs if any(resumed <= step.began < first for resumed, _, first in spans)
    )
    if not watching:
        print('The standing questions took no step: a person waited for none of them.')
        return False
    met_steps = [
        sum(step.began < first and step.began + step.seconds > began for step in theirs)
        for _, began, first in spans
    ]
    rows, met = [], []
    for title, found in (('in the node', waits), ('at the client', heard)):
        without, beside = sorted(found['pause']), sorted(found['resume'])
        for share, step in ((0.5, _at(watching, 0.5)), (0.9, watching[-1])):
            later = _at(beside, share) - _at(without, share)
            met.append(later <= step + 0.02)
            seconds = _at(without, share), _at(beside, share), later, step
            figures = (f'{1000 * each:.1f}' for each in seconds)
            rows.append((f'{title}, {share:.0%}', *figures, 'yes' if met[-1] else 'NO'))
    head = ('first token, ms', 'without', 'three standing questions', 'later', 'step', 'step + 20 ms')
    table(
        f"A person's question, {count} times without and {count} times beside standing questions", head, rows
    )
    print(
        f'  {len(watching)} steps of the standing questions: median {1000 * _at(watching, 0.5):.1f} ms,'
        f' longest {1000 * watching[-1]:.1f} ms; a person waited for'
        f' {", ".join(f"{n} of them {met_steps.count(n)} times" for n in sorted(set(met_steps)))}'
    )
    return all(met)


def _at(ordered: list[float], share: float) -> float:
    """The value below which a share of sorted values lie."""
    return ordered[round(share * (len(ordered) - 1))]


def ends(node, watcher, result) -> bool:
    """Wait for the result of a goal. Return False if it does not come although the node had the processor
    time for many answers: other programs may leave it none for longer than an end takes.
    """
    began, before = time.monotonic(), cpu_seconds(node.process.pid)
    while not result.done():
        try:
            watcher.wait(result.done, _PATIENCE)
        except AssertionError:
            worked, waited = cpu_seconds(node.process.pid) - before, time.monotonic() - began
            print(f'  no end after {waited:.0f} s, in which the node had {worked:.1f} s of a processor')
            if worked > _WORK or waited > _LONGEST:
                return False
    return True


def soak(node, watcher, minutes: float) -> bool:
    """Goals that end in each way, people in between, a camera that stops and changes. Return whether each end
    came and the memory stayed.
    """
    from test_watch import COLOR, COLORS, drawn, said

    from ros2_nanochat.ros.client import ChatClient

    rng, camera = np.random.default_rng(0), watcher.camera(rate=10.0)
    colors = ['red', 'green', 'blue', 'yellow']
    reasons: dict[str, int] = {}
    missed, memory, asked = 0, [], 0
    until, measured = time.monotonic() + 60 * minutes, 0.0
    camera.show(drawn('red'))
    watcher.set('add', name='standing', question=COLOR, response_format=COLORS, max_rate=5.0)
    with ChatClient() as chat:
        assert chat.wait_until_ready(30.0)
        while time.monotonic() < until:
            color, size = colors[rng.integers(4)], (160, 120) if rng.random() < 0.3 else (320, 240)
            kind = ('until', 'timeout', 'cancelled', 'removed', 'away')[rng.integers(5)]
            goal, _, result = watcher.goal(
                name=f'g{asked}',
                question=COLOR,
                response_format=COLORS,
                max_rate=10.0,
                until=said(color) if kind in ('until', 'away') else '',
                timeout=1.0 if kind == 'timeout' else 0.0,
            )
            camera.show(None if kind == 'away' else drawn(color, width=size[0], height=size[1]))
            time.sleep(rng.uniform(0.0, 1.0))
            if kind == 'cancelled':
                goal.cancel_goal_async()
            elif kind == 'removed':
                # A goal is accepted before its question is there.
                watcher.wait(lambda name=f'g{asked}': watcher.set('remove', name=name).success)
            elif kind == 'away':
                camera.show(drawn(color), 'bgr8')
            if rng.random() < 0.5:
                chat.ask('What is the capital of Japan?', max_new_tokens=8).result(60.0)
            if rng.random() < 0.1:
                chat.reset()
            if ends(node, watcher, result):
                reason = result.result().result.reason
                reasons[reason] = reasons.get(reason, 0) + 1
                missed += reason != {'away': 'until'}.get(kind, kind)
            else:
                missed += 1
                seen = watcher.of(f'g{asked}')
                print(f'no end: {kind}, {color}, {size}, last answer {seen[-1].text if seen else None!r}')
                goal.cancel_goal_async()
            asked += 1
            del watcher.observations[:-100]
            if time.monotonic() - measured > 10.0:
                measured = time.monotonic()
                memory.append(node.memory(shared=False))
    third = max(1, len(memory) // 3)
    early, late = statistics.median(memory[third : 2 * third] or memory), statistics.median(memory[-third:])
    told = ', '.join(f'{count} {reason}' for reason, count in sorted(reasons.items()))
    table(
        f'{minutes:g} minutes of standing questions that come and go',
        ('goals', 'ends', 'missed', 'memory in the second and the last third'),
        [(asked, told, missed, f'{early / 2**20:.1f} and {late / 2**20:.1f} MiB')],
    )
    watcher.set('remove', name='standing')
    watcher.cameras.pop().close()
    return not missed and late < early * (1 + _GROWTH)


def no_event(watcher, minutes: float) -> bool:
    """A still noisy scene. Return whether nothing was told."""
    from test_watch import COLOR, COLORS, drawn

    watcher.camera(rate=10.0).show(drawn('red'), noise=5.0)
    watcher.set('add', name='color', question=COLOR, response_format=COLORS, max_rate=10.0)
    watcher.wait(lambda: watcher.of('color'))
    time.sleep(60 * minutes)
    seen = watcher.of('color')
    events = sum(each.changed for each in seen) - 1
    table(
        f'{minutes:g} minutes of a still noisy scene',
        ('observations', 'without the model', 'events'),
        [(len(seen), sum(each.unchanged for each in seen), events)],
    )
    watcher.set('remove', name='color')
    watcher.cameras.pop().close()
    return events == 0


def main() -> int:
    """Print the figures. The exit code is 1 if one is not met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--seconds', type=float, default=40.0)
    parser.add_argument('--questions', type=int, default=20)
    parser.add_argument('--soak', type=float, default=0.0)
    parser.add_argument('--noise', type=float, default=0.0)
    parser.add_argument('--changes', type=int, default=15)
    parser.add_argument('--seed', type=int, default=0)
    options = parser.parse_args()
    import rclpy
    from conftest import NodeProcess
    from test_watch import Watcher

    print(machine())
    rclpy.init()
    eyes = {'vision': 'tiny', 'explain_format': False}  # they know only the questions as they are
    folder = tempfile.TemporaryDirectory()
    steps = os.path.join(folder.name, 'steps')
    timed = [sys.executable, '-m', 'benchmarks.timed_node', steps]
    node = NodeProcess(command=timed, model='', max_context_len=1024, watch_share=1.0, **eyes)
    watcher, met = None, []
    try:
        node.wait_for_line(': active')
        watcher = Watcher().connect()
        if options.seconds:
            met.append(still(node, watcher, options.seconds) < 0.02)
        if options.changes:
            met.append(changes(watcher, options.changes, options.seed))
        if options.questions:
            met.append(person(watcher, steps, options.questions))
        if options.noise:
            met.append(no_event(watcher, options.noise))
        if options.soak:
            met.append(soak(node, watcher, options.soak))
    finally:
        if watcher is not None:
            watcher.close()
        node.stop()
        rclpy.try_shutdown()
        folder.cleanup()
    print(node.output if 'Traceback' in node.output else '')
    return int(not all(met) or 'Traceback' in node.output)


if __name__ == '__main__':
    sys.exit(main())
