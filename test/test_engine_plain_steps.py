"""Steps that add one id to each reply take a short way through the engine. Nothing else may differ."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from ros2_nanochat import NanoLLM
from ros2_nanochat.backends.fake import FakeBackend
from ros2_nanochat.backends.logits import HostLogits
from ros2_nanochat.engine.request import Progress
from ros2_nanochat.engine.scheduler import Scheduler
from ros2_nanochat.errors import ForwardError

COUNTERS = ('generated_tokens', 'prefilled_tokens', 'finished_stop', 'finished_length', 'finished_error')


@pytest.fixture
def fake():
    models = []

    def open_one(setup=None, **options):
        models.append(NanoLLM.from_pretrained(setup, api='fake', **{'max_context_len': 512, **options}))
        return models[-1]

    yield open_one
    for model in models:
        model.close()


def ask(model, text, **options):
    prompt = f'<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n'
    return model.generate(model.tokenize(prompt, special=True), **{'max_new_tokens': -1, **options})


def several(model):
    """Replies that end in each way, most of them while others go on."""
    return [
        ask(model, 'to the end ' + 'x' * 90),
        ask(model, 'cut short ' + 'x' * 90, max_new_tokens=30),
        ask(model, 'up to here and no further ' + 'x' * 90, stop_tokens=['no fur']),
        ask(model, 'characters of several bytes: \u00e4\u20ac\U0001f600 ' + 'x' * 40),
        ask(model, 'cut in one of them: \u20ac\u20ac\u20ac', max_new_tokens=31),
        ask(model, 'drawn ' + 'x' * 40, do_sample=True, temperature=1.5, seed=3),
        ask(model, 'more than fits ' + 'x' * 300),
        ask(model, 'only a prompt', max_new_tokens=0),
    ]


def outcome(model):
    replies = [reply.wait() for reply in several(model)]
    stats = model.stats
    figures = {name: stats[name] for name in COUNTERS} | {'times': stats['time_per_token']['count']}
    told = [
        (reply.text, reply.finish_reason, reply.tokens, reply.usage.new_tokens, len(reply.kv_cache))
        for reply in replies
    ]
    return told, figures


@pytest.mark.parametrize('options', [{'speculation': False}, {}], ids=['plain', 'with guesses'])
def test_replies_and_counters_are_those_of_the_long_way(fake, monkeypatch, options):
    short = outcome(fake('tokens_per_second=1000', max_sequences=8, **options))
    begin = Progress.__init__

    def long_way(self, *arguments):
        begin(self, *arguments)
        assert isinstance(self.only_text, bool)
        self.only_text = False

    monkeypatch.setattr(Progress, '__init__', long_way)
    assert short == outcome(fake('tokens_per_second=1000', max_sequences=8, **options))


@pytest.mark.parametrize(('count', 'options'), [(1, {'speculation': False}), (6, {})])
def test_a_plan_that_repeats_is_not_made_anew(fake, monkeypatch, count, options):
    model, made = fake('tokens_per_second=1000', max_sequences=8, **options), []
    compose = Scheduler._batch
    monkeypatch.setattr(Scheduler, '_batch', lambda self: made.append(1) or compose(self))
    for reply in [ask(model, f'number {i} ' + 'x' * 150) for i in range(count)]:
        reply.wait()
    assert model.stats['steps'] > 150 and len(made) < model.stats['steps'] / 3


def test_who_comes_while_others_go_on_starts_at_once_and_each_gets_its_own_reply(fake):
    model = fake('tokens_per_second=300', max_sequences=4, speculation=False)
    first = ask(model, 'a' * 200)
    next(first)
    second = ask(model, 'b' * 20)
    assert second.wait().text == 'You said: ' + 'b' * 20
    assert not first.eos and len(first._request.progress.new_ids) < 150
    assert first.wait().text == 'You said: ' + 'a' * 200


def test_replies_that_fail_together_go_on_in_turns(fake, monkeypatch):
    model, single_steps = fake('tokens_per_second=1000', max_sequences=4, speculation=False), []
    healthy = FakeBackend.forward

    def forward(self, chunks):
        if all(len(chunk) == 1 for chunk in chunks):
            if len(chunks) == 3:
                raise ForwardError('three are too many', [0] * len(chunks))
            single_steps.append(chunks[0].seq)
        return healthy(self, chunks)

    monkeypatch.setattr(FakeBackend, 'forward', forward)
    replies = [ask(model, f'number {i} ' + 'x' * 60) for i in range(3)]
    texts = [reply.wait(timeout=30).text for reply in replies]
    assert texts == [f'You said: number {i} ' + 'x' * 60 for i in range(3)]
    assert max(len(list(run)) for _, run in itertools.groupby(single_steps)) < 10


def test_a_row_that_is_not_finite_ends_its_reply_alone(fake, monkeypatch):
    model, healthy = fake('tokens_per_second=500', max_sequences=4, speculation=False), FakeBackend.forward

    def forward(self, chunks):
        rows = healthy(self, chunks).numpy().copy()
        if len(chunks) == 3 and all(len(chunk) == 1 for chunk in chunks):
            rows[1] = math.nan
        return HostLogits(rows.astype(np.float32))

    monkeypatch.setattr(FakeBackend, 'forward', forward)
    replies = [ask(model, f'number {i} ' + 'x' * 60) for i in range(3)]
    ends = [reply.wait(timeout=30).finish_reason for reply in replies]
    assert sorted(ends) == ['error', 'stop', 'stop']
    assert 'nan' in next(reply.error for reply in replies if reply.error)


def test_a_less_urgent_reply_waits_while_an_urgent_one_goes_on_and_then_ends(fake):
    model = fake('tokens_per_second=400', max_sequences=4, speculation=False)
    calm = ask(model, 'c' * 100)
    next(calm)
    urgent = ask(model, 'u' * 60, priority=5).wait(timeout=30)
    assert urgent.text == 'You said: ' + 'u' * 60 and len(calm._request.progress.new_ids) < 60
    assert calm.wait(timeout=30).text == 'You said: ' + 'c' * 100
