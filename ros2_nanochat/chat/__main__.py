"""`python3 -m ros2_nanochat.chat`: the terminal chat, under its name in NanoLLM."""

import sys

from ros2_nanochat.terminal.chat import main

if __name__ == '__main__':
    sys.exit(main())
