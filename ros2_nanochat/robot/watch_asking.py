"""Asks several standing questions about the same pictures, all in one batch.

Each prompt is the system prompt, the pictures, and then the question: what comes first is the same for all
of them, so the engine reads it once and forks it. A choice costs one forward where one id decides: the prompt
ends with what all alternatives begin with, and the logits give the answer and its probability. Belongs to one
robot's thread.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ros2_nanochat.chat.history import ChatHistory
from ros2_nanochat.chat.message import ChatMessage
from ros2_nanochat.config import GenerationConfig, RobotOptions
from ros2_nanochat.engine.answer_vocabulary import end_of_turn
from ros2_nanochat.engine.request import BACKGROUND
from ros2_nanochat.engine.usage import Usage
from ros2_nanochat.errors import one_line
from ros2_nanochat.prompt import Preceding, Prompt, concatenate
from ros2_nanochat.robot.watch import Watch, number_of
from ros2_nanochat.robot.watch_choice import Choice
from ros2_nanochat.robot.watch_frames import View
from ros2_nanochat.states import FinishReason

_BELOW_PEOPLE = BACKGROUND - 1001
"""Added to the priority of a standing question, so that each question of a person goes first."""

_END = 8  # tokens beyond the longest alternative of a choice, for reasoning marks and other spellings


@dataclass(frozen=True)
class Answer:
    """The answer to a standing question.

    Attributes:
        value: The answer as JSON gives it; None if it is not valid.
        error: Why there is no answer; '' if there is one.
    """

    text: str
    value: Any = None
    number: float = math.nan
    probability: float = 0.0
    valid: bool = False
    usage: Usage = Usage()
    error: str = ''


@dataclass(eq=False)
class Pending:
    """A question that the model is answering.

    Attributes:
        watch: The question.
        stream: The reply; of a choice, the last of several.
        shares: How likely each alternative of a choice is, filled in as the model answers.
        go_on: Begins the next reply if the choice is not made; returns None if it is. None for a usual reply.
        spent: The tokens and times of the replies before.
    """

    watch: Watch
    stream: Any
    shares: dict[str, float] = field(default_factory=dict)
    go_on: Callable[[Any], Any] | None = None
    spent: list[Usage] = field(default_factory=list)

    def ended(self, timeout: float) -> bool:
        """Wait at most `timeout` seconds for the answer; return whether it is there. May raise anything."""
        try:
            self.stream.wait(timeout)
        except TimeoutError:
            return False
        following = None if self.go_on is None or self._failed else self.go_on(self.stream)
        if following is None:
            return True
        self.spent.append(self.stream.usage)
        self.stream = following
        return False

    @property
    def usage(self) -> Usage:
        """The tokens and times of the answer."""
        replies = [*self.spent, self.stream.usage]
        if len(replies) == 1:
            return replies[0]
        return replace(
            replies[0],
            model_time=sum(each.model_time for each in replies),
            new_tokens=sum(each.new_tokens for each in replies),
        )

    @property
    def _failed(self) -> bool:
        reason = self.stream.finish_reason
        return reason is not None and (reason.failed or reason is FinishReason.CANCELLED)

    def answer(self) -> Answer:
        """Return the answer, once it is there."""
        stream, watch, usage = self.stream, self.watch, self.usage
        text = stream.text.strip()
        if self._failed:
            return Answer(text, usage=usage, error=stream.error or 'the answer was stopped')
        if self.go_on is not None:
            shares, valid = self.shares, bool(self.shares)
            text = max(shares, key=shares.__getitem__, default=text)
        else:
            shares = stream.probabilities or self.shares
            valid = stream.valid if watch.form is not None else stream.finish_reason is FinishReason.STOP
        if valid and text in shares:
            # Token by token, a reply can begin as one alternative does and end as one that is less likely.
            text = max(shares, key=shares.__getitem__)
        value: Any = text if valid else None
        if valid and watch.form is not None and watch.form.kind in ('json', 'schema'):
            value = json.loads(text)
        return Answer(text, value, number_of(value), shares.get(text, 0.0) if valid else 0.0, valid, usage)


class Asking:
    """Asks the standing questions of one robot.

    Args:
        model: A `NanoLLM`.
        chat_template: See `ChatTemplate`.
    """

    def __init__(self, model, chat_template: str | None = None):
        self._model, self._chat_template = model, chat_template
        self._ids: dict[tuple[str, ...], dict[str, list[int]]] = {}  # of the alternatives of choices

    @functools.cached_property
    def _empty(self) -> tuple[ChatHistory, str]:
        """A history to make prompts with, and the system prompt of the template; made when first needed."""
        history = ChatHistory(self._model, self._chat_template)
        return history, history.system_prompt

    def encode(self, views: Sequence[View], stopped: Callable[[], bool]) -> float:
        """Encode the pictures that are not encoded yet.

        Args:
            views: The pictures.
            stopped: Asked now and then whether to stop.

        Returns:
            The seconds that it took.

        Raises:
            EncodingStopped: `stopped()` became true. Those that are encoded stay so.
            Exception: A picture cannot be encoded.
        """
        seconds = 0.0
        for view in views:
            if view.message is None:
                message = ChatMessage('user', image=self._model.open_image(view.pixels))
                seconds += message.embed(self._model, stopped).seconds
                message.let_go()
                view.message, view.pixels = message, None
        return seconds

    def begin(self, watch: Watch, views: Sequence[View], options: RobotOptions) -> Pending:
        """Start to answer a question about pictures that are encoded.

        Args:
            watch: The question.
            views: The pictures, in order.
            options: The robot's options.

        Raises:
            Exception: The question cannot be asked.
        """
        history, default_prompt = self._empty
        if options.template_variables != history.template_options:
            history.template_options = options.template_variables
        prompt = default_prompt if options.system_prompt is None else options.system_prompt
        history.reset(prompt or False)
        self._arrange(history, watch, views, _question(watch, options.explain_format))
        choice = self._choice(watch)
        most = watch.max_new_tokens or self._longest(watch) or options.generation.max_new_tokens
        context = self._model.info.context_length
        entries, _ = history.embed_chat(use_cache=False, max_tokens=max(1, context - min(most, context // 2)))
        if history.num_dropped:
            raise ValueError(
                f'the pictures and the question do not fit into a context of {context} tokens: take fewer'
                ' frames'
            )
        priority = _BELOW_PEOPLE + watch.priority
        if choice is not None:
            return self._choosing(watch, choice, entries, priority)
        config = GenerationConfig(
            max_new_tokens=most,
            response_format=watch.form,
            stop_tokens=(*history.template.stop, *options.generation.stop_tokens),
        )
        pending = Pending(watch, None)
        scoring = self._scoring(watch, pending.shares)
        pending.stream = self._model.generate(entries, config=config, priority=priority, **scoring)
        return pending

    def _choosing(self, watch: Watch, choice: Choice, entries: Prompt, priority: int) -> Pending:
        """Begin to make a choice."""
        found: list[bool] = []

        def ask(kv_cache: Any = None) -> Any:
            found.clear()
            return self._model.generate(
                concatenate(entries, Prompt.join([choice.beginning])),
                kv_cache=kv_cache,
                max_new_tokens=1,
                priority=priority,
                logits_processors=(note,),
            )

        def note(_, logits: np.ndarray) -> np.ndarray:
            found.append(choice.note(logits))
            return logits

        return Pending(
            watch, ask(), choice.shares, lambda reply: ask(reply.kv_cache) if found == [False] else None
        )

    def _arrange(self, history: ChatHistory, watch: Watch, views: Sequence[View], question: str) -> None:
        """Add the pictures and the question, those first that other questions share."""
        camera = None
        for view in views:
            if len(watch.cameras) > 1 and view.camera != camera:
                camera = view.camera
                history.append('user', text=f'Camera {camera}:')
            history.append('user', view.message)
        if question:
            history.append('user', text=question)

    def _scoring(self, watch: Watch, shares: dict[str, float]) -> dict[str, Any]:
        """Return the options that make the model say how likely its choice is."""
        alternatives = () if watch.form is None else watch.form.alternatives
        if not alternatives or not self._model.engine.gives_probabilities:
            return {}
        ids = self._distinct_ids(alternatives) if self._model.engine.gives_logits else None
        if ids is None:
            return {'probabilities': True}

        def note(_, logits: np.ndarray) -> np.ndarray:
            scores = logits[list(ids.values())].astype(np.float64)
            if np.isfinite(scores).all():  # the answer has not begun
                weights = np.exp(scores - scores.max())
                shares.update(zip(ids, (weights / weights.sum()).tolist()))
            return logits

        return {'logits_processors': (note,)}

    def _ids_of(self, alternatives: tuple[str, ...]) -> dict[str, list[int]]:
        if alternatives not in self._ids:
            self._ids[alternatives] = {
                text: self._model.tokenize(text, preceding=Preceding.TEXT) for text in alternatives
            }
        return self._ids[alternatives]

    def _distinct_ids(self, alternatives: tuple[str, ...]) -> dict[str, int] | None:
        """Return the first id of each alternative; None if one id does not decide, as two have the same."""
        first = {text: ids[0] for text, ids in self._ids_of(alternatives).items()}
        return first if len(set(first.values())) == len(first) else None

    def _choice(self, watch: Watch) -> Choice | None:
        """Return the search for a choice. None for other forms, and if the answer may not follow the prompt
        at once, or the model shows no logits.
        """
        model, alternatives = self._model, () if watch.form is None else watch.form.alternatives
        engine = model.engine
        if not alternatives or not (engine.gives_logits and engine.gives_probabilities):
            return None
        if model.reasoning_marks is not None or model.info.bidirectional_prompt:
            return None
        end = end_of_turn(model.info)
        ids = {text: (*each, end) for text, each in self._ids_of(alternatives).items()}
        return Choice(ids) if len(set(ids.values())) > 1 else None

    def _longest(self, watch: Watch) -> int:
        """Return how many tokens a choice can take; 0 for other forms, and if the model may reason first."""
        if watch.form is None or not watch.form.alternatives or self._model.reasoning_marks is not None:
            return 0
        return max(map(len, self._ids_of(watch.form.alternatives).values())) + _END


def _question(watch: Watch, explained: bool) -> str:
    instruction = watch.form.instruction if explained and watch.form is not None else ''
    return f'{watch.question}\n\n{instruction}' if instruction else watch.question


def failed(error: BaseException) -> Answer:
    """Return the answer of a question that could not be asked."""
    return Answer('', error=one_line(error))
