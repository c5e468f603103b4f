"""Every projector that libmtmd knows: the ids of its own evaluation, or one line that says why not."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip('llama_cpp')
pytest.importorskip('PIL')
pytest.importorskip('gguf')

import vision_gguf
import vision_words
from odd_gguf import copy_with
from vision_gguf import FAMILIES, Reference
from vision_projectors import PROJECTORS, write_files, write_projector

from ros2_nanochat import ChatHistory, NanoLLM
from ros2_nanochat.backends.gguf.row_breaks import RowBreaks
from ros2_nanochat.errors import BackendError

QUICK = ('moondream', 'minicpm-v-2.6', 'minicpm-v-4.6', 'glm-4v', 'gemma4-unified')
PLACE = ('deepseek4-vision', 'hunyuan-vl')
"""Whose pictures depend on where they stand in a prompt."""
WHOLE = ('gemma4', 'gemma4-unified')
"""Whose pictures attend to themselves both ways and have more rows than the batches of the others."""

KNOWN = {made.family.projector for made in PROJECTORS.values()} | {f.projector for f in FAMILIES.values()}
AUDIO = {
    *('gemma3na', 'gemma4a', 'gemma4ua', 'glma', 'granite_speech', 'lfm2a', 'meralion', 'mimo_audio'),
    *('musicflamingo', 'parakeet', 'qwen2a', 'qwen2.5o', 'qwen3a', 'ultravox', 'voxtral', 'dots3note_a'),
    *('qwen3tts_spkenc', 'qwen3tts_gen', 'pockettts_spkenc', 'pockettts_gen'),
}
"""Of models that hear, of which one (Qwen2.5-Omni) also sees, as Qwen2.5-VL does."""

QUESTIONS = ('What is the thing?', ' and the other thing, the one there?', 'Tell me more of the first.')


def long_unless_quick(names) -> list:
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.long) for name in names]


def open_small(model, **options):
    return NanoLLM.from_pretrained(
        str(model), max_context_len=256, max_sequences=1, threads=1, speculation=False, **options
    )


def pictures() -> list[np.ndarray]:
    return [np.asarray(vision_words.picture(n, *size)) for n, size in enumerate(((120, 80), (60, 200)))]


@pytest.mark.parametrize('name', long_unless_quick(name for name in PROJECTORS if name not in PLACE))
def test_a_conversation_with_two_pictures_has_the_ids_of_libmtmds_own_evaluation(tmp_path, name):
    files = write_files(tmp_path, name)
    shown, marker = pictures(), PROJECTORS[name].family.marker
    with NanoLLM.from_pretrained(
        files[0],
        max_context_len=2048,
        max_sequences=1,
        threads=1,
        speculation=False,
        flash_attention='on',
    ) as model:
        history, replies = ChatHistory(model), []
        for picture, text in zip(shown, QUESTIONS):
            history.append('user', image=picture)
            history.append('user', text=text)
        for text in ('', QUESTIONS[2]):
            if text:
                history.append('user', text=text)
            prompt = history.embed_chat()[0]
            options = {'max_new_tokens': 8, 'stop_tokens': history.template.stop}
            reply = model.generate(prompt, kv_cache=history.kv_cache, **options).wait()
            assert reply.error is None, reply.error
            history.append('bot', reply)
            replies.append(reply)
    first, second = replies
    assert first.usage.image_tokens and second.usage.reused_image_tokens == first.usage.image_tokens

    reference = Reference(*files, batch=512 if name in WHOLE else 63)
    try:
        around = '<__media__>' + marker[len(marker.rstrip()) :]
        question = f'{around}{QUESTIONS[0]}{around}{QUESTIONS[1]}'
        asked = f'<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n'
        assert reference.evaluate(asked, shown, len(first.tokens)) == list(first.tokens)
        more = f'<|im_end|>\n<|im_start|>user\n{QUESTIONS[2]}<|im_end|>\n<|im_start|>assistant\n'
        assert reference.evaluate(more, (), len(second.tokens)) == list(second.tokens)
    finally:
        reference.close()
    assert len(first.tokens) + len(second.tokens) > 4


def test_ends_of_rows_that_libmtmd_leaves_without_a_value_are_filled_in(tmp_path, monkeypatch):
    import llama_cpp.mtmd_cpp as lib

    model, mmproj = write_files(tmp_path, 'mistral3')
    picture = pictures()[0]
    with open_small(model, vision=mmproj) as opened:
        mtmd = opened.backend.image_embedder._mtmd
        expected = mtmd.pieces(picture)
        rows = next(piece.rows for piece in expected if piece.rows is not None)
        ends = np.flatnonzero((rows == RowBreaks(mmproj)._embedding).all(axis=1))
        assert len(ends) > 1 and not {0, len(rows) - 1} & set(ends)
        encode = lib.mtmd_encode_chunk

        def leave(places):
            def encode_and_leave(context, chunk):
                code = encode(context, chunk)
                array = np.ctypeslib.as_array(lib.mtmd_get_output_embd(context), rows.shape)
                array[places, ::2], array[places, 1] = np.nan, np.inf  # not all of their values
                return code

            monkeypatch.setattr(lib, 'mtmd_encode_chunk', encode_and_leave)

        leave(ends)
        filled = next(piece.rows for piece in mtmd.pieces(picture) if piece.rows is not None)
        assert filled.tobytes() == rows.tobytes()
        for places in (range(len(rows)), [1], [*ends, 1], [*ends, len(rows) - 1]):
            leave(places)
            with pytest.raises(BackendError, match='damaged'):
                mtmd.pieces(picture)


@pytest.mark.parametrize('name', [PLACE[0], pytest.param(PLACE[1], marks=pytest.mark.long)])
def test_a_model_whose_pictures_depend_on_their_place_is_refused(tmp_path, name):
    model, mmproj = write_files(tmp_path, name)
    with pytest.raises(BackendError) as error:
        open_small(model, vision=mmproj)
    assert mmproj in str(error.value) and 'not supported; use another model' in str(error.value)


@pytest.mark.long
@pytest.mark.parametrize('projector', sorted(KNOWN | AUDIO))
def test_a_projector_whose_tensors_are_missing_is_refused_in_one_line(tmp_path, projector):
    vision_gguf.write_text_model(tmp_path / 'model.gguf', 'llava')
    vision_gguf.write_mmproj(tmp_path / 'odd.gguf', 'llava', projector=projector)
    try:
        open_small(tmp_path / 'model.gguf', vision=str(tmp_path / 'odd.gguf')).close()
    except BackendError as error:
        assert '\n' not in str(error) and 'odd.gguf' in str(error)
    else:
        assert projector == 'mlp'


def test_each_projector_that_the_package_of_llama_cpp_names_is_known_here():
    import gguf

    names = {value for key, value in vars(gguf.VisionProjectorType).items() if key.isupper()}
    assert names <= KNOWN | AUDIO | {'hunyuanocr'}  # which files of HunyuanOCR do not use any more


@pytest.mark.long
@pytest.mark.parametrize('name', [name for name in PROJECTORS if name not in PLACE])
def test_pictures_of_odd_shapes_never_end_the_process(tmp_path, name):
    files = write_files(tmp_path, name)
    sizes = (1, 1), (90, 1), (1000, 10), (10, 1000), (3000, 40), (7, 7), (31, 33), (333, 77), (1023, 513)
    with open_small(files[0]) as model:
        for width, height in sizes:
            try:
                assert model.embed_image(np.zeros((height, width, 3), np.uint8)).num_tokens
            except BackendError as error:
                assert f'{width}x{height}' in str(error) and '\n' not in str(error)


def test_narrow_pictures_that_end_the_process_are_refused(tmp_path):
    """Gemma 4 looks positions up in a table; that of this file is too short for a picture of 3000x40."""
    with open_small(write_files(tmp_path, 'gemma4')[0]) as model:
        assert model.embed_image(np.zeros((40, 120, 3), np.uint8)).num_tokens
        with pytest.raises(BackendError, match='3000x40.*more than 4 times as long as wide'):
            model.embed_image(np.zeros((40, 3000, 3), np.uint8))


# --- damaged files ---


@pytest.mark.parametrize(
    'changed, found',
    [
        ({'block_count': 0}, 'block_count is 0'),
        pytest.param({'patch_size': 65535}, 'does not fit', marks=pytest.mark.long),
        pytest.param({'image_size': 1 << 30}, 'does not fit', marks=pytest.mark.long),
        pytest.param({'attention.head_count': 7}, 'ends the process', marks=pytest.mark.long),
        pytest.param({'feature_layer': [9]}, 'out of range', marks=pytest.mark.long),
        ({'image_max_pixels': 1}, 'is less than image_min_pixels'),
    ],
)
def test_figures_that_make_no_sense_are_refused_in_one_line(tmp_path, changed, found):
    model, mmproj = write_files(tmp_path, 'phi-4')
    write_projector(mmproj, 'phi-4', **changed)
    with pytest.raises(BackendError, match=found) as error:
        open_small(model, vision=mmproj)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('value', [np.nan, pytest.param(np.inf, marks=pytest.mark.long)])
def test_weights_that_are_not_finite_cost_one_clear_line(tmp_path, value):
    model, mmproj = write_files(tmp_path, 'moondream')
    weights = {'mm.2.bias': np.full(64, value, np.float32)}
    copy_with(mmproj, tmp_path / 'odd.gguf', tensors=weights)
    with open_small(model, vision=str(tmp_path / 'odd.gguf')) as opened:
        with pytest.raises(BackendError, match='120x80.*not finite.*download it again'):
            opened.embed_image(pictures()[0])


def test_layers_on_a_gpu_bring_the_vision_part_there(tmp_path, monkeypatch):
    from llama_cpp import llama_cpp, mtmd_cpp

    seen, init = [], mtmd_cpp.mtmd_init_from_file
    monkeypatch.setattr(llama_cpp, 'llama_supports_gpu_offload', lambda: True)
    monkeypatch.setattr(
        mtmd_cpp,
        'mtmd_init_from_file',
        lambda path, model, params: seen.append(params.use_gpu) or init(path, model, params),
    )
    files = write_files(tmp_path, 'moondream')
    for gpu_layers in (0, 1, -1):
        open_small(files[0], gpu_layers=gpu_layers).close()
    assert seen == [False, True, True]
