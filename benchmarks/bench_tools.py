"""Tools: calls outside of what is allowed, and what tools cost beside the same without them.

Run with `python -m benchmarks.bench_tools [--runs 10000] [--quick] [--busy 1]`. The calls are checked by
jsonschema. Figures are ratios of one run, or counts.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from dataclasses import astuple
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'test'))
from adversarial_tools import Tally, attack

from benchmarks.bench_busy import busy
from ros2_nanochat import ChatHistory, NanoLLM, Tool
from ros2_nanochat.tools import TextPiece, chat, run

SHORT, LONG = 'It moved. ' * 12, 'It moved. ' * 48


def tools(
    count: int, seconds: float = 0.0, returned: list[float] | None = None, answer: str = SHORT
) -> list[Tool]:
    """Some tools with arguments, which answer after some seconds and note when."""

    def move(**_) -> str:
        time.sleep(seconds)
        if returned is not None:
            returned.append(time.perf_counter())
        return answer

    parameters = {
        'type': 'object',
        'properties': {
            'speed': {'type': 'number', 'minimum': 0, 'maximum': 0.3},
            'way': {'enum': ['left', 'right']},
        },
        'required': ['speed'],
    }
    return [Tool(f'tool_{n}', f'It moves part {n} of the robot', parameters, move) for n in range(count)]


def bench_safety(runs: int, threads: int | None) -> None:
    """Let hostile conversations, sampled at temperature 1.5, ask for other calls."""
    seed, began = random.SystemRandom().randrange(1 << 30), time.monotonic()
    rng = random.Random(seed)
    total = Tally()
    with NanoLLM.from_pretrained(max_context_len=2048, max_sequences=16, threads=threads) as model:
        while total.runs < runs:
            done = attack(model, rng, min(640, runs - total.runs), sets=10, tokens=48, answers=16)
            total = Tally(*(a + b for a, b in zip(astuple(total), astuple(done))))
            rate = total.runs / (time.monotonic() - began)
            print(f'  {total}, {rate:.1f} a second (seed {seed})', file=sys.stderr, flush=True)
    print(f'{total.runs} replies with {total.calls} calls: {total.outside} outside of what is allowed,')
    print(f'  {total.leaked} shown as text; {total.cut} replies were cut (seed {seed})')


def bench_talk(model: NanoLLM, repeats: int) -> None:
    """Tokens/s of talk with tools on, to the same prompt with tools off."""
    history = ChatHistory(model, tools=tools(5))
    history.append('user', 'Tell me a long story about a robot.')
    prompt, _ = history.embed_chat()
    form = history.call_form()

    def rate(calls) -> float:
        reply = model.generate(prompt, calls=calls, max_new_tokens=96, min_new_tokens=96).wait()
        return reply.usage.tokens_per_second or 0.0

    rate(None), rate(form)
    ratios = []
    for n in range(repeats):
        pair = [rate(None), rate(form)] if n % 2 else [rate(form), rate(None)][::-1]
        ratios.append(pair[1] / pair[0])
    print(f'talk with tools, to the same without: {sorted(ratios)[repeats // 2]:.3f}')


def bench_second_reply(model: NanoLLM, repeats: int, seconds: float, answer: str) -> None:
    """Time from a tool's return to the first token after it, to that of a prefill of the tool's answer: of
    its message, as the template writes it, and of its text to the end of the prompt.
    """
    ratios: list[tuple[float, float, float]] = []
    for n in range(repeats):
        returned: list[float] = []
        history = ChatHistory(
            model,
            tools=tools(5, seconds, returned, answer),
            system_prompt=f'You are robot {n}, {seconds}, {len(answer)}.',
        )
        turn = chat(history, 'Move.', tool_choice='tool_1', max_tool_rounds=1, max_new_tokens=60)
        began = 0.0
        for event in turn:
            if isinstance(event, TextPiece) and event.round == 1 and not began:
                began = time.perf_counter() - returned[0]
        first, second = event.rounds
        ids = [int(i) for i in history.embed_chat(use_cache=False)[0].token_ids][: second.prompt_tokens]
        message = first.prompt_tokens + first.new_tokens  # what follows the call
        text = _find(ids, model.tokenize(answer))
        plain = {
            start: _prefill(model, ids, start, f'{n} at {seconds}, {len(answer)}')
            for start in (message, text)
        }
        engine = second.time_to_first_token or 0.0
        ratios.append((began / plain[message], engine / plain[message], engine / plain[text]))
        counts = second.prompt_tokens - (second.reused_tokens or 0), len(ids) - message, len(ids) - text
    middle = [sorted(column)[len(ratios) // 2] for column in zip(*ratios)]
    print(
        f"second reply after a tool of {seconds} s: {middle[0]:.2f} of a prefill of the answer's message from"
        f' the return of the tool to the text, {middle[1]:.2f} in the engine ({middle[2]:.2f} of a prefill of'
        ' its text only);\n  {} tokens are computed, the message has {}, from its text on {}'.format(*counts)
    )


def _find(ids: list[int], answer: list[int]) -> int:
    half = answer[: len(answer) // 2]
    return next(at for at in range(len(ids)) if ids[at : at + len(half)] == half)


def _prefill(model: NanoLLM, ids: list[int], start: int, name: str) -> float:
    """Seconds to the first token behind `ids[start:]`, if all before is computed."""
    other = model.tokenize(f'Another beginning, number {name}, {start}.')  # shares no KV with the turn
    known = model.generate([*other, *ids[:start]], max_new_tokens=0).wait()
    reply = model.generate(ids[start:], kv_cache=known.kv_cache, max_new_tokens=1).wait()
    assert reply.usage.prompt_tokens - (reply.usage.reused_tokens or 0) == len(ids) - start
    return reply.usage.time_to_first_token or 0.0


def bench_sharing(model: NanoLLM) -> None:
    """How much of a prompt with 50 tools the second robot takes over from the first."""
    usages = []
    for name in ('a', 'b'):
        history = ChatHistory(model, tools=tools(50))
        usages.append(run(chat(history, f'I am robot {name}.', tool_choice='none', max_new_tokens=4)).usage)
    second = usages[1]
    print(f'50 tools: the second robot reuses {second.reused_tokens} of {second.prompt_tokens} tokens')


def main() -> None:
    """Print one line a figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--runs', type=int, default=10_000)
    parser.add_argument('--quick', action='store_true', help='a hundred runs, and fewer repeats')
    parser.add_argument('--hostile', action='store_true', help='only the hostile runs')
    parser.add_argument('--threads', type=int, default=None, help='of the model in the hostile runs')
    parser.add_argument(
        '--busy', type=int, default=0, help='number of busy processes to run during the measurement'
    )
    options = parser.parse_args()
    repeats = 5 if options.quick else 11
    if not options.hostile:
        print(f'beside {options.busy} busy processes')
        with busy(options.busy, 1800), NanoLLM.from_pretrained(max_context_len=8192) as model:
            bench_talk(model, repeats)
            for answer in (SHORT, LONG):
                bench_second_reply(model, repeats, 0.0, answer)
                bench_second_reply(model, repeats, 0.3, answer)
            bench_sharing(model)
    bench_safety(100 if options.quick else options.runs, options.threads)


if __name__ == '__main__':
    main()
