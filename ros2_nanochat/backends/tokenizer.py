"""Text to ids for models in a folder with `tokenizer.json`; shared by the backends `hf` and `mlc`.

Uses the light package `tokenizers`, and `transformers` only if a caller asks for it or a vocabulary exists
only as `tokenizer.model`. Knows nothing of models, conversations or templates, except that a template's
source lies next to the vocabulary.
"""

from __future__ import annotations

import functools
import json
import os
import re
import secrets
from collections.abc import Iterable, Sequence

from ros2_nanochat.backends.base import Detokenizer
from ros2_nanochat.backends.detokenizer import make_detokenizer
from ros2_nanochat.backends.tokenizer_files import (
    NAMES,
    named_tokens,
    read_chat_template,
    read_eos_ids,
    text_of,
    without_first_space,
)
from ros2_nanochat.errors import BackendError, MissingDependency, one_line
from ros2_nanochat.files import read_json
from ros2_nanochat.model_info import SpecialToken
from ros2_nanochat.prompt import Preceding

try:
    import tokenizers
except ImportError as error:
    raise MissingDependency(
        f'tokenizers cannot be imported ({error}): run  pip install tokenizers  with the Python that runs'
        ' this'
    ) from error

_MARKUP = re.compile(r'<[|｜].*[|｜]>', re.DOTALL)
"""Tokens that look like begin or end of a turn: some checkpoints do not flag them as special."""


class Tokenizer:
    """One vocabulary.

    Attributes:
        named: Texts of `bos_token`, `eos_token` and the others that exist, as templates use them.
        chat_template: Jinja source, or None.
        eos_token_ids: Tokens that end a reply.
        bos_token_id: Begin-of-text; None if the vocabulary has none.
        add_bos: The tokenizer puts it before a text by itself.
        special_tokens: Tokens that `tokenize` finds only with `special=True`: those flagged so, and those
            that the template writes (`<think>`, `<tool_call>`).
    """

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        named: dict[str, str] | None = None,
        chat_template: str | None = None,
        eos_token_ids: Iterable[int] = (),
    ):
        self._tokenizer = tokenizers.Tokenizer.from_str(tokenizer.to_str())
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.named = dict(named or {})
        self.chat_template = chat_template
        ids = {name: self._tokenizer.token_to_id(text) for name, text in self.named.items()}
        self.eos_token_ids = frozenset(int(i) for i in eos_token_ids) | (
            {ids['eos_token']} if ids.get('eos_token') is not None else frozenset()
        )
        self.special_tokens = self._special_tokens(set(ids.values()) | self.eos_token_ids)
        self.bos_token_id = ids.get('bos_token')
        first = self._tokenizer.encode('a', add_special_tokens=True).ids[:1]
        self.add_bos = self.bos_token_id is not None and first == [self.bos_token_id]

        flagged = frozenset(
            id for id, token in self._tokenizer.get_added_tokens_decoder().items() if token.special
        )
        self._make_detokenizer = make_detokenizer(self._tokenizer, flagged)
        # Text that does not begin the prompt is tokenized after this token, which no text contains by chance.
        self._anchor = f'\x01{secrets.token_hex(16)}\x01'
        source = self._tokenizer.to_str()
        data = json.loads(source)
        self.vocab_size = _vocab_size(data)
        self._puts_space = without_first_space(data)[1]
        self._markup = self._with_anchor(source)
        self._content = self._with_anchor(json.dumps(self._without_special(data)))

    @classmethod
    def from_folder(cls, path: str) -> Tokenizer:
        """Open a folder with `tokenizer.json`, using only `tokenizers`.

        The file is followed literally, as in mlc-llm and transformers 4. transformers 5 takes only vocabulary
        and merges from it if tokenizer_config.json names a class (LlamaTokenizer, GemmaTokenizer, ...), and
        places spaces differently: in files in the form of Llama 2, ' Hi' becomes one token instead of two,
        and nothing is prepended after a special token. SentencePiece, with which these models were trained,
        does as the file says. The backend hf still follows the installed transformers, its reference.

        Raises:
            BackendError: A file is missing or damaged.
        """
        path = os.path.abspath(os.path.expanduser(path))
        file = os.path.join(path, 'tokenizer.json')
        if not os.path.isfile(file):
            return cls._from_sentencepiece(path)
        try:
            tokenizer = tokenizers.Tokenizer.from_file(file)
        except Exception as error:  # the binding raises plain Exception
            raise BackendError(
                f'{file} cannot be read as a tokenizer ({error}); copy it again, or update the package'
                ' tokenizers'
            ) from error
        config = read_json(path, 'tokenizer_config.json')
        named = named_tokens(config, read_json(path, 'special_tokens_map.json'))
        _add_missing(tokenizer, config, named)
        return cls(tokenizer, named, read_chat_template(path, config), read_eos_ids(path))

    @classmethod
    def from_transformers(
        cls, path: str, gguf_file: str | None = None, trust_remote_code: bool = False
    ) -> Tokenizer:
        """Open a folder with `transformers.AutoTokenizer`, so that the ids are the same as there.

        Args:
            path: The folder.
            gguf_file: Name of a GGUF file in the folder.
            trust_remote_code: Whether code of the checkpoint may run.

        Raises:
            BackendError: transformers cannot open it.
        """
        import transformers

        options = {'gguf_file': gguf_file} if gguf_file else {}
        try:
            auto = transformers.AutoTokenizer.from_pretrained(
                path, local_files_only=True, trust_remote_code=trust_remote_code, **options
            )
        except Exception as error:
            if not gguf_file and os.path.isfile(os.path.join(path, 'tokenizer.json')):
                return cls.from_folder(path)  # a class that transformers does not have: the file is enough
            raise BackendError(
                f'{path} has no tokenizer that transformers {transformers.__version__} can open'
                f' ({one_line(error)})'
            ) from error
        tokenizer = getattr(auto, 'backend_tokenizer', None)
        if not isinstance(tokenizer, tokenizers.Tokenizer):
            if not gguf_file and os.path.isfile(os.path.join(path, 'tokenizer.json')):
                return cls.from_folder(path)
            raise BackendError(
                f'{path}: {type(auto).__name__} cannot be turned into a tokenizer.json; save one next to the'
                ' model'
            )
        return cls.from_auto(auto, '' if gguf_file else path)

    @classmethod
    def from_auto(cls, auto, path: str = '') -> Tokenizer:
        """Make one from a tokenizer of transformers.

        Args:
            auto: The tokenizer.
            path: Folder with the other files, if there is one.
        """
        named = {name: str(getattr(auto, name)) for name in NAMES if getattr(auto, name, None)}
        template = auto.chat_template
        if isinstance(template, dict):
            template = template.get('default') or next(iter(template.values()), None)
        if not isinstance(template, str):
            template = read_chat_template(path, {}) if path else None
        return cls(auto.backend_tokenizer, named, template, read_eos_ids(path) if path else ())

    @classmethod
    def _from_sentencepiece(cls, path: str) -> Tokenizer:
        model = os.path.join(path, 'tokenizer.model')
        if not os.path.isfile(model):
            raise BackendError(f'{path} has no tokenizer.json; copy the one of the original model into it')
        try:
            import transformers  # noqa: F401
        except ImportError:
            raise BackendError(
                f'{path} has tokenizer.model but no tokenizer.json: copy the tokenizer.json of the original'
                ' model into it, or let transformers convert it: in the clone of nanochat run '
                " pip install '.[hf]' sentencepiece protobuf"
            ) from None
        return cls.from_transformers(path)

    def tokenize(self, text: str, special: bool = False, preceding: Preceding = Preceding.START) -> list[int]:
        """See `Backend.tokenize`.

        Without `special`, the result has no id of `special_tokens`, except the unknown token for characters
        that the vocabulary lacks.

        Raises:
            ValueError: The text is not valid Unicode.
        """
        if preceding is Preceding.TEXT and self._puts_space:
            tokenizer = self._joined_markup if special else self._joined_content
        else:
            tokenizer = self._markup if special else self._content
        anchored = preceding is not Preceding.START
        try:
            ids = tokenizer.encode(self._anchor + text if anchored else text, add_special_tokens=False).ids
        except (UnicodeEncodeError, TypeError) as error:
            raise ValueError(f'text cannot be tokenized: {error}') from None
        return ids[1:] if anchored else ids

    @functools.cached_property
    def _joined_markup(self) -> tokenizers.Tokenizer:
        return self._with_anchor(json.dumps(without_first_space(json.loads(self._tokenizer.to_str()))[0]))

    @functools.cached_property
    def _joined_content(self) -> tokenizers.Tokenizer:
        return self._with_anchor(
            json.dumps(without_first_space(self._without_special(json.loads(self._tokenizer.to_str())))[0])
        )

    def detokenize(self, ids: Sequence[int]) -> str:
        """Return the text of ids, without special tokens."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

    def detokenizer(self, preceding: Preceding = Preceding.START) -> Detokenizer:
        """Make a detokenizer for one reply; see `Backend.detokenizer`."""
        return self._make_detokenizer(preceding)

    def _special_tokens(self, ids: set) -> tuple[SpecialToken, ...]:
        added = self._tokenizer.get_added_tokens_decoder()
        template = self.chat_template or ''
        return tuple(
            SpecialToken(id, token.content, token.lstrip, token.rstrip)
            for id, token in sorted(added.items())
            if token.special
            or id in ids
            or _MARKUP.fullmatch(token.content)
            or (token.content.strip() and token.content in template)
        )

    def _with_anchor(self, source: str) -> tokenizers.Tokenizer:
        tokenizer = tokenizers.Tokenizer.from_str(source)
        tokenizer.add_special_tokens([tokenizers.AddedToken(self._anchor, normalized=False, special=True)])
        return tokenizer

    def _without_special(self, data: dict) -> dict:
        """This tokenizer's data with its special tokens renamed so that no text contains them. Ids and other
        added tokens stay.
        """
        hidden = {token.text: f'\x01{secrets.token_hex(16)}\x01' for token in self.special_tokens}
        for token in data['added_tokens']:
            if token['content'] in hidden:
                token.update(
                    content=hidden[token['content']],
                    lstrip=False,
                    rstrip=False,
                    single_word=False,
                    normalized=False,
                )
        data['post_processor'] = None
        model = data['model']
        if isinstance(model['vocab'], dict):
            model['vocab'] = {hidden.get(text, text): id for text, id in model['vocab'].items()}
        else:
            model['vocab'] = [[hidden.get(text, text), score] for text, score in model['vocab']]
        if 'merges' in model:
            pairs = (merge.split(' ', 1) if isinstance(merge, str) else merge for merge in model['merges'])
            model['merges'] = [
                [a, b] for a, b in pairs if a not in hidden and b not in hidden and a + b not in hidden
            ]
        if model.get('unk_token') in hidden:
            model['unk_token'] = hidden[model['unk_token']]
        return data


def _add_missing(tokenizer: tokenizers.Tokenizer, config: dict, named: dict[str, str]) -> None:
    """Add tokens that only tokenizer_config.json has, in the order of their ids, with the flags given there,
    as transformers does.
    """
    decoder = config.get('added_tokens_decoder')
    by_id = [item for item in decoder.items() if item[0].isdecimal()] if isinstance(decoder, dict) else []
    for _, token in sorted(by_id, key=lambda item: int(item[0])):
        if not isinstance(token, dict) or not text_of(token):
            continue
        flags = {name: bool(token.get(name, False)) for name in ('single_word', 'lstrip', 'rstrip')}
        special = bool(token.get('special', False))
        added = tokenizers.AddedToken(
            token['content'], normalized=bool(token.get('normalized', not special)), special=special, **flags
        )
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([added])
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    extra = config.get('additional_special_tokens') or config.get('extra_special_tokens')
    extra = list(extra.values()) if isinstance(extra, dict) else extra if isinstance(extra, list) else []
    for text in [*named.values(), *filter(None, map(text_of, extra))]:
        if text not in known:
            tokenizer.add_special_tokens([tokenizers.AddedToken(text, normalized=False, special=True)])


def _vocab_size(data: dict) -> int:
    """How many ids tokenizer.json has, including unused ids in gaps."""
    vocab, added = data['model']['vocab'], [token['id'] for token in data['added_tokens']]
    return 1 + max([*added, *(vocab.values() if isinstance(vocab, dict) else range(len(vocab)))], default=-1)
