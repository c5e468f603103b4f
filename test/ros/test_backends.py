"""The node on the other backends, over real DDS: it says what the library says with the same model."""

import pytest

from ros2_nanochat import ChatHistory, NanoLLM

QUESTIONS = ('the robot sees a red ball', 'tell me')
TOKENS = 12


def hf_folder(tmp_path):
    # Not at the top: each worker would import them, whatever it runs.
    pytest.importorskip('torch')
    pytest.importorskip('transformers')
    from test_hf_architectures import make_model, save_model

    path = save_model(tmp_path, make_model('llama'))
    (tmp_path / 'chat_template.jinja').write_text(
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}</s>{% endfor %}"
        '{% if add_generation_prompt %}[assistant]{% endif %}'
    )
    return path


def mlc_folder(tmp_path):
    pytest.importorskip('tvm')
    import mlc_model

    return mlc_model.tiny()[2]


@pytest.mark.parametrize(
    'api, make', [('hf', hf_folder), pytest.param('mlc', mlc_folder, marks=pytest.mark.long)]
)
def test_turns_over_dds_are_those_of_the_library(start, listen, tmp_path, api, make):
    folder = make(tmp_path)
    start(api=api, model=folder, max_context_len=256, max_new_tokens=TOKENS, system_prompt='a robot')
    ears = listen()
    turns = [ears.turn(question, timeout=120) for question in QUESTIONS]
    with NanoLLM.from_pretrained(folder, api=api, max_context_len=256) as model:
        history = ChatHistory(model, system_prompt='a robot')
        for question, turn in zip(QUESTIONS, turns):
            history.append('user', question)
            reply = model.generate(
                history.embed_chat()[0],
                kv_cache=history.kv_cache,
                max_new_tokens=TOKENS,
                stop_tokens=history.template.stop,
            )
            history.append('bot', reply.wait(60))
            history.kv_cache = reply.kv_cache
            assert turn.error == '' and (turn.reply, turn.finish_reason, turn.new_tokens) == (
                reply.text,
                reply.finish_reason,
                len(reply.tokens),
            )
    assert turns[1].reused_tokens >= turns[0].prompt_tokens
