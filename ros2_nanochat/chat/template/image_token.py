"""Finds what an image replaces in the text that a template writes for it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ros2_nanochat.chat.model import ImageEncoder
from ros2_nanochat.chat.template.markup import SpecialFinder

_TOKEN = re.compile(r'image|img|pad', re.IGNORECASE)
_EDGE = re.compile(r'start|end|begin|break|newline|vision_', re.IGNORECASE)


def find_image_token(
    markers: Sequence[str], finder: SpecialFinder, vision: ImageEncoder | None
) -> str | None:
    """Return the text that an image replaces; None if the template takes no images.

    Args:
        markers: What the template may write for an image.
        finder: Finds the model's special tokens.
        vision: The model's vision encoder. What its images contain as markup is replaced with the token.
    """
    if not markers:
        return None
    marker = max(markers, key=lambda marker: len(list(finder.find(marker))))
    known = None if vision is None else vision.image_token
    token = known if known and any(known in each for each in markers) else _guess(marker, finder)
    return token if vision is None else _with_markup(token, marker, vision.image_markup)


def _guess(marker: str, finder: SpecialFinder) -> str:
    specials = [token.text for _, _, token in finder.find(marker)]
    likely = [text for text in specials if _TOKEN.search(text) and not _EDGE.search(text)]
    return (likely or [text for text in specials if _TOKEN.search(text)] or [marker.strip()])[0]


def _with_markup(token: str, marker: str, markup: tuple[str, str]) -> str:
    """Return the part of a template's marker that an image replaces: its token, and what the image's own
    markup repeats.
    """
    at = marker.find(token)
    if at < 0:
        return token
    start, end = at, at + len(token)
    before, after = (text.strip() for text in markup)
    if before and (found := marker.rfind(before, 0, end)) >= 0:
        start = min(start, found)
    if after and (found := marker.find(after, start)) >= 0:
        end = max(end, found + len(after))
    if marker[:start].endswith('(') and marker[end:].startswith(')'):  # MiniCPM-V: (<image>./</image>)
        start, end = start - 1, end + 1
    return marker[start:end]
