"""Answers in a set form: whether each is valid, and what forms cost beside free replies of the same run.

Run with `python -m benchmarks.bench_answers [--replies 10000] [--quick]`. The checker is not the matcher:
jsonschema for schemas, `re` for expressions, the list for choices.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import time
from pathlib import Path

import jsonschema

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'test'))
from random_forms import random_choice, random_object, random_regex

from ros2_nanochat import ChatHistory, NanoLLM

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


def bench_validity(replies: int, at_once: int) -> None:
    """Ask for random forms, half of them sampled at temperature 1.5, and count what is valid."""
    rng = random.Random(7)
    counts = {'stop': 0, 'valid': 0, 'length': 0, 'other': 0}
    with NanoLLM.from_pretrained(max_context_len=512, max_sequences=at_once) as model:
        prompts = [prompt_of(model, question) for question in QUESTIONS]
        for start in range(0, replies, at_once):
            batch = []
            for n in range(start, min(start + at_once, replies)):
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
                batch.append((form, reply))
            for form, reply in batch:
                reply.wait()
                reason = reply.finish_reason.value
                counts[reason if reason in counts else 'other'] += 1
                counts['valid'] += reason == 'stop' and reply.valid and keeps_to(form, reply.text)
    print(
        f'validity: {counts["valid"]} of {counts["stop"]} that ended with stop are valid; '
        f'{counts["length"]} were cut, {counts["other"]} failed'
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
        keys = [f'the number of the object in place {n} of the robot' for n in range(6)]
        schema = {
            'type': 'object',
            'properties': {key: {'type': 'integer', 'minimum': 0, 'maximum': 9} for key in keys},
            'required': keys,
            'additionalProperties': False,
        }
        ratios = []
        for _ in range(repeats):
            prompt = prompt_of(model, 'Describe the room.')
            began = time.perf_counter()
            count = len(model.generate(prompt, response_format=schema, max_new_tokens=200).wait().tokens)
            json_time = time.perf_counter() - began
            began = time.perf_counter()
            model.generate(prompt, max_new_tokens=count, min_new_tokens=count).wait()
            ratios.append((time.perf_counter() - began) / json_time)
        print(
            f'JSON with long keys, times faster than as many free tokens: {sorted(ratios)[repeats // 2]:.2f}'
        )


def main() -> None:
    """Print one line a figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--replies', type=int, default=10_000)
    parser.add_argument('--quick', action='store_true', help='a hundred replies, and fewer repeats')
    options = parser.parse_args()
    bench_validity(100 if options.quick else options.replies, 16)
    bench_speed(3 if options.quick else 9)


if __name__ == '__main__':
    main()
