"""The web page's server over HTTP: hosts, origins, the token, headers, and requests that are not valid."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import struct
import time
import zlib
from pathlib import Path

import pytest

aiohttp = pytest.importorskip('aiohttp', reason='the page needs aiohttp')

from web_site import Program, Site  # noqa: E402

pytestmark = pytest.mark.ros


@pytest.fixture(scope='module')
def site():
    site = Site()
    yield site
    site.close()


def get(address, **options):
    async def fetch():
        async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
            async with session.get(address, allow_redirects=False, **options) as response:
                return response.status, dict(response.headers), await response.text()

    return asyncio.run(fetch())


def talk(address, *requests, origin=None, until='done', **options):
    """Send requests to the socket; return the answers of kind `until`, one each."""

    async def converse():
        own = address.rstrip('/')
        async with aiohttp.ClientSession() as session:
            headers = {'Origin': own if origin is None else origin, **options.pop('headers', {})}
            async with session.ws_connect(own + '/socket', headers=headers, **options) as socket:
                answers, events = [], []
                for request in requests:
                    await (socket.send_bytes if isinstance(request, bytes) else socket.send_str)(request)
                while len(answers) < len(requests) or not events:
                    batch = (await asyncio.wait_for(socket.receive(), 30)).json()
                    events += batch
                    answers += [event for event in batch if event['type'] in (until, 'uploaded')]
                return answers, events

    return asyncio.run(converse())


def ask(**fields):
    return json.dumps({'do': 'ask', 'robot': '/r1/nanochat', 'text': 'Hi', 'n': 1, **fields})


def wait_for_robots(site):
    for _ in range(100):
        _, events = talk(site.address)
        robots = [robot for event in events if event['type'] == 'fleet' for robot in event['robots']]
        if {'r1', 'r2'} <= {robot['name'] for robot in robots if robot['present']}:
            return
        asyncio.run(asyncio.sleep(0.2))
    raise AssertionError('the robots do not appear')


def test_the_server_and_its_transport_have_niceness_5(site):
    niceness, names = {}, {}
    for task in Path(f'/proc/{site.web.process.pid}/task').iterdir():
        with contextlib.suppress(OSError):  # a thread that has just ended
            names[int(task.name)] = (task / 'comm').read_text()
            niceness[int(task.name)] = os.getpriority(os.PRIO_PROCESS, int(task.name))
    main = site.web.process.pid
    # Threads that are called like the program may be those of NumPy, which start with its import.
    named = [task for task in niceness if names[task] != names[main]]
    assert named, names
    assert {niceness[task] for task in (main, *named)} == {max(5, os.getpriority(os.PRIO_PROCESS, 0))}


def test_every_response_has_the_policy(site):
    for path, status in (('', 200), ('static/js/main.js', 200), ('nothing', 404), ('pictures/x', 404)):
        found, headers, _ = get(site.address + path)
        assert found == status
        assert "default-src 'none'" in headers['Content-Security-Policy']
        assert headers['X-Content-Type-Options'] == 'nosniff'
        assert headers['Cross-Origin-Resource-Policy'] == 'same-origin'


@pytest.mark.parametrize(
    'path', ['static/../server.py', 'static/%2e%2e/server.py', 'static/', '../etc/passwd']
)
def test_nothing_but_the_files_of_the_page_is_served(site, path):
    status, _, text = get(site.address + path)
    assert status in (403, 404) and 'import' not in text


def test_a_foreign_name_is_refused(site):
    status, _, text = get(site.address, headers={'Host': 'evil.example'})
    assert status == 403 and text.count('\n') == 1 and 'not served under that name' in text


@pytest.mark.parametrize('origin', ['http://evil.example', 'http://127.0.0.1:1', 'null', ''])
def test_the_socket_is_refused_to_other_origins(site, origin):
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        talk(site.address, origin=origin)
    assert refused.value.status == 403


def test_requests_that_are_not_valid_get_one_line_each_and_the_page_goes_on(site):
    wait_for_robots(site)
    wrong = [
        'no json',
        '[]',
        '{"n": 1}',
        '{"do": "format", "robot": "/r1/nanochat"}',
        ask(robot='/nowhere'),
        ask(robot=7),
        ask(text='x' * 60_000),
        ask(image_mode='always'),
        ask(pictures=['unknown']),
        ask(pictures='unknown'),
        ask(response_format='secret.lark'),
        ask(response_format='{"type": "nothing"}'),
        '[' * 50_000,
        json.dumps({'do': 'show', 'robot': '/nowhere'}),
    ]
    answers, _ = talk(site.address, *wrong)
    for request, answer in zip(wrong, answers, strict=True):
        assert answer['error'] and '\n' not in answer['error'], request
    answers, _ = talk(site.address, b'no picture at all', b'')
    assert 'image' in answers[0]['error'] and 'empty' in answers[1]['error']


def test_requests_in_a_flood_are_refused(site):
    answers, _ = talk(site.address, *[json.dumps({'n': n}) for n in range(60)])
    assert sum('too many requests' in answer['error'] for answer in answers) >= 30
    assert [answer['n'] for answer in answers] == list(range(60))  # so that the page shows which was refused


def test_a_page_that_floods_without_listening_takes_no_memory_and_holds_up_nobody(site):
    def memory():
        return int(Path(f'/proc/{site.web.process.pid}/statm').read_text().split()[1]) * 4096

    async def flood():
        own = site.address.rstrip('/')
        async with aiohttp.ClientSession() as session:
            async with session.ws_connect(f'{own}/socket', headers={'Origin': own}) as socket:
                until = time.monotonic() + 1.0
                with contextlib.suppress(asyncio.TimeoutError, ConnectionError):
                    while time.monotonic() < until:  # 3.10 has no asyncio.timeout
                        await asyncio.wait_for(socket.send_str('{}' + ' ' * 50_000), 0.5)
                return await asyncio.to_thread(talk, site.address, json.dumps({'do': 'x', 'n': 1}))

    talk(site.address, '{}')
    before = memory()
    answers, _ = asyncio.run(flood())
    assert 'error' in answers[0] and memory() - before < 64 << 20


def test_a_message_that_is_too_large_closes_only_its_page(site):
    async def send():
        own = site.address.rstrip('/')
        async with aiohttp.ClientSession() as session:
            async with session.ws_connect(f'{own}/socket', headers={'Origin': own}) as socket:
                with contextlib.suppress(ConnectionError):  # it is closed before all of it is sent
                    await socket.send_bytes(bytes((16 << 20) + 2000))
                while not socket.closed:
                    await asyncio.wait_for(socket.receive(), 30)

    asyncio.run(send())
    assert talk(site.address, '{}')[0][0]['error']


def test_a_picture_that_would_fill_the_memory_is_refused(site):
    def chunk(kind, data):
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

    header = struct.pack('>IIBBBBB', 40_000, 40_000, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(1 + 40_000 // 8) * 2000)
    bomb = b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', rows) + chunk(b'IEND', b'')
    answers, _ = talk(site.address, bomb, until='uploaded')
    assert 'pixels' in answers[0]['error'] and '\n' not in answers[0]['error'], answers


def test_another_address_needs_the_token_that_is_printed_once(site):
    open_site = Program('web', '--port', '0', '--host', '0.0.0.0')
    try:
        printed = open_site.wait_for('the page: ').split('the page: ')[1].strip()
        token = printed.partition('?token=')[2]
        address = f'http://127.0.0.1:{printed.split(":")[2].partition("/")[0]}/'
        assert len(token) >= 32
        for path in ('', 'static/js/main.js', 'socket', '?token=wrong'):
            status, _, text = get(address + path, headers={'Origin': address.rstrip('/')})
            assert status == 401 and 'token' in text and token not in text
        status, headers, _ = get(f'{address}?token={token}')
        assert status == 302 and headers['Location'] == '/'
        cookie = headers['Set-Cookie']
        assert 'HttpOnly' in cookie and 'SameSite=Strict' in cookie
        assert headers['Referrer-Policy'] == 'no-referrer'
        name_and_value = cookie.partition(';')[0]
        assert get(address, headers={'Cookie': name_and_value})[0] == 200
        _, events = talk(address, headers={'Cookie': name_and_value})
        assert events[0]['type'] == 'fleet'
    finally:
        assert open_site.stop() == 0
    assert sum(token in line for line in open_site.lines) == 1


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason='needs IPv6')
def test_all_of_ipv6_includes_ipv4_as_our_name_may_stand_for_either():
    both = Program('web', '--port', '0', '--host', '::')
    try:
        port = both.wait_for('the page: ').split('/?token=')[0].rpartition(':')[2]
        for host in ('127.0.0.1', '[::1]'):
            assert get(f'http://{host}:{port}/')[0] == 401
    finally:
        assert both.stop() == 0


@pytest.mark.parametrize(
    'arguments, reason',
    [
        (['--port', '70000'], 'port=70000 is not valid'),
        (['--host', ' '], 'host='),
        (['--host', 'no.such.host.invalid', '--port', '0'], 'cannot listen on no.such.host.invalid:0'),
        (['--camera-rate', '0'], 'camera_rate=0'),
    ],
)
def test_a_wrong_argument_is_one_line(run_program, arguments, reason):
    code, _, error = run_program('web', *arguments)
    assert code == 1 and reason in error and error.strip().count('\n') == 0


def test_a_port_in_use_is_one_line(site, run_program):
    port = site.address.rstrip('/').rpartition(':')[2]
    code, _, error = run_program('web', '--port', port)
    assert code == 1 and f'cannot listen on 127.0.0.1:{port}' in error and error.strip().count('\n') == 0
