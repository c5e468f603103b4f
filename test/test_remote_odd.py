"""Servers whose answers are odd or hostile, byte by byte: HTTP, events, JSON and the values in it."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
import warnings

import pytest

pytest.importorskip('aiohttp')

from remote_chat import ask
from scripted_server import ScriptedServer

from ros2_nanochat import ChatHistory, NanoLLM
from ros2_nanochat.engine.reply_text import ReplyText
from ros2_nanochat.errors import BackendError
from ros2_nanochat.remote.address import check_address, is_here, read_addresses
from ros2_nanochat.remote.connection import Connection
from ros2_nanochat.remote.failures import MAX_WAIT, Overloaded, Unavailable, error_of
from ros2_nanochat.remote.identify import _entry
from ros2_nanochat.remote.patience import Watch
from ros2_nanochat.remote.reply import RemoteReply


@pytest.fixture(scope='module')
def server():
    with ScriptedServer() as running:
        yield running


@pytest.fixture(scope='module')
def model(server):
    limits = {'first_token_timeout': 15.0, 'silence_timeout': 15.0}  # a machine may pause
    with NanoLLM.from_pretrained(server.url, api='openai', **limits) as opened:
        yield opened


@pytest.fixture(scope='module')
def impatient(server):
    limits = {'first_token_timeout': 0.5, 'silence_timeout': 0.5}
    with NanoLLM.from_pretrained(server.url, api='openai', **limits) as opened:
        yield opened


def event(text='', finish=None, *, end='\n', **more):
    choice = {'index': 0, 'delta': {'content': text}, 'finish_reason': finish}
    return f'data: {json.dumps({"id": "a", "choices": [choice], **more})}{end}{end}'


HEAD = 'HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n'
REPLY = event('Hi') + event(' there') + event(finish='stop')


def answer(body=REPLY, head=HEAD + 'Connection: close\r\n'):
    return head.encode() + b'\r\n' + (body if isinstance(body, bytes) else body.encode())


def chunked(*chunks):
    return answer(b''.join(chunks), HEAD + 'Transfer-Encoding: chunked\r\n')


def chunk(text, size=None):
    data = text.encode()
    return f'{len(data) if size is None else size:X};odd=yes\r\n'.encode() + data + b'\r\n'


USAGES = [
    {'prompt_tokens': 10**30, 'completion_tokens': -1},
    {'prompt_tokens': 2**31, 'prompt_tokens_details': {'cached_tokens': 2**40}},
    {'prompt_tokens': True, 'prompt_tokens_details': {'cached_tokens': '7'}},
    {'prompt_tokens': float('nan'), 'prompt_tokens_details': [1]},
    {'prompt_tokens': -5, 'prompt_tokens_details': {'cached_tokens': float('inf')}},
    [],
    'many',
]
WHOLE = json.dumps({'choices': [{'message': {'content': 'Hi there'}, 'finish_reason': 'stop'}]})

WHOLE_REPLIES = {
    'byte order mark': answer('\ufeff' + REPLY),
    'carriage returns': answer(REPLY.replace('\n', '\r')),
    'data of several lines': answer(REPLY.replace(', ', ',\ndata:  ')),
    'empty data': answer('data:\n\ndata: \n\n: x\n\nfoo\nbar: 1\n\n' + REPLY),
    'no blank line at the end': answer(REPLY.rstrip()),
    'http 1.0': answer(head='HTTP/1.0 200 OK\r\n'),
    'informational answers': b'HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nLink: </a>\r\n\r\n'
    + answer(),
    'other ids': answer(event('Hi', id='x') + event(' there', id=7) + event(finish='stop', id=None)),
    'an index in words': answer(REPLY.replace('"index": 0', '"index": "0"')),
    'an empty finish': answer(REPLY.replace('null', '""')),
    'a finish in words': answer(REPLY.replace('null', '"null"')),
    'two keys of one name': answer(
        'data: {"choices": 1, "choices": [{"delta": {"content": "Hi"}}]}\n\n' + REPLY[len(event('Hi')) :]
    ),
    'no numbers': answer(
        event('Hi', logprobs=float('nan')) + event(' there', x=float('-inf')) + event(finish='stop')
    ),
    'chunks with extensions': chunked(
        chunk(event('Hi')), chunk(event(' there') + event(finish='stop')), b'0\r\nX-Trailer: 1\r\n\r\n'
    ),
    'json with a mark': answer('\ufeff\r\n ' + WHOLE),
    'a late error': answer(REPLY + 'event: error\ndata: too late\n\n'),
    'garbage behind the end': answer(REPLY + 'data: {{{\n\n'),
    'cut behind the end': answer(REPLY, HEAD + 'Content-Length: 100000\r\n'),
    **{
        f'usage {n}': answer(REPLY + f'data: {json.dumps({"choices": [], "usage": usage})}\n\n')
        for n, usage in enumerate(USAGES)
    },
}


@pytest.mark.parametrize('name', WHOLE_REPLIES)
def test_an_odd_answer_that_is_whole_is_a_reply(server, model, name):
    server.faults.append(WHOLE_REPLIES[name])
    reply = ask(model, 'hello').wait(20)
    assert (reply.text, reply.finish_reason, reply.error) == ('Hi there', 'stop', None)
    assert reply.usage.prompt_tokens in range(1 << 31) and reply.usage.reused_tokens is None
    assert not server.faults


def error(*lines):
    return answer(event('Hi') + '\n'.join(lines) + '\n\n' + event(' there') + event(finish='stop'))


DEEP = '[' * 100_000
BROKEN = {
    'a chunk that is too short': (chunked(chunk(event('Hi')), chunk(event(' you'), 9999)), 'broke off'),
    'a chunk that is too long': (chunked(chunk(event('Hi')), chunk(event(' you'), 3)), 'broke off'),
    'no length of a chunk': (chunked(chunk(event('Hi')), b'zz\r\n\r\n'), 'broke off'),
    'less than its length': (answer(event('Hi'), HEAD + 'Content-Length: 9999\r\n'), 'broke off'),
    'more than its length': (
        answer(REPLY, f'{HEAD}Content-Length: {len(event("Hi"))}\r\n'),
        'ended the stream',
    ),
    'an event of errors': (error('event: error', 'data: {"message": "no memory"}'), 'no memory'),
    'an event of errors, data first': (error('data: {"message": "no memory"}', 'event: error'), 'no memory'),
    'an empty event of errors': (error('event:error'), 'an error'),
    'an object of errors': (error('data: {"object": "error", "message": "no memory"}'), 'no memory'),
    'the old field of errors': (error('error: {"code": 500, "message": "no memory"}'), 'no memory'),
    'a finish that is a list': (answer(event('Hi') + event(finish=['stop'])), 'ended the reply with'),
    'an unknown finish': (answer(event('Hi') + event(finish='banana\n\x1b[31m')), 'banana'),
    'no finish': (answer(event('Hi') + 'data: [DONE]\n\n'), 'before the reply was complete'),
    'deep json': (answer(event('Hi') + f'data: {DEEP}\n\n'), 'not JSON'),
    'a deep error': (
        answer(event('Hi') + 'data: ' + '{"error":' * 900 + '1' + '}' * 900 + '\n\n'),
        'broke off',
    ),
    'a long number': (answer(event('Hi') + f'data: {"9" * 5000}\n\n'), 'not JSON'),
    'deep parts': (answer(event('Hi') + event([{'text': [{'text': 'x'}]}]) + 'data: [DONE]\n\n'), 'complete'),
}


@pytest.mark.parametrize('name', BROKEN)
def test_a_reply_that_breaks_keeps_its_text_and_says_why_in_one_line(server, model, name):
    raw, words = BROKEN[name]

    async def in_two(writer):
        begun = raw.index(b'\n\n', raw.index(b'Hi')) + 2
        writer.write(raw[:begun])
        await asyncio.sleep(0.05)
        writer.write(raw[begun:])

    server.faults.append(in_two)
    history = ChatHistory(model)
    reply = ask(model, 'hello', history).wait(20)
    assert (reply.text in ('Hi', 'Hi you'), reply.finish_reason) == (True, 'error')
    assert words in reply.error and '\n' not in reply.error and '\x1b' not in reply.error
    assert len(reply.error) < 500 and not server.faults
    history.append('bot', reply)
    assert ask(model, 'again', history).wait(20).finish_reason == 'stop'


async def drip(writer):
    """Slowly send headers without end."""
    writer.write(b'HTTP/1.1 200 OK\r\n')
    for n in range(500):
        writer.write(f'X-{n}: x\r\n'.encode())
        await asyncio.sleep(0.01)
        if writer.transport.is_closing():
            return


async def go_on(writer):
    """Say that the answer will come, without end."""
    for _ in range(500):
        writer.write(b'HTTP/1.1 100 Continue\r\n\r\n' * 10)
        await asyncio.sleep(0.01)
        if writer.transport.is_closing():
            return


async def bomb(writer):
    """A gigabyte of zeros in a megabyte."""
    writer.write(f'{HEAD}Content-Encoding: gzip\r\nConnection: close\r\n\r\n'.encode())
    writer.write(gzip.compress(bytes(64 << 20), 1) * 4)


@pytest.mark.parametrize('never', [drip, go_on], ids=['slow headers', 'endless informational answers'])
def test_an_answer_that_never_begins_ends_in_one_line(server, impatient, never):
    server.faults += [never] * 2  # it is asked again
    reply = ask(impatient, 'hello').wait(20)
    server.faults.clear()
    assert (reply.text, reply.finish_reason) == ('', 'error')
    assert 'did not answer for 0.5 s' in reply.error and '\n' not in reply.error


REFUSED = {
    'a compressed answer': (bomb, 'sent gzip'),
    'another protocol': (
        b'HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n',
        'HTTP 101',
    ),
    'no content': (b'HTTP/1.1 204 No Content\r\n\r\n', 'HTTP 204'),
    'a web page': (answer('<html><body>Sign in</body></html>'), 'before the reply was complete'),
    'nothing': (answer(''), 'before the reply was complete'),
    'a redirect to a file': (
        b'HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n',
        'not followed',
    ),
    'a redirect without an address': (b'HTTP/1.1 301 Moved\r\nContent-Length: 0\r\n\r\n', 'not followed'),
    'a wait of years': (
        b'HTTP/1.1 429 Slow\r\nRetry-After: 1000000000\r\nContent-Length: 0\r\n\r\n',
        'HTTP 429',
    ),
    'a header without end': (b'HTTP/1.1 200 OK\r\nX: ' + b'x' * 300_000, 'broke off'),
    'another protocol from the start': (b'\x15\x03\x01\x00\x02\x02\x0a', 'broke off'),
}


@pytest.mark.parametrize('name', REFUSED)
def test_an_answer_that_is_no_reply_ends_in_one_line(server, model, name):
    raw, words = REFUSED[name]
    server.faults += [raw] * 2  # it is asked again
    reply = ask(model, 'hello').wait(20)
    server.faults.clear()
    assert (reply.text, reply.finish_reason) == ('', 'error')
    assert words in reply.error and '\n' not in reply.error and len(reply.error) < 500
    assert ask(model, 'again').wait(20).finish_reason == 'stop'


def test_a_reply_without_end_is_ended_here(server, model):
    server.faults.append('endless')
    reply = ask(model, 'hello', max_new_tokens=10).wait(20)
    assert reply.finish_reason == 'length' and reply.text.startswith('You said: hello')
    assert len(reply.tokens) < 1000
    until = time.monotonic() + 10
    while server.open_streams:
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_reply_ends_with_its_last_event_although_the_connection_stays_open(server, model):
    async def stay(writer):
        writer.write(answer(event('Hi') + 'data:[DONE]\n\n'))
        await asyncio.sleep(10)

    server.faults.append(stay)
    begun = time.monotonic()
    reply = ask(model, 'hello').wait(20)
    assert (reply.text, reply.finish_reason) == ('Hi', 'error') and 'before the reply was' in reply.error
    assert time.monotonic() - begun < 8


def test_a_reply_whose_end_fails_has_an_end(server, model, monkeypatch):
    def flush(text, end_id=None):
        raise KeyError('ours')

    with monkeypatch.context() as patch:
        patch.setattr(ReplyText, 'flush', flush)
        reply = ask(model, 'hello').wait(10)
    assert reply.finish_reason == 'error' and reply.error == "internal error: KeyError('ours')"
    assert ask(model, 'again').wait(20).finish_reason == 'stop'


@pytest.mark.parametrize('fault', ['refused', 'in the stream'])
def test_a_key_that_a_server_quotes_is_not_shown(monkeypatch, caplog, fault):
    key = 'sk-secret-0123456789'
    monkeypatch.setenv('OPENAI_API_KEY', key)
    said = json.dumps({'error': {'message': f'{"x" * 190} {key}: no quota'}})  # cut within the key
    faults = {
        'refused': f'HTTP/1.1 401 No\r\nContent-Length: {len(said)}\r\n\r\n{said}'.encode(),
        'in the stream': answer(event('Hi') + f'data: {said}\n\n'),
    }
    with ScriptedServer(key=key) as server, caplog.at_level('DEBUG'):
        with NanoLLM.from_pretrained(server.url, api='openai') as model:
            server.faults.append(faults[fault])
            reply = ask(model, 'hello').wait(20)
            assert reply.finish_reason == 'error' and '(the ' in reply.error
            assert key[:6] not in f'{reply.error} {model.stats}'
    assert key[:6] not in caplog.text


@pytest.mark.parametrize(
    'listing, served, words',
    [
        ({'data': []}, None, 'lists no models: load one there'),
        ({'models': [{'name': 'm'}]}, None, 'lists no models: load one there'),
        ({'data': [{'id': f'm{n}'} for n in range(1000)]}, None, 'm19 and 980 more'),
        ([{'id': f'm{n}'} for n in range(22)], 'other', 'm19 and 2 more'),
    ],
)
def test_what_a_server_lists_is_told(listing, served, words):
    with pytest.raises(BackendError, match=words) as refused:
        _entry(listing, 'http://a/v1', served)
    assert '\n' not in str(refused.value) and len(str(refused.value)) < 500


def test_a_list_of_models_without_a_frame_is_a_list():
    assert _entry([{'id': 'a'}, {'id': 'b'}, 7, None], 'http://a/v1', 'b') == {'id': 'b'}


def test_a_bug_of_ours_is_not_blamed_on_the_server(server, model, monkeypatch):
    def take(reply, piece, figures_follow):
        raise KeyError('ours')

    server.requests.clear()
    with monkeypatch.context() as patch:
        patch.setattr(RemoteReply, 'take', take)
        reply = ask(model, 'hello').wait(20)
    assert reply.finish_reason == 'error' and reply.error == "internal error: KeyError('ours')"
    assert len(server.requests) == 1 and model.stats['servers'][server.url].startswith('up')
    assert ask(model, 'again').wait(20).finish_reason == 'stop'


@pytest.mark.parametrize('tail', ['figures', 'silence', 'more text'])
def test_the_end_of_a_stream_is_waited_for_once_the_reply_is_complete(server, tail):
    async def write(writer):
        writer.write(answer('' if tail == 'silence' else event('Hi')))
        await asyncio.sleep(1.1 if tail == 'figures' else 0)  # longer than the end is waited for
        writer.write(event(finish='stop').encode())
        await asyncio.sleep(0.05)
        if tail == 'figures':
            usage = {'prompt_tokens': 77}
            writer.write(f'data: {json.dumps({"choices": [], "usage": usage})}\n\n'.encode())
        until = time.monotonic() + 20
        while tail != 'figures' and time.monotonic() < until and not writer.transport.is_closing():
            writer.write(event(' late').encode() if tail == 'more text' else b': wait\n\n')
            await asyncio.sleep(0.05)

    limits = {'first_token_timeout': 20, 'silence_timeout': 20 if tail == 'figures' else 0.5}
    with NanoLLM.from_pretrained(server.url, api='openai', **limits) as model:
        server.faults.append(write)
        began = time.monotonic()
        reply = ask(model, 'hello').wait(30)
        assert (reply.finish_reason, reply.text) == ('stop', '' if tail == 'silence' else 'Hi')
        assert time.monotonic() - began < 10
        assert tail != 'figures' or reply.usage.prompt_tokens == 77


@pytest.mark.parametrize('size', [1 << 10, 3 << 20])
def test_a_large_request_is_sent_whole_and_without_a_warning(server, size):
    async def run():
        connection = Connection(server.url, None, 5.0)
        try:
            await connection.post(f'{server.url}/chat/completions', body)
        finally:
            await connection.close()

    body = {'messages': [{'role': 'user', 'content': 'x' * size}]}
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        asyncio.run(run())
    headers, got = server.requests[-1]
    assert got == body and int(headers['content-length']) > size
    assert headers['content-type'] == 'application/json'


@pytest.mark.parametrize('fault', ['reset', 'closed'])
def test_a_request_is_repeated_only_if_its_connection_was_kept(server, fault):
    async def stream(connection, faults):
        server.faults[:] = faults
        server.requests.clear()
        address, body = f'{server.url}/chat/completions', {'messages': [{'content': 'a'}], 'stream': True}
        events = []
        try:
            await connection.stream(address, body, {}, events.append, Watch(10, 10, address))
        except Unavailable as error:
            assert 'broke off' in str(error) and error.reached and not events
        return bool(events), len(server.requests), len(server.faults)

    async def run():
        connection = Connection(server.url, None, 5.0)
        try:
            fresh = await stream(connection, [fault] * 3)
            await asyncio.gather(*[connection.get(f'{server.url}/models') for _ in range(2)])
            return fresh, await stream(connection, [fault] * 2), await stream(connection, [fault])
        finally:
            await connection.close()
            server.faults.clear()

    assert asyncio.run(run()) == ((False, 1, 2), (True, 3, 0), (False, 1, 0))


def test_cookies_are_not_kept(server):
    url = f'http://localhost:{server.port}/v1'  # aiohttp keeps none of an IP address in any case
    with NanoLLM.from_pretrained(url, api='openai') as model:
        server.faults.append(answer(head=f'{HEAD}Set-Cookie: route=1; Path=/\r\nConnection: close\r\n'))
        for _ in range(2):
            assert ask(model, 'hello').wait(20).finish_reason == 'stop'
    assert 'cookie' not in server.requests[-1][0]


@pytest.mark.parametrize(
    'value, least, most',
    [
        ('1000000000', MAX_WAIT, MAX_WAIT),
        ('-5', 0.05, 0.05),
        ('nan', 1, 1),
        ('inf', MAX_WAIT, MAX_WAIT),
        ('Fri, 31 Dec 1999 23:59:59 GMT', 0.05, 0.05),
        ('Fri, 31 Dec 2399 23:59:59 GMT', MAX_WAIT, MAX_WAIT),
        ('soon', 1, 1),
        ('', 1, 1),
    ],
)
def test_what_a_server_asks_to_wait_is_followed_within_limits(value, least, most):
    error = error_of(429, {'retry-after': value}, b'', 'http://a/v1')
    assert isinstance(error, Overloaded) and least <= error.retry_after <= most


# --- reasoning ---

DELTAS = {
    'reasoning_content': lambda text: {'reasoning_content': text, 'content': None},
    'reasoning': lambda text: {'reasoning': text, 'content': ''},
    'both names': lambda text: {'reasoning': text, 'reasoning_content': text},
    'thinking': lambda text: {'thinking': text, 'content': ''},
    'thinking parts': lambda text: {
        'content': [{'type': 'thinking', 'thinking': [{'type': 'text', 'text': text}]}]
    },
    'reasoning parts': lambda text: {'content': [{'type': 'reasoning', 'text': text}]},
}


def reasoned(make):
    deltas = [
        *map(make, ('Let me', ' think \ud83d', '\ude00.')),
        {'content': '\n\nIt is'},
        {'content': ' 4.'},
    ]
    events = [{'choices': [{'index': 0, 'delta': delta}]} for delta in deltas]
    return answer(''.join(f'data: {json.dumps(each)}\n\n' for each in events) + event(finish='stop'))


@pytest.mark.parametrize('name', [*DELTAS, 'marks in the text'])
def test_reasoning_is_told_from_the_answer_and_not_sent_back(server, model, name):
    marked = (
        event('<think>Let me think 😀') + event('.</think>') + event('\n\nIt is 4.') + event(finish='stop')
    )
    server.faults.append(reasoned(DELTAS[name]) if name in DELTAS else answer(marked))
    history = ChatHistory(model)
    reply = ask(model, 'What is 2 + 2?', history)
    deltas = [*reply.deltas()]
    assert (reply.text, reply.reasoning) == ('It is 4.', 'Let me think 😀.'), deltas
    assert all(delta.reasoning for delta in deltas[:1]) and not deltas[-1].reasoning
    history.append('bot', reply)
    assert ask(model, 'Sure?', history).wait(20).finish_reason == 'stop'
    sent = server.requests[-1][1]['messages']
    if name in DELTAS:  # marks in the text are for the server's template to remove
        assert sent[1] == {'role': 'assistant', 'content': 'It is 4.'}


# --- addresses, and servers that answer everything ---


@pytest.mark.parametrize(
    'url, words',
    [
        ('http://me:secret@host/v1', 'must not hold a password'),
        ('ftp://me:secret@host/v1', 'must not hold a password'),
        ('http://:secret@/v1', 'must not hold a password'),
        ('me:secret@host', 'must not hold a password'),
        ('http:///me:secret@host', 'must not hold a password'),
        ('http:/me:secret@host', 'must not hold a password'),
        ('https//me:secret@host', 'must not hold a password'),
        ('http://me:secret,word@host', 'must not hold a password'),
        ('http://host/v1, http://me:secret@host', 'must not hold a password'),
        ('http://host/v1?key=secret', 'must not hold'),
        ('http://host/v1#secret', 'must not hold'),
        ('http://[::1/v1', 'not valid'),
        ('http://[::zz]/v1', 'not valid'),
        ('http://host:port/v1', 'not valid'),
        ('http://host:99999/v1', 'not valid'),
        ('http://ho\nst/v1', 'not valid'),
        ('http://\u2603\u200d.example/v1', 'not valid'),
        ('http:///v1', 'http://host:8000/v1'),
        ('file:///etc/passwd', 'http://host:8000/v1'),
        ('http://' + 'x' * 70_000, 'not valid'),
    ],
)
def test_an_address_that_cannot_be_used_is_one_line_without_secrets(url, words):
    with pytest.raises(ValueError, match=words) as refused:
        read_addresses(url)
    message = str(refused.value)
    assert 'secret' not in message and '\n' not in message and len(message) < 400


def test_addresses_of_every_kind_are_taken():
    for url in (
        'http://[::1]:8000/v1',
        'https://b\u00fccher.example/v1',
        'http://host',
        'http://10.0.0.7:80/a/v1',
    ):
        assert check_address(f'{url}/') == url
    assert check_address('HTTPS://Host/v1') == 'https://Host/v1', 'else its certificate would not be checked'
    assert is_here('http://[::1]:8000/v1') and is_here('http://localhost/v1') and is_here('http://127.0.0.1')
    assert not is_here('http://127.evil.example/v1') and not is_here('http://localhost.example/v1')


class Yes(ScriptedServer):
    """Answers every request with one value."""

    value: object = None

    def _get(self, writer, path):
        return self._answer(writer, 200, self.value)

    def _refuse(self, writer, fault):
        return self._answer(writer, 200, self.value)


@pytest.mark.parametrize(
    'value, words',
    [
        ({}, 'answers a question with {}'),
        ([], 'has none'),
        (None, 'has none'),
        (7, 'has none'),
        ('ok', 'has none'),
        (b'<html>Sign in</html>', 'not JSON'),
        ({'data': [{'id': 'm'}]}, 'answers a question with'),
        ({'data': 5}, 'has none'),
    ],
)
def test_a_server_that_answers_everything_is_no_server_of_models(value, words):
    with Yes() as server:
        server.value, server.always = value, 'yes'
        options = {'connect_timeout': 3, 'served_model': 'm'}
        with pytest.raises(BackendError) as refused:
            NanoLLM.from_pretrained(server.url, api='openai', **options)
        message = str(refused.value)
        assert '\n' not in message and server.url in message and words in message


@pytest.mark.parametrize(
    'value, words',
    [
        ({'data': 5}, 'ended the stream before the reply was complete'),
        ([], 'no event of a reply'),
        ({'data': [7, {'id': []}]}, 'ended the stream before the reply was complete'),
    ],
)
def test_a_server_that_comes_back_as_something_else_is_not_used(value, words):
    with ScriptedServer() as server, NanoLLM.from_pretrained(server.url, api='openai') as model:
        server.stop()
        with Yes(port=server.port) as other:
            other.value, other.always = value, 'yes'
            reply = ask(model, 'hello').wait(20)
            assert reply.finish_reason == 'error' and '\n' not in reply.error
            assert words in reply.error
        server.start()
        assert ask(model, 'hello').wait(20).finish_reason == 'stop'
