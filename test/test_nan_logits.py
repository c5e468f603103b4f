"""Logits that are no numbers end the reply they are for with an error, however it is sampled, and no other
reply.
"""

from __future__ import annotations

import numpy as np
import pytest

from ros2_nanochat import KVCache, NanoLLM
from ros2_nanochat.backends.fake import FakeBackend
from ros2_nanochat.backends.logits import HostLogits
from ros2_nanochat.config import ModelConfig

BAD = 7


class Breaks(FakeBackend):
    """Gives no numbers for a sequence that holds the id `BAD`."""

    value = np.nan

    def forward(self, chunks):
        rows = np.array(super().forward(chunks))
        at = 0
        for chunk in chunks:
            if BAD in self._kv[chunk.seq]:
                rows[at : at + chunk.num_logits] = self.value
            at += chunk.num_logits
        return HostLogits(rows)


@pytest.mark.parametrize('value', [np.nan, -np.inf])
@pytest.mark.parametrize('options', [{}, {'do_sample': True}, {'repetition_penalty': 1.1}])
def test_a_reply_ends_with_an_error_and_the_others_go_on(options, value):
    backend = Breaks('', ModelConfig(max_context_len=512, kv_tokens=2048))
    backend.value = value
    backend.open()
    with NanoLLM(backend, backend.config) as model:
        good = model.generate('abc\0', max_new_tokens=200, kv_cache=KVCache())
        bad = model.generate([97, BAD, 98], max_new_tokens=20, **options).wait()
        assert bad.finish_reason == 'error' and 'logit' in bad.error and '\n' not in bad.error
        assert good.wait().finish_reason == 'length'
