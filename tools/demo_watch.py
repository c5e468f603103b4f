"""The client of `make demo-watch`: three standing questions, each change of their answers as it happens, and
a person's question in between. Ends after a minute, or with Ctrl-C.

The tiny vision encoder knows the colour, shape and place of one object on a plain ground, and nothing else:
it cannot say that there is none. So the camera shows one object that moves, and is replaced by another.
"""

import os
import sys
import threading
import time

from nanochat.msg import Observation, Watch
from nanochat.srv import SetWatch
from rclpy.qos import DurabilityPolicy, QoSProfile

from ros2_nanochat.ros.client import ChatClient
from ros2_nanochat.vision.shapes import STANDING_QUESTIONS

SECONDS = 60.0


def show(text: str) -> None:
    print(text, flush=True)


def main() -> int:
    began = time.monotonic()
    done = threading.Event()
    counts = {'answers': 0, 'changes': 0, 'unchanged': 0}

    def observed(message: Observation) -> None:
        counts['answers'] += 1
        counts['unchanged'] += message.unchanged
        if message.changed:
            counts['changes'] += 1
            show(
                f'[{time.monotonic() - began:5.1f} s] {message.name}: {message.text}'
                f'  ({message.probability:.0%}, frame {1000 * message.age:.0f} ms old, model'
                f' {1000 * (message.model_time + message.encode_time):.0f} ms,'
                f' {message.reused_tokens} of {message.prompt_tokens} tokens reused)'
            )

    with ChatClient() as chat:
        if not chat.wait_until_ready(60.0):
            show('the node does not answer')
            return 1
        kept = QoSProfile(depth=50, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        chat.node.create_subscription(Observation, f'{chat.prefix}/observations', observed, kept)
        setter = chat.node.create_client(SetWatch, f'{chat.prefix}/set_watch')
        setter.wait_for_service(30.0)
        for name, (question, sentence, words) in STANDING_QUESTIONS.items():
            form = ' | '.join(map(sentence.format, words))
            watch = Watch(name=name, question=question, response_format=form, max_rate=5.0)
            setter.call_async(SetWatch.Request(command='add', watch=watch))
        try:
            done.wait(SECONDS / 4)
            prompt = os.environ.get('PROMPT') or 'What is the capital of Japan?'
            turn = chat.ask(prompt, image_mode='off', max_new_tokens=60).result(60.0)
            show(
                f'[{time.monotonic() - began:5.1f} s] a person asks: {prompt}\n'
                f'          {turn.reply}  (first token after {1000 * turn.time_to_first_token:.0f} ms)'
            )
            done.wait(3 * SECONDS / 4)
        except KeyboardInterrupt:
            pass
        answers, changes, unchanged = counts.values()
        show(f'{answers} observations, {changes} changes, {unchanged} cost no model time')
    return 0


if __name__ == '__main__':
    sys.exit(main())
