"""Make a page from records: `python -m training.report RUN_DIR_OR_RECORD… [--out report.html]`

The page is self-contained (no scripts, no network) and has a Markdown twin beside it. Every number in it comes
from a record that a program wrote; nothing is typed by hand. `training/reporting/` holds what it is made with.
"""

import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from pipelines.errors import DataError
from pipelines.files import write_atomically
from training.cli import run_program
from training.config import ConfigError
from training.records import read_record, told_apart
from training.reporting.answers import Record, check_same_images
from training.reporting.canvas import on_white
from training.reporting.figures import accuracy_by_cost, accuracy_by_set, accuracy_of_new_sets
from training.reporting.page import page
from training.reporting.pdf import find_browser, print_page
from training.reporting.sections import sections, summary
from training.reporting.source import Source
from training.reporting.tables import COMPARISONS, results
from training.reporting.twin import markdown

_KINDS = "|".join(["results", *COMPARISONS])
_BLOCK = re.compile(rf"(<!-- ({_KINDS}): (.+?) -->\n).*?(<!-- /\2 -->)", re.DOTALL)


@dataclass(kw_only=True)
class Report:
    """Make a page from records."""

    sources: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Run directories that have been evaluated, or record files."""
    split: Literal["test", "val", "train"] = "test"
    """Which sweep of a run directory."""
    out: Path | None = None
    """The page; report.html beside or in the sources by default. Its Markdown twin ends in .md."""
    samples: int = 8
    """Images to show with what each model took them for, for run directories whose data is at hand; 0 for none."""
    pdf: bool = False
    """Print the page as PDF too, beside it; wants Chromium or Chrome."""
    figure: Path | None = None
    """Instead of a page: write a picture to this SVG file."""
    of: Literal["sets", "bands", "networks"] = "sets"
    """What the picture shows: accuracy by channel set; on sets that training knew and on others; or accuracy of
    networks against their depth and cost."""
    update: Path | None = None
    """Instead of a page: make the tables in this Markdown file anew, each between the lines
    <!-- results: RECORD RECORD… --> and <!-- /results -->; records are named relative to the file. Instead of
    results: paired (differences from the first), ratios (to networks trained on one channel set), networks
    (accuracy against depth and cost), seeds (means over runs that differ in their seed), bands."""

    def __post_init__(self) -> None:
        if self.samples < 0:
            raise ConfigError(f"--samples {self.samples} must not be negative")
        if self.figure and self.figure.suffix != ".svg":
            raise ConfigError(f"--figure {self.figure} must end in .svg")
        if self.out and self.out.suffix != ".html":
            raise ConfigError(f"--out {self.out} must end in .html; its twins end in .md and .pdf")


def main(job: Report) -> None:
    """Read the records and write what was asked for."""
    if job.update:
        write_atomically(job.update, updated(job.update))
        print(f"updated {job.update}")
        return
    if not job.sources:
        raise DataError("no run directory given; evaluate one with python -m training.evaluate RUN_DIR")
    records = [read_record(_record_file(source, job.split)) for source in job.sources]
    if not (job.figure and job.of == "bands"):  # which shows records of one model in one row
        records = _told_apart(records, job.sources)
    if job.figure:
        _write_figure(job, records)
    else:
        _write_page(job, records)


def _write_figure(job: Report, records: Sequence[Record]) -> None:
    draw, kinds = _FIGURES[job.of]
    sweeps = [record for record in records if record["kind"] == "sweep"]
    if not sweeps or any(record["kind"] not in kinds for record in records):
        found = ", ".join(dict.fromkeys(record["kind"] for record in records))
        raise DataError(
            f"--of {job.of} draws records of training.evaluate ({' and '.join(kinds)}), not of {found}"
        )
    check_same_images(sweeps)
    job.figure.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(job.figure, on_white(draw(records)))
    print(f"wrote {job.figure}")


def _write_page(job: Report, records: Sequence[Record]) -> None:
    browser = find_browser() if job.pdf else None
    sweeps = [record for record in records if record["kind"] == "sweep"]
    check_same_images(sweeps)
    pairs = zip(records, job.sources, strict=True)
    folders = {record["name"]: source for record, source in pairs if source.is_dir()}
    others = [record for record in records if record["kind"] != "sweep"]
    parts = (_TITLE, summary(sweeps), sections(Source(sweeps, folders, job.samples), others))
    out = job.out or _default_out(job.sources)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, page(*parts))
    write_atomically(out.with_suffix(".md"), markdown(*parts))
    names = [out.with_suffix(".md").name]
    if browser:
        print_page(browser, out, out.with_suffix(".pdf"))
        names.append(out.with_suffix(".pdf").name)
    print(f"wrote {out} and {' and '.join(names)}; open it in a browser")
    for run_dir in [source for source in job.sources if source.is_dir()][:1]:
        print(f"next: python -m training.export {shlex.quote(str(run_dir))}")


_FIGURES = {  # and the kinds of records that they show
    "sets": (accuracy_by_set, ("sweep",)),
    "bands": (accuracy_of_new_sets, ("sweep",)),
    "networks": (accuracy_by_cost, ("sweep", "benchmark networks")),
}
_TITLE = "Any set of channels"


def _told_apart(records: Sequence[Record], sources: Sequence[Path]) -> list[Record]:
    """Records by names of their own: those that share one get that of their folder or file as well.

    A benchmark may be called as the sweep of its first network is.
    """
    named = list(records)
    for kind in {record["kind"] for record in records}:
        places = [i for i, record in enumerate(records) if record["kind"] == kind]
        names = [records[i]["name"] for i in places]
        names = told_apart(names, [sources[i].name if sources[i].is_dir() else sources[i].stem for i in places])
        names = told_apart(names, [str(i + 1) for i in places])
        for i, name in zip(places, names, strict=True):
            named[i] = {**records[i], "name": name}
    return named


def updated(file: Path) -> str:
    """The text of a Markdown file with every table of results made anew from the records it names.

    What the notes of several tables of a kind have in common is said under the first.

    Raises:
        DataError: the file names no records, or one of them cannot be read.
    """
    text = file.read_text()
    if not _BLOCK.search(text):
        raise DataError(
            f"{file}: no place for results; add the lines <!-- results: RECORD… --> and <!-- /results -->"
        )

    first_notes: dict[tuple[str, str], str] = {}

    def block(found: re.Match[str]) -> str:
        sources = [file.parent / name for name in found[3].split()]
        records = [read_record(source) for source in sources]
        strange = [record["kind"] for record in records if record["kind"] != "sweep"]
        if strange and found[2] != "results":
            raise DataError(f"{file}: {found[2]} compares records of training.evaluate, not of {strange[0]}")
        if not strange and found[2] != "bands":  # which shows records of one model in one row
            records = _told_apart(records, sources)
        table, note = results(records, found[2])
        first = first_notes.get((found[2], records[0]["kind"]))
        first_notes.setdefault((found[2], records[0]["kind"]), note)
        return f"{found[1]}{table}\n\n{note if first is None else _beyond(first, note)}\n{found[4]}"

    return _BLOCK.sub(block, text)


def _beyond(first: str, note: str) -> str:
    """What a note says beyond that of the first table of its kind in a document, if it is built alike."""
    known, said = (re.split(r"(?<=\.) ", text) for text in (first, note))
    new = [sentence for sentence in said if sentence not in known]
    if len(new) == len(said) or len(said) != len(known):
        return note
    return " ".join([*new, "All else as under the first such table." if new else "As under the first such table."])


def _record_file(source: Path, split: str) -> Path:
    """Where a source's record lies.

    Raises:
        DataError: there is no such source, or its run was not evaluated on this split.
    """
    if not source.exists():
        raise DataError(f"{source}: no such run directory or record; check the path")
    file = source / f"sweep-{split}.json" if source.is_dir() else source
    if not file.exists():
        flags = "" if split == "test" else f" --split {split}"
        remedy = f"make it with python -m training.evaluate {shlex.quote(str(source))}{flags}"
        raise DataError(f"{file}: no such record; {remedy}")
    return file


def _default_out(sources: Sequence[Path]) -> Path:
    folders = [str((source if source.is_dir() else source.parent).absolute()) for source in sources]
    shared = Path(os.path.commonpath(folders))
    return (shared.relative_to(Path.cwd()) if shared.is_relative_to(Path.cwd()) else shared) / "report.html"


def parse(args: list[str] | None = None) -> Report:
    """The report that the command line describes."""
    return tyro.cli(Report, args=args, prog="python -m training.report")


if __name__ == "__main__":
    run_program(lambda: main(parse(sys.argv[1:])))
