"""vLLM's own server with the embedded model in float32, in the environment that tools/vllm_env.sh makes.

`checkpoint(folder)` writes the model as transformers reads it, `vision_checkpoint(folder, language)` joins it
with the tiny vision encoder; `VllmServer(folder)` serves either.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from llama_server import free_port

if TYPE_CHECKING:
    from ros2_nanochat import NanoLLM

ROOT = Path(__file__).resolve().parents[1]
KEY = 'sk-of-the-test'
CONTEXT = 2048
BLOCK = 32
"""Tokens that vLLM reuses together."""


def environment() -> Path:
    """Return the folder of the environment."""
    return Path(os.environ.get('NANOCHAT_VLLM') or ROOT / '.venv-vllm')


def why_not() -> str:
    """Return why vLLM cannot be used here; empty if it can."""
    if (environment() / '.done').is_file():
        return ''
    reason = environment() / 'why-not'
    return reason.read_text().strip() if reason.is_file() else 'run tools/vllm_env.sh first'


def checkpoint(folder: Path) -> None:
    """Write the embedded model as a checkpoint in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from ros2_nanochat.locate import embedded_model

    path, name = os.path.split(embedded_model())
    AutoTokenizer.from_pretrained(path, gguf_file=name).save_pretrained(folder)
    whole = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        path, gguf_file=name, quantization_config=whole, dtype=torch.float32
    )
    model.save_pretrained(folder)


def vision_checkpoint(folder: Path, language: Path) -> None:
    """Write the tiny vision encoder and a checkpoint of the embedded model in LLaVA form, in float32."""
    from safetensors.torch import load_file, save_file

    from ros2_nanochat.vision.encoder import TINY

    # The image takes the place of a special token that no conversation has.
    for file in ('tokenizer.json', 'tokenizer_config.json'):
        text = (language / file).read_text()
        (folder / file).write_text(text.replace('"<reponame>"', '"<image>"'))
    for file in language.glob('*.jinja'):
        (folder / file.name).write_bytes(file.read_bytes())
    added = json.loads((folder / 'tokenizer.json').read_text())['added_tokens']
    image_id = next(token['id'] for token in added if token['content'] == '<image>')
    tensors = {}
    for file in language.glob('*.safetensors'):
        tensors.update({f'language_model.{name}': each for name, each in load_file(file).items()})
    for name, each in load_file(TINY / 'model.safetensors').items():
        tensors[name.replace('vision_tower.', 'vision_tower.vision_model.')] = each.float()
    save_file(tensors, folder / 'model.safetensors', {'format': 'pt'})
    words = json.loads((language / 'config.json').read_text())
    config = json.loads((TINY / 'config.json').read_text())
    config.update(text_config=words, image_token_index=image_id, image_token_id=image_id, dtype='float32')
    config['tie_word_embeddings'] = bool(words.get('tie_word_embeddings'))
    (folder / 'config.json').write_text(json.dumps(config))
    processor = {'processor_class': 'LlavaProcessor', 'patch_size': 16, 'image_token': '<image>'}
    processor.update(vision_feature_select_strategy='default', num_additional_image_tokens=1)
    (folder / 'processor_config.json').write_text(json.dumps(processor))
    images = json.loads((TINY / 'preprocessor_config.json').read_text())
    (folder / 'preprocessor_config.json').write_text(json.dumps({**images, **processor}))


class VllmServer:
    """A server in a child process.

    Args:
        folder: The checkpoint.
        arguments: Further arguments of the server.
    """

    def __init__(self, folder: Path, *arguments: str):
        self.port = free_port()
        self.root = f'http://127.0.0.1:{self.port}'
        self.url = f'{self.root}/v1'
        command = [
            *(str(environment() / 'bin/python'), '-m', 'vllm.entrypoints.openai.api_server'),
            *('--model', str(folder), '--served-model-name', 'smol', '--dtype', 'float32'),
            *('--max-model-len', str(CONTEXT), '--max-num-seqs', '8', '--block-size', str(BLOCK)),
            # Otherwise a small model may fill JSON with blanks.
            *('--structured-outputs-config', '{"backend": "xgrammar", "disable_any_whitespace": true}'),
            *('--enforce-eager', '--enable-prompt-tokens-details', '--scheduling-policy', 'priority'),
            *('--host', '127.0.0.1', '--port', str(self.port), '--api-key', KEY, *arguments),
        ]
        variables = {
            'HF_HUB_OFFLINE': '1',
            'VLLM_NO_USAGE_STATS': '1',
            'VLLM_CPU_KVCACHE_SPACE': '1',
            'OMP_NUM_THREADS': '1',
            'VLLM_CPU_OMP_THREADS_BIND': 'nobind',
        }
        hidden = ('OPENAI_API_KEY', 'PYTHONPATH', 'VIRTUAL_ENV')
        kept = {name: value for name, value in os.environ.items() if name not in hidden}
        self.log = Path(folder) / f'server-{self.port}.log'
        with self.log.open('wb') as log:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(os.getpid()), *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**kept, **variables},
                start_new_session=True,
            )
        try:
            self._wait(300)
        except BaseException:
            self.kill()
            raise

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            assert self._process.poll() is None, self.log.read_text()[-2000:]
            with contextlib.suppress(OSError), urllib.request.urlopen(f'{self.root}/health', timeout=5):
                return
            time.sleep(0.2)
        raise AssertionError(f'the server does not answer: {self.log.read_text()[-2000:]}')

    @contextlib.contextmanager
    def opened(self) -> Iterator[NanoLLM]:
        """Open its model, with the key."""
        import pytest

        from ros2_nanochat import NanoLLM

        with pytest.MonkeyPatch.context() as patch:
            patch.setenv('OPENAI_API_KEY', KEY)
            model = NanoLLM.from_pretrained(self.url, api='openai')
        with model:
            yield model

    def metric(self, name: str) -> float:
        """Return the sum of a metric over its labels."""
        with urllib.request.urlopen(f'{self.root}/metrics', timeout=30) as answer:
            text = answer.read().decode()
        return sum(map(float, re.findall(rf'^vllm:{name}(?:\{{.*\}})? (\S+)$', text, re.MULTILINE)))

    def busy(self) -> int:
        """Return how many replies it works on."""
        return int(self.metric('num_requests_running') + self.metric('num_requests_waiting'))

    def kill(self) -> None:
        """End it at once, with the processes that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(10)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()


def _guard(parent: int, command: list[str]) -> None:
    """Run a command; end it with the test, however that ends."""
    process = subprocess.Popen(command)
    while process.poll() is None and os.getppid() == parent:
        time.sleep(0.2)
    os.killpg(0, signal.SIGKILL)


if __name__ == '__main__':
    _guard(int(sys.argv[1]), sys.argv[2:])
