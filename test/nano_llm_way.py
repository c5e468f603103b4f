"""A turn in the way of NanoLLM: text is added as it comes, and the KV cache is taken over from the reply."""

from __future__ import annotations


def ask(model, history, text, n=8, **options):
    """The reply of just `n` ids."""
    history.append(role='user', msg=text)
    embedding, _ = history.embed_chat()
    reply = model.generate(
        embedding,
        kv_cache=history.kv_cache,
        stop_tokens=history.template.stop,
        max_new_tokens=n,
        min_new_tokens=n,
        **options,
    )
    answer = history.append(role='bot', text='')
    for piece in reply:
        answer.text += piece
    history.kv_cache = reply.kv_cache
    assert reply.error is None, reply.error
    return reply
