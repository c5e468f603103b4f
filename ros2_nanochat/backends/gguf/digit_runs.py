"""Cuts long runs of digits for vocabularies that group them by threes from the right.

llama.cpp finds such groups with an expression that looks ahead to the end of the run at each digit, so a
million digits would take minutes. Nothing merges between two groups: a text cut there has the same ids.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_LONG = 60
"""Digits of a piece, a multiple of three. The time of a piece is quadratic."""
SHORT = 2 * _LONG
"""A text of up to this many characters is never cut."""
PRE_TOKENIZERS = ('superbpe',)
"""What llama.cpp calls the expressions that look ahead."""
_RUN = re.compile(f'[0-9]{{{SHORT},}}')
_PROBES = (*(str(i) * 40 for i in range(10)), ''.join(str(7 * i % 10) for i in range(40)))


def groups_by_threes(tokenize: Callable[[str], list[int]]) -> bool:
    """Return whether a vocabulary gives the same ids if a run of digits is cut before its last three, six,
    and so on.

    Args:
        tokenize: Turns a text into ids.
    """
    return all(
        tokenize(before + probe + after)
        == [i for piece in _cut_run(before, probe, after, size) for i in tokenize(piece)]
        for probe in _PROBES
        for before, after in (('', ''), ('a', 'b'), (' ', ' '), ('x -', '.5 '))
        for size in (3, 9)
    )


def cut(text: str) -> list[str]:
    """Cut a text inside its long runs of digits."""
    pieces, start = [], 0
    for run in _RUN.finditer(text):
        first, *others = _cut_run(text[start : run.start()], run.group(), '', _LONG)
        pieces += [first, *others[:-1]]
        start = run.end() - len(others[-1])
    return [*pieces, text[start:]]


def _cut_run(before: str, digits: str, after: str, size: int) -> list[str]:
    first = len(digits) % size or size
    pieces = [digits[:first], *(digits[at : at + size] for at in range(first, len(digits), size))]
    pieces[0], pieces[-1] = before + pieces[0], pieces[-1] + after
    return pieces
