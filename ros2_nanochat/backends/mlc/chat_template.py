"""Translates what an MLC-LLM folder says about conversations: end ids, and a chat template in Jinja.

Source of the form of `conv_template`: python/mlc_llm/protocol/conversation_protocol.py of mlc-llm.
"""

from __future__ import annotations

from ros2_nanochat.backends.mlc.folder import MLCFolder
from ros2_nanochat.backends.tokenizer import Tokenizer


def end_ids(folder: MLCFolder, tokenizer: Tokenizer) -> frozenset[int]:
    """Return the ids that end a reply: the tokenizer's, and those of the configuration that are special
    tokens.

    (If a model names none, mlc_llm writes 2, which is an ordinary word in many vocabularies.)
    """
    special = {token.id for token in tokenizer.special_tokens}
    by_text = {token.text: token.id for token in tokenizer.special_tokens}
    conversation = _conversation(folder)
    named = folder.config.get('eos_token_id')
    ids = [*(named if isinstance(named, list) else [named]), *(conversation.get('stop_token_ids') or ())]
    ids += [by_text.get(text) for text in conversation.get('stop_str') or ()]
    return frozenset(tokenizer.eos_token_ids) | {i for i in ids if i in special}


def chat_template(folder: MLCFolder, tokenizer: Tokenizer) -> str | None:
    """Return the Jinja source of a chat template: the tokenizer's own, else one made from `conv_template`.
    None if that is for plain completion.
    """
    if tokenizer.chat_template:
        return tokenizer.chat_template
    conversation = _conversation(folder)
    roles = conversation.get('roles') or {}
    if not any(roles.values()):
        return None
    separators = list(conversation.get('seps') or [''])
    by_id = {token.id: token.text for token in tokenizer.special_tokens}
    start = ''.join(by_id.get(i, '') for i in conversation.get('system_prefix_token_ids') or ())
    system = conversation.get('system_template', '{system_message}').replace('{function_string}', '')
    default = conversation.get('system_message') or ''
    before, placed, after = system.partition('{system_message}')
    bare = conversation.get('add_role_after_system_message', True) is False
    lines = [
        "{% if messages and messages[0]['role'] == 'system' %}"
        "{% set system = messages[0]['content'] %}{% set turns = messages[1:] %}"
        f'{{% else %}}{{% set system = {_literal(default)} %}}{{% set turns = messages %}}{{% endif %}}',
        _text(start),
        # an empty system message omits an empty template, but no other
        f'{{% set opened = system or {"true" if before + after else "false"} %}}',
        f'{{% if opened %}}{_text(before)}{"{{ system }}" if placed else ""}{_text(after)}{{% endif %}}',
        '{% for turn in turns %}',
    ]
    for word, (role, separator) in zip(
        ('if', 'elif'), (('user', separators[0]), ('assistant', separators[-1]))
    ):
        prefix = _text((roles.get(role) or '') + (conversation.get('role_content_sep') or ''))
        if bare:  # the system prompt is inside the first message, as in [INST] templates
            prefix = f'{{% if not (loop.first and opened) %}}{prefix}{{% endif %}}' if prefix else ''
        form = ((conversation.get('role_templates') or {}).get(role) or f'{{{role}_message}}').replace(
            '{function_string}', ''
        )
        head, _, tail = form.partition(f'{{{role}_message}}')
        lines.append(
            f"{{% {word} turn['role'] == '{role}' %}}{prefix}{_text(head)}"
            f"{{{{ turn['content'] }}}}{_text(tail + separator)}"
        )
    answer = (roles.get('assistant') or '') + (conversation.get('role_empty_sep') or '')
    lines.append(f'{{% endif %}}{{% endfor %}}{{% if add_generation_prompt %}}{_text(answer)}{{% endif %}}')
    return ''.join(lines)


def _conversation(folder: MLCFolder) -> dict:
    conversation = folder.config.get('conv_template')
    return conversation if isinstance(conversation, dict) else {}


def _literal(text: str) -> str:
    return '"' + text.encode('unicode_escape').decode('ascii').replace('"', '\\"') + '"'


def _text(text: str) -> str:
    return f'{{{{ {_literal(text)} }}}}' if text else ''
