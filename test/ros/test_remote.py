"""A node whose model runs on a server, over real DDS."""

import pytest

pytest.importorskip('aiohttp')

from scripted_server import MODEL, ScriptedServer


def test_a_robot_talks_through_a_server_that_stops_and_comes_back(start, listen):
    with ScriptedServer() as server:
        node = start(model=server.url, api='openai')
        assert 'talks in messages' in node.output and 'context 4096' in node.output
        ears = listen()
        turn = ears.turn('hello', timeout=60)
        assert turn.reply.startswith('You said: hello') and turn.finish_reason == 'stop'
        assert turn.served_by == f'{MODEL}@{server.url}'
        assert (turn.prompt_tokens, turn.reused_tokens) == (20, -1)
        pieces = ears.pieces(turn.turn_id)
        assert len(pieces) > 5 and ''.join(piece.text for piece in pieces) == turn.reply
        server.stop()
        broken = ears.turn('anyone there?', timeout=60)
        assert broken.finish_reason == 'error' and 'cannot be reached' in broken.error
        server.start()
        again = ears.turn('and now?', timeout=60)
        assert again.finish_reason == 'stop' and again.error == ''
        sent = server.requests[-1][1]['messages']
        said = [message['content'] for message in sent if message['role'] != 'system']
        assert said == ['hello', turn.reply, 'and now?']


@pytest.mark.parametrize(
    'options, words',
    [
        ({'response_format': 'yes | no'}, 'keeps no form of the kind choice'),
        ({'served_model': 'other'}, f'has {MODEL}'),
        ({'api_key_file': '/nowhere/key'}, 'cannot be read'),
    ],
)
def test_what_a_server_cannot_do_is_said_at_the_start(start, options, words):
    with ScriptedServer() as server:
        server.follows_forms = False
        node = start(model=server.url, api='openai', wait=False, **options)
        assert node.process.wait(60) == 1
        assert words in node.output


def test_a_password_in_an_address_is_refused_and_not_logged(start):
    node = start(model='http://me:s3cret@localhost:1/v1', api='openai', wait=False)
    assert node.process.wait(60) == 1
    assert 'must not hold a password' in node.output and 's3cret' not in node.output
