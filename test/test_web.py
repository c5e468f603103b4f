"""The web page without ROS and without a browser: who may come in, the conversation that pages show,
pictures, and that its files agree with the content security policy.
"""

from __future__ import annotations

import asyncio
import io
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import ros2_nanochat
from ros2_nanochat.web import as_json, pictures
from ros2_nanochat.web.access import HEADERS, Access, Rate, is_loopback
from ros2_nanochat.web.diagnostics import Diagnostics, whose
from ros2_nanochat.web.pictures import Album
from ros2_nanochat.web.robot_view import RobotView
from ros2_nanochat.web.turn_log import TurnLog, joined

STATIC = Path(ros2_nanochat.__file__).parent / 'web' / 'static'
FILES = sorted(path for path in STATIC.rglob('*') if path.is_file())


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


# --- who may come in ---


@pytest.mark.parametrize('host', ['127.0.0.1', '127.0.0.7', 'localhost', '::1', '[::1]'])
def test_loopback_addresses_need_no_token(host):
    assert is_loopback(host)


@pytest.mark.parametrize('host', ['0.0.0.0', '::', '192.168.1.5', 'robot.local', '10.0.0.1', ''])
def test_other_addresses_do(host):
    assert not is_loopback(host)


def test_a_loopback_server_answers_only_to_its_own_names():
    access = Access('127.0.0.1')
    assert all(map(access.knows_host, ['127.0.0.1:8080', 'localhost:9000', 'LOCALHOST', '[::1]:8080']))
    for host in ('evil.example:8080', 'localhost.evil.example', '192.168.1.5:8080', '', '[', 'a:b:c'):
        assert not access.knows_host(host), host


def test_a_server_on_the_network_answers_to_addresses_but_not_to_foreign_names():
    access = Access('0.0.0.0', 'secret')
    assert all(map(access.knows_host, ['192.168.1.5:8080', '10.1.2.3', '[fe80::1]:8080', 'localhost:8080']))
    assert not access.knows_host('evil.example:8080')


def test_only_the_page_itself_is_its_own_origin():
    access = Access('127.0.0.1')
    assert access.is_own_origin('http://127.0.0.1:8080', '127.0.0.1:8080')
    for origin in (
        None,
        '',
        'null',
        'http://evil.example',
        'http://127.0.0.1:9090',
        'http://localhost:8080',
        'file://127.0.0.1:8080',
        'http://[',
        'http://127.0.0.1:8080.evil.example',
    ):
        assert not access.is_own_origin(origin, '127.0.0.1:8080'), origin


def test_a_token_is_needed_if_there_is_one():
    assert Access('127.0.0.1').knows_token(None)
    access = Access('0.0.0.0', 'secret')
    assert access.knows_token('secret')
    assert not any(map(access.knows_token, [None, '', 'secre', 'secret2', 'sécret']))


def test_a_rate_allows_a_burst_and_then_its_share():
    clock = Clock()
    rate = Rate(per_second=2, burst=3, clock=clock)
    assert [rate.take() for _ in range(4)] == [True, True, True, False]
    clock.now += 0.6
    assert rate.take() and not rate.take()
    clock.now += 100
    assert [rate.take() for _ in range(4)] == [True, True, True, False]


# --- the files of the page ---


def test_the_page_loads_nothing_from_elsewhere_and_no_text_becomes_html():
    banned = r'innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|style='
    for path in FILES:
        text = path.read_text(encoding='utf-8')
        addresses = set(re.findall(r'https?://[\w.]+', text)) - {'http://www.w3.org'}
        assert not addresses, path
        assert not re.search(banned, text), path
        assert not re.search(r'\son\w+="', text), f'{path}: a handler in HTML, which the policy forbids'
        assert len(text.splitlines()) <= 300, path


def test_every_file_that_the_page_names_is_there():
    for path in FILES:
        text = path.read_text(encoding='utf-8')
        for name in re.findall(r'(?:src|href)="/static/([^"]+)"', text):
            assert (STATIC / name).is_file(), f'{path}: {name}'
        for name in re.findall(r"from '\./([^']+)'", text):
            assert (path.parent / name).is_file(), f'{path}: {name}'
        for name in re.findall(r"byId\('([^']+)'\)", text):
            assert f'id="{name}"' in (STATIC / 'index.html').read_text(), f'{path}: {name}'


def test_the_distribution_has_the_files_of_the_page():
    import configparser

    setup = configparser.ConfigParser()
    setup.read(Path(__file__).resolve().parents[1] / 'setup.cfg')
    patterns = setup['options.package_data']['ros2_nanochat.web'].split(', ')
    found = {path for pattern in patterns for path in STATIC.parent.glob(pattern) if path.is_file()}
    assert found == set(FILES)


def test_the_policy_allows_only_own_scripts_and_no_html_from_text():
    policy = HEADERS['Content-Security-Policy']
    assert "default-src 'none'" in policy and 'unsafe' not in policy
    assert "require-trusted-types-for 'script'" in policy and "frame-ancestors 'none'" in policy


# --- the conversation ---


def token(turn_id, index, text, **fields):
    return {
        'turn_id': turn_id,
        'index': index,
        'text': text,
        'num_tokens': 1,
        'reasoning': False,
        'last': False,
        **fields,
    }


def turn(turn_id, query, reply, reason='stop'):
    fields = {'finish_reason': reason, 'error': '', 'note': '', 'prompt_tokens': 5, 'new_tokens': 2}
    return {'turn_id': turn_id, 'query': query, 'reply': reply, 'reasoning': '', **fields}


def messages(*pairs, system=''):
    out = [('system', system)] if system else []
    for query, reply in pairs:
        out += [('user', query), ('bot', reply)] if reply else [('user', query)]
    return [{'role': role, 'text': text, 'num_images': 0} for role, text in out]


def shown(log):
    return [(item['query'], item['text'], item['state']) for item in log.conversation()['items']]


def test_a_reply_streams_into_its_question_and_ends_with_the_turn():
    log = TurnLog()
    log.asked('t', 'Hi?', [])
    assert shown(log) == [('Hi?', '', 'asked')]
    first = log.token(token('t', 0, 'He'))
    assert first[0]['type'] == 'item' and first[0]['item']['state'] == 'streaming'
    assert log.token(token('t', 1, 'llo')) == [{'type': 'piece', 'key': 't', 'text': 'llo', 'tokens': 1}]
    assert log.token(token('t', 2, '', last=True)) == []
    log.ended(turn('t', 'Hi?', 'Hello'))
    assert shown(log) == [('Hi?', 'Hello', 'ended')] and log.conversation()['tokens'] == 7
    assert log.ended(turn('t', 'Hi?', 'Hello')) == []  # its action announces it, too
    assert log.token(token('t', 3, 'late')) == [] and shown(log)[0][1] == 'Hello'


def message(**fields):
    names = dict.fromkeys(fields, '')
    return SimpleNamespace(**fields, get_fields_and_field_types=lambda: names)


def test_pieces_of_one_reply_travel_as_one():
    log = TurnLog()
    pieces = [token('t', n, text) for n, text in enumerate('abcd')]
    pieces += [token('t', 4, 'th', reasoning=True), token('t', 5, 'ink', reasoning=True), token('t', 6, 'e')]
    pieces += [token('t', 7, '', last=True), token('u', 0, 'o\ud800'), token('u', 1, 'p\ud800')]
    together = joined(message(**piece) for piece in pieces)
    assert [(each['turn_id'], each['index'], each['text'], each['num_tokens']) for each in together] == [
        ('t', 0, 'abcd', 4),
        ('t', 4, 'think', 2),
        ('t', 6, 'e', 1),
        ('t', 7, '', 1),
        ('u', 0, 'o\ufffdp\ufffd', 2),
    ]
    one_by_one = TurnLog()
    for piece in pieces:
        one_by_one.token(json.loads(json.dumps(piece).replace('\\ud800', '\\ufffd')))
    for each in together:
        log.token(each)
    assert log.conversation() == one_by_one.conversation()


def test_a_question_of_another_client_becomes_known_from_the_history():
    log = TurnLog()
    log.token(token('t', 0, 'I'))
    assert log.nameless
    log.history(messages(('Who?', '')), 3, 100)
    assert not log.nameless and shown(log) == [('Who?', 'I', 'streaming')]


def test_a_reply_that_is_heard_from_its_middle_on_is_the_one_of_the_history():
    log = TurnLog()
    log.token(token('t', 5, 'the rest of what I know'))
    log.history(messages(('Who?', 'Here is the rest of what I know.')), 3, 100)
    assert shown(log) == [('Who?', '… the rest of what I know', 'streaming')]
    log.ended(turn('t', 'Who?', 'Here is the rest of what I know.'))
    assert shown(log) == [('Who?', 'Here is the rest of what I know.', 'ended')]


@pytest.mark.parametrize(
    'heard, as_text',
    [
        (token('t', 5, ' the'), '…  the'),
        (token('t', 5, 'Hm', reasoning=True), '… '),
        (token('t', 0, 'Hm', reasoning=True), ''),
        (token('t', 0, 'On'), 'On'),
        (token('t', 5, ' the right of the chair, where'), '…  the right of the chair, where'),
    ],
    ids=['a word', 'reasoning from its middle on', 'reasoning', 'a first word', 'another text'],
)
def test_a_reply_of_which_little_was_heard_does_not_swallow_an_earlier_one(heard, as_text):
    log = TurnLog()
    log.token(heard)
    log.history(messages(('Old?', 'On the left.')), 3, 100)
    assert shown(log) == [('Old?', 'On the left.', 'past'), ('', as_text, 'streaming')]
    assert log.nameless
    log.ended(turn('t', 'New?', 'On the right.'))
    log.history(messages(('Old?', 'On the left.'), ('New?', 'On the right.')), 3, 100)
    assert [each[:2] for each in shown(log)] == [('Old?', 'On the left.'), ('New?', 'On the right.')]


def test_a_short_reply_that_the_history_had_before_its_end_is_shown_once_after_another_history():
    log, pairs = TurnLog(), [('Old?', 'On the left.'), ('Open?', 'Yes.')]
    log.token(token('t', 0, 'Yes'))
    log.history(messages(*pairs), 3, 100)
    assert log.is_doubtful('t')
    log.ended(turn('t', 'Open?', 'Yes.'))
    log.history(messages(*pairs), 3, 100)
    assert [each[:2] for each in shown(log)] == pairs and not log.is_doubtful('t')


def test_a_question_that_is_asked_again_does_not_swallow_its_first_answer():
    log = TurnLog()
    log.asked('t', 'Where?', [])
    log.history(messages(('Where?', 'On the left.')), 3, 100)
    assert shown(log) == [('Where?', 'On the left.', 'past'), ('Where?', '', 'asked')]


def test_the_history_keeps_the_figures_of_turns_that_it_has_and_drops_what_was_forgotten():
    clock = Clock()
    log = TurnLog(clock)
    for key, query in (('1', 'a'), ('2', 'b'), ('3', 'a')):
        log.ended(turn(key, query, query.upper()))
    log.ended(turn('4', 'too long', '', 'error'))
    clock.now += 60
    log.history(messages(('b', 'B'), ('a', 'A'), system='Be brief.'), 10, 100)
    event = log.conversation()
    assert event['system'] == 'Be brief.' and [item['key'] for item in event['items']] == ['2', '3', '4']
    log.history(messages(('older', 'yes'), ('a', 'A')), 10, 100)
    assert [item['state'] for item in log.conversation()['items']] == ['past', 'ended', 'ended']
    log.history([], 0, 100, anew=True)
    assert shown(log) == []


def test_a_turn_that_ended_while_the_history_was_on_its_way_stays():
    log = TurnLog()
    log.ended(turn('1', 'a', 'A'))
    log.ended(turn('2', 'b', 'B'))
    log.history(messages(('a', 'A')), 5, 100)
    assert shown(log) == [('a', 'A', 'ended'), ('b', 'B', 'ended')]


def test_messages_beside_questions_and_answers_cannot_confuse_the_log():
    log = TurnLog()
    odd = [
        {'role': 'bot', 'text': 'Welcome', 'num_images': 0},
        {'role': 'user', 'text': '', 'num_images': 1},
        {'role': 'user', 'text': 'What is it?', 'num_images': 0},
        {'role': 'bot', 'text': 'A', 'num_images': 0},
        {'role': 'tool', 'text': '{}', 'num_images': 0},
        {'role': 'bot', 'text': 'B', 'num_images': 0},
    ]
    log.history(odd, 5, 100)
    assert shown(log) == [('', 'Welcome', 'past'), ('What is it?', 'A\n\nB', 'past')]
    assert [len(item['pictures']) for item in log.conversation()['items']] == [0, 1]


def test_a_node_that_goes_takes_its_replies_along():
    log = TurnLog()
    log.asked('t', 'Hi?', [])
    log.token(token('t', 0, 'He'))
    assert log.all_lost('it has gone')[0]['item']['error'] == 'it has gone'
    assert log.token(token('t', 1, 'llo')) == [] and shown(log) == [('Hi?', 'He', 'lost')]
    log.ended(turn('t', 'Hi?', 'Hello'))  # it was only slow
    assert shown(log) == [('Hi?', 'Hello', 'ended')]


def test_the_log_is_bounded():
    log = TurnLog()
    for n in range(1000):
        log.ended(turn(str(n), 'q', 'r'))
    assert len(log.conversation()['items']) == 200
    log.history(messages(*[('q', 'r')] * 1000), 5, 100)
    assert len(log.conversation()['items']) == 200


# --- diagnostics ---


def statuses(node='/nanochat', robots=('chat',), kv='5 of 100', queue='2 of 10'):
    def status(about, **values):
        pairs = [{'key': key, 'value': value} for key, value in values.items()]
        return {
            'name': f'{node.lstrip("/")}: {about}',
            'level': 0,
            'message': 'ok',
            'hardware_id': node,
            'values': pairs,
        }

    return [status('engine', kv_tokens=kv, active='1'), *(status(about, queue=queue) for about in robots)]


def test_a_status_belongs_to_the_robot_of_its_topics():
    assert whose('/nanochat', 'chat') == ('/nanochat', 'chat')
    assert whose('/nanochat', 'robot r1') == ('/r1/nanochat', 'robot r1')
    assert whose('/fleet/brain', 'robot chatty')[0] == '/fleet/chatty/brain'
    assert whose('/nanochat', 'engine') == ('', 'engine')
    assert whose('/nanochat', 'watch door') == ('/nanochat', 'watch door')
    assert whose('/nanochat', 'r1 watch door') == ('/r1/nanochat', 'watch door')
    assert whose('/nanochat', 'robot watch door') == ('/robot/nanochat', 'watch door')
    assert whose('/nanochat', 'robot watch') == ('/watch/nanochat', 'robot watch')
    diagnostics = Diagnostics()
    diagnostics.take(statuses(robots=('robot r1', 'robot r2', 'something new')))
    assert diagnostics.of_robot('/r2/nanochat')[0] == '/nanochat'
    assert diagnostics.of_robot('/nanochat') is None
    sample = diagnostics.newest('/nanochat', '/r1/nanochat')
    assert (sample['kv'], sample['capacity'], sample['queue'], sample['active']) == (5, 100, 2, 1)


def test_observations_that_come_once_more_after_a_reload_are_shown_once():
    view = RobotView('/r1/nanochat')
    fields = {'text': '3', 'value': '3', 'number': 3.0, 'probability': 0.0, 'valid': True, 'changed': True}
    fields |= {'unchanged': False, 'in_a_row': 1, 'age': 0.1}
    seen = [{'name': 'boxes', 'index': n, 'header': {'stamp': 5.0 + n}, **fields} for n in range(50)]
    assert [len(view.observed(each)['observations']) for each in seen] == [1] * 50
    assert [len(view.observed(each)['observations']) for each in seen] == [0] * 50
    again = {**seen[0], 'header': {'stamp': 90.0}}  # its node has started anew and counts from 0
    assert len(view.observed(again)['observations']) == 1
    assert len(view.others()[2]['observations']) == 51


def test_a_node_that_sends_nothing_is_silent_and_then_forgotten():
    clock = Clock()
    diagnostics = Diagnostics(clock)
    diagnostics.take(statuses())
    assert not diagnostics.is_silent('/nanochat')
    clock.now += 5
    assert diagnostics.is_silent('/nanochat') and diagnostics.nodes()[0]['silent']
    clock.now += 100
    diagnostics.forget_old()
    assert diagnostics.nodes() == []


@pytest.mark.parametrize(
    'name, hardware',
    [
        ('lidar: scan', 'x'),
        ('car: engine', 'car'),
        ('car: engine', '/other'),
        ('car: left: engine', '/car'),
        (': engine', ''),
        ('<b>: engine', '/<b>'),
        ('car: engine', '<img src=x>'),
    ],
)
def test_diagnostics_of_others_are_ignored(name, hardware):
    diagnostics = Diagnostics()
    diagnostics.take([{'name': name, 'level': 2, 'message': '', 'hardware_id': hardware, 'values': []}])
    diagnostics.take([])
    assert diagnostics.nodes() == []


def test_no_other_node_tells_of_a_robot_whose_node_is_known():
    diagnostics = Diagnostics()
    diagnostics.take(statuses('/r1/nanochat'))  # its robot would have the same topics
    diagnostics.take(statuses(robots=('robot r1',)))
    assert diagnostics.of_robot('/r1/nanochat', '/nanochat')[0] == '/nanochat'
    assert diagnostics.of_robot('/r1/nanochat', '/r1/nanochat')[0] == '/r1/nanochat'


@pytest.mark.parametrize('number', ['9' * 5000, '²', 'nan', '-1', '1e999', ''])
def test_figures_that_are_no_numbers_count_as_none(number):
    diagnostics = Diagnostics()
    arrays = statuses(kv=f'{number} of {number}', queue=f'{number} of 3')
    arrays[0]['values'][1]['value'] = number
    diagnostics.take(arrays)
    assert diagnostics.newest('/nanochat', '/nanochat') is None
    diagnostics.take([{**arrays[0], 'values': statuses()[0]['values'][:1]}, *arrays[1:]])
    sample = diagnostics.newest('/nanochat', '/nanochat')
    assert (sample['kv'], sample['capacity'], sample['queue'], sample['active']) == (5, 100, 0, 0)
    assert not RobotView('/nanochat').shrank(number)


def test_what_robots_send_is_kept_in_bounds():
    diagnostics = Diagnostics()
    for n in range(300):
        diagnostics.take(statuses(f'/n{n}'))
    assert len(diagnostics.nodes()) <= 100
    diagnostics = Diagnostics()
    arrays = statuses()
    arrays[1] |= {
        'message': 'x' * 10**5,
        'values': [{'key': f'{n}', 'value': 'x' * 10**5} for n in range(500)],
    }
    diagnostics.take(arrays)
    assert len(json.dumps(diagnostics.nodes())) < 100_000
    log = TurnLog()
    for n in range(5):
        log.token(token('a', n, 'x' * 100_000))
    assert len(log.conversation()['items'][0]['text']) == as_json.MAX_TEXT


# --- pictures and messages ---


def png(width=400, height=200):
    from PIL import Image

    out = io.BytesIO()
    Image.new('RGB', (width, height), 'red').save(out, 'PNG')
    return out.getvalue()


def size_of(jpeg):
    from PIL import Image

    return Image.open(io.BytesIO(jpeg)).size


class Leaving:
    """The socket of a browser that leaves at the moment when it has been sent something."""

    def __init__(self):
        self._sent = asyncio.Event()

    def __aiter__(self):
        return self

    async def __anext__(self):
        await self._sent.wait()
        raise StopAsyncIteration

    async def send_str(self, text):
        self._sent.set()


def test_nothing_is_left_of_a_page_that_is_closed_while_it_is_sent_something():
    pytest.importorskip('aiohttp')
    from ros2_nanochat.web.page import Page

    async def visit():
        page = Page(Leaving())
        page.send({'type': 'fleet'})
        await page.run(None)
        await asyncio.sleep(0.05)
        return asyncio.all_tasks() - {asyncio.current_task()}

    assert not asyncio.run(visit())


def test_an_upload_passes_the_checks_of_all_images():
    assert size_of(pictures.check(png())) == (320, 160)
    assert size_of(pictures.check(png(20, 10))) == (20, 10)
    for data, reason in (
        (b'', 'empty'),
        (b'<svg onload=alert(1)>', 'SVG'),
        (png()[:200], 'cannot be decoded|truncated'),
        (b'\0' * (pictures.MAX_UPLOAD + 1), 'too large'),
        (png(3000, 2), 'too narrow'),
    ):
        with pytest.raises(ValueError, match=reason) as caught:
            pictures.check(data)
        assert '\n' not in str(caught.value)


def test_frames_are_scaled_down_for_pages():
    assert size_of(pictures.small_jpeg(np.zeros((480, 1920, 3), np.uint8), 640)) == (640, 160)
    assert size_of(pictures.small_jpeg(np.zeros((3, 2, 3), np.uint8), 640)) == (2, 3)


def test_an_album_keeps_the_latest_pictures_under_names_that_nobody_guesses():
    album = Album(kept=2)
    names = [album.add(bytes([n])) for n in range(3)]
    assert [album.get(name) for name in names] == [None, b'\x01', b'\x02']
    assert len(set(names)) == 3 and min(map(len, names)) >= 16


def test_messages_become_values_that_json_has():
    value = as_json.to_value(
        message(
            stamp=message(sec=2, nanosec=500_000_000),
            text='a\ud800b',
            ratio=float('nan'),
            level=b'\x02',
            items=[message(x=1), message(x=2)],
            numbers=np.array([1.5, 2.5]),
            long='x' * 300_000,
        )
    )
    assert value['stamp'] == 2.5 and value['text'] == 'a\ufffdb' and value['ratio'] is None
    assert value['level'] == 2 and value['items'] == [{'x': 1}, {'x': 2}] and value['numbers'] == [1.5, 2.5]
    assert len(value['long']) == as_json.MAX_TEXT
    json.dumps(value)
