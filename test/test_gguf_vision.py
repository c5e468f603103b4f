"""GGUF models that see through their mmproj file: the same ids as libmtmd's own evaluation, and pictures that
are entries of a prompt like any other.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading

import numpy as np
import pytest

pytest.importorskip('llama_cpp')
pytest.importorskip('PIL')
gguf = pytest.importorskip('gguf')

import vision_gguf  # noqa: E402
import vision_words  # noqa: E402
from odd_gguf import copy_with  # noqa: E402
from vision_gguf import FAMILIES, Reference  # noqa: E402

from ros2_nanochat import ChatHistory, NanoLLM  # noqa: E402
from ros2_nanochat.backends.gguf.backend import GGUFBackend  # noqa: E402
from ros2_nanochat.config import ModelConfig  # noqa: E402
from ros2_nanochat.errors import BackendError, EncodingStopped  # noqa: E402

QUESTIONS = ('What is the thing?', ' and the other thing, the one there?', 'Tell me more of the first.')


def picture(seed: int = 0, width: int = 120, height: int = 80) -> np.ndarray:
    return np.asarray(vision_words.picture(seed, width, height))


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    made = {}

    def of(family: str) -> tuple[str, str]:
        if family not in made:
            made[family] = vision_gguf.write_family(str(tmp_path_factory.mktemp(family)), family)
        return made[family]

    return of


@pytest.fixture(scope='module')
def opened(files):
    models = {}

    def of(family: str, which: int = 0) -> NanoLLM:
        """which: another one has read nothing of what the first has."""
        if (family, which) not in models:
            models[family, which] = NanoLLM.from_pretrained(
                files(family)[0],
                max_context_len=1024,
                max_sequences=4,
                threads=1,
                speculation=False,
                flash_attention='on',
            )
        return models[family, which]

    yield of
    for model in models.values():
        model.close()


def say(model, history, new: int = 8):
    reply = generate(model, history, history.embed_chat()[0], history.kv_cache, new)
    assert reply.error is None, reply.error
    history.append('bot', reply)
    return reply


def two_pictures(history) -> None:
    history.append('user', image=picture(1))
    history.append('user', text=QUESTIONS[0])
    history.append('user', image=picture(2, 60, 200))
    history.append('user', text=QUESTIONS[1])


def generate(model, history, prompt, kv_cache=None, new: int = 8):
    return model.generate(
        prompt, kv_cache=kv_cache, max_new_tokens=new, stop_tokens=history.template.stop
    ).wait()


@pytest.mark.parametrize('family', FAMILIES)
def test_a_conversation_with_two_pictures_has_the_ids_of_libmtmds_own_evaluation(files, opened, family):
    model, around = opened(family), '\n' if FAMILIES[family].marker.endswith('\n') else ''
    history = ChatHistory(model)
    two_pictures(history)
    first = say(model, history)
    history.append('user', text=QUESTIONS[2])
    second = say(model, history)
    assert first.usage.image_tokens and second.usage.reused_image_tokens == first.usage.image_tokens

    reference = Reference(*files(family))
    try:
        marker = '<__media__>' + around
        question = f'{marker}{QUESTIONS[0]}{marker}{QUESTIONS[1]}'
        asked = f'<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n'
        ids = reference.evaluate(asked, [picture(1), picture(2, 60, 200)], len(first.tokens))
        assert ids == list(first.tokens)
        more = f'<|im_end|>\n<|im_start|>user\n{QUESTIONS[2]}<|im_end|>\n<|im_start|>assistant\n'
        assert reference.evaluate(more, (), len(second.tokens)) == list(second.tokens)
    finally:
        reference.close()
    assert len(first.tokens) + len(second.tokens) > 4


@pytest.mark.parametrize('family', ['qwen2-vl', 'qwen3-vl', 'gemma3', 'smolvlm'])
def test_what_was_read_is_kept_shared_edited_and_saved(opened, family):
    model = opened(family)
    encoded = model.vision.stats['encoded']
    history = ChatHistory(model)
    history.append('user', 'Hello there.')
    say(model, history)
    two_pictures(history)
    shown = say(model, history)
    assert model.vision.stats['encoded'] <= encoded + 2
    encoded = model.vision.stats['encoded']

    history.append('user', text=QUESTIONS[2])
    saved = model.save_kv(history.kv_cache)
    follow_up = say(model, history)
    usage = follow_up.usage
    assert model.vision.stats['encoded'] == encoded and history.encode_seconds == 0.0
    assert usage.reused_image_tokens == usage.image_tokens == shown.usage.image_tokens
    assert usage.prompt_tokens - usage.reused_tokens < 80

    # saved keys and values in a model that has read nothing, then without any: the same reply
    del history.messages[-1]
    other, prompt = opened(family, 1), history.embed_chat(use_cache=False)[0]
    for data in (saved, None):
        kv_cache = None if data is None else other.load_kv(data)
        again = generate(other, history, prompt, kv_cache)
        assert again.tokens == follow_up.tokens
    assert generate(opened(family, 2), history, prompt, opened(family, 2).load_kv(saved)).usage.reused_tokens

    # edited in front of the pictures: only what stands before the edit is kept
    history.messages[0].text = 'Hello, thing.'
    edited = generate(model, history, history.embed_chat()[0], history.kv_cache)
    fresh = generate(other, history, history.embed_chat(use_cache=False)[0])
    assert edited.tokens == fresh.tokens and edited.usage.reused_image_tokens == 0
    assert model.vision.stats['encoded'] == encoded


@pytest.mark.parametrize('family', ['qwen2-vl', 'smolvlm'])
def test_the_oldest_turns_are_dropped_with_their_pictures(opened, family):
    model = opened(family)
    history = ChatHistory(model)
    dropped = 0
    for n in range(12):
        history.append('user', image=picture(n % 3), text=f'What is the thing number {n}?')
        prompt, _ = history.embed_chat(max_tokens=300, wrap_tokens=200)
        dropped += history.num_dropped
        reply = generate(model, history, prompt, history.kv_cache, new=4)
        assert reply.error is None
        whole = history.embed_chat(use_cache=False)[0]
        history.append('bot', reply)
    fresh = generate(opened(family, 1), history, whole, new=4)
    assert dropped and fresh.tokens == reply.tokens


def test_a_picture_for_eight_robots_is_encoded_once_and_they_read_the_same(opened):
    model = opened('qwen2.5-vl')
    encoded, replies = model.vision.stats['encoded'], [None] * 8

    def robot(n: int) -> None:
        history = ChatHistory(model)
        history.append('user', image=picture(77), text=QUESTIONS[0])
        replies[n] = say(model, history)

    threads = [threading.Thread(target=robot, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert model.vision.stats['encoded'] == encoded + 1
    assert all(reply.tokens == replies[0].tokens for reply in replies)


def test_a_picture_goes_on_beside_the_text_of_others(opened):
    """Rows and ids in one step of the engine: they go into forwards of their own."""
    model = opened('gemma3')
    alone = ChatHistory(model)
    alone.append('user', image=picture(5), text=QUESTIONS[0])
    wanted = say(model, alone).tokens
    texts = [model.generate(f'The thing {n} is', max_new_tokens=60) for n in range(2)]
    history = ChatHistory(model)
    history.append('user', image=picture(5), text=QUESTIONS[0])
    assert say(model, history).tokens == wanted
    assert all(text.wait().error is None for text in texts)


def test_a_large_picture_in_pieces_may_be_cut_anywhere_between_turns(opened):
    """M-RoPE: all rows of a picture share one position of llama.cpp, so its KV goes or stays as a whole."""
    model = opened('qwen2-vl')
    history = ChatHistory(model)
    history.append('user', image=picture(8, 400, 300), text=QUESTIONS[0])
    first = say(model, history)
    assert first.usage.image_tokens > 2 * model.backend.max_chunk_tokens
    other = ChatHistory(model)
    other.append('user', image=picture(8, 400, 300), text=QUESTIONS[2])
    assert say(model, other).usage.reused_image_tokens in (0, first.usage.image_tokens)
    history.append('user', text=QUESTIONS[1])
    assert say(model, history).usage.reused_image_tokens == first.usage.image_tokens


@pytest.mark.parametrize('family', ['qwen2-vl', 'pixtral'])
def test_image_max_tokens_limits_the_tokens_of_a_picture(files, opened, family):
    large = picture(4, 640, 480)
    own = opened(family).embed_image(large).num_tokens
    with NanoLLM.from_pretrained(
        files(family)[0], max_context_len=512, max_sequences=1, threads=1, image_max_tokens=24
    ) as model:
        assert 8 <= model.embed_image(large).num_tokens <= 32 < own


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('size', [(1, 1), (1, 90), (1000, 10)], ids=str)
def test_an_odd_picture_is_seen_or_refused_in_one_line(opened, family, size):
    try:
        assert opened(family).embed_image(picture(0, 200, 200)[: size[1], : size[0]]).num_tokens
    except BackendError as error:
        assert f'{size[0]}x{size[1]}' in str(error) and '\n' not in str(error)


def test_markup_that_a_vocabulary_lacks_is_left_out(files, tmp_path):
    """libmtmd has the id -1 for it, which llama.cpp refuses."""
    model = str(tmp_path / 'smolvlm.gguf')
    vision_gguf.write_text_model(model, 'smolvlm', without='<global-img>')
    with NanoLLM.from_pretrained(
        model, vision=files('smolvlm')[1], max_context_len=512, max_sequences=1, threads=1
    ) as opened:
        history = ChatHistory(opened)
        history.append('user', image=picture(), text=QUESTIONS[0])
        assert say(opened, history).usage.image_tokens


# --- which file ---


def test_the_mmproj_beside_the_model_is_found_and_the_choice_is_said(files, tmp_path, caplog):
    model, mmproj = files('qwen2-vl')
    shutil.copy(model, tmp_path / 'small-qwen-Q4_0.gguf')
    for name in ('mmproj-small-qwen-Q8_0', 'mmproj-small-qwen-f16', 'mmproj-other-model-f16'):
        shutil.copy(mmproj, tmp_path / f'{name}.gguf')
    with caplog.at_level(logging.INFO):
        with NanoLLM.from_pretrained(
            str(tmp_path), api='gguf', max_context_len=256, max_sequences=1, threads=1
        ) as opened:
            assert opened.has_vision
    assert 'mmproj-small-qwen-f16.gguf is taken of 3' in caplog.text
    with NanoLLM.from_pretrained(
        str(tmp_path), api='gguf', vision='none', max_context_len=256, max_sequences=1, threads=1
    ) as opened:
        assert not opened.has_vision


def test_the_memory_of_the_vision_part_is_in_the_estimate(files):
    model, mmproj = files('qwen2-vl')
    without = GGUFBackend.estimate(model, ModelConfig(model=model, vision='none'))
    beside = GGUFBackend.estimate(model, ModelConfig(model=model))
    assert beside.weights - without.weights == os.path.getsize(mmproj)
    assert beside.overhead > without.overhead


# --- bad files ---


def refused(model: str, vision, **options) -> str:
    with pytest.raises((BackendError, ValueError)) as error:
        NanoLLM.from_pretrained(
            model, vision=str(vision), max_context_len=256, max_sequences=1, threads=1, **options
        )
    assert '\n' not in str(error.value) and str(vision) in str(error.value)
    return str(error.value)


def test_a_vision_part_that_cannot_be_used_is_refused_in_one_line(files, tmp_path):
    model, mmproj = files('qwen2-vl')
    vision_gguf.write_mmproj(tmp_path / 'wide.gguf', 'qwen2-vl', width=96)
    assert 'embeddings of 96, and those of this model are 64 wide' in refused(model, tmp_path / 'wide.gguf')
    vision_gguf.write_mmproj(tmp_path / 'new.gguf', 'qwen2-vl', projector='of_next_year')
    assert 'of_next_year' in refused(model, tmp_path / 'new.gguf')
    with open(mmproj, 'rb') as file:
        data = file.read()
    for share in (0.02, 0.5, 0.98):
        (tmp_path / 'cut.gguf').write_bytes(data[: int(share * len(data))])
        assert 'cut short' in refused(model, tmp_path / 'cut.gguf')
    assert 'not the vision part of a model' in refused(model, model)
    assert 'does not exist' in refused(model, tmp_path / 'nowhere.gguf')
    (tmp_path / 'empty.gguf').write_bytes(b'')
    assert 'not a GGUF file' in refused(model, tmp_path / 'empty.gguf')


def test_a_file_for_which_libmtmd_ends_the_process_is_one_line(files, tmp_path):
    model, mmproj = files('qwen3-vl')
    copy_with(mmproj, tmp_path / 'odd.gguf', {'clip.vision.attention.head_count': 5})
    refused(model, tmp_path / 'odd.gguf')
    reader = gguf.GGUFReader(mmproj)
    tensors = {t.name: np.array(t.data) for t in reader.tensors}
    copy_with(
        mmproj, tmp_path / 'odd.gguf', tensors={'v.blk.0.ln1.weight': tensors['v.blk.0.ln1.weight'][:7]}
    )
    assert 'ends the process' in refused(model, tmp_path / 'odd.gguf')


def test_a_vision_part_beside_a_model_that_does_not_fit_costs_a_warning(files, tmp_path, caplog):
    shutil.copy(files('llava')[0], tmp_path / 'model.gguf')
    vision_gguf.write_mmproj(tmp_path / 'mmproj-model.gguf', 'llava', width=96)
    with NanoLLM.from_pretrained(
        str(tmp_path / 'model.gguf'), max_context_len=256, max_sequences=1, threads=1
    ) as model:
        assert not model.has_vision
    assert 'opened without vision' in caplog.text and 'embeddings of 96' in caplog.text


# --- beside others, stopping ---


def test_a_conversation_about_a_known_picture_begins_while_another_one_is_encoded(opened, monkeypatch):
    model, held, made = opened('llava'), threading.Event(), []
    model.embed_image(picture(903))
    images = model.backend.image_embedder
    pieces = images._mtmd.pieces
    monkeypatch.setattr(images._mtmd, 'pieces', lambda pixels: held.wait(60) and pieces(pixels))
    encoding = threading.Thread(target=lambda: model.embed_image(picture(904)))
    encoding.start()

    def begin() -> None:
        history = ChatHistory(model)
        history.append('user', image=picture(903), text=QUESTIONS[0])
        made.append(history.embed_chat()[0])

    begun = threading.Thread(target=begin)
    begun.start()
    begun.join(20)
    waited = begun.is_alive()
    held.set()
    encoding.join()
    begun.join()
    assert made and not waited


def test_an_encoding_that_nobody_waits_for_is_stopped(opened):
    model = opened('llava')
    with pytest.raises(EncodingStopped):
        model.embed_image(picture(901), stopped=lambda: True)
    assert model.embed_image(picture(901)).num_tokens  # and later it is done


def test_a_closed_model_sees_nothing(files):
    model = NanoLLM.from_pretrained(files('llava')[0], max_context_len=256, max_sequences=1, threads=1)
    model.close()
    with pytest.raises(BackendError, match='closed'):
        model.embed_image(picture(902))
