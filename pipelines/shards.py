"""Images in a few tar files instead of one file each: what a packed folder holds, and how single images are read.

A packed folder is a data folder like any other, with its `train.txt`, …, made by `pipelines.packed`:

    packed.json              what was packed and how, and which images were refused
    classes.txt              what classes are called, where the images' own folder said it
    shards/train-00000.tar   WebDataset: 000000123.jpg, 000000123.cls, …: the number of the row in train.txt
    shards/train-00000.idx   DALI's index of it, as DALI's wds2idx writes it
    shards/train-00000.tsv   ours: where each image lies, its size and hashes; written last, when all stands

Why: a parallel file system asks its metadata servers for every file it opens, and millions of small ones bring
them to their knees; a few large files are also copied to a node's own disk in one stream.

Training reads single images by their offset, in the order of `pipelines.sharding`. DALI's webdataset reader would
not do there: it shuffles within a buffer only, and its shards and checkpoints hang on the number of ranks, so that
it cannot give the same batches on any number of them, nor go on in mid-epoch on another.
"""

import errno
import json
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipelines.errors import DataError
from pipelines.manifest import LIST_NAMES, Manifest
from pipelines.samples import Samples, content_hash

RECORD = "packed.json"
FORMAT = 1
_REMEDY = "copy the folder again, or run the same 'python -m pipelines.packed pack' again"


@dataclass(frozen=True)
class Options:
    """How images were packed; quality is None where none was encoded anew."""

    short_side: int | None = None
    quality: int | None = None
    shard_mb: int = 1024


@dataclass(frozen=True)
class Split:
    """What was packed of one list.

    Attributes:
        images, shards, classes: how many.
        fingerprint: that of the loose images.
        quarantined: refused path → reason.
    """

    images: int
    shards: int
    classes: int
    fingerprint: str
    quarantined: Mapping[str, str]


@dataclass(frozen=True)
class Record:
    """What packed.json says."""

    options: Options
    splits: Mapping[str, Split]

    def dump(self) -> bytes:
        """As JSON."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1).encode() + b"\n"

    def tars(self, folder: Path, split: str) -> list[Path]:
        """The tar files of a split."""
        return [folder / "shards" / f"{split}-{k:05d}.tar" for k in range(self.splits[split].shards)]

    def all_tars(self, folder: Path) -> list[Path]:
        """The tar files of all splits."""
        return [tar for split in self.splits for tar in self.tars(folder, split)]


class Row(NamedTuple):
    """One image of a shard as it is stored; length and offset in bytes, width and height in pixels.

    `pixels` is the hash that the scan took, before any scaling.
    """

    number: int
    offset: int
    length: int
    width: int
    height: int
    content: str
    pixels: str
    path: str


class TarShards:
    """Reads single images out of tar files, from any number of threads; see `pipelines.samples.Shards`.

    Args:
        tars: the tar files.
        shard: (N,), which of them holds the i-th image.
        offset, length: (N,), where in it, in bytes.
    """

    def __init__(self, tars: Sequence[Path], shard: np.ndarray, offset: np.ndarray, length: np.ndarray) -> None:
        self.tars, self.shard, self.offset, self.length = tars, shard, offset, length
        self._open: dict[int, int] = {}  # shard → descriptor, kept: opening is what is slow
        self._opening = threading.Lock()

    def __len__(self) -> int:
        return len(self.shard)

    def name(self, i: int) -> str:
        """The tar file of the i-th image."""
        return str(self.tars[self.shard[i]])

    def read(self, i: int) -> np.ndarray:
        """Encoded bytes of the i-th image, uint8.

        Raises:
            DataError: its shard is gone, cut short, or cannot be read.
        """
        shard, data = int(self.shard[i]), np.empty(self.length[i], np.uint8)
        try:
            got = os.preadv(self._descriptor(shard), [data], int(self.offset[i]))
        except OSError as error:
            many = error.errno == errno.EMFILE
            remedy = (
                "raise ulimit -n, or pack with a larger --shard-mb" if many else f"{_REMEDY}, then use --resume"
            )
            raise DataError(f"{self.tars[shard]}: {error.strerror}; {remedy}") from None
        if got < len(data):
            raise DataError(f"{self.tars[shard]}: ends too early; {_REMEDY}, then use --resume")
        return data

    def take(self, indices: np.ndarray) -> "TarShards":
        """Only some of the images, in the order of `indices`."""
        return TarShards(self.tars, self.shard[indices], self.offset[indices], self.length[indices])

    def _descriptor(self, shard: int) -> int:
        with self._opening:
            if shard not in self._open:
                self._open[shard] = os.open(self.tars[shard], os.O_RDONLY)
            return self._open[shard]

    def __reduce__(self) -> tuple:
        return TarShards, (self.tars, self.shard, self.offset, self.length)  # descriptors do not travel

    def __del__(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)


def is_packed(folder: Path) -> bool:
    """Whether a data folder is a packed one, and whole."""
    return (folder / RECORD).is_file()


def open_packed(manifest: Manifest) -> Samples:
    """The images that a list of a packed folder names; needs no scan, which was done before packing.

    Args:
        manifest: of `pipelines.manifest.read_split` on the packed folder; may keep only some of its classes.

    Raises:
        DataError: the folder is damaged: a shard is gone or cut short, or the list names what no shard holds.
    """
    folder, split = manifest.source.parent, manifest.source.stem
    record = read_record(folder)
    if split not in record.splits:
        raise DataError(f"{folder}: was packed without {split}; pack it into a new folder with --splits {split} …")
    tars = record.tars(folder, split)
    packed = {row.path: (shard, row) for shard, tar in enumerate(tars) for row in read_shard(tar)}
    absent = next((path for path in manifest.paths if path not in packed), None)
    if absent is not None:
        raise DataError(f"{manifest.source}: no shard holds {absent!r}; {_REMEDY}")
    shard, rows = zip(*(packed[path] for path in manifest.paths), strict=True)
    where = np.array([(row.offset, row.length) for row in rows], np.int64)
    return Samples(
        root=manifest.root,
        paths=list(manifest.paths),
        labels=manifest.label_array,
        sizes=np.array([(row.width, row.height) for row in rows], np.int32),
        contents=[row.content for row in rows],
        pixels=[row.pixels for row in rows],
        classes=manifest.classes,
        quarantined=record.splits[split].quarantined,
        shards=TarShards(tars, np.array(shard, np.int32), *where.T),
    )


def read_record(folder: Path, name: str = RECORD) -> Record:
    """Read packed.json, or the record of a folder that is still being packed.

    Raises:
        DataError: it is missing, damaged or of another format.
    """
    file = folder / name
    if not file.is_file():
        raise DataError(f"{folder}: not a packed folder, or not whole; see python -m pipelines.packed pack")
    try:
        text = json.loads(file.read_bytes())
        if text["format"] != FORMAT:
            raise ValueError(f"format {text['format']}, not {FORMAT}")
        if not text["splits"].keys() <= LIST_NAMES.keys():  # they become names of files
            raise ValueError(f"splits {', '.join(text['splits'])}")
        return Record(Options(**text["options"]), {name: _split(row) for name, row in text["splits"].items()})
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{file}: not a record of packing ({error}); {_REMEDY}") from None


def read_shard(tar: Path) -> list[Row]:
    """What a shard holds, according to the table beside it.

    Raises:
        DataError: the table is missing or was altered, or the tar file is too short for it.
    """
    file = tar.with_suffix(".tsv")
    try:
        seal, _, table = file.read_bytes().partition(b"\n")
        size = tar.stat().st_size
    except OSError as error:
        raise DataError(f"{error.filename}: {error.strerror}; {_REMEDY}") from None
    if seal != _seal(table):
        raise DataError(f"{file}: damaged, its rows do not match its first line; {_REMEDY}")
    try:
        rows = [_row(line) for line in table.decode(errors="surrogateescape").split("\n")[1:-1]]
    except (ValueError, TypeError):
        raise DataError(f"{file}: not a table of images; {_REMEDY}") from None
    if any(row.offset < 0 or row.length < 1 or row.offset + row.length > size for row in rows):
        raise DataError(f"{tar}: {size} bytes long, and images should lie beyond; {_REMEDY}")
    return rows


def dump_rows(rows: Iterable[Row]) -> bytes:
    """The table of a shard: a hash of what follows, names of the columns, one line per image."""
    lines = ["\t".join(Row._fields), *("\t".join(map(str, row)) for row in rows)]
    table = "".join(f"{line}\n" for line in lines).encode(errors="surrogateescape")
    return _seal(table) + b"\n" + table


def _seal(table: bytes) -> bytes:
    return b"# blake2b " + content_hash(table).encode()


def _row(line: str) -> Row:
    *numbers, content, pixels, path = line.split("\t", len(Row._fields) - 1)  # a path may hold tabs
    return Row(*map(int, numbers), content, pixels, path)


def _split(row: Mapping) -> Split:
    counts = {name: int(row[name]) for name in ("images", "shards", "classes")}
    return Split(**counts, fingerprint=str(row["fingerprint"]), quarantined=dict(row["quarantined"]))
