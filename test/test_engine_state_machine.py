"""Random requests, cancels, deadlines and priorities on the fake backend: nothing is lost, answered twice,
starved or over budget.
"""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule
from test_engine import chat, idle

from ros2_nanochat import KVCache, NanoLLM
from ros2_nanochat.backends.fake import FakeBackend

_TEXTS = st.text('abc', max_size=60)
_SHARED = 'the rules of this house are the same for everyone. '


class Conversations(RuleBasedStateMachine):
    replies = Bundle('replies')

    @initialize(
        sequences=st.integers(1, 4),
        budget=st.sampled_from([512, 700, 2048]),
        park=st.sampled_from([0, 2000, 100_000]),
        speculation=st.booleans(),
    )
    def open(self, sequences, budget, park, speculation):
        self.broken: list[str] = []
        machine = self

        class Watched(FakeBackend):
            def forward(self, chunks):
                logits = super().forward(chunks)
                if self.kv_used > self.kv_capacity or len(self._kv) > self.max_sequences:
                    machine.broken.append(f'{self.kv_used} tokens, {len(self._kv)} sequences')
                if len({chunk.seq for chunk in chunks}) < len(chunks):
                    machine.broken.append('a sequence twice in one forward')
                return logits

        options = dict(
            max_context_len=512,
            max_sequences=sequences,
            kv_tokens=budget,
            park_bytes=park,
            speculation=speculation,
        )
        self.model = NanoLLM.from_pretrained(
            'tokens_per_second=20000,prefill_per_second=200000', api='fake', **options
        )
        self.model.backend.__class__ = Watched
        self.caches = [KVCache() for _ in range(5)]
        self.open_replies, self.newest = [], {}

    @rule(
        target=replies,
        cache=st.integers(0, 4),
        text=_TEXTS,
        shared=st.booleans(),
        priority=st.integers(0, 2),
        new=st.integers(1, 120),
        deadline=st.sampled_from([None, None, None, 0.0, 0.005, 5.0]),
    )
    def submit(self, cache, text, shared, priority, new, deadline):
        cache = self.caches[cache]
        system = _SHARED if shared else ''
        try:
            cache.check_idle()
        except ValueError:
            cache = KVCache()
        ids = self.model.tokenize(chat(text, system), special=True)
        cache.settle(type(cache.content)(cache.content.entries[:0]))
        reply = self.model.generate(
            ids, kv_cache=cache, max_new_tokens=new, priority=priority, deadline=deadline
        )
        expected = ('You said: ' + text)[:new]
        self.open_replies.append((reply, expected, deadline, cache, len(ids)))
        self.newest[id(cache)] = self.open_replies[-1]
        return self.open_replies[-1]

    @rule(reply=replies, count=st.integers(1, 5))
    def read(self, reply, count):
        for _ in range(count):
            next(reply[0], None)

    @rule(reply=consumes(replies), reason=st.sampled_from(['cancelled', 'interrupted']))
    def stop(self, reply, reason):
        reply[0].stop(reason)
        self.check(reply)

    @rule(reply=consumes(replies))
    def wait(self, reply):
        reply[0].wait(timeout=20)
        self.check(reply)

    def check(self, item):
        reply, expected, deadline, cache, prompt = item
        assert reply.finish_reason is not None
        if reply.finish_reason in ('stop', 'length'):
            assert reply.text == expected
        else:
            assert reply.finish_reason in ('cancelled', 'interrupted') or (
                reply.finish_reason == 'deadline' and deadline is not None
            ), repr(reply)
            assert expected.startswith(reply.text)
        if self.newest[id(cache)] is item:  # nobody has written to it since
            assert len(cache) == prompt + len(reply.tokens)

    @invariant()
    def within_budget(self):
        assert not getattr(self, 'broken', None), self.broken

    def teardown(self):
        if hasattr(self, 'model'):
            try:
                self.check_all()
            finally:
                self.model.close()

    def check_all(self):
        for item in self.open_replies:
            item[0].wait(timeout=20)  # none starves
            self.check(item)
            assert item[0]._request.signals.ended.wait(timeout=5)
        stats = idle(self.model)
        ended = sum(value for name, value in stats.items() if name.startswith('finished_'))
        assert ended == stats.get('requests', 0) and not stats.get('failures')


TestConversations = Conversations.TestCase
TestConversations.settings = settings(
    max_examples=50, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
