"""One reply that a server writes: takes the pieces of its stream, and passes on text and ids.

Runs on the loop's thread; knows no HTTP.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from ros2_nanochat.engine.metrics import Metrics
from ros2_nanochat.engine.request import End, Request
from ros2_nanochat.engine.text_delta import TextDelta
from ros2_nanochat.prompt import Preceding
from ros2_nanochat.remote.calling import CallSteps
from ros2_nanochat.remote.dialect import Piece
from ros2_nanochat.remote.figures import RequestFigures
from ros2_nanochat.remote.message_vocabulary import ReplyIds
from ros2_nanochat.remote.reading import check_ids
from ros2_nanochat.remote.text import FedDetokenizer, MessageText, RemoteText, ServerText
from ros2_nanochat.states import FinishReason

_log = logging.getLogger(__name__)
_LOOSE, _FEW = 16, 256  # of a limit in tokens, for text whose tokens are not known


class RemoteReply:
    """A reply in progress.

    Args:
        request: The request; this object writes its progress.
        text: The text side of the model.
        metrics: Counts tokens and times.
    """

    def __init__(self, request: Request, text: RemoteText, metrics: Metrics):
        self.request = request
        self._progress = request.progress
        self._text = text
        self._metrics = metrics
        self._reply_ids = ReplyIds()
        self._before = 0  # ids that earlier attempts gave
        self._reason: FinishReason | None = None
        self._closes = False  # the end was found here: the server would go on
        self._end_id: int | None = None  # the end token with which it ended
        self._continued = False  # by a further request
        self._figures = RequestFigures()
        self.steps: CallSteps | None = None
        """Holds a call of a tool to its form, if the server can."""
        self.call_text = ''
        """The text of calls of tools so far."""
        self.server_finished = False
        """Whether the server said that the reply is complete."""
        request.progress.reused = None
        most = request.asked.config.max_new_tokens
        self._limit = text.info.context_length if most < 0 else most
        if isinstance(text, MessageText):
            request.progress.prompt_tokens = 0
            self._limit = self._limit and _LOOSE * self._limit + _FEW  # these ids are not the server's

    @property
    def begun(self) -> bool:
        """Whether anything was delivered."""
        return bool(self._progress.new_ids)

    @property
    def complete(self) -> bool:
        """Whether the server said that the reply is complete, or a stop was found in it."""
        return self._reason is not None

    @property
    def has_room(self) -> bool:
        """Whether the reply may have more tokens. If not, it is complete."""
        most = self.request.asked.config.max_new_tokens
        if 0 <= most <= len(self._progress.new_ids) and self.begun:
            self._reason = FinishReason.LENGTH
        return self._reason is not FinishReason.LENGTH

    @property
    def goes_on(self) -> bool:
        """Whether a further request may continue what is complete: it ended neither at a limit nor at a stop
        string.
        """
        return self._reason is FinishReason.STOP and not self._progress.text.stopped

    @property
    def ended(self) -> bool:
        """Whether the reader was told the end."""
        return self.request.signals.ended.is_set()

    @property
    def before_answer(self) -> list[int]:
        """The ids of the reply before its answer: reasoning, and white space after it."""
        ids, count = self._progress.new_ids, self._progress.text.num_reasoning
        if isinstance(self._text, ServerText):
            return ids[:count]  # asking the server for their texts would hold up all streams
        while 0 < count < len(ids) and not self._text.token_text(ids[count]).strip():
            count += 1
        return ids[:count]

    def start(self, served_by: str) -> None:
        """Note that a server begins with it."""
        progress = self._progress
        self.next_request()
        progress.served_by = served_by
        if progress.started is None:
            progress.started = progress.mark('started')
            self._metrics.observe('queue_wait', progress.started - self.request.asked.submitted)

    def take(self, piece: Piece, figures_follow: bool) -> bool:
        """Take one piece.

        Args:
            piece: What an event said.
            figures_follow: The server sends figures after the end of the text.

        Returns:
            Whether nothing more is needed from the server.
        """
        self._take_figures(piece)
        if not self.complete and (piece.text or piece.ids or piece.reasoning):
            self._note_token()
            # Only the prompt was requested, or the reply does not end.
            if len(self._progress.new_ids) >= self._limit:
                self._reason, self._closes = FinishReason.LENGTH, True
            elif isinstance(self._text, MessageText):
                self._put(self._reply_ids.of(piece.reasoning, piece.text))
            else:
                self._take_ids(piece)
        elif self.complete and (piece.text or piece.ids):
            self._closes = True  # it does not know that this is the end
        if not self.complete and self._progress.text.stopped:
            self._reason, self._closes = FinishReason.STOP, True
        if not self.complete and self._begins_call:  # goes on in a request of its own
            self._reason, self._closes = FinishReason.STOP, True
        if piece.finish:
            self.server_finished = True
            self._reason = self._reason or FinishReason(piece.finish)
        if not self.server_finished:
            return self._closes
        return not figures_follow or self._figures.prompt_tokens is not None

    def _take_figures(self, piece: Piece) -> None:
        progress, figures = self._progress, self._figures
        if figures.take(piece) and not self._continued:  # those of the first request are the reply's
            progress.reused = figures.reused_tokens
            if isinstance(self._text, MessageText):
                progress.prompt_tokens = figures.prompt_tokens

    def _note_token(self) -> None:
        progress, now = self._progress, time.monotonic()
        if progress.last_token is None:
            progress.first_token = now
            progress.trace.append(('first_token', now))
            self._metrics.observe('time_to_first_token', now - self.request.asked.submitted)
        else:
            self._metrics.observe('time_per_token', now - progress.last_token)
        progress.last_token = now

    def _take_ids(self, piece: Piece) -> None:
        progress, asked = self._progress, self.request.asked
        ids = list(piece.ids)
        end = next((n for n, token_id in enumerate(ids) if token_id in asked.end_ids), None)
        check_ids('' if progress.new_ids else piece.text, ids, ids[:end], self._text.info.vocab_size)
        if end is not None:
            self._end_id = ids[end]
            self._closes = self._end_id not in self._text.info.eos_token_ids
            ids = ids[:end]
            self._reason = FinishReason.STOP
        text, room = piece.text, self._limit - len(progress.new_ids)
        if is_cut := len(ids) > room:
            self._reason, self._closes, self._end_id = FinishReason.LENGTH, True, None
            cut = self._text.text_of_ids(ids[:room])
            if cut is None or not text.startswith(cut):
                return
            text, ids = cut, ids[:room]
        known = len(progress.new_ids) - self._before
        if not is_cut and piece.num_ids is not None and piece.ids and piece.num_ids > known + len(piece.ids):
            found = self._recovered(piece.text, ids, piece.num_ids - known)
            if found is None:
                progress.text.mixed = True
                self._before -= piece.num_ids - known - len(piece.ids)
            else:
                ids = found
        detokenizer = progress.text.detokenizer
        assert isinstance(detokenizer, FedDetokenizer)
        if ids:
            detokenizer.feed(text, len(ids), [i in self._text.special_ids for i in ids])
            self._put(ids)
        elif text:
            detokenizer.feed_rest(text)

    def _recovered(self, text: str, ids: list[int], count: int) -> list[int] | None:
        """The ids of a character that llama.cpp gave in one piece with only its last id; None if unknown."""
        if isinstance(self._text, ServerText):
            return None  # asking the server would hold up all streams
        spelled = self._text.tokenize(text, preceding=Preceding.TEXT)
        return spelled if len(spelled) == count and spelled[-len(ids) :] == ids else None

    def _put(self, ids: list[int]) -> None:
        progress, output = self._progress, self.request.signals.output
        for token_id in ids:
            progress.new_ids.append(token_id)
            progress.entries.append(token_id)
            for delta in progress.text.add(token_id):
                output.put(delta)
                if delta.call:
                    self.call_text += delta.text
            self._metrics.counters['generated_tokens'] += 1
            if progress.text.stopped:
                return
            if self._begins_call:
                detokenizer = progress.text.detokenizer
                assert isinstance(detokenizer, FedDetokenizer)
                detokenizer.forget()
                return

    @property
    def _begins_call(self) -> bool:
        return self.steps is not None and self.steps.talks and self._progress.text.in_call

    def write(self, pieces: Sequence[tuple[str, Sequence[int], bool]]) -> None:
        """Write what follows in any case.

        Args:
            pieces: Texts, their ids, and whether these are special tokens.
        """
        detokenizer = self._progress.text.detokenizer
        assert isinstance(detokenizer, FedDetokenizer)
        for text, ids, is_special in pieces:
            detokenizer.feed('' if is_special else text, len(ids), [is_special] * len(ids))
            self._put(list(ids))

    def next_request(self) -> None:
        """Note that a request begins the reply, or continues it."""
        self._continued = self.begun
        self._figures.count(self._metrics)
        self._before = len(self._progress.new_ids)
        self._reason, self._end_id, self._closes, self.server_finished = None, None, False, False

    def pass_on(self, delta: TextDelta, ids: list[int]) -> None:
        """Pass on text that another model wrote, with its ids."""
        progress = self._progress
        self._note_token()
        if not isinstance(self._text, ServerText):
            ids = list(self._text.tokenize(delta.text, preceding=Preceding.TEXT))
        progress.new_ids += ids
        self.request.signals.output.put(TextDelta(delta.text, len(progress.new_ids), False, delta.reasoning))

    # --- ending ---

    def finish_complete(self) -> None:
        """End a complete reply. An answer that is not in its form is an error."""
        reason = self._reason or FinishReason.STOP
        progress = self._progress
        form = progress.answer_form
        if reason is FinishReason.STOP and form is not None:
            for delta in [*progress.text.flush(self._end_id)]:
                self.request.signals.output.put(delta)
            if not form.matches(progress.text.answer):
                self.finish(
                    FinishReason.ERROR,
                    f'{progress.served_by} answered in another form than response_format asks for: check its'
                    ' structured outputs',
                )
                return
        self.finish(reason)

    def finish(self, reason: FinishReason, detail: str | None = None) -> None:
        """End the reply: its last text goes out. Only the first call has an effect.

        Args:
            reason: Why it ends.
            detail: What was wrong and what to do, if something was.
        """
        if self.ended:
            return
        self._figures.count(self._metrics)
        request, progress = self.request, self._progress
        request.signals.ended.set()
        progress.mark(reason)
        try:
            for delta in progress.text.flush(self._end_id):
                request.signals.output.put(delta)
            count, exact = progress.text.given(len(progress.new_ids))
        except Exception as error:  # a bug of ours; without an end, the reader would wait for ever
            _log.exception('the end of a reply failed')
            count, exact = len(progress.new_ids), False
            reason, detail = FinishReason.ERROR, f'internal error: {error!r}'
        self._metrics.count(f'finished_{reason}')
        request.signals.output.put(End(reason, count, exact, detail, progress.text.num_partial))

    def finish_as(self, reason: FinishReason, detail: str | None) -> None:
        """End a reply whose text came through `pass_on`."""
        if not self.ended:
            self.request.signals.ended.set()
            self._progress.mark(reason)
            self._metrics.count(f'finished_{reason}')
            self.request.signals.output.put(End(reason, len(self._progress.new_ids), False, detail))
