"""Runs llama.cpp's tokenizer on a stack that is large enough for its recursion.

Some vocabularies (gpt-4o, tekken, llama4 and others) split text with std::regex, which recurses at least once
per matched character: a word of 20,000 letters overflows an ordinary stack, and that ends the process. Long
text is therefore tokenized on a thread whose stack fits the longest possible match.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import TypeVar

from ros2_nanochat.memory import available_memory

_BYTES_PER_CHARACTER = 768  # up to 480 were measured, with every kind of character and pre-tokenizer
_SPARE = 1 << 20
_ALWAYS_SAFE = 4000
"""Number of characters for which the usual stack of a thread (8 MB) is large enough."""
_ROUGH = 100_000
"""Up to this many characters, a stack is requested without further analysis: it is reserved, not filled."""
_OTHER = '\x80-\U0010ffff'  # may belong to any class
_CLASSES = [
    re.compile(f'[{kind}{_OTHER}]+')
    for kind in (
        'A-Za-z',
        '0-9',
        r'\x00-\x08\x0e-\x1b!-/:-@\[-`{-\x7f',  # marks, and what is nothing else
        r'\x09-\x0d\x1c-\x20/',  # white space; a slash may stand between line breaks
    )
]
_CLASSES_IN_A_MATCH = 4  # a mark or space before a word, the word, its ending; white space and line breaks
_BY_CLASS = """
    a.x-4.0 afmoe bailingmoe bailingmoe2 chameleon chatglm-bpe codeshell cohere2moe command-r dbrx
    deepseek-coder deepseek-llm deepseek-r1-qwen deepseek-v3 default exaone exaone4 f2llmv2 falcon falcon-h1
    falcon3 gemma4 gigachat glm4 glm5 gpt-2 gpt-4o granite-docling granite-embed-multi-311m
    granite-embed-multi-97m grok-2 hunyuan hunyuan-dense hy_v4 jais jais-2 jina-de jina-es jina-v1-en
    jina-v2-code jina-v2-de jina-v2-es jina-v5-nano joyai-llm kanana2 kimi-k2 kormo laguna lfm2 llada-moe
    llama-bpe llama-v3 llama3 llama4 megrez mellum mellum2 midm-2.0 minerva-7b minicpm5 minimax-m2
    modern-bert mpt olmo phi-2 pixtral qwen2 qwen35 refact roberta-bpe sarvam-moe seed-coder smaug-bpe smollm
    solar-open spark2_5 stablelm2 starcoder superbpe talkie tekken tiny_aya trillion ufakzeka youtu
"""
"""Pre-tokenizers whose matches consist of a few runs of one character class. With others, such as exaone-moe
(words and the spaces between them) and bloom (all but white space), one match may span the whole text.
"""
_lock = threading.Lock()  # the size of a new thread's stack is a setting of the whole process

Result = TypeVar('Result')


def longest_match(text: str, pre: str | None = None) -> int:
    """Return the maximum number of characters in one match of a pre-tokenizer.

    Args:
        text: The text.
        pre: llama.cpp's name of the pre-tokenizer. None is treated as one of `_BY_CLASS`.
    """
    if len(text) <= _ROUGH or (pre is not None and pre not in _BY_CLASS.split()):
        return len(text)
    longest = max(max(map(len, kind.findall(text)), default=0) for kind in _CLASSES)
    return min(len(text), _CLASSES_IN_A_MATCH * longest)


def with_stack_for(text: str, call: Callable[[], Result], pre: str | None = None) -> Result:
    """Call a function that tokenizes a text, on a large enough stack.

    Args:
        text: The text.
        call: The function.
        pre: See `longest_match`.

    Returns:
        What the function returns.

    Raises:
        ValueError: The text may need more memory than is free.
    """
    if len(text) <= _ALWAYS_SAFE:
        return call()
    characters = longest_match(text, pre)
    size = _SPARE + _BYTES_PER_CHARACTER * characters
    free = available_memory()
    if free is not None and size > free:
        raise _too_long(characters, size)
    outcome: list[Result] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(call())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, name='nanochat-tokenizer', daemon=True)
    with _lock:
        before = threading.stack_size(-(-size // 4096) * 4096)
        try:
            thread.start()
        except (RuntimeError, MemoryError):
            raise _too_long(characters, size) from None
        finally:
            threading.stack_size(before)
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


def _too_long(characters: int, size: int) -> ValueError:
    return ValueError(
        f'the tokenizer of this model may need {size / 1e9:.1f} GB of memory for up to {characters:,}'
        ' characters of this text at once, more than is free: shorten the text, or send it in parts'
    )
