"""Sections as Markdown: the same texts and tables, without pictures."""

from collections.abc import Sequence

from training.reporting.blocks import (
    Block,
    Listing,
    Picture,
    Section,
    Table,
    Text,
    markdown_table,
    markdown_text,
)


def markdown(title: str, summary: str, sections: Sequence[Section]) -> str:
    """The whole text."""
    parts = [f"# {markdown_text(title)}", markdown_text(summary)]
    for section in sections:
        parts += [f"## {markdown_text(section.title)}", *map(_block, section.blocks)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _block(block: Block) -> str:
    match block:
        case Table():
            parts = [f"**{markdown_text(block.caption)}**", markdown_table(block.rows), markdown_text(block.note)]
            return "\n\n".join(part for part in parts if part)
        case Picture():
            return f"*{markdown_text(block.caption)}: in the page.*"
        case Listing():
            lines = "\n".join(f"    {line}" for line in block.text.splitlines())
            return f"{markdown_text(block.title)}:\n\n{lines}"
        case Text():
            return markdown_text(block.text)
