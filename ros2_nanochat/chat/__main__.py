"""`python3 -m ros2_nanochat.chat`: the terminal chat, under the name that NanoLLM gave it."""

import sys

from ros2_nanochat.terminal.chat import main

if __name__ == '__main__':
    sys.exit(main())
