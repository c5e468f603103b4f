"""Models that are one piece in transformers, over hf: the first reply about a picture has the ids that `generate` gives."""
import numpy as np
import pytest

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

import vision_models  # noqa: E402

from ros2_nanochat import ChatHistory, NanoLLM  # noqa: E402

QUESTION = 'What is the thing?'


def ours(folder) -> list[int]:
    with NanoLLM.from_pretrained(str(folder), api='hf', device='cpu', max_context_len=512, threads=1) as model:
        history = ChatHistory(model)
        history.append('user', image=vision_models.picture(3), text=QUESTION)
        prompt, _ = history.embed_chat()
        assert prompt.spans
        return list(model.generate(prompt, max_new_tokens=10).wait().tokens)


def prompt_text(words) -> str:
    messages = [{'role': 'user', 'content': [{'type': 'image'}, {'type': 'text', 'text': QUESTION}]}]
    return words.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def without_end(ids, words) -> list[int]:
    return ids[:ids.index(words.eos_token_id)] if words.eos_token_id in ids else ids


@pytest.mark.parametrize('make', [vision_models.idefics3, vision_models.gemma3], ids=['idefics3', 'gemma3'])
def test_a_reply_about_a_picture_equals_that_of_generate(tmp_path, make):
    model = make(tmp_path)
    processor = transformers.AutoProcessor.from_pretrained(tmp_path)
    inputs = processor(text=[prompt_text(processor.tokenizer)], images=[vision_models.picture(3)], return_tensors='pt', add_special_tokens=False)
    out = model.generate(**inputs, max_new_tokens=10, do_sample=False, eos_token_id=processor.tokenizer.eos_token_id, pad_token_id=0)
    assert ours(tmp_path) == without_end(out[0, inputs['input_ids'].shape[1]:].tolist(), processor.tokenizer)


def test_smolvlm_needs_no_packages_for_videos(tmp_path):
    from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string
    model, images, words = vision_models.smolvlm(tmp_path)
    inputs = images(images=[vision_models.picture(3)], return_tensors='pt', return_row_col_info=True)
    rows, columns = inputs.pop('rows')[0][0], inputs.pop('cols')[0][0]
    assert rows and columns
    image = get_image_prompt_string(rows, columns, 4, '<fake_token_around_image>', '<image>', '<global-img>')
    ids = torch.tensor([words(prompt_text(words).replace('<image>', image), add_special_tokens=False)['input_ids']])
    out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **inputs, max_new_tokens=10, do_sample=False, eos_token_id=words.eos_token_id,
                         pad_token_id=0)
    assert ours(tmp_path) == without_end(out[0, ids.shape[1]:].tolist(), words)


@pytest.mark.parametrize('release', [1, 2])
def test_a_model_whose_whole_prompt_attends_both_ways_answers_as_generate_does_in_a_second_turn_too(tmp_path, release):
    model = vision_models.paligemma(tmp_path, release)
    processor = transformers.AutoProcessor.from_pretrained(tmp_path)
    words = processor.tokenizer

    def generate(inputs):
        out = model.generate(**inputs, max_new_tokens=10, do_sample=False, eos_token_id=words.eos_token_id, pad_token_id=0)
        return without_end(out[0, inputs['input_ids'].shape[1]:].tolist(), words)

    first = processor(text=[f'<image>{QUESTION}'], images=[vision_models.picture(3)], return_tensors='pt')
    first.pop('labels')
    with NanoLLM.from_pretrained(str(tmp_path), api='hf', device='cpu', max_context_len=512, threads=1) as ours:
        history = ChatHistory(ours)
        replies = []
        for message in (dict(image=vision_models.picture(3), text=QUESTION), dict(text='And now?')):
            history.append('user', **message)
            beside = ours.generate('Something else', max_new_tokens=20)  # runs in the same batch
            prompt, _ = history.embed_chat()
            replies.append(ours.generate(prompt, kv_cache=history.kv_cache, max_new_tokens=10).wait())
            history.append('bot', replies[-1])
            beside.wait()
    assert replies[0].tokens == generate(first) and len(replies[0].tokens) > 3
    more = replies[0].tokens + [words.eos_token_id] + words('And now?\n', add_special_tokens=False)['input_ids']
    ids = torch.cat([first['input_ids'], torch.tensor([more])], dim=1)
    assert replies[1].tokens == generate({**first, 'input_ids': ids, 'attention_mask': torch.ones_like(ids), 'token_type_ids': torch.zeros_like(ids)})
    assert replies[0].usage['image_tokens'] == replies[1].usage['image_tokens'] == 16 and replies[1].usage['reused_tokens'] == 0


@pytest.mark.parametrize('release', ['2', '2_5', '3', '3_moe'])
def test_with_positions_on_three_axes_and_pictures_in_several_layers_too(tmp_path, release):
    model, images, words = vision_models.qwen2_vl(tmp_path, release)
    inputs = images(images=[vision_models.picture(3)], return_tensors='pt')
    rows = int(inputs['image_grid_thw'].prod()) // 4
    ids = torch.tensor([words(prompt_text(words).replace('<|image_pad|>', '<|image_pad|>' * rows), add_special_tokens=False)['input_ids']])
    out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **inputs, max_new_tokens=10, do_sample=False, eos_token_id=words.eos_token_id,
                         pad_token_id=0, mm_token_type_ids=(ids == model.config.image_token_id).int())
    assert ours(tmp_path) == without_end(out[0, ids.shape[1]:].tolist(), words)


def test_a_follow_up_about_a_picture_in_several_layers_equals_a_fresh_prompt_beside_other_conversations(tmp_path):
    vision_models.qwen2_vl(tmp_path, '3')
    with NanoLLM.from_pretrained(str(tmp_path), api='hf', device='cpu', max_context_len=512, threads=1) as model:
        histories = [ChatHistory(model) for _ in range(2)]
        for n, history in enumerate(histories):
            history.append('user', image=vision_models.picture(3 + n), text=QUESTION)
        first = [model.generate(history.embed_chat()[0], max_new_tokens=8) for history in histories]
        for history, reply in zip(histories, first):
            history.append('bot', reply.wait())
            history.append('user', 'And now?')
        beside = model.generate('Something else', max_new_tokens=20)
        again = [model.generate(history.embed_chat()[0], kv_cache=history.kv_cache, max_new_tokens=8).wait() for history in histories]
        fresh = [model.generate(history.embed_chat(use_cache=False)[0], max_new_tokens=8).wait() for history in histories]
        beside.wait()
        assert [reply.tokens for reply in again] == [reply.tokens for reply in fresh] and again[0].tokens != again[1].tokens
        assert all(reply.usage['reused_image_tokens'] == reply.usage['image_tokens'] > 0 for reply in again)
        prompt = histories[0].embed_chat(use_cache=False)[0]
        assert np.asarray(prompt).shape == prompt.shape
