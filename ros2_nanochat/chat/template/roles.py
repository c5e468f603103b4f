"""How a template treats the roles of messages, found by rendering small examples."""

from __future__ import annotations

import os
from collections.abc import Callable

P0, P1, P2 = '\U0010fff2', '\U0010fff0', '\U0010fff1'
"""Stand for contents in example conversations."""
WRITTEN_OUT = f"'text': '{P1}'", f'"text": "{P1}"'
"""What templates that take a string write for a list of parts."""
_BEFORE: dict[str, list[str]] = {'system': [], 'assistant': ['user'], 'tool': ['user', 'assistant']}


class Roles:
    """The roles in one template.

    Args:
        render: Renders messages in the form of transformers, or raises a ValueError.
        example: Renders `(role, text)` pairs in the way the template takes them; None if it refuses.
        takes_text: Whether a content of the user may be a string; otherwise it has to be a list of parts.
    """

    def __init__(
        self,
        render: Callable[[list[dict]], str],
        example: Callable[..., str | None],
        takes_text: bool,
    ):
        self._render, self._example, self._takes_text = render, example, takes_text
        self._as_parts: dict[str, bool] = {}

    def as_parts(self, role: str) -> bool:
        """Return whether the content of a role has to be a list of parts: some templates take a list from the
        user and a string from the others.
        """
        own = not self._takes_text
        if role not in self._as_parts:
            others = role in _BEFORE and not self._writes(role, own) and self._writes(role, not own)
            self._as_parts[role] = own != others
        return self._as_parts[role]

    def _writes(self, role: str, as_parts: bool) -> bool:
        """Whether the template writes the text of a content in this form."""

        def content(text: str, parts: bool) -> str | list[dict]:
            return [{'type': 'text', 'text': text}] if parts else text

        before = [{'role': each, 'content': content('x', not self._takes_text)} for each in _BEFORE[role]]
        asked = {'role': 'user', 'content': content('x', not self._takes_text)}
        try:
            text = self._render([*before, {'role': role, 'content': content(P1, as_parts)}, asked])
        except ValueError:
            return False
        return P1 in text and not any(mark in text for mark in WRITTEN_OUT)

    def goes_by_places(self) -> bool:
        """Return whether the first message is written as the user's and the next as the bot's, whatever their
        roles.
        """
        talk = self._example(('user', P0), ('assistant', P1), ('user', P2))
        if talk is None or talk != self._example(('system', P0), ('user', P1), ('assistant', P2)):
            return False
        after_user, _, rest = talk.partition(P0)[2].partition(P1)
        return after_user != rest.partition(P2)[0]

    def first_is_system(self) -> bool:
        """Return whether the first message is treated as the system prompt, whatever its role."""
        user = self._example(('user', P0), ('user', P1))
        if user is None or user.count(P0) != 1 or user != self._example(('system', P0), ('user', P1)):
            return False
        # what is before the first message is not before the next one of the same role
        talk = self._example(('user', P0), ('assistant', P2), ('user', P1)) or user
        before = talk.partition(P0)[0]
        between = talk.partition(P2 if P2 in talk else P0)[2].partition(P1)[0]
        same = os.path.commonprefix([before[::-1], between[::-1]])
        return bool(between.strip()) and not same.strip()
