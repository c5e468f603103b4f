"""The engine on the fake backend: what runs when, what is shared, what is given up, and how replies end."""

import gc
import resource
import sys
import threading
import time
import weakref

import numpy as np
import pytest

from ros2_nanochat import KVCache, NanoLLM
from ros2_nanochat.backends.fake import FakeBackend
from ros2_nanochat.backends.utf8_detokenizer import Utf8Detokenizer
from ros2_nanochat.engine.choice_scores import ChoiceScores
from ros2_nanochat.engine.reply_text import ReplyText
from ros2_nanochat.engine.scheduler import Scheduler
from ros2_nanochat.errors import ForwardError


def open_fake(setup='', **options):
    options.setdefault('max_context_len', 4096)
    return NanoLLM.from_pretrained(setup or None, api='fake', **options)


@pytest.fixture
def fake():
    models = []

    def open_one(setup='', **options):
        models.append(open_fake(setup, **options))
        return models[-1]

    yield open_one
    for model in models:
        model.close()


def chat(text, system=''):
    system = f'<|im_start|>system\n{system}<|im_end|>\n' if system else ''
    return f'{system}<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n'


def ask(model, text, system='', **options):
    return model.generate(
        model.tokenize(chat(text, system), special=True), **{'max_new_tokens': 2000, **options}
    )


def idle(model, timeout=5.0):
    """Wait until nothing runs; the engine's own counters tell."""
    until = time.monotonic() + timeout
    while time.monotonic() < until:
        stats = model.stats
        if not stats['active'] and not stats['waiting']:
            return stats
        time.sleep(0.002)
    raise AssertionError(f'still busy after {timeout} s: {model.stats}')


def test_a_reply_is_what_the_model_says(fake):
    reply = ask(fake(), 'hello').wait()
    assert reply.text == 'You said: hello'
    assert reply.finish_reason == 'stop' and reply.eos and reply.error is None


def test_a_reply_that_is_set_may_be_longer_than_the_name_of_a_file(fake):
    text = 'word ' * 100
    assert ask(fake(f'reply={text}'), 'hello', max_new_tokens=-1).wait().text.strip() == text.strip()


def test_sixteen_conversations_at_once_each_get_their_own_reply(fake):
    model = fake('tokens_per_second=2000', max_sequences=16)
    replies = [ask(model, f'number {i} ' + 'x' * (7 * i)) for i in range(16)]
    assert [reply.wait().text for reply in replies] == [
        f'You said: number {i} ' + 'x' * (7 * i) for i in range(16)
    ]
    assert model.stats['batch_size']['p99'] > 8


def test_more_conversations_than_sequences_all_go_on_where_they_were(fake):
    model = fake(max_sequences=2)
    caches = [KVCache() for _ in range(5)]
    for turn in range(3):
        for i, cache in enumerate(caches):
            ids = model.tokenize(('' if not turn else '<|im_end|>\n') + chat(f'{turn} of {i}'), special=True)
            assert (
                model.generate(ids, kv_cache=cache, max_new_tokens=500).wait().text
                == f'You said: {turn} of {i}'
            )
    assert model.stats['evictions'] >= 10
    assert model.stats['sequences'] <= 2


def test_a_later_turn_prefills_only_what_is_new(fake):
    model = fake()
    cache = KVCache()
    first = ask(model, 'a first question of some length', kv_cache=cache).wait()
    known = len(cache)
    second = model.generate(
        model.tokenize('<|im_end|>\n' + chat('and another'), special=True), kv_cache=cache, max_new_tokens=500
    ).wait()
    assert second.usage['reused_tokens'] >= known - 1
    assert first.usage['reused_tokens'] == 0


def test_nothing_of_a_reply_that_has_ended_is_kept(fake):
    class Given:
        def __call__(self, logits, ids):
            return logits

    model, given = fake(max_sequences=4), [Given() for _ in range(4)]
    replies = [ask(model, f'question {i}', logits_processors=[each]) for i, each in enumerate(given)]
    [reply.wait() for reply in replies]
    known = [weakref.ref(each) for each in given]
    del replies, given
    ask(model, 'one more question').wait()
    gc.collect()
    assert [each() for each in known] == [None] * 4


def test_conversations_that_arrive_together_compute_their_common_prefix_once(fake):
    model = fake('prefill_per_second=5000', max_sequences=16)
    system = 'be kind. ' * 55
    replies = [ask(model, f'question {i}', system) for i in range(16)]
    assert [reply.wait().text for reply in replies] == [f'You said: question {i}' for i in range(16)]
    stats = model.stats
    alone = len(model.tokenize(chat('question 1', system), special=True))
    assert stats['prefilled_tokens'] < alone + 16 * 60
    assert stats['shared_tokens'] > 14 * len(system)


def test_a_more_urgent_request_pauses_a_running_one_which_resumes_without_prefilling_again(fake):
    model = fake('tokens_per_second=500', max_sequences=2, speculation=False)
    small_talk = ask(model, 'x' * 300)
    pieces = [next(small_talk) for _ in range(20)]
    urgent = ask(model, 'stop!', priority=10)
    assert urgent.wait().text == 'You said: stop!'
    produced = len(small_talk._request.progress.new_ids)
    assert produced < 290
    assert ''.join(pieces) + ''.join(small_talk) == 'You said: ' + 'x' * 300
    assert (
        model.stats['prefilled_tokens'] == small_talk.usage['prompt_tokens'] + urgent.usage['prompt_tokens']
    )


def test_a_more_urgent_request_takes_the_only_sequence_and_gives_it_back(fake):
    model = fake('tokens_per_second=500', max_sequences=1, speculation=False)
    small_talk = ask(model, 'y' * 200)
    first = [next(small_talk) for _ in range(10)]
    assert ask(model, 'fire', priority=1).wait().text == 'You said: fire'
    assert ''.join(first) + ''.join(small_talk) == 'You said: ' + 'y' * 200
    assert model.stats['preemptions'] == 1


def test_among_equals_the_nearest_deadline_goes_first(fake):
    model = fake('tokens_per_second=1000', max_sequences=1)
    running = ask(model, 'z' * 100)
    next(running)
    order = []

    def follow(name, reply):
        order.append((reply.wait().trace[-1][1], name))

    replies = {
        'late': ask(model, 'l', deadline=60),
        'none': ask(model, 'n'),
        'soon': ask(model, 's', deadline=30),
    }
    threads = [threading.Thread(target=follow, args=item) for item in replies.items()]
    [thread.start() for thread in threads]
    running.wait()
    [thread.join() for thread in threads]
    assert [name for _, name in sorted(order)] == ['soon', 'late', 'none']


def test_a_missed_deadline_ends_the_reply_with_what_it_has(fake):
    model = fake('tokens_per_second=200')
    began = time.monotonic()
    reply = ask(model, 'w' * 1000, deadline=0.3).wait()
    assert reply.finish_reason == 'deadline'
    assert 0.25 < time.monotonic() - began < 5.0
    assert 0 < len(reply.text) < 1000 and ('You said: ' + 'w' * 1000).startswith(reply.text)


CRABS = 'Hé 🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀'


def check_whole_characters(reply):
    """The text, the ids and the conversation hold the same whole characters."""
    assert CRABS.startswith(reply.text), reply.text
    assert bytes(reply.tokens).decode() == reply.text
    assert list(reply.kv_cache.entries[reply.usage.prompt_tokens :]) == reply.tokens
    assert reply.kv_cache.reply.text == reply.text and list(reply.kv_cache.reply.tokens) == reply.tokens


@pytest.mark.parametrize('reason', ['cancelled', 'interrupted'])
def test_a_reply_that_is_stopped_anywhere_holds_whole_characters(fake, reason):
    model = fake(f'tokens_per_second=500,reply={CRABS}')
    for n in range(1, 9):
        reply = ask(model, 'hello')
        for _ in range(n):
            next(reply)
        time.sleep(0.002 * (n % 5))  # parts of further characters come meanwhile
        reply.stop(reason)
        check_whole_characters(reply)
        assert reply.finish_reason == reason and len(reply.text) == n


def test_a_deadline_in_half_a_character_leaves_whole_ones(fake):
    model = fake(f'tokens_per_second=100,reply={CRABS}')
    replies = [ask(model, 'hello', deadline=0.15 + 0.01 * n) for n in range(8)]
    for reply in replies:
        assert reply.wait().finish_reason == 'deadline' and reply.text
        check_whole_characters(reply)
    assert any(reply.usage.new_tokens > len(reply.tokens) for reply in replies)


def test_a_deadline_missed_in_the_queue_ends_the_request(fake):
    model = fake('tokens_per_second=100', max_sequences=1)
    running = ask(model, 'q' * 100)
    next(running)
    waiting = ask(model, 'never', deadline=0.1).wait()
    assert waiting.finish_reason == 'deadline' and waiting.text == ''
    assert running.finish_reason is None
    running.stop()


def test_a_full_queue_refuses_with_the_figures(fake):
    model = fake('tokens_per_second=100', max_sequences=1, max_queued_requests=3)
    running = ask(model, 'q' * 500)
    next(running)
    replies = [ask(model, f'{i}', deadline=30) for i in range(5)]
    refused = [reply for reply in replies if reply._request.signals.ended.wait(0.3)]
    assert len(refused) == 2
    for reply in refused:
        assert reply.wait().finish_reason == 'refused'
        assert '3' in reply.error and 'max_queued_requests' in reply.error
    running.stop()
    assert [reply.wait().text for reply in replies[:3]] == ['You said: 0', 'You said: 1', 'You said: 2']


def test_a_reply_names_its_model_once_it_has_begun(fake):
    model = fake(max_context_len=256)
    assert ask(model, 'short').wait().served_by == 'fake'
    assert ask(model, 'm' * 400).wait().served_by == ''


def test_a_prompt_that_can_never_fit_is_refused_with_both_figures(fake):
    model = fake(max_context_len=256)
    reply = ask(model, 'm' * 400).wait()
    assert reply.finish_reason == 'refused'
    assert '256' in reply.error and str(reply.usage['prompt_tokens']) in reply.error
    assert ask(model, 'short').wait().text == 'You said: short'


def test_a_stopped_reply_leaves_the_cache_at_what_was_handed_out(fake):
    model = fake('tokens_per_second=1000')
    cache = KVCache()
    reply = ask(model, 'a' * 300, kv_cache=cache)
    handed_out = ''.join(next(reply) for _ in range(25))
    time.sleep(0.05)  # the model runs ahead of who reads
    reply.stop('interrupted')
    assert list(reply) == []
    assert reply.text == handed_out and reply.finish_reason == 'interrupted'
    assert model.detokenize(reply.tokens) == handed_out
    assert cache.entries.tolist() == model.tokenize(chat('a' * 300), special=True) + reply.tokens
    stats = idle(model)
    assert stats['kv_tokens'] <= len(cache)
    follow_up = model.generate(
        model.tokenize('<|im_end|>\n' + chat('next'), special=True), kv_cache=cache, max_new_tokens=99
    ).wait()
    assert follow_up.text == 'You said: next'
    assert (
        follow_up.usage['reused_tokens']
        >= len(cache.entries) - len(follow_up.tokens) - len(chat('next')) - 20
    )


def test_a_stop_in_mid_prefill_frees_the_model_at_once(fake):
    model = fake('prefill_per_second=500,context=8192', max_context_len=8192, max_step=0.05)
    reply = ask(model, 'p' * 4000)
    time.sleep(0.2)
    reply.stop()
    assert idle(model)['stop_to_idle']['p99'] < 0.5
    assert reply.text == '' and reply.finish_reason == 'cancelled'
    assert ask(model, 'next').wait().text == 'You said: next'


def test_who_waits_for_a_whole_reply_is_not_woken_for_each_token(fake):
    model = fake('tokens_per_second=200')
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
    reply = ask(model, 'w' * 200).wait()
    assert reply.text == 'You said: ' + 'w' * 200
    assert resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - before < 100


def test_a_reply_that_one_thread_waits_for_is_read_and_stopped_by_another(fake):
    model = fake('tokens_per_second=200')
    reply = ask(model, 'w' * 1900)
    waiting = threading.Thread(target=reply.wait)
    waiting.start()
    until = time.monotonic() + 10.0
    while len(reply.text) < 20 and time.monotonic() < until:
        time.sleep(0.01)
    reply.stop()
    waiting.join(5.0)
    assert not waiting.is_alive() and reply.finish_reason == 'cancelled'
    assert 20 <= len(reply.text) < 1900 and model.detokenize(reply.tokens) == reply.text


def test_dropping_a_reply_stops_it(fake):
    model = fake('tokens_per_second=100')
    reply = ask(model, 'b' * 1000)
    next(reply)
    del reply
    assert idle(model)['finished_cancelled'] == 1


def test_beside_a_running_stream_a_long_prompt_is_prefilled_in_chunks_of_about_a_steps_time(
    fake, monkeypatch
):
    model = fake('tokens_per_second=200,prefill_per_second=2000', max_sequences=2, speculation=False)
    beside = []
    forward = FakeBackend.forward

    def watched(self, chunks):
        if len(chunks) == 2:
            beside.append(max(len(chunk) for chunk in chunks))
        return forward(self, chunks)

    def learned(self, plan, seconds):  # what a step costs on a machine with nothing else to do
        entries = sum(work.num_entries for work in plan.batch)
        return record(self, plan, 1 / 200 + (entries - len(plan.batch)) / 2000)

    record = Scheduler.record
    monkeypatch.setattr(FakeBackend, 'forward', watched)
    monkeypatch.setattr(Scheduler, 'record', learned)
    stream = ask(model, 'c' * 3000, max_new_tokens=3000)
    for _ in range(20):
        next(stream)
    ask(model, 'd' * 600, max_new_tokens=1).wait()
    stream.stop()
    # a step alone takes 5 ms, in which 10 tokens are prefilled; the stream keeps half of its speed
    assert len(beside) >= 600 / 20
    assert sorted(beside)[len(beside) // 2] <= 12


def test_equal_conversations_advance_alike(fake):
    model = fake('tokens_per_second=200', max_sequences=16)
    replies = [ask(model, f'{i:02}' + 'e' * 400, max_new_tokens=4000) for i in range(16)]
    while len(replies[-1]._request.progress.new_ids) < 100:
        time.sleep(0.01)
    counts = np.array([len(reply._request.progress.new_ids) for reply in replies], float)
    assert counts.sum() ** 2 / (16 * (counts**2).sum()) >= 0.99
    for reply in replies:
        reply.stop()


def test_speculation_gives_the_same_reply_in_fewer_steps(fake):
    text = 'the quick brown fox jumps over the lazy dog. ' * 12
    setup = 'tokens_per_second=300,prefill_per_second=20000'
    plain, fast = fake(setup, speculation=False), fake(setup)
    expected = ask(plain, text).wait()
    reply = ask(fast, text).wait()
    assert reply.text == expected.text == 'You said: ' + text
    assert reply.tokens == expected.tokens
    assert fast.stats['accepted_tokens'] > 200
    assert fast.stats['steps'] < 0.6 * plain.stats['steps']


def test_parked_kv_comes_back_without_prefilling(fake):
    model = fake('prefill_per_second=500', max_sequences=1, park_bytes=1 << 20)
    first, second = KVCache(), KVCache()
    ask(model, 'f' * 200, kv_cache=first).wait()
    ask(model, 'g' * 200, kv_cache=second).wait()
    again = model.generate(
        model.tokenize('<|im_end|>\n' + chat('again'), special=True), kv_cache=first, max_new_tokens=99
    ).wait()
    assert again.text == 'You said: again'
    assert again.usage['reused_tokens'] > 300
    assert model.stats['unparked'] == 1


def test_one_request_that_breaks_the_forward_ends_alone(fake, monkeypatch):
    model = fake('tokens_per_second=300', max_sequences=4)
    healthy = FakeBackend.forward

    def forward(self, chunks):
        if any(chunk.ids is not None and 0x21 in chunk.ids for chunk in chunks):
            raise ForwardError('this one is broken', [0] * len(chunks))
        return healthy(self, chunks)

    monkeypatch.setattr(FakeBackend, 'forward', forward)
    good = [ask(model, f'fine {i}') for i in range(3)]
    bad = ask(model, 'broken!').wait()
    assert bad.finish_reason == 'error' and 'this one is broken' in bad.error
    assert [reply.wait().text for reply in good] == [f'You said: fine {i}' for i in range(3)]


def failing(*_):
    raise RuntimeError('out of memory')


def test_a_fork_that_fails_ends_its_request_alone(fake, monkeypatch):
    model = fake(max_sequences=4)
    system = 'You are a robot. ' * 8
    assert ask(model, 'one', system).wait().text == 'You said: one'
    with monkeypatch.context() as broken:
        broken.setattr(model.backend, 'fork', failing)
        bad = ask(model, 'two', system).wait(timeout=30)
        assert bad.finish_reason == 'refused' and 'out of memory' in bad.error and not len(bad.kv_cache)
        assert ask(model, 'something else').wait(timeout=30).text == 'You said: something else'
    assert ask(model, 'three', system).wait(timeout=30).text == 'You said: three'


def test_a_reply_that_cannot_be_cut_back_is_computed_again(fake, monkeypatch):
    model = fake('tokens_per_second=100')
    reply = ask(model, 'a long story about robots' * 4)
    assert next(reply) == 'Y'
    until = time.monotonic() + 30
    while (
        len(reply._request.progress.new_ids) < 4 and time.monotonic() < until
    ):  # more than was handed out, which has to be cut off
        time.sleep(0.002)
    with monkeypatch.context() as broken:
        broken.setattr(model.backend, 'trim', failing)
        reply.stop()
        idle(model)
    said = reply.text
    again = model.generate(np.empty(0, int), kv_cache=reply.kv_cache, max_new_tokens=-1).wait(timeout=30)
    assert (
        said + again.text == 'You said: ' + 'a long story about robots' * 4
        and again.usage['reused_tokens'] == 0
    )


def test_a_request_that_cannot_be_parked_goes_on_all_the_same(fake, monkeypatch):
    model = fake('tokens_per_second=300', max_sequences=1)
    monkeypatch.setattr(model.backend, 'save', failing)
    slow = ask(model, 'the patient one')
    assert next(slow) == 'Y'
    assert ask(model, 'the urgent one', priority=1).wait(timeout=30).text == 'You said: the urgent one'
    assert slow.wait(timeout=30).text == 'You said: the patient one' and model.stats['preemptions'] == 1


class Panic(BaseException):
    """As a library in Rust raises."""


@pytest.mark.parametrize('error', [RuntimeError, SystemExit, Panic])
def test_a_logits_processor_that_fails_ends_its_reply_alone(fake, error):
    model = fake('tokens_per_second=300')

    def broken(ids, logits):
        raise error('no such grammar')

    good, bad = ask(model, 'fine'), ask(model, 'x', logits_processors=broken)
    assert bad.wait(timeout=30).finish_reason == 'error' and 'no such grammar' in bad.error
    assert good.wait(timeout=30).text == 'You said: fine'


class Mute(Exception):
    def __str__(self):
        raise RuntimeError('no text')


@pytest.mark.parametrize('error', [SystemExit, Panic, Mute])
def test_an_error_without_a_text_ends_its_reply_alone_and_is_named(fake, error, monkeypatch):
    model = fake('tokens_per_second=300')

    def broken(*_):
        raise error

    good, bad = ask(model, 'fine'), ask(model, 'x', logits_processors=broken)
    assert bad.wait(timeout=30).finish_reason == 'error' and bad.error.endswith(f': {error.__name__}')
    assert good.wait(timeout=30).text == 'You said: fine'
    monkeypatch.setattr(model.backend, 'forward', broken)
    assert ask(model, 'x').wait(timeout=30).error == error.__name__


@pytest.mark.parametrize('error', [RuntimeError, SystemExit, Panic])
def test_an_error_while_a_choice_is_scored_costs_its_probabilities_and_nothing_else(fake, monkeypatch, error):
    def broken(*_):
        raise error('no scores')

    model = fake('tokens_per_second=300')
    monkeypatch.setattr(ChoiceScores, 'run', broken)
    beside = ask(model, 'fine')
    scored = ask(model, 'red', response_format=['red box', 'red'], probabilities=True).wait(timeout=30)
    assert scored.finish_reason == 'stop' and scored.text in ('red box', 'red')
    assert scored.probabilities is None
    assert beside.wait(timeout=30).text == 'You said: fine'


def test_a_reply_whose_end_fails_ends_all_the_same_and_the_log_tells_why(fake, monkeypatch, caplog):
    def broken(*_):
        raise Panic('in the last text')

    model = fake()
    monkeypatch.setattr(ReplyText, 'flush', broken)
    reply = ask(model, 'x').wait(timeout=30)
    assert reply.finish_reason == 'error' and 'in the last text' in reply.error
    assert any(record.exc_info and record.exc_info[0] is Panic for record in caplog.records)


@pytest.mark.parametrize(
    'owner, name', [(FakeBackend, 'forward'), (FakeBackend, 'new_sequence'), (Utf8Detokenizer, 'add')]
)
def test_nothing_that_is_raised_in_a_step_ends_the_loop(fake, monkeypatch, owner, name):
    model = fake('tokens_per_second=300')

    def panic(*_):
        raise Panic('of a library')

    with monkeypatch.context() as broken:
        broken.setattr(owner, name, panic)
        bad = ask(model, 'two').wait(timeout=30)
        assert bad.finish_reason == 'error' and 'of a library' in bad.error
    assert model.engine.alive
    assert ask(model, 'fine').wait(timeout=30).text == 'You said: fine'


def test_a_logits_processor_steers_the_reply(fake):
    def only_a(ids, logits):
        out = np.full_like(logits, -np.inf)
        out[ord('a')] = 0
        return out

    assert ask(fake(), 'x', logits_processors=[only_a], max_new_tokens=5).wait().text == 'aaaaa'


@pytest.mark.parametrize(
    'function',
    [lambda text: 5, lambda text: 1 / 0, lambda text: sys.exit()],
    ids=['a number', 'an error', 'an exit'],
)
def test_a_function_that_fails_ends_its_reply_alone(fake, function):
    model = fake('tokens_per_second=300')
    good, bad = ask(model, 'fine'), ask(model, 'x', functions=function)
    assert bad.wait().finish_reason == 'error' and 'functions failed' in bad.error
    assert good.wait().text == 'You said: fine'


def test_no_new_tokens_means_the_prompt_alone(fake):
    cache = KVCache()
    reply = ask(fake(), 'x', max_new_tokens=0, kv_cache=cache).wait()
    assert (reply.finish_reason, reply.text, reply.tokens) == ('length', '', [])
    assert len(cache) == reply.usage['prompt_tokens']


def test_text_that_a_function_returns_goes_on_the_reply_and_is_read_by_the_model(fake):
    seen = []

    def clock(text):
        seen.append(text)
        return ' [12:00]' if text.endswith('time') and len(seen) < 30 else None

    model = fake(speculation=False)
    reply = model.generate(
        model.tokenize(chat('the time is up'), special=True), functions=[clock], max_new_tokens=60
    ).wait()
    # the fake model counts what stands behind the prompt, so what was put in pushes its own text forward
    assert reply.text.startswith('You said: the time [12:00]')
    assert model.detokenize(reply.tokens) == reply.text
    assert seen[0] == 'Y'


def test_closing_the_model_ends_its_replies(fake):
    model = fake('tokens_per_second=50')
    reply = ask(model, 'h' * 500)
    next(reply)
    model.close()
    assert reply.wait(timeout=2).finish_reason == 'cancelled'
    assert model.generate('x').wait(timeout=2).finish_reason == 'error'


def test_a_request_leaves_a_trace_of_timed_events(fake):
    model = fake()
    reply = ask(model, 'i').wait()
    assert [event for event, _ in reply.trace] == ['submitted', 'started', 'first_token', 'stop']
    times = [at for _, at in reply.trace]
    assert times == sorted(times)


def test_of_several_threads_that_continue_one_kv_cache_at_once_one_gets_it(fake):
    model = fake('tokens_per_second=100')
    cache, barrier, replies, refused = KVCache(), threading.Barrier(8), [], []

    def go():
        barrier.wait(timeout=30)
        try:
            replies.append(ask(model, 'x' * 50, kv_cache=cache))
        except ValueError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=go) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert len(replies) == 1 and len(refused) == 7 and all('has not ended' in text for text in refused)
    replies[0].stop()


def test_a_kv_cache_in_use_is_not_written_twice(fake):
    model = fake('tokens_per_second=50')
    cache = KVCache()
    reply = ask(model, 'j' * 100, kv_cache=cache)
    next(reply)
    with pytest.raises(ValueError, match='has not ended'):
        ask(model, 'k', kv_cache=cache)
    reply.stop()
    assert ask(model, 'k', kv_cache=cache).wait().text == 'You said: k'


def test_requests_that_arrive_together_start_together_behind_what_they_share(fake):
    """Also in an engine that has been running, and knows what a step costs."""
    model = fake('prefill_per_second=8000,tokens_per_second=200', max_sequences=16, speculation=False)

    def together(turn):
        system = f'You are robot {turn} and count crates. ' * 2

        def submit():  # in one step
            return [
                ask(model, f'{turn}{i:02d}', system, max_new_tokens=12, kv_cache=KVCache()) for i in range(16)
            ]

        before = model.stats['steps']
        replies = model.engine.call(submit)
        texts = {reply.wait().text for reply in replies}
        assert texts == {f'You said: {turn}{i:02d}'[:12] for i in range(16)}
        assert sum(reply.usage.shared_tokens >= len(system) for reply in replies) == 15
        return model.stats['steps'] - before

    together('a')
    for turn in 'bc':
        assert together(turn) <= 12 + 6  # what they share, the rest, the replies; one after another: 27
