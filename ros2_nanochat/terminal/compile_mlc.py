"""`nanochat-mlc MODEL`: quantize a checkpoint and compile it with mlc_llm once, so that `api=mlc` opens it
without delay afterwards.
"""

from __future__ import annotations

import signal
import sys

from ros2_nanochat import hub
from ros2_nanochat.backends.mlc.compiling import prepare
from ros2_nanochat.backends.mlc.library import target_of
from ros2_nanochat.backends.mlc.tvm_runtime import why_it_does_not_load
from ros2_nanochat.config import ModelConfig
from ros2_nanochat.program import OptionParser, run_program

_DEVICES = {'llvm': 'cpu'}


def tell(line: str) -> None:
    """Show the progress."""
    print(line, file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    """Make the model and print its folder. Return the exit code."""
    parser = OptionParser(
        prog='nanochat-mlc',
        description='Quantize a model and compile it for the GPU, with the mlc_llm command, into '
        'the cache folder ($XDG_CACHE_HOME/nanochat/mlc). Prints the folder that was made.',
    )
    parser.add_argument(
        'model',
        help='folder of a checkpoint, or owner/name of a hub repository; or MLC weights that lack a library',
    )
    parser.add_argument(
        '--quantization',
        metavar='METHOD',
        help='a method of MLC-LLM: q4f16_1 (default), q4f16_ft, q4f32_1, q3f16_1, q0f16, q0f32, ... '
        '(no 8-bit one)',
    )
    parser.add_argument(
        '--target',
        default='auto',
        metavar='KIND',
        help='cuda, llvm (the CPU), vulkan, metal; default: a GPU of NVIDIA where there is one',
    )
    parser.add_argument(
        '--max-context-len',
        type=int,
        metavar='N',
        help="tokens of one conversation (default: the model's own)",
    )
    parser.add_argument(
        '--max-sequences',
        type=int,
        default=4,
        metavar='N',
        help='conversations that run at once (default: 4)',
    )
    parser.add_argument('--debug', action='store_true', help='show where an error comes from')
    options = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends what it has started, as Ctrl-C does

    def body() -> int:
        config = ModelConfig(
            model=options.model,
            api='mlc',
            quantization=options.quantization,
            max_context_len=options.max_context_len,
            max_sequences=options.max_sequences,
            device=target_of(_DEVICES.get(options.target, options.target)),
        )
        path, _ = hub.resolve(config)
        print(prepare(path, config, tell, why_it_does_not_load))
        return 0

    def tell(line: str) -> None:
        print(f'nanochat-mlc: {line}', file=sys.stderr)

    status = run_program(body, tell, options.debug)
    if status == 130:
        tell('stopped; unfinished files were removed')
    return status


if __name__ == '__main__':
    sys.exit(main())
