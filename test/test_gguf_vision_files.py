"""Vision parts of GGUF models as files: where they are found, and damaged ones, which never end a process."""

from __future__ import annotations

import io
import os
import random
import resource
import shutil

import numpy as np
import pytest

pytest.importorskip('llama_cpp')
pytest.importorskip('PIL')
gguf = pytest.importorskip('gguf')

import vision_gguf  # noqa: E402
import vision_words  # noqa: E402
from PIL import Image  # noqa: E402

from ros2_nanochat import ChatHistory, NanoLLM  # noqa: E402
from ros2_nanochat.backends.gguf import images  # noqa: E402
from ros2_nanochat.backends.gguf.mtmd import Mtmd  # noqa: E402
from ros2_nanochat.errors import BackendError  # noqa: E402
from ros2_nanochat.locate import choose_mmproj, mmproj_near  # noqa: E402


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    return vision_gguf.write_family(str(tmp_path_factory.mktemp('files')), 'qwen2-vl')


def open_small(model, **options):
    return NanoLLM.from_pretrained(str(model), max_context_len=256, max_sequences=1, threads=1, **options)


# --- where they are found ---


@pytest.mark.parametrize(
    'model, others, found',
    [
        ('m.gguf', ['mmproj-model-f16.gguf'], 'mmproj-model-f16.gguf'),
        ('m.gguf', ['m.mmproj-Q8_0.gguf', 'notes.txt'], 'm.mmproj-Q8_0.gguf'),
        ('m.gguf', ['mmproj/model-f16.gguf'], 'mmproj/model-f16.gguf'),
        ('m.gguf', ['vision/mmproj-F16.gguf', 'vision/mmproj-BF16.gguf'], 'vision/mmproj-F16.gguf'),
        ('UD-Q4/m-00001-of-00002.gguf', ['mmproj-F16.gguf', 'm-Q8_0.gguf'], 'mmproj-F16.gguf'),
        ('Q8_0/m.gguf', ['mmproj-m-F32.gguf', 'Q8_0/mmproj-m-Q8_0.gguf'], 'Q8_0/mmproj-m-Q8_0.gguf'),
        ('m-Q8_0.gguf', ['mmproj-m-Q8_0.gguf', 'mmproj-m-f16.gguf'], 'mmproj-m-f16.gguf'),
        ('m.gguf', ['qwen/mmproj-F16.gguf', 'qwen/qwen.gguf'], None),  # of the model beside it
        ('m/m.gguf', ['mmproj-qwen-F16.gguf', 'qwen.gguf'], None),
        ('m.gguf', ['mmproj-readme.txt'], None),
        ('m.gguf', ['mmproj-m-f16.gguf/', 'mmproj-m-Q8_0.gguf'], 'mmproj-m-Q8_0.gguf'),  # a folder
    ],
)
def test_where_the_vision_part_of_a_model_is_looked_for(tmp_path, model, others, found):
    for name in [model, *others]:
        os.makedirs(tmp_path / os.path.dirname(name), exist_ok=True)
        if not name.endswith('/'):
            (tmp_path / name).write_bytes(b'GGUF')
    assert mmproj_near(str(tmp_path / model)) == (found and str(tmp_path / found))


def test_the_name_of_the_model_decides_before_the_form():
    names = ['mmproj-model-f16.gguf', 'mmproj-gemma-3-4b-it-f16.gguf', 'mmproj-gemma-3-12b-it-Q8_0.gguf']
    assert choose_mmproj(names, 'gemma-3-12b-it-Q4_K_M.gguf') == names[2]
    assert choose_mmproj(names, 'gemma-3-4b-it-Q8_0.gguf') == names[1]


def test_a_vision_part_in_the_folder_above_is_opened(files, tmp_path):
    model, mmproj = files
    (tmp_path / 'Q4_0').mkdir()
    shutil.copy(model, tmp_path / 'Q4_0' / 'small.gguf')
    shutil.copy(mmproj, tmp_path / 'mmproj-F16.gguf')
    with open_small(tmp_path / 'Q4_0' / 'small.gguf') as opened:
        assert opened.has_vision


@pytest.mark.parametrize('name, what', [('folder', 'it has no config.json'), ('notes.txt', 'it is a file')])
def test_what_holds_no_vision_part_is_refused_with_a_word_of_what_to_name(files, tmp_path, name, what):
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'notes.txt').write_text('nothing')
    with pytest.raises(BackendError, match=f'{what}; name the mmproj file of the model, or the folder of'):
        open_small(files[0], vision=str(tmp_path / name))


# --- damaged files ---


def fails_in_one_line_or_sees(model, path) -> bool:
    try:
        with open_small(model, vision=str(path)) as opened:
            opened.embed_image(vision_words.picture(0, 120, 80))
        return True
    except (BackendError, ValueError) as error:
        assert '\n' not in str(error) and len(str(error)) < 800
        return False


def damaged(data: bytes, chance: random.Random) -> bytes:
    """With a flipped bit in the head, or two."""
    head = data.index(b'v.patch_embd.weight') + 2048
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2))):
        changed[chance.randrange(head)] ^= 1 << chance.randrange(8)
    return bytes(changed)


@pytest.mark.parametrize('seed', range(12))
def test_a_vision_part_that_is_cut_anywhere_is_refused(files, tmp_path, seed):
    model, mmproj = files
    with open(mmproj, 'rb') as file:
        data = file.read()
    chance = random.Random(seed)
    at = chance.randrange(4096) if seed % 2 else chance.randrange(len(data) - 64)
    (tmp_path / 'cut.gguf').write_bytes(data[:at])
    assert not fails_in_one_line_or_sees(model, tmp_path / 'cut.gguf')


@pytest.mark.parametrize(
    'family, count',
    [('qwen2-vl', 2), *(pytest.param(f, 40, marks=pytest.mark.long) for f in ('llava', 'smolvlm'))],
)
def test_a_vision_part_with_flipped_bits_never_ends_the_process(tmp_path, family, count):
    model, mmproj = vision_gguf.write_family(str(tmp_path), family)
    with open(mmproj, 'rb') as file:
        data = file.read()
    for seed in range(count):
        path = tmp_path / f'flipped-{seed}.gguf'
        path.write_bytes(damaged(data, random.Random(seed)))
        fails_in_one_line_or_sees(model, path)


# --- odd pictures ---


def encoded(picture, form: str, **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def test_files_of_any_kind_are_seen(files):
    picture = vision_words.picture(3, 120, 80)
    palette, exif = picture.convert('P'), Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    kinds = {
        'RGBA': encoded(picture.convert('RGBA'), 'PNG'),
        'palette': encoded(palette, 'PNG'),
        '16 bits': encoded(Image.fromarray(np.asarray(picture.convert('L')).astype(np.uint16) * 257), 'PNG'),
        'CMYK': encoded(picture.convert('CMYK'), 'JPEG'),
        'animated': encoded(palette, 'GIF', save_all=True, append_images=[palette, palette]),
    }
    turned = encoded(picture, 'JPEG', exif=exif)
    with open_small(files[0]) as model:
        upright = model.embed_image(picture)
        assert {name: model.embed_image(data).num_tokens for name, data in kinds.items()} == dict.fromkeys(
            kinds, upright.num_tokens
        )
        (before,), (after,) = upright[1:-1], model.embed_image(turned)[1:-1]
        assert (
            np.ptp(before.positions, axis=1).tolist()[1:] == np.ptp(after.positions, axis=1).tolist()[:0:-1]
        )


def test_a_picture_that_is_too_long_or_too_large_for_the_context_is_one_line(files):
    with open_small(files[0]) as model:
        for size in ((1, 10_000), (10_000, 50)):
            with pytest.raises(ValueError, match=f'{size[0]}x{size[1]} pixels, at most 100 times'):
                model.embed_image(np.zeros((size[1], size[0], 3), np.uint8))
        history = ChatHistory(model)
        history.append('user', image=vision_words.picture(0, 400, 300), text='What is it?')
        with pytest.raises(ValueError, match='a context of 256.: shorten it, lower image_max_tokens, or'):
            history.embed_chat()


def test_50_million_pixels_are_seen_in_bounded_memory(tmp_path):
    model, _ = vision_gguf.write_family(str(tmp_path), 'llava')
    with open_small(model) as opened:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert opened.embed_image(np.zeros((6250, 8000, 3), np.uint8)).num_tokens
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after - before < 1.2e6  # KiB; the pixels are 150 MB, and libmtmd copies them twice


@pytest.mark.parametrize('most', [1, 5])
def test_image_max_tokens_may_be_below_the_least_that_a_model_takes(files, most):
    with open_small(files[0], image_max_tokens=most) as model:
        assert 1 <= model.embed_image(vision_words.picture(0, 400, 300)).num_tokens <= 2 * most


def test_whatever_stops_the_opening_of_a_vision_part_frees_it(files, monkeypatch):
    freed, close = [], Mtmd.close

    def fail(mtmd):
        raise MemoryError('no room')

    def closing(mtmd):
        freed.append(mtmd._context)
        close(mtmd)

    monkeypatch.setattr(Mtmd, '_check_place', fail)
    monkeypatch.setattr(Mtmd, 'close', closing)
    with pytest.raises((MemoryError, BackendError), match='no room'):
        open_small(files[0])
    assert len(freed) == 1 and freed[0]


def test_each_picture_on_trial_is_begun_however_slow_the_encoder(files, monkeypatch):
    monkeypatch.setattr(images, '_SMALL', 0)  # so that it can be stopped
    monkeypatch.setattr(images, '_TRIAL', 0.0)
    monkeypatch.setattr(images, '_TRIAL_OF_NARROW', 0.0)
    with open_small(files[0]) as model:
        embedder = model.backend.image_embedder
        for narrow in (False, True):
            before = embedder._mtmd.num_begun
            embedder.try_pictures(narrow)
            assert embedder._mtmd.num_begun - before >= 3
        assert model.embed_image(np.zeros((40, 120, 3), np.uint8)).num_tokens
