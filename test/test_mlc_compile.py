"""Making a model for `mlc`: the command lines that mlc_llm is given, and what is left when it fails, is
stopped, or runs twice.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from ros2_nanochat.backends.mlc import compiling as mlc_compile
from ros2_nanochat.backends.mlc import mlc_llm
from ros2_nanochat.backends.mlc.checkpoint import older_config
from ros2_nanochat.backends.mlc.compiling import prepare
from ros2_nanochat.backends.mlc.folder import MLCFolder
from ros2_nanochat.backends.mlc.mlc_llm import telling
from ros2_nanochat.config import ModelConfig
from ros2_nanochat.errors import BackendError

STAND_IN = os.path.join(os.path.dirname(__file__), 'mlc_stand_in.py')
CONFIG = {
    'model_type': 'llama',
    'vocab_size': 8,
    'dtype': 'float16',
    'rope_parameters': {'rope_type': 'default', 'rope_theta': 123456.0},
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A checkpoint, the stand-in on the path, and a cache folder of its own."""
    checkpoint = tmp_path / 'Martian-1B'
    checkpoint.mkdir()
    (checkpoint / 'config.json').write_text(json.dumps(CONFIG))
    (checkpoint / 'model.safetensors').write_bytes(b'x' * 100)
    (checkpoint / 'tokenizer.json').write_text('{"added_tokens": [{"content": "<|im_start|>"}]}')
    (checkpoint / 'chat_template.jinja').write_text('a template')
    programs = tmp_path / 'bin'
    programs.mkdir()
    program = programs / 'mlc_llm'
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {STAND_IN} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv('PATH', f'{programs}{os.pathsep}{os.environ["PATH"]}')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    monkeypatch.setenv('STAND_IN_RECORD', str(tmp_path / 'record'))
    monkeypatch.delenv('STAND_IN', raising=False)
    return tmp_path


def steps(place):
    record = place / 'record'
    return [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []


def left(place):
    """What lies in the cache, but for locks."""
    cache = place / 'cache' / 'nanochat' / 'mlc'
    return sorted(name for name in os.listdir(cache) if not name.endswith('.lock')) if cache.exists() else []


def tool(*arguments):
    return [sys.executable, '-m', 'ros2_nanochat.terminal.compile_mlc', *arguments]


def test_mlc_llm_is_told_what_its_parser_takes_and_the_folder_is_found_again(place):
    said = []
    config = ModelConfig(quantization='q4f16_1', device='cuda', max_sequences=20)
    made = prepare(str(place / 'Martian-1B'), config, said.append)
    first, second, third = steps(place)
    assert (first['step'], second['step'], third['step']) == ('gen_config', 'convert_weight', 'compile')
    assert (
        first['quantization'] == second['quantization'] == third['chat_config']['quantization'] == 'q4f16_1'
    )
    assert (
        first['conv_template'],
        first['context_window_size'],
        first['prefill_chunk_size'],
        first['max_batch_size'],
    ) == ('chatml', None, 1024, 20)
    assert second['device'] == third['device'] == 'cuda'
    assert first['config_json']['rope_theta'] == 123456.0 and 'model.safetensors' in second['files']
    assert (
        json.loads((place / 'Martian-1B' / 'config.json').read_text()) == CONFIG
    )  # the original is as it was
    folder = MLCFolder(made)
    assert os.path.exists(folder.find_library(ModelConfig()))
    assert 'chat_template.jinja' in os.listdir(made) and left(place) == [os.path.basename(made)]
    assert [line for line in said if 'quantizing to q4f16_1' in line] and len(said) == 6
    assert prepare(str(place / 'Martian-1B'), config, said.append) == made and len(steps(place)) == 3
    assert prepare(made, ModelConfig()) == made and len(steps(place)) == 3


def test_another_method_a_context_or_new_weights_make_another_folder(place):
    path = str(place / 'Martian-1B')
    made = [prepare(path, ModelConfig(quantization='q4f16_1', device='cuda', max_context_len=256), print)]
    assert steps(place)[0]['context_window_size'] == 256 and steps(place)[0]['prefill_chunk_size'] == 256
    made.append(prepare(path, ModelConfig(quantization='q0f16', device='cuda'), print))
    made.append(prepare(path, ModelConfig(quantization='q0f16', device='cpu'), print))
    (place / 'Martian-1B' / 'model.safetensors').write_bytes(b'y' * 200)
    made.append(prepare(path, ModelConfig(quantization='q0f16', device='cpu'), print))
    assert len(set(made)) == 4 and len(left(place)) == 4
    # one that was made for the whole context serves a shorter one too
    assert (
        prepare(path, ModelConfig(quantization='q0f16', device='cpu', max_context_len=99), print) == made[-1]
    )


@pytest.mark.parametrize('step', ['gen_config', 'convert_weight', 'compile'])
@pytest.mark.parametrize(
    'act, said',
    [('fail', 'ValueError: Unknown model type: martian'), ('full', 'the disk is full; free some room')],
)
def test_a_step_that_fails_is_one_line_and_leaves_nothing(place, monkeypatch, step, act, said):
    monkeypatch.setenv('STAND_IN', f'{act} {step}')
    with pytest.raises(BackendError) as caught:
        prepare(str(place / 'Martian-1B'), ModelConfig(device='cpu'), print)
    assert (
        said in str(caught.value)
        and f'mlc_llm {step} failed' in str(caught.value)
        and '\n' not in str(caught.value)
    )
    assert left(place) == []
    monkeypatch.delenv('STAND_IN')
    prepare(str(place / 'Martian-1B'), ModelConfig(device='cpu'), print)
    assert len(left(place)) == 1


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_what_was_started_and_leaves_nothing(place, number):
    process = subprocess.Popen(
        tool(str(place / 'Martian-1B'), '--target', 'llvm'),
        env={**os.environ, 'STAND_IN': 'sleep convert_weight'},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    pid = place / 'record.pid'
    wait_for(lambda: pid.exists() and pid.read_text())
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130 and 'stopped' in errors and 'Traceback' not in errors
    assert left(place) == []
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def is_gone(pid):
    """Whether a process has ended; one that nobody has waited for counts."""
    try:
        return open(f'/proc/{pid}/stat').read().rpartition(')')[2].split()[0] == 'Z'
    except FileNotFoundError:
        return True


WAITS_IN_A_THREAD = """
import sys, threading
from ros2_nanochat.backends.mlc.compiling import prepare
from ros2_nanochat.config import ModelConfig
threading.Thread(target=prepare, args=(sys.argv[1], ModelConfig(device='cpu')), daemon=True).start()
threading.Event().wait()
"""


@pytest.mark.parametrize('program', ['tool', 'thread'])
@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGTERM, signal.SIGABRT, signal.SIGHUP])
def test_what_was_started_ends_with_whoever_asked_and_leaves_nothing(place, program, number):
    """The tool, and a program that compiles in a thread and does not expect the signal, as a node does."""
    checkpoint = str(place / 'Martian-1B')
    process = subprocess.Popen(
        tool(checkpoint, '--target', 'llvm')
        if program == 'tool'
        else [sys.executable, '-c', WAITS_IN_A_THREAD, checkpoint],
        env={**os.environ, 'STAND_IN': 'sleep compile'},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # tests may run under nohup
    )
    pid = place / 'record.pid'
    wait_for(lambda: pid.exists() and pid.read_text())
    process.send_signal(number)
    process.wait(20)
    wait_for(lambda: is_gone(pid.read_text()), 10)
    wait_for(lambda: left(place) == [], 10)
    made = prepare(checkpoint, ModelConfig(device='cpu'), print)
    assert left(place) == [os.path.basename(made)]


@pytest.mark.parametrize('step', ['gen_config', 'compile'])
def test_whoever_asked_can_stop_it_and_nothing_is_left(place, monkeypatch, step):
    monkeypatch.setenv('STAND_IN', f'sleep {step}')
    stop, outcome = threading.Event(), []

    def make():
        try:
            prepare(str(place / 'Martian-1B'), ModelConfig(device='cpu'), print, stop=stop)
        except BackendError as error:
            outcome.append(str(error))

    threads = [threading.Thread(target=make) for _ in range(2)]  # the second waits for the first
    for thread in threads:
        thread.start()
    pid = place / 'record.pid'
    wait_for(lambda: pid.exists() and pid.read_text())
    stop.set()
    for thread in threads:
        thread.join(20)
    assert outcome == ['making the model was stopped'] * 2
    assert is_gone(pid.read_text()) and left(place) == []
    monkeypatch.delenv('STAND_IN')
    prepare(str(place / 'Martian-1B'), ModelConfig(device='cpu'), print)


def test_the_lock_is_held_until_what_was_started_has_ended(place):
    """A child that takes its time to end, after its parent was killed: nobody else begins meanwhile."""
    process = subprocess.Popen(
        tool(str(place / 'Martian-1B'), '--target', 'llvm'),
        env={**os.environ, 'STAND_IN': 'cling convert_weight'},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    pid = place / 'record.pid'
    wait_for(lambda: pid.exists() and pid.read_text())
    process.kill()
    process.wait()
    assert not is_gone(pid.read_text())
    said = []
    prepare(str(place / 'Martian-1B'), ModelConfig(device='cpu'), said.append)
    assert is_gone(pid.read_text()) and 'waiting for another process' in said[0]


def test_what_a_computer_that_was_switched_off_left_is_cleared_by_the_next_run(place):
    name = os.path.basename(prepare(str(place / 'Martian-1B'), ModelConfig(device='cpu'), print))
    cache = place / 'cache' / 'nanochat' / 'mlc'
    shutil.rmtree(cache / name)
    (cache / f'.{name}.making-abc').mkdir()
    (cache / f'.{name}.making-abc' / 'half').write_text('x')
    prepare(str(place / 'Martian-1B'), ModelConfig(device='cpu'), print)
    assert left(place) == [name]


def test_two_processes_at_once_do_it_once(place):
    command = tool(str(place / 'Martian-1B'), '--target', 'llvm', '--quantization', 'q0f16')
    environment = {**os.environ, 'STAND_IN': 'slow convert_weight'}
    processes = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0] and os.path.isdir(outputs[0][0].strip())
    assert [step['step'] for step in steps(place)] == ['gen_config', 'convert_weight', 'compile']


def test_weights_that_lack_a_library_get_one_in_the_cache(place):
    made = prepare(str(place / 'Martian-1B'), ModelConfig(quantization='q4f16_1', device='cpu'), print)
    weights = str(place / 'Martian-1B-q4f16_1-MLC')
    shutil.copytree(made, weights, ignore=shutil.ignore_patterns('*.so'))
    assert prepare(weights, ModelConfig(device='cpu'), print) == weights
    library = MLCFolder(weights).find_library(ModelConfig(device='cpu'))
    assert os.path.basename(library).startswith('Martian-1B-q4f16_1-cpu-')
    assert steps(place)[-1]['model'].startswith(weights)
    count = len(steps(place))
    assert prepare(weights, ModelConfig(), print) == weights and len(steps(place)) == count


def weights_with(place, **changes):
    """MLC weights without a library, with changes to their configuration, in a folder of the same name."""
    made = prepare(str(place / 'Martian-1B'), ModelConfig(quantization='q4f16_1', device='cpu'), len)
    folder = place / f'of {sorted(changes.items())}' / 'Martian-1B-q4f16_1-MLC'
    shutil.copytree(made, folder, ignore=shutil.ignore_patterns('*.so'))
    config = json.loads((folder / 'mlc-chat-config.json').read_text())
    (folder / 'mlc-chat-config.json').write_text(json.dumps({**config, **changes}))
    return folder


def test_a_folder_of_the_same_name_with_another_content_gets_a_library_of_its_own(place):
    found = set()
    for base in (10000, 500000):
        folder = weights_with(place, model_config={'position_embedding_base': base})
        prepare(str(folder), ModelConfig(device='cpu'), print)
        found.add(MLCFolder(str(folder)).find_library(ModelConfig(device='cpu')))
        assert steps(place)[-1]['chat_config']['model_config']['position_embedding_base'] == base
    assert len(found) == 2
    count = len(steps(place))
    prepare(str(folder), ModelConfig(device='cpu'), print)
    other = weights_with(place, model_config={'position_embedding_base': 500000}, temperature=0.1)
    prepare(str(other), ModelConfig(device='cpu'), print)  # a library does not depend on the temperature
    assert len(steps(place)) == count


def test_another_tokenizer_or_template_makes_another_folder(place):
    path = str(place / 'Martian-1B')
    made = {prepare(path, ModelConfig(device='cpu'), print)}
    (place / 'Martian-1B' / 'chat_template.jinja').write_text('another')
    made.add(prepare(path, ModelConfig(device='cpu'), print))
    assert len(made) == 2


FOREIGN = b'\x7fELF\x02\x01\x01' + bytes(9) + b'\x03\x00\xf3\x00' + bytes(60)  # of a RISC-V


@pytest.mark.parametrize(
    'library, target, reason',
    [
        (FOREIGN, 'llvm', 'was compiled for riscv'),
        (b'\x7fELF a library', 'cuda', 'was compiled for cpu'),
        (b'\x7fELF a library \x04\0\0\0\0\0\0\0cuda', 'llvm', 'was compiled for cuda'),
        (b'\x7fELF a library', 'llvm', 'cut off'),
        (b'', 'llvm', 'no shared library'),
    ],
    ids=['another processor', 'another target', 'a GPU', 'another TVM', 'nothing'],
)
def test_a_library_that_does_not_do_what_is_asked_for_is_compiled_anew(
    place, library, target, reason, capsys
):
    pytest.importorskip('tvm')
    from ros2_nanochat.terminal.compile_mlc import main

    folder = weights_with(place)
    beside = folder / 'Martian-1B-q4f16_1.so'
    beside.write_bytes(library)
    count = len(steps(place))
    assert main([str(folder), '--target', target]) == 0
    said = capsys.readouterr()
    assert said.out.strip() == str(folder) and reason in said.err and 'it is compiled here' in said.err
    assert (
        len(steps(place)) == count + 1
        and steps(place)[-1]['device'] == ModelConfig(device='cpu' if target == 'llvm' else target).device
    )
    chosen = MLCFolder(str(folder)).find_library(ModelConfig(device='cpu' if target == 'llvm' else target))
    assert os.path.dirname(chosen).endswith('mlc') and beside.read_bytes() == library


@pytest.mark.parametrize(
    'script, said',
    [
        ('kill -9 $$', 'signal 9, which the system sends if memory runs out: it said nothing'),
        ('kill -SEGV $$', 'failed on signal 11: it said nothing'),
        ("printf 'a\\033[31m\\001b\\n'; exit 1", 'failed: a b'),
        ("printf '\\001\\002\\n'; exit 1", 'failed: it said nothing'),
    ],
    ids=['killed', 'crashed', 'control characters', 'nothing else'],
)
def test_a_killed_compiler_or_one_that_writes_control_characters_is_one_line(place, script, said):
    (place / 'bin' / 'mlc_llm').write_text(f'#!/bin/sh\n{script}\n')
    with pytest.raises(BackendError) as caught:
        prepare(str(place / 'Martian-1B'), ModelConfig(device='cpu'), print)
    assert said in str(caught.value) and str(caught.value).isprintable() and left(place) == []


def test_a_cache_that_cannot_be_written_says_how_to_choose_another(place, monkeypatch):
    (place / 'file').write_text('')
    monkeypatch.setenv('XDG_CACHE_HOME', str(place / 'file'))
    with pytest.raises(BackendError, match='Not a directory.*XDG_CACHE_HOME'):
        prepare(str(place / 'Martian-1B'), ModelConfig(device='cpu'), print)


def test_a_longer_context_than_what_is_there_is_made_or_refused(place):
    path = str(place / 'Martian-1B')
    own = prepare(path, ModelConfig(device='cpu'), print)
    assert prepare(path, ModelConfig(device='cpu', max_context_len=512), print) == own
    longer = prepare(path, ModelConfig(device='cpu', max_context_len=9000), print)
    assert longer != own and MLCFolder(longer).context_length == 9000
    with pytest.raises(ValueError, match='max_context_len=9000 .* made for 2048 tokens.*checkpoint'):
        prepare(own, ModelConfig(device='cpu', max_context_len=9000), print)


def test_why_a_library_is_not_made_anew_is_told(place, monkeypatch):
    folder = weights_with(place)
    (folder / 'x.so').write_bytes(FOREIGN)
    monkeypatch.setenv('PATH', '/nowhere')
    with pytest.raises(BackendError, match='was compiled for riscv.*nanochat-mlc.*mlc_llm is not installed'):
        prepare(str(folder), ModelConfig(device='cpu'))
    (folder / 'y.so').write_bytes(b'\x7fELF a library')
    assert prepare(str(folder), ModelConfig(device='cpu')) == str(folder)  # the other one is for here
    assert MLCFolder(str(folder)).find_library(ModelConfig(device='cpu')) == str(folder / 'y.so')


def test_quantization_may_be_a_path_to_weights_and_must_agree_with_what_is_there(place):
    made = prepare(str(place / 'Martian-1B'), ModelConfig(quantization='q4f16_1', device='cpu'), print)
    assert prepare(str(place / 'Martian-1B'), ModelConfig(quantization=made), print) == made
    with pytest.raises(BackendError, match="are q4f16_1, and quantization='q0f16' was asked for"):
        prepare(made, ModelConfig(quantization='q0f16'), print)
    with pytest.raises(BackendError, match='is no folder of MLC weights'):
        prepare(made, ModelConfig(quantization='/no/such/place'), print)


def test_without_mlc_llm_one_line_says_how_to_get_it_and_what_to_name_instead(place, monkeypatch, capsys):
    made = prepare(str(place / 'Martian-1B'), ModelConfig(quantization='q4f16_1', device='cpu'), print)
    monkeypatch.setenv('PATH', '/nowhere')
    capsys.readouterr()
    from ros2_nanochat.terminal.compile_mlc import main

    assert main([str(place / 'Martian-1B'), '--target', 'cuda']) == 1
    said = capsys.readouterr().err
    assert (
        said.count('\n') == 1
        and 'mlc_llm is not installed' in said
        and 'Jetson' in said
        and 'model_lib' in said
    )
    os.remove(MLCFolder(made).find_library(ModelConfig()))
    with pytest.raises(BackendError, match='has no model library.*mlc_llm is not installed'):
        prepare(made, ModelConfig())


def test_a_disk_without_the_room_is_told_before_anything_is_made(place, monkeypatch):
    monkeypatch.setattr(
        mlc_compile.shutil, 'disk_usage', lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 2**20, 2**20)
    )
    with pytest.raises(BackendError, match='has 1 MiB free, and Martian-1B in q4f16_1 takes about 64 MiB'):
        prepare(str(place / 'Martian-1B'), ModelConfig(device='cpu'), print)
    assert left(place) == [] and steps(place) == []


def test_a_disk_that_takes_no_more_while_compiling_is_one_line_and_leaves_nothing(place):
    """A limit on the size of files stands in for the disk: what is written beyond it fails in the same
    place.
    """
    limited = (
        'import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (30, 30)); from '
        'ros2_nanochat.terminal.compile_mlc import main; sys.exit(main())'
    )
    process = subprocess.run(
        [sys.executable, '-c', limited, str(place / 'Martian-1B'), '--target', 'llvm'],
        capture_output=True,
        text=True,
        timeout=60,
    )
    said = process.stderr.strip().splitlines()
    assert process.returncode == 1 and 'Traceback' not in process.stderr
    assert 'File too large' in said[-1] and 'set XDG_CACHE_HOME' in said[-1], said
    assert left(place) == []


@pytest.mark.parametrize(
    'output, said',
    [
        (
            "OSError: [Errno 28] No space left on device: '{inside}'",
            'the disk is full; free some room on the disk of {root}',
        ),
        (
            "OSError: [Errno 28] No space left on device: '/proc/x/y'",
            'the disk is full; free some room on the disk of /proc/x',
        ),
        ('ptxas fatal: No space left on device\n  File "x"\n    return', 'the disk is full; free some room'),
        ('Traceback\n    return', 'return'),
        (
            'OSError: [Errno 27] File too large\n  File "x"',
            'a file in {root} would be larger than allowed: raise the limit (ulimit -f)',
        ),
    ],
)
def test_the_disk_that_is_full_is_named(tmp_path, output, said):
    aside = tmp_path / 'cache' / 'aside'
    aside.mkdir(parents=True)
    names = {'inside': aside / 'x', 'root': tmp_path / 'cache'}
    assert telling(output.format(**names), str(aside)).startswith(said.format(**names))


def test_output_that_a_full_disk_cut_off_is_not_taken_for_the_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(mlc_llm, '_free', lambda folder: 4096)
    assert telling('Traceback\n    return', str(tmp_path / 'aside')).startswith('the disk is full')


def test_compilers_write_beside_what_is_made_and_not_to_a_small_tmpdir(place, monkeypatch):
    monkeypatch.setenv('TMPDIR', '/nowhere/at/all')
    prepare(str(place / 'Martian-1B'), ModelConfig(device='cpu'), print)
    cache = str(place / 'cache')
    assert all(step['tmpdir'].startswith(cache) for step in steps(place))


def test_progress_is_shown_by_the_terminal_chat(place):
    program = (
        'import sys; from ros2_nanochat.terminal.nanollm_options import set_up_logging; '
        'set_up_logging(None); from ros2_nanochat.backends.mlc.backend import MLCBackend; '
        'from ros2_nanochat.config import ModelConfig; '
        "MLCBackend.prepare(sys.argv[1], ModelConfig(device='cpu'))"
    )
    done = subprocess.run(
        [sys.executable, '-c', program, str(place / 'Martian-1B')],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 and 'mlc_llm 3/3: compiling for cpu' in done.stderr, done.stderr


def test_what_is_no_checkpoint_is_named(place):
    os.remove(place / 'Martian-1B' / 'model.safetensors')
    with pytest.raises(BackendError, match='has no weights'):
        prepare(str(place / 'Martian-1B'), ModelConfig())
    os.remove(place / 'Martian-1B' / 'config.json')
    with pytest.raises(BackendError, match='neither a model of MLC-LLM'):
        prepare(str(place / 'Martian-1B'), ModelConfig())
    assert left(place) == []


def test_configurations_of_transformers_5_get_the_names_of_before():
    assert older_config(CONFIG) == {**CONFIG, 'rope_theta': 123456.0, 'torch_dtype': 'float16'}
    llama3 = {'rope_type': 'llama3', 'rope_theta': 5e5, 'factor': 32.0, 'low_freq_factor': 1.0}
    old = older_config({'rope_parameters': llama3})
    assert old['rope_theta'] == 5e5 and old['rope_scaling'] == {
        'rope_type': 'llama3',
        'factor': 32.0,
        'low_freq_factor': 1.0,
    }
    gemma = older_config(
        {
            'text_config': {
                'rope_parameters': {
                    'full_attention': {'rope_type': 'default', 'rope_theta': 1e6},
                    'sliding_attention': {'rope_type': 'default', 'rope_theta': 1e4},
                }
            }
        }
    )['text_config']
    assert gemma['rope_theta'] == 1e6 and gemma['rope_local_base_freq'] == 1e4
    before = {
        'rope_theta': 1e4,
        'rope_scaling': {'rope_type': 'linear', 'factor': 2.0},
        'torch_dtype': 'float16',
    }
    assert older_config(before) == before


def test_what_transformers_5_leaves_out_or_renames_is_there():
    assert older_config({'model_type': 'qwen3_moe', 'num_local_experts': 128})['num_experts'] == 128
    assert older_config({'model_type': 'mixtral', 'num_experts': 8})['num_local_experts'] == 8
    v2, v3 = (older_config({'model_type': f'deepseek_v{n}'}) for n in (2, 3))
    assert (v2['moe_layer_freq'], v2['scoring_func']) == (1, 'softmax')
    assert (v3['moe_layer_freq'], v3['scoring_func'], v3['topk_method']) == (1, 'sigmoid', 'noaux_tc')
    assert older_config({'model_type': 'deepseek_v2', 'moe_layer_freq': 2})['moe_layer_freq'] == 2
    neox = older_config({'rope_parameters': {'rope_type': 'default', 'partial_rotary_factor': 0.25}})
    assert neox['rotary_pct'] == 0.25
    llava = {'model_type': 'llava', 'text_config': {'vocab_size': 32064}, 'vision_config': {'hidden_size': 4}}
    old = older_config(llava)
    assert (
        old['vocab_size'] == old['text_config']['vocab_size'] == old['vision_config']['vocab_size'] == 32064
    )
    assert llava['vision_config'] == {'hidden_size': 4}


def test_settings_that_transformers_5_moved_into_a_part_are_at_the_top():
    text = {
        'hidden_size': 64,
        'vocab_size': 500,
        'rope_parameters': {'rope_theta': 1e6, 'mrope_section': [1, 2, 3]},
    }
    old = older_config({'model_type': 'qwen2_5_vl', 'text_config': text, 'vision_config': {'hidden_size': 4}})
    assert (old['model_type'], old['hidden_size'], old['vocab_size']) == ('qwen2_5_vl', 64, 500)
    assert old['rope_theta'] == 1e6 and old['rope_parameters']['mrope_section'] == [1, 2, 3]
    gemma = older_config({'model_type': 'gemma3', 'text_config': {'vocab_size': 500, 'hidden_size': 64}})
    assert gemma['vocab_size'] == 500 and 'hidden_size' not in gemma


REQUIRED = {  # fields without a default in the model configurations of mlc-llm, July 2026
    'mixtral': ('num_local_experts', 'num_experts_per_tok'),
    'qwen3_moe': ('num_experts', 'num_experts_per_tok', 'moe_intermediate_size'),
    'deepseek_v2': ('moe_layer_freq', 'scoring_func', 'topk_method', 'kv_lora_rank', 'rope_theta'),
    'deepseek_v3': ('moe_layer_freq', 'scoring_func', 'topk_method', 'kv_lora_rank', 'rope_theta'),
    'gpt_neox': ('rotary_pct', 'layer_norm_eps'),
    'llava': ('vocab_size', 'image_token_index'),
    'qwen2_5_vl': ('hidden_size', 'num_hidden_layers', 'rms_norm_eps', 'rope_theta', 'vocab_size'),
    'gemma3': ('vocab_size',),
    'llama4': ('vocab_size',),
}


@pytest.mark.parametrize('kind', REQUIRED)
def test_configurations_that_transformers_writes_have_what_mlc_llm_wants(kind, tmp_path):
    """The oracle is the installed transformers."""
    transformers = pytest.importorskip('transformers')
    transformers.AutoConfig.for_model(kind).save_pretrained(tmp_path)
    config = older_config(json.loads((tmp_path / 'config.json').read_text()))
    assert [name for name in REQUIRED[kind] if config.get(name) is None] in ([], ['num_experts_per_tok'])
    if kind == 'llava':
        assert config['vision_config']['vocab_size'] and config['text_config']['vocab_size']


def wait_for(condition, seconds=30):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, 'it did not come to pass'
        time.sleep(0.05)
