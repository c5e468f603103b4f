"""Vocabularies and templates of model families, built here: for each, our side of a model and transformers'
tokenizer as the oracle.

The templates are written after what the models' authors document, each with traits that have tripped others:
white space beside special tokens, stripped contents, a default system prompt, refusals, reasoning that is
dropped.
"""

from __future__ import annotations

import functools
from types import SimpleNamespace

import tokenizers
import transformers
from small_vocabularies import train_sentencepiece_kind
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from ros2_nanochat.backends.tokenizer import Tokenizer
from ros2_nanochat.model_info import ModelInfo
from ros2_nanochat.prompt import Preceding

CORPUS = [
    'The robot drives to the kitchen and says: hello, how are you today?',
    'What is the capital of Japan? It is Tokyo.',
    'Grüße aus Köln!',
    'def main():\n    print("naïve café", 1 + 2)\n',
    '東京は日本の首都です。',
    'user system assistant model im start end s inst INST tool | eot id think',
    '🤖🙂 emoji 👩‍🚀',
    'You are a helpful assistant.\n\n',
] * 20

# https://www.llama.com/docs/model-cards-and-prompt-formats/meta-llama-3/: contents are trimmed
LLAMA_3 = """{%- for message in messages %}
{%- if loop.first %}{{ bos_token }}{% endif %}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim
    + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""

# https://huggingface.co/Qwen/Qwen2.5-0.5B-Instruct: a default system prompt
QWEN_2 = """{%- if messages[0].role != 'system'
    %}{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}
{%- for message in messages %}
{%- if message.role == 'tool' %}
{{- '<|im_start|>user\n<tool_response>\n' + message.content + '\n</tool_response><|im_end|>\n' }}
{%- else %}
{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

# https://huggingface.co/Qwen/Qwen3-0.6B: reasoning stays behind the last question and is dropped before it
QWEN_3 = """{%- set ns = namespace(last=messages|length - 1, looking=true) %}
{%- for message in messages[::-1] %}
{%- set index = messages|length - 1 - loop.index0 %}
{%- if ns.looking and message.role == 'user' and message.content is string
    and not message.content.startswith('<tool_response>') %}
{%- set ns.looking = false %}{%- set ns.last = index %}
{%- endif %}
{%- endfor %}
{%- for message in messages %}
{%- set content = message.content if message.content is string else '' %}
{%- if message.role == 'assistant' %}
{%- set reasoning = '' %}
{%- if message.reasoning_content is string %}
{%- set reasoning = message.reasoning_content %}
{%- elif '</think>' in content %}
{%- set reasoning = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\n') %}
{%- endif %}
{%- if loop.index0 > ns.last and reasoning %}
{{- '<|im_start|>assistant\n<think>\n' + reasoning.strip('\n') + '\n</think>\n\n' + content.lstrip('\n')
    + '<|im_end|>\n' }}
{%- else %}
{{- '<|im_start|>assistant\n' + content + '<|im_end|>\n' }}
{%- endif %}
{%- else %}
{{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

# https://huggingface.co/deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B: looks for the reasoning in the content,
# opens it for the model
DEEPSEEK_R1 = """{{ bos_token }}
{%- for message in messages %}
{%- if message['role'] == 'system' %}{{ message['content'] }}
{%- elif message['role'] == 'user' %}{{ '<｜User｜>' + message['content'] }}
{%- else %}
{%- set content = message['content'] %}
{%- if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}
{{- '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}"""

# https://huggingface.co/microsoft/Phi-3-mini-4k-instruct: its tokens take the white space behind them; where
# no reply follows, the text ends
PHI_3 = """{% for message in messages %}
{{'<|' + message['role'] + '|>' + '\n' + message['content'] + '<|end|>\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"""

# https://ai.google.dev/gemma/docs/core/prompt-structure: no system role, roles alternate, contents are
# trimmed
GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system'
    %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for message in messages %}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0)
    %}{{ raise_exception('Conversation roles must alternate') }}{% endif %}
{{- '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n'
    + message['content'] | trim + '<end_of_turn>\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""

# https://ai.google.dev/gemma/docs/core/prompt-structure, as of Gemma 3: the system prompt goes into the first
# message, images are parts
GEMMA_3 = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' %}
{%- set prefix = (messages[0]['content'] if messages[0]['content'] is string
    else messages[0]['content'][0]['text']) + '\n\n' %}
{%- set rest = messages[1:] %}
{%- else %}{% set prefix = '' %}{% set rest = messages %}{% endif %}
{%- for message in rest %}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0)
    %}{{ raise_exception('Conversation roles must alternate') }}{% endif %}
{{- '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n'
    + (prefix if loop.first else '') }}
{%- if message['content'] is string %}{{ message['content'] | trim }}
{%- else %}{% for part in message['content'] %}
{%- if part['type'] == 'image' %}{{ '<start_of_image>' }}{% else %}{{ part['text'] | trim }}{% endif %}
{%- endfor %}{% endif %}
{{- '<end_of_turn>\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""

# https://docs.mistral.ai/guides/tokenization/: no system role here, blanks around contents, nothing to begin
# a reply
MISTRAL = """{{ bos_token }}{% for message in messages %}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0)
    %}{{ raise_exception('roles must alternate user/assistant') }}{% endif %}
{%- if message['role'] == 'user' %}{{ '[INST] ' + message['content'].strip() + ' [/INST]' }}
{%- else %}{{ ' ' + message['content'].strip() + eos_token }}{% endif %}
{%- endfor %}"""

# https://huggingface.co/blog/llama2#how-to-prompt-llama-2: the system prompt inside the first message, every
# exchange begins anew
LLAMA_2 = """{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set
    system = messages[0]['content'] %}
{%- else %}{% set rest = messages %}{% set system = false %}{% endif %}
{%- for message in rest %}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0)
    %}{{ raise_exception('roles must alternate') }}{% endif %}
{%- set content = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + message['content'] if loop.first and system
    else message['content'] %}
{%- if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
{%- else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}
{%- endfor %}"""


def _special(*texts, **options):
    return [AddedToken(text, normalized=False, special=True, **options) for text in texts]


def _plain(*texts):
    return [AddedToken(text, normalized=False, special=False) for text in texts]


_HEADS = ('<|begin_of_text|>', '<|end_of_text|>', '<|start_header_id|>', '<|end_header_id|>', '<|eot_id|>')
_CHAT_ML = ('<|endoftext|>', '<|im_start|>', '<|im_end|>')
# kind of vocabulary, template, added tokens, begin and end of text
FAMILIES = {
    'llama-3': ('bytes', LLAMA_3, _special(*_HEADS), '<|begin_of_text|>', '<|eot_id|>'),
    'qwen-2': (
        'bytes',
        QWEN_2,
        [*_special(*_CHAT_ML), *_plain('<tool_response>', '</tool_response>')],
        None,
        '<|im_end|>',
    ),
    'qwen-3': ('bytes', QWEN_3, [*_special(*_CHAT_ML), *_plain('<think>', '</think>')], None, '<|im_end|>'),
    'deepseek': (
        'bytes',
        DEEPSEEK_R1,
        [
            *_special('<｜begin▁of▁sentence｜>', '<｜end▁of▁sentence｜>', '<｜User｜>', '<｜Assistant｜>'),
            *_plain('<think>', '</think>'),
        ],
        '<｜begin▁of▁sentence｜>',
        '<｜end▁of▁sentence｜>',
    ),
    'phi-3': (
        'prepend',
        PHI_3,
        _special('<|user|>', '<|assistant|>', '<|system|>', '<|end|>', '<|endoftext|>', rstrip=True),
        '<s>',
        '<|endoftext|>',
    ),
    'gemma': (
        'gemma',
        GEMMA,
        [
            *_special('<start_of_turn>', '<end_of_turn>'),
            *_plain('<h1>', '</h1>', '\n\n', '\n\n\n', '▁▁', '▁▁▁'),
        ],
        '<s>',
        '</s>',
    ),
    'gemma-3': (
        'gemma',
        GEMMA_3,
        [
            *_special('<start_of_turn>', '<end_of_turn>', '<start_of_image>', '<end_of_image>'),
            *_plain('<h1>', '\n\n', '▁▁'),
        ],
        '<s>',
        '</s>',
    ),
    'mistral': ('metaspace', MISTRAL, _special('[INST]', '[/INST]'), '<s>', '</s>'),
    'llama-2': ('prepend', LLAMA_2, [], '<s>', '</s>'),
}


def train(kind: str) -> tokenizers.Tokenizer:
    """A small vocabulary: of bytes (GPT-2's kind), or of SentencePiece's kind as it comes in tokenizer.json
    files.
    """
    if kind == 'bytes':
        t = tokenizers.Tokenizer(models.BPE(ignore_merges=True))
        t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        t.decoder = decoders.ByteLevel()
        t.train_from_iterator(
            CORPUS,
            trainers.BpeTrainer(
                vocab_size=600, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
            ),
        )
        return t
    return train_sentencepiece_kind(kind, CORPUS)


class TextModel:
    """What `chat` needs of a model, with a tokenizer and no weights."""

    has_embed = has_vision = False
    vision = None

    def __init__(
        self,
        tokenizer: Tokenizer,
        name: str,
        chat_template: str | None,
        add_bos: bool,
        context_length: int = 1 << 20,
    ):
        self.tokenizer = tokenizer
        self.info = ModelInfo(
            name=name,
            api='hf',
            architecture='',
            path='',
            context_length=context_length,
            train_context_length=context_length,
            vocab_size=tokenizer.vocab_size,
            embedding_size=8,
            eos_token_ids=tokenizer.eos_token_ids,
            bos_token_id=tokenizer.bos_token_id,
            add_bos=add_bos,
            named_tokens=tokenizer.named,
            special_tokens=tokenizer.special_tokens,
            chat_template=chat_template,
        )

    def tokenize(self, text, special=False, preceding=Preceding.START):
        return self.tokenizer.tokenize(text, special, preceding)

    def detokenize(self, ids):
        return self.tokenizer.detokenize(ids)


@functools.cache
def family(name: str, with_template: bool = True) -> SimpleNamespace:
    """`model` (ours) and `oracle` (transformers' tokenizer) of a family."""
    kind, template, added, bos, eos = FAMILIES[name]
    base = train(kind)
    for token in added:
        base.add_special_tokens([token]) if token.special else base.add_tokens([token])
    named = {key: text for key, text in (('bos_token', bos), ('eos_token', eos)) if text}
    oracle = transformers.PreTrainedTokenizerFast(tokenizer_object=base, chat_template=template, **named)
    template = template if with_template else None
    tokenizer = Tokenizer(base, named, template, [base.token_to_id(eos)])
    return SimpleNamespace(model=TextModel(tokenizer, name, template, add_bos=bos is not None), oracle=oracle)


def reference_ids(oracle, messages, **options) -> list[int]:
    """ids of transformers for a conversation."""
    options.setdefault('add_generation_prompt', messages[-1]['role'] != 'assistant')
    return oracle.apply_chat_template(messages, tokenize=True, return_dict=True, **options)['input_ids']
