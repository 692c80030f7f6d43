"""Fetch the real data set and unpack it: `python -m pipelines.download [OUT] [--url URL] [--archive ZIP]`.

The zip lands beside OUT, and a rerun goes on where the last one stopped. OUT appears only when all of it is
unpacked and checked.
"""

import contextlib
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from pipelines.cli import run_program
from pipelines.errors import DataError
from pipelines.manifest import LIST_NAMES, find_list
from pipelines.transfer import check_sha256, download, name_of
from pipelines.unpack import GIB, is_unpacked, unpack

URL = "https://cchsu.info/files/images.zip"


@dataclass(kw_only=True)
class Download:
    """Download the data set, going on where an earlier attempt stopped, and unpack it safely."""

    out: tyro.conf.Positional[Path] = Path("data/mini-imagenet")
    """Folder to make."""
    url: str = URL
    """http or https address of the zip."""
    archive: Path | None = None
    """A zip on this machine; skips the download."""
    sha256: str | None = None
    """Hex digest that the zip must have."""
    max_gib: int = 64
    """Refuse to unpack more than this, in GiB."""
    retries: int = 8
    """How often to take up a dropped connection again."""


def main(job: Download) -> None:
    """Fetch, unpack, and say where the lists are."""
    size = job.max_gib * GIB
    out = fetch_dataset(
        job.out, url=job.url, archive=job.archive, sha256=job.sha256, max_bytes=size, retries=job.retries
    )
    print(f"unpacked: {out}")
    lists = find_lists(out)
    if lists is None:
        print(f"the lists are missing: put train.txt, val.txt and test.txt (rows 'PATH LABEL') into {out}, then")
    print(f"next: python -m training.train mini-imagenet --data.path {shlex.quote(str(lists or out))}")


def fetch_dataset(
    out: Path,
    *,
    url: str = URL,
    archive: Path | None = None,
    sha256: str | None = None,
    max_bytes: int = 64 * GIB,
    retries: int = 8,
) -> Path:
    """Download a zip, unless `archive` is one already here, and unpack it as the folder `out`.

    Args:
        out: the folder to make; one that an archive of the same name was unpacked into is reused.
        url: http or https address of the zip.
        archive: a zip on this machine, used instead of the download.
        sha256: hex digest the zip must have; unchecked if None.
        max_bytes: refuse an archive that unpacks to more.
        retries: how often a dropped connection is taken up again.

    Raises:
        DataError: `out` holds something else, or the zip cannot be fetched, is not the right one, or is unsafe.
    """
    source = archive or out.parent / name_of(url)
    if is_unpacked(out, source.name):
        return out
    try:
        if archive is None:
            source = download(url, source, sha256=sha256, retries=retries)
        elif not archive.is_file():
            raise DataError(f"{archive}: no such file; give the zip that you copied here with --archive")
        else:
            check_sha256(archive, sha256)
        return unpack(source, out, max_bytes)
    except OSError as problem:
        raise DataError(f"{out}: {problem}; check the disk and the rights on {out.parent}") from problem


def find_lists(out: Path) -> Path | None:
    """The folder with the lists of all three splits: `out` or one right below it."""
    for folder in (out, *sorted(path for path in out.iterdir() if path.is_dir())):
        with contextlib.suppress(DataError):
            for split in LIST_NAMES:
                find_list(folder, split)
            return folder
    return None


def parse(args: list[str] | None = None) -> Download:
    """The download that the command line describes."""
    return tyro.cli(Download, args=args, prog="python -m pipelines.download")


if __name__ == "__main__":
    run_program(lambda: main(parse(sys.argv[1:])))
