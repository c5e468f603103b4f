"""How often the embedded model calls the right tool of `make demo-tools`, on commands in people's words.

Run with `python -m benchmarks.bench_demo_tools [--model PATH] [--tuning] [--wrong]`. The wording was chosen
with other commands (`--tuning`). Some wordings were compared on the first 50 commands, none on the last 50.
Only the choice of the tool is measured: the tools of the demo take no arguments.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import yaml

from ros2_nanochat import ChatHistory, NanoLLM
from ros2_nanochat.robot.tool_answering import example_messages, one_call
from ros2_nanochat.robot.tools_file import read_tools_file
from ros2_nanochat.tools import Tool

ROOT = Path(__file__).resolve().parents[1]
FRESH = {
    'on': (
        'Turn on the light.',
        'Lights on, please!',
        'Could you switch the lamp on for me?',
        'It is so dark in here, put the lamp on.',
        'Please light the lamp.',
        'Lamp on.',
        'Can you turn the lamp on now?',
        'I need light, switch it on.',
        'Switch on the lamp, robot.',
        'Make it bright: lamp on!',
        'Please give me some light.',
        'Lamp: on.',
        'Would you turn on the lamp?',
        'Put the light on, please.',
        'Turn the light on for me.',
        'Can you switch on the lamp?',
        'I want the lamp on.',
        'Turn on the lamp, it is getting dark.',
        'Please turn the light on.',
        'Light on!',
        'Robot, switch the light on.',
        'Could you turn on the light?',
        'Switch the lamp on now.',
        'The lamp should be on.',
        'It is dark, turn on the lamp.',
        'Lamp on, quickly.',
    ),
    'off': (
        'Turn off the light.',
        'Lights off, please!',
        'Could you switch the lamp off for me?',
        'It is too bright in here, put the lamp off.',
        'Please turn the lamp off.',
        'Lamp off.',
        'I want to sleep, switch off the lamp.',
        'No more light, switch it off.',
        'Switch off the lamp, robot.',
        'Make it dark: lamp off!',
        'Please switch the light off now.',
        'Lamp: off.',
        'Would you turn off the lamp?',
        'Put the light off, please.',
        'Turn the light off for me.',
        'Can you switch off the lamp?',
        'I want the lamp off.',
        'Turn off the lamp, it is day.',
        'Please turn the lamp off now.',
        'Light off!',
        'Robot, switch the light off.',
        'Could you turn off the light?',
        'Switch the lamp off now.',
        'The lamp should be off.',
        'I am going to bed, turn off the lamp.',
        'Lamp off, quickly.',
    ),
    'battery': (
        'How full is your battery?',
        'Battery status, please.',
        'How much charge do you have left?',
        'What is the battery level?',
        'Do you need to be charged?',
        'Is your battery low?',
        'Tell me your battery percentage.',
        'How much power is left?',
        'Check the battery.',
        'How is the battery doing?',
        'Is there enough charge in your battery?',
        'Report your charge.',
        'What is your battery level?',
        'How much battery is left?',
        'Read the battery.',
        'How charged are you?',
        'Is the battery full?',
        'Tell me how full the battery is.',
        'What does the battery say?',
        'Please check your battery.',
        'Do you have enough battery?',
        'Battery?',
        'How many percent has the battery?',
        'Give me the state of the battery.',
    ),
    'move': (
        'Go forward.',
        'Drive ahead, please.',
        'Move forwards a bit.',
        'Can you drive forward?',
        'Come on, go straight ahead!',
        'Please roll forward.',
        'Forward!',
        'Start driving forward now.',
        'Robot, move ahead.',
        'Advance.',
        'Drive forward two metres.',
        'Please go forward now.',
        'Drive forward, please.',
        'Move forward.',
        'Drive straight on.',
        'Go straight ahead.',
        'Robot, drive forward.',
        'Please move ahead.',
        'Can you go forward?',
        'Drive two metres ahead.',
        'Go ahead and drive.',
        'Move a little forward.',
        'Now drive.',
        'Roll ahead.',
    ),
}
TUNING = {
    'on': (
        'Switch the light on',
        'Turn the lamp on please',
        'I cannot see, lamp on',
        'Light, please',
        'Lamp on please',
        'Would you put the light on?',
    ),
    'off': (
        'Switch the light off',
        'Turn the lamp off please',
        'Lights out',
        'Put the lamp out',
        'Lamp off please',
        'Would you put the light off?',
    ),
    'battery': (
        'How full is the battery?',
        'Battery level?',
        'Do you have enough power?',
        'How much charge is left?',
        'Show me the battery state',
        'Are you running low?',
    ),
    'move': (
        'Drive forward',
        'Move ahead',
        'Go straight on',
        'Please drive forward now',
        'Forward please',
        'Drive straight ahead',
    ),
}


def history_of(model: NanoLLM, path: Path) -> ChatHistory:
    """A conversation with the tools, the examples and the system prompt of the demo."""
    file = read_tools_file(path)
    tools = [Tool(entry.name, entry.description or '') for entry in file.tools]
    text = (ROOT / 'config' / 'demo_tools_chat.yaml').read_text()
    prompt = yaml.safe_load(text)['/**']['ros__parameters']['system_prompt']
    history = ChatHistory(model, system_prompt=prompt, tools=tools)
    history.examples = example_messages(file.examples, tools)
    return history


def called(history: ChatHistory, command: str) -> str:
    """The tool that the model calls for a command at the beginning of a conversation, '' if none."""
    history.reset()
    history.append('user', command)
    prompt, _ = history.embed_chat()
    reply = history.model.generate(
        prompt,
        kv_cache=history.kv_cache,
        calls=one_call(history.call_form('required')),
        max_new_tokens=60,
        do_sample=False,
        streaming=True,
    ).wait()
    history.kv_cache = reply.kv_cache
    return reply.calls[0].name if reply.calls else ''


def main() -> None:
    """Ask all commands and print the share of right calls."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--model', default=None)
    parser.add_argument('--file', type=Path, default=ROOT / 'config' / 'tools' / 'demo.yaml')
    parser.add_argument('--tuning', action='store_true', help='the commands that the wording was chosen with')
    parser.add_argument('--wrong', action='store_true', help='show the commands with a wrong call')
    options = parser.parse_args()
    with NanoLLM.from_pretrained(options.model) as model:
        history = history_of(model, options.file)
        right = total = 0
        for tool, commands in (TUNING if options.tuning else FRESH).items():
            for command in commands:
                found = called(history, command)
                right, total = right + (found == tool), total + 1
                if found != tool and options.wrong:
                    print(f'{command!r}: {found}, not {tool}')
        print(f'{model.info.name}: the right tool for {right} of {total} commands ({right / total:.0%})')


if __name__ == '__main__':
    main()
