"""Extracts what should be spoken from a text: its words, without Markdown, code blocks and emoji.

Works on parts of a text: a mark whose partner is in another part is removed, too.
"""

from __future__ import annotations

import re

_FENCE = re.compile(r'^[ \t]{0,3}(`{3,}|~{3,})[^\n]*\n?(?:.*?^[ \t]{0,3}\1[`~]*[ \t]*$|.*)', re.M | re.S)
_RULE = re.compile(r'^[ \t]*(?:[-*_=][ \t]*){3,}$', re.M)
_TABLE_RULE = re.compile(r'^[ \t]*\|?[ \t]*:?-{2,}:?[ \t]*(?:\|[ \t]*:?-*:?[ \t]*)*$', re.M)
_TABLE_ROW = re.compile(r'^[ \t]*\|(.*?)\|?[ \t]*$', re.M)
_LINE_START = re.compile(r'^[ \t]*(?:#{1,6}[ \t]+|(?:>[ \t]?)+|[-*+\u2022][ \t]+(?:\[[ xX]\][ \t]+)?)+', re.M)
_HEADING_END = re.compile(r'[ \t]+#+[ \t]*$', re.M)
_IMAGE_OR_LINK = re.compile(r'!?\[([^\]\n]*)\](?:\([^)\n]*\)|\[[^\]\n]*\])')
_ADDRESS = re.compile(r'<((?:https?://|mailto:)[^>\s]+)>')
_TAG = re.compile(r'</?[a-zA-Z][a-zA-Z0-9]*(?:\s[^<>\n]*)?/?>|<!--.*?-->', re.S)
_CODE = re.compile(r'`+')
_EMPHASIS = re.compile(
    r'(?<![^\W_])(?<!\\)(?:\*{1,3}|_{1,3}|~~)(?=[^\s*_~])|(?<=[^\s*_~\\])(?:\*{1,3}|_{1,3}|~~)(?![^\W_]|[*_~])'
)
_LONELY_MARKS = re.compile(r'(?<!\S)(?:\*{2,3}|_{2,3}|~~)(?!\S)')
_ESCAPED = re.compile(r'\\([\\`*_{}\[\]()#+\-.!~|>])')
_KEYCAP = re.compile('([0-9#*])\ufe0f?\u20e3')
_EMOJI = re.compile(  # those that are text by default only with the selector of emoji
    '[\u00a9\u00ae\u203c\u2049\u2122\u2139\u2194-\u21aa\u3030\u303d\u3297\u3299]\ufe0f'
    '|[\U0001f000-\U0001fbff\u231a-\u23ff\u25aa-\u25fe\u2600-\u27bf\u2934\u2935\u2b05-\u2bff]'
    '|[\ufe0e\ufe0f\u200d\U000e0020-\U000e007f]'
)
_SPACE = re.compile(r'[ \t]+')


def spoken_text(text: str) -> str:
    """Return what should be spoken of `text`, '' if nothing."""
    text = _FENCE.sub('', text)
    text = _TABLE_RULE.sub('', _RULE.sub('', text))
    text = _TABLE_ROW.sub(lambda row: ', '.join(cell.strip() for cell in row[1].split('|')), text)
    text = _HEADING_END.sub('', _LINE_START.sub('', text))
    text = _ADDRESS.sub(r'\1', _IMAGE_OR_LINK.sub(r'\1', text))
    text = _CODE.sub('', _TAG.sub('', text))
    text = _LONELY_MARKS.sub('', _EMPHASIS.sub('', text))
    text = _EMOJI.sub('', _KEYCAP.sub(r'\1', _ESCAPED.sub(r'\1', text)))
    lines = (_SPACE.sub(' ', line).strip() for line in text.splitlines())
    return '\n'.join(line for line in lines if line)
