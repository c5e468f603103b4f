"""Starts a terminal program: reads options and prompts and opens the model. Each error is one line."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from ros2_nanochat.config import GenerationConfig
from ros2_nanochat.nano_llm import NanoLLM
from ros2_nanochat.program import run_program
from ros2_nanochat.terminal.arguments import generation_config, load_prompts, model_config
from ros2_nanochat.terminal.nanollm_options import set_up_logging
from ros2_nanochat.terminal.screen import Screen


def start(
    options: argparse.Namespace,
    screen: Screen,
    run: Callable[[NanoLLM, GenerationConfig, list[str] | None], int],
    prepare: Callable[[], None] = lambda: None,
) -> int:
    """Call `prepare`, load the model of the command line and call `run(model, config, prompts)`.

    Returns:
        The exit status: that of `run`, 1 after an error, 130 after Ctrl-C while loading.
    """
    set_up_logging(options.log_level)

    def body() -> int:
        config = generation_config(options)
        prompts = load_prompts(options.prompt)
        prepare()
        with NanoLLM.from_pretrained(config=model_config(options)) as model:
            return run(model, config, prompts)

    return run_program(body, screen.error, options.debug or options.log_level == 'debug')
