"""Cut a streamed text into sentences, for a speech synthesizer that wants to begin before the reply is
whole.
"""

from __future__ import annotations

import re

# The end of a sentence: full stops of Latin scripts need white space behind them (3.14, example.org), those
# of Chinese and Japanese do not.
_END = re.compile(
    r"""[.!?\u2026]+["'\u201d\u2019)\]*_]*(?=\s)|[\u3002\uff01\uff1f]+["\u300d\u300f\u201d\u2019\uff09]*|\n\s*\n|\n(?=\s*(?:[-*\u2022]|\d+[.)])\s)"""
)
_ABBREVIATION = re.compile(
    r'(?:^|[\s(])(?:Mr|Mrs|Ms|Dr|Prof|Sr|Jr|St|vs|No|Nr|e\.g|i\.e|etc|cf|ca|approx|z\.B|d\.h|[A-Z]|\d+)\.$'
)


class SentenceSplitter:
    """Text goes in as it comes, whole sentences come out; they keep their words and marks and lose only the
    white space around them.
    """

    def __init__(self):
        self._rest = ''

    def add(self, text: str) -> list[str]:
        """Take more text; return the sentences that are now complete."""
        self._rest += text
        sentences, begin = [], 0
        for end in _END.finditer(self._rest):
            sentence = self._rest[begin : end.end()].strip()
            if not sentence or _ABBREVIATION.search(sentence):
                continue
            sentences.append(sentence)
            begin = end.end()
        self._rest = self._rest[begin:]
        return sentences

    def flush(self) -> list[str]:
        """End; return what is left."""
        rest, self._rest = self._rest.strip(), ''
        return [rest] if rest else []
