"""Splits streamed text into sentences, for a speech synthesizer that starts before the reply is complete.

Whether a mark ends a sentence is decided when the next word has arrived, so the way tokens split the text
makes no difference. `sentencex` decides; the code here adds exceptions and the structure of Markdown.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import sentencex

from ros2_nanochat.robot.sentence_marks import END, FINAL_MARKS, GREEK_QUESTION, OPENING
from ros2_nanochat.robot.spoken import spoken_text

PAUSE = 0.3
"""Seconds without further text after which `SentenceSplitter.pause` should be called."""

_ALNUM = re.compile(r'[^\W_]')
_GREEK = re.compile('[\u0370-\u03ff\u1f00-\u1fff]')
_CYRILLIC = re.compile('[\u0400-\u04ff]')
_NUMBER = re.compile(r'\W*\d+[.)]?\W*\Z')
_GERMAN_ORDINAL = re.compile(r'\b(?:der|das|den|dem|des|im|vom|zum|zur|beim) \d{1,3}\Z', re.I)
_UNIT = re.compile(r'\d[ \u00a0]?(?:[a-z\u00b5]{1,4}/)?[a-z\u00b5]{1,3}\Z')  # kg, m/s
_WORD = re.compile(r'[^\s(\["\'\u201c\u2018\u00ab*_]+\Z')


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_TITLES = _words(
    'mr mrs ms dr prof st sr sra jr hr fr frau herr mme mlle dott sig gen col lt sgt capt rev hon'
)
_BEFORE_NUMBERS = _words(
    'abb abs add anm app approx appx apt art aufl bd bldg ca ch chap div ed eq eqs ex ext fig figs iss kap'
    ' lit max min no nos nr num n\u00fam op p pag p\u00e1g par para pp rel rev sec sect tab tel v ver vers'
    ' vol vols mon tue tues wed thu thur thurs fri'
    ' \u0433\u043b \u0440\u0438\u0441 \u0441\u0442\u0440 \u0442\u0430\u0431\u043b'  # Russian
)
_NO_VOWEL = re.compile(r'[b-df-hj-np-tv-xz]{2,4}\Z')  # rm, tbl, pt: no word, so an abbreviation
_ROMAN = re.compile(r'(?=[IVXL]{2})L?X{0,3}(?:IX|IV|V?I{0,3})(?!\w)')
_LIKE_ABBREVIATIONS = _words('add app art ed id ill may me miss ok')  # words in lower case
_UNITS_TOO = _words('min sec')
_ANSWERS = _words('no ok')
# English words that may also be an initial or a number.
_ONE_LETTER_WORD = re.compile(r"[AI](?:['\u2019]\w+)?,?\Z")
_BEFORE_ANYTHING = _words('e.g i.e z.b d.h u.a bzw vs cf vgl p.ex p.ej resp')
_BLOCK = re.compile(r'(?:[-*+\u2022]|\d{1,3}[.)]|#{1,6}|[-*_=]{3,}|(?:`{3}|~{3}|[|>]).*)\Z', re.S)
_ENDS_A_LINE = re.compile(r'\s*(?:#{1,6}\s|\||\*\*[^*\n]+\*\*:?\s*\Z|__[^_\n]+__:?\s*\Z|[-*_=]{3,}\s*\Z)')
_FENCE = re.compile(r'[ \t]{0,3}(`{3,}|~{3,})')
_PERHAPS_FENCE = re.compile(r'[ \t]{0,3}(?:`{0,2}|~{0,2})\Z')
_BRACKETED = re.compile(rf'(?:(?:[-*+\u2022>]|\d{{1,3}}[.)])\s+)?[\s{OPENING}]*[(\[][\s{OPENING}]*')
# A space of several bytes: before a mark, sentencex cuts within it and panics.
_WIDE_SPACE = re.compile(r'[^\S\x00-\x7f]')
_QUOTES = frozenset('"\'\u201c\u201d\u2018\u2019\u201e\u201a\u00ab\u00bb\u2039\u203a')
_WINDOW = 300  # characters before a mark that are examined
_LONG_BRACKETS = 1000  # characters of a sentence in brackets that are examined
_LONG_WORD = 24  # characters of the next word to wait for


class SentenceSplitter:
    """Takes text as it streams and returns complete sentences.

    Each sentence contains a letter or a digit. The way the text is split makes no difference, unless you call
    `pause`.

    Args:
        spoken: Return text for speech: without Markdown, code blocks and emoji. Otherwise only the white
            space around the sentences is removed.
    """

    def __init__(self, spoken: bool = False):
        self._clean = spoken_text if spoken else str.strip
        self._rest = ''
        self._scanned = 0  # of the rest, up to where no sentence ends
        self._at_line_start = True  # whether the rest begins a line

    def add(self, text: str) -> list[str]:
        """Add text. Return the sentences that are now complete."""
        rest = self._rest
        self._rest = rest + text
        if text.lstrip(' ').isalnum() and 0 < len(rest) == self._scanned and rest[-1] != '\n':
            self._scanned = len(self._rest)  # a word, as most pieces are: it ends nothing
            return []
        return self._take(hurry=False)

    def pause(self) -> list[str]:
        """Return what would be complete if the text ended here.

        Call this if no text has arrived for a while.
        """
        return self._take(hurry=True)

    def flush(self) -> list[str]:
        """End the text. Return what is left."""
        sentences = self._take(hurry=True)
        rest, self._rest = self._clean(self._rest), ''
        self._scanned, self._at_line_start = 0, True
        return [*sentences, rest] if _has_word(rest) else sentences

    def _take(self, hurry: bool) -> list[str]:
        sentences = []
        while (cut := self._next_cut(hurry)) is not None:
            end, begin = cut
            sentence = self._clean(self._rest[:end]) if _ALNUM.search(self._rest, 0, end) else ''
            if not _has_word(sentence):  # it belongs to the next one
                self._scanned = begin
                continue
            sentences.append(sentence)
            self._at_line_start = '\n' in self._rest[end:begin]
            self._rest, self._scanned = self._rest[begin:], 0
        return sentences

    def _next_cut(self, hurry: bool) -> tuple[int, int] | None:
        """Return the end of the next sentence and the start of the text after it; None if still open."""
        text = self._rest
        while True:
            position = self._scanned
            if self._begins_line(position):
                if not hurry and _PERHAPS_FENCE.match(text, position):
                    return None
                if fence := _FENCE.match(text, position):
                    after = _end_of_fence(text, fence)
                    if after is None:
                        return None
                    self._scanned = after
                    return after, after
            found = END.search(text, position)
            if found is None:
                if not hurry:
                    self._scanned = len(text)
                return None
            begin = _skip_space(text, found.end())
            if found['newline']:
                verdict = _is_block_end(text, found.start(), begin, hurry)
                end = found.start()
            else:
                verdict = _is_sentence_end(text, found, begin, hurry)
                end = found.end()
            if verdict is None:
                return None
            if verdict:
                return end, begin
            self._scanned = found.end()

    def _begins_line(self, position: int) -> bool:
        return self._rest[position - 1] == '\n' if position else self._at_line_start


def _has_word(text: str) -> bool:
    return any(char.isalnum() for char in text)


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position].isspace():
        position += 1
    return position


def _end_of_fence(text: str, fence: re.Match) -> int | None:
    """Return the end of the line that closes a code block; None if it has not arrived."""
    mark = fence[1]
    close = re.compile(rf'\n[ \t]{{0,3}}{mark[0]}{{{len(mark)},}}[ \t]*\n').search(text, fence.end())
    return close.end() if close else None


def _is_block_end(text: str, newline: int, begin: int, hurry: bool) -> bool | None:
    """Whether a line break ends the text before it: a heading, a list item, a paragraph."""
    if begin == len(text):
        return None  # what follows decides, and if nothing does, it is the end anyway
    if text.count('\n', newline, begin) > 1:
        return True
    if _ENDS_A_LINE.match(text[text.rfind('\n', 0, newline) + 1 : newline]):
        return True
    end = _end_of_word(text, begin, limit=8)
    if end is None:
        return None if not hurry else False
    return _BLOCK.match(text[begin:end]) is not None


def _end_of_word(text: str, begin: int, limit: int) -> int | None:
    """Return where the word at `begin` ends, at most `limit` characters on; None if more text is needed."""
    if unicodedata.category(text[begin]) == 'Lo':  # a script without spaces, or without upper case
        return begin + 1
    for position in range(begin, min(len(text), begin + limit)):
        if text[position].isspace():
            return position
    return begin + limit if len(text) >= begin + limit else None


def _is_sentence_end(text: str, found: re.Match, begin: int, hurry: bool) -> bool | None:
    """Whether a run of marks ends a sentence; None if more text is needed."""
    marks, behind = found['marks'], found.end()
    if behind == len(text) and not hurry:
        return None  # another mark may follow
    final = any(mark in FINAL_MARKS for mark in marks)
    if behind < len(text) and not text[behind].isspace():
        if not final and unicodedata.category(text[behind]) != 'Lo':
            return False  # 3.14, example.org
        begin = behind
    if final:
        if text[behind:].isspace() and begin - behind == 1 and not hurry:
            return None  # a closing mark may follow behind a space
        return not _stands_between_digits(text, found.start(), behind)
    word = begin
    while word < len(text) and (text[word].isspace() or text[word] in OPENING):
        word += 1
    marks, between, following = found['marks'], text[found.end('marks') : behind] + ' ', 'The'
    if word < len(text):
        end = _end_of_word(text, word, _LONG_WORD)
        if end is None and not hurry:
            return None
        between, following = text[found.end('marks') : begin], text[word:end]
    elif not hurry:
        return None
    first = _first_in_brackets(text, found)
    if first:  # sentencex ends no sentence within brackets
        between = ' '
    return _judge(text[first : found.start()], marks, between, following)


def _first_in_brackets(text: str, found: re.Match) -> int:
    """Return where the words begin if brackets around the whole sentence close behind its mark; else 0."""
    closing = found[0][len(found['marks']) :]
    if not (')' in closing or ']' in closing) or found.start() > _LONG_BRACKETS:
        return 0
    opening = _BRACKETED.match(text, 0, found.start())
    if opening is None or (_QUOTES & set(opening[0]) and not _QUOTES & set(closing)):
        return 0
    depth = opening[0].count('(') + opening[0].count('[')
    for char in text[opening.end() : found.start()]:
        depth += (char in '([') - (char in ')]')
        if not depth:
            return 0
    return opening.end() if closing.count(')') + closing.count(']') >= depth else 0


def _stands_between_digits(text: str, start: int, end: int) -> bool:
    return end - start == 1 and text[start - 1 : start].isdigit() and text[end : end + 1].isdigit()


def _judge(sentence: str, marks: str, between: str, following: str) -> bool:
    """Whether a sentence ends with its marks. `between` stands between them and the following word."""
    if all(mark in GREEK_QUESTION for mark in marks) and not _GREEK.search(sentence):
        return False
    before = sentence[-_WINDOW:]
    match = _WORD.search(before)
    word = match[0].lower() if match else ''
    if not any(mark in '!?' for mark in marks) and following[0].islower():
        return False
    if marks == '.':
        if word in _TITLES or word in _BEFORE_ANYTHING:
            return False
        # It was me. I did it. In lower case these are words more often than abbreviations: "see no. I of it"
        # and "art. I" are cut.
        is_word = match is not None and match[0] in _LIKE_ABBREVIATIONS | _ANSWERS
        is_answer = sentence.strip().lower() in _ANSWERS  # OK. I go.
        if (is_word or is_answer) and _ONE_LETTER_WORD.match(following):
            return True
        unit = _UNIT.search(before)
        if following[0].isdigit() or _ROMAN.match(following):
            if match and match[0] in _LIKE_ABBREVIATIONS:  # Call me. 2 is enough.
                return True
            if word in _BEFORE_NUMBERS and not (unit and word in _UNITS_TOO):  # Vers. 2
                return False
            if not unit and _NO_VOWEL.match(word):
                return False
        if _NUMBER.match(sentence) or _GERMAN_ORDINAL.search(before):  # 1. Open it; der 2. Mann
            return False
        if unit and (following[0].isupper() or following[0].isdigit()):  # It is 5 m. Then
            return True
    languages = ['el' if _GREEK.search(before) else 'ru' if _CYRILLIC.search(before) else 'en']
    if marks == '.' and word.isdigit():
        languages.append('de')  # Am 3. Mai
    marks = marks.replace('\u2026', '...')  # sentencex knows only the dots as an end
    text, first = f'{before}{marks}{between}{following}', len(before) + len(marks)
    last = first + len(between)
    return all(any(first <= end <= last for end in _ends(language, text)) for language in languages)


def _ends(language: str, text: str) -> Sequence[int]:
    ends, position = [], 0
    try:
        sentences = sentencex.segment(language, _WIDE_SPACE.sub(' ', text))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # a panic of its Rust code; the text is spoken all the same
        return range(len(text) + 1)
    for sentence in sentences:
        position += len(sentence)
        ends.append(position)
    return ends
