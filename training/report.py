"""Make a page from records: `python -m training.report RUN_DIR_OR_RECORD… [--out report.html]`

The page is self-contained (no scripts, no network) and has a Markdown twin beside it. Every number in it comes
from a record that `training.evaluate` wrote; nothing is typed by hand.
"""

import html
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from pipelines.errors import DataError
from pipelines.files import write_atomically
from training.cli import run_program
from training.figures import accuracy_by_set, in_page_colour, on_white, training_curves
from training.records import read_record
from training.tables import (
    Rows,
    accuracy_note,
    accuracy_rows,
    cost_rows,
    markdown_table,
    provenance_rows,
    results,
)

_BLOCK = re.compile(r"(<!-- (results|paired|ratios|networks|bands): (.+?) -->\n).*?(<!-- /\2 -->)", re.DOTALL)


@dataclass(kw_only=True)
class Report:
    """Make a page from records."""

    sources: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Run directories that have been evaluated, or record files."""
    split: Literal["test", "val", "train"] = "test"
    """Which sweep of a run directory."""
    out: Path | None = None
    """The page; report.html beside or in the sources by default. Its Markdown twin ends in .md."""
    figure: Path | None = None
    """Instead of a page: write the picture of accuracy by channel set to this SVG file."""
    update: Path | None = None
    """Instead of a page: make the tables in this Markdown file anew, each between the lines
    <!-- results: RECORD RECORD… --> and <!-- /results -->; records are named relative to the file. Instead of
    results: paired (differences from the first), ratios (to networks trained on one channel set), networks
    (accuracy against depth and cost), bands."""


def main(job: Report) -> None:
    """Read the records and write what was asked for."""
    if job.update:
        write_atomically(job.update, updated(job.update))
        print(f"updated {job.update}")
        return
    if not job.sources:
        raise DataError("no run directory given; evaluate one with python -m training.evaluate RUN_DIR")
    records = [read_record(_record_file(source, job.split)) for source in job.sources]
    if job.figure:
        write_atomically(job.figure, on_white(accuracy_by_set(records)))
        print(f"wrote {job.figure}")
        return
    out = job.out or _default_out(job.sources)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, page(records))
    write_atomically(out.with_suffix(".md"), markdown(records))
    print(f"wrote {out} and {out.with_suffix('.md').name}; open it in a browser")


def page(records: Sequence[dict[str, Any]]) -> str:
    """The report as one HTML page."""
    body = [
        "<h1>Any set of channels</h1>",
        f"<p>{html.escape(_summary(records))}</p>",
        "<h2>Accuracy by channel set</h2>",
        f"<figure>{in_page_colour(accuracy_by_set(records))}</figure>",
        _html_table(accuracy_rows(records)),
        f"<p class=note>{html.escape(accuracy_note(records))}</p>",
        "<h2>Training</h2>",
        f"<figure>{in_page_colour(training_curves(records))}</figure>",
        "<h2>Cost at inference</h2>",
        _html_table(cost_rows(records)),
        "<h2>Where these numbers come from</h2>",
        _html_table(provenance_rows(records)),
    ]
    return _PAGE.replace("BODY", "\n".join(body))


def markdown(records: Sequence[dict[str, Any]]) -> str:
    """The report as Markdown, without pictures."""
    parts = [
        _summary(records),
        markdown_table(accuracy_rows(records)),
        accuracy_note(records),
        markdown_table(cost_rows(records)),
        markdown_table(provenance_rows(records)),
    ]
    return "\n\n".join(parts) + "\n"


def updated(file: Path) -> str:
    """The text of a Markdown file with every table of results made anew from the records it names.

    Raises:
        DataError: the file names no records, or one of them cannot be read.
    """
    text = file.read_text()
    if not _BLOCK.search(text):
        raise DataError(
            f"{file}: no place for results; add the lines <!-- results: RECORD… --> and <!-- /results -->"
        )

    def block(found: re.Match[str]) -> str:
        records = [read_record(file.parent / name) for name in found[3].split()]
        return f"{found[1]}{results(records, found[2])}\n{found[4]}"

    return _BLOCK.sub(block, text)


def _summary(records: Sequence[dict[str, Any]]) -> str:
    parts = []
    for record in records:
        scores = list(record["scores"].items())
        name, worst = min(scores, key=lambda item: item[1]["accuracy"])
        parts.append(
            f"{record['name']} ({record['recipe']['model']['stem']} {record['recipe']['model']['body']}): "
            f"{100 * scores[0][1]['accuracy']:.1f} % on {scores[0][0]}, "
            f"at worst {100 * worst['accuracy']:.1f} % ({name})"
        )
    return "; ".join(parts) + "."


def _record_file(source: Path, split: str) -> Path:
    return source / f"sweep-{split}.json" if source.is_dir() else source


def _default_out(sources: Sequence[Path]) -> Path:
    folders = [str((source if source.is_dir() else source.parent).absolute()) for source in sources]
    return Path(os.path.commonpath(folders)) / "report.html"


def _html_table(rows: Rows) -> str:
    def line(cells: list[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "\n".join(line(row, "td") for row in rows[1:])
    return f"<div class=wide><table>\n<thead>{line(rows[0], 'th')}</thead>\n<tbody>{body}</tbody></table></div>"


_PAGE = """<!doctype html>
<html lang=en>
<meta charset=utf-8>
<meta name=viewport content="width=device-width, initial-scale=1">
<title>Anychannel: accuracy by channel set</title>
<style>
:root { color-scheme: light dark; --line: #8884; --quiet: #8888; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { line-height: 1.2; } h2 { margin-top: 2.2rem; }
figure { margin: 1rem 0; } figure svg { width: 100%; height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
td:first-child { white-space: nowrap; } th { border-bottom: 2px solid var(--quiet); }
.note { font-size: .85rem; }
@media print { body { margin: 0; max-width: none; } .wide { overflow: visible; } }
</style>
<body>
BODY
</body>
</html>
"""


def parse(args: list[str] | None = None) -> Report:
    """The report that the command line describes."""
    return tyro.cli(Report, args=args, prog="python -m training.report")


if __name__ == "__main__":
    run_program(lambda: main(parse(sys.argv[1:])))
