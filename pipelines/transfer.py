"""Large files over HTTP that go on where an earlier attempt stopped.

While a file is incomplete it is called NAME.part, and NAME.part.source says which version of which file it is the
beginning of.
"""

import hashlib
import http.client
import math
import re
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from urllib import error, request
from urllib.parse import urlsplit

from pipelines.errors import DataError
from pipelines.files import check_room
from pipelines.progress import track

MIB = 1 << 20
TIMEOUT_S = 60
TRANSIENT = {408, 425, 429, 500, 502, 503, 504}  # HTTP statuses that a later attempt may not meet
DROPPED = (error.URLError, ConnectionError, TimeoutError, http.client.HTTPException)


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
        url: http or https address.
        target: the file to make.
        sha256: hex digest that it must have; unchecked if None.
        retries: how often a dropped connection is taken up again.
        wait: called with the seconds to pass before each retry: 1, 2, 4, … up to 60.

    Raises:
        DataError: the file cannot be had, or is not a zip with that checksum.
    """
    name_of(url)
    if target.exists():
        check_sha256(target, sha256)
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = Part(url, target.with_name(target.name + ".part"))
    _fetch_with_retries(part, target, max(retries, 0), wait)
    if not zipfile.is_zipfile(part.path):
        part.discard()
        raise DataError(f"{url}: what came is not a whole zip file, and was deleted; check the address")
    check_sha256(part.path, sha256)
    part.path.replace(target)
    part.discard()
    return target


def name_of(url: str) -> str:
    """The last part of a URL's path.

    Raises:
        DataError: the URL is none that can be downloaded.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable or not re.fullmatch("[!-~]+", url):  # urllib takes printable ASCII only
        raise DataError(f"{url!r}: not an http or https address; for a zip on this machine use --archive FILE")
    name = PurePosixPath(parts.path).name
    return name if name.strip(".") else "archive.zip"


def check_sha256(file: Path, expected: str | None) -> None:
    """Compare a file with a hex digest, if there is one.

    Raises:
        DataError: it has another.
    """
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
        check_room(part.path.parent, missing or 0)
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
        while chunk := response.read(MIB):
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
    return track(counted(), math.ceil((missing or 0) / MIB), what, quiet=missing is None)
