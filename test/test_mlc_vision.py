"""Libraries that embed pictures themselves, and those with a vision tower beside them. Oracles: what the
function computes, written in NumPy, and transformers on the rows; the same language weights over hf.
"""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

pytest.importorskip('tvm')
torch = pytest.importorskip('torch')
import mlc_model  # noqa: E402
import vision_models  # noqa: E402

from ros2_nanochat import ChatHistory, NanoLLM  # noqa: E402
from ros2_nanochat.backends.mlc.image_sizes import image_sizes  # noqa: E402
from ros2_nanochat.errors import BackendError  # noqa: E402
from ros2_nanochat.prompt import EmbeddingSpan  # noqa: E402

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 90, 3), np.uint8))


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    checkpoint, weights, _ = mlc_model.tiny()
    folder = mlc_model.make_folder(
        str(tmp_path_factory.mktemp('see') / 'tiny-q0f32-MLC'),
        weights,
        checkpoint,
        model_type='llava',
        only=('embed', 'image_embed', 'prefill', 'decode', 'create_tir_paged_kv_cache'),
    )
    with NanoLLM.from_pretrained(folder, max_context_len=256) as model:
        yield model


def expected(picture) -> np.ndarray:
    pixels = np.asarray(picture)
    h, w, _ = pixels.shape
    picked = np.stack([pixels[(2 * i + 1) * h // 8, (2 * i + 1) * w // 8] for i in range(4)])
    return picked.astype(np.float32) / 255 @ mlc_model.image_projection(64)


def test_pictures_of_any_size_become_the_rows_of_the_library(model):
    assert model.has_vision
    for size in ((90, 37), (8, 300), (640, 480)):
        parts = model.embed_image(PICTURE.resize(size))
        assert [type(part) for part in parts] == [EmbeddingSpan]
        np.testing.assert_allclose(parts[0].rows, expected(PICTURE.resize(size)), atol=1e-5)


def test_an_answer_about_a_picture_is_that_of_transformers_on_the_same_rows(model):
    history = ChatHistory(model)
    history.append('user', image=PICTURE)
    history.append('user', text='the robot sees a red ball')
    prompt, _ = history.embed_chat()
    reply = model.generate(prompt, max_new_tokens=10, min_new_tokens=10, detokenize=False).wait(60)
    assert reply.error is None
    rows, at = [], 0
    for start, span in prompt.spans:
        rows += [model.embed_tokens(prompt.entries[at:start])[0], span.rows]
        at = start + len(span)
    rows.append(model.embed_tokens(prompt.entries[at:])[0])
    assert len(prompt.spans) == 1 and len(prompt.spans[0][1]) == 4
    inputs = torch.as_tensor(np.concatenate([part for part in rows if len(part)]))[None]
    with torch.no_grad():
        wanted = mlc_model.tiny()[1].generate(
            inputs_embeds=inputs,
            attention_mask=torch.ones(inputs.shape[:2], dtype=torch.long),
            max_new_tokens=10,
            min_new_tokens=10,
            do_sample=False,
        )
    assert reply.tokens == wanted[0].tolist()


def test_a_picture_that_the_library_does_not_take_is_one_line_and_the_model_goes_on(model, monkeypatch):
    monkeypatch.setitem(model.backend._metadata, 'model_type', 'phi3_v')  # another number of arguments
    with pytest.raises(
        BackendError, match='does not take this picture of 30 x 30 .*compile it again'
    ) as caught:
        model.embed_image(PICTURE.resize((30, 30)))
    assert '\n' not in str(caught.value)
    monkeypatch.setitem(model.backend._metadata, 'model_type', 'martian')
    with pytest.raises(BackendError, match="'martian' sees is not known here"):
        model.embed_image(PICTURE.resize((31, 30)))
    monkeypatch.undo()
    assert len(model.embed_image(PICTURE.resize((30, 30)))[0]) == 4


def test_phi_3_vision_is_told_sizes_and_tiles_as_mlc_llm_does():
    """The worked values of `CalculateResizeShape` and `CalculateCropShape`: at most four tiles of 336."""
    assert image_sizes('phi3_v', 480, 640) == (504, 672, 2, 2)
    assert image_sizes('phi3_v', 336, 336) == (672, 672, 2, 2)
    assert image_sizes('phi3_v', 300, 1200) == (336, 1344, 1, 4)
    assert image_sizes('phi3_v', 1200, 300) == (1344, 336, 4, 1)
    assert image_sizes('llava', 480, 640) == ()


def same_weights(quantization, folder):
    """A library and a checkpoint of transformers with the weights that it stands for."""
    checkpoint, model, library = mlc_model.tiny()
    if quantization == 'q0f32':
        return library, checkpoint
    library = mlc_model.make_folder(
        str(folder / f'tiny-{quantization}-MLC'),
        model,
        checkpoint,
        quantization,
        only=('embed', 'prefill', 'decode', 'create_tir_paged_kv_cache'),
    )
    plain = folder / 'plain'
    shutil.copytree(checkpoint, plain)
    other = type(model)(model.config)
    other.load_state_dict(
        {
            name: torch.as_tensor(mlc_model.quantize(tensor.numpy())[2])
            if name.endswith('proj.weight')
            else tensor
            for name, tensor in model.state_dict().items()
        }
    )
    other.save_pretrained(plain)
    return library, str(plain)


@pytest.mark.parametrize(
    'quantization, tolerance', [('q0f32', 1e-4), ('q4f16_2', 0.04)]
)  # of the span of the logits
def test_with_a_tower_beside_it_the_logits_of_a_conversation_are_those_over_hf(
    tmp_path, quantization, tolerance
):
    vision_models.llava(tmp_path / 'eyes', 'clip')
    library, checkpoint = same_weights(quantization, tmp_path)
    seen, replies = {}, []
    for path, api in ((library, 'mlc'), (checkpoint, 'hf')):
        with NanoLLM.from_pretrained(
            path, api=api, vision=str(tmp_path / 'eyes'), device='cpu', max_context_len=256, threads=1
        ) as model:
            history, rows = ChatHistory(model), []
            history.append('user', image=PICTURE, text='the robot sees')
            for turn, question in enumerate((None, 'and a blue box')):
                if question is not None:
                    history.append('user', question)
                prompt, position = history.embed_chat()
                assert (len(prompt.spans) == 1) == (turn == 0)
                first = []
                reply = model.generate(
                    prompt,
                    kv_cache=history.kv_cache,
                    max_new_tokens=4,
                    min_new_tokens=4,
                    logits_processors=[lambda ids, row, first=first: (first.append(np.array(row)), row)[1]],
                ).wait(60)
                assert reply.error is None and len(reply.tokens) == 4
                assert reply.usage['image_tokens'] == 36 and reply.usage['reused_image_tokens'] == (
                    36 if turn else 0
                )
                rows.append(first[0])
                # the same words go into both conversations, whatever rounding let each say
                if api == 'mlc':
                    replies.append(reply.text)
                history.append('bot', text=replies[turn])
                history.kv_cache = reply.kv_cache
            assert model.vision.stats['encoded'] == 1
            seen[api] = rows
    for ours, wanted in zip(seen['mlc'], seen['hf']):
        ours, wanted = (row[np.isfinite(wanted)] for row in (ours, wanted))  # min_new_tokens bars the end
        assert np.ptp(wanted) > 1 and np.abs(ours - wanted).max() <= tolerance * np.ptp(wanted), np.abs(
            ours - wanted
        ).max() / np.ptp(wanted)
