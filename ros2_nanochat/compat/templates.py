"""The chat templates under NanoLLM's names, and the texts of end-of-turn tokens."""

from __future__ import annotations

import itertools

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


def stops_as_texts(core, stops):
    """Return stop tokens with a text in place of each list of ids, as a `ros2_nanochat.NanoLLM` takes them.

    Args:
        core: The model.
        stops: Ids, texts and lists of ids, or only one.
    """
    if isinstance(stops, (str, int)) or not hasattr(stops, '__iter__'):
        return stops
    special = {token.id: token.text for token in core.info.special_tokens}

    def text_of(ids) -> int | str:
        runs = [(is_special, list(run)) for is_special, run in itertools.groupby(ids, special.__contains__)]
        texts = [
            ''.join([special[i] for i in run]) if is_special else core.detokenize(run)
            for is_special, run in runs
        ]
        return ids[0] if len(ids) == 1 else ''.join(texts)

    return [text_of(stop) if isinstance(stop, (list, tuple)) else stop for stop in stops]


def ChatTemplate(model) -> AttributeDict | None:
    """Return a copy of the template for a model's name, None if unknown.

    Args:
        model: A `NanoLLM`, or the name of a model.
    """
    name = model if isinstance(model, str) else model.config.name
    found = ChatTemplates.get(find_name(name, '') or '')
    return AttributeDict(found) if found else None
