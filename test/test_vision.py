"""Encoders of pictures against transformers' own models: embeddings, ids of conversations; what is
remembered; checkpoints that do not fit.
"""

import json
import types

import numpy as np
import pytest

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

import vision_models  # noqa: E402
import vision_words  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from ros2_nanochat import ChatHistory, NanoLLM  # noqa: E402
from ros2_nanochat.config import ModelConfig  # noqa: E402
from ros2_nanochat.errors import BackendError  # noqa: E402
from ros2_nanochat.prompt import EmbeddingSpan  # noqa: E402
from ros2_nanochat.vision import encoder as encoder_module  # noqa: E402
from ros2_nanochat.vision.llava import LlavaEncoder  # noqa: E402

INFO = types.SimpleNamespace(
    takes_embeddings=True, embedding_size=64, name='a model', api='gguf', path='/nowhere'
)
CPU = ModelConfig(device='cpu')
CASES = {
    'clip': dict(),
    'clip with its class token': dict(vision_feature_select_strategy='full', vision_feature_layer=-1),
    'clip, three layers': dict(vision_feature_layer=[-2, -3, 1]),
    'siglip': dict(kind='siglip', vision_feature_select_strategy='full', vision_feature_layer=-1),
    'siglip, a layer from the front': dict(
        kind='siglip', vision_feature_select_strategy='full', vision_feature_layer=2
    ),
    'next': None,
}


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory):
    made = {}

    def make(name):
        if name not in made:
            folder = tmp_path_factory.mktemp('llava')
            model = (
                vision_models.llava_next(folder)
                if CASES[name] is None
                else vision_models.llava(folder, **CASES[name])
            )
            made[name] = folder, model
        return made[name]

    return make


def expected(folder, model, picture) -> np.ndarray:
    inputs = transformers.AutoImageProcessor.from_pretrained(folder)(images=picture, return_tensors='pt')
    with torch.no_grad():
        return model.get_image_features(**inputs).pooler_output[0].numpy()


@pytest.mark.parametrize('name', CASES)
def test_embeddings_equal_those_inside_transformers_model(checkpoints, name):
    folder, model = checkpoints(name)
    encoder = LlavaEncoder(folder, INFO, CPU)
    for seed, size in enumerate([(200, 130), (60, 170), (48, 48)]):
        picture = vision_words.picture(seed, *size)
        wanted = expected(folder, model, picture)
        parts = encoder.encode(picture)
        assert [type(part) for part in parts] == [EmbeddingSpan] and parts.num_tokens == len(wanted)
        assert np.abs(parts[0].rows - wanted).max() <= 1e-4 * np.abs(wanted).max()


def test_only_tower_and_projector_are_loaded(checkpoints):
    folder, model = checkpoints('clip')
    encoder = LlavaEncoder(folder, INFO, CPU)
    encoder.load()
    held = sum(p.numel() for p in encoder._part.model.parameters() if p.device.type != 'meta')
    assert held == sum(
        p.numel()
        for name, p in model.named_parameters()
        if 'language_model' not in name and 'lm_head' not in name
    )


def test_names_of_weights_of_older_releases_are_understood(checkpoints, tmp_path):
    folder, model = checkpoints('clip')
    for name in ('config.json', 'processor_config.json'):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    old = {
        ('vision_tower.vision_model.' if 'vision_tower' in name else 'multi_modal_projector.')
        + name.rpartition('vision_tower.' if 'vision_tower' in name else 'multi_modal_projector.')[2].replace(
            'vision_model.', ''
        ): tensor
        for name, tensor in load_file(folder / 'model.safetensors').items()
        if 'vision_tower' in name or 'multi_modal_projector' in name
    }
    save_file(old, tmp_path / 'model-00001-of-00001.safetensors')
    picture = vision_words.picture()
    rows = LlavaEncoder(tmp_path, INFO, CPU).encode(picture)[0].rows
    wanted = expected(folder, model, picture)
    assert np.abs(rows - wanted).max() <= 1e-4 * np.abs(wanted).max()


def test_a_picture_is_encoded_once_whatever_form_it_comes_in(checkpoints):
    encoder = LlavaEncoder(checkpoints('clip')[0], INFO, CPU)
    picture = vision_words.picture()
    first = encoder.encode(picture)
    again = encoder.encode(np.asarray(picture).copy())
    assert first.seconds > 0 and again.seconds == 0
    assert again[0] is first[0] and (encoder.stats['encoded'], encoder.stats['reused']) == (1, 1)
    other = encoder.encode(vision_words.picture(1))
    assert other[0].digest != first[0].digest and not set(other[0].entries) & set(first[0].entries)


def test_the_memory_of_pictures_is_bounded(checkpoints, monkeypatch):
    monkeypatch.setattr(encoder_module, 'CACHE_IMAGES', 3)
    encoder = LlavaEncoder(checkpoints('clip')[0], INFO, CPU)
    pictures = [vision_words.picture(seed, 60, 60) for seed in range(5)]
    size = encoder.encode(pictures[0])[0].rows.nbytes
    for picture in pictures[1:]:
        encoder.encode(picture)
    assert encoder.stats['cached'] == 3 and encoder.stats['cache_bytes'] == 3 * size
    encoder.encode(pictures[4])
    encoder.encode(pictures[0])
    assert encoder.stats['encoded'] == 6
    monkeypatch.setattr(encoder_module, 'CACHE_BYTES', size)
    encoder.encode(pictures[1])
    assert encoder.stats['cached'] == 1
    encoder.close()
    encoder.close()
    assert encoder.stats['cache_bytes'] == 0
    with pytest.raises(BackendError, match='closed'):
        encoder.encode(pictures[2])


def broken(folder, tmp_path, change):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    change(tmp_path)
    return tmp_path


def _without_weight(folder):
    weights = load_file(folder / 'model.safetensors')
    weights.pop(next(name for name in weights if 'projector.linear_2.weight' in name))
    save_file(weights, folder / 'model.safetensors')


def _of_another_shape(folder):
    weights = load_file(folder / 'model.safetensors')
    name = next(name for name in weights if 'projector.linear_2.weight' in name)
    weights[name] = weights[name][:5].contiguous()
    save_file(weights, folder / 'model.safetensors')


def _config(**settings):
    def change(folder):
        config = json.loads((folder / 'config.json').read_text())
        (folder / 'config.json').write_text(json.dumps({**config, **settings}))

    return change


@pytest.mark.parametrize(
    ('change', 'says'),
    [
        (lambda folder: (folder / 'config.json').unlink(), 'no config.json'),
        (lambda folder: (folder / 'config.json').write_text('{'), 'config.json'),
        (_config(model_type='bert'), "'bert'"),
        (_config(text_config={'model_type': 'llama', 'hidden_size': 80}), 'embeddings of 80'),
        (lambda folder: (folder / 'model.safetensors').unlink(), 'no .safetensors'),
        (_without_weight, 'linear_2'),
        (_of_another_shape, 'shape'),
        (lambda folder: (folder / 'model.safetensors').write_bytes(b'x' * 100), 'cannot be read'),
        (lambda folder: (folder / 'processor_config.json').unlink(), 'image processor'),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_in_one_line(checkpoints, tmp_path, change, says):
    folder = broken(checkpoints('clip')[0], tmp_path, change)
    with pytest.raises(BackendError) as caught:
        LlavaEncoder(folder, INFO, CPU).load()
    assert says in str(caught.value) and '\n' not in str(caught.value)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(BackendError, match='no such folder'):
        LlavaEncoder(tmp_path / 'none', INFO, CPU)


# --- conversations over hf, against generate ---

CONVERSATION = [
    {'role': 'user', 'content': [{'type': 'image'}, {'type': 'text', 'text': 'What is the thing?'}]}
]


def generated(folder, model, messages, pictures, new=12) -> list[int]:
    processor = transformers.AutoProcessor.from_pretrained(folder)
    text = processor.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    inputs = processor(text=[text], images=pictures, return_tensors='pt', add_special_tokens=False)
    out = model.generate(
        **inputs,
        max_new_tokens=new,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=processor.tokenizer.eos_token_id,
    )
    return out[0, inputs['input_ids'].shape[1] :].tolist()


def ended(model, ids):
    return ids[:-1] if ids and ids[-1] in model.info.eos_token_ids else ids


@pytest.mark.parametrize('name', ['clip', 'siglip', 'next'])
def test_over_hf_the_ids_of_a_conversation_equal_those_of_generate(checkpoints, name):
    folder, reference = checkpoints(name)
    pictures = [vision_words.picture(3), vision_words.picture(4, 90, 160)]
    with NanoLLM.from_pretrained(
        str(folder), api='hf', device='cpu', max_context_len=1024, threads=1
    ) as model:
        assert model.has_vision
        history = ChatHistory(model)
        history.append('user', image=pictures[0])
        history.append('user', text='What is the thing?')
        messages = [dict(CONVERSATION[0])]
        for turn in range(2):
            prompt, _ = history.embed_chat()
            reply = model.generate(
                prompt, kv_cache=history.kv_cache, max_new_tokens=12, detokenize=False
            ).wait()
            wanted = generated(folder, reference, messages, pictures[: turn + 1])
            assert list(reply.tokens) == ended(model, wanted)
            if turn == 0:
                text = reply.text
                history.append('bot', reply)
                history.append('user', image=pictures[1], text='And now?')
                messages += [
                    {'role': 'assistant', 'content': text},
                    {'role': 'user', 'content': [{'type': 'image'}, {'type': 'text', 'text': 'And now?'}]},
                ]
                tokenized = transformers.AutoTokenizer.from_pretrained(folder)(
                    text, add_special_tokens=False
                )['input_ids']
                if tokenized != list(reply.tokens):
                    return  # the reply does not tokenize back to its ids, which we keep and generate cannot
        assert model.vision.stats['encoded'] == 2


def test_a_follow_up_about_the_same_picture_computes_its_own_words_alone(checkpoints):
    folder, _ = checkpoints('clip')
    with NanoLLM.from_pretrained(
        str(folder), api='hf', device='cpu', max_context_len=1024, threads=1
    ) as model:
        history = ChatHistory(model)
        history.append('user', image=vision_words.picture(), text='What is it?')
        prompt, _ = history.embed_chat()
        first = model.generate(prompt, kv_cache=history.kv_cache, max_new_tokens=5).wait()
        history.append('bot', first)
        history.append('user', 'Why?')
        encoded = model.vision.stats['encoded']
        prompt, position = history.embed_chat()
        second = model.generate(prompt, kv_cache=history.kv_cache, max_new_tokens=5).wait()
        assert model.vision.stats['encoded'] == encoded == 1
        assert position > 36 and not prompt.spans
        usage = second.usage
        assert usage['reused_tokens'] >= 36 and usage['prompt_tokens'] - usage['reused_tokens'] < 40
