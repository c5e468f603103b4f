"""A piece of a reply's text, as the engine hands it out."""

from __future__ import annotations

from typing import NamedTuple


class TextDelta(NamedTuple):
    """The text by which a reply grew.

    Attributes:
        text: Final text, not empty.
        num_tokens: Ids of the reply, from the start, whose text has been given with it; the last of them ends
            a character.
        exact: Whether those ids spell exactly the text given so far. A token may be given in part, if a stop
            string might begin in it.
        reasoning: Whether the text is reasoning, between the model's marks.
        call: Whether the text belongs to calls of tools. Then it is neither shown nor spoken.
    """

    text: str
    num_tokens: int
    exact: bool = True
    reasoning: bool = False
    call: bool = False
