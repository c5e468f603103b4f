"""Positions of the entries of one sequence: they differ from the entries' numbers after a picture."""

from __future__ import annotations


class Positions:
    """Positions of one sequence's entries on the model's position axis: one per entry, except for spans with
    their own positions.
    """

    def __init__(self):
        self.length = 0
        self.next = 0
        self.spans: list[tuple[int, int, int, int]] = []
        """(start, end) in entries and (start, end) in positions."""

    def append(self, n: int, advance: int | None = None, whole: bool = False) -> None:
        """Count n entries that take `advance` positions.

        Args:
            n: Number of entries.
            advance: Number of positions; None for n.
            whole: They are a span that cannot be cut.
        """
        advance = n if advance is None else advance
        if whole or advance != n:
            self.spans.append((self.length, self.length + n, self.next, self.next + advance))
        self.length += n
        self.next += advance

    def trim(self, n: int) -> int:
        """Keep n entries, or fewer if n is inside a span; return how many."""
        if n >= self.length:
            return self.length
        while self.spans and self.spans[-1][1] > n:
            start, _, position, _ = self.spans.pop()
            if start < n:
                n = start
        end, position = (self.spans[-1][1], self.spans[-1][3]) if self.spans else (0, 0)
        self.length, self.next = n, position + n - end
        return n

    def trim_by_position(self, n: int) -> int:
        """Keep n entries, or fewer: none that has the position of the first entry that goes.

        The pieces of a picture on several axes share one position, so a runtime that removes by position
        cannot cut between them.
        """
        self.trim(n)
        while self.spans and self.spans[-1][1] == self.length and self.spans[-1][2] == self.next:
            self.trim(self.length - 1)
        return self.length

    def duplicate(self) -> Positions:
        """Return an independent copy."""
        return Positions.of(self.to_list())

    def to_list(self) -> list[int]:
        """Return all of it as integers, for `of`."""
        return [self.length, self.next, *(value for span in self.spans for value in span)]

    @staticmethod
    def of(values: list[int]) -> Positions:
        """Return the positions that `to_list` was called on."""
        positions = Positions()
        positions.length, positions.next, *rest = values
        positions.spans = [(rest[i], rest[i + 1], rest[i + 2], rest[i + 3]) for i in range(0, len(rest), 4)]
        return positions
