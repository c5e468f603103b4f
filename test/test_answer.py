"""Forms of answers: what is read, what is refused, and which tokens a form allows, against brute force."""

from __future__ import annotations

import enum
import functools
import json
import random
import re
import time
from dataclasses import InitVar, dataclass, field
from typing import Literal

import numpy as np
import pytest

pytest.importorskip('llguidance')
from made_once import gemma

from ros2_nanochat.answer.cache import BoundedCache
from ros2_nanochat.answer.response_format import MAX_BYTES, read_response_format
from ros2_nanochat.answer.vocabulary import AnswerVocabulary
from ros2_nanochat.prompt import Preceding

# --- what is read ---


class Color(enum.Enum):
    RED = 'red'
    BLUE = 'blue'


@dataclass
class Point:
    x: float
    y: float = 0.0


@dataclass
class Scene:
    name: str
    points: list[Point]
    color: Color
    kind: Literal['indoor', 'outdoor']
    corner: tuple[int, int]
    note: str | None = None
    counts: dict[str, int] = field(default_factory=dict)


@pytest.mark.parametrize(
    'value, kind',
    [
        ('yes | no | unclear', 'choice'),
        (['yes', 'no'], 'choice'),
        (('a', 'b | c'), 'choice'),
        (Color, 'choice'),
        ('/[0-9]{1,3}/', 'regex'),
        ('/^a$/', 'regex'),
        ('json', 'json'),
        ({'type': 'json_object'}, 'json'),
        ('{"type": "integer"}', 'schema'),
        ({'type': 'integer'}, 'schema'),
        ({'type': 'json_schema', 'json_schema': {'name': 'n', 'schema': {'type': 'null'}}}, 'schema'),
        ({'type': 'json_schema', 'name': 'n', 'strict': True, 'schema': {'type': 'null'}}, 'schema'),
        ({'type': 'json_object', 'schema': {'type': 'null'}}, 'schema'),
        (Scene, 'schema'),
    ],
)
def test_each_way_to_write_a_form_is_read(value, kind):
    form = read_response_format(value)
    assert form.kind == kind and form.grammar
    assert read_response_format(form) is form


@pytest.mark.parametrize('value', [None, '', '  ', 'text', {'type': 'text'}])
def test_no_form_is_none(value):
    assert read_response_format(value) is None


@pytest.mark.parametrize(
    'value, message',
    [
        ('yes', "'yes' is not valid"),
        (['yes'], 'at least two'),
        ('a | a', "'a' stands twice"),
        ('a | b | ', "'' is not valid as one of a choice"),
        (' | a | b', "'' is not valid as one of a choice"),
        (['a', ''], 'not empty'),
        (['a', 3], '3 is not valid'),
        ('/(/', 'unclosed group'),
        ('/(?=a)b/', 'look-ahead'),
        ('/(a)\\1/', 'backreferences'),
        ('//', 'not valid'),
        ('{"type":', 'line 1, column 9'),
        ('{"type": "number"} x', 'Extra data'),
        ({'type': 'colour'}, 'colour'),
        ({'if': {}}, '"if"'),
        ({'not': {}}, '"not"'),
        ({'$ref': 'http://127.0.0.1:9/x.json'}, '127.0.0.1:9'),
        ({'type': 'integer', 'minimum': 5, 'maximum': 3}, 'minimum'),
        ({'const': float('nan')}, 'no JSON'),
        ({'const': object()}, 'no JSON'),
        ({'type': 'json_schema'}, 'json_schema'),
        ({'type': 'json_object', 'keys': 3}, "'keys': 3"),
        ({'ros_type': 'geometry_msgs/msg/Twist'}, 'ROS 2'),
        ('geometry_msgs/msg/Twist', 'ROS 2'),
        ('x.schema.json', 'on the command line'),
        (3, '3 is not valid'),
        (b'yes | no', 'not valid'),
        (int, 'int is not valid'),
        ('{' + ' ' * MAX_BYTES + '}', '1,048,576'),
        ('[' * 100_000, 'not valid'),
        ('{"a":' * 100_000, 'nested too deep'),
    ],
)
def test_a_form_that_is_none_is_one_line(value, message):
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        read_response_format(value)
    text = str(raised.value)
    assert '\n' not in text and len(text) < 400


@pytest.mark.parametrize('depth', [100, 5000])  # the limits of llguidance and of Python
def test_a_schema_nested_too_deep_is_refused(depth):
    schema: dict = {}
    for _ in range(depth):
        schema = {'type': 'object', 'properties': {'a': schema}}
    with pytest.raises(ValueError, match='deep'):
        read_response_format(schema)


@pytest.mark.parametrize(
    'name, text, kind',
    [
        ('a.schema.json', '{"type": "integer"}', 'schema'),
        ('a.lark', 'start: "yes" | "no"', 'grammar'),
        ('a.gbnf', 'root ::= "yes" | "no"', 'grammar'),
    ],
)
def test_files_are_read_only_where_they_may_be_named(tmp_path, name, text, kind):
    path = tmp_path / name
    path.write_text(text)
    assert read_response_format(str(path), files=True).kind == kind
    with pytest.raises(ValueError, match='only as a parameter'):
        read_response_format(str(path))
    path.write_text('::: {')
    with pytest.raises(ValueError, match=re.escape(name)):
        read_response_format(str(path), files=True)
    path.unlink()
    with pytest.raises(ValueError, match='no file'):
        read_response_format(str(path), files=True)


def test_gbnf_files_may_use_every_escape_and_name_of_llama_cpp(tmp_path, vocabularies):
    path = tmp_path / 'a.gbnf'
    path.write_text(
        r'root ::= "\x41\u00e9\U0001F600\x22\n\\\[\x5c" start [\u00e9\x5d\U0001F600] # "\x41' + '\n'
        'start ::= [\\x30-\\x39"]{2} "start"\n'
    )
    matcher = vocabularies[0][1].matcher(read_response_format(str(path), files=True).grammar)
    beginning = 'Aé😀"\n\\[\\4"start'
    assert all(matcher.matches(beginning + end) for end in 'é]😀') and not matcher.matches(beginning + 'x')


def test_a_dataclass_comes_back_from_what_its_schema_allows():
    data = {
        'name': 'n',
        'points': [{'x': 1}, {'x': 2.5, 'y': 3}],
        'color': 'blue',
        'kind': 'indoor',
        'corner': [1, 2],
        'counts': {'a': 1},
    }
    scene = read_response_format(Scene).parse(json.dumps(data))
    assert scene == Scene('n', [Point(1.0), Point(2.5, 3.0)], Color.BLUE, 'indoor', (1, 2), None, {'a': 1})
    assert isinstance(scene.points[0].x, float)


def test_a_pydantic_model_comes_back():
    pydantic = pytest.importorskip('pydantic')
    box = pydantic.create_model('Box', width=(int, ...), label=(str, 'none'))
    assert read_response_format(box).parse('{"width":3}') == box(width=3)


def test_the_limits_of_a_pydantic_dataclass_hold():
    pydantic = pytest.importorskip('pydantic')

    @pydantic.dataclasses.dataclass
    class Step:
        size: int = pydantic.Field(ge=0, le=3)

    form = read_response_format(Step)
    assert form.schema['properties']['size']['maximum'] == 3 and form.parse('{"size":2}') == Step(2)


def classes_without_a_schema():
    class Inner:
        pass

    @dataclass
    class Local:
        inner: Unknown  # noqa: F821

    @dataclass
    class Bare:
        values: list
        pairs: dict

    @dataclass
    class Argument:
        size: InitVar[int]

    yield from (Local, Bare, Argument)
    pydantic = pytest.importorskip('pydantic')
    yield pydantic.create_model('Holder', __config__={'arbitrary_types_allowed': True}, inner=(Inner, ...))


def test_a_class_without_a_schema_is_refused_in_one_line():
    for cls in classes_without_a_schema():
        with pytest.raises(ValueError, match=f'response_format.*{cls.__name__}') as raised:
            read_response_format(cls)
        assert '\n' not in str(raised.value)


@dataclass
class Even:
    number: int
    nothing: tuple[()] = ()

    def __post_init__(self):
        if self.number % 2:
            raise RuntimeError('odd')


def test_what_a_class_does_not_accept_is_an_error_of_one_kind():
    form = read_response_format(Even)
    assert form.parse('{"number":2,"nothing":[]}') == Even(2)
    with pytest.raises(ValueError, match='Even does not accept the answer.*odd'):
        form.parse('{"number":3}')


# --- which tokens are allowed ---


def bytes_tokenizer(texts: list[bytes], special: int) -> AnswerVocabulary:
    """A vocabulary of these tokens behind all bytes; the last ids are special, the first of them ends."""
    tokens = [bytes([i]) for i in range(256)] + texts + [b''] * special
    by_bytes = {data: i for i, data in enumerate(tokens) if data}
    longest = max(map(len, by_bytes))

    def tokenize(text: str) -> list[int]:
        data, ids = text.encode(), []
        while data:
            size = next(n for n in range(min(longest, len(data)), 0, -1) if data[:n] in by_bytes)
            ids.append(by_bytes[data[:size]])
            data = data[size:]
        return ids

    specials = range(len(tokens) - special, len(tokens))
    return AnswerVocabulary(tokens, specials, [specials[0]], tokenize), tokens


def sentencepiece_vocabulary():
    """Gemma 3's 262,144 pieces with byte fallback, without its weights; nothing if it is not installed."""
    try:
        path = gemma()
    except ImportError:
        return []
    import llama_cpp.llama_cpp as api

    from ros2_nanochat.backends.gguf.vocabulary import GGUFText

    parameters = api.llama_model_default_params()
    parameters.vocab_only = True
    weights = api.llama_model_load_from_file(path.encode(), parameters)
    text = GGUFText(api, weights, {'tokenizer.ggml.model': 'llama', 'tokenizer.ggml.add_space_prefix': False})
    special = {token.id for token in text.special_tokens}
    detokenizer = text.detokenizer(Preceding.START)
    known = [b'' if i in special else detokenizer.token_bytes(i) for i in range(text.size)]
    tokenize = functools.partial(text.tokenize, special=False, preceding=Preceding.TEXT)
    return [('gemma', AnswerVocabulary(known, special, text.eos_token_ids, tokenize), known)]


@pytest.fixture(scope='module')
def vocabularies(model):
    """(name, vocabulary, bytes of each token): the embedded model's, Gemma's, random pieces, whole words."""
    rng = random.Random(5)
    letters = [bytes(rng.choices(b'yesnoundclar 0123456789"{}:,', k=rng.randint(2, 5))) for _ in range(3000)]
    words = [f' {word}'.encode() for word in ('yes', 'no', 'unclear', '12', '7', '"a"', 'none')]
    special = {token.id for token in model.info.special_tokens}
    detokenizer = model.backend.detokenizer()
    known = [b'' if i in special else detokenizer.token_bytes(i) for i in range(model.info.vocab_size)]
    vocabulary = AnswerVocabulary(known, special, model.info.eos_token_ids, model.tokenize)
    return [
        ('embedded', vocabulary, known),
        *sentencepiece_vocabulary(),
        ('random', *bytes_tokenizer(sorted(set(letters)), 3)),
        ('words', *bytes_tokenizer(words, 2)),
    ]


def number_texts() -> set[str]:
    return {str(i).zfill(n) for n in (1, 2, 3) for i in range(10**n)}


GRAMMARS = {
    'yes | no | unclear | none | no one': {'yes', 'no', 'unclear', 'none', 'no one'},
    '/[0-9]{1,3}/': number_texts(),
    '{"enum": ["a", "ab", 12, 127, null]}': {'"a"', '"ab"', '12', '127', 'null'},
}


@pytest.mark.parametrize('form', GRAMMARS)
def test_at_each_step_what_is_allowed_is_what_brute_force_finds(vocabularies, form):
    language = {text.encode() for text in GRAMMARS[form]}
    beginnings = {text[:n] for text in language for n in range(len(text) + 1)}
    rng = random.Random(1)
    for name, vocabulary, tokens in vocabularies:
        for _ in range(2 if len(tokens) > 100_000 else 6):
            matcher = vocabulary.matcher(read_response_format(form).grammar)
            written = b''
            while not matcher.finished:
                expected = np.array([bool(data) and written + data in beginnings for data in tokens])
                expected[list(vocabulary.end_ids)] = written in language
                if forced := matcher.forced():  # only one text can follow: then only its own ids may
                    assert expected[forced[0]]
                    expected[:] = False
                    expected[forced[0]] = True
                some = [*rng.sample(range(len(tokens)), 20), *np.flatnonzero(expected)[:20].tolist()]
                assert [matcher.allows(i) for i in some] == expected[some].tolist(), 'without the mask'
                wrong = np.flatnonzero(matcher.allowed() != expected)
                assert not len(wrong), (name, written, [tokens[i] for i in wrong[:5]])
                assert [matcher.allows(i) for i in some] == expected[some].tolist(), 'with the mask'
                assert matcher.whole == (written in language)
                choices = [i for i in np.flatnonzero(expected) if i not in vocabulary.end_ids]
                token_id = rng.choice(choices)
                matcher.accept(token_id)
                written += tokens[token_id]
            assert written in language and matcher.whole


def test_forced_ids_are_allowed_one_after_the_other(vocabularies):
    for _, vocabulary, tokens in vocabularies:
        schema = {'type': 'object', 'properties': {'unclear': {'type': 'boolean'}}, 'required': ['unclear']}
        matcher = vocabulary.matcher(read_response_format(schema).grammar)
        forced = matcher.forced()
        assert b''.join(tokens[i] for i in forced).startswith(b'{"unclear"')
        for token_id in forced:
            assert matcher.allowed()[token_id]
            matcher.accept(token_id)


def test_special_tokens_never_stand_in_an_answer(vocabularies):
    for _, vocabulary, _ in vocabularies:
        allowed = vocabulary.matcher(read_response_format('/(.|\\n)*/').grammar).allowed()
        others = vocabulary.special_ids - vocabulary.end_ids
        assert not allowed[list(others)].any() and allowed[list(vocabulary.end_ids)].all()


def test_an_id_that_is_not_allowed_is_refused(vocabularies):
    vocabulary = vocabularies[0][1]
    matcher = vocabulary.matcher(read_response_format('yes | no').grammar)
    with pytest.raises(ValueError, match='is not allowed'):
        matcher.accept(int(np.flatnonzero(~matcher.allowed())[0]))


@pytest.mark.parametrize('form', ['{"$ref": "#"}', {'enum': []}])
def test_a_form_that_nothing_satisfies_is_refused(vocabularies, form):
    with pytest.raises(ValueError, match='response_format'):
        vocabularies[0][1].matcher(read_response_format(form).grammar)


@pytest.mark.parametrize(
    'form',
    [
        '/(a*)*(b|c)*(.*){1000}x{1000}(y{1000}){1000}/',
        '/(.{1,500}){1,500}/',
        '/(x+x+)+y/',
        '/([a-z]{1,1000}[0-9]{1,1000}){1,500}/',
        [f'choice number {i}' for i in range(10_000)],
        {'enum': list(range(20_000))},
        {'type': 'array', 'items': {'type': 'integer'}, 'minItems': 100_000, 'maxItems': 100_000},
        {'type': 'string', 'minLength': 100_000, 'maxLength': 1_000_000},
        {'type': 'object', 'properties': {f'key{i}': {'type': 'number'} for i in range(3000)}},
        {'const': json.loads('[' * 300 + ']' * 300)},
        {'type': 'integer', 'minimum': 10**400},
        '{"type": "integer", "minimum": ' + '9' * 5000 + '}',
        {'anyOf': [{'properties': {f'k{i}': {'const': i}}, 'required': [f'k{i}']} for i in range(3000)]},
        {'enum': ['x' * 5000 + str(i) for i in range(150)]},
        {'type': 'string', 'pattern': '^(([a-z])+.)+[A-Z]([a-z])+$'},
        '/.*(foo|bar).{60}z/',
        '/' + '(' * 50_000 + 'a' + ')' * 50_000 + '/',
        [f'c{i}' for i in range(60_000)] + ['c59999'],
        ['y' * 200_000, 'n' * 200_000],
        ['a\ud800', 'b'],
        '/\ud800+/',
        {'required': ['\ud800']},
        'x' * 10_000_000,
    ],
    ids=lambda form: str(form)[:20],
)
def test_a_huge_form_takes_bounded_work_or_is_refused_in_one_line(vocabularies, form):
    rng, began = random.Random(2), time.monotonic()
    try:
        matcher = vocabularies[0][1].matcher(read_response_format(form).grammar)
        for _ in range(40):
            ids = np.flatnonzero(matcher.allowed())
            token_id = int(rng.choice(ids))
            if token_id in vocabularies[0][1].end_ids:
                break
            matcher.accept(token_id)
            if matcher.finished:
                break
    except ValueError as error:
        assert 'response_format' in str(error) and '\n' not in str(error) and len(str(error)) < 400
    assert time.monotonic() - began < 30


def test_whether_a_text_is_an_answer_leaves_the_state(vocabularies):
    for _, vocabulary, _ in vocabularies:
        matcher = vocabulary.matcher(read_response_format('/[0-9]{1,3}/').grammar)
        matcher.accept(vocabulary.tokenize('7')[0])
        assert matcher.matches('12') and not matcher.matches('1234') and not matcher.matches('x')
        assert not matcher.matches('') and matcher.whole and not matcher.finished


def test_a_form_is_compiled_once_and_what_is_kept_is_bounded(vocabularies, monkeypatch):
    vocabulary, compiled = vocabularies[0][1], []
    compile_ = vocabulary._compile
    monkeypatch.setattr(vocabulary, '_compile', lambda grammar: compiled.append(grammar) or compile_(grammar))
    forms = [read_response_format(f'/x{n}[0-9]+/').grammar for n in range(3)]
    for grammar in 4 * forms:
        matcher = vocabulary.matcher(grammar)
        matcher.accept(int(np.flatnonzero(matcher.allowed())[0]))  # the others do not see it
    assert compiled == forms
    for n in range(300):
        vocabulary.matcher(read_response_format(f'/y{n}/').grammar)
    assert len(vocabulary._compiled) <= 64


def test_a_cache_keeps_what_was_used_last_within_its_bounds():
    cache, made = BoundedCache(most=3, most_bytes=100), []

    def get(key, size=10):
        return cache.get(key, size, lambda: made.append(key) or key)

    for key in 'abcadae':
        assert get(key) == key
    assert made == list('abcde') and len(cache) == 3
    get('huge', 101)
    get('huge', 101)
    assert made[-2:] == ['huge', 'huge'] and len(cache) == 3
    get('large', 95)
    assert len(cache) == 1
    with pytest.raises(ZeroDivisionError):
        cache.get('fails', 1, lambda: 1 / 0)
    assert len(cache) == 1
