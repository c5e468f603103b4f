#!/usr/bin/env python3
"""Stands in for the `mlc_llm` command: takes the options that mlc-llm declares (python/mlc_llm/cli), refuses
all else, writes down what it was given, and makes small files where mlc-llm would make large ones. What it
shall do otherwise is in $STAND_IN: `fail STEP`, `sleep STEP`, `cling STEP` (no SIGTERM ends it), `full STEP`.
"""

import argparse
import json
import os
import signal
import struct
import sys
import time


def main():
    parser = argparse.ArgumentParser()
    steps = parser.add_subparsers(dest='step', required=True)
    config, weights, compiling = (
        steps.add_parser(name) for name in ('gen_config', 'convert_weight', 'compile')
    )
    for step in (config, weights):
        step.add_argument('config')
        step.add_argument('--quantization', required=True, choices=['q0f16', 'q0f32', 'q4f16_1', 'q4f16_ft'])
        step.add_argument('--model-type')
        step.add_argument('--output', '-o', required=True)
    config.add_argument(
        '--conv-template', required=True, choices=['chatml', 'llama-3', 'gemma_instruction', 'LM']
    )
    for name in (
        'context-window-size',
        'sliding-window-size',
        'prefill-chunk-size',
        'attention-sink-size',
        'tensor-parallel-shards',
        'max-batch-size',
    ):
        config.add_argument(f'--{name}', type=int)
    weights.add_argument('--device', default='auto')
    weights.add_argument('--source')
    weights.add_argument(
        '--source-format', choices=['auto', 'huggingface-torch', 'huggingface-safetensor', 'awq']
    )
    compiling.add_argument('model')
    for name in (
        'quantization',
        'model-type',
        'device',
        'host',
        'opt',
        'system-lib-prefix',
        'overrides',
        'debug-dump',
    ):
        compiling.add_argument(f'--{name}')
    compiling.add_argument('--output', '-o', required=True)
    options = parser.parse_args()

    given = {**vars(options), 'tmpdir': os.environ.get('TMPDIR')}
    if options.step != 'compile':  # it takes the folder or the file
        with open(os.path.join(options.config, 'config.json')) as file:
            given['config_json'] = json.load(file)
        given['files'] = sorted(os.listdir(options.config))
    else:
        with open(options.model) as file:
            given['chat_config'] = json.load(file)
    with open(os.environ['STAND_IN_RECORD'], 'a') as file:
        file.write(json.dumps(given) + '\n')
    act, _, step = os.environ.get('STAND_IN', '').partition(' ')
    if step == options.step:
        if act in ('sleep', 'cling'):
            if act == 'cling':
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            with open(os.environ['STAND_IN_RECORD'] + '.pid', 'w') as file:
                file.write(str(os.getpid()))
            time.sleep(60)
        if act == 'slow':
            time.sleep(3)
        if act == 'full':
            raise OSError(28, 'No space left on device')
        if act == 'fail':
            print(
                '[INFO] looking at the model\nTraceback (most recent call last):\n  File "x.py", line 1\n'
                'ValueError: Unknown model type: martian'
            )
            sys.exit(1)
    if options.step == 'gen_config':
        with open(os.path.join(options.output, 'mlc-chat-config.json'), 'w') as file:
            json.dump(
                {
                    'model_type': 'llama',
                    'quantization': options.quantization,
                    'context_window_size': options.context_window_size or 2048,
                },
                file,
            )
    elif options.step == 'convert_weight':
        with open(os.path.join(options.output, 'params_shard_0.bin'), 'wb') as file:
            file.write(b'\0' * 8)
        with open(os.path.join(options.output, 'tensor-cache.json'), 'w') as file:
            record = {
                'name': 'w',
                'shape': [4],
                'dtype': 'float16',
                'format': 'raw',
                'byteOffset': 0,
                'nbytes': 8,
            }
            json.dump(
                {
                    'records': [
                        {
                            'dataPath': 'params_shard_0.bin',
                            'format': 'raw-shard',
                            'nbytes': 8,
                            'records': [record],
                        }
                    ]
                },
                file,
            )
    else:
        if os.path.isdir(options.output) or not os.path.isdir(os.path.dirname(options.output)):
            sys.exit('error: --output must be a file in a folder that exists')
        with open(options.output, 'wb') as file:
            kind = (options.device or 'cpu').encode()
            file.write(
                b'\x7fELF a library' + struct.pack('<Q', len(kind)) + kind
            )  # as TVM writes a module's kind


main()
