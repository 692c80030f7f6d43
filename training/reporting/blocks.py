"""What a page is made of, however it is written down: sections of texts, tables and pictures."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

Rows = list[list[str]]
_BEGINS_MARKUP = re.compile(r"<(?=[A-Za-z/!?])|\[|\|")


@dataclass(frozen=True)
class Cell:
    """A cell of a table that is more than text.

    Attributes:
        text: what it says; says everything that matters, since Markdown and screen readers have only this.
        shade: where it stands on the scale of the table's colours, 0 … 1; None is without colour.
        right: whether it tells of something right; None of neither.
        picture: a JPEG file, shown before the text.
    """

    text: str
    shade: float | None = None
    right: bool | None = None
    picture: bytes | None = None


@dataclass(frozen=True)
class Table:
    """Rows of text or cells, the first of them the head; the first cell of a row says what it is about."""

    caption: str
    rows: Sequence[Sequence[str | Cell]]
    note: str = ""


@dataclass(frozen=True)
class Mark:
    """How a model is drawn in a picture: colour, as #rrggbb, and a symbol, for those who cannot tell colours."""

    name: str
    colour: str
    symbol: str


@dataclass(frozen=True)
class Panel:
    """One diagram.

    Attributes:
        label: what it shows, in words.
        svg: the diagram.
        key: who is drawn how, where other panels show others.
    """

    label: str
    svg: str
    key: Sequence[Mark] = ()


@dataclass(frozen=True)
class Picture:
    """Panels side by side where there is room, else one below the other.

    Attributes:
        caption: what all of them show.
        panels: the diagrams.
        key: who is drawn how in all of them.
    """

    caption: str
    panels: Sequence[Panel]
    key: Sequence[Mark] = ()


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Listing:
    """A text of many lines, to be unfolded."""

    title: str
    text: str


Block = Table | Picture | Text | Listing


@dataclass(frozen=True)
class Section:
    """A part of a page that the contents list."""

    title: str
    blocks: list[Block] = field(default_factory=list)


def shaded(rows: Rows, values: Sequence[Sequence[float | None]]) -> list[list[str | Cell]]:
    """A table whose cells, but for the head and the first column, are coloured by values, from least to most.

    Args:
        rows: with a head and a first column.
        values: of the other cells; None is left without colour.
    """
    known = [value for row in values for value in row if value is not None]
    least, span = min(known, default=0.0), max(known, default=0.0) - min(known, default=0.0)

    def cell(text: str, value: float | None) -> Cell:
        return Cell(text, None if value is None else (value - least) / span if span else 0.5)

    body = [
        [name, *(cell(*pair) for pair in zip(cells, of_row, strict=True))]
        for (name, *cells), of_row in zip(rows[1:], values, strict=True)
    ]
    return [list(rows[0]), *body]


def text_of(cell: str | Cell) -> str:
    """What a cell says."""
    return cell if isinstance(cell, str) else cell.text


def markdown_table(rows: Sequence[Sequence[str | Cell]]) -> str:
    """A table as Markdown."""
    lines = ["| " + " | ".join(markdown_text(text_of(cell)) for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


def markdown_text(text: str) -> str:
    """A text that stays within its line and its cell, and begins no tag and no link."""
    return _BEGINS_MARKUP.sub(r"\\\g<0>", " ".join(text.splitlines()))
