"""Built-in chat templates by name, written from the documentation of each model's authors, and the model
families that use them.

A model's own template takes precedence; these are for models without one, and for choosing by hand.
`${bos_token}` is only written where an author repeats the begin-of-text token within a conversation; at the
start, the model's tokenizer decides.
"""

from __future__ import annotations

import re

_CHAT_ML = {
    'system': '<|im_start|>system\n${MESSAGE}<|im_end|>\n',
    'user': '<|im_start|>user\n${MESSAGE}<|im_end|>\n',
    'bot': '<|im_start|>assistant\n${MESSAGE}<|im_end|>\n',
}
_HELPFUL = 'You are a helpful AI assistant.'

BUILTIN: dict[str, dict | str] = {
    # https://github.com/openai/openai-python/blob/v0.28.1/chatml.md
    'chat-ml': {'system_prompt': _HELPFUL, **_CHAT_ML, 'stop': ['<|im_end|>']},
    # https://huggingface.co/blog/llama2#how-to-prompt-llama-2 and chat_completion() in
    # https://github.com/meta-llama/llama
    'llama-2': {
        'system': '[INST] <<SYS>>\n${MESSAGE}\n<</SYS>>\n\n',
        'first': '${MESSAGE} [/INST]',
        'user': '${bos_token}[INST] ${MESSAGE} [/INST]',
        'bot': ' ${MESSAGE} ${eos_token}',
    },
    # https://www.llama.com/docs/model-cards-and-prompt-formats/meta-llama-3/
    'llama-3': {
        'system': '<|start_header_id|>system<|end_header_id|>\n\n${MESSAGE}<|eot_id|>',
        'user': '<|start_header_id|>user<|end_header_id|>\n\n${MESSAGE}<|eot_id|>',
        'bot': '<|start_header_id|>assistant<|end_header_id|>\n\n${MESSAGE}<|eot_id|>',
        'tool': '<|start_header_id|>ipython<|end_header_id|>\n\n${MESSAGE}<|eot_id|>',
        'stop': ['<|eot_id|>', '<|end_of_text|>', '<|eom_id|>'],
    },
    # https://huggingface.co/TinyLlama/TinyLlama-1.1B-Chat-v1.0
    'tiny-llama': {
        'system_prompt': 'You are a friendly chatbot who always gives helpful answers.',
        'system': '<|system|>\n${MESSAGE}</s>\n',
        'user': '<|user|>\n${MESSAGE}</s>\n',
        'bot': '<|assistant|>\n${MESSAGE}</s>\n',
    },
    # https://huggingface.co/princeton-nlp/Sheared-LLaMA-2.7B-ShareGPT
    'sheared-llama': {
        'system_prompt': (
            'You are a helpful assistant. Write a response that appropriately completes the request.'
        ),
        'system': '${MESSAGE}\n\n',
        'user': '### Input:\n${MESSAGE}\n\n',
        'bot': '### Response:${MESSAGE}${eos_token}\n\n',
        'stop': ['### Input:'],
    },
    # https://github.com/lm-sys/FastChat/blob/main/docs/vicuna_weights_version.md#prompt-template
    'vicuna-v0': {
        'system_prompt': (
            'A chat between a curious human and an artificial intelligence assistant. '
            "The assistant gives helpful, detailed, and polite answers to the human's questions."
        ),
        'system': '${MESSAGE}\n\n',
        'user': '### Human: ${MESSAGE}\n',
        'bot': '### Assistant: ${MESSAGE}\n',
        'stop': ['### Human:', '###'],
    },
    'vicuna-v1': {
        'system_prompt': (
            'A chat between a curious user and an artificial intelligence assistant. '
            "The assistant gives helpful, detailed, and polite answers to the user's questions."
        ),
        'system': '${MESSAGE}\n\n',
        'user': 'USER: ${MESSAGE}\n',
        'bot': 'ASSISTANT: ${MESSAGE}${eos_token}\n',
    },
    # https://huggingface.co/stabilityai/stablelm-zephyr-3b
    'stablelm-zephyr': {
        'system': '<|system|>\n${MESSAGE}<|endoftext|>\n',
        'user': '<|user|>\n${MESSAGE}<|endoftext|>\n',
        'bot': '<|assistant|>\n${MESSAGE}<|endoftext|>\n',
        'stop': ['<|endoftext|>'],
    },
    # https://github.com/NousResearch/Obsidian: llava/conversation.py
    'nous-obsidian': {
        'system_prompt': _HELPFUL,
        'system': '<|im_start|>system\n${MESSAGE}\n###\n',
        'user': '<|im_start|>user\n${MESSAGE}\n###\n',
        'bot': '<|im_start|>assistant\n${MESSAGE}\n###\n',
        'stop': ['###', '<|im_end|>'],
    },
    # https://huggingface.co/microsoft/phi-2#how-to-use: one text, with no end token between its turns
    'phi-2-chat': {'user': 'Alice: ${MESSAGE}\n', 'bot': 'Bob: ${MESSAGE}\n', 'stop': ['Alice:']},
    'phi-2-instruct': {
        'user': 'Instruct: ${MESSAGE}\n',
        'bot': 'Output: ${MESSAGE}\n',
        'stop': ['Instruct:'],
    },
    # https://huggingface.co/microsoft/Phi-3-mini-4k-instruct#chat-format
    'phi-3': {
        'system': '<|system|>\n${MESSAGE}<|end|>\n',
        'user': '<|user|>\n${MESSAGE}<|end|>\n',
        'bot': '<|assistant|>\n${MESSAGE}<|end|>\n',
        'stop': ['<|end|>', '<|endoftext|>'],
    },
    # https://huggingface.co/microsoft/phi-4#input-formats
    'phi-4': {
        'system': '<|im_start|>system<|im_sep|>${MESSAGE}<|im_end|>',
        'user': '<|im_start|>user<|im_sep|>${MESSAGE}<|im_end|>',
        'bot': '<|im_start|>assistant<|im_sep|>${MESSAGE}<|im_end|>',
        'stop': ['<|im_end|>'],
    },
    # https://ai.google.dev/gemma/docs/core/prompt-structure (the same up to Gemma 3; a system prompt goes
    # into the first message)
    'gemma': {
        'user': '<start_of_turn>user\n${MESSAGE}<end_of_turn>\n',
        'bot': '<start_of_turn>model\n${MESSAGE}<end_of_turn>\n',
        'stop': ['<end_of_turn>'],
    },
    # https://docs.mistral.ai/guides/tokenization/ (V1 to V3; a system prompt goes into the first message)
    'mistral': {'user': '[INST] ${MESSAGE} [/INST]', 'bot': ' ${MESSAGE}${eos_token}'},
    # https://qwen.readthedocs.io/en/latest/getting_started/concepts.html#control-tokens-chat-template
    'qwen': {
        **_CHAT_ML,
        'system_prompt': 'You are a helpful assistant.',
        'stop': ['<|im_end|>', '<|endoftext|>'],
    },
    'qwen3': {**_CHAT_ML, 'stop': ['<|im_end|>', '<|endoftext|>']},
    # https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct
    'smollm': {
        **_CHAT_ML,
        'system_prompt': 'You are a helpful AI assistant named SmolLM, trained by Hugging Face',
        'stop': ['<|im_end|>'],
    },
    # https://huggingface.co/deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B (tokenizer_config.json)
    'deepseek': {
        'system': '${MESSAGE}',
        'user': '<｜User｜>${MESSAGE}',
        'bot': '<｜Assistant｜>${MESSAGE}<｜end▁of▁sentence｜>',
        'stop': ['<｜end▁of▁sentence｜>'],
    },
}
BUILTIN['gemma-3'] = BUILTIN['gemma']

# PaliGemmaProcessor of transformers: all pictures, begin-of-text, the question, a line break. Written in
# Jinja, which can put pictures first. These models were trained on one question and its answer; writing
# later turns as further lines is our choice.
BUILTIN['paligemma'] = (
    "{% for m in messages if m['content'] is not string %}"
    "{% for part in m['content'] if part['type'] == 'image' %}<image>{% endfor %}"
    '{% endfor %}{{ bos_token }}'
    "{% for m in messages %}{{ '' if loop.first else '\n' }}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for part in m['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endif %}"
    "{% endfor %}{{ '\n' if add_generation_prompt }}"
)

# patterns in the name or the architecture of a model; specific ones come before general ones
_FAMILIES = (
    (r'stablelm.*zephyr', 'stablelm-zephyr'),
    (r'obsidian', 'nous-obsidian'),
    (r'sheared[-_]?llama', 'sheared-llama'),
    (r'tiny[-_]?llama', 'tiny-llama'),
    (r'zephyr', 'tiny-llama'),
    (r'smollm', 'smollm'),
    (r'hermes[-_ ]?[23]|dolphin|chatml', 'chat-ml'),
    (r'deepseek[-_ ]?(?:r1|v3)', 'deepseek'),
    (r'(?<![a-z])phi[-_ ]?4(?!.*(?:mini|multimodal))', 'phi-4'),
    (r'(?<![a-z])phi[-_ ]?[34]', 'phi-3'),
    (r'(?<![a-z])phi', 'phi-2-instruct'),
    (r'paligemma', 'paligemma'),
    (r'gemma[-_ ]?3', 'gemma-3'),
    (r'gemma(?![-_ ]?4(?![\d.]*b))', 'gemma'),
    (r'qwen[-_ ]?3', 'qwen3'),
    (r'qwen|nvila', 'qwen'),
    (r'llama[-_ ]?3(?![\d.]*b)', 'llama-3'),
    (r'(?:vila|llava).*(?:34|40)b', 'chat-ml'),
    (r'vila', 'vicuna-v1'),
    (r'llama[-_ ]?2(?![\d.]*b)', 'llama-2'),
    (r'mistral|mixtral', 'mistral'),
    (r'(?:vicuna|llava).*v?1\.[0-9]', 'vicuna-v1'),
    (r'(?:vicuna|llava)[-_]v1', 'vicuna-v1'),
    (r'vicuna|llava', 'vicuna-v0'),
    (r'hermes|yi-', 'chat-ml'),
)
"""The number in a size, such as llama-3b, is not a version. LLaVA 1.6 and VILA models that are built on
another language model use its template.
"""


def find_name(name: str, architecture: str) -> str | None:
    """Return the name of the template for a model, by its name or else its architecture; None if unknown."""
    for text in (name.lower(), architecture.lower()):
        for pattern, template in _FAMILIES:
            if re.search(pattern, text):
                return template
    return None
