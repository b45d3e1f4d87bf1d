"""Pictures as trees of elements: what is put in is escaped when the tree becomes text, whatever it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element, SubElement, tostring

from rose_hpc.report.scale import Point, Scale
from rose_hpc.report.words import clean

WIDTH = 960.0


def add(parent: Element, tag: str, text: str | None = None, /, **attributes: str | float | None) -> Element:
    """Put an element into ``parent``: ``class_`` becomes class, ``_`` a hyphen; None leaves an attribute out."""
    child = SubElement(parent, tag)
    _set(child, attributes)
    if text is not None:
        child.text = clean(text)
    return child


def picture(name: str, title: str, description: str, height: float, width: float = WIDTH) -> Element:
    """An empty picture that readers of screens announce by its title and description.

    Args:
        name: unique in the page.
        title, description: what is seen, in words.
        height, width: of the paper.
    """
    svg = Element("svg")
    labels = f"{name}-title {name}-desc"
    _set(svg, {"viewBox": f"0 0 {width:g} {height:g}", "role": "img", "aria-labelledby": labels, "id": name})
    svg.set("style", f"min-width:{min(width, 640):g}px;max-width:{width * 1.1:g}px")  # words stay of a size to be read
    add(svg, "title", title, id=f"{name}-title")
    add(svg, "desc", description, id=f"{name}-desc")
    return svg


def to_text(svg: Element) -> str:
    """The picture as it stands in a page."""
    return tostring(svg, encoding="unicode")


def line(points: Sequence[Point]) -> str:
    """A path through points."""
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def steps(points: Sequence[Point], end: float) -> str:
    """A path that keeps each point's height until the next one, and the last until ``end``."""
    if not points:
        return ""
    moves = [f"M{points[0][0]:.1f} {points[0][1]:.1f}", *(f"H{x:.1f}V{y:.1f}" for x, y in points[1:])]
    return "".join(moves) + f"H{end:.1f}"


def hint(element: Element, text: str) -> Element:
    """What is shown when the element is pointed at."""
    add(element, "title", text)
    return element


@dataclass(frozen=True)
class Plot:
    """A picture with axes.

    Attributes:
        svg: the picture.
        x, y: where values are on the paper.
    """

    svg: Element
    x: Scale
    y: Scale

    def axes(
        self, across: Sequence[tuple[float, str]], up: Sequence[tuple[float, str]], labels: tuple[str, str]
    ) -> None:
        """Grid lines and the words beside them: (value, word) for each tick, and what the axes are."""
        grid = add(self.svg, "g", class_="grid")
        for value, text in up:
            place = self.y(value)
            add(grid, "line", x1=self.x.start, x2=self.x.end, y1=place, y2=place)
            add(grid, "text", text, x=self.x.start - 8, y=place + 4, class_="end tick-y", data_value=f"{value!r}")
        for value, text in across:
            add(grid, "text", text, x=self.x(value), y=self.y.start + 18, class_="middle tick-x")
        middle = (self.x.start + self.x.end) / 2
        add(grid, "line", class_="axis", x1=self.x.start, x2=self.x.end, y1=self.y.start, y2=self.y.start)
        add(grid, "text", labels[0], x=middle, y=self.y.start + 36, class_="middle label")
        add(grid, "text", labels[1], x=self.x.start - 8, y=self.y.end - 10, class_="label")


def plot(svg: Element, across: Point, up: Point, box: tuple[float, float, float, float]) -> Plot:
    """A plot of the ranges ``across`` and ``up`` in the box (left, top, right, bottom)."""
    left, top, right, bottom = box
    return Plot(svg, Scale(*across, left, right), Scale(*up, bottom, top))


def _set(element: Element, attributes: dict[str, str | float | None]) -> None:
    for key, value in attributes.items():
        if value is not None:
            text = clean(value) if isinstance(value, str) else f"{value:.1f}".removesuffix(".0")
            element.set(key.rstrip("_").replace("_", "-"), text)
