"""Completes plain text without a template: `python3 -m ros2_nanochat.completion --prompt 'Once upon a
time,'`.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterable, Sequence

from ros2_nanochat.program import error_line
from ros2_nanochat.terminal.arguments import make_parser
from ros2_nanochat.terminal.screen import LineReader, Screen
from ros2_nanochat.terminal.start import start


def main(args: Sequence[str] | None = None) -> int:
    """Complete each prompt, or each line that is typed.

    Returns:
        The exit status: 0, 1 if something failed, 130 after Ctrl-C.
    """
    options = make_parser('nanochat-completion', 'Complete plain text.').parse_args(args)
    screen = Screen()

    def run(model, config, prompts) -> int:
        failed = False
        for prompt in typed(screen) if prompts is None else prompts:
            try:
                reply = model.generate(prompt, config=config)
                screen.replies.out(prompt, end='', highlight=False)
                for delta in list(reply.deltas()) if options.disable_streaming else reply.deltas():
                    screen.piece(delta.text)
                screen.end()
                if reply.error:
                    raise ValueError(reply.error)
            except Exception as error:
                if options.debug:
                    traceback.print_exc()
                failed = True
                screen.error(error_line(error, how='--debug'))
            except KeyboardInterrupt:
                screen.end()
                return 130
            else:
                if not options.disable_stats and reply.usage.tokens_per_second:
                    screen.note(
                        f'({reply.usage.new_tokens} tokens, {reply.usage.tokens_per_second:.1f} tokens/s)'
                    )
        return int(failed)

    return start(options, screen, run)


def typed(screen: Screen) -> Iterable[str]:
    """Yield lines as they are typed, until the end or Ctrl-C."""
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
