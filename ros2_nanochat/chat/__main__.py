"""`python3 -m ros2_nanochat.chat`: the terminal chat, under its name in NanoLLM."""

import sys

from ros2_nanochat.terminal.programs import chat

if __name__ == '__main__':
    sys.exit(chat())
