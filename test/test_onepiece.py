"""Models that are one piece in transformers, over hf: the first reply about a picture has the ids that
`generate` gives.
"""

import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

import vision_models  # noqa: E402
import vision_words  # noqa: E402

from ros2_nanochat import ChatHistory, NanoLLM  # noqa: E402
from ros2_nanochat.errors import BackendError  # noqa: E402
from ros2_nanochat.prompt import EmbeddingSpan, Prompt  # noqa: E402
from ros2_nanochat.vision.onepiece import OnePieceEncoder  # noqa: E402

QUESTION = 'What is the thing?'


def ours(folder) -> list[int]:
    with NanoLLM.from_pretrained(
        str(folder), api='hf', device='cpu', max_context_len=512, threads=1
    ) as model:
        history = ChatHistory(model)
        history.append('user', image=vision_words.picture(3), text=QUESTION)
        prompt, _ = history.embed_chat()
        assert prompt.spans
        return list(model.generate(prompt, max_new_tokens=10, detokenize=False).wait().tokens)


def prompt_text(words, picture: bool = True) -> str:
    messages = [
        {'role': 'user', 'content': [{'type': 'image'}] * picture + [{'type': 'text', 'text': QUESTION}]}
    ]
    return words.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def without_end(ids, words) -> list[int]:
    return ids[: ids.index(words.eos_token_id)] if words.eos_token_id in ids else ids


@pytest.mark.parametrize('make', [vision_models.idefics3, vision_models.gemma3], ids=['idefics3', 'gemma3'])
def test_a_reply_about_a_picture_equals_that_of_generate(tmp_path, make):
    model = make(tmp_path)
    processor = transformers.AutoProcessor.from_pretrained(tmp_path)
    inputs = processor(
        text=[prompt_text(processor.tokenizer)],
        images=[vision_words.picture(3)],
        return_tensors='pt',
        add_special_tokens=False,
    )
    out = model.generate(
        **inputs,
        max_new_tokens=10,
        do_sample=False,
        eos_token_id=processor.tokenizer.eos_token_id,
        pad_token_id=0,
    )
    assert ours(tmp_path) == without_end(out[0, inputs['input_ids'].shape[1] :].tolist(), processor.tokenizer)


def test_smolvlm_needs_no_packages_for_videos(tmp_path):
    from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

    model, images, words = vision_models.smolvlm(tmp_path)
    inputs = images(images=[vision_words.picture(3)], return_tensors='pt', return_row_col_info=True)
    rows, columns = inputs.pop('rows')[0][0], inputs.pop('cols')[0][0]
    assert rows and columns
    image = get_image_prompt_string(rows, columns, 4, '<fake_token_around_image>', '<image>', '<global-img>')
    ids = torch.tensor(
        [words(prompt_text(words).replace('<image>', image), add_special_tokens=False)['input_ids']]
    )
    out = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        **inputs,
        max_new_tokens=10,
        do_sample=False,
        eos_token_id=words.eos_token_id,
        pad_token_id=0,
    )
    assert ours(tmp_path) == without_end(out[0, ids.shape[1] :].tolist(), words)


# --- PaliGemma: all of a prompt attends to one another both ways, the reply is causal ---

PALIGEMMA = pytest.mark.parametrize('release', [1, 2])


def of_paligemma(model, words, entries, pictures=(), new=10) -> list[int]:
    """The likeliest ids behind a prompt, from one forward of transformers for each, without a cache. entries:
    of a prompt, negative where a picture stands.
    """
    ids, prompt = np.where(entries < 0, model.config.image_token_id, entries).tolist(), len(entries)
    images = transformers.SiglipImageProcessor(size={'height': 32, 'width': 32})
    pixels = (
        {'pixel_values': images(images=list(pictures), return_tensors='pt')['pixel_values']}
        if pictures
        else {}
    )
    for _ in range(new):
        of_reply = (torch.arange(len(ids)) >= prompt).int()
        with torch.no_grad():
            ids.append(
                int(
                    model(input_ids=torch.tensor([ids]), token_type_ids=of_reply[None], **pixels)
                    .logits[0, -1]
                    .argmax()
                )
            )
    return without_end(ids[prompt:], words)


@PALIGEMMA
def test_a_prompt_that_attends_both_ways_has_the_ids_and_the_reply_of_the_models_own_processor(
    tmp_path, release
):
    model = vision_models.paligemma(tmp_path, release)
    processor = transformers.AutoProcessor.from_pretrained(tmp_path)
    inputs = processor(text=['<image>' + QUESTION], images=[vision_words.picture(3)], return_tensors='pt')
    inputs.pop('labels')
    out = model.generate(
        **inputs,
        max_new_tokens=10,
        do_sample=False,
        eos_token_id=processor.tokenizer.eos_token_id,
        pad_token_id=0,
    )
    with NanoLLM.from_pretrained(
        str(tmp_path), api='hf', device='cpu', max_context_len=512, threads=1
    ) as seeing:
        history = ChatHistory(seeing)
        assert history.template.name == 'paligemma'
        history.append('user', image=vision_words.picture(3), text=QUESTION)
        prompt, _ = history.embed_chat()
        ids = inputs['input_ids'][0].numpy()
        assert (np.where(prompt.entries < 0, model.config.image_token_id, prompt.entries) == ids).all()
        reply = seeing.generate(prompt, max_new_tokens=10, detokenize=False).wait()
        assert list(reply.tokens) == without_end(out[0, len(ids) :].tolist(), processor.tokenizer)
        assert reply.usage['image_tokens'] == 16
        inputs['repetition_penalty'] = 1.3  # which looks at the prompt's own ids
        out = model.generate(
            **inputs,
            max_new_tokens=10,
            do_sample=False,
            eos_token_id=processor.tokenizer.eos_token_id,
            pad_token_id=0,
        )
        reply = seeing.generate(prompt, max_new_tokens=10, repetition_penalty=1.3, detokenize=False).wait()
        assert list(reply.tokens) == without_end(out[0, len(ids) :].tolist(), processor.tokenizer)


@PALIGEMMA
def test_such_prompts_run_beside_one_another_and_each_further_turn_is_a_prompt_of_its_own(tmp_path, release):
    model = vision_models.paligemma(tmp_path, release)
    words = transformers.AutoTokenizer.from_pretrained(tmp_path)
    pictures = [vision_words.picture(3), vision_words.picture(4, 90, 160)]
    with NanoLLM.from_pretrained(
        str(tmp_path), api='hf', device='cpu', max_context_len=512, threads=1
    ) as seeing:

        def ask(history):
            prompt, _ = history.embed_chat()
            return seeing.generate(prompt, kv_cache=history.kv_cache, max_new_tokens=10, detokenize=False)

        def wanted(history, shown):
            return of_paligemma(model, words, history.embed_chat(use_cache=False)[0].entries, shown)

        histories, shown = [ChatHistory(seeing) for _ in range(3)], [pictures[:1], pictures[1:], []]
        for history, its in zip(histories, shown):
            history.append('user', image=its[0] if its else None, text=QUESTION)
        assert (
            histories[2].embed_chat()[0].entries.tolist()
            == words(f'<s>{QUESTION}\n', add_special_tokens=False)['input_ids']
        )
        expected = [wanted(history, its) for history, its in zip(histories, shown)]
        replies = [ask(history) for history in histories]
        assert [list(reply.wait().tokens) for reply in replies] == expected and expected[0] != expected[
            1
        ] != expected[2]

        for history, reply in zip(histories, replies):
            history.append('bot', reply)
        histories[0].append('user', 'And now?')
        histories[1].append(
            'user', image=pictures[0], text='And this?'
        )  # all pictures stand in front, as the processor puts them
        assert histories[1].embed_chat(use_cache=False)[0].spans[1][0] == 16
        histories[2].append('user', 'Why?')
        shown[1] = [*shown[1], pictures[0]]
        expected = [wanted(history, its) for history, its in zip(histories, shown)]
        replies = [ask(history) for history in histories]
        assert [list(reply.wait().tokens) for reply in replies] == expected
        assert all(reply.usage['reused_tokens'] == 0 for reply in replies)

        del histories[0][1:]  # an edit, and a reply that was stopped
        assert list(ask(histories[0]).wait().tokens) == wanted(histories[0], pictures[:1])
        reply = ask(histories[0])
        next(reply)
        reply.stop()
        histories[0].append('bot', reply)
        histories[0].append('user', 'Go on')
        assert list(ask(histories[0]).wait().tokens) == wanted(histories[0], pictures[:1])


def test_a_prompt_that_attends_both_ways_may_be_longer_than_a_batch_of_other_models_and_plain_ids(tmp_path):
    model = vision_models.paligemma(tmp_path)
    words = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ids = np.random.default_rng(0).integers(0, 255, 700)
    with NanoLLM.from_pretrained(
        str(tmp_path), api='hf', device='cpu', max_context_len=1024, max_sequences=2, threads=1
    ) as talking:
        reply = talking.generate(ids, max_new_tokens=5).wait()
        assert list(reply.tokens) == of_paligemma(model, words, ids, new=5)
        going_on = talking.generate([9, 9], kv_cache=reply.kv_cache, max_new_tokens=5).wait()
        assert list(going_on.tokens) == of_paligemma(
            model, words, np.array([*ids, *reply.tokens, 9, 9]), new=5
        )


# --- Qwen-VL: positions on three axes, and from the third release on pictures in several layers ---


def of_qwen(model, images, words, text, pictures, new=10) -> list[int]:
    """What `generate` says to a conversation: ids that hold '<|image_pad|>' once for each picture, or their
    text.
    """
    pad, ids, inputs = model.config.image_token_id, text, {}
    if isinstance(text, str):
        ids = [
            i
            for n, part in enumerate(text.split('<|image_pad|>'))
            for i in [pad] * (n > 0) + words(part, add_special_tokens=False)['input_ids']
        ]
    if pictures:
        inputs = images(images=pictures, return_tensors='pt')
        rows = iter(int(grid.prod()) // 4 for grid in inputs['image_grid_thw'])
        ids = [i for token in ids for i in ([token] * next(rows) if token == pad else [token])]
    ids = torch.tensor([ids])
    out = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        **inputs,
        max_new_tokens=new,
        do_sample=False,
        eos_token_id=words.eos_token_id,
        pad_token_id=0,
        mm_token_type_ids=(ids == pad).int(),
    )
    return without_end(out[0, ids.shape[1] :].tolist(), words)


@pytest.mark.parametrize('release', ['2', '2_5', '3', '3_moe'])
def test_with_positions_on_three_axes_too(tmp_path, release):
    model, images, words = vision_models.qwen2_vl(tmp_path, release)
    assert ours(tmp_path) == of_qwen(model, images, words, prompt_text(words), [vision_words.picture(3)])


def test_a_picture_in_several_layers_stays_what_it_is_beside_others_and_in_the_next_turn(tmp_path):
    reference = *_, words = vision_models.qwen2_vl(tmp_path, '3')
    pictures = [vision_words.picture(3), vision_words.picture(4, 90, 160)]
    pad = words.convert_tokens_to_ids('<|image_pad|>')
    with NanoLLM.from_pretrained(
        str(tmp_path), api='hf', device='cpu', max_context_len=1024, threads=1
    ) as seeing:
        assert seeing.backend.runner.packed and seeing.info.takes_deepstack
        histories = [ChatHistory(seeing) for _ in range(3)]
        for history, picture in zip(histories, [*pictures, None]):
            history.append('user', image=picture, text=QUESTION)
        prompts = [history.embed_chat()[0] for history in histories]
        assert all(
            span.deepstack.shape == (2, *span.rows.shape) for prompt in prompts for _, span in prompt.spans
        )
        replies = [
            seeing.generate(prompt, kv_cache=history.kv_cache, max_new_tokens=10, detokenize=False)
            for prompt, history in zip(prompts, histories)
        ]
        said = [list(reply.wait().tokens) for reply in replies]
        assert said == [
            *(of_qwen(*reference, prompt_text(words), [picture]) for picture in pictures),
            of_qwen(*reference, prompt_text(words, False), []),
        ]
        assert said[0] != said[1]

        histories[0].append('bot', replies[0])  # the second picture comes behind the first one's KV
        histories[0].append('user', image=pictures[1], text='And now?')
        prompt, position = histories[0].embed_chat()
        assert position > len(prompts[0]) and len(prompt.spans) == 1
        whole, _ = histories[0].embed_chat(use_cache=False)
        ids = whole.entries.tolist()
        for start, span in reversed(whole.spans):
            ids[start : start + len(span)] = [pad]
        assert list(
            seeing.generate(prompt, kv_cache=histories[0].kv_cache, max_new_tokens=10, detokenize=False)
            .wait()
            .tokens
        ) == of_qwen(*reference, ids, pictures)


def test_a_model_that_adds_pictures_in_a_way_of_its_own_says_so_in_one_line(tmp_path):
    vision_models.qwen2_vl(tmp_path, '3')
    with NanoLLM.from_pretrained(
        str(tmp_path), api='hf', device='cpu', max_context_len=512, threads=1
    ) as model:
        eyes = OnePieceEncoder(
            model.backend.vision_part, dataclasses.replace(model.info, takes_deepstack=False)
        )
        with pytest.raises(BackendError, match='in several layers') as caught:
            eyes.load()
        assert '\n' not in str(caught.value)


def test_rows_for_several_layers_are_refused_by_a_model_that_has_no_place_for_them(tmp_path):
    vision_models.qwen2_vl(tmp_path, '2')
    rows = np.zeros((3, 64), np.float32)
    with NanoLLM.from_pretrained(
        str(tmp_path), api='hf', device='cpu', max_context_len=512, threads=1
    ) as model:
        with pytest.raises(ValueError, match='another model'):
            model.generate(Prompt.join([[1], EmbeddingSpan(rows, b'rows', deepstack=rows[None])]))
