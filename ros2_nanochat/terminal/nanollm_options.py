"""Further options of NanoLLM's command lines, so that these run unchanged."""

from __future__ import annotations

import argparse
import logging

LOG_LEVELS = ('debug', 'info', 'warning', 'error', 'critical')


def add_nanollm_options(parser: argparse.ArgumentParser) -> None:
    """Add NanoLLM's options in their own group."""
    group = parser.add_argument_group('as in NanoLLM')
    group.add_argument(
        '--vision-model',
        dest='vision',
        default=argparse.SUPPRESS,
        metavar='PATH|OWNER/NAME',
        help='the same as --vision',
    )
    group.add_argument(
        '--vision-api',
        choices=('auto', 'hf', 'trt'),
        help="has no effect: PyTorch or the model's backend runs the vision encoder",
    )
    group.add_argument(
        '--log-level', choices=LOG_LEVELS, help='show log messages of this level and above on standard error'
    )
    group.add_argument(
        '--disable-streaming',
        '--no-streaming',
        action='store_true',
        help='show a reply once it is complete',
    )


def set_up_logging(level: str | None) -> None:
    """Show log messages of a level and above. None hides those that the screen shows in another way."""
    if level is None:
        logging.getLogger('ros2_nanochat.chat').setLevel(logging.ERROR)
    else:
        logging.basicConfig(level=level.upper(), format='%(levelname)s %(name)s: %(message)s')
