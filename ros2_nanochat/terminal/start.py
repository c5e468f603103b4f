"""How a program of the terminal begins: options, prompts and model, each with one line where it is wrong."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from ros2_nanochat.config import GenerationConfig
from ros2_nanochat.errors import BackendError, MissingDependency
from ros2_nanochat.nano_llm import NanoLLM
from ros2_nanochat.terminal.arguments import generation_config, load_prompts, model_config
from ros2_nanochat.terminal.screen import Screen


def start(
    options: argparse.Namespace,
    screen: Screen,
    run: Callable[[NanoLLM, GenerationConfig, list[str] | None], int],
) -> int:
    """Load the model that the command line names and `run(model, config, prompts)`; return the exit status:
    that of `run`, 1 where something was wrong, 130 after Ctrl-C while loading.
    """
    try:
        config = generation_config(options)
        prompts = load_prompts(options.prompt)
        model = NanoLLM.from_pretrained(config=model_config(options))
    except (ValueError, BackendError, MissingDependency) as error:
        screen.error(str(error))
        return 1
    except KeyboardInterrupt:
        return 130
    with model:
        return run(model, config, prompts)
