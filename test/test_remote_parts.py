"""The parts of what talks to servers, each by itself: events, grammars, the vocabulary for messages."""

from __future__ import annotations

import asyncio
import json
import random
import re
import sys
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ros2_nanochat.answer.response_format import ResponseFormat
from ros2_nanochat.config import GenerationConfig
from ros2_nanochat.model_info import ModelInfo
from ros2_nanochat.prompt import Prompt
from ros2_nanochat.remote import gbnf, message_vocabulary
from ros2_nanochat.remote.capabilities import Capabilities, Way
from ros2_nanochat.remote.dialect import Chat
from ros2_nanochat.remote.failures import Overloaded, Rejected, Unavailable, error_of
from ros2_nanochat.remote.forms import TextVocabulary
from ros2_nanochat.remote.identify import Found
from ros2_nanochat.remote.patience import Watch
from ros2_nanochat.remote.pool import Pool
from ros2_nanochat.remote.sampling import sampling, without_effect
from ros2_nanochat.remote.scoring import LogProbabilities
from ros2_nanochat.remote.server import Server
from ros2_nanochat.remote.sse import MAX_EVENT, EventReader
from ros2_nanochat.remote.text import ServerText
from ros2_nanochat.remote.tokens import from_llama_cpp


@given(st.lists(st.text(st.characters(codec='utf-8', exclude_characters='\r\n')), min_size=1), st.data())
@settings(deadline=None, max_examples=100)
def test_events_arrive_whole_however_the_bytes_are_cut(texts, data):
    end = data.draw(st.sampled_from((b'\n', b'\r\n', b'\r')))
    stream = b''.join(b': comment' + end + b'data: ' + text.encode() + end + end for text in texts)
    reader, events, at = EventReader(), [], 0
    while at < len(stream):
        size = data.draw(st.integers(1, 40))
        events += reader.feed(stream[at : at + size])
        at += size
    events += reader.feed(b'\n\n')
    assert [event.decode() for event in events] == texts


def test_an_event_without_end_is_refused():
    reader = EventReader()
    with pytest.raises(ValueError, match='bytes'):
        for _ in range(2 + MAX_EVENT // (1 << 20)):
            reader.feed(b'x' * (1 << 20))


def matcher_of(grammar):
    from ros2_nanochat.answer.grammars import from_gbnf

    info = SimpleNamespace(special_tokens=())
    form = ResponseFormat('grammar', from_gbnf(grammar, 'test'))
    return TextVocabulary(SimpleNamespace(info=info, tokenize=list), Capabilities('m')).matcher(form, None)


PATTERNS = [
    '[0-9]{1,3}',
    '(yes|no)( please)?',
    r'\d+\.\d{2}',
    r'[^a-z\]\-]x*',
    'a"b\\\\c',
    '.{2}',
    'é[à-ü]+',
    r'^ab?$',
]


@pytest.mark.parametrize('pattern', PATTERNS)
def test_a_regular_expression_and_its_grammar_accept_the_same_texts(pattern):
    pytest.importorskip('llguidance')
    matcher = matcher_of(gbnf.from_regex(pattern))
    rng, letters = random.Random(pattern), 'ab"\\cxyz019.- éàü]yesno pla'
    texts = ['yes', 'no please', '12', '1234', '3.14', 'a"b\\c', 'éàü', 'ab', 'a', ']', 'Ax', 'xx', '']
    texts += [''.join(rng.choices(letters, k=rng.randint(1, 4))) for _ in range(200)]
    for text in texts:
        if text:
            assert matcher.matches(text) == bool(re.fullmatch(pattern, text)), text


def test_a_choice_with_any_characters_is_a_grammar():
    pytest.importorskip('llguidance')
    texts = ['say "hi"', 'a\\b', 'naïve\n', '世界 😀', 'x']
    matcher = matcher_of(gbnf.from_choice(texts))
    assert all(matcher.matches(text) for text in texts) and not matcher.matches('say hi')


@pytest.mark.parametrize('pattern', [r'(a)\1', r'(?=a)b', r'a\b'])
def test_an_expression_without_grammar_says_so(pattern):
    with pytest.raises(ValueError, match='regular expression uses'):
        gbnf.from_regex(pattern)


@given(st.text())
@settings(deadline=None)
def test_the_vocabulary_for_messages_spells_every_text(text):
    text = text.encode('utf-8', 'replace').decode()
    ids = message_vocabulary.tokenize(text)
    assert message_vocabulary.text_of(ids) == text and all(
        0 <= i < message_vocabulary.VOCAB_SIZE for i in ids
    )
    detokenizer = message_vocabulary.MessageDetokenizer()
    assert ''.join([detokenizer.add(i) for i in ids]) + detokenizer.flush() == text
    assert message_vocabulary.tokenize('<|nanochat_user|>' + text.replace('<', ''), special=True)[0] == 1


def test_a_prompt_becomes_its_messages_again():
    ids = message_vocabulary.tokenize(
        '<|nanochat_system|>a<|nanochat_end|><|nanochat_user|>b<|nanochat_end|><|nanochat_assistant|>c',
        special=True,
    )
    found = message_vocabulary.messages(Prompt.join([ids]))
    assert [(each.role, ''.join(each.parts), each.is_open) for each in found] == [
        ('system', 'a', False),
        ('user', 'b', False),
        ('assistant', 'c', True),
    ]


@pytest.mark.parametrize(
    'status, headers, body, kind, words',
    [
        (429, {'retry-after': '2'}, b'{"error": "slow"}', Overloaded, 'slow'),
        (503, {'retry-after': 'Wed, 21 Oct 2026 07:28:00 GMT'}, b'', Overloaded, '503'),
        (503, {}, b'<html><title>Down\x1b[31m</title>', Unavailable, 'Down'),
        (401, {}, b'{"detail": "no"}', Rejected, 'OPENAI_API_KEY'),
        (404, {}, b'{"detail":"Not Found"}', Rejected, 'http://host:8000/v1'),
        (400, {}, b'{"error": {"message": "too\\nlong"}}', Rejected, 'too long'),
        (308, {'location': 'http://evil\n'}, b'', Rejected, 'not followed'),
        (500, {}, b'\xff' * 9000, Unavailable, '500'),
        (400, {}, b'[' * 100000, Rejected, '400'),
    ],
)
def test_an_error_of_http_is_one_line_that_says_what_to_do(status, headers, body, kind, words):
    error = error_of(status, headers, body, 'http://a/v1')
    assert type(error) is kind and words in str(error)
    assert '\n' not in str(error) and '\x1b' not in str(error) and len(str(error)) < 500


def test_options_go_under_the_names_of_the_server_and_those_without_effect_are_known():
    can = Capabilities('m', way=Way.IDS, options={'temperature': 't', 'repetition_penalty': 'repeat_penalty'})
    config = GenerationConfig(do_sample=True, temperature=0.5, top_k=5, repetition_penalty=1.2, seed=4)
    assert sampling(config, can) == {'t': 0.5, 'repeat_penalty': 1.2}
    assert without_effect(config, can) == ['top_p', 'top_k', 'seed']
    assert sampling(GenerationConfig(), can) == {'t': 0.0, 'repeat_penalty': 1.0}
    assert without_effect(GenerationConfig(), can) == []


@pytest.mark.parametrize(
    'answer', [{}, [], None, {'tokens': None}, {'tokens': ['a']}, {'tokens': [-1]}, {'tokens': [1 << 40]}]
)
def test_a_server_that_tokenizes_oddly_leaves_the_text_to_be_asked_about_again(answer):
    asked = []

    def ask(path, body):
        asked.append(path)
        return answer

    info = ModelInfo('m', 'openai', 'llama', 'http://a/v1', 64, 64, 1, 9, frozenset({1}))
    text = ServerText(info, ask)
    assert message_vocabulary.text_of(text.tokenize('hello there')) == 'hello there'
    text.tokenize('hello there')
    assert len(asked) == 2 and text.text_of(7) == ''


@pytest.mark.parametrize(
    'number, log',
    [(3, log) for log in ('NaN', 'null', '"x"', '5.0', 'Infinity', '-1' + '0' * 400)]
    + [(number, '-1.0') for number in ('1e999', 'NaN', 'null', '"x"')],
)
@pytest.mark.parametrize('way', [Way.LLAMA_CPP, Way.IDS])
def test_a_probability_that_is_none_is_an_error_of_one_line(way, number, log):
    class Server:
        url = root = 'http://a'

        async def post(self, address, body, timeout):
            if way is Way.LLAMA_CPP:
                likeliest = f'[{{"id": {number}, "logprob": {log}}}]'
                return json.loads(f'{{"completion_probabilities": [{{"top_logprobs": {likeliest}}}]}}')
            logs = {
                'top_logprobs': [{}],
                'tokens': [f'token_id:{number}'],
                'token_logprobs': [json.loads(log)],
            }
            return {'choices': [{'logprobs': logs}]}

    asked = LogProbabilities(Server(), Capabilities('m', way=way))
    with pytest.raises(Unavailable, match='gives no probabilities') as error:
        asyncio.run(asked.after([1], [3]))
    assert '\n' not in str(error.value)


def test_a_server_that_cannot_be_asked_does_not_hide_the_others_and_is_asked_less_and_less(caplog):
    asked = []

    async def prepare(server):
        asked.append(server.url)
        if server.url == 'odd':
            raise RuntimeError('this was not foreseen')
        return Capabilities('m')

    odd, good = (Server(SimpleNamespace(url=url), prepare) for url in ('odd', 'good'))
    pool = Pool([odd, good])

    async def check():
        for _ in range(3):
            await pool.check_all()

    asyncio.run(check())
    assert good.works and not odd.works and 'was not foreseen' in odd.status
    assert not odd.check_is_due and asked.count('odd') == 3
    assert len([record for record in caplog.records if record.exc_info]) == 1


@pytest.mark.parametrize(
    'choice, text',
    [
        ({'delta': {}, 'message': {'content': 'all of it again'}}, ''),
        ({'delta': {'content': 'more'}, 'message': {'content': 'all of it'}}, 'more'),
        ({'delta': None, 'message': {'content': 'all of it'}}, 'all of it'),
        ({'message': {'content': 'all of it'}}, 'all of it'),
    ],
)
def test_a_whole_message_counts_only_without_a_delta(choice, text):
    assert Chat().read({'choices': [choice]}).text == text


@pytest.mark.parametrize(
    'location, shown',
    [
        ('https://me:secret@login.example/a?token=secret#secret', 'https://login.example/a'),
        ('https://me:secret@login.example//a?b=secret', 'https://login.example//a'),
        ('//me:secret@login.example', '//login.example'),
        ('/login?next=secret', '/login'),
        ('file:///etc/passwd', 'file:///etc/passwd'),
    ],
)
def test_where_a_redirect_goes_is_shown_without_secrets(location, shown):
    message = str(error_of(302, {'location': location}, b'', 'http://a/v1'))
    assert f'redirects to {shown}, which' in message and 'secret' not in message


@pytest.mark.parametrize('number', [float('inf'), float('nan'), 1e300, 1 << 40, '7', None, True])
def test_a_server_whose_ids_are_no_ids_is_talked_to_in_messages(number):
    class Server:
        root = 'http://a'

        async def post(self, address, body):
            return {'tokens': [number]}

    vocabulary, why = asyncio.run(from_llama_cpp(Server(), Found(Capabilities('m')), None))
    assert vocabulary is None and 'no token ids' in why and '\n' not in why


@pytest.mark.skipif(sys.version_info < (3, 11), reason='a task does not count its cancellations')
@pytest.mark.parametrize('user_first', [True, False])
def test_a_cancellation_that_meets_the_end_of_patience_is_kept(user_first):
    async def run():
        watch = Watch(0.0, 0.0, 'http://a')

        async def work():
            with watch:
                await asyncio.sleep(30)

        task = asyncio.ensure_future(work())
        await asyncio.sleep(0)
        acts = [task.cancel, watch._check]
        for act in acts if user_first else acts[::-1]:
            act()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
