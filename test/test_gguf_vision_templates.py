"""Chat templates of vision models, arranged as their authors do: the prompt is that of libmtmd for the
rendered text with a picture in place of the mark of the template.
"""

from __future__ import annotations

import os

import jinja2
import numpy as np
import pytest

pytest.importorskip('llama_cpp')
pytest.importorskip('PIL')
pytest.importorskip('gguf')

import vision_gguf
import vision_words
from vision_gguf import Reference

from ros2_nanochat import ChatHistory, NanoLLM

QWEN = """
{%- for m in messages %}
    {%- if loop.first and m.role != 'system' %}{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}
    {{- '<|im_start|>' + m.role + '\n' }}
    {%- if m.content is string %}{{ m.content }}
    {%- else %}
        {%- for part in m.content %}
            {%- if part.type == 'image' or 'image' in part or 'image_url' in part %}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' }}
            {%- elif 'text' in part %}{{ part.text }}{% endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

GEMMA = """{{ bos_token }}
{%- if messages[0].role == 'system' %}
    {%- set first = (messages[0].content if messages[0].content is string else messages[0].content[0].text) %}
    {%- set first = first + '\n\n' %}
    {%- set rest = messages[1:] %}
{%- else %}{% set first = '' %}{% set rest = messages %}{% endif %}
{%- for m in rest %}
    {%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate') }}
    {%- endif %}
    {{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}
    {{- first if loop.first else '' }}
    {%- if m.content is string %}{{ m.content | trim }}
    {%- else %}
        {%- for part in m.content %}
            {%- if part.type == 'image' %}{{ '<start_of_image>' }}
            {%- elif part.type == 'text' %}{{ part.text | trim }}{% endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""

SMOLVLM = (
    '<|im_start|>{% for m in messages %}{{ m.role | capitalize }}'
    "{% if m.content[0].type == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for line in m.content %}{% if line.type == 'text' %}{{ line.text }}"
    "{% elif line.type == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)

INTERNVL = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    '{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}'
    "{% if part.type == 'image' %}{{ '<IMG_CONTEXT>\n' }}"
    "{% elif part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

MISTRAL = """{{- bos_token }}
{%- if messages[0].role == 'system' %}
    {%- set system = messages[0].content %}{% set rest = messages[1:] %}
{%- else %}{% set rest = messages %}{% endif %}
{%- for m in rest %}
    {%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate') }}
    {%- endif %}
    {%- if m.role == 'user' %}
        {{- '[INST]' + (system + '\n\n' if loop.last and system is defined else '') }}
        {%- if m.content is string %}{{ m.content }}
        {%- else %}
            {%- for part in m.content %}
                {%- if part.type == 'text' %}{{ part.text }}
                {%- elif part.type == 'image' %}{{ '[IMG]' }}
                {%- else %}{{ raise_exception('only text and images') }}{% endif %}
            {%- endfor %}
        {%- endif %}
        {{- '[/INST]' }}
    {%- elif m.role == 'assistant' %}
        {{- m.content if m.content is string else m.content[0].text }}{{ eos_token }}
    {%- else %}{{ raise_exception('only user and assistant') }}{% endif %}
{%- endfor %}"""

LLAVA = (
    "{% for m in messages %}{% if m.role != 'system' %}{{ m.role.upper() + ': ' }}{% endif %}"
    "{% for part in m.content | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in m.content | selectattr('type', 'equalto', 'text') %}{{ part.text + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)

# Templates: of which family the files are, what the template writes for a picture, what of that the picture
# replaces, whether it takes only lists of parts.
TEMPLATES = {
    'qwen2-vl': (QWEN, '<|vision_start|><|image_pad|><|vision_end|>', False),
    'qwen3-vl': (QWEN, '<|vision_start|><|image_pad|><|vision_end|>', False),
    'gemma3': (GEMMA, '<start_of_image>', False),
    'smolvlm': (SMOLVLM, '<image>', True),
    'internvl': (INTERNVL, '<IMG_CONTEXT>', False),
    'pixtral': (MISTRAL, '[IMG]', False),
    'llava': (LLAVA, '<image>', True),
}
PICTURES = [np.asarray(vision_words.picture(n, 70 + 40 * n, 90)) for n in range(3)]

# Conversations: roles with texts and numbers of pictures.
CONVERSATIONS = {
    'picture, then text': [('user', 0, 'What is the thing?')],
    'text, then picture': [('user', 'Look at the thing:', 0)],
    'between texts, with a system prompt': [
        ('system', 'Be brief.'),
        ('user', 'This', 0, 'or that', 1, 'there?'),
    ],
    'in several turns': [
        ('user', 0, 'What is it?'),
        ('bot', 'The ball.'),
        ('user', 'And this one?', 1),
        ('bot', 'The cube.'),
        ('user', 'Which one was the first?'),
    ],
    'in the second turn, with a system prompt': [
        ('system', 'Be brief.'),
        ('user', 'Hello there.'),
        ('bot', 'Hello.'),
        ('user', 2, 'What is the thing?'),
    ],
    'only pictures': [('user', 1, 2)],
}


@pytest.fixture(scope='module')
def opened(tmp_path_factory):
    models = {}

    def of(family: str):
        if family not in models:
            folder = str(tmp_path_factory.mktemp(family))
            model, mmproj = vision_gguf.write_family(folder, family)
            # the tokenizer also puts begin-of-text before a text, as those of Gemma and Mistral do
            chat = TEMPLATES[family][0]
            vision_gguf.write_text_model(model, family, chat=chat, add_bos='bos_token' in chat)
            models[family] = (
                NanoLLM.from_pretrained(
                    model, max_context_len=1024, max_sequences=1, threads=1, flash_attention='on'
                ),
                Reference(model, mmproj),
            )
        return models[family]

    yield of
    for model, reference in models.values():
        model.close()
        reference.close()


def rendered(chat: str, conversation, only_parts: bool) -> str:
    """The text that the template writes, as transformers renders it."""

    def refuse(text):
        raise AssertionError(text)

    messages = []
    for role, *items in conversation:
        parts = [
            {'type': 'text', 'text': item} if isinstance(item, str) else {'type': 'image'} for item in items
        ]
        content = parts if only_parts or any(part['type'] == 'image' for part in parts) else items[0]
        messages.append({'role': 'assistant' if role == 'bot' else role, 'content': content})
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(chat).render(
        messages=messages,
        add_generation_prompt=True,
        bos_token='<s>',
        eos_token='<|im_end|>',
        raise_exception=refuse,
    )


def pieces_of(prompt) -> list:
    """Ids, and the number of rows in place of each picture or part of one."""
    pieces, at = [], 0
    for start, span in [*prompt.spans, (len(prompt.entries), [])]:
        pieces += prompt.entries[at:start].tolist()
        pieces += [('rows', len(span))] * bool(len(span))
        at = start + len(span)
    return pieces


@pytest.mark.parametrize('name', CONVERSATIONS)
@pytest.mark.parametrize('family', TEMPLATES)
def test_pictures_stand_where_the_template_puts_them(opened, family, name):
    chat, mark, only_parts = TEMPLATES[family]
    model, reference = opened(family)
    conversation = CONVERSATIONS[name]
    history = ChatHistory(model, system_prompt='')
    for role, *items in conversation:
        for item in items:
            content = {'text': item} if isinstance(item, str) else {'image': PICTURES[item]}
            history.append(role, **content)
    shown = [PICTURES[item] for _, *items in conversation for item in items if not isinstance(item, str)]
    text = rendered(chat, conversation, only_parts).replace(mark, '<__media__>')
    wanted = reference.pieces(text, shown)
    assert pieces_of(history.embed_chat(use_cache=False)[0]) == wanted
    assert wanted.count(model.info.bos_token_id) == ('bos_token' in chat)


def test_a_template_that_takes_only_text_gets_the_picture_before_the_question(tmp_path):
    """As of MiniCPM-V, whose template knows no pictures; its words come on a new line."""
    chat = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    model, mmproj = vision_gguf.write_family(str(tmp_path), 'smolvlm')
    vision_gguf.write_text_model(model, 'smolvlm', chat=chat)
    reference = Reference(model, mmproj)
    with NanoLLM.from_pretrained(model, max_context_len=1024, max_sequences=1, threads=1) as opened:
        history = ChatHistory(opened, system_prompt='')
        history.append('user', image=PICTURES[0], text='What is it?')
        text = '<|im_start|>user\n<__media__>\nWhat is it?<|im_end|>\n<|im_start|>assistant\n'
        assert pieces_of(history.embed_chat()[0]) == reference.pieces(text, PICTURES[:1])
    reference.close()


def test_with_a_sentencepiece_vocabulary_spaces_come_where_libmtmd_has_them(tmp_path):
    pytest.importorskip('tokenizers')
    from tiny_gguf import write_tiny_llama

    corpus = ['USER: What is the thing in the picture? ASSISTANT: It is the ball. '] * 20
    model, mmproj = os.path.join(tmp_path, 'spm.gguf'), os.path.join(tmp_path, 'mmproj-spm.gguf')
    write_tiny_llama(model, corpus, chat_template=LLAVA, control=('<image>',))
    vision_gguf.write_mmproj(mmproj, 'llava', width=32)
    reference = Reference(model, mmproj)
    conversation = CONVERSATIONS['in several turns']
    with NanoLLM.from_pretrained(model, max_context_len=1024, max_sequences=1, threads=1) as opened:
        history = ChatHistory(opened, system_prompt='')
        for role, *items in conversation:
            for item in items:
                history.append(
                    role, **({'text': item} if isinstance(item, str) else {'image': PICTURES[item]})
                )
        text = rendered(LLAVA, conversation, True).replace('<image>', '<__media__>')
        assert pieces_of(history.embed_chat()[0]) == reference.pieces(text, PICTURES[:2])
    reference.close()
