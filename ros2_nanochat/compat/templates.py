"""The chat templates under NanoLLM's names, and the texts of end-of-turn tokens."""

from __future__ import annotations

from ros2_nanochat.chat.template.builtin import BUILTIN, find_name
from ros2_nanochat.compat.attributes import AttributeDict

StopTokens = ['</s>', '<|endoftext|>', '<|im_end|>', '<eos>', '<|end_of_text|>', '<|eot_id|>']
"""End tokens of the models that NanoLLM runs, for `generate(stop_tokens=StopTokens)`."""

_SAME_AS = {
    'llama-3.1': 'llama-3',
    'chat-ml-tools': 'chat-ml',
    'llava-v0': 'vicuna-v0',
    'llava-v1': 'vicuna-v1',
    'llava-llama-2': 'llama-2',
}
_OTHERS: dict[str, dict] = {
    'open-llama': {'user': 'Q: ${MESSAGE}\n', 'bot': 'A: ${MESSAGE}\n', 'stop': ['\n', 'Q:']},
    'bunny': {'user': 'USER: ${MESSAGE}\n', 'bot': 'ASSISTANT: ${MESSAGE}${eos_token}\n'},
}

ChatTemplates: dict[str, AttributeDict] = {
    name: AttributeDict(template, name=name)
    for name, template in sorted(
        [
            *((name, template) for name, template in BUILTIN.items() if isinstance(template, dict)),
            *((name, dict(BUILTIN[other])) for name, other in _SAME_AS.items()),  # type: ignore[arg-type]
            *_OTHERS.items(),
        ]
    )
}
"""Each template in NanoLLM's format, by name. Copy one, change it, and pass it as `chat_template`."""


def remove_special_tokens(text: str) -> str:
    """Return a text without begin-of-text and the tokens in `StopTokens`."""
    for token in ('<s>', *StopTokens):
        text = text.replace(token, '')
    return text


def ChatTemplate(model) -> AttributeDict | None:
    """Return a copy of the template for a model's name, None if unknown.

    Args:
        model: A `NanoLLM`, or the name of a model.
    """
    name = model if isinstance(model, str) else model.config.name
    found = ChatTemplates.get(find_name(name, '') or '')
    return AttributeDict(found) if found else None
