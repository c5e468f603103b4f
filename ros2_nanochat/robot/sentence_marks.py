"""The marks at the ends of sentences in all scripts, and the quotes and brackets around them."""

from __future__ import annotations

import re

_MARKS = '.!?\u2026'  # end a sentence if white space and no lower case follows, and sentencex agrees
# Ends of sentences in other scripts, as first and last of a range: the Unicode property Sentence_Terminal
# without ASCII and the dot of leaders, and the marks of Tibetan, which lack the property.
_RANGES = """
    589 61D-61F 6D4 700-702 7F9 837 839 83D-83E 964-965 F0D-F11 104A-104B 1362 1367-1368 166E 1735-1736
    17D4-17D5 1803 1809 1944-1945 1AA8-1AAB 1B4E-1B4F 1B5A-1B5B 1B5E-1B5F 1B7D-1B7F 1C3B-1C3C 1C7E-1C7F
    203C-203D 2047-2049 2CF9-2CFB 2E2E 2E3C 2E53-2E54 2E60-2E61 3002 A4FF A60E-A60F A6F3 A6F7 A876-A877
    A8CE-A8CF A92F A9C8-A9C9 AA5D-AA5F AAF0-AAF1 ABEB FE12 FE15-FE16 FE52 FE56-FE57 FF01 FF0E FF1F FF61
    10A56-10A57 10F55-10F59 10F86-10F89 11047-11048 110BE-110C1 11141-11143 111C5-111C6 111CD
    111DE-111DF 11238-11239 1123B-1123C 112A9 113D4-113D5 1144B-1144C 115C2-115C3 115C9-115D7
    11641-11642 1173C-1173E 11944 11946 11A42-11A43 11A9B-11A9C 11C41-11C42 11EF7-11EF8 11F43-11F44
    16A6E-16A6F 16AF5 16B37-16B38 16B44 16D6E-16D6F 16E98 1BC9F 1DA88
"""
FINAL_MARKS = ''.join(
    chr(code)
    for first, _, last in (each.partition('-') for each in _RANGES.split())
    for code in range(int(first, 16), int(last or first, 16) + 1)
)
"""End a sentence whatever follows."""
GREEK_QUESTION = ';\u037e'
"""End a sentence in Greek only."""
_CLOSING = '"\'\u201d\u2019\u00ab\u00bb\u2039\u203a)\\]}\uff09\u300d\u300f\u3011\u300b\u3009*_~`'
OPENING = '"\'\u201c\u2018\u201e\u201a\u00ab\u00bb\u2039\u203a([{*_~`\u00bf\u00a1'
"""May stand before the first word of a sentence."""
# Quotes that also open (in Chinese right behind a mark): they close a sentence only if no text follows.
_SPACED = '[ \u00a0\u202f][\u00bb\u203a](?![\\w\u2026(\\[{\u201e\u201a\u201c\u2018\u00ab\u2039\u00bf\u00a1])'
_GERMAN = '[\u201c\u2018](?![\\w\u2026])'
_GERMAN_MARKS = _MARKS + '\u203c\u203d\u2047\u2048\u2049'
END = re.compile(
    rf'(?P<marks>[{_MARKS}{FINAL_MARKS}{GREEK_QUESTION}]+)'
    rf'(?:(?<=[{_GERMAN_MARKS}])(?:{_SPACED}|{_GERMAN}|[{_CLOSING}])*|(?:{_SPACED}|[{_CLOSING}])*)'
    r'|(?P<newline>\n)'
)
"""Marks that may end a sentence (group `marks`) with what closes behind them, or the end of a line."""
