"""`hf` against `generate` of transformers, on the same weights in the same process: decode, prefill, a turn
with history, several conversations.

    python -m benchmarks.bench_hf                        the embedded model's weights in float32
    python -m benchmarks.bench_hf --model PATH [--quantization bfloat16] [--device cuda] [--compile]
    python -m benchmarks.bench_hf --shape llama-7b --device cuda       random weights of that shape

Prints one row a figure: what, ours, theirs, ratio. Each is the median of `--repeat` runs that alternate
between the two, so that other load on the machine meets both. On CUDA a last row compares the decode with
what the memory bandwidth allows.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time

import numpy as np

from benchmarks.common import machine
from benchmarks.random_gguf import SHAPES
from ros2_nanochat.backends.base import Chunk
from ros2_nanochat.backends.hf.backend import HFBackend
from ros2_nanochat.config import ModelConfig
from ros2_nanochat.locate import embedded_model


def random_model(shape: str, dtype: str) -> str:
    """A folder with a Llama of that shape, random weights and a tokenizer of single bytes."""
    import tokenizers
    import torch
    import transformers

    folder = tempfile.mkdtemp()
    with torch.device('cuda' if torch.cuda.is_available() else 'cpu'):
        model = transformers.LlamaForCausalLM._from_config(
            transformers.LlamaConfig(**SHAPES[shape], max_position_embeddings=4096),
            dtype=getattr(torch, dtype),
        )
    model.save_pretrained(folder)
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokenizers.Tokenizer(tokenizers.models.BPE({char: i for i, char in enumerate(alphabet)}, [])).save(
        os.path.join(folder, 'tokenizer.json')
    )
    return folder


class Bench:
    def __init__(self, backend: HFBackend, repeat: int):
        import torch

        self.torch, self.backend, self.repeat = torch, backend, repeat
        self.generator = np.random.default_rng(0)

    def ids(self, n: int) -> np.ndarray:
        return self.generator.integers(10, min(250, self.backend.info.vocab_size), n)

    def clock(self, run) -> float:
        if self.backend.device.type == 'cuda':
            self.torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        if self.backend.device.type == 'cuda':
            self.torch.cuda.synchronize()
        return time.perf_counter() - start

    def compare(self, ours, theirs) -> tuple[float, float]:
        """Medians of the seconds of both, run in turns; one of each goes before as a warm-up. What returns
        seconds has measured itself.
        """

        def seconds(run) -> float:
            own = []
            whole = self.clock(lambda: own.append(run()))
            return whole if own[0] is None else own[0]

        ours(), theirs()
        pairs = [(seconds(ours), seconds(theirs)) for _ in range(self.repeat)]
        return tuple(statistics.median(side) for side in zip(*pairs))

    def generate(self, ids: np.ndarray, n: int, mask: np.ndarray | None = None) -> float:
        """Let transformers generate n tokens; seconds from its first token to its last."""
        tensor = self.torch.as_tensor(np.atleast_2d(ids)).to(self.backend.device)
        mask = self.torch.ones_like(tensor) if mask is None else self.torch.as_tensor(mask).to(tensor)
        times = []

        def note(input_ids, scores, **_):  # transformers asks after each token whether to stop
            if input_ids.is_cuda:
                self.torch.cuda.synchronize()
            times.append(time.perf_counter())
            return self.torch.zeros(len(input_ids), dtype=self.torch.bool, device=input_ids.device)

        with self.torch.inference_mode():
            self.backend.model.generate(
                tensor,
                attention_mask=mask,
                max_new_tokens=n,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
                stopping_criteria=[note],
            )
        return times[-1] - times[0]

    def first_token(self, ids: np.ndarray) -> None:
        self.generate(ids, 1)

    def decode(self, seqs: list[int], n: int) -> None:
        tokens = [np.array([11])] * len(seqs)
        for _ in range(n):
            rows = self.backend.forward(
                [Chunk(seq, ids=token, num_logits=1) for seq, token in zip(seqs, tokens)]
            ).numpy()
            tokens = [
                np.array([i]) for i in (rows.argmax(-1) if isinstance(rows, np.ndarray) else rows.argmax())
            ]

    def filled(self, lengths: list[int]) -> list[int]:
        seqs = [self.backend.new_sequence() for _ in lengths]
        for seq, n in zip(seqs, lengths):
            self.backend.forward([Chunk(seq, ids=self.ids(n))])
        return seqs

    def free(self, seqs: list[int]) -> None:
        for seq in seqs:
            self.backend.free(seq)


def rows(bench: Bench, new: int):
    """Yield (what, ours, theirs, unit, ratio: how many times better ours is)."""
    backend = bench.backend
    prompt = bench.ids(64)
    seq = bench.filled([64])[0]

    def ours_decode():
        bench.decode([seq], new)
        backend.trim(seq, 64)

    ours, theirs = bench.compare(ours_decode, lambda: bench.generate(prompt, new + 1))
    yield f'decode, 1 conversation of {64 + new} tokens', new / ours, new / theirs, 'tok/s', theirs / ours
    bench.free([seq])

    long = bench.ids(1000)

    def prefill():
        seq = backend.new_sequence()
        backend.forward([Chunk(seq, ids=long, num_logits=1)])
        backend.free(seq)

    ours, theirs = bench.compare(prefill, lambda: bench.first_token(long))
    yield 'prefill of 1000 tokens', 1000 / ours, 1000 / theirs, 'tok/s', theirs / ours

    seq = bench.filled([1000])[0]
    turn = bench.ids(16)

    def next_turn():
        backend.forward([Chunk(seq, ids=turn, num_logits=1)])
        backend.trim(seq, 1000)

    whole = np.concatenate([long, turn])
    ours, theirs = bench.compare(next_turn, lambda: bench.first_token(whole))
    yield 'first token of a turn of 16 after 1000', 1000 * ours, 1000 * theirs, 'ms', theirs / ours
    bench.free([seq])

    for count in (4, 8, 16):
        seqs = bench.filled([32 + 16 * i for i in range(count)])
        steps = max(new // 4, 4)
        lengths = [32 + 16 * i for i in range(count)]

        def together():
            bench.decode(seqs, steps)
            for each, n in zip(seqs, lengths):
                backend.trim(each, n)

        def in_turn():
            for each, n in zip(seqs, lengths):
                bench.decode([each], steps)
                backend.trim(each, n)

        padded = np.stack(
            [np.concatenate([np.zeros(max(lengths) - n, np.int64), bench.ids(n)]) for n in lengths]
        )
        mask = np.stack([np.arange(max(lengths)) >= max(lengths) - n for n in lengths])
        ours, theirs = bench.compare(together, lambda: bench.generate(padded, steps + 1, mask))
        yield (
            f'decode, {count} conversations (theirs: a padded batch)',
            count * steps / ours,
            count * steps / theirs,
            'tok/s',
            theirs / ours,
        )
        ours, theirs = bench.compare(together, in_turn)
        yield (
            f'decode, {count} conversations (theirs: ours one after another)',
            count * steps / ours,
            count * steps / theirs,
            'tok/s',
            theirs / ours,
        )
        bench.free(seqs)


def copy_bandwidth(torch) -> float:
    """Bytes per second that a copy on the device moves, read and write together."""
    a = torch.empty(1 << 30, dtype=torch.uint8, device='cuda')
    b = torch.empty_like(a)
    b.copy_(a)
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(10):
        b.copy_(a)
    torch.cuda.synchronize()
    return 2 * 10 * a.numel() / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--model')
    parser.add_argument('--shape', choices=list(SHAPES))
    parser.add_argument('--quantization')
    parser.add_argument('--device', default='auto')
    parser.add_argument('--threads', type=int)
    parser.add_argument('--compile', action='store_true')
    parser.add_argument('--new', type=int, default=32, help='tokens decoded in a run')
    parser.add_argument('--repeat', type=int, default=5)
    args = parser.parse_args()
    path = args.model or (
        random_model(args.shape, args.quantization or 'float16') if args.shape else embedded_model()
    )
    backend = HFBackend(
        path,
        ModelConfig(
            max_sequences=20,
            quantization=args.quantization,
            device=args.device,
            threads=args.threads,
            compile=args.compile,
            max_context_len=2048,
        ),
    )
    backend.open()
    bench = Bench(backend, args.repeat)
    torch = bench.torch
    print(machine())
    print(
        f'hf: {backend.info.name}, {backend.info.quantization} on {backend.device}, {torch.get_num_threads()}'
        f' threads, packed: {backend.runner.packed}, compile: {args.compile}'
    )
    print(f'{"what":58} {"ours":>10} {"theirs":>10}         ratio')
    first = None
    for what, ours, theirs, unit, ratio in rows(bench, args.new):
        first = first or ours
        print(f'{what:58} {ours:10.1f} {theirs:10.1f} {unit:7} {ratio:5.2f}', flush=True)
    if backend.device.type == 'cuda':
        bound = copy_bandwidth(torch) / backend.info.weights_bytes
        print(
            f'{"decode over what the memory bandwidth allows":58} {first:10.1f} {bound:10.1f} {"tok/s":7}'
            f' {first / bound:5.2f}'
        )
    backend.close()


if __name__ == '__main__':
    main()
