"""Pack images into a few tar files: `python -m pipelines.packed pack DIR OUT`, then `--data.path OUT`.

`stage OUT SCRATCH` copies a packed folder to a node's own disk, and `verify OUT` reads every image again.
What a packed folder holds, and why one would want it, says `pipelines.shards`.

Everything that is written is a function of the images and the options, and appears under its name only when it is
whole. So the same command goes on after a kill, and makes again what was damaged.
"""

import io
import os
import sys
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import tyro
from PIL import Image, ImageOps

from pipelines import class_names
from pipelines.cli import run_program
from pipelines.errors import DataError
from pipelines.files import GB, check_room, disk_trouble, flush, fresh, locked, write_atomically
from pipelines.manifest import parse_labels, read_manifest, read_split
from pipelines.progress import track
from pipelines.samples import Samples, content_hash
from pipelines.shards import (
    RECORD,
    Options,
    Record,
    Row,
    Split,
    dump_rows,
    is_packed,
    open_packed,
    read_record,
    read_shard,
)
from pipelines.staging import stage

SplitName = Literal["train", "val", "test"]
BEGUN = "packing.json"  # the record, until all that it speaks of is there
MB = 10**6
_SEED = 0  # of the order within shards
_THREADS = min(64, 4 * len(os.sched_getaffinity(0)))  # opening a file on a parallel file system is mostly waiting
_CHUNK = 16 * _THREADS  # images in memory at once
_SIGNATURES = {b"\xff\xd8\xff": "jpg", b"\x89PNG": "png", b"RIFF": "webp"}  # a name may lie about its format


class Stored(NamedTuple):
    """One image as it goes into a shard; `suffix` names its format, without a dot."""

    data: bytes
    suffix: str
    width: int
    height: int
    content: str
    pixels: str


# --- packing ---------------------------------------------------------------------------------------------


def pack(
    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")],
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")],
    *,
    short_side: int | None = None,
    quality: int = 92,
    shard_mb: int = 1024,
    root: Path | None = None,
    labels: str | None = None,
    splits: tuple[SplitName, ...] = ("train", "val", "test"),
    max_bad: float = 0.05,
) -> None:
    """Pack the images of a data folder into a few tar files. The same command goes on where it was stopped.

    Bytes are copied as they are, so that a run may go on from the loose images to the packed ones and back.
    With --short-side large images become smaller JPEG files: less to store and to decode, but other pixels.

    Args:
        folder: Folder of train.txt, val.txt (or validation.txt) and test.txt.
        out: Folder to make; give it to training as --data.path.
        short_side: Scale images down to this short side, in pixels; smaller ones stay as they are.
        quality: JPEG quality of images that were scaled.
        shard_mb: About the size of a tar file, in MB.
        root: Folder that the paths in the lists are relative to; the lists' own folder by default.
        labels: Keep only these classes, e.g. 0-19,40; they are renumbered from 0.
        splits: Which lists; train must be one of them.
        max_bad: Part of a list's images that may be unusable; they are left out and named in packed.json.

    Raises:
        DataError: there is something else in `out`, the images cannot be used, or there is no room for them.
    """
    from pipelines.integrity import scan  # imported late: it takes seconds, and who stages needs none of it

    _check_settings(folder, short_side, quality, shard_mb, splits)
    options = Options(short_side, quality if short_side else None, shard_mb)
    chosen = parse_labels(labels) if labels else None
    found = {name: scan(read_split(folder, name, root=root, labels=chosen), max_bad=max_bad) for name in splits}
    if len(set(found["train"].labels)) < found["train"].classes:
        raise DataError(f"{folder}: a class has no usable image in train; restore one, or choose by --labels")
    pack_samples(found, out, options, class_names.listed_names(folder, chosen))
    print(f"next: python -m training.train RECIPE --data.path {out}")


def pack_samples(found: dict[str, Samples], out: Path, options: Options, names: str | None = None) -> None:
    """Pack scanned images, split by split; see `pack`.

    Args:
        found: scanned images by split.
        out, options: see `pack`.
        names: what `classes.txt` shall say, if it shall be there.
    """
    plans = {name: deal(samples, options) for name, samples in found.items()}
    record = Record(options, {name: plan.describe() for name, plan in plans.items()})
    out.mkdir(parents=True, exist_ok=True)
    # Two packing into one folder would write the same temporary files.
    busy = f"{out}: another process is packing into it; wait, or name another folder"
    with disk_trouble(out), locked(out, busy):
        _begin(out, record)
        if names:
            write_atomically(out / class_names.FILE, names)
        (out / "shards").mkdir(exist_ok=True)
        todo = {name: _unfinished(record.tars(out, name), plan) for name, plan in plans.items()}
        check_room(out, sum(plans[name].bytes_of(todo[name].values()) for name in plans))
        for name, plan in plans.items():
            _pack_split(out, name, plan, todo[name], record)
        if (out / BEGUN).exists():
            (out / BEGUN).replace(out / RECORD)
            flush(out)


@dataclass(frozen=True)
class Plan:
    """Which images go into which shard, in which order.

    Attributes:
        samples: N scanned images.
        expected: (N,), about how many bytes of a tar file each will take.
        shards: sample numbers of each shard.
    """

    samples: Samples
    expected: np.ndarray
    shards: list[np.ndarray]

    def describe(self) -> Split:
        """What the record says of this split."""
        samples = self.samples
        fingerprint, refused = samples.fingerprint, dict(samples.quarantined)
        return Split(len(samples), len(self.shards), samples.classes, fingerprint, refused)

    def bytes_of(self, shards: Iterable[np.ndarray]) -> float:
        """About how many bytes some shards will take."""
        return sum(float(self.expected[numbers].sum()) for numbers in shards)


def deal(samples: Samples, options: Options) -> Plan:
    """Deal images out to shards, shuffled: lists are mostly sorted by class, and who reads on wants them mixed."""
    expected = _expected_bytes(samples, options.short_side)
    order = np.random.default_rng(_SEED).permutation(len(samples))
    shard = np.cumsum(expected[order]) // (options.shard_mb * MB)
    return Plan(samples, expected, np.split(order, np.flatnonzero(np.diff(shard)) + 1))


def _expected_bytes(samples: Samples, short_side: int | None) -> np.ndarray:
    """A file's length, less what scaling saves in pixels, and headers and padding."""
    try:
        with ThreadPoolExecutor(_THREADS) as pool:
            lengths = np.array(list(pool.map(os.path.getsize, samples.files)), np.float64)
    except OSError as error:
        raise _changed(error.filename, error.strerror) from None
    shrunk = np.minimum(1, (short_side or np.inf) / samples.sizes.min(1))
    return lengths * shrunk**2 + 4 * tarfile.BLOCKSIZE


def _unfinished(tars: list[Path], plan: Plan) -> dict[Path, np.ndarray]:
    """The shards that are still to be made, and what goes into them."""
    shards = zip(tars, plan.shards, strict=True)
    return {tar: numbers for tar, numbers in shards if not _stands(tar, numbers, plan.samples)}


def _stands(tar: Path, numbers: np.ndarray, samples: Samples) -> bool:
    """Whether a shard is finished; one that was and is no more is told of, and made again."""
    if not tar.with_suffix(".tsv").exists():
        return False
    try:
        rows = read_shard(tar)
    except DataError as error:
        print(f"{str(error).partition(';')[0]}; making it again", file=sys.stderr)
        return False
    wanted = [(number, samples.paths[number]) for number in numbers.tolist()]
    return tar.with_suffix(".idx").exists() and [(row.number, row.path) for row in rows] == wanted


def _pack_split(out: Path, name: str, plan: Plan, todo: dict[Path, np.ndarray], record: Record) -> None:
    start, samples, tars = time.monotonic(), plan.samples, record.tars(out, name)
    prepare = partial(_prepare, samples, record.options)
    with ThreadPoolExecutor(_THREADS) as pool:
        for tar, numbers in todo.items():
            images = track(_parallel(pool, prepare, numbers), len(numbers), f"{tar.name}, {len(tars)} in all")
            _write_shard(tar, numbers, images, samples)
    rows = "".join(f"{path} {label}\n" for path, label in zip(samples.paths, samples.labels, strict=True))
    write_atomically(out / f"{name}.txt", rows.encode(errors="surrogateescape"))
    size, seconds = sum(tar.stat().st_size for tar in tars), time.monotonic() - start
    kept = f" ({len(tars) - len(todo)} of them kept)" if len(todo) < len(tars) else ""
    shards = f"{len(tars)} shard{'s' * (len(tars) > 1)}{kept}"
    print(f"{name}: {len(samples)} images in {shards}, {size / GB:.3g} GB, {seconds:.1f} s", flush=True)


def _parallel(pool: ThreadPoolExecutor, prepare: Callable[[int], Stored], numbers: np.ndarray) -> Iterator[Stored]:
    """Images in order, a bounded number of them at once; Pillow and file systems work without the GIL."""
    for start in range(0, len(numbers), _CHUNK):
        yield from pool.map(prepare, numbers[start : start + _CHUNK].tolist())


def _write_shard(tar: Path, numbers: np.ndarray, images: Iterator[Stored], samples: Samples) -> None:
    """The tar file, DALI's index, and last the table that says that they are whole."""
    rows, index = [], [f"v1.2 {len(numbers)}"]
    with fresh(tar) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for number, image in zip(numbers.tolist(), images, strict=True):
            key, label = f"{number:09d}", b"%d" % samples.labels[number]
            offset = _add(archive, f"{key}.{image.suffix}", image.data)
            label_offset = _add(archive, f"{key}.cls", label)
            index.append(
                f"{image.suffix} {offset} {len(image.data)} {key}.{image.suffix} "
                f"cls {label_offset} {len(label)} {key}.cls"
            )
            rows.append(Row(number, offset, len(image.data), *image[2:], samples.paths[number]))
    write_atomically(tar.with_suffix(".idx"), "".join(f"{line}\n" for line in index).encode())
    write_atomically(tar.with_suffix(".tsv"), dump_rows(rows))


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> int:
    """Append a file to a tar file; where its bytes begin."""
    info = tarfile.TarInfo(name)  # no time, no owner: the same images give the same bytes
    info.size = len(data)
    offset = archive.offset + tarfile.BLOCKSIZE
    archive.addfile(info, io.BytesIO(data))
    return offset


# --- the folder ------------------------------------------------------------------------------------------


def _begin(out: Path, record: Record) -> None:
    """Write down what is to be packed, or see that the same was begun here.

    Raises:
        DataError: the folder holds something else.
    """
    wanted = record.dump()
    begun = next((file for file in (out / RECORD, out / BEGUN) if file.exists()), None)
    if begun is None:
        if any(file.name != f".{BEGUN}.tmp" for file in out.iterdir()):
            raise DataError(f"{out}: holds something else already; name an empty or a new folder")
        write_atomically(out / BEGUN, wanted)
    elif begun.read_bytes() != wanted:
        raise DataError(f"{out}: {_difference(begun, record)}; name another folder, or delete this one")


def _difference(begun: Path, record: Record) -> str:
    """What tells two packed folders apart."""
    old = read_record(begun.parent, begun.name)
    for field in fields(Options):
        before, now = getattr(old.options, field.name), getattr(record.options, field.name)
        if before != now:
            return f"was packed with --{field.name.replace('_', '-')} {before}, not {now}"
    for name in old.splits.keys() | record.splits.keys():
        if old.splits.get(name) != record.splits.get(name):
            return f"was packed from another {name} list, other images or --labels"
    return "was packed from the splits in another order"


def _check_settings(
    folder: Path, short_side: int | None, quality: int, shard_mb: int, splits: Sequence[str]
) -> None:
    """Refuse what could only fail later, or give a folder that nobody can read."""
    if is_packed(folder):
        raise DataError(f"{folder}: is packed already; name the folder of the images themselves")
    if short_side is not None and short_side < 32:
        raise DataError(f"--short-side {short_side}: too small for any network here; use 32 or more")
    if not 1 <= quality <= 100:
        raise DataError(f"--quality {quality}: must lie in 1 … 100; 92 loses little that can be seen")
    if shard_mb < 1:
        raise DataError(f"--shard-mb {shard_mb}: must be at least 1")
    if "train" not in splits:
        raise DataError(f"--splits {' '.join(splits)}: must include train, which says what classes there are")


def _changed(file: str, reason: str) -> DataError:
    return DataError(f"{file}: {reason}; restore it and run the same command again")


# --- one image -------------------------------------------------------------------------------------------


def _prepare(samples: Samples, options: Options, i: int) -> Stored:
    """Read an image, and scale it down where that was asked for and it is large."""
    try:
        data = Path(samples.files[i]).read_bytes()
    except OSError as error:
        raise _changed(samples.files[i], error.strerror) from None
    if content_hash(data) != samples.contents[i]:
        raise _changed(samples.files[i], "has other bytes than when it was scanned")
    if options.short_side and samples.sizes[i].min() > options.short_side:
        try:
            data, size = shrink(data, options.short_side, options.quality)
        except Exception as error:  # a foreign file may raise anything from Pillow's depths
            remedy = "re-encode it, or delete its row"
            raise DataError(f"{samples.files[i]}: cannot be scaled ({error}); {remedy}") from error
        # The hash of the pixels stays: images that were alike before are found to be so now.
        return Stored(data, "jpg", *size, content_hash(data), samples.pixels[i])
    suffix = next((name for signature, name in _SIGNATURES.items() if data.startswith(signature)), None)
    if suffix is None:
        raise DataError(f"{samples.files[i]}: is neither JPEG nor PNG nor WebP; convert it")
    return Stored(data, suffix, *samples.sizes[i].tolist(), samples.contents[i], samples.pixels[i])


def shrink(data: bytes, short_side: int, quality: int) -> tuple[bytes, tuple[int, int]]:
    """Scale an image down to a short side, upright and RGB: a JPEG file, its width and height."""
    with Image.open(io.BytesIO(data)) as image:
        image.draft(image.mode, (2 * short_side, 2 * short_side))  # let JPEG halve it while it decodes
        image.load()
        for name in ("xmp", "XML:com.adobe.xmp"):  # Pillow would seek an orientation there too, the loaders do not
            image.info.pop(name, None)
        upright = ImageOps.exif_transpose(image).convert("RGB")
    scale = short_side / min(upright.size)
    width, height = (max(short_side, round(side * scale)) for side in upright.size)
    out = io.BytesIO()
    upright.resize((width, height), Image.Resampling.LANCZOS).save(out, "JPEG", quality=quality)
    return out.getvalue(), (width, height)


# --- looking after it ------------------------------------------------------------------------------------


def verify(folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PACKED")]) -> None:
    """Read every image of a packed folder and compare it with its hash.

    Args:
        folder: Made by `pack`.

    Raises:
        DataError: a shard is damaged; the message names it.
    """
    for name in read_record(folder).splits:
        samples = open_packed(read_manifest(folder / f"{name}.txt"))
        shards = samples.shards
        in_order = np.lexsort((shards.offset, shards.shard))
        for i in track(in_order.tolist(), len(samples), f"verifying {name}"):
            if content_hash(samples.read(i)) != samples.contents[i]:
                tar = shards.tars[shards.shard[i]]
                raise DataError(f"{tar}: {samples.paths[i]} is damaged; delete it, and pack or copy again")
        print(f"{name}: {len(samples)} images are sound")


def main(args: Sequence[str] | None = None) -> None:
    """Pack, stage or verify, as the command line says."""
    programs = {"pack": pack, "stage": stage, "verify": verify}
    description = "Images in a few tar files instead of one file each, for parallel file systems."
    staged = tyro.extras.subcommand_cli_from_dict(
        programs, prog="python -m pipelines.packed", description=description, args=args
    )
    if staged:
        print(staged)


if __name__ == "__main__":
    run_program(main)
