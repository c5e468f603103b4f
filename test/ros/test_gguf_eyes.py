"""A node whose GGUF model sees through its own mmproj file: what a turn says about its pictures."""

import numpy as np
import pytest

pytest.importorskip('llama_cpp')
pytest.importorskip('gguf')

import vision_gguf
import vision_words

from ros2_nanochat.ros.client import ChatClient


def test_image_max_tokens_limits_what_a_picture_takes_in_each_turn(start, tmp_path):
    model, mmproj = vision_gguf.write_family(str(tmp_path), 'qwen2-vl')
    options = {'max_context_len': 1024, 'max_new_tokens': 8, 'image_max_tokens': 24}
    node = start(api='gguf', model=model, vision=mmproj, **options)
    chat = ChatClient()
    try:
        assert chat.wait_until_ready(30.0)
        picture = np.array(vision_words.picture(1, 640, 480))
        first = chat.ask('What is the thing?', image=picture).result(60)
        second = chat.ask('And its place?').result(60)
        assert 8 <= first.image_tokens <= 24 and first.encode_time > 0, first
        assert second.image_tokens == second.reused_image_tokens == first.image_tokens, second
    finally:
        chat.close()
    assert 'opened without vision' not in node.output
