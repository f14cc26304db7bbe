"""Requests per second over time as inline SVG, with what was disturbed and when. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from loadtests.scenarios.plan import Second
from loadtests.scenarios.scenario import Mark

WIDTH, HEIGHT = 860, 264
LEFT, RIGHT, TOP, BOTTOM = 72, 20, 40, 44
TITLE = "Requests per second over the run, by how they ended"
MARKS_TOP = 4
TICKS = 4
NAMES_ROWS = 3
"""Rows in which the names of disturbances take turns, so that neighbours do not cover each other."""


@dataclass(frozen=True, slots=True)
class Scale:
    """From seconds and requests to the page."""

    seconds: float
    most: int

    def x(self, at_s: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * min(at_s, self.seconds) / self.seconds, 1)

    def y(self, count: float) -> float:
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * count / self.most, 1)


SERIES: tuple[tuple[str, str, Callable[[Second], int]], ...] = (
    ("passed", "2xx", lambda second: second.passed),
    ("refused", "other statuses", lambda second: second.refused),
    ("lost", "without an answer", lambda second: second.lost),
)


def draw(seconds: Sequence[Second], marks: Sequence[Mark]) -> str:
    """ "" where there is nothing to draw."""
    if not seconds:
        return ""
    most = max(max(of(second) for _, _, of in SERIES) for second in seconds)
    scale = Scale(float(max(second.at for second in seconds) + 1), nice(most))
    parts = [*_grid(scale), *_marks(marks, scale)]
    for name, title, of in SERIES:
        if any(of(second) for second in seconds):
            # Each second is a step: its count holds from its beginning to its end.
            points = " ".join(
                f"{scale.x(second.at + side)},{scale.y(of(second))}" for second in seconds for side in (0, 1)
            )
            parts.append(f'<polyline class="{name}" points="{points}"><title>{title}</title></polyline>')
    box = f'class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{TITLE}"'
    return f"<svg {box}>{''.join(parts)}</svg>"


def legend(seconds: Sequence[Second], marks: Sequence[Mark]) -> str:
    """Each line and band that is drawn, as it is drawn."""
    shown = [(name, title) for name, title, of in SERIES if any(of(second) for second in seconds)]
    keys = [(f'<polyline class="{name}" points="0,5 26,5"/>', title) for name, title in shown]
    if marks and seconds:
        keys.append(('<rect class="mark" width="26" height="10"/>', "disturbance"))
    return "".join(
        f'<span class="key"><svg viewBox="0 0 26 10" aria-hidden="true">{drawn}</svg> {title}</span>'
        for drawn, title in keys
    )


def nice(most: int) -> int:
    """The next number upwards that is divided into ticks without remainder: 4, 8, 20, 40, 80, 200, …"""
    step = TICKS
    while True:
        for factor in (1, 2, 5):
            if step * factor >= most:
                return step * factor
        step *= 10


def _grid(scale: Scale) -> list[str]:
    parts = []
    for tick in range(TICKS + 1):
        count = scale.most * tick // TICKS
        y = scale.y(count)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{count:,}</text>')
    every = max(1, round(scale.seconds / 10))
    for at in range(0, int(scale.seconds) + 1, every):
        parts.append(f'<text x="{scale.x(at)}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{at}</text>')
    middle_x, middle_y = (LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2
    parts.append(f'<text x="{middle_x:.0f}" y="{HEIGHT - 8}" text-anchor="middle">time since the start, s</text>')
    turned = f'x="{-middle_y:.0f}" y="18" transform="rotate(-90)" text-anchor="middle"'
    parts.append(f"<text {turned}>requests per second</text>")
    return parts


def _marks(marks: Sequence[Mark], scale: Scale) -> list[str]:
    parts = []
    for number, mark in enumerate(marks):
        x, width = scale.x(mark.began_s), max(2.0, scale.x(mark.ended_s) - scale.x(mark.began_s))
        row = TOP - 28 + 12 * (number % NAMES_ROWS)
        end = x > WIDTH * 0.7
        anchor = 'text-anchor="end"' if end else ""
        name_x = x - 3 if end else x + width + 3
        box = f'x="{x}" y="{MARKS_TOP}" width="{width:.1f}" height="{HEIGHT - BOTTOM - MARKS_TOP}"'
        parts.append(f'<rect class="mark" {box}/>')
        parts.append(f'<text class="mark" x="{name_x:.1f}" y="{row}" {anchor}>{escape(mark.label)}</text>')
    return parts
