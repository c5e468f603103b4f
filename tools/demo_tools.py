"""`make demo-tools`: a small simulated robot, a chat node that may use it, and a conversation: the model
switches the lamp, reads the battery, drives, and is stopped while it drives. Then you can go on yourself.

With PROMPT it asks only that; MODEL names another model.
"""

import json
import os
import random
import sys
import tempfile
import threading
import time
from pathlib import Path

from demo import Programs, program

ROOT = Path(__file__).resolve().parents[1]
CONVERSATION = ('Turn on the light.', 'How full is the battery?', 'Drive forward.')
STOP_AFTER = 2.0  # seconds that it drives before it is stopped
TIMEOUT = 120.0  # seconds for one answer
SMALL = """\
[demo] the embedded model is small: it calls the right tool for 42 of 50 commands, and cannot phrase answers,
[demo] so you see what the tools answer. For a robot, take a larger model (docs/robot_tools.md), such as
[demo] make demo-tools MODEL='Qwen/Qwen2.5-1.5B-Instruct-GGUF:*q4_k_m.gguf'"""
DIM, PLAIN = ('\033[2m', '\033[0m') if sys.stdout.isatty() else ('', '')


def say(text: str) -> None:
    print(text, flush=True)


def worded(call) -> str:
    """The answer of a tool as a person reads it: without a model."""
    if call.state == 'cancelled':
        return 'stopped'
    try:
        answer = json.loads(call.result)
        return answer.get('message') or ', '.join(f'{key} {value}' for key, value in answer.items())
    except (ValueError, AttributeError):
        return call.result


class Conversation:
    """Asks the node, and shows the calls and the answers.

    Args:
        phrases: Whether the model can put an answer into words. The embedded one cannot: what the tools
            answer is shown instead, and each command begins a new conversation, as the model was measured.
    """

    def __init__(self, phrases: bool):
        from nanochat.msg import ToolCall
        from rclpy.qos import DurabilityPolicy, QoSProfile

        from ros2_nanochat.ros.client import ChatClient

        self.phrases = phrases
        self.client = ChatClient()
        self.running, self.ended = threading.Event(), False
        self.answering: threading.Thread | None = None
        self.client.node.create_subscription(
            ToolCall,
            '/nanochat/tool_calls',
            self.show,
            QoSProfile(depth=50, durability=DurabilityPolicy.TRANSIENT_LOCAL),
        )

    def show(self, call) -> None:
        """Show a call, dim, when it begins and when it has ended."""
        if call.state == 'running' and not call.feedback:
            self.running.set()
            say(f'{DIM}   [call] {call.name} {call.arguments if json.loads(call.arguments) else ""}{PLAIN}')
        elif call.state != 'running':
            say(f'{DIM}   [{call.state}] {call.result}{PLAIN}')

    def ask(self, text: str) -> None:
        """Ask. A command that is still being done is interrupted by this, as the node does it."""
        busy = self.answering is not None and self.answering.is_alive()
        if not self.phrases and not busy:
            self.client.reset()
        say(f'\nYou: {text}')
        reply = self.client.ask(text)
        answering = threading.Thread(target=self.finish, args=(reply, busy), daemon=True)
        answering.start()
        if busy:
            answering.join(TIMEOUT)  # the answer to "stop" comes at once
        else:
            self.answering = answering

    def finish(self, reply, interrupts: bool) -> None:
        """Show the answer to a command. One that only interrupts another has none of its own."""
        from ros2_nanochat.ros.client import NodeGone

        try:
            turn = reply.result(TIMEOUT)
        except (NodeGone, TimeoutError) as error:
            if not self.ended:
                say(f'[demo] {error}')
            return
        text = turn.reply.strip() if self.phrases else ''
        text = text or ', '.join(worded(call) for call in turn.tool_calls)
        text = text or turn.error or ('' if interrupts else '(no tool was called)')
        if text:
            say(f'Robot: {text}')

    def close(self) -> None:
        """Stop what is being done."""
        self.ended = True
        self.client.close()

    def wait(self) -> None:
        """Wait until the command is done."""
        if self.answering is not None:
            self.answering.join(TIMEOUT)

    def play(self) -> None:
        """The conversation of the demo."""
        *first, drive = CONVERSATION
        for text in first:
            self.ask(text)
            self.wait()
            time.sleep(1.0)
        self.running.clear()
        self.ask(drive)
        if self.running.wait(TIMEOUT):
            time.sleep(STOP_AFTER)
        self.ask('Stop!')
        self.wait()


def main() -> int:
    import rclpy
    from rclpy.signals import SignalHandlerOptions

    os.environ.update(
        ROS_AUTOMATIC_DISCOVERY_RANGE='LOCALHOST',
        ROS_DOMAIN_ID=os.environ.get('ROS_DOMAIN_ID') or str(random.randint(1, 100)),
    )
    log = tempfile.NamedTemporaryFile('w+', prefix='nanochat-demo-', suffix='.log', delete=False)  # noqa: SIM115
    programs, conversation = Programs(), None
    model = os.environ.get('MODEL', '')
    parameters = {
        'model': model,
        'max_new_tokens': '300' if model else '',
        'tools_file': str(ROOT / 'config' / 'tools' / 'demo.yaml'),
        'image_mode': "'off'",
    }
    arguments = [part for name, value in parameters.items() if value for part in ('-p', f'{name}:={value}')]
    try:
        say(f'[demo] robot and chat node on ROS_DOMAIN_ID={os.environ["ROS_DOMAIN_ID"]}, log: {log.name}')
        if not model:
            say(SMALL)
        for command, output in (
            ([program('demo_robot')], None),
            (
                [
                    program('chat_node'),
                    '--ros-args',
                    '--params-file',
                    str(ROOT / 'config' / 'demo_tools_chat.yaml'),
                    *arguments,
                ],
                log,
            ),
        ):
            node = programs.start(command, stdout=output, stderr=output, start_new_session=True)
        rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
        conversation = Conversation(bool(model))
        if not conversation.client.wait_until_ready(300.0) or node.poll() is not None:
            log.seek(0)
            print(f'[demo] the node does not answer:\n{log.read()[-2000:]}', file=sys.stderr)
            return 1
        prompt = os.environ.get('PROMPT', '')
        if prompt:
            conversation.ask(prompt)
            conversation.wait()
        else:
            conversation.play()
            if sys.stdin.isatty():
                say('\nYour commands, one a line; stop while it drives; an empty line ends.')
            while sys.stdin.isatty() and (text := input().strip()):
                conversation.ask(text)
        return 0
    except (KeyboardInterrupt, EOFError):
        return 0
    finally:
        try:
            if conversation is not None:
                conversation.close()
        finally:
            programs.end()
            rclpy.try_shutdown()


if __name__ == '__main__':
    sys.exit(main())
