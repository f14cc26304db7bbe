"""Finds the events for which a batch is refused while the others get through, without I/O.

The parts of a batch are sent in order. A part that is refused is divided: around the event that the server blames, so
that three requests do for one bad event, or in the middle. A part of one event that is refused is rejected: the
bisection has done its work on it.
"""

from __future__ import annotations


class Bisection:
    """The parts of ``count`` events that have yet to be sent.

    Take :attr:`part`, send it, then call one of :meth:`accept`, :meth:`divide`, :meth:`reject`; until ``part`` is
    None. However often the server lies about the position, at most ``2 · count`` requests are asked for.
    """

    def __init__(self, count: int) -> None:
        self._parts = [range(count)] if count else []
        self._suspect: range | None = None
        self._believes = True

    @property
    def part(self) -> range | None:
        """Positions of the events to send next, or None when none is left."""
        return self._parts[-1] if self._parts else None

    def accept(self) -> range:
        """The part was accepted. Answers it."""
        part = self._parts.pop()
        if part is self._suspect:
            # The blamed event is valid after all. With such blame the batch would be taken apart one by one.
            self._believes = False
        return part

    def divide(self, blamed: int | None = None) -> None:
        """The part, of several events, was not accepted. ``blamed`` counts from the part's first event."""
        part = self._parts.pop()
        assert len(part) > 1
        if self._believes and blamed is not None and blamed < len(part):
            self._suspect = part[blamed : blamed + 1]
            pieces = [part[:blamed], self._suspect, part[blamed + 1 :]]
        else:
            middle = len(part) // 2
            pieces = [part[:middle], part[middle:]]
        self._parts.extend(piece for piece in reversed(pieces) if piece)

    def reject(self) -> int:
        """The part, of one event, was not accepted. Answers the event's position."""
        part = self._parts.pop()
        assert len(part) == 1
        return part[0]

    def take_rest(self) -> list[range]:
        """The parts that have yet to be sent, in order. Afterwards there are none."""
        parts, self._parts = self._parts[::-1], []
        return parts

    def __repr__(self) -> str:
        return f"Bisection({[(part.start, part.stop) for part in reversed(self._parts)]})"
