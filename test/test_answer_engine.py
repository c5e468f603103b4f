"""Replies of the embedded model that are held to a form: valid in whatever way they are asked for, checked by
something else than the matcher; and free replies beside them as without them.
"""

from __future__ import annotations

import json
import random
import re
import threading
from dataclasses import dataclass

import numpy as np
import pytest

pytest.importorskip('llguidance')
pytest.importorskip('llama_cpp')
import jsonschema
from random_forms import random_choice, random_object, random_regex

from ros2_nanochat import ChatHistory, NanoLLM
from ros2_nanochat.answer.response_format import read_response_format
from ros2_nanochat.backends.base import Detokenizer
from ros2_nanochat.engine.answer_form import AnswerForm
from ros2_nanochat.engine.reply_text import ReplyText
from ros2_nanochat.engine.sampler import Sampler
from ros2_nanochat.reasoning import ReasoningMarks


@pytest.fixture(scope='module')
def sixteen():
    with NanoLLM.from_pretrained(
        max_context_len=512, max_sequences=16, threads=1, flash_attention=True
    ) as opened:
        yield opened


def prompt(model, text):
    history = ChatHistory(model)
    history.append('user', text)
    return history.embed_chat()[0]


def check(reply, form) -> None:
    """What ended with `stop` is in the form; what did not says so."""
    assert reply.finish_reason in ('stop', 'length'), reply.error
    if reply.finish_reason == 'length':
        assert not reply.valid and reply.parsed is None
        return
    assert reply.valid, (form, reply.text)
    if isinstance(form, dict):
        value = json.loads(reply.text)
        jsonschema.validate(value, form)
        assert reply.parsed == value
    elif isinstance(form, list):
        assert reply.text in form and reply.parsed == reply.text
    else:
        assert re.fullmatch(form[1:-1], reply.text)


def random_form(rng):
    make = rng.choice([random_object, random_choice, lambda rng: f'/{random_regex(rng)}/'])
    return make(rng)


QUESTIONS = (
    'Is the door open?',
    'Describe the room.',
    'What is 3 + 4?',
    'Where is the cat? Answer in prose.',
)


def run(model, rng, count, at_once):
    """Ask for random forms, some greedy and some sampled; check each; return how many ended with `stop`."""
    stopped = 0
    for start in range(0, count, at_once):
        batch = []
        for n in range(start, min(start + at_once, count)):
            form, sampled = random_form(rng), rng.random() < 0.5
            options = {'do_sample': sampled, 'temperature': 1.5, 'seed': n, 'top_p': 1.0}
            batch.append(
                (
                    form,
                    model.generate(
                        prompt(model, rng.choice(QUESTIONS)),
                        response_format=form,
                        max_new_tokens=120,
                        **options,
                    ),
                )
            )
        for form, reply in batch:
            check(reply.wait(), form)
            stopped += reply.finish_reason == 'stop'
    return stopped


def test_what_ends_with_stop_is_valid_sixteen_at_once(sixteen):
    assert run(sixteen, random.Random(1), 80, 16) >= 60


def test_what_ends_with_stop_is_valid_alone(sixteen):
    assert run(sixteen, random.Random(2), 16, 1) >= 12


@pytest.mark.long
def test_what_ends_with_stop_is_valid_a_thousand_times(sixteen):
    assert run(sixteen, random.Random(3), 1000, 16) >= 800


def test_a_free_reply_beside_others_is_that_without_them():
    """Of the same shape of batch: llama.cpp rounds a row alone otherwise than one in a batch."""
    with NanoLLM.from_pretrained(
        max_context_len=512, max_sequences=4, threads=1, flash_attention=False, speculation=False
    ) as model:
        said = []
        for forms in ([None] * 3, ['/[a-z ]{60,80}/'] * 3):
            free = model.generate(prompt(model, 'Tell me a story.'), max_new_tokens=30, min_new_tokens=30)
            others = [
                model.generate(
                    prompt(model, question), max_new_tokens=30, min_new_tokens=30, response_format=form
                )
                for question, form in zip(QUESTIONS, forms)
            ]
            said.append(free.wait().tokens)
            for other in others:
                other.stop()
        assert said[0] == said[1]


def test_a_choice_whose_alternatives_differ_at_once_costs_one_forward(sixteen):
    before = sixteen.stats['steps']
    whole = prompt(sixteen, 'Is ice cold?')
    reply = sixteen.generate(whole, response_format='yes | no').wait()
    assert reply.parsed in ('yes', 'no') and sixteen.stats['steps'] - before <= 2, (
        'a prefill, in two chunks at most'
    )


def test_forced_tokens_cost_no_forward_each(sixteen):
    key = 'the name of the object that the robot sees in front of it'
    form = {
        'type': 'object',
        'properties': {key: {'type': 'boolean'}},
        'required': [key],
        'additionalProperties': False,
    }
    before = sixteen.stats['steps']
    reply = sixteen.generate(prompt(sixteen, 'What?'), response_format=form).wait()
    assert set(reply.parsed) == {key} and len(reply.tokens) > 12
    assert sixteen.stats['steps'] - before <= 6


def test_the_next_turn_takes_over_the_ids_of_an_answer(sixteen):
    history = ChatHistory(sixteen)
    for question, form in (
        ('Is ice cold?', 'yes | no'),
        ('Describe it.', 'json'),
        ('And fire?', 'hot | cold'),
    ):
        history.append('user', question)
        whole, position = history.embed_chat()
        reply = sixteen.generate(
            whole, kv_cache=history.kv_cache, response_format=form, max_new_tokens=60
        ).wait()
        assert reply.usage.reused_tokens >= position - 70
        history.append('bot', reply)
    assert history[1].tokens and history[1].text in ('yes', 'no')


@dataclass
class Answer:
    open: bool
    count: int = 0


def test_the_answer_comes_as_what_was_asked_for(sixteen):
    reply = sixteen.generate(prompt(sixteen, 'Is it open?'), response_format=Answer).wait()
    assert reply.valid and isinstance(reply.parsed, Answer)
    text = sixteen.generate(prompt(sixteen, 'Is it open?'), response_format=['yes', 'no'], streaming=False)
    assert text in ('yes', 'no')


def test_without_a_form_nothing_is_valid(sixteen):
    reply = sixteen.generate('Once', max_new_tokens=3).wait()
    assert not reply.valid and reply.parsed is None


@pytest.mark.parametrize(
    'options',
    [
        {'min_new_tokens': 50},
        {'repetition_penalty': 1.3},
        {'top_k': 5, 'do_sample': True, 'min_p': 0.1},
        {'stop_tokens': ['e', 'o', 's', '"']},
        {'stop_tokens': list(range(200, 400))},
        {'logits_processors': [lambda ids, logits: np.where(np.arange(len(logits)) == 500, 1000.0, logits)]},
        {'functions': [lambda text: None]},
        {'temperature': 100.0, 'do_sample': True, 'top_p': 1.0},
    ],
    ids=lambda options: next(iter(options)),
)
def test_forms_hold_with_every_other_option(sixteen, options):
    for form in (['yes', 'nothing', 'not one of these'], random_object(random.Random(4))):
        reply = sixteen.generate(
            prompt(sixteen, 'Is ice cold?'), response_format=form, max_new_tokens=150, seed=1, **options
        ).wait()
        check(reply, form)


def test_a_stop_string_ends_an_answer_where_the_form_allows_it(sixteen):
    reply = sixteen.generate(
        prompt(sixteen, 'Tell me a story.'),
        response_format='/[a-z ]{1,200}/',
        stop_tokens=[' '],
        max_new_tokens=60,
    ).wait()
    assert reply.finish_reason == 'stop' and reply.valid and ' ' not in reply.text


def test_what_functions_put_in_has_to_keep_to_the_form(sixteen):
    def once(text):
        return 'x!' if len(text) == 1 else None

    reply = sixteen.generate(
        prompt(sixteen, 'A number?'), response_format=r'/[0-9]{5}/', functions=[once], max_new_tokens=20
    ).wait()
    if len(reply.text) == 1:  # the first token was one digit, so something was put in
        assert reply.finish_reason == 'error' and 'not allowed' in reply.error


def test_cut_answers_say_that_they_are_not_valid(sixteen):
    form = {'type': 'array', 'items': {'type': 'integer'}, 'minItems': 50, 'maxItems': 50}
    cut = sixteen.generate(prompt(sixteen, 'Numbers?'), response_format=form, max_new_tokens=10).wait()
    assert cut.finish_reason == 'length' and not cut.valid and cut.parsed is None and len(cut.tokens) == 10
    late = sixteen.generate(
        prompt(sixteen, 'Numbers?'), response_format=form, max_new_tokens=400, deadline=0.2
    ).wait()
    assert late.finish_reason == 'deadline' and not late.valid
    stopped = sixteen.generate(prompt(sixteen, 'Numbers?'), response_format=form, max_new_tokens=400)
    next(stopped)
    stopped.stop()
    assert stopped.finish_reason == 'cancelled' and not stopped.valid


@pytest.mark.parametrize('form', ['/é🦀🤖東🦀/', ['🦀🤖', '🦀🐙'], {'enum': [{'é': '🦀🤖'}]}], ids=type)
def test_answers_that_are_cut_in_half_a_character_have_whole_ones(sixteen, form):
    whole = sixteen.generate(prompt(sixteen, 'Say it.'), response_format=form).wait()
    assert whole.valid and (len(whole.tokens) > len(whole.text) or isinstance(form, dict))
    halves = 0
    for n in range(1, len(whole.tokens)):
        history = ChatHistory(sixteen)
        history.append('user', 'Say it.')
        asked, _ = history.embed_chat()
        reply = sixteen.generate(
            asked, kv_cache=history.kv_cache, response_format=form, max_new_tokens=n
        ).wait()
        assert reply.finish_reason == 'length' and not reply.valid and reply.parsed is None
        assert whole.text.startswith(reply.text) and '\ufffd' not in reply.text
        assert reply.tokens == whole.tokens[: len(reply.tokens)]
        assert sixteen.detokenize(reply.tokens) == reply.text
        assert list(reply.kv_cache.entries[len(reply.kv_cache) - len(reply.tokens) :]) == reply.tokens
        halves += len(reply.tokens) < n
        history.append('bot', reply)
        assert history[-1].text == reply.text and (not reply.text or list(history[-1].tokens) == reply.tokens)
    assert halves


@pytest.mark.parametrize('form', ['maybe', {'not': {}}, '/(/', {'$ref': '#'}])
def test_an_impossible_form_is_refused_before_anything_runs(sixteen, form):
    before = sixteen.stats['steps']
    with pytest.raises(ValueError, match='response_format'):
        sixteen.generate('Once', response_format=form)
    assert sixteen.stats['steps'] == before


def test_a_form_that_takes_too_much_work_ends_its_reply_and_no_other(sixteen):
    form = {'type': 'object', 'properties': {f'key{i}': {'type': 'number'} for i in range(3000)}}
    free = sixteen.generate('Once upon a time', max_new_tokens=20, min_new_tokens=20)
    reply = sixteen.generate(prompt(sixteen, 'x'), response_format=form, max_new_tokens=20).wait()
    assert reply.finish_reason in ('error', 'stop', 'length')
    if reply.finish_reason == 'error':
        assert 'response_format' in reply.error and '\n' not in reply.error
    assert len(free.wait().tokens) == 20


@pytest.mark.parametrize(
    'options', [{}, {'min_new_tokens': 8}, {'stop_tokens': list(range(200, 400))}], ids=str
)
def test_an_id_that_is_checked_is_the_one_that_the_mask_gives(sixteen, monkeypatch, options):
    """A greedy reply computes masks only if the likeliest id of all is not allowed."""
    rng = random.Random(7)
    forms = [random_object(rng), ['yes', 'no', 'nothing'], '/[A-Za-z ,.]{5,60}[.]/', '/[^a-m]{20}/', None]
    said, counts, masks, allowed = [], [], [], AnswerForm.allowed
    monkeypatch.setattr(AnswerForm, 'allowed', lambda self, size: masks.append(0) or allowed(self, size))
    for masked in (False, True):
        if masked:
            monkeypatch.setattr(Sampler, 'masked', property(lambda self: self.form is not None))
        masks.clear()
        replies = [
            sixteen.generate(prompt(sixteen, question), response_format=form, max_new_tokens=16, **options)
            for form, question in zip(forms, [*QUESTIONS, 'Where is the cat?'])
        ]
        said.append([reply.wait().tokens for reply in replies])
        counts.append(len(masks))
    assert said[0] == said[1] and counts[0] < counts[1]


# --- reasoning ---


class Letters(Detokenizer):
    """A detokenizer whose ids are characters; 1 and 2 are the marks of the reasoning."""

    def add(self, token_id):
        return '' if token_id < 3 else chr(token_id)

    def flush(self):
        return ''

    def token_bytes(self, token_id):
        return self.add(token_id).encode()


MARKS = ReasoningMarks('<think>', '</think>', 1, 2)


def answer_form(text):
    from ros2_nanochat.answer.vocabulary import AnswerVocabulary

    tokens = [b'' if i < 3 else bytes([i]) for i in range(128)]
    vocabulary = AnswerVocabulary(tokens, [0, 1, 2], [0], lambda text: list(text.encode()))
    form = read_response_format('yes | no')
    return AnswerForm(form, vocabulary.matcher(form.grammar), text, frozenset([0]), vocabulary.space_ids)


def allowed(form) -> set[int]:
    return set(np.flatnonzero(form.allowed(128)))


def put(form, text, ids) -> None:
    for token_id in ids:
        assert token_id in allowed(form)
        form.accept(token_id)
        text.add(token_id)


@pytest.mark.parametrize('opened', [False, True])
def test_reasoning_is_free_and_the_answer_behind_it_is_not(opened):
    text = ReplyText(Letters(), (), MARKS, opened)
    form = answer_form(text)
    if not opened:
        assert allowed(form) == {ord('y'), ord('n'), 1}, 'the answer, or the mark of the reasoning'
        put(form, text, [1])
    assert allowed(form) == set(range(1, 128)), 'anything but the end'
    assert not form.forced() and not form.whole
    put(form, text, [*b'no: yes! ', 2])
    spaces = {ord(' '), *range(9, 14), *range(28, 32)}
    assert allowed(form) - spaces == {ord('y'), ord('n')}
    put(form, text, b'\n\n')
    assert allowed(form) == {ord('y'), ord('n')}
    put(form, text, b'y')
    assert form.forced() == [*b'es']
    put(form, text, b'es')
    assert form.finished and form.whole and text.answer == 'yes'


def test_a_model_that_need_not_reason_answers_at_once():
    text = ReplyText(Letters(), (), MARKS, False)
    form = answer_form(text)
    put(form, text, b'no')
    assert form.finished and 1 not in allowed(form)


def test_the_messages_of_gpt_oss_are_free_until_its_final_one():
    marks = ReasoningMarks('<|channel|>analysis', '<|end|>', label='analysis', header_ids=(1,), message_id=2)
    text = ReplyText(Letters(), (), marks, False)
    form = answer_form(text)
    put(form, text, [1, *b'analysis', 2, *b'hm, no', 1, *b'final', 2])
    assert allowed(form) - {*range(9, 14), *range(28, 33)} == {ord('y'), ord('n')}
    put(form, text, b'yes')
    assert form.finished


# --- probabilities of a choice ---

CHOICES = (
    ['yes', 'no', 'unclear'],
    ['nothing', 'nothing at all', 'not a thing'],
    ['the red door', 'the red box', 'the blue door is open'],
)


def test_probabilities_leave_the_reply_and_the_conversation_as_they_are(sixteen):
    history = ChatHistory(sixteen)
    history.append('user', 'What do you see?')
    for choice in CHOICES:
        whole, _ = history.embed_chat()
        plain = sixteen.generate(whole, response_format=choice).wait()
        beside = sixteen.generate('Once upon a time', max_new_tokens=12, min_new_tokens=12)
        scored = sixteen.generate(whole, response_format=choice, probabilities=True).wait()
        assert scored.tokens == plain.tokens and plain.probabilities is None
        assert sum(scored.probabilities.values()) == pytest.approx(1)
        assert len(beside.wait().tokens) == 12
        goes_on = sixteen.generate(' So', kv_cache=scored.kv_cache, max_new_tokens=4).wait()
        assert goes_on.usage.reused_tokens >= len(whole) - 1


def test_the_tree_of_a_choice_is_scored_in_one_more_forward():
    with NanoLLM.from_pretrained(
        max_context_len=256, max_sequences=4, threads=1, flash_attention=True
    ) as model:
        whole = prompt(model, 'Is ice cold?')
        forwards, forward = [], model.backend.forward
        model.backend.forward = lambda chunks: forwards.append(len(chunks)) or forward(chunks)
        model.generate(whole, response_format=CHOICES[1], probabilities=True).wait()
    assert sum(count > 1 for count in forwards) == 1, 'all beginnings in one batch'


def test_a_reply_that_is_stopped_while_another_is_scored_is_not_scored_any_more():
    with NanoLLM.from_pretrained(api='fake', max_context_len=256, max_sequences=2) as model:
        forward, scoring, replies = model.backend.forward, [], []
        began, gate = threading.Event(), threading.Event()

        def stopping(chunks):
            if chunks[0].num_logits > 1:
                scoring.append(len(chunks))
                for reply in replies:
                    reply.stop()
            return forward(chunks)

        model.backend.forward = stopping
        # the engine waits until both are there, so that they begin in one step
        busy = threading.Thread(target=model.engine.call, args=[lambda: (began.set(), gate.wait())])
        busy.start()
        assert began.wait(60)
        replies += [
            model.generate(text, response_format=['red box', 'red'], probabilities=True)
            for text in ('a', 'b')
        ]
        gate.set()
        busy.join()
        for reply in replies:
            reply.wait(10.0)
        assert scoring == [1] and replies[1].finish_reason == 'cancelled'


def test_the_time_in_which_alternatives_are_scored_is_time_of_the_model():
    with NanoLLM.from_pretrained(
        'step_overhead=0.05', api='fake', max_context_len=256, max_sequences=2
    ) as model:
        forwards, forward = [], model.backend.forward
        model.backend.forward = lambda chunks: forwards.append(len(chunks)) or forward(chunks)
        reply = model.generate('red', response_format=['red box', 'red'], probabilities=True).wait()
        assert reply.probabilities and reply.usage.model_time >= 0.05 * len(forwards)


@pytest.mark.parametrize('form', [None, '/a+/', [f'choice {i}' for i in range(300)]])
def test_probabilities_need_a_choice(sixteen, form):
    with pytest.raises(ValueError, match='probabilities'):
        sixteen.generate('Once', response_format=form, probabilities=True)


def test_whether_an_answer_is_valid_is_found_out_once(sixteen, monkeypatch):
    asked = []
    matches = AnswerForm.matches
    monkeypatch.setattr(AnswerForm, 'matches', lambda self, text: asked.append(text) or matches(self, text))
    reply = sixteen.generate(prompt(sixteen, 'Is ice cold?'), response_format=['yes', 'no'])
    assert not reply.valid and reply.parsed is None and not asked
    reply.wait()
    assert reply.valid and reply.parsed == reply.text and reply.valid
    assert asked == [reply.text]


@pytest.fixture
def on_device(monkeypatch):
    """A model whose logits are in torch's hands as on a GPU, and how often they were copied to the host."""
    torch = pytest.importorskip('torch')
    from ros2_nanochat.backends.hf.device_logits import DeviceLogits

    copies = []
    to_host = DeviceLogits.numpy
    monkeypatch.setattr(DeviceLogits, 'numpy', lambda self: copies.append(len(self)) or to_host(self))
    with NanoLLM.from_pretrained(max_context_len=512, max_sequences=8, threads=1, speculation=False) as model:
        forward = model.backend.forward

        def there(chunks):
            with torch.inference_mode():
                return DeviceLogits(torch.from_numpy(np.array(forward(chunks))))

        def switch(on):
            model.backend.forward = there if on else forward

        yield model, switch, copies


def test_masks_are_applied_where_the_logits_are_and_the_replies_are_the_same(on_device):
    model, switch, copies = on_device
    rng = random.Random(11)
    forms = [['yes', 'no'], '/[a-z ]{5,30}[.]/', random_object(rng), random_object(rng), None]
    asked = [prompt(model, f'{question} ({n})') for n, question in enumerate(QUESTIONS)]
    said = []
    for there in (False, True):
        switch(there)
        said.append(
            [
                model.generate(asked[n % 4], response_format=form, max_new_tokens=40).wait().tokens
                for n, form in enumerate(forms)
            ]
        )
    assert said[0] == said[1] and not copies
    replies = [
        model.generate(asked[n % 4], response_format=form, max_new_tokens=40) for n, form in enumerate(forms)
    ]
    for reply, form in zip(replies, forms):
        reply.wait()
        assert reply.error is None
        if form is not None:
            check(reply, form)
    assert not copies


def test_options_that_need_the_host_hold_the_form_beside_a_mask_on_the_device(on_device):
    model, switch, copies = on_device
    switch(True)
    whole = prompt(model, 'Is ice cold?')
    replies = [
        model.generate(whole, response_format=['yes', 'no'], probabilities=True),
        model.generate(whole, response_format='/[a-z]{9}/', max_new_tokens=20),
        model.generate(whole, response_format=r'/[0-9]{5}/', do_sample=True, top_k=20, seed=3),
        model.generate(whole, response_format='/[a-z ]{1,200}/', repetition_penalty=1.2, max_new_tokens=20),
    ]
    for reply in replies:
        assert reply.wait().error is None
    assert replies[0].valid and sum(replies[0].probabilities.values()) == pytest.approx(1)
    assert replies[1].valid and re.fullmatch('[0-9]{5}', replies[2].text) and copies


def test_a_form_that_takes_too_much_work_on_the_device_ends_only_its_own_reply(on_device, monkeypatch):
    model, switch, _ = on_device
    switch(True)
    allowed = AnswerForm.allowed

    def refuse(self, size):
        if self.response_format.kind == 'regex':
            raise ValueError('response_format cannot be followed: too much')
        return allowed(self, size)

    monkeypatch.setattr(AnswerForm, 'allowed', refuse)
    whole = prompt(model, 'Is ice cold?')
    bad = model.generate(whole, response_format='/[a-z]{9}/', max_new_tokens=20)
    good = model.generate(whole, response_format=['yes', 'no'])
    free = model.generate(whole, max_new_tokens=5)
    assert bad.wait().finish_reason == 'error' and 'too much' in bad.error
    assert good.wait().valid and len(free.wait().tokens) == 5
