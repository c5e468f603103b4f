"""Conversations on disk: kill -9 at any moment, damaged files."""

import random
import signal
import time

import pytest


def kill_in_mid_reply(start, listen_new, talk, folder, rounds, **parameters):
    """Ask until the node is killed at a random moment; start it again and compare what it remembers with what
    it announced.
    """
    announced = []
    for round in range(rounds):
        node = start(state_dir=str(folder), **parameters)
        ears = listen_new()
        chat = talk()
        remembered = [text for role, text in chat.history() if role != 'system']
        pairs = list(zip(remembered[::2], remembered[1::2]))
        assert len(remembered) % 2 == 0
        # A turn may be on disk that was killed before it was announced, never the other way round, and none
        # twice.
        for pair in announced:
            assert pair in pairs, (pair, pairs[-3:])
        assert len({asked for asked, _ in pairs}) == len(pairs)
        asked = 0
        until = time.monotonic() + random.uniform(0.05, 1.0)
        while time.monotonic() < until:
            before = len(ears.turns)
            ears.ask(f'question {round}.{asked}')
            asked += 1
            while len(ears.turns) == before and time.monotonic() < until:
                time.sleep(0.005)
        node.stop(signal.SIGKILL)
        time.sleep(0.1)
        announced += [
            (turn.query, turn.reply) for _, _, turn in ears.turns if turn.finish_reason in ('stop', 'length')
        ]
        ears.close()
        chat.close()
    return announced


@pytest.fixture
def listen_new():
    from conftest import Ears

    def listen():
        ears = Ears()
        ears.wait_until_connected()
        return ears

    return listen


@pytest.mark.long
def test_after_kill_9_every_announced_turn_is_there_and_none_twice(start, listen_new, talk, tmp_path):
    assert kill_in_mid_reply(
        start, listen_new, talk, tmp_path, 3, api='fake', model='tokens_per_second=300', max_context_len=8192
    )


@pytest.mark.long
def test_fifty_kills_at_random_moments(start, listen_new, talk, tmp_path):
    assert (
        len(
            kill_in_mid_reply(
                start,
                listen_new,
                talk,
                tmp_path,
                50,
                api='fake',
                model='tokens_per_second=300,context=100000',
                max_context_len=100_000,
            )
        )
        > 50
    )


@pytest.mark.long
def test_kills_on_the_real_model(start, listen_new, talk, tmp_path):
    kill_in_mid_reply(start, listen_new, talk, tmp_path, 5, model='', max_new_tokens=20)


def test_a_damaged_file_is_set_aside_and_said_and_the_others_load(start, listen, talk, tmp_path):
    node = start(state_dir=str(tmp_path), robots=['r1', 'r2'])
    ears = listen('/r1/nanochat', '/r2/nanochat')
    ears.turn('one', '/r1/nanochat')
    ears.turn('two', '/r2/nanochat')
    node.stop()
    file = tmp_path / 'r1.nanochat.json'
    file.write_bytes(file.read_bytes()[:40])
    node = start(state_dir=str(tmp_path), robots=['r1', 'r2'])
    assert [text for role, text in talk(robot='r2').history() if role == 'user'] == ['two']
    assert [text for role, text in talk(robot='r1').history() if role == 'user'] == []
    assert list(tmp_path.glob('r1.nanochat.json.damaged-*')) and 'set aside' in node.output


def test_reset_is_on_disk_too(start, listen, talk, tmp_path):
    node = start(state_dir=str(tmp_path))
    ears = listen()
    ears.turn('one')
    talk().reset('Be brief.')
    node.stop()
    start(state_dir=str(tmp_path))
    assert talk().history() == [('system', 'Be brief.')]


def test_a_restarted_node_that_kept_its_kv_reads_nothing_again(start, listen_new, talk, tmp_path):
    options = dict(model='', max_new_tokens=20, state_dir=str(tmp_path), state_kv=True)
    node, turns = start(**options), []
    for question in ('What is the capital of Japan?', 'And of France?'):
        ears = listen_new()
        turns.append(ears.turn(question))
        ears.close()
        until = time.monotonic() + 20
        while not list(tmp_path.glob('*.kv')):
            assert time.monotonic() < until, node.output
            time.sleep(0.05)
        node.stop(signal.SIGKILL)
        node = start(**options)
    first, second = turns
    assert (
        first.reused_tokens == 0
        and second.reused_tokens >= first.prompt_tokens + first.new_tokens - 1
        and 'Paris' in second.reply
    )
