"""The terminal chat: `python3 -m ros2_nanochat.chat --api ... --model ... --quantization ...`, also installed
as `nanochat-chat`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ros2_nanochat.answer.tool import Tool
from ros2_nanochat.chat.history import ChatHistory
from ros2_nanochat.files import valid_text
from ros2_nanochat.terminal.arguments import make_parser, robot_options, template_options
from ros2_nanochat.terminal.chat_loop import ChatLoop
from ros2_nanochat.terminal.commands import COMMANDS
from ros2_nanochat.terminal.screen import Screen
from ros2_nanochat.terminal.start import start
from ros2_nanochat.terminal.tool_turn import load_tools


def main(args: Sequence[str] | None = None) -> int:
    """Run the chat.

    Returns:
        The exit status: 0, 1 if something failed, 130 after Ctrl-C while loading.
    """
    about = 'Chat with a model. Commands: ' + ', '.join(COMMANDS) + '.'
    parser = make_parser('nanochat-chat', about, conversation=True)
    options = parser.parse_args(args)
    screen = Screen()
    tools: list[Tool] = []

    def prepare() -> None:
        tools.extend(load_tools(options.tools))

    def run(model, config, prompts) -> int:
        robot = robot_options(options)
        system_prompt = None if robot.system_prompt is None else valid_text(robot.system_prompt)
        history = ChatHistory(model, options.chat_template, system_prompt, template_options(options), tools)
        loop = ChatLoop(
            model,
            history,
            screen,
            config,
            robot.wrap_tokens,
            stats=not options.disable_stats,
            streaming=not options.disable_streaming,
            debug=options.debug,
        )
        if screen.interactive and prompts is None:
            screen.note(
                f'{model.info.name}, context of {model.info.context_length} tokens. /help shows the commands.'
            )
            if options.model is None:
                screen.note(
                    'This is the small embedded model: quick, and often wrong. Choose a better one with'
                    ' --model.'
                )
        loop.run(prompts)
        return int(loop.failed and not screen.interactive)

    return start(options, screen, run, prepare)


if __name__ == '__main__':
    sys.exit(main())
