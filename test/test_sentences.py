"""Sentences for speech: where they end, in many languages; that tokens make no difference; what is spoken."""

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ros2_nanochat import NanoLLM
from ros2_nanochat.config import RobotOptions
from ros2_nanochat.robot import sentences
from ros2_nanochat.robot.conversation import RobotConversation
from ros2_nanochat.robot.sentences import PAUSE, SentenceSplitter
from ros2_nanochat.robot.spoken import spoken_text
from ros2_nanochat.robot.turn import Turn


def split(*texts, spoken=False):
    splitter = SentenceSplitter(spoken)
    return [sentence for text in texts for sentence in splitter.add(text)] + splitter.flush()


@pytest.mark.parametrize(
    'text',
    [
        '真的吗？！|太好了！！|好。',
        '你好!|再见?|好的',
        'ｺﾝﾆﾁﾊ｡|ﾜﾀｼﾊﾛﾎﾞｯﾄ｡',
        '「行く。」|「はい！」',
        '他走了。|“你好！”|她说。|‘再见。’|他说。|“‘好。’|她说。”|他说！|“……好。”',
        '他走了!“你好。”|她说…“再见。”',
        '３．１４です。|はい。',
        'मैं ठीक हूँ।| आप कैसे हैं?',
        'كيف حالك؟| أنا بخير.',
        'میں ٹھیک ہوں۔| آپ کیسے ہیں؟',
        'ខ្ញុំសុខសប្បាយ។| អ្នកសុខសប្បាយទេ?',
        'ሰላም ነው።| እንዴት ነህ፧',
        'Բարեւ։| Ինչպես ես։',
        'မင်္ဂလာပါ။| နေကောင်းလား။',
        'Πώς είσαι;| Καλά.',
        'т. е. так.| Да.',
        'There are 3.| You have 4.| We meet in 2024.| Then we go.',
        'See Fig. 3 for it.| Eq. 4 too.| Ch. 5 as well.',
        'The U.S. troops left.| I live in the U.S.| It is big.',
        'At 3 p.m. today we go.| At 4 a.m. we do not.',
        'E.g. this one.| And i.e. that.| It is approx. 5 m.| Then?',
        'Mr. J. R. Smith and Dr. Who met Prof. Ada.| He is No. 5.',
        '« Bonjour. »| Il part.| « Non ! »| Oui.',
        '„Guten Tag.“| Er geht.| „Wohin?“| ‚Fort.‘| »Gut.«| ›Ja.‹| Also.',
        'Er schwieg.| »… doch.«| Ja.| »(Leise.)«| »„Nein.“, sagte er.«| „Er rief: ‚Was⁉‘“| »Ja.',
        'Il rit.| « Oui. »| *« Non. »*| Il part.| « Oui. », dit-il.',
        'M. Dupont arrive.| Il rit.',
        'El Sr. García vino.| ¿Sí?| ¡No!',
        'Am 3. Mai gehen wir, z. B. heute.| Der 2. Mann ist d. h. hier.| Ja.',
        'Wait... what?| Really?!| Yes\u2026 no.| It ended\u2026| Next.',
        '(This is it.)| Next one.| (And this?)| [See it!]| "(He left.)"| *(Yes.)*| Good.',
        '(Two ends.| In one (or more).)| (Fig. 3 shows it.)|\n- (\u201cHi.\u201d)| Next.| (Да.)| Нет.',
        '(This is it.) and more.| The firm (Acme Inc.) Paid.| (Dr.) Who.| :) Fine.| (1.) Open it.',
        '"(Yes.) No." is said.| (Yes) or (no.) Then.',
        'Vers. 2 is out.| We run Vers. 2.| Rel. 5, Rm. 12, Kap. 3 and Abs. IV do.| Siehe Anm. 3.| На рис. 3.',
        'It is 5 kg.| 3 robots came.| It takes 5 min.| 3 wait.| Call me.| 2 is enough.| See the app.| 3 do.',
        "OK.| I'll go.| No.| I do not.| It was me.| A robot came.| Is it?| No.| I see it.| See No. I of it.",
        'Art. I says so.| The answer is no.| I am ill.| At 5 p.m. I go.| J. A. Smith met her.',
        'It goes 3 m/s.| Then 12 km/h.| Stop.',
        'It is 3.14 m at example.org/about.| Yes.',
        '"Hi!" she said.| "Go." |Then he left.',
        '1. Open it.|\n2. Close it.',
        'Two:|\n\nparagraphs',
        '# A title|\nand text.| More.',
    ],
)
def test_sentences_end_where_they_end(text):
    expected = [part.strip() for part in text.split('|')]
    assert split(text.replace('|', '')) == expected
    assert split(*text.replace('|', '')) == expected


@pytest.mark.parametrize('space', ['\u00a0', '\u1680', '\u2009', '\u2028', '\u202f', '\u3000', '\u0085'])
@pytest.mark.parametrize(
    'before', ['Choose plan B', 'A', 'See it, says I', '\u0412\u044b\u0431\u0435\u0440\u0438 \u0411']
)
def test_a_wide_space_before_a_full_stop_is_a_space(before, space):
    splitter, plain = SentenceSplitter(), SentenceSplitter()
    wide = splitter.add(f'{before}{space}. Then go on. ') + splitter.flush()
    assert [text.replace(space, ' ') for text in wide] == plain.add(
        f'{before} . Then go on. '
    ) + plain.flush()


@given(
    st.text(
        st.sampled_from('AB\u0411\u00e9\u0130 .!?\'")\n1\u00a0\u2028\u3000\u0301\u200b\U0001f600\u03b1;'),
        max_size=20,
    )
)
def test_no_text_is_too_odd_to_be_cut(text):
    splitter = SentenceSplitter()
    kept = [char for char in ''.join(splitter.add(text) + splitter.flush()) if char.isalnum()]
    assert kept == [char for char in text if char.isalnum()]


def test_a_panic_of_the_library_ends_a_sentence_and_nothing_else(monkeypatch):
    class Panic(BaseException):
        pass

    def segment(language, text):
        raise Panic('end byte index 14 is not a char boundary')

    monkeypatch.setattr(sentences.sentencex, 'segment', segment)
    splitter = SentenceSplitter()
    assert splitter.add('One is here. Two follows') == ['One is here.']
    assert splitter.flush() == ['Two follows']


def test_every_mark_that_unicode_calls_the_end_of_a_sentence_ends_one():
    regex = pytest.importorskip('regex')  # an oracle that knows the property
    marks = [
        chr(code)
        for code in range(0x80, 0x20000)
        if regex.match(r'\p{Sentence_Terminal}', chr(code)) and code != 0x2024  # a dot of leaders
    ]
    assert len(marks) > 100
    for mark in [*marks, '\u0f0d']:  # and Tibetan's, which lacks the property
        assert split(f'ab{mark} cd{mark}') == [f'ab{mark}', f'cd{mark}'], hex(ord(mark))


PIECES = st.sampled_from(
    [
        *'.!?\u2026;:,"\'()*_`#-|>~\n ',
        *'aZé3字ก।؟۔។｡？！。»«“”‘„\U0001f642\ufe0f\u200d',
        *(
            'e.g',
            'Mr',
            'p.m',
            'Fig',
            'U.S',
            'Am 3',
            ' the',
            ' The',
            '```',
            '```\n',
            '\n\n',
            '\n- ',
            '---',
            '. ',
        ),
        *('? ', '3.', '\n1. ', '**', '](http://x.y)', '| a |', ' »', '\u00a0»'),
    ]
)


@settings(deadline=None, max_examples=300)
@given(st.lists(PIECES, max_size=40), st.data(), st.booleans())
def test_any_cutting_gives_the_same_sentences_and_each_has_a_word(pieces, data, spoken):
    text = ''.join(pieces)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    tokens = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    whole = split(text, spoken=spoken)
    assert split(*tokens, spoken=spoken) == split(*text, spoken=spoken) == whole
    assert all(any(char.isalnum() for char in sentence) for sentence in whole)
    if not spoken:  # no word is lost
        assert [c for c in ''.join(whole) if c.isalnum()] == [c for c in text if c.isalnum()]


@settings(deadline=None, max_examples=100)
@given(st.lists(PIECES, max_size=30), st.data())
def test_pauses_lose_no_word(pieces, data):
    splitter, sentences = SentenceSplitter(), []
    for piece in pieces:
        sentences += splitter.add(piece)
        if data.draw(st.booleans()):
            sentences += splitter.pause()
    sentences += splitter.flush()
    text = ''.join(pieces)
    assert [c for c in ''.join(sentences) if c.isalnum()] == [c for c in text if c.isalnum()]


@pytest.mark.parametrize(
    'text, at_once, after_a_pause',
    [
        ('Hello there.', [], ['Hello there.']),
        ('Hello there. ', [], ['Hello there.']),
        ('Hello there. Th', [], ['Hello there.']),
        ('Hello there. The next', ['Hello there.'], []),
        ('你好。', [], ['你好。']),
        ('你好。再', ['你好。'], []),
        ('At 3 p.m. to', [], []),
        ('Ask Dr.', [], []),
        ('It is e.g.', [], []),
        ('no end', [], []),
        ('```\ncode. More', [], []),
    ],
)
def test_a_decision_waits_for_the_next_word_or_for_a_pause(text, at_once, after_a_pause):
    splitter = SentenceSplitter()
    assert splitter.add(text) == at_once
    assert splitter.pause() == after_a_pause


@pytest.mark.parametrize(
    'text, spoken',
    [
        ('**Bold**, *thin*, __strong__, _slight_ and ~~gone~~.', 'Bold, thin, strong, slight and gone.'),
        ('snake_case, 2 * 3 * 4, a*b and 5~6', 'snake_case, 2 * 3 * 4, a*b and 5~6'),
        ('## Title ##\nText', 'Title\nText'),
        ('> - [x] done', 'done'),
        ('See [the *docs*](http://x.y/z) and ![a cat](c.png).', 'See the docs and a cat.'),
        ('Use `ros2 run`. <br>Then <https://x.y>.', 'Use ros2 run. Then https://x.y.'),
        ('Before\n```python\nprint(1)\n```\nafter', 'Before\nafter'),
        ('Before\n~~~\nnever closed', 'Before'),
        ('a\n\n---\n* * *\n===\nb', 'a\nb'),
        ('| a | b |\n|:--|--:|\n| 1 | 2 |', 'a, b\n1, 2'),
        ('1 < 2 and 3 > 2', '1 < 2 and 3 > 2'),
        (
            '\U0001f642 Hi \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea \u2600\ufe0f'
            ' 1\ufe0f\u20e3!',
            'Hi 1!',
        ),
        ('Line<br>break<BR/>here<p>and <b>there</b></p>', 'Line break here and there'),
        (
            'Done \U0001f468\u200d\U0001f469! It\u2764\ufe0f is [^1]. \u2605 A \u2605\u2605, b',
            'Done! It is. A, b',
        ),
        ('20 °C, 5 €, ™ and ©', '20 °C, 5 €, ™ and ©'),
        ('日本語 **です**。', '日本語 です。'),
        ('これは**重要**で*大切*です。次**です', 'これは重要で大切です。次です'),
        ('**Note**s, x**2 + y**2 and 2**3', 'Notes, x**2 + y**2 and 2**3'),
        ('[a](http://x/y_(z)) [b](c "t(i)t") d[^1]\n\n[^1]: note\n[r]: http://x', 'a b d\nnote'),
        ('|a|b|\n|-|-|\n|1|2|\n\nc | d\n--|--\n3 | 4', 'a, b\n1, 2\nc, d\n3, 4'),
        ('5 &lt; 6 &amp; ==so==, a == b\\\nnext', '5 < 6 & so, a == b\nnext'),
        ('\x1b[31mred\x1b[0m \u200bzero', 'red zero'),
        (r'\*not bold\*', '*not bold*'),
        ('---', ''),
        ('', ''),
    ],
)
def test_what_is_spoken_has_no_markup(text, spoken):
    assert spoken_text(text) == spoken


@pytest.mark.parametrize(
    'piece', ['**a', '*é', '|a', '[a](', '[^', '[', '`', '<a ', '|-', ' ', '-', '* ', '== a']
)
def test_text_that_looks_like_unfinished_markup_takes_no_time(piece):
    """Replies can degenerate into one mark again and again."""
    begin = time.process_time()
    spoken_text(piece * 20_000 + 'x')
    assert time.process_time() - begin < 5.0  # under 0.1 s; a minute if it grew with the square


def test_markup_that_a_sentence_cuts_is_not_spoken():
    text = '# Plan\n\n**First. Then.** *Go on. Stop.*\n\n```sh\nrm -r x. Y\n```\n\n---\n- One\n'
    text += '- Two \U0001f642\n'
    assert split(text, spoken=True) == ['Plan', 'First.', 'Then.', 'Go on.', 'Stop.', 'One', 'Two']


@pytest.mark.parametrize(
    'reply, raw, sentences',
    [
        ('**Yes.** It is\U0001f642.\n\n```\nx\n```', False, ['Yes.', 'It is.']),
        ('**Yes.** It is\U0001f642.', True, ['**Yes.**', 'It is\U0001f642.']),
        ('\U0001f642', False, []),
    ],
)
def test_a_robot_speaks_what_should_be_spoken(reply, raw, sentences):
    spoken = robot_speaks(f'reply={reply}', RobotOptions(raw_sentences=raw))[0]
    assert [text for _, text in spoken] == sentences


def test_a_sentence_is_spoken_while_the_model_thinks_on():
    """Two tokens a second: the word that would decide is seconds away."""
    spoken, ended = robot_speaks('tokens_per_second=2.2,reply=Hi. Bye', RobotOptions())
    assert [text for _, text in spoken] == ['Hi.', 'Bye']
    assert ended - spoken[0][0] > 3 * PAUSE


def robot_speaks(setup, options):
    class Notes:
        def __init__(self):
            self.spoken = []

        def sentence(self, turn, text):
            self.spoken.append((time.monotonic(), text))

        def started(self, turn): ...
        def token(self, *_): ...
        def ended(self, turn): ...

    model, notes = NanoLLM.from_pretrained(setup, api='fake', max_context_len=4096), Notes()
    chat = RobotConversation('r1', model, options, notes)
    try:
        turn = chat.ask(Turn('?', options))
        assert turn.ended.wait(30) and turn.finish_reason == 'stop'
        return notes.spoken, time.monotonic()
    finally:
        chat.close()
        model.close()
        assert threading.active_count() < 50
