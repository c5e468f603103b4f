"""Templates that do not take every conversation: what is given is rendered first, and rearranged only if the
template refuses it or leaves something out.
"""

from __future__ import annotations

import pytest

from ros2_nanochat import ChatHistory, NanoLLM

SYSTEM, QUESTION, ANSWER, MORE = 'Be brief.', 'Where is the crate?', 'In hall B.', 'And the ladder?'
LOOP = '{% for m in M %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}'
GENERATION = '{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}'
CHATML = LOOP.replace('M', 'messages', 1) + GENERATION
NEEDS_SYSTEM = (
    "{% if messages[0].role != 'system' %}{{ raise_exception('a system message is needed') }}{% endif %}"
)
FIRST_IS_SYSTEM = '[SYS]{{ messages[0].content }}[/SYS]\n' + LOOP.replace('M', 'messages[1:]', 1) + GENERATION
DROPS_FIRST = LOOP.replace('M', 'messages[1:]', 1) + GENERATION
INFERENCE_ONLY = (
    "{% if not add_generation_prompt %}{{ raise_exception('for inference only') }}{% endif %}"
    + LOOP.replace('M', 'messages', 1).replace('{{ m.content }}', "{{ '' + m.content }}")
    + "{{ '<|im_start|>assistant\n' }}"
)
LISTS_ONLY = CHATML.replace('{{ m.content }}', '{% for part in m.content %}{{ part.text }}{% endfor %}')
ALTERNATES = (
    '{% for m in messages %}{% if loop.index0 and m.role == messages[loop.index0 - 1].role %}'
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}" + CHATML
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
DROPS_SYSTEM = CHATML.replace('<|im_start|>{{', "{% if m.role != 'system' %}<|im_start|>{{").replace(
    '<|im_end|>\n', '<|im_end|>\n{% endif %}', 1
)


@pytest.fixture(scope='module')
def model():
    with NanoLLM.from_pretrained(api='fake') as opened:
        yield opened


def rendered(model, source, *texts, system=SYSTEM) -> str:
    history = ChatHistory(model, source, system)
    for n, text in enumerate(texts):
        history.append('bot' if n % 2 else 'user', text=text)
    prompt, _ = history.embed_chat()
    text = history.template.render(history.messages)
    spelled = text.replace('<|im_start|>', '\x01').replace('<|im_end|>', '\x02')
    assert len(prompt) == len(spelled.encode())
    return text


def chatml(*turns) -> str:
    return (
        ''.join(f'<|im_start|>{role}\n{text}<|im_end|>\n' for role, text in turns) + '<|im_start|>assistant\n'
    )


TALK = (QUESTION, ANSWER, MORE)
TURNS = (('user', QUESTION), ('assistant', ANSWER), ('user', MORE))


@pytest.mark.parametrize('source', [CHATML, NEEDS_SYSTEM + CHATML, INFERENCE_ONLY, LISTS_ONLY, ALTERNATES])
def test_a_conversation_with_a_system_prompt_is_rendered_as_given(model, source):
    assert rendered(model, source, *TALK) == chatml(('system', SYSTEM), *TURNS)
    assert rendered(model, source, QUESTION) == chatml(('system', SYSTEM), ('user', QUESTION))


@pytest.mark.parametrize('source', [CHATML, INFERENCE_ONLY, LISTS_ONLY, ALTERNATES])
def test_a_conversation_without_one_is_rendered_as_given(model, source):
    assert rendered(model, source, *TALK, system='') == chatml(*TURNS)


def test_a_template_that_needs_a_system_prompt_gets_an_empty_one(model):
    assert rendered(model, NEEDS_SYSTEM + CHATML, *TALK, system='') == chatml(('system', ''), *TURNS)


def test_a_template_that_needs_words_in_it_says_so(model):
    source = NEEDS_SYSTEM.replace("!= 'system'", "!= 'system' or not messages[0].content") + CHATML
    assert rendered(model, source, *TALK) == chatml(('system', SYSTEM), *TURNS)
    with pytest.raises(ValueError, match='a system message is needed'):
        rendered(model, source, *TALK, system='')


def test_a_template_that_reads_the_first_message_as_the_system_prompt_keeps_the_question(model):
    with_system = f'[SYS]{SYSTEM}[/SYS]\n' + chatml(*TURNS)
    assert rendered(model, FIRST_IS_SYSTEM, *TALK) == with_system
    assert rendered(model, FIRST_IS_SYSTEM, *TALK, system='') == '[SYS][/SYS]\n' + chatml(*TURNS)
    assert rendered(model, DROPS_FIRST, *TALK, system='') == chatml(*TURNS)


@pytest.mark.parametrize('source', [NO_SYSTEM + CHATML, DROPS_SYSTEM])
def test_a_system_prompt_without_a_place_goes_to_the_first_question(model, source):
    asked = ('user', f'{SYSTEM}\n\n{QUESTION}')
    assert rendered(model, source, *TALK) == chatml(asked, *TURNS[1:])
    assert rendered(model, source, *TALK, system='') == chatml(*TURNS)


def test_two_questions_in_a_row_are_two_turns_unless_that_is_refused(model):
    def two(source):
        history = ChatHistory(model, source, SYSTEM)
        history.append('user', text=QUESTION)
        history.append('user', text=MORE)
        return history.template.render(history.messages)

    assert two(CHATML) == chatml(('system', SYSTEM), ('user', QUESTION), ('user', MORE))
    assert two(ALTERNATES) == chatml(('system', SYSTEM), ('user', f'{QUESTION}\n{MORE}'))
    assert two(NO_SYSTEM + ALTERNATES) == chatml(('user', f'{SYSTEM}\n\n{QUESTION}\n{MORE}'))


def test_a_template_that_writes_contents_in_another_way_is_taken_as_it_is(model):
    source = CHATML.replace('{{ m.content }}', "{{ m.content | trim | replace('.', '!') }}")
    expected = chatml(('system', SYSTEM), *TURNS).replace('.', '!')
    assert rendered(model, source, *TALK) == expected


PARTS = '{% for part in m.content %}{{ part.text }}{% endfor %}'


@pytest.mark.parametrize('roles', ["['user']", "['assistant']", "['user', 'assistant']", "['system']"])
def test_a_template_may_take_parts_for_some_roles_and_strings_for_others(model, roles):
    content = f'{{% if m.role in {roles} %}}{PARTS}{{% else %}}{{{{ m.content }}}}{{% endif %}}'
    source = CHATML.replace('{{ m.content }}', content)
    assert rendered(model, source, *TALK) == chatml(('system', SYSTEM), *TURNS)
    assert rendered(model, source, QUESTION, system='') == chatml(('user', QUESTION))
    history = ChatHistory(model, source)
    history.append('user', QUESTION)
    history.append('bot', 'In hall')  # words that go on
    assert model.detokenize(history.embed_chat()[0].token_ids).endswith('In hall')


BY_PLACE = (
    '{% for i in range(0, messages | length, 2) %}Q: {{ messages[i].content }}\n'
    '{% if i + 1 < messages | length %}A: {{ messages[i + 1].content }}\n{% endif %}{% endfor %}'
    '{% if add_generation_prompt %}A: {% endif %}'
)


def test_a_template_that_goes_by_places_gets_turns_of_the_user_and_the_bot_only(model):
    assert rendered(model, BY_PLACE, *TALK, system='') == f'Q: {QUESTION}\nA: {ANSWER}\nQ: {MORE}\nA: '
    asked = f'{SYSTEM}\n\n{QUESTION}'
    assert rendered(model, BY_PLACE, *TALK) == f'Q: {asked}\nA: {ANSWER}\nQ: {MORE}\nA: '
    history = ChatHistory(model, BY_PLACE)
    history.append('user', QUESTION)
    history.append('user', MORE)
    assert history.template.render(history.messages) == f'Q: {QUESTION}\n{MORE}\nA: '


def test_what_no_arrangement_helps_is_refused_in_the_templates_words(model):
    with pytest.raises(ValueError, match='never mind') as caught:
        rendered(model, "{{ raise_exception('never mind\x1b[31m\n[ERROR] forged') }}", *TALK)
    assert str(caught.value).isprintable()
