"""Answers in a set form: whether each is valid, and what forms cost beside free replies of the same run.

Run with `python -m benchmarks.bench_answers [--quick] [PART ...]`; the parts are validity, speed, ros (which
needs the built workspace) and explanation. `--first 2000 --replies 1000` checks a part of the ten thousand.
The checker is not the matcher: jsonschema for schemas, `re` for expressions, the list for choices.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import statistics
import sys
import time
from pathlib import Path

import jsonschema

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'test'))
from random_forms import random_choice, random_object, random_regex

from ros2_nanochat import ChatHistory, NanoLLM
from ros2_nanochat.answer.response_format import read_response_format

QUESTIONS = (
    'Is the door open?',
    'Describe the room.',
    'What is 3 + 4?',
    'Answer in prose: where is the cat?',
)


def prompt_of(model: NanoLLM, text: str):
    """The prompt of a conversation that begins with this question."""
    history = ChatHistory(model)
    history.append('user', text)
    return history.embed_chat()[0]


def keeps_to(form, text: str) -> bool:
    """Whether a text is in the form, by something else than what held it there."""
    if isinstance(form, list):
        return text in form
    if isinstance(form, str):
        return re.fullmatch(form[1:-1], text) is not None
    try:
        jsonschema.validate(json.loads(text), form)
    except (ValueError, jsonschema.ValidationError):
        return False
    return True


def bench_validity(first: int, replies: int, at_once: int) -> None:
    """Ask for random forms, half of them sampled at temperature 1.5, and count what is valid."""
    counts = {'stop': 0, 'valid': 0, 'length': 0, 'other': 0}
    with NanoLLM.from_pretrained(max_context_len=512, max_sequences=16) as model:
        prompts = [prompt_of(model, question) for question in QUESTIONS]
        for start in range(first, first + replies, at_once):
            batch = []
            for n in range(start, min(start + at_once, first + replies)):
                rng = random.Random(n)  # a reply is the same in whatever part it is asked for
                make = rng.choice((random_object, random_choice, lambda rng: f'/{random_regex(rng)}/'))
                form, sampled = make(rng), rng.random() < 0.5
                reply = model.generate(
                    rng.choice(prompts),
                    response_format=form,
                    max_new_tokens=120,
                    do_sample=sampled,
                    temperature=1.5,
                    top_p=1.0,
                    seed=n,
                )
                batch.append((n, form, reply))
            for n, form, reply in batch:
                reply.wait()
                reason = reply.finish_reason.value
                counts[reason if reason in counts else 'other'] += 1
                good = reason == 'stop' and reply.valid and keeps_to(form, reply.text)
                counts['valid'] += good
                if not good and reason != 'length':
                    print(f'reply {n}: {form!r}: {reply.text!r} {reason} {reply.error or ""}', flush=True)
    print(
        f'validity of replies {first} to {first + replies - 1}: {counts["valid"]} of {counts["stop"]} that'
        f' ended with stop are valid; {counts["length"]} were cut, {counts["other"]} failed',
        flush=True,
    )


def rate(model: NanoLLM, forms: list, tokens: int) -> float:
    """Tokens/s in sum of conversations that decode together, held to these forms (None: free)."""
    prompts = [prompt_of(model, f'{QUESTIONS[n % 4]} ({n})') for n in range(len(forms))]
    began = time.perf_counter()
    replies = [
        model.generate(prompt, max_new_tokens=tokens, min_new_tokens=tokens, response_format=form)
        for prompt, form in zip(prompts, forms)
    ]
    total = sum(len(reply.wait().tokens) for reply in replies)
    return total / (time.perf_counter() - began)


def bench_speed(repeats: int) -> None:
    """A batch of sixteen held to sixteen forms against the same batch free; and JSON with long keys."""
    with NanoLLM.from_pretrained(max_context_len=512, max_sequences=16) as model:
        free = [None] * 16
        held = [f'/[a-z ,{n}]{{200,400}}/' for n in range(16)]
        rate(model, free, 16), rate(model, held, 16)
        pairs = [(rate(model, free, 64), rate(model, held, 64)) for _ in range(repeats)]
        ratios = sorted(ours / theirs for theirs, ours in pairs)
        print(f'16 conversations, each its own form, to the same free: {ratios[len(ratios) // 2]:.3f}')
        for count in (1, 16):
            ratio = json_gain(model, count, repeats)
            print(f'JSON with long keys, {count} at once, times faster than as many free tokens: {ratio:.2f}')


def json_gain(model: NanoLLM, count: int, repeats: int) -> float:
    """How many times faster conversations write JSON with long keys than as many free tokens."""
    forms = []
    for robot in range(count):
        keys = [f'the number of the object in place {n} of the robot {robot}' for n in range(6)]
        digit = {'type': 'integer', 'minimum': 0, 'maximum': 9}
        forms.append(
            {
                'type': 'object',
                'properties': dict.fromkeys(keys, digit),
                'required': keys,
                'additionalProperties': False,
            }
        )
    prompts = [prompt_of(model, f'Describe the room. ({n})') for n in range(count)]

    def seconds(options: list[dict]) -> tuple[float, list[int]]:
        began = time.perf_counter()
        replies = [model.generate(prompt, **each) for prompt, each in zip(prompts, options)]
        lengths = [len(reply.wait().tokens) for reply in replies]
        return time.perf_counter() - began, lengths

    ratios = []
    for _ in range(repeats):
        held, lengths = seconds([{'response_format': form, 'max_new_tokens': 250} for form in forms])
        free, _ = seconds([{'max_new_tokens': n, 'min_new_tokens': n} for n in lengths])
        ratios.append(free / held)
    return statistics.median(ratios)


def bench_choice_over_ros(repeats: int) -> None:
    """From a goal to its result over DDS: yes or no against one free token, both from a warm prompt."""
    from benchmarks.bench_ros import chat_node

    os.environ.update(ROS_AUTOMATIC_DISCOVERY_RANGE='LOCALHOST', ROS_DOMAIN_ID=str(random.randint(1, 100)))
    import rclpy

    from ros2_nanochat.ros.client import ChatClient

    rclpy.init()
    own = {'held.response_format': "'yes | no'", 'free.max_new_tokens': '1'}
    with chat_node(robots='[held, free]', max_sequences=2, **own):
        chats = [ChatClient(robot=name) for name in ('held', 'free')]
        times: list[list[float]] = [[], []]
        try:
            if not all(chat.wait_until_ready(120) for chat in chats):
                raise SystemExit('the node did not start')
            for n in range(repeats + 3):
                for chat, taken in zip(chats, times):
                    chat.reset()
                    chat.ask('Is the sky blue?').result(60)  # the second question finds a warm prompt
                    began = time.perf_counter()
                    turn = chat.ask('Is ice cold?').result(60)
                    if n >= 3:
                        taken.append(time.perf_counter() - began)
                    if turn.new_tokens != 1:
                        raise SystemExit(f'{turn.new_tokens} tokens, not one: {turn.reply!r}')
        finally:
            for chat in chats:
                chat.close()
            rclpy.try_shutdown()
    held, free = (statistics.median(taken) for taken in times)
    print(
        f'choice over ROS, to one free token: {held / free:.3f} ({1000 * held:.1f} and {1000 * free:.1f} ms)',
        flush=True,
    )


KNOWN = (
    ('Is ice cold?', 'yes | no', 'yes'),
    ('Is fire cold?', 'yes | no', 'no'),
    ('Is the sun hot?', 'yes | no', 'yes'),
    ('Can a fish swim?', 'yes | no', 'yes'),
    ('Can a stone fly?', 'yes | no', 'no'),
    ('Is Paris a city?', 'yes | no', 'yes'),
    ('Is a banana an animal?', 'yes | no', 'no'),
    ('Is water wet?', 'yes | no', 'yes'),
    ('Do dogs have four legs?', 'yes | no', 'yes'),
    ('Is two larger than five?', 'yes | no', 'no'),
    ('Is milk black?', 'yes | no', 'no'),
    ('Does a car have wheels?', 'yes | no', 'yes'),
    ('What is the color of grass?', 'red | green | blue', 'green'),
    ('What is the color of blood?', 'red | green | blue', 'red'),
    ('What is the color of the sky on a clear day?', 'red | green | blue', 'blue'),
    ('What is a cat?', 'animal | plant | machine', 'animal'),
    ('What is a rose?', 'animal | plant | machine', 'plant'),
    ('What is a computer?', 'animal | plant | machine', 'machine'),
    ('The door stands wide open. What state is the door in?', 'open | closed', 'open'),
    ('The door is shut. What state is the door in?', 'open | closed', 'closed'),
    ('The lamp is switched off. What state is the lamp in?', 'on | off', 'off'),
    ('The lamp shines brightly. What state is the lamp in?', 'on | off', 'on'),
    ('The battery has two percent left. How full is it?', 'full | empty', 'empty'),
    ('The cup is filled to the brim. How full is it?', 'full | empty', 'full'),
    ('How many legs does a spider have?', 'two | four | eight', 'eight'),
    ('How many legs does a person have?', 'two | four | eight', 'two'),
    ('How many legs does a horse have?', 'two | four | eight', 'four'),
    ('Where do fish live?', 'water | trees | sky', 'water'),
    ('What do we drink?', 'water | stones | wood', 'water'),
    ('In which season does it snow?', 'summer | winter', 'winter'),
    ('Which is heavier?', 'an elephant | a mouse', 'an elephant'),
    ('Which is faster?', 'a plane | a snail', 'a plane'),
    ('What is the capital of France?', 'Paris | Tokyo | Rome', 'Paris'),
    ('What is the capital of Japan?', 'Paris | Tokyo | Rome', 'Tokyo'),
)
"""Questions, the choice, and the right answer."""


def bench_explanation(name: str | None) -> None:
    """How many answers are right if the prompt does not explain the form, or does so in one of two places."""
    with NanoLLM.from_pretrained(name, max_context_len=512, max_sequences=1) as model:
        right = {'none': 0, 'behind the system prompt': 0, 'behind the question': 0}
        for place in right:
            for question, form, answer in KNOWN:
                history = ChatHistory(model)
                told = read_response_format(form).instruction
                if place == 'behind the system prompt':
                    history.system_prompt = '\n\n'.join(filter(None, [history.system_prompt, told]))
                text = f'{question}\n\n{told}' if place == 'behind the question' else question
                history.append('user', text)
                reply = model.generate(history.embed_chat()[0], response_format=form).wait()
                right[place] += reply.text == answer
        counts = ', '.join(f'{place}: {count}' for place, count in right.items())
        print(f'right answers of {len(KNOWN)} with {model.info.name}, explained {counts}', flush=True)


PARTS = ('validity', 'speed', 'ros', 'explanation')


def main() -> None:
    """Print one line a figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('parts', nargs='*', metavar='PART', help=f'{", ".join(PARTS)}; none for all')
    parser.add_argument('--model', help='the model of explanation; the embedded one by default')
    parser.add_argument('--first', type=int, default=0, help='number of the first reply')
    parser.add_argument('--replies', type=int, default=10_000)
    parser.add_argument('--quick', action='store_true', help='a hundred replies, and fewer repeats')
    options = parser.parse_args()
    unknown = [part for part in options.parts if part not in PARTS]
    if unknown:
        parser.error(f'there is no part {unknown[0]!r}: {", ".join(PARTS)}')
    parts = options.parts or PARTS
    if 'validity' in parts:
        bench_validity(options.first, 100 if options.quick else options.replies, 16)
    if 'speed' in parts:
        bench_speed(3 if options.quick else 9)
    if 'ros' in parts:
        bench_choice_over_ros(5 if options.quick else 30)
    if 'explanation' in parts:
        bench_explanation(options.model)


if __name__ == '__main__':
    main()
