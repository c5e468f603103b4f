"""Extracts what should be spoken from a text: its words, without Markdown, code blocks and emoji.

Works on parts of a text: a mark whose partner is in another part is removed, too.
"""

from __future__ import annotations

import html
import re

_FENCE = re.compile(r'^[ \t]{0,3}(`{3,}|~{3,})[^\n]*\n?(?:.*?^[ \t]{0,3}\1[`~]*[ \t]*$|.*)', re.M | re.S)
_RULE = re.compile(r'^[ \t]*(?:[-*_=][ \t]*){3,}$', re.M)
_TABLE_RULE = re.compile(
    r'^[ \t]*(?:(?:\|[ \t]*)?:?-{2,}:?|\|[ \t]*:?-+:?|:?-+:?(?=[ \t]*\|))'
    r'[ \t]*(?:\|[ \t]*(?::?-+:?[ \t]*)?)*$',
    re.M,
)
_TABLE_ROW = re.compile(r'^[ \t]*\|(.*)$', re.M)
_LINE_START = re.compile(r'^[ \t]*(?:#{1,6}[ \t]+|(?:>[ \t]?)+|[-*+\u2022][ \t]+(?:\[[ xX]\][ \t]+)?)+', re.M)
_HEADING_END = re.compile(r'(?<![ \t])[ \t]+#+[ \t]*$', re.M)
_BARE_CELLS = re.compile(r'(?<=\S)[ \t]+\|[ \t]+(?=\S)')
_IMAGE_OR_LINK = re.compile(
    r'!?\[([^\]\n]{0,400})\]'
    r'(?:\((?:[^()\n]|\([^()\n]{0,400}\)){0,999}\)|\[[^\]\n]{0,400}\])'
)
_REFERENCE = re.compile(r'^[ \t]{0,3}\[[^\]^\n][^\]\n]*\]:[ \t]*\S+.*$', re.M)  # [name]: address
_FOOTNOTE = re.compile(r'[ \t]?\[\^[^\]\s]{1,99}\]:?')
_ADDRESS = re.compile(r'<((?:https?://|mailto:)[^>\s]+)>')
_TAG = re.compile(r'</?[a-zA-Z][a-zA-Z0-9]*(?:\s[^<>\n]*)?/?>|<!--.{0,2000}?-->', re.S)
_BREAK = re.compile(r'<(?:br|hr|/?(?:p|div|li|[uo]l|t[dhr]|h[1-6]))(?:\s[^<>\n]*)?/?>', re.I)
_CODE = re.compile(r'`+')
# In pairs, also within words: languages without spaces emphasize there.
_PAIR = re.compile(
    r'(?<!\\)(\*{2,3}|~~|==)(?=[^\s*~=])([^\n]{0,400}?[^\s*~=\\])\1(?![*~=])'
    r'|(?<![\x21-\x7e\\])(\*)(?=[^\s*])([^*\n]{0,400}[^\s*\\])\*(?![\x21-\x7e])'
)
_EMPHASIS = re.compile(
    r'(?<![^\W_])(?<![\\*_~])(?:\*{1,3}|_{1,3}|~~)(?=[^\s*_~])'
    r'|(?<=[^\s*_~\\])(?:\*{1,3}|_{1,3}|~~)(?![^\W_]|[*_~])'
    r'|(?<=[^\x00-\x7f])\*{2,3}|\*{2,3}(?=[^\x00-\x7f])'
)
_LONELY_MARKS = re.compile(r'(?<!\S)(?:\*{2,3}|_{2,3}|~~)(?!\S)')
_ESCAPED = re.compile(r'\\([\\`*_{}\[\]()#+\-.!~|>])')
_KEYCAP = re.compile('([0-9#*])\ufe0f?\u20e3')
_ONE_EMOJI = (  # those that are text by default only with the selector of emoji
    '(?:[\u00a9\u00ae\u203c\u2049\u2122\u2139\u2194-\u21aa\u3030\u303d\u3297\u3299]\ufe0f'
    '|[\U0001f000-\U0001fbff\u231a-\u23ff\u25aa-\u25fe\u2600-\u27bf\u2934\u2935\u2b05-\u2bff]'
    '|[\ufe0e\ufe0f\u200d\U000e0020-\U000e007f])'
)
_EMOJI = re.compile(rf'(?:(?<![ \t])[ \t]{{1,9}}(?={_ONE_EMOJI}+[.,;:!?\u2026]))?{_ONE_EMOJI}+')
_CONTROL = re.compile('\x1b\\[[0-9;]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f\u200b\u2060\ufeff]')
_LINE_BREAK = re.compile(r'\\$', re.M)
_SPACE = re.compile(r'[ \t]+')


def spoken_text(text: str) -> str:
    """Return what should be spoken of `text`, '' if nothing."""
    text = _REFERENCE.sub('', _FENCE.sub('', _CONTROL.sub('', text)))
    text = _TABLE_RULE.sub('', _RULE.sub('', text))
    text = _TABLE_ROW.sub(_cells, text)
    text = _BARE_CELLS.sub(', ', text)
    text = _HEADING_END.sub('', _LINE_START.sub('', text))
    text = _ADDRESS.sub(r'\1', _FOOTNOTE.sub('', _IMAGE_OR_LINK.sub(r'\1', text)))
    text = html.unescape(_CODE.sub('', _TAG.sub('', _BREAK.sub(' ', text))))
    text = _LINE_BREAK.sub('', _PAIR.sub(_without_marks, text))
    text = _LONELY_MARKS.sub('', _EMPHASIS.sub('', text))
    text = _EMOJI.sub('', _KEYCAP.sub(r'\1', _ESCAPED.sub(r'\1', text)))
    lines = (_SPACE.sub(' ', line).strip() for line in text.splitlines())
    return '\n'.join(line for line in lines if line)


def _cells(row: re.Match) -> str:
    return ', '.join(cell.strip() for cell in row[1].strip().removesuffix('|').split('|'))


def _without_marks(found: re.Match) -> str:
    before, after = found.string[: found.start()][-1:], found.string[found.end() : found.end() + 1]
    if before.isascii() and before.isalnum() and after.isascii() and after.isalnum():
        return found[0]  # x**2 + y**2
    return found[2] or found[4]
