"""A terminal for a running chat node: `ros2 run nanochat chat_client`. It prints the reply as it streams.

The reply goes to standard output and everything else to standard error, so that `chat_client --prompt ... >
file` contains only the reply. Ctrl-C stops the reply; a second one, or one at the prompt, exits.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import rclpy
from rclpy.signals import SignalHandlerOptions

from ros2_nanochat.files import open_regular
from ros2_nanochat.program import OptionParser
from ros2_nanochat.ros.client import ChatClient, NodeGone
from ros2_nanochat.ros.program import init, parse_options, run_ros_program

_HELP = (
    '/reset [SYSTEM PROMPT]  forget the conversation\n/history  show it\n/stats  figures of the last turn\n'
    '/quit  leave\nanything else is a question'
)

_FLEET_SECONDS = 3.0  # to wait for the node before checking whether it serves other robots


def main(args=None) -> int:
    """Run the terminal. Return the exit code."""
    args = sys.argv if args is None else ['chat_client', *args]
    parser = OptionParser(prog='chat_client', description=__doc__.split('\n')[0])
    parser.add_argument(
        '--node', default='/nanochat', help='name of the chat node, with its namespace (default: %(default)s)'
    )
    parser.add_argument('--robot', default='', help='which of its robots, where it serves several')
    parser.add_argument(
        '--prompt', action='append', help='ask this, print the reply and leave; may be repeated'
    )
    parser.add_argument('--image', help='image file (JPEG, PNG) that goes with the first question')
    parser.add_argument(
        '--wait',
        type=float,
        default=60.0,
        metavar='SECONDS',
        help='how long to wait for the node (default: %(default)s)',
    )
    parser.add_argument('--debug', action='store_true', help='show where an error comes from')
    return run_ros_program('chat_client', args, lambda: _run(parser, args))


def _run(parser: argparse.ArgumentParser, args: Sequence[str]) -> int:
    options = parse_options(parser, init(args, signal_handler_options=SignalHandlerOptions.NO))
    chat = ChatClient(options.node, options.robot)
    try:
        return _Terminal(chat, options).run()
    except NodeGone as error:
        _say(f'chat_client: {error}')
        return 1
    except KeyboardInterrupt:
        _say('')
        return 0 if not options.prompt else 130
    finally:
        chat.close()
        rclpy.try_shutdown()


class _Terminal:
    def __init__(self, chat: ChatClient, options):
        self._chat, self._options = chat, options
        self._image: bytes | None = None
        self._last: Any = None  # the last turn

    def run(self) -> int:
        if self._options.image:
            try:
                with open_regular(self._options.image) as file:
                    self._image = file.read()
            except OSError as error:
                _say(f'chat_client: {self._options.image} cannot be read: {error.strerror}')
                return 1
        _say(f'waiting for {self._chat.prefix} ...')
        if problem := self._wait():
            _say(f'chat_client: {problem}')
            return 1
        if self._options.prompt:
            return max([self._ask(prompt) for prompt in self._options.prompt])
        _say('ask something; /help shows what else')
        return self._converse()

    def _wait(self) -> str:
        """Wait until the node answers; return why it does not, or ''."""
        wait, node = self._options.wait, self._options.node
        for seconds in (min(_FLEET_SECONDS, wait), wait - _FLEET_SECONDS):
            if seconds > 0 and self._chat.wait_until_ready(seconds):
                return ''
            if robots := self._chat.robots():
                wrong = f'no robot {self._options.robot!r}' if self._options.robot else 'several robots'
                return f'{node} serves {wrong}: choose with  --robot  {", ".join(robots)}'
            if seconds == _FLEET_SECONDS and self._node_is_there():
                _say(f'{node} is there, and loads or compiles its model ...')
        if self._node_is_there():
            return (
                f'{node} is there but not active yet: it still loads or compiles its model, or somebody else '
                f'activates it (ros2 lifecycle get {node}). Wait longer with  --wait SECONDS'
            )
        return (
            f'{self._chat.prefix} is not there: start it with  ros2 run nanochat chat_node  and see that '
            'ROS_DOMAIN_ID is the same'
        )

    def _node_is_there(self) -> bool:
        space, _, leaf = ('/' + self._options.node.strip('/')).rpartition('/')
        return (leaf, space or '/') in self._chat.node.get_node_names_and_namespaces()

    def _converse(self) -> int:
        import readline  # noqa: F401  gives input() line editing and a history

        while True:
            try:
                line = input('>> ' if sys.stdin.isatty() else '').strip()
            except EOFError:
                _say('')
                return 0
            if line in ('/quit', '/exit'):
                return 0
            self._do(line)

    def _do(self, line: str) -> None:
        command, _, rest = line.partition(' ')
        if command == '/reset':
            _say(self._chat.reset(rest.strip()))
        elif command == '/history':
            for role, text in self._chat.history():
                _say(f'{role}: {text or ("(an image)" if role == "user" else "")}')
        elif command == '/stats' and self._last is not None:
            turn = self._last
            images = ''
            if turn.image_tokens:
                images = (
                    f', {turn.image_tokens} of images ({turn.reused_image_tokens} reused,'
                    f' {1e3 * turn.encode_time:.0f} ms to encode)'
                )
            reused = turn.reused_tokens if turn.reused_tokens >= 0 else 'an unknown number'
            _say(
                f'{turn.finish_reason}: prompt {turn.prompt_tokens} tokens ({reused}'
                f' reused){images}, reply {turn.new_tokens}, first after {turn.time_to_first_token:.2f} s,'
                f' {turn.tokens_per_second:.1f} tokens/s'
            )
        elif command.startswith('/') and command[1:].isalpha():
            _say(_HELP)
        elif line:
            self._ask(line)

    def _ask(self, text: str) -> int:
        reply = self._chat.ask(text, self._image)
        self._image = None
        stopped = False
        while True:
            try:
                for piece in reply:
                    print(piece, end='', flush=True)
                turn = self._last = reply.result(5.0)
                break
            except KeyboardInterrupt:
                if stopped:
                    raise
                stopped = True
                reply.cancel()
            except TimeoutError:
                raise NodeGone(f'{self._chat.prefix} has not ended its reply') from None
        print(flush=True)
        for remark in (turn.error, turn.note):
            if remark:
                _say(f'({remark})')
        if turn.finish_reason not in ('stop', 'length'):
            _say(f'[{turn.finish_reason}]')
        return int(turn.finish_reason in ('error', 'refused'))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == '__main__':
    sys.exit(main())
