"""Reads server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html), as far as
servers of models use them: the data of each event.
"""

from __future__ import annotations

MAX_EVENT = 4 << 20
"""Maximum size of one event, in bytes."""


class EventReader:
    """Collects bytes and returns the data of complete events, however the bytes are cut."""

    def __init__(self):
        self.begun = False
        """Whether anything was fed."""
        self._rest = b''
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """Take bytes; return the data of the events that they complete.

        Raises:
            ValueError: An event is larger than `MAX_EVENT`.
        """
        if not self.begun and chunk:
            self.begun, chunk = True, chunk.removeprefix(b'\xef\xbb\xbf')
        text = self._rest + chunk
        if b'\r' in text:
            # A line may end in \r\n that is cut between the two.
            held = b'\r' if text.endswith(b'\r') else b''
            text = text[: len(text) - len(held)].replace(b'\r\n', b'\n').replace(b'\r', b'\n') + held
        *lines, self._rest = text.split(b'\n')
        events = []
        for line in lines:
            if not line:
                if self._data:
                    events.append(b'\n'.join(self._data))
                    self._data, self._size = [], 0
            elif line.startswith(b'data:'):
                value = line[6:] if line[5:6] == b' ' else line[5:]
                self._data.append(value)
                self._size += len(value)
        if self._size + len(self._rest) > MAX_EVENT:
            raise ValueError(f'an event of more than {MAX_EVENT:,} bytes')
        return events
