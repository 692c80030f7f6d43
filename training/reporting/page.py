"""Sections as one HTML page that needs nothing beside it: no network, no scripts, no other files."""

import base64
import re
from collections.abc import Sequence
from html import escape
from itertools import count

from training.reporting.blocks import (
    Block,
    Cell,
    Listing,
    Mark,
    Panel,
    Picture,
    Section,
    Table,
    Text,
    text_of,
)
from training.reporting.canvas import colour_pair, in_page
from training.reporting.page_style import STYLE

_VARIABLES = {"#0072b2": "--blue", "#56b4e9": "--sky"}  # colours that a dark page has other shades of


def page(title: str, summary: str, sections: Sequence[Section]) -> str:
    """The whole page."""
    writer = _Writer()
    anchors = {section.title: _anchor(section.title) for section in sections}
    contents = "\n".join(f'<li><a href="#{anchors[s.title]}">{escape(s.title)}</a></li>' for s in sections)
    body = "\n".join(writer.section(section, anchors[section.title]) for section in sections)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{escape(title)}</title>
<style>
{STYLE}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
<p>{escape(summary)}</p>
</header>
<nav aria-label="Contents">
<ol>
{contents}
</ol>
</nav>
<main>
{body}
</main>
</body>
</html>
"""


def _anchor(title: str) -> str:
    return re.sub(r"\W+", "-", title.lower())


class _Writer:
    """Writes blocks as HTML, and sees to it that no two pictures share an id."""

    def __init__(self) -> None:
        self._pictures = count(1)

    def section(self, section: Section, anchor: str) -> str:
        blocks = "\n".join(self.block(block) for block in section.blocks)
        return f'<section id="{anchor}">\n<h2>{escape(section.title)}</h2>\n{blocks}\n</section>'

    def block(self, block: Block) -> str:
        match block:
            case Table():
                return _table(block)
            case Picture():
                return self._picture(block)
            case Listing():
                return _listing(block)
            case Text():
                return f"<p>{escape(block.text)}</p>"

    def _picture(self, picture: Picture) -> str:
        panels = "\n".join(map(self._panel, picture.panels))
        caption = f"<figcaption>{escape(picture.caption)}</figcaption>\n{_key(picture.key)}"
        width = max(float(re.search(r'width="([\d.]+)pt"', panel.svg)[1]) for panel in picture.panels)
        short = ' class="short"' if len(picture.panels) <= _FEW else ""
        grid = f'<div class="panels" style="--width: {width:.0f}px">\n{panels}\n</div>'
        return f"<figure{short}>\n{caption}{grid}\n</figure>"

    def _panel(self, panel: Panel) -> str:
        drawn = in_page(panel.svg, f"p{next(self._pictures)}-", escape(panel.label))
        for colour, variable in _VARIABLES.items():
            drawn = drawn.replace(f": {colour}", f": var({variable})")
        return f"<div>{_key(panel.key)}{drawn}</div>"


def _key(marks: Sequence[Mark]) -> str:
    return f'<ul class="key">{"".join(map(_mark, marks))}</ul>\n' if marks else ""


def _mark(mark: Mark) -> str:
    variable = _VARIABLES.get(mark.colour.lower())
    colour = f"var({variable})" if variable else mark.colour
    return f'<li><span style="color: {colour}" aria-hidden="true">{mark.symbol}</span> {escape(mark.name)}</li>'


def _table(table: Table) -> str:
    numeric = [all(map(_is_number, column)) for column in zip(*table.rows[1:], strict=True)]
    head = "".join(
        f'<th scope="col"{_NUMBER if number else ""}>{_breakable(text_of(cell))}</th>'
        for cell, number in zip(table.rows[0], numeric, strict=True)
    )
    body = "\n".join(_row(row, numeric) for row in table.rows[1:])
    short = " short" if len(table.rows) <= _SHORT else ""
    note = f'\n<p class="note">{escape(table.note)}</p>' if table.note else ""
    return (
        f'<div class="box{short}" role="region" aria-label="{escape(table.caption)}" tabindex="0">\n'
        f"<table>\n<caption><span>{escape(table.caption)}</span></caption>\n<thead><tr>{head}</tr></thead>\n"
        f"<tbody>\n{body}\n</tbody>\n</table>\n</div>{note}"
    )


_NUMBER = ' class="number"'
_FEW = 8  # panels that are kept on one sheet of paper
_SHORT = 16  # rows of a table that is kept on one sheet of paper
_LONG = 32  # letters of a text that is worth a wide column


def _is_number(cell: str | Cell) -> bool:
    return bool(re.match(r"[+−-]?[\d.]+|–$", text_of(cell)))


def _breakable(text: str) -> str:
    """A head, which may be the name of a setting."""
    return escape(text) if " " in text else re.sub(r"([._])(?=\w)", r"\1<wbr>", escape(text))


def _row(row: Sequence[str | Cell], numeric: Sequence[bool]) -> str:
    cells = "".join(
        f"<td{_look(cell, number)}>{_content(cell)}</td>"
        for cell, number in zip(row[1:], numeric[1:], strict=True)
    )
    long = ' class="long"' if len(text_of(row[0])) > _LONG else ""
    return f'<tr><th scope="row"{long}>{_content(row[0])}</th>{cells}</tr>'


def _look(cell: str | Cell, number: bool) -> str:
    """Attributes that colour or set a cell."""
    if isinstance(cell, Cell) and cell.shade is not None:
        behind, ink = colour_pair(cell.shade)
        return f' class="shade" style="background: {behind}; color: {ink}"'
    if isinstance(cell, Cell) and cell.right is not None:
        return f' class="{"right" if cell.right else "wrong"}"'
    if number:
        return _NUMBER
    return ' class="long"' if len(text_of(cell)) > _LONG else ""


def _content(cell: str | Cell) -> str:
    if isinstance(cell, str):
        return _quiet_brackets(cell)
    if cell.picture is None:
        return _quiet_brackets(cell.text)
    data = base64.b64encode(cell.picture).decode()
    label = escape(f"image of class {cell.text}")
    return f'<img src="data:image/jpeg;base64,{data}" alt="{label}" width="64" height="64"> {escape(cell.text)}'


def _quiet_brackets(text: str) -> str:
    """What follows a number in brackets, its interval or the like, stands back and is not torn apart."""
    found = re.fullmatch(r"([+−-]?[\d.]+) (\([^()]*\))", text)
    return f"{found[1]} <small>{escape(found[2])}</small>" if found else escape(text)


def _listing(listing: Listing) -> str:
    return f"<details>\n<summary>{escape(listing.title)}</summary>\n<pre>{escape(listing.text)}</pre>\n</details>"
