"""The process in which `trial` opens a GGUF file. Arguments: `PATH OPTIONS`, fields of
`ModelConfig` as JSON. Prints `ok`, or why the file cannot be run; then `narrow too` if narrow pictures do not
end the process either.
"""

from __future__ import annotations

import json
import os
import resource
import sys

from ros2_nanochat.backends.gguf.backend import GGUFBackend
from ros2_nanochat.backends.gguf.trial import OK, OK_NARROW
from ros2_nanochat.config import ModelConfig
from ros2_nanochat.errors import BackendError, one_line
from ros2_nanochat.memory import available_memory
from ros2_nanochat.program import die_with_parent

_CONTEXT = 64
_TEXTS = tuple(unit * 40 for unit in ('a', '1', ' ', '\t', '\n', '.', '東', '🙂', '\u0301', '\x01', 'a 1'))
"""What the tokenizer has to survive: runs of the classes of characters that its expressions tell apart."""


def main() -> None:
    """Open the model, print the result and exit."""
    die_with_parent()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if (free := available_memory()) is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (max(free, 1 << 28),) * 2)
    path, options = sys.argv[1], json.loads(sys.argv[2])
    config = ModelConfig(model=path, max_context_len=_CONTEXT, max_sequences=1, **options)
    backend = GGUFBackend(path, config)
    try:
        backend.open_on_trial()
        for text in _TEXTS:
            backend.tokenize(text)
    except BackendError as error:
        print(error)
    except MemoryError:
        print(f'{path} cannot be loaded: it needs more memory than is free')
    except Exception as error:
        print(f'{path} cannot be loaded: {one_line(error)}')
    else:
        print(OK, flush=True)
        backend.try_narrow_pictures()
        print(OK_NARROW)
    sys.stdout.flush()
    os._exit(0)


if __name__ == '__main__':
    main()
