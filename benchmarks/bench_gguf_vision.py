"""Pictures over gguf, as ratios of one run: picture to first token and a follow-up beside libmtmd's own path
on the same files, and the speed of four streaming replies while pictures are encoded.

    python -m benchmarks.bench_gguf_vision [--model FILE --vision MMPROJ] [--rounds 10] [--size 320x240]
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import threading
import time

import numpy as np

from benchmarks.common import machine, table
from ros2_nanochat import ChatHistory, NanoLLM
from ros2_nanochat.locate import embedded_model, tiny_mmproj
from ros2_nanochat.vision.shapes import random_picture

QUESTION, FOLLOW_UP = 'What color is the object?', 'What shape is the object?'


class OwnPath:
    """libmtmd and llama.cpp without nanochat: tokenize, encode, decode."""

    def __init__(self, model: str, mmproj: str, threads: int):
        import llama_cpp.llama_cpp as api
        import llama_cpp.mtmd_cpp as lib

        self._api, self._lib = api, lib
        self._model = api.llama_model_load_from_file(model.encode(), api.llama_model_default_params())
        params = api.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = 2048, 512, 512
        params.n_threads = params.n_threads_batch = threads
        self._context = api.llama_init_from_model(self._model, params)
        options = lib.mtmd_context_params_default()
        options.use_gpu, options.print_timings, options.n_threads = False, False, threads
        self._mtmd = lib.mtmd_init_from_file(mmproj.encode(), self._model, options)

    def first_logits(self, text: str, pixels: np.ndarray) -> float:
        """Seconds from a picture and a text (`<__media__>` stands for the picture) to the first logits."""
        api, lib = self._api, self._lib
        api.llama_memory_clear(api.llama_get_memory(self._context), True)
        begin = time.perf_counter()
        data = pixels.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        bitmap = lib.mtmd_bitmap_init(pixels.shape[1], pixels.shape[0], data)
        chunks, written = lib.mtmd_input_chunks_init(), text.encode()
        given = lib.mtmd_input_text(written, len(written), False, True)
        array = (lib.mtmd_bitmap_p_ctypes * 1)(bitmap)
        lib.mtmd_tokenize(self._mtmd, chunks, ctypes.byref(given), array, 1)
        past = api.llama_pos(0)
        lib.mtmd_helper_eval_chunks(self._mtmd, self._context, chunks, 0, 0, 512, True, ctypes.byref(past))
        api.llama_get_logits_ith(self._context, -1)
        seconds = time.perf_counter() - begin
        lib.mtmd_input_chunks_free(chunks)
        lib.mtmd_bitmap_free(bitmap)
        return seconds


def first_token(model, history) -> float:
    begin = time.perf_counter()
    reply = model.generate(
        history.embed_chat()[0],
        kv_cache=history.kv_cache,
        max_new_tokens=4,
        stop_tokens=history.template.stop,
    )
    next(iter(reply), None)
    seconds = time.perf_counter() - begin
    history.append('bot', reply.wait())
    return seconds


def against_own_path(model, own: OwnPath, rounds: int, width: int, height: int) -> None:
    ours, theirs, follow = [], [], []
    for n in range(rounds + 1):
        pixels = np.ascontiguousarray(random_picture(np.random.default_rng(n), width, height)[0])
        history = ChatHistory(model)
        history.append('user', image=pixels, text=QUESTION)
        text = history.template.render(history.messages).replace('<image>', '<__media__>')
        measured = [0.0, 0.0]
        for which in (0, 1) if n % 2 else (1, 0):  # what else the machine does slows both alike
            measured[which] = own.first_logits(text, pixels) if which else first_token(model, history)
        history.append('user', FOLLOW_UP)
        later = first_token(model, history)
        if n:  # the first warms up
            ours.append(measured[0])
            theirs.append(measured[1])
            follow.append(later)
    table(
        f'a picture of {width}x{height}, {rounds} rounds',
        ('', 'measured', 'limit'),
        [
            ('picture to first token / own path', statistics.median(map(_ratio, ours, theirs)), 1.05),
            ('own path / follow-up', statistics.median(map(_ratio, theirs, follow)), 5),
            ('picture to first token, ms', 1e3 * statistics.median(ours), ''),
        ],
    )


def _ratio(a: float, b: float) -> float:
    return a / b


def beside_replies(model, width: int, height: int, seconds: float = 6.0) -> None:
    """The speed of four replies with and without pictures that are encoded all the time."""

    def speed() -> float:
        replies = [model.generate(f'Tell me a story of {n} robots.', max_new_tokens=400) for n in range(4)]
        time.sleep(0.5)
        before, begin = sum(len(reply.tokens) for reply in replies), time.perf_counter()
        time.sleep(seconds / 2)
        rate = (sum(len(reply.tokens) for reply in replies) - before) / (time.perf_counter() - begin)
        for reply in replies:
            reply.stop()
        for reply in replies:
            reply.wait()
        return rate

    alone, ended = speed(), threading.Event()

    def encode() -> None:
        for n in range(10**6):
            if ended.is_set():
                return
            model.embed_image(random_picture(np.random.default_rng(10**6 + n), width, height)[0])

    thread = threading.Thread(target=encode)
    thread.start()
    beside = speed()
    ended.set()
    thread.join()
    table(
        'four replies beside pictures that are encoded all the time',
        ('', 'measured', 'at least'),
        [('speed, of that without', beside / alone, 0.5)],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--model', default=embedded_model())
    parser.add_argument('--vision', default=tiny_mmproj())
    parser.add_argument('--rounds', type=int, default=10)
    parser.add_argument('--size', default='64x64')
    options = parser.parse_args()
    width, height = map(int, options.size.split('x'))
    print(machine())
    with NanoLLM.from_pretrained(options.model, vision=options.vision, max_context_len=1024) as model:
        model.vision.load()
        own = OwnPath(options.model, options.vision, model.stats['threads_prefill'])
        against_own_path(model, own, options.rounds, width, height)
        beside_replies(model, width, height)


if __name__ == '__main__':
    main()
