"""The options of a model and of the engine that runs it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ros2_nanochat.config.declaration import Options, option
from ros2_nanochat.states import StrEnum

APIS = ('gguf', 'mlc', 'hf', 'awq', 'openai', 'fake')
"""Values of `ModelConfig.api`; None infers it from what the model path holds."""

DEFAULT_CONTEXT = 4096
"""Default context in tokens (less if the model has less); leaves memory for a robot's other programs."""

MAX_THREADS = 512
"""Maximum number of threads of llama.cpp (`GGML_MAX_N_THREADS`); it ends the process above that."""


_CPU_LIST = re.compile(r'\d{1,4}(-\d{1,4})?(,\d{1,4}(-\d{1,4})?)*')


class FlashAttention(StrEnum):
    """Whether llama.cpp uses its flash attention."""

    AUTO = 'auto'
    ON = 'on'
    OFF = 'off'


@dataclass(frozen=True)
class ModelConfig(Options):
    """Which model to open, and the memory it may use."""

    model: str | None = option(
        None,
        'Path of a file or folder, or owner/name on the hub (owner/name:file.gguf for one file,'
        ' owner/name@revision,'
        ' or the address of its page); with api openai the address of a server (http://host:8000/v1), or'
        ' several with commas between them',
        otherwise='the embedded SmolLM2-135M-Instruct, small and often wrong',
        unset='',
        metavar='PATH|OWNER/NAME',
    )
    api: str | None = option(
        None,
        'Runtime of the model',
        otherwise='inferred from its files',
        choices=APIS,
        unset='',
    )
    quantization: str | None = option(
        None,
        'Method of the api (mlc: q4f16_1 and others; hf: a dtype or quantizer), or path of quantized weights',
        otherwise='as the model is',
        unset='',
        metavar='METHOD',
    )
    # Never a parameter, which everyone on the graph can read, nor an argument, which `ps` shows.
    api_token: str | None = option(
        None,
        'Token of a hub account; never shown',
        otherwise='$HUGGINGFACE_TOKEN or $HF_TOKEN',
        secret=True,
        parameter=None,
        argument=False,
    )
    max_context_len: int | None = option(
        None,
        'Tokens that one conversation may hold',
        otherwise=f"the model's own length, at most {DEFAULT_CONTEXT}",
        low=1,
        unset=0,
        metavar='TOKENS',
    )
    max_sequences: int = option(
        4,
        'Conversations whose KV cache is kept at once; others are recomputed when they resume',
        otherwise='one for each robot, from 2 to 8',
        low=1,
        unset=0,
        argument=False,
    )
    kv_tokens: int | None = option(
        None,
        'Tokens of KV cache over all conversations',
        otherwise='max_sequences times the context',
        low=1,
        unset=0,
        argument=False,
    )
    flash_attention: FlashAttention = option(
        FlashAttention.AUTO,
        'Flash attention of llama.cpp (gguf); auto: on a GPU, on a CPU that is not faster without it,'
        ' and for contexts of at most 1,024 tokens.'
        ' The two round differently (docs/engine.md)',
        argument=False,
    )
    gpu_layers: int = option(
        0,
        'Layers of a GGUF model on the GPU (needs a GPU build of llama-cpp-python)',
        low=-1,
        special={-1: 'all'},
        metavar='N',
    )
    threads: int | None = option(
        None,
        'CPU threads of the model',
        otherwise='as many as are fastest under the current load (gguf), or the physical cores',
        low=1,
        high=MAX_THREADS,
        unset=0,
        metavar='N',
    )
    nice: int = option(
        0,
        "Niceness of the model's threads; with a higher one, other programs run first",
        low=0,
        high=19,
        metavar='N',
    )
    cpu_affinity: str | None = option(
        None,
        "CPUs that the model's threads may use, for example 0-3,6",
        otherwise='all that the process may use',
        valid=lambda text: _CPU_LIST.fullmatch(text) is not None,
        allowed='numbers and ranges of CPUs, such as 0-3,6',
        unset='',
        metavar='CPUS',
    )
    device: str = option(
        'auto',
        'Device of hf and mlc: auto, cpu, cuda or cuda:N',
        valid=bool,
        allowed='auto, cpu, cuda or cuda:N',
    )
    model_lib: str | None = option(
        None,
        'Compiled library of an MLC model',
        otherwise='next to its weights',
        unset='',
        metavar='FILE',
    )
    compile: bool = option(False, 'Compile the decode step if the backend can (hf)', argument=False)
    # Code that comes with a checkpoint runs only if a program asks for it by name.
    trust_remote_code: bool = option(
        False, 'Run Python code that comes with a checkpoint (hf)', parameter=None, argument=False
    )
    vision: str | None = option(
        None,
        'Vision part that is added to the model: an mmproj file of llama.cpp (gguf; path, or'
        ' owner/name:file.gguf on the hub), a LLaVA-form checkpoint (path, or owner/name), tiny for the one'
        ' that comes with the package, or none',
        otherwise="the model's own; for gguf the mmproj file beside it",
        unset='',
        metavar='PATH|OWNER/NAME',
    )
    image_max_tokens: int | None = option(
        None,
        'Tokens that one image may take, for models that take images of any size (gguf)',
        otherwise="the model's own limit",
        low=1,
        unset=0,
        metavar='TOKENS',
    )
    served_model: str | None = option(
        None,
        'Name of the model on the server (openai)',
        otherwise='the only one that it has',
        unset='',
        metavar='NAME',
    )
    server_input: str | None = option(
        None,
        'How prompts go to the server (openai): ids (our template and history, exact) or messages (the'
        " server's template; pictures)",
        otherwise='ids if the server takes them and sees no pictures',
        choices=('ids', 'messages'),
        unset='',
    )
    tokenizer: str | None = option(
        None,
        "Folder with the tokenizer files of the server's model, or its owner/name on the hub (openai);"
        " compared with the server's when it is opened",
        otherwise="the server's own",
        unset='',
        metavar='FOLDER|OWNER/NAME',
    )
    # A parameter can be read by everyone on the graph: it names only the file.
    api_key_file: str | None = option(
        None,
        'File with the key of the server (openai)',
        otherwise='$OPENAI_API_KEY',
        unset='',
        metavar='FILE',
    )
    fallback: str | None = option(
        None,
        'Local model that answers while no server works (openai): embedded for the default model, or a path'
        ' or owner/name',
        otherwise='no one answers',
        unset='',
        metavar='MODEL',
    )
    resume_replies: bool = option(
        True,
        'A reply that a server breaks off continues on another one (openai, with ids); otherwise its turn'
        ' ends with an error',
    )
    connect_timeout: float = option(
        3.0,
        'Seconds to wait for a connection to a server (openai); when the model is opened, a server that'
        ' cannot be reached is tried again for this long',
        above=0.0,
        high=600.0,
        metavar='SECONDS',
    )
    first_token_timeout: float = option(
        120.0,
        'Seconds to wait for the first token of a server (openai)',
        above=0.0,
        high=86400.0,
        metavar='SECONDS',
    )
    silence_timeout: float = option(
        30.0,
        'Seconds that a server may be silent within a reply (openai)',
        above=0.0,
        high=86400.0,
        metavar='SECONDS',
    )


@dataclass(frozen=True)
class EngineConfig(Options):
    """How conversations share the model."""

    running_share: float = option(
        0.5,
        'Share of their speed that running replies keep while a long prompt is prefilled',
        above=0.0,
        high=1.0,
        argument=False,
    )
    max_step: float = option(
        0.2,
        'Maximum seconds of one step while a prompt is prefilled and nothing else runs; a stop waits no'
        ' longer than this',
        above=0.0,
        parameter=None,
        argument=False,
    )
    max_queued_requests: int = option(
        256,
        'Requests of all conversations that may wait for the model; further ones are refused',
        low=0,
        parameter=None,
        argument=False,
    )
    speculation: bool = option(
        True,
        'Guess the next tokens from earlier text when that is faster; the reply stays the same',
        argument=False,
    )
    park_bytes: int = option(
        0,
        'Bytes of host memory for the KV of idle conversations, used if loading it is faster than prefilling',
        low=0,
        special={0: 'none'},
        argument=False,
    )
