"""Fetch the real data set and unpack it: `python -m pipelines.download [OUT] [--url URL] [--archive ZIP]`.

The zip lands beside OUT. While it is incomplete it is called NAME.part, and NAME.part.source says which version
of which file it is the beginning of, so that a rerun goes on where the last one stopped. OUT appears only when
all of it is unpacked and checked.
"""

import argparse
import contextlib
import hashlib
import http.client
import json
import math
import re
import shlex
import shutil
import stat
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from urllib import error, request
from urllib.parse import urlsplit

from pipelines.errors import DataError
from pipelines.manifest import LIST_NAMES, find_list
from pipelines.progress import track

URL = "https://cchsu.info/files/images.zip"
MARKER = ".download.json"  # written into OUT; says which archive it came from
GIB = 1 << 30
CHUNK = 1 << 20  # bytes: 1 MiB
TIMEOUT_S = 60
TRANSIENT = {408, 425, 429, 500, 502, 503, 504}  # HTTP statuses that a later attempt may not meet
DROPPED = (error.URLError, ConnectionError, TimeoutError, http.client.HTTPException)


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
    source = archive or out.parent / _file_name(url)
    if _is_unpacked(out, source.name):
        return out
    try:
        if archive is None:
            source = download(url, source, sha256=sha256, retries=retries)
        elif not archive.is_file():
            raise DataError(f"{archive}: no such file; give the zip that you copied here with --archive")
        else:
            _check_sha256(archive, sha256)
        return unpack(source, out, max_bytes)
    except OSError as problem:
        raise DataError(f"{out}: {problem}; check the disk and the rights on {out.parent}") from problem


def _file_name(url: str) -> str:
    """The last part of the path; DataError where the URL is none that can be downloaded."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable or not re.fullmatch("[!-~]+", url):  # urllib takes printable ASCII only
        raise DataError(f"{url!r}: not an http or https address; for a zip on this machine use --archive FILE")
    name = PurePosixPath(parts.path).name
    return name if name.strip(".") else "archive.zip"


def _is_unpacked(out: Path, archive_name: str) -> bool:
    """Whether `out` is complete (it only ever appears complete); False where there is nothing yet."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        if json.loads((out / MARKER).read_text())["archive"] == archive_name:
            return True
    raise DataError(f"{out}: exists, but was not unpacked from {archive_name}; choose another OUT or remove it")


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"{folder}: needs {needed / GIB:.1f} GiB, but only {free / GIB:.1f} are free; "
            "make room or choose another OUT"
        )


# --- downloading ---


def download(
    url: str,
    target: Path,
    *,
    sha256: str | None = None,
    retries: int = 8,
    wait: Callable[[float], None] = time.sleep,
) -> Path:
    """Download the zip at `url` to `target`, going on from an earlier attempt; reuse `target` if it is there.

    Args:
        url, target, sha256, retries: as for `fetch_dataset`.
        wait: called with the seconds to pass before each retry: 1, 2, 4, … up to 60.

    Raises:
        DataError: the file cannot be had, or is not a zip with that checksum.
    """
    _file_name(url)
    if target.exists():
        _check_sha256(target, sha256)
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = Part(url, target.with_name(target.name + ".part"))
    _fetch_with_retries(part, target, max(retries, 0), wait)
    if not zipfile.is_zipfile(part.path):
        part.discard()
        raise DataError(f"{url}: what came is not a whole zip file, and was deleted; check the address")
    _check_sha256(part.path, sha256)
    part.path.replace(target)
    part.discard()
    return target


def _check_sha256(file: Path, expected: str | None) -> None:
    if expected is None:
        return
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != expected.strip().lower():
        raise DataError(f"{file}: its SHA-256 is {found}; correct --sha256, or delete the file and rerun")


class Part:
    """A partial download, and the version of the remote file that it is the beginning of."""

    def __init__(self, url: str, path: Path):
        self.url = url
        self.path = path
        self._source = path.with_name(path.name + ".source")

    @property
    def validator(self) -> str | None:
        """ETag or date of the remote file; None if unknown, and then the part is of no use."""
        lines = self._source.read_text().splitlines() if self._source.exists() and self.path.exists() else []
        return lines[1] if len(lines) == 2 and lines[0] == self.url else None

    @property
    def size(self) -> int:
        """Bytes that a new attempt need not fetch again."""
        return self.path.stat().st_size if self.validator else 0

    def restart(self, validator: str | None) -> None:
        """Begin anew. The old bytes go first, lest a crash leave them under the new validator."""
        self.path.write_bytes(b"")
        self._source.write_text(f"{self.url}\n{validator}\n" if validator else "")

    def discard(self) -> None:
        """Delete what is left of the part."""
        self.path.unlink(missing_ok=True)
        self._source.unlink(missing_ok=True)


def _fetch_with_retries(part: Part, target: Path, retries: int, wait: Callable[[float], None]) -> None:
    for attempt in range(retries + 1):
        try:
            return _fetch(part)
        except DROPPED as problem:
            reason = _reason(problem)
            if isinstance(problem, error.HTTPError) and problem.code not in TRANSIENT:
                raise DataError(f"{part.url}: the server says {reason}; check the address (--url)") from None
        if attempt < retries:
            pause = min(60.0, 2.0**attempt)
            print(f"{reason}; retry {attempt + 1} of {retries} in {pause:.0f} s", file=sys.stderr, flush=True)
            wait(pause)
    raise DataError(
        f"{part.url}: {reason}; rerun to go on from {part.size:,} bytes; "
        f"no network? copy the zip by hand to {target} and rerun, or give it with --archive FILE"
    )


def _reason(problem: Exception) -> str:
    if isinstance(problem, error.HTTPError):
        return f"{problem.code} {problem.reason}"
    return str(getattr(problem, "reason", "") or problem or type(problem).__name__)


def _fetch(part: Part) -> None:
    """Fetch what is missing from the part, in one attempt; raises one of DROPPED if that does not get it all."""
    offset = part.size
    headers = {"User-Agent": "anychannel", "Accept-Encoding": "identity"}
    if offset:
        headers |= {"Range": f"bytes={offset}-", "If-Range": part.validator}
    try:
        response = _opener().open(request.Request(part.url, headers=headers), timeout=TIMEOUT_S)
    except error.HTTPError as problem:
        if problem.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        if _total_size(problem.headers) == offset:
            return  # nothing is missing: the last run stopped just before the end
        part.discard()
        raise ConnectionError("the remote file is shorter than the part of it here") from None
    with response:
        total = _begin(part, response, offset)
        missing = None if total is None else total - part.size
        _check_space(part.path.parent, missing or 0)
        with part.path.open("ab") as file:
            for chunk in _with_speed(_chunks(response), missing, part.path.stem):
                file.write(chunk)
            size = file.tell()
    if total is not None and size != total:
        if size > total:
            part.discard()
        raise ConnectionError(f"the connection closed after {size:,} of {total:,} bytes")


def _opener() -> request.OpenerDirector:
    """Like urllib's default, but without ftp, file and data, which a redirect could lead to."""
    opener = request.OpenerDirector()
    for handler in (
        request.ProxyHandler,
        request.HTTPHandler,
        request.HTTPSHandler,
        request.HTTPRedirectHandler,
        request.HTTPErrorProcessor,
        request.HTTPDefaultErrorHandler,
        request.UnknownHandler,
    ):
        opener.add_handler(handler())
    return opener


def _begin(part: Part, response: http.client.HTTPResponse, offset: int) -> int | None:
    """Decide whether the response continues the part or replaces it; return the whole file's size in bytes."""
    validator = _validator(response.headers)
    if response.status != http.HTTPStatus.PARTIAL_CONTENT:
        part.restart(validator)
        length = response.headers.get("Content-Length")
        return int(length) if length and length.isdecimal() else None
    start = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    # Not every server heeds If-Range: look again whether this is the version that the part is of.
    if not start or int(start[1]) != offset or validator not in (None, part.validator):
        part.discard()
        raise ConnectionError("the remote file has changed")
    return _total_size(response.headers)


def _validator(headers: http.client.HTTPMessage) -> str | None:
    etag = headers.get("ETag")
    # A weak ETag does not promise the same bytes, and If-Range may not carry one.
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")


def _total_size(headers: http.client.HTTPMessage) -> int | None:
    match = re.search(r"/(\d+)$", headers.get("Content-Range", ""))
    return int(match[1]) if match else None


def _chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """Yield the body; whatever the network does wrong is a ConnectionError, unlike trouble with the disk."""
    try:
        while chunk := response.read(CHUNK):
            yield chunk
    except (OSError, http.client.HTTPException) as problem:
        raise ConnectionError(_reason(problem)) from problem


def _with_speed(chunks: Iterator[bytes], missing: int | None, name: str) -> Iterator[bytes]:
    """Pass chunks through, and report on stderr how fast they come and how long the rest takes, if that is known.

    `missing` is the number of bytes to come, None if the server does not tell.
    """
    start, received = time.monotonic(), 0

    def counted() -> Iterator[bytes]:
        nonlocal received
        for chunk in chunks:
            received += len(chunk)
            yield chunk

    def what() -> str:
        speed = received / max(time.monotonic() - start, 1e-9)
        return f"{name} at {speed / 1e6:.1f} MB/s, MiB"

    size = "unknown size" if missing is None else f"{missing / 1e6:,.1f} MB"
    print(f"downloading {name}: {size} to go", file=sys.stderr, flush=True)
    return track(counted(), math.ceil((missing or 0) / CHUNK), what, quiet=missing is None)


# --- unpacking ---


def unpack(archive: Path, out: Path, max_bytes: int = 64 * GIB) -> Path:
    """Unpack a zip as the folder `out`, which appears only once everything is there and its CRCs are right.

    Raises:
        DataError: the zip is damaged, unpacks to more than `max_bytes` or the free disk, or an entry is unsafe.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with (
            zipfile.ZipFile(archive) as file,
            tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch,
        ):
            entries = _safe_entries(archive, file.infolist())
            total = sum(entry.file_size for entry in entries.values())
            if total > max_bytes:
                raise DataError(
                    f"{archive}: unpacks to {total / GIB:.1f} GiB, over the limit of {max_bytes / GIB:g}; "
                    "if you trust it, raise --max-gib"
                )
            _check_space(out.parent, total)
            root = Path(scratch, "root")
            root.mkdir()
            _extract(file, entries, root)
            (root / MARKER).write_text(json.dumps({"archive": archive.name, "files": len(entries)}) + "\n")
            root.rename(out)
    except (zipfile.BadZipFile, UnicodeDecodeError, NotImplementedError) as problem:
        raise DataError(f"{archive}: damaged zip ({problem}); delete it and fetch it again") from problem
    return out


def _safe_entries(archive: Path, infos: Sequence[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
    """Map the files' relative POSIX paths to their entries; folders need none of their own."""
    entries, seen = {}, set()
    for info in infos:
        path = PureWindowsPath(info.filename)  # splits at / and \, and knows drives
        problem = _problem(info, path)
        if not problem and not info.filename.endswith("/"):
            folded = path.as_posix().casefold()
            problem = "is there twice (upper and lower case are the same here)" if folded in seen else None
            seen.add(folded)
            entries[path.as_posix()] = info
        if problem:
            raise DataError(f"{archive}: entry {info.filename!r} {problem}; get the zip from a source you trust")
    return entries


def _problem(info: zipfile.ZipInfo, path: PureWindowsPath) -> str | None:
    """What makes an entry unsafe to unpack, if anything."""
    kind = stat.S_IFMT(info.external_attr >> 16)  # zero where the zip was not made on Unix
    if path.drive or path.root or ".." in path.parts or info.filename in ("", "."):
        return "would land outside the folder"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a special file"
    if info.flag_bits & 0x1:
        return "is encrypted"
    return None


def _extract(file: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo], root: Path) -> None:
    for path, info in track(entries.items(), len(entries), f"unpacking {file.filename}"):
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as stream:  # "x": never over another entry
            stream.writelines(_contents(file, info))


def _contents(file: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[bytes]:
    """Yield an entry's bytes, at most as many as it declares; BadZipFile if they do not match its CRC."""
    try:
        with file.open(info) as source:
            while chunk := source.read(CHUNK):
                yield chunk
    except Exception as problem:  # damaged data raises what the decompressors and zipfile happen to meet
        raise zipfile.BadZipFile(f"{info.filename!r}: {problem}") from problem


# --- the command line ---


def find_lists(out: Path) -> Path | None:
    """The folder with the lists of all three splits: `out` or one right below it."""
    for folder in (out, *sorted(path for path in out.iterdir() if path.is_dir())):
        with contextlib.suppress(DataError):
            for split in LIST_NAMES:
                find_list(folder, split)
            return folder
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0, 2 after a DataError, 130 when interrupted."""
    options = vars(_parser().parse_args(argv))
    options["max_bytes"] = options.pop("max_gib") * GIB
    try:
        out = fetch_dataset(**options)
    except DataError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; rerun the same command to go on", file=sys.stderr)
        return 130
    print(f"unpacked: {out}")
    lists = find_lists(out)
    if lists is None:
        print(f"the lists are missing: put train.txt, val.txt and test.txt (rows 'PATH LABEL') into {out}, then")
    print(f"next: python -m training.train mini-imagenet --data.path {shlex.quote(str(lists or out))}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.download",
        description="Download the data set, going on where an earlier attempt stopped, and unpack it safely.",
    )
    parser.add_argument(
        "out",
        nargs="?",
        type=Path,
        default=Path("data/mini-imagenet"),
        help="folder to make; %(default)s by default",
    )
    parser.add_argument("--url", default=URL, help="http(s) address of the zip; %(default)s by default")
    parser.add_argument("--archive", type=Path, metavar="ZIP", help="a zip on this machine; skips the download")
    parser.add_argument("--sha256", metavar="HEX", help="digest that the zip must have")
    parser.add_argument(
        "--max-gib", type=int, default=64, metavar="N", help="refuse to unpack more; %(default)s by default"
    )
    parser.add_argument(
        "--retries", type=int, default=8, metavar="N", help="after dropped connections; 8 by default"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
