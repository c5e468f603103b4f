"""Loads the node's model on its own thread, so that the node stays responsive and a signal can stop it."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable

from ros2_nanochat.config import EngineConfig, ModelConfig
from ros2_nanochat.errors import BackendError, one_line, shorten
from ros2_nanochat.nano_llm import NanoLLM
from ros2_nanochat.ros.fleet import Fleet

_SHOWN_EVERY = 2.0  # seconds between two lines of the log about progress


class ModelLoader:
    """Loads one model at a time.

    Args:
        stopping: Set when the process should end.
        log: The node's logger.

    Attributes:
        share: Fraction that is loaded, None while nothing loads.
        was_stopped: Whether the last load was ended by `abort`.
    """

    def __init__(self, stopping: threading.Event, log):
        self.share: float | None = None
        self._stop: threading.Event | None = None  # of the current load
        self._stopping, self._log = stopping, log
        self._backend = None  # of the model that is being loaded
        self._shown = 0.0
        self.was_stopped = False
        self._opening_vision = False

    def load(self, config: ModelConfig, engine: EngineConfig, wants_vision: Callable[[], bool]) -> NanoLLM:
        """Open a model and wait for it.

        Args:
            config: The model.
            engine: How robots share it.
            wants_vision: Whether to load the vision encoder now.

        Raises:
            BackendError: Loading failed or was stopped.
            Exception: Other errors of `NanoLLM.from_pretrained`.
        """
        outcome: list[NanoLLM | BaseException] = []
        stop = threading.Event()

        def work() -> None:
            try:
                model = NanoLLM.from_pretrained(
                    progress=self._progress,
                    opening=functools.partial(self._opening, stop),
                    stop=stop,
                    config=config,
                    engine=engine,
                )
                try:
                    # The embedded model's small encoder is loaded with the first camera, so that a robot
                    # that only talks needs no torch.
                    if (config.model is not None or config.vision is not None) and wants_vision():
                        self._load_vision_encoder(model.vision)
                    if stop.is_set():
                        raise BackendError('loading was stopped')
                except BaseException:
                    model.close()
                    raise
                outcome.append(model)
            except BaseException as error:
                outcome.append(error)

        self.share, self._shown, self._opening_vision = 0.0, time.monotonic(), False
        self._stop, self.was_stopped = stop, False
        self._log.info(f'loading {_named(config)}')
        thread = threading.Thread(target=work, name='load', daemon=True)
        thread.start()
        while thread.is_alive() and not self._stopping.is_set() and not stop.is_set():
            thread.join(0.05)
        self.share, self._stop = None, None
        self.was_stopped = stop.is_set()
        if not outcome:
            raise BackendError('loading was stopped')
        if isinstance(outcome[0], BaseException):
            raise outcome[0]
        return outcome[0]

    def _opening(self, stop: threading.Event, backend) -> None:
        self._backend = backend
        if self._stopping.is_set() or stop.is_set():
            backend.abort()

    def _progress(self, share: float) -> None:
        self.share = share
        if time.monotonic() - self._shown > _SHOWN_EVERY:
            self._shown = time.monotonic()
            self._log.info(f'loading: {100 * share:.0f} %')

    def _load_vision_encoder(self, vision) -> None:
        if vision is None:
            return
        if vision.load_seconds is None:
            self._log.info('loading the vision encoder')
            vision.load()
        self._log.info(f'the vision encoder is ready: {vision.load_seconds:.1f} s')

    def load_vision_encoder_later(self, vision, fleet: Fleet) -> None:
        """Load the vision encoder on its own thread as soon as one of the robots has a camera."""
        if vision is None or vision.load_seconds is not None or self._opening_vision or not fleet.has_camera:
            return
        self._opening_vision = True

        def work() -> None:
            try:
                vision.load()
                self._log.info(f'there is a camera: the vision encoder is ready, {vision.load_seconds:.1f} s')
            except Exception as error:  # the node still talks; a question with an image reports it again
                self._log.warning(f'the vision encoder cannot be loaded: {one_line(error)}')

        threading.Thread(target=work, name='vision-encoder', daemon=True).start()

    def abort(self) -> bool:
        """Stop loading, also if a model is being compiled; return whether anything was."""
        stop = self._stop
        if stop is not None:
            stop.set()
        if self._backend is not None:
            self._backend.abort()
        return stop is not None

    def forget(self) -> None:
        """Drop the backend after its model was closed."""
        self._backend = None


def _named(config: ModelConfig) -> str:
    """The model for the log. What is before an @ in an address may be a password."""
    model = config.model
    if not model:
        return 'the fake model' if config.api == 'fake' else 'the embedded model'
    is_address = model.lower().lstrip().startswith('http')
    return 'a model on a server' if is_address and '@' in model else shorten(model)
