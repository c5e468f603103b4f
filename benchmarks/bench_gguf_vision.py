"""Pictures over gguf, as ratios of one run: picture to first token beside a raw prefill and beside libmtmd's
own path on the same files, a follow-up, four streaming replies while pictures are encoded, and how soon an
encoding stops. With the tiny encoder, and with a random one of a usual size (45 million weights, 256 tokens);
follow-ups also with random encoders of other sizes.

    python -m benchmarks.bench_gguf_vision [--quick] [--model FILE --vision MMPROJ]
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

import gguf
import numpy as np

from benchmarks.common import machine, table
from ros2_nanochat import ChatHistory, NanoLLM
from ros2_nanochat.backends.base import Chunk
from ros2_nanochat.errors import EncodingStopped
from ros2_nanochat.locate import embedded_model, tiny_mmproj
from ros2_nanochat.vision.shapes import random_picture

QUESTION, FOLLOW_UP = 'What color is the object?', 'What shape is the object?'
SIZE = 640, 480
PATCH, OUTPUT = 14, 576


class Encoder(NamedTuple):
    """A CLIP tower of random weights; its pictures are squares of `side` pixels."""

    layers: int
    width: int
    side: int

    @property
    def tokens(self) -> int:
        """Rows of a picture."""
        return (self.side // PATCH) ** 2

    @property
    def millions(self) -> int:
        """Weights."""
        return round(12e-6 * self.layers * self.width**2)


USUAL = Encoder(14, 512, 224)
OTHERS = Encoder(6, 192, 112), Encoder(6, 256, 168), Encoder(8, 384, 224)


def write_encoder(path: str, encoder: Encoder) -> None:
    """Write a tower with a projector of two layers for the embedded model, as an mmproj file."""
    random, width = np.random.default_rng(0), encoder.width
    writer = gguf.GGUFWriter(path, 'clip')
    writer.add_bool('clip.has_vision_encoder', True)
    writer.add_string('clip.projector_type', 'mlp')
    writer.add_bool('clip.use_gelu', True)
    for name, value in (
        ('image_size', encoder.side),
        ('patch_size', PATCH),
        ('embedding_length', width),
        ('feed_forward_length', 4 * width),
        ('projection_dim', OUTPUT),
        ('block_count', encoder.layers),
        ('attention.head_count', width // 64),
    ):
        writer.add_uint32(f'clip.vision.{name}', value)
    writer.add_float32('clip.vision.attention.layer_norm_epsilon', 1e-5)
    for name in ('image_mean', 'image_std'):
        writer.add_array(f'clip.vision.{name}', [0.5, 0.5, 0.5])
    writer.add_array('clip.vision.feature_layer', [encoder.layers])

    def linear(name: str, out: int, into: int) -> None:
        writer.add_tensor(f'{name}.weight', (random.standard_normal((out, into)) * 0.03).astype(np.float16))
        writer.add_tensor(f'{name}.bias', np.zeros(out, np.float32))

    def norm(name: str) -> None:
        writer.add_tensor(f'{name}.weight', np.ones(width, np.float32))
        writer.add_tensor(f'{name}.bias', np.zeros(width, np.float32))

    conv = random.standard_normal((width, 3, PATCH, PATCH)) * 0.03
    writer.add_tensor('v.patch_embd.weight', conv.astype(np.float16))
    places = random.standard_normal((encoder.tokens, width)) * 0.03
    writer.add_tensor('v.position_embd.weight', places.astype(np.float32))
    norm('v.pre_ln')
    for n in range(encoder.layers):
        block = f'v.blk.{n}'
        for part in ('ln1', 'ln2'):
            norm(f'{block}.{part}')
        for part in ('attn_q', 'attn_k', 'attn_v', 'attn_out'):
            linear(f'{block}.{part}', width, width)
        linear(f'{block}.ffn_up', 4 * width, width)
        linear(f'{block}.ffn_down', width, 4 * width)
    linear('mm.0', OUTPUT, width)
    linear('mm.2', OUTPUT, OUTPUT)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class OwnPath:
    """libmtmd and llama.cpp without nanochat, as llama.cpp's command for pictures calls them."""

    def __init__(self, model: str, mmproj: str, threads: int):
        import llama_cpp.llama_cpp as api
        import llama_cpp.mtmd_cpp as lib

        self._api, self._lib = api, lib
        self._quiet = api.llama_log_callback(lambda level, text, data: None)
        api.llama_log_set(self._quiet, None)
        lib.mtmd_helper_log_set(self._quiet, None)
        self._model = api.llama_model_load_from_file(os.fsencode(model), api.llama_model_default_params())
        params = api.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = 2048, 2048, 512
        params.n_threads = params.n_threads_batch = threads
        self._context = api.llama_init_from_model(self._model, params)
        options = lib.mtmd_context_params_default()
        options.use_gpu, options.print_timings, options.n_threads = False, False, threads
        self._mtmd = lib.mtmd_init_from_file(os.fsencode(mmproj), self._model, options)

    def first_token(self, text: str, pixels: np.ndarray) -> float:
        """Seconds from a picture and a text (`<__media__>` stands for the picture) to the first id."""
        api, lib = self._api, self._lib
        api.llama_memory_clear(api.llama_get_memory(self._context), True)
        begin = time.perf_counter()
        data = pixels.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        bitmap = lib.mtmd_bitmap_init(pixels.shape[1], pixels.shape[0], data)
        chunks, written = lib.mtmd_input_chunks_init(), text.encode()
        given = lib.mtmd_input_text(written, len(written), False, True)
        array = (lib.mtmd_bitmap_p_ctypes * 1)(bitmap)
        code = lib.mtmd_tokenize(self._mtmd, chunks, ctypes.byref(given), array, 1)
        past = api.llama_pos(0)
        code = code or lib.mtmd_helper_eval_chunks(
            self._mtmd, self._context, chunks, 0, 0, 2048, True, ctypes.byref(past)
        )
        if code:
            raise RuntimeError(f'libmtmd failed with code {code}')
        count = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._model))
        np.ctypeslib.as_array(api.llama_get_logits_ith(self._context, -1), (count,)).argmax()
        seconds = time.perf_counter() - begin
        lib.mtmd_input_chunks_free(chunks)
        lib.mtmd_bitmap_free(bitmap)
        return seconds

    def close(self) -> None:
        """Free the memory."""
        self._lib.mtmd_free(self._mtmd)
        self._api.llama_free(self._context)
        self._api.llama_model_free(self._model)


def first_token(model, history) -> tuple[float, int]:
    """Seconds from the question to the first token, and how many entries were computed for it."""
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
    return seconds, reply.usage.prompt_tokens - reply.usage.reused_tokens


def raw_prefill(model, n: int) -> float:
    """Seconds of forwards over n ids, without engine or scheduling."""
    backend = model.backend
    seq = backend.new_sequence()
    ids = np.arange(n) % 1000 + 300
    begin = time.perf_counter()
    for start in range(0, n, backend.max_batch_tokens):
        part = ids[start : start + backend.max_batch_tokens]
        backend.forward([Chunk(seq, ids=part, num_logits=1)])
    seconds = time.perf_counter() - begin
    backend.free(seq)
    return seconds


def frame(n: int) -> np.ndarray:
    """A picture that was not shown before."""
    return np.ascontiguousarray(random_picture(np.random.default_rng(n), *SIZE)[0])


def against_others(name: str, model, bare, own: OwnPath, rounds: int, beyond: float | None) -> None:
    """Picture to first token beside a raw prefill of as many entries and beside libmtmd's own path, in turns;
    a follow-up.

    bare: Another one of the model, which holds no conversations.
    beyond: Milliseconds by which it may take longer than the raw prefill; None: no limit.
    """
    times: dict[str, list[float]] = {'ours': [], 'own': [], 'raw': [], 'follow': [], 'raw follow': []}
    computed, followed = 64, 16
    for n in range(rounds + 1):
        pixels, history = frame(n), ChatHistory(model)
        history.append('user', image=pixels, text=QUESTION)
        text = history.template.render(history.messages).replace('<image>', '<__media__>')
        measured = {}
        for which in ('ours', 'own', 'raw')[:: -1 if n % 2 else 1]:
            if which == 'ours':
                measured[which], computed = first_token(model, history)
            elif which == 'own':
                measured[which] = own.first_token(text, pixels)
            else:
                measured[which] = raw_prefill(bare, computed)
        history.append('user', FOLLOW_UP)
        for which in ('follow', 'raw follow')[:: -1 if n % 2 else 1]:
            if which == 'follow':
                measured[which], followed = first_token(model, history)
            else:
                measured[which] = raw_prefill(bare, followed)
        if n:  # the first warms up
            for key, value in measured.items():
                times[key].append(value)
    medians = {key: statistics.median(values) for key, values in times.items()}
    limit = '' if beyond is None else f'{beyond:.0f}'
    table(
        f'{name}: pictures of {SIZE[0]}x{SIZE[1]}, {rounds} rounds, {computed} entries computed for each',
        ('', 'measured', 'wanted'),
        [
            ('picture to first token, ms', 1e3 * medians['ours'], ''),
            ('raw prefill of as many entries, ms', 1e3 * medians['raw'], ''),
            (
                'longer than the raw prefill, ms',
                _median_excess(times['ours'], times['raw']),
                limit and f'at most {limit}',
            ),
            (
                "picture to first token / libmtmd's",
                _median_ratio(times['ours'], times['own']),
                'at most 1.05',
            ),
            ("libmtmd's / follow-up", _median_ratio(times['own'], times['follow']), 'at least 5'),
            ('entries computed for a follow-up', followed, ''),
            (
                'longer than the raw prefill of these, ms',
                _median_excess(times['follow'], times['raw follow']),
                '',
            ),
            (
                "libmtmd's / raw prefill of these",
                _median_ratio(times['own'], times['raw follow']),
                '',
            ),
        ],
    )


def follow_ups(encoders: Sequence[Encoder], rounds: int, folder: str) -> None:
    """How much sooner the first token of a follow-up comes than that of a picture with libmtmd's own path."""
    rows = []
    for encoder in encoders:
        path = os.path.join(folder, 'mmproj-random-f16.gguf')
        write_encoder(path, encoder)
        with NanoLLM.from_pretrained(embedded_model(), vision=path, max_context_len=1024) as model:
            own = OwnPath(embedded_model(), path, model.stats['threads_prefill'])
            slow, soon = [], []
            for n in range(rounds + 1):
                pixels, history = frame(n), ChatHistory(model)
                history.append('user', image=pixels, text=QUESTION)
                text = history.template.render(history.messages).replace('<image>', '<__media__>')
                first_token(model, history)
                history.append('user', FOLLOW_UP)
                for which in ('own', 'follow')[:: -1 if n % 2 else 1]:
                    if which == 'own':
                        slow.append(own.first_token(text, pixels))
                    else:
                        soon.append(first_token(model, history)[0])
            own.close()
        # the first round warms up
        rows.append((str(encoder.millions), str(encoder.tokens), _median_ratio(slow[1:], soon[1:])))
    table(
        f"a follow-up beside a picture with libmtmd's own path, {rounds} rounds each",
        ('million weights', 'tokens', "libmtmd's / follow-up"),
        rows,
    )


def _median_excess(above: list[float], below: list[float]) -> float:
    """Milliseconds."""
    return 1e3 * statistics.median(a - b for a, b in zip(above, below))


def _median_ratio(above: list[float], below: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(above, below))


def beside_replies(name: str, model, slices: int, seconds: float = 2.5) -> None:
    """The speed of four replies with and without pictures that are encoded all the time, in turns."""
    encoding, ended = threading.Event(), threading.Event()

    def encode() -> None:
        n = 10**6
        while not ended.is_set():
            if not encoding.wait(0.05):
                continue
            n += 1
            model.embed_image(frame(n))

    thread = threading.Thread(target=encode, daemon=True)
    thread.start()
    counts, encoded, running = [], model.vision.stats['encoded'], True
    for _ in range(slices):
        with _four_replies(model) as replies:
            for beside in (encoding.clear, encoding.set):
                beside()
                time.sleep(0.7)  # until the picture that was begun is done
                before, begin = sum(len(reply.tokens) for reply in replies), time.perf_counter()
                time.sleep(seconds)
                count = sum(len(reply.tokens) for reply in replies) - before
                counts.append(count / (time.perf_counter() - begin))
            running &= all(reply.finish_reason is None for reply in replies)
            encoding.clear()
    encoded = model.vision.stats['encoded'] - encoded
    ended.set()
    thread.join()
    table(
        f'{name}: four streaming replies beside pictures that are encoded all the time'
        + ('' if running else ' (a reply ended: not valid)'),
        ('', 'measured', 'wanted'),
        [
            ('tokens/s without', statistics.median(counts[::2]), ''),
            ('speed beside, of that without', _median_ratio(counts[1::2], counts[::2]), 'at least 0.5'),
            ('pictures encoded meanwhile', encoded, ''),
        ],
    )


@contextlib.contextmanager
def _four_replies(model):
    """Four long replies, each with its reader."""
    options = {'max_new_tokens': 900, 'min_new_tokens': 900}
    replies = [model.generate(f'Tell me {n} stories.', **options) for n in range(4)]
    readers = [threading.Thread(target=reply.wait) for reply in replies]
    for reader in readers:
        reader.start()
    try:
        yield replies
    finally:
        for reply in replies:
            reply.stop()
        for reader in readers:
            reader.join()


def stopping(name: str, model, rounds: int) -> None:
    """How soon an encoding stops, wherever it is, and how long it would have taken."""
    model.embed_image(frame(2 * 10**6))
    begin = time.perf_counter()
    model.embed_image(frame(2 * 10**6 + 1))
    whole, late = time.perf_counter() - begin, []
    for n in range(rounds):
        at = time.perf_counter() + whole * n / rounds
        try:
            model.embed_image(frame(2 * 10**6 + 2 + n), stopped=lambda at=at: time.perf_counter() > at)
        except EncodingStopped:
            late.append(time.perf_counter() - at)
    table(
        f'{name}: an encoding that is stopped',
        ('', 'measured', 'wanted'),
        [
            ('the whole encoding, ms', 1e3 * whole, ''),
            ('longest time from the stop to its end, ms', 1e3 * max(late, default=0.0), ''),
        ],
    )


def bench(name: str, model_path: str, mmproj: str, rounds: int, slices: int, tiny: bool) -> None:
    """All figures with one encoder."""
    with NanoLLM.from_pretrained(model_path, vision=mmproj, max_context_len=1024) as model:
        model.vision.load()
        own = OwnPath(model_path, mmproj, model.stats['threads_prefill'])
        with NanoLLM.from_pretrained(model_path, vision='none', max_context_len=1024) as bare:
            against_others(name, model, bare, own, rounds, 15.0 if tiny else None)
        own.close()
        beside_replies(name, model, slices)
        if not tiny:  # that of the tiny one takes a few milliseconds and is not interrupted
            stopping(name, model, 2 * rounds)


def main() -> None:
    """Run it; see the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--model', default=embedded_model(), help='a GGUF file')
    parser.add_argument('--vision', help='its mmproj file, in place of the two encoders')
    parser.add_argument('--quick', action='store_true', help='fewer rounds')
    options = parser.parse_args()
    rounds, slices = (4, 2) if options.quick else (9, 4)
    print(machine(), flush=True)
    if options.vision:
        bench(os.path.basename(options.vision), options.model, options.vision, rounds, slices, False)
        return
    bench('the tiny encoder', options.model, tiny_mmproj(), 2 * rounds, slices, True)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, 'mmproj-vit-f16.gguf')
        write_encoder(path, USUAL)
        name = f'an encoder of {USUAL.millions} million weights'
        bench(name, options.model, path, rounds, slices, False)
        follow_ups(OTHERS, rounds, folder)


if __name__ == '__main__':
    main()
