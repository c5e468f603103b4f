"""What tests of models on servers do over and over: ask a question, wait until a server is idle."""

from __future__ import annotations

import time

from ros2_nanochat import ChatHistory


def ask(model, text, history=None, **options):
    """Ask in a conversation, a new one by default; return the reply as it begins."""
    history = ChatHistory(model) if history is None else history
    history.append('user', text)
    prompt, _ = history.embed_chat()
    return model.generate(prompt, kv_cache=history.kv_cache, **options)


def idle_within(server, seconds):
    """Wait until a server works on no reply, and check that this takes at most so many seconds."""
    until = time.monotonic() + seconds
    while server.busy():
        assert time.monotonic() < until, 'the server still works'
        time.sleep(0.01)
