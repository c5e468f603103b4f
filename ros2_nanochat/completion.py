"""`python3 -m ros2_nanochat.completion`: plain completion in the terminal, under its name in NanoLLM."""

import sys

from ros2_nanochat.terminal.programs import completion

if __name__ == '__main__':
    sys.exit(completion())
