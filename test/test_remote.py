"""Models on servers: conversations, stops, and all that a server may do wrong, on a scripted server."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

pytest.importorskip('aiohttp')

from remote_chat import ask
from scripted_server import MODEL, ScriptedServer

from ros2_nanochat import ChatHistory, GenerationConfig, KVCache, ModelConfig, NanoLLM
from ros2_nanochat.errors import BackendError
from ros2_nanochat.remote.connection import Connection
from ros2_nanochat.remote.failures import Unavailable
from ros2_nanochat.remote.opening import read_key


def open_servers(*servers, **options):
    urls = ','.join(server.url for server in servers)
    return NanoLLM.from_pretrained(urls, api='openai', **options)


def wait(condition, seconds=10.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, 'it did not come'
        time.sleep(0.005)


@pytest.fixture(scope='module')
def server():
    with ScriptedServer() as running:
        yield running


@pytest.fixture(scope='module')
def model(server):
    limits = {'first_token_timeout': 0.5, 'silence_timeout': 0.5}
    with open_servers(server, **limits) as opened:
        yield opened


def test_a_conversation_reaches_the_server_as_the_messages_that_it_is_made_of(server, model):
    history = ChatHistory(model, system_prompt='Be brief.')
    said = [{'role': 'system', 'content': 'Be brief.'}]
    for text in ('hello', 'naïve 世界 😀 <|nanochat_user|> <think>', 'a\n\n b\t'):
        reply = ask(model, text, history).wait()
        assert reply.finish_reason == 'stop' and reply.error is None and reply.text.startswith('You said:')
        said.append({'role': 'user', 'content': text})
        headers, body = server.requests[-1]
        assert body['messages'] == said and body['model'] == MODEL and headers['x-session-id']
        said.append({'role': 'assistant', 'content': reply.text})
        history.append('bot', reply)
    assert len({headers['x-session-id'] for headers, _ in server.requests[-3:]}) == 1
    assert reply.usage.prompt_tokens == 20 and reply.usage.reused_tokens is None
    assert reply.served_by == f'{MODEL}@{server.url}' and 'up' in model.stats['servers'][server.url]
    history[1].text = 'hi'  # an edit is as cheap as any other turn
    ask(model, 'again', history).wait()
    assert server.requests[-1][1]['messages'][1]['content'] == 'hi'


ENDS = {
    'comments': 'stop',
    'crlf': 'stop',
    'bytes': 'stop',  # also within characters
    'halves': 'stop',  # of characters, as escapes of JSON in two events
    'usage': 'stop',  # with each event, and before the first
    'empty': 'stop',
    'parts': 'stop',
    'after_done': 'stop',
    'json_body': 'stop',
    'error_body': 'stop',  # from here on, asked again, before anything was delivered
    'reset': 'stop',
    'garbage': 'stop',
    'slow_headers': 'stop',
    'ping_first': 'stop',
    '429': 'stop',
    '500': 'stop',
    'html': 'stop',
    'silent': 'stop',
    'cut': 'broke off|ended the stream',
    'half_line': 'ended the stream|not JSON',
    'wrong_json': 'not JSON',
    'not_object': 'no event',
    'error_event': 'the engine died',
    'no_finish': 'before the reply was complete',
    'end': 'before the reply was complete',
    'pause': 'was silent for 0.5 s',
    'ping': 'was silent for 0.5 s',
    'bad_utf8': 'not JSON',
    'odd_finish': 'content_filter',
    'huge': 'bytes',
    '401': 'OPENAI_API_KEY',
    '404': 'does not exist',
    'redirect': 'redirects to http://198.51.100.7',
}


@pytest.mark.parametrize('fault', ENDS)
def test_whatever_a_server_does_wrong_ends_in_one_line_or_recovers(server, model, fault):
    history = ChatHistory(model)
    server.faults.append(fault)
    reply = ask(model, 'one naïve 世界 😀', history).wait(20)
    assert not server.faults
    if ENDS[fault] == 'stop':
        assert (reply.finish_reason, reply.error) == ('stop', None)
        assert reply.text == 'You said: one naïve 世界 😀 6 7'
        assert reply.usage.prompt_tokens == 20
    else:
        assert reply.finish_reason.failed and '\n' not in reply.error
        assert any(part in reply.error for part in ENDS[fault].split('|')), reply.error
        assert 'You said: one'.startswith(reply.text)
    history.append('bot', reply)
    again = ask(model, 'again', history).wait(20)
    assert again.finish_reason == 'stop', again.error
    messages = server.requests[-1][1]['messages']
    assert messages[-2] == {'role': 'assistant', 'content': reply.text}
    wait(lambda: not server.open_streams)


def test_a_server_that_always_fails_ends_each_reply_with_what_it_says(server):
    with open_servers(server) as model:
        server.always = '500'
        try:
            for _ in range(5):
                reply = ask(model, 'hello').wait(20)
                assert reply.finish_reason == 'error' and 'out of memory' in reply.error
        finally:
            server.always = None
        assert ask(model, 'hello').wait(20).finish_reason == 'stop'


def test_a_stop_closes_the_stream_and_keeps_exactly_what_was_handed_out():
    with ScriptedServer(delay=0.005, words=400) as server, open_servers(server) as model:
        history = ChatHistory(model)
        reply = ask(model, 'tell', history)
        pieces = [next(reply) for _ in range(7)]
        reply.stop()
        wait(lambda: not server.open_streams, 1.0)
        assert reply.text == ''.join(pieces) == model.detokenize(reply.tokens)
        assert reply.finish_reason == 'cancelled' and reply.usage.prompt_tokens == 0
        history.append('bot', reply)
        late = ask(model, 'more', history, deadline=0.3)
        late.wait(10)
        assert late.finish_reason == 'deadline' and late.text.startswith('You said: more')
        assert server.requests[-1][1]['messages'][-2]['content'] == reply.text
        wait(lambda: not server.open_streams, 1.0)
        dropped = ask(model, 'drop')
        next(dropped)
        del dropped
        gc.collect()
        wait(lambda: not server.open_streams, 1.0)
        stopped = ask(model, 'count', stop_tokens=[' 9']).wait(10)
        assert stopped.finish_reason == 'stop' and stopped.text.endswith(' 8')
        wait(lambda: not server.open_streams, 1.0)
        running = ask(model, 'closed meanwhile')
        next(running)
    assert running.wait(5).finish_reason == 'cancelled'


def cancels(count):
    rng = random.Random(count)
    with ScriptedServer(delay=0.001, words=300) as server, open_servers(server) as model:
        history = ChatHistory(model)
        said = []
        for number in range(count):
            reply = ask(model, f'q{number}', history, deadline=rng.choice((None, None, rng.uniform(0, 0.03))))
            said.append(f'q{number}')
            given = ''
            until = time.monotonic() + rng.uniform(0, 0.03)
            for piece in reply:
                given += piece
                if time.monotonic() > until:
                    break
            reply.stop()
            assert reply.text == given == model.detokenize(reply.tokens)
            if reply.tokens:
                history.append('bot', reply)
                said.append(given)
            else:
                history.pop()
                said.pop()
            if len(history) > 12:
                del history[:8]
                del said[:8]
            assert [message.text for message in history] == said
        wait(lambda: not server.open_streams, 2.0)
        wait(lambda: model.stats['active'] == model.stats['waiting'] == 0, 2.0)
        assert ask(model, 'the end').wait(20).text.startswith('You said: the end')


def test_a_stop_before_a_reply_begins_leaves_nothing_behind(server, model):
    before = len(server.requests)
    for _ in range(3):
        model.engine._background.soon(time.sleep, 0.1)  # the thread is busy while both arrive
        reply = ask(model, 'never asked')
        reply.stop()
        assert reply.wait(10).finish_reason == 'cancelled' and reply.text == ''
        wait(lambda: (model.stats['active'], model.stats['waiting']) == (0, 0))
    assert len(server.requests) == before and reply._request.signals.ended.wait(5)


def test_requests_of_many_threads_all_end_while_the_model_is_closed():
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # threads change places between any two steps
    try:
        with ScriptedServer(words=3) as server:
            for _ in range(10):
                model, ended, closed = open_servers(server), [], []

                def keep_asking(model=model, ended=ended, closed=closed):
                    is_last = False
                    while not is_last:
                        is_last = bool(closed)
                        ended.append(ask(model, 'go').wait(10.0).finish_reason)
                    closed.append('for this thread')

                threads = [threading.Thread(target=keep_asking) for _ in range(8)]
                for thread in threads:
                    thread.start()
                wait(lambda ended=ended: len(ended) > 8)
                model.close()
                closed.append('at all')
                for thread in threads:
                    thread.join(20.0)
                assert not any(thread.is_alive() for thread in threads)
                assert len(closed) == 9 and {*ended} <= {'length', 'stop', 'cancelled', 'error'}
    finally:
        sys.setswitchinterval(interval)


@pytest.mark.filterwarnings('ignore::pytest.PytestUnhandledThreadExceptionWarning')
@pytest.mark.parametrize('how', ['stops', 'fails', 'is closed after the request was let in'])
def test_every_request_is_answered_after_the_loop_has_ended(server, how):
    model = open_servers(server)
    engine = model.engine
    background = engine._background
    if how == 'stops':
        background.close()
    elif how == 'fails':

        def fail():
            raise SystemExit('a bug')

        background.at_end.append(fail)
        background.soon(background.loop.stop)
        background._thread.join(10.0)
    else:
        model.close()
        engine._closed = False  # as a thread saw it that submits just now
    try:
        for _ in range(3):
            assert ask(model, 'go').wait(5.0).finish_reason == 'error'
    finally:
        model.close()


def test_a_reply_whose_task_the_loop_never_ran_ends_with_it(server):
    with open_servers(server) as other:
        background, begun = other.engine._background, threading.Event()

        async def begin_at_the_end():
            begun.set()
            time.sleep(0.3)  # the request comes while the loop ends

        background.at_end.append(begin_at_the_end)
        background.soon(background.loop.stop)
        assert begun.wait(10.0)
        assert ask(other, 'go').wait(5.0).finish_reason in ('error', 'cancelled')


def test_random_cancels_leave_the_history_at_what_was_delivered():
    cancels(40)


@pytest.mark.long
def test_a_thousand_random_cancels_leave_the_history_at_what_was_delivered():
    cancels(1000)


# --- the key, TLS, addresses ---


def test_the_key_comes_from_the_environment_or_a_file_and_is_never_shown(tmp_path, monkeypatch, caplog):
    with ScriptedServer(key='sk-secret-17') as server:
        monkeypatch.delenv('OPENAI_API_KEY', raising=False)
        with pytest.raises(BackendError, match='OPENAI_API_KEY'):
            open_servers(server)
        monkeypatch.setenv('OPENAI_API_KEY', 'sk-secret-17')
        with caplog.at_level('DEBUG'), open_servers(server) as model:
            assert ask(model, 'hello').wait(10).finish_reason == 'stop'
            assert 'sk-secret-17' not in repr(model.config) + repr(model.stats) + caplog.text
        file = tmp_path / 'key'
        file.write_text('sk-secret-17\n')
        monkeypatch.setenv('OPENAI_API_KEY', 'sk-other')
        with open_servers(server, api_key_file=str(file)) as model:
            assert ask(model, 'hello').wait(10).finish_reason == 'stop'
    for text, message in (('', 'is empty'), ('two words', 'holds no key'), ('näh', 'holds no key')):
        file.write_text(text, encoding='latin-1')
        with pytest.raises(ValueError, match=message) as refused:
            read_key(ModelConfig(api_key_file=str(file)))
        assert not text or text not in str(refused.value)
    with pytest.raises(ValueError, match='cannot be read'):
        read_key(ModelConfig(api_key_file=str(tmp_path / 'none')))
    os.mkfifo(tmp_path / 'pipe')  # nobody writes to it
    with pytest.raises(ValueError, match='not a regular file'):
        read_key(ModelConfig(api_key_file=str(tmp_path / 'pipe')))


@pytest.mark.skipif(shutil.which('openssl') is None, reason='makes a certificate with openssl')
def test_a_certificate_that_is_not_trusted_is_refused_and_one_that_is_works(tmp_path, monkeypatch):
    import ssl

    key, certificate = tmp_path / 'key.pem', tmp_path / 'cert.pem'
    command = [
        'openssl',
        'req',
        '-x509',
        '-newkey',
        'rsa:2048',
        '-nodes',
        '-days',
        '2',
        '-subj',
        '/CN=robot',
        '-addext',
    ]
    command += ['subjectAltName=IP:127.0.0.1', '-keyout', str(key), '-out', str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    with ScriptedServer(ssl=context) as server:
        with pytest.raises(BackendError, match='certificate that is not trusted'):
            open_servers(server, connect_timeout=0.5)

        async def get():
            connection = Connection(server.url, None, 5.0)
            try:
                await connection.get(server.url)
            finally:
                await connection.close()

        with pytest.raises(Unavailable, match='not trusted') as error:
            asyncio.run(get())
        assert not error.value.reached
        monkeypatch.setenv('SSL_CERT_FILE', str(certificate))
        with open_servers(server) as model:
            assert ask(model, 'hello').wait(10).finish_reason == 'stop'


@pytest.mark.parametrize(
    'address, message',
    [
        ('', 'needs the address'),
        ('host:8000', 'http://host:8000/v1'),
        ('ftp://host/v1', 'http://host:8000/v1'),
        ('http://me:pw@host/v1', 'must not hold a password'),
        ('http://127.0.0.1:9/v1', 'cannot be reached'),
    ],
)
def test_a_wrong_address_is_one_line(address, message):
    with pytest.raises((ValueError, BackendError), match=message) as error:
        NanoLLM.from_pretrained(address, api='openai', connect_timeout=0.2)
    assert '\n' not in str(error.value) and 'pw' not in str(error.value)


def test_a_server_that_cannot_be_opened_leaves_no_connection_behind(caplog):
    with ScriptedServer(key='sk-1') as server:
        for url in (server.url, 'http://127.0.0.1:9/v1'):
            with pytest.raises(BackendError):
                NanoLLM.from_pretrained(url, api='openai', connect_timeout=0.2)
        gc.collect()
        assert 'Unclosed' not in caplog.text


def test_a_server_that_starts_later_or_loads_its_model_is_waited_for(caplog):
    with ScriptedServer() as server:
        server.stop()
        threading.Timer(3.5, server.start).start()
        with open_servers(server, connect_timeout=60) as model:
            assert 'waiting for http://127.0.0.1' in caplog.text and 'cannot be reached' in caplog.text
            assert ask(model, 'hello').wait(10).finish_reason == 'stop'
        server.not_ready = 4
        server.models_twice = True
        shares = []
        with open_servers(server, progress=shares.append) as model:
            assert model.engine.can.forms and not server.not_ready and shares[-1] == 1.0
    with ScriptedServer() as down, ScriptedServer() as server:
        down.stop()
        with open_servers(down, server) as model:  # one that works is enough
            assert model.stats['servers'][down.url].startswith('down')


def test_waiting_for_a_server_that_does_not_answer_can_be_interrupted():
    with socket.create_server(('127.0.0.1', 0)) as silent:
        url = f'http://127.0.0.1:{silent.getsockname()[1]}/v1'
        command = [sys.executable, '-m', 'ros2_nanochat.chat', '--api', 'openai', '--model', url]
        program = subprocess.Popen(
            [*command, '--connect-timeout', '60'], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            assert f'waiting for {url}: it has not answered yet' in program.stderr.readline()
            program.send_signal(signal.SIGINT)
            assert program.wait(20) == 130
        finally:
            program.kill()
            program.communicate()


def test_a_model_that_the_server_does_not_have_is_named(server):
    with pytest.raises(BackendError, match=f'served_model.*{MODEL}'):
        open_servers(server, served_model='other')
    with pytest.raises(ValueError, match='max_context_len=99999'):
        open_servers(server, max_context_len=99999)
    server.lists_models = False
    try:
        with pytest.raises(BackendError, match='HTTP 404'):
            open_servers(server, connect_timeout=0.1)
        with open_servers(server, served_model=MODEL) as model:
            server.stop()
            assert ask(model, 'hello').wait(20).finish_reason == 'error'
            server.start()
            assert ask(model, 'hello').wait(20).finish_reason == 'stop'
    finally:
        server.lists_models = True


# --- what a server cannot do ---


def test_forms_are_checked_on_the_whole_answer_and_refused_where_a_server_has_none(server, model):
    assert model.engine.can.forms['choice'] == 'structured_outputs'
    reply = ask(model, 'ok?', response_format='yes | no').wait(10)
    assert reply.text == 'yes' and reply.valid and reply.finish_reason == 'stop'
    schema = {'type': 'object', 'properties': {'a': {'type': 'boolean'}}, 'required': ['a']}
    reply = ask(model, 'ok?', response_format={**schema, 'additionalProperties': False}).wait(10)
    assert reply.parsed == {'a': True}, 'white space between the tokens of JSON is allowed'
    server.follows_forms = False
    try:
        reply = ask(model, 'ok?', response_format='yes | no').wait(10)
        assert reply.finish_reason == 'error' and 'another form' in reply.error and not reply.valid
        with open_servers(server) as other:
            assert not other.engine.can.forms
            reply = ask(other, 'ok?', response_format='yes | no').wait(10)
            assert reply.finish_reason == 'refused' and 'keeps no form of the kind choice' in reply.error
            config = GenerationConfig(response_format='yes | no')
            assert 'keeps no form' in other.engine.refusal(config)
            assert other.engine.refusal(GenerationConfig()) is None
    finally:
        server.follows_forms = True


def test_an_option_without_effect_is_named_once_and_what_is_impossible_is_refused(model, caplog):
    for _ in range(2):
        ask(model, 'hello', do_sample=True, min_p=0.1, seed=3).wait(10)
    lines = [record.message for record in caplog.records if 'has no effect' in record.message]
    assert {line.split()[0] for line in lines} >= {'min_p', 'seed'} and len(lines) == len(set(lines))
    reply = ask(model, 'hello', functions=[lambda text: None]).wait(10)
    assert reply.finish_reason == 'refused' and 'functions' in reply.error
    with pytest.raises(ValueError, match='probabilities'):
        ask(model, 'hello', response_format='yes | no', probabilities=True)
    reply = model.generate('plain text').wait(10)
    assert reply.finish_reason == 'refused' and 'only conversations' in reply.error


def test_a_picture_goes_as_it_is_to_a_server_that_sees(server, model):
    image = pytest.importorskip('PIL.Image')
    assert not model.has_vision
    server.sees = True
    try:
        with open_servers(server) as seeing:
            assert seeing.has_vision
            history = ChatHistory(seeing)
            history.append('user', image=image.new('RGB', (40, 30), (10, 200, 30)))
            reply = ask(seeing, 'What colour?', history).wait(10)
            content = server.requests[-1][1]['messages'][-1]['content']
            assert content[0]['image_url']['url'].startswith('data:image/png;base64,')
            assert content[1] == {'type': 'text', 'text': 'What colour?'} and reply.finish_reason == 'stop'
            assert reply.usage.prompt_tokens == 276
            history.append('bot', reply)
            ask(seeing, 'And now?', history).wait(10)
            assert server.requests[-1][1]['messages'][0]['content'][0] == content[0]
    finally:
        server.sees = False


def test_a_picture_is_sent_once_to_a_server_that_keeps_it():
    image = pytest.importorskip('PIL.Image')
    with ScriptedServer() as server:
        server.sees, server.kept = True, set()
        with open_servers(server) as seeing:
            assert 'images: yes, sent once' in seeing.stats['server']
            history = ChatHistory(seeing)
            history.append('user', image=image.new('RGB', (40, 30), (10, 200, 30)))
            history.append('bot', ask(seeing, 'What colour?', history).wait(10))

            def sent():
                part = server.requests[-1][1]['messages'][0]['content'][0]
                return part['image_url'] and part['image_url']['url'][:10], part['uuid']

            whole, name = sent()
            assert whole == 'data:image' and name in server.kept
            reply = ask(seeing, 'And now?', history).wait(10)
            assert sent() == (None, name) and reply.usage.prompt_tokens == 276
            history.append('bot', reply)
            server.kept.clear()  # as when its cache is full, or it has started again
            before = len(server.requests)
            reply = ask(seeing, 'Still there?', history).wait(10)
            assert reply.finish_reason == 'stop' and sent() == ('data:image', name)
            assert len(server.requests) - before == 2 and '0 failed' in seeing.stats['servers'][server.url]


@pytest.mark.parametrize('fault', ['silent', 'reset', 'error_body'])
def test_a_picture_is_sent_again_only_if_the_server_reports_an_error(fault):
    image = pytest.importorskip('PIL.Image')
    with ScriptedServer() as server:
        server.sees, server.kept = True, set()
        with open_servers(server, first_token_timeout=0.5) as seeing:
            history = ChatHistory(seeing)
            history.append('user', image=image.new('RGB', (40, 30), (10, 200, 30)))
            history.append('bot', ask(seeing, 'What colour?', history).wait(10))
            server.requests.clear()
            server.faults.append(fault)
            reply = ask(seeing, 'And now?', history).wait(20)
            assert reply.finish_reason == 'stop' and not server.faults
            parts = [body['messages'][0]['content'][0] for _, body in server.requests]
            assert [part['image_url'] is None for part in parts] == [True, fault != 'error_body']


# --- fleets ---


def test_conversations_stay_at_their_server_and_spread_over_the_others():
    with ScriptedServer() as a, ScriptedServer() as b, open_servers(a, b) as model:
        a.requests.clear()
        b.requests.clear()
        histories = [ChatHistory(model) for _ in range(6)]
        for _ in range(3):
            for history in histories:
                history.append('bot', ask(model, 'hello', history).wait(10))
        for server in (a, b):
            sessions = [headers['x-session-id'] for headers, _ in server.requests]
            assert len(sessions) == 9 and len(set(sessions)) == 3


def test_what_a_server_refuses_for_now_waits_here_by_priority():
    with ScriptedServer(delay=0.01, words=30) as server, open_servers(server) as model:
        server.one_at_a_time = True
        first = ask(model, 'first')
        next(first)
        replies = [ask(model, f'priority {n}', priority=n) for n in (1, 3, 2)]
        wait(lambda: all(reply.served_by for reply in replies) or model.stats['waiting'] == 3)
        order = []
        for reply in [first, *replies]:
            threading.Thread(target=lambda r=reply: order.append((r.wait(30), time.monotonic()))).start()
        wait(lambda: len(order) == 4, 30)
        assert all(reply.finish_reason == 'stop' for reply, _ in order)
        asked = [' '.join(reply.text.split()[2:4]) for reply, _ in order]
        assert server.most_open == 1 and asked[1:] == [f'priority {n}' for n in (3, 2, 1)], asked


def robots(model, count, text='tell', **options):
    """As many conversations at once; returns their replies when all have begun."""
    replies = [ask(model, f'{text} {n}', **options) for n in range(count)]
    for reply in replies:
        next(reply)
    return replies


def test_a_server_that_dies_costs_its_own_replies_and_is_used_again_when_it_is_back():
    with ScriptedServer(delay=0.01, words=100) as a, ScriptedServer(delay=0.01, words=100) as b:
        with open_servers(a, b) as model:
            replies = robots(model, 8)
            on_a = [reply for reply in replies if a.url in reply.served_by]
            assert len(on_a) == 4
            a.stop()
            for reply in replies:
                reply.wait(30)
                if reply in on_a:
                    assert reply.finish_reason == 'error' and a.url in reply.error
                else:
                    assert reply.finish_reason == 'stop'
            a_requests = len(a.requests)
            for reply in robots(model, 8):
                reply.wait(30)
                assert reply.finish_reason == 'stop' and b.url in reply.served_by
            assert model.stats['servers'][a.url].startswith('down')
            a.start()
            wait(lambda: model.stats['servers'][a.url].startswith('up'), 30)
            assert len(a.requests) == a_requests
            assert {reply.wait(30).served_by for reply in robots(model, 8)} == {
                f'{MODEL}@{a.url}',
                f'{MODEL}@{b.url}',
            }


def test_one_server_that_stops_and_comes_back_is_asked_again_at_once():
    with ScriptedServer() as server, open_servers(server) as model:
        history = ChatHistory(model)
        history.append('bot', ask(model, 'one', history).wait(10))
        server.stop()
        reply = ask(model, 'two', history).wait(20)
        assert reply.finish_reason == 'error' and 'cannot be reached' in reply.error
        history.pop()
        server.start()
        reply = ask(model, 'three', history).wait(20)
        assert reply.finish_reason == 'stop' and len(server.requests[-1][1]['messages']) == 3
        server.stop()
        assert ask(model, 'four').wait(20).finish_reason == 'error'
        server.models_fail = True
        server.start()
        assert ask(model, 'five').wait(20).finish_reason == 'stop', 'it replies without a list of models'


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
    """Tokenizer files in which each byte is a token, 3 higher than its value."""
    tokenizers = pytest.importorskip('tokenizers')
    from tokenizers import decoders, models, pre_tokenizers

    characters = byte_characters()
    assert set(characters) == set(pre_tokenizers.ByteLevel.alphabet())
    specials = ['<pad>', '<end>', '<bot>']
    vocabulary = {text: n for n, text in enumerate([*specials, *characters])}
    made = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(specials)
    folder = tmp_path_factory.mktemp('tokenizer')
    made.save(str(folder / 'tokenizer.json'))
    template = (
        "{% for m in messages %}{{ m['content'] }}<end>{% endfor %}"
        '{% if add_generation_prompt %}<bot>{% endif %}'
    )
    settings = {'eos_token': '<end>', 'chat_template': template}
    (folder / 'tokenizer_config.json').write_text(json.dumps(settings))
    return str(folder)


def byte_characters():
    """The characters by which byte-level vocabularies write the bytes 0 to 255."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [n for n in range(256) if n not in plain]
    return [chr(n) if n in plain else chr(256 + others.index(n)) for n in range(256)]


def test_with_ids_a_reply_that_breaks_off_continues_elsewhere_exactly(tokenizer):
    story = ''.join(f'word {n}, ' for n in range(12))
    with ScriptedServer(kind='vllm', delay=0.003, words=12) as a:
        with ScriptedServer(kind='vllm', delay=0.003, words=12) as b:
            with open_servers(a, b, tokenizer=tokenizer) as model:
                assert model.engine.can.way == 'ids' and model.engine.can.priority
                replies = robots(model, 8, priority=5, max_new_tokens=500)
                assert {server.requests[-1][1]['priority'] for server in (a, b)} == {-5}
                broken = [reply for reply in replies if a.url in reply.served_by]
                a.stop()
                for reply in replies:
                    reply.wait(30)
                    assert (reply.finish_reason, reply.text) == ('stop', story), reply.error
                    assert reply.tokens == model.tokenize(story) and b.url in reply.served_by
                assert len(broken) == 4
                a.start()
            with open_servers(a, b, tokenizer=tokenizer, resume_replies=False) as model:
                replies = robots(model, 4, max_new_tokens=500)
                b.stop()
                ends = sorted(reply.wait(30).finish_reason for reply in replies)
                assert ends == ['error', 'error', 'stop', 'stop']
                for reply in replies:
                    assert story.startswith(reply.text) and model.detokenize(reply.tokens) == reply.text


def test_with_ids_the_next_turn_sends_the_ids_that_were_delivered(tokenizer):
    with ScriptedServer(kind='vllm', delay=0.001, words=12) as server:
        with open_servers(server, tokenizer=tokenizer) as model:
            cache = KVCache()
            reply = model.generate('go<', kv_cache=cache, max_new_tokens=400)
            for _ in range(5):
                next(reply)
            reply.stop()
            held = [*model.tokenize('go<'), *reply.tokens]
            assert list(cache.entries) == held and len(reply.tokens) == 5
            model.generate('more', kv_cache=cache, max_new_tokens=3).wait(10)
            assert server.requests[-1][1]['prompt'] == [*held, *model.tokenize('more')]
            long = model.generate('x' * 4090 + 'y' * 6, max_new_tokens=3).wait(10)
            assert long.finish_reason == 'refused' and '4096' in long.error
    with ScriptedServer(kind='vllm') as server:
        with open_servers(server, server_input='messages') as model:
            assert model.engine.can.way == 'messages'
        with pytest.raises(BackendError, match='server_input=ids is not possible'):
            open_servers(server, server_input='ids')


@pytest.mark.parametrize('block, context', [(16, 4096), (128, 4096), (32, 128)])
def test_reuse_in_blocks_of_any_size_is_found(tokenizer, block, context):
    with ScriptedServer(kind='vllm', context=context) as server:
        server.block = block
        with open_servers(server, tokenizer=tokenizer) as model:
            assert 'reuse figures: yes' in model.stats['server']
        prompts = [body['prompt'] for _, body in server.requests if isinstance(body.get('prompt'), list)]
        assert max(map(len, prompts)) < context


def test_replicas_of_vllm_behind_a_router_are_known_as_such(tokenizer):
    with ScriptedServer(kind='vllm') as server:
        server.owner, server.replicas, server.block = 'organization-owner', 2, 32  # as Ray Serve LLM
        server.samples = True
        with open_servers(server, tokenizer=tokenizer) as model:
            can = model.engine.can
            assert (can.kind, can.way, can.reuse, can.priority, can.missing) == (
                'vLLM',
                'ids',
                True,
                True,
                [],
            )


def test_a_server_that_only_gives_ids_as_vllm_does_is_not_said_to_have_its_options(tokenizer):
    with ScriptedServer(kind='vllm') as server:
        server.owner = 'someone'
        with open_servers(server, tokenizer=tokenizer) as model:
            can = model.engine.can
            assert (can.way, can.options, can.continues, can.priority) == ('ids', {}, None, False)
            assert can.missing and can.forms


def test_ids_beyond_the_limit_are_cut_off_with_their_text(tokenizer):
    text = 'Hello there'
    choice = {'index': 0, 'text': text, 'token_ids': [byte + 3 for byte in text.encode()] + [1]}
    events = f'data: {json.dumps({"choices": [choice]})}\n\n'
    head = 'HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n'
    with ScriptedServer(kind='vllm') as server, open_servers(server, tokenizer=tokenizer) as model:
        server.faults.append((head + events).encode())
        reply = ask(model, 'hello', max_new_tokens=5).wait(20)
        assert (reply.text, reply.finish_reason, reply.error) == ('Hello', 'length', None)
        assert reply.tokens == [byte + 3 for byte in b'Hello']


@pytest.mark.parametrize(
    'ids, words',
    [
        ([], 'text without token ids: set server_input to messages'),
        (None, 'text without token ids'),
        ([75, 259], "token id 259, but the tokenizer's highest id is 258"),
        ([2**31 - 1], 'set tokenizer to the files of its model'),
    ],
)
def test_ids_that_the_next_prompt_could_not_hold_end_the_reply(tokenizer, ids, words):
    choices = [{'text': 'Hi', 'token_ids': ids}, {'text': '', 'token_ids': [1], 'finish_reason': 'stop'}]
    events = ''.join(f'data: {json.dumps({"choices": [choice]})}\n\n' for choice in choices)
    head = 'HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n'
    with ScriptedServer(kind='vllm') as server, open_servers(server, tokenizer=tokenizer) as model:
        server.faults += [(head + events).encode()] * 2  # it is asked again
        history = ChatHistory(model)
        reply = ask(model, 'hello', history, max_new_tokens=5).wait(20)
        assert (reply.text, reply.finish_reason) == ('', 'error') and words in reply.error
        history.append('bot', reply)
        assert ask(model, 'again', history, max_new_tokens=5).wait(20).finish_reason == 'length'


def test_servers_of_a_fleet_that_have_different_models_are_told(tokenizer, caplog):
    with ScriptedServer(kind='vllm') as a, ScriptedServer(kind='vllm') as b:
        b.name = 'other\n'
        with open_servers(a, b) as model:
            wait(lambda: all(line.startswith('up') for line in model.stats['servers'].values()))
        assert 'has the model' in caplog.text and 'replies may come from either' in caplog.text
        b.name, b.shift = a.name, 4
        b.not_ready = 2  # so that the other is asked first
        with open_servers(a, b, tokenizer=tokenizer) as model:
            wait(lambda: 'is not that of scripted, which another server has' in model.stats['servers'][b.url])
            assert model.stats['servers'][a.url].startswith('up')


def switch(on: bool) -> str:
    """Switch the lamp."""
    return f'it is {on}'


def stop() -> str:
    """Stop the robot at once."""
    return 'stopped'


@pytest.mark.parametrize(
    'stop, text', [('.<pad>', 'Hi'), ('<pad>x', 'Hi.'), ('.<end>', 'Hi.xy'), ('<pad>.', 'Hi.xy.')]
)
def test_a_stop_string_with_special_tokens_stops_at_their_ids(tokenizer, stop, text):
    with ScriptedServer(kind='vllm') as server, open_servers(server, tokenizer=tokenizer) as model:
        server.story = 'Hi.\0xy.'
        reply = ask(model, 'Say hi.', stop_tokens=[stop]).wait(20)
        assert (reply.finish_reason, reply.text) == ('stop', text), reply.error
        assert model.detokenize(reply.tokens) == text


def test_a_call_is_held_to_its_form_from_where_it_begins(tokenizer):
    with ScriptedServer(kind='vllm') as server, open_servers(server, tokenizer=tokenizer) as model:
        assert 'calls of tools: held to their form' in model.stats['server']
        server.story = 'I will. <tool_call>\nThis is no call.'
        for choice, text, kinds in (
            ('auto', 'I will. ', [None, 'choice', 'json']),
            ('required', '', ['choice', 'json']),
            ('switch', '', ['json']),
            ('stop', '', []),
            ('none', server.story, [None]),
        ):
            server.requests.clear()
            history = ChatHistory(model, tools=[switch, stop])
            history.append('user', 'Switch it on.')
            prompt, _ = history.embed_chat()
            form = history.call_form(choice)
            reply = model.generate(prompt, kv_cache=history.kv_cache, calls=form, max_new_tokens=200).wait(20)
            assert (reply.finish_reason, reply.text) == ('stop', text), reply.error
            asked = [body.get('structured_outputs') for _, body in server.requests]
            assert [form and next(iter(form)) for form in asked] == kinds
            name, arguments = ('stop', {}) if choice == 'stop' else ('switch', {'on': True})
            assert [(each.name, each.arguments) for each in reply.calls] == [(name, arguments)] * (
                choice != 'none'
            )
            history.append('bot', reply)
            assert list(history.kv_cache.entries) == [*prompt.entries, *reply.tokens]
            for (_, before), (_, body) in zip(server.requests, server.requests[1:]):
                assert body['prompt'][: len(before['prompt'])] == before['prompt']
        server.keeps_connections, server.delay = True, 0.01
        replies = [model.generate(prompt, max_new_tokens=200) for _ in range(3)]
        for reply in replies:
            next(reply)
        assert all(reply.wait(20).finish_reason == 'stop' for reply in replies)  # on three connections
        server.keeps_connections, server.delay = False, 0.0
        server.faults[:] = [None, 'closed', 'closed']  # as when a kept connection ends just before its use
        reply = model.generate(prompt, calls=history.call_form('auto'), max_new_tokens=200).wait(20)
        assert len(reply.calls) == 1 and '0 failed' in model.stats['servers'][server.url], reply.error
        cut = model.generate(prompt, calls=history.call_form('auto'), max_new_tokens=30).wait(20)
        assert (cut.finish_reason, cut.text, cut.calls) == ('length', 'I will. ', ())
        server.follows_forms = False
        with open_servers(server, tokenizer=tokenizer) as other:
            assert 'calls of tools: only checked' in other.stats['server']
            history = ChatHistory(other, tools=[switch, stop])
            history.append('user', 'Switch it on.')
            prompt, _ = history.embed_chat()
            reply = other.generate(prompt, calls=history.call_form('required'), max_new_tokens=99).wait(20)
            assert reply.finish_reason == 'refused' and 'tool_choice=required' in reply.error
            assert 'tool_choice=required' in other.engine.refusal(GenerationConfig(), demands_call=True)
            reply = other.generate(prompt, calls=history.call_form('auto'), max_new_tokens=99).wait(20)
            assert (reply.finish_reason, reply.text, reply.calls) == ('stop', 'I will. ', ())
