"""Templates by name against the documentation of the models' authors, templates from files, images,
reasoning, and what is refused.
"""

from __future__ import annotations

import dataclasses
import json

import pytest

pytest.importorskip('transformers')

from chat_models import FAMILIES, GEMMA_3, QWEN_3, family, reference_ids
from hypothesis import given, settings
from hypothesis import strategies as st

from ros2_nanochat.chat.history import ChatHistory
from ros2_nanochat.chat.message import ChatMessage, is_image
from ros2_nanochat.chat.template.builtin import find_name
from ros2_nanochat.chat.template.chat_template import ChatTemplate
from ros2_nanochat.prompt import Preceding

TALK = [
    ChatMessage('system', text='S'),
    ChatMessage('user', text='Hello!'),
    ChatMessage('bot', text='Hi.'),
    ChatMessage('user', text='How are you?'),
]

GOLDEN = {
    # https://github.com/openai/openai-python/blob/v0.28.1/chatml.md
    'chat-ml': (
        '<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nHello!<|im_end|>\n'
        '<|im_start|>assistant\nHi.<|im_end|>\n'
        '<|im_start|>user\nHow are you?<|im_end|>\n<|im_start|>assistant\n'
    ),
    # https://huggingface.co/blog/llama2#how-to-prompt-llama-2, without the first <s>, which the tokenizer
    # puts
    'llama-2': '[INST] <<SYS>>\nS\n<</SYS>>\n\nHello! [/INST] Hi. </s><s>[INST] How are you? [/INST]',
    # https://www.llama.com/docs/model-cards-and-prompt-formats/meta-llama-3/
    'llama-3': (
        '<|start_header_id|>system<|end_header_id|>\n\n'
        'S<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHello!<|eot_id|>'
        '<|start_header_id|>assistant<|end_header_id|>\n\n'
        'Hi.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHow are you?<|eot_id|>'
        '<|start_header_id|>assistant<|end_header_id|>\n\n'
    ),
    # https://huggingface.co/TinyLlama/TinyLlama-1.1B-Chat-v1.0
    'tiny-llama': (
        '<|system|>\nS</s>\n<|user|>\nHello!</s>\n<|assistant|>\nHi.</s>\n<|user|>\n'
        'How are you?</s>\n<|assistant|>\n'
    ),
    # https://huggingface.co/princeton-nlp/Sheared-LLaMA-2.7B-ShareGPT
    'sheared-llama': (
        'S\n\n### Input:\nHello!\n\n### Response:Hi.</s>\n\n### Input:\nHow are you?\n\n### Response:'
    ),
    # https://github.com/lm-sys/FastChat/blob/main/docs/vicuna_weights_version.md#prompt-template
    'vicuna-v0': 'S\n\n### Human: Hello!\n### Assistant: Hi.\n### Human: How are you?\n### Assistant:',
    'vicuna-v1': 'S\n\nUSER: Hello!\nASSISTANT: Hi.</s>\nUSER: How are you?\nASSISTANT:',
    # https://huggingface.co/stabilityai/stablelm-zephyr-3b
    'stablelm-zephyr': (
        '<|system|>\nS<|endoftext|>\n<|user|>\nHello!<|endoftext|>\n<|assistant|>\n'
        'Hi.<|endoftext|>\n<|user|>\nHow are you?<|endoftext|>\n<|assistant|>\n'
    ),
    # https://github.com/NousResearch/Obsidian, llava/conversation.py
    'nous-obsidian': (
        '<|im_start|>system\nS\n###\n<|im_start|>user\nHello!\n###\n<|im_start|>assistant\n'
        'Hi.\n###\n<|im_start|>user\nHow are you?\n###\n'
        '<|im_start|>assistant\n'
    ),
    # https://huggingface.co/microsoft/phi-2#how-to-use; it has no system prompt
    'phi-2-chat': 'Alice: S\n\nHello!\nBob: Hi.\nAlice: How are you?\nBob:',
    'phi-2-instruct': 'Instruct: S\n\nHello!\nOutput: Hi.\nInstruct: How are you?\nOutput:',
    # https://huggingface.co/microsoft/Phi-3-mini-4k-instruct#chat-format
    'phi-3': (
        '<|system|>\nS<|end|>\n<|user|>\nHello!<|end|>\n<|assistant|>\nHi.<|end|>\n<|user|>\n'
        'How are you?<|end|>\n<|assistant|>\n'
    ),
    # https://huggingface.co/microsoft/phi-4#input-formats
    'phi-4': (
        '<|im_start|>system<|im_sep|>S<|im_end|><|im_start|>user<|im_sep|>Hello!<|im_end|>'
        '<|im_start|>assistant<|im_sep|>Hi.<|im_end|>'
        '<|im_start|>user<|im_sep|>How are you?<|im_end|><|im_start|>assistant<|im_sep|>'
    ),
    # https://ai.google.dev/gemma/docs/core/prompt-structure, without <bos>, which the tokenizer puts
    'gemma': (
        '<start_of_turn>user\nS\n\nHello!<end_of_turn>\n<start_of_turn>model\nHi.<end_of_turn>\n'
        '<start_of_turn>user\nHow are you?<end_of_turn>\n'
        '<start_of_turn>model\n'
    ),
    # PaliGemmaProcessor of transformers, for the last of these lines; it has no other turns
    'paligemma': '<s>S\nHello!\nHi.\nHow are you?\n',
    # https://docs.mistral.ai/guides/tokenization/
    'mistral': '[INST] S\n\nHello! [/INST] Hi.</s>[INST] How are you? [/INST]',
    # https://huggingface.co/deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B
    'deepseek': (
        'S<｜User｜>Hello!<｜Assistant｜>Hi.<｜end▁of▁sentence｜><｜User｜>How are you?<｜Assistant｜>'
    ),
}
SAME = {'qwen': 'chat-ml', 'qwen3': 'chat-ml', 'smollm': 'chat-ml', 'gemma-3': 'gemma'}


def model(vocabulary='llama-2', **info):
    """A model without a template of its own; its tokenizer is a family's."""
    built = family(vocabulary, with_template=False).model
    copy = type(built)(built.tokenizer, vocabulary, None, add_bos=built.info.add_bos)
    copy.info = dataclasses.replace(copy.info, **info)
    return copy


@pytest.mark.parametrize('name', ChatTemplate.names())
def test_every_named_template_writes_what_its_authors_document(name):
    assert ChatTemplate(model(), name).render(TALK) == GOLDEN[SAME.get(name, name)]


@pytest.mark.parametrize('name', ['phi-2-chat', 'phi-2-instruct'])
def test_phi_2_has_no_end_token_between_turns_though_its_vocabulary_has_one(name):
    template = ChatTemplate(model('phi-3'), name)
    assert template.render(TALK) == GOLDEN[name]
    assert set(template.stop) > model('phi-3').info.eos_token_ids


@pytest.mark.parametrize(
    'named, name',
    [
        ('llama-3', 'llama-3'),
        ('phi-3', 'phi-3'),
        ('gemma', 'gemma'),
        ('gemma-3', 'gemma-3'),
        ('mistral', 'mistral'),
        ('llama-2', 'llama-2'),
        ('qwen', 'qwen-2'),
        ('deepseek', 'deepseek'),
    ],
)
@settings(max_examples=20, deadline=None)
@given(
    words=st.lists(
        st.sampled_from(['Hello there', 'robot', '東京', '🤖 go', 'a\n\nb', 'it is']), min_size=3, max_size=3
    )
)
def test_named_templates_have_the_ids_of_the_models_own(named, name, words):
    messages = [{'role': role, 'content': text} for role, text in zip(('user', 'assistant', 'user'), words)]
    if name == 'qwen-2':
        messages.insert(0, {'role': 'system', 'content': 'You are a helpful assistant.'})
    history = ChatHistory(
        model(name, **({'add_bos': False} if name == 'phi-3' else {})), named, system_prompt=''
    )  # Phi 3 has no begin of text
    for message in messages:
        history.append(message['role'], text=message['content'])
    built = family(name)
    expected = reference_ids(built.oracle, messages)
    if named == 'deepseek':  # its own opens the reasoning for the model
        expected = expected[: expected.index(built.oracle.convert_tokens_to_ids('<think>'))]
    assert history.embed_chat()[0].entries.tolist() == expected


@pytest.mark.parametrize(
    'name, architecture, template',
    [
        ('Llama-2-7b-chat-hf', 'llama', 'llama-2'),
        ('Meta-Llama-3-8B-Instruct', 'llama', 'llama-3'),
        ('TinyLlama-1.1B-Chat-v1.0', 'llama', 'tiny-llama'),
        ('vicuna-7b-v1.5', 'llama', 'vicuna-v1'),
        ('vicuna-7b', 'llama', 'vicuna-v0'),
        ('llava-v1.6-vicuna-7b', 'llama', 'vicuna-v1'),
        ('VILA-2.7b', 'llama', 'vicuna-v1'),
        ('stablelm-zephyr-3b', 'stablelm', 'stablelm-zephyr'),
        ('Obsidian-3B-V0.5', 'stablelm', 'nous-obsidian'),
        ('Sheared-LLaMA-2.7B-ShareGPT', 'llama', 'sheared-llama'),
        ('phi-2', 'phi', 'phi-2-instruct'),
        ('Phi-3-mini-4k-instruct', 'phi3', 'phi-3'),
        ('Phi-4-mini-instruct', 'phi3', 'phi-3'),
        ('phi-4', 'phi3', 'phi-4'),
        ('gemma-2b-it', 'gemma', 'gemma'),
        ('Gemma 3 270m', 'gemma3', 'gemma-3'),
        ('Qwen2.5-0.5B-Instruct', 'qwen2', 'qwen'),
        ('Qwen3-0.6B', 'qwen3', 'qwen3'),
        ('open_llama_3b_v2', 'llama', None),
        ('llama-30b', 'llama', None),
        ('llama3.2:1b', 'llama', 'llama-3'),
        ('dolphin-2.9-llama3-8b', 'llama', 'chat-ml'),
        ('Sapphire-7b', 'llama', None),
        ('OpenHermes-2.5-Mistral-7B', 'mistral', 'chat-ml'),
        ('deepseek-coder-6.7b-instruct', 'llama', None),
        ('DeepSeek-R1-Distill-Llama-8B', 'llama', 'deepseek'),
        ('gemma-7b-it', 'gemma', 'gemma'),
        ('gemma-4-E4B-it', 'gemma4', None),
        ('Phi-4-multimodal-instruct', 'phi4mm', 'phi-3'),
        ('Llama-3-VILA1.5-8B', 'llava_llama', 'llama-3'),
        ('VILA1.5-3b', 'llava_llama', 'vicuna-v1'),
        ('llava-v1.6-mistral-7b', 'llava_mistral', 'mistral'),
        ('llava-v1.6-34b', 'llava_llama', 'chat-ml'),
        ('Mistral-7B-Instruct-v0.2', 'mistral', 'mistral'),
        ('SmolLM2-135M-Instruct', 'llama', 'smollm'),
        ('model', 'qwen2', 'qwen'),
        ('paligemma2-3b-mix-224', 'paligemma', 'paligemma'),
        ('model', 'paligemma', 'paligemma'),
    ],
)
def test_models_without_a_template_get_that_of_their_family(name, architecture, template):
    assert find_name(name, architecture) == template
    if template is not None:
        assert ChatTemplate(model(name=name, architecture=architecture)).name == template


def test_a_models_own_template_comes_first():
    built = family('qwen-3').model
    assert ChatTemplate(built).markup.source == QWEN_3


def test_an_unknown_model_or_name_is_shown_the_list():
    with pytest.raises(ValueError, match='mystery .*has no chat template.*chat-ml, .*vicuna-v1'):
        ChatTemplate(model(name='mystery', architecture='rwkv'))
    with pytest.raises(ValueError, match="there is no chat template 'lama-2'.*llama-2"):
        ChatTemplate(model(), 'lama-2')


# --- files ---

SEED_FORM = {
    'system_prompt': 'Be kind.',
    'system': '<|im_start|>system\n${MESSAGE}<|im_end|>\n',
    'user': '<|im_start|>user\n${MESSAGE}<|im_end|>\n<|im_start|>assistant\n',
    'bot': '${MESSAGE}\n',
    'stop': ['<|im_end|>', 'user:'],
}


def test_a_json_file_in_the_form_of_nanollm_makes_the_same_prompt_as_the_model_authors(tmp_path):
    """There a reply ended with its end token; here that is put where the model's is."""
    path = tmp_path / 'mine.json'
    path.write_text(json.dumps(SEED_FORM))
    built = family('qwen-2').model
    template = ChatTemplate(built, str(path))
    assert template.name == 'mine' and template.system_prompt == 'Be kind.'
    assert template.stop[0] in built.info.eos_token_ids and 'user:' in template.stop
    assert template.render(TALK) == GOLDEN['chat-ml']
    assert ChatHistory(built, SEED_FORM).system_prompt == 'Be kind.'


def test_the_first_message_has_its_own_form_behind_the_system_prompt():
    template = ChatTemplate(
        model(),
        {
            'system': 'SYS ${MESSAGE} ',
            'first': '${MESSAGE} END ',
            'user': 'U ${MESSAGE} END ',
            'bot': '${MESSAGE}. ',
        },
    )
    assert template.render(TALK) == 'SYS S Hello! END Hi.</s>. U How are you? END '
    assert template.render(TALK[1:2]) == 'U Hello! END '


def test_the_turn_of_the_bot_may_end_where_that_of_the_user_begins():
    """As in NanoLLM's template for Gemma."""
    built = model('gemma')
    end = next(token.id for token in built.info.special_tokens if token.text == '<end_of_turn>')
    built.info = dataclasses.replace(built.info, eos_token_ids=built.info.eos_token_ids | {end})
    user = '<start_of_turn>user\n${MESSAGE}<end_of_turn>\n<start_of_turn>model\n'
    template = ChatTemplate(built, {'first': user, 'user': '<end_of_turn>\n' + user, 'bot': '${MESSAGE}'})
    assert template.render(TALK) == GOLDEN['gemma'] and template.stop[0] == end


def test_a_reply_ends_where_the_next_turn_would_begin_if_nothing_else_ends_it():
    """As in GLM 4, whose turns of the bot have no end."""
    source = (
        '{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>{{ m.content }}{% endfor %}'
    )
    built = family('llama-3', with_template=False).model
    assert ChatTemplate(built, source).stop[0] == next(
        token.id for token in built.info.special_tokens if token.text == '<|start_header_id|>'
    )


def test_a_jinja_file_and_the_file_of_transformers_are_templates(tmp_path):
    built = family('qwen-3')
    (tmp_path / 'a.jinja').write_text(QWEN_3)
    (tmp_path / 'tokenizer_config.json').write_text(json.dumps({'chat_template': QWEN_3}))
    expected = ChatTemplate(built.model).prompt(TALK).entries.tolist()
    for path in tmp_path.iterdir():
        assert ChatTemplate(model('qwen-3'), str(path)).prompt(TALK).entries.tolist() == expected


@pytest.mark.parametrize(
    'name, text, says',
    [
        ('a.json', '{"user": "${MESSAGE}",\n "bot": }', r'a\.json, line 2: '),
        (
            'a.json',
            '{"user": "${MESSAGE}",\n "bot": "${MESSAGE}",\n "prefix": "x"}',
            r"a\.json, line 3: a chat template has no 'prefix'",
        ),
        (
            'a.json',
            '{"user": "${MESSAGE}",\n "bot": "nothing"}',
            r'a\.json, line 2: bot has to hold \$\{MESSAGE\} once',
        ),
        ('a.json', '{"user": "${MESSAGE}",\n "bot": 5}', r'a\.json, line 2: bot is a string, not 5'),
        ('a.json', '{"user": "${MESSAGE}"}', r"a\.json: a chat template needs 'bot'"),
        ('a.json', '[1]', r'a\.json: a chat template is an object'),
        (
            'a.json',
            '{"user": "${MESSAGE}", "bot": "${MESSAGE}",\n\n "stop": [1.5]}',
            r'a\.json, line 3: stop is a list',
        ),
        ('a.jinja', 'x\n{% for m in messages %}\n{{ m.content }', r'a\.jinja, line 3: '),
        ('a.jinja', 'x\n{% nonsense %}', r"a\.jinja, line 2: Encountered unknown tag 'nonsense'"),
    ],
)
def test_a_template_file_with_a_mistake_is_refused_with_the_line(tmp_path, name, text, says):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ValueError, match=says) as caught:
        ChatTemplate(model(), str(path))
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    'source',
    [
        '{{ messages.__class__.__mro__ }}',
        "{{ ''.__class__.__base__.__subclasses__() }}",
        '{{ messages.append(1) }}',
        '{% set ns = namespace(__init__=1) %}x',
        '{{ cycler.__init__.__globals__ }}',
    ],
)
def test_a_hostile_template_stays_in_its_sandbox(source):
    template = ChatTemplate(family('qwen-2').model, source)
    try:
        text = template.render(TALK[1:])
    except ValueError as error:
        assert 'chat template jinja' in str(error)
    else:
        assert 'class' not in text and 'object' not in text


def test_a_template_that_refuses_says_so_in_its_words():
    history = ChatHistory(family('gemma').model)
    history.append('bot', text='I begin.')
    history.append('user', text='No.')
    with pytest.raises(ValueError, match='refuses this conversation: Conversation roles must alternate'):
        history.embed_chat()
    with pytest.raises(ValueError, match='no place for the answer of a tool'):
        ChatTemplate(model(), 'phi-3').prompt([*TALK, ChatMessage('tool', text='21')])


# --- what the model wrote itself ---


def test_ids_that_the_model_sampled_stay_as_they_are():
    built = family('gemma')
    split = [
        i for letter in 'robot' for i in built.model.tokenize(letter)
    ]  # no tokenizer would make these of the word
    template = ChatTemplate(built.model)
    bot = ChatMessage('bot', text='robot', tokens=split)
    asked = template.prompt([ChatMessage('user', text='Who?')]).entries.tolist()
    again = template.prompt(
        [ChatMessage('user', text='Who?'), bot, ChatMessage('user', text='And?')]
    ).entries.tolist()
    assert again[: len(asked) + len(split)] == asked + split
    bot.text = 'robot!'
    assert template.prompt([ChatMessage('user', text='Who?'), bot]).entries.tolist() == reference_ids(
        built.oracle, [{'role': 'user', 'content': 'Who?'}, {'role': 'assistant', 'content': 'robot!'}]
    )


@pytest.mark.parametrize('name', FAMILIES)
def test_the_next_prompt_continues_right_behind_what_the_model_wrote(name):
    """So that no reply is computed twice, whatever white space the template would put around it."""
    built = family(name).model
    template = ChatTemplate(built)
    talk = [ChatMessage('user', text='Who?')]
    asked = template.prompt(talk).entries.tolist()
    sampled = built.tokenize(' It is me. ', preceding=Preceding.SPECIAL_TOKEN)
    talk += [ChatMessage('bot', text='It is me.', tokens=sampled), ChatMessage('user', text='And?')]
    later = template.prompt(talk).entries.tolist()
    if name == 'deepseek':
        asked = asked[:-2]  # the reasoning that it opened is not in the later prompt
        assert later[: len(asked)] == asked
    else:
        assert later[: len(asked) + len(sampled)] == asked + sampled


@pytest.mark.parametrize(
    'user, bot',
    [
        ('USER: ${MESSAGE}\nASSISTANT: ', '${MESSAGE}\n'),
        ('[INST] ${MESSAGE} [/INST]', ' ${MESSAGE}'),
        ('Q: ${MESSAGE}\n', 'A: ${MESSAGE}\n'),
    ],
)
def test_so_it_does_in_the_form_of_nanollm_where_the_user_ends_with_what_begins_the_reply(user, bot):
    built = model()
    template = ChatTemplate(built, {'user': user, 'bot': bot})
    talk = [ChatMessage('user', text='Who?')]
    asked = template.prompt(talk).entries.tolist()
    sampled = built.tokenize(' It is me. ', preceding=Preceding.SPECIAL_TOKEN)
    talk += [ChatMessage('bot', text='It is me.', tokens=sampled), ChatMessage('user', text='And?')]
    assert template.prompt(talk).entries.tolist()[: len(asked) + len(sampled)] == asked + sampled


def test_reasoning_is_dropped_from_later_prompts_where_the_template_drops_it():
    built = family('qwen-3')
    model, template = built.model, ChatTemplate(built.model)
    think, answer = (
        model.tokenize('<think>\nI wonder.\n</think>', special=True),
        model.tokenize('\n\nIt is me.'),
    )
    bot = ChatMessage(
        'bot', text='It is me.', tokens=think + answer, reasoning='\nI wonder.\n', num_reasoning=len(think)
    )
    user = ChatMessage('user', text='Who?')
    asked = template.prompt([user]).entries.tolist()
    assert template.prompt([user, bot]).entries.tolist()[: len(asked) + len(bot.tokens)] == asked + list(
        bot.tokens
    )
    later = template.prompt([user, bot, user]).entries.tolist()
    assert later == reference_ids(
        built.oracle,
        [
            {'role': 'user', 'content': 'Who?'},
            {'role': 'assistant', 'content': 'It is me.'},
            {'role': 'user', 'content': 'Who?'},
        ],
    )


@pytest.mark.parametrize('name', ['qwen-3', 'deepseek'])
def test_reasoning_that_was_loaded_goes_where_the_template_looks_for_it(name):
    built = family(name)
    bot = ChatMessage('bot', text='It is me.', reasoning='I wonder.')
    user = ChatMessage('user', text='Who?')
    reference = [
        {'role': 'user', 'content': 'Who?'},
        {'role': 'assistant', 'content': '<think>\nI wonder.\n</think>\n\nIt is me.'},
        {'role': 'user', 'content': 'Who?'},
    ]
    template = ChatTemplate(built.model)
    assert (
        template.prompt([user, bot, user]).entries.tolist()[:20]
        == reference_ids(built.oracle, reference)[:20]
    )
    if name == 'qwen-3':
        assert template.prompt([user, bot]).entries.tolist() == reference_ids(built.oracle, reference[:2])


def test_white_space_around_reasoning_is_left_to_the_template():
    built = family('qwen-3')
    user = ChatMessage('user', text='Who?')
    reference = [
        {'role': 'user', 'content': 'Who?'},
        {'role': 'assistant', 'content': 'It is me.', 'reasoning_content': '\nI wonder.\n'},
    ]
    talk = [user, ChatMessage('bot', text='It is me.', reasoning='\nI wonder.\n')]
    assert ChatTemplate(built.model).prompt(talk).entries.tolist() == reference_ids(built.oracle, reference)


def test_reasoning_stays_with_the_reply_where_the_template_takes_it_as_a_part_of_the_content():
    """https://docs.mistral.ai/capabilities/reasoning/: thinking chunks."""
    source = """{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]
{%- else %}
{%- if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}
{%- if part['type'] == 'thinking' %}[THINK]{{ part['thinking'] }}[/THINK]
{%- else %}{{ part['text'] }}{% endif %}
{%- endfor %}{% endif %}{{ eos_token }}{% endif %}{% endfor %}"""
    built = family('mistral', with_template=False).model
    template, user = ChatTemplate(built, source), ChatMessage('user', text='Who?')
    assert '[INST]Who?[/INST][THINK]I wonder.[/THINK]It is me.</s>[INST]Who?[/INST]' in template.render(
        [user, ChatMessage('bot', text='It is me.', reasoning='I wonder.'), user]
    )
    thought, said = (
        built.tokenize('[THINK]\nI wonder.\n[/THINK]', preceding=Preceding.SPECIAL_TOKEN),
        built.tokenize('It is me.', preceding=Preceding.TEXT),
    )
    bot = ChatMessage(
        'bot', text='It is me.', tokens=thought + said, reasoning='\nI wonder.\n', num_reasoning=len(thought)
    )
    asked = template.prompt([user]).entries.tolist()
    assert (
        template.prompt([user, bot, user]).entries.tolist()[: len(asked) + len(bot.tokens)]
        == asked + thought + said
    )


def test_markup_that_both_the_template_and_the_model_write_before_an_answer_stands_once():
    """As in gpt-oss, whose model writes the header of its messages itself."""
    source = """{% for m in messages %}
{{- '<|start_header_id|>' + m.role + '<|end_header_id|>' + m.content + '<|eot_id|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>' }}{% endif %}"""
    built = family('llama-3', with_template=False).model
    template, user = ChatTemplate(built, source), ChatMessage('user', text='Who?')
    header, said = (
        built.tokenize('assistant<|end_header_id|>', special=True, preceding=Preceding.SPECIAL_TOKEN),
        built.tokenize('It is me.', preceding=Preceding.SPECIAL_TOKEN),
    )
    bot = ChatMessage('bot', text='It is me.', tokens=header + said, num_reasoning=len(header))
    asked = template.prompt([user]).entries.tolist()
    assert (
        template.prompt([user, bot, user]).entries.tolist()[: len(asked) + len(bot.tokens)]
        == asked + header + said
    )
    assert len(template.prompt([user, bot, user])) == len(
        template.prompt([user, ChatMessage('bot', text='It is me.'), user])
    )


# --- images ---


class Parts(list):
    """What stands for an image."""

    seconds = 0.0


class Seeing:
    """A family's model that is shown images: each becomes two ids that stand for its rows."""

    def __init__(self, name, template):
        built = family(name, with_template=False).model
        self.info = dataclasses.replace(built.info, chat_template=template, add_bos=False)
        self.tokenize, self.detokenize = built.tokenize, built.detokenize
        self.has_embed, self.has_vision, self.vision = False, True, None

    def open_image(self, image):
        return image

    def embed_image(self, image):
        return Parts([[900001, 900002]])


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / 'photo.png'
    path.write_bytes(b'only its name matters here')
    return str(path)


def test_an_image_goes_where_the_template_puts_images(photo):
    seeing = Seeing('gemma-3', GEMMA_3)
    history = ChatHistory(seeing)
    history.append('user', photo)
    history.append('user', 'What <start_of_image> is this?')
    oracle = family('gemma-3').oracle
    text = oracle.apply_chat_template(
        [{'role': 'user', 'content': [{'type': 'image'}, {'type': 'text', 'text': 'What'}]}],
        tokenize=False,
        add_generation_prompt=True,
    )
    ids = history.embed_chat()[0].entries.tolist()
    assert ids.count(900001) == 1 and oracle.convert_tokens_to_ids('<start_of_image>') not in ids
    before = oracle(text.partition('<start_of_image>')[0], add_special_tokens=False)['input_ids']
    assert ids[: len(before)] == before and ids[len(before) : len(before) + 2] == [900001, 900002]


def test_an_image_stands_before_or_behind_the_text_where_the_template_knows_none(photo):
    seeing = Seeing('qwen-2', None)
    for order, expected in ((('image', 'text'), '900001, 900002'), (('text', 'image'), None)):
        history = ChatHistory(seeing, 'vicuna-v1', system_prompt='')
        for kind in order:
            history.append('user', **{kind: photo if kind == 'image' else 'Look'})
        text = history.template.render(history.messages)
        assert text == ('USER: <image>\nLook\nASSISTANT:' if expected else 'USER: Look\n<image>\nASSISTANT:')
        assert history.embed_chat()[0].entries.tolist().count(900002) == 1


def test_a_template_that_writes_parts_out_as_json_knows_no_images(photo):
    source = (
        "{% for m in messages %}{{ m.role + ': ' + "
        '(m.content if m.content is string else m.content | tojson) }}\n{% endfor %}'
    )
    history = ChatHistory(Seeing('qwen-2', source), system_prompt='')
    history.append('user', text='Look')
    history.append('user', photo)
    assert history.template.render(history.messages) == 'user: Look\n<image>\n'


def test_an_image_and_its_question_are_one_turn_where_roles_must_alternate(photo):
    history = ChatHistory(Seeing('gemma-3', GEMMA_3))
    for _ in range(3):
        history.append('user', photo)
        history.append('user', 'What is this?')
        history.append('bot', text='A photo.')
    assert history.embed_chat()[0].entries.tolist().count(900001) == 3


@pytest.mark.parametrize(
    'content, image',
    [
        ('cat.jpg', True),
        ('/data/CAT.JPEG', True),
        ('https://a.org/cat.png?size=1', True),
        ('data:image/png;base64,iVBO', True),
        ('What is in cat.jpg', False),
        ('see https://a.org/cat.png', False),
        ('Hello', False),
        ('https://a.org/cat', False),
    ],
)
def test_images_are_told_from_text(content, image):
    assert is_image(content) is image


def test_pil_images_and_arrays_are_images():
    numpy, pil = pytest.importorskip('numpy'), pytest.importorskip('PIL.Image')
    assert (
        is_image(numpy.zeros((2, 2, 3)))
        and is_image(pil.new('RGB', (2, 2)))
        and not is_image(numpy.zeros(3))
        and not is_image(5)
    )
