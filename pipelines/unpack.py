"""Zip files from elsewhere, unpacked so that nothing lands outside a folder, fills the disk or is half there."""

import contextlib
import json
import stat
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PureWindowsPath

from pipelines.errors import DataError
from pipelines.files import check_room
from pipelines.progress import track

MARKER = ".download.json"  # written into the folder; says which archive it came from
GIB = 1 << 30
_CHUNK = 1 << 20  # bytes


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
            check_room(out.parent, total)
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
            while chunk := source.read(_CHUNK):
                yield chunk
    except Exception as problem:  # damaged data raises what the decompressors and zipfile happen to meet
        raise zipfile.BadZipFile(f"{info.filename!r}: {problem}") from problem


def is_unpacked(out: Path, archive_name: str) -> bool:
    """Whether `out` is complete (it only ever appears complete); False where there is nothing yet.

    Raises:
        DataError: it holds something else.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        if json.loads((out / MARKER).read_text())["archive"] == archive_name:
            return True
    raise DataError(f"{out}: exists, but was not unpacked from {archive_name}; choose another OUT or remove it")
