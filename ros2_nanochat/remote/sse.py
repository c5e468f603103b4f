"""Reads server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html), as far as
servers of models use them: the data of each event, and whether it reports an error.
"""

from __future__ import annotations

MAX_EVENT = 4 << 20
"""Maximum size of one event, in bytes."""
_BOM = b'\xef\xbb\xbf'


class EventReader:
    """Collects bytes and returns the data of complete events, however the bytes are cut.

    Attributes:
        error: The data of an event of the type `error`, which ends the stream; None until one comes.
    """

    def __init__(self):
        self.error: bytes | None = None
        self._begun = False
        self._rest = b''
        self._data: list[bytes] = []
        self._size = 0
        self._is_error = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """Take bytes; return the data of the events that they complete, up to an error.

        Raises:
            ValueError: An event is larger than `MAX_EVENT`.
        """
        text = self._rest + chunk
        if not self._begun:
            if _BOM.startswith(text):  # perhaps the first bytes of one
                self._rest = text
                return []
            self._begun, text = True, text.removeprefix(_BOM)
        if b'\r' in text:
            # A line may end in \r\n that is cut between the two.
            held = b'\r' if text.endswith(b'\r') else b''
            text = text[: len(text) - len(held)].replace(b'\r\n', b'\n').replace(b'\r', b'\n') + held
        *lines, self._rest = text.split(b'\n')
        events: list[bytes] = []
        for line in lines:
            if self.error is not None:
                return events
            if line:
                self._take(line)
            elif self._data or self._is_error:
                self._end_event(events)
        if self._size + len(self._rest) > MAX_EVENT:
            raise ValueError(f'an event of more than {MAX_EVENT:,} bytes')
        return events

    def _take(self, line: bytes) -> None:
        name, _, value = line.partition(b':')
        value = value.removeprefix(b' ')
        if name in (b'data', b'error'):  # llama.cpp's server had the field `error` up to 2025
            self._data.append(value)
            self._size += len(value)
        if name == b'error' or (name == b'event' and value.strip() == b'error'):
            self._is_error = True

    def _end_event(self, events: list[bytes]) -> None:
        data, is_error = b'\n'.join(self._data), self._is_error
        self._data, self._size, self._is_error = [], 0, False
        if is_error:
            self.error = data
        else:
            events.append(data)
