"""Refuses runs of spaces or tabs that a tokenizer would split too slowly: in seconds to minutes.

Two of llama.cpp's pre-tokenizers look at the rest of such a run from each of its characters (deepseek-llm),
or from each group of 512 (jais-2). Meanwhile no other text of the model is tokenized.
"""

from __future__ import annotations

import re

_LONGEST = {'deepseek-llm': 10_000, 'jais-2': 200_000}
"""Length of the longest run that is accepted: it takes a few seconds."""
_BLANKS = re.compile(r'[^\S\r\n]+')
_QUICK = re.compile(r'[\r\n!-/:-~]?')
"""What follows a run that deepseek-llm splits quickly: the end of the text or of a line, punctuation or a
letter of ASCII (the letters are in `:-~`). For other letters see `_is_quick`.
"""


def check(text: str, pre: str | None) -> None:
    """Check that a text has no run of spaces or tabs that is split too slowly.

    Args:
        text: The text.
        pre: llama.cpp's name of the pre-tokenizer. With None, nothing is refused.

    Raises:
        ValueError: It has one.
    """
    longest = _LONGEST.get(pre or '', len(text))
    if len(text) <= longest:
        return
    for run in _BLANKS.finditer(text):
        count = run.end() - run.start()
        if count > longest and not (pre == 'deepseek-llm' and _is_quick(text[run.end() : run.end() + 1])):
            raise ValueError(
                f'the text has {count:,} spaces or tabs in a row, which the tokenizer of this model splits'
                f' too slowly: at most {longest:,} are accepted'
            )


def _is_quick(following: str) -> bool:
    return bool(_QUICK.fullmatch(following)) or following.lower() != following.upper()
