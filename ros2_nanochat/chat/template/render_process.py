"""The process in which untrusted chat templates are compiled and rendered, with limits on time and memory.

`bounded_rendering` starts it and talks to it.

A request and its answer are JSON after eight bytes of length. The request is `{"source", "context"}`; a
context of null only compiles the template. The answer is `{"text"}`, `{"refused"}`, `{"mistake": [line,
message]}` or `{"exceeded"}`. The kernel kills the process if a rendering exceeds its processor time.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from typing import Any, BinaryIO

import jinja2

from ros2_nanochat.chat.template.jinja_environment import Refused, compile_jinja, render

SECONDS = 5
"""Processor time that one rendering may use."""
MEMORY = 512 << 20
"""Bytes of address space that the process may use."""
LONGEST, TIMES = 1 << 20, 4
"""Bytes that an answer may have, plus this many times those of the context: what a template writes of its own
is short."""


def main() -> None:
    """Answer requests on standard input until it ends."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), 'wb')
    os.dup2(2, 1)  # nothing else reaches the answers
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    while (data := read_message(requests)) is not None:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        request = json.loads(data)
        answer = json.dumps(_answer(request)).encode()
        if len(answer) > LONGEST and len(answer) > LONGEST + TIMES * len(json.dumps(request['context'])):
            answer = json.dumps({'exceeded': True}).encode()
        signal.setitimer(signal.ITIMER_PROF, 0)
        answers.write(len(answer).to_bytes(8, 'little') + answer)
        answers.flush()


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    try:
        if request['context'] is None:
            compile_jinja(request['source'])
            return {'text': ''}
        return {'text': render(request['source'], request['context'])}
    except jinja2.TemplateSyntaxError as error:
        return {'mistake': [error.lineno, error.message]}
    except Refused as error:
        return {'refused': str(error)}
    except MemoryError:
        return {'exceeded': True}
    except Exception as error:  # of compiling: whatever constant expressions raise
        return {'refused': f'cannot be compiled: {error or type(error).__name__}'}


def read_message(stream: BinaryIO) -> bytes | None:
    """Read the next request; None at the end of the stream."""
    length = stream.read(8)
    if len(length) < 8:
        return None
    return stream.read(int.from_bytes(length, 'little'))


if __name__ == '__main__':
    main()
