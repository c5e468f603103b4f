"""What tests of models on servers do over and over: ask a question."""

from __future__ import annotations

from ros2_nanochat import ChatHistory


def ask(model, text, history=None, **options):
    """Ask in a conversation, a new one by default; return the reply as it begins."""
    history = ChatHistory(model) if history is None else history
    history.append('user', text)
    prompt, _ = history.embed_chat()
    return model.generate(prompt, kv_cache=history.kv_cache, **options)
