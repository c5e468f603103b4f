"""Completes plain text, without a template: `python3 -m ros2_nanochat.completion --prompt 'Once upon a time,'`."""
from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from ros2_nanochat.backends.base import BackendError, MissingDependency
from ros2_nanochat.chat.options import generation_config, load_prompts, make_parser, model_options
from ros2_nanochat.chat.screen import LineReader, Screen
from ros2_nanochat.nano_llm import NanoLLM


def main(args: Sequence[str] | None = None) -> int:
    """Complete each prompt, or each line that is typed; return the exit status, 1 where something failed."""
    parsed = make_parser('nanochat-completion', 'Complete plain text.').parse_args(args)
    screen = Screen()
    try:
        config = generation_config(parsed)
        prompts = load_prompts(parsed.prompt)
        model = NanoLLM.from_pretrained(**model_options(parsed))
    except (ValueError, BackendError, MissingDependency) as error:
        screen.error(str(error))
        return 1
    except KeyboardInterrupt:
        return 130
    failed = False
    with model:
        for prompt in typed(screen) if prompts is None else prompts:
            try:
                reply = model.generate(prompt, **vars(config))
                screen.replies.out(prompt, end='', highlight=False)
                for piece in reply.pieces():
                    screen.piece(piece.text)
                screen.end()
                if reply.error:
                    raise ValueError(reply.error)
            except ValueError as error:
                failed = True
                screen.error(str(error))
            except KeyboardInterrupt:
                screen.end()
                return 130
            else:
                if not parsed.disable_stats and reply.usage['tokens_per_second']:
                    screen.note(f'({reply.usage["new_tokens"]} tokens, {reply.usage["tokens_per_second"]:.1f} tokens/s)')
    return int(failed)


def typed(screen: Screen) -> Iterable[str]:
    """Lines as they are typed, until the end or Ctrl-C."""
    reader = LineReader({}, screen.interactive)
    while True:
        try:
            line = reader.read()
        except (EOFError, KeyboardInterrupt):
            return
        if line.strip():
            yield line


if __name__ == '__main__':
    sys.exit(main())
